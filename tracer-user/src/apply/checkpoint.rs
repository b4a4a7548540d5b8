use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::apply::ReplicaFiles;
use crate::apply::hash_list::HashListId;
use crate::io::store::{DirStore, Store};
use crate::model::{Lsn, MarkId, VolumeId};

/// What is known for sure of a replica: the file `replica.checkpoint` in its journal's directory (`ReplicaFiles` has its name).
///
/// A TOML file for people, whose last line `blake3 = "…"` is the hash of every byte before that line. It is replaced as
/// a whole (written beside, synced, renamed, directory synced), so it is the old one or the new one, never a mixture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    pub(super) version: u32,
    /// The volume whose records were applied.
    pub volume: VolumeId,
    /// The target as it was named, for people; `target_identity` decides.
    pub target_path: String,
    /// See `TargetWriter::identity`.
    pub target_identity: String,
    /// Every record up to this one is on the target, and synced.
    pub applied: Lsn,
    /// Applying up to this record was begun, or taking back what up to it had been applied: records after `applied` may be on
    /// the target in part, and where they are not, it may hold what older records say. They must be applied up to here before
    /// the target is at any point, or taken back.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub applying: Option<Lsn>,
    /// The target equals the source at a mark (then `applied` is that mark's LSN).
    pub consistent: bool,
    /// The mark it equals.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mark: Option<MarkId>,
    /// The hash list that goes with it; any other one is worth nothing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hash_list: Option<HashListId>,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It was cut, edited or damaged: what it says cannot be believed.
    #[error("{} is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: String },
    #[error("{} has version {version}, and this afterwrite knows {VERSION}; use the newer afterwrite", path.display())]
    UnsupportedVersion { path: PathBuf, version: u32 },
    #[error("cannot {what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

const VERSION: u32 = 2;
/// Version 1 named no hash list.
const VERSION_MIN: u32 = 1;
const HASH_KEY: &str = "blake3 = \"";
/// Many times what a checkpoint needs; a longer file is none.
const FILE_BYTES_MAX: usize = 64 << 10;

impl Checkpoint {
    /// Of a replica that holds nothing of the journal yet.
    pub fn fresh(volume: VolumeId, target_path: &Path, target_identity: &str) -> Checkpoint {
        Checkpoint {
            version: VERSION,
            volume,
            target_path: target_path.display().to_string(),
            target_identity: target_identity.to_owned(),
            applied: Lsn::ZERO,
            applying: None,
            consistent: false,
            mark: None,
            hash_list: None,
        }
    }

    /// The last record that may be on the target, in part at least.
    pub fn begun(&self) -> Lsn {
        self.applying.map_or(self.applied, |applying| applying.max(self.applied))
    }

    /// Reads a replica's checkpoint; `None` when there is none. Writes nothing.
    pub fn read(files: &ReplicaFiles) -> Result<Option<Checkpoint>, CheckpointError> {
        Checkpoint::read_in(&DirStore::open(files.dir()), &files.checkpoint_name())
    }

    fn read_in<S: Store>(store: &S, name: &str) -> Result<Option<Checkpoint>, CheckpointError> {
        let path = store.dir().join(name);
        let io_error = |source| CheckpointError::Io { what: "read", path: path.clone(), source };
        // In one go: the file is replaced while others read it.
        let mut bytes = vec![0; FILE_BYTES_MAX + 1];
        let count = match store.read_at(name, 0, &mut bytes) {
            Ok(count) if count > FILE_BYTES_MAX => {
                let what = format!("it is longer than {FILE_BYTES_MAX} bytes");
                return Err(CheckpointError::Damaged { path, what });
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(error)),
        };
        match Checkpoint::decode(&bytes[..count]) {
            Ok(checkpoint) => Ok(Some(checkpoint)),
            Err(Undecodable::Version(version)) => Err(CheckpointError::UnsupportedVersion { path, version }),
            Err(Undecodable::Damaged(what)) => Err(CheckpointError::Damaged { path, what }),
        }
    }

