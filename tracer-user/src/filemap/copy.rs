//! The copy manager: copies saved files by the blocks they lie in, past their file system's reads, after it made sure that they lie
//! there.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::OFlags;
use serde::Serialize;

use crate::filemap::MapError;
use crate::filemap::cache::read;
use crate::filemap::copied::Copied;
use crate::filemap::record::{EXTENTS_MAX, MapRecord};
use crate::filemap::restore::Restore;
use crate::filemap::volume::{MapVolume, Watched, hex};
use crate::filemap::watch::path_below;
use crate::io::clock::realtime;
use crate::io::fiemap::{Extent, extents_of, is_stored_plainly};
use crate::io::{AlignedBuf, DirectFile, Role};
use crate::model::{ByteRange, FileTime};
use crate::tree::inode::{attributes, changed, modified};

/// A change gets the time of the clock's last tick: one made right after a look could have the time of one before it.
pub const TICK: Duration = Duration::from_millis(20);
const BLOCK_TRIES: u32 = 3;
const FILE_TRIES: u32 = 3;
const PIECE_BYTES: u64 = 1 << 20;
const BLOCK_BYTES: usize = 4096;

pub struct CopyOptions {
    pub cache: PathBuf,
    pub target: PathBuf,
    /// To read instead of the device the file system is on (a snapshot's parent, another path to it).
    pub device: Option<PathBuf>,
}

/// How a file's bytes were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// From the device.
    Blocks,
    /// Through its file system.
    File,
    /// It is no more, or was saved under a name that it does not have any more: nothing was copied.
    Gone,
    /// It was written all the time: what is in the target is not its content at one time, and it stays to be copied.
    Unsteady,
}

#[derive(Clone, Debug, Serialize)]
pub struct CopyReport {
    pub path: String,
    pub how: How,
    /// Holes are not among them.
    pub bytes: u64,
    /// How often it changed while it was read.
    pub retries: u32,
    /// It does not lie where the cache says.
    pub remapped: bool,
}

pub struct Copier {
    options: CopyOptions,
    volume: MapVolume,
    watched: Watched,
    /// To read from; none if blocks can't be read.
    device: Option<DirectFile>,
}

impl Copier {
    pub fn open(options: CopyOptions) -> Result<Copier, MapError> {
        let (volume, _) = read(&options.cache)?;
        let watched = Watched::open(&volume.path)?;
        if !volume.is_of(&watched)? {
            return Err(MapError::NotMounted { path: volume.path });
        }
        watched.ensure_elsewhere(&options.target, Role::Target)?;
        std::fs::create_dir_all(&options.target).map_err(MapError::io("make", &options.target))?;
        let path = options.device.as_ref().or(watched.device.as_ref().map(|device| &device.path));
        let device = match path {
            Some(path) if watched.has_device_addresses()? => Some(
                DirectFile::open(path)
                    .map_err(|error| MapError::io("open", path)(io::Error::other(error)))?,
            ),
            _ => None,
        };
        Ok(Copier { options, volume, watched, device })
    }

    /// Copies what was saved since its last copy. A file that can't be copied is told, and stays to be copied.
    pub fn copy(&self, report: &mut dyn FnMut(Result<CopyReport, MapError>) -> bool) -> Result<(), MapError> {
        let (volume, content) = read(&self.options.cache)?;
        if volume != self.volume {
            return Err(MapError::NotMounted { path: volume.path });
        }
        let mut copied = Copied::open(&self.options.target, &volume.id)?;
        let mut maps = Vec::from_iter(content.maps.into_values());
        maps.retain(|map| !copied.has(&hex(&map.handle), map.save));
        // On a disk that turns, in the order of their blocks.
        maps.sort_by_key(|map| map.extents.first().map(|extent| extent.physical));
        for map in maps {
            let done = self.copy_file(&map);
            if matches!(&done, Ok(done) if done.how != How::Unsteady) {
                copied.note(hex(&map.handle), map.save)?;
            }
            let named =
                |source| MapError::io("copy", PathBuf::from(std::ffi::OsStr::from_bytes(&map.path)))(source);
            if !report(done.map_err(named)) {
                break;
            }
        }
        Ok(())
    }

    fn copy_file(&self, map: &MapRecord) -> io::Result<CopyReport> {
        let mut report = CopyReport {
            path: String::from_utf8_lossy(&map.path).into_owned(),
            how: How::Gone,
            bytes: 0,
            retries: 0,
            remapped: false,
        };
        let flags = OFlags::RDONLY | OFlags::NOATIME;
        let Some(file) = self.watched.source.open_inode(&map.handle, flags)? else { return Ok(report) };
        let Some(below) = self.path(map, &file)? else { return Ok(report) };
        report.path = below.display().to_string();
        let restore = Restore::create(&self.options.target, self.watched.source.path(), &below, map.inode)?;
        match self.fill(&restore, &file, map, &mut report) {
            Ok(metadata) => restore.finish(&attributes(&file, &metadata)?)?,
            Err(error) => {
                restore.abandon()?;
                return Err(error);
            }
        }
        Ok(report)
    }

