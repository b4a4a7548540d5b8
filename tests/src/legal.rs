//! Is what a volume was restored to a state that a power cut at that instant could have left? Pure.
//!
//! A workload notes of each operation (a write, an fsynced append, a transaction) when it was begun and when it was
//! acknowledged; of a restored image it is found out which of them are in it. That is legal, if
//!
//! 1. what was acknowledged before the instant is there,
//! 2. of what was begun after the instant nothing is there, and
//! 3. with any part of an operation, all is there that was acknowledged before it was begun.
//!
//! So an operation may be torn only if it was under way. The third rule needs no clock but the workload's own counter,
//! and so has no slack; the first two compare the workload's clock with the times in the journal.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// By how much a time in the journal may differ from the workload's reading of the same clock. Journal times are of the
/// submission in the kernel: later than `begun`, earlier than `acknowledged`, so no slack is needed for the way there.
/// But the kernel's probes read the monotonic clock, and what is added to make it the time of day is itself measured.
pub const CLOCK_SLACK_NS: u64 = 100_000;

/// Counts the moments of a workload: those of one counter are in one order, whatever thread notes them.
#[derive(Debug, Default)]
pub struct Ticks(AtomicU64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub tick: u64,
    /// Since 1970, as the system's clock says.
    pub time_ns: u64,
}

/// What a workload did once, and is to be found again or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub writer: u32,
    /// Of this writer's.
    pub number: u64,
    /// Just before it was asked for.
    pub begun: Moment,
    /// Just after it was called done (and durable, if the workload asks for that); `None` if it never was.
    pub acknowledged: Option<Moment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Absent,
    /// Some of it.
    Torn,
    /// All, or what was written over it later.
    Whole,
}

/// What was found at a legal instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub whole: u64,
    pub torn: u64,
    pub absent: u64,
    /// Begun before the instant and not yet acknowledged: these might have been there or not.
    pub under_way: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Illegal {
    Lost { operation: Operation, presence: Presence, instant_ns: u64 },
    FromTheFuture { operation: Operation, presence: Presence, instant_ns: u64 },
    OutOfOrder { missing: Operation, presence: Presence, later: Operation },
}

impl Ticks {
    pub fn now(&self) -> Moment {
        Moment { tick: self.0.fetch_add(1, Ordering::SeqCst), time_ns: now_ns() }
    }
}

impl std::error::Error for Illegal {}

impl fmt::Display for Illegal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Illegal::Lost { operation, presence, instant_ns } => {
                let ago_us =
                    operation.acknowledged.map_or(0, |at| instant_ns.saturating_sub(at.time_ns) / 1000);
                write!(f, "acknowledged {ago_us} us before the instant, but {presence:?}: {operation:?}")
            }
            Illegal::FromTheFuture { operation, presence, instant_ns } => {
                let us = operation.begun.time_ns.saturating_sub(*instant_ns) / 1000;
                write!(f, "begun {us} us after the instant, but {presence:?}: {operation:?}")
            }
            Illegal::OutOfOrder { missing, presence, later } => write!(
                f,
                "{missing:?} is {presence:?}, but of {later:?}, begun after the other was acknowledged, something is there"
            ),
        }
    }
}

/// Judges what was found of all operations. `instant_ns` is when the power was cut, so to speak: a time since 1970.
pub fn judge(found: &[(Operation, Presence)], instant_ns: u64) -> Result<Found, Illegal> {
    let mut sum = Found::default();
    for (operation, presence) in found.iter().copied() {
        let before = |at: Moment| at.time_ns + CLOCK_SLACK_NS < instant_ns;
        if operation.acknowledged.is_some_and(before) && presence != Presence::Whole {
            return Err(Illegal::Lost { operation, presence, instant_ns });
        }
        let is_later = operation.begun.time_ns > instant_ns + CLOCK_SLACK_NS;
        if is_later && presence != Presence::Absent {
            return Err(Illegal::FromTheFuture { operation, presence, instant_ns });
        }
        match presence {
            Presence::Whole => sum.whole += 1,
            Presence::Torn => sum.torn += 1,
            Presence::Absent => sum.absent += 1,
        }
        let was_begun = operation.begun.time_ns < instant_ns;
        let was_done = operation.acknowledged.is_some_and(|at| at.time_ns < instant_ns);
        sum.under_way += u64::from(was_begun && !was_done);
    }
    let present = found.iter().filter(|(_, presence)| *presence != Presence::Absent);
    let Some((later, _)) = present.max_by_key(|(operation, _)| operation.begun.tick) else { return Ok(sum) };
    let missing = found.iter().find(|(operation, presence)| {
        let happened_before = operation.acknowledged.is_some_and(|at| at.tick < later.begun.tick);
        happened_before && *presence != Presence::Whole
    });
    match missing {
        Some((missing, presence)) => {
            Err(Illegal::OutOfOrder { missing: *missing, presence: *presence, later: *later })
        }
        None => Ok(sum),
    }
}

