//! The journal's thread, which owns the writer.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::collect::{Acknowledged, Entry, MarkDone};
use crate::io::priority::{Work, claim};
use crate::journal::{JournalError, Writer};
use crate::model::{Mark, Point, RecordBody, Timestamp};
use crate::service::progress::SharedProgress;

const TICK: Duration = Duration::from_millis(100);
/// While nothing waits to be written or synced; what comes is taken at once.
const TICK_IDLE: Duration = Duration::from_secs(2);

/// Appends what comes, makes marks durable and says so; ends when the collector has, or with its first error.
pub fn run_journal(
    mut writer: Writer,
    entries: &Receiver<Entry>,
    acknowledged: &Acknowledged,
    progress: &SharedProgress,
) -> Result<(), JournalError> {
    claim(Work::Steady);
    let mut ticked = Instant::now();
    let mut tick = TICK;
    // A journal that was opened anew counts from 0 again.
    let before = progress.get().journal_bytes;
    loop {
        let entry = entries.recv_timeout(tick);
        tick = TICK;
        match entry {
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
            Err(RecvTimeoutError::Timeout) => {
                writer.flush()?;
                tick = if writer.awaits_tick() { TICK } else { TICK_IDLE };
            }
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
