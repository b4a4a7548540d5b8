//! `afterwrite map` at work, and what it says.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{Device, Fs, Loop, Mount, afterwrite, patience, run, scratch, wait_until};

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

/// A file system to watch, and a place elsewhere.
pub struct Ground {
    pub mount: Mount,
    pub disk: Loop,
    pub elsewhere: tempfile::TempDir,
}

impl Ground {
    pub fn new(fs: Fs) -> Result<Ground> {
        let disk = Loop::new(fs.volume_bytes())?;
        let mount = Mount::make(fs, disk.path())?;
        let ground = Ground { mount, disk, elsewhere: scratch()? };
        fs::create_dir(ground.tree())?;
        Ok(ground)
    }

    pub fn tree(&self) -> PathBuf {
        self.mount.point().join("tree")
    }

    pub fn cache(&self) -> PathBuf {
        self.elsewhere.path().join("cache")
    }

    pub fn target(&self) -> PathBuf {
        self.elsewhere.path().join("target")
    }

    pub fn map(&self, arguments: &[&str]) -> Result<Map> {
        Map::start(&self.tree(), &self.cache(), arguments)
    }

    pub fn copy(&self) -> Result<Vec<Value>> {
        let mut copy = afterwrite();
        copy.args(["copy", "--json", "--cache"]).arg(self.cache()).arg("--target").arg(self.target());
        lines(&run(&mut copy)?)
    }

    pub fn sync(&self) -> Result<()> {
        run(Command::new("sync").arg("--file-system").arg(self.mount.point())).map(drop)
    }
}

/// (offset, place on the device, length) in bytes, as filefrag sees them.
pub fn filefrag(file: &Path) -> Result<Vec<(u64, u64, u64)>> {
    let text = run(Command::new("filefrag").args(["-e", "-b1", "-v"]).arg(file))?;
    let mut found = Vec::new();
    for line in text.lines() {
        // "   0:        0..    4095:   34816..   38911:   4096:    last,eof"
        let mut fields = line.split(':').map(str::trim);
        let is_extent = fields.next().is_some_and(|number| number.parse::<u64>().is_ok());
        if let (true, Some(logical), Some(physical), Some(length)) =
            (is_extent, fields.next(), fields.next(), fields.next())
        {
            let start = |range: &str| range.split("..").next().unwrap_or_default().trim().parse::<u64>();
            found.push((start(logical)?, start(physical)?, length.parse()?));
        }
    }
    Ok(found)
}
