use super::hash_list::KeptHashes;
use super::history::{History, SIZE};
use super::*;
use crate::model::{ByteRange, Lsn, MarkId, Point, PointClass, RecordBody};
use crate::target::faulty::{Fault, FaultyDisk};
use crate::target::{TargetError, TargetWriter};

mod going_back;
mod view;

/// A replica on a faulty disk, as `Replica::open` would make it from what is durable.
fn replica_on(history: &History, disk: &FaultyDisk) -> Replica {
    let target = TargetWriter::over(disk.clone(), SIZE as u64);
    let checkpoint = Checkpoint::read(&history.files())
        .unwrap()
        .unwrap_or_else(|| Checkpoint::fresh(history.info.id, "test".as_ref(), "test"));
    Replica::of(&history.files(), target, checkpoint, KeptHashes::none()).checkpoint_every(20_000)
}

/// Goes on as a restarted applier does: first what was begun, then mark by mark.
fn go_on(replica: &mut Replica, history: &History, points: &[Point]) -> Result<(), ApplyError> {
    let journal = history.journal();
    let begun = replica.pending().unwrap_or(replica.checkpoint().applied);
    for point in points.iter().filter(|point| point.lsn >= begun) {
        replica.advance(&journal, point.lsn, Some(point))?;
    }
    Ok(())
}

fn assert_at(history: &History, disk: &FaultyDisk, replica: &Replica, point: &Point) {
    let checkpoint = replica.checkpoint();
    assert_eq!((checkpoint.applied, checkpoint.applying), (point.lsn, None));
    assert_eq!((checkpoint.consistent, checkpoint.mark), (true, Some(point.id)));
    assert!(disk.bytes() == history.state(point.lsn), "the replica is not at mark {}", point.id);
}

fn way(history: &History, from: u64, to: u64) -> crate::journal::Way {
    history.journal().way(Lsn(from), Lsn(to)).unwrap()
}

#[test]
fn a_replica_is_the_source_at_every_mark() {
    let history = History::new(1, 8);
    let disk = FaultyDisk::new(SIZE);
    let mut replica = replica_on(&history, &disk);
    for point in history.points() {
        replica.advance(&history.journal(), point.lsn, Some(&point)).unwrap();
        assert_at(&history, &disk, &replica, &point);
        assert_eq!(Checkpoint::read(&history.files()).unwrap().as_ref(), Some(replica.checkpoint()));
    }
}

#[test]
fn a_power_cut_at_every_operation_of_the_target_is_made_good() {
    for seed in 1..4 {
        let history = History::new(seed, 4);
        let points = history.points();
        let disk = FaultyDisk::new(SIZE);
        go_on(&mut replica_on(&history, &disk), &history, &points).unwrap();
        let ops = disk.ops();
        assert!(ops > 10);
        for crash_at in 0..ops {
            std::fs::remove_file(history.files().checkpoint()).unwrap();
            let disk = FaultyDisk::new(SIZE);
            disk.fail_at(crash_at, Fault::Crash);
            go_on(&mut replica_on(&history, &disk), &history, &points).unwrap_err();
            let durable = Checkpoint::read(&history.files()).unwrap().unwrap();
            assert!(durable.applying.is_some() && !durable.consistent, "it was amid an apply");
            for keep in [0, u64::MAX, 0x5555_5555_5555_5555, 0x1b87_93c4_e2d1_0f36] {
                let disk = FaultyDisk::holding(disk.after_power_cut(keep));
                durable.write(&history.files()).unwrap();
                let mut replica = replica_on(&history, &disk);
                go_on(&mut replica, &history, &points).unwrap();
                assert_at(&history, &disk, &replica, points.last().unwrap());
            }
        }
    }
}

#[test]
fn a_kill_at_every_checkpoint_is_made_good() {
    for checkpoints in 0..100 {
        let history = History::new(7, 5);
        let points = history.points();
        let disk = FaultyDisk::new(SIZE);
        let mut replica = replica_on(&history, &disk);
        replica.machine.fail_at(checkpoints, Fault::Crash);
        if go_on(&mut replica, &history, &points).is_ok() {
            assert!(checkpoints > 10, "the test must have cut something");
            return;
        }
        assert!(matches!(replica.advance(&history.journal(), Lsn(1000), None), Err(ApplyError::Latched)));
        let disk = FaultyDisk::holding(disk.after_power_cut(0x6666_6666_6666_6666));
        let mut replica = replica_on(&history, &disk);
        go_on(&mut replica, &history, &points).unwrap();
        assert_at(&history, &disk, &replica, points.last().unwrap());
    }
    panic!("it never got through");
}

