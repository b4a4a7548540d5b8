//! What has to be true before a volume is protected, and bringing journal and replica to where they agree.

use std::path::{Path, PathBuf};

use crate::apply::{ApplyError, Checkpoint, FoundTarget, Replica, ReplicaFiles};
use crate::io::clock::realtime;
use crate::io::{BlockDevice, DeviceError, Obstacle, Role, TopologyError, ensure_not_on_volume};
use crate::journal::{Journal, JournalError, JournalOptions, Recovery, Writer};
use crate::model::{ByteRange, ByteRangeSet, Lsn, Point, VolumeId, VolumeInfo};
use crate::service::progress::TargetProgress;
use crate::service::run_dir::{LockError, VolumeLock};
use crate::target::TargetWriter;

#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Topology(#[from] TopologyError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("the journal can't be used")]
    Journal(#[from] JournalError),
    #[error("the target can't be used")]
    Replica(#[from] ApplyError),
    #[error(
        "{journal} is the journal of {recorded}, not of {device}: name another --journal directory for this volume"
    )]
    OtherVolume { journal: PathBuf, recorded: String, device: String },
    #[error(
        "{device} has {now} bytes, the journal {journal} is for {recorded}: a volume that changed its size \
         needs a new --journal directory and a new target"
    )]
    OtherSize { journal: PathBuf, device: PathBuf, recorded: u64, now: u64 },
    #[error("{} and {} are one target: name each once", target.display(), other.display())]
    NamedTwice { target: PathBuf, other: PathBuf },
    #[error("what is known of the targets can't be looked for in the journal's directory")]
    Checkpoints(#[source] std::io::Error),
    #[error("{} {obstacle}", device.display())]
    NotCovered { device: PathBuf, obstacle: Obstacle },
    #[error("no random bytes for the volume's id")]
    Random(#[source] std::io::Error),
}

/// All that a protection works with, opened and checked; nothing is captured yet.
pub struct Prepared {
    pub device: BlockDevice,
    pub lock: VolumeLock,
    pub info: VolumeInfo,
    pub writer: Writer,
    pub journal: Journal,
    pub targets: Vec<Target>,
    pub recovery: Option<Recovery>,
    /// The last mark the replica may be brought to.
    pub restorable: Option<Point>,
    /// There was a protection before this one.
    pub resumed: bool,
}

/// One of the targets, opened if it can be used now.
pub struct Target {
    pub path: PathBuf,
    pub files: ReplicaFiles,
    pub replica: Result<Replica, ApplyError>,
    /// The mark it is at, as far as is known, also of one that can't be used now.
    pub mark: Option<Point>,
}

impl Target {
    /// How far it is now.
    pub fn progress(&self) -> TargetProgress {
        let mut progress = TargetProgress::default();
        progress.mark.clone_from(&self.mark);
        if let Ok(replica) = &self.replica {
            let checkpoint = replica.checkpoint();
            progress.applied = checkpoint.applied;
            progress.consistent = checkpoint.consistent;
        }
        progress
    }
}

pub fn prepare(
    source: &Path,
    journal_dir: &Path,
    targets: &[PathBuf],
    journal_options: JournalOptions,
    force: bool,
    run_dir: &Path,
) -> Result<Prepared, PrepareError> {
    let device = BlockDevice::open(source)?;
    if let Some(obstacle) = device.obstacle() {
        return Err(PrepareError::NotCovered { device: device.path, obstacle });
    }
    ensure_not_on_volume(&device, journal_dir, Role::Journal)?;
    for target in targets {
        ensure_not_on_volume(&device, target, Role::Target)?;
    }
    let lock = VolumeLock::take(run_dir, &device.name)?;
    let resumed = journal_dir.join("volume.toml").exists();
    let (writer, recovery) = if resumed {
        // Before anything is written to it.
        same_volume(Journal::open(journal_dir)?.info(), &device, journal_dir)?;
        let (writer, recovery) = Writer::open(journal_dir, journal_options)?;
        (writer, Some(recovery))
    } else {
        (Writer::create(journal_dir, &describe(&device)?, journal_options)?, None)
    };
    let info = writer.info().clone();
    let journal = Journal::open(journal_dir)?;
    let points = journal.points()?;
    let targets = open_targets(journal_dir, targets, &info, &points, force)?;
    let restorable = points.into_iter().rfind(|point| point.class.restorable());
    Ok(Prepared { device, lock, info, writer, journal, targets, recovery, restorable, resumed })
}

/// A new target has to be usable. One that is known may be away, or fail, as long as another one is there: it is tried again
/// while all else goes on.
fn open_targets(
    journal_dir: &Path,
    paths: &[PathBuf],
    info: &VolumeInfo,
    points: &[Point],
    force: bool,
) -> Result<Vec<Target>, PrepareError> {
    let mut found: Vec<FoundTarget> = Vec::new();
    for path in paths {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let identity = TargetWriter::identity_of(&path).map_err(ApplyError::from)?;
        let same =
            |other: &&FoundTarget| other.path == path || (identity.is_some() && other.identity == identity);
        if let Some(other) = found.iter().find(same) {
            return Err(PrepareError::NamedTwice { target: path, other: other.path.clone() });
        }
        found.push(FoundTarget { path, identity });
    }
    let files = ReplicaFiles::of_targets(journal_dir, &found).map_err(PrepareError::Checkpoints)?;
    let mut targets = Vec::new();
    for (path, (files, known)) in paths.iter().zip(files) {
        let replica = Replica::open(&files, path, info, force).map(|(replica, _)| replica);
        match replica {
            Err(error) if !known => return Err(error.into()),
            replica => {
                let known = match &replica {
                    Ok(replica) => Some(replica.checkpoint().clone()),
                    Err(_) => Checkpoint::read(&files).ok().flatten(),
                };
                let id = known.and_then(|checkpoint| checkpoint.mark);
                let mark = points.iter().find(|point| Some(point.id) == id).cloned();
                targets.push(Target { path: path.clone(), files, replica, mark });
            }
        }
    }
    if targets.iter().all(|target| target.replica.is_err())
        && let Some(Target { replica: Err(error), .. }) = targets.pop()
    {
        return Err(error.into());
    }
    Ok(targets)
}

fn describe(device: &BlockDevice) -> Result<VolumeInfo, PrepareError> {
    use std::io::Read;
    let mut id = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut id))
        .map_err(PrepareError::Random)?;
    Ok(VolumeInfo {
        id: VolumeId(id),
        source: device.path.display().to_string(),
        identity: device.identity(),
        size_bytes: device.size_bytes,
        sector_bytes: device.logical_sector_bytes,
        created: realtime(),
    })
}

