//! The target that is kept current.

use std::path::{Path, PathBuf};

use crate::journal::{Journal, JournalError};
use crate::model::{Lsn, Point};
use crate::tree::catalog::Catalog;
use crate::tree::checkpoint::TreeCheckpoint;
use crate::tree::replay::{TreeReplayError, bring, load, way};
use crate::tree::target::{Applied, TargetTree, TreeTargetError};

/// A target directory, its checkpoint, and what the journal says of it at the mark it is at.
pub struct TreeReplica {
    journal: Journal,
    dir: PathBuf,
    target: TargetTree,
    checkpoint: TreeCheckpoint,
    catalog: Catalog,
}

impl TreeReplica {
    /// The target of this journal, gone on with; or a new one, or one at a mark that the journal does not have any more, which has
    /// to be empty, or is emptied by force. One that was interrupted on its way to a mark is brought to it.
    pub fn open(dir: &Path, target: &Path, force: bool) -> Result<TreeReplica, TreeReplayError> {
        let journal = Journal::open(dir)?;
        let mut target = TargetTree::open(target)?;
        let io = |source| TreeTargetError::Io { what: "look at", name: Vec::new(), source };
        let identity = target.identity().map_err(io)?;
        let volume = journal.info().id;
        let known = TreeCheckpoint::read(dir)?
            .filter(|checkpoint| checkpoint.target_identity == identity && checkpoint.volume == volume);
        let known = match known {
            Some(checkpoint) => match load(&journal, checkpoint.applied) {
                Err(JournalError::Folded { .. }) => None,
                catalog => Some((checkpoint, catalog?)),
            },
            None => None,
        };
        let (checkpoint, catalog) = match known {
            Some(known) => known,
            None => {
                target.begin(force)?;
                let fresh = TreeCheckpoint::fresh(volume, target.path(), &identity);
                fresh.write(dir)?;
                (fresh, Catalog::default())
            }
        };
        let mut replica = TreeReplica { journal, dir: dir.to_owned(), target, checkpoint, catalog };
        if let Some(to) = replica.checkpoint.applying {
            let mark = replica.journal.points()?.into_iter().find(|point| point.lsn == to);
            replica.finish(to, mark.as_ref())?;
        }
        Ok(replica)
    }

    pub fn checkpoint(&self) -> &TreeCheckpoint {
        &self.checkpoint
    }

    /// After an error it has to be opened anew.
    pub fn bring_to(&mut self, mark: &Point) -> Result<Applied, TreeReplayError> {
        if mark.lsn <= self.checkpoint.applied {
            return Ok(Applied::default());
        }
        self.checkpoint.applying = Some(mark.lsn);
        self.checkpoint.taken_away = false;
        self.checkpoint.write(&self.dir)?;
        self.finish(mark.lsn, Some(mark))
    }

    fn finish(&mut self, to: Lsn, mark: Option<&Point>) -> Result<Applied, TreeReplayError> {
        let TreeReplica { journal, dir, target, checkpoint, catalog } = self;
        let applied = loop {
            let way = way(journal, checkpoint.applied, to)?;
            let taken_away = checkpoint.taken_away;
            let mut now_taken_away = || {
                checkpoint.taken_away = true;
                Ok(checkpoint.write(dir)?)
            };
            match bring(journal, &way, catalog, target, taken_away, &mut now_taken_away) {
                // It was pruned meanwhile: what was begun is gone on with, by another way.
                Err(TreeReplayError::Journal(_)) if !journal.is_current(&way)? => {
                    *catalog = load(journal, checkpoint.applied)?;
                }
                done => break done?,
            }
        };
        checkpoint.applied = to;
        checkpoint.mark = mark.map(|mark| mark.id);
        checkpoint.applying = None;
        checkpoint.taken_away = false;
        checkpoint.write(dir)?;
        Ok(applied)
    }
}
