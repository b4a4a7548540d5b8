use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::devices::tell;
use crate::{MIB, PATIENCE, finish, run, scratch, wait_until};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fs {
    Ext4,
    Xfs,
    Btrfs,
}

impl Fs {
    pub const ALL: [Fs; 3] = [Fs::Ext4, Fs::Xfs, Fs::Btrfs];

    pub fn name(self) -> &'static str {
        match self {
            Fs::Ext4 => "ext4",
            Fs::Xfs => "xfs",
            Fs::Btrfs => "btrfs",
        }
    }

    /// A size at which mkfs and the tests' workloads have room.
    pub fn volume_bytes(self) -> u64 {
        match self {
            Fs::Ext4 => 96 * MIB,
            Fs::Xfs => 320 * MIB,
            Fs::Btrfs => 272 * MIB,
        }
    }

    pub fn make(self, device: &Path) -> Result<()> {
        let mut mkfs = Command::new(format!("mkfs.{}", self.name()));
        mkfs.arg("-q");
        match self {
            Fs::Ext4 => {}
            // With these it makes file systems of less than 300 MiB, too.
            Fs::Xfs => drop(mkfs.env("TEST_DEV", ".").env("TEST_DIR", ".").env("QA_CHECK_FS", "1")),
            Fs::Btrfs => drop(mkfs.args(["-m", "single"])),
        }
        run(mkfs.arg(device)).map(drop)
    }

    /// Options to mount an image as it is, its log not replayed, beside the volume it is a copy of.
    fn read_only_options(self) -> &'static str {
        match self {
            Fs::Ext4 => "ro,noload",
            Fs::Xfs => "ro,norecovery,nouuid",
            Fs::Btrfs => "ro,rescue=nologreplay",
        }
    }
}

/// A mounted file system, unmounted when dropped, also if something has left it frozen.
pub struct Mount {
    device: PathBuf,
    kind: String,
    options: String,
    point: PathBuf,
    mounted: bool,
    _dir: TempDir,
}

impl Mount {
    /// Makes a file system and mounts it with `discard` off.
    pub fn make(fs: Fs, device: &Path) -> Result<Mount> {
        fs.make(device)?;
        Mount::with_options(device, fs.name(), "rw")
    }

    pub fn read_only(fs: Fs, device: &Path) -> Result<Mount> {
        Mount::with_options(device, fs.name(), fs.read_only_options())
    }

    /// As after a power cut: the kernel replays the log. The volume that this is a copy of may be mounted beside it.
    pub fn recovered(fs: Fs, device: &Path) -> Result<Mount> {
        Mount::with_options(device, fs.name(), if fs == Fs::Xfs { "nouuid" } else { "rw" })
    }

    pub fn with_options(device: &Path, kind: &str, options: &str) -> Result<Mount> {
        let dir = scratch()?;
        let point = dir.path().join("mnt");
        std::fs::create_dir(&point)?;
        let (kind, options) = (kind.to_owned(), options.to_owned());
        let mut this = Mount { device: device.to_owned(), kind, options, point, mounted: false, _dir: dir };
        this.mount_now()?;
        Ok(this)
    }

    /// Unmounted and mounted again at the same place, as after a fault that shut it down; an error if it is busy for
    /// longer than `limit`.
    pub fn cycle(&mut self, limit: Duration) -> Result<()> {
        self.unmount_within(limit)?;
        self.mount_now()
    }

    /// Changes options of what is mounted.
    pub fn remount(&self, options: &str) -> Result<()> {
        let options = format!("remount,{options}");
        run(Command::new("mount").args(["-o", &options]).arg(&self.point)).map(drop)
    }

    pub fn point(&self) -> &Path {
        &self.point
    }

    pub fn fstrim(&self) -> Result<()> {
        run(Command::new("fstrim").arg(&self.point)).map(drop)
    }

    pub fn unmount(mut self) -> Result<()> {
        self.unmount_now()
    }

    fn mount_now(&mut self) -> Result<()> {
        let mut mount = Command::new("mount");
        mount.args(["-t", &self.kind, "-o", &self.options]).arg(&self.device).arg(&self.point);
        run(&mut mount)?;
        self.mounted = true;
        Ok(())
    }

    fn unmount_now(&mut self) -> Result<()> {
        self.mounted = false;
        self.unmount_within(PATIENCE)
    }

    fn unmount_within(&mut self, limit: Duration) -> Result<()> {
        wait_until(&format!("{} can be unmounted", self.point.display()), limit, || {
            Ok(finish(Command::new("umount").arg(&self.point), PATIENCE)?.code == Some(0))
        })
        .with_context(|| format!("open there: {:?}", self.open_files()))?;
        self.mounted = false;
        Ok(())
    }

    /// What processes have open in it, and in which descriptor.
    fn open_files(&self) -> Vec<(PathBuf, PathBuf)> {
        let entries =
            |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let descriptors = entries("/proc".into()).flat_map(|process| entries(process.join("fd")));
        let links = descriptors.filter_map(|path| Some((std::fs::read_link(&path).ok()?, path)));
        links.filter(|(file, _)| file.starts_with(&self.point)).collect()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            // Unmounting a frozen file system would wait for ever. Not frozen is no error.
            tell(finish(Command::new("fsfreeze").arg("--unfreeze").arg(&self.point), PATIENCE));
            tell(self.unmount_now());
        }
    }
}

/// A small file system that fills up.
pub fn mount_tmpfs(size_bytes: u64) -> Result<Mount> {
    Mount::with_options(Path::new("afterwrite-test"), "tmpfs", &format!("size={size_bytes}"))
}

/// The rung `tracepoint` reads tracefs, which not every machine has mounted. Mounted where it belongs, and left there:
/// other tests may be using it by then.
pub fn ensure_tracefs() -> Result<()> {
    let events = Path::new("/sys/kernel/tracing/events");
    if !events.exists() {
        let mount = finish(
            Command::new("mount").args(["-t", "tracefs", "tracefs", "/sys/kernel/tracing"]),
            PATIENCE,
        )?;
        // Another test may have been faster.
        ensure!(events.exists(), "cannot mount tracefs: {}", mount.stderr);
    }
    Ok(())
}
