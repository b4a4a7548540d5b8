//! Writers of stamped files to a mounted file system, which say what was acknowledged as durable and when, and what of it
//! a restored file system holds.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::fcntl::OFlag;

use crate::pace::Pace;
use crate::stamp::SECTOR_BYTES;
use crate::{Operation, Presence, Random, Stamp, Ticks};

/// What an append adds.
const BLOCK_SECTORS: u64 = 8;
const BLOCK_BYTES: usize = 4096;
/// A writer ends when its file is this long, so that a small volume has room.
const APPENDS_MAX: u64 = 1500;
const REPLACED_SECTORS_MAX: u64 = 40;

/// What a writer does again and again. Each is acknowledged when it is durable by the rules of the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// Appends a block, fsync.
    AppendAndSync,
    /// Appends a block to a file opened with O_DSYNC.
    AppendSynced,
    /// Writes a new file, fsync, renames it over the old one, fsync of the directory.
    Replace,
}

impl Habit {
    const ALL: [Habit; 4] = [Habit::AppendAndSync, Habit::AppendSynced, Habit::Replace, Habit::Replace];
}

/// What one writer did to its file.
pub struct FileHistory {
    writer: u32,
    habit: Habit,
    operations: Vec<Operation>,
}

fn name(writer: u32) -> String {
    format!("stamped-{writer}")
}

/// A thread for each habit, each with a file of its own in `dir`.
pub fn write_files(dir: &Path, load: Duration, random: &mut Random) -> Result<Vec<FileHistory>> {
    for writer in (0..).zip(Habit::ALL).map(|(writer, _)| writer) {
        File::create_new(dir.join(name(writer)))?.sync_all()?;
    }
    File::open(dir)?.sync_all()?;
    let ticks = Arc::new(Ticks::default());
    let pace = Pace::start(load);
    let threads: Vec<_> = (0..)
        .zip(Habit::ALL)
        .map(|(writer, habit)| {
            let (dir, ticks, random) = (dir.to_owned(), Arc::clone(&ticks), Random::new(random.number()));
            thread::spawn(move || write_file(&dir, writer, habit, pace, &ticks, random))
        })
        .collect();
    let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a writer panicked"))?);
    joined.collect()
}

fn write_file(
    dir: &Path,
    writer: u32,
    habit: Habit,
    pace: Pace,
    ticks: &Ticks,
    mut random: Random,
) -> Result<FileHistory> {
    let path = dir.join(name(writer));
    let flags = if habit == Habit::AppendSynced { OFlag::O_DSYNC } else { OFlag::empty() };
    let mut file = File::options().append(true).custom_flags(flags.bits()).open(&path)?;
    let directory = File::open(dir)?;
    let mut operations = Vec::new();
    while pace.next(&mut random) && operations.len() as u64 <= APPENDS_MAX {
        let number = operations.len() as u64;
        let begun = ticks.now();
        let stamp = Stamp { writer, number, tick: begun.tick, sector: 0 };
        match habit {
            Habit::AppendAndSync | Habit::AppendSynced => {
                let stamp = Stamp { sector: number * BLOCK_SECTORS, ..stamp };
                file.write_all(&stamp.sectors(BLOCK_SECTORS))?;
                if habit == Habit::AppendAndSync {
                    file.sync_all()?;
                }
            }
            Habit::Replace => {
                let temporary = path.with_extension("new");
                let mut file = File::create(&temporary)?;
                file.write_all(&stamp.sectors(1 + random.below(REPLACED_SECTORS_MAX)))?;
                file.sync_all()?;
                std::fs::rename(&temporary, &path)?;
                directory.sync_all()?;
            }
        }
        operations.push(Operation { writer, number, begun, acknowledged: Some(ticks.now()) });
    }
    Ok(FileHistory { writer, habit, operations })
}

impl FileHistory {
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// What of its operations the files of `dir` hold. An error if there is anything that nobody wrote.
    pub fn find(&self, dir: &Path) -> Result<Vec<(Operation, Presence)>> {
        let path = dir.join(name(self.writer));
        let content = match std::fs::read(&path) {
            // Not made yet; if it was, its operations are missed.
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            content => content?,
        };
        let found = match self.habit {
            Habit::AppendAndSync | Habit::AppendSynced => self.appended(&content),
            Habit::Replace => self.replaced(&content),
        };
        found.with_context(|| format!("{} ({:?})", path.display(), self.habit))
    }

