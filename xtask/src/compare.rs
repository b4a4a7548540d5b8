//! Comparing disk images after the guest has powered off.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

const CHUNK_BYTES: usize = 1 << 20;
const BLOCK_BYTES: usize = 4096;

/// A range of a file.
#[derive(Clone, Copy)]
pub struct Range<'a> {
    pub file: &'a Path,
    pub offset: u64,
    /// To the end of the file without it.
    pub bytes: Option<u64>,
}

/// Where two ranges differ.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    pub first_offset: u64,
    pub blocks: u64,
}

/// Compares all of `left` with as many bytes of `right`. `None` when they are equal.
pub fn compare(left: Range<'_>, right: Range<'_>) -> Result<Option<Difference>> {
    let (left_file, left_end) = open(left)?;
    let (right_file, right_end) = open(right)?;
    let bytes = left_end - left.offset;
    ensure!(bytes > 0, "{}: nothing to compare", left.file.display());
    ensure!(
        right.offset + bytes <= right_end,
        "{} is shorter than what it is compared with",
        right.file.display()
    );

    let mut difference: Option<Difference> = None;
    let (mut left_chunk, mut right_chunk) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut done = 0;
    while done < bytes {
        let length = CHUNK_BYTES.min(usize::try_from(bytes - done).unwrap_or(CHUNK_BYTES));
        let (a, b) = (&mut left_chunk[..length], &mut right_chunk[..length]);
        left_file.read_exact_at(a, left.offset + done)?;
        right_file.read_exact_at(b, right.offset + done)?;
        if a != b {
            for (index, (a, b)) in a.chunks(BLOCK_BYTES).zip(b.chunks(BLOCK_BYTES)).enumerate() {
                if a == b {
                    continue;
                }
                let byte = a.iter().zip(b).take_while(|(a, b)| a == b).count();
                let at = done + (index * BLOCK_BYTES + byte) as u64;
                difference.get_or_insert(Difference { first_offset: at, blocks: 0 }).blocks += 1;
            }
        }
        done += length as u64;
    }
    Ok(difference)
}

fn open(range: Range<'_>) -> Result<(File, u64)> {
    let path = range.file.display();
    let file = File::open(range.file).with_context(|| format!("cannot open {path}"))?;
    let file_bytes = file.metadata()?.len();
    let end = range.bytes.map_or(file_bytes, |bytes| range.offset + bytes);
    ensure!(range.offset <= end && end <= file_bytes, "{path} is shorter than the range to compare");
    Ok((file, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(
        name: &str,
        a: &[u8],
        b: &[u8],
        offset: u64,
        bytes: Option<u64>,
    ) -> Result<Option<Difference>> {
        let dir = std::env::temp_dir().join(format!("xtask-compare-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let (left, right) = (dir.join("a"), dir.join("b"));
        std::fs::write(&left, a)?;
        std::fs::write(&right, b)?;
        let result =
            compare(Range { file: &left, offset, bytes }, Range { file: &right, offset: 0, bytes: None });
        std::fs::remove_dir_all(&dir)?;
        result
    }

    #[test]
    fn differing_blocks_are_counted_and_the_first_byte_is_named() {
        let a = vec![7; 3 << 20];
        let mut b = a.clone();
        assert_eq!(difference("same", &a, &b, 0, None).expect("both are there"), None);
        b[(1 << 20) + 5000] = 0;
        b[(2 << 20) + 1] = 0;
        b[(2 << 20) + 2] = 0;
        let found = difference("differ", &a, &b, 0, None).expect("both are there");
        assert_eq!(found, Some(Difference { first_offset: (1 << 20) + 5000, blocks: 2 }));
    }

    #[test]
    fn a_partition_is_compared_with_the_start_of_its_target() {
        let found = difference("part", b"....payload....", b"payload and more", 4, Some(7));
        assert_eq!(found.expect("both are there"), None);
    }

    #[test]
    fn comparing_nothing_or_too_much_is_an_error() {
        assert!(difference("empty", b"", b"", 0, None).is_err());
        assert!(difference("short", b"longer", b"long", 0, None).is_err());
        assert!(difference("beyond", b"abc", b"abc", 1, Some(3)).is_err());
    }
}
