//! Retention: whatever happens while history is folded, every point that is kept is what it was.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::io::store::faulty::Fault;
use crate::journal::fold::Scratch;
use crate::journal::prune::prune_in;
use crate::journal::{PruneOptions, PrunePlan, Retention};
use crate::model::{Point, Timeline};

const SIZE: usize = 16 << 10;
const HOUR_NS: u64 = 3_600_000_000_000;

/// A journal with what the volume held after every record.
struct History {
    store: FaultyStore,
    writer: Writer<FaultyStore>,
    states: Vec<Vec<u8>>,
    random: Random,
    now: Timestamp,
}

fn options() -> JournalOptions {
    JournalOptions { segment_bytes_max: 3000, frame_bytes_max: 700, sync: SyncPolicy::Mark, zstd_level: 1 }
}

impl History {
    fn new(seed: u64, page_bytes: usize) -> History {
        let store = FaultyStore::new(page_bytes);
        let writer = Writer::create_in(store.clone(), &sample_info(), options()).unwrap();
        let now = Timestamp(1000 * HOUR_NS);
        let mut history =
            History { store, writer, states: vec![vec![0; SIZE]], random: Random::new(seed), now };
        history.append(RecordBody::Data { start: 0, bytes: vec![0xAA; SIZE] }, false);
        history.mark(PointClass::Crash, "baseline");
        history
    }

    fn append(&mut self, body: RecordBody, ordered: bool) {
        let mut state = self.states.last().unwrap().clone();
        take(&mut state, &body);
        self.states.push(state);
        let result = match ordered {
            true => self.writer.append_ordered(self.now, body),
            false => self.writer.append(self.now, body),
        };
        assert_eq!(result.unwrap().0 as usize, self.states.len() - 1);
    }

    fn mark(&mut self, class: PointClass, label: &str) {
        let mark = Mark { id: self.writer.next_mark(), class, label: label.into() };
        self.append(RecordBody::Mark(mark), false);
        self.writer.sync().unwrap();
    }

    /// Some hours: writes, and a mark in each.
    fn go_on(&mut self, hours: usize) {
        for _ in 0..hours {
            let ordered = self.random.below(2) == 0;
            for _ in 0..self.random.below(8) {
                let start = self.random.below(SIZE - 1) as u64;
                let range =
                    ByteRange::new(start, (start + 1 + self.random.below(900) as u64).min(SIZE as u64));
                match self.random.below(9) {
                    0 => self.append(RecordBody::Zero(range), ordered),
                    1 => self.append(RecordBody::Discard(range), ordered),
                    2 if !ordered => self.append(RecordBody::Gap(range), false),
                    _ => {
                        let fill = self.random.below(256);
                        let bytes = (0..range.len()).map(|at| (at as usize * fill) as u8).collect();
                        self.append(RecordBody::Data { start, bytes }, ordered);
                    }
                }
            }
            self.now = Timestamp(self.now.0 + HOUR_NS);
            let class = if self.random.below(6) == 0 { PointClass::Fuzzy } else { PointClass::Crash };
            let label = if self.random.below(9) == 0 { "named" } else { "" };
            self.mark(class, label);
        }
    }

    fn journal(&self) -> Journal<FaultyStore> {
        Journal::open_in(self.store.clone()).unwrap()
    }

    fn points(&self) -> Vec<Point> {
        self.journal().points().unwrap()
    }
}

fn take(state: &mut [u8], body: &RecordBody) {
    let Some(range) = body.content_range() else { return };
    let part = &mut state[range.start as usize..range.end as usize];
    match body {
        RecordBody::Data { bytes, .. } => part.copy_from_slice(bytes),
        _ => part.fill(0),
    }
}

fn state_at(journal: &Journal<FaultyStore>, lsn: Lsn) -> Result<Vec<u8>, JournalError> {
    let mut state = vec![0x55; SIZE];
    for leg in journal.way(Lsn::ZERO, lsn)?.legs {
        let mut last = leg.records_after;
        for record in journal.leg_records(&leg)? {
            let record = record?;
            last = record.lsn;
            take(&mut state, &record.body);
        }
        assert_eq!(last, leg.records_to);
    }
    Ok(state)
}

fn prune(store: &FaultyStore, options: &PruneOptions, now: Timestamp) -> Result<PrunePlan, JournalError> {
    let mut scratch = Scratch::open(std::path::Path::new("/dev/shm")).unwrap().with_ranges(5);
    prune_in(&mut store.clone(), &Journal::open_in(store.clone())?, options, now, &mut scratch)
}

fn keep(all: u64, marks: u64, daily: usize) -> PruneOptions {
    let hours = |hours: u64| Duration::from_nanos(hours * HOUR_NS);
    let retention = Retention {
        keep_all: hours(all),
        keep_marks: hours(marks),
        hourly: 0,
        daily,
        weekly: 0,
        drop_labelled: false,
    };
    PruneOptions { retention, image_factor: 0, lazy: false, keep_from: None }
}

