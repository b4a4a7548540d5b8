//! Retention of directory trees: whatever happens while a tree's journal is pruned, each mark that is kept is the tree it was.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

const SIZE: u64 = 320 * MIB;
const OPERATIONS: u64 = 150;
/// Nothing by its age: what is left are marks with a label, and what can't go.
const STRICT: [&str; 10] =
    ["--keep-all", "0s", "--keep-marks", "0s", "--hourly", "0", "--daily", "0", "--weekly", "0"];

/// A tree on a file system of its own, and what it was at marks.
struct Tree {
    _mount: Mount,
    _disk: Loop,
    path: PathBuf,
    copies: BTreeMap<u64, PathBuf>,
    random: Random,
}

impl Tree {
    fn new() -> Result<Tree> {
        let disk = Loop::new(SIZE)?;
        let mount = Mount::make(Fs::Ext4, disk.path())?;
        let path = mount.point().join("tree");
        fs::create_dir(&path)?;
        Ok(Tree { _mount: mount, _disk: disk, path, copies: BTreeMap::new(), random: Random::new(seed()) })
    }

    fn protection(&self) -> Result<Protection> {
        let protection = Protection::new(&self.path)?;
        let target = protection.dir().join("target");
        Ok(protection.target_at(&target).arg("--mark-every").arg("never"))
    }

    /// Changes the tree and makes a mark, at which the target is when this returns.
    fn mark(&mut self, protection: &Protection, protect: &mut Protect<'_>, label: &str) -> Result<u64> {
        change_tree(&self.path, &mut self.random, OPERATIONS)?;
        // Of this only the last is left between two marks.
        fs::write(self.path.join("hot"), self.random.bytes(2 << 20))?;
        // On a machine that is busy the freeze may run out of time: then nothing is claimed, and the next one is tried.
        for _ in 0..5 {
            let mark: u64 = protect.mark(label)?.trim().parse()?;
            if protect.volume_status()?["last_mark"]["class"] == "fuzzy" {
                continue;
            }
            protect.wait_for("has brought the target to the mark", |status| {
                status[0]["replica"]["mark"].as_u64() >= Some(mark)
                    && status[0]["replica"]["consistent"] == true
            })?;
            same_trees(&self.path, protection.target())?;
            let copy = protection.dir().join(format!("copy{mark}"));
            run(Command::new("cp").arg("-a").arg(&self.path).arg(&copy))?;
            self.copies.insert(mark, copy);
            return Ok(mark);
        }
        anyhow::bail!("no mark that can be restored")
    }

    /// Each mark that is left gives the tree that it was, and each other one is refused. Says which are left.
    fn judge(&self, protection: &Protection) -> Result<Vec<u64>> {
        protection.check_journal()?;
        let left = points(protection)?;
        let restored = protection.dir().join("restored");
        for (mark, copy) in &self.copies {
            let to = format!("mark:{mark}");
            if left.contains(mark) {
                protection.replay(&to, &restored)?;
                same_trees(copy, &restored).with_context(|| format!("mark {mark}"))?;
                fs::remove_dir_all(&restored)?;
            } else {
                let mut replay = afterwrite();
                replay.arg("replay").arg(protection.journal()).args(["--to", &to, "--target"]).arg(&restored);
                says(&finish(&mut replay, Duration::from_secs(30))?, 2, &["no mark", "afterwrite points"])?;
                ensure!(!restored.exists(), "something was restored");
            }
        }
        Ok(left.into_iter().filter(|mark| self.copies.contains_key(mark)).collect())
    }
}

fn points(protection: &Protection) -> Result<Vec<u64>> {
    Ok(protection.points()?.iter().filter_map(|point| point["id"].as_u64()).collect())
}

fn prune(protection: &Protection, options: &[&str]) -> Command {
    let mut prune = afterwrite();
    prune.args(["journal", "prune"]).arg(protection.journal()).args(options);
    prune
}

/// Bytes of all files in a directory.
fn size_of(dir: &Path) -> Result<u64> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

#[test]
fn each_mark_that_is_kept_is_the_tree_it_was_and_space_is_given_back() -> Result<()> {
    let mut tree = Tree::new()?;
    let protection = tree.protection()?;
    let mut named = Vec::new();
    // The end of each life ends a segment, and only whole ones are pruned.
    for _ in 0..3 {
        let mut protect = protection.start()?;
        for label in ["", "", "kept", ""] {
            let mark = tree.mark(&protection, &mut protect, label)?;
            named.extend((label == "kept").then_some(mark));
        }
        protect.stop()?;
    }
    let before = size_of(protection.journal())?;
    let json = |command: &mut Command| Ok::<Value, anyhow::Error>(serde_json::from_str(&run(command)?)?);
    let mut plan = json(prune(&protection, &STRICT).args(["--dry-run", "--json"]))?;
    ensure!(size_of(protection.journal())? == before, "a dry run changed something");
    let done = json(prune(&protection, &STRICT).arg("--json"))?;
    plan["dry_run"] = false.into();
    ensure!(done == plan, "{plan}\n{done}");
    let left = tree.judge(&protection)?;
    ensure!(named.iter().all(|mark| left.contains(mark)), "{named:?} should be in {left:?}");
    ensure!(tree.copies.len() >= left.len() + 4, "only some went: {left:?} of {}", tree.copies.len());
    let after = size_of(protection.journal())?;
    println!("{before} bytes before, {after} after; {} marks of {}", left.len(), tree.copies.len());
    ensure!(after < before / 4 * 3, "{before} bytes before, {after} after");
    // It goes on from there, and again.
    let mut protect = protection.start()?;
    tree.mark(&protection, &mut protect, "")?;
    tree.mark(&protection, &mut protect, "last")?;
    protect.stop()?;
    let start = protection.start()?;
    same_trees(&tree.path, protection.target())?;
    start.stop()?;
    run(&mut prune(&protection, &[&STRICT[..], &["--drop-labelled"]].concat()))?;
    let left = tree.judge(&protection)?;
    ensure!(left.len() < named.len(), "marks with a label are left: {left:?}");
    protection.replay("latest", &protection.dir().join("latest"))?;
    same_trees(&tree.path, &protection.dir().join("latest"))
}

