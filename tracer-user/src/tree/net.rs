//! What a tree's records between two marks come to: how names and attributes differ, and the bytes of files that were said last.

use std::path::Path;

use crate::io::store::Store;
use crate::journal::{Journal, JournalError, NetEffect, Take};
use crate::model::{Attributes, Lsn, RecordBody, SourceInode, TreeChange};
use crate::tree::catalog::{Catalog, Difference};
use crate::tree::net_content::ScratchContent;
use crate::tree::replay::{follow, load, way};

/// Folds trees.
pub struct TreeNet {
    /// Of the mark that was come to last, as the next one mostly follows on it.
    known: Option<(Lsn, Catalog)>,
    content: ScratchContent,
}

impl TreeNet {
    /// In `dir`, which needs room for the content that the records of one mark write.
    pub fn open(dir: &Path) -> Result<TreeNet, JournalError> {
        Ok(TreeNet { known: None, content: ScratchContent::open(dir)? })
    }

    #[cfg(test)]
    pub fn with_ranges(mut self, ranges_max: usize) -> TreeNet {
        self.content.ranges_max = ranges_max;
        self
    }
}

impl NetEffect for TreeNet {
    fn net_effect<S: Store>(
        &mut self,
        journal: &Journal<S>,
        from: Lsn,
        to: Lsn,
        take: Take<'_>,
    ) -> Result<(), JournalError> {
        let mut catalog = match self.known.take() {
            Some((at, catalog)) if at == from => catalog,
            _ => load(journal, from)?,
        };
        let way = way(journal, from, to)?;
        let numbers_before = catalog.next();
        catalog.since = Some(Difference::default());
        follow(journal, &way, &mut catalog)?;
        let since = catalog.since.take().unwrap_or_default();
        names_and_attributes(&catalog, &since, &mut |change| take(RecordBody::Tree(change)))?;
        if let Some(last) = last_number(&catalog).filter(|_| catalog.next() > numbers_before) {
            take(RecordBody::Tree(last))?;
        }
        self.content.fold(journal, &way, &catalog, &since, take)?;
        self.known = Some((to, catalog));
        Ok(())
    }
}

/// What makes the catalog that it was before into this one. Inodes first; then no name is in the way of another one.
fn names_and_attributes<E>(
    catalog: &Catalog,
    since: &Difference,
    take: &mut dyn FnMut(TreeChange) -> Result<(), E>,
) -> Result<(), E> {
    for (id, node) in since.told.iter().filter_map(|id| Some((*id, catalog.node(*id)?))) {
        let attributes = Box::new(node.attributes.clone());
        take(TreeChange::Inode { node: id, attributes, source: node.source.clone() })?;
    }
    let mut changed: Vec<_> = since
        .names
        .iter()
        .map(|((dir, name), before)| (*dir, name, before.map(|(node, _)| node), catalog.entry(*dir, name)))
        // What was in a directory that is gone loses its name with it.
        .filter(|(dir, _, before, now)| before != now && catalog.node(*dir).is_some())
        .collect();
    changed.sort();
    for (dir, name, ..) in changed.iter().filter(|(_, _, before, _)| before.is_some()) {
        take(TreeChange::Unlink { dir: *dir, name: name.to_vec() })?;
    }
    for (dir, name, _, now) in changed {
        if let Some(node) = now {
            take(TreeChange::Link { dir, name: name.clone(), node })?;
        }
    }
    Ok(())
}

