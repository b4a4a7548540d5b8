use proptest::prelude::*;

use super::*;
use crate::model::{
    FileBurst, FileChanges, FileId, FileOps, FilePlaces, Origin, OriginUnknown, PlacedExtent, Point, Process,
    Stretch, Timeline,
};

fn any_body() -> impl Strategy<Value = RecordBody> {
    let range = (0u64..1 << 40, 0u64..1 << 30).prop_map(|(start, len)| ByteRange::with_len(start, len));
    prop_oneof![
        (0u64..1 << 62, prop::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(start, bytes)| RecordBody::Data { start, bytes }),
        (0u64..1 << 40, any::<u8>(), 0usize..5000)
            .prop_map(|(start, fill, len)| RecordBody::Data { start, bytes: vec![fill; len] }),
        range.clone().prop_map(RecordBody::Zero),
        range.clone().prop_map(RecordBody::Discard),
        range.prop_map(RecordBody::Gap),
        any_origin().prop_map(RecordBody::Origin),
        crate::journal::tree::tests::any_change().prop_map(RecordBody::Tree),
        (0usize..4, ".{0,20}").prop_map(|(class, label)| {
            let class = [PointClass::Fuzzy, PointClass::Crash, PointClass::Fs, PointClass::App][class];
            RecordBody::Mark(Mark { id: MarkId(0), class, label })
        }),
    ]
}

fn any_origin() -> impl Strategy<Value = Origin> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    let process = (any::<u32>(), any::<u64>(), any::<u64>(), bytes());
    let process = process.prop_map(|(pid, start_ns, cgroup, name)| Process { pid, start_ns, cgroup, name });
    let file = (any::<u64>(), any::<u32>(), any::<u32>());
    let file = file.prop_map(|(inode, generation, dev)| FileId { inode, generation, dev });
    // Each begins after the end of the one before.
    let ranges = prop::collection::vec((1u64..1 << 40, 1u64..1 << 40), 0..5).prop_map(|steps| {
        let mut at = 0;
        let range = |(skip, len): (u64, u64)| {
            let range = ByteRange::with_len(at + skip, len);
            at = range.end;
            range
        };
        steps.into_iter().map(range).collect::<Vec<_>>()
    });
    let burst = (process.clone(), any::<[u64; 2]>(), any::<[u32; 4]>(), any::<[u8; 2]>()).prop_map(
        |(process, [began, recognised], [rewritten, removed, sampled, random], [compared, spoiled])| {
            let (began, recognised) = (Timestamp(began), Timestamp(recognised));
            let burst = FileBurst {
                process,
                began,
                recognised,
                rewritten,
                removed,
                sampled,
                random,
                compared,
                spoiled,
            };
            Origin::Burst(burst)
        },
    );
    let extents =
        prop::collection::vec((0u64..1 << 40, 0u64..1 << 40, 1u64..1 << 40), 0..5).prop_map(|steps| {
            let mut at = 0;
            let extent = |(skip, start, length): (u64, u64, u64)| {
                let extent = PlacedExtent { offset: at + skip, start, length };
                at = extent.offset + length;
                extent
            };
            steps.into_iter().map(extent).collect::<Vec<_>>()
        });
    let places = (file.clone(), any::<u64>(), extents)
        .prop_map(|(file, at, extents)| Origin::Places(FilePlaces { file, at: Timestamp(at), extents }));
    let changes = (process, file, bytes(), bytes(), any::<u32>(), any::<[u64; 3]>(), ranges).prop_map(
        |(process, file, path, new_path, ops, [first, last, count], ranges)| {
            let (first, last, ops) = (Timestamp(first), Timestamp(last), FileOps(ops & FileOps::KNOWN));
            Origin::Changes(FileChanges { process, file, path, new_path, ops, first, last, count, ranges })
        },
    );
    let unknown = (any::<[u64; 3]>(), ".{0,20}").prop_map(|([from, to, missing], why)| {
        Origin::Unknown(OriginUnknown { from: Timestamp(from), to: Timestamp(to), missing, why })
    });
    prop_oneof![changes, unknown, burst, places]
}

fn points_of(records: &[Record]) -> Vec<Point> {
    let point = |record: &Record| match &record.body {
        RecordBody::Mark(mark) => Some(Point {
            id: mark.id,
            class: mark.class,
            lsn: record.lsn,
            time: record.time,
            label: mark.label.clone(),
        }),
        _ => None,
    };
    records.iter().filter_map(point).collect()
}

