//! Making a mark, as a state machine that the collector's loop drives: nothing here waits.
//!
//! With hooks: the application comes to rest first, and goes on last; then the mark is of class `app`.
//! With file systems mounted: sync, copy until little is left (head start), freeze, drain, thaw, and only when the freeze held
//! throughout is it an `fs` mark. Otherwise: the instant at which all writes that were ever submitted are done and read
//! makes a `crash` mark, since journal and device then say the same; no such instant before the deadline: `fuzzy`.
//!
//! As one of a group's it freezes, thaws and is made when the coordinator says so. Between drain and thaw nothing may be written, on a
//! volume without file systems as on a frozen one: then what was drained is what it held when all were frozen.

mod of_group;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::collect::MarkReply;
use crate::collect::freezer::{Freeze, Reply};
use crate::collect::group::{GroupPart, GroupStep};
use crate::model::{PointClass, Timestamp};

/// Copied before the freeze until no more than this is left …
const HEAD_START_BYTES: u64 = 4 << 20;
/// … or this long.
const HEAD_START_MAX: Duration = Duration::from_secs(10);
/// A member waits so long for the others of its group to be prepared.
const PREPARED_MAX: Duration = Duration::from_secs(120);

enum Stage {
    Hook,
    Syncing {
        again: bool,
    },
    HeadStart {
        until: Instant,
    },
    Freezing {
        asked: Instant,
    },
    Draining {
        asked: Instant,
        frozen: Instant,
        time: Timestamp,
    },
    Thawing {
        asked: Instant,
        time: Timestamp,
    },
    Quiet {
        quiet: Quiet,
    },
    /// Of a group's, until it is told to freeze.
    Prepared {
        until: Instant,
    },
    /// With nothing that could be frozen: all is drained, sooner or later.
    Still {
        asked: Instant,
        until: Instant,
    },
    /// Drained, until all are; `thaw`: when they were all frozen, and since when that is known.
    Together {
        asked: Instant,
        seen: u64,
        until: Instant,
        thaw: Option<(Timestamp, Instant)>,
    },
    /// Until it is known whether the others held, too.
    Held {
        time: Timestamp,
        frozen: Option<Duration>,
        until: Instant,
    },
    /// The thaw was asked for, and is waited for.
    GivingUp {
        why: String,
    },
}

/// The search for an instant without writes: over when writes went on for this long in all. Time in which nothing is
/// written, and what was written is still being copied, does not count.
pub struct Quiet {
    left: Duration,
    looked: Instant,
    changed: Instant,
    seen: u64,
}

impl Quiet {
    const MAX: Duration = Duration::from_secs(2);
    /// Only after so long without a write is nothing written: most turns of the loop see none under any load.
    const PAUSE: Duration = Duration::from_millis(100);

    pub fn begin(now: Instant) -> Quiet {
        Quiet { left: Quiet::MAX, looked: now, changed: now, seen: 0 }
    }

    pub fn is_over(&mut self, situation: &Situation) -> bool {
        let Situation { now, seen, copying, .. } = *situation;
        let since_change = self.looked - self.changed;
        let counts_at_most = match copying {
            true if seen == self.seen => Quiet::PAUSE.saturating_sub(since_change),
            true if since_change >= Quiet::PAUSE => Duration::ZERO,
            _ => Duration::MAX,
        };
        self.left = self.left.saturating_sub((now - self.looked).min(counts_at_most));
        self.looked = now;
        if seen != self.seen {
            (self.seen, self.changed) = (seen, now);
        }
        self.left.is_zero()
    }
}

/// A mark that was asked for, or is due.
#[derive(Default)]
pub struct Asked {
    pub label: String,
    pub reply: Option<MarkReply>,
    pub group: Option<GroupPart>,
}

pub struct MarkInProgress {
    pub asked: Asked,
    mounts: Vec<PathBuf>,
    freeze_timeout: Duration,
    hook: Hook,
    stage: Stage,
}

/// Whether an application was to be brought to rest for it, and is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hook {
    None,
    Asked,
    AtRest,
    Failed(String),
}

/// What the collector knows at this turn.
pub struct Situation {
    pub now: Instant,
    pub time: Timestamp,
    /// All that was ever submitted is done, read, and handed to the journal.
    pub drained: bool,
    /// What was journaled is a crash point of this time, though writes may be under way.
    pub exact: Option<Timestamp>,
    pub ready_bytes: u64,
    /// Something can be read, or waits for room in the journal's queue.
    pub copying: bool,
    /// Submissions the probes saw.
    pub seen: u64,
}

