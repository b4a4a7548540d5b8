//! The thread that looks at files of which many were changed at once: what they hold now, and what the replica says they held
//! before. Nobody waits for it.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, channel, sync_channel};
use std::time::{Duration, Instant};

use crate::io::priority::{Work, claim};
use crate::model::FileBurst;
use crate::origin::{BYTES_MAX, Comparison, Content, Rewritten, Suspicion};
use crate::service::replica_samples::Replicas;

/// Suspicions that wait; of more nobody looks at the files.
const WAITING_MAX: usize = 16;
/// A file is truncated before it is written: when the last one was touched it may hold nothing yet.
const SETTLES: Duration = Duration::from_millis(200);
/// Between two looks, so many times as long as the last one took …
const REST: u32 = 9;
/// … though no longer than that.
const REST_MAX: Duration = Duration::from_secs(2);

/// The thread, for the one who asks it.
pub struct Looks {
    asked: SyncSender<Asked>,
    answers: Receiver<Looked>,
    /// In the order in which they were asked for, and are answered.
    pending: VecDeque<FileBurst>,
    haste: Arc<Haste>,
}

struct Asked {
    suspicion: Suspicion,
    mount_points: Vec<PathBuf>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    pub found: FileBurst,
    pub comparison: Comparison,
}

impl Looked {
    /// Nobody has looked: nothing is known of the files.
    pub fn unseen(found: FileBurst) -> Looked {
        Looked { found, comparison: Comparison::default() }
    }
}

/// Whether somebody waits for the answers.
#[derive(Default)]
pub struct Haste(pub(super) AtomicBool);

impl Haste {
    /// Waits, unless somebody is waiting. That is looked at a few times a second.
    pub fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.0.load(Ordering::Relaxed)
            && let Some(left) = until.checked_duration_since(Instant::now())
        {
            std::thread::sleep(left.min(SETTLES));
        }
    }
}

impl Looks {
    pub fn start(replicas: Replicas) -> io::Result<Looks> {
        let (asked, queue) = sync_channel::<Asked>(WAITING_MAX);
        let (told, answers) = channel();
        let haste = Arc::new(Haste::default());
        let hurries = haste.clone();
        let run = move || {
            claim(Work::Deferrable);
            while let Ok(asked) = queue.recv() {
                hurries.pause(SETTLES);
                let begun = Instant::now();
                if told.send(look(asked, &replicas, &hurries)).is_err() {
                    return;
                }
                hurries.pause((begun.elapsed() * REST).min(REST_MAX));
            }
        };
        std::thread::Builder::new().name("looks".into()).spawn(run)?;
        Ok(Looks { asked, answers, pending: VecDeque::new(), haste })
    }

    /// Gives back what it has no room for.
    pub fn ask(&mut self, suspicion: Suspicion, mount_points: &[PathBuf]) -> Result<(), Looked> {
        let found = suspicion.found.clone();
        match self.asked.try_send(Asked { suspicion, mount_points: mount_points.to_vec() }) {
            Ok(()) => self.pending.push_back(found),
            Err(_) => return Err(Looked::unseen(found)),
        }
        Ok(())
    }

    pub fn answer(&mut self) -> Option<Looked> {
        match self.answers.try_recv() {
            Ok(looked) => self.awaited(looked),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => self.pending.pop_front().map(Looked::unseen),
        }
    }

    /// Not what was given up in `finish`.
    fn awaited(&mut self, looked: Looked) -> Option<Looked> {
        let of = |found: &FileBurst| (found.process.clone(), found.began, found.recognised);
        self.pending.pop_front_if(|pending| of(pending) == of(&looked.found)).map(|_| looked)
    }

    /// All that was asked, if need be without having been looked at.
    pub fn finish(&mut self, at_most: Duration) -> Vec<Looked> {
        let until = Instant::now() + at_most;
        self.haste.0.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        while !self.pending.is_empty() {
            match self.answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(looked) => all.extend(self.awaited(looked)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        self.haste.0.store(false, Ordering::Relaxed);
        all.extend(self.pending.drain(..).map(Looked::unseen));
        all
    }
}

fn look(Asked { suspicion, mount_points }: Asked, replicas: &Replicas, haste: &Haste) -> Looked {
    let Suspicion { mut found, rewritten, written } = suspicion;
    for content in written.iter().filter_map(|path| now(&mount_points, path, 0, BYTES_MAX)) {
        found.sampled += u32::from(content != Content::Nothing);
        found.random += u32::from(content == Content::Random);
    }
    let mut comparison = Comparison::default();
    let before = replicas.held_before(&rewritten, haste);
    for (file, before) in rewritten.iter().zip(before) {
        let pair = before.and_then(|before| Some((before, holds_now(&mount_points, file)?)));
        if let Some((before, now)) = pair {
            comparison.add(before, now);
        }
    }
    (found.compared, found.spoiled) = (comparison.compared, comparison.spoiled);
    Looked { found, comparison }
}

fn holds_now(mount_points: &[PathBuf], file: &Rewritten) -> Option<Content> {
    now(mount_points, file.path_now(), file.start(), file.len_max())
}

/// What is gone meanwhile, or under another mount, is not looked into.
fn now(mount_points: &[PathBuf], path: &[u8], start: u64, len_max: usize) -> Option<Content> {
    let below = Path::new(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path)));
    mount_points.iter().find_map(|mount| Content::at(&mount.join(below), start, len_max).ok().flatten())
}
