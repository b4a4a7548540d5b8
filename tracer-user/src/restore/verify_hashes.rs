use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde::Serialize;

use crate::apply::hash_list::{HashListError, HashListReader};
use crate::apply::{Checkpoint, CheckpointError, ReplicaFiles};
use crate::io::{AlignedBuf, DirectFile};
use crate::model::{ByteRange, GranuleHash, Lsn, MarkId};
use crate::restore::VerifyProgress;
use crate::restore::digest::CHUNK_BYTES;
use crate::restore::verify::{Differing, VerifyError, WINDOW_BYTES, size_of};
use crate::target::TargetWriter;

/// What comparing a target with the hash list of a replica found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HashReport {
    /// No granule whose hash is known differs. It says nothing of `unknown_granules`.
    pub identical: bool,
    /// The target is the very one that the list was made for; otherwise maybe a copy of it.
    pub is_replica: bool,
    pub volume_bytes: u64,
    pub target_bytes: u64,
    pub granule_bytes: u64,
    /// Of granules whose hash is known.
    pub compared_bytes: u64,
    /// Granules whose hash is not known: nothing is said of them.
    pub unknown_granules: u64,
    pub unknown_bytes: u64,
    pub differing_bytes: u64,
    /// Where they differ, in granules joined where adjacent; the first 65536 of them.
    pub differing: Vec<ByteRange>,
    /// There are more ranges than are listed.
    pub more: bool,
    /// The last record that the replica held at the end of the comparison, and the mark it was, if it was at one.
    pub applied_lsn: Lsn,
    pub mark: Option<MarkId>,
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyHashesError {
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error(transparent)]
    List(#[from] HashListError),
    #[error("the list is of no use without its checkpoint")]
    Checkpoint(#[from] CheckpointError),
    #[error(
        "there is no {}: whether the list is true can't be told without it. Name the journal directory, or a copy of the \
         list beside a copy of the checkpoint, both called as they were", path.display()
    )]
    NoCheckpoint { path: PathBuf },
    #[error(
        "{} keeps several replicas, and {} is none of them: name the hash list of the one it is a copy of, such as {}",
        dir.display(), target.display(), list.display()
    )]
    WhichReplica { dir: PathBuf, target: PathBuf, list: PathBuf },
    #[error(
        "{} is not the list that the checkpoint beside it names: it is from another time. `afterwrite protect` begins a \
         new one", path.display()
    )]
    NotNamed { path: PathBuf },
    #[error(
        "the replica is amid an apply, and has been for {waited:?}: neither it nor its list stands for anything now. Wait \
         longer with --wait; if no `afterwrite protect` is running, start it: it finishes the apply"
    )]
    Applying { waited: Duration },
    #[error(
        "the replica changed again and again for {waited:?} while differing granules were looked at: wait longer with \
         --wait, or make fewer marks meanwhile"
    )]
    Moving { waited: Duration },
    #[error(
        "no hash is known yet, so nothing could be compared; a running `afterwrite protect` fills the list"
    )]
    NothingKnown,
}

/// How long to wait between two looks at the checkpoint.
const POLL: Duration = Duration::from_millis(20);

