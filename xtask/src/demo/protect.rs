//! `afterwrite protect` as a child, and the commands that talk to it.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::demo::ground::Interrupt;
use crate::demo::{PATIENCE, tail, tell, wait_until};
use crate::run;

const LOG_LINES: usize = 20;

/// The binary, and the directory with journal, replica and control socket.
pub struct Client {
    afterwrite: PathBuf,
    dir: PathBuf,
}

impl Client {
    pub fn new(afterwrite: &Path, dir: &Path) -> Result<Client> {
        let found = afterwrite.canonicalize();
        let afterwrite = found.with_context(|| format!("{} was not built", afterwrite.display()))?;
        std::fs::create_dir(dir.join("run"))?;
        Ok(Client { afterwrite, dir: dir.to_owned() })
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.afterwrite);
        self.set_up(&mut command);
        command
    }

    pub fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }

    pub fn replica(&self) -> PathBuf {
        self.dir.join("replica.img")
    }

    /// Of the only volume.
    pub fn status(&self) -> Result<Value> {
        let json = run::output(self.command().args(["status", "--json"]))?;
        let all: Value = serde_json::from_str(&json).with_context(|| format!("not JSON: {json}"))?;
        all.get(0).cloned().context("no volume is protected")
    }

    pub fn mark(&self, label: &str) -> Result<Value> {
        let json = run::output(self.command().args(["mark", "--json", "--label", label]))?;
        serde_json::from_str(&json).with_context(|| format!("not JSON: {json}"))
    }

    fn set_up(&self, command: &mut Command) {
        // Relative: the path of a socket may have 107 bytes only.
        command.current_dir(&self.dir).env("AFTERWRITE_RUN_DIR", "run").stdin(Stdio::null());
    }
}

/// Running; stopped when dropped.
pub struct Protect {
    child: Child,
    log: PathBuf,
}

impl Protect {
    pub fn start(client: &Client, device: &Path) -> Result<Protect> {
        let log = client.dir.join("protect.log");
        let file = File::create(&log)?;
        // Even if the demo is killed and can no longer stop it: it ends.
        let mut command = run::program("setpriv")?;
        client.set_up(&mut command);
        command.args(["--pdeathsig", "INT"]).arg(&client.afterwrite).arg("protect").arg(device);
        command.arg("--journal").arg(client.journal()).arg("--target").arg(client.replica());
        // Its own group: a Ctrl-C is for the demo, which stops protect when it is its turn.
        command.stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().context("cannot start afterwrite protect")?;
        Ok(Protect { child, log })
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The end of its log.
    pub fn said(&self) -> String {
        format!("protect said:\n{}\n", tail(&self.log, LOG_LINES))
    }

    pub fn check_runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("protect has ended ({status}); {}", self.said()),
        }
    }

    pub fn wait_live(&mut self, client: &Client, interrupt: &Interrupt) -> Result<()> {
        let waited = wait_until("protect is live", PATIENCE, Some(interrupt), || {
            self.check_runs()?;
            // Before the control socket is there, there is no status.
            Ok(client.status().is_ok_and(|status| status["state"] == "live"))
        });
        waited.with_context(|| self.said())
    }

    /// As Ctrl-C: it drains, makes a last mark, brings the replica to it and ends.
    pub fn stop(mut self, interrupt: &Interrupt) -> Result<()> {
        self.interrupt()?;
        let mut status = None;
        let waited = wait_until("protect has ended", PATIENCE, Some(interrupt), || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        });
        waited.with_context(|| self.said())?;
        ensure!(
            status.is_some_and(|status| status.success()),
            "protect ended with {status:?}; {}",
            self.said()
        );
        Ok(())
    }

    fn interrupt(&self) -> Result<()> {
        // Not waited for yet, so the number is still its own.
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, Signal::SIGINT).context("cannot interrupt protect")
    }
}

impl Drop for Protect {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        tell(self.interrupt());
        let limit = Duration::from_secs(20);
        let ended = wait_until("protect has ended", limit, None, || Ok(self.child.try_wait()?.is_some()));
        if ended.is_err() {
            tell(self.child.kill().context("cannot kill protect"));
            tell(self.child.wait().context("cannot wait for protect"));
        }
    }
}
