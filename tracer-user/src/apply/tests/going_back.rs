//! From any point to any other one, byte for byte, whatever fails on the way.

use proptest::prelude::*;

use super::*;
use crate::apply::history::snapshot;
use crate::journal::{Journal, PruneOptions, Retention, prune};
use crate::model::{ByteRangeSet, Timestamp};
use crate::target::faulty::Machine;

#[derive(Clone, Debug)]
struct Leg {
    /// Which of the records one can go to.
    to: prop::sample::Index,
    /// The operation of target or checkpoint at which the machine stops, and what of unsynced writes is there afterwards.
    cut: Option<(usize, u64)>,
    /// Before it history is folded up to so long ago, maybe with a base image.
    prune: Option<(u64, bool)>,
}

fn legs() -> impl Strategy<Value = Vec<Leg>> {
    let cut = prop::option::weighted(0.5, (0usize..12, any::<u64>()));
    let prune = prop::option::weighted(0.1, (10u64..80, any::<bool>()));
    let leg = (any::<prop::sample::Index>(), cut, prune).prop_map(|(to, cut, prune)| Leg { to, cut, prune });
    prop::collection::vec(leg, 1..25)
}

/// Rounds of writes as extents and as payload are journaled, with marks of all classes.
pub(super) fn history(seed: u64, rounds: &[bool]) -> History {
    let mut history = History::new(seed, 1);
    for ordered in rounds {
        if *ordered { history.ordered_round() } else { history.round() }
    }
    history.round();
    history.ordered_round();
    history.sync();
    history
}

/// All of the volume 40 times over, with a mark each time.
pub(super) fn overwritten_many_times() -> History {
    const PIECE: usize = 32 << 10;
    let mut history = History::new(9, 0);
    for fill in 1..=40 {
        for start in (0..SIZE).step_by(PIECE) {
            history.append(RecordBody::Data { start: start as u64, bytes: vec![fill; PIECE] });
        }
        history.mark(PointClass::Crash);
    }
    history.sync();
    history
}

/// The records to which there is a way.
pub(super) fn reachable(journal: &Journal, history: &History) -> Vec<Lsn> {
    let all = (1..history.states.len() as u64).map(Lsn);
    all.filter(|lsn| journal.way(Lsn::ZERO, *lsn).is_ok()).collect()
}

pub(super) fn fold(history: &History, seconds_ago: u64, image: bool) {
    let retention = Retention {
        keep_all: std::time::Duration::from_secs(seconds_ago),
        keep_marks: std::time::Duration::from_secs(seconds_ago * 2),
        hourly: 2,
        daily: 0,
        weekly: 0,
        drop_labelled: true,
    };
    let now = Timestamp(history.states.len() as u64 * 1_000_000_000);
    let options = PruneOptions { retention, image_factor: u64::from(image), lazy: false, keep_from: None };
    prune(&history.dir(), &options, now).unwrap();
}

struct Bench<'a> {
    history: &'a History,
    machine: Machine,
    disk: FaultyDisk,
    replica: Replica,
}

