//! The loads, each in a directory of its own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use afterwrite_tests::{MIB, Random, build, clone_and_check_out, copy_by_rsync, number_from_env};

pub enum Load {
    /// Held against the target in its midst, too.
    Program(fn(&Path) -> Command),
    Here(fn(&Path) -> Result<()>),
}

pub const LOADS: &[(&str, Load)] = &[
    ("git clone of this repository, 200 checkouts over its history", Load::Program(clone)),
    ("cargo build of xtask, target directory in the tree", Load::Program(compile)),
    ("rsync of a system's directory", Load::Program(copy)),
    ("small files, in directories of 1,000", Load::Here(many)),
    ("names of 255 bytes, with newlines, not UTF-8, 200 each", Load::Here(names)),
    ("a large file", Load::Here(large)),
    ("4 KiB changed in the large file", Load::Here(change)),
    ("the large file is renamed", Load::Here(rename)),
];

fn clone(tree: &Path) -> Command {
    clone_and_check_out(tree, 200)
}

fn compile(tree: &Path) -> Command {
    build(tree, "xtask")
}

fn copy(tree: &Path) -> Command {
    let from = std::env::var_os("AFTERWRITE_COPY_OF").unwrap_or_else(|| "/usr".into());
    copy_by_rsync(tree, from.as_ref())
}

fn many(tree: &Path) -> Result<()> {
    for number in 0..crate::small_files() {
        let dir = tree.join(format!("many/{}", number / 1000));
        if number % 1000 == 0 {
            fs::create_dir_all(&dir)?;
        }
        File::create_new(dir.join(number.to_string()))?.write_all(number.to_string().as_bytes())?;
    }
    Ok(())
}

fn names(tree: &Path) -> Result<()> {
    let dir = tree.join("names");
    fs::create_dir(&dir)?;
    for number in 0..200u32 {
        let digits = number.to_string().into_bytes();
        let long = [&vec![b'n'; 255 - digits.len()], &digits[..]].concat();
        for name in [long, [b"new\nline\n", &digits[..]].concat(), [b"\xff\xfe", &digits[..]].concat()] {
            fs::write(dir.join(OsString::from_vec(name)), &digits)?;
        }
    }
    Ok(())
}

/// Of the large file alone.
pub const LARGE: &str = "large";

/// Every fifth piece is data, the rest holes.
const PIECE_BYTES: u64 = 64 * MIB;

fn large(tree: &Path) -> Result<()> {
    let dir = tree.join(LARGE);
    fs::create_dir(&dir)?;
    let file = File::create(dir.join("file"))?;
    let mut random = Random::new(1);
    let pieces = (number_from_env("AFTERWRITE_LARGE_GIB", 10) << 30) / PIECE_BYTES;
    file.set_len(pieces * PIECE_BYTES)?;
    for piece in (0..pieces).step_by(5) {
        for at in (0..PIECE_BYTES).step_by(1 << 20) {
            file.write_all_at(&random.bytes(1 << 20), piece * PIECE_BYTES + at)?;
        }
    }
    file.sync_all().context("cannot sync it")
}

fn change(tree: &Path) -> Result<()> {
    change_at(&tree.join(LARGE).join("file"), 4096).map(drop)
}

/// Writes 4 KiB so far behind where data begins in the middle of the file; says what is there now.
pub fn change_at(file: &Path, behind: u64) -> Result<(u64, [u8; 4096])> {
    let file = File::options().write(true).open(file)?;
    let (middle, bytes) = (file.metadata()?.len() / PIECE_BYTES / 10 * 5, [(behind >> 12) as u8; 4096]);
    let at = middle * PIECE_BYTES + behind;
    file.write_all_at(&bytes, at)?;
    Ok((at, bytes))
}

fn rename(tree: &Path) -> Result<()> {
    let dir = tree.join(LARGE);
    Ok(fs::rename(dir.join("file"), dir.join("renamed"))?)
}
