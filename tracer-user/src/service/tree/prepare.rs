//! Everything that is checked and opened before changes of a tree are captured.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::io::clock::realtime;
use crate::journal::{JournalError, Writer};
use crate::model::{VolumeId, VolumeInfo};
use crate::service::run_dir::{self, VolumeLock};
use crate::service::tree::TreeOptions;
use crate::service::tree::world::freeze_obstacle;
use crate::tree::{Source, TreeReplica};

pub struct Prepared {
    pub source: Source,
    pub name: String,
    pub lock: VolumeLock,
    pub info: VolumeInfo,
    pub writer: Writer,
    pub replica: TreeReplica,
    pub resumed: bool,
    /// Why it is not frozen for marks.
    pub not_frozen: Option<String>,
    pub dev: u32,
    /// The tree, within its file system.
    pub root: Vec<u8>,
}

pub fn prepare(options: &TreeOptions) -> anyhow::Result<Prepared> {
    let path =
        options.source.canonicalize().with_context(|| format!("cannot find {}", options.source.display()))?;
    let source = Source::open(&path)?;
    let (journal, target) = (real(&options.journal)?, real(&options.target)?);
    refuse_overlap(&path, &journal, &target)?;
    let (dev, root) = crate::io::mount_table::mount_of(&path)?
        .with_context(|| format!("{} is on no file system that is mounted here", path.display()))?;
    let name = run_dir::volume_name(&path.display().to_string());
    let lock = VolumeLock::take(&run_dir::path(), &name)?;
    let identity = identity(&source)?;
    let (writer, resumed) = match Writer::open(&journal, options.journal_options.clone()) {
        Ok((writer, _)) => (writer, true),
        Err(JournalError::NotAJournal { .. }) => {
            let info = new_info(&path, identity.clone())?;
            (Writer::create(&journal, &info, options.journal_options.clone())?, false)
        }
        Err(error) => return Err(error.into()),
    };
    let info = writer.info().clone();
    if info.identity != identity {
        bail!(
            "the journal {} is the history of {} ({}), not of {}; name another journal",
            journal.display(),
            info.source,
            if info.is_tree() { "another directory" } else { "a device" },
            path.display()
        );
    }
    let replica = TreeReplica::open(&journal, &target, options.force)?;
    let dev_of = |path: &Path| std::fs::metadata(path).ok().map(|metadata| metadata.dev());
    let of_source = std::fs::metadata(&path)?.dev();
    let not_frozen = freeze_obstacle(of_source, dev_of(Path::new("/")), dev_of(&journal));
    Ok(Prepared { source, name, lock, info, writer, replica, resumed, not_frozen, dev, root })
}

/// Where it is, or will be.
fn real(path: &Path) -> anyhow::Result<PathBuf> {
    if let Ok(real) = path.canonicalize() {
        return Ok(real);
    }
    let name = path.file_name().with_context(|| format!("{} is no name for a directory", path.display()))?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = parent.canonicalize().with_context(|| format!("cannot find {}", parent.display()))?;
    Ok(parent.join(name))
}

fn refuse_overlap(source: &Path, journal: &Path, target: &Path) -> anyhow::Result<()> {
    for (what, other) in [("target", target), ("journal", journal)] {
        if other.starts_with(source) {
            bail!(
                "the {what} {} is inside of {}, which would protect itself; name a directory outside of it",
                other.display(),
                source.display()
            );
        }
    }
    if source.starts_with(target) {
        bail!(
            "{} is inside of the target {}, which would be overwritten; name another target",
            source.display(),
            target.display()
        );
    }
    if journal.starts_with(target) {
        bail!(
            "the journal {} is inside of the target {}; name a directory outside of it",
            journal.display(),
            target.display()
        );
    }
    Ok(())
}

/// The directory is recognised by its inode, whatever it is called.
fn identity(source: &Source) -> anyhow::Result<String> {
    let handle = source.root()?.handle;
    Ok(VolumeInfo::TREE.to_owned() + &handle.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn new_info(path: &Path, identity: String) -> anyhow::Result<VolumeInfo> {
    let mut id = [0; 16];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut id)).context("no random numbers")?;
    Ok(VolumeInfo {
        id: VolumeId(id),
        source: path.display().to_string(),
        identity,
        size_bytes: 0,
        sector_bytes: 512,
        created: realtime(),
    })
}
