//! The `afterwrite protect` of a round: started, killed, started again, and what its status said meanwhile.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use afterwrite_tests::*;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// What was seen of the protection over all its lives.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub lives: u64,
    pub marked: u64,
    pub submissions: u64,
    pub completions: u64,
    /// Lives that took over what the one before left in the kernel.
    pub adopted: u64,
    /// Lives that did not get far, as a disk was broken when they were started.
    pub refused: u64,
    /// Times the journal, or the target, was seen to fail in a life.
    pub paused: u64,
    pub target_failed: u64,
}

pub struct Guard<'p> {
    protection: &'p Protection,
    protect: Option<Protect<'p>>,
    /// Started while a disk was broken: it may say so and end.
    excused: bool,
    last: Value,
    pub seen: Seen,
}

impl<'p> Guard<'p> {
    pub fn new(protection: &'p Protection) -> Guard<'p> {
        Guard { protection, protect: None, excused: false, last: Value::Null, seen: Seen::default() }
    }

    pub fn start(&mut self) -> Result<()> {
        ensure!(self.protect.is_none(), "it runs already");
        self.seen.lives += 1;
        self.excused = false;
        self.protect = Some(self.protection.spawn()?);
        Ok(())
    }

    /// Started while a disk is broken: it may end with exit code 2, and is then started again.
    pub fn start_in_vain(&mut self) -> Result<()> {
        self.start()?;
        self.excused = true;
        Ok(())
    }

    /// Waits until it follows the source, with journal and target at work.
    pub fn wait_live(&mut self) -> Result<()> {
        let begun = Instant::now();
        let limit = PATIENCE * 2;
        loop {
            if self.ended()? {
                self.start()?;
            }
            let well = |status: Value| {
                status["state"] == "live"
                    && status["paused"].is_null()
                    && status["replica"]["error"].is_null()
            };
            if self.look().is_some_and(well) {
                self.excused = false;
                return Ok(());
            }
            ensure!(begun.elapsed() < limit, "not live after {limit:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it is not running now. An error if it ended and had no reason to.
    pub fn ended(&mut self) -> Result<bool> {
        let Some(protect) = &mut self.protect else { return Ok(true) };
        if !protect.has_ended()? {
            return Ok(false);
        }
        let finished = self.protect.take().expect("looked at above").ended()?;
        ensure!(
            self.excused && finished.code == Some(2),
            "protect ended by itself with {:?}:\n{}",
            finished.code,
            finished.stderr
        );
        self.seen.refused += 1;
        Ok(true)
    }

    /// Waits until it speaks: it heals from here on, and has said how it takes a signal.
    pub fn wait_answer(&mut self) -> Result<()> {
        wait_until("protect answers", PATIENCE, || {
            ensure!(!self.ended()?, "protect did not start");
            Ok(self.look().is_some())
        })
    }

    /// The status of the volume, if it answers; what is in it is added up.
    pub fn look(&mut self) -> Option<Value> {
        let protect = self.protect.as_ref()?;
        let volumes = protect.status().ok()?;
        // What a killed one left in the kernel is shown too.
        let own = |status: &&Value| status["pid"] == protect.pid().as_raw();
        let status = volumes.as_array()?.iter().find(own)?.clone();
        let counter = |status: &Value, name: &str| status["counters"][name].as_u64().unwrap_or(0);
        // A life of its own begins at 0; one that adopted goes on where the last one was.
        let began_anew = counter(&status, "seen") < counter(&self.last, "seen");
        let last = if began_anew { Value::Null } else { self.last.clone() };
        let grown = |name: &str| counter(&status, name).saturating_sub(counter(&last, name));
        self.seen.marked += grown("marked");
        self.seen.submissions += grown("seen");
        self.seen.completions += grown("completions_seen");
        if self.last["pid"] != status["pid"] {
            self.seen.adopted += u64::from(status["probes"] != "new");
        }
        let failed_anew = |failing: fn(&Value) -> bool| u64::from(failing(&status) && !failing(&self.last));
        self.seen.paused += failed_anew(|status| status["paused"].is_string());
        self.seen.target_failed += failed_anew(|status| status["replica"]["error"].is_string());
        self.last = status.clone();
        Some(status)
    }

    pub fn kill(&mut self) -> Result<()> {
        self.look();
        if !self.ended()? {
            self.protect.take().expect("it runs").kill()?;
        }
        Ok(())
    }

    /// Stopped in order, also while it copies or compares.
    pub fn stop(&mut self) -> Result<()> {
        self.wait_answer()?;
        self.protect.take().context("it does not run")?.stop()
    }

    /// SIGSTOP, and SIGCONT after `time`.
    pub fn suspend(&mut self, time: Duration) -> Result<()> {
        let Some(protect) = &self.protect else { return Ok(()) };
        kill(protect.pid(), Signal::SIGSTOP)?;
        std::thread::sleep(time);
        Ok(kill(protect.pid(), Signal::SIGCONT)?)
    }

    /// SIGKILL for the process that freezes.
    pub fn kill_freezer(&self) -> Result<()> {
        let Some(protect) = &self.protect else { return Ok(()) };
        if let Some(freezer) = child_of(protect.pid(), "freezer") {
            // It may just have ended.
            let _ = kill(freezer, Signal::SIGKILL);
        }
        Ok(())
    }

    /// Whether the mark was made; not while it copies or compares, and not when the journal fails.
    pub fn mark(&self, label: &str) -> Result<bool> {
        let mut mark = self.protection.client();
        Ok(finish(mark.args(["mark", "--label", label]), PATIENCE)?.code == Some(0))
    }

    /// Asks for a mark and does not wait for it.
    pub fn ask_for_mark(&self, label: &str) -> Result<Child> {
        let mut mark = self.protection.client();
        mark.args(["mark", "--label", label]);
        Ok(mark.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
    }

    /// The probes' counters add up once nothing is written any more.
    pub fn counters_add_up(&mut self) -> Result<()> {
        let protect = self.protect.as_mut().context("it does not run")?;
        let at_rest = protect.wait_for("has copied everything and its counters add up", |status| {
            let counter = |name: &str| status[0]["counters"][name].as_u64();
            let sum = counter("emitted").zip(counter("marked")).map(|(emitted, marked)| emitted + marked);
            status[0]["pending_bytes"] == 0 && sum.is_some() && counter("seen") == sum
        });
        at_rest?;
        self.look();
        Ok(())
    }

    /// What it says of itself, for an error.
    pub fn describe(&mut self) -> String {
        let status = self.look().unwrap_or_else(|| format!("no answer, before that {}", self.last).into());
        let threads = self.protect.as_ref().map_or(String::new(), |protect| waits_of(protect.pid()));
        format!("status: {status}\nthreads: {threads}\nlog: {}", self.log())
    }

    fn log(&self) -> String {
        self.protect.as_ref().map_or(String::new(), Protect::log)
    }
}

/// Each thread of the process and of its helper, and what it waits for in the kernel.
fn waits_of(pid: Pid) -> String {
    let mut waits = Vec::new();
    for process in [Some(pid), child_of(pid, "freezer")].into_iter().flatten() {
        for task in std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten() {
            let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            waits.push(format!("{} {}", read("comm").trim(), read("wchan").trim()));
        }
    }
    waits.join(", ")
}

fn child_of(parent: Pid, argument: &str) -> Option<Pid> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.find(|pid| {
        let read = |name: &str| {
            std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join(name)).unwrap_or_default()
        };
        read("status").lines().any(|line| line == format!("PPid:\t{parent}"))
            && read("cmdline").split('\0').any(|word| word == argument)
    })
    .map(Pid::from_raw)
}
