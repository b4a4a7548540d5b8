use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tempfile::TempDir;

use crate::devices::tell;
use crate::load::pid_of;
use crate::{Finished, PATIENCE, afterwrite, is_in_kernel, patience, run, scratch, wait_until};

/// `afterwrite run` with a configuration and a run directory of its own; killed when dropped, with all that it started.
pub struct Service {
    dir: TempDir,
    child: Option<Child>,
    lives: u32,
    /// Of which probes may be left.
    volumes: RefCell<Vec<PathBuf>>,
}

impl Service {
    pub fn new() -> Result<Service> {
        let dir = scratch()?;
        std::fs::create_dir(dir.path().join("run"))?;
        Ok(Service { dir, child: None, lives: 0, volumes: RefCell::default() })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A table of the configuration, with journal and target below `dir`.
    pub fn table(&self, kind: &str, name: &str, source: &Path, options: &str) -> String {
        if kind == "volume" {
            self.volumes.borrow_mut().push(source.to_owned());
        }
        let place = |of: &str| self.path(&format!("{name}.{of}")).display().to_string();
        let (source, journal, target) = (source.display(), place("journal"), place("replica"));
        format!(
            "[{kind}.{name}]\nsource = \"{source}\"\njournal = \"{journal}\"\ntarget = \"{target}\"\n{options}\n"
        )
    }

    pub fn configure(&self, tables: &[String]) -> Result<()> {
        Ok(std::fs::write(self.path("config.toml"), tables.concat())?)
    }

    pub fn client(&self) -> Command {
        let mut command = afterwrite();
        command.env("AFTERWRITE_RUN_DIR", self.path("run"));
        command
    }

    pub fn command(&self) -> Command {
        let mut command = self.client();
        command.arg("run").arg("--config").arg(self.path("config.toml"));
        command
    }

    pub fn start(&mut self) -> Result<()> {
        self.start_by(self.command())
    }

    /// By a command that becomes `afterwrite run`.
    pub fn start_by(&mut self, mut command: Command) -> Result<()> {
        self.lives += 1;
        let log = std::fs::File::create(self.log_path())?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// Each of these is live.
    pub fn wait_live(&mut self, sources: &[&Path]) -> Result<()> {
        self.wait_for("are live", |status| sources.iter().all(|source| of(status, source)["state"] == "live"))
    }

    pub fn wait_for(&mut self, what: &str, mut condition: impl FnMut(&Value) -> bool) -> Result<()> {
        let mut last = None;
        let waited = wait_until(&format!("all {what}"), patience(), || {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("the service has ended: {status}");
            }
            last = self.status().ok();
            Ok(last.as_ref().is_some_and(&mut condition))
        });
        waited.with_context(|| format!("last status: {last:?}\nlog:\n{}", self.log()))
    }

    pub fn status(&self) -> Result<Value> {
        let json = run(self.client().args(["status", "--json"]))?;
        serde_json::from_str(&json).with_context(|| format!("not JSON: {json}"))
    }

    pub fn of(&self, source: &Path) -> Result<Value> {
        Ok(of(&self.status()?, source).clone())
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("it runs")?.id())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(pid_of(self.child.as_ref().context("it runs")?), signal)?)
    }

    /// How it came to its end by itself, or by a signal before.
    pub fn ended(&mut self) -> Result<Finished> {
        let mut child = self.child.take().context("it runs")?;
        let mut code = None;
        let waited = wait_until("the service has ended", patience(), || {
            let status = child.try_wait()?;
            code = status.and_then(|status| status.code());
            Ok(status.is_some())
        });
        if waited.is_err() {
            self.child = Some(child);
        }
        waited.with_context(|| format!("log:\n{}", self.log()))?;
        Ok(Finished { code, stdout: String::new(), stderr: self.log() })
    }

    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let ended = self.ended()?;
        ensure!(ended.code == Some(0), "the service ended with {:?}:\n{}", ended.code, ended.stderr);
        Ok(())
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.path(&format!("service-{}.log", self.lives))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            eprintln!("killing the service; its log:\n{}", self.log());
            // Gone meanwhile is as good. What it started is killed with it.
            drop(child.kill());
            drop(child.wait());
        }
        // What a killed one left would meet the next user of the device.
        for volume in self.volumes.borrow().iter().filter(|volume| is_in_kernel(volume)) {
            let mut detach = self.client();
            detach.arg("detach").arg(volume);
            tell(wait_until("its process has ended with the service", PATIENCE, || {
                Ok(run(&mut detach).is_ok())
            }));
        }
    }
}

fn of<'v>(status: &'v Value, source: &Path) -> &'v Value {
    let mut all = status.as_array().into_iter().flatten();
    all.find(|value| value["source"] == source.display().to_string()).unwrap_or(&Value::Null)
}
