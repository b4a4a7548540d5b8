//! What the running kernel offers, and the ladder of ways to capture.

use std::fmt;
use std::str::FromStr;

use aya::maps::MapType;
use aya::sys::is_map_supported;
use serde::{Deserialize, Serialize};

use crate::capture::layout::{KernelLayout, kernel_btf_path};
use crate::capture::{CaptureError, tracefs};

/// A way to attach the probes, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// Typed tracepoint arguments; offsets from BTF.
    TpBtf,
    /// Raw tracepoint arguments; offsets from BTF.
    RawTp,
    /// Formatted tracepoints, offsets from tracefs. Completions are paired by range, write-zeroes seen as writes.
    Tracepoint,
}

pub const LADDER: [Rung; 3] = [Rung::TpBtf, Rung::RawTp, Rung::Tracepoint];

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Rung::TpBtf => "tp_btf",
            Rung::RawTp => "raw_tp",
            Rung::Tracepoint => "tracepoint",
        })
    }
}

impl FromStr for Rung {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        LADDER
            .into_iter()
            .find(|rung| rung.to_string() == text)
            .ok_or_else(|| format!("a rung is tp_btf, raw_tp or tracepoint, not {text:?}"))
    }
}

/// What was found out about the kernel. `Err` holds the reason and the next step.
#[derive(Clone, Debug)]
pub struct Features {
    /// `uname -r`
    pub kernel_release: String,
    pub bpf_permitted: bool,
    pub ring_buffer: bool,
    /// Whether all struct members our probes read were found.
    pub layout: Result<(), String>,
    pub tracefs: Option<std::path::PathBuf>,
}

pub fn probe_features() -> Features {
    let ring_buffer = is_map_supported(MapType::RingBuf);
    // Another error than "unsupported" is a refusal: aya answers Ok(false) for what the kernel does not know.
    let bpf_permitted = nix::unistd::geteuid().is_root() && is_map_supported(MapType::Array).unwrap_or(false);
    Features {
        kernel_release: nix::sys::utsname::uname()
            .map(|uname| uname.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        bpf_permitted,
        ring_buffer: ring_buffer.unwrap_or(false),
        layout: KernelLayout::read(&kernel_btf_path()).map(|_| ()).map_err(|error| error.to_string()),
        tracefs: tracefs::find(),
    }
}

/// Why each rung can't be used here; `None` for one that can be tried. Whether the kernel takes a type of program is found
/// out by loading ours: asking with another one fails where some attach types are forbidden by policy.
pub fn obstacles(features: &Features) -> [(Rung, Option<String>); 3] {
    let btf = features.layout.as_ref().err().map(|error| format!("no usable BTF ({error})"));
    let lacking = |present: bool, what: &str| (!present).then(|| what.to_owned());
    let ring = lacking(features.ring_buffer, "the kernel has no BPF ring buffer (it came with 5.8)");
    let tracefs = lacking(
        features.tracefs.is_some(),
        "tracefs is not mounted (mount -t tracefs nodev /sys/kernel/tracing)",
    );
    [
        (Rung::TpBtf, ring.clone().or(btf.clone())),
        (Rung::RawTp, ring.clone().or(btf)),
        (Rung::Tracepoint, ring.or(tracefs)),
    ]
}

/// The rungs to try, best first: all without an obstacle, or just the one wanted.
pub fn choose_rung(features: &Features, wanted: Option<Rung>) -> Result<Vec<Rung>, CaptureError> {
    if !features.bpf_permitted {
        return Err(CaptureError::NotPermitted);
    }
    let candidates: Vec<_> = obstacles(features)
        .into_iter()
        .filter(|(rung, _)| wanted.is_none_or(|wanted| wanted == *rung))
        .collect();
    let usable: Vec<Rung> =
        candidates.iter().filter(|(_, why)| why.is_none()).map(|(rung, _)| *rung).collect();
    if usable.is_empty() {
        let reasons: Vec<_> = candidates
            .into_iter()
            .filter_map(|(rung, why)| why.map(|why| format!("{rung}: {why}")))
            .collect();
        return Err(CaptureError::NoRung { reasons: reasons.join("; ") });
    }
    Ok(usable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Features {
        Features {
            kernel_release: "6.12.0".into(),
            bpf_permitted: true,
            ring_buffer: true,
            layout: Ok(()),
            tracefs: Some("/sys/kernel/tracing".into()),
        }
    }

    #[test]
    fn the_ladder_is_tried_from_the_top() {
        assert_eq!(choose_rung(&full(), None).unwrap(), LADDER);
        assert_eq!(choose_rung(&full(), Some(Rung::RawTp)).unwrap(), [Rung::RawTp]);
    }

    #[test]
    fn without_btf_only_tracepoints_are_left() {
        let features = Features { layout: Err("none".into()), ..full() };
        assert_eq!(choose_rung(&features, None).unwrap(), [Rung::Tracepoint]);
        assert!(choose_rung(&features, Some(Rung::TpBtf)).is_err());
    }

    #[test]
    fn without_a_ring_buffer_there_is_no_rung_and_the_error_says_why() {
        let error = choose_rung(&Features { ring_buffer: false, ..full() }, None).unwrap_err().to_string();
        assert!(error.contains("ring buffer") && error.contains("5.8"), "{error}");
    }

    #[test]
    fn without_permission_the_error_says_root() {
        let error = choose_rung(&Features { bpf_permitted: false, ..full() }, None).unwrap_err().to_string();
        assert!(error.contains("root"), "{error}");
    }
}
