//! The two threads right of the collector: the journal's, which owns the writer, and the applier's, which owns the replica.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::apply::{ApplyError, Replica};
use crate::collect::{Acknowledged, Entry, MarkDone};
use crate::io::priority::{Work, claim};
use crate::journal::{Journal, JournalError, Writer};
use crate::model::{Lsn, Mark, Point, RecordBody, Timestamp};
use crate::service::progress::SharedProgress;

const TICK: Duration = Duration::from_millis(100);
/// A target that failed is tried again this soon.
const RETRY_TARGET: Duration = Duration::from_secs(2);
/// While nothing is applied, the target is looked at this often.
const LOOK_AT_TARGET: Duration = Duration::from_secs(10);
/// Hashed anew at each look that finds nothing to apply: 4 MiB, some 10 times a second.
const REFRESHED_GRANULES: usize = 64;

/// Appends what comes, makes marks durable and says so; ends when the collector has, or with its first error.
pub fn run_journal(
    mut writer: Writer,
    entries: &Receiver<Entry>,
    acknowledged: &Acknowledged,
    progress: &SharedProgress,
) -> Result<(), JournalError> {
    claim(Work::Steady);
    let mut ticked = Instant::now();
    // A journal that was opened anew counts from 0 again.
    let before = progress.get().journal_bytes;
    loop {
        match entries.recv_timeout(TICK) {
            Ok(Entry::Records { time, bodies }) => {
                for body in bodies {
                    writer.append(time, body)?;
                }
            }
            Ok(Entry::Ordered { records }) => {
                for (time, body) in records {
                    match body.content_range() {
                        Some(_) => writer.append_ordered(time, body)?,
                        None => writer.append(time, body)?,
                    };
                }
            }
            Ok(Entry::Origins { time, origins, ordered }) => {
                for body in origins.into_iter().map(RecordBody::Origin) {
                    match ordered {
                        true => writer.append_ordered(time, body)?,
                        false => writer.append(time, body)?,
                    };
                }
            }
            Ok(Entry::Mark { time, mark, frozen_ms, reply }) => {
                let point = append_mark(&mut writer, time, mark)?;
                publish(&writer, before, progress, Some(&point));
                if point.class.restorable() {
                    acknowledged.mark.store(point.id.0, Ordering::Release);
                }
                // Who asked may have gone.
                reply.map(|reply| reply.try_send(Ok(MarkDone { point, frozen_ms })));
            }
            Ok(Entry::Barrier(number)) => {
                writer.sync()?;
                acknowledged.barrier.store(number, Ordering::Release);
            }
            Err(RecvTimeoutError::Timeout) => writer.flush()?,
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if ticked.elapsed() >= TICK {
            ticked = Instant::now();
            writer.tick(ticked)?;
            publish(&writer, before, progress, None);
        }
    }
    writer.sync()?;
    publish(&writer, before, progress, None);
    Ok(())
}

fn append_mark(writer: &mut Writer, time: Timestamp, mark: Mark) -> Result<Point, JournalError> {
    let (id, class, label) = (mark.id, mark.class, mark.label.clone());
    let lsn = writer.append(time, RecordBody::Mark(mark))?;
    writer.sync()?;
    Ok(Point { id, class, lsn, time, label })
}

fn publish(writer: &Writer, before: u64, progress: &SharedProgress, mark: Option<&Point>) {
    progress.update(|p| {
        p.durable = writer.durable();
        p.journal_bytes = before + writer.bytes_written();
        if let Some(mark) = mark {
            p.marked(mark);
        }
    });
}

/// Brings the replica to each restorable mark once that is durable; until there is a first one (the baseline), along with
/// the journal. A target that fails is opened again until it works: the journal goes on without it.
pub fn run_applier(
    replica: Replica,
    open: impl Fn() -> Result<Replica, ApplyError>,
    journal: &Journal,
    progress: &SharedProgress,
) {
    claim(Work::Deferrable);
    let mut replica = Some(replica);
    let mut looked = Instant::now();
    loop {
        let (goal, mark, ended, rests) = {
            let p = progress.wait(TICK * 2);
            if p.failure.is_some() {
                return;
            }
            let goal = p.restorable.as_ref().map_or(p.durable, |mark| mark.lsn);
            (goal, p.restorable.clone(), p.journal_ended, p.paused.is_some() && p.applied >= goal)
        };
        if rests {
            // Its hash list is beside the journal: whoever has to unmount that disk must not wait for us.
            replica = None;
            continue;
        }
        let result = match &mut replica {
            Some(replica) if !replica.is_at(goal) => advance(replica, journal, goal, mark.as_ref(), progress),
            Some(replica) if ended => return replica.finish_hashes(),
            Some(replica) if looked.elapsed() >= LOOK_AT_TARGET => {
                looked = Instant::now();
                replica.look().map_err(anyhow::Error::from)
            }
            Some(replica) => {
                replica.refresh_hashes(REFRESHED_GRANULES);
                continue;
            }
            None => open().map(|opened| replica = Some(opened)).map_err(anyhow::Error::from),
        };
        match result {
            Ok(()) => progress.update(|p| p.target_error = None),
            // At the end nobody waits for it to heal.
            Err(error) if ended => return progress.fail(error),
            Err(error) => {
                // Until it is opened anew nobody knows what it holds.
                replica = None;
                let text = format!("{error:#}");
                let known = progress.get().target_error.as_ref() == Some(&text);
                if !known {
                    log::warn!("the target fails, the journal goes on without it: {text}");
                }
                progress.update(|p| {
                    p.target_error = Some(text);
                    p.consistent = false;
                });
                progress.wait_for_end(RETRY_TARGET);
            }
        }
    }
}

/// One step of the applier, also used before the capture starts. Somebody may have rewound the replica, to wherever.
pub fn advance(
    replica: &mut Replica,
    journal: &Journal,
    goal: Lsn,
    mark: Option<&Point>,
    progress: &SharedProgress,
) -> anyhow::Result<()> {
    let stats = replica.go_to(journal, goal, mark, &mut |_| {}).with_context(|| {
        format!("the replica could not be brought to record {goal}; start again to resume")
    })?;
    let checkpoint = replica.checkpoint();
    progress.update(|p| {
        p.applied_to(checkpoint.applied);
        p.consistent = checkpoint.consistent;
        p.replica_mark = mark.filter(|_| checkpoint.consistent).cloned();
        p.target_bytes += stats.written_bytes;
    });
    Ok(())
}
