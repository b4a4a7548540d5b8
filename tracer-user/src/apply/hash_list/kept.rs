use std::time::{Duration, Instant};

use crate::apply::ReplicaFiles;
use crate::apply::hash_list::format::GRANULES_MAX;
use crate::apply::hash_list::list::{HashList, new_id, target_hash};
use crate::apply::hash_list::{HashListError, HashListHeader, HashListId};
use crate::model::{Granules, VolumeId};
use crate::target::{Op, TargetWriter};

/// A list that could not be written is begun anew after so long.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// The hash list of a replica, or none: whatever goes wrong with it, the replica goes on without.
pub(in crate::apply) struct KeptHashes {
    list: Option<HashList>,
    /// How a list is begun; `None` when there is to be none.
    plan: Option<Plan>,
}

struct Plan {
    files: ReplicaFiles,
    header: HashListHeader,
    tried: Instant,
}

impl KeptHashes {
    /// Of a target that has no list.
    pub(in crate::apply) fn none() -> KeptHashes {
        KeptHashes { list: None, plan: None }
    }

    #[cfg(test)]
    pub(in crate::apply) fn over(list: HashList) -> KeptHashes {
        KeptHashes { list: Some(list), plan: None }
    }

    /// The list of `target`, which is the replica of `volume`: the one numbered `named` if the checkpoint names
    /// one and it can be used, else a new one.
    pub(in crate::apply) fn open(
        files: &ReplicaFiles,
        volume: VolumeId,
        target: &TargetWriter,
        named: Option<HashListId>,
    ) -> KeptHashes {
        let granules = Granules::of_volume(target.size_bytes());
        if granules.count() > GRANULES_MAX {
            log::warn!("the volume is too large for a hash list: comparisons will read the replica");
            return KeptHashes::none();
        }
        let header = |id| HashListHeader { volume, id, granules, target: target_hash(target.identity()) };
        let list = named.and_then(|id| match HashList::open(files, header(id)) {
            Ok(list) => Some(list),
            Err(error) => {
                log::warn!("{}; until the new one is filled, comparisons read the replica", told(&error));
                None
            }
        });
        let plan = Plan { files: files.clone(), header: header(HashListId(0)), tried: Instant::now() };
        let mut kept = KeptHashes { list, plan: Some(plan) };
        if kept.list.is_none() {
            kept.begin();
        }
        kept
    }

    /// What the checkpoint has to name.
    pub(in crate::apply) fn id(&self) -> Option<HashListId> {
        self.list.as_ref().map(|list| list.header().id)
    }

    /// Begins a new list if the last one was given up some time ago. The caller then writes a checkpoint before it
    /// changes the target.
    pub(in crate::apply) fn retry(&mut self) {
        let due = self.plan.as_ref().is_some_and(|plan| plan.tried.elapsed() >= RETRY_AFTER);
        if self.list.is_none() && due {
            self.begin();
        }
    }

    /// `op` is being done to the target.
    pub(in crate::apply) fn touch(&mut self, op: Op<'_>) {
        self.with(|list| list.touch(op));
    }

    /// What was touched is durably so, or `id` says that there is no list.
    pub(in crate::apply) fn sync(&mut self) {
        self.with(HashList::sync);
    }

    /// See `Replica::refresh_hashes`.
    pub(in crate::apply) fn refresh(&mut self, target: &TargetWriter, granules_max: usize) -> bool {
        self.with(|list| list.refresh(target, granules_max)).unwrap_or(false)
    }

    fn begin(&mut self) {
        let Some(plan) = &mut self.plan else { return };
        plan.tried = Instant::now();
        let path = plan.files.hash_list();
        let created = new_id()
            .map_err(|source| HashListError::Io { what: "number", path: path.clone(), source })
            .and_then(|id| HashList::create(&plan.files, HashListHeader { id, ..plan.header }));
        match created {
            Ok(list) => {
                log::debug!("began the hash list {}", path.display());
                self.list = Some(list);
            }
            Err(error) => log::warn!("{}; comparisons will read the replica", told(&error)),
        }
    }

    /// After an error the list is given up: what it says is not known any more.
    fn with<T>(&mut self, run: impl FnOnce(&mut HashList) -> std::io::Result<T>) -> Option<T> {
        let done = run(self.list.as_mut()?);
        done.inspect_err(|error| {
            log::warn!(
                "the hash list can't be written and is given up, comparisons will read the replica: {error}"
            );
            self.list = None;
        })
        .ok()
    }
}

/// The error and its cause in a line.
fn told(error: &HashListError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
