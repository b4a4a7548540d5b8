//! What files held before they were rewritten: the replica is the volume as it was at a mark, a while ago.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::apply::{Checkpoint, ReplicaFiles};
use crate::files::{FsError, Samples, Volume};
use crate::model::Timestamp;
use crate::origin::{Comparison, Content, Rewritten};
use crate::service::looks::Haste;
use crate::service::progress::SharedProgress;

/// A replica that is being brought to a mark is waited for, so often …
const TRIES: usize = 10;
/// … so long.
const PAUSE: Duration = Duration::from_millis(500);
/// Read of a replica for one look: 16 files, their directories, and what the file system's own journal has to say.
const READ_BYTES_MAX: u64 = 16 << 20;

/// Of a volume.
pub struct Replicas {
    pub targets: Vec<(PathBuf, ReplicaFiles)>,
    pub progress: Arc<SharedProgress>,
}

/// For each file, `None` where it can't be said.
type Held = Vec<Option<Content>>;

impl Replicas {
    /// By the first replica that tells it of enough files; that of most, if none does.
    pub fn held_before(&self, files: &[Rewritten], haste: &Haste) -> Held {
        let count = |held: &Held| held.iter().flatten().count();
        let mut most = vec![None; files.len()];
        if files.is_empty() {
            return most;
        }
        for _ in 0..TRIES {
            let mut is_changing = false;
            for (index, (path, names)) in self.targets.iter().enumerate() {
                let Some(held) = self.at_rest(index, names, |mark| held_at(mark, path, files)) else {
                    is_changing = true;
                    continue;
                };
                if count(&held) > count(&most) {
                    most = held;
                }
                if Comparison::is_enough(count(&most)) {
                    return most;
                }
            }
            if !is_changing {
                break;
            }
            haste.pause(PAUSE);
        }
        most
    }

    /// What `read` finds on a replica that is at a mark of this time, before and after; `None` while it is brought to another one.
    fn at_rest(
        &self,
        index: usize,
        names: &ReplicaFiles,
        read: impl FnOnce(Timestamp) -> Held,
    ) -> Option<Held> {
        let Some(mark) = self.progress.get().targets[index].mark.clone() else { return Some(Held::new()) };
        // It says so before anything of a later mark is written there.
        let says = || Checkpoint::read(names).ok().flatten();
        let before = says().filter(|says| says.consistent && says.applied == mark.lsn)?;
        let held = read(mark.time);
        (says().as_ref() == Some(&before)).then_some(held)
    }
}

/// Of files that were changed first after the mark.
fn held_at(mark: Timestamp, replica: &Path, files: &[Rewritten]) -> Held {
    let mut samples = match Bytes::open(replica).map_err(cannot_read).and_then(Samples::open) {
        Ok(Some(samples)) => samples,
        Ok(None) => return Held::new(),
        Err(error) => {
            log::debug!(
                "{} tells not what files held before: {:#}",
                replica.display(),
                anyhow::Error::from(error)
            );
            return Held::new();
        }
    };
    let mut held = |file: &Rewritten| {
        let mut read = |path| samples.read(path, file.start(), file.len_max()).ok().flatten();
        let bytes = file.paths_before().find_map(&mut read);
        bytes.and_then(|bytes| Content::of(&bytes))
    };
    files.iter().map(|file| (mark < file.time).then(|| held(file)).flatten()).collect()
}

/// A replica, of which only so much is read.
struct Bytes {
    file: File,
    size_bytes: u64,
    left: u64,
}

impl Bytes {
    fn open(path: &Path) -> io::Result<Bytes> {
        let mut file = File::open(path)?;
        let size_bytes = file.seek(SeekFrom::End(0))?;
        Ok(Bytes { file, size_bytes, left: READ_BYTES_MAX })
    }
}

impl Volume for Bytes {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&mut self, start: u64, buffer: &mut [u8]) -> Result<(), FsError> {
        let too_much = || io::Error::new(io::ErrorKind::FileTooLarge, "it takes too much reading");
        let left = self.left.checked_sub(buffer.len() as u64).ok_or_else(too_much);
        self.left = left.map_err(cannot_read)?;
        self.file.read_exact_at(buffer, start).map_err(cannot_read)
    }
}