    /// Its name now, if it still is in the directory it was saved in.
    fn path(&self, map: &MapRecord, file: &File) -> io::Result<Option<PathBuf>> {
        let name = map.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let Some(below) = path_below(&self.watched, &map.dir, name)? else { return Ok(None) };
        let below = PathBuf::from(std::ffi::OsString::from_vec(below));
        let (there, here) =
            (std::fs::symlink_metadata(self.watched.source.path().join(&below)), file.metadata()?);
        Ok(there.is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino())).then_some(below))
    }

    /// Returns what the file was while all of it was read.
    fn fill(
        &self,
        restore: &Restore,
        file: &File,
        map: &MapRecord,
        report: &mut CopyReport,
    ) -> io::Result<Metadata> {
        let device = self.device.as_ref().filter(|_| is_stored_plainly(file).unwrap_or(false));
        // Refused where there are no direct reads.
        let direct =
            self.watched.source.open_inode(&map.handle, OFlags::RDONLY | OFlags::DIRECT | OFlags::NOATIME);
        let direct = direct.ok().flatten();
        for attempt in 0..BLOCK_TRIES + FILE_TRIES {
            let device = device.filter(|_| attempt < BLOCK_TRIES);
            if device.is_none() && attempt < BLOCK_TRIES {
                continue;
            }
            restore.begin_anew()?;
            let before = settled(file, direct.as_ref())?;
            let (extents, truncated) = extents_of(file, true, EXTENTS_MAX)?;
            report.remapped = !truncated && places(&extents) != places(&map.extents);
            report.bytes = 0;
            report.how = match device {
                Some(device) if !truncated && extents.iter().all(Extent::is_plain) => {
                    report.bytes = copy_blocks(device, &extents, before.len(), restore)?;
                    How::Blocks
                }
                _ => {
                    report.bytes = copy_through(file, &extents, truncated, before.len(), restore)?;
                    How::File
                }
            };
            let after = (extents_of(file, false, EXTENTS_MAX)?.0, file.metadata()?);
            if same(&before, &after.1) && (report.how == How::File || places(&after.0) == places(&extents)) {
                return Ok(after.1);
            }
            report.retries += 1;
        }
        report.how = How::Unsteady;
        file.metadata()
    }
}

/// Where it lies, whatever else is said of it.
fn places(extents: &[Extent]) -> Vec<(u64, u64, u64, bool)> {
    let place = |extent: &Extent| (extent.offset, extent.physical, extent.length, extent.is_unwritten());
    extents.iter().map(place).collect()
}

/// What the file is at an instant from which on every change of it changes that. `direct` is the same file, open for reads past
/// the page cache.
fn settled(file: &File, direct: Option<&File>) -> io::Result<Metadata> {
    let metadata = file.metadata()?;
    let FileTime { seconds, nanos } = changed(&metadata);
    let changed_ns = u64::try_from(seconds).unwrap_or(0) * 1_000_000_000 + u64::from(nanos);
    let age = Duration::from_nanos(realtime().0.saturating_sub(changed_ns));
    if age < TICK {
        std::thread::sleep(TICK - age);
    }
    if let Some(direct) = direct {
        // Times change when a write begins. One that is under way holds the inode's lock, and this read waits for that.
        let mut block = AlignedBuf::default();
        block.set_len(BLOCK_BYTES);
        direct.read_at(&mut block, 0)?;
    }
    Ok(metadata)
}

fn same(one: &Metadata, other: &Metadata) -> bool {
    (one.len(), changed(one), modified(one)) == (other.len(), changed(other), modified(other))
}

/// Up to the file's end; unwritten extents stay holes.
fn copy_blocks(device: &DirectFile, extents: &[Extent], size: u64, restore: &Restore) -> io::Result<u64> {
    let (mut buffer, mut copied) = (AlignedBuf::default(), 0);
    for extent in extents.iter().filter(|extent| !extent.is_unwritten()) {
        let len = extent.length.min(size.saturating_sub(extent.offset));
        for skip in (0..len).step_by(PIECE_BYTES as usize) {
            let start = extent.physical + skip;
            let range = ByteRange { start, end: start + PIECE_BYTES.min(len - skip) };
            device.read_range(range, &mut buffer).map_err(io::Error::other)?;
            restore.write(&buffer, extent.offset + skip)?;
        }
        copied += len;
    }
    Ok(copied)
}

/// Through the file system: what has blocks, or all if not all of these are known.
fn copy_through(
    file: &File,
    extents: &[Extent],
    truncated: bool,
    size: u64,
    restore: &Restore,
) -> io::Result<u64> {
    let ranges = match truncated {
        true => vec![(0, size)],
        false => extents.iter().map(|extent| (extent.offset, extent.length)).collect(),
    };
    let (mut buffer, mut copied) = (vec![0; PIECE_BYTES as usize], 0);
    for (offset, length) in ranges {
        let end = offset.saturating_add(length).min(size);
        let mut at = offset;
        while at < end {
            let wanted = usize::try_from((end - at).min(PIECE_BYTES)).expect("at most a piece");
            let count = file.read_at(&mut buffer[..wanted], at)?;
            if count == 0 {
                break;
            }
            restore.write(&buffer[..count], at)?;
            (at, copied) = (at + count as u64, copied + count as u64);
        }
    }
    Ok(copied)
}
