//! How segments are named, and how one follows on another. Pure.

use crate::journal::error::JournalError;
use crate::journal::format::SegmentHeader;
use crate::model::Lsn;

const SUFFIX: &str = ".awj";

/// `00000000000000000001.awj`: the first LSN in 20 digits, so that names sort as numbers.
pub fn segment_name(first: Lsn) -> String {
    format!("{:020}{SUFFIX}", first.0)
}

/// The first LSN a segment's name promises; None for any other file.
pub fn parse_segment_name(name: &str) -> Option<Lsn> {
    let digits = name.strip_suffix(SUFFIX)?;
    let plain = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|first| plain && *first > 0).map(Lsn)
}

/// The first LSNs of the segments among `names`, in order.
pub fn segments_among(names: &[String]) -> Vec<Lsn> {
    let mut firsts: Vec<Lsn> = names.iter().filter_map(|name| parse_segment_name(name)).collect();
    firsts.sort_unstable();
    firsts
}

/// What the next segment has to start with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub next_lsn: Lsn,
    pub hash: [u8; 32],
    /// The segment before, for messages.
    pub previous: String,
}

impl Chain {
    pub fn start() -> Chain {
        Chain { next_lsn: Lsn(1), hash: [0; 32], previous: "the start of the journal".to_owned() }
    }

    pub fn after(previous: Lsn, last: Lsn, hash: [u8; 32]) -> Chain {
        Chain { next_lsn: last.next(), hash, previous: segment_name(previous) }
    }

    /// Whether the segment named by `first` is the one that has to come.
    pub fn expect_name(&self, first: Lsn) -> Result<(), JournalError> {
        if first == self.next_lsn {
            return Ok(());
        }
        if first > self.next_lsn {
            return Err(JournalError::MissingSegment {
                missing: segment_name(self.next_lsn),
                found: segment_name(first),
            });
        }
        let what = format!("it starts before {} ends", self.previous);
        Err(JournalError::Damaged { segment: segment_name(first), offset: 0, what })
    }

    pub fn expect_header(&self, header: &SegmentHeader) -> Result<(), JournalError> {
        if header.previous == self.hash {
            return Ok(());
        }
        Err(JournalError::BrokenChain {
            segment: segment_name(header.first_lsn),
            offset: 48,
            previous: self.previous.clone(),
        })
    }
}