    /// Replaces a replica's checkpoint; durable when it returns. After an error it is the old one or this one.
    pub fn write(&self, files: &ReplicaFiles) -> Result<(), CheckpointError> {
        self.write_in(&mut DirStore::open(files.dir()), &files.checkpoint_name())
    }

    fn write_in<S: Store>(&self, store: &mut S, file_name: &str) -> Result<(), CheckpointError> {
        let new_name = format!("{file_name}.new");
        let io_error = |what, name: &str| {
            let path = store.dir().join(name);
            move |source| CheckpointError::Io { what, path, source }
        };
        let [encode, replace, sync_dir] =
            ["encode", "replace", "sync the directory of"].map(|what| io_error(what, file_name));
        let [create, write, sync] = ["create", "write", "sync"].map(|what| io_error(what, &new_name));
        let text = self.encode().map_err(encode)?;
        match store.create(&new_name) {
            // Of a write that failed. The same file, emptied: whatever it held, none of it is in the way.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => store.truncate(&new_name, 0),
            other => other,
        }
        .map_err(create)?;
        store.append(&new_name, text.as_bytes()).map_err(write)?;
        store.sync(&new_name).map_err(sync)?;
        store.rename(&new_name, file_name).map_err(replace)?;
        store.sync_dir().map_err(sync_dir)
    }

    pub(super) fn encode(&self) -> io::Result<String> {
        let mut text = "# What afterwrite knows of the replica of this journal. Do not edit: without it the replica is\n\
                        # rebuilt from the journal's first record.\n"
            .to_owned();
        text += &toml::to_string(self).map_err(io::Error::other)?;
        let hash = blake3::hash(text.as_bytes());
        Ok(text + HASH_KEY + &hash.to_hex() + "\"\n")
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Checkpoint, Undecodable> {
        let damaged = |what: &str| Undecodable::Damaged(what.to_owned());
        let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is not text"))?;
        let at = text.rfind(HASH_KEY).ok_or_else(|| damaged("its last line, the hash, is missing"))?;
        let (body, hash) = text.split_at(at);
        if hash[HASH_KEY.len()..] != format!("{}\"\n", blake3::hash(body.as_bytes()).to_hex()) {
            return Err(damaged("its hash does not match its content"));
        }
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let version =
            toml::from_str::<Version>(body).map_err(|e| Undecodable::Damaged(e.to_string()))?.version;
        if !(VERSION_MIN..=VERSION).contains(&version) {
            return Err(Undecodable::Version(version));
        }
        let read: Checkpoint = toml::from_str(body).map_err(|e| Undecodable::Damaged(e.to_string()))?;
        // As it will be written.
        Ok(Checkpoint { version: VERSION, ..read })
    }
}

pub(super) enum Undecodable {
    Damaged(String),
    Version(u32),
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::io::store::faulty::{Fault, FaultyStore};

