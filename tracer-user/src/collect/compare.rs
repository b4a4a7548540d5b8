//! Comparing the source with the replica's hashes, which need not be read from its disk. Pure.

use crate::collect::ReplicaHashes;
use crate::model::{ByteRange, ByteRangeSet, GranuleHash};

/// Where `bytes`, which the source holds in `range`, may differ from the replica: all of it but the whole granules that
/// have the replica's hash.
pub fn suspects(range: ByteRange, bytes: &[u8], hashes: &dyn ReplicaHashes) -> ByteRangeSet {
    let granules = hashes.granules();
    let covered = granules.covered(range);
    let mut suspects: ByteRangeSet = [range].into_iter().collect();
    for (index, known) in covered.clone().zip(hashes.hashes(covered)) {
        let granule = granules.range(index);
        // A covered granule lies in the bytes.
        let at = |byte: u64| (byte - range.start) as usize;
        let same = |known| known == GranuleHash::of(&bytes[at(granule.start)..at(granule.end)]);
        if known.is_some_and(same) {
            suspects.remove(granule);
        }
    }
    suspects
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Granules;
    use proptest::prelude::*;
    use std::ops::Range;

    /// A replica of which some granules are known.
    struct Known {
        granules: Granules,
        bytes: Vec<u8>,
        known: Vec<bool>,
    }

    impl ReplicaHashes for Known {
        fn granules(&self) -> Granules {
            self.granules
        }

        fn hashes(&self, granules: Range<u64>) -> Vec<Option<GranuleHash>> {
            let hash = |index| {
                let range = self.granules.range(index);
                GranuleHash::of(&self.bytes[range.start as usize..range.end as usize])
            };
            granules.map(|index| self.known[index as usize].then(|| hash(index))).collect()
        }
    }

    proptest! {
        #[test]
        fn what_differs_is_suspect_and_known_whole_granules_that_do_not_are_not(
            changes in prop::collection::btree_set(0usize..100_000, 0..6),
            known in prop::collection::vec(any::<bool>(), 25),
            start in 0u64..100_000,
            len in 0u64..100_000,
        ) {
            let replica = vec![7; 100_000];
            let mut source = replica.clone();
            changes.iter().for_each(|at| source[*at] = 8);
            let granules = Granules::new(100_000, 4096).unwrap();
            let hashes = Known { granules, bytes: replica, known };
            let range = ByteRange::new(start, (start + len).min(100_000).max(start));
            let bytes = &source[range.start as usize..range.end as usize];
            let found = suspects(range, bytes, &hashes);
            for index in 0..granules.count() {
                let granule = granules.range(index);
                let Some(part) = granule.intersect(range) else { continue };
                let same = !changes.iter().any(|at| granule.start <= *at as u64 && (*at as u64) < granule.end);
                let spared = hashes.known[index as usize] && part == granule && same;
                prop_assert_eq!(found.overlapping(part).map(ByteRange::len).sum::<u64>(), if spared { 0 } else { part.len() });
            }
            prop_assert!(found.iter().all(|suspect| suspect.intersect(range) == Some(suspect)));
        }
    }
}
