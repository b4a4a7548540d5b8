//! Which part of the history is kept, and how. Pure: the time is passed in.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::model::{GroupMarkName, Lsn, Point, Timestamp};

const HOUR_NS: u64 = 3_600_000_000_000;
const DAY_NS: u64 = 24 * HOUR_NS;
const WEEK_NS: u64 = 7 * DAY_NS;
/// The epoch was a Thursday; weeks begin on Monday.
const MONDAY_NS: u64 = 3 * DAY_NS;

/// What `protect` names its own marks.
const OWN_LABELS: [&str; 3] = ["baseline", "resync", "stop"];

/// What is kept, at least. A rule never removes what another one keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Every write as old as this.
    pub keep_all: Duration,
    /// Every restorable mark as old as this.
    pub keep_marks: Duration,
    /// The last mark of each of so many hours, days and weeks (UTC) that have one.
    pub hourly: usize,
    pub daily: usize,
    pub weekly: usize,
    /// Treat marks with a label that a person gave as all others; they are kept for ever otherwise.
    pub drop_labelled: bool,
}

impl Default for Retention {
    fn default() -> Retention {
        Retention {
            keep_all: Duration::from_nanos(DAY_NS),
            keep_marks: Duration::from_nanos(WEEK_NS),
            hourly: 48,
            daily: 14,
            weekly: 8,
            drop_labelled: false,
        }
    }
}

impl Retention {
    /// Up to this mark, one of `points` and restorable, the history may be folded. After it every write is kept. The clock
    /// may have been set: nothing after the first mark that is not old enough is.
    pub fn fold_upto(&self, points: &[Point], now: Timestamp) -> Option<Lsn> {
        let limit = before(now, self.keep_all);
        let old = points.iter().take_while(|point| point.time <= limit);
        old.filter(|point| point.class.restorable()).last().map(|point| point.lsn)
    }

    /// Those of the restorable `points` that are kept, wherever they are.
    pub fn kept(&self, points: &[Point], now: Timestamp) -> BTreeSet<Lsn> {
        let limit = before(now, self.keep_marks);
        // What was folded by a stricter rule may be as young as that every write would be kept.
        let all_from = self.fold_upto(points, now).unwrap_or(Lsn::ZERO);
        let is_kept = |point: &&Point| {
            point.time > limit || point.lsn > all_from || (is_named(point) && !self.drop_labelled)
        };
        let restorable = || points.iter().filter(|point| point.class.restorable());
        let mut kept: BTreeSet<Lsn> = restorable().filter(is_kept).map(|point| point.lsn).collect();
        for (count, period, shift) in
            [(self.hourly, HOUR_NS, 0), (self.daily, DAY_NS, 0), (self.weekly, WEEK_NS, MONDAY_NS)]
        {
            let mut periods = BTreeSet::new();
            for point in restorable().rev() {
                let is_last = periods.insert(point.time.0.saturating_add(shift) / period);
                if periods.len() > count {
                    break;
                }
                if is_last {
                    kept.insert(point.lsn);
                }
            }
        }
        kept
    }
}

fn is_named(point: &Point) -> bool {
    match GroupMarkName::of(&point.label) {
        // Those that were due are thinned as all others, in each journal the same ones: their times are the same.
        Some(name) => !name.label.is_empty(),
        None => !point.label.is_empty() && !OWN_LABELS.contains(&point.label.as_str()),
    }
}

