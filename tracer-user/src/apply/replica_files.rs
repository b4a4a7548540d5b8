use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::apply::{Checkpoint, CheckpointError};

/// Where the state of one of a journal's replicas is kept: `replica.checkpoint` and `replica.hashes` in the journal's directory; of
/// further ones `replica-2.checkpoint` and so on. Which replica's they are is said by the checkpoint, not by the number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaFiles {
    dir: PathBuf,
    /// From 1.
    number: u32,
}

/// A target as it is found at its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundTarget {
    /// Absolute.
    pub path: PathBuf,
    /// See `TargetWriter::identity_of`; `None` when nothing is there.
    pub identity: Option<String>,
}

const CHECKPOINT: &str = ".checkpoint";
const HASHES: &str = ".hashes";

impl ReplicaFiles {
    /// Those of the first replica, which most often is the only one.
    pub fn first(dir: &Path) -> ReplicaFiles {
        ReplicaFiles { dir: dir.to_owned(), number: 1 }
    }

    /// Those of a hash list, or a copy of it; what is called otherwise is taken for the first one's.
    pub fn of_hash_list(path: &Path) -> ReplicaFiles {
        let dir = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_suffix(HASHES).and_then(number_of).unwrap_or(1);
        ReplicaFiles { dir: dir.to_owned(), number }
    }

    /// Those in `dir` that have a checkpoint, the first ones first.
    pub fn all(dir: &Path) -> io::Result<Vec<ReplicaFiles>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.strip_suffix(CHECKPOINT)).and_then(number_of));
        }
        numbers.sort_unstable();
        Ok(numbers.into_iter().map(|number| ReplicaFiles { dir: dir.to_owned(), number }).collect())
    }

    /// Those of each of `targets`, and whether it is known, so that what is not there now may only be away.
    pub fn of_targets(dir: &Path, targets: &[FoundTarget]) -> io::Result<Vec<(ReplicaFiles, bool)>> {
        let known = ReplicaFiles::all(dir)?;
        let known: Vec<_> = known.iter().map(|files| (files.number, Checkpoint::read(files))).collect();
        let chosen = choose(&known, targets).into_iter();
        Ok(chosen.map(|(number, known)| (ReplicaFiles { dir: dir.to_owned(), number }, known)).collect())
    }

    /// What is known of the replicas that are none of these, as far as it can be read.
    pub fn of_others(dir: &Path, named: &[&ReplicaFiles]) -> Vec<Checkpoint> {
        let all = ReplicaFiles::all(dir).unwrap_or_default();
        let others = all.iter().filter(|files| !named.contains(files));
        others.filter_map(|files| Checkpoint::read(files).ok().flatten()).collect()
    }

    /// Those whose checkpoint speaks of this very target; the first ones whose checkpoint can't be read tell why.
    pub fn of_identity(
        dir: &Path,
        identity: &str,
    ) -> Result<Option<(ReplicaFiles, Checkpoint)>, CheckpointError> {
        let all = ReplicaFiles::all(dir).map_err(|source| CheckpointError::Io {
            what: "look for checkpoints in",
            path: dir.to_owned(),
            source,
        })?;
        let mut unreadable = None;
        for files in all {
            match Checkpoint::read(&files) {
                Ok(Some(checkpoint)) if checkpoint.target_identity == identity => {
                    return Ok(Some((files, checkpoint)));
                }
                Ok(_) => {}
                Err(error) => unreadable = unreadable.or(Some(error)),
            }
        }
        unreadable.map_or(Ok(None), Err)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn checkpoint(&self) -> PathBuf {
        self.dir.join(self.checkpoint_name())
    }

    pub fn hash_list(&self) -> PathBuf {
        self.dir.join(self.stem() + HASHES)
    }

    pub(super) fn checkpoint_name(&self) -> String {
        self.stem() + CHECKPOINT
    }

    fn stem(&self) -> String {
        match self.number {
            1 => "replica".to_owned(),
            number => format!("replica-{number}"),
        }
    }
}

fn number_of(stem: &str) -> Option<u32> {
    match stem.strip_prefix("replica")? {
        "" => Some(1),
        // As they are written: no sign, no leading zero.
        rest => {
            rest.strip_prefix('-')?.parse().ok().filter(|number| *number >= 2 && rest == format!("-{number}"))
        }
    }
}

type Known = (u32, Result<Option<Checkpoint>, CheckpointError>);
type Fits = fn(&Known, &FoundTarget) -> bool;

