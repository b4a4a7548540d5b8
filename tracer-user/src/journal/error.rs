use std::io;
use std::path::PathBuf;

use crate::journal::format::FormatError;
use crate::model::{Lsn, VolumeId};

/// Why a journal could not be made, written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("{} is not a journal: {why}; name the directory that `protect --journal` was given", dir.display())]
    NotAJournal { dir: PathBuf, why: String },
    #[error("{} is not empty and not a journal; name an empty or a new directory", dir.display())]
    NotEmpty { dir: PathBuf },
    #[error("{} is a journal already; open it, or name a new directory", dir.display())]
    AlreadyAJournal { dir: PathBuf },
    #[error(
        "{segment} belongs to volume {found}, this journal to {expected}; move the file to where it came from"
    )]
    WrongVolume { segment: String, found: VolumeId, expected: VolumeId },
    #[error("journal {} is in use by another writer; stop that `afterwrite` first", dir.display())]
    Locked { dir: PathBuf },
    #[error("{file} has format version {version}, which this program does not know; use a newer afterwrite")]
    UnsupportedVersion { file: String, version: u64 },
    #[error("{segment} needs features {features:#x} that this program does not know; use a newer afterwrite")]
    UnsupportedFeatures { segment: String, features: u32 },
    #[error("{segment}, byte {offset}: {what} that this program does not know; use a newer afterwrite")]
    UnsupportedRecord { segment: String, offset: u64, what: String },
    /// In a sealed segment; `lsn` is the record that should stand at this byte.
    #[error(
        "record {lsn} in {segment}: {what} at byte {offset}; the file changed after it was sealed, restore it \
         from a copy"
    )]
    BadChecksum { segment: String, offset: u64, lsn: Lsn, what: String },
    #[error(
        "{segment} is damaged at byte {offset}: {what}; restore the file from a copy, nothing was changed"
    )]
    Damaged { segment: String, offset: u64, what: String },
    #[error(
        "{segment}, byte {offset}: it does not follow on {previous}: their hashes differ, so one of the two was \
         replaced or edited; restore it from a copy"
    )]
    BrokenChain { segment: String, offset: u64, previous: String },
    #[error(
        "record {wanted} is not in the journal any more: what is left of the history up to record {upto} are its marks. \
         `afterwrite points JOURNAL` lists what can be restored"
    )]
    Folded { wanted: Lsn, upto: Lsn },
    #[error("in the fold {fold}…")]
    InFold {
        fold: String,
        #[source]
        source: Box<JournalError>,
    },
    #[error("the journal was pruned meanwhile; run the command again")]
    Pruned { source: Box<JournalError> },
    #[error(
        "the records up to this point lie in more than {ranges_max} ranges of the volume, too many to be kept in memory; \
         `afterwrite replay` the point to an image file and mount that"
    )]
    Scattered { ranges_max: usize },
    #[error("another prune is at work on the journal {}; wait for it to end", dir.display())]
    Pruning { dir: PathBuf },
    #[error("segment {missing} is missing (the next one there is {found}); restore it from a copy")]
    MissingSegment { missing: String, found: String },
    /// The caller's record was refused; the writer goes on working.
    #[error("the journal takes no such record: {0}")]
    InvalidRecord(String),
    #[error("no space left for the journal: free some under {}; the source was not touched", dir.display())]
    NoSpace { dir: PathBuf, source: io::Error },
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the journal stopped at an earlier error; start again so that recovery runs")]
    Latched,
}

impl JournalError {
    /// The journal's bytes are wrong, as opposed to: they could not be read, or not by this program.
    pub fn is_damage(&self) -> bool {
        if let JournalError::InFold { source, .. } = self {
            return source.is_damage();
        }
        matches!(
            self,
            JournalError::WrongVolume { .. }
                | JournalError::BadChecksum { .. }
                | JournalError::Damaged { .. }
                | JournalError::BrokenChain { .. }
                | JournalError::MissingSegment { .. }
        )
    }

    /// A record is missing that was seen before.
    pub(super) fn gone(lsn: Lsn) -> JournalError {
        let what = format!("record {lsn} was there before, and is not any more");
        JournalError::Damaged { segment: "the journal".to_owned(), offset: 0, what }
    }

    /// What decoding at a known place said, when torn bytes are no excuse there.
    pub(super) fn at(segment: &str, offset: u64, error: FormatError) -> JournalError {
        let segment = segment.to_owned();
        match error {
            FormatError::Version(version) => {
                JournalError::UnsupportedVersion { file: segment, version: version.into() }
            }
            FormatError::Features(features) => JournalError::UnsupportedFeatures { segment, features },
            FormatError::Unknown(what) => JournalError::UnsupportedRecord { segment, offset, what },
            FormatError::Torn(what) | FormatError::Malformed(what) => {
                JournalError::Damaged { segment, offset, what: what.to_owned() }
            }
        }
    }
}
