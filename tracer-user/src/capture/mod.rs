//! The probes as the collector sees them: attach to a volume, take events, counters and dirty granules.
//! The only module that knows aya and BPF.

mod adopt;
mod attach;
mod bitmap;
mod event;
mod features;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod kills;
mod layout;
mod ledger;
mod mapped;
mod object;
mod payload;
mod pins;
mod positions;
mod probes;
mod session;
#[cfg(test)]
mod tests;
mod tracefs;
pub mod vfs;
mod volume;

pub use adopt::{Origin, are_at_work, attach, attended_volumes, detach, recorded_bytes, unattended_volumes};
pub use event::{Change, Counters, Event, Payload, Skipped};
pub use features::{Features, Rung, choose_rung, probe_features};
pub use ledger::Ledger;
pub use object::{ObjectReport, inspect_embedded};
pub use payload::payload_obstacle;
pub use positions::Positions;
pub use probes::Capture;
pub use session::Found;
pub use volume::{CaptureOptions, VolumeExtent};

/// Why capture can't start. Every variant says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("the kernel refuses BPF programs: run as root (CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN)")]
    NotPermitted,
    #[error("no way to capture on this kernel: {reasons}; see `afterwrite doctor`")]
    NoRung { reasons: String },
    #[error(
        "the kernel's BTF ({path}) lacks {what}: this kernel is not supported yet, please report `uname -r`"
    )]
    Layout { path: String, what: String },
    #[error("tracepoint format {path} lacks the field {field}")]
    Format { path: String, field: String },
    #[error("the embedded BPF object is not as it was built: {0}; reinstall afterwrite")]
    Object(String),
    #[error(
        "could not load or attach the probe {probe} on rung {rung}: try `--rung` with the next one that `afterwrite doctor` shows"
    )]
    Attach {
        probe: &'static str,
        rung: Rung,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("no way to see changes of files on this kernel: {reasons}; see `afterwrite doctor`")]
    NoVfsRung { reasons: String },
    #[error(
        "this kernel lets changes of files be seen only at system calls, and {others} others on this machine look at each of them already, which slows all of them down: `--origin-rung syscall` looks all the same"
    )]
    CallsShared { others: usize },
    #[error("could not load or attach the probe {probe} of file systems on rung {rung}")]
    AttachVfs {
        probe: &'static str,
        rung: vfs::VfsRung,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the probes of {what} do not work on this kernel")]
    SelfTest {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("could not load the BPF object")]
    Load(#[source] Box<aya::EbpfError>),
    #[error("could not map the BPF map {map} into memory")]
    Map {
        map: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("another process reads what the probes of {name} record: `afterwrite status` shows it")]
    InUse { name: String },
    #[error("could not keep the probes at {}", path.display())]
    Pin {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "the probes at {} were left by another version of afterwrite that this one can't speak to: start that one, or \
         remove them with `afterwrite detach` (the volume is then compared as a whole)",
        path.display()
    )]
    Foreign { path: std::path::PathBuf },
    #[error(
        "the writes to {name} are being recorded for another journal, that of volume {volume}: name that journal, or let \
         go of what was recorded with `afterwrite detach {name}`"
    )]
    OtherJournal { name: String, volume: crate::model::VolumeId },
}
