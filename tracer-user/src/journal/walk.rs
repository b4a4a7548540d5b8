//! Going through a segment frame by frame, the one way for readers, checks and recovery. Reads only.

use std::io;

use crate::io::store::Store;
use crate::journal::error::JournalError;
use crate::journal::folds::Folds;
use crate::journal::format::{
    Codec, FRAME_HEADER_LEN, FRAME_MAGIC, FormatError, FrameHeader, FrameKind, SEAL_LEN, SEGMENT_HEADER_LEN,
    Seal, Seed, SegmentHeader, Version,
};
use crate::journal::index::Index;
use crate::journal::recovery::{
    FrameEvidence, FrameVerdict, HeaderEvidence, HeaderVerdict, TornTail, judge_frame, judge_header,
};
use crate::journal::segment::{segment_name, segments_among};
use crate::model::{Lsn, VolumeId};

const SCAN_CHUNK_BYTES: usize = 1 << 20;

/// A place in a segment whose header was verified.
pub struct Walk {
    pub name: String,
    pub header: SegmentHeader,
    /// Where the next frame starts.
    pub offset: u64,
    /// The record the next frame has to start with.
    pub next_lsn: Lsn,
    /// The verified frame read last: header and stored payload.
    pub frame: Vec<u8>,
    seed: Seed,
    /// The file had this size at least.
    size: u64,
    /// Kept from frame to frame: making one costs more than a small frame.
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
}

pub enum Opened {
    Walk(Box<Walk>),
    /// The machine stopped while this segment was created: it holds nothing.
    HalfCreated(TornTail),
}

/// What comes next in a segment.
pub enum Step {
    /// A verified frame of records, in [`Walk::frame`].
    Records(FrameHeader),
    /// The end of a sealed segment. The index frame is in [`Walk::frame`].
    Sealed(Seal, Index),
    /// The end of the open segment.
    Open(Option<TornTail>),
}

enum Read {
    Frame(FrameHeader),
    EndOfFile,
    Bad(FormatError),
}

impl Walk {
    pub fn open<S: Store>(store: &S, volume: VolumeId, first: Lsn) -> Result<Opened, JournalError> {
        let name = segment_name(first);
        let seed = Seed::new(volume, first);
        let mut read_again = false;
        loop {
            let size = size_of(store, &name)?;
            let mut bytes = [0; SEGMENT_HEADER_LEN];
            let count = read_at(store, &name, 0, &mut bytes)?;
            let what = match SegmentHeader::decode(&bytes[..count]) {
                Ok(header) if header.volume != volume => {
                    return Err(JournalError::WrongVolume {
                        segment: name,
                        found: header.volume,
                        expected: volume,
                    });
                }
                Ok(header) if header.first_lsn != first => {
                    let what = format!("it is named for LSN {first}, but starts with {}", header.first_lsn);
                    return Err(JournalError::Damaged { segment: name, offset: 32, what });
                }
                Ok(header) => {
                    let offset = SEGMENT_HEADER_LEN as u64;
                    let frame = Vec::new();
                    let walk =
                        Walk { name, header, offset, next_lsn: first, frame, seed, size, decompressor: None };
                    return Ok(Opened::Walk(Box::new(walk)));
                }
                Err(FormatError::Torn(what)) => what,
                Err(error) => return Err(JournalError::at(&name, 0, error)),
            };
            let verdict = judge_header(HeaderEvidence {
                first: first == Lsn(1),
                later_segment: later_segment(store, first)?,
                content: seal_at_end(store, &name, seed)?.is_some()
                    || durable_end_behind(store, &name, seed, 0, 0)?.is_some(),
            });
            match verdict {
                HeaderVerdict::HalfCreated => {
                    return Ok(Opened::HalfCreated(TornTail { segment: name, offset: 0, bytes: size }));
                }
                // A writer may just have completed it.
                HeaderVerdict::Damage(_) if !read_again => read_again = true,
                HeaderVerdict::Damage(because) => {
                    let what = format!("{what}; {because}");
                    return Err(JournalError::Damaged { segment: name, offset: 0, what });
                }
            }
        }
    }

    /// Goes on at a frame known from an index.
    pub fn seek(&mut self, lsn: Lsn, offset: u64) {
        self.offset = offset;
        self.next_lsn = lsn;
    }