    fn appended(&self, content: &[u8]) -> Result<Vec<(Operation, Presence)>> {
        ensure!(content.len().is_multiple_of(BLOCK_BYTES), "a length of {} bytes", content.len());
        let blocks = content.len() / BLOCK_BYTES;
        ensure!(blocks <= self.operations.len(), "{blocks} blocks of {}", self.operations.len());
        let mut found: Vec<_> =
            self.operations.iter().map(|operation| (*operation, Presence::Absent)).collect();
        for (block, (operation, presence)) in content.chunks(BLOCK_BYTES).zip(&mut found) {
            // The file may have been made longer before the block was written.
            *presence = if block.iter().all(|byte| *byte == 0) {
                Presence::Torn
            } else {
                self.whole(block, operation.number, operation.number * BLOCK_SECTORS)?;
                Presence::Whole
            };
        }
        Ok(found)
    }

    fn replaced(&self, content: &[u8]) -> Result<Vec<(Operation, Presence)>> {
        // Empty before the first.
        let version = match content.chunks(SECTOR_BYTES).next() {
            None => None,
            Some(sector) => {
                let stamp = Stamp::of(sector).context("the first sector is none that was written")?;
                self.whole(content, stamp.number, 0)?;
                Some(stamp.number)
            }
        };
        let presence = |number| if version >= Some(number) { Presence::Whole } else { Presence::Absent };
        Ok(self.operations.iter().map(|operation| (*operation, presence(operation.number))).collect())
    }

    /// An error unless these are sectors of this operation, from `first` on.
    fn whole(&self, bytes: &[u8], number: u64, first: u64) -> Result<()> {
        let operation = usize::try_from(number).ok().and_then(|number| self.operations.get(number));
        let operation = operation.with_context(|| format!("an operation {number} that never was"))?;
        let wanted = Stamp { writer: self.writer, number, tick: operation.begun.tick, sector: first };
        let sectors = (bytes.len() / SECTOR_BYTES) as u64;
        ensure!(bytes == wanted.sectors(sectors), "other bytes than operation {number} wrote");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Moment, scratch};

    fn history(habit: Habit) -> FileHistory {
        let at = |tick| Moment { tick, time_ns: tick };
        let operation = |number| Operation {
            writer: 1,
            number,
            begun: at(2 * number),
            acknowledged: Some(at(2 * number + 1)),
        };
        FileHistory { writer: 1, habit, operations: (0..4).map(operation).collect() }
    }

    fn found(history: &FileHistory, content: &[u8]) -> Result<Vec<Presence>> {
        let dir = scratch()?;
        std::fs::write(dir.path().join(name(1)), content)?;
        Ok(history.find(dir.path())?.into_iter().map(|(_, presence)| presence).collect())
    }

    fn block(number: u64, first: u64, sectors: u64) -> Vec<u8> {
        Stamp { writer: 1, number, tick: 2 * number, sector: first }.sectors(sectors)
    }

    #[test]
    fn appended_blocks_are_whole_or_a_hole() -> Result<()> {
        use Presence::{Absent, Torn, Whole};
        let history = history(Habit::AppendSynced);
        assert_eq!(found(&history, &[])?, [Absent; 4]);
        let mut content = [block(0, 0, 8), block(1, 8, 8)].concat();
        assert_eq!(found(&history, &content)?, [Whole, Whole, Absent, Absent]);
        content.extend([0; BLOCK_BYTES]);
        assert_eq!(found(&history, &content)?, [Whole, Whole, Torn, Absent]);
        content.truncate(BLOCK_BYTES + 100);
        assert!(found(&history, &content).is_err());
        content.truncate(BLOCK_BYTES);
        content[700] ^= 1;
        assert!(found(&history, &content).is_err());
        assert!(found(&history, &block(1, 0, 8)).is_err());
        Ok(())
    }

    #[test]
    fn a_replaced_file_is_one_whole_version() -> Result<()> {
        use Presence::{Absent, Whole};
        let history = history(Habit::Replace);
        assert_eq!(found(&history, &[])?, [Absent; 4]);
        assert_eq!(found(&history, &block(2, 0, 3))?, [Whole, Whole, Whole, Absent]);
        assert!(found(&history, &[block(2, 0, 1), block(1, 1, 1)].concat()).is_err());
        assert!(found(&history, &block(4, 0, 1)).is_err());
        assert!(found(&history, &[0; 512]).is_err());
        Ok(())
    }
}
