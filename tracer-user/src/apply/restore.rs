//! The state at a record without all that was overwritten before it: from the newest records on, each byte once.

use crate::apply::hash_list::KeptHashes;
use crate::apply::records::{Only, Onto, Span, apply_some, check, flush, hold_parts};
use crate::apply::{ApplyError, ApplyProgress, ApplyStats};
use crate::journal::{Journal, JournalError, Wanted, Way};
use crate::model::{ByteRange, ByteRangeSet, Lsn, Record};
use crate::target::{Coalescer, TargetWriter};

/// So many times the volume's bytes on a way make it worth to begin at its end.
const OVERWRITTEN_MIN: u64 = 2;

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
            find(records, &mut wanted, &mut onto, &mut coalescer, stats)?;
            progress(stats.progress());
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

/// Brings a target to the end of a way from nothing, whatever it holds; returns also which bytes no record speaks of, which
/// are left as they are. Does not sync the target.
///
/// A way along which much was written more than once is gone from its end, until all is found; or until what is not comes to many
/// ranges, then all records before are applied to these.
///
/// # Errors
/// When the journal is damaged or ends before, or was pruned meanwhile, or the target cannot be written: it then holds a part
/// of the records.
pub fn rebuild(
    journal: &Journal,
    target: &mut TargetWriter,
    way: &Way,
    progress: &mut dyn FnMut(ApplyProgress),
) -> Result<(ApplyStats, ByteRangeSet), ApplyError> {
    let mut stats = ApplyStats::default();
    let mut wanted = Wanted::all_of(ByteRange::new(0, target.size_bytes()));
    let record_bytes = journal.cost_of(way)?.record_bytes.unwrap_or(0);
    let mut back = journal.back(way);
    if record_bytes / target.size_bytes().max(1) >= OVERWRITTEN_MIN {
        let mut onto = Onto { target, hashes: &mut KeptHashes::none(), only: None };
        let mut coalescer = Coalescer::default();
        while !wanted.is_crowded()
            && let Some(records) = back.next_part(&wanted)?
        {
            find(records, &mut wanted, &mut onto, &mut coalescer, &mut stats)?;
            progress(stats.progress());
        }
        flush(&mut coalescer, &mut onto, &mut stats)?;
    }
    let mut left: ByteRangeSet = wanted.iter().collect();
    if wanted.is_empty() {
        return Ok((stats, left));
    }
    for leg in back.rest() {
        let records = journal.leg_records(&leg)?;
        let only = Some(Only { wanted: &wanted, left: &mut left });
        let onto = Onto { target, hashes: &mut KeptHashes::none(), only };
        apply_some(records, onto, Span::of(&leg), u64::MAX, &mut stats, progress)?;
    }
    Ok((stats, left))
}

/// Takes from a part of the journal what is wanted.
fn find(
    records: impl Iterator<Item = Result<Record, JournalError>>,
    wanted: &mut Wanted,
    onto: &mut Onto<'_>,
    coalescer: &mut Coalescer,
    stats: &mut ApplyStats,
) -> Result<(), ApplyError> {
    for record in records {
        let record = record?;
        stats.records += 1;
        let Some(range) = check(&record, onto.target)? else { continue };
        hold_parts(record.body, range, &wanted.find(range), coalescer, stats);
        if coalescer.is_full() {
            flush(coalescer, onto, stats)?;
        }
    }
    wanted.settle();
    Ok(())
}
