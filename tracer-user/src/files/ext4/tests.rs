//! Images that mkfs made, which are the corpus of the fuzz target, too.

use super::*;
use crate::files::list::{Listed, list};

struct Image(Vec<u8>);

impl Volume for Image {
    fn size_bytes(&self) -> u64 {
        600 << 10
    }

    fn read_at(&mut self, start: u64, buffer: &mut [u8]) -> Result<(), FsError> {
        for (at, byte) in (start as usize..).zip(buffer) {
            *byte = self.0.get(at).copied().unwrap_or(0);
        }
        Ok(())
    }
}

fn image(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/../fuzz/corpus/ext4/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn all(fs: &mut Ext4<Image>) -> Vec<Listed> {
    let mut found = Vec::new();
    list(fs, b"/", true, &mut |listed| {
        found.push(listed);
        true
    })
    .unwrap();
    found
}

#[test]
fn files_are_read_with_checksums_and_without_and_from_a_block_map() {
    for name in ["csum", "plain", "ext2"] {
        let mut fs = Ext4::open(Image(image(name))).unwrap();
        let found = all(&mut fs);
        let paths: Vec<_> = found.iter().map(|listed| listed.path.escape_ascii().to_string()).collect();
        assert_eq!(paths, ["/d", "/d/g", "/f", "/h", "/l", "/long", "/lost+found"], "{name}");
        let named = |path: &str| &found.iter().find(|listed| listed.path == path.as_bytes()).unwrap().node;
        assert_eq!(named("/f").attributes.xattrs, [(b"user.a".to_vec(), vec![b'1'; 20])]);
        assert_eq!(named("/l").attributes.link_target, b"f");
        assert_eq!(named("/long").attributes.link_target, "x/".repeat(50).as_bytes());
        let node = named("/h");
        let mut bytes = vec![0; node.attributes.size as usize];
        let mut data_bytes = 0;
        let handle = u32::try_from(node.inode).unwrap();
        fs.content(&handle, &mut |at, part| {
            data_bytes += part.len();
            bytes[at as usize..at as usize + part.len()].copy_from_slice(part);
            Ok(())
        })
        .unwrap();
        let wanted: Vec<u8> = (0..60_000).map(|at| if at % 8192 == 0 { b'q' } else { 0 }).collect();
        assert!(bytes == wanted && data_bytes < 10_000, "{name}: {data_bytes} bytes besides holes");
        for (start, len) in [
            (0, 60_000),
            (1, 9000),
            (8191, 2),
            (8192, 1),
            (59_999, 9),
            (60_000, 9),
            (60_100, 9),
            (1 << 40, 9),
        ] {
            let part = fs.bytes_at(handle, start, len).unwrap().unwrap();
            let there = wanted.iter().skip(start as usize).take(len);
            assert!(part.iter().eq(there), "{name}: {len} bytes from {start} on");
        }
        assert_eq!(fs.bytes_at(2, 0, 9).unwrap(), None, "a directory has no bytes");
    }
}

#[test]
fn an_inode_that_was_changed_is_noticed_by_its_checksum() {
    let bytes = image("csum");
    let mut refused = 0;
    // The table of inodes is somewhere there.
    for at in (2048..bytes.len() - 2).step_by(128) {
        let mut bytes = bytes.clone();
        bytes[at + 2] ^= 1;
        let Ok(mut fs) = Ext4::open(Image(bytes)) else { continue };
        let listed = list(&mut fs, b"/", true, &mut |_| true);
        refused += u32::from(listed.is_err_and(|error| error.to_string().contains("checksum of inode")));
    }
    assert!(refused >= 8, "{refused}");
}

proptest::proptest! {
    #[test]
    fn whatever_is_changed_it_is_read_or_refused(
        name in proptest::sample::select(&["csum", "plain", "ext2"][..]),
        changes in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), proptest::prelude::any::<u8>()), 1..20),
    ) {
        let mut bytes = image(name);
        for (at, byte) in changes {
            // Most of an image are zeros that nobody looks at.
            let used: Vec<_> = (1024..bytes.len()).filter(|at| bytes[*at] != 0).collect();
            bytes[*at.get(&used)] = byte;
        }
        crate::files::fuzzing::ext4(&bytes);
    }
}
