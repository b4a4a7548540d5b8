//! What others have to follow changes of a directory: inotifywait and lsyncd.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{scratch, wait_until};

/// lsyncd compares all first.
const LSYNCD_BEGINS: Duration = Duration::from_secs(1800);

/// A program at work, killed when dropped.
pub struct Watcher {
    child: Child,
    /// What it was given to read.
    _dir: Option<TempDir>,
}

impl Watcher {
    /// Whatever program it is.
    pub fn start(command: &mut Command) -> Result<Watcher> {
        let child = command.stdin(Stdio::null()).spawn();
        Ok(Watcher { child: child.with_context(|| format!("cannot run {command:?}"))?, _dir: None })
    }

    /// Once, and only if it was started with a pipe.
    pub fn output(&mut self) -> Result<BufReader<ChildStdout>> {
        self.child.stdout.take().map(BufReader::new).context("its output is not piped")
    }

    /// `inotifywait -m` of these events, once it watches all below the directory; prints the name of the file for each.
    pub fn inotifywait(dir: &Path, events: &str) -> Result<Watcher> {
        let mut command = Command::new("inotifywait");
        command.args(["-m", "-r", "-e", events, "--format", "%f"]).arg(dir);
        let mut this = Watcher::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        for line in BufReader::new(this.child.stderr.take().context("it is piped")?).lines() {
            if line?.contains("established") {
                break;
            }
        }
        Ok(this)
    }

    /// lsyncd with the least delay it knows, once it has made the target like the source, by `rsync -a` with these options.
    pub fn lsyncd(source: &Path, target: &Path, options: &[&str]) -> Result<Watcher> {
        let dir = scratch()?;
        let [config, log, status] = ["lsyncd.lua", "log", "status"].map(|name| dir.path().join(name));
        let options = options.iter().map(|option| format!("{option:?}")).collect::<Vec<_>>().join(", ");
        let text = format!(
            "settings {{ nodaemon = true, logfile = {log:?}, statusFile = {status:?} }}\n\
             sync {{ default.rsync, source = {source:?}, target = {target:?}, delay = 0, \
             rsync = {{ archive = true, _extra = {{ {options} }} }} }}\n"
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new("lsyncd");
        let mut this = Watcher::start(command.arg(&config).stdout(Stdio::null()).stderr(Stdio::null()))?;
        this._dir = Some(dir);
        wait_until("lsyncd has begun", LSYNCD_BEGINS, || {
            Ok(std::fs::read_to_string(&log).is_ok_and(|text| text.contains("finished")))
        })?;
        Ok(this)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
