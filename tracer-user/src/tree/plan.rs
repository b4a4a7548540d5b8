//! How the names of a target get from one mark to another, so that it can be begun again wherever it was interrupted. Pure.
//!
//! First what is to go or to move is taken away, what moves into the staging directory under its number; once that is durable,
//! what is new is made and what moves is put in its place. In the first part nothing is added, in the second nothing is taken
//! away. So a step that finds its work done knows that it was done by this very plan.

use std::collections::{HashMap, HashSet};

use crate::model::{NodeId, NodeKind};
use crate::tree::catalog::{Catalog, Difference, Place};

pub type Names = Vec<Vec<u8>>;

/// Paths are of the state at the time of the step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing there is as good.
    Remove { path: Names, is_dir: bool },
    /// Into the staging directory, unless it is there already.
    Stage { path: Names, node: NodeId },
    /// A new inode; one that is there is it.
    Make { path: Names, node: NodeId },
    /// Out of the staging directory; if it is not there, it is in its place.
    Place { path: Names, node: NodeId },
    /// Another name; one that is there is it.
    Link { from: From, path: Names },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    Path(Names),
    /// If it is not there any more, all its names are.
    Staged(NodeId),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub take_away: Vec<Step>,
    pub put: Vec<Step>,
}

/// `catalog` is the state to reach.
pub fn plan(catalog: &Catalog, since: &Difference) -> Plan {
    let now = |place: &Place| catalog.entry(place.0, &place.1);
    let changed: Vec<(&Place, Option<(NodeId, bool)>)> = since
        .names
        .iter()
        .filter(|(place, before)| before.map(|(node, _)| node) != now(place))
        .map(|(place, before)| (place, *before))
        .collect();
    // Where directories were that hang elsewhere, or nowhere, now.
    let were: HashMap<NodeId, &Place> = changed
        .iter()
        .filter_map(|(place, before)| before.filter(|(_, is_dir)| *is_dir).map(|(node, _)| (node, *place)))
        .collect();
    let other: HashSet<&Place> = changed.iter().map(|(place, _)| *place).collect();
    // A name that it had before and has still.
    let kept = |node: NodeId| {
        let node = catalog.node(node)?;
        node.places.iter().find(|place| !other.contains(place)).cloned()
    };
    let path_now = |place: &Place| {
        let mut path = catalog.path(place.0)?;
        path.push(place.1.clone());
        Some(path)
    };
    let mut staged = HashSet::new();
    let mut take_away = Vec::new();
    let mut removed: Vec<(Names, NodeId, bool)> = changed
        .iter()
        .filter_map(|(place, before)| {
            let (node, is_dir) = (*before)?;
            Some((path_before(catalog, &were, place)?, node, is_dir))
        })
        .collect();
    // The deepest first: a path is as it was until all below it is done. And always in the same order.
    removed.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));
    for (path, node, is_dir) in removed {
        let moves = catalog.node(node).is_some() && (is_dir || kept(node).is_none());
        if moves && staged.insert(node) {
            take_away.push(Step::Stage { path, node });
        } else {
            take_away.push(Step::Remove { path, is_dir });
        }
    }
    let mut added: Vec<(Names, NodeId)> =
        changed.iter().filter_map(|(place, _)| Some((path_now(place)?, now(place)?))).collect();
    let is_dir = |node: NodeId| catalog.node(node).is_some_and(|node| node.kind() == NodeKind::Dir);
    // Directories from the top down, then the rest.
    added.sort_by(|a, b| {
        is_dir(b.1).cmp(&is_dir(a.1)).then_with(|| a.0.len().cmp(&b.0.len())).then_with(|| a.0.cmp(&b.0))
    });
    let mut left: HashMap<NodeId, usize> = HashMap::new();
    for (_, node) in &added {
        *left.entry(*node).or_default() += 1;
    }
    let mut first: HashMap<NodeId, Names> = HashMap::new();
    let mut put = Vec::new();
    for (path, node) in added {
        let left = left.entry(node).or_default();
        *left -= 1;
        let step = if staged.contains(&node) {
            match *left {
                0 => Step::Place { path, node },
                _ => Step::Link { from: From::Staged(node), path },
            }
        } else if let Some(from) = kept(node).as_ref().and_then(path_now) {
            Step::Link { from: From::Path(from), path }
        } else if let Some(from) = first.get(&node) {
            Step::Link { from: From::Path(from.clone()), path }
        } else {
            first.insert(node, path.clone());
            Step::Make { path, node }
        };
        put.push(step);
    }
    Plan { take_away, put }
}

