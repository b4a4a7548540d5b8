//! Making a fold: the net effect of records, each byte of the volume once, in the order of the volume, up to each of some marks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rangemap::RangeMap;

use crate::io::store::Store;
use crate::journal::error::JournalError;
use crate::journal::folds::{Fold, fold_prefix};
use crate::journal::options::{JournalOptions, SyncPolicy};
use crate::journal::reader::Journal;
use crate::journal::record::VOLUME_END_MAX;
use crate::journal::walk::io_error;
use crate::journal::writer::Writer;
use crate::model::{ByteRange, Lsn, Mark, Point, RecordBody};

/// What the records between two marks come to: how, depends on what they are records of.
pub trait NetEffect {
    /// Hands over records that change the state after record `from`, 0 for nothing, to the one after the mark `to`; no marks.
    fn net_effect<S: Store>(
        &mut self,
        journal: &Journal<S>,
        from: Lsn,
        to: Lsn,
        take: Take<'_>,
    ) -> Result<(), JournalError>;
}

/// Whoever takes the records.
pub type Take<'a> = &'a mut dyn FnMut(RecordBody) -> Result<(), JournalError>;

/// Most ranges that are kept in memory, some 50 MB. Of a stretch that touches more, a part of the volume is folded at a time,
/// and the stretch is read as often.
pub(super) const RANGES_MAX: usize = 1 << 19;
const DATA_BYTES: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// In the scratch file, at the same place as on the volume.
    Data,
    Zero,
    Discard,
}

/// Folds volumes, by a sparse file without a name, that is gone with its last user.
pub struct Scratch {
    file: File,
    ranges_max: usize,
}

impl Scratch {
    /// In `dir`, which needs room for as much data as the records of one mark write to different places.
    pub fn open(dir: &Path) -> Result<Scratch, JournalError> {
        let file = tempfile::tempfile_in(dir).map_err(|error| scratch_error(dir, error))?;
        Ok(Scratch { file, ranges_max: RANGES_MAX })
    }

    #[cfg(test)]
    pub fn with_ranges(self, ranges_max: usize) -> Scratch {
        Scratch { ranges_max, ..self }
    }
}

/// Writes a fold of the history after `after`, 0 for nothing, up to the last of `marks`; durable when it returns. Whatever
/// files of that number there are must be gone.
pub fn write_fold<S: Store>(
    journal: &Journal<S>,
    number: u64,
    after: Lsn,
    marks: &[Point],
    net: &mut impl NetEffect,
) -> Result<Fold, JournalError> {
    let options = JournalOptions { sync: SyncPolicy::Mark, ..JournalOptions::default() };
    let part = journal.store().part(&fold_prefix(number));
    let mut writer = Writer::create_in(journal.store().part(&fold_prefix(number)), journal.info(), options)?;
    let mut from = after;
    for mark in marks {
        net.net_effect(journal, from, mark.lsn, &mut |body| writer.append(mark.time, body).map(drop))?;
        let body = Mark { id: mark.id, class: mark.class, label: mark.label.clone() };
        writer.append(mark.time, RecordBody::Mark(body))?;
        from = mark.lsn;
    }
    let hash = writer.finish()?;
    let mut bytes = 0;
    for name in part.list().map_err(|error| io_error(&part, "list", "", error))? {
        bytes += part.size(&name).map_err(|error| io_error(&part, "read", &name, error))?;
    }
    let marks = marks.iter().map(|mark| mark.lsn).collect();
    Ok(Fold { number, after, marks, bytes, hash })
}

impl NetEffect for Scratch {
    fn net_effect<S: Store>(
        &mut self,
        journal: &Journal<S>,
        from: Lsn,
        to: Lsn,
        take: Take<'_>,
    ) -> Result<(), JournalError> {
        if journal.info().is_tree() {
            let what = "records of a directory tree, folded as those of a volume".to_owned();
            return Err(JournalError::InvalidRecord(what));
        }
        net_effect(journal, from, to, self, take)
    }
}

/// What the records after `from` up to `to` come to.
fn net_effect<S: Store>(
    journal: &Journal<S>,
    from: Lsn,
    to: Lsn,
    scratch: &Scratch,
    take: Take<'_>,
) -> Result<(), JournalError> {
    let way = journal.way(from, to)?;
    let io = |error| scratch_error(journal.store().dir(), error);
    let mut window = ByteRange::new(0, VOLUME_END_MAX);
    while !window.is_empty() {
        let mut contents: RangeMap<u64, Content> = RangeMap::new();
        scratch.file.set_len(0).map_err(io)?;
        for leg in &way.legs {
            for record in journal.leg_records(leg)? {
                let body = record?.body;
                let Some(range) = body.content_range() else { continue };
                let Some(part) = range.intersect(window) else { continue };
                let content = match &body {
                    RecordBody::Zero(_) => Content::Zero,
                    RecordBody::Discard(_) => Content::Discard,
                    RecordBody::Data { bytes, .. } => {
                        let at = |byte: u64| usize::try_from(byte - range.start).expect("records are short");
                        let bytes = &bytes[at(part.start)..at(part.end)];
                        scratch.file.write_all_at(bytes, part.start).map_err(io)?;
                        Content::Data
                    }
                    RecordBody::Mark(_)
                    | RecordBody::Gap(_)
                    | RecordBody::Origin(_)
                    | RecordBody::Tree(_) => continue,
                };
                contents.insert(part.start..part.end, content);
                if contents.len() > scratch.ranges_max
                    && let Some((middle, _)) = contents.iter().nth(scratch.ranges_max / 2)
                {
                    window.end = middle.start;
                    contents.remove(window.end..VOLUME_END_MAX);
                }
            }
        }
        for (range, content) in contents.iter() {
            let range = ByteRange::new(range.start, range.end);
            match content {
                Content::Zero => take(RecordBody::Zero(range))?,
                Content::Discard => take(RecordBody::Discard(range))?,
                Content::Data => {
                    for piece in range.chunks(DATA_BYTES) {
                        let mut bytes = vec![0; usize::try_from(piece.len()).expect("1 MiB at most")];
                        scratch.file.read_exact_at(&mut bytes, piece.start).map_err(io)?;
                        take(RecordBody::Data { start: piece.start, bytes })?;
                    }
                }
            }
        }
        window = ByteRange::new(window.end, VOLUME_END_MAX);
    }
    scratch.file.set_len(0).map_err(io)
}

/// Of a file that is written to for folding.
pub fn scratch_error(dir: &Path, source: io::Error) -> JournalError {
    match source.kind() {
        io::ErrorKind::StorageFull => JournalError::NoSpace { dir: dir.to_owned(), source },
        _ => JournalError::Io { action: "fold with a scratch file in", path: dir.to_owned(), source },
    }
}
