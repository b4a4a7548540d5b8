//! The loads, each in a directory of its own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use afterwrite_tests::{MIB, Random, number_from_env, run};

pub type Load = fn(&Path) -> Result<()>;

pub const LOADS: &[(&str, Load)] = &[
    ("git clone of this repository, 200 checkouts over its history", clone),
    ("cargo build of tracer-common, offline, in the tree", build),
    ("cp -a of /usr", copy),
    ("small files, in directories of 1,000", many),
    ("names of 255 bytes, with newlines, not UTF-8, 200 each", names),
    ("a large file, written whole", large),
    ("4 KiB changed in it", change),
    ("it is renamed", rename),
];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository holds this crate")
}

fn git(dir: &Path) -> Command {
    let mut git = Command::new("git");
    git.arg("-C").arg(dir);
    git
}

fn clone(tree: &Path) -> Result<()> {
    let clone = tree.join("clone");
    run(Command::new("git").args(["clone", "--quiet", "--no-local"]).arg(repository()).arg(&clone))?;
    let commits = run(git(&clone).args(["rev-list", "HEAD"]))?;
    let commits: Vec<&str> = commits.lines().collect();
    for commit in commits.iter().step_by((commits.len() / 200).max(1)).take(200) {
        run(git(&clone).args(["checkout", "--quiet", commit]))?;
    }
    Ok(())
}

fn build(tree: &Path) -> Result<()> {
    let project = tree.join("project");
    run(Command::new("cp").arg("-a").arg(repository().join("tracer-common")).arg(&project))?;
    // It stands alone there.
    let manifest = fs::read_to_string(project.join("Cargo.toml"))?;
    let lines = manifest.lines().map(|line| match line.split_once(".workspace") {
        Some(("version", _)) => "version = \"0.0.0\"".to_owned(),
        Some(("edition", _)) => "edition = \"2024\"".to_owned(),
        Some(_) => String::new(),
        None if line == "workspace = true" || line == "[lints]" => String::new(),
        None => line.to_owned(),
    });
    let alone = lines.collect::<Vec<_>>().join("\n") + "\n[workspace]\n";
    fs::write(project.join("Cargo.toml"), alone)?;
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--offline", "--quiet"]).current_dir(&project);
    run(cargo.env("CARGO_TARGET_DIR", project.join("target"))).map(drop)
}

fn copy(tree: &Path) -> Result<()> {
    run(Command::new("cp").arg("-a").arg("/usr").arg(tree.join("usr"))).map(drop)
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

fn large(tree: &Path) -> Result<()> {
    let mut file = File::create(tree.join("large"))?;
    let bytes = Random::new(1).bytes(usize::try_from(MIB)?);
    for _ in 0..number_from_env("AFTERWRITE_LARGE_GIB", 10) << 10 {
        file.write_all(&bytes)?;
    }
    file.sync_all().context("cannot sync it")
}

fn change(tree: &Path) -> Result<()> {
    let file = File::options().write(true).open(tree.join("large"))?;
    Ok(file.write_all_at(&[1; 4096], file.metadata()?.len() / 2 + 4096)?)
}

fn rename(tree: &Path) -> Result<()> {
    Ok(fs::rename(tree.join("large"), tree.join("renamed"))?)
}