/// What became of a mark.
pub enum Outcome {
    InProgress,
    /// `frozen`: from asking for the freeze, which holds writers before it is complete, to the thaw.
    Made {
        class: PointClass,
        time: Timestamp,
        frozen: Option<Duration>,
    },
    Failed(String),
}

impl MarkInProgress {
    pub fn begin(
        asked: Asked,
        mounts: Vec<PathBuf>,
        freeze_timeout: Duration,
        freezer: &mut dyn Freeze,
        now: Instant,
    ) -> std::io::Result<MarkInProgress> {
        let mut mark = MarkInProgress { asked, mounts, freeze_timeout, hook: Hook::None, stage: Stage::Hook };
        if let Some(group) = &mark.asked.group {
            // Its commands are the group's, and were run.
            mark.freeze_timeout = group.freeze_timeout;
            mark.begin_freeze(freezer, now)?;
            return Ok(mark);
        }
        match freezer.begin_hook(&mark.asked.label)? {
            true => mark.hook = Hook::Asked,
            false => mark.begin_freeze(freezer, now)?,
        }
        Ok(mark)
    }

    pub fn is_of_group(&self) -> bool {
        self.asked.group.is_some()
    }

    fn tell(&mut self, step: GroupStep) {
        if let Some(group) = &mut self.asked.group {
            (group.tell)(step);
        }
    }

    fn begin_freeze(&mut self, freezer: &mut dyn Freeze, now: Instant) -> std::io::Result<()> {
        self.stage = if self.mounts.is_empty() && self.is_of_group() {
            self.tell(GroupStep::Prepared { freezes: false });
            Stage::Prepared { until: now + PREPARED_MAX }
        } else if self.mounts.is_empty() {
            Stage::Quiet { quiet: Quiet::begin(now) }
        } else {
            freezer.sync(&self.mounts)?;
            Stage::Syncing { again: true }
        };
        Ok(())
    }

    /// Why it is not of class app although it should be.
    pub fn hook_error(&self) -> Option<&str> {
        match &self.hook {
            Hook::Failed(why) => Some(why),
            _ => None,
        }
    }

    /// An application at rest makes more of a mark that holds.
    fn class(&self, class: PointClass) -> PointClass {
        let at_rest =
            self.hook == Hook::AtRest || self.asked.group.as_ref().is_some_and(|group| group.at_rest);
        if at_rest && class.restorable() { PointClass::App } else { class }
    }

    /// Between drain and mark nothing may be journaled: it would be later than the freeze.
    pub fn holds_journal(&self) -> bool {
        matches!(self.stage, Stage::Thawing { .. } | Stage::Together { .. } | Stage::Held { .. })
    }

    pub fn advance(&mut self, freezer: &mut dyn Freeze, situation: &Situation) -> std::io::Result<Outcome> {
        let outcome = self.step(freezer, situation)?;
        if !matches!(outcome, Outcome::InProgress) && self.hook != Hook::None {
            freezer.end_hook()?;
        }
        Ok(outcome)
    }

