//! Directory trees: whatever is done to one, its target at a mark is the tree at the mark, with everything that belongs to it.
//! On this machine's best rung of the probes.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

const SIZE: u64 = 320 * MIB;
const OPERATIONS: u64 = 300;

/// A tree on a file system of its own; journal and target are elsewhere.
fn tree() -> Result<(Mount, Loop, PathBuf)> {
    tree_on(Fs::Ext4)
}

fn tree_on(fs: Fs) -> Result<(Mount, Loop, PathBuf)> {
    let disk = Loop::new(SIZE)?;
    let mount = Mount::make(fs, disk.path())?;
    let tree = mount.point().join("tree");
    fs::create_dir(&tree)?;
    Ok((mount, disk, tree))
}

fn protection(tree: &Path) -> Result<Protection> {
    let protection = Protection::new(tree)?;
    let target = protection.dir().join("target");
    Ok(protection.target_at(&target).arg("--mark-every").arg("never"))
}

fn verify(source: &Path, target: &Path) -> Result<()> {
    same_trees(source, target)?;
    run(afterwrite().arg("verify").arg(source).arg(target)).map(drop)
}

/// Waits until the target is at the mark.
fn wait_for_mark(protect: &mut Protect<'_>, id: &str) -> Result<()> {
    let id: u64 = id.trim().parse()?;
    protect.wait_for("has brought the target to the mark", |status| {
        status[0]["replica"]["mark"].as_u64() >= Some(id) && status[0]["replica"]["consistent"] == true
    })
}

#[test]
fn at_every_mark_the_target_is_the_tree_and_can_be_restored_as_it_was() -> Result<()> {
    at_every_mark(Fs::Ext4)
}

#[test]
fn at_every_mark_the_target_is_the_tree_on_xfs() -> Result<()> {
    at_every_mark(Fs::Xfs)
}

#[test]
fn at_every_mark_the_target_is_the_tree_on_btrfs() -> Result<()> {
    at_every_mark(Fs::Btrfs)
}

fn at_every_mark(fs: Fs) -> Result<()> {
    let (_mount, _disk, tree) = tree_on(fs)?;
    let mut random = Random::new(seed());
    change_tree(&tree, &mut random, OPERATIONS)?;
    let protection = protection(&tree)?;
    let mut protect = protection.start()?;
    let mut copies = Vec::new();
    for round in 0..4 {
        let done = change_tree(&tree, &mut random, OPERATIONS)?;
        ensure!(done > OPERATIONS / 10, "only {done} operations were possible");
        let mark = protect.mark(&format!("round{round}"))?;
        wait_for_mark(&mut protect, &mark)?;
        verify(&tree, protection.target())?;
        let copy = protection.dir().join(format!("copy{round}"));
        run(Command::new("cp").arg("-a").arg(&tree).arg(&copy))?;
        copies.push((mark, copy));
    }
    protect.stop()?;
    verify(&tree, protection.target())?;
    for (mark, copy) in copies {
        let restored = protection.dir().join(format!("restored{}", mark.trim()));
        protection.replay(&format!("mark:{}", mark.trim()), &restored)?;
        verify(&copy, &restored)?;
    }
    protection.check_journal()
}

/// Time and looks for a program in its midst; then it is also held against the tree when it has ended.
fn a_program_in_its_midst(program: impl FnOnce(&Path) -> Command, pace: Pace) -> Result<()> {
    let (_mount, _disk, tree) = tree()?;
    let protection = protection(&tree)?;
    let mut protect = protection.start()?;
    let both = (&*tree, protection.target());
    let mut random = Random::new(seed());
    let midst = judge_in_the_midst(&mut protect, both, &mut program(&tree), pace, &mut random)?;
    target_is_tree(&mut protect, both)?;
    println!("{midst:?}");
    protect.stop()?;
    same_by_rsync(&tree, protection.target())?;
    protection.check_journal()
}

#[test]
fn in_the_midst_of_git_checkouts_the_target_is_the_tree_at_a_mark_as_rsync_says_too() -> Result<()> {
    let pace = Pace { every: Duration::from_millis(300), looks_max: 4 };
    a_program_in_its_midst(|tree| clone_and_check_out(tree, 60), pace)
}

/// Waits until it is made; what the mark that `afterwrite mark` made is worth.
fn mark_is(protect: &mut Protect<'_>, label: &str) -> Result<String> {
    let mark = protect.mark(label)?;
    let last = protect.volume_status()?["last_mark"].clone();
    ensure!(last["id"].as_u64() == Some(mark.trim().parse()?), "{last}");
    let class = last["class"].as_str().unwrap_or_default().to_owned();
    if class != "fuzzy" {
        wait_for_mark(protect, &mark)?;
    }
    Ok(class)
}

