use std::fmt;

use serde::Serialize;

use crate::model::{Lsn, MarkId, Point, PointClass, PointTarget, Timeline, Timestamp};

/// A point a user asked for, found in a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResolvedPoint {
    /// The last record that belongs to it.
    pub lsn: Lsn,
    /// What it promises; `fuzzy` only when forced.
    pub class: PointClass,
    /// The mark it is; `None` for an LSN without one.
    pub mark: Option<MarkId>,
    /// When its last record was made.
    pub time: Option<Timestamp>,
    /// Of the mark; may be empty.
    pub label: String,
}

impl fmt::Display for ResolvedPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mark {
            Some(mark) => write!(f, "mark {mark}, ")?,
            None => f.write_str("no mark, ")?,
        }
        write!(f, "class {}, record {}", self.class, self.lsn)?;
        if let Some(time) = self.time {
            write!(f, ", {time}")?;
        }
        if !self.label.is_empty() {
            write!(f, ", \"{}\"", self.label.escape_debug())?;
        }
        Ok(())
    }
}

/// Why there is no such point. `points` lists what there is.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error(
        "the journal has no restorable point yet: its baseline is not finished. Let `protect` make the first mark, or \
         take what there is with --to lsn:{last} --force"
    )]
    NoneYet { last: Lsn },
    #[error("the journal has no mark {name:?}. `afterwrite points JOURNAL` lists the marks")]
    NoSuchMark { name: String },
    #[error(
        "the journal ends at record {last}, before record {wanted}. `afterwrite points JOURNAL` lists the points"
    )]
    PastEnd { wanted: Lsn, last: Lsn },
    #[error(
        "the journal has no origin records: it does not say which process or file a write came from. Name a time or a \
         mark; `afterwrite points JOURNAL` lists what there is"
    )]
    NoOrigins,
    #[error(
        "the journal knows of no change by {what}: {found} of that name, and {unknown} whiles of which it is not known who \
         changed what. `afterwrite log JOURNAL` lists what there is"
    )]
    NoSuchOrigin { what: String, found: usize, unknown: usize },
    #[error(
        "{which:?} names none of the {found} bursts that the journal tells of: give a number from 1, last, or a time. \
         `afterwrite log JOURNAL --bursts` lists them"
    )]
    NoSuchBurst { which: String, found: usize },
    #[error("there is no restorable point at or before {wanted}: the first is mark {first} at {first_time}")]
    BeforeFirst { wanted: Timestamp, first: MarkId, first_time: Timestamp },
    #[error(
        "{what} is fuzzy: it equals no instant of the source. Restorable: {}. --force takes it all the same",
        neighbours(.before.as_deref(), .after.as_deref())
    )]
    Fuzzy { what: String, before: Option<Box<Point>>, after: Option<Box<Point>> },
}

fn neighbours(before: Option<&Point>, after: Option<&Point>) -> String {
    let name = |point: &Point| format!("mark:{} (record {}, {})", point.id, point.lsn, point.time);
    match (before, after) {
        (Some(before), Some(after)) => format!("{} before and {} after", name(before), name(after)),
        (Some(before), None) => format!("{} before, none after", name(before)),
        (None, Some(after)) => format!("none before, {} after", name(after)),
        (None, None) => "nothing yet".to_owned(),
    }
}

/// Finds what `target` means. `instant` is the last record in a stretch that was made at or before the time, if
/// `target` is one. `force` allows a fuzzy point. Pure.
pub fn resolve(
    timeline: &Timeline,
    target: &PointTarget,
    instant: Option<(Lsn, Timestamp)>,
    force: bool,
) -> Result<ResolvedPoint, ResolveError> {
    let Timeline { points, last_lsn: last, .. } = timeline;
    let last = *last;
    let restorable = || points.iter().filter(|point| point.class.restorable());
    match target {
        PointTarget::Latest => {
            restorable().next_back().map(ResolvedPoint::from).ok_or(ResolveError::NoneYet { last })
        }
        PointTarget::Mark(name) => {
            // A label may look like a number: the number wins, the label is still reached by its own number.
            let by_number =
                name.parse().ok().and_then(|id| points.iter().find(|point| point.id == MarkId(id)));
            let point = by_number
                .or_else(|| points.iter().rfind(|point| point.label == *name))
                .ok_or_else(|| ResolveError::NoSuchMark { name: name.clone() })?;
            allow(at(timeline, point.lsn), format!("mark {}", point.id), points, force)
        }
        PointTarget::Lsn(lsn) => {
            if *lsn == Lsn::ZERO || *lsn > last {
                return Err(ResolveError::PastEnd { wanted: *lsn, last });
            }
            allow(at(timeline, *lsn), format!("record {lsn}"), points, force)
        }
        PointTarget::Time(wanted) => {
            // Of those made at or before that time the last one by its number, as a clock may have been set back.
            let mark = restorable().rfind(|point| point.time <= *wanted).map(|point| (point.lsn, point.time));
            match (mark.max(instant), restorable().next()) {
                (Some((lsn, time)), _) => Ok(ResolvedPoint { time: Some(time), ..at(timeline, lsn) }),
                (None, Some(first)) => Err(ResolveError::BeforeFirst {
                    wanted: *wanted,
                    first: first.id,
                    first_time: first.time,
                }),
                (None, None) => Err(ResolveError::NoneYet { last }),
            }
        }
        PointTarget::BeforeProcess(_) | PointTarget::BeforeFile(_) | PointTarget::BeforeBurst(_) => {
            unreachable!("a point before something is found as that of its time")
        }
    }
}

