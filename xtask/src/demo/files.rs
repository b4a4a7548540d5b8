//! Files of known content: written, holes punched, renamed, deleted; and the free space trimmed.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::demo::kept::Kept;
use crate::demo::load::Load;
use crate::run;

const BLOCK_BYTES: usize = 4096;
/// The baseline shall have something to copy.
const FILES_BEFORE: u64 = 100;
const TRIM_EVERY: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(30);

pub struct Files {
    kept: Kept,
    written: AtomicU64,
    trims: AtomicU64,
}

impl Files {
    pub fn prepare(kept: Kept) -> Result<Files> {
        fs::create_dir_all(kept.volume().join("files"))?;
        let files = Files { kept, written: AtomicU64::new(0), trims: AtomicU64::new(0) };
        (1..=FILES_BEFORE).try_for_each(|number| files.write(number))?;
        Ok(files)
    }

    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    pub fn run(&self, load: &Load) -> Result<()> {
        let mut trimmed = Instant::now();
        let mut number = FILES_BEFORE;
        while load.pause(PAUSE) {
            number += 1;
            self.write(number)?;
            self.written.fetch_add(1, Ordering::Relaxed);
            if trimmed.elapsed() >= TRIM_EVERY {
                trimmed = Instant::now();
                run::output(run::program("fstrim")?.arg(self.kept.volume()))?;
                self.trims.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn write(&self, number: u64) -> Result<()> {
        let volume = self.kept.volume();
        let unfinished = volume.join("files/unfinished");
        let mut content = content(number);
        let mut file = File::create(&unfinished)?;
        file.write_all(&content)?;
        if number.is_multiple_of(5) {
            file.sync_data()?;
        }
        drop(file);
        if number.is_multiple_of(3) {
            let (offset, bytes) = hole(content.len());
            let (offset_text, bytes_text) = (offset.to_string(), bytes.to_string());
            let hole = ["--punch-hole", "--offset", &offset_text, "--length", &bytes_text];
            run::output(run::program("fallocate")?.args(hole).arg(&unfinished))?;
            content[offset..offset + bytes].fill(0);
        }
        if number.is_multiple_of(2) {
            // Gone before it was ever needed; its blocks are used again.
            let fleeting = volume.join("files/fleeting");
            fs::write(&fleeting, &content)?;
            fs::remove_file(&fleeting)?;
        }
        self.kept.keep(&unfinished, &format!("files/{number:06}"), &content)
    }
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (written, trims) = (self.written.load(Ordering::Relaxed), self.trims.load(Ordering::Relaxed));
        write!(f, "{trims} fstrim, {written} files written")
    }
}

/// 16 to 512 KiB that no other number has; every other file compresses well.
fn content(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let blocks = 4 + next() % 125;
    let bytes = blocks as usize * BLOCK_BYTES;
    let mut content = Vec::with_capacity(bytes);
    while content.len() < bytes {
        if number.is_multiple_of(2) {
            content.extend_from_slice(
                format!("file {number} line {:05}: all is well\n", content.len() / 32).as_bytes(),
            );
        } else {
            content.extend_from_slice(&next().to_le_bytes());
        }
    }
    content.truncate(bytes);
    content
}

/// The middle of a file, in whole blocks: offset and length.
fn hole(bytes: usize) -> (usize, usize) {
    let blocks = bytes / BLOCK_BYTES;
    (blocks / 4 * BLOCK_BYTES, blocks / 2 * BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_distinct_and_of_whole_blocks() {
        for number in 1..50 {
            let bytes = content(number);
            assert_ne!(bytes, content(number + 1));
            assert_eq!(bytes.len() % BLOCK_BYTES, 0);
            assert!((16 << 10..=512 << 10).contains(&bytes.len()));
        }
    }

    #[test]
    fn a_hole_is_within_its_file() {
        for blocks in 4..200 {
            let (offset, bytes) = hole(blocks * BLOCK_BYTES);
            assert!(bytes > 0 && offset > 0 && offset + bytes < blocks * BLOCK_BYTES);
        }
    }
}