#[test]
fn what_io_uring_changes_is_in_the_next_mark() -> Result<()> {
    let (_mount, _disk, tree) = tree()?;
    let mut random = Random::new(seed());
    change_tree(&tree, &mut random, OPERATIONS)?;
    let protection = protection(&tree)?;
    let mut protect = protection.start()?;
    let mut done = 0;
    for round in 0..6 {
        for _ in 0..10 {
            done += change_tree_by_ring(&tree, &mut random, 10)?;
            change_tree(&tree, &mut random, 10)?;
        }
        // On a machine that is busy the freeze may run out of time: then nothing is claimed, and the next one is tried.
        let mut classes = (0..3).map(|_| mark_is(&mut protect, &format!("round{round}")));
        let class = classes.find(|class| class.as_ref().map_or(true, |class| class != "fuzzy"));
        ensure!(class.transpose()?.as_deref() == Some("fs"), "no mark that can be restored");
        verify(&tree, protection.target())?;
    }
    ensure!(done > 60, "only {done} operations of io_uring were possible");
    protect.stop()?;
    verify(&tree, protection.target())
}

#[test]
fn changes_through_symbolic_links_are_in_the_next_mark() -> Result<()> {
    let (_mount, _disk, tree) = tree()?;
    let protection = protection(&tree)?;
    let file = tree.join("dir/file");
    fs::create_dir(tree.join("dir"))?;
    fs::write(&file, vec![7; 10_000])?;
    let (inside, outside) = (tree.join("link"), protection.dir().join("link"));
    std::os::unix::fs::symlink("dir/file", &inside)?;
    std::os::unix::fs::symlink(&file, &outside)?;
    let mut protect = protection.start()?;
    for (link, mode, size) in [(&inside, 0o600, 9000), (&outside, 0o640, 8000)] {
        fs::set_permissions(link, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        mark_is(&mut protect, "mode")?;
        verify(&tree, protection.target())?;
        nix::unistd::truncate(link, size)?;
        mark_is(&mut protect, "size")?;
        verify(&tree, protection.target())?;
    }
    protect.stop()
}

/// As rsync copies: a name for the time being, by which the file is written and gets its attributes, then its own.
fn copy_in(dir: &Path, bytes: &[u8], pause: Duration) -> Result<u64> {
    fs::create_dir(dir)?;
    let (before, file) = (dir.join(".file.Xy1z"), dir.join("file"));
    let mut written = File::create_new(&before)?;
    for piece in bytes.chunks(512 << 10) {
        std::io::Write::write_all(&mut written, piece)?;
        std::thread::sleep(pause);
    }
    set_time(&before, 1_000_000_000)?;
    fs::rename(&before, &file)?;
    let link = dir.join("link");
    std::os::unix::fs::symlink("file", &link)?;
    std::os::unix::fs::lchown(&link, Some(7), Some(8))?;
    set_time(&link, 1_100_000_000)?;
    Ok(bytes.len() as u64)
}

/// Of a link its own.
fn set_time(path: &Path, seconds: i64) -> Result<()> {
    let time = nix::sys::time::TimeSpec::new(seconds, 0);
    let how = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
    Ok(nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, how)?)
}

#[test]
fn what_is_copied_into_a_tree_is_journaled_once_and_nothing_is_looked_at_again() -> Result<()> {
    const TRIES: u64 = 5;
    let (_mount, _disk, tree) = tree()?;
    let mut random = Random::new(seed());
    for tried in 0..TRIES {
        let protection = protection(&tree)?;
        let mut protect = protection.start()?;
        let before = protect.volume_status()?;
        let top = tree.join(format!("copy{tried}"));
        fs::create_dir(&top)?;
        // Of the large ones much is read before they have their name.
        let mut bytes = 0;
        for number in 0..400 {
            let (size, pause) = if number % 100 == 0 { (4 << 20, 60) } else { (20_000, 0) };
            let pause = Duration::from_millis(pause);
            bytes += copy_in(&top.join(number.to_string()), &random.bytes(size), pause)?;
        }
        mark_is(&mut protect, "copied")?;
        let after = protect.volume_status()?;
        verify(&tree, protection.target())?;
        protect.stop()?;
        // Somebody's io_uring, on the rung `syscall`: it may have been here.
        if after["counters"]["unseen"] != before["counters"]["unseen"] {
            continue;
        }
        let of = |status: &serde_json::Value| status["data_bytes"].as_u64().unwrap_or(0);
        let journaled = of(&after) - of(&before);
        ensure!(after["rescans"] == before["rescans"] && after["lost"] == false, "{after}");
        ensure!(journaled < bytes + bytes / 5, "{journaled} bytes were journaled of {bytes}");
        return Ok(());
    }
    anyhow::bail!("io_uring was at work on this machine {TRIES} times of {TRIES}")
}