/// What the state after a record is.
fn at(timeline: &Timeline, lsn: Lsn) -> ResolvedPoint {
    let instant = timeline.is_instant(lsn);
    let mark = timeline.points.binary_search_by_key(&lsn, |point| point.lsn).ok();
    let found = mark.map(|at| ResolvedPoint::from(&timeline.points[at])).unwrap_or_else(|| ResolvedPoint {
        lsn,
        class: PointClass::Fuzzy,
        mark: None,
        time: None,
        label: String::new(),
    });
    match instant && !found.class.restorable() {
        true => ResolvedPoint { class: PointClass::Crash, ..found },
        false => found,
    }
}

fn allow(
    found: ResolvedPoint,
    what: String,
    points: &[Point],
    force: bool,
) -> Result<ResolvedPoint, ResolveError> {
    if found.class.restorable() || force {
        return Ok(found);
    }
    let restorable = || points.iter().filter(|point| point.class.restorable());
    Err(ResolveError::Fuzzy {
        what,
        before: restorable().rfind(|point| point.lsn < found.lsn).cloned().map(Box::new),
        after: restorable().find(|point| point.lsn > found.lsn).cloned().map(Box::new),
    })
}

impl From<&Point> for ResolvedPoint {
    fn from(point: &Point) -> ResolvedPoint {
        ResolvedPoint {
            lsn: point.lsn,
            class: point.class,
            mark: Some(point.id),
            time: Some(point.time),
            label: point.label.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Stretch;

    fn point(id: u64, class: PointClass, lsn: u64, time: u64, label: &str) -> Point {
        Point {
            id: MarkId(id),
            class,
            lsn: Lsn(lsn),
            time: Timestamp(time * 1_000_000_000),
            label: label.into(),
        }
    }

    fn points() -> Vec<Point> {
        vec![
            point(1, PointClass::Fuzzy, 5, 50, "early"),
            point(2, PointClass::Crash, 10, 100, "nightly"),
            point(3, PointClass::Fs, 20, 200, "nightly"),
            point(4, PointClass::Fuzzy, 25, 250, "converging"),
            point(5, PointClass::App, 30, 300, "2"),
            point(6, PointClass::Fuzzy, 40, 400, ""),
        ]
    }

    fn timeline(points: Vec<Point>, last: u64) -> Timeline {
        Timeline { points, stretches: Vec::new(), last_lsn: Lsn(last) }
    }

    fn mark_of(to: &str, force: bool) -> Result<u64, ResolveError> {
        let target = to.parse().unwrap();
        resolve(&timeline(points(), 45), &target, None, force)
            .map(|point| point.mark.map_or(0, |mark| mark.0))
    }

    #[test]
    fn latest_is_the_last_restorable_mark_not_the_last_mark() {
        assert_eq!(mark_of("latest", false), Ok(5));
        assert_eq!(mark_of("latest", true), Ok(5));
    }

    #[test]
    fn marks_go_by_number_then_by_the_last_with_the_label() {
        assert_eq!(mark_of("mark:3", false), Ok(3));
        assert_eq!(mark_of("mark:nightly", false), Ok(3));
        assert_eq!(mark_of("mark:2", false), Ok(2), "a number is a number even where a label looks like it");
        assert_eq!(mark_of("mark:weekly", false), Err(ResolveError::NoSuchMark { name: "weekly".into() }));
        assert_eq!(mark_of("mark:99", false), Err(ResolveError::NoSuchMark { name: "99".into() }));
    }

    #[test]
    fn time_is_the_last_restorable_mark_at_or_before() {
        assert_eq!(mark_of("time:1970-01-01T00:03:20Z", false), Ok(3));
        assert_eq!(mark_of("time:1970-01-01T00:03:19.999Z", false), Ok(2));
        assert_eq!(mark_of("time:2040-01-01T00:00:00Z", false), Ok(5));
        assert!(matches!(mark_of("time:1970-01-01T00:01:00Z", false), Err(ResolveError::BeforeFirst { .. })));
    }

    /// Ahead by an hour and set right, then behind by an hour and set right.
    #[test]
    fn of_the_marks_at_or_before_a_time_the_one_made_last_counts() {
        let times = [36_000, 36_300, 40_200, 36_900, 33_600, 37_500];
        let points: Vec<_> =
            (1..).zip(times).map(|(id, time)| point(id, PointClass::Fs, id * 10, time, "")).collect();
        let mark_at = |made: usize, to: &str| {
            let target = format!("time:1970-01-01T{to}Z").parse().unwrap();
            let timeline = timeline(points[..made].to_vec(), 99);
            resolve(&timeline, &target, None, false).map(|point| point.mark.map_or(0, |mark| mark.0))
        };
        assert_eq!(mark_at(3, "10:30:00"), Ok(2), "before the clock jumped ahead");
        assert_eq!(mark_at(3, "11:30:00"), Ok(3));
        assert_eq!(mark_at(4, "10:30:00"), Ok(4), "the clock that was set right is believed");
        assert_eq!(mark_at(4, "10:05:00"), Ok(2), "a time before it was wrong");
        assert_eq!(mark_at(5, "10:05:00"), Ok(5), "set back, it has not come to this time again");
        assert_eq!(mark_at(6, "10:30:00"), Ok(6));
        assert!(matches!(mark_at(6, "09:00:00"), Err(ResolveError::BeforeFirst { .. })));
    }

    #[test]
    fn an_lsn_without_a_mark_is_fuzzy_and_names_its_neighbours() {
        assert_eq!(mark_of("lsn:20", false), Ok(3));
        let Err(error @ ResolveError::Fuzzy { .. }) = mark_of("lsn:24", false) else { panic!() };
        let text = error.to_string();
        assert!(text.contains("record 24 is fuzzy"), "{text}");
        assert!(text.contains("mark:3 (record 20") && text.contains("mark:5 (record 30"), "{text}");
        assert_eq!(mark_of("lsn:24", true), Ok(0));
        assert_eq!(mark_of("lsn:46", true), Err(ResolveError::PastEnd { wanted: Lsn(46), last: Lsn(45) }));
        assert_eq!(mark_of("lsn:0", true), Err(ResolveError::PastEnd { wanted: Lsn(0), last: Lsn(45) }));
    }

    #[test]
    fn a_fuzzy_mark_needs_force_and_stays_fuzzy() {
        let text = mark_of("mark:early", false).unwrap_err().to_string();
        assert!(text.contains("none before, mark:2"), "{text}");
        let text = mark_of("mark:6", false).unwrap_err().to_string();
        assert!(text.contains("mark:5") && text.contains("none after"), "{text}");
        let forced = resolve(&timeline(points(), 45), &"mark:6".parse().unwrap(), None, true).unwrap();
        assert_eq!((forced.class, forced.lsn), (PointClass::Fuzzy, Lsn(40)));
    }

    #[test]
    fn every_record_of_a_stretch_is_of_class_crash() {
        let stretch = |from: u64, to: u64| Stretch {
            from_lsn: Lsn(from),
            from_time: Timestamp(from * 10_000_000_000),
            to_lsn: Lsn(to),
            to_time: Timestamp(to * 10_000_000_000),
        };
        let timeline =
            Timeline { stretches: vec![stretch(20, 27), stretch(30, 33)], ..timeline(points(), 45) };
        let found = |to: &str, instant: Option<u64>| {
            let instant = instant.map(|lsn| (Lsn(lsn), Timestamp(lsn * 10_000_000_000)));
            resolve(&timeline, &to.parse().unwrap(), instant, false).map(|point| (point.lsn.0, point.class))
        };
        assert_eq!(found("lsn:20", None), Ok((20, PointClass::Fs)), "the mark itself");
        assert_eq!(found("lsn:24", None), Ok((24, PointClass::Crash)));
        assert_eq!(found("mark:4", None), Ok((25, PointClass::Crash)), "a fuzzy mark breaks nothing");
        assert_eq!(found("lsn:27", None), Ok((27, PointClass::Crash)));
        for fuzzy in ["lsn:19", "lsn:28", "lsn:29", "lsn:34", "mark:6"] {
            assert!(matches!(found(fuzzy, None), Err(ResolveError::Fuzzy { .. })), "{fuzzy}");
        }
        assert_eq!(found("time:1970-01-01T00:04:05Z", Some(24)), Ok((24, PointClass::Crash)));
        assert_eq!(found("time:1970-01-01T00:04:55Z", Some(27)), Ok((27, PointClass::Crash)));
        assert_eq!(found("time:1970-01-01T00:05:00Z", Some(30)), Ok((30, PointClass::App)), "the mark wins");
        assert_eq!(found("time:1970-01-01T00:03:20Z", Some(10)), Ok((20, PointClass::Fs)), "a later mark");
    }

    #[test]
    fn a_journal_without_a_restorable_mark_says_so() {
        for to in ["latest", "time:2040-01-01T00:00:00Z"] {
            let found = resolve(&timeline(points()[..1].to_vec(), 7), &to.parse().unwrap(), None, false);
            assert_eq!(found, Err(ResolveError::NoneYet { last: Lsn(7) }));
        }
    }
}
