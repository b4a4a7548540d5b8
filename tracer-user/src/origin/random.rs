//! Whether a file's bytes look random, as those of an encrypted or compressed one do.

use std::io::{self, Read};
use std::path::Path;

use crate::io::open_unnoticed;

/// So much of a file is looked at …
const BYTES: u64 = 64 << 10;
/// … and no less: of few bytes nothing can be said.
const BYTES_MIN: usize = 1024;

/// `None` of a file that is too small for it.
pub fn looks_random(file: &Path) -> io::Result<Option<bool>> {
    let Some(file) = open_unnoticed(file)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(BYTES).read_to_end(&mut bytes)?;
    Ok((bytes.len() >= BYTES_MIN).then(|| is_random(&bytes)))
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

    #[test]
    fn random_bytes_are_and_text_and_programs_are_not() {
        let random = blake3::Hasher::new().finalize_xof();
        let mut bytes = vec![0; 64 << 10];
        let mut reader = random;
        reader.fill(&mut bytes);
        assert!(is_random(&bytes) && is_random(&bytes[..BYTES_MIN]));
        assert!(!is_random(include_bytes!("random.rs")));
        assert!(!is_random(&[0; 4096]));
        let mut program = Vec::new();
        std::fs::File::open("/proc/self/exe").unwrap().take(BYTES).read_to_end(&mut program).unwrap();
        assert!(!is_random(&program));
    }

    #[test]
    fn what_is_small_or_no_file_can_not_be_said() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("few"), [7; 100]).unwrap();
        assert_eq!(looks_random(&dir.path().join("few")).unwrap(), None);
        assert_eq!(looks_random(dir.path()).unwrap(), None);
        assert!(looks_random(&dir.path().join("none")).is_err());
    }
}
