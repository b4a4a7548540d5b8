//! A replica in an image file, with its checkpoint and hash list.

use std::time::Duration;

use super::*;
use crate::apply::ApplyError;
use crate::journal::{JournalOptions, Writer};
use crate::model::MarkId;

/// The replica at the last mark, all of it hashed.
fn protected(seed: u64, rounds: usize) -> History {
    let mut history = History::new(seed, rounds);
    history.rest();
    let target = history.target("replica");
    let (mut replica, _) = Replica::open(&history.files(), &target, &history.info, false).unwrap();
    for point in history.points() {
        replica.advance(&history.journal(), point.lsn, Some(&point)).unwrap();
    }
    while replica.refresh_hashes(7) {}
    history
}

fn to(history: &History, to: &str) -> RewindOptions {
    RewindOptions {
        target: history.target("replica"),
        journal: history.dir(),
        to: to.parse().unwrap(),
        force: false,
        dry_run: false,
    }
}

fn go(options: &RewindOptions) -> Result<RewindOutcome, RewindError> {
    rewind(options, &mut |_| {})
}

fn content(history: &History) -> Vec<u8> {
    fs::read(history.target("replica")).unwrap()
}

#[test]
fn a_rewound_replica_is_what_a_replay_gives_and_its_hashes_are_true() {
    let history = protected(50, 6);
    let points = history.points();
    let last = points.last().unwrap().lsn;
    let mut from = last;
    for id in [3, 6, 1, 1, 7, 2, 7] {
        let outcome = go(&to(&history, &format!("mark:{id}"))).unwrap();
        let point = &points[id - 1];
        let RewindPlan { from_lsn, from_mark, begun_lsn, back, .. } = outcome.plan;
        assert_eq!((from_lsn, begun_lsn, back), (from, None, point.lsn < from));
        assert_eq!(from_mark, points.iter().find(|point| point.lsn == from).map(|point| point.id));
        let replayed = history.target(&format!("replayed-{id}"));
        run(&ReplayOptions { force: true, ..options(&history, &format!("mark:{id}"), &replayed) }).unwrap();
        assert!(content(&history) == fs::read(&replayed).unwrap(), "mark {id}");
        let hashes = verify_hashes(&history.target("replica"), &history.dir(), Duration::ZERO, &mut |_| {});
        match hashes {
            Ok(report) => assert!(report.identical && report.is_replica, "{report:?}"),
            Err(error) => assert!(matches!(error, VerifyHashesError::NothingKnown), "{error}"),
        }
        if id % 2 == 0 {
            let opened = Replica::open(&history.files(), &history.target("replica"), &history.info, false);
            let mut replica = opened.unwrap().0;
            while replica.refresh_hashes(7) {}
        }
        from = point.lsn;
    }
}

#[test]
fn a_rewound_replica_goes_on_with_a_journal_that_went_on() {
    let mut history = protected(51, 4);
    go(&to(&history, "mark:2")).unwrap();
    history.round();
    history.sync();
    history.rest();
    let last = history.points().pop().unwrap();
    let opened = Replica::open(&history.files(), &history.target("replica"), &history.info, false);
    let (mut replica, _) = opened.unwrap();
    assert_eq!(replica.checkpoint().mark, Some(MarkId(2)));
    replica.advance(&history.journal(), last.lsn, Some(&last)).unwrap();
    assert!(content(&history) == history.state(last.lsn));
}

#[test]
fn a_dry_run_tells_the_plan_that_is_then_carried_out_and_changes_nothing_at_all() {
    let history = protected(52, 4);
    let before = (snapshot(&history.dir()), content(&history));
    let planned = go(&RewindOptions { dry_run: true, ..to(&history, "mark:2") }).unwrap();
    assert!(planned.stats.is_none() && (snapshot(&history.dir()), content(&history)) == before);
    let done = go(&to(&history, "mark:2")).unwrap();
    assert_eq!(planned.plan, done.plan);
    let stats = done.stats.unwrap();
    assert!(
        stats.written_bytes > 0
            && Some(stats.written_bytes + stats.zeroed_bytes) <= done.plan.write_bytes_max
    );
}

#[test]
fn the_journal_is_as_it_was_but_for_what_is_known_of_the_replica() {
    let history = protected(53, 4);
    let of_the_journal = |history: &History| {
        let mut files = snapshot(&history.dir());
        files.retain(|(path, _)| !path.file_name().unwrap().to_str().unwrap().starts_with("replica."));
        files
    };
    let before = of_the_journal(&history);
    for point in ["mark:1", "latest"] {
        go(&to(&history, point)).unwrap();
    }
    assert!(of_the_journal(&history) == before);
}

