use std::fs;
use std::path::Path;

use super::*;
use crate::apply::Replica;
use crate::apply::history::{History, SIZE, snapshot};
use crate::journal::{JournalError, PruneOptions, Retention, prune};
use crate::model::{ByteRange, Lsn, PointClass, RecordBody, Timestamp};
use crate::target::TargetError;

mod rewinding;

fn options(history: &History, to: &str, target: &Path) -> ReplayOptions {
    ReplayOptions {
        journal: history.dir(),
        to: to.parse().unwrap(),
        target: target.to_owned(),
        force: false,
        dry_run: false,
    }
}

fn run(options: &ReplayOptions) -> Result<ReplayOutcome, ReplayError> {
    replay(options, &mut |_| {})
}

fn chain(error: &ReplayError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

#[test]
fn every_mark_is_given_back_byte_for_byte_and_the_journal_is_left_alone() {
    let history = History::new(1, 6);
    let before = snapshot(&history.dir());
    for point in history.points() {
        let target = history.target(&format!("mark-{}", point.id));
        let outcome = run(&options(&history, &format!("mark:{}", point.id), &target)).unwrap();
        assert_eq!((outcome.plan.last_lsn, outcome.undefined_bytes), (point.lsn, 0));
        assert!(fs::read(&target).unwrap() == history.state(point.lsn), "mark {}", point.id);
    }
    assert!(snapshot(&history.dir()) == before);
}

#[test]
fn a_forced_record_in_between_is_given_back_too() {
    let history = History::new(2, 2);
    for lsn in 1..history.states.len() as u64 {
        let target = history.target("target");
        let forced = ReplayOptions { force: true, ..options(&history, &format!("lsn:{lsn}"), &target) };
        run(&forced).unwrap();
        assert!(fs::read(&target).unwrap() == history.state(Lsn(lsn)), "record {lsn}");
    }
}

#[test]
fn every_instant_of_a_stretch_is_given_back_byte_for_byte_and_no_other_one() {
    let mut history = History::new(10, 1);
    for rounds in [2, 0, 3] {
        (0..rounds).for_each(|_| history.ordered_round());
        history.append(RecordBody::Zero(ByteRange::new(0, 512)));
        history.ordered_round();
        history.mark(PointClass::Fs);
    }
    history.ordered_round();
    let last = history.sync();
    let timeline = history.journal().timeline().unwrap();
    assert_eq!(timeline.stretches.len(), 3, "{:?}", timeline.stretches);
    let (mut instants, mut fuzzy) = (0, 0);
    for lsn in (1..=last.0).map(Lsn) {
        let target = history.target(&format!("at-{lsn}"));
        let is_mark = timeline.points.iter().any(|point| point.lsn == lsn && point.class.restorable());
        match run(&options(&history, &format!("lsn:{lsn}"), &target)) {
            Ok(outcome) => {
                assert!(timeline.is_instant(lsn) || is_mark, "record {lsn}");
                assert!(outcome.plan.point.class.restorable());
                assert!(fs::read(&target).unwrap() == history.state(lsn), "record {lsn}");
                instants += 1;
            }
            Err(ReplayError::Point(FindError::Resolve(ResolveError::Fuzzy { .. }))) => {
                assert!(!timeline.is_instant(lsn) && !is_mark, "record {lsn}");
                fuzzy += 1;
            }
            Err(error) => panic!("record {lsn}: {}", chain(&error)),
        }
        // The records of a history are a second apart.
        let target = history.target(&format!("time-{lsn}"));
        let time = Timestamp(lsn.0 * 1_000_000_000 + 5);
        let instant = |n: &u64| {
            timeline.is_instant(Lsn(*n))
                || timeline.points.iter().any(|p| p.lsn.0 == *n && p.class.restorable())
        };
        let wanted = (1..=lsn.0).rev().find(instant).map(Lsn);
        let found = run(&options(&history, &format!("time:{time}"), &target)).ok();
        assert_eq!(found.map(|outcome| outcome.plan.last_lsn), wanted, "{time}");
    }
    assert!(instants > 20 && fuzzy > 10, "{instants} instants, {fuzzy} fuzzy");
}

#[test]
fn a_dry_run_tells_the_plan_that_is_then_carried_out_and_writes_nothing() {
    let history = History::new(3, 2);
    let target = history.target("target");
    let real = options(&history, "latest", &target);
    let planned = run(&ReplayOptions { dry_run: true, ..real.clone() }).unwrap();
    assert!(planned.stats.is_none() && !target.exists());
    let done = run(&real).unwrap();
    assert_eq!(planned.plan, done.plan);
    let stats = done.stats.unwrap();
    assert_eq!(stats.records, done.plan.last_lsn.0);
    assert!(Some(stats.written_bytes) <= done.plan.write_bytes_max);
    assert_eq!(done.plan.volume_bytes, SIZE as u64);
}

#[test]
fn a_fuzzy_point_and_a_full_target_need_force() {
    let history = History::new(4, 1);
    let target = history.target("target");
    let error = run(&options(&history, "lsn:2", &target)).unwrap_err();
    assert!(matches!(error, ReplayError::Point(FindError::Resolve(ResolveError::Fuzzy { .. }))));
    assert!(!target.exists());
    fs::write(&target, "precious").unwrap();
    let error = run(&options(&history, "latest", &target)).unwrap_err();
    assert!(matches!(error, ReplayError::Target(TargetError::NotEmpty { .. })));
    assert_eq!(fs::read(&target).unwrap(), b"precious");
}

#[test]
fn what_no_record_defines_is_counted_and_zero() {
    let mut history = History::empty(5);
    history.append(RecordBody::Data { start: 4096, bytes: vec![1; 4096] });
    history.mark(PointClass::Crash);
    history.sync();
    let target = history.target("target");
    fs::write(&target, vec![9; SIZE]).unwrap();
    let outcome = run(&ReplayOptions { force: true, ..options(&history, "latest", &target) }).unwrap();
    assert_eq!(outcome.undefined_bytes, SIZE as u64 - 4096);
    assert!(fs::read(&target).unwrap() == history.state(Lsn(1)));
}

#[test]
fn damage_stops_the_restore_and_names_the_place() {
    let history = History::new(6, 4);
    let mut segments = snapshot(&history.dir());
    segments.retain(|(path, _)| path.extension().is_some_and(|e| e == "awj"));
    assert!(segments.len() > 1, "the journal must have sealed segments: {segments:?}");
    let (path, bytes) = &mut segments[0];
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&*path, &*bytes).unwrap();
    let target = history.target("target");
    let error = run(&options(&history, "latest", &target)).unwrap_err();
    let text = chain(&error);
    assert!(matches!(error, ReplayError::Incomplete { .. }), "{text}");
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(text.contains("incomplete") && text.contains(name) && text.contains("byte"), "{text}");
    assert_eq!(fs::read(&*path).unwrap(), *bytes);
}

