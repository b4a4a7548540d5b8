//! Commands around a mark: the first brings an application to rest, the second lets it go on. They are run by the process that
//! freezes, so that an application at rest goes on however `protect` ends.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What is run by `/bin/sh -c`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    pub before: String,
    pub after: String,
    /// Each is killed after that.
    pub timeout: Duration,
}

/// An application at rest; goes on at the latest when this is dropped.
pub(super) struct AtRest {
    hooks: Hooks,
    label: String,
}

impl AtRest {
    /// One that another process began, which is no more.
    pub(super) fn left_by(hooks: Hooks, label: String) -> AtRest {
        AtRest { hooks, label }
    }

    /// Also of one that failed: half way it may have brought the application to rest.
    pub(super) fn begin(hooks: Hooks, label: String) -> (AtRest, Result<(), String>) {
        let result = hooks.run("before", &hooks.before, &label);
        (AtRest { hooks, label }, result)
    }
}

impl Hooks {
    fn run(&self, when: &str, command: &str, label: &str) -> Result<(), String> {
        let told = |why: String| format!("the command {when} a mark, {command:?}, {why}");
        let mut shell = Command::new("/bin/sh");
        // SAFETY: between fork and exec only system calls are made, which allocate nothing and take no lock.
        unsafe { shell.pre_exec(heed_signals) };
        let mut child = shell
            .args(["-c", command])
            .env("AFTERWRITE_HOOK", when)
            .env("AFTERWRITE_LABEL", label)
            .process_group(0)
            // Both are the channel to `protect`.
            .stdin(Stdio::null())
            .stdout(io::stderr())
            .spawn()
            .map_err(|error| told(format!("cannot be run: {error}")))?;
        match self.wait(&mut child) {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(told(format!("ended with {status}"))),
            Ok(None) => Err(told(format!("took longer than {:?} and was killed", self.timeout))),
            Err(error) => Err(told(format!("cannot be waited for: {error}"))),
        }
    }

    /// `None`: it took too long, and is no more.
    fn wait(&self, child: &mut Child) -> io::Result<Option<std::process::ExitStatus>> {
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            if begun.elapsed() >= self.timeout {
                // With what it started.
                let group = i32::try_from(child.id())
                    .map_or(Ok(()), |pid| killpg(Pid::from_raw(pid), Signal::SIGKILL));
                group.map_err(io::Error::from)?;
                child.wait()?;
                return Ok(None);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// The process that freezes ignores them, and what it starts would, too: `timeout` for one could not end anything.
fn heed_signals() -> io::Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the default action runs no code of ours.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }?;
    }
    Ok(())
}

impl Drop for AtRest {
    fn drop(&mut self) {
        if let Err(why) = self.hooks.run("after", &self.hooks.after, &self.label) {
            log::error!("{why}: the application may still be at rest");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(before: &str, after: &str) -> Hooks {
        Hooks { before: before.into(), after: after.into(), timeout: Duration::from_millis(500) }
    }

    #[test]
    fn what_was_brought_to_rest_goes_on_also_when_that_failed() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let say = |what: &str| format!("echo {what} $AFTERWRITE_HOOK $AFTERWRITE_LABEL >> {}", log.display());
        for (fails, end) in [(false, ""), (true, "; false")] {
            let hooks = hooks(&format!("{}{end}", say("rest")), &say("on"));
            let (at_rest, result) = AtRest::begin(hooks, "backup".into());
            assert_eq!(result.is_err(), fails);
            assert_eq!(std::fs::read_to_string(&log).unwrap(), "rest before backup\n");
            drop(at_rest);
            assert_eq!(std::fs::read_to_string(&log).unwrap(), "rest before backup\non after backup\n");
            std::fs::remove_file(&log).unwrap();
        }
    }

    #[test]
    fn one_that_hangs_is_killed_with_what_it_started() {
        let begun = Instant::now();
        let (_, result) = AtRest::begin(hooks("sleep 60 & sleep 60", "true"), String::new());
        assert!(result.unwrap_err().contains("killed") && begun.elapsed() < Duration::from_secs(30));
    }
}
