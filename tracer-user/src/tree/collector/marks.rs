//! Marks of a tree: when the catalog is the tree.

use std::time::{Duration, Instant};

use crate::io::clock::realtime;
use crate::model::{Lsn, Mark, MarkId, NodeId, Point, PointClass, RecordBody, Timestamp, TreeChange};
use crate::tree::collector::{Collector, TreeError};
use crate::tree::event::{Freezing, World};

/// How long an instant without changes is looked for.
const QUIET_WAIT: Duration = Duration::from_secs(2);
/// How long what has gathered is read before the file system is frozen.
const HEAD_START: Duration = Duration::from_secs(10);
const HEAD_START_LEFT: u64 = 4 << 20;
/// The same of a look at all of the tree.
const RESCAN_MAX: Duration = Duration::from_secs(120);

/// A mark that is durable.
#[derive(Clone, Debug, serde::Serialize)]
pub struct MarkMade {
    pub point: Point,
    /// How long writers were held at most.
    pub frozen: Option<Duration>,
}

impl<W: World> Collector<W> {
    /// Makes a mark, durable when this returns. `frozen_at_most`: the file system is to be frozen for it. The inner error
    /// says why there is no mark.
    pub fn mark(
        &mut self,
        label: &str,
        frozen_at_most: Option<Duration>,
    ) -> Result<Result<MarkMade, String>, TreeError> {
        if self.incomplete && self.catalog_is_first() {
            return Ok(Err("the tree is being copied for the first time; ask again when it is live".into()));
        }
        if self.lost.is_some() && frozen_at_most.is_some() {
            // Most is then read before it is frozen, and all once more.
            self.rescan();
        }
        self.catch_up()?;
        if let Some(at_most) = frozen_at_most {
            match self.frozen(at_most)? {
                Ok((time, held)) => return self.write_mark(label, PointClass::Fs, time, Some(held)).map(Ok),
                Err(why) => log::warn!("no mark of a frozen file system: {why}"),
            }
        }
        let (time, class) = self.quiet()?;
        self.write_mark(label, class, time, None).map(Ok)
    }

    /// There is no state to begin with yet.
    fn catalog_is_first(&mut self) -> bool {
        self.writer.next_mark() == MarkId(1)
    }