#[test]
fn a_fuzzy_point_needs_force_and_what_was_folded_cannot_be_had() {
    let mut history = protected(54, 25);
    history.ordered_round();
    let last = history.sync();
    history.rest();
    let fuzzy = |error: &RewindError| {
        matches!(error, RewindError::Point(FindError::Resolve(ResolveError::Fuzzy { .. })))
    };
    assert!(fuzzy(&go(&to(&history, "lsn:20")).unwrap_err()));
    let outcome = go(&RewindOptions { force: true, ..to(&history, "lsn:20") }).unwrap();
    assert!(content(&history) == history.state(Lsn(20)) && outcome.plan.point.mark.is_none());
    go(&to(&history, &format!("lsn:{last}"))).unwrap();
    assert!(content(&history) == history.state(last), "an instant after the last mark");
    let retention = Retention {
        keep_all: Duration::from_secs(30),
        keep_marks: Duration::from_secs(60),
        hourly: 1,
        daily: 0,
        weekly: 0,
        drop_labelled: true,
    };
    let keep = PruneOptions { retention, image_factor: 0, lazy: false, keep_from: None };
    let plan = prune(&history.dir(), &keep, Timestamp(last.0 * 1_000_000_000)).unwrap();
    let gone = &plan.dropped[0];
    let refused = go(&to(&history, &format!("mark:{}", gone.id))).unwrap_err();
    assert!(
        matches!(refused, RewindError::Point(FindError::Resolve(ResolveError::NoSuchMark { .. }))),
        "{refused:?}"
    );
    let forced = go(&RewindOptions { force: true, ..to(&history, "lsn:20") }).unwrap_err();
    let RewindError::NotBegun { source, .. } = forced else { panic!("{forced:?}") };
    assert!(matches!(source, ApplyError::Journal(JournalError::Folded { .. })), "{source:?}");
    assert!(content(&history) == history.state(last));
    for point in history.points() {
        go(&to(&history, &format!("mark:{}", point.id))).unwrap();
        assert!(content(&history) == history.state(point.lsn), "mark {}", point.id);
    }
}

#[test]
fn what_is_not_this_journals_replica_is_refused_and_nothing_is_changed() {
    let history = protected(55, 2);
    let refused = |history: &History, options: &RewindOptions| {
        let before = snapshot(&history.dir());
        let error = go(options).unwrap_err();
        assert!(snapshot(&history.dir()) == before, "{error}");
        error
    };
    let other = history.target("other");
    fs::copy(history.target("replica"), &other).unwrap();
    let error = refused(&history, &RewindOptions { target: other, ..to(&history, "mark:1") });
    assert!(
        matches!(&error, RewindError::NotTheReplica { replicas, .. } if replicas.ends_with("replica")),
        "{error}"
    );

    let missing = RewindOptions { target: history.target("none"), ..to(&history, "mark:1") };
    let error = refused(&history, &missing);
    assert!(matches!(error, RewindError::Target(TargetError::Missing { .. })), "{error}");

    // Cut, it is the same file and not the replica any more.
    let file = fs::OpenOptions::new().write(true).open(history.target("replica")).unwrap();
    file.set_len(SIZE as u64 - 1).unwrap();
    let error = refused(&history, &to(&history, "mark:1"));
    let RewindError::NotBegun { source, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(source, ApplyError::Target(TargetError::TooSmall { .. })), "{source}");

    let path = history.files().checkpoint();
    let checkpoint = fs::read(&path).unwrap();
    fs::write(&path, &checkpoint[..100]).unwrap();
    assert!(matches!(refused(&history, &to(&history, "mark:1")), RewindError::Checkpoint(_)));
    fs::remove_file(&path).unwrap();
    assert!(matches!(refused(&history, &to(&history, "mark:1")), RewindError::NoReplica { .. }));

    let nowhere = RewindOptions { journal: history.target("none"), ..to(&history, "mark:1") };
    assert!(matches!(refused(&history, &nowhere), RewindError::Journal { .. }));
}

#[test]
fn while_somebody_writes_the_journal_or_holds_the_replica_it_is_refused() {
    let history = protected(56, 2);
    let dir = history.dir();
    let (writer, _) = Writer::open(&dir, JournalOptions::default()).unwrap();
    for dry_run in [false, true] {
        let error = go(&RewindOptions { dry_run, ..to(&history, "mark:1") }).unwrap_err();
        assert!(matches!(error, RewindError::InUse { .. }), "{error}");
    }
    drop(writer);
    let held = Replica::open(&history.files(), &history.target("replica"), &history.info, false).unwrap();
    let error = go(&to(&history, "mark:1")).unwrap_err();
    let RewindError::NotBegun { source, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(source, ApplyError::Target(TargetError::Busy { .. })), "{source}");
    drop(held);
    go(&to(&history, "mark:1")).unwrap();
}

#[test]
fn before_the_first_copy_is_finished_there_is_nowhere_to_go() {
    let mut history = History::empty(57);
    history.append(RecordBody::Data { start: 0, bytes: vec![1; 4096] });
    history.append(RecordBody::Data { start: 4096, bytes: vec![2; 4096] });
    history.sync();
    history.rest();
    let target = history.target("replica");
    let (mut replica, _) = Replica::open(&history.files(), &target, &history.info, false).unwrap();
    replica.advance(&history.journal(), Lsn(2), None).unwrap();
    drop(replica);
    let forced = RewindOptions { force: true, ..to(&history, "lsn:1") };
    assert!(matches!(go(&forced), Err(RewindError::Unfinished)));
}
