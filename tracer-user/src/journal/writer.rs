//! The one writer of a journal: gathers records into frames, frames into segments, and says what is durable.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use crate::io::store::{DirStore, LOCK_NAME, Store};
use crate::journal::error::JournalError;
use crate::journal::folds::read_folds;
use crate::journal::format::{Codec, FRAME_HEADER_LEN, FrameHeader, FrameKind, SEAL_LEN, SEGMENT_HEADER_LEN};
use crate::journal::open_segment::{Segment, create_segment};
use crate::journal::options::{JournalOptions, SyncPolicy};
use crate::journal::packing::{Packer, len_u32};
use crate::journal::record::{encode, encoded_len};
use crate::journal::recovery::Recovery;
use crate::journal::reopen::{Reopened, reopen};
use crate::journal::segment::{Chain, segment_name};
use crate::journal::volume::{VOLUME_NAME, VOLUME_TEMP_NAME, read_volume, write_volume};
use crate::journal::walk::io_error;
use crate::model::{Lsn, MarkId, RecordBody, Timestamp, VolumeInfo};

/// A segment is sealed before its index grows past this, far below what one frame holds.
const INDEX_BYTES_MAX: usize = 8 << 20;
const FRAME_BYTES_CAP: usize = 8 << 20;

/// Appends to a journal. Holds the directory's lock while it lives. What was appended and not yet flushed is lost
/// when it is dropped.
///
/// After any failed write or sync it latches: every later call returns [`JournalError::Latched`], until the journal
/// is opened anew and recovery has looked at what the disk holds.
pub struct Writer<S: Store = DirStore> {
    store: S,
    info: VolumeInfo,
    options: JournalOptions,
    packer: Packer,
    segment: Segment,
    pending: Pending,
    /// Header and compressed payload of the frame being written; kept for its capacity.
    compressed: Vec<u8>,
    next_lsn: Lsn,
    next_mark: MarkId,
    /// Of the last record.
    last_time: Timestamp,
    written: Lsn,
    durable: Lsn,
    unsynced_since: Option<Instant>,
    bytes_written: u64,
    latched: bool,
}

/// Records gathered for the next frame: `bytes` has room for a frame header at its start.
struct Pending {
    bytes: Vec<u8>,
    first: Lsn,
    first_time: Timestamp,
    marks: u32,
    breaks: u32,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.bytes.len() == FRAME_HEADER_LEN
    }

    fn clear(&mut self) {
        self.bytes.truncate(FRAME_HEADER_LEN);
        (self.marks, self.breaks) = (0, 0);
    }
}

impl Writer {
    /// Makes a journal in `dir`, which is created if need be.
    ///
    /// # Errors
    /// `AlreadyAJournal`, `NotEmpty`, `Locked`, `NoSpace`, `Io`.
    pub fn create(dir: &Path, info: &VolumeInfo, options: JournalOptions) -> Result<Writer, JournalError> {
        let io = |action, source| JournalError::Io { action, path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(|source| io("create", source))?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            let mut parent = DirStore::open(parent);
            parent.sync_dir().map_err(|source| io("create", source))?;
        }
        let names = DirStore::open(dir).list().map_err(|source| io("list", source))?;
        refuse_occupied(dir, &names)?;
        Writer::create_in(lock(dir)?, info, options)
    }

    /// Opens a journal to append to it. A segment that another writer left open, whatever ended that one, is never
    /// appended to: what is half-written at its end is cut off, the rest made durable and sealed, and a new one begun.
    ///
    /// After an error it can be called again, in the same process too, and as often as it takes: a call that fails
    /// leaves at most the same few unused bytes behind as the one before it did.
    ///
    /// # Errors
    /// `Locked`, `NotAJournal`, damage of what was durable once (then nothing was changed), `NoSpace`, `Io`.
    pub fn open(dir: &Path, options: JournalOptions) -> Result<(Writer, Recovery), JournalError> {
        // Before the lock file is made in a directory that is none of ours.
        read_volume(&DirStore::open(dir))?;
        Writer::open_in(lock(dir)?, options)
    }
}