/// So that the number of an inode that came and went is not used again: one without a name, which is gone with the mark.
fn last_number(catalog: &Catalog) -> Option<TreeChange> {
    let node = catalog.last();
    let (attributes, source) = (Box::<Attributes>::default(), SourceInode::default());
    catalog.node(node).is_none().then_some(TreeChange::Inode { node, attributes, source })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::journal::{JournalOptions, PruneOptions, Retention, SyncPolicy, Way, Writer, prune_with};
    use crate::model::{ByteRange, Mark, NodeId, NodeKind, PointClass, Timestamp, VolumeId, VolumeInfo};
    use crate::tree::catalog::Node;
    use crate::tree::catalog::tests::{DIR, FILE, inode, some_change};

    const HOUR_NS: u64 = 3_600_000_000_000;
    const MIB: u64 = 1 << 20;

    type Bytes = BTreeMap<(NodeId, u64), u8>;

    /// What a tree is: all that its records say, but in which order names of one file came.
    #[derive(Clone, Debug, PartialEq)]
    struct Tree {
        nodes: BTreeMap<NodeId, Node>,
        next: NodeId,
        /// Those that are no zeros.
        bytes: Bytes,
    }

    impl Tree {
        fn of(catalog: &Catalog, bytes: &Bytes) -> Tree {
            let sorted = |(id, node): (NodeId, &Node)| {
                let mut node = node.clone();
                node.places.sort();
                (id, node)
            };
            let mut bytes = bytes.clone();
            bytes.retain(|(node, _), _| catalog.node(*node).is_some());
            Tree { nodes: catalog.nodes().map(sorted).collect(), next: catalog.next(), bytes }
        }
    }

    fn write(bytes: &mut Bytes, change: &TreeChange) {
        match change {
            TreeChange::Data { node, start, bytes: data } => {
                bytes.extend((*start..).zip(data).map(|(at, byte)| ((*node, at), *byte)));
            }
            TreeChange::Hole { node, range } => {
                bytes.retain(|(of, at), _| of != node || !(range.start..range.end).contains(at));
            }
            _ => {}
        }
    }

    fn follow_bytes(journal: &Journal, way: &Way, bytes: &mut Bytes) {
        for leg in &way.legs {
            for record in journal.leg_records(leg).unwrap() {
                if let RecordBody::Tree(change) = record.unwrap().body {
                    write(bytes, &change);
                }
            }
        }
    }

    struct History {
        dir: tempfile::TempDir,
        writer: Writer,
        catalog: Catalog,
        bytes: Bytes,
        now: u64,
        /// At each restorable mark.
        trees: BTreeMap<Lsn, Tree>,
    }

    impl History {
        fn new() -> History {
            let info = VolumeInfo {
                id: VolumeId([7; 16]),
                source: "/tree".into(),
                identity: VolumeInfo::TREE.to_owned() + "00",
                size_bytes: 0,
                sector_bytes: 512,
                created: Timestamp(0),
            };
            let dir = tempfile::tempdir_in("/dev/shm").unwrap();
            let writer = Writer::create(&dir.path().join("journal"), &info, options()).unwrap();
            let (catalog, bytes, trees) = (Catalog::default(), Bytes::new(), BTreeMap::new());
            let mut history = History { dir, writer, catalog, bytes, now: 1000 * HOUR_NS, trees };
            history.append(inode(1, DIR));
            history.mark(PointClass::Fs);
            history
        }

        fn append(&mut self, change: TreeChange) {
            self.catalog.apply(&change);
            write(&mut self.bytes, &change);
            self.writer.append(Timestamp(self.now), RecordBody::Tree(change)).unwrap();
        }

        fn mark(&mut self, class: PointClass) {
            self.now += HOUR_NS;
            self.catalog.mark();
            let mark = Mark { id: self.writer.next_mark(), class, label: String::new() };
            let lsn = self.writer.append(Timestamp(self.now), RecordBody::Mark(mark)).unwrap();
            self.writer.sync().unwrap();
            if class.restorable() {
                self.trees.insert(lsn, Tree::of(&self.catalog, &self.bytes));
            }
        }

        fn step(&mut self, (what, which, dir, name): (u8, usize, usize, u8)) {
            let files = || {
                let files = self.catalog.nodes().filter(|(_, node)| node.kind() == NodeKind::File);
                files.map(|(id, _)| id).collect::<BTreeSet<_>>()
            };
            let start = [0, 500, MIB - 20, 2 * MIB, 5 * MIB - 7][which % 5] + 50 * u64::from(name);
            let len = (dir % 40) as u64;
            match what {
                0..7 => some_change(&self.catalog, (what, which, dir, name))
                    .into_iter()
                    .for_each(|change| self.append(change)),
                7 => self.mark(PointClass::Fuzzy),
                8 | 9 => self.mark(PointClass::Fs),
                _ => {
                    let Some(node) = files().into_iter().nth(which % 7) else { return };
                    self.append(match what {
                        10 => TreeChange::Hole { node, range: ByteRange::with_len(start, 3 * len) },
                        11 => TreeChange::Hole { node, range: ByteRange::new(start, 1 << 63) },
                        12 => {
                            let attributes = Attributes { mode: FILE, size: start, ..Attributes::default() };
                            let source = SourceInode { number: 100 + node.0, ..SourceInode::default() };
                            TreeChange::Inode { node, attributes: Box::new(attributes), source }
                        }
                        _ => TreeChange::Data { node, start, bytes: vec![name | 1; dir % 40] },
                    });
                }
            }
        }

        fn dir(&self) -> std::path::PathBuf {
            self.dir.path().join("journal")
        }
    }

    fn options() -> JournalOptions {
        JournalOptions {
            segment_bytes_max: 2000,
            frame_bytes_max: 400,
            sync: SyncPolicy::Mark,
            zstd_level: 1,
        }
    }

    fn keep(marks: u64, daily: usize) -> PruneOptions {
        let retention = Retention {
            keep_all: Duration::ZERO,
            keep_marks: Duration::from_nanos(marks * HOUR_NS),
            hourly: 0,
            daily,
            weekly: 0,
            drop_labelled: false,
        };
        PruneOptions { retention, image_factor: 0, lazy: false, keep_from: None }
    }

    fn steps() -> impl Strategy<Value = Vec<(u8, usize, usize, u8)>> {
        prop::collection::vec((0..16u8, 0..50usize, 0..50usize, 0..8u8), 1..400)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Random histories, pruned again and again beside the writer, each time by another policy.
        #[test]
        fn every_mark_that_is_kept_is_the_same_tree_before_and_after(
            rounds in prop::collection::vec((steps(), 0u64..60, 0usize..4, 0u64..3, any::<bool>()), 1..4),
        ) {
            let mut history = History::new();
            for (steps, marks, daily, image_factor, lazy) in rounds {
                steps.into_iter().for_each(|step| history.step(step));
                history.mark(PointClass::Fs);
                let options = PruneOptions { image_factor, lazy, ..keep(marks, daily) };
                let mut net = TreeNet::open(&history.dir()).unwrap().with_ranges(3);
                let plan = prune_with(&history.dir(), &options, Timestamp(history.now), &mut net).unwrap();
                let journal = Journal::open(&history.dir()).unwrap();
                let kept: Vec<Lsn> =
                    journal.points().unwrap().iter().filter(|p| p.class.restorable()).map(|p| p.lsn).collect();
                for gone in &plan.dropped {
                    prop_assert!(matches!(load(&journal, gone.lsn), Err(JournalError::Folded { .. })), "{gone:?}");
                    history.trees.remove(&gone.lsn);
                }
                prop_assert_eq!(&kept, &history.trees.keys().copied().collect::<Vec<_>>());
                let mut before: Option<(Lsn, Bytes)> = None;
                for lsn in kept {
                    let wanted = &history.trees[&lsn];
                    let catalog = load(&journal, lsn).unwrap();
                    let mut bytes = Bytes::new();
                    follow_bytes(&journal, &journal.way(Lsn::ZERO, lsn).unwrap(), &mut bytes);
                    prop_assert_eq!(&Tree::of(&catalog, &bytes), wanted);
                    for (id, node) in catalog.nodes() {
                        prop_assert_eq!(catalog.of_inode(node.source.number), Some(id));
                    }
                    // And from the one before it.
                    if let Some((from, mut bytes)) = before {
                        follow_bytes(&journal, &way(&journal, from, lsn).unwrap(), &mut bytes);
                        prop_assert_eq!(&Tree::of(&catalog, &bytes), wanted);
                    }
                    before = Some((lsn, bytes));
                }
                journal.check(&mut |_, _| {}).unwrap();
            }
        }
    }

    #[test]
    fn what_came_and_went_takes_no_room_and_its_number_is_not_used_again() {
        let mut history = History::new();
        for round in 0..50u8 {
            let node = history.catalog.next();
            history.append(inode(node.0, FILE));
            history.append(TreeChange::Link { dir: NodeId::ROOT, name: b"temporary".into(), node });
            history.append(TreeChange::Data {
                node,
                start: 0,
                bytes: (0..1000).map(|at| (at * 7) as u8 ^ round).collect(),
            });
            history.append(TreeChange::Unlink { dir: NodeId::ROOT, name: b"temporary".into() });
            history.mark(PointClass::Fs);
        }
        let next = history.catalog.next();
        let as_volume = crate::journal::prune(&history.dir(), &keep(0, 0), Timestamp(history.now));
        assert!(matches!(as_volume, Err(JournalError::InvalidRecord(_))), "{as_volume:?}");
        let mut net = TreeNet::open(&history.dir()).unwrap();
        let plan = prune_with(&history.dir(), &keep(0, 0), Timestamp(history.now), &mut net).unwrap();
        assert!(plan.segments() > 5 && plan.dropped.len() > 40, "{plan:?}");
        let journal = Journal::open(&history.dir()).unwrap();
        let folded = journal.folds().unwrap();
        assert!(folded.folds.iter().map(|fold| fold.bytes).sum::<u64>() < 2000, "{folded:?}");
        assert_eq!(load(&journal, folded.upto()).unwrap().count(), 1);
        assert_eq!(load(&journal, journal.last_lsn().unwrap()).unwrap().next(), next);
    }
}
