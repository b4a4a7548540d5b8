use crate::apply::ReplicaFiles;
use crate::apply::hash_list::HashListReader;
use crate::model::GranuleHash;
use crate::target::TargetWriter;

/// Granules that are read of a target; a quick look, no proof.
const LOOKED_AT: u64 = 64;

/// What is said of such a target.
pub(super) const SOMETHING_ELSE: &str =
    "does not hold what was applied to it: it is another disk now, or somebody mounted it or wrote to it";

/// Whether a target holds something else than what was applied to it: another disk has its name since a boot, or somebody mounted it
/// or wrote to it. The checkpoint says that nothing is being applied. What can't be told is taken for no.
pub(super) fn holds_something_else(target: &TargetWriter, files: &ReplicaFiles) -> bool {
    let Ok(list) = HashListReader::of_replica(files) else { return false };
    let granules = list.header().granules;
    let count = granules.count();
    let looked_at = count.min(LOOKED_AT);
    let differs = |index: u64| {
        let known = list.read(index..index + 1).ok()?.pop()??;
        let range = granules.range(index);
        let mut bytes = vec![0; usize::try_from(range.len()).ok()?];
        target.read_at(range.start, &mut bytes).ok()?;
        Some(GranuleHash::of(&bytes) != known)
    };
    // The first one is among them: partition tables are there, and the super blocks that a mount writes to.
    (0..looked_at).any(|step| differs(step * count / looked_at).unwrap_or(false))
}