/// Compares every granule of `target` whose hash the list knows with it. `hashes` is the list, or the journal's directory: then it
/// is the list of this target, or the only one.
/// Reads only; `afterwrite protect` may be running meanwhile.
///
/// A granule that has its hash is as it should be whenever it was read. One that differs is looked at again between two
/// looks at the checkpoint that say the same, and that nothing is being applied; for that `wait` is the limit, each time.
pub fn verify_hashes(
    target: &Path,
    hashes: &Path,
    wait: Duration,
    progress: &mut dyn FnMut(VerifyProgress),
) -> Result<HashReport, VerifyHashesError> {
    let (files, path) = match hashes.is_dir() {
        true => {
            let files = files_of(target, hashes)?;
            (files.clone(), files.hash_list())
        }
        false => (ReplicaFiles::of_hash_list(hashes), hashes.to_owned()),
    };
    let list = HashListReader::open(&path)?;
    let granules = list.header().granules;
    let target_bytes = size_of(target)?;
    // It can be opened, or nothing is begun.
    drop(DirectFile::open(target).map_err(VerifyError::from)?);
    let comparison = Comparison { target, target_bytes, list, files, wait };
    let total_bytes = granules.volume_bytes();
    let mut differing = Differing::default();
    let (mut unknown_granules, mut unknown_bytes) = (0, 0);
    let mut checkpoint = comparison.at_rest()?;
    for window in ByteRange::new(0, total_bytes).chunks(WINDOW_BYTES) {
        let found = comparison.window(window, &mut checkpoint)?;
        for index in found.unknown {
            unknown_granules += 1;
            unknown_bytes += granules.range(index).len();
        }
        found.differing.into_iter().for_each(|index| differing.push(granules.range(index)));
        let differing_bytes = differing.bytes;
        progress(VerifyProgress { done_bytes: window.end, total_bytes, differing_bytes });
    }
    if unknown_bytes == total_bytes && total_bytes > 0 {
        return Err(VerifyHashesError::NothingKnown);
    }
    let identity = TargetWriter::identity_of(target).ok().flatten().unwrap_or_default();
    Ok(HashReport {
        identical: differing.bytes == 0,
        is_replica: identity == checkpoint.target_identity,
        volume_bytes: total_bytes,
        target_bytes,
        granule_bytes: granules.granule_bytes(),
        compared_bytes: total_bytes - unknown_bytes,
        unknown_granules,
        unknown_bytes,
        differing_bytes: differing.bytes,
        differing: differing.ranges,
        more: differing.more,
        applied_lsn: checkpoint.applied,
        mark: checkpoint.mark,
    })
}

/// Those of `target` in the journal's directory `dir`.
fn files_of(target: &Path, dir: &Path) -> Result<ReplicaFiles, VerifyHashesError> {
    let all = ReplicaFiles::all(dir).map_err(|source| HashListError::Io {
        what: "look for",
        path: dir.to_owned(),
        source,
    })?;
    match &all[..] {
        [] => return Ok(ReplicaFiles::first(dir)),
        [only] => return Ok(only.clone()),
        [..] => {}
    }
    let identity = TargetWriter::identity_of(target).ok().flatten().unwrap_or_default();
    match ReplicaFiles::of_identity(dir, &identity)? {
        Some((files, _)) => Ok(files),
        None => Err(VerifyHashesError::WhichReplica {
            dir: dir.to_owned(),
            target: target.to_owned(),
            list: all[0].hash_list(),
        }),
    }
}

struct Comparison<'a> {
    target: &'a Path,
    target_bytes: u64,
    list: HashListReader,
    /// Where its checkpoint is.
    files: ReplicaFiles,
    wait: Duration,
}

/// Granules by their numbers.
#[derive(Default)]
struct Found {
    unknown: Vec<u64>,
    differing: Vec<u64>,
}

