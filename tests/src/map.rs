//! `afterwrite map` at work, and what it says.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{afterwrite, patience, wait_until};

/// Killed when dropped.
pub struct Map {
    child: Child,
    output: tempfile::NamedTempFile,
}

impl Map {
    pub fn start(tree: &Path, cache: &Path, arguments: &[&str]) -> Result<Map> {
        let output = tempfile::NamedTempFile::new_in("/dev/shm")?;
        let mut command = afterwrite();
        command.args(["map", "--json"]).arg(tree).arg("--cache").arg(cache).args(arguments);
        let child = command.stdin(Stdio::null()).stdout(output.reopen()?).spawn()?;
        let map = Map { child, output };
        wait_until("it is ready", patience(), || {
            Ok(map.said()?.iter().any(|line| line.get("ready").is_some()))
        })?;
        Ok(map)
    }

    pub fn said(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.output.path())?;
        lines(text.rsplit_once('\n').map_or("", |(whole, _)| whole))
    }

    /// Maps said so far, newest of each path.
    pub fn maps(&self) -> Result<BTreeMap<String, Value>> {
        let maps = self.said()?.into_iter().filter_map(|mut line| Some(line.get_mut("map")?.take()));
        Ok(maps.map(|map| (map["path"].as_str().unwrap_or_default().to_owned(), map)).collect())
    }

    pub fn wait_for(&self, path: &str) -> Result<Value> {
        wait_until(&format!("{path} is mapped"), patience(), || Ok(self.maps()?.contains_key(path)))?;
        Ok(self.maps()?.remove(path).expect("it is there"))
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid(), signal)?)
    }

    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::SIGINT)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }

    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn lines(text: &str) -> Result<Vec<Value>> {
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
}

/// Of a map that was said: (offset, place on the device, length) in bytes.
pub fn mapped_extents(map: &Value) -> Vec<(u64, u64, u64)> {
    let number = |extent: &Value, name: &str| extent[name].as_u64().unwrap_or(u64::MAX);
    let all = map["extents"].as_array().cloned().unwrap_or_default();
    all.iter().map(|e| (number(e, "offset"), number(e, "physical"), number(e, "length"))).collect()
}
