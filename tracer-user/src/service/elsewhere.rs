//! Protections of this machine that have another run directory, so that they can't be asked through this one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::capture::attended_volumes;
use crate::service::run_dir;
use crate::service::units::SOCKET;

/// What is protected through one of them. Only volumes whose probes are pinned are known of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    pub run_dir: PathBuf,
    pub volumes: Vec<String>,
}

/// Run directories of other services, by their sockets.
pub fn other_services(run_dir: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let mut found = services_in(&listed);
    found.retain(|dir| dir != run_dir);
    found
}

fn services_in(listed: &str) -> Vec<PathBuf> {
    // What is connected to one has its path, too.
    let listening = listed.lines().filter(|line| line.split_whitespace().nth(3) == Some("00010000"));
    let path = |line: &str| line.find(" /").map(|at| PathBuf::from(&line[at + 1..]));
    let sockets = listening.filter_map(path).filter(|path| path.ends_with(SOCKET));
    sockets.filter_map(|path| Some(path.parent()?.parent()?.to_owned())).collect()
}

/// Told to whoever looked in `run_dir`; empty if that is not root.
pub fn elsewhere(run_dir: &Path) -> Vec<Elsewhere> {
    let of = |pid: u32| std::fs::read(format!("/proc/{pid}/environ")).ok().map(|read| run_dir_in(&read));
    let known = attended_volumes().into_iter().filter_map(|(volume, pid)| Some((volume, of(pid)?)));
    others(run_dir, known)
}

fn others(run_dir: &Path, known: impl Iterator<Item = (String, PathBuf)>) -> Vec<Elsewhere> {
    let mut by_dir = BTreeMap::<PathBuf, Vec<String>>::new();
    for (volume, dir) in known.filter(|(_, dir)| dir != run_dir) {
        by_dir.entry(dir).or_default().push(volume);
    }
    let elsewhere = by_dir.into_iter().map(|(run_dir, mut volumes)| {
        alphanumeric_sort::sort_str_slice(&mut volumes);
        Elsewhere { run_dir, volumes }
    });
    elsewhere.collect()
}

/// Of the environment that a process was started with.
fn run_dir_in(environment: &[u8]) -> PathBuf {
    let name = [run_dir::VARIABLE.as_bytes(), b"="].concat();
    let set = environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(&name[..]));
    set.map_or_else(|| run_dir::DEFAULT.into(), |dir| OsStr::from_bytes(dir).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_other_run_directories_are_told_together() {
        let known = [("loop10", "/a"), ("loop9", "/a"), ("sda", "/run/afterwrite"), ("sdb", "/b")];
        let known = known.map(|(volume, dir)| (volume.to_owned(), PathBuf::from(dir)));
        let found = others(Path::new("/run/afterwrite"), known.into_iter());
        let of = |dir: &str, volumes: &[&str]| Elsewhere {
            run_dir: dir.into(),
            volumes: volumes.iter().map(|&volume| volume.into()).collect(),
        };
        assert_eq!(found, [of("/a", &["loop9", "loop10"]), of("/b", &["sdb"])]);
    }

    #[test]
    fn services_are_found_by_the_sockets_that_listen() {
        let listed = "\
Num       RefCount Protocol Flags    Type St Inode Path
0000: 00000002 00000000 00010000 0001 01 10 /run/afterwrite/service/control.sock
0000: 00000003 00000000 00000000 0001 03 11 /run/afterwrite/service/control.sock
0000: 00000002 00000000 00010000 0001 01 12 /tmp/a b/service/control.sock
0000: 00000002 00000000 00010000 0001 01 13 /run/other/control.sock
0000: 00000002 00000000 00010000 0001 01 14
";
        assert_eq!(services_in(listed), [Path::new("/run/afterwrite"), Path::new("/tmp/a b")]);
    }

    #[test]
    fn a_process_has_the_run_directory_it_was_started_with() {
        let of = |environment: &[u8]| run_dir_in(environment);
        assert_eq!(of(b"A=b\0AFTERWRITE_RUN_DIR=/x y\0C=d\0"), Path::new("/x y"));
        assert_eq!(of(b"NOT_AFTERWRITE_RUN_DIR=/x\0"), Path::new("/run/afterwrite"));
    }
}
