use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::devices::tell;
use crate::load::pid_of;
use crate::{Finished, afterwrite, binary, finish, patience, run, scratch, wait_until};

/// How a volume is to be protected: what `afterwrite protect` is called with, again after each kill. Owns the
/// directory of the control socket, so that tests do not meet each other there.
pub struct Protection {
    device: PathBuf,
    journal: PathBuf,
    target: PathBuf,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    lives: AtomicU32,
    dir: TempDir,
}

impl Protection {
    /// With journal and target in a directory of its own.
    pub fn new(device: &Path) -> Result<Protection> {
        let dir = scratch()?;
        std::fs::create_dir(dir.path().join("run"))?;
        let (journal, target) = (dir.path().join("journal"), dir.path().join("replica.img"));
        Ok(Protection {
            device: device.to_owned(),
            journal,
            target,
            program: binary(),
            args: Vec::new(),
            env: Vec::new(),
            lives: 0.into(),
            dir,
        })
    }

    pub fn journal_at(mut self, journal: &Path) -> Protection {
        self.journal = journal.to_owned();
        self
    }

    pub fn target_at(mut self, target: &Path) -> Protection {
        self.target = target.to_owned();
        self
    }

    /// Another `afterwrite` than the one under test.
    pub fn binary(mut self, program: &Path) -> Protection {
        self.program = program.to_owned();
        self
    }

    pub fn arg(mut self, arg: impl Into<OsString>) -> Protection {
        self.args.push(arg.into());
        self
    }

    /// Without any arguments that were added.
    pub fn plain(mut self) -> Protection {
        self.args.clear();
        self
    }

    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Protection {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn device(&self) -> &Path {
        &self.device
    }

    pub fn journal(&self) -> &Path {
        &self.journal
    }

    pub fn target(&self) -> &Path {
        &self.target
    }

    /// A directory for what else the test needs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `afterwrite` as it talks to this protection.
    pub fn client(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("AFTERWRITE_RUN_DIR", self.dir.path().join("run"));
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The whole command line.
    pub fn command(&self) -> Command {
        let mut command = self.client();
        command.arg("protect").arg(&self.device).arg("--journal").arg(&self.journal);
        command.arg("--target").arg(&self.target).args(&self.args);
        command
    }

    /// Starts it and waits until the baseline is through and it follows the source.
    pub fn start(&self) -> Result<Protect<'_>> {
        let mut protect = self.spawn()?;
        protect.wait_live()?;
        Ok(protect)
    }

    /// Starts it, and waits until the replica is at a mark of this life. Its status then.
    pub fn start_and_settle(&self) -> Result<(Protect<'_>, Value)> {
        let mut protect = self.start()?;
        protect.mark("settled")?;
        protect.wait_for("has brought the replica to the mark", |status| {
            status[0]["replica"]["mark"] == status[0]["last_mark"]["id"]
                && !status[0]["last_mark"]["id"].is_null()
        })?;
        let status = protect.volume_status()?;
        Ok((protect, status))
    }

    /// Starts it and waits for nothing.
    pub fn spawn(&self) -> Result<Protect<'_>> {
        let life = self.lives.fetch_add(1, Ordering::Relaxed);
        let log = self.dir.path().join(format!("protect-{life}.log"));
        let file = std::fs::File::create(&log)?;
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        Ok(Protect { protection: self, child, log })
    }

    /// What it says when it must not start: an error unless it exits with 2 soon. The message is for people, so only
    /// that it says `hints` (in any case of letters) is checked.
    pub fn refused(&self, hints: &[&str]) -> Result<String> {
        let finished = finish(&mut self.command(), Duration::from_secs(30))?;
        says(&finished, 2, hints)
    }

    /// Rebuilds a point as a new image.
    pub fn replay(&self, to: &str, image: &Path) -> Result<()> {
        let mut replay = afterwrite();
        replay.arg("replay").arg(&self.journal).args(["--to", to, "--target"]).arg(image);
        run(&mut replay).map(drop)
    }

    /// `afterwrite points --json`.
    pub fn points(&self) -> Result<Vec<Value>> {
        let json = run(afterwrite().arg("points").arg(&self.journal).arg("--json"))?;
        let points: Value = serde_json::from_str(&json).with_context(|| format!("not JSON: {json}"))?;
        let points = points.as_array().or_else(|| points.get("points")?.as_array()).cloned();
        points.with_context(|| format!("no points in {json}"))
    }

    /// Whether anything of this protection is at work in the kernel, or left over there.
    pub fn is_in_kernel(&self) -> bool {
        is_in_kernel(&self.device)
    }