#[test]
fn the_target_may_be_neither_in_the_journal_nor_the_replica() {
    let history = History::new(7, 1);
    for target in ["new", "../journal/new", "volume.toml"] {
        let forced =
            ReplayOptions { force: true, ..options(&history, "latest", &history.dir().join(target)) };
        assert!(matches!(run(&forced), Err(ReplayError::TargetInJournal { .. })), "{target}");
    }
    let replica = history.target("replica");
    drop(Replica::open(&history.files(), &replica, &history.info, false).unwrap());
    let hard_link = history.target("link");
    fs::hard_link(&replica, &hard_link).unwrap();
    for target in [replica, hard_link] {
        for dry_run in [true, false] {
            let forced = ReplayOptions { force: true, dry_run, ..options(&history, "latest", &target) };
            assert!(matches!(run(&forced), Err(ReplayError::TargetIsReplica { .. })));
        }
    }
}

#[test]
fn what_is_no_journal_is_said_to_be_none() {
    let history = History::new(8, 1);
    let other = ReplayOptions {
        journal: history.dir.path().to_owned(),
        ..options(&history, "latest", &history.target("target"))
    };
    let error = run(&other).unwrap_err();
    assert!(
        matches!(error, ReplayError::Journal { source: JournalError::NotAJournal { .. }, .. }),
        "{error}"
    );
}

#[test]
fn a_replayed_point_verifies_against_its_source_and_a_changed_byte_is_found() {
    let history = History::new(9, 3);
    let (source, target) = (history.target("source"), history.target("target"));
    fs::write(&source, history.states.last().unwrap()).unwrap();
    run(&options(&history, "latest", &target)).unwrap();
    assert!(verify(&source, &target, &mut |_| {}).unwrap().identical);
    let mut bytes = fs::read(&target).unwrap();
    bytes[70_000] ^= 1;
    fs::write(&target, &bytes).unwrap();
    let report = verify(&source, &target, &mut |_| {}).unwrap();
    assert_eq!(report.differing, [ByteRange::new(69_632, 73_728)]);
}

#[test]
fn what_a_pruned_journal_still_lists_is_given_back_and_what_is_gone_is_refused() {
    let mut history = History::new(12, 25);
    history.ordered_round();
    let last = history.sync();
    let before = history.points();
    let retention = Retention {
        keep_all: std::time::Duration::from_secs(30),
        keep_marks: std::time::Duration::from_secs(60),
        hourly: 1,
        daily: 0,
        weekly: 0,
        drop_labelled: true,
    };
    let options_of_prune = PruneOptions { retention, image_factor: 0, lazy: false, keep_from: None };
    let plan = prune(&history.dir(), &options_of_prune, Timestamp(last.0 * 1_000_000_000)).unwrap();
    assert!(!plan.dropped.is_empty() && plan.segments() > 0);
    let timeline = history.journal().timeline().unwrap();
    assert_eq!(timeline.points.len() + plan.dropped.len(), before.len());
    for lsn in (1..=last.0).map(Lsn) {
        let target = history.target(&format!("at-{lsn}"));
        let outcome = run(&options(&history, &format!("lsn:{lsn}"), &target));
        let there = timeline.is_instant(lsn) || timeline.points.iter().any(|point| point.lsn == lsn);
        match outcome {
            Ok(outcome) => {
                assert!(there && outcome.undefined_bytes == 0, "record {lsn}");
                assert!(outcome.plan.base_lsn > Lsn::ZERO);
                assert!(outcome.stats.unwrap().records <= outcome.plan.records);
                assert!(fs::read(&target).unwrap() == history.state(lsn), "record {lsn}");
            }
            Err(ReplayError::Point(FindError::Resolve(ResolveError::Fuzzy { .. }))) => {
                assert!(!there, "record {lsn}")
            }
            Err(error) => panic!("record {lsn}: {}", chain(&error)),
        }
    }
    let forced = ReplayOptions { force: true, ..options(&history, "lsn:2", &history.target("forced")) };
    let error = run(&forced).unwrap_err();
    assert!(chain(&error).contains("not in the journal any more"), "{}", chain(&error));
    assert!(!history.target("forced").exists());
}
