//! A disk in memory for tests: it fails at the operation it is told to, and when the power is cut it keeps what was
//! synced and any part, page by page, of what was not.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use super::Store;

/// What goes wrong at the chosen operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing of it is done. A failed sync loses a part of what was unsynced, and calls all of it clean: the next one
    /// succeeds. The cache goes on showing what was lost, or, now and then, has forgotten it.
    Eio,
    /// Half of the bytes of an append are written, then EIO.
    ShortWrite,
    /// Half of the bytes of an append are written, then ENOSPC.
    NoSpace,
    /// The power goes in the middle of it; every later operation fails. See [`FaultyStore::after_power_cut`].
    PowerCut,
}

/// Clones share the disk.
#[derive(Clone, Debug)]
pub(crate) struct FaultyStore {
    shared: Arc<Mutex<Disk>>,
    /// See [`Store::part`].
    prefix: String,
}

#[derive(Debug)]
struct Disk {
    page_bytes: usize,
    files: BTreeMap<u64, File>,
    next_file: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    pending: Vec<DirOp>,
    operations: u64,
    fault: Option<(u64, Fault)>,
    /// Most bytes the files may hold together.
    room: usize,
    dead: bool,
    random: Random,
}

#[derive(Clone, Debug)]
enum DirOp {
    Create(String, u64),
    Remove(String),
    Rename(String, String),
}

/// `cache` is what reads see; `disk` is what a power cut leaves, with any part of the dirty pages. What is written to a
/// `lost` page does not reach the disk any more: ext4 takes its blocks for written until the page leaves the cache.
#[derive(Clone, Debug, Default)]
struct File {
    cache: Vec<u8>,
    disk: Vec<u8>,
    dirty: BTreeSet<usize>,
    lost: BTreeSet<usize>,
}

/// xorshift: reproducible from its seed, which is all that is asked of it.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end.max(1)
    }
}

impl FaultyStore {
    /// A page is what reaches the disk in any order; a quarter of it is what tears.
    pub(crate) fn new(page_bytes: usize) -> FaultyStore {
        let disk = Disk {
            page_bytes,
            files: BTreeMap::new(),
            next_file: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending: Vec::new(),
            operations: 0,
            fault: None,
            room: usize::MAX,
            dead: false,
            random: Random::new(1),
        };
        FaultyStore { shared: Arc::new(Mutex::new(disk)), prefix: String::new() }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.shared.lock().expect("no test panics with the disk in hand")
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Changing operations so far.
    pub(crate) fn operations(&self) -> u64 {
        self.disk().operations
    }

    /// The changing operation with this number, counted from 0 since the disk was made, goes wrong.
    pub(crate) fn fail_at(&self, operation: u64, fault: Fault, seed: u64) {
        let mut disk = self.disk();
        disk.fault = Some((operation, fault));
        disk.random = Random::new(seed);
    }

    /// The power is off.
    pub(crate) fn is_dead(&self) -> bool {
        self.disk().dead
    }

    /// From now on all files together take so many bytes: what is appended past that is cut off, with ENOSPC.
    pub(crate) fn set_room(&self, bytes: usize) {
        self.disk().room = bytes;
    }

    /// Bytes of all files together.
    pub(crate) fn used(&self) -> usize {
        let disk = self.disk();
        disk.names.values().map(|id| disk.files[id].cache.len()).sum()
    }

    /// The content of a file as readers see it.
    pub(crate) fn content(&self, name: &str) -> Vec<u8> {
        let disk = self.disk();
        disk.files[&disk.names[name]].cache.clone()
    }

    /// Replaces the content of a file, durably: damage made by a test.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let mut disk = self.disk();
        let id = disk.next_file;
        disk.next_file += 1;
        let file = File { cache: bytes.to_vec(), disk: bytes.to_vec(), ..File::default() };
        disk.files.insert(id, file);
        disk.names.insert(name.to_owned(), id);
        disk.durable_names.insert(name.to_owned(), id);
    }

    /// A copy that shares nothing, as it stands.
    pub(crate) fn copy(&self) -> FaultyStore {
        let disk = self.disk();
        let copy = FaultyStore::new(disk.page_bytes);
        for (name, id) in &disk.names {
            copy.put(name, &disk.files[id].cache);
        }
        copy
    }

    /// What the machine finds on this disk when it comes up again.
    pub(crate) fn after_power_cut(&self, seed: u64) -> FaultyStore {
        let disk = self.disk();
        let mut random = Random::new(seed);
        let mut names = disk.durable_names.clone();
        for op in disk.pending.iter().filter(|_| random.below(2) == 0) {
            match op {
                DirOp::Create(name, id) => {
                    names.insert(name.clone(), *id);
                }
                DirOp::Remove(name) => {
                    names.remove(name);
                }
                DirOp::Rename(from, to) => {
                    if let Some(id) = names.remove(from) {
                        names.insert(to.clone(), id);
                    }
                }
            }
        }
        let survivor = FaultyStore::new(disk.page_bytes);
        for (name, id) in &names {
            let mut file = disk.files[id].clone();
            file.write_back(disk.page_bytes, &mut random);
            survivor.put(name, &file.disk);
        }
        survivor
    }
}