impl<'a> Bench<'a> {
    /// From what is durable.
    fn start(history: &'a History, bytes: Vec<u8>) -> Bench<'a> {
        let machine = Machine::default();
        let disk = FaultyDisk::of(&machine, bytes);
        let mut replica = replica_on(history, &disk);
        replica.machine = machine.clone();
        Bench { history, machine, disk, replica }
    }

    fn go_to(&mut self, lsn: Lsn) -> Result<ApplyStats, ApplyError> {
        let points = self.history.points();
        let mark = points.iter().find(|point| point.lsn == lsn);
        self.replica.go_to(&self.history.journal(), lsn, mark, &mut |_| {})
    }

    fn assert_at(&self, lsn: Lsn) {
        let checkpoint = self.replica.checkpoint();
        assert_eq!((checkpoint.applied, checkpoint.applying), (lsn, None));
        assert_eq!(Checkpoint::read(&self.history.files()).unwrap().as_ref(), Some(checkpoint));
        let mark =
            self.history.points().into_iter().find(|point| point.lsn == lsn && point.class.restorable());
        assert_eq!((checkpoint.consistent, checkpoint.mark), (mark.is_some(), mark.map(|mark| mark.id)));
        assert!(self.disk.bytes() == self.history.state(lsn), "it is not what record {lsn} left");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_point_is_reached_from_any_other_whatever_was_cut_off(
        seed in any::<u64>(),
        rounds in prop::collection::vec(any::<bool>(), 3..14),
        legs in legs(),
    ) {
        let history = history(seed, &rounds);
        let mut bench = Bench::start(&history, vec![0xee; SIZE]);
        let last = Lsn(history.states.len() as u64 - 1);
        bench.go_to(last).unwrap();
        bench.assert_at(last);
        for Leg { to, cut, prune } in legs {
            if let Some((seconds_ago, image)) = prune {
                fold(&history, seconds_ago, image);
            }
            let to = *to.get(&reachable(&history.journal(), &history));
            if let Some((op, _)) = cut {
                bench.machine.fail_at(bench.machine.ops() + op, Fault::Crash);
            }
            match (bench.go_to(to), cut) {
                (Ok(_), None) => bench.assert_at(to),
                (_, Some((_, keep))) => bench = Bench::start(&history, bench.disk.after_power_cut(keep)),
                (Err(error), None) => panic!("to record {to}: {error:?}"),
            }
        }
        // As `protect` does.
        let mark = history.points().into_iter().rfind(|point| point.class.restorable()).unwrap();
        bench.go_to(mark.lsn).unwrap();
        bench.assert_at(mark.lsn);
    }
}

#[test]
fn only_what_was_touched_in_between_is_written_and_of_the_journal_nothing() {
    let history = history(3, &[true, false, true, false, false]);
    let all = reachable(&history.journal(), &history);
    let last = *all.last().unwrap();
    let fresh = Checkpoint::fresh(history.info.id, "test".as_ref(), "test");
    let there = Checkpoint { applied: last, ..fresh };
    there.write(&history.files()).unwrap();
    let before = snapshot(&history.dir());
    for to in all {
        let records = history.journal().records(to.next(), last).unwrap();
        let touched: ByteRangeSet =
            records.filter_map(|record| record.unwrap().body.content_range()).collect();
        // Something else is all around.
        let mut bytes = vec![0xee; SIZE];
        let mut wanted = bytes.clone();
        for range in touched.iter() {
            let part = range.start as usize..range.end as usize;
            bytes[part.clone()].copy_from_slice(&history.state(last)[part.clone()]);
            wanted[part.clone()].copy_from_slice(&history.state(to)[part]);
        }
        let mut bench = Bench::start(&history, bytes);
        bench.go_to(to).unwrap();
        assert!(bench.disk.bytes() == wanted, "to record {to}");
        there.write(&history.files()).unwrap();
    }
    assert!(snapshot(&history.dir()) == before);
}

#[test]
fn the_checkpoint_tells_of_a_way_back_before_anything_is_written_and_until_all_is() {
    let history = history(4, &[false, true]);
    let points = history.points();
    let (first, last) = (points[0].lsn, points.iter().rfind(|point| point.class.restorable()).unwrap().lsn);
    let built = |history| {
        let mut bench = Bench::start(history, vec![0xee; SIZE]);
        bench.go_to(last).unwrap();
        bench
    };
    let ops = {
        let mut bench = built(&history);
        let before = bench.machine.ops();
        bench.go_to(first).unwrap();
        bench.machine.ops() - before
    };
    assert!(ops > 6);
    for op in 0..ops {
        std::fs::remove_file(history.files().checkpoint()).unwrap();
        let mut bench = built(&history);
        bench.machine.fail_at(bench.machine.ops() + op, Fault::Crash);
        bench.go_to(first).unwrap_err();
        let durable = Checkpoint::read(&history.files()).unwrap().unwrap();
        if op == 0 {
            assert_eq!((durable.applied, durable.applying), (last, None));
            assert!(bench.disk.bytes() == history.state(last), "nothing was written yet");
        } else {
            assert_eq!((durable.applied, durable.applying, durable.consistent), (first, Some(last), false));
        }
        // An afterwrite that knows of no way back heals it, too.
        let mut bench = Bench::start(&history, bench.disk.after_power_cut(0x1b87_93c4_e2d1_0f36));
        bench.replica.advance(&history.journal(), last, None).unwrap();
        assert!(bench.disk.bytes() == history.state(last), "cut at operation {op}");
    }
}

/// Rebuilds a record on a disk that holds something else; what no record speaks of is left alone.
fn assert_rebuilt(history: &History, lsn: Lsn) -> ApplyStats {
    let disk = FaultyDisk::new(SIZE);
    let mut target = TargetWriter::over(disk.clone(), SIZE as u64);
    let journal = history.journal();
    let way = journal.way(Lsn::ZERO, lsn).unwrap();
    let (stats, undefined) = rebuild(&journal, &mut target, &way, &mut |_| {}).unwrap();
    let mut wanted = history.state(lsn).to_vec();
    undefined.iter().for_each(|range| wanted[range.start as usize..range.end as usize].fill(0xee));
    assert!(disk.bytes() == wanted, "record {lsn}");
    stats
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_point_is_rebuilt(
        seed in any::<u64>(),
        rounds in prop::collection::vec(any::<bool>(), 3..20),
        prune in prop::option::of((10u64..80, any::<bool>())),
    ) {
        let history = history(seed, &rounds);
        if let Some((seconds_ago, image)) = prune {
            fold(&history, seconds_ago, image);
        }
        for lsn in reachable(&history.journal(), &history) {
            assert_rebuilt(&history, lsn);
        }
    }
}

#[test]
fn of_a_history_that_was_overwritten_many_times_only_the_end_is_read() {
    let history = overwritten_many_times();
    for point in history.points() {
        let stats = assert_rebuilt(&history, point.lsn);
        assert_eq!(stats.written_bytes + stats.zeroed_bytes, SIZE as u64, "mark {}", point.id);
        // A segment is the least that is read of these.
        assert!(stats.data_bytes == SIZE as u64 && stats.records < 20, "mark {}: {stats:?}", point.id);
    }
}
