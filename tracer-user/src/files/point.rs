//! The files of a point: finding it in a journal, and a way to read the file system that is there.

use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use serde::Serialize;

use crate::files::ext4::{Ext4, is_ext4};
use crate::files::list::{Listed, list};
use crate::files::mounted::Mounted;
use crate::files::path::PathError;
use crate::files::restore::{RestoreFile, RestoreFileError, Restored, restore_file};
use crate::files::volume::{Part, Volume};
use crate::files::{FsError, partitions};
use crate::journal::{Journal, JournalError};
use crate::model::{ByteRange, Lsn, PointTarget};
use crate::restore::{Beginning, FindError, ReplayError, ReplayOptions, ResolvedPoint, find_point, replay};

/// What to look at.
#[derive(Clone, Debug)]
pub struct FilesAt {
    /// Directory of the journal.
    pub journal: PathBuf,
    pub to: PointTarget,
    /// Take a fuzzy point.
    pub force: bool,
    /// Of a volume that is divided.
    pub partition: Option<u32>,
    /// Let the kernel read it, even if it could be read without.
    pub mount: bool,
    /// Where a scratch image is made for that.
    pub scratch: PathBuf,
}

/// How the files of a point are read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "way")]
pub enum Means {
    /// Straight from the journal.
    Journal {
        file_system: &'static str,
        /// Blocks that are read from the file system's own journal.
        recovered_blocks: usize,
    },
    /// The point is rebuilt in a scratch image, and mounted read-only.
    Mount { file_system: &'static str },
}

#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("cannot read the journal {}", dir.display())]
    Journal {
        dir: PathBuf,
        #[source]
        source: JournalError,
    },
    #[error("cannot take that point")]
    Point(#[from] FindError),
    #[error("cannot read the file system of this point")]
    Fs(#[from] FsError),
    #[error("the volume has partitions: {found}. Name one with --partition NUMBER")]
    Divided { found: String },
    #[error(
        "the volume has no partition {wanted}; there is {found}. One within an extended partition is not found: `afterwrite \
         replay` the point to an image file, and mount it from that"
    )]
    NoPartition { wanted: u32, found: String },
    #[error(
        "there is no file system at this point that is known here (ext4, xfs, btrfs). `afterwrite replay` the point to an image \
         file and look at that"
    )]
    NoFileSystem,
    #[error(
        "{file_system} is read by the kernel, which takes root. Run it as root, or `afterwrite replay` the point to an image \
         file and mount that read-only"
    )]
    NeedsRoot { file_system: &'static str },
    #[error("cannot make a scratch image in {}; name a directory with room with --scratch", dir.display())]
    Scratch {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot rebuild the point in a scratch image in {}", dir.display())]
    Replay {
        dir: PathBuf,
        #[source]
        source: Box<ReplayError>,
    },
}

/// The files of a point.
pub struct Files {
    pub point: ResolvedPoint,
    /// The change that the point is before, if that was asked for.
    pub before: Option<Beginning>,
    pub means: Means,
    fs: AnyFs,
}

enum AnyFs {
    Ext4(Box<Ext4<Part>>),
    Mounted(Mounted),
}

impl Files {
    /// What is below a path, in the order of names.
    ///
    /// # Errors
    /// There is no such path, or the file system cannot be read.
    pub fn list(
        &mut self,
        path: &[u8],
        recursive: bool,
        take: &mut dyn FnMut(Listed) -> bool,
    ) -> Result<(), PathError> {
        match &mut self.fs {
            AnyFs::Ext4(fs) => list(&mut **fs, path, recursive, take),
            AnyFs::Mounted(fs) => list(fs, path, recursive, take),
        }
    }

    /// Writes what is at a path to another place.
    ///
    /// # Errors
    /// As [`Files::list`]; or it cannot be written.
    pub fn restore(&mut self, options: &RestoreFile) -> Result<Restored, RestoreFileError> {
        match &mut self.fs {
            AnyFs::Ext4(fs) => restore_file(&mut **fs, options),
            AnyFs::Mounted(fs) => restore_file(fs, options),
        }
    }
}

/// Finds the point and a way to read its file system. The journal is only read.
///
/// # Errors
/// There is no such point, damage, or nothing there that can be read.
pub fn open_files(at: &FilesAt) -> Result<Files, FilesError> {
    let journal_error = |source| FilesError::Journal { dir: at.journal.clone(), source };
    let journal = Journal::open(&at.journal).map_err(journal_error)?;
    let timeline = journal.timeline().map_err(journal_error)?;
    let (point, before) = find_point(&journal, &timeline, &at.to, at.force)?;
    let sector_bytes = journal.info().sector_bytes;
    let view = journal.into_view(point.lsn).map_err(journal_error)?;
    let mut part = Part::whole(view);
    let partitions = partitions::read(&mut part, sector_bytes)?;
    match at.partition {
        None => {}
        Some(wanted) => match partitions.iter().find(|partition| partition.number == wanted) {
            Some(partition) => part = part.narrowed(partition.range),
            None => return Err(FilesError::NoPartition { wanted, found: partitions::describe(&partitions) }),
        },
    }
    let Some(file_system) = recognise(&mut part)? else {
        return Err(match partitions.is_empty() || at.partition.is_some() {
            true => FilesError::NoFileSystem,
            false => FilesError::Divided { found: partitions::describe(&partitions) },
        });
    };
    let (fs, means) = if file_system == "ext4" && !at.mount {
        let fs = Ext4::open(part)?;
        let means = Means::Journal { file_system, recovered_blocks: fs.recovered_blocks() };
        (AnyFs::Ext4(Box::new(fs)), means)
    } else {
        (AnyFs::Mounted(mounted(at, point.lsn, part.range(), file_system)?), Means::Mount { file_system })
    };
    Ok(Files { point, before, means, fs })
}

fn recognise(volume: &mut Part) -> Result<Option<&'static str>, FsError> {
    const MAGICS: [(&str, u64, &[u8]); 2] = [("xfs", 0, b"XFSB"), ("btrfs", 0x1_0040, b"_BHRfS_M")];
    if is_ext4(volume)? {
        return Ok(Some("ext4"));
    }
    for (name, at, magic) in MAGICS {
        if volume.size_bytes() >= at + 8 {
            let mut bytes = [0; 8];
            volume.read_at(at, &mut bytes)?;
            if bytes.starts_with(magic) {
                return Ok(Some(name));
            }
        }
    }
    Ok(None)
}

fn mounted(
    at: &FilesAt,
    lsn: Lsn,
    range: ByteRange,
    file_system: &'static str,
) -> Result<Mounted, FilesError> {
    if !rustix::process::geteuid().is_root() {
        return Err(FilesError::NeedsRoot { file_system });
    }
    let image = tempfile::tempfile_in(&at.scratch)
        .map_err(|source| FilesError::Scratch { dir: at.scratch.clone(), source })?;
    let options = ReplayOptions {
        journal: at.journal.clone(),
        to: PointTarget::Lsn(lsn),
        target: format!("/proc/self/fd/{}", image.as_raw_fd()).into(),
        // What class the point has was asked before.
        force: true,
        dry_run: false,
    };
    replay(&options, &mut |_| {})
        .map_err(|source| FilesError::Replay { dir: at.scratch.clone(), source: Box::new(source) })?;
    Ok(Mounted::mount(&image, range, file_system)?)
}
