//! The hash list as bytes: see docs/FORMAT.md. Pure: no clock, no I/O.
//!
//! Decoding goes in one order: enough bytes, magic, version, lengths within their caps, checksum, fields. An entry that
//! is not right is an unknown one, whatever is wrong with it: the replica itself can always be read instead.

use serde::{Deserialize, Serialize};

use crate::model::{GranuleHash, Granules, VolumeId};

pub const VERSION: u16 = 1;
pub const HEADER_LEN: usize = 128;
pub const ENTRY_LEN: usize = 32;
/// Where the first entry is: the header has a page of its own, so that no write of entries can tear it.
pub const ENTRIES_START: u64 = 4096;
/// A volume of more has no list. The writer needs a bit of memory for each.
pub const GRANULES_MAX: u64 = 1 << 32;

const MAGIC: [u8; 8] = *b"AWhashs\x01";

const _: () = assert!(96 + 28 + 4 == HEADER_LEN && GranuleHash::LEN + 4 == ENTRY_LEN);
const _: () =
    assert!(512 % ENTRY_LEN == 0 && ENTRIES_START.is_multiple_of(512), "no entry straddles a sector");

/// Which list it is: random, made with the list. The checkpoint names the only one that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HashListId(pub u64);

/// Why bytes are no header of a hash list that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Too few bytes, no magic, an absurd length or a wrong checksum.
    Damaged(&'static str),
    Version(u16),
    Features(u32),
    /// The checksum holds, and a field can't be.
    Malformed(&'static str),
}

/// The first 128 bytes of the file. They never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashListHeader {
    pub volume: VolumeId,
    pub id: HashListId,
    pub granules: Granules,
    /// BLAKE3 of the target's identity.
    pub target: [u8; 32],
}

impl HashListHeader {
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&(HEADER_LEN as u16).to_le_bytes());
        // 12..16: required features, none so far.
        out[16..32].copy_from_slice(&self.volume.0);
        out[32..40].copy_from_slice(&self.id.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.granules.volume_bytes().to_le_bytes());
        out[48..56].copy_from_slice(&self.granules.granule_bytes().to_le_bytes());
        out[64..96].copy_from_slice(&self.target);
        let crc = crc32c::crc32c(&out[..124]);
        out[124..128].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<HashListHeader, HeaderError> {
        let bytes = bytes.first_chunk::<HEADER_LEN>().ok_or(HeaderError::Damaged("its header is cut"))?;
        if bytes[0..8] != MAGIC {
            return Err(HeaderError::Damaged("it does not begin as a hash list"));
        }
        match u16::from_le_bytes(part(bytes, 8)) {
            VERSION => {}
            version => return Err(HeaderError::Version(version)),
        }
        if usize::from(u16::from_le_bytes(part(bytes, 10))) != HEADER_LEN {
            return Err(HeaderError::Damaged("its header has a wrong length"));
        }
        if u32::from_le_bytes(part(bytes, 124)) != crc32c::crc32c(&bytes[..124]) {
            return Err(HeaderError::Damaged("its header has a wrong checksum"));
        }
        match u32::from_le_bytes(part(bytes, 12)) {
            0 => {}
            features => return Err(HeaderError::Features(features)),
        }
        if bytes[56..64] != [0; 8] || bytes[96..124] != [0; 28] {
            return Err(HeaderError::Malformed("something in reserved bytes"));
        }
        let volume_bytes = u64::from_le_bytes(part(bytes, 40));
        if volume_bytes > 1 << 63 {
            return Err(HeaderError::Malformed("a volume of more than 2^63 bytes"));
        }
        let granules = Granules::new(volume_bytes, u64::from_le_bytes(part(bytes, 48)))
            .ok_or(HeaderError::Malformed("an impossible granule"))?;
        if granules.count() > GRANULES_MAX {
            return Err(HeaderError::Malformed("too many granules"));
        }
        Ok(HashListHeader {
            volume: VolumeId(part(bytes, 16)),
            id: HashListId(u64::from_le_bytes(part(bytes, 32))),
            granules,
            target: part(bytes, 64),
        })
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        entry_start(self.granules.count())
    }

    /// The entry of granule `index` that says `hash`.
    pub fn encode_entry(&self, index: u64, hash: GranuleHash) -> [u8; ENTRY_LEN] {
        let mut out = [0; ENTRY_LEN];
        out[..GranuleHash::LEN].copy_from_slice(&hash.0);
        out[GranuleHash::LEN..].copy_from_slice(&self.entry_crc(index, &hash.0).to_le_bytes());
        out
    }

    /// What the entry of granule `index` says; `None` is unknown: all zeros, torn, or of another granule or list.
    pub fn decode_entry(&self, index: u64, entry: &[u8; ENTRY_LEN]) -> Option<GranuleHash> {
        let hash: [u8; GranuleHash::LEN] = part(entry, 0);
        let right = u32::from_le_bytes(part(entry, GranuleHash::LEN)) == self.entry_crc(index, &hash);
        (right && *entry != [0; ENTRY_LEN]).then_some(GranuleHash(hash))
    }

    /// What consecutive entries say, the first of them that of granule `first`. Left-over bytes are ignored.
    pub fn decode_entries(&self, first: u64, bytes: &[u8]) -> Vec<Option<GranuleHash>> {
        let (entries, _) = bytes.as_chunks::<ENTRY_LEN>();
        let index_of = |number: usize| first.wrapping_add(number as u64);
        entries.iter().enumerate().map(|(number, entry)| self.decode_entry(index_of(number), entry)).collect()
    }

    /// Over the list too: blocks that a list removed before has left on the disk are not this one's.
    fn entry_crc(&self, index: u64, hash: &[u8]) -> u32 {
        let seed = crc32c::crc32c_append(crc32c::crc32c(&self.volume.0), &self.id.0.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c_append(seed, &index.to_le_bytes()), hash)
    }
}