#[test]
fn nothing_reaches_the_target_before_the_checkpoint_says_what_was_begun() {
    let history = History::new(3, 1);
    let disk = FaultyDisk::new(SIZE);
    let mut replica = replica_on(&history, &disk);
    replica.machine.fail_at(0, Fault::Crash);
    go_on(&mut replica, &history, &history.points()).unwrap_err();
    assert_eq!(disk.ops(), 0);
}

#[test]
fn a_faulty_target_latches_the_replica() {
    for (fault, no_space) in [(Fault::Eio, false), (Fault::NoSpace, true)] {
        let history = History::new(4, 2);
        let disk = FaultyDisk::new(SIZE);
        disk.fail_at(1, fault);
        let mut replica = replica_on(&history, &disk);
        let error = go_on(&mut replica, &history, &history.points()).unwrap_err();
        let ApplyError::Target(error) = error else { panic!("{error}") };
        assert_eq!(matches!(error, TargetError::NoSpace { .. }), no_space, "{error}");
        let point = &history.points()[0];
        assert!(matches!(
            replica.advance(&history.journal(), point.lsn, Some(point)),
            Err(ApplyError::Latched)
        ));
        // Opened again, the fault gone, it gets there.
        let mut replica = replica_on(&history, &disk);
        go_on(&mut replica, &history, &history.points()).unwrap();
        assert_at(&history, &disk, &replica, history.points().last().unwrap());
    }
}

#[test]
fn what_was_begun_must_be_finished_first() {
    let history = History::new(5, 3);
    let points = history.points();
    let disk = FaultyDisk::new(SIZE);
    let mut replica = replica_on(&history, &disk);
    replica.advance(&history.journal(), points[0].lsn, Some(&points[0])).unwrap();
    Checkpoint { applying: Some(points[2].lsn), consistent: false, ..replica.checkpoint().clone() }
        .write(&history.files())
        .unwrap();
    let error = replica_on(&history, &disk).advance(&history.journal(), points[1].lsn, Some(&points[1]));
    assert!(matches!(error, Err(ApplyError::ApplyPending { begun, .. }) if begun == points[2].lsn));
    assert!(matches!(
        replica_on(&history, &disk).advance(&history.journal(), Lsn(1), None),
        Err(ApplyError::ApplyPending { .. })
    ));
}

#[test]
fn a_replica_ahead_of_its_journal_says_that_records_were_lost() {
    for applying in [None, Some(Lsn(10_000))] {
        let history = History::new(6, 1);
        let applied = if applying.is_some() { Lsn(1) } else { Lsn(10_000) };
        let checkpoint = Checkpoint::fresh(history.info.id, "test".as_ref(), "test");
        Checkpoint { applied, applying, ..checkpoint }.write(&history.files()).unwrap();
        let mut replica = replica_on(&history, &FaultyDisk::new(SIZE));
        let error = replica.advance(&history.journal(), Lsn(20_000), None).unwrap_err();
        assert!(matches!(error, ApplyError::JournalLost { applied: Lsn(10_000), .. }), "{error}");
        assert!(error.to_string().contains("lost records"));
    }
}

#[test]
fn without_a_restorable_mark_the_replica_is_never_called_consistent() {
    let mut history = History::empty(8);
    history.append(RecordBody::Data { start: 0, bytes: vec![1; 4096] });
    history.append(RecordBody::Zero(ByteRange::new(4096, 8192)));
    history.mark(PointClass::Fuzzy);
    history.sync();
    let point = history.points()[0].clone();
    let mut replica = replica_on(&history, &FaultyDisk::new(SIZE));
    for (to, mark) in [(Lsn(1), None), (Lsn(2), Some(&point)), (Lsn(3), Some(&point)), (Lsn(3), None)] {
        replica.advance(&history.journal(), to, mark).unwrap();
        assert_eq!((replica.checkpoint().consistent, replica.checkpoint().mark), (false, None));
        assert_eq!(replica.checkpoint().applied, to);
    }
}

#[test]
fn a_mark_that_adds_no_bytes_still_makes_the_replica_consistent() {
    let mut history = History::empty(9);
    history.append(RecordBody::Zero(ByteRange::new(0, SIZE as u64)));
    history.sync();
    let disk = FaultyDisk::new(SIZE);
    let mut replica = replica_on(&history, &disk);
    replica.advance(&history.journal(), Lsn(1), None).unwrap();
    assert!(!replica.checkpoint().consistent);
    history.mark(PointClass::Fs);
    history.sync();
    let point = history.points()[0].clone();
    replica.advance(&history.journal(), point.lsn, Some(&point)).unwrap();
    assert_at(&history, &disk, &replica, &point);
}

