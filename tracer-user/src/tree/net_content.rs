//! The bytes of files that records come to, by a scratch file.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rangemap::RangeMap;

use crate::io::store::Store;
use crate::journal::{Journal, JournalError, Take, Way, scratch_error};
use crate::model::{ByteRange, NodeId, RecordBody, TreeChange};
use crate::tree::catalog::{Catalog, Difference};

/// Files lie in the scratch file in pieces of this size, wherever there was room.
const PIECE_BYTES: u64 = 1 << 20;
/// Most ranges and pieces that are kept in memory, besides two for each inode, which take less than the catalog does. Of what is
/// more, a part is folded at a time, and the records are read as often.
const RANGES_MAX: usize = 1 << 19;

/// A byte of an inode, or the number of a piece of it.
type Key = (NodeId, u64);

const FIRST: Key = (NodeId(0), 0);
const LAST: Key = (NodeId(u64::MAX), u64::MAX);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Data,
    Hole,
}

/// A sparse file without a name, that is gone with its last user.
pub struct ScratchContent {
    file: File,
    dir: PathBuf,
    pub ranges_max: usize,
}

impl ScratchContent {
    pub fn open(dir: &Path) -> Result<ScratchContent, JournalError> {
        let file = tempfile::tempfile_in(dir).map_err(|error| scratch_error(dir, error))?;
        Ok(ScratchContent { file, dir: dir.to_owned(), ranges_max: RANGES_MAX })
    }

    /// Of the files that the catalog, the state at the end of the way, has: what was said last of each byte, in their order.
    pub fn fold<S: Store>(
        &mut self,
        journal: &Journal<S>,
        way: &Way,
        catalog: &Catalog,
        since: &Difference,
        take: Take<'_>,
    ) -> Result<(), JournalError> {
        let ranges_max = self.ranges_max + 2 * catalog.count();
        let mut window = FIRST..LAST;
        while window.start < LAST {
            self.empty()?;
            let mut gathered =
                Gathered { window, ranges: RangeMap::new(), pieces: HashMap::new(), free: Vec::new() };
            for leg in &way.legs {
                for record in journal.leg_records(leg)? {
                    let RecordBody::Tree(change) = record?.body else { continue };
                    if catalog.node(change.node()).is_some() {
                        self.gather(&mut gathered, &change)?;
                        gathered.narrow(ranges_max);
                    }
                }
            }
            self.hand_over(&gathered, since, take)?;
            window = gathered.window.end..LAST;
        }
        self.empty()
    }

    fn empty(&self) -> Result<(), JournalError> {
        self.file.set_len(0).map_err(|error| scratch_error(&self.dir, error))
    }

    fn gather(&self, gathered: &mut Gathered, change: &TreeChange) -> Result<(), JournalError> {
        let (node, range, content) = match change {
            TreeChange::Data { node, start, bytes } => {
                (*node, ByteRange::with_len(*start, bytes.len() as u64), Content::Data)
            }
            TreeChange::Hole { node, range } => (*node, *range, Content::Hole),
            TreeChange::Inode { .. } | TreeChange::Link { .. } | TreeChange::Unlink { .. } => return Ok(()),
        };
        let start = (node, range.start).max(gathered.window.start);
        let end = (node, range.end).min(gathered.window.end);
        if start >= end {
            return Ok(());
        }
        if let TreeChange::Data { bytes, .. } = change {
            for part in pieces(ByteRange::new(start.1, end.1)) {
                let at = |byte: u64| usize::try_from(byte - range.start).expect("records are short");
                let bytes = &bytes[at(part.start)..at(part.end)];
                let place = gathered.place(node, part.start);
                self.file.write_all_at(bytes, place).map_err(|error| scratch_error(&self.dir, error))?;
            }
        }
        gathered.ranges.insert(start..end, content);
        Ok(())
    }

    fn hand_over(&self, gathered: &Gathered, since: &Difference, take: Take<'_>) -> Result<(), JournalError> {
        for (range, content) in gathered.ranges.iter() {
            let (node, range) = (range.start.0, ByteRange::new(range.start.1, range.end.1));
            match content {
                // Of a file that was not there nothing else was said.
                Content::Hole if since.made.contains(&node) => {}
                Content::Hole => take(RecordBody::Tree(TreeChange::Hole { node, range }))?,
                Content::Data => {
                    for part in pieces(range) {
                        let mut bytes = vec![0; usize::try_from(part.len()).expect("1 MiB at most")];
                        let place = gathered.placed(node, part.start);
                        self.file
                            .read_exact_at(&mut bytes, place)
                            .map_err(|error| scratch_error(&self.dir, error))?;
                        take(RecordBody::Tree(TreeChange::Data { node, start: part.start, bytes }))?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// What records said of the bytes in a window.
struct Gathered {
    window: std::ops::Range<Key>,
    /// No range is of two inodes.
    ranges: RangeMap<Key, Content>,
    /// Which piece of the scratch file each piece of a file is.
    pieces: HashMap<Key, u64>,
    /// Pieces of the scratch file that are not used any more.
    free: Vec<u64>,
}

impl Gathered {
    /// Where in the scratch file a byte of a file is to lie.
    fn place(&mut self, node: NodeId, byte: u64) -> u64 {
        let next = (self.pieces.len() + self.free.len()) as u64;
        let free = &mut self.free;
        let piece =
            self.pieces.entry((node, byte / PIECE_BYTES)).or_insert_with(|| free.pop().unwrap_or(next));
        *piece * PIECE_BYTES + byte % PIECE_BYTES
    }

    fn placed(&self, node: NodeId, byte: u64) -> u64 {
        self.pieces[&(node, byte / PIECE_BYTES)] * PIECE_BYTES + byte % PIECE_BYTES
    }

    /// When it has become too much, leaves the second half to another time.
    fn narrow(&mut self, ranges_max: usize) {
        if self.ranges.len() + self.pieces.len() <= ranges_max {
            return;
        }
        let middle = if self.pieces.len() > self.ranges.len() {
            let mut keys: Vec<Key> =
                self.pieces.keys().map(|(node, piece)| (*node, piece * PIECE_BYTES)).collect();
            let half = keys.len() / 2;
            Some(*keys.select_nth_unstable(half).1)
        } else {
            self.ranges.iter().nth(self.ranges.len() / 2).map(|(range, _)| range.start)
        };
        let Some(middle) = middle.filter(|middle| *middle > self.window.start) else { return };
        self.ranges.remove(middle..LAST);
        self.window.end = middle;
        let free = &mut self.free;
        self.pieces.retain(|(node, piece), place| {
            let stays = (*node, *piece * PIECE_BYTES) < middle;
            if !stays {
                free.push(*place);
            }
            stays
        });
    }
}

/// Cut where pieces end.
fn pieces(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let end = (at / PIECE_BYTES + 1).saturating_mul(PIECE_BYTES).min(range.end);
        let piece = ByteRange { start: at, end };
        at = end;
        (piece.start < piece.end).then_some(piece)
    })
}