/// By the definition: record for record.
fn timeline_of(records: &[Record]) -> Timeline {
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut intact = false;
    for Record { lsn, time, ordered, body } in records {
        match body {
            RecordBody::Mark(mark) if mark.class.restorable() && !intact => {
                let (from_lsn, from_time) = (*lsn, *time);
                stretches.push(Stretch { from_lsn, from_time, to_lsn: from_lsn, to_time: from_time });
                intact = true;
            }
            RecordBody::Mark(_) => {}
            _ => intact &= ordered,
        }
        if let Some(last) = stretches.last_mut().filter(|_| intact) {
            (last.to_lsn, last.to_time) = (*lsn, *time);
        }
    }
    let holds_more_than_marks = |stretch: &Stretch| {
        let inside = |record: &&Record| stretch.contains(record.lsn);
        records.iter().filter(inside).any(|record| !matches!(record.body, RecordBody::Mark(_)))
    };
    stretches.retain(holds_more_than_marks);
    let last_lsn = records.last().map_or(Lsn::ZERO, |record| record.lsn);
    Timeline { points: points_of(records), stretches, last_lsn }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn what_was_appended_is_read(
        bodies in prop::collection::vec((any_body(), any::<u64>(), 0u8..8, 0u8..5), 1..80),
        frame_bytes_max in 1usize..2000,
        segment_bytes_max in 0u64..8000,
        zstd_level in 0i32..3,
        window in (0u64..90, 0u64..90),
    ) {
        let options = JournalOptions { segment_bytes_max, frame_bytes_max, sync: SyncPolicy::Mark, zstd_level };
        let store = FaultyStore::new(4096);
        let mut writer = Writer::create_in(store.clone(), &sample_info(), options.clone()).unwrap();
        // One that follows all along, and so has a warm cache.
        let follower = Journal::open_in(store.clone()).unwrap();
        let mut wanted = Vec::new();
        for (mut body, time, then, order) in bodies {
            if let RecordBody::Mark(mark) = &mut body {
                mark.id = writer.next_mark();
            }
            let time = Timestamp(time);
            let may_be = body.content_range().is_some() || matches!(body, RecordBody::Origin(_));
            let ordered = order > 0 && may_be;
            let appended =
                if ordered { writer.append_ordered(time, body.clone()) } else { writer.append(time, body.clone()) };
            let lsn = appended.unwrap();
            let before = wanted.last().map(|record: &Record| record.time).filter(|time| time.0 > 0);
            let time = match ordered && matches!(body, RecordBody::Origin(_)) {
                true => before.unwrap_or(time),
                false => time,
            };
            wanted.push(Record { lsn, time, ordered, body });
            match then {
                0 => prop_assert_eq!(writer.sync().unwrap(), lsn),
                1 => {
                    writer.flush().unwrap();
                    prop_assert_eq!(follower.last_lsn().unwrap(), lsn);
                    prop_assert_eq!(follower.timeline().unwrap(), timeline_of(&wanted));
                }
                2 => {
                    writer.sync().unwrap();
                    drop(writer);
                    let recovery;
                    (writer, recovery) = Writer::open_in(store.clone(), options.clone()).unwrap();
                    prop_assert_eq!((recovery.cut, recovery.last_lsn), (None, lsn));
                    prop_assert_eq!(writer.next_lsn(), lsn.next());
                }
                _ => {}
            }
        }
        writer.sync().unwrap();
        let journal = Journal::open_in(store.clone()).unwrap();
        prop_assert_eq!(journal.points().unwrap(), points_of(&wanted));
        let timeline = timeline_of(&wanted);
        prop_assert_eq!(&journal.timeline().unwrap(), &timeline);
        for journal in [&journal, &follower] {
            for record in &wanted {
                let found = journal.last_instant(&timeline.stretches, record.time).unwrap();
                let of_it = |other: &&Record| timeline.is_instant(other.lsn) && other.time <= record.time;
                let last = wanted.iter().rfind(of_it).map(|record| (record.lsn, record.time));
                prop_assert_eq!(found, last, "at {}", record.time);
            }
        }
        let (from, to) = (Lsn(window.0), Lsn(window.1));
        for journal in [&journal, &follower] {
            let all: Result<Vec<_>, _> = journal.records(Lsn::ZERO, Lsn(u64::MAX)).unwrap().collect();
            prop_assert_eq!(all.unwrap(), wanted.clone());
            let part: Result<Vec<_>, _> = journal.records(from, to).unwrap().collect();
            let wanted_part: Vec<_> =
                wanted.iter().filter(|record| from <= record.lsn && record.lsn <= to).cloned().collect();
            prop_assert_eq!(part.unwrap(), wanted_part);
        }
        let report = check(&store).unwrap();
        prop_assert_eq!(report.records, wanted.len() as u64);
        prop_assert_eq!(report.marks, points_of(&wanted).len() as u64);
        let listed = journal.segments().unwrap();
        prop_assert_eq!(listed.len() as u64, report.segments);
        prop_assert_eq!(listed.iter().map(|segment| segment.bytes).sum::<u64>(), report.bytes);
        prop_assert_eq!(listed.last().unwrap().last_lsn, report.last_lsn);
    }
}