/// The directory of a journal, locked for its one writer.
pub(super) fn lock(dir: &Path) -> Result<DirStore, JournalError> {
    DirStore::open_exclusive(dir, LOCK_NAME).map_err(|source| match source.kind() {
        std::io::ErrorKind::WouldBlock => JournalError::Locked { dir: dir.to_owned() },
        _ => JournalError::Io { action: "lock", path: dir.join(LOCK_NAME), source },
    })
}

/// Accepts what a creation that was interrupted leaves behind.
fn refuse_occupied(dir: &Path, names: &[String]) -> Result<(), JournalError> {
    if names.iter().any(|name| name == VOLUME_NAME) {
        return Err(JournalError::AlreadyAJournal { dir: dir.to_owned() });
    }
    let ours = BTreeSet::from([LOCK_NAME, VOLUME_TEMP_NAME, "lost+found"]);
    let first = segment_name(Lsn(1));
    if names.iter().any(|name| !ours.contains(name.as_str()) && *name != first) {
        return Err(JournalError::NotEmpty { dir: dir.to_owned() });
    }
    Ok(())
}

impl<S: Store> Writer<S> {
    /// [`Writer::create`] on any store.
    pub(super) fn create_in(
        mut store: S,
        info: &VolumeInfo,
        options: JournalOptions,
    ) -> Result<Writer<S>, JournalError> {
        let names = store.list().map_err(|error| io_error(&store, "list", "", error))?;
        refuse_occupied(store.dir(), &names)?;
        let first = segment_name(Lsn(1));
        if names.contains(&first) {
            let size = store.size(&first).map_err(|error| io_error(&store, "read", &first, error))?;
            if size > SEGMENT_HEADER_LEN as u64 {
                return Err(JournalError::NotEmpty { dir: store.dir().to_owned() });
            }
        }
        for name in [first.as_str(), VOLUME_TEMP_NAME] {
            if names.iter().any(|there| there == name) {
                store.remove(name).map_err(|error| io_error(&store, "remove", name, error))?;
            }
        }
        // volume.toml comes last: once it is there, the first segment is durable.
        let segment = create_segment(&mut store, info, &Chain::start(), info.created)?;
        write_volume(&mut store, info)?;
        let packer = Packer::new(options.zstd_level);
        Ok(Writer::assemble(store, info.clone(), options, packer, segment, Lsn(1), MarkId(1)))
    }

    /// [`Writer::open`] on any store.
    pub(super) fn open_in(
        mut store: S,
        options: JournalOptions,
    ) -> Result<(Writer<S>, Recovery), JournalError> {
        let info = read_volume(&store)?;
        let mut packer = Packer::new(options.zstd_level);
        let Reopened { segment, next_lsn, next_mark, last_time, recovery } = loop {
            let folds = read_folds(&store)?;
            match reopen(&mut store, &info, &mut packer) {
                // It was pruned meanwhile, and what was folded is gone.
                Err(_) if read_folds(&store)? != folds => {}
                result => break result?,
            }
        };
        let writer = Writer::assemble(store, info, options, packer, segment, next_lsn, next_mark);
        Ok((Writer { last_time, ..writer }, recovery))
    }

    fn assemble(
        store: S,
        info: VolumeInfo,
        options: JournalOptions,
        packer: Packer,
        segment: Segment,
        next_lsn: Lsn,
        next_mark: MarkId,
    ) -> Writer<S> {
        let last = Lsn(next_lsn.0 - 1);
        Writer {
            store,
            info,
            options,
            packer,
            segment,
            pending: Pending {
                bytes: vec![0; FRAME_HEADER_LEN],
                first: next_lsn,
                first_time: Timestamp(0),
                marks: 0,
                breaks: 0,
            },
            compressed: vec![0; FRAME_HEADER_LEN],
            next_lsn,
            next_mark,
            last_time: Timestamp(0),
            written: last,
            durable: last,
            unsynced_since: None,
            bytes_written: 0,
            latched: false,
        }
    }

