//! A journal for tests, with what the volume held after every record.

use std::path::{Path, PathBuf};

use crate::apply::ReplicaFiles;
use crate::journal::{Journal, JournalOptions, SyncPolicy, Writer};
use crate::model::{
    ByteRange, Lsn, Mark, MarkId, Point, PointClass, RecordBody, Timestamp, VolumeId, VolumeInfo,
};

pub(crate) const SIZE: usize = 128 << 10;

const OPTIONS: JournalOptions = JournalOptions {
    segment_bytes_max: 96 << 10,
    frame_bytes_max: 16 << 10,
    sync: SyncPolicy::Mark,
    // Frames as they are, so that the journal has several segments.
    zstd_level: 0,
};

pub(crate) struct History {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) info: VolumeInfo,
    /// `states[n]` is the volume after record n; `states[0]` is undefined and all zero.
    pub(crate) states: Vec<Vec<u8>>,
    /// `None` while nobody writes.
    writer: Option<Writer>,
    random: u64,
}

impl History {
    /// A baseline of the whole volume that ends in a mark, then `rounds` times some changes and a mark.
    pub(crate) fn new(seed: u64, rounds: usize) -> History {
        let mut history = History::empty(seed);
        for start in (0..SIZE as u64).step_by(32 << 10) {
            history.append(RecordBody::Data { start, bytes: vec![start as u8 ^ 0x5a; 32 << 10] });
        }
        history.mark(PointClass::Crash);
        (0..rounds).for_each(|_| history.round());
        history.sync();
        history
    }

    pub(crate) fn empty(seed: u64) -> History {
        // In memory: the crash matrix syncs thousands of times.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let info = VolumeInfo {
            id: VolumeId([seed as u8; 16]),
            source: "/dev/test".into(),
            identity: "name:test".into(),
            size_bytes: SIZE as u64,
            sector_bytes: 512,
            created: Timestamp(0),
        };
        let writer = Writer::create(&dir.path().join("journal"), &info, OPTIONS).unwrap();
        History {
            dir,
            info,
            states: vec![vec![0; SIZE]],
            writer: Some(writer),
            random: seed.wrapping_mul(2).wrapping_add(1),
        }
    }

    /// A few writes and zeros, then a mark of crash class.
    pub(crate) fn round(&mut self) {
        for _ in 0..2 + self.next(6) {
            let len = 1 + self.next(if self.random.is_multiple_of(5) { 60_000 } else { 6_000 });
            let start = self.next(SIZE as u64 - len);
            let range = ByteRange::with_len(start, len);
            let body = match self.next(6) {
                0 => RecordBody::Zero(range),
                1 => RecordBody::Discard(range),
                2 => RecordBody::Gap(range),
                _ => RecordBody::Data { start, bytes: vec![self.next(255) as u8 + 1; len as usize] },
            };
            self.append(body);
        }
        self.mark(PointClass::Crash);
    }

    /// Content as payload capture journals it, with a fuzzy mark now and then.
    pub(crate) fn ordered_round(&mut self) {
        for _ in 0..3 + self.next(6) {
            let len = 1 + self.next(6_000);
            let start = self.next(SIZE as u64 - len);
            match self.next(8) {
                0 => self.append_ordered(RecordBody::Zero(ByteRange::with_len(start, len))),
                1 => {
                    self.mark(PointClass::Fuzzy);
                }
                _ => {
                    let bytes = vec![self.next(255) as u8 + 1; len as usize];
                    self.append_ordered(RecordBody::Data { start, bytes });
                }
            }
        }
    }

    pub(crate) fn append_ordered(&mut self, body: RecordBody) {
        self.take(body, true);
    }

    pub(crate) fn append(&mut self, body: RecordBody) -> Lsn {
        self.take(body, false)
    }

    fn take(&mut self, body: RecordBody, ordered: bool) -> Lsn {
        let mut state = self.states.last().unwrap().clone();
        if let Some(range) = body.content_range() {
            let part = &mut state[range.start as usize..range.end as usize];
            match &body {
                RecordBody::Data { bytes, .. } => part.copy_from_slice(bytes),
                _ => part.fill(0),
            }
        }
        let time = Timestamp(self.states.len() as u64 * 1_000_000_000);
        let writer = self.writer();
        let appended = if ordered { writer.append_ordered(time, body) } else { writer.append(time, body) };
        let lsn = appended.unwrap();
        assert_eq!(lsn.0 as usize, self.states.len());
        self.states.push(state);
        lsn
    }

    pub(crate) fn mark(&mut self, class: PointClass) -> MarkId {
        let id = self.writer().next_mark();
        self.append(RecordBody::Mark(Mark { id, class, label: format!("round-{id}") }));
        id
    }

    pub(crate) fn sync(&mut self) -> Lsn {
        self.writer().sync().unwrap()
    }

    /// Nobody writes any more, until something is appended again.
    pub(crate) fn rest(&mut self) {
        self.writer = None;
    }

    fn writer(&mut self) -> &mut Writer {
        let dir = self.dir();
        self.writer.get_or_insert_with(|| Writer::open(&dir, OPTIONS).unwrap().0)
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    pub(crate) fn files(&self) -> ReplicaFiles {
        ReplicaFiles::first(&self.dir())
    }

    pub(crate) fn journal(&self) -> Journal {
        Journal::open(&self.dir()).unwrap()
    }

    pub(crate) fn points(&self) -> Vec<Point> {
        self.journal().points().unwrap()
    }

    pub(crate) fn state(&self, lsn: Lsn) -> &[u8] {
        &self.states[lsn.0 as usize]
    }

    pub(crate) fn target(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn next(&mut self, below: u64) -> u64 {
        // xorshift: the tests need the same history from the same seed, not good randomness.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }
}

/// Every file of a directory with its bytes, to see that nothing was changed.
pub(crate) fn snapshot(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}
