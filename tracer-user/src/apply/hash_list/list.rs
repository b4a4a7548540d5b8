use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::apply::ReplicaFiles;
use crate::apply::hash_list::HashListError;
use crate::apply::hash_list::format::{ENTRY_LEN, HashListHeader, HashListId, entry_start};
use crate::apply::hash_list::reader::read_header;
use crate::model::GranuleHash;
use crate::target::{Medium, MediumKind, Op, RawMedium, TargetWriter};

/// Entries written or read at once.
const ENTRIES_MAX: u64 = 1024;

/// The hash list as its one writer has it. After an error it must not be used any more, nor be named by a checkpoint.
pub(in crate::apply) struct HashList {
    header: HashListHeader,
    medium: Box<dyn Medium>,
    /// Of a whole granule of zeros.
    zeros: GranuleHash,
    /// Unknown, and to be refreshed.
    stale: GranuleSet,
    /// Where the refreshing goes on.
    cursor: u64,
    /// Something was written since the last sync.
    unsynced: bool,
}

impl HashList {
    /// A new list in place of what is there, all of it unknown; durable when it returns.
    pub(super) fn create(files: &ReplicaFiles, header: HashListHeader) -> Result<HashList, HashListError> {
        let path = files.hash_list();
        let beside = path.with_extension("hashes.new");
        let failed = |what| {
            let path = path.clone();
            move |source| HashListError::Io { what, path, source }
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&beside).map_err(failed("create"))?;
        file.set_len(header.file_bytes()).map_err(failed("set the size of"))?;
        file.write_all_at(&header.encode(), 0).map_err(failed("write"))?;
        file.sync_all().map_err(failed("sync"))?;
        fs::rename(&beside, &path).map_err(failed("replace"))?;
        File::open(files.dir()).and_then(|dir| dir.sync_all()).map_err(failed("sync the directory of"))?;
        let stale = GranuleSet::all(header.granules.count());
        Ok(HashList::of(header, Box::new(RawMedium::new(file, MediumKind::File)), stale))
    }

    /// The list that is there, which has to be the one that `wanted` says.
    pub(super) fn open(files: &ReplicaFiles, wanted: HashListHeader) -> Result<HashList, HashListError> {
        let path = files.hash_list();
        let failed = |what| {
            let path = path.clone();
            move |source| HashListError::Io { what, path, source }
        };
        let file =
            OpenOptions::new().read(true).write(true).open(&path).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => HashListError::Missing { path: path.clone() },
                _ => failed("open")(source),
            })?;
        if read_header(&file, &path)? != wanted {
            let what = "it is of another volume, target or time".to_owned();
            return Err(HashListError::Unusable { path, what });
        }
        // What is read from here on is on the disk: after a failed sync Linux calls pages clean that never got there.
        file.sync_all().map_err(failed("sync"))?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(|errno| failed("drop the cache of")(errno.into()))?;
        HashList::over(wanted, Box::new(RawMedium::new(file, MediumKind::File))).map_err(failed("read"))
    }

    /// The list on `medium`, all of which is durable.
    pub(in crate::apply) fn over(header: HashListHeader, medium: Box<dyn Medium>) -> io::Result<HashList> {
        let count = header.granules.count();
        let mut stale = GranuleSet::all(count);
        let mut bytes = Vec::new();
        for first in (0..count).step_by(ENTRIES_MAX as usize) {
            let entries = (count - first).min(ENTRIES_MAX) as usize;
            bytes.resize(entries * ENTRY_LEN, 0);
            medium.read_at(entry_start(first), &mut bytes)?;
            for (index, hash) in (first..).zip(header.decode_entries(first, &bytes)) {
                if hash.is_some() {
                    stale.remove(index);
                }
            }
        }
        Ok(HashList::of(header, medium, stale))
    }

    fn of(header: HashListHeader, medium: Box<dyn Medium>, stale: GranuleSet) -> HashList {
        let zeros = zeros(header.granules.granule_bytes());
        HashList { header, medium, zeros, stale, cursor: 0, unsynced: false }
    }

    pub(super) fn header(&self) -> &HashListHeader {
        &self.header
    }

    /// What `op` changes is set where it writes whole granules, and unknown elsewhere.
    pub(super) fn touch(&mut self, op: Op<'_>) -> io::Result<()> {
        let (granules, whole_zeros) = (self.header.granules, self.zeros);
        let (touched, covered) = (granules.touched(op.range()), granules.covered(op.range()));
        if covered.is_empty() {
            return touched.into_iter().try_for_each(|index| self.forget(index));
        }
        (touched.start..covered.start).try_for_each(|index| self.forget(index))?;
        let hash_of = |index| {
            let range = granules.range(index);
            match op {
                Op::Write { start, bytes } => {
                    // A covered granule lies in the bytes of the operation.
                    GranuleHash::of(&bytes[(range.start - start) as usize..(range.end - start) as usize])
                }
                Op::Zero { .. } if range.len() == granules.granule_bytes() => whole_zeros,
                Op::Zero { .. } => zeros(range.len()),
            }
        };
        for first in covered.clone().step_by(ENTRIES_MAX as usize) {
            let hashes: Vec<GranuleHash> =
                (first..covered.end.min(first + ENTRIES_MAX)).map(hash_of).collect();
            self.set(first, &hashes)?;
        }
        (covered.end..touched.end).try_for_each(|index| self.forget(index))
    }

    /// All that was changed before is durable when this returns.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.unsynced {
            self.medium.sync()?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// Sets `granules_max` unknown entries at most to what the synced `target` holds; says whether there are more. A
    /// granule that can't be read stays unknown, and is not tried again before it was written.
    pub(super) fn refresh(&mut self, target: &TargetWriter, granules_max: usize) -> io::Result<bool> {
        let mut bytes = Vec::new();
        for _ in 0..granules_max {
            let Some(index) = self.stale.next(self.cursor) else { return Ok(false) };
            self.cursor = index + 1;
            let range = self.header.granules.range(index);
            bytes.resize(usize::try_from(range.len()).map_err(io::Error::other)?, 0);
            match target.read_at(range.start, &mut bytes) {
                Ok(()) => self.set(index, &[GranuleHash::of(&bytes)])?,
                Err(error) => {
                    log::warn!(
                        "bytes {range} of the replica can't be read, and stay without a hash: {error}"
                    );
                    self.stale.remove(index);
                }
            }
        }
        Ok(!self.stale.is_empty())
    }

    /// Sets the entries from granule `first` on.
    fn set(&mut self, first: u64, hashes: &[GranuleHash]) -> io::Result<()> {
        let entries: Vec<u8> =
            (first..).zip(hashes).flat_map(|(index, hash)| self.header.encode_entry(index, *hash)).collect();
        self.unsynced = true;
        self.medium.write_at(entry_start(first), &entries)?;
        (first..).zip(hashes).for_each(|(index, _)| self.stale.remove(index));
        Ok(())
    }

    fn forget(&mut self, index: u64) -> io::Result<()> {
        if self.stale.contains(index) {
            return Ok(());
        }
        self.unsynced = true;
        self.medium.write_at(entry_start(index), &[0; ENTRY_LEN])?;
        self.stale.insert(index);
        Ok(())
    }
}

