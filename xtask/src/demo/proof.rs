//! A mark, rebuilt from the journal alone and held against what the workloads promised.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::demo::Made;
use crate::demo::ground::sha256_of_output;
use crate::demo::kept::Inventory;
use crate::demo::load::Workloads;
use crate::demo::protect::Client;
use crate::demo::sqlite::Sqlite;
use crate::demo::volume::{Loop, Mount};
use crate::run;

const FILES_NAMED_MAX: usize = 5;

/// A mark that holds.
pub struct Proof {
    label: String,
    class: String,
    pub replay: Duration,
    checked: Checked,
    files: usize,
    deleted: usize,
    commits: u64,
    transfers: u64,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Proof { label, class, files, deleted, commits, transfers, .. } = self;
        write!(f, "mark {label} ({class}): replayed in {:.1} s, ", self.replay.as_secs_f64())?;
        f.write_str(match self.checked {
            Checked::Clean => "e2fsck clean, ",
            Checked::CleanAfterOrphans => "e2fsck clean after a mount, ",
        })?;
        write!(f, "{files} files match and {deleted} are gone, ")?;
        write!(f, "git fsck ok ({commits} commits), sqlite ok ({transfers} transactions)")
    }
}

/// What e2fsck said.
#[derive(Clone, Copy)]
enum Checked {
    Clean,
    /// Files were open and deleted already when the mark was made: their inodes are on the file system's list of
    /// orphans, which the next mount works off and `e2fsck -n` calls an error.
    CleanAfterOrphans,
}

/// The directory of the proof is removed if it holds.
pub fn prove(
    client: &Client,
    made: &Made,
    workloads: &Workloads,
    dir: &Path,
    volume_bytes: u64,
) -> Result<Proof> {
    let Made { label, class, promise, .. } = made;
    let dir = dir.join(label);
    fs::create_dir(&dir)?;
    let image = dir.join("image");
    let replay = replay(client, &format!("mark:{label}"), &image, volume_bytes)?;
    let checked = check_file_system(&image, &dir)?;

    let device = Loop::over(&image)?;
    // Not even the log is replayed: the image is looked at as it is.
    let mount = Mount::new(device.path(), &dir.join("volume"), "ro,noload")?;
    check_files(&promise.files, mount.point(), &dir)?;
    let commits = workloads.git.prove(mount.point(), &promise.commit)?;
    let transfers = Sqlite::prove(mount.point(), &dir, promise.transfer)?;
    mount.unmount()?;
    drop(device);
    fs::remove_dir_all(&dir)?;
    let (files, deleted) = (promise.files.files.len(), promise.files.deleted.len());
    Ok(Proof {
        label: label.clone(),
        class: class.clone(),
        replay,
        checked,
        files,
        deleted,
        commits,
        transfers,
    })
}

/// With the volume unmounted and protect stopped: source, replica, and the journal's last mark replayed are the same.
/// Returns their SHA-256.
pub fn prove_end(client: &Client, source: &Loop, dir: &Path, volume_bytes: u64) -> Result<String> {
    let replica = client.replica();
    let bytes = fs::metadata(&replica)?.len();
    ensure!(bytes == volume_bytes, "the replica has {bytes} bytes, the source {volume_bytes}");
    run::output(client.command().arg("verify").arg(source.path()).arg(&replica)).context("verify")?;
    run::output(client.command().args(["journal", "check"]).arg(client.journal()))
        .context("journal check")?;
    let image = dir.join("latest.img");
    replay(client, "latest", &image, volume_bytes)?;

    // By other means than Afterwrite's own, and what is on the device rather than in the page cache.
    let past_cache = |path: &Path| -> Result<Command> {
        let mut input = std::ffi::OsString::from("if=");
        input.push(path);
        let mut dd = run::program("dd")?;
        dd.arg(input).args(["bs=1M", "iflag=direct"]);
        Ok(dd)
    };
    let read = |path: &Path| -> Result<Command> {
        let mut cat = run::program("cat")?;
        cat.arg(path);
        Ok(cat)
    };
    let source = sha256_of_output(&mut past_cache(source.path())?)?;
    let replica = sha256_of_output(&mut read(&replica)?)?;
    let replayed = sha256_of_output(&mut read(&image)?)?;
    ensure!(
        source == replica && source == replayed,
        "sha256 of the source {source}, of the replica {replica}, of the journal's last mark {replayed}"
    );
    fs::remove_file(&image)?;
    Ok(source)
}

