//! The two threads right of the collector: the journal's, which owns the writer, and the applier's, which owns the replica.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::apply::Replica;
use crate::collect::{Entry, MarkDone};
use crate::journal::{Journal, Writer};
use crate::model::{Lsn, Mark, Point, RecordBody, Timestamp};
use crate::service::progress::SharedProgress;

const TICK: Duration = Duration::from_millis(100);

/// Appends what comes, makes marks durable and says so; ends when the collector has.
pub fn run_journal(mut writer: Writer, entries: &Receiver<Entry>, progress: &Arc<SharedProgress>) {
    let result = append_all(&mut writer, entries, progress);
    match result {
        Ok(()) => progress.update(|p| p.journal_ended = true),
        Err(error) => progress.fail(error),
    }
}

fn append_all(
    writer: &mut Writer,
    entries: &Receiver<Entry>,
    progress: &Arc<SharedProgress>,
) -> anyhow::Result<()> {
    let mut ticked = Instant::now();
    loop {
        match entries.recv_timeout(TICK) {
            Ok(Entry::Records { time, bodies }) => {
                for body in bodies {
                    writer.append(time, body)?;
                }
            }
            Ok(Entry::Mark { time, mark, frozen_ms, reply }) => {
                let point = append_mark(writer, time, mark)?;
                publish(writer, progress, Some(&point));
                // Who asked may have gone.
                reply.map(|reply| reply.try_send(Ok(MarkDone { point, frozen_ms })));
            }
            Err(RecvTimeoutError::Timeout) => writer.flush()?,
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if ticked.elapsed() >= TICK {
            ticked = Instant::now();
            writer.tick(ticked)?;
            publish(writer, progress, None);
        }
    }
    writer.sync()?;
    publish(writer, progress, None);
    Ok(())
}

fn append_mark(writer: &mut Writer, time: Timestamp, mark: Mark) -> anyhow::Result<Point> {
    let (id, class, label) = (mark.id, mark.class, mark.label.clone());
    let lsn = writer.append(time, RecordBody::Mark(mark))?;
    writer.sync()?;
    Ok(Point { id, class, lsn, time, label })
}

fn publish(writer: &Writer, progress: &Arc<SharedProgress>, mark: Option<&Point>) {
    progress.update(|p| {
        p.durable = writer.durable();
        p.journal_bytes = writer.bytes_written();
        if let Some(mark) = mark {
            p.last_mark = Some(mark.clone());
            if mark.class.restorable() {
                p.restorable = Some(mark.clone());
            }
        }
    });
}

/// Brings the replica to each restorable mark once that is durable; until there is a first one (the baseline), along with
/// the journal.
pub fn run_applier(mut replica: Replica, journal: &Journal, progress: &Arc<SharedProgress>) {
    loop {
        let (goal, mark, ended) = {
            let p = progress.wait(TICK * 2);
            if p.failure.is_some() {
                return;
            }
            let goal = p.restorable.as_ref().map_or(p.durable, |mark| mark.lsn);
            (goal, p.restorable.clone(), p.journal_ended)
        };
        if goal > replica.checkpoint().applied {
            if let Err(error) = advance(&mut replica, journal, goal, mark.as_ref(), progress) {
                progress.fail(error);
                return;
            }
        } else if ended {
            return;
        }
    }
}

/// One step of the applier, also used before the capture starts.
pub fn advance(
    replica: &mut Replica,
    journal: &Journal,
    goal: Lsn,
    mark: Option<&Point>,
    progress: &Arc<SharedProgress>,
) -> anyhow::Result<()> {
    let stats = replica.advance(journal, goal, mark).with_context(|| {
        format!("the replica could not be brought to record {goal}; start again to resume")
    })?;
    let checkpoint = replica.checkpoint();
    progress.update(|p| {
        p.applied = checkpoint.applied;
        p.consistent = checkpoint.consistent;
        p.replica_mark = mark.filter(|_| checkpoint.consistent).cloned();
        p.target_bytes += stats.written_bytes;
    });
    Ok(())
}
