//! The process that shows the protections over HTTP, if the configuration says where: `afterwrite serve`, which gives up root's
//! privileges by itself. So it is not ended by a signal, for which this process may lack the right, but by closing its standard
//! input, which the kernel does, too, when this process is gone.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Instant;

use tokio::process::{Child, ChildStdin};

use crate::service::units::process::spawn;
use crate::service::units::retry::Retry;

/// No unit can be called so.
pub const NAME: &str = "the page";

pub struct Page {
    listen: Option<SocketAddr>,
    process: Option<Process>,
    retry: Retry,
}

struct Process {
    pid: u32,
    since: Instant,
    /// `None`: it was told to end.
    input: Option<ChildStdin>,
}

impl Page {
    pub fn new(listen: Option<SocketAddr>) -> Page {
        Page { listen, process: None, retry: Retry::default() }
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// To be served there from now on. What that changes, for people.
    pub fn replace(&mut self, listen: Option<SocketAddr>) -> Option<String> {
        if self.listen == listen {
            return None;
        }
        (self.listen, self.retry) = (listen, Retry::default());
        self.close();
        Some(match listen {
            Some(address) => format!("{NAME} is served on {address}"),
            None => format!("{NAME} is served no more"),
        })
    }

    /// Told to end, if it runs; started again if it is to be.
    pub fn close(&mut self) {
        if let Some(process) = &mut self.process {
            process.input = None;
        }
    }

    /// Starts it if that is due.
    pub fn start(&mut self, now: Instant) -> Option<std::io::Result<Child>> {
        let listen = self.listen.filter(|_| self.process.is_none() && self.retry.is_due(now))?;
        let arguments: [OsString; 3] =
            ["serve".into(), "--until-eof".into(), format!("--listen={listen}").into()];
        let spawned = spawn(&arguments, Stdio::piped());
        Some(spawned.map(|mut child| {
            let (pid, input) = (child.id().unwrap_or_default(), child.stdin.take());
            self.process = Some(Process { pid, since: now, input });
            child
        }))
    }

    /// It has ended, or could not be started. What is worth telling of that.
    pub fn ended(&mut self, pid: Option<u32>, why: &str, now: Instant) -> Option<String> {
        let process = self.process.take_if(|process| Some(process.pid) == pid);
        if pid.is_some() && process.as_ref().is_none_or(|process| process.input.is_none()) {
            return None;
        }
        self.retry.failed(process.map(|process| process.since), now);
        let next = self.retry.next(now).unwrap_or_default().as_secs();
        Some(format!("{NAME}: ended, started again in {next} s: {why}"))
    }
}
