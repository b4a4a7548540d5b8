//! What must not begin does not, and says what to do instead; what must end, ends without harm to the source.

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};

const LIMIT: Duration = Duration::from_secs(60);

/// A device of 16 MiB that holds random bytes.
fn filled_disk() -> Result<Loop> {
    let disk = Loop::new(16 * MIB)?;
    fill_random(disk.path(), 16 * MIB, &mut Random::new(seed()))?;
    Ok(disk)
}

#[test]
fn what_is_no_block_device() -> Result<()> {
    let dir = scratch()?;
    let file = dir.path().join("disk.img");
    blank_image(&file, MIB)?;
    Protection::new(&file)?.refused(&["losetup", "disk.img"])?;
    Protection::new("/dev/null".as_ref())?.refused(&["not a block device"])?;
    Protection::new(&dir.path().join("none"))?.refused(&["no ", "none"])?;
    Ok(())
}

#[test]
fn user_who_is_not_root() -> Result<()> {
    let disk = Loop::new(4 * MIB)?;
    // Where anybody may run it from and write to: only the privilege is missing.
    let dir = scratch()?;
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777))?;
    let copy = dir.path().join("afterwrite");
    copy_program(&binary(), &copy)?;
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755))?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(&copy);
    command.arg("protect").arg(disk.path()).env("AFTERWRITE_RUN_DIR", dir.path());
    command.arg("--journal").arg(dir.path().join("journal")).arg("--target").arg(dir.path().join("replica"));
    says(&finish(&mut command, LIMIT)?, 2, &["root"])?;
    ensure!(!dir.path().join("replica").exists(), "a refused protection has made its target");
    Ok(())
}

#[test]
fn target_that_cannot_take_the_volume() -> Result<()> {
    let disk = filled_disk()?;
    let smaller = Loop::new(15 * MIB)?;
    let protection = Protection::new(disk.path())?.target_at(smaller.path());
    protection.refused(&["larger target"])?;
    let mounted = Loop::new(Fs::Ext4.volume_bytes())?;
    let mount = Mount::make(Fs::Ext4, mounted.path())?;
    let protection = Protection::new(disk.path())?.target_at(mounted.path());
    protection.refused(&["in use"])?;
    // Not with force either.
    Protection::new(disk.path())?.target_at(mounted.path()).arg("--force").refused(&["in use"])?;
    mount.unmount()?;
    check_file_system(Fs::Ext4, mounted.path())?;
    let dir = scratch()?;
    let image = dir.path().join("read-only.img");
    blank_image(&image, 32 * MIB)?;
    let read_only = Loop::read_only(&image)?;
    Protection::new(disk.path())?.target_at(read_only.path()).refused(&["read-only"])?;
    Protection::new(disk.path())?.target_at(dir.path()).refused(&["directory"])?;
    Ok(())
}

#[test]
fn target_that_holds_something_else() -> Result<()> {
    let disk = filled_disk()?;
    let protection = Protection::new(disk.path())?;
    std::fs::write(protection.target(), "precious")?;
    protection.refused(&["--force"])?;
    ensure!(std::fs::read(protection.target())? == b"precious");
    let protection = protection.arg("--force");
    protection.start()?.stop()?;
    assert_identical(disk.path(), protection.target())
}

#[test]
fn journal_or_target_on_the_protected_volume() -> Result<()> {
    let disk = Loop::new(Fs::Ext4.volume_bytes())?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    let refused_with = |journal: Option<&Path>, target: Option<&Path>, hint: &str| {
        let mut protection = Protection::new(disk.path())?;
        if let Some(journal) = journal {
            protection = protection.journal_at(journal);
        }
        if let Some(target) = target {
            protection = protection.target_at(target);
        }
        protection.refused(&[hint]).with_context(|| format!("journal {journal:?}, target {target:?}"))
    };
    let refused =
        |journal: Option<&Path>, target: Option<&Path>| refused_with(journal, target, "protected volume");
    refused(Some(&mount.point().join("journal")), None)?;
    refused(None, Some(&mount.point().join("replica.img")))?;
    refused(None, Some(disk.path()))?;
    refused_with(None, Some(disk.image()), "is made of")?;

    // In a file system in a file on the volume.
    let image = mount.point().join("inner.img");
    blank_image(&image, 48 * MIB)?;
    let inner = Loop::over(&image)?;
    refused(None, Some(inner.path()))?;
    let inner_mount = Mount::make(Fs::Ext4, inner.path())?;
    refused(Some(&inner_mount.point().join("journal")), None)?;
    refused(None, Some(&inner_mount.point().join("replica.img")))?;
    Ok(())
}

#[test]
fn journal_on_a_partition_of_the_protected_disk() -> Result<()> {
    let mut disk = Loop::new(Fs::Ext4.volume_bytes())?;
    let partition = disk.add_partition(MIB, 64 * MIB)?;
    let mount = Mount::make(Fs::Ext4, &partition)?;
    let journal = mount.point().join("journal");
    Protection::new(disk.path())?.journal_at(&journal).refused(&["partition"])?;
    Protection::new(&partition)?.target_at(disk.path()).refused(&["disk"])?;
    Ok(())
}

#[test]
fn journal_of_another_volume() -> Result<()> {
    let (disk, other) = (filled_disk()?, Loop::new(16 * MIB)?);
    let protection = Protection::new(disk.path())?;
    protection.start()?.stop()?;
    let before = Manifest::read(protection.journal())?;
    let stranger = Protection::new(other.path())?.journal_at(protection.journal());
    stranger.refused(&["is the journal of"])?;
    Manifest::read(protection.journal())?.ensure_equals(&before)?;
    // Nor is a directory with other things in it taken for a new journal.
    let dir = scratch()?;
    std::fs::write(dir.path().join("letter.txt"), "dear reader")?;
    Protection::new(disk.path())?.journal_at(dir.path()).refused(&["not a journal"])?;
    Ok(())
}

