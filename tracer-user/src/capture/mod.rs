//! The probes as the collector sees them: attach to a volume, take events, counters and dirty granules.
//! The only module that knows aya and BPF.

mod attach;
mod event;
mod features;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod layout;
mod mapped;
mod object;
mod tracefs;

pub use attach::{Capture, CaptureOptions, VolumeExtent};
pub use event::{Counters, Event};
pub use features::{Features, Rung, choose_rung, probe_features};
pub use object::{ObjectReport, inspect_embedded};

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
    #[error("could not load the BPF object")]
    Load(#[source] Box<aya::EbpfError>),
    #[error("could not map the BPF map {map} into memory")]
    Map {
        map: &'static str,
        #[source]
        source: std::io::Error,
    },
}
