use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How often a condition is looked at that cannot be waited for otherwise.
const POLL: Duration = Duration::from_millis(5);

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// None if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The binary under test: AFTERWRITE_BIN, else the one of the test executable's own profile.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("AFTERWRITE_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a running test has a path");
    // target/PROFILE/deps/TEST
    let target = test.ancestors().nth(3).expect("tests are three levels below the target directory");
    let own = test.ancestors().nth(2).expect("tests are two levels below their profile").join("afterwrite");
    let other = ["debug", "release"].map(|profile| target.join(profile).join("afterwrite"));
    let found = std::iter::once(own.clone()).chain(other).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("there is no {}; run `cargo build -p afterwrite` first", own.display()))
}

pub fn afterwrite() -> Command {
    Command::new(binary())
}

/// Runs a tool to its end; an error with its output unless it exits with 0. Returns its standard output.
pub fn run(command: &mut Command) -> Result<String> {
    let finished = finish(command, crate::patience())?;
    ensure!(
        finished.code == Some(0),
        "{command:?} ended with {:?}:\n{}{}",
        finished.code,
        finished.stdout,
        finished.stderr
    );
    Ok(finished.stdout)
}

/// Copies a program that is to be executed, by a process of its own: were this one to write it, a child that another
/// test starts meanwhile would hold the file open for writing for a moment, and executing it would fail with `ETXTBSY`.
pub fn copy_program(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg(from).arg(to)).map(drop)
}

/// Runs a command to its end, whatever that is; kills it and fails if that is not reached within `limit`.
pub fn finish(command: &mut Command, limit: Duration) -> Result<Finished> {
    // Files, not pipes: a pipe may fill while nobody reads, and may be held open by a grandchild.
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let mut status = None;
    let ended = wait_until("", limit, || {
        status = child.try_wait()?;
        Ok(status.is_some())
    });
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let (stdout, stderr) = (content(&mut stdout)?, content(&mut stderr)?);
    let Some(status) = status else {
        bail!("{command:?} has not ended after {limit:?}:\n{stdout}{stderr}");
    };
    Ok(Finished { code: status.code(), stdout, stderr })
}

/// Waits for `condition`; an error that names `what` if it does not hold within `limit`, or its own error.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !condition()? {
        ensure!(start.elapsed() < limit, "waited {limit:?} in vain until {what}");
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn content(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
