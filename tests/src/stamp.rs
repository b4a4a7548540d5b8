//! Sectors that say who wrote them, when and where; every byte of one follows from that.

use crate::Random;

pub const SECTOR_BYTES: usize = 512;
const MAGIC: u64 = 0x7370_6d61_7473_7741;
const HEAD_BYTES: usize = 40;

/// The head of a sector: all its other bytes are random numbers from this as the seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub writer: u32,
    /// Of the writer's operations.
    pub number: u64,
    /// When that was begun, see [`crate::Ticks`].
    pub tick: u64,
    /// Where it belongs: on the device, or in the file.
    pub sector: u64,
}

impl Stamp {
    /// The sector, 512 bytes.
    pub fn sector(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SECTOR_BYTES);
        for field in [MAGIC, u64::from(self.writer), self.number, self.tick, self.sector] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        let seed = blake3::hash(&bytes);
        let seed = u64::from_le_bytes(seed.as_bytes()[..8].try_into().expect("eight bytes"));
        bytes.extend_from_slice(&Random::new(seed).bytes(SECTOR_BYTES - HEAD_BYTES));
        bytes
    }

    /// Sectors from this one on, of the same operation.
    pub fn sectors(self, count: u64) -> Vec<u8> {
        let sector = |sector| Stamp { sector, ..self }.sector();
        (self.sector..self.sector + count).map(sector).collect::<Vec<_>>().concat()
    }

    /// Of a sector that is whole: a checksum could not say more than that each byte is what the head makes it.
    pub fn of(sector: &[u8]) -> Option<Stamp> {
        let field = |index: usize| {
            let bytes = sector.get(index * 8..index * 8 + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
        };
        let writer = u32::try_from(field(1)?).ok()?;
        let stamp = Stamp { writer, number: field(2)?, tick: field(3)?, sector: field(4)? };
        (field(0) == Some(MAGIC) && stamp.sector() == sector).then_some(stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_gives_its_stamp_and_with_any_byte_changed_none() {
        let stamp = Stamp { writer: 3, number: 70_000, tick: 9, sector: 12 };
        let sectors = stamp.sectors(2);
        assert_eq!(Stamp::of(&sectors[..512]), Some(stamp));
        assert_eq!(Stamp::of(&sectors[512..]), Some(Stamp { sector: 13, ..stamp }));
        for at in 0..SECTOR_BYTES {
            let mut changed = sectors[..512].to_vec();
            changed[at] ^= 1;
            assert_eq!(Stamp::of(&changed), None, "byte {at}");
        }
    }

    #[test]
    fn other_bytes_have_no_stamp() {
        for other in [&[0; 512][..], &[0xff; 512], &[0; 16]] {
            assert_eq!(Stamp::of(other), None);
        }
    }
}