    fn step(&mut self, freezer: &mut dyn Freeze, situation: &Situation) -> std::io::Result<Outcome> {
        let reply = freezer.poll();
        if let Some(Reply::Failed { what }) = reply {
            return Ok(self.freeze_failed(&what, situation.now));
        }
        if self.is_of_group()
            && let Some(outcome) = self.group_step(freezer, situation, reply.as_ref())?
        {
            return Ok(outcome);
        }
        match &mut self.stage {
            Stage::Hook => {
                if let Some(Reply::AtRest { why_not }) = reply {
                    self.hook = match why_not {
                        None => Hook::AtRest,
                        Some(why) => Hook::Failed(why),
                    };
                    self.begin_freeze(freezer, situation.now)?;
                }
            }
            Stage::Syncing { again } if reply == Some(Reply::Synced) => {
                if *again && situation.ready_bytes > HEAD_START_BYTES {
                    freezer.sync(&self.mounts)?;
                    self.stage = Stage::Syncing { again: false };
                } else {
                    self.stage = Stage::HeadStart { until: situation.now + HEAD_START_MAX };
                }
            }
            Stage::HeadStart { until }
                if situation.ready_bytes <= HEAD_START_BYTES || situation.now >= *until =>
            {
                if self.is_of_group() {
                    self.stage = Stage::Prepared { until: situation.now + PREPARED_MAX };
                    self.tell(GroupStep::Prepared { freezes: true });
                } else {
                    freezer.freeze(&self.mounts, self.freeze_timeout)?;
                    self.stage = Stage::Freezing { asked: situation.now };
                }
            }
            Stage::Freezing { asked } if reply == Some(Reply::Frozen) => {
                self.stage = Stage::Draining { asked: *asked, frozen: situation.now, time: situation.time };
                self.tell(GroupStep::Frozen);
            }
            Stage::Draining { asked, frozen, time } => {
                if let Some(Reply::Thawed { .. }) = reply {
                    return Ok(Outcome::Failed(self.too_slow()));
                }
                // Drained may have been found out before the freeze was: it has to be from a later turn.
                if situation.drained && situation.now > *frozen {
                    let (asked, time) = (*asked, *time);
                    if self.is_of_group() {
                        self.together(asked, situation);
                    } else {
                        freezer.thaw()?;
                        self.stage = Stage::Thawing { asked, time };
                    }
                }
            }
            Stage::Thawing { asked, time } => {
                let (asked, time) = (*asked, *time);
                if let Some(Reply::Thawed { held }) = reply {
                    let frozen = Some(situation.now - asked);
                    if !held {
                        return Ok(Outcome::Failed(self.too_slow()));
                    }
                    if !self.is_of_group() {
                        return Ok(Outcome::Made { class: self.class(PointClass::Fs), time, frozen });
                    }
                    self.held(time, frozen, situation.now);
                }
            }
            Stage::Quiet { quiet } => {
                let (class, time) = match situation.exact {
                    _ if situation.drained => (PointClass::Crash, situation.time),
                    Some(time) => (PointClass::Crash, time),
                    None if quiet.is_over(situation) => (PointClass::Fuzzy, situation.time),
                    None => return Ok(Outcome::InProgress),
                };
                return Ok(Outcome::Made { class: self.class(class), time, frozen: None });
            }
            _ => {}
        }
        Ok(Outcome::InProgress)
    }

    /// A file system that can't be frozen: a quiet instant is the best there is. Past the freeze it is a failure.
    fn freeze_failed(&mut self, what: &str, now: Instant) -> Outcome {
        match self.stage {
            _ if self.is_of_group() => Outcome::Failed(what.to_owned()),
            Stage::Hook | Stage::Syncing { .. } | Stage::HeadStart { .. } | Stage::Freezing { .. } => {
                if self.hook == Hook::Asked {
                    self.hook = Hook::Failed(what.to_owned());
                }
                log::warn!("{what}: trying for a mark without a frozen file system");
                self.stage = Stage::Quiet { quiet: Quiet::begin(now) };
                Outcome::InProgress
            }
            _ => Outcome::Failed(format!("{what}: no mark was made")),
        }
    }

    fn too_slow(&self) -> String {
        format!(
            "the freeze was over before all was copied (limit {:?}): no mark was made; \
             try again when the volume is less busy, or raise --freeze-timeout",
            self.freeze_timeout
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_is_waited_for_as_long_as_nothing_is_written() {
        let begun = Instant::now();
        let at = |seconds: u64, copying, seen| Situation {
            now: begun + Duration::from_secs(seconds),
            time: Timestamp(0),
            drained: false,
            exact: None,
            ready_bytes: 0,
            copying,
            seen,
        };
        let mut quiet = Quiet::begin(begun);
        assert!(!quiet.is_over(&at(1, true, 7)));
        for second in 2..60 {
            assert!(!quiet.is_over(&at(second, true, 7)), "still copying");
        }
        assert!(!quiet.is_over(&at(60, true, 8)));
        assert!(quiet.is_over(&at(62, true, 9)), "written without a pause");

        let mut quiet = Quiet::begin(begun);
        assert!(!quiet.is_over(&at(1, false, 7)));
        assert!(quiet.is_over(&at(2, false, 7)), "a write that does not end");
    }

    #[test]
    fn a_search_under_writes_without_a_pause_ends_although_most_turns_see_none() {
        let begun = Instant::now();
        let mut quiet = Quiet::begin(begun);
        // A turn each millisecond, a write each fifth of them, and always something to copy.
        let over = (1..60_000).find(|millis| {
            quiet.is_over(&Situation {
                now: begun + Duration::from_millis(*millis),
                time: Timestamp(0),
                drained: false,
                exact: None,
                ready_bytes: 4096,
                copying: true,
                seen: millis / 5,
            })
        });
        assert_eq!(over, Some(2000));
    }
}