/// Where the entry of granule `index` is.
pub fn entry_start(index: u64) -> u64 {
    ENTRIES_START + index * ENTRY_LEN as u64
}

/// `N` bytes from `at`; the callers' offsets are constants within fixed lengths.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("a field within a fixed length")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> HashListHeader {
        HashListHeader {
            volume: VolumeId([3; 16]),
            id: HashListId(0x1122_3344_5566_7788),
            granules: Granules::new(300_000, 65_536).unwrap(),
            target: [9; 32],
        }
    }

    fn with_crc(mut bytes: [u8; HEADER_LEN]) -> [u8; HEADER_LEN] {
        let crc = crc32c::crc32c(&bytes[..124]);
        bytes[124..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn the_header_is_read_as_it_was_written() {
        assert_eq!(HashListHeader::decode(&header().encode()), Ok(header()));
        assert_eq!(header().file_bytes(), 4096 + 5 * 32);
    }

    /// As written by version 1: a change of these bytes needs a new version.
    #[test]
    fn the_bytes_of_version_1_are_still_read() {
        let golden = "41576861736873010100800000000000030303030303030303030303030303038877665544332211e09304000000000000\
                      00010000000000000000000000000009090909090909090909090909090909090909090909090909090909090909090000\
                      0000000000000000000000000000000000000000000000000000";
        let hex: String = header().encode()[..124].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden);
        let entry = header().encode_entry(3, GranuleHash([5; 28]));
        assert_eq!(u32::from_le_bytes(part(&header().encode(), 124)), 0x87f1_94dd);
        assert_eq!(u32::from_le_bytes(part(&entry, 28)), 0x6b0f_f196);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_of_the_header_is_noticed() {
        let whole = header().encode();
        for len in 0..HEADER_LEN {
            assert!(matches!(HashListHeader::decode(&whole[..len]), Err(HeaderError::Damaged(_))));
        }
        for at in 0..HEADER_LEN {
            for bit in 0..8 {
                let mut bytes = whole;
                bytes[at] ^= 1 << bit;
                HashListHeader::decode(&bytes).unwrap_err();
            }
        }
    }

    #[test]
    fn what_a_later_version_wrote_is_told_from_damage() {
        let mut later = header().encode();
        later[8] = 2;
        assert_eq!(HashListHeader::decode(&with_crc(later)), Err(HeaderError::Version(2)));
        let mut features = header().encode();
        features[13] = 1;
        assert_eq!(HashListHeader::decode(&with_crc(features)), Err(HeaderError::Features(256)));
        for at in [48, 47, 60, 100] {
            let mut malformed = header().encode();
            malformed[at] = 0xff;
            let error = HashListHeader::decode(&with_crc(malformed)).unwrap_err();
            assert!(matches!(error, HeaderError::Malformed(_)), "byte {at}: {error:?}");
        }
    }

    #[test]
    fn an_entry_counts_in_its_place_in_its_list_only() {
        let hash = GranuleHash::of(b"content");
        let entry = header().encode_entry(7, hash);
        assert_eq!(header().decode_entry(7, &entry), Some(hash));
        assert_eq!(header().decode_entry(8, &entry), None);
        let others = [
            HashListHeader { volume: VolumeId([4; 16]), ..header() },
            HashListHeader { id: HashListId(1), ..header() },
        ];
        assert!(others.iter().all(|other| other.decode_entry(7, &entry).is_none()));
        assert_eq!(header().decode_entry(7, &[0; ENTRY_LEN]), None);
        assert_eq!(header().decode_entry(7, &[0xff; ENTRY_LEN]), None);
    }

    proptest! {
        #[test]
        fn a_torn_or_flipped_entry_is_unknown(old: [u8; 32], new: [u8; 32], cut in 1usize..32, bit in 0usize..256) {
            let [old, new] = [old, new].map(|bytes| header().encode_entry(5, GranuleHash::of(&bytes)));
            let mut torn = old;
            torn[..cut].copy_from_slice(&new[..cut]);
            prop_assert!(torn == old || torn == new || header().decode_entry(5, &torn).is_none());
            let mut cleared = old;
            cleared[..cut].fill(0);
            prop_assert!(cleared == old || header().decode_entry(5, &cleared).is_none());
            let mut flipped = new;
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(header().decode_entry(5, &flipped).is_none());
        }

        #[test]
        fn any_bytes_are_taken_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..300), right: bool) {
            if right && bytes.len() >= HEADER_LEN {
                bytes[..12].copy_from_slice(&header().encode()[..12]);
                let crc = crc32c::crc32c(&bytes[..124]);
                bytes[124..128].copy_from_slice(&crc.to_le_bytes());
            }
            if let Ok(decoded) = HashListHeader::decode(&bytes) {
                prop_assert!(decoded.encode() == bytes[..HEADER_LEN]);
                decoded.file_bytes();
            }
            header().decode_entries(u64::MAX - 3, &bytes);
        }
    }
}
