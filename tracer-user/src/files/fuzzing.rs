//! What the fuzz targets do.

use crate::files::ext4::{Ext4, recovery};
use crate::files::list::list;
use crate::files::volume::Volume;
use crate::files::{FileSystem, FsError};
use crate::model::NodeKind;

/// Bytes are a volume, and zeros what is behind them.
struct Image<'a>(&'a [u8]);

const SIZE_BYTES: u64 = 1 << 20;
const CONTENT_MAX: u64 = 8 << 20;

impl Volume for Image<'_> {
    fn size_bytes(&self) -> u64 {
        SIZE_BYTES
    }

    fn read_at(&mut self, start: u64, buffer: &mut [u8]) -> Result<(), FsError> {
        assert!(start + buffer.len() as u64 <= SIZE_BYTES, "nothing outside of the volume is read");
        buffer.fill(0);
        let rest = usize::try_from(start).ok().and_then(|start| self.0.get(start..)).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(())
    }
}

/// Any file system is read or refused.
pub fn ext4(data: &[u8]) {
    recovery::fuzzing::blocks(data);
    const NAMES_MAX: usize = 200;
    let Ok(mut fs) = Ext4::open(Image(data)) else { return };
    let mut found = Vec::new();
    // What was found before it is refused is looked at, too.
    let _ = list(&mut fs, b"/", true, &mut |listed| {
        found.push(listed);
        found.len() < NAMES_MAX
    });
    for listed in found {
        let inode = u32::try_from(listed.node.inode).expect("they have 32 bits");
        for start in [0, 1000, u64::MAX] {
            if let Ok(Some(bytes)) = fs.bytes_at(inode, start, 5000) {
                assert!(bytes.len() <= 5000);
            }
        }
        let mut next = 0;
        let _ = fs.content(&inode, &mut |start, bytes| {
            assert!(start >= next && !bytes.is_empty(), "content comes in order");
            next = start + bytes.len() as u64;
            let attributes = &listed.node.attributes;
            assert!(attributes.kind() != NodeKind::File || next <= attributes.size);
            // The same block may be a file's at many places.
            match next < CONTENT_MAX {
                true => Ok(()),
                false => Err(std::io::ErrorKind::FileTooLarge.into()),
            }
        });
    }
}
