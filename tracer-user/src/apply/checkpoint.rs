use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::{Lsn, MarkId, VolumeId};

/// What is known for sure of a replica: the file `replica.checkpoint` in its journal's directory.
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
    /// Applying up to this record was begun: records after `applied` may be on the target in part. They must be
    /// applied up to here before the target is at any point.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub applying: Option<Lsn>,
    /// The target equals the source at a mark (then `applied` is that mark's LSN).
    pub consistent: bool,
    /// The mark it equals.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mark: Option<MarkId>,
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

const VERSION: u32 = 1;
const FILE_NAME: &str = "replica.checkpoint";
const HASH_KEY: &str = "blake3 = \"";
/// Many times what a checkpoint needs; a longer file is none.
const FILE_BYTES_MAX: u64 = 64 << 10;

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
        }
    }

    /// Where the checkpoint of the journal in `dir` is.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join(FILE_NAME)
    }

    /// Reads the checkpoint of the journal in `dir`; `None` when there is none. Writes nothing.
    pub fn read(dir: &Path) -> Result<Option<Checkpoint>, CheckpointError> {
        let path = Checkpoint::path(dir);
        let io_error = |source| CheckpointError::Io { what: "read", path: path.clone(), source };
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
                let what = format!("it is {} bytes long", metadata.len());
                return Err(CheckpointError::Damaged { path, what });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(error)),
        }
        let bytes = fs::read(&path).map_err(io_error)?;
        match Checkpoint::decode(&bytes) {
            Ok(checkpoint) => Ok(Some(checkpoint)),
            Err(Undecodable::Version(version)) => Err(CheckpointError::UnsupportedVersion { path, version }),
            Err(Undecodable::Damaged(what)) => Err(CheckpointError::Damaged { path, what }),
        }
    }

    /// Replaces the checkpoint of the journal in `dir`; durable when it returns. After an error it is the old one or
    /// this one.
    pub fn write(&self, dir: &Path) -> Result<(), CheckpointError> {
        let path = Checkpoint::path(dir);
        let beside = path.with_extension("checkpoint.new");
        let io_error = |what, path: &Path| {
            let path = path.to_owned();
            move |source| CheckpointError::Io { what, path, source }
        };
        let mut file = File::create(&beside).map_err(io_error("create", &beside))?;
        let text = self.encode().map_err(io_error("encode", &path))?;
        file.write_all(text.as_bytes()).map_err(io_error("write", &beside))?;
        file.sync_all().map_err(io_error("sync", &beside))?;
        fs::rename(&beside, &path).map_err(io_error("replace", &path))?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync the directory of", &path))
    }

    fn encode(&self) -> io::Result<String> {
        let mut text = "# What afterwrite knows of the replica of this journal. Do not edit: without it the replica is\n\
                        # rebuilt from the journal's first record.\n"
            .to_owned();
        text += &toml::to_string(self).map_err(io::Error::other)?;
        let hash = blake3::hash(text.as_bytes());
        Ok(text + HASH_KEY + &hash.to_hex() + "\"\n")
    }

    fn decode(bytes: &[u8]) -> Result<Checkpoint, Undecodable> {
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
        if version != VERSION {
            return Err(Undecodable::Version(version));
        }
        toml::from_str(body).map_err(|e| Undecodable::Damaged(e.to_string()))
    }
}

enum Undecodable {
    Damaged(String),
    Version(u32),
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(Checkpoint::read(dir.path()).unwrap().is_none());
        for checkpoint in [checkpoint(), Checkpoint { applying: None, mark: None, ..checkpoint() }] {
            checkpoint.write(dir.path()).unwrap();
            assert_eq!(Checkpoint::read(dir.path()).unwrap(), Some(checkpoint));
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
        let later = Checkpoint { version: 2, ..checkpoint() }.encode().unwrap();
        assert!(matches!(Checkpoint::decode(later.as_bytes()), Err(Undecodable::Version(2))));
    }

    #[test]
    fn a_checkpoint_that_cannot_be_written_leaves_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        checkpoint().write(dir.path()).unwrap();
        fs::create_dir(dir.path().join("replica.checkpoint.new")).unwrap();
        let next = Checkpoint { applied: Lsn(u64::MAX), ..checkpoint() };
        assert!(matches!(next.write(dir.path()), Err(CheckpointError::Io { what: "create", .. })));
        assert_eq!(Checkpoint::read(dir.path()).unwrap(), Some(checkpoint()));
        fs::remove_dir(dir.path().join("replica.checkpoint.new")).unwrap();
        next.write(dir.path()).unwrap();
        assert_eq!(Checkpoint::read(dir.path()).unwrap(), Some(next), "the highest LSN fits");
    }
}
