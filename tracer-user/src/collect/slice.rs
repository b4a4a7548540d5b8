//! From bytes read to records: runs of zeros become ranges.

use crate::model::{ByteRange, RecordBody};

const BLOCK: usize = 4096;
/// A shorter run of zeros stays in the data around it: it compresses to nothing, a record of its own would not.
const ZERO_RUN_BLOCKS_MIN: usize = 4;
const DATA_BYTES_MAX: usize = 1 << 20;

/// The records that say that the volume holds `bytes` from `start` on.
pub fn slice(start: u64, bytes: &[u8], discarded: bool) -> Vec<RecordBody> {
    let mut records = Vec::new();
    for (range, zero) in runs(bytes) {
        let on_volume = ByteRange::with_len(start + range.start as u64, range.len() as u64);
        match zero {
            true if discarded => records.push(RecordBody::Discard(on_volume)),
            true => records.push(RecordBody::Zero(on_volume)),
            false => records.extend(bytes[range].chunks(DATA_BYTES_MAX).zip(0u64..).map(|(piece, index)| {
                RecordBody::Data {
                    start: on_volume.start + index * DATA_BYTES_MAX as u64,
                    bytes: piece.to_vec(),
                }
            })),
        }
    }
    records
}

/// Cuts into maximal runs of zeros (long enough, or all there is) and of the rest.
fn runs(bytes: &[u8]) -> Vec<(std::ops::Range<usize>, bool)> {
    let mut runs: Vec<(std::ops::Range<usize>, bool)> = Vec::new();
    for (block, index) in bytes.chunks(BLOCK).zip(0..) {
        let at = index * BLOCK..index * BLOCK + block.len();
        let zero = is_zero(block);
        match runs.last_mut() {
            Some((last, kind)) if *kind == zero => last.end = at.end,
            _ => runs.push((at, zero)),
        }
    }
    if runs.len() == 1 {
        return runs;
    }
    let mut merged: Vec<(std::ops::Range<usize>, bool)> = Vec::new();
    for (range, zero) in runs {
        let zero = zero && range.len() >= ZERO_RUN_BLOCKS_MIN * BLOCK;
        match merged.last_mut() {
            Some((last, false)) if !zero => last.end = range.end,
            _ => merged.push((range, zero)),
        }
    }
    merged
}

pub fn is_zero(bytes: &[u8]) -> bool {
    // SAFETY: any bytes are valid u128s.
    let (head, middle, tail) = unsafe { bytes.align_to::<u128>() };
    middle.iter().all(|word| *word == 0) && head.iter().chain(tail).all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_long_run_of_zeros_becomes_a_range() {
        let mut bytes = vec![1u8; 8 * BLOCK];
        bytes[BLOCK..5 * BLOCK].fill(0);
        let records = slice(100 * BLOCK as u64, &bytes, false);
        assert_eq!(records.len(), 3);
        assert_eq!(records[1], RecordBody::Zero(ByteRange::with_len(101 * BLOCK as u64, 4 * BLOCK as u64)));
    }

    #[test]
    fn a_discarded_range_that_reads_as_zeros_is_a_discard() {
        assert_eq!(slice(0, &[0; 512], true), [RecordBody::Discard(ByteRange::new(0, 512))]);
        assert!(matches!(slice(0, &[7; 512], true)[..], [RecordBody::Data { .. }]));
    }

    proptest! {
        #[test]
        fn the_records_say_exactly_the_bytes(blocks in prop::collection::vec(0u8..3, 1..40), tail in 0usize..BLOCK) {
            let mut bytes: Vec<u8> = blocks.iter().flat_map(|b| vec![b / 2; BLOCK]).collect();
            bytes.truncate(bytes.len() - tail / 512 * 512);
            let mut disk = vec![9u8; bytes.len()];
            let mut next = 4096;
            for record in slice(4096, &bytes, false) {
                let range = record.content_range().unwrap();
                prop_assert_eq!(range.start, next);
                next = range.end;
                let at = (range.start - 4096) as usize..(range.end - 4096) as usize;
                match record { RecordBody::Data { bytes, .. } => disk[at].copy_from_slice(&bytes), _ => disk[at].fill(0) }
            }
            prop_assert_eq!(disk, bytes);
        }
    }
}