impl File {
    /// Any part of the dirty pages reaches the disk, in any order, and any size between the old and the new.
    fn write_back(&mut self, page_bytes: usize, random: &mut Random) {
        let (old, new) = (self.disk.len(), self.cache.len());
        let size = match random.below(3) {
            0 => new,
            1 => old,
            _ => old.min(new) + random.below(old.abs_diff(new) + 1),
        };
        self.disk.resize(size, 0);
        for page in std::mem::take(&mut self.dirty) {
            let quarters = if random.below(3) == 0 { random.below(4) } else { 4 * random.below(2) };
            let start = (page * page_bytes).min(size).min(new);
            let end = (page * page_bytes + page_bytes * quarters / 4).min(size).min(new).max(start);
            self.disk[start..end].copy_from_slice(&self.cache[start..end]);
        }
    }

    /// All that is dirty and can be written reaches the disk.
    fn write_back_all(&mut self, page_bytes: usize) {
        let size = self.cache.len();
        self.disk.resize(size, 0);
        for page in std::mem::take(&mut self.dirty).difference(&self.lost) {
            let (start, end) = ((page * page_bytes).min(size), ((page + 1) * page_bytes).min(size));
            self.disk[start..end].copy_from_slice(&self.cache[start..end]);
        }
    }

    /// Forgets what the cache shows and the disk does not hold; nothing is dirty.
    fn evict(&mut self) {
        self.lost.clear();
        let size = self.cache.len();
        self.cache.clone_from(&self.disk);
        self.cache.resize(size, 0);
    }
}

impl Disk {
    fn file(&mut self, name: &str) -> io::Result<&mut File> {
        let id = self.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.files.get_mut(id).expect("names point to files"))
    }

    /// Counts a changing operation; says how it is to fail.
    fn begin(&mut self) -> io::Result<Option<Fault>> {
        if self.dead {
            return Err(eio());
        }
        let number = self.operations;
        self.operations += 1;
        let fault = self.fault.filter(|(at, _)| *at == number).map(|(_, fault)| fault);
        self.dead |= fault == Some(Fault::PowerCut);
        Ok(fault)
    }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

fn error_of(fault: Fault) -> io::Error {
    io::Error::from_raw_os_error(if fault == Fault::NoSpace { libc::ENOSPC } else { libc::EIO })
}

impl Store for FaultyStore {
    fn dir(&self) -> &Path {
        Path::new("/memory")
    }

    fn part(&self, prefix: &str) -> FaultyStore {
        FaultyStore { prefix: self.prefix.clone() + prefix, ..self.clone() }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let disk = self.disk();
        Ok(disk.names.keys().filter_map(|name| name.strip_prefix(&self.prefix)).map(str::to_owned).collect())
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        let name = &self.full(name);
        Ok(self.disk().file(name)?.cache.len() as u64)
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let name = &self.full(name);
        let mut disk = self.disk();
        let bytes = &disk.file(name)?.cache;
        let start = bytes.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
        let count = buffer.len().min(bytes.len() - start);
        buffer[..count].copy_from_slice(&bytes[start..start + count]);
        Ok(count)
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let name = &self.full(name);
        let mut disk = self.disk();
        match disk.begin()? {
            None | Some(Fault::PowerCut) if disk.names.contains_key(name) => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            Some(fault) if fault != Fault::PowerCut => return Err(error_of(fault)),
            _ => {}
        }
        let id = disk.next_file;
        disk.next_file += 1;
        disk.files.insert(id, File::default());
        disk.names.insert(name.to_owned(), id);
        disk.pending.push(DirOp::Create(name.to_owned(), id));
        if disk.dead { Err(eio()) } else { Ok(()) }
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let name = &self.full(name);
        let used = self.used();
        let mut disk = self.disk();
        let mut fault = disk.begin()?;
        let (page_bytes, mut count) = match fault {
            None | Some(Fault::PowerCut) => (disk.page_bytes, bytes.len()),
            Some(Fault::Eio) => return Err(eio()),
            Some(Fault::ShortWrite | Fault::NoSpace) => (disk.page_bytes, bytes.len() / 2),
        };
        if count > disk.room.saturating_sub(used) {
            count = disk.room.saturating_sub(used);
            fault = fault.or(Some(Fault::NoSpace));
        }
        let file = disk.file(name)?;
        let start = file.cache.len();
        file.cache.extend_from_slice(&bytes[..count]);
        file.dirty.extend((start..start + count).map(|at| at / page_bytes));
        fault.map_or(Ok(()), |fault| Err(error_of(fault)))
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let name = &self.full(name);
        let mut guard = self.disk();
        let disk = &mut *guard;
        let fault = disk.begin()?;
        let page_bytes = disk.page_bytes;
        let mut random = disk.random.clone();
        let file = disk.file(name)?;
        match fault {
            None => {
                file.write_back_all(page_bytes);
                Ok(())
            }
            // The dirty pages stay dirty: after_power_cut decides what of them had arrived.
            Some(Fault::PowerCut) => Err(eio()),
            Some(fault) => {
                file.lost.extend(&file.dirty);
                file.write_back(page_bytes, &mut random);
                if random.below(3) == 0 {
                    file.evict();
                }
                disk.random = random;
                Err(error_of(fault))
            }
        }
    }