    /// `afterwrite journal check`, which must find nothing.
    pub fn check_journal(&self) -> Result<()> {
        run(afterwrite().args(["journal", "check"]).arg(&self.journal)).map(drop)
    }
}

impl Drop for Protection {
    fn drop(&mut self) {
        // What a killed one left would meet the next user of the device.
        if self.is_in_kernel() {
            tell(run(self.client().arg("detach").arg(&self.device)));
        }
    }
}

/// Whether probes of this volume are at work, or left over.
pub fn is_in_kernel(volume: &Path) -> bool {
    let name = volume.file_name().expect("a device has a name");
    let pins = Path::new("/sys/fs/bpf/afterwrite").join(name);
    std::fs::read_dir(pins).is_ok_and(|mut generations| generations.next().is_some())
}

/// A running `afterwrite protect`; killed when dropped.
pub struct Protect<'p> {
    protection: &'p Protection,
    child: Child,
    log: PathBuf,
}

impl Protect<'_> {
    pub fn wait_live(&mut self) -> Result<()> {
        self.wait_for("is live", |status| state(status) == Some("live"))
    }

    /// Waits until `afterwrite status --json` says so.
    pub fn wait_for(&mut self, what: &str, mut condition: impl FnMut(&Value) -> bool) -> Result<()> {
        let mut last = None;
        let waited = wait_until(&format!("protect {what}"), patience(), || {
            if let Some(status) = self.child.try_wait()? {
                bail!("protect has ended: {status}");
            }
            last = self.status().ok();
            Ok(last.as_ref().is_some_and(&mut condition))
        });
        waited.with_context(|| format!("last status: {last:?}\nlog:\n{}", self.log()))
    }

    pub fn status(&self) -> Result<Value> {
        let json = run(self.protection.client().args(["status", "--json"]))?;
        serde_json::from_str(&json).with_context(|| format!("not JSON: {json}"))
    }

    /// The only volume's part of [`Protect::status`].
    pub fn volume_status(&self) -> Result<Value> {
        self.status()?.get(0).cloned().context("no volume is protected")
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(pid_of(&self.child), signal)?)
    }

    /// Makes a mark; what the command says.
    pub fn mark(&self, label: &str) -> Result<String> {
        let mut mark = self.protection.client();
        run(mark.args(["mark", "--label", label])).with_context(|| format!("log:\n{}", self.log()))
    }

    /// Ctrl-C: waits until it has drained, marked and ended with 0.
    pub fn stop(mut self) -> Result<()> {
        kill(pid_of(&self.child), Signal::SIGINT)?;
        let finished = self.wait_end()?;
        ensure!(finished.code == Some(0), "protect ended with {:?}:\n{}", finished.code, finished.stderr);
        Ok(())
    }

    /// SIGKILL, to this very process.
    pub fn kill(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("protect has ended before it was killed: {status}\n{}", self.log());
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until it ends by itself.
    pub fn ended(mut self) -> Result<Finished> {
        self.wait_end()
    }

    pub fn pid(&self) -> Pid {
        pid_of(&self.child)
    }

    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn wait_end(&mut self) -> Result<Finished> {
        let mut status = None;
        let waited = wait_until("protect has ended", patience(), || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        });
        waited.with_context(|| format!("log:\n{}", self.log()))?;
        let code = status.and_then(|status| status.code());
        Ok(Finished { code, stdout: String::new(), stderr: self.log() })
    }
}

impl Drop for Protect<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            eprintln!("killing protect; its log:\n{}", self.log());
            // Gone meanwhile is as good.
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// An error unless the command ended with `code` and its standard error says all of `hints`. Returns what it said.
pub fn says(finished: &Finished, code: i32, hints: &[&str]) -> Result<String> {
    let said = finished.stderr.to_lowercase();
    let missing: Vec<_> = hints.iter().filter(|hint| !said.contains(&hint.to_lowercase())).collect();
    ensure!(
        finished.code == Some(code) && missing.is_empty(),
        "wanted exit code {code} and a message with {hints:?}, got {:?} and:\n{}{}",
        finished.code,
        finished.stdout,
        finished.stderr
    );
    Ok(finished.stderr.clone())
}

/// The `state` of the only volume, wherever in the document it is.
fn state(status: &Value) -> Option<&str> {
    match status {
        Value::Object(map) => match map.get("state") {
            Some(Value::String(state)) => Some(state),
            _ => map.values().find_map(state),
        },
        Value::Array(items) => items.iter().find_map(state),
        _ => None,
    }
}
