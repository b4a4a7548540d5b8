//! The collector's marks: asked for, due, or the last; and what `live` and `stopping` mean.

use std::time::{Duration, Instant};

use super::{Collector, Stopping, millis};
use crate::collect::mark::{Asked, MarkInProgress, Outcome, Quiet, Situation};
use crate::collect::{CollectError, Entry, MarkReply, Probes, Source, State};
use crate::io::clock::realtime;
use crate::model::{Mark, MarkId, PointClass, Timestamp};

/// Until the first restorable mark of a session, one is tried again this soon.
const RETRY_FIRST_MARK: Duration = Duration::from_secs(10);

impl<P: Probes, S: Source + Send + 'static> Collector<P, S> {
    pub(super) fn ask_for_mark(&mut self, asked: Asked) {
        if self.scan.is_done() {
            self.waiting_marks.push_back(asked);
        } else if let Some(reply) = asked.reply {
            let percent = self.scan.done_bytes() * 100 / self.scan.total_bytes().max(1);
            let _ = reply.try_send(Err(format!(
                "the volume is being copied ({percent} % done): a mark can be made after that, see `afterwrite status`"
            )));
        }
    }

    /// Journal and device say the same at this instant: all submissions were taken, are done, were read and handed on.
    pub(super) fn drained(&mut self) -> bool {
        if !(self.scan.is_done()
            && self.pending.is_empty()
            && self.under_way.is_empty()
            && self.staged.is_empty()
            && self.unreadable.is_empty()
            && self.gaps.is_empty()
            && self.outbox.is_empty())
        {
            return false;
        }
        // All that these count had been reported when they were read, and was taken since; nothing came later.
        self.ring_emptied
            && self.snapshot.counters.cover_all_until(&self.probes.counters())
            && self.probes.ring_is_empty()
            && !self.lost_track()
    }

    fn situation(&mut self, now: Instant) -> Situation {
        Situation {
            now,
            time: realtime(),
            drained: self.drained(),
            exact: self.exact(),
            ready_bytes: self.pending.ready_bytes(),
            copying: self.pending.ready_bytes() > 0 || !self.outbox.is_empty(),
            seen: self.snapshot.counters.seen,
        }
    }

    pub(super) fn advance_mark(&mut self) -> Result<(), CollectError> {
        let now = Instant::now();
        if self.mark.is_none() && self.scan.is_done() {
            self.begin_mark(now)?;
        }
        if self.mark.is_none() {
            return Ok(());
        }
        let situation = self.situation(now);
        let Some(mark) = &mut self.mark else { return Ok(()) };
        let held = mark.holds_journal();
        let outcome = mark.advance(self.freezer.as_mut(), &situation).map_err(CollectError::Freezer)?;
        if !held && mark.holds_journal() {
            // Frozen and drained: the mark that follows the thaw is of this instant.
            self.turn_ledger();
        }
        match outcome {
            Outcome::InProgress => {}
            Outcome::Made { class, time, frozen } => {
                let Some(mark) = self.mark.take() else { return Ok(()) };
                // What was held until now is of the instant at which that began.
                if !held && class.restorable() {
                    self.turn_ledger();
                }
                if let Some(why) = mark.hook_error() {
                    log::warn!("{why}: the mark is not of class app");
                }
                self.snapshot.last_hook_error = mark.hook_error().map(str::to_owned);
                self.snapshot.last_frozen_ms = frozen.map(millis);
                self.snapshot.last_mark_error = None;
                let Asked { label, reply, .. } = mark.asked;
                self.append_mark(label, reply, class, time, frozen.map(millis));
                self.restorable_made |= class.restorable();
                self.retry_first_mark(now);
                self.flush_outbox()?;
            }
            Outcome::Failed(why) => {
                let Some(mark) = self.mark.take() else { return Ok(()) };
                // That of a group failed in all its members: who coordinates tells it once.
                if !mark.is_of_group() {
                    log::warn!("{why}");
                    self.snapshot.last_mark_error = Some(why.clone());
                }
                mark.asked.reply.map(|reply| reply.try_send(Err(why)));
                self.retry_first_mark(now);
            }
        }
        Ok(())
    }

    fn retry_first_mark(&mut self, now: Instant) {
        if !self.restorable_made {
            let soon = now + RETRY_FIRST_MARK;
            self.next_mark_at = Some(self.next_mark_at.map_or(soon, |at| at.min(soon)));
        }
    }

    fn begin_mark(&mut self, now: Instant) -> Result<(), CollectError> {
        let due = self.next_mark_at.is_some_and(|at| now >= at) && self.stopping.is_none();
        let asked = match self.waiting_marks.pop_front() {
            Some(asked) => asked,
            None if due => Asked::default(),
            None => return Ok(()),
        };
        self.next_mark_at = self.options.mark_every.map(|every| now + every);
        if !self.unreadable.is_empty() {
            let why =
                format!("{} bytes of the source can't be read: no mark can be true", self.unreadable.bytes());
            log::warn!("{why}");
            self.snapshot.last_mark_error = Some(why.clone());
            asked.reply.map(|reply| reply.try_send(Err(why)));
            self.retry_first_mark(now);
            return Ok(());
        }
        let mounts = match self.source.mounts() {
            Ok(mounts) => mounts,
            Err(error) => {
                log::warn!("the mounted file systems can't be listed, none will be frozen: {error}");
                Vec::new()
            }
        };
        let freeze_timeout = self.options.freeze_timeout;
        let mark = MarkInProgress::begin(asked, mounts, freeze_timeout, self.freezer.as_mut(), now);
        self.mark = Some(mark.map_err(CollectError::Freezer)?);
        Ok(())
    }

    pub(super) fn append_mark(
        &mut self,
        label: String,
        reply: Option<MarkReply>,
        class: PointClass,
        time: Timestamp,
        frozen_ms: Option<u64>,
    ) {
        let mark = Mark { id: self.next_mark, class, label };
        self.next_mark = MarkId(self.next_mark.0 + 1);
        self.snapshot.marks += 1;
        self.changed_since_mark = false;
        if class == PointClass::Fuzzy {
            log::warn!(
                "mark {} is fuzzy: the volume was written without a pause, it can't be restored to it",
                mark.id
            );
        }
        self.mark_appended(mark.id, class);
        if class.restorable() {
            self.history_begins();
            self.snapshot.gap_open = false;
        }
        // Who hears of the mark and then asks for the status is not to see an older one.
        self.publish();
        self.outbox.push_back(Entry::Mark { time, mark, frozen_ms, reply });
    }

    pub(super) fn refuse_marks(&mut self, why: &str) {
        let asked = self.mark.take().map(|mark| mark.asked);
        for reply in asked.into_iter().chain(self.waiting_marks.drain(..)).filter_map(|asked| asked.reply) {
            // Who asked may have gone.
            let _ = reply.try_send(Err(why.to_owned()));
        }
    }

    pub(super) fn advance_state(&mut self) {
        if self.scan.is_done() && !self.was_live {
            self.was_live = true;
            // Nothing is compared any more: whoever has to unmount its disk must not wait for us.
            self.replica = None;
            let label = if self.snapshot.state == State::Baseline { "baseline" } else { "resync" };
            self.snapshot.state = State::Live;
            self.waiting_marks.push_front(Asked { label: label.into(), ..Asked::default() });
        }
        if self.stopping.is_some() {
            self.advance_stop();
        }
    }

    fn advance_stop(&mut self) {
        let situation = self.situation(Instant::now());
        match &mut self.stopping {
            Some(Stopping::LastMark) if self.mark.is_none() && self.waiting_marks.is_empty() => {
                self.stopping = Some(Stopping::LastQuiet { quiet: Quiet::begin(situation.now) });
            }
            // The thaw wrote again (a superblock, say): once that is copied, replica and source are the same.
            Some(Stopping::LastQuiet { quiet }) => {
                let over = situation.drained || quiet.is_over(&situation);
                if situation.drained && self.changed_since_mark {
                    self.turn_ledger();
                    self.append_mark("stop".into(), None, PointClass::Crash, situation.time, None);
                }
                if situation.drained {
                    self.at_rest = Some(situation.seen);
                }
                if over && self.outbox.is_empty() {
                    self.stopping = Some(Stopping::Done);
                }
            }
            _ => {}
        }
    }
}
