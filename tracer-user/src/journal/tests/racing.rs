//! Readers whose writer acts between two of their reads, step by step instead of by chance.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Shows bytes from `offset` on as zeros, but only to the first read that touches them: as if the writer had
/// completed them right after.
struct StaleOnce {
    inner: FaultyStore,
    name: String,
    offset: u64,
    shown: AtomicBool,
}

impl Store for StaleOnce {
    fn dir(&self) -> &Path {
        self.inner.dir()
    }
    fn part(&self, prefix: &str) -> StaleOnce {
        let shown = AtomicBool::new(true);
        StaleOnce { inner: self.inner.part(prefix), name: self.name.clone(), offset: self.offset, shown }
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }
    fn size(&self, name: &str) -> io::Result<u64> {
        self.inner.size(name)
    }
    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read_at(name, offset, buffer)?;
        let touches = name == self.name && offset + count as u64 > self.offset;
        if touches && !self.shown.swap(true, Ordering::Relaxed) {
            buffer[usize::try_from(self.offset.saturating_sub(offset)).unwrap()..count].fill(0);
        }
        Ok(count)
    }
    fn create(&mut self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn append(&mut self, _: &str, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn sync(&mut self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn forget_cache(&mut self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn rewrite(&mut self, _: &str, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn truncate(&mut self, _: &str, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn remove(&mut self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn rename(&mut self, _: &str, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn sync_dir(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

#[test]
fn bytes_completed_between_two_reads_are_no_damage() {
    let (store, records) = sample(4096, 11, 60);
    for name in segments(&store) {
        for offset in 0..store.size(&name).unwrap() {
            let shown = AtomicBool::new(false);
            let racing = StaleOnce { inner: store.clone(), name: name.clone(), offset, shown };
            let journal = Journal::open_in(racing).unwrap();
            let read: Result<Vec<_>, _> = journal.records(Lsn(1), Lsn(u64::MAX)).unwrap().collect();
            let read = read.unwrap_or_else(|error| panic!("{name}, {offset}: {error}"));
            assert_eq!(read, records[..read.len()]);
        }
    }
}

#[test]
fn a_reader_that_lives_through_a_recovery_forgets_what_was_cut() {
    let mark = |label: &str, writer: &mut Writer<FaultyStore>| {
        let mark = Mark { id: writer.next_mark(), class: PointClass::Crash, label: label.into() };
        writer.append(Timestamp(0), RecordBody::Mark(mark)).unwrap();
        writer.flush().unwrap();
    };
    for (kept, labels) in [
        (1, &["of the second life"; 2][..]),
        (1, &["of the second life"; 3]),
        (1, &["longer labels than there were before"; 3]),
        (1, &["short"]),
        (0, &["short"; 5]),
        (2, &[]),
        (1, &[]),
    ] {
        let store = FaultyStore::new(4096);
        let options = JournalOptions { segment_bytes_max: 1 << 20, zstd_level: 0, ..tiny(SyncPolicy::Mark) };
        let mut writer = Writer::create_in(store.clone(), &sample_info(), options.clone()).unwrap();
        let name = segments(&store).remove(0);
        let journal = Journal::open_in(store.clone()).unwrap();
        let mut sizes = vec![store.size(&name).unwrap()];
        for label in ["first", "of the first life."] {
            mark(label, &mut writer);
            sizes.push(store.size(&name).unwrap());
        }
        mark("of the first life,", &mut writer);
        assert_eq!(journal.points().unwrap().len(), 3);
        drop(writer);
        store.clone().truncate(&name, sizes[kept]).unwrap();
        let (mut writer, _) = Writer::open_in(store.clone(), options).unwrap();
        labels.iter().for_each(|label| mark(label, &mut writer));
        let fresh = Journal::open_in(store.clone()).unwrap();
        assert_eq!(journal.points().unwrap(), fresh.points().unwrap(), "{kept} {labels:?}");
        assert_eq!(journal.last_lsn().unwrap(), fresh.last_lsn().unwrap());
        let all = |journal: &Journal<FaultyStore>| -> Vec<Record> {
            journal.records(Lsn(2), Lsn(u64::MAX)).unwrap().map(Result::unwrap).collect()
        };
        assert_eq!(all(&journal), all(&fresh));
    }
}

#[test]
fn journals_can_be_shared_and_moved_between_threads() {
    fn shared<T: Send + Sync>() {}
    fn moved<T: Send>() {}
    shared::<Journal>();
    moved::<Writer>();
    moved::<crate::journal::Records>();
}
