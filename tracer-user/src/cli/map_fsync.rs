//! How `map` hears of fsync: by BPF.

use std::path::Path;

use anyhow::Context;

use crate::capture::vfs::{SyncCapture, VfsRung};
use crate::cli::{Whether, say};
use crate::filemap::Fsyncs;
use crate::io::mount_table::mount_of;
use crate::model::FileId;

#[derive(Debug, clap::Args)]
pub(super) struct FsyncArgs {
    /// Whether an fsync is a save, too: on (if this kernel can tell), off
    #[arg(long, value_name = "WHETHER", default_value = "on")]
    fsync: Whether,
    /// How fsyncs are seen instead of the best way: fentry, syscall
    #[arg(long, value_name = "RUNG")]
    rung: Option<VfsRung>,
}

impl FsyncArgs {
    /// `None`: not wanted, or this kernel can't tell, which is said.
    pub(super) fn listen(&self, path: &Path) -> anyhow::Result<Option<SyncCapture>> {
        if self.fsync == Whether::Off {
            return Ok(None);
        }
        match (attach(path, self.rung), self.rung) {
            (Ok(probes), _) => Ok(Some(probes)),
            (Err(error), Some(_)) => Err(error),
            (Err(error), None) => {
                say(&format!(
                    "a file that is synced is not mapped before it is closed or renamed: {error:#}"
                ));
                Ok(None)
            }
        }
    }
}

fn attach(path: &Path, rung: Option<VfsRung>) -> anyhow::Result<SyncCapture> {
    let (dev, _) = mount_of(path)
        .with_context(|| format!("cannot tell the file system of {}", path.display()))?
        .with_context(|| format!("{} is on no file system that is mounted here", path.display()))?;
    Ok(SyncCapture::attach(dev, rung)?)
}

impl Fsyncs for SyncCapture {
    fn take(&mut self) -> Vec<FileId> {
        SyncCapture::take(self)
    }

    fn missing(&self) -> u64 {
        SyncCapture::missing(self)
    }
}
