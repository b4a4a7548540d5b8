//! Volumes that are written before and after the service runs, as the root is: `attach` before the first write, `finish` after the
//! last one.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::capture::{CaptureError, CaptureOptions, are_at_work, attach as attach_probes};
use crate::io::{BlockDevice, DeviceError, Obstacle};
use crate::service::device_source::volume_extent;
use crate::service::protect::{self, ProtectError, ProtectEvent, ProtectOptions, ProtectSummary};
use crate::service::stopped::look;

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("{} {obstacle}", device.display())]
    NotCovered { device: PathBuf, obstacle: Obstacle },
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

/// What became of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// Its writes are recorded from here on.
    Now,
    /// They were already.
    Already,
}

/// Has the writes to a volume recorded, for the next `protect` to take over. Needs nothing but the device.
pub fn attach(source: &Path, options: &CaptureOptions) -> Result<Attached, AttachError> {
    let device = BlockDevice::open(source)?;
    if let Some(obstacle) = device.obstacle() {
        return Err(AttachError::NotCovered { device: device.path, obstacle });
    }
    let is_new = attach_probes(&volume_extent(&device), &device.name, options, || look(&device))?;
    Ok(if is_new { Attached::Now } else { Attached::Already })
}

#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("no probes are at work for {}, so what was written is not known; the next start compares all of it", device.display())]
    NotAttached { device: PathBuf },
    #[error(
        "there is no {}, nor is it on a file system of /etc/fstab that can be mounted; the next start compares the whole volume",
        path.display()
    )]
    NotThere { path: PathBuf },
    #[error("{} has to be compared with its target, for which there is no time now: the next start does it", device.display())]
    NotCompared { device: PathBuf },
    #[error(transparent)]
    Protect(#[from] ProtectError),
}

/// The last of a volume before the machine stops, when nobody can write to it any more: journals what is recorded, and leaves the
/// marker by which the next boot need not compare. What was unmounted of journal and target is mounted again for that.
pub fn finish(
    options: &ProtectOptions,
    show: &mut dyn FnMut(ProtectEvent<'_>),
) -> Result<ProtectSummary, FinishError> {
    let device = BlockDevice::open(&options.source)?;
    if !are_at_work(&device.name) {
        return Err(FinishError::NotAttached { device: options.source.clone() });
    }
    let _journal = mount_to_reach(&options.journal.join("volume.toml"))?;
    // Of several one may be away, as at any start.
    let mut targets: Vec<_> = options.targets.iter().map(|target| mount_to_reach(target)).collect();
    if targets.iter().all(Result::is_err)
        && let Some(Err(why)) = targets.pop()
    {
        return Err(why);
    }
    let mut unscanned = 0;
    let summary = protect::finish(options, &mut |event| {
        if let ProtectEvent::Attached { unscanned_bytes, .. } = event {
            unscanned = unscanned_bytes;
        }
        show(event);
    })?;
    match unscanned {
        0 => Ok(summary),
        _ => Err(FinishError::NotCompared { device: options.source.clone() }),
    }
}

/// What had to be mounted; unmounted in the end.
struct Mounted(Option<PathBuf>);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(dir) = &self.0
            && !succeeds(Command::new("umount").arg(dir))
        {
            // All that matters was synced.
            log::warn!("{} could not be unmounted", dir.display());
        }
    }
}

/// As /etc/fstab says, when the path is not there.
fn mount_to_reach(path: &Path) -> Result<Mounted, FinishError> {
    if path.exists() {
        return Ok(Mounted(None));
    }
    let dirs = path.ancestors().skip(1).filter(|dir| dir.is_dir() && dir.parent().is_some());
    for dir in dirs {
        if succeeds(Command::new("mount").arg(dir)) {
            let mounted = Mounted(Some(dir.to_owned()));
            // Else it goes again.
            if path.exists() {
                return Ok(mounted);
            }
        }
    }
    Err(FinishError::NotThere { path: path.to_owned() })
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
