use crate::apply::ApplyError;
use crate::apply::hash_list::KeptHashes;
use crate::journal::{JournalError, Leg, Wanted};
use crate::model::{ByteRange, ByteRangeSet, Lsn, Record, RecordBody};
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
}

impl ApplyStats {
    pub(super) fn progress(&self) -> ApplyProgress {
        let content_bytes = self.data_bytes + self.zero_bytes;
        ApplyProgress { records: self.records, data_bytes: self.data_bytes, content_bytes }
    }
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
    pub(super) only: Option<Only<'a>>,
}

/// Only what is wanted is applied; what records spoke of is taken out of `left`.
pub(super) struct Only<'a> {
    pub(super) wanted: &'a Wanted,
    pub(super) left: &'a mut ByteRangeSet,
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
        content_bytes += take(record, &mut onto, &mut coalescer, stats)?;
        if coalescer.is_full() {
            flush(&mut coalescer, &mut onto, stats)?;
            progress(stats.progress());
        }
        if last == span.to || content_bytes >= content_bytes_max {
            break;
        }
    }
    if last < span.to && content_bytes < content_bytes_max {
        return Err(ApplyError::JournalEnds { last, wanted: span.to });
    }
    flush(&mut coalescer, &mut onto, stats)?;
    progress(stats.progress());
    Ok(last)
}

/// Returns the bytes of the volume the record speaks of.
fn take(
    record: Record,
    onto: &mut Onto<'_>,
    coalescer: &mut Coalescer,
    stats: &mut ApplyStats,
) -> Result<u64, ApplyError> {
    let Some(range) = check(&record, onto.target)? else { return Ok(0) };
    match &mut onto.only {
        None => hold(record.body, coalescer, stats),
        Some(only) => {
            let parts: Vec<_> = only.wanted.overlapping(range).collect();
            parts.iter().for_each(|part| only.left.remove(*part));
            hold_parts(record.body, range, &parts, coalescer, stats);
        }
    }
    Ok(range.len())
}

/// The bytes of the volume the record speaks of. Checked here, where the record is known, and not only when it is flushed.
pub(super) fn check(record: &Record, target: &TargetWriter) -> Result<Option<ByteRange>, ApplyError> {
    let range = record.body.content_range();
    let fits = range.map_or(Ok(()), |range| target.check_range(range));
    fits.map_err(|source| ApplyError::Record { lsn: record.lsn, source })?;
    Ok(range)
}

/// Holds what is said of parts of `range`.
pub(super) fn hold_parts(
    body: RecordBody,
    range: ByteRange,
    parts: &[ByteRange],
    coalescer: &mut Coalescer,
    stats: &mut ApplyStats,
) {
    if parts == [range] {
        return hold(body, coalescer, stats);
    }
    for part in parts {
        let of_the_part = match &body {
            RecordBody::Data { start, bytes } => {
                let at = |byte: u64| usize::try_from(byte - start).expect("a part lies in its record");
                RecordBody::Data { start: part.start, bytes: bytes[at(part.start)..at(part.end)].to_vec() }
            }
            RecordBody::Discard(_) => RecordBody::Discard(*part),
            _ => RecordBody::Zero(*part),
        };
        hold(of_the_part, coalescer, stats);
    }
}

fn hold(body: RecordBody, coalescer: &mut Coalescer, stats: &mut ApplyStats) {
    match body {
        RecordBody::Data { start, bytes } => {
            stats.data_bytes += bytes.len() as u64;
            coalescer.write(start, bytes);
        }
        RecordBody::Zero(range) | RecordBody::Discard(range) => {
            stats.zero_bytes += range.len();
            coalescer.zero(range, matches!(body, RecordBody::Discard(_)));
        }
        RecordBody::Mark(_) | RecordBody::Gap(_) | RecordBody::Origin(_) | RecordBody::Tree(_) => {}
    }
}

pub(super) fn flush(
    coalescer: &mut Coalescer,
    onto: &mut Onto<'_>,
    stats: &mut ApplyStats,
) -> Result<(), ApplyError> {
    coalescer.flush(|op| {
        match op.bytes() {
            Some(bytes) => stats.written_bytes += bytes.len() as u64,
            None => stats.zeroed_bytes += op.range().len(),
        }
        onto.hashes.touch(op);
        onto.target.put(op)
    })?;
    Ok(())
}