    /// Writes back, and reads what has gathered, until little is left.
    fn catch_up(&mut self) -> Result<(), TreeError> {
        let begun = Instant::now();
        self.write_back();
        loop {
            let busy = self.turn()?;
            let scanning = !self.scans.is_empty();
            let at_most = if scanning { RESCAN_MAX } else { HEAD_START };
            let little = !scanning && self.is_complete() && self.pending.bytes() < HEAD_START_LEFT;
            if (little && !busy) || begun.elapsed() > at_most {
                break;
            }
            if !busy {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.settle()
    }

    pub(super) fn write_back(&self) {
        if let Err(error) = self.source.sync() {
            log::debug!("the tree's file system can't be synced: {error}");
        }
    }

    /// Of what changed since the last mark, says whether the times of now prove later that nothing has changed.
    fn settle(&mut self) -> Result<(), TreeError> {
        if self.lost.is_some() {
            return Ok(());
        }
        let touched: Vec<NodeId> = std::mem::take(&mut self.unsettled).into_iter().collect();
        for node in touched {
            self.refresh(node, true)?;
        }
        Ok(())
    }

    /// When it was frozen and for how long; the catalog is the tree as it was then.
    fn frozen(&mut self, at_most: Duration) -> Result<Result<(Timestamp, Duration), String>, TreeError> {
        if !self.is_complete() {
            return Ok(Err("not all was looked at again yet".into()));
        }
        let asked = Instant::now();
        if let Err(why) = self.freeze()? {
            return Ok(Err(why));
        }
        let time = realtime();
        self.frozen = true;
        let drained = self.drain(asked + at_most)?;
        self.frozen = false;
        let thawed = self.thaw()?;
        let held = asked.elapsed();
        Ok(match thawed {
            Ok(()) if drained => Ok((time, held)),
            Ok(()) => Err("it could not all be read while it was frozen".into()),
            Err(why) => Err(why),
        })
    }

    fn freeze(&mut self) -> Result<Result<(), String>, TreeError> {
        if let Err(error) = self.world.freeze() {
            return Ok(Err(error.to_string()));
        }
        Ok(match self.await_answer()? {
            Freezing::Frozen => Ok(()),
            other => Err(why(&other)),
        })
    }

    fn thaw(&mut self) -> Result<Result<(), String>, TreeError> {
        if let Err(error) = self.world.thaw() {
            return Ok(Err(error.to_string()));
        }
        Ok(match self.await_answer()? {
            Freezing::Thawed { held: true } => Ok(()),
            other => Err(why(&other)),
        })
    }

    fn await_answer(&mut self) -> Result<Freezing, TreeError> {
        loop {
            if let Some(answer) = self.world.answer() {
                return Ok(answer);
            }
            if self.hear()? == 0 {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    /// Reads all that was begun before it was frozen. Says whether it came to an end. Changes that were lost have been made by
    /// now, or wait for the thaw, whenever that is noticed: so one look at all makes good for them here.
    fn drain(&mut self, deadline: Instant) -> Result<bool, TreeError> {
        let mut looking = false;
        loop {
            let before = self.world.counters();
            while self.hear()? > 0 {}
            if self.lost.is_some() && !looking {
                looking = true;
                self.rescan();
            }
            self.look(true)?;
            while Instant::now() < deadline && self.go_through()? {}
            let after = self.world.counters();
            let nothing_new = after.seen == before.seen && after.accounted == after.seen;
            let told = nothing_new && self.hear()? == 0 && (looking || self.lost.is_none());
            if told && self.scans.is_empty() && self.pending.is_looked_at() {
                return Ok(self.unreadable.is_empty());
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
        }
    }

    /// Looks for an instant in which nothing changed and nothing was about to: between the first and the last look at the
    /// counters. Changes are told before they are made, so there was none then.
    fn quiet(&mut self) -> Result<(Timestamp, PointClass), TreeError> {
        let begun = Instant::now();
        loop {
            let (time, before) = (realtime(), self.world.counters());
            while self.hear()? > 0 {}
            self.look(true)?;
            while self.go_through()? {}
            let heard = self.hear()?;
            let after = self.world.counters();
            let quiet = heard == 0 && after.seen == before.seen && after.accounted == after.seen;
            if quiet
                && self.scans.is_empty()
                && self.pending.is_quiet()
                && self.lost.is_none()
                && self.unreadable.is_empty()
            {
                self.completes();
                return Ok((time, PointClass::Crash));
            }
            if begun.elapsed() > QUIET_WAIT {
                return Ok((time, PointClass::Fuzzy));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn write_mark(
        &mut self,
        label: &str,
        class: PointClass,
        time: Timestamp,
        frozen: Option<Duration>,
    ) -> Result<MarkMade, TreeError> {
        let id = self.writer.next_mark();
        let mark = Mark { id, class, label: label.to_owned() };
        let lsn: Lsn = self.writer.append(time, RecordBody::Mark(mark))?;
        self.writer.sync()?;
        self.catalog.mark();
        Ok(MarkMade { point: Point { id, class, lsn, time, label: label.to_owned() }, frozen })
    }

    /// Noted, to be looked at again before the next mark.
    pub(super) fn note_unsettled(&mut self, change: &TreeChange) {
        if let TreeChange::Inode { node, source, .. } = change
            && source.changed.seconds == 0
        {
            self.unsettled.insert(*node);
        }
    }
}

fn why(answer: &Freezing) -> String {
    match answer {
        Freezing::Failed(what) => what.clone(),
        Freezing::Thawed { held: false } => "the freeze ran out of time".into(),
        Freezing::Thawed { held: true } | Freezing::Frozen => "the freezer answered out of turn".into(),
    }
}