/// For each target the number of its files, and whether there were some. Pure.
///
/// What lies at a path may be another target than before, so the target itself counts first. What a damaged checkpoint spoke of
/// nobody knows: it is taken for that of a target that has none, unless there are more of these, as one of them may be new and hold
/// what is not to be overwritten. No number is given twice, nor one whose target is not named
/// this time: that may come back.
fn choose(known: &[Known], targets: &[FoundTarget]) -> Vec<(u32, bool)> {
    let mut chosen: Vec<Option<(u32, bool)>> = vec![None; targets.len()];
    let mut take = |fits: Fits, targets_max: usize| {
        if chosen.iter().filter(|chosen| chosen.is_none()).count() > targets_max {
            return;
        }
        for (at, target) in targets.iter().enumerate() {
            let is_free = |number| chosen.iter().flatten().all(|(taken, _)| *taken != number);
            let found = known.iter().find(|known| is_free(known.0) && fits(known, target));
            if let (None, Some((number, _))) = (chosen[at], found) {
                chosen[at] = Some((*number, true));
            }
        }
    };
    take(
        |known, target| {
            readable(known).is_some_and(|of| target.identity.as_ref() == Some(&of.target_identity))
        },
        usize::MAX,
    );
    take(
        |known, target| readable(known).is_some_and(|of| of.target_path == target.path.display().to_string()),
        usize::MAX,
    );
    take(|known, _| known.1.is_err(), known.iter().filter(|known| known.1.is_err()).count());
    let mut free = (1..).filter(|number| known.iter().all(|(known, _)| known != number));
    chosen
        .into_iter()
        .map(|chosen| {
            chosen.unwrap_or_else(|| (free.next().expect("there are more numbers than targets"), false))
        })
        .collect()
}

fn readable(known: &Known) -> Option<&Checkpoint> {
    known.1.as_ref().ok()?.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::VolumeId;

    type Case = (Vec<Known>, Vec<FoundTarget>, Vec<(u32, bool)>);

    fn known(number: u32, path: &str, identity: &str) -> Known {
        (number, Ok(Some(Checkpoint::fresh(VolumeId([1; 16]), Path::new(path), identity))))
    }

    fn damaged(number: u32) -> Known {
        (number, Err(CheckpointError::Damaged { path: "c".into(), what: "hash".into() }))
    }

    fn target(path: &str, identity: Option<&str>) -> FoundTarget {
        FoundTarget { path: path.into(), identity: identity.map(str::to_owned) }
    }

    #[test]
    fn each_target_has_its_own_files_whatever_its_place_and_its_path() {
        let (a, b, new) = (target("/a", Some("A")), target("/b", Some("B")), target("/c", Some("C")));
        let both = || [known(1, "/a", "A"), known(2, "/b", "B")];
        let cases: [Case; 11] = [
            (vec![], vec![a.clone(), b.clone()], vec![(1, false), (2, false)]),
            (both().into(), vec![b.clone(), a.clone()], vec![(2, true), (1, true)]),
            (both().into(), vec![b.clone()], vec![(2, true)]),
            // One that is not named this time keeps its files.
            (both().into(), vec![new.clone(), b.clone()], vec![(3, false), (2, true)]),
            (vec![known(2, "/b", "B")], vec![new.clone(), b.clone()], vec![(1, false), (2, true)]),
            // Disks that were given each other's names.
            (
                both().into(),
                vec![target("/a", Some("B")), target("/b", Some("A"))],
                vec![(2, true), (1, true)],
            ),
            (both().into(), vec![target("/a", Some("B")), target("/b", None)], vec![(2, true), (3, false)]),
            // Away, or another one at its path.
            (both().into(), vec![target("/a", None), b.clone()], vec![(1, true), (2, true)]),
            (both().into(), vec![target("/a", Some("C")), b.clone()], vec![(1, true), (2, true)]),
            (vec![damaged(1), known(2, "/b", "B")], vec![b.clone(), a.clone()], vec![(2, true), (1, true)]),
            (vec![damaged(1), known(2, "/b", "B")], vec![b, new, a], vec![(2, true), (3, false), (4, false)]),
        ];
        for (known, targets, expected) in cases {
            assert_eq!(choose(&known, &targets), expected, "{known:?} {targets:?}");
        }
    }

    #[test]
    fn files_are_found_by_their_names_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "replica-10",
            "replica",
            "replica-2",
            "replica-1",
            "replica-02",
            "replica-+3",
            "replica-x",
            "replicas",
        ] {
            fs::write(dir.path().join(format!("{name}.checkpoint")), "").unwrap();
        }
        let all = ReplicaFiles::all(dir.path()).unwrap();
        assert_eq!(all.iter().map(|files| files.number).collect::<Vec<_>>(), [1, 2, 10]);
        for files in all {
            assert_eq!(ReplicaFiles::of_hash_list(&files.hash_list()), files);
        }
        assert_eq!(ReplicaFiles::of_hash_list(Path::new("copied")), ReplicaFiles::first(Path::new(".")));
    }
}
