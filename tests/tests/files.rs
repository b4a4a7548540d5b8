//! Files of a point, out of the journal: listed and given back as they were.
//!
//! What a tree was at a mark is what `cp -a` made of it then; `verify` compares, and the listing is held against what the kernel
//! says of the copy. At instants between marks, where an ext4 has to be recovered, the kernel's own recovery of the same point
//! is what the reader is held against.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

const ROUNDS: usize = 3;
const CHANGES: u64 = 300;

fn files(protection: &Protection, to: &str) -> Command {
    let mut command = afterwrite();
    command.arg("files").arg(protection.journal()).args(["--to", to, "--recursive", "--json"]);
    command.arg("--scratch").arg(protection.dir());
    command
}

fn restore(protection: &Protection, to: &str, path: &OsStr, output: &Path) -> Command {
    let mut command = afterwrite();
    command.arg("restore-file").arg(protection.journal()).arg(path).args(["--to", to, "--json"]);
    command.arg("--output").arg(output).arg("--scratch").arg(protection.dir());
    command
}

/// What `verify` says of two trees is that they are the same, in all but times of access.
fn ensure_same(wanted: &Path, found: &Path) -> Result<()> {
    let finished = finish(afterwrite().arg("verify").arg(wanted).arg(found), PATIENCE)?;
    ensure!(finished.code == Some(0), "{} differs: {}{}", found.display(), finished.stdout, finished.stderr);
    Ok(())
}

/// A line of the listing for each name below `dir`, made from what the kernel says.
fn listing_of(dir: &Path, prefix: &[u8]) -> Result<BTreeMap<String, Vec<String>>> {
    let mut lines = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.path().symlink_metadata()?;
        let path = [prefix, b"/", entry.file_name().as_bytes()].concat();
        let target = fs::read_link(entry.path()).map(|target| target.into_os_string().into_vec());
        let kind = match metadata.file_type() {
            kind if kind.is_file() => "file",
            kind if kind.is_dir() => "dir",
            kind if kind.is_symlink() => "symlink",
            _ => "special",
        };
        let size = if metadata.is_file() { metadata.size() } else { 0 };
        let links = if metadata.is_dir() { 0 } else { metadata.nlink() };
        lines.insert(
            path.escape_ascii().to_string(),
            vec![
                kind.to_owned(),
                format!("{:04o}", metadata.mode() & 0o7777),
                format!("{}:{} {size} {links}", metadata.uid(), metadata.gid()),
                format!("{}.{:09}", metadata.mtime(), metadata.mtime_nsec()),
                target.map(|target| target.escape_ascii().to_string()).unwrap_or_default(),
            ],
        );
        if metadata.is_dir() {
            lines.extend(listing_of(&entry.path(), &path)?);
        }
    }
    Ok(lines)
}

/// The same of what `files --json` prints.
fn listing_in(json: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let mut lines = BTreeMap::new();
    for line in json.lines() {
        let line: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| line[name].as_i64().with_context(|| format!("no {name} in {line}"));
        let links = if line["kind"] == "dir" { 0 } else { number("links")? };
        let modified = &line["modified"];
        lines.insert(
            text("path"),
            vec![
                text("kind"),
                text("mode"),
                format!("{}:{} {} {links}", number("uid")?, number("gid")?, number("size")?),
                format!("{}.{:09}", modified["seconds"], modified["nanos"].as_u64().unwrap_or(0)),
                text("target"),
            ],
        );
    }
    Ok(lines)
}