    pub fn info(&self) -> &VolumeInfo {
        &self.info
    }

    /// The number the next record will get.
    pub fn next_lsn(&self) -> Lsn {
        self.next_lsn
    }

    /// The number the next mark has to have, or a higher one.
    pub fn next_mark(&self) -> MarkId {
        self.next_mark
    }

    /// The last record known to survive a power cut.
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// Bytes written to files by this writer since it was opened, after compression.
    pub fn bytes_written(&self) -> u64 {
        self.bytes_written
    }

    /// Takes a record; it is readable after [`Writer::flush`] and durable after [`Writer::sync`]. A full frame is
    /// written at once. Whoever appends a mark calls `sync` before telling anyone of it.
    ///
    /// # Errors
    /// `InvalidRecord` refuses this record only: more than 4 MiB of data, a range past 2^63 or backward, a label
    /// over 4096 bytes, a mark's number below [`Writer::next_mark`]. `NoSpace`, `Io` and `Latched` end the writer.
    pub fn append(&mut self, time: Timestamp, body: RecordBody) -> Result<Lsn, JournalError> {
        self.take(time, false, body)
    }

    /// [`Writer::append`] of content as it was submitted, in the order of submission, and of what is told of it: between two
    /// restorable marks where all is ordered, each record is a point one can restore.
    ///
    /// # Errors
    /// As [`Writer::append`]; `InvalidRecord` also for a mark or a gap.
    pub fn append_ordered(&mut self, time: Timestamp, body: RecordBody) -> Result<Lsn, JournalError> {
        if body.content_range().is_none() && !matches!(body, RecordBody::Origin(_)) {
            let what = "a mark or a gap among the ordered ones; append it as it is".to_owned();
            return Err(JournalError::InvalidRecord(what));
        }
        self.take(time, true, body)
    }

    fn take(&mut self, time: Timestamp, ordered: bool, body: RecordBody) -> Result<Lsn, JournalError> {
        self.refuse_latched()?;
        let len = encoded_len(&body).map_err(JournalError::InvalidRecord)?;
        if let RecordBody::Mark(mark) = &body
            && (mark.id < self.next_mark || mark.id.0 == u64::MAX)
        {
            let what = format!("mark {} where {} is the next", mark.id, self.next_mark);
            return Err(JournalError::InvalidRecord(what));
        }
        let frame_max = FRAME_HEADER_LEN + self.options.frame_bytes_max.min(FRAME_BYTES_CAP);
        if !self.pending.is_empty() && self.pending.bytes.len() + len > frame_max {
            self.flush()?;
        }
        let lsn = self.next_lsn;
        // It tells nothing newer of the volume than the record before it, and is no later instant than that.
        let time = match matches!(body, RecordBody::Origin(_)) && ordered && self.last_time > Timestamp(0) {
            true => self.last_time,
            false => time,
        };
        self.last_time = time;
        if self.pending.is_empty() {
            self.pending.first = lsn;
            self.pending.first_time = time;
        }
        encode(&mut self.pending.bytes, lsn, time, ordered, &body);
        self.next_lsn = lsn.next();
        if let RecordBody::Mark(mark) = body {
            self.next_mark = MarkId(mark.id.0 + 1);
            self.pending.marks += 1;
        } else {
            self.pending.breaks += u32::from(!ordered);
        }
        if self.pending.bytes.len() >= frame_max {
            self.flush()?;
        }
        Ok(lsn)
    }

    /// Writes what was appended so far to the file, where a reader finds it. Durable it is only with
    /// [`SyncPolicy::Always`].
    pub fn flush(&mut self) -> Result<(), JournalError> {
        self.refuse_latched()?;
        if self.pending.is_empty() {
            return Ok(());
        }
        self.latching(|writer| {
            writer.write_frame()?;
            if writer.options.sync == SyncPolicy::Always { writer.sync_segment() } else { Ok(()) }
        })
    }

    /// Makes all that was appended durable; returns the last LSN, which is then [`Writer::durable`].
    pub fn sync(&mut self) -> Result<Lsn, JournalError> {
        self.flush()?;
        self.latching(Writer::sync_segment)?;
        Ok(self.durable)
    }