fn before(now: Timestamp, age: Duration) -> Timestamp {
    Timestamp(now.0.saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{MarkId, PointClass};

    const MINUTE_NS: u64 = HOUR_NS / 60;
    const NOW: Timestamp = Timestamp(3000 * DAY_NS);

    fn at(lsn: u64, age_minutes: u64) -> Point {
        let time = Timestamp(NOW.0 - age_minutes * MINUTE_NS);
        Point { id: MarkId(lsn), class: PointClass::Fs, lsn: Lsn(lsn), time, label: String::new() }
    }

    fn nothing() -> Retention {
        let none = Duration::ZERO;
        Retention { keep_all: none, keep_marks: none, hourly: 0, daily: 0, weekly: 0, drop_labelled: false }
    }

    fn lsns(kept: BTreeSet<Lsn>) -> Vec<u64> {
        kept.into_iter().map(|lsn| lsn.0).collect()
    }

    #[test]
    fn the_history_is_folded_up_to_the_last_mark_that_is_old_enough_for_sure() {
        let hour = Retention { keep_all: Duration::from_nanos(HOUR_NS), ..nothing() };
        let fuzzy = Point { class: PointClass::Fuzzy, ..at(3, 100) };
        let points = [at(1, 300), at(2, 200), fuzzy, at(4, 30), at(5, 10)];
        assert_eq!(hour.fold_upto(&points, NOW), Some(Lsn(2)));
        assert_eq!(hour.fold_upto(&points[3..], NOW), None);
        assert_eq!(nothing().fold_upto(&points, NOW), Some(Lsn(5)));
        // The clock was an hour ahead when mark 2 was made: mark 3 may be as young as that.
        let stepped = [at(1, 300), at(2, 30), at(3, 80), at(4, 10)];
        assert_eq!(hour.fold_upto(&stepped, NOW), Some(Lsn(1)));
    }

    #[test]
    fn marks_are_thinned_to_the_last_of_each_period() {
        // Every ten minutes for 30 days; NOW is midnight.
        let points: Vec<_> = (1..=30 * 144).map(|lsn| at(lsn, (30 * 144 - lsn) * 10)).collect();
        let hourly = Retention { hourly: 3, ..nothing() };
        // The last one, at midnight, is the first of its hour.
        assert_eq!(lsns(hourly.kept(&points, NOW)), [4320 - 7, 4320 - 1, 4320]);
        let daily = Retention { daily: 2, ..nothing() };
        assert_eq!(lsns(daily.kept(&points, NOW)), [4320 - 1, 4320]);
        let weekly = lsns(Retention { weekly: 100, ..nothing() }.kept(&points, NOW));
        assert!(weekly.len() == 5 || weekly.len() == 6, "{weekly:?}");
        assert!(weekly.windows(2).rev().skip(1).all(|pair| pair[1] - pair[0] == 7 * 144), "{weekly:?}");
        let recent = Retention { keep_marks: Duration::from_nanos(HOUR_NS), ..nothing() };
        assert_eq!(recent.kept(&points, NOW).len(), 6);
        assert_eq!(Retention::default().kept(&points, NOW).len(), 7 * 144 + 6 + 3);
    }

    #[test]
    fn marks_are_kept_as_long_as_writes_at_least() {
        let hour = Retention { keep_all: Duration::from_nanos(HOUR_NS), ..nothing() };
        assert_eq!(lsns(hour.kept(&[at(1, 90), at(2, 30), at(3, 80), at(4, 10)], NOW)), [2, 3, 4]);
        assert_eq!(lsns(hour.kept(&[at(1, 30)], NOW)), [1]);
    }

    #[test]
    fn marks_that_a_person_named_are_kept_unless_they_may_be_dropped() {
        let named = |lsn, label: &str| Point { label: label.into(), ..at(lsn, 9000) };
        let points = [
            named(1, "baseline"),
            named(2, "before-upgrade"),
            named(3, "resync"),
            named(4, "stop"),
            at(5, 5),
        ];
        assert_eq!(lsns(nothing().kept(&points, NOW)), [2]);
        assert_eq!(lsns(Retention { drop_labelled: true, ..nothing() }.kept(&points, NOW)), [0u64; 0]);
        let fuzzy = [Point { class: PointClass::Fuzzy, ..named(2, "x") }];
        assert_eq!(lsns(nothing().kept(&fuzzy, NOW)), [0u64; 0]);
    }

    #[test]
    fn marks_of_groups_that_were_due_are_thinned_as_those_of_volumes() {
        let labelled = |lsn, label: &str| Point { label: label.into(), ..at(lsn, 9000) };
        let due = labelled(1, "group:shop/2026-05-04T03:02:01.123456Z");
        let asked = labelled(2, "group:shop/2026-05-04T03:02:01.123457Z/before-upgrade");
        assert_eq!(lsns(nothing().kept(&[due, asked], NOW)), [2]);
    }
}
