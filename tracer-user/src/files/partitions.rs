//! Partitions of a volume: GPT and MBR.

use std::io::{self, Read, Seek, SeekFrom};

use gptman::GPT;

use crate::files::FsError;
use crate::files::volume::{Part, Volume};
use crate::model::ByteRange;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    pub number: u32,
    pub range: ByteRange,
}

/// The partitions of a volume; none where there is no table.
pub fn read(volume: &mut Part, sector_bytes: u32) -> Result<Vec<Partition>, FsError> {
    let mut cursor = Cursor { volume, at: 0, failed: None };
    let found = gpt(&mut cursor, sector_bytes).or_else(|| mbr(&mut cursor, sector_bytes)).unwrap_or_default();
    match cursor.failed {
        Some(error) => Err(error),
        None => Ok(found),
    }
}

pub fn describe(partitions: &[Partition]) -> String {
    let one = |partition: &Partition| {
        let size = bytesize::ByteSize(partition.range.len()).display().iec();
        format!("{} ({size})", partition.number)
    };
    match partitions.is_empty() {
        true => "none".to_owned(),
        false => partitions.iter().map(one).collect::<Vec<_>>().join(", "),
    }
}

fn gpt(cursor: &mut Cursor<'_>, sector_bytes: u32) -> Option<Vec<Partition>> {
    let gpt = GPT::read_from(cursor, sector_bytes.into()).ok()?;
    let used = gpt.iter().filter(|(_, its)| its.is_used());
    let range = |number, first, last: u64| partition(number, first, last.checked_add(1)?, sector_bytes);
    Some(used.filter_map(|(number, its)| range(number, its.starting_lba, its.ending_lba)).collect())
}

/// The four of an MBR. Those within an extended one are not looked for.
fn mbr(cursor: &mut Cursor<'_>, sector_bytes: u32) -> Option<Vec<Partition>> {
    const ENTRIES: std::ops::Range<usize> = 446..510;
    const ENTRY_LEN: usize = 16;
    const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
    let mut sector = [0; 512];
    cursor.seek(SeekFrom::Start(0)).ok()?;
    cursor.read_exact(&mut sector).ok()?;
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(sector[ENTRIES].chunks_exact(ENTRY_LEN)) {
        let number_at =
            |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        let (first, sectors) = (u64::from(number_at(8)), u64::from(number_at(12)));
        // The start of some file systems has the same signature.
        if entry[0] & 0x7f != 0 {
            return None;
        }
        if entry[4] != 0 && !EXTENDED.contains(&entry[4]) {
            let its = partition(number, first, first + sectors, sector_bytes)?;
            (its.range.end <= cursor.volume.size_bytes()).then(|| found.push(its))?;
        }
    }
    (sector[510..] == [0x55, 0xaa]).then_some(found)
}

fn partition(number: u32, first: u64, end: u64, sector_bytes: u32) -> Option<Partition> {
    let byte = |sector: u64| sector.checked_mul(sector_bytes.into());
    let (start, end) = (byte(first)?, byte(end)?);
    (start < end).then_some(Partition { number, range: ByteRange { start, end } })
}

/// A volume as what reads tables wants it.
struct Cursor<'a> {
    volume: &'a mut Part,
    at: u64,
    /// Why it could not be read.
    failed: Option<FsError>,
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.volume.size_bytes().saturating_sub(self.at);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if let Err(error) = self.volume.read_at(self.at, &mut buffer[..len]) {
            self.failed = Some(error);
            return Err(io::ErrorKind::Other.into());
        }
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.volume.size_bytes().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
