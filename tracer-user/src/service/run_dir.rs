//! Where running protections are found: a lock and a control socket for each volume.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// Where it is if nobody says otherwise.
pub const DEFAULT: &str = "/run/afterwrite";
/// Of the environment, names another place.
pub const VARIABLE: &str = "AFTERWRITE_RUN_DIR";

pub fn path() -> PathBuf {
    std::env::var_os(VARIABLE).map_or_else(|| PathBuf::from(DEFAULT), PathBuf::from)
}

pub fn socket(dir: &Path, volume_name: &str) -> PathBuf {
    // Kernel names may hold a '!' or '/' (cciss/c0d0): one file name all the same.
    dir.join(format!("{}.sock", volume_name.replace('/', "!")))
}

/// Of all protections that run here, or were killed here, and their volumes' names.
pub fn sockets(dir: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
        .filter_map(|path| Some((path.file_stem()?.to_string_lossy().into_owned(), path)))
        .collect()
}

/// The kernel's name of a volume given by its path, by a link to it, or by that name.
pub fn volume_name(volume: &str) -> String {
    let real = std::fs::canonicalize(volume).unwrap_or_else(|_| volume.into());
    // The kernel's name of cciss/c0d0 is cciss!c0d0.
    real.strip_prefix("/dev").unwrap_or(&real).display().to_string().replace('/', "!")
}

/// Held as long as the volume is protected; the kernel lets go of it however the process ends.
pub struct VolumeLock {
    _file: Flock<File>,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{name} is already protected by process {pid}: `afterwrite status` shows it")]
    Held { name: String, pid: String },
    #[error("could not make or lock {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl VolumeLock {
    pub fn take(dir: &Path, volume_name: &str) -> Result<VolumeLock, LockError> {
        let path = socket(dir, volume_name).with_extension("lock");
        let failed = |source| LockError::Io { path: path.clone(), source };
        if !dir.exists() {
            std::fs::create_dir_all(dir).map_err(failed)?;
            // Whatever umask journals are written with: who may connect is said by each socket.
            std::fs::set_permissions(dir, Permissions::from_mode(0o755)).map_err(failed)?;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        let mut pid = String::new();
        file.read_to_string(&mut pid).map_err(failed)?;
        let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| LockError::Held { name: volume_name.to_owned(), pid: pid.trim().to_owned() })?;
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(VolumeLock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_volume_has_one_protector() {
        let dir = tempfile::tempdir().unwrap();
        let held = VolumeLock::take(dir.path(), "loop7").unwrap();
        let error = VolumeLock::take(dir.path(), "loop7").err().unwrap().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        VolumeLock::take(dir.path(), "loop8").unwrap();
        drop(held);
        VolumeLock::take(dir.path(), "loop7").unwrap();
    }
}
