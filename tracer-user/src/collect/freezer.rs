//! Freezing file systems so that they are always thawed.
//!
//! The freeze is held by a process of its own (`afterwrite freezer`, in its own process group). It thaws when told, when the
//! time is over, and when its standard input ends, which is what happens however `protect` dies. Should the
//! helper die instead, `protect` thaws. It writes to no file while anything is frozen.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::collect::hooks::{AtRest, Hooks};

mod ioctl {
    nix::ioctl_readwrite!(fifreeze, b'X', 119, libc::c_int);
    nix::ioctl_readwrite!(fithaw, b'X', 120, libc::c_int);
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Has the application come to rest; it goes on with `EndHook`, or when standard input ends.
    BeginHook {
        hooks: Hooks,
        label: String,
    },
    EndHook,
    Sync {
        mounts: Vec<PathBuf>,
    },
    Freeze {
        mounts: Vec<PathBuf>,
        timeout_ms: u64,
    },
    Thaw,
}

/// What the helper answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The application is at rest, or why not.
    AtRest {
        why_not: Option<String>,
    },
    Synced,
    Frozen,
    /// `held`: the freeze lasted until the thaw was asked for.
    Thawed {
        held: bool,
    },
    /// Nothing is frozen.
    Failed {
        what: String,
    },
}

/// Freezes and thaws without waiting: an answer comes later, through `poll`.
pub trait Freeze {
    /// Has the application come to rest; false if there is nothing to run for that.
    fn begin_hook(&mut self, _label: &str) -> std::io::Result<bool> {
        Ok(false)
    }
    /// Lets it go on; nothing is answered.
    fn end_hook(&mut self) -> std::io::Result<()> {
        Ok(())
    }
    /// `syncfs` on each.
    fn sync(&mut self, mounts: &[PathBuf]) -> std::io::Result<()>;
    /// Freezes all or none, in this order. `timeout` counts from the moment all are frozen.
    fn freeze(&mut self, mounts: &[PathBuf], timeout: Duration) -> std::io::Result<()>;
    fn thaw(&mut self) -> std::io::Result<()>;
    /// The next answer, if there is one. A dead helper is an answer too, and leaves nothing frozen.
    fn poll(&mut self) -> Option<Reply>;
}

/// `protect`'s end of the helper. A helper that died is started again with the next request.
pub struct Freezer {
    hooks: Option<Hooks>,
    /// The label of the mark for which an application is at rest.
    at_rest: Option<String>,
    helper: Option<Helper>,
    frozen: Vec<PathBuf>,
}

struct Helper {
    child: Child,
    /// `None` only while it is dropped.
    requests: Option<ChildStdin>,
    replies: Receiver<Reply>,
}

impl Freezer {
    pub fn spawn(hooks: Option<Hooks>) -> std::io::Result<Freezer> {
        Ok(Freezer { hooks, at_rest: None, helper: Some(Helper::spawn()?), frozen: Vec::new() })
    }

    fn request(&mut self, request: &Request) -> std::io::Result<()> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        let helper = match &mut self.helper {
            Some(helper) => helper,
            None => self.helper.insert(Helper::spawn()?),
        };
        // One that just died says so at the next poll, as the answer to this request.
        match helper.requests.as_mut().map_or(Ok(()), |requests| requests.write_all(line.as_bytes())) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }

    fn thaw_ourselves(&mut self) {
        for mount in std::mem::take(&mut self.frozen).iter().rev() {
            // EINVAL says that it is not frozen, which is what is wanted.
            let _ = File::open(mount).map(|dir| thaw(&dir));
        }
    }
}

impl Freeze for Freezer {
    fn begin_hook(&mut self, label: &str) -> std::io::Result<bool> {
        let Some(hooks) = self.hooks.clone() else { return Ok(false) };
        self.at_rest = Some(label.to_owned());
        self.request(&Request::BeginHook { hooks, label: label.to_owned() })?;
        Ok(true)
    }

    fn end_hook(&mut self) -> std::io::Result<()> {
        match self.at_rest.take() {
            Some(_) => self.request(&Request::EndHook),
            None => Ok(()),
        }
    }

    fn sync(&mut self, mounts: &[PathBuf]) -> std::io::Result<()> {
        self.request(&Request::Sync { mounts: mounts.to_vec() })
    }

    fn freeze(&mut self, mounts: &[PathBuf], timeout: Duration) -> std::io::Result<()> {
        self.frozen = mounts.to_vec();
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self.request(&Request::Freeze { mounts: mounts.to_vec(), timeout_ms })
    }

    fn thaw(&mut self) -> std::io::Result<()> {
        self.request(&Request::Thaw)
    }

    fn poll(&mut self) -> Option<Reply> {
        match self.helper.as_ref()?.replies.try_recv() {
            Ok(reply) => {
                if matches!(reply, Reply::Thawed { .. } | Reply::Failed { .. }) {
                    self.frozen.clear();
                }
                Some(reply)
            }
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                self.helper = None;
                self.thaw_ourselves();
                if let (Some(label), Some(hooks)) = (self.at_rest.take(), self.hooks.clone()) {
                    // It may take its time.
                    std::thread::spawn(move || drop(AtRest::left_by(hooks, label)));
                }
                Some(Reply::Failed { what: "the freezer process died".into() })
            }
        }
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.helper = None;
        self.thaw_ourselves();
    }
}