    const NAME: &str = "replica.checkpoint";

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            applied: Lsn(7),
            applying: Some(Lsn(u64::MAX >> 1)),
            consistent: true,
            mark: Some(MarkId(3)),
            ..Checkpoint::fresh(VolumeId([0xab; 16]), Path::new("/backup/a \"b\"\n.img"), "file:1:2")
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let files = ReplicaFiles::first(dir.path());
        assert!(Checkpoint::read(&files).unwrap().is_none());
        for checkpoint in [checkpoint(), Checkpoint { applying: None, mark: None, ..checkpoint() }] {
            checkpoint.write(&files).unwrap();
            assert_eq!(Checkpoint::read(&files).unwrap(), Some(checkpoint));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let whole = checkpoint().encode().unwrap().into_bytes();
        for len in 0..whole.len() {
            assert!(
                matches!(Checkpoint::decode(&whole[..len]), Err(Undecodable::Damaged(_))),
                "cut at {len}"
            );
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                assert!(Checkpoint::decode(&bytes).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_later_version_is_not_called_damage() {
        for version in [0, 3] {
            let later = Checkpoint { version, ..checkpoint() }.encode().unwrap();
            let decoded = Checkpoint::decode(later.as_bytes());
            assert!(matches!(decoded, Err(Undecodable::Version(found)) if found == version));
        }
    }

    #[test]
    fn a_checkpoint_that_cannot_be_written_leaves_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let files = ReplicaFiles::first(dir.path());
        checkpoint().write(&files).unwrap();
        fs::create_dir(dir.path().join("replica.checkpoint.new")).unwrap();
        let next = Checkpoint { applied: Lsn(u64::MAX), ..checkpoint() };
        assert!(matches!(next.write(&files), Err(CheckpointError::Io { what: "create", .. })));
        assert_eq!(Checkpoint::read(&files).unwrap(), Some(checkpoint()));
        fs::remove_dir(dir.path().join("replica.checkpoint.new")).unwrap();
        next.write(&files).unwrap();
        assert_eq!(Checkpoint::read(&files).unwrap(), Some(next), "the highest LSN fits");
    }

    /// Checkpoints as a replica writes them, one after the other, of different lengths.
    fn series() -> Vec<Checkpoint> {
        let one = |at: u64| Checkpoint {
            applied: Lsn(at),
            applying: (at % 2 == 1).then_some(Lsn(at << 40)),
            target_path: "x".repeat(at as usize * 37 % 200),
            ..checkpoint()
        };
        (1..=6).map(one).collect()
    }

    /// Writes the series until something fails; returns how many were acknowledged.
    fn write_series(store: &FaultyStore) -> usize {
        series().iter().take_while(|next| next.write_in(&mut store.clone(), NAME).is_ok()).count()
    }

    /// The place in the series of what is there, 0 for nothing.
    fn found(store: &FaultyStore, context: &str) -> usize {
        match Checkpoint::read_in(store, NAME) {
            Ok(None) => 0,
            Ok(Some(found)) => {
                1 + series().iter().position(|one| *one == found).unwrap_or_else(|| panic!("{context}"))
            }
            Err(error) => panic!("{context}: {error}"),
        }
    }

    #[test]
    fn whatever_fails_and_when_the_checkpoint_is_the_last_one_acknowledged_or_the_next() {
        let good = FaultyStore::new(64);
        assert_eq!(write_series(&good), series().len());
        let (mut old, mut new) = (0, 0);
        for page_bytes in [16, 64, 4096] {
            for at in 0..good.operations() {
                for fault in [Fault::PowerCut, Fault::Eio, Fault::ShortWrite, Fault::NoSpace] {
                    for seed in 0..10 {
                        let context = format!("{fault:?} at {at}, page {page_bytes}, seed {seed}");
                        let mut store = FaultyStore::new(page_bytes);
                        store.fail_at(at, fault, seed);
                        let acknowledged = write_series(&store);
                        assert!(acknowledged < series().len(), "{context}");
                        if !store.is_dead() {
                            // The same process goes on, and the power may go in that.
                            let there = found(&store, &context);
                            assert!((acknowledged..=acknowledged + 1).contains(&there), "{context}: {there}");
                            store.fail_at(store.operations() + seed, Fault::PowerCut, seed);
                            if series()[acknowledged].write_in(&mut store, NAME).is_ok() {
                                let left = found(&store.after_power_cut(seed), &context);
                                assert_eq!(left, acknowledged + 1, "{context}");
                            }
                        }
                        store = store.after_power_cut(seed);
                        let left = found(&store, &context);
                        assert!((acknowledged..=acknowledged + 1).contains(&left), "{context}: {left}");
                        *(if left == acknowledged { &mut old } else { &mut new }) += 1;
                        checkpoint().write_in(&mut store, NAME).unwrap();
                        assert_eq!(
                            Checkpoint::read_in(&store, NAME).unwrap(),
                            Some(checkpoint()),
                            "{context}"
                        );
                    }
                }
            }
        }
        assert!(old > 500 && new > 500, "{old} old, {new} new");
    }
}