/// Of the clock whose times the journal has.
pub fn now_ns() -> u64 {
    let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_nanos());
    u64::try_from(age).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Presence::{Absent, Torn, Whole};

    const MS: u64 = 1_000_000;

    /// Ticks and milliseconds are the same here.
    fn operation(number: u64, begun: u64, acknowledged: u64) -> Operation {
        let at = |tick| Moment { tick, time_ns: tick * MS };
        Operation { writer: 0, number, begun: at(begun), acknowledged: Some(at(acknowledged)) }
    }

    /// 0: 10–20, 1: 30–40, 2: 32–60 (beside 1), 3: 50–70.
    fn judged(presences: [Presence; 4], instant_ms: u64) -> Result<Found, Illegal> {
        let operations = [(10, 20), (30, 40), (32, 60), (50, 70)];
        let found: Vec<_> = (0..)
            .zip(operations)
            .zip(presences)
            .map(|((number, (begun, acknowledged)), presence)| {
                (operation(number, begun, acknowledged), presence)
            })
            .collect();
        judge(&found, instant_ms * MS)
    }

    #[test]
    fn what_was_under_way_may_be_there_or_not_or_torn() {
        for presences in [
            [Whole, Absent, Absent, Absent],
            [Whole, Torn, Absent, Absent],
            [Whole, Absent, Whole, Absent],
            [Whole, Torn, Torn, Absent],
        ] {
            assert_eq!(judged(presences, 35).expect("legal").under_way, 2, "{presences:?}");
        }
        assert_eq!(judged([Absent; 4], 5), Ok(Found { absent: 4, ..Found::default() }));
        assert_eq!(judged([Whole; 4], 80), Ok(Found { whole: 4, ..Found::default() }));
    }

    #[test]
    fn what_was_acknowledged_before_is_not_missing_nor_torn() {
        for presence in [Absent, Torn] {
            let illegal =
                judged([presence, Absent, Absent, Absent], 25).expect_err("it was acknowledged at 20");
            assert!(matches!(illegal, Illegal::Lost { operation, .. } if operation.number == 0), "{illegal}");
        }
    }

    #[test]
    fn nothing_of_what_was_begun_after_is_there() {
        for presence in [Torn, Whole] {
            let illegal = judged([Whole, presence, Absent, Absent], 25).expect_err("it was begun at 30");
            assert!(
                matches!(illegal, Illegal::FromTheFuture { operation, .. } if operation.number == 1),
                "{illegal}"
            );
        }
    }

    #[test]
    fn with_an_operation_comes_all_that_was_acknowledged_before_it_was_begun() {
        // At 40 and a bit, so that the clock's slack forbids nothing.
        let judged = |presences| {
            let operations = [operation(0, 10, 40), operation(1, 20, 40), operation(2, 41, 90)];
            let found: Vec<_> = operations.into_iter().zip(presences).collect();
            judge(&found, 41 * MS - CLOCK_SLACK_NS / 2)
        };
        let mut late = judged([Whole, Whole, Whole]);
        assert!(late.is_ok(), "{late:?}");
        for presence in [Absent, Torn] {
            let close = [operation(0, 10, 40), operation(2, 41, 90)];
            // All within the slack of the instant: only the order can tell.
            let close = close.map(|mut operation| {
                operation.begun.time_ns = 5 * MS;
                operation.acknowledged = operation.acknowledged.map(|at| Moment { time_ns: 5 * MS, ..at });
                operation
            });
            late = judge(&[(close[0], presence), (close[1], Torn)], 5 * MS);
            assert!(
                matches!(late, Err(Illegal::OutOfOrder { missing, .. }) if missing.number == 0),
                "{late:?}"
            );
        }
    }

    #[test]
    fn what_was_never_acknowledged_is_never_missed() {
        let never = Operation { acknowledged: None, ..operation(0, 1, 2) };
        for presence in [Absent, Torn, Whole] {
            judge(&[(never, presence), (operation(1, 3, 4), Whole)], 9 * MS).expect("legal");
        }
    }

    #[test]
    fn ticks_are_in_the_order_in_which_they_were_taken() {
        let ticks = Ticks::default();
        let (first, second) = (ticks.now(), ticks.now());
        assert!(first.tick < second.tick && first.time_ns > 1_600_000_000 * 1000 * MS);
    }
}
