//! What a cache says of a saved file: pure, see docs/FORMAT.md.

use crate::io::fiemap::Extent;
use crate::model::FileTime;

/// More extents of one file are not recorded.
pub const EXTENTS_MAX: usize = 65_536;
const EXTENT_BYTES: usize = 28;
/// Of handles (MAX_HANDLE_SZ and the type) and of paths (PATH_MAX).
const NAME_BYTES_MAX: usize = 4096;
/// No record is longer.
pub const RECORD_BYTES_MAX: usize = EXTENTS_MAX * EXTENT_BYTES + 3 * NAME_BYTES_MAX + 256;

const KIND_MAP: u8 = 1;
const KIND_HEARD: u8 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Map(MapRecord),
    /// Of all that was saved before this time of day, in nanoseconds, there is a record.
    Heard {
        until_ns: u64,
    },
}

/// Where a file lay when it was saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapRecord {
    /// Of this record; grows.
    pub number: u64,
    /// Of the record that was made of the save; this one, or an earlier one that was made when not all blocks were allocated.
    pub save: u64,
    pub why: Why,
    /// Not all of its extents are here.
    pub truncated: bool,
    /// Time of day at which the save was heard of.
    pub saved_ns: u64,
    pub inode: u64,
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub modified: FileTime,
    pub changed: FileTime,
    /// The file's, and that of the directory it was in: see `tree::inode::handle_of`.
    pub handle: Vec<u8>,
    pub dir: Vec<u8>,
    /// Below the watched directory, at the time of the save.
    pub path: Vec<u8>,
    pub extents: Vec<Extent>,
}

/// How a save was heard of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// Closed after it had been open for writing.
    #[default]
    Close,
    /// It got this name, with its content.
    Rename,
    /// Found by its times, as nobody had been told.
    Rescan,
    /// Blocks were allocated since it was saved.
    Settled,
    /// Brought to its disk by fsync, fdatasync, msync or a write that is synced.
    Fsync,
}

impl MapRecord {
    pub fn is_unsettled(&self) -> bool {
        self.extents.iter().any(Extent::is_unsettled)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("it ends in the middle")]
    Short,
    #[error("it has {0} bytes too many")]
    Long(usize),
    #[error("it is of kind {0}, which this version does not know; use a newer afterwrite")]
    Kind(u8),
    #[error("its {0} is not one that is written")]
    Field(&'static str),
}

impl Record {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        match self {
            Record::Heard { until_ns } => {
                out.push(KIND_HEARD);
                out.extend(until_ns.to_le_bytes());
            }
            Record::Map(map) => {
                out.extend([KIND_MAP, map.why.code(), u8::from(map.truncated)]);
                for number in [map.number, map.save, map.saved_ns, map.inode, map.size] {
                    out.extend(number.to_le_bytes());
                }
                for number in [map.mode, map.uid, map.gid] {
                    out.extend(number.to_le_bytes());
                }
                for time in [map.modified, map.changed] {
                    out.extend(time.seconds.to_le_bytes());
                    out.extend(time.nanos.to_le_bytes());
                }
                for bytes in [&map.handle, &map.dir, &map.path] {
                    let len = u16::try_from(bytes.len()).expect("at most NAME_BYTES_MAX, see MapRecord");
                    out.extend(len.to_le_bytes());
                    out.extend(bytes);
                }
                let count = u32::try_from(map.extents.len()).expect("at most EXTENTS_MAX");
                out.extend(count.to_le_bytes());
                for extent in &map.extents {
                    for number in [extent.offset, extent.physical, extent.length] {
                        out.extend(number.to_le_bytes());
                    }
                    out.extend(extent.flags.to_le_bytes());
                }
            }
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Record, RecordError> {
        let mut rest = Rest(bytes);
        let record = match rest.u8()? {
            KIND_HEARD => Record::Heard { until_ns: rest.u64()? },
            KIND_MAP => Record::Map(rest.map()?),
            kind => return Err(RecordError::Kind(kind)),
        };
        match rest.0.len() {
            0 => Ok(record),
            more => Err(RecordError::Long(more)),
        }
    }
}

impl Why {
    fn code(self) -> u8 {
        match self {
            Why::Close => 1,
            Why::Rename => 2,
            Why::Rescan => 3,
            Why::Settled => 4,
            Why::Fsync => 5,
        }
    }

    fn of(code: u8) -> Result<Why, RecordError> {
        [Why::Close, Why::Rename, Why::Rescan, Why::Settled, Why::Fsync]
            .into_iter()
            .find(|why| why.code() == code)
            .ok_or(RecordError::Field("reason"))
    }
}

/// What is not decoded yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(RecordError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(RecordError::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, RecordError> {
        self.array().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, RecordError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, RecordError> {
        self.array().map(u64::from_le_bytes)
    }

    fn time(&mut self) -> Result<FileTime, RecordError> {
        Ok(FileTime { seconds: self.array().map(i64::from_le_bytes)?, nanos: self.u32()? })
    }

    fn bytes(&mut self) -> Result<Vec<u8>, RecordError> {
        let len = usize::from(self.array().map(u16::from_le_bytes)?);
        if len > NAME_BYTES_MAX {
            return Err(RecordError::Field("length of a name"));
        }
        Ok(self.take(len)?.to_vec())
    }

    fn map(&mut self) -> Result<MapRecord, RecordError> {
        let why = Why::of(self.u8()?)?;
        let truncated = match self.u8()? {
            flag @ (0 | 1) => flag == 1,
            _ => return Err(RecordError::Field("flag")),
        };
        let mut map = MapRecord {
            why,
            truncated,
            number: self.u64()?,
            save: self.u64()?,
            saved_ns: self.u64()?,
            inode: self.u64()?,
            size: self.u64()?,
            mode: self.u32()?,
            uid: self.u32()?,
            gid: self.u32()?,
            modified: self.time()?,
            changed: self.time()?,
            handle: self.bytes()?,
            dir: self.bytes()?,
            path: self.bytes()?,
            extents: Vec::new(),
        };
        let count = self.u32()? as usize;
        if count > EXTENTS_MAX {
            return Err(RecordError::Field("number of extents"));
        }
        let mut extents = Rest(self.take(count * EXTENT_BYTES)?);
        for _ in 0..count {
            let (offset, physical, length) = (extents.u64()?, extents.u64()?, extents.u64()?);
            map.extents.push(Extent { offset, physical, length, flags: extents.u32()? });
        }
        Ok(map)
    }
}
