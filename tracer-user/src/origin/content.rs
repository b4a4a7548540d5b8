//! What the bytes of a file are: such as an encrypted one has, or others.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crate::io::open_unnoticed;

/// So much of a file is looked at …
pub const BYTES_MAX: usize = 64 << 10;
/// … and no less: of few bytes it can't be said whether they are random.
const BYTES_MIN: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// No bytes, or one value all over.
    Nothing,
    /// As those of an encrypted file. A compressed one most often says at its beginning what it is, and is none of these.
    Random,
    Readable,
}

impl Content {
    /// `None`: they are too few to say.
    pub fn of(bytes: &[u8]) -> Option<Content> {
        if bytes.iter().all(|byte| *byte == bytes[0]) {
            return Some(Content::Nothing);
        }
        if bytes.len() < BYTES_MIN {
            return None;
        }
        Some(if is_random(bytes) && infer::get(bytes).is_none() {
            Content::Random
        } else {
            Content::Readable
        })
    }

    /// Of a file, at most `len_max` bytes from `start` on; `None` of what is no file, too.
    pub fn at(file: &Path, start: u64, len_max: usize) -> io::Result<Option<Content>> {
        let Some(mut file) = open_unnoticed(file)? else { return Ok(None) };
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(len_max as u64).read_to_end(&mut bytes)?;
        Ok(Content::of(&bytes))
    }
}

/// By the chi-squared test: how far the counts of the 256 values are from being equal. Of random bytes the sum is about 255, with
/// a deviation of 23, however many there are; of compressed ones some more; of text or programs, orders of magnitude.
fn is_random(bytes: &[u8]) -> bool {
    let mut counts = [0u32; 256];
    bytes.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    let expected = bytes.len() as f64 / 256.0;
    let sum: f64 = counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
    sum < 2.0 * 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random_bytes() -> Vec<u8> {
        let mut bytes = vec![0; BYTES_MAX];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn random_bytes_are_and_text_and_programs_are_not() {
        let bytes = random_bytes();
        for part in [&bytes[..], &bytes[..BYTES_MIN], &bytes[5000..5000 + BYTES_MIN]] {
            assert_eq!(Content::of(part), Some(Content::Random));
        }
        let text = include_bytes!("content.rs");
        for start in (0..text.len() - BYTES_MIN).step_by(100) {
            assert_eq!(Content::of(&text[start..start + BYTES_MIN]), Some(Content::Readable));
        }
        let mut program = Vec::new();
        std::fs::File::open("/proc/self/exe")
            .unwrap()
            .take(BYTES_MAX as u64)
            .read_to_end(&mut program)
            .unwrap();
        assert_eq!(Content::of(&program), Some(Content::Readable));
    }

    #[test]
    fn what_is_compressed_and_says_so_is_not_random() {
        for signature in [&b"\xff\xd8\xff\xe0"[..], b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"] {
            let mut bytes = random_bytes();
            bytes[..signature.len()].copy_from_slice(signature);
            assert_eq!(Content::of(&bytes), Some(Content::Readable), "{signature:x?}");
        }
    }

    #[test]
    fn what_is_emptied_or_overwritten_with_one_value_holds_nothing() {
        for bytes in [&[][..], &[0; 4096], &[b'x'; 10]] {
            assert_eq!(Content::of(bytes), Some(Content::Nothing));
        }
    }

    #[test]
    fn what_is_small_or_no_file_can_not_be_said() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, [b"few", &random_bytes()[..]].concat()).unwrap();
        assert_eq!(Content::at(&file, 0, 3).unwrap(), None);
        assert_eq!(Content::at(&file, 3, 5000).unwrap(), Some(Content::Random));
        assert_eq!(Content::at(&file, 1 << 40, 5000).unwrap(), Some(Content::Nothing));
        assert_eq!(Content::at(dir.path(), 0, 5000).unwrap(), None);
        assert!(Content::at(&dir.path().join("none"), 0, 5000).is_err());
    }
}