impl Helper {
    fn spawn() -> std::io::Result<Helper> {
        let mut child = Command::new("/proc/self/exe")
            .arg("freezer")
            // A Ctrl-C for the terminal's process group is not for it: the parent decides.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(requests), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(std::io::Error::other("the helper has no pipes"));
        };
        let (sender, replies) = channel();
        std::thread::Builder::new().name("freezer".into()).spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Ok(reply) = serde_json::from_str(&line)
                    && sender.send(reply).is_err()
                {
                    break;
                }
            }
        })?;
        Ok(Helper { child, requests: Some(requests), replies })
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It thaws and ends when its standard input does.
        self.requests = None;
        let _ = self.child.wait();
    }
}

/// The helper's whole life: serves requests from standard input until it ends. An application that was brought to rest goes on
/// then.
pub fn serve() -> std::io::Result<()> {
    // What ends the parent must not end us: standard input tells.
    for signal in [nix::sys::signal::SIGINT, nix::sys::signal::SIGTERM, nix::sys::signal::SIGHUP] {
        // SAFETY: ignoring a signal runs no code of ours.
        let _ = unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigIgn) };
    }
    let stdin = std::io::stdin();
    let mut lines = stdin.lock().lines();
    let mut at_rest = None::<AtRest>;
    while let Some(line) = lines.next() {
        let reply = match serde_json::from_str(&line?)? {
            Request::BeginHook { hooks, label } => {
                // One that did not end goes on first.
                drop(at_rest.take());
                let (begun, result) = AtRest::begin(hooks, label);
                at_rest = Some(begun);
                Reply::AtRest { why_not: result.err() }
            }
            Request::EndHook => {
                drop(at_rest.take());
                continue;
            }
            Request::Sync { mounts } => answer(sync_all(&mounts).map(|()| Reply::Synced)),
            Request::Thaw => Reply::Thawed { held: false },
            Request::Freeze { mounts, timeout_ms } => match Frozen::all(&mounts) {
                Err(error) => Reply::Failed { what: error.to_string() },
                Ok(frozen) => {
                    let deadline = Instant::now() + Duration::from_millis(timeout_ms);
                    say(&Reply::Frozen)?;
                    let asked = wait_for_input(deadline) && lines.next().is_some_and(|line| line.is_ok());
                    let thawed = frozen.thaw();
                    answer(thawed.map(|()| Reply::Thawed { held: asked }))
                }
            },
        };
        say(&reply)?;
    }
    Ok(())
}

fn answer(result: std::io::Result<Reply>) -> Reply {
    result.unwrap_or_else(|error| Reply::Failed { what: error.to_string() })
}

fn say(reply: &Reply) -> std::io::Result<()> {
    let mut line = serde_json::to_string(reply)?;
    line.push('\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(line.as_bytes())?;
    stdout.flush()
}

/// Whether standard input has something, or ended, before the deadline.
fn wait_for_input(deadline: Instant) -> bool {
    let stdin = std::io::stdin();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_zero() => return false,
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}

fn sync_all(mounts: &[PathBuf]) -> std::io::Result<()> {
    for mount in mounts {
        let dir = File::open(mount).map_err(|error| at(mount, "open", error))?;
        nix::unistd::syncfs(&dir).map_err(|errno| at(mount, "sync", errno.into()))?;
    }
    Ok(())
}

/// Frozen file systems; thawed in reverse order, at the latest when dropped.
struct Frozen {
    dirs: Vec<File>,
}

impl Frozen {
    fn all(mounts: &[PathBuf]) -> std::io::Result<Frozen> {
        let mut frozen = Frozen { dirs: Vec::new() };
        for mount in mounts {
            let dir = File::open(mount).map_err(|error| at(mount, "open", error))?;
            let mut level = 0;
            // SAFETY: FIFREEZE ignores its argument; the pointer is valid all the same.
            unsafe { ioctl::fifreeze(dir.as_raw_fd(), &raw mut level) }
                .map_err(|errno| at(mount, "freeze", errno.into()))?;
            frozen.dirs.push(dir);
        }
        Ok(frozen)
    }

    /// Fails with EINVAL when somebody else thawed meanwhile: the freeze did not hold.
    fn thaw(mut self) -> std::io::Result<()> {
        let dirs = std::mem::take(&mut self.dirs);
        // All of them, whatever happens to one.
        let results: Vec<_> = dirs.iter().rev().map(thaw).collect();
        results.into_iter().collect()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for dir in self.dirs.iter().rev() {
            let _ = thaw(dir);
        }
    }
}

fn thaw(dir: &File) -> std::io::Result<()> {
    let mut level = 0;
    // SAFETY: FITHAW ignores its argument; the pointer is valid all the same.
    unsafe { ioctl::fithaw(dir.as_raw_fd(), &raw mut level) }.map(|_| ()).map_err(Into::into)
}

fn at(mount: &Path, what: &str, error: std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), format!("could not {what} {}: {error}", mount.display()))
}
