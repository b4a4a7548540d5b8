//! `afterwrite changes` at work: what it says between two instants.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::ways::{Expected, Sight};

const DEADLINE: Duration = Duration::from_secs(60);

pub struct Watched {
    child: Child,
    lines: Receiver<Value>,
    dir: PathBuf,
    markers: u64,
    pub rung: String,
    pub absent: Vec<String>,
    /// The last word about what was missed; null if nothing was.
    pub missed: Value,
}

/// A line about a change.
#[derive(Clone, Debug)]
pub struct Event(pub Value);

impl Event {
    fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_default()
    }

    fn number(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or(u64::MAX)
    }

    /// It is of the process and file, and says so as well as it can.
    fn sight(&self, expected: &Expected) -> Sight {
        let name = |path: &str| Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned());
        let inode = self.number("inode");
        let same_inode = expected.inode != 0 && inode == expected.inode;
        let same_path =
            !expected.path.is_empty() && name(self.text("path")).as_deref() == Some(&expected.path);
        let same_new =
            expected.new_path.as_ref().is_none_or(|path| name(self.text("new_path")).as_ref() == Some(path));
        let range = expected.range.is_none_or(|(offset, length)| {
            self.number("offset") == offset && self.0["length"].as_u64() == Some(length)
        });
        // Of a file that has no name yet.
        let unnamed = expected.path.is_empty();
        let same = (same_path || unnamed) && (same_inode || inode == 0 || expected.inode == 0);
        if self.number("pid") != u64::from(std::process::id()) {
            return Sight::None;
        }
        if self.text("op") == expected.op && same && same_new && range {
            return Sight::Full;
        }
        if self.text("op") == "dirty" && same_inode && same_path { Sight::Pages } else { Sight::None }
    }
}

impl Watched {
    /// `dir` is on the file system that is watched.
    pub fn begin(afterwrite: &Path, dir: &Path, rung: &str) -> Result<Watched> {
        let mut command = Command::new(afterwrite);
        command.arg("changes");
        if rung != "best" {
            command.args(["--rung", rung]);
        }
        let mut child = command
            .arg(dir)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", afterwrite.display()))?;
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().context("it is piped")?);
        std::thread::spawn(move || {
            for line in output.lines().map_while(std::io::Result::ok) {
                let Ok(value) = serde_json::from_str(&line) else { return };
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        let first: Value = lines.recv_timeout(DEADLINE).context("afterwrite changes said nothing")?;
        let words = |value: &Value| -> Vec<String> {
            let list = value.as_array().into_iter().flatten();
            list.filter_map(|word| word.as_str().map(str::to_owned)).collect()
        };
        let rung = first["rung"].as_str().context("the first line names the rung")?.to_owned();
        let absent = words(&first["absent"]);
        Ok(Watched { child, lines, dir: dir.to_owned(), markers: 0, rung, absent, missed: Value::Null })
    }

    /// All events up to now since the last call.
    pub fn events(&mut self) -> Result<Vec<Event>> {
        self.markers += 1;
        let name = format!("marker-{}", self.markers);
        std::fs::create_dir(self.dir.join(&name))?;
        let begun = Instant::now();
        let mut events = Vec::new();
        loop {
            let left = DEADLINE.saturating_sub(begun.elapsed());
            let Ok(line) = self.lines.recv_timeout(left) else { bail!("the event of {name} did not come") };
            if line.get("seen").is_some() {
                self.missed = line;
                continue;
            }
            let event = Event(line);
            if event.text("op") == "mkdir" && event.text("path").ends_with(&name) {
                return Ok(events);
            }
            events.push(event);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The best that any event says of what is expected.
pub fn best(events: &[Event], expected: &Expected) -> Sight {
    let sights: Vec<Sight> = events.iter().map(|event| event.sight(expected)).collect();
    [Sight::Full, Sight::Pages].into_iter().find(|sight| sights.contains(sight)).unwrap_or(Sight::None)
}
