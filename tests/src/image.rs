use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{Device, scratch};
use crate::{Fs, Loop, MIB, Manifest, Mount, PATIENCE, Random, finish, run};

/// An error that names the first differing byte, unless the target holds what the source does. The source must not
/// be mounted: what the page cache says of a mounted device is not what is on it.
pub fn assert_identical(source: &Path, target: &Path) -> Result<()> {
    for path in [source, target] {
        let is_file = std::fs::metadata(path)?.is_file();
        if !is_file {
            run(Command::new("blockdev").arg("--flushbufs").arg(path))?;
        }
    }
    let size = run(Command::new("blockdev").arg("--getsize64").arg(source))?;
    let finished = finish(Command::new("cmp").args(["-n", size.trim()]).arg(source).arg(target), PATIENCE)?;
    ensure!(
        finished.code == Some(0),
        "the replica is not the source: {}{}",
        finished.stdout,
        finished.stderr
    );
    Ok(())
}

/// An image of the file system as it was at a mark with the file system frozen: it must be sound as it lies there,
/// without recovery, and hold the files of `manifest` in `dir`.
pub fn check_image(fs: Fs, image: &Path, dir: &Path, manifest: &Manifest) -> Result<()> {
    let context = || format!("image {} of {}", image.display(), fs.name());
    {
        let device = Loop::read_only(image).with_context(context)?;
        let mount = Mount::read_only(fs, device.path()).with_context(context)?;
        let found = Manifest::read(&mount.point().join(dir)).with_context(context)?;
        found.ensure_equals(manifest).with_context(context)?;
        mount.unmount()?;
    }
    check_file_system(fs, image).with_context(context)
}

/// The file system's own check finds nothing to repair; image or device is only read.
///
/// ext4 and btrfs are checked as they lie there, the log not replayed: after recovery even a torn copy often passes.
/// XFS leaves its log dirty and its counter of free blocks for the log to set right when it is frozen, so a copy of it
/// is mounted first.
pub fn check_file_system(fs: Fs, image: &Path) -> Result<()> {
    if fs != Fs::Xfs {
        return fsck(fs, image);
    }
    let dir = scratch()?;
    let copy = dir.path().join("recovered.img");
    run(Command::new("cp").arg("--sparse=always").arg(image).arg(&copy))?;
    let device = Loop::over(&copy)?;
    Mount::recovered(fs, device.path())?.unmount()?;
    fsck(fs, device.path())
}

/// The file system's own check of an image or device as it lies there, which is only read.
pub fn fsck(fs: Fs, image: &Path) -> Result<()> {
    let mut check = match fs {
        Fs::Ext4 => Command::new("e2fsck"),
        Fs::Xfs => Command::new("xfs_repair"),
        Fs::Btrfs => Command::new("btrfs"),
    };
    check.args(match fs {
        Fs::Ext4 => &["-fn"][..],
        // -f: an image file, and no harm on a device.
        Fs::Xfs => &["-n", "-f"],
        Fs::Btrfs => &["check", "--readonly"],
    });
    run(check.arg(image)).map(drop)
}

/// A sparse file to be used as a device.
pub fn blank_image(path: &Path, size_bytes: u64) -> Result<()> {
    Ok(File::create(path)?.set_len(size_bytes)?)
}

/// Fills a device or image with bytes that do not compress, and syncs it.
pub fn fill_random(path: &Path, size_bytes: u64, random: &mut Random) -> Result<()> {
    let mut file = File::options().write(true).open(path)?;
    let mut left = size_bytes;
    while left > 0 {
        let len = left.min(MIB);
        file.write_all(&random.bytes(usize::try_from(len)?))?;
        left -= len;
    }
    Ok(file.sync_all()?)
}
