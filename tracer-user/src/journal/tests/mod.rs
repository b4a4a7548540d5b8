//! Tests of the journal as a whole, on a disk in memory unless they are about the real one.

mod back;
mod crash;
mod damage;
mod format;
mod golden;
mod live;
mod prune;
mod racing;
mod reopen;
mod round_trip;

use crate::io::store::Store;
use crate::io::store::faulty::{FaultyStore, Random};
use crate::journal::{Journal, JournalError, JournalOptions, SyncPolicy, Writer};
use crate::model::{
    ByteRange, Lsn, Mark, MarkId, PointClass, Record, RecordBody, Timestamp, VolumeId, VolumeInfo,
};

pub(super) fn sample_info() -> VolumeInfo {
    VolumeInfo {
        id: VolumeId(*b"0123456789abcdef"),
        source: "/dev/vdb".into(),
        identity: "name:vdb".into(),
        size_bytes: 1 << 30,
        sector_bytes: 512,
        created: Timestamp(1_750_000_000_000_000_000),
    }
}

/// Small frames and segments, so that a few records make many of both.
fn tiny(sync: SyncPolicy) -> JournalOptions {
    JournalOptions { segment_bytes_max: 1500, frame_bytes_max: 200, sync, zstd_level: 1 }
}

fn body(random: &mut Random, mark: MarkId) -> RecordBody {
    let range = ByteRange::with_len(random.below(1 << 20) as u64 * 512, random.below(64) as u64 * 512);
    match random.below(8) {
        0..4 => {
            let fill = random.below(256);
            let step = random.below(2) * 91;
            let bytes = (0..random.below(120)).map(|at| (fill + at * step * step) as u8).collect();
            RecordBody::Data { start: range.start, bytes }
        }
        4 => RecordBody::Zero(range),
        5 => RecordBody::Discard(range),
        6 => RecordBody::Gap(range),
        _ => RecordBody::Mark(Mark { id: mark, class: PointClass::Crash, label: format!("mark {mark}") }),
    }
}

/// Appends `count` records, flushes now and then, syncs every mark. What was appended goes to `appended`, the last
/// acknowledged LSN to `durable`; they stay right when it fails midway.
fn work<S: Store>(
    writer: &mut Writer<S>,
    random: &mut Random,
    count: usize,
    appended: &mut Vec<Record>,
    durable: &mut Lsn,
) -> Result<(), JournalError> {
    for _ in 0..count {
        let time = Timestamp(sample_info().created.0 + writer.next_lsn().0 * 1_000_000);
        let body = body(random, writer.next_mark());
        let mark = matches!(body, RecordBody::Mark(_));
        let ordered = body.content_range().is_some() && random.below(3) > 0;
        appended.push(Record { lsn: writer.next_lsn(), time, ordered, body: body.clone() });
        if ordered {
            writer.append_ordered(time, body)?
        } else {
            writer.append(time, body)?
        };
        if mark {
            assert_eq!(writer.sync()?, appended.last().unwrap().lsn);
        } else if random.below(5) == 0 {
            writer.flush()?;
        }
        *durable = writer.durable();
    }
    Ok(())
}

/// A journal of several segments and how its records read.
fn sample(page_bytes: usize, seed: u64, count: usize) -> (FaultyStore, Vec<Record>) {
    let store = FaultyStore::new(page_bytes);
    let mut writer = Writer::create_in(store.clone(), &sample_info(), tiny(SyncPolicy::Mark)).unwrap();
    let mut records = Vec::new();
    work(&mut writer, &mut Random::new(seed), count, &mut records, &mut Lsn(0)).unwrap();
    writer.flush().unwrap();
    (store, records)
}

fn read_all(store: &FaultyStore) -> Result<Vec<Record>, JournalError> {
    Journal::open_in(store.clone())?.records(Lsn(1), Lsn(u64::MAX))?.collect()
}

fn check(store: &FaultyStore) -> Result<crate::journal::CheckReport, JournalError> {
    Journal::open_in(store.clone())?.check(&mut |_, _| {})
}

/// The names of the segments, in order.
fn segments(store: &FaultyStore) -> Vec<String> {
    let mut names: Vec<String> = store.list().unwrap();
    names.retain(|name| name.ends_with(".awj"));
    names.sort();
    names
}

/// Opens for writing, appends one more mark, and proves that the whole journal reads as `wanted` and that mark.
fn append_on(store: &FaultyStore, wanted: &[Record]) {
    let (mut writer, recovery) = Writer::open_in(store.clone(), tiny(SyncPolicy::Mark)).unwrap();
    assert_eq!(recovery.last_lsn.0, wanted.len() as u64);
    let mark = Mark { id: writer.next_mark(), class: PointClass::Fs, label: "after".into() };
    let (time, body) = (Timestamp(7), RecordBody::Mark(mark));
    let lsn = writer.append(time, body.clone()).unwrap();
    writer.sync().unwrap();
    let mut wanted = wanted.to_vec();
    wanted.push(Record { lsn, time, ordered: false, body });
    assert_eq!(read_all(store).unwrap(), wanted);
    let report = check(store).unwrap();
    assert_eq!((report.last_lsn, report.torn_tail), (lsn, None));
}
