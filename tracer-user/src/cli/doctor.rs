use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::json;

use crate::capture::vfs::{VFS_LADDER, VfsOptions, VfsRung, attach};
use crate::capture::{
    Capture, CaptureError, CaptureOptions, Rung, VolumeExtent, inspect_embedded, payload_obstacle,
    probe_features,
};
use crate::cli::{Outcome, Output, say};
use crate::io::{BlockDevice, mounted_on};
use crate::model::ByteRange;
use crate::service::volume_extent;

const RUNGS: [Rung; 3] = [Rung::TpBtf, Rung::RawTp, Rung::Tracepoint];

/// Show what this kernel offers, which way the probes would attach, and what is missing
///
/// With a device: how it is captured, and what is mounted on it. Exit status 1 when nothing works here.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  afterwrite doctor /dev/sda2")]
pub struct DoctorArgs {
    /// A block device one may want to protect
    device: Option<PathBuf>,
    #[arg(long)]
    json: bool,
}

pub fn run(args: &DoctorArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let device = args.device.as_deref().map(BlockDevice::open).transpose()?;
    let object = inspect_embedded()?;
    let features = probe_features();
    let volume = device.as_ref().map_or_else(nowhere, volume_extent);
    say("trying each way to attach, which takes some seconds");
    // Each rung is really attached for a moment, not guessed from the version.
    let rungs: Vec<(Rung, Option<String>)> = RUNGS
        .into_iter()
        .map(|rung| {
            let options = CaptureOptions { rung: Some(rung), ..CaptureOptions::default() };
            (rung, Capture::attach(volume.clone(), &options).err().map(chain))
        })
        .collect();
    let best = rungs.iter().find(|(_, obstacle)| obstacle.is_none()).map(|(rung, _)| *rung);
    let payload = best.map(payload_obstacle);
    let file_rungs: Vec<(VfsRung, Option<String>)> = VFS_LADDER
        .into_iter()
        .map(|rung| {
            let options = VfsOptions { rung: Some(rung), ..VfsOptions::default() };
            (rung, attach(&options).err().map(chain))
        })
        .collect();
    let mounts =
        device.as_ref().map(|device| mounted_on(device.number)).transpose().context("what is mounted")?;

    if args.json {
        out.json(&json!({
                "kernel": features.kernel_release,
                "bpf_permitted": features.bpf_permitted,
                "ring_buffer": features.ring_buffer,
                "btf": features.layout.as_ref().err().map_or("ok", String::as_str),
                "tracefs": features.tracefs,
                "rung": best,
                "rungs": rungs.iter().map(|(rung, why)| json!({"rung": rung, "obstacle": why})).collect::<Vec<_>>(),
                "payload": payload.as_ref().map(|obstacle| json!({"obstacle": obstacle})),
                "file_rungs": file_rungs.iter().map(|(rung, why)| json!({"rung": rung, "obstacle": why})).collect::<Vec<_>>(),
                "object": object,
                "device": device.as_ref().map(|device| json!({
                    "path": device.path,
                    "size_bytes": device.size_bytes,
                    "sector_bytes": device.logical_sector_bytes,
                    "disk": device.disk.name,
                    "start_bytes": device.start_bytes,
                    "request_based": device.request_based,
                    "identity": device.identity(),
                    "obstacle": device.obstacle().map(|obstacle| obstacle.to_string()),
                    "mounts": mounts.iter().flatten().map(|mount| json!({
                        "mount_point": mount.mount_point, "fs_type": mount.fs_type,
                    })).collect::<Vec<_>>(),
                })),
            }))?;
        return Ok(outcome(best));
    }

    let yes_no = |yes: bool| if yes { "yes" } else { "no" };
    out.line(format_args!("kernel          {}", features.kernel_release))?;
    out.line(format_args!(
        "BPF allowed     {}",
        if features.bpf_permitted { "yes" } else { "no: run as root" }
    ))?;
    out.line(format_args!("ring buffer     {}", yes_no(features.ring_buffer)))?;
    out.line(format_args!(
        "BTF             {}",
        features.layout.as_ref().err().map_or("yes, with all members needed", String::as_str)
    ))?;
    out.line(format_args!(
        "tracefs         {}",
        features.tracefs.map_or("not mounted".into(), |path| path.display().to_string())
    ))?;
    out.line(format_args!(
        "probes          {} programs, {} maps, licence {}, {} bytes of BTF",
        object.programs.len(),
        object.maps.len(),
        object.license,
        object.btf_bytes
    ))?;
    for (rung, obstacle) in &rungs {
        let used = if Some(*rung) == best { "  <- used" } else { "" };
        out.line(format_args!(
            "block rung      {rung:<11} {}{used}",
            obstacle.as_deref().unwrap_or("works")
        ))?;
    }
    if let Some(payload) = &payload {
        out.line(format_args!("payload         {}", payload.as_deref().unwrap_or("works")))?;
    }
    for (rung, obstacle) in &file_rungs {
        out.line(format_args!("file rung       {rung:<11} {}", obstacle.as_deref().unwrap_or("works")))?;
    }
    if let Some(device) = &device {
        let how = if device.request_based {
            "requests (block_rq_issue, block_rq_complete)"
        } else {
            "bios (block_bio_queue, block_bio_complete)"
        };
        out.line(format_args!(
            "device          {}, {} bytes, sectors of {}",
            device.path.display(),
            device.size_bytes,
            device.logical_sector_bytes
        ))?;
        out.line(format_args!(
            "disk            {} from byte {}, takes {how}",
            device.disk.name, device.start_bytes
        ))?;
        out.line(format_args!("identity        {}", device.identity()))?;
        if let Some(obstacle) = device.obstacle() {
            out.line(format_args!("refused         {} {obstacle}", device.path.display()))?;
        }
        for mount in mounts.iter().flatten() {
            out.line(format_args!(
                "mounted         {} on {}: frozen for marks",
                mount.fs_type,
                mount.mount_point.display()
            ))?;
        }
    }
    if best.is_none() {
        out.line("nothing works here: see the reasons above")?;
    }
    Ok(outcome(best))
}

fn outcome(best: Option<Rung>) -> Outcome {
    if best.is_some() { Outcome::Done } else { Outcome::Wrong }
}

/// A volume no device has, so that nothing is captured.
fn nowhere() -> VolumeExtent {
    VolumeExtent { on_disk: ByteRange::new(0, 1 << 20), request_based: true, ..VolumeExtent::default() }
}

fn chain(error: CaptureError) -> String {
    match error {
        CaptureError::NoRung { reasons } | CaptureError::NoVfsRung { reasons } => {
            reasons.split_once(": ").map_or(reasons.as_str(), |(_, why)| why).to_owned()
        }
        other => format!("{:#}", anyhow::Error::new(other)),
    }
}