#[test]
fn a_rebuild_reports_what_it_did_and_what_no_record_speaks_of() {
    let mut history = History::empty(10);
    history.append(RecordBody::Data { start: 0, bytes: vec![1; 4096] });
    history.append(RecordBody::Data { start: 2048, bytes: vec![2; 4096] });
    history.append(RecordBody::Discard(ByteRange::new(65536, 131072)));
    history.sync();
    let disk = FaultyDisk::new(SIZE);
    let mut target = TargetWriter::over(disk.clone(), SIZE as u64);
    let mut seen = Vec::new();
    let mut run = |way| rebuild(&history.journal(), &mut target, &way, &mut |at| seen.push(at));
    let (stats, undefined) = run(way(&history, 0, 3)).unwrap();
    assert_eq!((stats.records, stats.data_bytes, stats.zero_bytes), (3, 8192, 65536));
    assert_eq!((stats.written_bytes, stats.zeroed_bytes), (6144, 65536));
    assert_eq!(undefined.bytes(), SIZE as u64 - 6144 - 65536);
    assert!(disk.bytes()[6144..65536].iter().all(|b| *b == 0xee), "what no record speaks of is left alone");
    assert_eq!(run(way(&history, 3, 3)).unwrap().0, ApplyStats::default());
    let past = run(way(&history, 0, 4));
    assert!(matches!(past, Err(ApplyError::JournalEnds { last: Lsn(3), wanted: Lsn(4) })));
    assert_eq!(seen.last().unwrap().records, 3);
}

#[test]
fn a_record_past_the_volume_is_named() {
    let mut history = History::empty(11);
    history.append(RecordBody::Data { start: 0, bytes: vec![1; 4096] });
    history.sync();
    let mut target = TargetWriter::over(FaultyDisk::new(4095), 4095);
    let error = rebuild(&history.journal(), &mut target, &way(&history, 0, 1), &mut |_| {}).unwrap_err();
    assert!(matches!(error, ApplyError::Record { lsn: Lsn(1), .. }), "{error}");
}

mod opening {
    use super::*;
    use std::fs;

    fn open(history: &History, name: &str, force: bool) -> Result<(Replica, ReplicaState), ApplyError> {
        Replica::open(&history.files(), &history.target(name), &history.info, force)
    }

    #[test]
    fn a_new_replica_is_built_and_found_again_at_its_mark() {
        let history = History::new(20, 3);
        let points = history.points();
        let (mut replica, state) = open(&history, "replica", false).unwrap();
        assert_eq!(state, ReplicaState::Fresh);
        go_on(&mut replica, &history, &points).unwrap();
        drop(replica);
        assert!(fs::read(history.target("replica")).unwrap() == history.states.last().unwrap().as_slice());
        let last = points.last().unwrap();
        let (replica, state) = open(&history, "replica", false).unwrap();
        let ReplicaState::At(checkpoint) = state else { panic!("{state:?}") };
        assert_eq!((checkpoint.applied, checkpoint.mark), (last.lsn, Some(last.id)));
        drop(replica);
        // Renamed it is still the same.
        fs::rename(history.target("replica"), history.target("moved")).unwrap();
        let (replica, state) = open(&history, "moved", false).unwrap();
        assert!(matches!(state, ReplicaState::At(_)));
        assert!(replica.checkpoint().target_path.ends_with("moved"));
    }

    #[test]
    fn only_one_holds_a_replica() {
        let history = History::new(21, 1);
        let held = open(&history, "replica", false).unwrap();
        assert!(matches!(
            open(&history, "replica", false),
            Err(ApplyError::Target(TargetError::Busy { .. }))
        ));
        drop(held);
        open(&history, "replica", false).unwrap();
    }

    #[test]
    fn a_target_with_content_of_its_own_is_refused_without_force() {
        let history = History::new(22, 1);
        fs::write(history.target("replica"), b"precious").unwrap();
        let refused = open(&history, "replica", false);
        assert!(matches!(refused, Err(ApplyError::Target(TargetError::NotEmpty { .. }))));
        assert_eq!(fs::read(history.target("replica")).unwrap(), b"precious");
        assert_eq!(open(&history, "replica", true).unwrap().1, ReplicaState::Fresh);
    }

