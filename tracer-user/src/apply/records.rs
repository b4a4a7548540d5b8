use crate::apply::ApplyError;
use crate::apply::hash_list::KeptHashes;
use crate::journal::{Journal, JournalError, Leg, Way};
use crate::model::{ByteRangeSet, Lsn, Record, RecordBody};
use crate::target::{Coalescer, TargetWriter};

/// How far an `apply` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplyProgress {
    /// Records read so far.
    pub records: u64,
    /// Bytes of Data records so far.
    pub data_bytes: u64,
    /// Bytes of Data, Zero and Discard records so far.
    pub content_bytes: u64,
}

/// What an `apply` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApplyStats {
    pub records: u64,
    /// Bytes of Data records, also of those that later ones overwrote.
    pub data_bytes: u64,
    /// Bytes of Zero and Discard records.
    pub zero_bytes: u64,
    /// Bytes written to the target; zeros not counted.
    pub written_bytes: u64,
    /// Bytes zeroed on the target.
    pub zeroed_bytes: u64,
    /// Every byte that is defined by the records applied.
    pub covered: ByteRangeSet,
}

impl ApplyStats {
    /// Adds what another apply did.
    pub fn add(&mut self, other: &ApplyStats) {
        self.records += other.records;
        self.data_bytes += other.data_bytes;
        self.zero_bytes += other.zero_bytes;
        self.written_bytes += other.written_bytes;
        self.zeroed_bytes += other.zeroed_bytes;
        self.covered.extend(&other.covered);
    }
}

/// Goes a way of the journal from its beginning. Does not sync the target. Going it again is harmless as long as it ends at the
/// same or a later record than before.
///
/// # Errors
/// When the journal is damaged or ends before, or was pruned meanwhile, or the target cannot be written: it then holds a part
/// of the records.
pub fn apply(
    journal: &Journal,
    target: &mut TargetWriter,
    way: &Way,
    progress: &mut dyn FnMut(ApplyProgress),
) -> Result<ApplyStats, ApplyError> {
    let mut stats = ApplyStats::default();
    for leg in &way.legs {
        let records = journal.leg_records(leg)?;
        let onto = Onto { target, hashes: &mut KeptHashes::none() };
        apply_some(records, onto, Span::of(leg), u64::MAX, &mut stats, progress)?;
    }
    Ok(stats)
}

/// The records after `from_exclusive` up to and including `to`.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) from_exclusive: Lsn,
    pub(super) to: Lsn,
}

impl Span {
    pub(super) fn of(leg: &Leg) -> Span {
        Span { from_exclusive: leg.records_after, to: leg.records_to }
    }
}

/// What records are applied to, and the list that has to know of it.
pub(super) struct Onto<'a> {
    pub(super) target: &'a mut TargetWriter,
    pub(super) hashes: &'a mut KeptHashes,
}

/// Applies until `to`, or until `content_bytes_max` bytes were read: returns the record it came to.
pub(super) fn apply_some(
    records: impl Iterator<Item = Result<Record, JournalError>>,
    mut onto: Onto<'_>,
    span: Span,
    content_bytes_max: u64,
    stats: &mut ApplyStats,
    progress: &mut dyn FnMut(ApplyProgress),
) -> Result<Lsn, ApplyError> {
    let mut coalescer = Coalescer::default();
    let mut last = span.from_exclusive;
    let mut content_bytes = 0;
    for record in records {
        let record = record?;
        let wanted = last.next();
        if record.lsn != wanted {
            return Err(ApplyError::OutOfOrder { found: record.lsn, wanted });
        }
        last = record.lsn;
        stats.records += 1;
        content_bytes += take(record, onto.target, &mut coalescer, stats)?;
        if coalescer.is_full() {
            flush(&mut coalescer, &mut onto, stats)?;
            let content_bytes = stats.data_bytes + stats.zero_bytes;
            progress(ApplyProgress { records: stats.records, data_bytes: stats.data_bytes, content_bytes });
        }
        if last == span.to || content_bytes >= content_bytes_max {
            break;
        }
    }
    if last < span.to && content_bytes < content_bytes_max {
        return Err(ApplyError::JournalEnds { last, wanted: span.to });
    }
    flush(&mut coalescer, &mut onto, stats)?;
    let content_bytes = stats.data_bytes + stats.zero_bytes;
    progress(ApplyProgress { records: stats.records, data_bytes: stats.data_bytes, content_bytes });
    Ok(last)
}

/// Returns the bytes of the volume the record speaks of.
fn take(
    record: Record,
    target: &TargetWriter,
    coalescer: &mut Coalescer,
    stats: &mut ApplyStats,
) -> Result<u64, ApplyError> {
    let Some(range) = record.body.content_range() else { return Ok(0) };
    // Checked here, where the record is known, and not only when it is flushed.
    target.check_range(range).map_err(|source| ApplyError::Record { lsn: record.lsn, source })?;
    match record.body {
        RecordBody::Data { start, bytes } => {
            stats.data_bytes += range.len();
            coalescer.write(start, bytes);
        }
        RecordBody::Zero(_) | RecordBody::Discard(_) => {
            stats.zero_bytes += range.len();
            coalescer.zero(range, matches!(record.body, RecordBody::Discard(_)));
        }
        RecordBody::Mark(_) | RecordBody::Gap(_) | RecordBody::Origin(_) | RecordBody::Tree(_) => {}
    }
    Ok(range.len())
}

fn flush(coalescer: &mut Coalescer, onto: &mut Onto<'_>, stats: &mut ApplyStats) -> Result<(), ApplyError> {
    coalescer.flush(|op| {
        stats.covered.insert(op.range());
        match op.bytes() {
            Some(bytes) => stats.written_bytes += bytes.len() as u64,
            None => stats.zeroed_bytes += op.range().len(),
        }
        onto.hashes.touch(op);
        onto.target.put(op)
    })?;
    Ok(())
}
