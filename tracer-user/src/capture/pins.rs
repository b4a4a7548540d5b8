//! Where pinned probes are found: `/sys/fs/bpf/afterwrite/DEVICE/GENERATION`, a name for each program, link and map. What
//! is pinned lives until its name is removed, whoever made it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Detach first, so that what is left half removed can't be taken for probes at work.
pub const LINKS: [&str; 2] = ["link_submit", "link_complete"];
pub const PROGRAMS: [&str; 2] = ["program_submit", "program_complete"];

/// Of a BPF file system; mounted where every distribution mounts it, if it is not. AFTERWRITE_BPFFS names another one,
/// and when it is empty nothing is pinned.
pub fn root() -> io::Result<PathBuf> {
    let named = std::env::var_os("AFTERWRITE_BPFFS");
    let bpffs = named.map_or_else(|| PathBuf::from("/sys/fs/bpf"), PathBuf::from);
    if bpffs.as_os_str().is_empty() {
        return Err(io::Error::other("AFTERWRITE_BPFFS is empty"));
    }
    if statfs(&bpffs)?.filesystem_type() != BPF_FS_MAGIC {
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), Some("mode=0700"))?;
    }
    Ok(bpffs.join("afterwrite"))
}

/// Names of the volumes for which something is pinned.
pub fn volumes(root: &Path) -> io::Result<Vec<String>> {
    let mut names: Vec<String> = children(root)?
        .into_iter()
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Held by the process that reads what a volume's probes record; the kernel lets go of it however that ends.
pub type InUse = Flock<File>;

/// `None` when another process holds it.
pub fn lock(root: &Path, volume: &str) -> io::Result<Option<InUse>> {
    let dir = volume_dir(root, volume);
    std::fs::create_dir_all(&dir)?;
    match Flock::lock(File::open(&dir)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// The process that holds that, as the kernel's list of locks (`/proc/locks`) tells it.
pub fn holder(root: &Path, volume: &str, locks: &str) -> Option<u32> {
    let dir = std::fs::metadata(volume_dir(root, volume)).ok()?;
    let place = format!("{:02x}:{:02x}:{}", major(dir.dev()), minor(dir.dev()), dir.ino());
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&&place[..]))
            .then(|| words[4].parse().ok())?
    })
}

/// One set of probes of a volume. Only while probes are replaced by those of another version are there two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    pub number: u64,
    dir: PathBuf,
}

impl Generation {
    /// Those there are, the oldest first.
    pub fn all(root: &Path, volume: &str) -> io::Result<Vec<Generation>> {
        let mut found: Vec<Generation> = children(&volume_dir(root, volume))?
            .into_iter()
            .filter_map(|dir| Some(Generation { number: dir.file_name()?.to_str()?.parse().ok()?, dir }))
            .collect();
        found.sort_by_key(|generation| generation.number);
        Ok(found)
    }

    pub fn create(root: &Path, volume: &str, number: u64) -> io::Result<Generation> {
        let dir = volume_dir(root, volume).join(number.to_string());
        std::fs::create_dir_all(&dir)?;
        Ok(Generation { number, dir })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The probes are detached once nobody holds them open.
    pub fn remove(&self) -> io::Result<()> {
        for link in LINKS {
            match std::fs::remove_file(self.path(link)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        for path in children(&self.dir)? {
            std::fs::remove_file(path)?;
        }
        std::fs::remove_dir(&self.dir)?;
        // The volume's and our own directory go with the last one in them.
        for dir in self.dir.ancestors().skip(1).take(2) {
            let _ = std::fs::remove_dir(dir);
        }
        Ok(())
    }
}

/// A BPF file system takes no dots in names.
fn volume_dir(root: &Path, volume: &str) -> PathBuf {
    root.join(volume.replace(['.', '/'], "!"))
}

fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
