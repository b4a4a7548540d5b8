//! What is known for sure of the target of a tree: the file `tree.checkpoint` in its journal's directory.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::io::store::{DirStore, Store};
use crate::model::{Lsn, MarkId, VolumeId};

const VERSION: u32 = 1;
const NAME: &str = "tree.checkpoint";
const NEW_NAME: &str = "tree.checkpoint.new";
const HASH_KEY: &str = "blake3 = \"";
const BYTES_MAX: usize = 64 << 10;

/// Replaced as a whole; its last line is the hash of what is before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeCheckpoint {
    version: u32,
    pub volume: VolumeId,
    /// As it was named, for people.
    pub target_path: String,
    pub target_identity: String,
    /// The target is the tree at this mark's record; 0: it holds nothing yet.
    pub applied: Lsn,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mark: Option<MarkId>,
    /// It is on its way to this mark's record.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub applying: Option<Lsn>,
    /// On that way, all that goes or moves was taken away.
    #[serde(default)]
    pub taken_away: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum TreeCheckpointError {
    #[error("{} is damaged: {what}; remove it to have the target written anew", path.display())]
    Damaged { path: PathBuf, what: String },
    #[error("cannot {what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl TreeCheckpoint {
    pub fn fresh(volume: VolumeId, target: &Path, identity: &str) -> TreeCheckpoint {
        TreeCheckpoint {
            version: VERSION,
            volume,
            target_path: target.display().to_string(),
            target_identity: identity.to_owned(),
            applied: Lsn::ZERO,
            mark: None,
            applying: None,
            taken_away: false,
        }
    }

    /// `None` when there is none. Writes nothing.
    pub fn read(dir: &Path) -> Result<Option<TreeCheckpoint>, TreeCheckpointError> {
        let path = dir.join(NAME);
        let mut bytes = vec![0; BYTES_MAX];
        let count = match DirStore::open(dir).read_at(NAME, 0, &mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            count => count.map_err(|source| TreeCheckpointError::Io {
                what: "read",
                path: path.clone(),
                source,
            })?,
        };
        let decoded = TreeCheckpoint::decode(&bytes[..count]);
        decoded.map(Some).map_err(|what| TreeCheckpointError::Damaged { path, what })
    }

    /// Durable when it returns.
    pub fn write(&self, dir: &Path) -> Result<(), TreeCheckpointError> {
        let write = || {
            let mut store = DirStore::open(dir);
            match store.create(NEW_NAME) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => store.truncate(NEW_NAME, 0)?,
                made => made?,
            }
            store.append(NEW_NAME, self.encode()?.as_bytes())?;
            store.sync(NEW_NAME)?;
            store.rename(NEW_NAME, NAME)?;
            store.sync_dir()
        };
        write().map_err(|source| TreeCheckpointError::Io { what: "write", path: dir.join(NAME), source })
    }

    pub(super) fn encode(&self) -> io::Result<String> {
        let text = "# What afterwrite knows of the target of this tree. Do not edit.\n".to_owned();
        let text = text + &toml::to_string(self).map_err(io::Error::other)?;
        let hash = blake3::hash(text.as_bytes());
        Ok(text + HASH_KEY + &hash.to_hex() + "\"\n")
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<TreeCheckpoint, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
        let (body, hash) = text.split_at(text.rfind(HASH_KEY).ok_or("its last line, the hash, is missing")?);
        if hash[HASH_KEY.len()..] != format!("{}\"\n", blake3::hash(body.as_bytes()).to_hex()) {
            return Err("its hash does not match its content".into());
        }
        let checkpoint: TreeCheckpoint = toml::from_str(body).map_err(|error| error.message().to_owned())?;
        match checkpoint.version {
            VERSION => Ok(checkpoint),
            version => Err(format!("its version is {version}; use the newer afterwrite")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_no_changed_byte_passes() {
        let dir = tempfile::tempdir().unwrap();
        assert!(TreeCheckpoint::read(dir.path()).unwrap().is_none());
        let fresh = TreeCheckpoint::fresh(VolumeId([7; 16]), Path::new("/a \"b\"\n"), "dir:1:2");
        let checkpoint =
            TreeCheckpoint { applying: Some(Lsn(9)), mark: Some(MarkId(2)), taken_away: true, ..fresh };
        for _ in 0..2 {
            checkpoint.write(dir.path()).unwrap();
            assert_eq!(TreeCheckpoint::read(dir.path()).unwrap().unwrap(), checkpoint);
        }
        let whole = checkpoint.encode().unwrap().into_bytes();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert!(TreeCheckpoint::decode(&bytes).is_err(), "{at}");
            assert!(TreeCheckpoint::decode(&whole[..at]).is_err(), "cut at {at}");
        }
    }
}