#[test]
fn changes_through_links_that_are_gone_are_in_the_next_mark() -> Result<()> {
    let (_mount, _disk, tree) = tree()?;
    let protection = protection(&tree)?;
    fs::create_dir(tree.join("dir"))?;
    fs::create_dir(tree.join("other"))?;
    fs::write(tree.join("dir/file"), vec![7; 100_000])?;
    let link = |path: &Path| std::os::unix::fs::symlink(tree.join("dir"), path);
    link(&tree.join("known"))?;
    link(&tree.join("other/moved"))?;
    let mut protect = protection.start()?;
    let ways: [(&str, &dyn Fn() -> std::io::Result<PathBuf>); 3] = [
        ("known", &|| Ok(tree.join("known"))),
        ("new", &|| link(&tree.join("new")).map(|()| tree.join("new"))),
        ("moved", &|| {
            fs::rename(tree.join("other"), tree.join("another"))?;
            Ok(tree.join("another/moved"))
        }),
    ];
    for (size, (name, way)) in (1..).zip(ways) {
        // By the time it looks the link is gone.
        protect.signal(Signal::SIGSTOP)?;
        let link = way()?;
        nix::unistd::truncate(&link.join("file"), size * 10_000)?;
        fs::remove_file(&link)?;
        protect.signal(Signal::SIGCONT)?;
        mark_is(&mut protect, name)?;
        verify(&tree, protection.target())?;
    }
    protect.stop()
}

#[test]
fn when_the_ring_overflows_all_is_looked_at_again_and_the_next_mark_is_right() -> Result<()> {
    let (_mount, _disk, tree) = tree()?;
    let protection = protection(&tree)?;
    let mut protect = protection.start()?;
    let mut random = Random::new(seed());
    protect.signal(Signal::SIGSTOP)?;
    // As many events as 32 MiB hold, and more.
    let noise = tree.join("noise");
    fs::write(&noise, "x")?;
    for mode in 0..500_000u32 {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600 + mode % 2);
        fs::set_permissions(&noise, mode)?;
    }
    change_tree(&tree, &mut random, OPERATIONS)?;
    protect.signal(Signal::SIGCONT)?;
    let class = mark_is(&mut protect, "after")?;
    let status = protect.volume_status()?;
    ensure!(status["counters"]["lost"].as_u64() > Some(0), "the ring had room: {status}");
    ensure!(status["rescans"].as_u64() > Some(0) && status["lost"] == true, "{status}");
    ensure!(class == "fs", "a mark of class {class}");
    verify(&tree, protection.target())?;
    // Until all that was lost must be over, each mark is as dear, and as right.
    change_tree(&tree, &mut random, OPERATIONS)?;
    mark_is(&mut protect, "later")?;
    verify(&tree, protection.target())?;
    protect.stop()
}

#[test]
fn a_target_without_room_is_right_once_there_is_some() -> Result<()> {
    let (_mount, _disk, tree) = tree()?;
    let disk = Loop::new(24 * MIB)?;
    let small = Mount::make(Fs::Ext4, disk.path())?;
    let ballast = small.point().join("ballast");
    fs::write(&ballast, vec![1; 13 << 20])?;
    let target = small.point().join("target");
    let protection = Protection::new(&tree)?.target_at(&target).arg("--mark-every").arg("never");
    let mut random = Random::new(seed());
    change_tree(&tree, &mut random, 100)?;
    let mut protect = protection.start()?;
    fs::write(tree.join("large"), random.bytes(12 << 20))?;
    fs::create_dir(tree.join("new"))?;
    protect.mark("full")?;
    protect.wait_for("says that the target has no room", |status| {
        status[0]["replica"]["error"].as_str().is_some_and(|error| error.contains("No space"))
    })?;
    ensure!(protect.volume_status()?["replica"]["consistent"] == false);
    change_tree(&tree, &mut random, 100)?;
    fs::remove_file(&ballast)?;
    mark_is(&mut protect, "room")?;
    verify(&tree, &target)?;
    protect.stop()
}

#[test]
fn what_takes_no_journal_of_a_tree_says_what_does() -> Result<()> {
    let (_mount, _disk, tree) = tree()?;
    let protection = protection(&tree)?;
    fs::write(tree.join("file"), "content")?;
    let protect = protection.start()?;
    let image = protection.dir().join("image");
    fs::write(&image, vec![0; 4096])?;
    protect.stop()?;
    let journal = protection.journal();
    let refused = |arguments: &[&std::ffi::OsStr], hints: &[&str]| {
        let finished = finish(afterwrite().args(arguments), PATIENCE)?;
        says(&finished, 2, hints).map(|said| println!("{said}"))
    };
    let restored = protection.dir().join("restored");
    let word = |word: &'static str| std::ffi::OsStr::new(word);
    let (journal, target) = (journal.as_os_str(), protection.target().as_os_str());
    refused(
        &[word("rewind"), target, word("--journal"), journal, word("--to"), word("mark:1")],
        &["tree", "replay"],
    )?;
    refused(&[word("log"), journal], &["tree", "points"])?;
    refused(&[word("verify"), tree.as_os_str(), image.as_os_str()], &["directory"])?;
    refused(&[word("verify"), image.as_os_str(), target], &["directory"])?;
    let replay = [word("replay"), journal, word("--target"), restored.as_os_str(), word("--to")];
    refused(&[&replay[..], &[word("lsn:3")]].concat(), &["mark"])?;
    ensure!(!restored.exists(), "something was restored");
    Ok(())
}

