//! A program at work in a protected tree, and the target held against the tree in the midst of it: now and then all its
//! processes are made to stand still, and while they do nothing may differ at a mark. Who says so besides Afterwrite is rsync.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, killpg};

use crate::load::pid_of;
use crate::{PATIENCE, Protect, Random, afterwrite, finish, patience, run, wait_until};

/// A busy machine may not get a file system frozen in time; then nothing is claimed, and the next mark is tried.
const TRIES: usize = 5;

/// How often a program is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two looks, about.
    pub every: Duration,
    /// Then it is left alone.
    pub looks_max: u32,
}

/// What was seen of a program that has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Midst {
    /// Without the time in which it stood still.
    pub took: Duration,
    /// Times that it stood still, and the target was the tree at a mark.
    pub looks: u32,
    /// Marks made while it ran.
    pub marks: u32,
}

/// Runs the program to its end, which must be a good one. At least once in its midst the target is held against the tree.
pub fn judge_in_the_midst(
    protect: &mut Protect<'_>,
    (tree, target): (&Path, &Path),
    command: &mut Command,
    pace: Pace,
    random: &mut Random,
) -> Result<Midst> {
    let mut group = Group::start(command)?;
    let (mut midst, begun) = (Midst::default(), Instant::now());
    let mut stood = Duration::ZERO;
    loop {
        // The first look comes early: it may be over soon.
        let every = if midst.looks == 0 { pace.every / 8 } else { pace.every };
        let pause = every.mul_f64(0.5 + random.below(1000) as f64 / 1000.0);
        let ended = wait_until("", pause, || group.has_ended()).is_ok();
        if ended {
            break;
        }
        if midst.looks >= pace.looks_max {
            continue;
        }
        protect.mark("running")?;
        midst.marks += 1;
        let still = Instant::now();
        group.stand_still()?;
        target_is_tree(protect, (tree, target)).context("in the midst of it")?;
        midst.looks += 1;
        group.go_on()?;
        stood += still.elapsed();
    }
    midst.took = begun.elapsed().saturating_sub(stood);
    group.ended_well()?;
    ensure!(midst.looks > 0, "it was over after {:?}, before one look at it", midst.took);
    Ok(midst)
}

/// Makes a mark, and holds the target at it against the tree, in which nothing happens meanwhile.
pub fn target_is_tree(protect: &mut Protect<'_>, (tree, target): (&Path, &Path)) -> Result<u64> {
    let id = restorable_mark(protect)?;
    protect.wait_for("has brought the target to the mark", |status| {
        status[0]["replica"]["mark"].as_u64() >= Some(id) && status[0]["replica"]["consistent"] == true
    })?;
    run(afterwrite().arg("verify").arg(tree).arg(target))?;
    same_by_rsync(tree, target)?;
    Ok(id)
}

fn restorable_mark(protect: &Protect<'_>) -> Result<u64> {
    for _ in 0..TRIES {
        let id: u64 = protect.mark("judged")?.trim().parse()?;
        let last = protect.volume_status()?["last_mark"].clone();
        if last["id"].as_u64() >= Some(id) && last["class"] != "fuzzy" {
            return Ok(id);
        }
    }
    anyhow::bail!("{TRIES} marks, none of which can be restored: {}", protect.volume_status()?)
}

/// What rsync would do to make the target the tree, by content, attributes, ACLs, links and times of modification: nothing.
pub fn same_by_rsync(tree: &Path, target: &Path) -> Result<()> {
    let inside = |path: &Path| path.join("");
    let mut rsync = Command::new("rsync");
    rsync
        .args(["-aHAXn", "--delete", "--checksum", "--itemize-changes"])
        .arg(inside(tree))
        .arg(inside(target));
    let would = finish(&mut rsync, patience().max(Duration::from_secs(900)))?;
    ensure!(would.code == Some(0), "{rsync:?}: {}{}", would.stdout, would.stderr);
    let lines: Vec<&str> = would.stdout.lines().take(20).collect();
    ensure!(lines.is_empty(), "rsync would change {target:?} to make it {tree:?}:\n{}", lines.join("\n"));
    Ok(())
}

/// A program and all that it starts; killed when dropped.
struct Group {
    child: Child,
    said: File,
    what: String,
}

impl Group {
    fn start(command: &mut Command) -> Result<Group> {
        let said = tempfile::tempfile()?;
        command.process_group(0).stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said.try_clone()?);
        let what = format!("{command:?}");
        let child = command.spawn().with_context(|| format!("cannot run {what}"))?;
        Ok(Group { child, said, what })
    }

    fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    fn ended_well(mut self) -> Result<()> {
        let status = self.child.wait()?;
        let mut said = String::new();
        std::io::Seek::rewind(&mut self.said)?;
        std::io::Read::read_to_string(&mut self.said, &mut said)?;
        ensure!(status.success(), "{} ended with {status}:\n{said}", self.what);
        Ok(())
    }

    /// Returns when none of its threads does anything any more, nor has a call under way.
    fn stand_still(&self) -> Result<()> {
        let begun = Instant::now();
        for limit in (1u32..).map(|seconds| Duration::from_secs(seconds.into())) {
            killpg(pid_of(&self.child), Signal::SIGSTOP)?;
            let still = || Ok(self.threads().iter().all(|state| "TtZX".contains(*state)));
            let stopped = wait_until("all of it stands still", limit, still);
            if stopped.is_ok() || begun.elapsed() > PATIENCE {
                return stopped.with_context(|| format!("{}: {:?}", self.what, self.threads()));
            }
            // Who waits in vfork for a child that was stopped before its exec does not stop: another time.
            self.go_on()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        unreachable!("it is left within PATIENCE")
    }

    fn go_on(&self) -> Result<()> {
        Ok(killpg(pid_of(&self.child), Signal::SIGCONT)?)
    }

    /// Their states, as /proc has them.
    fn threads(&self) -> Vec<char> {
        let group = self.child.id().to_string();
        let entries =
            |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let threads = entries(Path::new("/proc")).flat_map(|process| entries(&process.join("task")));
        let state = |thread: std::path::PathBuf| {
            // After the name, which may hold anything: state, parent, group.
            let stat = fs::read_to_string(thread.join("stat")).ok()?;
            let mut fields = stat.rsplit_once(") ")?.1.split(' ');
            let state = fields.next()?.chars().next()?;
            (fields.nth(1)? == group).then_some(state)
        };
        threads.filter_map(state).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Gone meanwhile is as good.
            let _ = killpg(pid_of(&self.child), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}