impl Comparison<'_> {
    /// The checkpoint, once nothing is being applied.
    fn at_rest(&self) -> Result<Checkpoint, VerifyHashesError> {
        let begun = Instant::now();
        loop {
            let checkpoint = self.checkpoint()?;
            if checkpoint.applying.is_none() {
                return Ok(checkpoint);
            }
            if begun.elapsed() >= self.wait {
                return Err(VerifyHashesError::Applying { waited: self.wait });
            }
            std::thread::sleep(POLL);
        }
    }

    fn checkpoint(&self) -> Result<Checkpoint, VerifyHashesError> {
        let checkpoint = Checkpoint::read(&self.files)?
            .ok_or_else(|| VerifyHashesError::NoCheckpoint { path: self.files.checkpoint() })?;
        let header = self.list.header();
        if checkpoint.hash_list != Some(header.id) || checkpoint.volume != header.volume {
            return Err(VerifyHashesError::NotNamed { path: self.list.path().to_owned() });
        }
        Ok(checkpoint)
    }

    /// `checkpoint` is the last one that was seen at rest, and is so afterwards.
    fn window(&self, window: ByteRange, checkpoint: &mut Checkpoint) -> Result<Found, VerifyHashesError> {
        let begun = Instant::now();
        let granules = self.list.header().granules;
        let mut found = self.compare(granules.touched(window).collect())?;
        loop {
            let now = self.checkpoint()?;
            if found.differing.is_empty() || now == *checkpoint {
                return Ok(found);
            }
            if begun.elapsed() >= self.wait {
                return Err(VerifyHashesError::Moving { waited: self.wait });
            }
            *checkpoint = self.at_rest()?;
            let again = self.compare(std::mem::take(&mut found.differing))?;
            found.unknown.extend(again.unknown);
            found.differing = again.differing;
        }
    }

    /// Compares granules given in order.
    fn compare(&self, indexes: Vec<u64>) -> Result<Found, VerifyHashesError> {
        let granules = self.list.header().granules;
        let per_chunk = usize::try_from(CHUNK_BYTES / granules.granule_bytes()).unwrap_or(1).max(1);
        let compared: Vec<Result<Found, VerifyHashesError>> = indexes
            .par_chunks(per_chunk)
            .map_init(
                || (DirectFile::open(self.target), AlignedBuf::default()),
                |(file, buffer), indexes| {
                    let file = file.as_ref().map_err(|error| VerifyError::Read(error.clone()))?;
                    self.compare_piece(file, buffer, indexes)
                },
            )
            .collect();
        let mut all = Found::default();
        for found in compared {
            let found = found?;
            all.unknown.extend(found.unknown);
            all.differing.extend(found.differing);
        }
        Ok(all)
    }

    /// Reads no more than what has a hash to compare with.
    fn compare_piece(
        &self,
        file: &DirectFile,
        buffer: &mut AlignedBuf,
        indexes: &[u64],
    ) -> Result<Found, VerifyHashesError> {
        let granules = self.list.header().granules;
        let mut found = Found::default();
        for run in indexes.chunk_by(|index, next| index + 1 == *next) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let hashes = self.list.read(*first..last + 1)?;
            let wanted = ByteRange::new(granules.range(*first).start, granules.range(*last).end);
            let range = ByteRange::new(wanted.start, wanted.end.min(self.target_bytes).max(wanted.start));
            if hashes.iter().any(Option::is_some) {
                file.read_range(range, buffer).map_err(VerifyError::from)?;
            }
            for (index, hash) in run.iter().zip(hashes) {
                match hash {
                    None => found.unknown.push(*index),
                    Some(hash) if hash_in(buffer, range.start, granules.range(*index)) == Some(hash) => {}
                    Some(_) => found.differing.push(*index),
                }
            }
        }
        Ok(found)
    }
}