fn same_volume(info: &VolumeInfo, device: &BlockDevice, journal: &Path) -> Result<(), PrepareError> {
    let identity = device.identity();
    if info.identity != identity {
        return Err(PrepareError::OtherVolume {
            journal: journal.to_owned(),
            recorded: format!("{} ({})", info.source, info.identity),
            device: format!("{} ({identity})", device.path.display()),
        });
    }
    if info.size_bytes != device.size_bytes {
        return Err(PrepareError::OtherSize {
            journal: journal.to_owned(),
            device: device.path.clone(),
            recorded: info.size_bytes,
            now: device.size_bytes,
        });
    }
    Ok(())
}

/// Where the replica's bytes are the journal's last word, so that comparing with them is enough. The replica must be at
/// `restorable`, or, without one, at the journal's end.
///
/// Not there: what the journal says after the mark, and, in a baseline that was interrupted, what no record covers.
pub fn same_as_replica(
    journal: &Journal,
    restorable: Option<&Point>,
    size_bytes: u64,
) -> Result<ByteRangeSet, JournalError> {
    let whole = ByteRange::new(0, size_bytes);
    let from = restorable.map_or(Lsn(1), |mark| mark.lsn.next());
    let last = journal.last_lsn()?;
    let mut named = ByteRangeSet::new();
    if from <= last {
        for record in journal.records(from, last)? {
            if let Some(range) = record?.body.content_range() {
                named.insert(range);
            }
        }
    }
    Ok(match restorable {
        None => named,
        Some(_) => named.gaps(whole).into_iter().collect(),
    })
}
