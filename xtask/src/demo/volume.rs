//! A loop device and a mount, gone when dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::demo::{tell, wait_until};
use crate::run;

const SECTOR_BYTES: u64 = 512;
const BUSY: Duration = Duration::from_secs(30);

pub struct Loop {
    path: PathBuf,
}

impl Loop {
    /// Over a new sparse file.
    pub fn make(image: &Path, size_bytes: u64) -> Result<Loop> {
        File::create_new(image)?.set_len(size_bytes)?;
        Loop::over(image)
    }

    pub fn over(image: &Path) -> Result<Loop> {
        let first = Loop::attach(image)?;
        if !first.refuses_writes()? {
            return Ok(first);
        }
        // An earlier user's `blockdev --setro` stays with the loop device, and then it is attached read-only.
        run::output(run::program("blockdev")?.arg("--setrw").arg(&first.path))?;
        drop(first);
        let second = Loop::attach(image)?;
        ensure!(!second.refuses_writes()?, "{} refuses writes", second.path.display());
        Ok(second)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn traffic(&self) -> Result<Traffic> {
        let name = self.path.file_name().expect("a device node has a name");
        let stat = fs::read_to_string(Path::new("/sys/block").join(name).join("stat"))?;
        Traffic::parse(&stat).with_context(|| format!("{}: {stat}", self.path.display()))
    }

    fn attach(image: &Path) -> Result<Loop> {
        let path = run::output(run::program("losetup")?.args(["--find", "--show"]).arg(image))?;
        let this = Loop { path: path.trim().into() };
        wait_until("the loop device is there", BUSY, None, || Ok(this.path.exists()))?;
        Ok(this)
    }

    fn refuses_writes(&self) -> Result<bool> {
        Ok(run::output(run::program("blockdev")?.arg("--getro").arg(&self.path))?.trim() == "1")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        tell(
            run::program("losetup")
                .and_then(|mut losetup| run::output(losetup.arg("--detach").arg(&self.path))),
        );
    }
}

/// What a device has been given since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub written_bytes: u64,
    pub discarded_bytes: u64,
}

impl Traffic {
    /// Documentation/block/stat.rst of the kernel.
    fn parse(stat: &str) -> Option<Traffic> {
        let fields: Option<Vec<u64>> = stat.split_whitespace().map(|field| field.parse().ok()).collect();
        let fields = fields?;
        let bytes = |index: usize| Some(fields.get(index)? * SECTOR_BYTES);
        Some(Traffic { written_bytes: bytes(6)?, discarded_bytes: bytes(13)? })
    }

    pub fn since(self, before: Traffic) -> Traffic {
        Traffic {
            written_bytes: self.written_bytes - before.written_bytes,
            discarded_bytes: self.discarded_bytes - before.discarded_bytes,
        }
    }
}

pub struct Mount {
    point: PathBuf,
    mounted: bool,
}

impl Mount {
    /// At a new directory.
    pub fn new(device: &Path, point: &Path, options: &str) -> Result<Mount> {
        fs::create_dir_all(point)?;
        run::output(run::program("mount")?.args(["-t", "ext4", "-o", options]).arg(device).arg(point))?;
        Ok(Mount { point: point.to_owned(), mounted: true })
    }

    pub fn point(&self) -> &Path {
        &self.point
    }

    pub fn sync(&self) -> Result<()> {
        run::output(run::program("sync")?.arg("--file-system").arg(&self.point)).map(drop)
    }

    pub fn unmount(mut self) -> Result<()> {
        self.unmount_now()
    }

    fn unmount_now(&mut self) -> Result<()> {
        self.mounted = false;
        let mut last = None;
        let waited = wait_until(&format!("{} can be unmounted", self.point.display()), BUSY, None, || {
            last = run::output(run::program("umount")?.arg(&self.point)).err();
            Ok(last.is_none())
        });
        waited.with_context(|| format!("{last:?}"))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            tell(self.unmount_now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_read_from_the_kernels_counters() {
        let stat = "  31  0  1640  2  977  44  75688  1900  0  96  1902  5  0  20480  0  11  3\n";
        let traffic = Traffic::parse(stat).expect("it has all fields");
        assert_eq!(traffic, Traffic { written_bytes: 75688 * 512, discarded_bytes: 20480 * 512 });
        assert_eq!(Traffic::parse("1 2 3"), None);
    }
}