fn cannot_read(source: io::Error) -> FsError {
    FsError::Io { what: "read the replica".to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::vfs::{Named, VfsChange};
    use crate::model::{FileId, FileOp, Lsn, MarkId, Point, PointClass, Process, VolumeId};
    use crate::origin::{Bursts, Paths};
    use crate::service::progress::{Progress, TargetProgress};

    const MARK: Timestamp = Timestamp(90);

    /// A replica made by mkfs, at a mark, and what says so.
    fn replica(dir: &Path) -> (Replicas, Checkpoint) {
        let image = dir.join("image");
        std::fs::copy(format!("{}/../fuzz/corpus/ext4/plain", env!("CARGO_MANIFEST_DIR")), &image).unwrap();
        File::options().write(true).open(&image).unwrap().set_len(600 << 10).unwrap();
        let (id, lsn, class) = (MarkId(7), Lsn(5), PointClass::Fs);
        let mark = Point { id, lsn, time: MARK, class, label: String::new() };
        let mut progress = Progress { targets: vec![TargetProgress::default()], ..Progress::default() };
        progress.targets[0].mark = Some(mark);
        let mut checkpoint = Checkpoint::fresh(VolumeId([1; 16]), &image, "");
        (checkpoint.applied, checkpoint.consistent) = (lsn, true);
        let files = ReplicaFiles::first(dir);
        checkpoint.write(&files).unwrap();
        let progress = Arc::new(SharedProgress::new(progress));
        (Replicas { targets: vec![(image, files)], progress }, checkpoint)
    }

    /// Changed first at 85, 86 … 100.
    fn rewritten(path: &str) -> Vec<Rewritten> {
        let mut bursts = Bursts::default();
        let add = |n: u64| {
            let file = FileId { inode: n, generation: 1, dev: 7 };
            let (process, op, name) = (Process::default(), FileOp::Write, Named::No);
            let (seq, time_ns, detail, offset, length, tid) = (0, 0, 0, 0, None, 1);
            let change = VfsChange { seq, time_ns, op, detail, file, offset, length, process, tid, name };
            bursts.add(&change, &Paths { path: path.into(), ..Paths::default() }, Timestamp(n))
        };
        (1..=100).filter_map(add).next().unwrap().rewritten
    }

    fn hasty() -> Haste {
        Haste(true.into())
    }

    #[test]
    fn what_was_changed_first_after_the_mark_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let (replicas, _) = replica(dir.path());
        let held = replicas.held_before(&rewritten("/h"), &hasty());
        let told = |n: u64| (Timestamp(n) > MARK).then_some(Content::Readable);
        assert_eq!(held, (85..=100).map(told).collect::<Vec<_>>());
        for path in ["/none", "/d", "/d/none", "/h/none", "no path"] {
            assert_eq!(replicas.held_before(&rewritten(path), &hasty()), [None; 16], "{path}");
        }
    }

    #[test]
    fn a_replica_that_is_between_two_marks_tells_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (replicas, at_rest) = replica(dir.path());
        let (mut between, mut ahead) = (at_rest.clone(), at_rest.clone());
        (between.consistent, between.applying) = (false, Some(Lsn(9)));
        ahead.applied = Lsn(9);
        let files = &replicas.targets[0].1;
        for other in [between, ahead] {
            other.write(files).unwrap();
            assert_eq!(replicas.held_before(&rewritten("/h"), &hasty()), [None; 16]);
            at_rest.write(files).unwrap();
            assert!(replicas.held_before(&rewritten("/h"), &hasty()).iter().any(Option::is_some));
            // It begins while it is read.
            let begins = |_| {
                other.write(files).unwrap();
                vec![Some(Content::Readable)]
            };
            assert_eq!(replicas.at_rest(0, files, begins), None);
        }
    }

    #[test]
    fn what_is_no_ext4_or_takes_too_much_reading_tells_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (replicas, _) = replica(dir.path());
        let image = &replicas.targets[0].0;
        let mut bytes = Bytes::open(image).unwrap();
        bytes.left = 5000;
        assert!(bytes.read_at(0, &mut [0; 4096]).is_ok());
        assert!(bytes.read_at(0, &mut [0; 4096]).is_err());
        std::fs::write(image, vec![0; 600 << 10]).unwrap();
        assert_eq!(replicas.held_before(&rewritten("/h"), &hasty()), [None; 16]);
        std::fs::remove_file(image).unwrap();
        assert_eq!(replicas.held_before(&rewritten("/h"), &hasty()), [None; 16]);
    }
}
