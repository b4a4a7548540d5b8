//! A protection as its status tells it to whoever asks: `status`, the page, the metrics. The other end may be of another
//! version, or no protection at all: what it does not say is empty, what it says wrongly is an error, nothing panics.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::{ActivityShown, Point};
use crate::service::progress::LeftOut;

/// Of `origin.off`: somebody chose it.
pub const ORIGIN_NOT_WANTED: &str = "--origin off";

/// How a volume stands, seen from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    Baseline,
    Resync,
    Live,
    Paused,
    Stopping,
    /// The service starts it again and again.
    Failed,
    /// No process runs, the probes record where is written.
    Recording,
    /// No process runs, nothing is recorded: it was killed and left its socket behind.
    Stopped,
    /// A process is there and does not say what it does.
    #[default]
    Silent,
}

impl Standing {
    pub const ALL: [Standing; 9] = [
        Standing::Baseline,
        Standing::Resync,
        Standing::Live,
        Standing::Paused,
        Standing::Stopping,
        Standing::Failed,
        Standing::Recording,
        Standing::Stopped,
        Standing::Silent,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Baseline => "baseline",
            Standing::Resync => "resync",
            Standing::Live => "live",
            Standing::Paused => "paused",
            Standing::Stopping => "stopping",
            Standing::Failed => "failed",
            Standing::Recording => "recording",
            Standing::Stopped => "stopped",
            Standing::Silent => "silent",
        }
    }
}