/// The path of an entry in the state before.
fn path_before(catalog: &Catalog, were: &HashMap<NodeId, &Place>, place: &Place) -> Option<Names> {
    let mut names = vec![place.1.clone()];
    let mut at = place.0;
    while at != NodeId::ROOT {
        let (dir, name) = match were.get(&at) {
            Some(place) => *place,
            None => catalog.node(at)?.places.first()?,
        };
        names.push(name.clone());
        at = *dir;
        // Deeper than any tree.
        if names.len() > 1 << 16 {
            return None;
        }
    }
    names.reverse();
    Some(names)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::tree::catalog::tests::{catalog, some_change};

    /// A file system in memory: what is at each path. What is staged is at a path that begins with an empty name.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    struct Disk(BTreeMap<Names, NodeId>);

    impl Disk {
        fn of(catalog: &Catalog) -> Disk {
            let mut disk = Disk::default();
            for (id, node) in catalog.nodes() {
                for (dir, name) in &node.places {
                    let mut path = catalog.path(*dir).expect("all hang on the root");
                    path.push(name.clone());
                    disk.0.insert(path, id);
                }
            }
            disk
        }

        fn staged(node: NodeId) -> Names {
            vec![Vec::new(), node.0.to_string().into_bytes()]
        }

        fn add(&mut self, path: &Names, node: NodeId) {
            let (_, dir) = path.split_last().unwrap();
            assert!(
                dir.is_empty() || dir == [Vec::<u8>::new()] || self.0.contains_key(dir),
                "{dir:?} is not there"
            );
            let old = self.0.insert(path.clone(), node);
            assert!(old.is_none_or(|old| old == node), "{path:?} is taken");
        }

        fn rename(&mut self, from: &Names, to: &Names) {
            let moved: Vec<Names> = self.0.keys().filter(|path| path.starts_with(from)).cloned().collect();
            for path in moved {
                let node = self.0.remove(&path).unwrap();
                self.add(&[to, &path[from.len()..]].concat(), node);
            }
        }

        fn step(&mut self, step: &Step) {
            match step {
                Step::Remove { path, .. } => {
                    self.0.remove(path);
                    assert!(!self.0.keys().any(|below| below.starts_with(path)), "{path:?} is not empty");
                }
                Step::Stage { path, node } => {
                    if !self.0.contains_key(&Disk::staged(*node)) {
                        assert!(self.0.get(path).is_none_or(|there| there == node));
                        self.rename(path, &Disk::staged(*node));
                    }
                }
                Step::Make { path, node } => self.add(path, *node),
                Step::Place { path, node } => self.rename(&Disk::staged(*node), path),
                Step::Link { from: From::Staged(node), path } => {
                    if self.0.contains_key(&Disk::staged(*node)) {
                        self.add(path, *node);
                    }
                }
                Step::Link { from: From::Path(from), path } => {
                    let node = self.0[from];
                    self.add(path, node);
                }
            }
        }
    }

    fn change(catalog: &mut Catalog, which: (u8, usize, usize, u8)) {
        match which.0 {
            3 => catalog.mark(),
            _ => some_change(catalog, which).iter().for_each(|change| catalog.apply(change)),
        }
    }

    fn run(disk: &mut Disk, plan: &Plan) {
        plan.take_away.iter().chain(&plan.put).for_each(|step| disk.step(step));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn wherever_it_is_interrupted_a_plan_begun_again_ends_at_the_tree(
            changes in prop::collection::vec((0..7u8, 0..50usize, 0..50usize, 0..4u8), 1..40),
        ) {
            let mut catalog = catalog();
            let before = Disk::of(&catalog);
            catalog.since = Some(Difference::default());
            changes.into_iter().for_each(|one| change(&mut catalog, one));
            catalog.mark();
            let since = catalog.since.take().unwrap();
            let (wanted, plan) = (Disk::of(&catalog), plan(&catalog, &since));
            for cut in 0..=plan.take_away.len() {
                let mut disk = before.clone();
                plan.take_away[..cut].iter().for_each(|step| disk.step(step));
                run(&mut disk, &plan);
                prop_assert_eq!(&disk, &wanted);
            }
            for cut in 0..=plan.put.len() {
                let mut disk = before.clone();
                plan.take_away.iter().chain(&plan.put[..cut]).for_each(|step| disk.step(step));
                plan.put.iter().for_each(|step| disk.step(step));
                prop_assert_eq!(&disk, &wanted);
            }
        }
    }
}
