use std::ops::Range;

use crate::model::ByteRange;

/// A volume cut into pieces of one size, numbered from 0; the last may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granules {
    volume_bytes: u64,
    granule_bytes: u64,
}

/// The first 28 bytes of the BLAKE3 of a granule's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GranuleHash(pub [u8; GranuleHash::LEN]);

impl Granules {
    pub const BYTES_MIN: u64 = 4 << 10;
    pub const BYTES_MAX: u64 = 1 << 20;
    const BYTES_WANTED: u64 = 64 << 10;
    const COUNT_MAX: u64 = 1 << 24;

    /// 2^24 granules at most, of max(`bytes_min`, the next power of two of volume bytes / 2^24).
    pub fn at_least(bytes_min: u64, volume_bytes: u64) -> Granules {
        let share = volume_bytes.div_ceil(Granules::COUNT_MAX).next_power_of_two();
        Granules { volume_bytes, granule_bytes: share.max(bytes_min) }
    }

    /// Those of a hash list: 64 KiB at least, but 1 MiB at most, so that a piece of the scan always holds a whole one: 2^24
    /// granules at most up to 16 TiB, one a MiB above.
    pub fn of_volume(volume_bytes: u64) -> Granules {
        let Granules { volume_bytes, granule_bytes } =
            Granules::at_least(Granules::BYTES_WANTED, volume_bytes);
        Granules { volume_bytes, granule_bytes: granule_bytes.min(Granules::BYTES_MAX) }
    }

    /// `None` unless `granule_bytes` is a power of two within the bounds.
    pub const fn new(volume_bytes: u64, granule_bytes: u64) -> Option<Granules> {
        let allowed = granule_bytes.is_power_of_two()
            && granule_bytes >= Granules::BYTES_MIN
            && granule_bytes <= Granules::BYTES_MAX;
        if allowed { Some(Granules { volume_bytes, granule_bytes }) } else { None }
    }

    pub fn volume_bytes(self) -> u64 {
        self.volume_bytes
    }

    pub fn granule_bytes(self) -> u64 {
        self.granule_bytes
    }

    pub fn count(self) -> u64 {
        self.volume_bytes.div_ceil(self.granule_bytes)
    }

    /// The bytes of granule `index`, which is below `count`.
    pub fn range(self, index: u64) -> ByteRange {
        let start = index * self.granule_bytes;
        ByteRange::new(start, start.saturating_add(self.granule_bytes).min(self.volume_bytes))
    }

    /// The granules that have a byte in `range`.
    pub fn touched(self, range: ByteRange) -> Range<u64> {
        if range.is_empty() {
            return 0..0;
        }
        range.start / self.granule_bytes..range.end.div_ceil(self.granule_bytes)
    }

    /// The granules all of whose bytes are in `range`.
    pub fn covered(self, range: ByteRange) -> Range<u64> {
        let first = range.start.div_ceil(self.granule_bytes);
        let end = match range.end >= self.volume_bytes {
            true => self.count(),
            false => range.end / self.granule_bytes,
        };
        first..end.max(first)
    }
}

impl GranuleHash {
    pub const LEN: usize = 28;

    pub fn of(bytes: &[u8]) -> GranuleHash {
        let whole = blake3::hash(bytes);
        let first = whole.as_bytes().first_chunk().expect("a BLAKE3 has 32 bytes");
        GranuleHash(*first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn granules_grow_with_the_volume_up_to_a_mebibyte() {
        for (volume_bytes, granule_bytes) in [
            (0, 64 << 10),
            (1 << 40, 64 << 10),
            ((1 << 40) + 512, 128 << 10),
            (16 << 40, 1 << 20),
            (1 << 50, 1 << 20),
            (1 << 63, 1 << 20),
        ] {
            let granules = Granules::of_volume(volume_bytes);
            assert_eq!(granules.granule_bytes(), granule_bytes, "{volume_bytes}");
            assert_eq!(Granules::new(volume_bytes, granule_bytes), Some(granules));
        }
        for wrong in [0, 1, 2048, 65_537, 2 << 20, u64::MAX] {
            assert_eq!(Granules::new(1 << 30, wrong), None);
        }
    }

    #[test]
    fn a_bitmap_has_two_to_the_24_at_most() {
        for (volume_bytes, granule_bytes) in
            [(1 << 30, 64 << 10), (1 << 40, 64 << 10), ((1 << 40) + 1, 128 << 10), (1 << 50, 64 << 20)]
        {
            assert_eq!(Granules::at_least(64 << 10, volume_bytes).granule_bytes(), granule_bytes);
        }
    }

    proptest! {
        #[test]
        fn touched_and_covered_agree_with_every_granule(volume in 0u64..200_000, start in 0u64..200_000, len in 0u64..90_000) {
            let granules = Granules::new(volume, 4096).unwrap();
            let range = ByteRange::new(start.min(volume), (start + len).min(volume));
            for index in 0..granules.count() {
                let granule = granules.range(index);
                let common = granule.intersect(range);
                prop_assert_eq!(granules.touched(range).contains(&index), common.is_some());
                prop_assert_eq!(granules.covered(range).contains(&index), common == Some(granule));
            }
            let bytes: u64 = (0..granules.count()).map(|index| granules.range(index).len()).sum();
            prop_assert_eq!(bytes, volume);
        }
    }
}