    pub fn seed(&self) -> Seed {
        self.seed
    }

    /// So many bytes of the segment are on the disk: a frame says that they were synced before it was written. From
    /// headers alone; behind a torn one there may be better evidence.
    pub fn known_durable<S: Store>(&self, store: &S) -> Result<u64, JournalError> {
        let mut durable = 0;
        let mut offset = SEGMENT_HEADER_LEN as u64;
        let mut bytes = [0; FRAME_HEADER_LEN];
        loop {
            let count = read_at(store, &self.name, offset, &mut bytes)?;
            let Ok(header) = FrameHeader::decode(&bytes[..count], self.seed, offset) else {
                return Ok(durable);
            };
            durable = durable.max(header.durable_end);
            offset = header.end();
        }
    }

    /// The next frame, or what kind of end there is.
    pub fn next<S: Store>(&mut self, store: &S) -> Result<Step, JournalError> {
        let mut read_again = false;
        loop {
            let what = match self.read_frame(store)? {
                Read::Frame(header) if header.kind == FrameKind::Records => {
                    if header.first_lsn != self.next_lsn {
                        let what =
                            format!("record {} follows where {} should", header.first_lsn, self.next_lsn);
                        return Err(self.damaged(what));
                    }
                    self.offset = header.end();
                    self.next_lsn = header.last_lsn.next();
                    return Ok(Step::Records(header));
                }
                Read::Frame(header) => match self.seal(store)? {
                    Some((seal, seal_offset)) => return self.sealed(&header, seal, seal_offset),
                    None => "an index without a seal",
                },
                Read::EndOfFile if !later_segment(store, self.header.first_lsn)? => {
                    return Ok(Step::Open(None));
                }
                Read::EndOfFile => "the file ends",
                Read::Bad(FormatError::Torn(what)) => what,
                Read::Bad(error) => return Err(JournalError::at(&self.name, self.offset, error)),
            };
            let sealed = self.seal(store)?.is_some();
            let verdict = judge_frame(FrameEvidence {
                offset: self.offset,
                later_segment: later_segment(store, self.header.first_lsn)?,
                sealed,
                durable_end: durable_end_behind(store, &self.name, self.seed, self.offset + 1, self.offset)?
                    .unwrap_or(0),
            });
            match verdict {
                FrameVerdict::TornTail => {
                    let bytes = size_of(store, &self.name)?.saturating_sub(self.offset);
                    let (segment, offset) = (self.name.clone(), self.offset);
                    return Ok(Step::Open(Some(TornTail { segment, offset, bytes })));
                }
                // A writer may have completed the frame, and more, since it was read.
                FrameVerdict::Damage(_) if !read_again => read_again = true,
                FrameVerdict::Damage(_) if sealed => {
                    return Err(JournalError::BadChecksum {
                        segment: self.name.clone(),
                        offset: self.offset,
                        lsn: self.next_lsn,
                        what: what.to_owned(),
                    });
                }
                FrameVerdict::Damage(because) => return Err(self.damaged(format!("{what}; {because}"))),
            }
        }
    }

    /// The raw payload of the frame read last.
    pub fn unpack(&mut self, header: &FrameHeader, raw: &mut Vec<u8>) -> Result<(), JournalError> {
        let stored = &self.frame[FRAME_HEADER_LEN..];
        raw.clear();
        match header.codec {
            Codec::Raw => raw.extend_from_slice(stored),
            Codec::Zstd => {
                // The header's checksum vouches for raw_len, and decoding capped it at 16 MiB.
                raw.resize(header.raw_len as usize, 0);
                let decompressor = self.decompressor.get_or_insert_default();
                let count = decompressor.decompress_to_buffer(stored, &mut raw[..]).ok();
                if count != Some(raw.len()) {
                    raw.clear();
                    let what = "a frame that does not decompress to its length".to_owned();
                    let segment = self.name.clone();
                    return Err(JournalError::Damaged { segment, offset: header.offset, what });
                }
            }
        }
        Ok(())
    }

