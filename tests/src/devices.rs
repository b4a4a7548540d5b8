use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::{PATIENCE, run, scratch, wait_until};

/// A block device of the test's own.
pub trait Device {
    fn path(&self) -> &Path;
}

/// A loop device over an own sparse image, detached and deleted when dropped.
pub struct Loop {
    path: PathBuf,
    image: PathBuf,
    partitions: Vec<u32>,
    /// The device is to go from the kernel, too.
    number: Option<i32>,
    _dir: Option<TempDir>,
}

nix::ioctl_write_int_bad!(loop_ctl_remove, 0x4c81);

impl Loop {
    pub fn new(size_bytes: u64) -> Result<Loop> {
        Loop::with_sectors(size_bytes, 512)
    }

    pub fn with_sectors(size_bytes: u64, sector_bytes: u32) -> Result<Loop> {
        let dir = scratch()?;
        let image = dir.path().join("volume.img");
        File::create(&image)?.set_len(size_bytes)?;
        let mut this = Loop::attach(&image, &["--sector-size", &sector_bytes.to_string()])?;
        this._dir = Some(dir);
        Ok(this)
    }

    /// Over a file that somebody else keeps.
    pub fn over(image: &Path) -> Result<Loop> {
        Loop::attach(image, &[])
    }

    /// As [`Loop::over`], past the page cache: reads of the device are reads of the disk.
    pub fn direct(image: &Path) -> Result<Loop> {
        Loop::attach(image, &["--direct-io=on"])
    }

    /// As [`Loop::over`], and the device refuses writes.
    pub fn read_only(image: &Path) -> Result<Loop> {
        Loop::attach(image, &["--read-only"])
    }

    /// As [`Loop::over`], at a device that the kernel has counted no I/O of, as after a boot.
    pub fn fresh(image: &Path) -> Result<Loop> {
        for number in 64..1024 {
            if Path::new(&format!("/sys/block/loop{number}")).exists() {
                continue;
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            // Another test may have been faster.
            if run(Command::new("losetup").arg(&path).arg(image)).is_ok() {
                wait_for_node(&path)?;
                let image = image.to_owned();
                return Ok(Loop { path, image, partitions: Vec::new(), number: Some(number), _dir: None });
            }
        }
        bail!("there is no number left for a loop device")
    }

    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Adds a partition, by ioctl: not every kernel reads partition tables. Bounds in bytes.
    pub fn add_partition(&mut self, start: u64, len: u64) -> Result<PathBuf> {
        let number = u32::try_from(self.partitions.len() + 1)?;
        let args = [u64::from(number), start / 512, len / 512].map(|value| value.to_string());
        run(Command::new("addpart").arg(&self.path).args(args))?;
        self.partitions.push(number);
        let path = PathBuf::from(format!("{}p{number}", self.path.display()));
        wait_for_node(&path)?;
        Ok(path)
    }

    fn attach(image: &Path, options: &[&str]) -> Result<Loop> {
        let attach = || -> Result<PathBuf> {
            let path = run(Command::new("losetup").args(["--find", "--show"]).args(options).arg(image))?;
            wait_for_node(path.trim().as_ref())?;
            Ok(path.trim().into())
        };
        let this =
            |path| Loop { path, image: image.to_owned(), partitions: Vec::new(), number: None, _dir: None };
        let first = this(attach()?);
        if options.contains(&"--read-only") || !first.refuses_writes()? {
            return Ok(first);
        }
        // An earlier user's `blockdev --setro` stays with the loop device, and then it is attached read-only.
        run(Command::new("blockdev").arg("--setrw").arg(&first.path))?;
        drop(first);
        let second = this(attach()?);
        ensure!(!second.refuses_writes()?, "{} refuses writes", second.path.display());
        Ok(second)
    }

    fn refuses_writes(&self) -> Result<bool> {
        Ok(run(Command::new("blockdev").arg("--getro").arg(&self.path))?.trim() == "1")
    }
}

impl Device for Loop {
    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        for number in &self.partitions {
            tell(run(Command::new("delpart").arg(&self.path).arg(number.to_string())));
        }
        tell(run(Command::new("losetup").arg("--detach").arg(&self.path)));
        if let Some(number) = self.number {
            tell(wait_until(&format!("{} can be removed", self.path.display()), PATIENCE, || {
                let control = File::open("/dev/loop-control")?;
                // SAFETY: the descriptor is open, and the argument is a number.
                Ok(unsafe { loop_ctl_remove(control.as_raw_fd(), number) }.is_ok())
            }));
        }
    }
}

/// A zram device of the test's own (works by bios, not requests), removed when dropped.
pub struct Zram {
    path: PathBuf,
    number: String,
}

impl Zram {
    pub fn new(size_bytes: u64) -> Result<Zram> {
        let number = std::fs::read_to_string("/sys/class/zram-control/hot_add")
            .context("cannot make a zram device; is the module loaded (`modprobe zram`)?")?;
        let number = number.trim().to_owned();
        let this = Zram { path: format!("/dev/zram{number}").into(), number };
        wait_for_node(&this.path)?;
        this.set_size(size_bytes)?;
        Ok(this)
    }

    /// As if another disk, an empty one, had its name now.
    pub fn exchange(&self, size_bytes: u64) -> Result<()> {
        wait_until(&format!("zram{} can be reset", self.number), PATIENCE, || {
            Ok(std::fs::write(self.attribute("reset"), "1").is_ok())
        })?;
        self.set_size(size_bytes)
    }

    fn set_size(&self, size_bytes: u64) -> Result<()> {
        Ok(std::fs::write(self.attribute("disksize"), size_bytes.to_string())?)
    }

    fn attribute(&self, name: &str) -> String {
        format!("/sys/block/zram{}/{name}", self.number)
    }
}

impl Device for Zram {
    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        // Busy as long as anybody, blkid for one, has it open.
        tell(wait_until(&format!("zram{} can be removed", self.number), PATIENCE, || {
            let reset = std::fs::write(self.attribute("reset"), "1");
            Ok(reset
                .and_then(|()| std::fs::write("/sys/class/zram-control/hot_remove", &self.number))
                .is_ok())
        }));
    }
}

/// There is no udev here to wait for: the kernel's devtmpfs makes the node, soon.
fn wait_for_node(path: &Path) -> Result<()> {
    wait_until(&format!("{} is there", path.display()), PATIENCE, || Ok(path.exists()))
}

/// In a drop an error can only be shown.
pub(crate) fn tell<T>(result: Result<T>) {
    if let Err(error) = result {
        eprintln!("cleaning up: {error:#}");
    }
}