/// A number for a new list: no other list ever had it.
pub(super) fn new_id() -> io::Result<HashListId> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(HashListId(u64::from_le_bytes(bytes)))
}

/// How the list says whose target it is of.
pub(super) fn target_hash(identity: &str) -> [u8; 32] {
    *blake3::hash(identity.as_bytes()).as_bytes()
}

/// The hash of a granule of zeros.
fn zeros(len: u64) -> GranuleHash {
    static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
    GranuleHash::of(&ZEROS[..usize::try_from(len).expect("a granule is 1 MiB at most")])
}

/// One bit for each granule.
struct GranuleSet {
    words: Vec<u64>,
    len: u64,
}

impl GranuleSet {
    fn all(count: u64) -> GranuleSet {
        let mut words = vec![u64::MAX; usize::try_from(count.div_ceil(64)).unwrap_or(usize::MAX)];
        if let (Some(last), used @ 1..) = (words.last_mut(), count % 64) {
            *last = (1 << used) - 1;
        }
        GranuleSet { words, len: count }
    }

    fn contains(&self, index: u64) -> bool {
        self.words[(index / 64) as usize] & bit(index) != 0
    }

    fn insert(&mut self, index: u64) {
        self.len += u64::from(!self.contains(index));
        self.words[(index / 64) as usize] |= bit(index);
    }

    fn remove(&mut self, index: u64) {
        self.len -= u64::from(self.contains(index));
        self.words[(index / 64) as usize] &= !bit(index);
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first at or after `from`, else the first of all.
    fn next(&self, from: u64) -> Option<u64> {
        if self.is_empty() {
            return None;
        }
        self.at_or_after(from).or_else(|| self.at_or_after(0))
    }

    fn at_or_after(&self, from: u64) -> Option<u64> {
        let first_word = (from / 64) as usize;
        let head = self.words.get(first_word)? & (u64::MAX << (from % 64));
        let rest = self.words[first_word + 1..].iter().copied();
        let words = std::iter::once(head).chain(rest);
        let found = words.enumerate().find(|(_, word)| *word != 0);
        found.map(|(number, word)| (first_word + number) as u64 * 64 + u64::from(word.trailing_zeros()))
    }
}

fn bit(index: u64) -> u64 {
    1 << (index % 64)
}
