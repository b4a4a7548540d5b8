//! Two trees compared: names, attributes, hard links, content.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Dir, Mode, OFlags, openat};
use serde::Serialize;

use crate::model::{Attributes, NodeKind};
use crate::tree::inode::{attributes, open_path};

const DIFFERENCES_MAX: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TreeDifference {
    /// From the root of the trees, odd bytes escaped.
    pub path: String,
    pub what: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TreeVerify {
    pub identical: bool,
    pub inodes: u64,
    pub bytes: u64,
    pub differing: Vec<TreeDifference>,
    /// The list was cut.
    pub more: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot compare {path}")]
pub struct TreeVerifyError {
    path: String,
    #[source]
    source: io::Error,
}

/// Everything but times of access and of change, numbers of inodes, and where exactly the holes are.
pub fn verify_trees(source: &Path, target: &Path) -> Result<TreeVerify, TreeVerifyError> {
    let mut verify = Verify::default();
    let root = |path: &Path| {
        File::open(path).map_err(|source| TreeVerifyError { path: path.display().to_string(), source })
    };
    let (a, b) = (root(source)?, root(target)?);
    verify.dev = a.metadata().map_or(0, |metadata| metadata.dev());
    verify.pair(&a, &b, &mut Vec::new())?;
    verify.report.identical = verify.report.differing.is_empty();
    Ok(verify.report)
}

#[derive(Default)]
struct Verify {
    report: TreeVerify,
    /// Which inode of the target a hard link of the source led to, and the other way.
    links: HashMap<u64, u64>,
    back: HashMap<u64, u64>,
    dev: u64,
}

impl Verify {
    fn pair(&mut self, a: &File, b: &File, path: &mut Vec<Vec<u8>>) -> Result<(), TreeVerifyError> {
        let shown = show(path);
        let failed = |source| TreeVerifyError { path: shown.clone(), source };
        let (of_a, of_b) = (a.metadata().map_err(failed)?, b.metadata().map_err(failed)?);
        let (one, two) = (attributes(a, &of_a).map_err(failed)?, attributes(b, &of_b).map_err(failed)?);
        self.report.inodes += 1;
        for what in differences(&one, &two) {
            self.differs(path, what);
        }
        if one.kind() != two.kind() {
            return Ok(());
        }
        match one.kind() {
            NodeKind::Dir => return self.entries(a, b, path),
            _ if of_a.nlink() > 1 || of_b.nlink() > 1 => {
                let first = self.links.get(&of_a.ino()).copied();
                let forth = *self.links.entry(of_a.ino()).or_insert(of_b.ino());
                let back = *self.back.entry(of_b.ino()).or_insert(of_a.ino());
                if forth != of_b.ino() || back != of_a.ino() || of_a.nlink() != of_b.nlink() {
                    self.differs(path, "hard links");
                }
                // Of one that was compared before.
                if first.is_some() {
                    return Ok(());
                }
            }
            _ => {}
        }
        if one.kind() == NodeKind::File
            && one.size == two.size
            && !self.same_content(a, b, one.size).map_err(failed)?
        {
            self.differs(path, "content");
        }
        Ok(())
    }

    fn entries(&mut self, a: &File, b: &File, path: &mut Vec<Vec<u8>>) -> Result<(), TreeVerifyError> {
        let names = |dir: &File| names(dir).map_err(|source| TreeVerifyError { path: show(path), source });
        let (of_a, of_b) = (names(a)?, names(b)?);
        for name in of_a.union(&of_b) {
            path.push(name.clone());
            match (open_path(a, name), open_path(b, name)) {
                (Ok(one), Ok(two)) => {
                    // What is mounted there is no part of it.
                    if one.metadata().is_ok_and(|metadata| metadata.dev() == self.dev) {
                        self.pair(&one, &two, path)?;
                    }
                }
                (Ok(_), Err(_)) => self.differs(path, "missing in the target"),
                (Err(_), Ok(_)) => self.differs(path, "missing in the source"),
                (Err(source), Err(_)) => return Err(TreeVerifyError { path: show(path), source }),
            }
            path.pop();
        }
        Ok(())
    }

    fn same_content(&mut self, a: &File, b: &File, size: u64) -> io::Result<bool> {
        let (a, b) = (content(a)?, content(b)?);
        let (mut one, mut two) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let mut at = 0;
        while at < size {
            let len = usize::try_from((size - at).min(1 << 16)).unwrap_or(0);
            a.read_exact_at(&mut one[..len], at)?;
            b.read_exact_at(&mut two[..len], at)?;
            if one[..len] != two[..len] {
                return Ok(false);
            }
            at += len as u64;
        }
        self.report.bytes += size;
        Ok(true)
    }

    fn differs(&mut self, path: &[Vec<u8>], what: &'static str) {
        if self.report.differing.len() >= DIFFERENCES_MAX {
            self.report.more = true;
        } else {
            self.report.differing.push(TreeDifference { path: show(path), what });
        }
    }
}

fn differences(one: &Attributes, two: &Attributes) -> Vec<&'static str> {
    let checks = [
        ("mode", one.mode == two.mode),
        ("owner", (one.uid, one.gid) == (two.uid, two.gid)),
        ("device number", one.rdev == two.rdev),
        ("size", one.size == two.size),
        ("time of modification", one.modified == two.modified),
        ("target of the link", one.link_target == two.link_target),
        ("extended attributes", one.xattrs == two.xattrs),
    ];
    checks.into_iter().filter(|(_, same)| !same).map(|(what, _)| what).collect()
}

fn content(file: &File) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::CLOEXEC;
    let open = |flags| openat(rustix::fs::CWD, crate::tree::inode::name_of(file), flags, Mode::empty());
    // Whoever does not own it may not leave its time of access alone.
    Ok(File::from(open(flags).or_else(|_| open(OFlags::RDONLY | OFlags::CLOEXEC))?))
}

fn names(dir: &File) -> io::Result<BTreeSet<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut names = BTreeSet::new();
    for entry in Dir::new(openat(dir, ".", flags, Mode::empty())?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.insert(name.to_vec());
        }
    }
    Ok(names)
}

fn show(path: &[Vec<u8>]) -> String {
    match path {
        [] => "/".to_owned(),
        names => names.iter().map(|name| format!("/{}", name.escape_ascii())).collect(),
    }
}
