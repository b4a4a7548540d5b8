//! On a real directory.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::journal::segment::segment_name;

#[test]
fn a_directory_takes_one_writer_and_any_readers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new");
    let mut writer = Writer::create(&path, &sample_info(), tiny(SyncPolicy::Mark)).unwrap();
    assert!(matches!(Writer::open(&path, tiny(SyncPolicy::Mark)), Err(JournalError::Locked { .. })));
    assert!(matches!(
        Writer::create(&path, &sample_info(), tiny(SyncPolicy::Mark)),
        Err(JournalError::AlreadyAJournal { .. })
    ));
    let mut records = Vec::new();
    work(&mut writer, &mut Random::new(4), 100, &mut records, &mut Lsn(0)).unwrap();
    writer.sync().unwrap();
    let journal = Journal::open(&path).unwrap();
    assert_eq!(journal.info(), &sample_info());
    let read: Result<Vec<_>, _> = journal.records(Lsn(1), Lsn(u64::MAX)).unwrap().collect();
    assert_eq!(read.unwrap(), records);
    let mut steps = Vec::new();
    let report = journal.check(&mut |done, of| steps.push((done, of))).unwrap();
    assert_eq!(steps.last(), Some(&(report.bytes, report.bytes)));
    assert!(steps.is_sorted() && report.segments > 3);
    drop(writer);
    let (writer, recovery) = Writer::open(&path, tiny(SyncPolicy::Mark)).unwrap();
    assert_eq!((recovery.cut, recovery.last_lsn, writer.next_lsn()), (None, Lsn(100), Lsn(101)));
}

#[test]
fn only_directories_that_are_free_become_journals() {
    let options = || tiny(SyncPolicy::Mark);
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Journal::open(dir.path()), Err(JournalError::NotAJournal { .. })));
    assert!(matches!(Writer::open(dir.path(), options()), Err(JournalError::NotAJournal { .. })));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made");
    std::fs::write(dir.path().join("letter"), "dear").unwrap();
    assert!(matches!(
        Writer::create(dir.path(), &sample_info(), options()),
        Err(JournalError::NotEmpty { .. })
    ));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was made");
    std::fs::remove_file(dir.path().join("letter")).unwrap();
    // What a creation that was killed leaves.
    std::fs::write(dir.path().join(segment_name(Lsn(1))), "half").unwrap();
    std::fs::write(dir.path().join("volume.toml.tmp"), "half").unwrap();
    Writer::create(dir.path(), &sample_info(), options()).unwrap();
    assert!(Journal::open(&dir.path().join("nowhere")).is_err());
}

#[test]
fn readers_follow_a_writer_and_see_nothing_but_the_truth() {
    const COUNT: usize = 4000;
    let dir = tempfile::tempdir().unwrap();
    let options = JournalOptions {
        segment_bytes_max: 40_000,
        frame_bytes_max: 2000,
        sync: SyncPolicy::Mark,
        zstd_level: 1,
    };
    let mut writer = Writer::create(dir.path(), &sample_info(), options).unwrap();
    let flushed = AtomicU64::new(0);
    let (written, followed) = std::thread::scope(|scope| {
        let follow = || {
            // Asks again and again from where it came to, as the applier does.
            let journal = Journal::open(dir.path()).unwrap();
            let mut read: Vec<Record> = Vec::new();
            while read.len() < COUNT {
                let promised = flushed.load(Ordering::Acquire);
                let next = Lsn(read.len() as u64 + 1);
                read.extend(journal.records(next, Lsn(u64::MAX)).unwrap().map(Result::unwrap));
                assert!(read.len() as u64 >= promised, "{} of {promised} read", read.len());
                let points = journal.points().unwrap();
                assert!(points.is_sorted_by_key(|point| point.id));
                let last = journal.last_lsn().unwrap();
                assert!(last.0 >= read.len() as u64);
            }
            read
        };
        let check = || {
            while flushed.load(Ordering::Acquire) < COUNT as u64 {
                let journal = Journal::open(dir.path()).unwrap();
                let report = journal.check(&mut |_, _| {}).unwrap();
                assert!(journal.last_lsn().unwrap() >= report.last_lsn);
                journal.segments().unwrap();
            }
        };
        let follower = scope.spawn(follow);
        let checker = scope.spawn(check);
        let mut records = Vec::new();
        let mut random = Random::new(9);
        while records.len() < COUNT {
            work(&mut writer, &mut random, 20, &mut records, &mut Lsn(0)).unwrap();
            writer.flush().unwrap();
            flushed.store(records.len() as u64, Ordering::Release);
        }
        checker.join().unwrap();
        (records, follower.join().unwrap())
    });
    assert_eq!(followed, written);
}