/// What random changes seldom make: files of many extents and with large holes, some allocated and never written; long targets of
/// links, attributes that do not fit into an inode, times out of 32 bits, a directory of many blocks.
fn add_oddities(tree: &Path, random: &mut Random, round: usize) -> Result<()> {
    let odd = tree.join(format!("odd{round}"));
    fs::create_dir(&odd)?;
    let sparse = File::create(odd.join("sparse"))?;
    sparse.set_len(100 * MIB + 77)?;
    for at in 0..40 {
        let bytes = random.bytes(5000);
        sparse.write_all_at(&bytes, at * 5 * MIB / 2 / 4096 * 4096)?;
    }
    run(Command::new("fallocate").args(["--length", "3MiB"]).arg(odd.join("unwritten")))?;
    let unwritten = File::options().write(true).open(odd.join("unwritten"))?;
    unwritten.write_all_at(&random.bytes(10_000), MIB)?;
    std::os::unix::fs::symlink("x/".repeat(100), odd.join("long"))?;
    for len in [59, 60, 61] {
        std::os::unix::fs::symlink("y".repeat(len), odd.join(format!("link{len}")))?;
    }
    let value = "v".repeat(700);
    run(Command::new("python3").args([
        "-c",
        "import os,sys; [os.setxattr(sys.argv[1], b'user.%d' % n, sys.argv[2].encode()[:n]) for n in (0, 10, 60, 700)]",
    ]).arg(odd.join("sparse")).arg(value))?;
    for (name, date) in [("old", "1953-02-03T04:05:06.7Z"), ("new", "2201-02-03T04:05:06.7Z")] {
        run(Command::new("touch").args(["--date", date]).arg(odd.join(name)))?;
    }
    let many = odd.join("many");
    fs::create_dir(&many)?;
    for number in 0..700 {
        fs::write(many.join(format!("{number:0100}")), [])?;
    }
    if round > 0 {
        let before = tree.join(format!("odd{}", round - 1));
        fs::remove_dir_all(before.join("many"))?;
        fs::rename(before.join("sparse"), odd.join("moved"))?;
    }
    Ok(())
}

fn files_of_marks(fs: Fs, bytes: u64) -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(bytes)?;
    let mount = Mount::make(fs, disk.path())?;
    // Where something else was before, so that stale bytes would be seen.
    let filler = mount.point().join("filler");
    fs::write(&filler, random.bytes(usize::try_from(bytes / 10 * 7)?))?;
    File::open(&filler)?.sync_all()?;
    fs::remove_file(&filler)?;
    nix::unistd::sync();
    let tree = mount.point().join("tree");
    fs::create_dir(&tree)?;
    let protection = Protection::new(disk.path())?.arg("--mark-every").arg("never");
    let protect = protection.start()?;
    let mut copies: Vec<PathBuf> = Vec::new();
    for round in 0..ROUNDS {
        change_tree(&tree, &mut random, CHANGES)?;
        add_oddities(&tree, &mut random, round)?;
        let copy = protection.dir().join(format!("copy{round}"));
        run(Command::new("cp").arg("-a").arg(&tree).arg(&copy))?;
        copies.push(copy);
        protect.mark(&format!("m{round}"))?;
    }
    fs::remove_dir_all(&tree)?;
    mount.unmount()?;
    protect.stop()?;

    let ways: &[&[&str]] = if fs == Fs::Ext4 { &[&[], &["--mount"]] } else { &[&[]] };
    for (round, copy) in copies.iter().enumerate() {
        let to = format!("mark:m{round}");
        for (number, way) in ways.iter().enumerate() {
            let context = || format!("mark m{round}, {way:?}");
            let listed = run(files(&protection, &to).args(*way)).with_context(context)?;
            let mut listed = listing_in(&listed)?;
            listed.retain(|path, _| path.starts_with("/tree/"));
            let wanted = listing_of(copy, b"/tree")?;
            let differing = wanted.iter().find(|(path, line)| listed.get(*path) != Some(line));
            ensure!(
                listed == wanted,
                "{}: {} names, {} wanted, {differing:?} is {:?}",
                context(),
                listed.len(),
                wanted.len(),
                differing.and_then(|(path, _)| listed.get(path))
            );
            let output = protection.dir().join(format!("restored-{round}-{number}"));
            run(restore(&protection, &to, OsStr::new("/tree"), &output).arg("--recursive").args(*way))
                .with_context(context)?;
            ensure_same(copy, &output).with_context(context)?;
            let (sparse, whole) = (output.join(format!("odd{round}/sparse")), 100 * MIB);
            ensure!(sparse.metadata()?.blocks() * 512 < whole / 10, "holes are kept");
            fs::remove_dir_all(&output)?;
        }
        // Files alone, all of which are gone from the volume by now.
        let names =
            [format!("odd{round}/sparse"), format!("odd{round}/unwritten"), format!("odd{round}/link61")];
        for name in names.iter().take(if fs == Fs::Ext4 { 3 } else { 1 }) {
            let (path, output) = (Path::new("/tree").join(name), protection.dir().join("one"));
            run(&mut restore(&protection, &to, path.as_os_str(), &output))?;
            let (wanted, found) = (copy.join(name).symlink_metadata()?, output.symlink_metadata()?);
            let of = |metadata: &fs::Metadata| {
                (metadata.mode(), metadata.uid(), metadata.size(), metadata.mtime(), metadata.mtime_nsec())
            };
            ensure!(of(&wanted) == of(&found), "{name}: {found:?}");
            let same = wanted.is_symlink() || fs::read(copy.join(name))? == fs::read(&output)?;
            ensure!(same, "{name} has other content");
            fs::remove_file(&output)?;
        }
    }
    Ok(())
}