    /// Makes all durable and seals the last segment: the journal is complete. Returns its hash, which covers all of it.
    pub(super) fn finish(mut self) -> Result<[u8; 32], JournalError> {
        self.flush()?;
        let last = self.written;
        Ok(self.segment.seal(&mut self.store, &mut self.packer, last, false)?.hash)
    }

    /// To be called now and then: with [`SyncPolicy::Interval`] it syncs what has waited that long.
    pub fn tick(&mut self, now: Instant) -> Result<(), JournalError> {
        self.refuse_latched()?;
        let SyncPolicy::Interval(interval) = self.options.sync else { return Ok(()) };
        if self.pending.is_empty() && self.durable == self.written {
            self.unsynced_since = None;
            return Ok(());
        }
        let since = *self.unsynced_since.get_or_insert(now);
        if now.duration_since(since) >= interval { self.sync().map(|_| ()) } else { Ok(()) }
    }

    /// Whether [`Writer::tick`] has something to sync, by and by.
    pub fn awaits_tick(&self) -> bool {
        matches!(self.options.sync, SyncPolicy::Interval(_)) && self.durable != self.written
    }

    fn refuse_latched(&self) -> Result<(), JournalError> {
        if self.latched { Err(JournalError::Latched) } else { Ok(()) }
    }

    fn latching(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let result = work(self);
        self.latched = result.is_err();
        result
    }

    fn write_frame(&mut self) -> Result<(), JournalError> {
        let raw_len = self.pending.bytes.len() - FRAME_HEADER_LEN;
        let codec = self.packer.pack(&self.pending.bytes, &mut self.compressed);
        let stored_len = match codec {
            Codec::Raw => raw_len,
            Codec::Zstd => self.compressed.len() - FRAME_HEADER_LEN,
        };
        let frame_len = (FRAME_HEADER_LEN + stored_len) as u64;
        let end_len = (FRAME_HEADER_LEN + self.segment.index.encoded_len() + SEAL_LEN) as u64;
        let full = self.segment.size + frame_len + end_len > self.options.segment_bytes_max
            || self.segment.index.encoded_len() > INDEX_BYTES_MAX;
        if full && self.segment.size > SEGMENT_HEADER_LEN as u64 {
            self.rotate()?;
        }
        let header = FrameHeader {
            kind: FrameKind::Records,
            codec,
            stored_len: len_u32(stored_len),
            raw_len: len_u32(raw_len),
            marks: self.pending.marks,
            breaks: self.pending.breaks,
            first_lsn: self.pending.first,
            last_lsn: Lsn(self.next_lsn.0 - 1),
            offset: self.segment.size,
            durable_end: self.segment.synced,
            payload_crc: 0,
        };
        let frame = match codec {
            Codec::Raw => &mut self.pending.bytes,
            Codec::Zstd => &mut self.compressed,
        };
        self.segment.append_frame(&mut self.store, header, frame)?;
        self.bytes_written += frame_len;
        self.segment.index.add_frame(&header);
        self.segment
            .index
            .add_records(&header, &self.pending.bytes[FRAME_HEADER_LEN..])
            .expect("they were just encoded");
        self.pending.clear();
        self.written = header.last_lsn;
        Ok(())
    }

    fn sync_segment(&mut self) -> Result<(), JournalError> {
        self.refuse_latched()?;
        self.segment.sync(&mut self.store)?;
        self.durable = self.written;
        self.unsynced_since = None;
        Ok(())
    }

    /// Seals the open segment and starts the next one.
    fn rotate(&mut self) -> Result<(), JournalError> {
        let before = self.segment.size;
        let chain = self.segment.seal(&mut self.store, &mut self.packer, self.written, false)?;
        self.durable = self.written;
        self.bytes_written += self.segment.size - before + SEGMENT_HEADER_LEN as u64;
        self.segment = create_segment(&mut self.store, &self.info, &chain, self.pending.first_time)?;
        Ok(())
    }
}