fn replay(client: &Client, point: &str, image: &Path, volume_bytes: u64) -> Result<Duration> {
    let begun = Instant::now();
    let mut replay = client.command();
    run::output(replay.arg("replay").arg(client.journal()).args(["--to", point, "--target"]).arg(image))?;
    let took = begun.elapsed();
    let bytes = fs::metadata(image)?.len();
    ensure!(bytes == volume_bytes, "the replayed image has {bytes} bytes, the volume {volume_bytes}");
    Ok(took)
}

fn check_file_system(image: &Path, dir: &Path) -> Result<Checked> {
    let Err(first) = e2fsck(image) else { return Ok(Checked::Clean) };
    let superblock = run::output(run::program("dumpe2fs")?.env("LC_ALL", "C").arg("-h").arg(image))?;
    if !has_orphans(&superblock) {
        return Err(first);
    }
    let device = Loop::over(image)?;
    Mount::new(device.path(), &dir.join("volume"), "rw")?.unmount()?;
    drop(device);
    e2fsck(image).context("after a mount that released what was deleted and open")?;
    Ok(Checked::CleanAfterOrphans)
}

/// Changes nothing; an error with what it found unless it found nothing.
fn e2fsck(image: &Path) -> Result<()> {
    let output = run::program("e2fsck")?.env("LC_ALL", "C").arg("-fn").arg(image).output()?;
    if !output.status.success() {
        bail!("e2fsck -fn ({}): {}", output.status, String::from_utf8_lossy(&output.stdout).trim());
    }
    Ok(())
}

fn has_orphans(superblock: &str) -> bool {
    superblock.lines().any(|line| line.starts_with("First orphan inode:") || line.contains("orphan_present"))
}

fn check_files(files: &Inventory, volume: &Path, dir: &Path) -> Result<()> {
    let sums = dir.join("SHA256SUMS");
    fs::write(&sums, sums_file(files))?;
    let mut check = run::program("sha256sum")?;
    let check = check.args(["--check", "--quiet", "--strict"]).arg(&sums).current_dir(volume).output()?;
    if !check.status.success() {
        // Which differ is on stdout, which are missing on stderr.
        let said = [check.stdout, check.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let first: Vec<_> = said.lines().take(FILES_NAMED_MAX).collect();
        bail!("files are not as they were before the mark ({}): {} …", sums.display(), first.join("; "));
    }
    let back = files.deleted.iter().find(|path| volume.join(path).exists());
    ensure!(
        back.is_none(),
        "{} is there, though it was deleted before the mark",
        back.map_or("", |path| path)
    );
    Ok(())
}

fn sums_file(files: &Inventory) -> String {
    files.files.iter().map(|(path, sha256)| format!("{sha256}  {path}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orphans_are_seen_in_the_superblock() {
        assert!(has_orphans("Inode size:  256\nFirst orphan inode:       12\n"));
        assert!(!has_orphans("Filesystem features:      has_journal orphan_file\nInode size: 256\n"));
    }

    #[test]
    fn a_changed_file_and_one_that_came_back_are_found() {
        let dir = std::env::temp_dir().join(format!("xtask-demo-proof-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("it can be made");
        fs::write(dir.join("a"), "abc").expect("it can be written");
        let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let mut files = Inventory { files: vec![("a".into(), sum.into())], deleted: vec!["gone".into()] };
        check_files(&files, &dir, &dir).expect("all is right");
        files.deleted.push("a".into());
        assert!(check_files(&files, &dir, &dir).is_err());
        files.deleted.clear();
        fs::write(dir.join("a"), "abd").expect("it can be written");
        assert!(check_files(&files, &dir, &dir).is_err());
        fs::remove_dir_all(&dir).expect("it can be removed");
    }
}