/// What is shown of a volume's status, or of a tree's: fields as docs/OPERATIONS.md has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reading {
    /// `tree`, or empty for a volume.
    pub kind: String,
    pub source: String,
    pub size_bytes: Option<u64>,
    pub state: Standing,
    /// `extents` or `payload`; empty for a tree.
    pub capture: String,
    pub rung: String,
    pub recording: String,
    pub pinned: Option<bool>,
    pub ring_bytes: u64,
    pub ring_used_bytes: u64,
    pub paused: Option<String>,
    pub journal: String,
    /// Of a tree, which has one.
    pub target: String,
    pub counters: CountersRead,
    pub overrun: bool,
    pub gap_open: bool,
    pub every_write: bool,
    pub failed_writes: u64,
    pub unreadable_bytes: u64,
    pub scan_done_bytes: u64,
    pub scan_total_bytes: u64,
    pub pending_bytes: u64,
    pub pending_ms: u64,
    pub journal_bytes: u64,
    pub marks: u64,
    pub last_frozen_ms: Option<u64>,
    pub last_mark: Option<Point>,
    pub last_hook_error: Option<String>,
    pub last_mark_error: Option<String>,
    /// The one that is furthest behind.
    pub replica: ReplicaRead,
    /// One for each target.
    pub replicas: Vec<ReplicaRead>,
    pub left_out: Vec<LeftOut>,
    pub retention: Option<RetentionRead>,
    pub origin: OriginRead,
    /// Of a tree: changes nobody was told of.
    pub missing: u64,
    /// Of a tree: inodes that can't be read, and why the last one.
    pub unreadable: u64,
    pub unreadable_why: Option<String>,
    /// Of a tree: why its marks are made without a freeze.
    pub not_frozen: Option<String>,
    #[serde(flatten)]
    pub activity: ActivityShown,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CountersRead {
    pub seen: u64,
    pub emitted: u64,
    pub marked: u64,
    pub payload: u64,
    pub completions_seen: u64,
    pub completions_lost: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicaRead {
    pub target: String,
    pub consistent: bool,
    pub mark: Option<u64>,
    pub age_ms: Option<u64>,
    pub lag_bytes: u64,
    pub behind_marks: u64,
    pub error: Option<String>,
}

impl ReplicaRead {
    /// How it stands, in a word: `fails`, `incomplete`, `behind` or `current`.
    pub fn stands(&self) -> &'static str {
        match self {
            ReplicaRead { error: Some(_), .. } => "fails",
            ReplicaRead { mark: None, .. } => "incomplete",
            // While one is applied it is one behind, most often for less than a second.
            ReplicaRead { behind_marks: 2.., .. } => "behind",
            _ => "current",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetentionRead {
    pub error: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OriginRead {
    pub rung: Option<String>,
    pub off: Option<String>,
    pub missing: u64,
    pub bursts: Vec<BurstRead>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BurstRead {
    pub process: ProcessRead,
    pub began: String,
    pub rewritten: u64,
    pub removed: u64,
    pub sampled: u64,
    pub random: u64,
    pub compared: u64,
    pub spoiled: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessRead {
    pub name: String,
    pub pid: u64,
}

impl fmt::Display for BurstRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BurstRead { process, began, rewritten, removed, sampled, random, compared, spoiled } = self;
        write!(
            f,
            "{} ({}) rewrote {rewritten} and removed {removed} files from {began} on; {random} of {sampled} looked into hold \
             random bytes, {spoiled} of {compared} compared with before are spoiled",
            process.name, process.pid
        )
    }
}

impl Reading {
    pub fn is_tree(&self) -> bool {
        self.kind == "tree"
    }

    /// With its replica among `replicas` if it is the only one and told by itself, as of a tree.
    pub fn with_replicas(mut self) -> Reading {
        if self.replicas.is_empty() {
            let target = match self.replica.target.is_empty() {
                true => self.target.clone(),
                false => self.replica.target.clone(),
            };
            self.replicas = vec![ReplicaRead { target, ..self.replica.clone() }];
        }
        self
    }

    /// Whether every submission that was seen is accounted for. While writes come it may be off by those under way.
    pub fn adds_up(&self) -> bool {
        self.counters.seen == self.counters.emitted.saturating_add(self.counters.marked)
    }

    /// A tree says `paused` beside its state.
    pub fn standing(&self) -> Standing {
        if self.paused.is_some() { Standing::Paused } else { self.state }
    }
}

/// Something that is not as it should be, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Points are not made, or not known to be whole: somebody has to act.
    pub urgent: bool,
    pub what: String,
    pub next_step: String,
}

impl Problem {
    pub fn urgent(what: impl Into<String>, next_step: impl Into<String>) -> Problem {
        Problem { urgent: true, what: what.into(), next_step: next_step.into() }
    }

    pub fn note(what: impl Into<String>, next_step: impl Into<String>) -> Problem {
        Problem { urgent: false, what: what.into(), next_step: next_step.into() }
    }
}

/// What of a status is worth a look, the worst first.
pub fn problems(read: &Reading) -> Vec<Problem> {
    let mut found = Vec::new();
    if let Some(why) = &read.paused {
        found.push(Problem::urgent(
            format!("paused, no points are made: {why}"),
            "free space or mend the journal's disk; it goes on by itself",
        ));
    }
    for replica in &read.replicas {
        let Some(why) = &replica.error else { continue };
        let which = if read.replicas.len() > 1 { format!(" {}", replica.target) } else { String::new() };
        found.push(Problem::urgent(
            format!("the target{which} fails, the replica falls behind: {why}"),
            "make it writable; it is tried again by itself",
        ));
    }
    if read.unreadable_bytes > 0 {
        found.push(Problem::urgent(
            format!("{} bytes of the source can't be read, so no mark can be made", read.unreadable_bytes),
            "look at the kernel's log; mend or replace the disk",
        ));
    }
    if let Some(why) = read.unreadable_why.as_ref().filter(|_| read.unreadable > 0) {
        found.push(Problem::urgent(
            format!("{} files or directories can't be read: {why}", read.unreadable),
            "look at the kernel's log and at the permissions",
        ));
    }
    if let Some(why) = &read.last_mark_error {
        found.push(Problem::urgent(format!("the last mark failed: {why}"), "it is tried again by itself"));
    }
    if let Some(why) = &read.last_hook_error {
        found.push(Problem::urgent(
            format!("the last mark is not of class app: {why}"),
            "mend the command; the next mark runs it again",
        ));
    }
    for burst in &read.origin.bursts {
        found.push(Problem::urgent(
            burst.to_string(),
            "if that was not meant: stop it, then `afterwrite replay --to before-burst:last`",
        ));
    }
    if let Some(why) = read.retention.as_ref().and_then(|retention| retention.error.as_ref()) {
        found.push(Problem::note(
            format!("old history is not folded: {why}"),
            "see *Retention* in the manual; the protection goes on",
        ));
    }
    if read.failed_writes > 0 {
        found.push(Problem::note(
            format!("{} writes of the source failed, by its own account", read.failed_writes),
            "look at the kernel's log; what the device holds is what is journaled",
        ));
    }
    if read.overrun {
        found.push(Problem::note(
            "the ring is full: writes go through the bitmap",
            "a larger --ring avoids it; the next mark closes the gap",
        ));
    }
    if read.pinned == Some(false) {
        found.push(Problem::note(
            "the probes are not pinned: they end with the process",
            "mount a BPF file system at /sys/fs/bpf",
        ));
    }
    if let Some(why) = read.origin.off.as_ref().filter(|why| *why != ORIGIN_NOT_WANTED) {
        found.push(Problem::note(
            format!("who changes which file is not recorded: {why}"),
            "see *Who changed what* in the manual; every write is captured all the same",
        ));
    }
    if let Some(why) = &read.not_frozen {
        found.push(Problem::note(
            format!("marks are made without a freeze: {why}"),
            "see *Directory trees* in the manual",
        ));
    }
    found
}