#[test]
fn killed_at_any_instant_of_a_prune_and_beside_protect_no_kept_mark_is_lost() -> Result<()> {
    let mut tree = Tree::new()?;
    // So that a prune takes a while.
    for number in 0..24 {
        fs::write(tree.path.join(format!("large{number}")), tree.random.bytes(1 << 20))?;
    }
    let protection = tree.protection()?;
    let ended = AtomicBool::new(false);
    let mut named = Vec::new();
    let (killed, done) = std::thread::scope(|scope| -> Result<(u32, u32)> {
        let pruning = scope.spawn(|| -> Result<(u32, u32)> {
            let mut random = Random::new(seed() + 1);
            let (mut killed, mut done) = (0, 0);
            while !ended.load(Ordering::Relaxed) {
                let mut prune = prune(&protection, &STRICT);
                let mut child =
                    prune.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
                // However long a prune takes on this machine.
                std::thread::sleep(Duration::from_millis(random.below(1500) >> random.below(9)));
                match child.try_wait()? {
                    // There was no journal yet, or it was through.
                    Some(status) => done += u32::from(status.success()),
                    None => {
                        child.kill()?;
                        child.wait()?;
                        killed += 1;
                    }
                }
            }
            Ok((killed, done))
        });
        let mut lives = || -> Result<()> {
            for _ in 0..5 {
                let mut protect = protection.start()?;
                for label in ["", "kept", ""] {
                    let mark = tree.mark(&protection, &mut protect, label)?;
                    named.extend((label == "kept").then_some(mark));
                }
                protect.kill()?;
            }
            Ok(())
        };
        let lived = lives();
        ended.store(true, Ordering::Relaxed);
        let pruned = pruning.join().expect("the prunes do not panic");
        lived.and(pruned)
    })?;
    println!("{killed} prunes were killed, {done} came to their end");
    ensure!(killed > 3, "only {killed} prunes were killed");
    let as_they_were_left = tree.judge(&protection)?;
    ensure!(named.iter().all(|mark| as_they_were_left.contains(mark)), "{named:?} in {as_they_were_left:?}");
    let protect = protection.start()?;
    protect.stop()?;
    run(&mut prune(&protection, &STRICT))?;
    let left = tree.judge(&protection)?;
    ensure!(named.iter().all(|mark| left.contains(mark)), "{named:?} should be in {left:?}");
    ensure!(left.len() < tree.copies.len(), "nothing went: {left:?}");
    same_trees(&tree.path, protection.target())
}

#[test]
fn protect_prunes_by_itself_and_keeps_what_its_target_needs() -> Result<()> {
    let mut tree = Tree::new()?;
    let protection = tree.protection()?;
    for _ in 0..2 {
        let mut protect = protection.start()?;
        for label in ["", "kept", ""] {
            tree.mark(&protection, &mut protect, label)?;
        }
        protect.stop()?;
    }
    // The target is behind: it was at this mark when it could be written last.
    let checkpoint = fs::read(protection.journal().join("tree.checkpoint"))?;
    let behind = *tree.copies.keys().last().context("there are marks")?;
    let copy = protection.dir().join("behind");
    run(Command::new("cp").arg("-a").arg(protection.target()).arg(&copy))?;
    let mut protect = protection.start()?;
    let later = tree.mark(&protection, &mut protect, "")?;
    tree.mark(&protection, &mut protect, "")?;
    protect.stop()?;
    let protect = protection.start()?;
    protect.stop()?;
    run(Command::new("find").arg(protection.target()).args(["-mindepth", "1", "-delete"]))?;
    run(Command::new("cp").arg("-aT").arg(&copy).arg(protection.target()))?;
    fs::write(protection.journal().join("tree.checkpoint"), checkpoint)?;
    run(&mut prune(&protection, &STRICT))?;
    let left = tree.judge(&protection)?;
    ensure!(left.contains(&later), "mark {later} is gone, and the target is at one before it: {left:?}");
    println!("the target is at the mark after {behind}; left are {left:?}");
    let protection = STRICT.iter().fold(protection, |protection, option| protection.arg(*option));
    let mut protect = protection.start()?;
    protect.wait_for("has brought the target to the last mark", |status| {
        status[0]["replica"]["mark"] == status[0]["last_mark"]["id"]
            && status[0]["replica"]["consistent"] == true
    })?;
    same_trees(&tree.path, protection.target())?;
    protect.wait_for("has pruned by itself", |status| {
        status[0]["retention"]["freed_bytes"].as_u64() > Some(0)
    })?;
    ensure!(protect.volume_status()?["retention"]["error"].is_null());
    tree.judge(&protection)?;
    tree.mark(&protection, &mut protect, "")?;
    protect.stop()?;
    same_trees(&tree.path, protection.target())
}