    fn rewrite(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let name = &self.full(name);
        let mut disk = self.disk();
        let fault = disk.begin()?;
        if let Some(fault) = fault.filter(|fault| *fault != Fault::PowerCut) {
            return Err(error_of(fault));
        }
        let page_bytes = disk.page_bytes;
        let file = disk.file(name)?;
        let start = usize::try_from(offset).expect("files in memory are small");
        let there = file.cache.get(start..start + bytes.len());
        assert!(there == Some(bytes), "{name}: other bytes at {offset} than those that were there");
        file.dirty.extend((start..start + bytes.len()).map(|at| at / page_bytes));
        if disk.dead { Err(eio()) } else { Ok(()) }
    }

    fn forget_cache(&mut self, name: &str) -> io::Result<()> {
        let name = &self.full(name);
        let mut disk = self.disk();
        let page_bytes = disk.page_bytes;
        let file = disk.file(name)?;
        file.write_back_all(page_bytes);
        file.evict();
        Ok(())
    }

    fn truncate(&mut self, name: &str, size_bytes: u64) -> io::Result<()> {
        let name = &self.full(name);
        let mut disk = self.disk();
        if let Some(fault) = disk.begin()?.filter(|fault| *fault != Fault::PowerCut) {
            return Err(error_of(fault));
        }
        let size = usize::try_from(size_bytes).expect("files in memory are small");
        let page_bytes = disk.page_bytes;
        let file = disk.file(name)?;
        file.cache.resize(size, 0);
        file.dirty.retain(|page| page * page_bytes < size);
        file.lost.retain(|page| page * page_bytes < size);
        if disk.dead { Err(eio()) } else { Ok(()) }
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let name = &self.full(name);
        let mut disk = self.disk();
        if let Some(fault) = disk.begin()?.filter(|fault| *fault != Fault::PowerCut) {
            return Err(error_of(fault));
        }
        disk.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        disk.pending.push(DirOp::Remove(name.to_owned()));
        if disk.dead { Err(eio()) } else { Ok(()) }
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (&self.full(from), &self.full(to));
        let mut disk = self.disk();
        if let Some(fault) = disk.begin()?.filter(|fault| *fault != Fault::PowerCut) {
            return Err(error_of(fault));
        }
        let id = disk.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        disk.names.insert(to.to_owned(), id);
        disk.pending.push(DirOp::Rename(from.to_owned(), to.to_owned()));
        if disk.dead { Err(eio()) } else { Ok(()) }
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        let mut disk = self.disk();
        match disk.begin()? {
            // What was pending stays so: after_power_cut decides.
            Some(Fault::PowerCut) => Err(eio()),
            Some(fault) => Err(error_of(fault)),
            None => {
                disk.pending.clear();
                disk.durable_names = disk.names.clone();
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_cut_keeps_what_was_synced_and_tears_the_rest() {
        let mut store = FaultyStore::new(16);
        store.create("a").unwrap();
        store.append("a", &[1; 100]).unwrap();
        store.sync("a").unwrap();
        store.sync_dir().unwrap();
        store.append("a", &[2; 100]).unwrap();
        store.create("b").unwrap();
        let mut outcomes = BTreeSet::new();
        for seed in 0..50 {
            let left = store.after_power_cut(seed);
            let content = left.content("a");
            assert!(content[..100].iter().all(|byte| *byte == 1), "seed {seed}");
            outcomes.insert((content, left.list().unwrap().len()));
        }
        assert!(outcomes.len() > 20, "only {} different outcomes", outcomes.len());
    }

    #[test]
    fn after_a_failed_sync_the_next_one_succeeds_and_saves_nothing_until_the_cache_is_forgotten() {
        let (mut lying, mut evicted) = (0, 0);
        for seed in 0..30 {
            let mut store = FaultyStore::new(16);
            store.create("a").unwrap();
            store.sync_dir().unwrap();
            store.append("a", &[7; 160]).unwrap();
            store.fail_at(store.operations(), Fault::Eio, seed);
            assert!(store.sync("a").is_err());
            store.sync("a").unwrap();
            let left = store.after_power_cut(0).content("a");
            assert_ne!(left, [7; 160], "seed {seed}");
            if store.content("a") == [7; 160] {
                lying += 1;
                // As on ext4: what is written once more to a page that could not be written stays in the cache.
                store.rewrite("a", 0, &[7; 160]).unwrap();
                store.sync("a").unwrap();
                assert_ne!(store.after_power_cut(0).content("a"), [7; 160], "seed {seed}");
                store.forget_cache("a").unwrap();
                let there = store.content("a");
                assert_eq!(there, left, "seed {seed}: the disk's bytes are shown now");
                store.rewrite("a", 0, &there).unwrap();
                store.sync("a").unwrap();
                assert_eq!(store.after_power_cut(0).content("a"), there);
            } else {
                evicted += 1;
            }
        }
        assert!(lying > 5 && evicted > 5, "{lying} {evicted}");
    }
}
