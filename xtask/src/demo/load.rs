//! The four workloads as one: how they are started and stopped, and what they promise.

use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use anyhow::Result;

use crate::demo::compile::Compile;
use crate::demo::files::Files;
use crate::demo::git::Git;
use crate::demo::kept::{Inventory, Kept};
use crate::demo::sqlite::Sqlite;

const ARTIFACT_BYTES_MAX: u64 = 48 << 20;
const FILE_BYTES_MAX: u64 = 96 << 20;

/// Goes on until it is stopped.
#[derive(Default)]
pub struct Load {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Load {
    pub fn goes_on(&self) -> bool {
        !*self.stopped.lock().expect("no thread panics with it")
    }

    /// Waits, at most until the load is stopped; says whether it goes on.
    pub fn pause(&self, time: Duration) -> bool {
        let stopped = self.stopped.lock().expect("no thread panics with it");
        let waited = self.changed.wait_timeout_while(stopped, time, |stopped| !*stopped);
        !*waited.expect("no thread panics with it").0
    }

    pub fn stop(&self) {
        *self.stopped.lock().expect("no thread panics with it") = true;
        self.changed.notify_all();
    }

    pub fn stop_at_the_end(&self) -> StopAtTheEnd<'_> {
        StopAtTheEnd(self)
    }
}

pub struct StopAtTheEnd<'a>(&'a Load);

impl Drop for StopAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What was done before a mark was asked for, and so must be at it.
pub struct Promise {
    pub files: Inventory,
    pub commit: String,
    /// Number of the last transfer that SQLite has acknowledged.
    pub transfer: u64,
}

pub struct Workloads {
    pub git: Git,
    compile: Compile,
    pub sqlite: Sqlite,
    files: Files,
}

impl Workloads {
    /// What the baseline finds on the volume.
    pub fn prepare(volume: &Path, dir: &Path) -> Result<Workloads> {
        let git = Git::prepare(volume, dir)?;
        let compile = Compile::prepare(git.project(), Kept::new(volume, ARTIFACT_BYTES_MAX))?;
        let sqlite = Sqlite::prepare(volume, dir)?;
        let files = Files::prepare(Kept::new(volume, FILE_BYTES_MAX))?;
        Ok(Workloads { git, compile, sqlite, files })
    }

    pub fn start<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        load: &'s Load,
    ) -> [(&'static str, ScopedJoinHandle<'s, Result<()>>); 4] {
        let start = |run: Box<dyn FnOnce() -> Result<()> + Send + 's>| {
            scope.spawn(move || {
                // One that ends early, by an error or a panic, ends the load.
                let _stop = load.stop_at_the_end();
                run()
            })
        };
        [
            ("the workload git", start(Box::new(|| self.git.run(load)))),
            ("the workload cargo", start(Box::new(|| self.compile.run(load)))),
            ("the workload SQLite", start(Box::new(|| self.sqlite.run(load)))),
            ("the workload files", start(Box::new(|| self.files.run(load)))),
        ]
    }

    /// From now on nothing is deleted that a promise names.
    pub fn pin(&self) -> Pinned<'_> {
        self.kept().into_iter().for_each(Kept::pin);
        Pinned(self)
    }

    /// What was done, for people.
    pub fn summary(&self) -> String {
        let Workloads { git, compile, sqlite, files } = self;
        let deleted: usize = self.kept().into_iter().map(|kept| kept.inventory().deleted.len()).sum();
        format!("{git}, {compile}, {sqlite}, {files}, {deleted} of all deleted again")
    }

    fn kept(&self) -> [&Kept; 2] {
        [self.files.kept(), self.compile.kept()]
    }
}

pub struct Pinned<'a>(&'a Workloads);

impl Pinned<'_> {
    pub fn promise(&self) -> Promise {
        let mut files = Inventory::default();
        for kept in self.0.kept() {
            let more = kept.inventory();
            files.files.extend(more.files);
            files.deleted.extend(more.deleted);
        }
        Promise { files, commit: self.0.git.last_commit(), transfer: self.0.sqlite.acknowledged() }
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.0.kept().into_iter().for_each(Kept::unpin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_when_the_load_is_stopped() {
        let load = Load::default();
        assert!(load.pause(Duration::ZERO) && load.goes_on());
        drop(load.stop_at_the_end());
        assert!(!load.pause(Duration::from_secs(3600)) && !load.goes_on());
    }
}