    fn sealed(&mut self, header: &FrameHeader, seal: Seal, seal_offset: u64) -> Result<Step, JournalError> {
        let fits = seal.index_offset == header.offset
            && seal_offset == header.end()
            && seal.last_lsn == header.last_lsn
            && seal.last_lsn.next() == self.next_lsn
            && header.first_lsn == self.header.first_lsn;
        if !fits {
            return Err(
                self.damaged("the index and the seal contradict each other or the records".to_owned())
            );
        }
        let mut raw = Vec::new();
        self.unpack(header, &mut raw)?;
        let index = Index::decode(self.header.version, &raw)
            .map_err(|error| JournalError::at(&self.name, header.offset, error))?;
        if !index.lies_within(header.first_lsn, seal.last_lsn, header.offset) {
            return Err(self.damaged("an index of what is not in its segment".to_owned()));
        }
        Ok(Step::Sealed(seal, index))
    }

    /// The seal at the end of the file and where it stands; None while the segment is open.
    fn seal<S: Store>(&self, store: &S) -> Result<Option<(Seal, u64)>, JournalError> {
        seal_at_end(store, &self.name, self.seed)
    }

    fn damaged(&self, what: String) -> JournalError {
        JournalError::Damaged { segment: self.name.clone(), offset: self.offset, what }
    }

    fn read_frame<S: Store>(&mut self, store: &S) -> Result<Read, JournalError> {
        const INCOMPLETE: Read = Read::Bad(FormatError::Torn("an incomplete frame"));
        if self.size < self.offset + FRAME_HEADER_LEN as u64 {
            self.size = size_of(store, &self.name)?;
        }
        if self.size == self.offset {
            return Ok(Read::EndOfFile);
        }
        self.frame.resize(FRAME_HEADER_LEN, 0);
        let count = read_at(store, &self.name, self.offset, &mut self.frame)?;
        let header = match FrameHeader::decode(&self.frame[..count], self.seed, self.offset) {
            Ok(header) => header,
            Err(error) => return Ok(Read::Bad(error)),
        };
        if header.breaks > 0 && self.header.version == Version::V1 {
            let what = "something in the reserved bytes of a frame".to_owned();
            return Ok(Read::Bad(FormatError::Unknown(what)));
        }
        if self.size < header.end() {
            self.size = size_of(store, &self.name)?;
            if self.size < header.end() {
                return Ok(INCOMPLETE);
            }
        }
        self.frame.resize(FRAME_HEADER_LEN + header.stored_len as usize, 0);
        let payload = &mut self.frame[FRAME_HEADER_LEN..];
        if read_at(store, &self.name, self.offset + FRAME_HEADER_LEN as u64, payload)? < payload.len() {
            return Ok(INCOMPLETE);
        }
        if self.seed.payload_crc(self.offset, payload) != header.payload_crc {
            return Ok(Read::Bad(FormatError::Torn("a wrong checksum of a frame's payload")));
        }
        Ok(Read::Frame(header))
    }
}

/// What a sealed segment says about itself.
pub struct Sealed {
    pub header: SegmentHeader,
    pub seal: Seal,
    pub index: Index,
    pub bytes: u64,
}

pub enum Summary {
    Sealed(Box<Sealed>),
    Open(Box<Walk>),
    HalfCreated(TornTail),
}

/// Reads the header, the seal and the index of a segment, not its records.
///
/// # Errors
/// Damage, also when it is not sealed though a later segment exists.
pub fn summarise<S: Store>(store: &S, volume: VolumeId, first: Lsn) -> Result<Summary, JournalError> {
    let mut walk = match Walk::open(store, volume, first)? {
        Opened::Walk(walk) => walk,
        Opened::HalfCreated(torn) => return Ok(Summary::HalfCreated(torn)),
    };
    if walk.seal(store)?.is_none() {
        if later_segment(store, first)? {
            // A writer may be sealing it now; else this finds the byte where it is wrong.
            while let Step::Records(_) = walk.next(store)? {}
            walk.seek(first, SEGMENT_HEADER_LEN as u64);
        } else {
            return Ok(Summary::Open(walk));
        }
    }
    let Some((seal, seal_offset)) = walk.seal(store)? else {
        return Err(walk.damaged("it is not sealed though a later segment exists".to_owned()));
    };
    walk.seek(seal.last_lsn.next(), seal.index_offset);
    match walk.next(store)? {
        Step::Sealed(seal, index) => {
            let bytes = seal_offset + SEAL_LEN as u64;
            Ok(Summary::Sealed(Box::new(Sealed { header: walk.header, seal, index, bytes })))
        }
        _ => Err(walk.damaged("the seal points to no index".to_owned())),
    }
}

