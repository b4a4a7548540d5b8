//! The stages that only the mark of a group goes through.

use std::time::{Duration, Instant};

use super::{MarkInProgress, Outcome, Situation, Stage};
use crate::collect::freezer::{Freeze, Reply};
use crate::collect::group::{GroupOrder, GroupPart, GroupStep};
use crate::model::{PointClass, Timestamp};

/// With its journal held a member waits so long for what became of the freezes of the others.
const COMMIT_MAX: Duration = Duration::from_secs(10);

impl MarkInProgress {
    /// What only the mark of a group does; `None`: it goes on as any other.
    pub(super) fn group_step(
        &mut self,
        freezer: &mut dyn Freeze,
        situation: &Situation,
        reply: Option<&Reply>,
    ) -> std::io::Result<Option<Outcome>> {
        let now = situation.now;
        if let Stage::GivingUp { why } = &mut self.stage {
            let thawed = matches!(reply, Some(Reply::Thawed { .. }));
            return Ok(thawed.then(|| Outcome::Failed(std::mem::take(why))));
        }
        let Ok(order) = self.asked.group.as_ref().map_or(Ok(None), GroupPart::order) else {
            return self.give_up(freezer, "the mark of the group was given up".into());
        };
        match &mut self.stage {
            Stage::Prepared { until } | Stage::Still { until, .. } | Stage::Held { until, .. }
                if now >= *until =>
            {
                return self.give_up(freezer, "the others of the group took too long".into());
            }
            Stage::Prepared { .. } if order == Some(GroupOrder::Freeze) => {
                self.stage = if self.mounts.is_empty() {
                    Stage::Still { asked: now, until: now + self.freeze_timeout }
                } else {
                    freezer.freeze(&self.mounts, self.freeze_timeout)?;
                    Stage::Freezing { asked: now }
                };
            }
            Stage::Still { asked, .. } if situation.drained && now > *asked => {
                let asked = *asked;
                self.tell(GroupStep::Frozen);
                self.together(asked, situation);
            }
            Stage::Together { asked, seen, until, thaw } => {
                if matches!(reply, Some(Reply::Thawed { .. })) {
                    return Ok(Some(Outcome::Failed(self.too_slow())));
                }
                if situation.seen != *seen {
                    let why = match self.mounts.is_empty() {
                        true => "no file system on it is mounted that could be frozen, and it was written",
                        false => "it was written past its frozen file systems",
                    };
                    return self.give_up(freezer, why.into());
                }
                if now >= *until {
                    let why = self.too_slow();
                    return self.give_up(freezer, why);
                }
                if let Some(GroupOrder::Thaw { time }) = order {
                    *thaw = Some((time, now));
                }
                // That nothing was written may have been found out before all were frozen: it has to be of a later turn.
                if let Some((time, since)) = *thaw
                    && situation.drained
                    && now > since
                {
                    let asked = *asked;
                    if self.mounts.is_empty() {
                        self.held(time, None, now);
                    } else {
                        freezer.thaw()?;
                        self.stage = Stage::Thawing { asked, time };
                    }
                }
            }
            Stage::Held { time, frozen, .. } if order == Some(GroupOrder::Commit) => {
                let (time, frozen) = (*time, *frozen);
                let class = if frozen.is_some() { PointClass::Fs } else { PointClass::Crash };
                return Ok(Some(Outcome::Made { class: self.class(class), time, frozen }));
            }
            _ => return Ok(None),
        }
        Ok(Some(Outcome::InProgress))
    }

    pub(super) fn together(&mut self, asked: Instant, situation: &Situation) {
        let until = situation.now + self.freeze_timeout;
        self.stage = Stage::Together { asked, seen: situation.seen, until, thaw: None };
        self.tell(GroupStep::Drained);
    }

    pub(super) fn held(&mut self, time: Timestamp, frozen: Option<Duration>, now: Instant) {
        self.stage = Stage::Held { time, frozen, until: now + COMMIT_MAX };
        self.tell(GroupStep::Held);
    }

    /// Over at once if nothing is frozen, else when it is thawed.
    fn give_up(&mut self, freezer: &mut dyn Freeze, why: String) -> std::io::Result<Option<Outcome>> {
        let frozen = match self.stage {
            Stage::Freezing { .. } | Stage::Draining { .. } => true,
            Stage::Together { .. } => !self.mounts.is_empty(),
            Stage::Thawing { .. } => {
                self.stage = Stage::GivingUp { why };
                return Ok(Some(Outcome::InProgress));
            }
            _ => false,
        };
        if !frozen {
            return Ok(Some(Outcome::Failed(why)));
        }
        freezer.thaw()?;
        self.stage = Stage::GivingUp { why };
        Ok(Some(Outcome::InProgress))
    }
}
