//! The map of files to blocks, and copies made by it.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::sys::signal::Signal;

const FS: [Fs; 2] = [Fs::Ext4, Fs::Xfs];

/// Without BPF; what that adds is in map_fsync.rs.
fn start_map(ground: &Ground, arguments: &[&str]) -> Result<Map> {
    ground.map(&[&["--fsync=off"], arguments].concat())
}

/// Every second block of it, so that it lies in pieces.
fn write_fragmented(path: &Path, blocks: u64) -> Result<()> {
    let file = File::create(path)?;
    for block in (0..blocks).step_by(2) {
        file.write_all_at(&[block as u8 + 1; 4096], block * 4096)?;
    }
    file.sync_all()?;
    Ok(())
}

fn hash(path: &Path) -> Result<blake3::Hash> {
    Ok(blake3::hash(&fs::read(path)?))
}

fn assert_copied(source: &Path, copy: &Path) -> Result<()> {
    ensure!(hash(source)? == hash(copy)?, "{} has other bytes", copy.display());
    let of =
        |path| fs::metadata(path).map(|m| (m.len(), m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec()));
    let (source, copy) = (of(source)?, of(copy)?);
    ensure!(source == copy, "{source:?} and {copy:?}");
    Ok(())
}

fn set_xattr(path: &Path, value: &[u8]) -> Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: name and path are C strings, and the value is as long as told.
    let done = unsafe {
        libc::setxattr(path.as_ptr(), c"trusted.test".as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    ensure!(done == 0, "{}", std::io::Error::last_os_error());
    Ok(())
}

fn xattr(path: &Path) -> Result<Vec<u8>> {
    let (path, mut value) = (CString::new(path.as_os_str().as_bytes())?, vec![0; 100]);
    // SAFETY: name and path are C strings, and the buffer is as long as told.
    let len = unsafe {
        libc::getxattr(path.as_ptr(), c"trusted.test".as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    value.truncate(usize::try_from(len).map_err(|_| std::io::Error::last_os_error())?);
    Ok(value)
}

#[test]
fn a_map_is_what_filefrag_says() -> Result<()> {
    for fs in FS {
        let ground = Ground::new(fs)?;
        let map = start_map(&ground, &[])?;
        write_fragmented(&ground.tree().join("pieces"), 600)?;
        let mut file = File::create(ground.tree().join("one"))?;
        file.write_all(&[3; 300_000])?;
        file.sync_all()?;
        drop(file);
        for name in ["pieces", "one"] {
            let mapped = map.wait_for(name)?;
            let expected = filefrag(&ground.tree().join(name))?;
            ensure!(
                !expected.is_empty() && mapped_extents(&mapped) == expected,
                "{fs:?} {name}: {mapped} {expected:?}"
            );
        }
        ensure!(mapped_extents(&map.maps()?["pieces"]).len() >= 300, "{fs:?}: it does not lie in pieces");
        // The bytes are there: what a map is for.
        let (_, physical, _) = mapped_extents(&map.maps()?["one"])[0];
        let mut bytes = [0; 4096];
        run(Command::new("blockdev").arg("--flushbufs").arg(ground.disk.path()))?;
        File::open(ground.disk.image())?.read_exact_at(&mut bytes, physical)?;
        ensure!(bytes == [3; 4096], "{fs:?}: other bytes are there");
        map.stop()?;
    }
    Ok(())
}

#[test]
fn what_has_no_blocks_yet_is_mapped_again_when_it_has() -> Result<()> {
    for fs in FS {
        let ground = Ground::new(fs)?;
        let map = start_map(&ground, &[])?;
        let path = ground.tree().join("late");
        fs::write(&path, [5; 50_000])?;
        let first = map.wait_for("late")?;
        ensure!(first["unsettled"] == true, "{fs:?}: {first}");
        ground.sync()?;
        wait_until("it has blocks", PATIENCE, || Ok(map.maps()?["late"]["why"] == "settled"))?;
        let last = map.wait_for("late")?;
        ensure!(
            mapped_extents(&last) == filefrag(&path)? && last["save"] == first["number"],
            "{fs:?}: {last}"
        );
        map.stop()?;
    }
    Ok(())
}

#[test]
fn only_what_the_criteria_name_is_mapped() -> Result<()> {
    let ground = Ground::new(Fs::Ext4)?;
    fs::create_dir(ground.tree().join("sub"))?;
    let map = start_map(
        &ground,
        &[
            "--include",
            "**/*.db",
            "--exclude",
            "sub/no*",
            "--min-size",
            "100B",
            "--max-size",
            "10KiB",
            "--owner",
            "1234",
        ],
    )?;
    let write = |name: &str, size: usize, owner: u32| -> Result<()> {
        let path = ground.tree().join(name);
        let file = File::create(&path)?;
        chown(&path, Some(owner), None)?;
        Ok((&file).write_all(&vec![1; size])?)
    };
    for (name, size, owner) in [
        ("other.txt", 500, 1234),
        ("sub/not.db", 500, 1234),
        ("small.db", 99, 1234),
        ("large.db", 10_241, 1234),
        ("theirs.db", 500, 1235),
        ("sub/yes.db", 500, 1234),
    ] {
        write(name, size, owner)?;
    }
    // Outside of the directory, on the same file system.
    fs::write(ground.mount.point().join("outside.db"), [1; 500])?;
    write("last.db", 100, 1234)?;
    map.wait_for("last.db")?;
    ensure!(Vec::from_iter(map.maps()?.into_keys()) == ["last.db", "sub/yes.db"], "{:?}", map.maps()?);
    map.stop()
}

#[test]
fn a_file_that_has_to_rest_is_mapped_once_it_did() -> Result<()> {
    let ground = Ground::new(Fs::Ext4)?;
    let map = start_map(&ground, &["--quiet", "5s"])?;
    for n in 0..20u8 {
        fs::write(ground.tree().join("busy"), [n; 100])?;
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(map.maps()?.is_empty(), "{:?}", map.maps()?);
    map.wait_for("busy")?;
    let of_saves = map.said()?.into_iter().filter(|line| line["map"]["why"] == "close").count();
    ensure!(of_saves == 1, "{of_saves} maps");
    map.stop()
}

#[test]
fn what_gets_its_name_by_a_rename_is_copied_under_that() -> Result<()> {
    let ground = Ground::new(Fs::Ext4)?;
    let map = start_map(&ground, &["--exclude", "*.tmp"])?;
    fs::write(ground.tree().join("doc.tmp"), b"a new version")?;
    fs::rename(ground.tree().join("doc.tmp"), ground.tree().join("doc"))?;
    ensure!(map.wait_for("doc")?["why"] == "rename");
    map.stop()?;
    ground.copy()?;
    assert_copied(&ground.tree().join("doc"), &ground.target().join("doc"))
}

#[test]
fn a_cache_or_target_on_the_watched_file_system_is_refused() -> Result<()> {
    let ground = Ground::new(Fs::Ext4)?;
    let inside = ground.mount.point().join("cache");
    let refused = finish(afterwrite().arg("map").arg(ground.tree()).arg("--cache").arg(&inside), PATIENCE)?;
    ensure!(
        refused.code == Some(2) && refused.stderr.contains("on the file system that is watched"),
        "{refused:?}"
    );
    ensure!(!inside.exists());
    start_map(&ground, &[])?.stop()?;
    let mut copy = afterwrite();
    let refused =
        finish(copy.arg("copy").arg("--cache").arg(ground.cache()).arg("--target").arg(&inside), PATIENCE)?;
    ensure!(
        refused.code == Some(2) && refused.stderr.contains("on the file system that is watched"),
        "{refused:?}"
    );
    Ok(())
}

#[test]
fn copies_by_blocks_equal_their_files_with_all_that_belongs_to_them() -> Result<()> {
    for fs in FS {
        let ground = Ground::new(fs)?;
        let map = start_map(&ground, &[])?;
        let tree = ground.tree();
        fs::create_dir(tree.join("dir"))?;
        fs::set_permissions(tree.join("dir"), fs::Permissions::from_mode(0o751))?;
        write_fragmented(&tree.join("dir/pieces"), 400)?;
        fs::write(tree.join("not aligned"), vec![9; 123_457])?;
        fs::write(tree.join("empty"), b"")?;
        let holes = File::create(tree.join("holes"))?;
        holes.write_all_at(b"after a hole", 5 << 20)?;
        holes.set_len(9 << 20)?;
        drop(holes);
        run(Command::new("fallocate").args(["--length", "2MiB"]).arg(tree.join("allocated")))?;
        fs::write(tree.join("mine"), b"with an owner")?;
        chown(tree.join("mine"), Some(1000), Some(1001))?;
        fs::set_permissions(tree.join("mine"), fs::Permissions::from_mode(0o4755))?;
        set_xattr(&tree.join("mine"), b"a value")?;
        let names = ["allocated", "dir/pieces", "empty", "holes", "mine", "not aligned"];
        for name in names {
            map.wait_for(name)?;
        }
        let copied = ground.copy()?;
        ensure!(copied.len() == names.len(), "{copied:?}");
        for name in names {
            assert_copied(&tree.join(name), &ground.target().join(name))
                .with_context(|| format!("{fs:?} {name}"))?;
            let how = copied.iter().find(|line| line["path"] == name).context("it is told")?;
            ensure!(how["how"] == "blocks", "{fs:?}: {how}");
        }
        ensure!(fs::metadata(ground.target().join("holes"))?.blocks() < 1 << 10, "its holes are filled");
        ensure!(fs::metadata(ground.target().join("dir"))?.mode() & 0o7777 == 0o751);
        ensure!(xattr(&ground.target().join("mine"))? == b"a value");
        // Nothing is copied twice, and what is saved again is.
        ensure!(ground.copy()?.is_empty());
        fs::write(tree.join("mine"), b"anew")?;
        wait_until("it is mapped again", PATIENCE, || Ok(map.maps()?["mine"]["size"] == 4))?;
        ensure!(ground.copy()?.len() == 1);
        assert_copied(&tree.join("mine"), &ground.target().join("mine"))?;
        map.stop()?;
    }
    Ok(())
}

/// A version of a file: any mix of two would be seen.
fn version(number: u64, size: usize) -> Vec<u8> {
    number.to_le_bytes().repeat(size / 8)
}

#[test]
fn files_that_are_rewritten_while_they_are_copied_are_never_a_mix() -> Result<()> {
    const SIZE: usize = 8 << 20;
    const FILES: u64 = 4;
    for fs in FS {
        let ground = Ground::new(fs)?;
        let map = start_map(&ground, &[])?;
        for n in 0..FILES {
            fs::write(ground.tree().join(format!("file{n}")), version(0, SIZE))?;
        }
        map.wait_for("file3")?;
        let (ending, mut retries, mut whole) = (AtomicBool::new(false), 0, 0u64);
        std::thread::scope(|scope| -> Result<()> {
            let writer = scope.spawn(|| {
                let mut random = Random::new(seed());
                let mut number = 1;
                while !ending.load(Ordering::Relaxed) {
                    // In place: the same blocks, and the file is a mix while it is written.
                    let file = OpenOptions::new()
                        .write(true)
                        .open(ground.tree().join(format!("file{}", random.below(FILES))))?;
                    file.write_all_at(&version(number, SIZE), 0)?;
                    if random.below(2) == 0 {
                        file.sync_all()?;
                    }
                    number += 1;
                    std::thread::sleep(Duration::from_millis(random.below(30)));
                }
                Ok::<_, anyhow::Error>(number)
            });
            let mut rounds = || -> Result<()> {
                for _ in 0..15 {
                    let mut copy = afterwrite();
                    copy.args(["copy", "--json", "--cache"])
                        .arg(ground.cache())
                        .arg("--target")
                        .arg(ground.target());
                    let done = finish(&mut copy, PATIENCE)?;
                    ensure!(matches!(done.code, Some(0 | 1)), "{done:?}");
                    for line in lines(&done.stdout)? {
                        retries += line["retries"].as_u64().unwrap_or(0);
                        if line["how"] != "unsteady" {
                            let bytes =
                                fs::read(ground.target().join(line["path"].as_str().unwrap_or_default()))?;
                            let first = u64::from_le_bytes(bytes[..8].try_into()?);
                            // A writer that was interrupted between two pages, and not seen to write, would show here.
                            ensure!(bytes == version(first, SIZE), "{fs:?}: {line} is a mix");
                            whole += 1;
                        }
                    }
                }
                Ok(())
            };
            let done = rounds();
            ending.store(true, Ordering::Relaxed);
            let written = writer.join().expect("the writer does not panic")?;
            println!("{fs:?}: {written} versions written, {whole} copies whole, {retries} retries");
            done
        })?;
        ensure!(whole > 0, "nothing was copied");
        // Once nobody writes, all is as it is.
        ground.sync()?;
        fs::write(ground.tree().join("last"), b"last")?;
        map.wait_for("last")?;
        ground.copy()?;
        for n in 0..FILES {
            let name = format!("file{n}");
            assert_copied(&ground.tree().join(&name), &ground.target().join(&name))?;
        }
        map.stop()?;
    }
    Ok(())
}

#[test]
fn killed_and_with_a_torn_record_it_catches_up_with_what_was_saved_meanwhile() -> Result<()> {
    let ground = Ground::new(Fs::Ext4)?;
    fs::write(ground.tree().join("old"), b"before it began")?;
    run(Command::new("touch").args(["-d", "2001-01-01"]).arg(ground.tree().join("old")))?;
    std::thread::sleep(Duration::from_millis(2500));
    let map = start_map(&ground, &[])?;
    for n in 0..50 {
        fs::write(ground.tree().join(format!("seen{n}")), vec![1; n])?;
    }
    map.wait_for("seen49")?;
    map.kill()?;
    let names = fs::read_dir(ground.cache())?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let segment =
        names.iter().find(|path| path.extension().is_some_and(|e| e == "awm")).context("no segment")?;
    OpenOptions::new().append(true).open(segment)?.write_all(&[200, 0, 0, 0, 1, 2, 3, 4, 1, 1])?;
    fs::write(ground.tree().join("missed"), b"nobody looked")?;
    fs::write(ground.tree().join("seen7"), b"changed meanwhile")?;
    let map = start_map(&ground, &[])?;
    map.wait_for("missed")?;
    map.wait_for("seen7")?;
    let again = map.maps()?;
    ensure!(again.values().all(|map| map["why"] == "rescan") && !again.contains_key("old"), "{again:?}");
    ensure!(again.len() == 2, "known files were mapped again: {again:?}");
    map.stop()?;
    ensure!(ground.copy()?.len() == 51);
    assert_copied(&ground.tree().join("seen7"), &ground.target().join("seen7"))?;
    assert_copied(&ground.tree().join("missed"), &ground.target().join("missed"))
}

#[test]
fn saves_that_the_kernel_had_no_room_for_are_found() -> Result<()> {
    let ground = Ground::new(Fs::Ext4)?;
    let room: usize = fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events")?.trim().parse()?;
    ensure!(room <= 20_000, "the queue has room for {room} events, which is more than this test makes");
    let files = room + 500;
    for n in 0..files {
        // Before it looks; empty files, of which the file system has enough.
        File::create(ground.tree().join(format!("file{n}")))?;
    }
    let map = start_map(&ground, &[])?;
    map.signal(Signal::SIGSTOP)?;
    for n in 0..files {
        OpenOptions::new().write(true).open(ground.tree().join(format!("file{n}")))?.set_len(1)?;
    }
    map.signal(Signal::SIGCONT)?;
    wait_until("what was lost is found", PATIENCE, || {
        Ok(map.said()?.iter().any(|line| line["rescanned"]["mapped"].as_u64() > Some(0)))
    })?;
    wait_until("all are mapped", PATIENCE, || Ok(map.maps()?.len() == files))?;
    ensure!(map.said()?.iter().any(|line| line["lost"] == 1), "nobody was told that events were lost");
    map.stop()
}
