//! From a journal to a target directory, from one mark to another.

use std::collections::BTreeSet;
use std::path::Path;

use crate::io::store::Store;
use crate::journal::{Journal, JournalError, Way};
use crate::model::{Lsn, NodeId, NodeKind, RecordBody, TreeChange};
use crate::tree::catalog::{Catalog, Difference};
use crate::tree::plan::plan;
use crate::tree::target::{Applied, TargetTree, TreeTargetError};

#[derive(Debug, thiserror::Error)]
pub enum TreeReplayError {
    #[error("the journal can't be read")]
    Journal(#[from] JournalError),
    #[error("the target can't be written")]
    Target(#[from] TreeTargetError),
    #[error("what is known of the target can't be kept")]
    Checkpoint(#[from] crate::tree::checkpoint::TreeCheckpointError),
}

/// What the journal says of the tree after the record `upto`.
///
/// # Errors
/// `Folded` when it can't say that any more, and all else that may be with a journal.
pub fn load<S: Store>(journal: &Journal<S>, upto: Lsn) -> Result<Catalog, JournalError> {
    loop {
        let way = journal.way(Lsn::ZERO, upto)?;
        let mut catalog = Catalog::default();
        match follow(journal, &way, &mut catalog) {
            // It was pruned meanwhile: there is another way.
            Err(_) if !journal.is_current(&way)? => {}
            followed => return followed.map(|_| catalog),
        }
    }
}

/// The way from one state to another, and from no other one.
///
/// # Errors
/// `Folded` when there is none.
pub(super) fn way<S: Store>(journal: &Journal<S>, from: Lsn, to: Lsn) -> Result<Way, JournalError> {
    let way = journal.way(from, to)?;
    match way.legs.first() {
        Some(leg) if leg.after != from => {
            Err(JournalError::Folded { wanted: from, upto: journal.folds()?.upto() })
        }
        _ => Ok(way),
    }
}

/// How many records there were.
pub(super) fn follow<S: Store>(
    journal: &Journal<S>,
    way: &Way,
    catalog: &mut Catalog,
) -> Result<u64, JournalError> {
    let mut records = 0;
    for leg in &way.legs {
        for record in journal.leg_records(leg)? {
            records += 1;
            match record?.body {
                RecordBody::Tree(change) => catalog.apply(&change),
                RecordBody::Mark(_) => catalog.mark(),
                _ => {}
            }
        }
    }
    Ok(records)
}

/// Writes the tree at a mark's record into a directory that is empty, or emptied by force.
pub fn replay_tree(journal: &Journal, to: Lsn, path: &Path, force: bool) -> Result<Applied, TreeReplayError> {
    let mut target = TargetTree::open(path)?;
    target.begin(force)?;
    loop {
        let way = way(journal, Lsn::ZERO, to)?;
        match bring(journal, &way, &mut Catalog::default(), &mut target, false, &mut || Ok(())) {
            // It was pruned meanwhile. What was written is no harm to what is written now.
            Err(TreeReplayError::Journal(_)) if !journal.is_current(&way)? => {}
            done => return done,
        }
    }
}

/// Brings a target from where the way begins, whose state the catalog is, to the mark at its end, durably. After an error the
/// catalog is worth nothing. `taken_away`: that part of it is durably done already; it is said when it is.
pub(super) fn bring(
    journal: &Journal,
    way: &Way,
    catalog: &mut Catalog,
    target: &mut TargetTree,
    taken_away: bool,
    now_taken_away: &mut dyn FnMut() -> Result<(), TreeReplayError>,
) -> Result<Applied, TreeReplayError> {
    catalog.since = Some(Difference::default());
    let records = follow(journal, way, catalog)?;
    let since = catalog.since.take().unwrap_or_default();
    let steps = plan(catalog, &since);
    let attributes = |node: NodeId| catalog.node(node).map(|node| node.attributes.clone());
    if !taken_away && !steps.take_away.is_empty() {
        steps.take_away.iter().try_for_each(|step| target.step(step, attributes))?;
        target.sync()?;
        now_taken_away()?;
    }
    steps.put.iter().try_for_each(|step| target.step(step, attributes))?;
    let names = (steps.take_away.len() + steps.put.len()) as u64;
    let mut applied = Applied { records, names, ..Applied::default() };
    let written = write_content(journal, way, catalog, target, &mut applied)?;
    set_attributes(catalog, &since, &written, target)?;
    target.sync()?;
    Ok(applied)
}

/// Says which files were written.
fn write_content(
    journal: &Journal,
    way: &Way,
    catalog: &Catalog,
    target: &mut TargetTree,
    applied: &mut Applied,
) -> Result<BTreeSet<NodeId>, TreeReplayError> {
    let mut written = BTreeSet::new();
    for leg in &way.legs {
        for record in journal.leg_records(leg)? {
            let RecordBody::Tree(change) = record?.body else { continue };
            let (TreeChange::Data { node, .. } | TreeChange::Hole { node, .. }) = change else { continue };
            // Of what is gone by then nothing is written.
            let Some(path) = catalog.path(node) else { continue };
            match change {
                TreeChange::Data { start, bytes, .. } => {
                    target.write(node, &path, start, &bytes)?;
                    applied.data_bytes += bytes.len() as u64;
                }
                TreeChange::Hole { range, .. } => {
                    applied.hole_bytes += target.punch(node, &path, range)?;
                }
                _ => {}
            }
            written.insert(node);
        }
    }
    Ok(written)
}

fn set_attributes(
    catalog: &Catalog,
    since: &Difference,
    written: &BTreeSet<NodeId>,
    target: &mut TargetTree,
) -> Result<(), TreeTargetError> {
    let mut dirs: BTreeSet<NodeId> = since.names.keys().map(|(dir, _)| *dir).collect();
    let mut set = |node: NodeId| match (catalog.node(node), catalog.path(node)) {
        (Some(known), Some(path)) => target.set(node, &path, &known.attributes),
        _ => Ok(()),
    };
    for node in since.told.union(written) {
        if catalog.node(*node).is_some_and(|node| node.kind() == NodeKind::Dir) {
            dirs.insert(*node);
        } else {
            set(*node)?;
        }
    }
    dirs.iter().try_for_each(|dir| set(*dir))?;
    target.unstage()?;
    let root = catalog.node(NodeId::ROOT);
    root.map_or(Ok(()), |root| target.set_times(&Vec::new(), &root.attributes))
}
