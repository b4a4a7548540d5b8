//! Back in time: bringing bytes of a target to what they were at an earlier record.

use crate::apply::records::{Onto, flush, take};
use crate::apply::{ApplyError, ApplyProgress, ApplyStats};
use crate::journal::{Journal, JournalError, Wanted, Way};
use crate::model::{ByteRange, Lsn, Record, RecordBody};
use crate::target::Coalescer;

/// What of the journal is read to go back.
pub(super) struct Ways {
    /// Its records speak of every byte that may have to be changed.
    over: Way,
    /// Its end is where to go.
    to: Way,
}

impl Ways {
    /// For a target that may hold any of the records after `from` up to `begun`, and all before, and is to hold those up to `to`.
    pub(super) fn between(journal: &Journal, from: Lsn, begun: Lsn, to: Lsn) -> Result<Ways, JournalError> {
        Ok(Ways { over: journal.way_over(from, begun)?, to: journal.way(Lsn::ZERO, to)? })
    }

    pub(super) fn are_current(&self, journal: &Journal) -> Result<bool, JournalError> {
        Ok(journal.is_current(&self.over)? && journal.is_current(&self.to)?)
    }
}

/// Does so. In memory are the ranges that are still to be found, for a part of the volume at a time if they are many. Does not
/// sync the target.
pub(super) fn restore(
    journal: &Journal,
    ways: &Ways,
    mut onto: Onto<'_>,
    stats: &mut ApplyStats,
    progress: &mut dyn FnMut(ApplyProgress),
) -> Result<(), ApplyError> {
    let mut window = ByteRange::new(0, onto.target.size_bytes());
    while !window.is_empty() {
        let mut wanted = Wanted::within(window);
        journal.want_touched(&ways.over, &mut wanted)?;
        let mut coalescer = Coalescer::default();
        let mut back = journal.back(&ways.to);
        while let Some(records) = back.next_part(&wanted)? {
            for record in records {
                let record = record?;
                stats.records += 1;
                let Some(range) = record.body.content_range() else { continue };
                for part in wanted.find(range) {
                    take(cut(&record, part), onto.target, &mut coalescer, stats)?;
                }
                if coalescer.is_full() {
                    flush(&mut coalescer, &mut onto, stats)?;
                }
            }
            progress(stats.progress());
            wanted.settle();
        }
        // No record up to there speaks of what is left.
        for range in wanted.iter() {
            coalescer.zero(range, true);
            if coalescer.is_full() {
                flush(&mut coalescer, &mut onto, stats)?;
            }
        }
        flush(&mut coalescer, &mut onto, stats)?;
        window.start = wanted.window().end;
    }
    Ok(())
}

/// What a record says of a part of its range.
fn cut(record: &Record, part: ByteRange) -> Record {
    let body = match &record.body {
        RecordBody::Data { start, bytes } => {
            let at = |byte: u64| usize::try_from(byte - start).expect("a part lies in its record");
            RecordBody::Data { start: part.start, bytes: bytes[at(part.start)..at(part.end)].to_vec() }
        }
        RecordBody::Discard(_) => RecordBody::Discard(part),
        _ => RecordBody::Zero(part),
    };
    Record { lsn: record.lsn, time: record.time, ordered: record.ordered, body }
}
