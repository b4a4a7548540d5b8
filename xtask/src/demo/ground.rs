//! Where the demo happens: one directory, one demo in it at a time, nothing of an earlier one.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::demo::table::size;
use crate::run;

const GIB: u64 = 1 << 30;
/// Volume, replica, one replayed image and a journal.
const FREE_BYTES: u64 = 4 * GIB;
/// What the journal of a longer load takes at most.
const FREE_BYTES_PER_SECOND: u64 = 32 << 20;
const FREE_SECONDS: u64 = 30;

pub struct Ground {
    dir: PathBuf,
    _lock: File,
}

impl Ground {
    pub fn take(dir: &Path, seconds: u64) -> Result<Ground> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let lock = File::create(dir.with_extension("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another demo is running in {}", dir.display()),
            Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the demo's directory"),
        }
        let ground = Ground { dir, _lock: lock };
        ground.sweep()?;
        fs::create_dir(&ground.dir)?;
        ground.check_space(seconds)?;
        Ok(ground)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn clear(&self) -> Result<()> {
        fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))
    }

    /// What a demo left that was killed or kept its files. With the lock held none is running.
    fn sweep(&self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        for point in mount_points_below(&mounts, &self.dir) {
            run::run(run::program("umount")?.arg(&point))?;
        }
        let loops = run::output(run::program("losetup")?.args([
            "--list",
            "--noheadings",
            "--output",
            "NAME,BACK-FILE",
        ]))?;
        for device in loops_below(&loops, &self.dir) {
            run::run(run::program("losetup")?.args(["--detach", device]))?;
        }
        self.clear()
    }

    fn check_space(&self, seconds: u64) -> Result<()> {
        let needed = FREE_BYTES + seconds.saturating_sub(FREE_SECONDS) * FREE_BYTES_PER_SECOND;
        let stat = nix::sys::statvfs::statvfs(&self.dir)?;
        let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
        ensure!(
            free >= needed,
            "{} has {} free and the demo needs {}: make room, or choose another place with CARGO_TARGET_DIR",
            self.dir.display(),
            size(free),
            size(needed)
        );
        Ok(())
    }
}

fn mount_points_below(mounts: &str, dir: &Path) -> Vec<PathBuf> {
    let point = |line: &str| Some(PathBuf::from(line.split(' ').nth(1)?.replace(r"\040", " ")));
    // The last one mounted is unmounted first.
    mounts.lines().rev().filter_map(point).filter(|point| point.starts_with(dir)).collect()
}

fn loops_below<'a>(loops: &'a str, dir: &Path) -> Vec<&'a str> {
    let own = |line: &'a str| {
        let (device, file) = line.trim().split_once(char::is_whitespace)?;
        Path::new(file.trim()).starts_with(dir).then_some(device)
    };
    loops.lines().filter_map(own).collect()
}

/// Ctrl-C and the like end the demo at its next step, so that it can clean up.
pub struct Interrupt {
    came: Arc<AtomicBool>,
}

impl Interrupt {
    pub fn catch() -> Result<Interrupt> {
        let came = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&came)).context("cannot catch Ctrl-C")?;
        }
        Ok(Interrupt { came })
    }

    pub fn came(&self) -> bool {
        self.came.load(Ordering::SeqCst)
    }

    pub fn check(&self) -> Result<()> {
        ensure!(!self.came(), "interrupted");
        Ok(())
    }
}

/// The SHA-256 of bytes, as sha256sum prints it.
pub fn sha256(bytes: &[u8]) -> Result<String> {
    use std::io::Write;
    use std::process::Stdio;
    let mut child = run::program("sha256sum")?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("sha256sum")?;
    child.stdin.take().expect("stdin was asked for above").write_all(bytes)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "sha256sum failed ({})", output.status);
    first_word(&String::from_utf8(output.stdout)?)
}

/// As [`sha256`], of all that a command writes to its stdout.
pub fn sha256_of_output(command: &mut Command) -> Result<String> {
    use std::process::Stdio;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let stdout = child.stdout.take().expect("stdout was asked for above");
    let sum = run::output(run::program("sha256sum")?.stdin(stdout));
    let status = child.wait()?;
    ensure!(status.success(), "{command:?} failed ({status})");
    first_word(&sum?)
}

fn first_word(text: &str) -> Result<String> {
    text.split_whitespace().next().map(str::to_owned).context("sha256sum printed nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_the_directory_is_swept_innermost_first() {
        let mounts = "/dev/vda / ext4 rw 0 0\n/dev/loop3 /t/demo/volume ext4 rw 0 0\n/dev/loop4 /t/demo/volume/x\\040y ext4 rw 0 0\n\
                      /dev/loop5 /t/demo2 ext4 rw 0 0\n";
        let points = mount_points_below(mounts, Path::new("/t/demo"));
        assert_eq!(points, [Path::new("/t/demo/volume/x y"), Path::new("/t/demo/volume")]);
        let loops = "/dev/loop1 /dev/shm/x (deleted)\n/dev/loop10 /t/demo/volume.img\n/dev/loop2 /t/demo2/volume.img\n";
        assert_eq!(loops_below(loops, Path::new("/t/demo")), ["/dev/loop10"]);
    }

    #[test]
    fn the_sum_is_sha256() {
        let sum = sha256(b"abc").expect("coreutils are there");
        assert_eq!(sum, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