#[test]
fn refused_records_leave_the_writer_working() {
    let store = FaultyStore::new(4096);
    let mut writer = Writer::create_in(store.clone(), &sample_info(), tiny(SyncPolicy::Mark)).unwrap();
    let mark = |id, label: &str| {
        RecordBody::Mark(Mark { id: MarkId(id), class: PointClass::Crash, label: label.into() })
    };
    writer.append(Timestamp(1), mark(5, "five")).unwrap();
    let refused = [
        RecordBody::Data { start: 0, bytes: vec![0; (4 << 20) + 1] },
        RecordBody::Data { start: u64::MAX - 3, bytes: vec![0; 8] },
        RecordBody::Zero(ByteRange { start: 8, end: 4 }),
        RecordBody::Gap(ByteRange { start: 0, end: u64::MAX }),
        mark(5, "again"),
        mark(u64::MAX, "the last one"),
        mark(6, &"x".repeat(4097)),
    ];
    for body in [RecordBody::Gap(ByteRange::new(0, 512)), mark(6, "six")] {
        assert!(matches!(writer.append_ordered(Timestamp(2), body), Err(JournalError::InvalidRecord(_))));
    }
    for body in refused {
        assert!(matches!(writer.append(Timestamp(2), body), Err(JournalError::InvalidRecord(_))));
    }
    writer.append(Timestamp(3), RecordBody::Data { start: 0, bytes: vec![7; 4 << 20] }).unwrap();
    writer.append(Timestamp(4), mark(6, &"x".repeat(4096))).unwrap();
    assert_eq!(writer.sync().unwrap(), Lsn(3));
    assert_eq!(check(&store).unwrap().records, 3);
}

#[test]
fn sync_policies_do_what_they_say() {
    use std::time::{Duration, Instant};
    let data = || RecordBody::Data { start: 0, bytes: vec![1; 150] };
    let run = |sync| {
        let store = FaultyStore::new(4096);
        let mut writer = Writer::create_in(store, &sample_info(), tiny(sync)).unwrap();
        for _ in 0..3 {
            writer.append(Timestamp(0), data()).unwrap();
        }
        writer
    };
    let now = Instant::now();
    let mut always = run(SyncPolicy::Always);
    assert_eq!(always.durable(), Lsn(2), "two frames were full");
    always.flush().unwrap();
    assert_eq!(always.durable(), Lsn(3));
    let mut mark = run(SyncPolicy::Mark);
    mark.tick(now).unwrap();
    mark.tick(now + Duration::from_secs(100)).unwrap();
    assert_eq!(mark.durable(), Lsn(0));
    let mut interval = run(SyncPolicy::Interval(Duration::from_secs(1)));
    interval.tick(now).unwrap();
    interval.tick(now + Duration::from_millis(999)).unwrap();
    assert_eq!(interval.durable(), Lsn(0));
    interval.tick(now + Duration::from_millis(1000)).unwrap();
    assert_eq!(interval.durable(), Lsn(3));
    for policy in [SyncPolicy::Always, SyncPolicy::Mark, SyncPolicy::default()] {
        assert_eq!(policy.to_string().parse::<SyncPolicy>().unwrap(), policy);
    }
    assert!("never".parse::<SyncPolicy>().is_err());
}
