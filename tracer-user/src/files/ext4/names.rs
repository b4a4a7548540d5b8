//! Blocks of directories. Those of an index are among them: to who does not know of it they are blocks without names. Pure.

use crate::files::ext4::bytes::{le16, le32};
use crate::files::{Entries, FsError};

const HEADER_LEN: usize = 8;

/// Adds the names of a block.
pub fn decode(dir: u32, block: &[u8], entries: &mut Entries<u32>) -> Result<(), FsError> {
    let wrong = || FsError::corrupt(format!("a name in directory inode {dir} has no end"));
    let mut rest = block;
    while rest.len() >= HEADER_LEN {
        let (inode, name_len) = (le32(rest, 0), usize::from(rest[6]));
        let len = match le16(rest, 4) {
            // What does not fit into 16 bits: all of a block of 64 KiB.
            0 | u16::MAX => block.len(),
            len => usize::from(len),
        };
        if len < HEADER_LEN || len > rest.len() || (inode != 0 && HEADER_LEN + name_len > len) {
            return Err(wrong());
        }
        if inode != 0 {
            match &rest[HEADER_LEN..HEADER_LEN + name_len] {
                b"." | b".." => {}
                name if name.is_empty() || name.contains(&b'/') || name.contains(&0) => {
                    return Err(FsError::corrupt(format!(
                        "directory inode {dir} has the name \"{}\"",
                        name.escape_ascii()
                    )));
                }
                name => entries.push((name.to_vec(), inode)),
            }
        }
        rest = &rest[len..];
    }
    Ok(())
}
