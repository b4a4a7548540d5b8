//! The volumes that are written, and where what is told of the writes goes: to another file system.

use std::path::{Path, PathBuf};

use afterwrite_tests::*;
use anyhow::{Context, Result};
use tempfile::TempDir;

pub const VOLUME_BYTES: u64 = 256 * MIB;
/// What journals and traces of a volume on a disk may take of memory.
const MEMORY_BYTES: u64 = 3 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Zram,
    LoopMemory,
    LoopDisk,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Zram, Kind::LoopMemory, Kind::LoopDisk];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Zram => "zram",
            Kind::LoopMemory => "loop-memory",
            Kind::LoopDisk => "loop-disk",
        }
    }
}

/// A volume that was written from end to end.
pub struct Volume {
    device: Box<dyn Device>,
    kind: Kind,
    // Of the image; dropped after the device.
    _image: Option<TempDir>,
    memory: Option<Mount>,
    disk: PathBuf,
    /// Which blktrace reads, and not every machine has mounted.
    debugfs: Mount,
}

impl Volume {
    pub fn new(kind: Kind, disk: &Path) -> Result<Volume> {
        let (device, image): (Box<dyn Device>, _) = match kind {
            Kind::Zram => (Box::new(Zram::new(VOLUME_BYTES)?), None),
            Kind::LoopMemory => {
                let (dir, image) = image(Path::new("/dev/shm"))?;
                (Box::new(Loop::over(&image)?), Some(dir))
            }
            Kind::LoopDisk => {
                let (dir, image) = image(disk)?;
                // Past the page cache, or it would be memory once more.
                (Box::new(Loop::direct(&image)?), Some(dir))
            }
        };
        let memory = if kind == Kind::LoopDisk { Some(mount_tmpfs(MEMORY_BYTES)?) } else { None };
        fill_random(device.path(), VOLUME_BYTES, &mut Random::new(1))?;
        let debugfs = Mount::with_options(Path::new("debugfs"), "debugfs", "rw")?;
        Ok(Volume { device, kind, _image: image, memory, disk: disk.to_owned(), debugfs })
    }

    pub fn path(&self) -> &Path {
        self.device.path()
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn debugfs(&self) -> &Path {
        self.debugfs.point()
    }

    /// A new directory on a file system that is not the volume's.
    pub fn elsewhere(&self) -> Result<TempDir> {
        let base = self.memory.as_ref().map_or(self.disk.as_path(), Mount::point);
        directory(base)
    }
}

fn image(base: &Path) -> Result<(TempDir, PathBuf)> {
    let dir = directory(base)?;
    let image = dir.path().join("volume.img");
    blank_image(&image, VOLUME_BYTES)?;
    fill_random(&image, VOLUME_BYTES, &mut Random::new(1))?;
    Ok((dir, image))
}

fn directory(base: &Path) -> Result<TempDir> {
    let dir = tempfile::Builder::new().prefix("afterwrite-bench-").tempdir_in(base);
    dir.with_context(|| format!("cannot make a directory in {}", base.display()))
}
