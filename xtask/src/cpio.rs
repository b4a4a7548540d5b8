//! An archive in the cpio format "newc", which the kernel unpacks as its first root directory.
//!
//! The format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.

use std::collections::BTreeMap;
use std::io::{self, Write};

/// Files by their absolute path; a later one with the same path replaces the earlier.
#[derive(Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

enum Entry {
    Directory,
    Symlink(String),
    File { mode: u32, content: Vec<u8> },
}

impl Archive {
    /// A directory, and those above it.
    pub fn directory(&mut self, path: &str) {
        self.parents(path);
        self.entries.entry(path.to_owned()).or_insert(Entry::Directory);
    }

    pub fn symlink(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entries.insert(path.to_owned(), Entry::Symlink(target.to_owned()));
    }

    pub fn file(&mut self, path: &str, content: Vec<u8>) {
        self.with_mode(path, content, 0o644);
    }

    pub fn executable(&mut self, path: &str, content: Vec<u8>) {
        self.with_mode(path, content, 0o755);
    }

    pub fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    fn with_mode(&mut self, path: &str, content: Vec<u8>, mode: u32) {
        self.parents(path);
        self.entries.insert(path.to_owned(), Entry::File { mode, content });
    }

    fn parents(&mut self, path: &str) {
        for (end, _) in path.match_indices('/').filter(|(end, _)| *end > 0) {
            self.entries.entry(path[..end].to_owned()).or_insert(Entry::Directory);
        }
    }

    /// Writes the archive; parents come before their children, as the kernel wants it.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for (inode, (path, entry)) in (1..).zip(&self.entries) {
            let (mode, content) = match entry {
                Entry::Directory => (0o040_755, &[][..]),
                Entry::Symlink(target) => (0o120_777, target.as_bytes()),
                Entry::File { mode, content } => (0o100_000 | mode, &content[..]),
            };
            member(out, path.trim_start_matches('/'), inode, mode, content)?;
        }
        member(out, "TRAILER!!!", 0, 0, &[])
    }
}

fn member(out: &mut impl Write, name: &str, inode: u32, mode: u32, content: &[u8]) -> io::Result<()> {
    let too_large = |_| io::Error::new(io::ErrorKind::FileTooLarge, format!("{name}: over 4 GiB"));
    let bytes = u32::try_from(content.len()).map_err(too_large)?;
    let name_bytes = u32::try_from(name.len() + 1).map_err(too_large)?;
    // magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    let fields = [inode, mode, 0, 0, 1, 0, bytes, 0, 0, 0, 0, name_bytes, 0];
    write!(out, "070701")?;
    for field in fields {
        write!(out, "{field:08x}")?;
    }
    out.write_all(name.as_bytes())?;
    out.write_all(&[0])?;
    pad(out, 110 + name.len() + 1)?;
    out.write_all(content)?;
    pad(out, content.len())
}

/// Names and contents are padded to a multiple of four.
fn pad(out: &mut impl Write, written: usize) -> io::Result<()> {
    out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_brings_its_directories_and_all_is_aligned() {
        let mut archive = Archive::default();
        archive.executable("/a/b", b"xyz".to_vec());
        let mut bytes = Vec::new();
        archive.write(&mut bytes).expect("a vector takes all");
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.starts_with(b"070701000000010000"));
        let text = String::from_utf8_lossy(&bytes);
        let members: Vec<_> = text.split("070701").skip(1).map(|member| &member[104..]).collect();
        assert_eq!(members.len(), 3);
        assert!(
            members[0].starts_with("a\0") && members[1].starts_with("a/b\0") && members[1].contains("xyz")
        );
        assert!(members[2].starts_with("TRAILER!!!\0"));
    }

    #[test]
    fn a_later_file_replaces_an_earlier_link() {
        let mut archive = Archive::default();
        archive.symlink("/bin/dd", "busybox");
        archive.executable("/bin/dd", b"real".to_vec());
        let mut bytes = Vec::new();
        archive.write(&mut bytes).expect("a vector takes all");
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("real") && !text.contains("busybox"));
    }
}