/// What the policy keeps is there, to the byte, and so is each record of what is left as it was written.
fn assert_kept(store: &FaultyStore, history: &[Vec<u8>], must: &BTreeSet<Lsn>, context: &str) -> Timeline {
    let journal = Journal::open_in(store.clone()).unwrap_or_else(|error| panic!("{context}: {error}"));
    let timeline = journal.timeline().unwrap_or_else(|error| panic!("{context}: {error:?}"));
    let there: BTreeSet<Lsn> =
        timeline.points.iter().filter(|p| p.class.restorable()).map(|point| point.lsn).collect();
    assert!(must.is_subset(&there), "{context}: {must:?} in {there:?}");
    // Replaying each is dear: a different choice of some of them each time.
    let mut random = Random::new(context.bytes().map(u64::from).sum());
    let instants = (1..history.len() as u64).map(Lsn).filter(|lsn| timeline.is_instant(*lsn));
    let instants = instants.filter(|_| random.below(20) == 0).collect::<Vec<_>>();
    for lsn in must.iter().copied().chain(instants) {
        let state =
            state_at(&journal, lsn).unwrap_or_else(|error| panic!("{context}, record {lsn}: {error:?}"));
        assert!(state == history[lsn.0 as usize], "{context}: record {lsn}");
    }
    let report = journal.check(&mut |_, _| {}).unwrap_or_else(|error| panic!("{context}: {error:?}"));
    assert_eq!(report.last_lsn, timeline.last_lsn, "{context}");
    timeline
}

/// What the policy keeps of a history: the rules' marks, and from the mark before the time of all writes on, every one. Where that
/// was folded before, by a stricter policy, those after it.
fn kept_by(options: &PruneOptions, history: &History) -> BTreeSet<Lsn> {
    let points = history.points();
    let mut kept = options.retention.kept(&points, history.now);
    let folded = crate::journal::folds::read_folds(&history.store).unwrap().upto();
    let all = options.retention.fold_upto(&points, history.now).unwrap_or(Lsn::ZERO);
    let in_full = |lsn: Lsn| lsn > all || (lsn == all && all >= folded);
    kept.extend(points.iter().filter(|p| p.class.restorable() && in_full(p.lsn)).map(|point| point.lsn));
    kept
}

fn leftovers(store: &FaultyStore) -> usize {
    let folds = crate::journal::folds::read_folds(store).unwrap();
    let is_live = |name: &String| {
        !crate::journal::folds::is_left_over(name, &folds)
            && crate::journal::segment::parse_segment_name(name).is_none_or(|first| first >= folds.first_lsn)
    };
    store.list().unwrap().iter().filter(|name| !is_live(name)).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// Random history and random policies, one after the other, beside the writer and between its lives.
    #[test]
    fn every_kept_point_is_the_same_before_and_after(
        seed in 1u64..10_000,
        rounds in prop::collection::vec((1usize..40, 0u64..30, 0u64..60, 0usize..4, 0u64..4, any::<bool>(), any::<bool>()), 1..5),
    ) {
        let mut history = History::new(seed, 4096);
        let follower = history.journal();
        for (hours, all, marks, daily, image_factor, lazy, reopen) in rounds {
            history.go_on(hours);
            let before = history.points();
            let options = PruneOptions { image_factor, lazy, ..keep(all, marks, daily) };
            let must = kept_by(&options, &history);
            let plan = prune(&history.store, &options, history.now).unwrap();
            let timeline = assert_kept(&history.store, &history.states, &must, "after the prune");
            prop_assert_eq!(&follower.timeline().unwrap(), &timeline);
            prop_assert_eq!(leftovers(&history.store), 0);
            let gone: Vec<_> = before
                .iter()
                .filter(|p| p.class.restorable() && !timeline.points.contains(p))
                .cloned()
                .collect();
            prop_assert_eq!(&plan.dropped, &gone);
            if !lazy {
                let folded: BTreeSet<Lsn> =
                    timeline.points.iter().map(|p| p.lsn).filter(|lsn| *lsn < plan.upto).collect();
                prop_assert!(folded.is_subset(&must), "kept for nothing: {:?} {:?}", folded, must);
            }
            if reopen {
                drop(history.writer);
                history.writer = Writer::open_in(history.store.clone(), options_of_writer()).unwrap().0;
                prop_assert_eq!(history.writer.next_lsn().0 as usize, history.states.len());
            }
            let last = timeline.last_lsn;
            for point in timeline.points.iter().filter(|point| point.class.restorable() && point.lsn < last) {
                let legs = follower.way(point.lsn, last).unwrap().legs;
                prop_assert_eq!(legs[0].after, point.lsn, "from a point that is kept: {:?}", legs);
            }
        }
        history.go_on(1);
        assert_kept(&history.store, &history.states, &BTreeSet::new(), "at the end");
    }
}