/// The hash of a granule in the bytes from `start` on; `None` if it is not all there.
fn hash_in(bytes: &[u8], start: u64, granule: ByteRange) -> Option<GranuleHash> {
    let at = |byte: u64| usize::try_from(byte - start).ok();
    Some(GranuleHash::of(bytes.get(at(granule.start)?..at(granule.end)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::Replica;
    use crate::apply::history::History;
    use std::fs;
    use std::os::unix::fs::FileExt;

    /// A replica of 2 granules, at its last mark, all hashes known.
    fn built(seed: u64) -> History {
        let history = History::new(seed, 2);
        let (mut replica, _) =
            Replica::open(&history.files(), &history.target("replica"), &history.info, false).unwrap();
        for point in history.points() {
            replica.advance(&history.journal(), point.lsn, Some(&point)).unwrap();
        }
        while replica.refresh_hashes(1) {}
        history
    }

    fn look(history: &History, target: &Path) -> Result<HashReport, VerifyHashesError> {
        verify_hashes(target, &history.dir(), Duration::ZERO, &mut |_| {})
    }

    fn flip(path: &Path, at: u64) {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }

    #[test]
    fn a_flipped_bit_is_found_in_its_granule() {
        let history = built(50);
        let replica = history.target("replica");
        let report = look(&history, &replica).unwrap();
        assert!(report.identical && report.is_replica && report.differing.is_empty());
        assert_eq!((report.compared_bytes, report.unknown_granules), (128 << 10, 0));
        assert_eq!(report.mark, Some(history.points().last().unwrap().id));
        flip(&replica, 100_000);
        let report = look(&history, &replica).unwrap();
        assert!(!report.identical);
        assert_eq!(report.differing, [ByteRange::new(64 << 10, 128 << 10)]);
        assert_eq!(report.differing_bytes, 64 << 10);
    }

    #[test]
    fn a_copy_is_compared_too_and_what_it_lacks_differs() {
        let history = built(51);
        let copy = history.target("copy");
        fs::copy(history.target("replica"), &copy).unwrap();
        let report = look(&history, &copy).unwrap();
        assert!(report.identical && !report.is_replica);
        fs::OpenOptions::new().write(true).open(&copy).unwrap().set_len(70_000).unwrap();
        let report = look(&history, &copy).unwrap();
        assert_eq!(report.differing, [ByteRange::new(64 << 10, 128 << 10)]);
    }

    #[test]
    fn a_granule_without_a_hash_is_counted_and_not_vouched_for() {
        let history = built(52);
        let list = history.files().hash_list();
        flip(&list, 4096 + 32 + 3);
        flip(&history.target("replica"), 100_000);
        let report = look(&history, &history.target("replica")).unwrap();
        assert!(report.identical);
        assert_eq!((report.unknown_granules, report.unknown_bytes, report.compared_bytes), (1, 65536, 65536));
        flip(&list, 4096 + 3);
        let nothing = look(&history, &history.target("replica"));
        assert!(matches!(nothing, Err(VerifyHashesError::NothingKnown)));
    }

    #[test]
    fn amid_an_apply_nothing_is_said() {
        let history = built(53);
        let checkpoint = Checkpoint::read(&history.files()).unwrap().unwrap();
        let mut amid = checkpoint.clone();
        amid.applying = Some(Lsn(1000));
        amid.write(&history.files()).unwrap();
        let refused = look(&history, &history.target("replica"));
        assert!(matches!(refused, Err(VerifyHashesError::Applying { .. })));
        // It ends while it is waited for.
        let report = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                checkpoint.write(&history.files()).unwrap();
            });
            let wait = Duration::from_secs(60);
            verify_hashes(&history.target("replica"), &history.dir(), wait, &mut |_| {})
        });
        assert!(report.unwrap().identical);
    }

    #[test]
    fn a_list_that_its_checkpoint_does_not_name_is_refused() {
        let history = built(54);
        let replica = history.target("replica");
        let mut checkpoint = Checkpoint::read(&history.files()).unwrap().unwrap();
        checkpoint.hash_list = None;
        checkpoint.write(&history.files()).unwrap();
        assert!(matches!(look(&history, &replica), Err(VerifyHashesError::NotNamed { .. })));
        fs::remove_file(history.files().checkpoint()).unwrap();
        assert!(matches!(look(&history, &replica), Err(VerifyHashesError::NoCheckpoint { .. })));
        fs::remove_file(history.files().hash_list()).unwrap();
        let missing = look(&history, &replica);
        assert!(matches!(missing, Err(VerifyHashesError::List(HashListError::Missing { .. }))));
    }

    #[test]
    fn beside_an_applier_at_work_no_difference_is_made_up() {
        let mut history = built(55);
        for _ in 0..150 {
            history.round();
        }
        history.sync();
        let (dir, target) = (history.dir(), history.target("replica"));
        let (mut replica, _) = Replica::open(&history.files(), &target, &history.info, false).unwrap();
        let (journal, points) = (history.journal(), history.points());
        let applied = replica.checkpoint().applied;
        std::thread::scope(|scope| {
            let applier = scope.spawn(|| {
                for point in points.iter().filter(|point| point.lsn > applied) {
                    replica.advance(&journal, point.lsn, Some(point)).unwrap();
                    while replica.refresh_hashes(1) {}
                }
            });
            let mut compared = 0;
            while !applier.is_finished() {
                match verify_hashes(&target, &dir, Duration::from_secs(60), &mut |_| {}) {
                    Ok(report) => assert!(report.identical, "{report:?}"),
                    Err(VerifyHashesError::NothingKnown) => {}
                    Err(error) => panic!("{error}"),
                }
                compared += 1;
            }
            assert!(compared > 5, "only {compared} comparisons");
        });
        let report = look(&history, &target).unwrap();
        assert!(report.identical && report.unknown_granules == 0);
    }
}
