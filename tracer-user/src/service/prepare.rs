//! What has to be true before a volume is protected, and bringing journal and replica to where they agree.

use std::path::{Path, PathBuf};

use crate::apply::{ApplyError, Replica};
use crate::io::clock::realtime;
use crate::io::{BlockDevice, DeviceError, Obstacle, Role, TopologyError, ensure_not_on_volume};
use crate::journal::{Journal, JournalError, JournalOptions, Recovery, Writer};
use crate::model::{ByteRange, ByteRangeSet, Lsn, Point, VolumeId, VolumeInfo};
use crate::service::run_dir::{LockError, VolumeLock};

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
    pub replica: Replica,
    pub recovery: Option<Recovery>,
    /// The last mark the replica may be brought to.
    pub restorable: Option<Point>,
    /// There was a protection before this one.
    pub resumed: bool,
}

pub fn prepare(
    source: &Path,
    journal_dir: &Path,
    target: &Path,
    journal_options: JournalOptions,
    force: bool,
    run_dir: &Path,
) -> Result<Prepared, PrepareError> {
    let device = BlockDevice::open(source)?;
    if let Some(obstacle) = device.obstacle() {
        return Err(PrepareError::NotCovered { device: device.path, obstacle });
    }
    ensure_not_on_volume(&device, journal_dir, Role::Journal)?;
    ensure_not_on_volume(&device, target, Role::Target)?;
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
    let restorable = journal.points()?.into_iter().rfind(|point| point.class.restorable());
    let (replica, _) = Replica::open(journal_dir, target, &info, force)?;
    Ok(Prepared { device, lock, info, writer, journal, replica, recovery, restorable, resumed })
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
