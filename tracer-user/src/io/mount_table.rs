//! Where which file system is to be found, as paths lead there from this process.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// The kernel's number of the file system: major << 20 | minor.
    pub dev: u32,
    /// The directory of the file system that is mounted, and where.
    pub root: Vec<u8>,
    pub point: Vec<u8>,
}

/// All mounts of this process's mount namespace, a later one above an earlier.
pub fn mount_table() -> io::Result<Vec<MountPoint>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The file system a path leads to, and its path within that.
pub fn mount_of(path: &Path) -> io::Result<Option<(u32, Vec<u8>)>> {
    Ok(locate(&mount_table()?, path.canonicalize()?.as_os_str().as_bytes()))
}

/// Where an absolute path without `.`, `..` and symbolic links lies: the file system, and the path within it.
pub fn locate(mounts: &[MountPoint], path: &[u8]) -> Option<(u32, Vec<u8>)> {
    let longest = mounts.iter().filter(|mount| below(path, &mount.point).is_some());
    // Of those of one length the last one covers the others.
    let mount = longest.max_by_key(|mount| mount.point.len())?;
    Some((mount.dev, join(&mount.root, below(path, &mount.point)?)))
}

/// A path from the root directory for one within a file system.
pub fn reach(mounts: &[MountPoint], dev: u32, path: &[u8]) -> Option<Vec<u8>> {
    let mount = mounts.iter().find(|mount| mount.dev == dev && below(path, &mount.root).is_some())?;
    Some(join(&mount.point, below(path, &mount.root)?))
}

/// What of `path` comes after `dir`.
fn below<'a>(path: &'a [u8], dir: &[u8]) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(dir.strip_suffix(b"/").unwrap_or(dir))?;
    (rest.is_empty() || rest.starts_with(b"/")).then_some(rest)
}

fn join(dir: &[u8], rest: &[u8]) -> Vec<u8> {
    let dir = dir.strip_suffix(b"/").unwrap_or(dir);
    let joined = [dir, rest].concat();
    if joined.is_empty() { b"/".to_vec() } else { joined }
}

fn parse(text: &[u8]) -> Vec<MountPoint> {
    let line = |line: &[u8]| {
        let mut words = line.split(|byte| *byte == b' ').skip(2);
        let (major, minor) = std::str::from_utf8(words.next()?).ok()?.split_once(':')?;
        let dev = (major.parse::<u32>().ok()? << 20) | minor.parse::<u32>().ok()?;
        Some(MountPoint { dev, root: unescape(words.next()?), point: unescape(words.next()?) })
    };
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// Space, tab, newline and backslash stand as `\ooo`.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            digits.iter().try_fold(0u32, |n, digit| char::from(*digit).to_digit(8).map(|d| n * 8 + d))
        });
        let (byte, skip) = match octal.and_then(|code| u8::try_from(code).ok()) {
            Some(code) => (code, 4),
            None => (*first, 1),
        };
        bytes.push(byte);
        rest = &rest[skip..];
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 0:5 / /dev rw - devtmpfs dev rw
40 22 7:0 / /mnt/a\\040b rw - ext4 /dev/loop0 rw
41 22 7:0 /sub /mnt/bound rw - ext4 /dev/loop0 rw
";

    #[test]
    fn a_path_lies_on_the_mount_with_the_longest_point() {
        let mounts = parse(TABLE);
        let at = |path: &str| {
            locate(&mounts, path.as_bytes()).map(|(dev, path)| (dev, String::from_utf8(path).unwrap()))
        };
        assert_eq!(at("/mnt/a b/x/y"), Some((7 << 20, "/x/y".into())));
        assert_eq!(at("/mnt/a b"), Some((7 << 20, "/".into())));
        assert_eq!(at("/mnt/a bc"), Some((254 << 20, "/mnt/a bc".into())));
        assert_eq!(at("/mnt/bound/z"), Some((7 << 20, "/sub/z".into())));
        assert_eq!(at("/"), Some((254 << 20, "/".into())));
        assert_eq!(at("relative"), None);
    }

    #[test]
    fn a_path_within_a_file_system_is_reached_through_its_first_mount() {
        let mounts = parse(TABLE);
        assert_eq!(reach(&mounts, 7 << 20, b"/x").unwrap(), b"/mnt/a b/x");
        assert_eq!(reach(&mounts, 254 << 20, b"/").unwrap(), b"/");
        assert_eq!(reach(&mounts, 9 << 20, b"/x"), None);
    }
}