/// The first LSNs of all segments, in order.
pub fn list_segments<S: Store>(store: &S) -> Result<Vec<Lsn>, JournalError> {
    store.list().map(|names| segments_among(&names)).map_err(|error| io_error(store, "list", "", error))
}

/// The first LSNs of the segments that are part of the journal; those below were folded, and are still to be removed.
pub fn live_segments<S: Store>(store: &S, folds: &Folds) -> Result<Vec<Lsn>, JournalError> {
    let mut firsts = list_segments(store)?;
    firsts.retain(|first| *first >= folds.first_lsn);
    match firsts.first() {
        Some(first) => folds.chain().expect_name(*first)?,
        // The one that was begun when the others were folded may have been half created.
        None if folds.first_lsn > Lsn(1) => {}
        None => {
            let missing = segment_name(Lsn(1));
            return Err(JournalError::MissingSegment { missing, found: "none".to_owned() });
        }
    }
    Ok(firsts)
}

fn later_segment<S: Store>(store: &S, first: Lsn) -> Result<bool, JournalError> {
    Ok(list_segments(store)?.last().is_some_and(|last| *last > first))
}

fn seal_at_end<S: Store>(store: &S, name: &str, seed: Seed) -> Result<Option<(Seal, u64)>, JournalError> {
    let Some(offset) = size_of(store, name)?.checked_sub(SEAL_LEN as u64) else { return Ok(None) };
    let mut bytes = [0; SEAL_LEN];
    let count = read_at(store, name, offset, &mut bytes)?;
    match Seal::decode(&bytes[..count], seed, offset) {
        Ok(seal) => Ok(Some((seal, offset))),
        Err(FormatError::Torn(_)) => Ok(None),
        Err(error) => Err(JournalError::at(name, offset, error)),
    }
}

/// Highest `durable_end` among the valid frame headers at or after byte `from`; stops at one above `enough`.
fn durable_end_behind<S: Store>(
    store: &S,
    name: &str,
    seed: Seed,
    from: u64,
    enough: u64,
) -> Result<Option<u64>, JournalError> {
    let mut highest = None;
    let mut start = from;
    let left = size_of(store, name)?.saturating_sub(from);
    let chunk_len = usize::try_from(left).unwrap_or(usize::MAX).clamp(FRAME_HEADER_LEN, SCAN_CHUNK_BYTES);
    let mut chunk = vec![0; chunk_len];
    loop {
        let count = read_at(store, name, start, &mut chunk)?;
        let bytes = &chunk[..count];
        for at in (0..count.saturating_sub(FRAME_HEADER_LEN - 1)).filter(|at| bytes[*at] == FRAME_MAGIC[0]) {
            let found = FrameHeader::durable_end_at(&bytes[at..], seed, start + at as u64);
            highest = highest.max(found);
            if highest > Some(enough) {
                return Ok(highest);
            }
        }
        if count < chunk.len() {
            return Ok(highest);
        }
        start += (count - (FRAME_HEADER_LEN - 1)) as u64;
    }
}

fn size_of<S: Store>(store: &S, name: &str) -> Result<u64, JournalError> {
    store.size(name).map_err(|error| io_error(store, "read", name, error))
}

fn read_at<S: Store>(store: &S, name: &str, offset: u64, buffer: &mut [u8]) -> Result<usize, JournalError> {
    store.read_at(name, offset, buffer).map_err(|error| io_error(store, "read", name, error))
}

/// The first `size` bytes of a small file whose size the caller has capped.
pub fn read_all<S: Store>(store: &S, name: &str, size: u64) -> Result<Vec<u8>, JournalError> {
    let mut bytes = vec![0; usize::try_from(size).expect("the caller capped it")];
    let count = read_at(store, name, 0, &mut bytes)?;
    bytes.truncate(count);
    Ok(bytes)
}

pub fn io_error<S: Store>(store: &S, action: &'static str, name: &str, source: io::Error) -> JournalError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            JournalError::NoSpace { dir: store.dir().to_owned(), source }
        }
        _ => JournalError::Io { action, path: store.path(name), source },
    }
}