    #[test]
    fn a_damaged_checkpoint_means_to_build_it_again() {
        let history = History::new(23, 2);
        let points = history.points();
        go_on(&mut open(&history, "replica", false).unwrap().0, &history, &points).unwrap();
        let path = history.files().checkpoint();
        let mut bytes = fs::read(&path).unwrap();
        bytes[150] ^= 4;
        fs::write(&path, bytes).unwrap();
        let (mut replica, state) = open(&history, "replica", false).unwrap();
        assert!(matches!(&state, ReplicaState::Unknown(why) if why.contains("hash")), "{state:?}");
        assert_eq!(replica.checkpoint().applied, Lsn::ZERO);
        go_on(&mut replica, &history, &points).unwrap();
        assert!(fs::read(history.target("replica")).unwrap() == history.states.last().unwrap().as_slice());
    }

    #[test]
    fn a_replica_that_is_gone_is_not_silently_made_anew() {
        let history = History::new(24, 1);
        drop(open(&history, "replica", false).unwrap());
        fs::rename(history.target("replica"), history.target("elsewhere")).unwrap();
        assert!(matches!(open(&history, "replica", false), Err(ApplyError::TargetGone { .. })));
        assert!(!history.target("replica").exists());
        // Another target is taken, and so is a new one when forced.
        assert!(matches!(open(&history, "other", false).unwrap().1, ReplicaState::Unknown(_)));
        fs::remove_file(history.target("other")).unwrap();
        assert!(matches!(open(&history, "other", true).unwrap().1, ReplicaState::Unknown(_)));
    }

    #[test]
    fn the_checkpoint_of_another_volume_is_refused() {
        let (history, other) = (History::new(25, 1), History::new(26, 1));
        drop(open(&other, "replica", false).unwrap());
        fs::copy(other.files().checkpoint(), history.files().checkpoint()).unwrap();
        assert!(matches!(open(&history, "replica", false), Err(ApplyError::WrongVolume { .. })));
        let mut replica = open(&other, "replica", false).unwrap().0;
        let point = Point { id: MarkId(1), ..history.points()[0].clone() };
        let error = replica.advance(&history.journal(), point.lsn, Some(&point)).unwrap_err();
        assert!(matches!(error, ApplyError::WrongVolume { .. }));
    }
}

mod pruned {
    use std::collections::BTreeSet;

    use super::*;
    use crate::journal::{PruneOptions, PrunePlan, Retention, prune};
    use crate::model::Timestamp;

    /// Folds all but the last rounds; of the marks those of the labels are kept.
    fn pruned(seed: u64) -> (History, PrunePlan) {
        let mut history = History::new(seed, 30);
        history.sync();
        let retention = Retention {
            keep_all: std::time::Duration::from_secs(20),
            keep_marks: std::time::Duration::from_secs(60),
            hourly: 0,
            daily: 0,
            weekly: 0,
            drop_labelled: true,
        };
        let now = Timestamp(history.states.len() as u64 * 1_000_000_000);
        let options = PruneOptions { retention, image_factor: 0, lazy: false, keep_from: None };
        let plan = prune(&history.dir(), &options, now).unwrap();
        assert!(plan.segments() > 0 && plan.kept_marks > 2 && !plan.dropped.is_empty(), "{plan:?}");
        (history, plan)
    }

    #[test]
    fn a_replica_of_any_age_comes_to_the_last_mark_of_a_pruned_journal() {
        let (history, plan) = pruned(31);
        let points = history.points();
        let last = points.last().unwrap();
        let known: BTreeSet<_> = points.iter().map(|point| point.lsn).collect();
        let (mut resumed, mut rebuilt) = (0, 0);
        for from in (0..history.states.len() as u64).map(Lsn) {
            let disk = FaultyDisk::holding(history.state(from).to_vec());
            let target = TargetWriter::over(disk.clone(), SIZE as u64);
            let fresh = Checkpoint::fresh(history.info.id, std::path::Path::new("memory"), "memory");
            let checkpoint = Checkpoint { applied: from, ..fresh };
            let mut replica = Replica::of(&history.files(), target, checkpoint, KeptHashes::none());
            let stats = replica.advance(&history.journal(), last.lsn, Some(last)).unwrap();
            assert!(disk.bytes() == history.state(last.lsn), "from record {from}");
            assert!(replica.checkpoint().consistent && replica.checkpoint().applied == last.lsn);
            let whole = stats.written_bytes + stats.zeroed_bytes >= SIZE as u64;
            if known.contains(&from) && from <= plan.upto {
                resumed += usize::from(!whole);
            } else if from < Lsn(plan.upto.0 / 2) {
                assert!(whole, "nothing less is right for record {from}");
                rebuilt += 1;
            }
        }
        assert!(resumed > 0 && rebuilt > 0, "{resumed} resumed, {rebuilt} rebuilt");
    }
}