#[test]
fn killed_under_load_it_goes_on_and_the_target_is_right() -> Result<()> {
    let (_mount, _disk, tree) = tree()?;
    let protection = protection(&tree)?;
    let protection = protection.plain().arg("--mark-every").arg("300ms");
    let ending = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let load = scope.spawn(|| {
            let mut random = Random::new(seed() + 1);
            while !ending.load(Ordering::Relaxed) {
                change_tree(&tree, &mut random, 50)?;
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok::<_, anyhow::Error>(())
        });
        let kills = || -> Result<()> {
            let mut random = Random::new(seed() + 2);
            for _ in 0..kills().min(6) {
                let mut protect = protection.spawn()?;
                protect.wait_for("has begun", |_| true)?;
                std::thread::sleep(Duration::from_millis(random.below(2500)));
                protect.kill()?;
            }
            Ok(())
        };
        let killed = kills();
        ending.store(true, Ordering::Relaxed);
        load.join().expect("the load does not panic")?;
        killed
    })?;
    let mut protect = protection.start()?;
    let mark = protect.mark("after")?;
    wait_for_mark(&mut protect, &mark)?;
    verify(&tree, protection.target())?;
    protect.stop()?;
    let restored = protection.dir().join("restored");
    protection.replay("latest", &restored)?;
    verify(&tree, &restored)?;
    protection.check_journal()
}

#[test]
fn a_small_change_of_a_large_file_writes_little_and_a_rename_nothing() -> Result<()> {
    let (_mount, _disk, tree) = tree()?;
    let large = tree.join("large");
    let file = File::create(&large)?;
    file.set_len(10 << 30)?;
    file.write_all_at(&[1; 1 << 20], 5 << 30)?;
    let protection = protection(&tree)?;
    let mut protect = protection.start()?;
    let written = |protect: &Protect<'_>| -> Result<u64> {
        Ok(protect.volume_status()?["replica"]["data_bytes"].as_u64().unwrap_or(0))
    };
    wait_for_mark(&mut protect, "1")?;
    let before = written(&protect)?;
    file.write_all_at(&[2; 4096], 7 << 30)?;
    let mark = protect.mark("written")?;
    wait_for_mark(&mut protect, &mark)?;
    let change = written(&protect)? - before;
    fs::rename(&large, tree.join("renamed"))?;
    let mark = protect.mark("renamed")?;
    wait_for_mark(&mut protect, &mark)?;
    let rename = written(&protect)? - before - change;
    println!("4 KiB changed in 10 GiB: {change} bytes written to the target; renamed: {rename} bytes");
    ensure!(change == 4096 && rename == 0, "{change} and {rename} bytes");
    let blocks = |path: &Path| Ok::<_, std::io::Error>(fs::metadata(path)?.blocks());
    ensure!(
        blocks(&protection.target().join("renamed"))? <= blocks(&tree.join("renamed"))? + 64,
        "holes were filled"
    );
    protect.stop()
}

#[test]
fn what_cannot_be_protected_is_refused_with_the_reason() -> Result<()> {
    let (_mount, _disk, tree) = tree()?;
    let refused = |target: &Path, journal: Option<&Path>, hints: &[&str]| -> Result<()> {
        let protection = Protection::new(&tree)?.target_at(target);
        let protection = match journal {
            Some(journal) => protection.journal_at(journal),
            None => protection,
        };
        protection.refused(hints).map(drop)
    };
    let elsewhere = scratch()?;
    refused(&tree.join("target"), None, &["target", "inside of"])?;
    refused(tree.parent().expect("it has one"), None, &["inside of the target"])?;
    refused(&elsewhere.path().join("target"), Some(&tree.join("journal")), &["journal", "inside of"])?;
    fs::write(elsewhere.path().join("file"), "x")?;
    refused(&elsewhere.path().join("file"), None, &["not a directory"])?;
    refused(elsewhere.path(), None, &["not empty", "--force"])?;
    ensure!(elsewhere.path().join("file").exists());
    Protection::new(&elsewhere.path().join("file"))?.refused(&["not a block device"]).map(drop)
}