#[test]
fn files_of_ext4_come_back_as_they_were_at_each_mark() -> Result<()> {
    files_of_marks(Fs::Ext4, 192 * MIB)
}

#[test]
fn files_of_xfs_come_back_as_they_were_at_each_mark() -> Result<()> {
    files_of_marks(Fs::Xfs, 320 * MIB)
}

#[test]
fn at_an_instant_the_recovered_ext4_is_that_of_the_kernel() -> Result<()> {
    let mut random = Random::new(seed());
    let disk = Loop::new(96 * MIB)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    // Commits at short intervals, few of them written to where they belong.
    mount.remount("commit=1")?;
    let free = nix::sys::statvfs::statvfs(mount.point())?;
    let free_bytes = free.blocks_available() * free.fragment_size();
    let ballast = (free_bytes - 3 * MIB).to_string();
    run(Command::new("fallocate").args(["--length", &ballast]).arg(mount.point().join("ballast")))?;
    let protection = Capture::Payload.protection(disk.path())?;
    let (point, mut changes) = (mount.point().to_owned(), Random::new(random.number()));
    let chosen = (Duration::from_secs(load_seconds()), instants(8));
    let load = || {
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_secs(load_seconds()) {
            change_tree(&point, &mut changes, 60)?;
            // What was a directory's becomes a file's, so that the journal revokes blocks. It has all that is free, which is little.
            let (dir, large) = (point.join("many"), point.join("large"));
            if fs::create_dir(&dir).is_ok() {
                // Full is as good.
                (0..200).try_for_each(|number| fs::write(dir.join(format!("{number:0200}")), [])).ok();
                File::open(&dir)?.sync_all()?;
                fs::remove_dir_all(&dir)?;
                File::open(&point)?.sync_all()?;
            }
            fs::write(&large, changes.bytes(4 << 20)).ok();
            File::open(&large)?.sync_all()?;
            std::thread::sleep(Duration::from_millis(50));
            fs::remove_file(&large)?;
        }
        Ok(())
    };
    let ((), points) =
        Capture::Payload.points_of(&protection, chosen, &mut random, load, || mount.unmount())?;
    let mut recovered = 0;
    for point in points {
        let to = point.to_string();
        let outputs = ["read", "mounted"].map(|name| protection.dir().join(name));
        for (output, way) in outputs.iter().zip([None, Some("--mount")]) {
            let mut restore = restore(&protection, &to, OsStr::new("/"), output);
            let report =
                run(restore.arg("--recursive").args(way)).with_context(|| format!("{to} {way:?}"))?;
            let report: Value = serde_json::from_str(&report)?;
            ensure!(report["means"]["way"] == if way.is_some() { "mount" } else { "journal" }, "{report}");
            recovered += report["means"]["recovered_blocks"].as_u64().unwrap_or(0);
        }
        ensure_same(&outputs[1], &outputs[0]).with_context(|| to.clone())?;
        outputs.iter().try_for_each(fs::remove_dir_all)?;
    }
    println!("{recovered} blocks were read from the file system's own journal");
    ensure!(recovered > 0, "no instant needed recovery");
    Ok(())
}

/// A protected ext4 with `/dir/file`, `/link` to `dir`, and a mark `good`.
fn small() -> Result<(Loop, Protection)> {
    let disk = Loop::new(32 * MIB)?;
    let mount = Mount::make(Fs::Ext4, disk.path())?;
    fs::create_dir(mount.point().join("dir"))?;
    fs::write(mount.point().join("dir/file"), "as it was")?;
    std::os::unix::fs::symlink("dir", mount.point().join("link"))?;
    let protection = Protection::new(disk.path())?.arg("--mark-every").arg("never");
    let protect = protection.start()?;
    protect.mark("good")?;
    fs::write(mount.point().join("dir/file"), "as it is")?;
    mount.unmount()?;
    protect.stop()?;
    Ok((disk, protection))
}

