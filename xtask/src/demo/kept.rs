//! Files written once, whose content is known, and of which the oldest are deleted.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, Result};

use crate::demo::ground::sha256;

pub struct Kept {
    volume: PathBuf,
    /// How much there may be before the oldest are deleted.
    bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    files: VecDeque<File>,
    bytes: u64,
    deleted: Vec<String>,
    /// A mark is being made: nothing is deleted.
    pinned: bool,
}

struct File {
    /// Within the volume.
    path: String,
    sha256: String,
    bytes: u64,
}

/// What there is at an instant.
#[derive(Default)]
pub struct Inventory {
    /// Path within the volume and SHA-256.
    pub files: Vec<(String, String)>,
    pub deleted: Vec<String>,
}

impl Kept {
    pub fn new(volume: &Path, bytes_max: u64) -> Kept {
        Kept { volume: volume.to_owned(), bytes_max, state: Mutex::default() }
    }

    pub fn volume(&self) -> &Path {
        &self.volume
    }

    /// Takes over a finished file: gives it its last name, and deletes the oldest ones if that makes too many.
    pub fn keep(&self, finished: &Path, path: &str, content: &[u8]) -> Result<()> {
        let sha256 = sha256(content)?;
        let cannot = || format!("cannot rename to {path}");
        fs::rename(finished, self.volume.join(path)).with_context(cannot)?;
        let bytes = content.len() as u64;
        let mut state = self.state();
        state.bytes += bytes;
        state.files.push_back(File { path: path.to_owned(), sha256, bytes });
        while state.bytes > self.bytes_max && !state.pinned {
            let Some(oldest) = state.files.pop_front() else { break };
            // With the lock held: between the inventory for a mark and the mark nothing is deleted.
            fs::remove_file(self.volume.join(&oldest.path))
                .with_context(|| format!("cannot delete {}", oldest.path))?;
            state.bytes -= oldest.bytes;
            state.deleted.push(oldest.path);
        }
        Ok(())
    }

    pub fn pin(&self) {
        self.state().pinned = true;
    }

    pub fn unpin(&self) {
        self.state().pinned = false;
    }

    pub fn inventory(&self) -> Inventory {
        let state = self.state();
        let files = state.files.iter().map(|file| (file.path.clone(), file.sha256.clone())).collect();
        Inventory { files, deleted: state.deleted.clone() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_deleted_unless_a_mark_is_being_made() {
        let dir = std::env::temp_dir().join(format!("xtask-demo-kept-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("it can be made");
        let kept = Kept::new(&dir, 3);
        let keep = |name: &str| {
            fs::write(dir.join("new"), name).expect("it can be written");
            kept.keep(&dir.join("new"), name, name.as_bytes()).expect("it is there");
        };
        keep("aa");
        kept.pin();
        keep("bb");
        assert_eq!(kept.inventory().files.len(), 2);
        kept.unpin();
        keep("c");
        let inventory = kept.inventory();
        assert_eq!(inventory.deleted, ["aa"]);
        assert_eq!(inventory.files.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["bb", "c"]);
        assert!(!dir.join("aa").exists() && dir.join("c").exists());
        fs::remove_dir_all(&dir).expect("it can be removed");
    }
}
