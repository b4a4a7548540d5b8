//! Who hears of saves.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use afterwrite_tests::*;
use anyhow::{Context, Result};
use serde_json::Value;

use crate::monotonic_ns;

const PATIENCE: Duration = Duration::from_secs(60);

/// Names of files, and when each was followed (CLOCK_MONOTONIC).
pub type Seen = BTreeMap<String, u64>;

pub trait Follower {
    fn seen(&mut self) -> Result<Seen>;

    /// Milliseconds from hearing of a save to its record in 99 of 100 cases; the rest of the latency is the kernel's, until it is heard of.
    fn own_p99(&mut self) -> Result<Option<f64>> {
        Ok(None)
    }

    /// Until so many are there, or it takes too long.
    fn wait_for(&mut self, saves: usize) -> Result<()> {
        // Those that are missing are counted by the caller.
        let _ = wait_until("all is followed", PATIENCE, || Ok(self.seen()?.len() >= saves));
        Ok(())
    }
}

pub struct AfterwriteMap {
    output: PathBuf,
    why: &'static str,
    _program: Watcher,
}

impl AfterwriteMap {
    /// `why` files are saved.
    pub fn start(tree: &Path, dir: &Path, why: &'static str) -> Result<AfterwriteMap> {
        let output = Path::new("/dev/shm")
            .join(dir.file_name().context("a directory with a name")?)
            .with_extension("said");
        let mut command = Command::new(binary());
        command.args(["map", "--json"]).arg(tree).arg("--cache").arg(dir.join("cache"));
        command.arg(if why == "fsync" { "--fsync=on" } else { "--fsync=off" });
        let program = Watcher::start(command.stdout(std::fs::File::create(&output)?).stderr(Stdio::null()))?;
        wait_until("it is ready", PATIENCE, || Ok(std::fs::read_to_string(&output)?.contains('\n')))?;
        Ok(AfterwriteMap { output, why, _program: program })
    }
}

impl Follower for AfterwriteMap {
    fn own_p99(&mut self) -> Result<Option<f64>> {
        let mut own = Vec::new();
        for line in std::fs::read_to_string(&self.output)?.lines() {
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            if line["map"]["why"] != self.why {
                continue;
            }
            let at = |name: &str| line["map"][name].as_u64();
            own.extend(
                at("recorded_ns")
                    .zip(at("heard_ns"))
                    .map(|(recorded, heard)| (recorded - heard) as f64 / 1e6),
            );
        }
        own.sort_by(f64::total_cmp);
        Ok(own.get(own.len().saturating_sub(1) * 99 / 100).copied())
    }

    fn seen(&mut self) -> Result<Seen> {
        let (text, mut seen) = (std::fs::read_to_string(&self.output)?, Seen::new());
        for line in text.lines() {
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            if let (Some(path), Some(at)) =
                (line["map"]["path"].as_str(), line["map"]["recorded_ns"].as_u64())
            {
                seen.entry(path.to_owned()).or_insert(at);
            }
        }
        Ok(seen)
    }

    fn wait_for(&mut self, saves: usize) -> Result<()> {
        let _ = wait_until("all is followed", PATIENCE, || {
            // Reading what it says takes time that it needs.
            std::thread::sleep(Duration::from_millis(100));
            Ok(self.seen()?.len() >= saves)
        });
        Ok(())
    }
}

impl Drop for AfterwriteMap {
    fn drop(&mut self) {
        // Only a file too many.
        let _ = std::fs::remove_file(&self.output);
    }
}

pub struct InotifyWait {
    seen: Arc<Mutex<Seen>>,
    _program: Watcher,
}

impl InotifyWait {
    pub fn start(tree: &Path) -> Result<InotifyWait> {
        let mut program = Watcher::inotifywait(tree, "close_write")?;
        let output = program.output()?;
        let seen = Arc::new(Mutex::new(Seen::new()));
        let of_thread = Arc::clone(&seen);
        std::thread::spawn(move || {
            for name in output.lines().map_while(Result::ok) {
                let at = monotonic_ns().unwrap_or(0);
                of_thread.lock().unwrap_or_else(PoisonError::into_inner).insert(name, at);
            }
        });
        Ok(InotifyWait { seen, _program: program })
    }
}

impl Follower for InotifyWait {
    fn seen(&mut self) -> Result<Seen> {
        Ok(self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// With the least delay it knows. A copy is seen by looking at the target.
pub struct Lsyncd {
    source: PathBuf,
    target: PathBuf,
    seen: Seen,
    _program: Watcher,
}

impl Lsyncd {
    pub fn start(tree: &Path, dir: &Path) -> Result<Lsyncd> {
        let target = dir.join("lsyncd");
        std::fs::create_dir_all(&target)?;
        let program = Watcher::lsyncd(tree, &target, &["--whole-file"])?;
        Ok(Lsyncd { source: tree.to_owned(), target, seen: Seen::new(), _program: program })
    }
}

impl Follower for Lsyncd {
    fn seen(&mut self) -> Result<Seen> {
        for entry in std::fs::read_dir(&self.target)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || self.seen.contains_key(&name) {
                continue;
            }
            let len = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.len()).ok();
            if len(&entry.path()) == len(&self.source.join(&name)) {
                self.seen.insert(name, monotonic_ns()?);
            }
        }
        Ok(self.seen.clone())
    }
}
