//! Running other programs, and where things are.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the repository")
}

/// Cargo's target directory.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The cargo that runs this xtask, in the repository.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// A program of the system, found as an administrator's shell finds it.
pub fn program(name: &str) -> Result<Command> {
    let path = find(name).with_context(|| format!("`{name}` is not installed: run `cargo xtask setup`"))?;
    Ok(Command::new(path))
}

/// Looks in PATH, in the administrator's directories, which a user's PATH lacks on Debian, and in those where Debian has
/// PostgreSQL's programs, one for each version.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let postgresql = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let postgresql = postgresql.map(|version| version.path().join("bin"));
    let dirs = std::env::split_paths(&path).chain(sbin).chain(postgresql);
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Prints the command and runs it; fails unless it exits with 0.
pub fn run(command: &mut Command) -> Result<()> {
    announce(command);
    let status = command.status().with_context(|| format!("cannot start {}", name(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", name(command));
    }
    Ok(())
}

/// Runs a command silently and returns its stdout; what it wrote to stderr is in the error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {}", name(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", line(command), output.status, stderr.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} wrote other than UTF-8", name(command)))
}

/// Prints the command and runs it, giving each line of its stdout to `see`. Says whether it exited with 0.
pub fn watch(command: &mut Command, mut see: impl FnMut(&str) -> Result<()>) -> Result<bool> {
    announce(command);
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {}", name(command)))?;
    let stdout = child.stdout.take().expect("stdout was asked for above");
    for bytes in BufReader::new(stdout).split(b'\n') {
        let bytes = bytes.context("reading a child's stdout")?;
        see(&String::from_utf8_lossy(&bytes))?;
    }
    Ok(child.wait().context("waiting for a child")?.success())
}

/// Is this process root? Needs neither libc nor unsafe: /proc/self belongs to the effective user.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn announce(command: &Command) {
    eprintln!("+ {}", line(command));
}

fn name(command: &Command) -> String {
    let program = command.get_program();
    Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned()
}

/// The command as one could type it: settings of its environment, base name, arguments.
fn line(command: &Command) -> String {
    let quoted = |text: &OsStr| {
        let text = text.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
        if !text.is_empty() && text.chars().all(plain) {
            text.into_owned()
        } else {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
    };
    let settings = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), quoted(value?))));
    settings.chain([name(command)]).chain(command.get_args().map(quoted)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_command_can_be_pasted_into_a_shell() {
        let mut command = Command::new("/usr/bin/fio");
        command.arg("--name=a b").arg("it's").arg("").env("LLVM_PREFIX", "/usr/lib/llvm-22");
        assert_eq!(line(&command), r"LLVM_PREFIX=/usr/lib/llvm-22 fio '--name=a b' 'it'\''s' ''");
    }

    #[test]
    fn a_failing_command_names_itself_and_what_it_said() {
        let error =
            output(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).expect_err("it exits with 3");
        let text = error.to_string();
        assert!(text.contains("sh -c") && text.contains("why") && text.contains('3'), "{text}");
    }
}