#[test]
fn second_protection_of_the_same_volume() -> Result<()> {
    let disk = filled_disk()?;
    let protection = Protection::new(disk.path())?;
    let protect = protection.start()?;
    // All the same; the same journal for another target.
    protection.refused(&["already"])?;
    let second = Protection::new(disk.path())?.journal_at(protection.journal());
    second.refused(&["in use"])?;
    protect.mark("still here")?;
    protect.stop()?;
    assert_identical(disk.path(), protection.target())
}

#[test]
fn disk_whose_writes_are_not_counted() -> Result<()> {
    let disk = filled_disk()?;
    let name = disk.path().file_name().and_then(|name| name.to_str()).context("loop devices have names")?;
    let counted = PathBuf::from(format!("/sys/block/{name}/queue/iostats"));
    std::fs::write(&counted, "0")?;
    let refusal = Protection::new(disk.path())?.refused(&["does not count", name, "queue/iostats"]);
    // The setting would meet the next user of this loop device.
    std::fs::write(&counted, "1")?;
    refusal.map(drop)
}

#[test]
fn source_that_changes_its_size() -> Result<()> {
    let disk = filled_disk()?;
    let protection = Protection::new(disk.path())?;
    let protect = protection.start()?;
    File::options().write(true).open(disk.image())?.set_len(24 * MIB)?;
    run(Command::new("losetup").arg("--set-capacity").arg(disk.path()))?;
    says(&protect.ended()?, 2, &["size"])?;
    protection.refused(&["size"])?;
    Ok(())
}

#[test]
fn kernel_without_btf_is_named_and_protects_by_a_lower_rung() -> Result<()> {
    ensure_tracefs()?;
    let mut doctor = afterwrite();
    let doctor = finish(doctor.arg("doctor").env("AFTERWRITE_BTF", "/nonexistent"), LIMIT)?;
    let told = format!("{}{}", doctor.stdout, doctor.stderr);
    ensure!(told.contains("BTF"), "doctor does not miss it:\n{told}");

    let disk = filled_disk()?;
    let protection = Protection::new(disk.path())?.env("AFTERWRITE_BTF", "/nonexistent");
    let mut protect = protection.spawn()?;
    let live = wait_until("protect is live or has ended", PATIENCE, || {
        let status = protect.status().map(|status| status.to_string()).unwrap_or_default();
        Ok(status.contains("\"tracepoint\"") && status.contains("\"live\"") || protect.has_ended()?)
    });
    live.with_context(|| protect.log())?;
    if protect.has_ended()? {
        says(&protect.ended()?, 2, &["BTF"])?;
        return Ok(());
    }
    Fio::on_device(disk.path(), 1)?.finish()?;
    protect.stop()?;
    assert_identical(disk.path(), protection.target())
}

/// The segments of a journal in order.
fn segments(journal: &Path) -> Result<Vec<PathBuf>> {
    let paths = std::fs::read_dir(journal)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let mut segments: Vec<_> =
        paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "awj")).collect();
    segments.sort();
    ensure!(!segments.is_empty(), "no segments in {}", journal.display());
    Ok(segments)
}

/// That a damaged journal is found out by all who use it. `at` is the first byte that is not as it was.
fn damage_is_found(protection: &Protection, segment: &Path, at: u64) -> Result<()> {
    let name = segment.file_name().and_then(|name| name.to_str()).context("segment names are text")?;
    let check = finish(afterwrite().args(["journal", "check"]).arg(protection.journal()), LIMIT)?;
    let told = format!("{}{}", check.stdout, check.stderr);
    ensure!(check.code == Some(1) && told.contains(name), "journal check: {check:?}");
    ensure!(told.contains("byte"), "journal check names no byte (damage is at {at}): {told}");
    let image = protection.dir().join("replayed.img");
    let replay = protection.replay("latest", &image);
    let error = replay.err().context("a damaged journal was replayed")?.to_string();
    ensure!(error.contains(name), "replay does not name {name}: {error}");
    let before = Manifest::read(protection.journal())?;
    protection.refused(&[name])?;
    Manifest::read(protection.journal())?.ensure_equals(&before)
}

#[test]
fn journal_with_one_flipped_bit() -> Result<()> {
    let disk = filled_disk()?;
    let protection = Protection::new(disk.path())?;
    protection.start()?.stop()?;
    let first = segments(protection.journal())?.remove(0);
    let at = std::fs::metadata(&first)?.len() / 2;
    let file = File::options().read(true).write(true).open(&first)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x10], at)?;
    damage_is_found(&protection, &first, at)
}

#[test]
fn journal_with_a_truncated_and_with_a_missing_segment() -> Result<()> {
    // More than a segment holds, so that the first is sealed and has a successor.
    let disk = Loop::new(288 * MIB)?;
    fill_random(disk.path(), 288 * MIB, &mut Random::new(seed()))?;
    let protection = Protection::new(disk.path())?;
    protection.start()?.stop()?;
    let found = segments(protection.journal())?;
    ensure!(found.len() > 1, "the journal has one segment only");
    let len = std::fs::metadata(&found[0])?.len();
    File::options().write(true).open(&found[0])?.set_len(len - 100_000)?;
    damage_is_found(&protection, &found[0], len - 100_000)?;

    std::fs::remove_file(&found[0])?;
    let check = finish(afterwrite().args(["journal", "check"]).arg(protection.journal()), LIMIT)?;
    ensure!(check.code == Some(1), "{check:?}");
    ensure!(protection.replay("latest", &protection.dir().join("replayed.img")).is_err());
    Ok(())
}