#[test]
fn what_is_there_is_not_replaced_without_force_and_no_half_file_is_left() -> Result<()> {
    let (_disk, protection) = small()?;
    let output = protection.dir().join("output");
    let refused = |mut command: Command, hints: &[&str]| says(&finish(&mut command, PATIENCE)?, 2, hints);
    let file = |to| restore(&protection, to, OsStr::new("/dir/file"), &output);
    fs::write(&output, "mine")?;
    refused(file("mark:good"), &["is there already", "--force"])?;
    ensure!(fs::read(&output)? == b"mine");
    run(file("mark:good").arg("--force"))?;
    ensure!(fs::read(&output)? == b"as it was");
    run(file("latest").arg("--force"))?;
    ensure!(fs::read(&output)? == b"as it is");
    // A directory in place of a file, and the other way.
    let dir = |path| restore(&protection, "mark:good", OsStr::new(path), &output);
    refused(dir("/dir"), &["is a directory", "--recursive"])?;
    run(dir("/dir").args(["--recursive", "--force"]))?;
    ensure!(fs::read(output.join("file"))? == b"as it was");
    run(dir("/link").arg("--force"))?;
    ensure!(fs::read_link(&output)? == Path::new("dir"));

    refused(dir("/link/file"), &["is a symbolic link to dir"])?;
    refused(dir("/dir/../dir/file"), &["\"..\""])?;
    refused(dir("/dir/gone"), &["there is no /dir/gone"])?;
    refused(file("lsn:3"), &["fuzzy", "--force"])?;
    refused(file("mark:none"), &["no mark"])?;
    refused(
        restore(&protection, "latest", OsStr::new("/dir/file"), Path::new("/nowhere/file")),
        &["/nowhere/file"],
    )?;
    let left = fs::read_dir(protection.dir())?.filter_map(Result::ok).map(|entry| entry.file_name());
    let left: Vec<_> = left.filter(|name| name.as_bytes().starts_with(b".afterwrite-")).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn damage_of_the_journal_is_told_with_its_place() -> Result<()> {
    let (_disk, protection) = small()?;
    let mut segments: Vec<_> = fs::read_dir(protection.journal())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension() == Some(OsStr::new("awj")))
        .collect();
    segments.sort();
    let mut bytes = fs::read(&segments[0])?;
    bytes[300] ^= 1;
    fs::write(&segments[0], bytes)?;
    let name = segments[0].file_name().and_then(OsStr::to_str).context("a segment has a name")?.to_owned();
    for way in [None, Some("--mount")] {
        let finished = finish(files(&protection, "mark:good").args(way), PATIENCE)?;
        says(&finished, 2, &[&name, "byte"])?;
    }
    Ok(())
}

#[test]
fn of_a_disk_with_partitions_one_is_named() -> Result<()> {
    let disk = Loop::new(64 * MIB)?;
    let table = scratch()?;
    for (label, number) in [("gpt", "2"), ("dos", "2")] {
        let script = table.path().join("script");
        fs::write(&script, format!("label: {label}\n2048,20MiB\n51200,30MiB\n"))?;
        run(Command::new("sh")
            .arg("-c")
            .arg("sfdisk --quiet --wipe always --no-reread \"$0\" < \"$1\"")
            .arg(disk.path())
            .arg(&script))?;
        let content = table.path().join(label);
        fs::create_dir(&content)?;
        fs::write(content.join("file"), label)?;
        let offset = format!("offset={}", 51200 * 512);
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-E", &offset, "-d"])
            .arg(&content)
            .arg(disk.path())
            .arg("30M"))?;
        let protection = Protection::new(disk.path())?;
        protection.start()?.stop()?;
        let divided = finish(&mut files(&protection, "latest"), PATIENCE)?;
        says(&divided, 2, &["partitions", "1 (20.0 MiB)", "--partition"])?;
        let missing = finish(files(&protection, "latest").args(["--partition", "7"]), PATIENCE)?;
        says(&missing, 2, &["no partition 7"])?;
        for way in [None, Some("--mount")] {
            let output = protection.dir().join("output");
            let mut restore = restore(&protection, "latest", OsStr::new("file"), &output);
            run(restore.args(["--partition", number, "--force"]).args(way)).with_context(|| label)?;
            ensure!(fs::read(&output)? == label.as_bytes());
        }
    }
    Ok(())
}
