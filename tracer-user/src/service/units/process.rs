//! A process of the service, and what it says.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::io::log_line::{Priority, say};

/// How its last words begin: the error and its causes follow (`cli::main`).
const LAST_WORDS: &str = "afterwrite: ";
/// Of its last words.
const WORDS_MAX: usize = 4096;
/// Of a line; what is longer is told as several.
const LINE_MAX: u64 = 4096;
/// Who else may hold its stderr open, the process that freezes, ends with it.
const WORDS_WAIT: Duration = Duration::from_secs(2);

/// How a process came to its end.
#[derive(Debug)]
pub struct Ended {
    pub name: String,
    pub pid: u32,
    /// For people.
    pub why: String,
}

/// Starts `afterwrite` with these arguments. It is killed when this process ends without ending it: another could not take its place.
pub fn spawn(arguments: &[OsString], input: Stdio) -> std::io::Result<Child> {
    let mut command = std::process::Command::new("/proc/self/exe");
    // A Ctrl-C for the terminal's process group is not for it: this process decides.
    command.args(arguments).process_group(0);
    command.stdin(input).stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: between fork and exec only a system call is made, which allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
    Command::from(command).spawn()
}

/// Until it has ended; says its lines under its name.
pub async fn watch(name: String, mut child: Child) -> Ended {
    let pid = child.id().unwrap_or_default();
    let words = child.stderr.take().map(|stderr| tokio::spawn(forward(name.clone(), stderr)));
    let status = child.wait().await;
    let words = match words {
        Some(words) => tokio::time::timeout(WORDS_WAIT, words).await.ok().and_then(Result::ok),
        None => None,
    };
    let how = match status {
        Ok(status) => how(status),
        Err(error) => format!("it cannot be waited for: {error}"),
    };
    Ended { name, pid, why: words.filter(|words| !words.is_empty()).unwrap_or(how) }
}

fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal().map(Signal::try_from)) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(Ok(signal))) => format!("it was ended by {signal}"),
        _ => "it was ended by a signal".into(),
    }
}

/// Its last words, once it says nothing more. Reads all, whatever it is: a process whose words nobody takes would stand still.
async fn forward(name: String, stderr: impl AsyncRead + Unpin) -> String {
    let mut stderr = BufReader::new(stderr);
    let mut words = String::new();
    let mut line = Vec::new();
    // An error ends it: nobody is there to be told.
    while let Ok(1..) = (&mut stderr).take(LINE_MAX).read_until(b'\n', &mut line).await {
        let text = String::from_utf8_lossy(line.trim_ascii_end());
        let (priority, text) = Priority::of(&text);
        say(priority, &format!("{name}: {text}"));
        if let Some(first) = text.strip_prefix(LAST_WORDS) {
            first.clone_into(&mut words);
        } else if !words.is_empty() && words.len() < WORDS_MAX {
            words = format!("{words}; {}", text.trim());
        }
        line.clear();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Such as those of a hook.
    #[test]
    fn words_that_are_no_text_or_never_end_hide_no_others() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let said = [&b"x"[..], &[b'y'; LINE_MAX as usize], b"\n\xff\xfe\nafterwrite: it broke\n  because\n"]
            .concat();
        assert_eq!(runtime.block_on(forward("data".into(), &said[..])), "it broke; because");
    }
}
