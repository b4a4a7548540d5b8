//! Control sockets without a protection behind them, which tell what a test wants to be told: for whatever only reads a
//! status. They are in a run directory of their own.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{afterwrite, scratch};

/// What a socket does when it is asked.
#[derive(Clone, Debug)]
pub enum Tells {
    /// As a protection answers.
    Status(Value),
    /// As the service answers, under the name `service/control`.
    Service { units: Value, groups: Value },
    /// These bytes.
    Bytes(Vec<u8>),
    /// Takes the question and says nothing.
    Nothing,
}

pub struct ToldVolumes {
    /// Before the directory: each is ended through its socket there.
    told: Vec<Told>,
    dir: TempDir,
}

struct Told {
    name: String,
    socket: PathBuf,
    tells: Arc<Mutex<Tells>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ToldVolumes {
    pub fn new() -> Result<ToldVolumes> {
        let dir = scratch()?;
        std::fs::create_dir_all(dir.path().join("run/service"))?;
        Ok(ToldVolumes { dir, told: Vec::new() })
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A volume more, or the same one telling something else.
    pub fn tell(&mut self, name: &str, tells: Tells) -> Result<()> {
        if let Some(told) = self.told.iter().find(|told| told.name == name) {
            *told.tells.lock().expect("no test panics with it locked") = tells;
            return Ok(());
        }
        let socket = self.dir.path().join("run").join(format!("{name}.sock"));
        let listener =
            UnixListener::bind(&socket).with_context(|| format!("no socket {}", socket.display()))?;
        // As a protection makes it: for its group, too.
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o660))?;
        let (tells, over) = (Arc::new(Mutex::new(tells)), Arc::new(AtomicBool::new(false)));
        let (telling, ends) = (tells.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if ends.load(Ordering::Acquire) {
                    return;
                }
                let tells = telling.lock().expect("no test panics with it locked").clone();
                // Who asked may have gone.
                let _ = answer(stream, &tells, &mut held);
            }
        });
        self.told.push(Told { name: name.to_owned(), socket, tells, over, thread: Some(thread) });
        Ok(())
    }

    /// Its socket stays, and nobody listens: as after `kill -9`.
    pub fn kill(&mut self, name: &str) {
        self.told.retain(|told| told.name != name);
    }

    /// `afterwrite` that sees these and no others.
    pub fn client(&self) -> Command {
        let mut command = afterwrite();
        command.env("AFTERWRITE_RUN_DIR", self.dir.path().join("run")).env("AFTERWRITE_BPFFS", "");
        command
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        // Wakes it, and the listener goes with it.
        let _ = UnixStream::connect(&self.socket);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(stream: UnixStream, tells: &Tells, held: &mut Vec<UnixStream>) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    match tells {
        Tells::Status(status) => writeln!(&stream, "{}", json!({ "ok": status }))?,
        Tells::Service { groups, .. } if line.contains("groups") => {
            writeln!(&stream, "{}", json!({ "ok": groups }))?
        }
        Tells::Service { units, .. } => writeln!(&stream, "{}", json!({ "ok": units }))?,
        Tells::Bytes(bytes) => (&stream).write_all(bytes)?,
        Tells::Nothing => held.push(stream),
    }
    Ok(())
}

/// The status of a volume that is well, as `protect` tells it. `index` makes it another one: source, rates, places.
pub fn status_of_volume(index: u64, journal: &Path) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let busy = index % 5 * 3_000_000;
    let history: Vec<u64> = (0..120).map(|step| busy * ((step * (index + 3)) % 17) / 17).collect();
    let age = |cell: u64| [0, 3, 40, 400, 3000, 20_000][((cell * cell / 37 + index) % 6) as usize];
    let map: Vec<u64> = (0..256).map(|cell| if age(cell) == 0 { 0 } else { now - age(cell) }).collect();
    let counters = json!({
        "seen": 22_369 + index, "emitted": 22_369, "marked": index, "completions_seen": 22_369, "completions_lost": 0,
        "payload": 0, "payload_lost": 0, "read_failed": 0
    });
    let time = humantime::format_rfc3339(SystemTime::now()).to_string();
    let mut status = json!({
        "volume": format!("{index:032x}"), "source": format!("/dev/vg0/data{index}"), "size_bytes": (index + 1) << 34,
        "pid": 4000 + index, "capture": if index.is_multiple_of(3) { "payload" } else { "extents" }, "rung": "tp_btf",
        "pinned": true, "probes": "new", "recording": "ring", "paused": null, "state": "live", "journal": journal,
        "target": format!("/backup/data{index}.img"), "counters": counters, "overrun": false, "gap_open": false,
        "every_write": index.is_multiple_of(3), "marks": 17, "last_frozen_ms": 31, "last_mark_error": null, "retention": null,
        "last_mark": { "id": 17, "class": "fs", "lsn": 4700, "time": time, "label": "" },
        "replica": { "consistent": true, "mark": 17, "age_ms": 12_345, "lag_bytes": index << 16, "error": null },
        "origin": { "rung": "fentry", "off": null, "missing": 0, "bursts": [] },
        "write_history": history, "write_map": map
    });
    for (field, value) in [
        ("ring_bytes", 16 << 20),
        ("ring_used_bytes", index << 17),
        ("failed_writes", 0),
        ("unreadable_bytes", 0),
        ("scan_done_bytes", 3 << 32),
        ("scan_total_bytes", 3 << 32),
        ("pending_bytes", index << 12),
        ("pending_ms", index),
        ("journal_bytes", 1 << 27),
        ("written_bytes", 1 << 29),
        ("write_rate", busy),
    ] {
        status[field] = Value::from(value);
    }
    status
}
