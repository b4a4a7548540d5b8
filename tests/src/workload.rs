use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FallocateFlags, fallocate};

use crate::Random;

const FILES_MAX: usize = 40;
const FILE_BYTES_MAX: u64 = 192 << 10;

/// What a directory must hold: the hash of each file's content by its path in the directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    files: BTreeMap<PathBuf, String>,
}

impl Manifest {
    /// Of a directory as it is, without subdirectories.
    pub fn read(dir: &Path) -> Result<Manifest> {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let entry = entry?;
            let content = std::fs::read(entry.path());
            let content = content.with_context(|| format!("cannot read {}", entry.path().display()))?;
            files.insert(entry.file_name().into(), hash(&content));
        }
        Ok(Manifest { files })
    }

    /// An error that names a few differences unless both are the same.
    pub fn ensure_equals(&self, wanted: &Manifest) -> Result<()> {
        let names = self.files.keys().chain(wanted.files.keys());
        let mut different: Vec<_> =
            names.filter(|name| self.files.get(*name) != wanted.files.get(*name)).collect();
        different.sort();
        different.dedup();
        let describe =
            |name: &&PathBuf| match (self.files.contains_key(*name), wanted.files.contains_key(*name)) {
                (true, true) => format!("{} has other content", name.display()),
                (true, false) => format!("{} should not be there", name.display()),
                _ => format!("{} is missing", name.display()),
            };
        let first: Vec<String> = different.iter().take(5).map(describe).collect();
        ensure!(
            different.is_empty(),
            "{} of {} files differ: {first:?}",
            different.len(),
            wanted.files.len()
        );
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.files.len()
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

/// Random operations on the files of one directory, with their content kept here too, so that what must be on the
/// disk is known without asking the disk.
pub struct Workload {
    dir: PathBuf,
    random: Random,
    files: BTreeMap<PathBuf, Vec<u8>>,
    made: u64,
}

impl Workload {
    /// Makes `dir`.
    pub fn new(dir: &Path, random: Random) -> Result<Workload> {
        std::fs::create_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Workload { dir: dir.to_owned(), random, files: BTreeMap::new(), made: 0 })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn run(&mut self, steps: usize) -> Result<()> {
        (0..steps).try_for_each(|_| self.step())
    }

    /// One random operation, or two.
    pub fn step(&mut self) -> Result<()> {
        if self.files.len() < 4 {
            return self.create();
        }
        match self.random.below(16) {
            0..=3 if self.files.len() < FILES_MAX => self.create(),
            4 => self.delete(),
            5 => self.rename(),
            6 => self.truncate(),
            7 => self.punch_hole(),
            8 => self.append(),
            9 => self.fsync(),
            _ => self.overwrite(),
        }
    }

    pub fn manifest(&self) -> Manifest {
        Manifest { files: self.files.iter().map(|(name, content)| (name.clone(), hash(content))).collect() }
    }

    fn create(&mut self) -> Result<()> {
        let name = self.new_name();
        let len = usize::try_from(self.random.below(FILE_BYTES_MAX))?;
        let content = self.random.bytes(len);
        std::fs::write(self.dir.join(&name), &content)?;
        self.files.insert(name, content);
        Ok(())
    }

    fn overwrite(&mut self) -> Result<()> {
        let name = self.any_name();
        let content = self.files.get_mut(&name).expect("names are of files");
        let start = self.random.below(content.len() as u64);
        let len = self.random.below(content.len() as u64 - start + 1).min(64 << 10);
        let bytes = self.random.bytes(usize::try_from(len)?);
        open(&self.dir, &name)?.write_all_at(&bytes, start)?;
        let start = usize::try_from(start)?;
        content[start..start + bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }

    fn append(&mut self) -> Result<()> {
        let name = self.any_name();
        let content = self.files.get_mut(&name).expect("names are of files");
        let room = FILE_BYTES_MAX.saturating_sub(content.len() as u64);
        let len = usize::try_from(self.random.below(room + 1))?;
        let bytes = self.random.bytes(len);
        open(&self.dir, &name)?.write_all_at(&bytes, content.len() as u64)?;
        content.extend_from_slice(&bytes);
        Ok(())
    }

    fn truncate(&mut self) -> Result<()> {
        let name = self.any_name();
        let len = self.random.below(FILE_BYTES_MAX);
        open(&self.dir, &name)?.set_len(len)?;
        let content = self.files.get_mut(&name).expect("names are of files");
        content.resize(usize::try_from(len)?, 0);
        Ok(())
    }

    fn punch_hole(&mut self) -> Result<()> {
        let name = self.any_name();
        let content = self.files.get_mut(&name).expect("names are of files");
        let start = self.random.below(content.len() as u64);
        let len = self.random.below(content.len() as u64 - start + 1);
        if len == 0 {
            return Ok(());
        }
        let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(open(&self.dir, &name)?, how, i64::try_from(start)?, i64::try_from(len)?)?;
        content[usize::try_from(start)?..usize::try_from(start + len)?].fill(0);
        Ok(())
    }

    /// To a new name, or over another file.
    fn rename(&mut self) -> Result<()> {
        let from = self.any_name();
        let to = if self.random.below(2) == 0 { self.new_name() } else { self.any_name() };
        std::fs::rename(self.dir.join(&from), self.dir.join(&to))?;
        let content = self.files.remove(&from).expect("names are of files");
        self.files.insert(to, content);
        Ok(())
    }

    fn delete(&mut self) -> Result<()> {
        let name = self.any_name();
        std::fs::remove_file(self.dir.join(&name))?;
        self.files.remove(&name);
        Ok(())
    }

    fn fsync(&mut self) -> Result<()> {
        let name = self.any_name();
        Ok(open(&self.dir, &name)?.sync_all()?)
    }

    fn new_name(&mut self) -> PathBuf {
        self.made += 1;
        format!("file-{}", self.made).into()
    }

    fn any_name(&mut self) -> PathBuf {
        let at = usize::try_from(self.random.below(self.files.len() as u64)).expect("fewer than FILES_MAX");
        self.files.keys().nth(at).expect("there are files whenever an operation needs one").clone()
    }
}

fn open(dir: &Path, name: &Path) -> Result<File> {
    Ok(File::options().write(true).open(dir.join(name))?)
}

fn hash(content: &[u8]) -> String {
    blake3::hash(content).to_hex().to_string()
}