fn options_of_writer() -> JournalOptions {
    options()
}

#[test]
fn killed_cut_off_or_failing_at_every_operation_of_a_prune_no_kept_point_is_lost() {
    let (mut before, mut after) = (0, 0);
    let mut history = History::new(5, 64);
    history.go_on(14);
    prune(&history.store, &keep(8, 10, 1), history.now).unwrap();
    history.go_on(18);
    let options = PruneOptions { image_factor: 1, ..keep(15, 16, 3) };
    let must = kept_by(&options, &history);
    let copy = history.store.copy();
    let plan = prune(&copy, &options, history.now).unwrap();
    assert!(plan.made() >= 1 && plan.segments() >= 2 && plan.image.is_some(), "{plan:?}");
    let operations = copy.operations();
    assert!(operations > 20, "{operations}");
    for at in 0..operations {
        for fault in [Fault::PowerCut, Fault::Eio, Fault::ShortWrite, Fault::NoSpace] {
            // What they do to an append, and at most to that, one in three shows.
            if at % 3 > 0 && matches!(fault, Fault::ShortWrite | Fault::NoSpace) {
                continue;
            }
            let context = format!("{fault:?} at {at} of {operations}");
            let store = history.store.copy();
            store.fail_at(at, fault, at);
            let result = prune(&store, &options, history.now);
            let store = match fault {
                Fault::PowerCut => {
                    assert!(result.is_err(), "{context}");
                    store.after_power_cut(at)
                }
                // The process is killed, and after every other time the power goes, too.
                _ if at % 2 == 0 => store.after_power_cut(at),
                _ => store,
            };
            assert_kept(&store, &history.states, &must, &context);
            let folded = crate::journal::folds::read_folds(&store).unwrap();
            *(if folded.images.is_empty() { &mut before } else { &mut after }) += 1;
            // The next writer and the next prune go on.
            let opened = Writer::open_in(store.clone(), options_of_writer());
            let (writer, recovery) = opened.unwrap_or_else(|error| panic!("{context}: {error:?}"));
            assert_eq!(recovery.last_lsn.0 as usize, history.states.len() - 1, "{context}");
            drop(writer);
            prune(&store, &options, history.now).unwrap_or_else(|error| panic!("{context}: {error:?}"));
            assert_kept(&store, &history.states, &must, &context);
            assert_eq!(leftovers(&store), 0, "{context}");
        }
    }
    assert!(before > 30 && after > 10, "{before} before the manifest, {after} after");
}

#[test]
fn replay_begins_with_the_newest_base_and_a_stale_replica_too() {
    let mut history = History::new(3, 4096);
    history.go_on(40);
    let options = PruneOptions { image_factor: 1, ..keep(30, 30, 0) };
    let plan = prune(&history.store, &options, history.now).unwrap();
    assert!(plan.image.is_none(), "the base was only just made");
    let again = prune(&history.store, &options, history.now).unwrap();
    let image = again.image.unwrap().lsn;
    let journal = history.journal();
    let last = journal.last_lsn().unwrap();
    let legs = journal.way(Lsn::ZERO, last).unwrap().legs;
    assert_eq!(
        legs.iter().map(|leg| (leg.is_fold(), leg.after, leg.to)).collect::<Vec<_>>(),
        [(true, Lsn(0), image), (false, image, last)]
    );
    // A state before what is kept: from nothing. One among what is kept: from there.
    assert_eq!(journal.way(Lsn(2), last).unwrap().legs, legs);
    assert_eq!(journal.way(plan.upto, last).unwrap().legs[0].after, plan.upto);
    assert!(matches!(journal.records(Lsn(1), last), Err(JournalError::Folded { .. })));
    assert!(matches!(journal.way(Lsn::ZERO, Lsn(2)), Err(JournalError::Folded { .. })));
}

#[test]
fn damage_in_a_fold_is_found_and_named() {
    let mut history = History::new(8, 4096);
    history.go_on(40);
    prune(&history.store, &keep(10, 30, 2), history.now).unwrap();
    let names: Vec<_> = history.store.list().unwrap().into_iter().filter(|n| n.starts_with("fold")).collect();
    assert!(names.len() >= 2, "{names:?}");
    for name in names {
        let good = history.store.content(&name);
        for at in (0..good.len()).step_by(7) {
            let store = history.store.copy();
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            store.put(&name, &bad);
            let error = check(&store).unwrap_err();
            if !name.ends_with("volume.toml") {
                assert!(
                    error.is_damage() || matches!(error, JournalError::InFold { .. }),
                    "{name} {at}: {error:?}"
                );
            }
            assert!(error.to_string().contains("fold"), "{error}");
        }
        let store = history.store.copy();
        store.clone().remove(&name).unwrap();
        check(&store).unwrap_err();
    }
}
