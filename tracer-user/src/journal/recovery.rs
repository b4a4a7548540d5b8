//! What invalid bytes mean: the decision table of docs/FORMAT.md. Pure: a function of what was read.

use crate::model::Lsn;

/// What is known around the first invalid frame of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameEvidence {
    /// Byte of the segment the invalid frame starts at.
    pub offset: u64,
    /// A segment with a higher first LSN exists.
    pub later_segment: bool,
    /// The file ends in a valid seal.
    pub sealed: bool,
    /// Highest `durable_end` among the valid frame headers behind `offset`; 0 without any.
    pub durable_end: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameVerdict {
    /// Never known to be durable: readers end here, recovery cuts here.
    TornTail,
    /// It was durable once, for this reason.
    Damage(&'static str),
}

pub fn judge_frame(evidence: FrameEvidence) -> FrameVerdict {
    let FrameEvidence { offset, later_segment, sealed, durable_end } = evidence;
    match (sealed, later_segment) {
        (true, _) => FrameVerdict::Damage("the segment is sealed"),
        (false, true) => FrameVerdict::Damage("a later segment exists, and this one has no valid seal"),
        (false, false) if durable_end > offset => {
            FrameVerdict::Damage("a later frame proves that it was durable")
        }
        (false, false) => FrameVerdict::TornTail,
    }
}

/// What is known about a segment whose header is incomplete or fails its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderEvidence {
    /// The journal's first segment: it was durable before `volume.toml` appeared.
    pub first: bool,
    pub later_segment: bool,
    /// A valid frame header or a seal behind the header: those are written only once the header is durable.
    pub content: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderVerdict {
    /// The power went while the file was created: readers ignore it, recovery removes it.
    HalfCreated,
    Damage(&'static str),
}

pub fn judge_header(evidence: HeaderEvidence) -> HeaderVerdict {
    let HeaderEvidence { first, later_segment, content } = evidence;
    match (first, later_segment, content) {
        (_, _, true) => HeaderVerdict::Damage("frames follow its header"),
        (_, true, false) => HeaderVerdict::Damage("a later segment exists"),
        (true, false, false) => {
            HeaderVerdict::Damage("the first segment is durable before the journal exists")
        }
        (false, false, false) => HeaderVerdict::HalfCreated,
    }
}

/// Bytes at the end of the open segment that were being written when the writer or the machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    pub segment: String,
    /// Byte of the segment the tail starts at; 0 when the segment itself was being created.
    pub offset: u64,
    pub bytes: u64,
}

/// What opening a journal for writing found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The torn tail that was cut off.
    pub cut: Option<TornTail>,
    /// The segment that was left open and is sealed now.
    pub closed: Option<String>,
    /// The last record there is; it is durable.
    pub last_lsn: Lsn,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_table_is_complete() {
        for later_segment in [false, true] {
            for sealed in [false, true] {
                for durable_end in [0, 999, 1000, 1001] {
                    let evidence = FrameEvidence { offset: 1000, later_segment, sealed, durable_end };
                    let cut = judge_frame(evidence) == FrameVerdict::TornTail;
                    assert_eq!(cut, !later_segment && !sealed && durable_end <= 1000, "{evidence:?}");
                }
            }
        }
    }

    #[test]
    fn the_header_table_is_complete() {
        for bits in 0..8 {
            let evidence =
                HeaderEvidence { first: bits & 1 != 0, later_segment: bits & 2 != 0, content: bits & 4 != 0 };
            assert_eq!(judge_header(evidence) == HeaderVerdict::HalfCreated, bits == 0, "{evidence:?}");
        }
    }
}
