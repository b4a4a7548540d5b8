//! The thread that journals who changed which file: from the probes of file systems to Origin records. It never waits for
//! the journal; what it can't hand on is said to be unknown.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use crate::capture::CaptureError;
use crate::capture::vfs::{VfsCounters, VfsOptions, VfsRung, attach};
use crate::collect::Entry;
use crate::io::clock::{monotonic_zero_ns, realtime};
use crate::io::{DeviceNumber, mounted_on};
use crate::model::{FileBurst, FileChanges, Origin, OriginUnknown, Timestamp};
use crate::origin::{Aggregate, Bursts, FileWatch, Seen, Suspicion};
use crate::service::call_share::CallShare;
use crate::service::journal_slot::JournalSlot;
use crate::service::looks::{Looked, Looks};
use crate::service::memory::give_back;
use crate::service::placer::Placer;
use crate::service::reading::ORIGIN_NOT_WANTED;
use crate::service::replica_samples::Replicas;
use crate::service::run_dir;
use crate::service::unwatched::Unwatched;

const POLL: Duration = Duration::from_millis(10);
/// What a process does to a file within this time is one record.
const WINDOW: Duration = Duration::from_millis(100);
/// When nothing has happened for some windows. Then the first record may wait longer, and what the probes counted is asked for
/// less often: it takes a file of the kernel for each.
const POLL_IDLE: Duration = Duration::from_millis(100);
const WINDOW_IDLE: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(2);
/// Mounts of other namespaces are looked at this often; of those of our own the kernel tells.
const LOOK_AT_MOUNTS: Duration = Duration::from_secs(10);
/// Where something is mounted all the time the looks take this part of the time: every volume of the machine takes them.
const LOOKS_PART: u32 = 50;
const EVENTS_MAX: usize = 4096;
/// Records that wait for the journal; more are given up.
const WAITING_MAX: usize = 65536;
/// Records of one entry of the journal's queue.
const ENTRY_RECORDS: usize = 1024;
const BURSTS_MAX: usize = 16;
/// How long the end waits for the last records.
const FINISH_MAX: Duration = Duration::from_secs(2);
/// … and of that, for files that are still looked at.
const FINISH_LOOKS_MAX: Duration = Duration::from_secs(1);

/// The `origin` of `status`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OriginStatus {
    /// `null`: changes of files are not watched, yet: nothing is mounted, or they can't be.
    pub rung: Option<VfsRung>,
    /// Why not.
    pub off: Option<String>,
    /// Hooks this kernel does not have.
    pub absent: Vec<&'static str>,
    pub file_systems: usize,
    pub counters: VfsCounters,
    /// Changes of which it is not known who made them, in this session.
    pub missing: u64,
    /// Records handed to the journal in this session.
    pub records: u64,
    /// Changed files of which it is not known where on the volume they lie: too many at once, or never written back.
    pub unplaced: u64,
    /// Processes that rewrote or removed many files, the last ones.
    pub bursts: Vec<FileBurst>,
    /// How often many files were rewritten in this session and, looked at, hold what they may as well have held before.
    pub bursts_dismissed: u64,
}

/// The volume whose files are watched.
pub struct Watched {
    pub volume: DeviceNumber,
    /// Its directory.
    pub journal: PathBuf,
    /// What was changed since, before the probes are attached, is not known.
    pub known_until: Timestamp,
    /// Each of its writes is a point.
    pub ordered: bool,
}

/// The thread, for those who start and end a protection.
pub struct OriginThread {
    pub slot: JournalSlot,
    requests: Sender<Sender<()>>,
    status: Arc<Mutex<OriginStatus>>,
}

impl OriginThread {
    /// Nothing is watched, for this reason.
    pub fn not_wanted() -> OriginThread {
        let status = OriginStatus { off: Some(ORIGIN_NOT_WANTED.into()), ..OriginStatus::default() };
        let (requests, _) = channel();
        OriginThread { slot: JournalSlot::default(), requests, status: Arc::new(Mutex::new(status)) }
    }

    /// Watches as soon as the probes are attached, which nobody waits for. The replicas tell what files held before.
    pub fn start(watched: Watched, replicas: Replicas, options: VfsOptions) -> io::Result<OriginThread> {
        let looks = Looks::start(replicas)?;
        let status = Arc::new(Mutex::new(OriginStatus::default()));
        let (requests, commands) = channel();
        let slot = JournalSlot::default();
        let (journal, shown) = (slot.clone(), status.clone());
        let run = move || {
            let begun = Recorder::begin(watched, looks, options, journal, shown.clone());
            if let Err(error) = begun.and_then(|recorder| recorder.run(&commands)) {
                let why = format!("{:#}", anyhow::Error::from(error));
                log::warn!("who changes which file is not recorded: {why}");
                shown.lock().expect("nobody panics with the status locked").off = Some(why);
            }
        };
        std::thread::Builder::new().name("origin".into()).spawn(run)?;
        Ok(OriginThread { slot, requests, status })
    }

    pub fn status(&self) -> OriginStatus {
        self.status.lock().expect("nobody panics with the status locked").clone()
    }

    /// All that was seen by now is with the journal, if it takes it within a moment; and from then on nothing is.
    pub fn finish(&self) {
        let (done, wait) = channel();
        if self.requests.send(done).is_ok() {
            // If it does not answer, what it knows is lost.
            let _ = wait.recv_timeout(FINISH_MAX);
        }
        self.slot.set(None);
    }
}

struct Recorder {
    /// None while no file system is mounted: probes cost others, too.
    watch: Option<FileWatch>,
    /// Of probes at system calls.
    share: Option<CallShare>,
    options: VfsOptions,
    /// Says when something was mounted.
    mounts: File,
    look_took: Duration,
    volume: DeviceNumber,
    mount_points: Vec<PathBuf>,
    ordered: bool,
    slot: JournalSlot,
    status: Arc<Mutex<OriginStatus>>,
    aggregate: Aggregate,
    bursts: Bursts,
    looks: Looks,
    dismissed: u64,
    waiting: VecDeque<Origin>,
    /// A while that is not known, and not among those waiting yet.
    unknown: Option<OriginUnknown>,
    placer: Placer,
    /// In this session, and of it before the probes of now were attached.
    missing: u64,
    missing_before: u64,
    records: u64,
    /// Up to here it is known what happened, but for `unknown`.
    seen_until: Timestamp,
    journal: PathBuf,
    /// A while without probes that the journal does not tell yet.
    unwatched: Option<Unwatched>,
    known: Vec<FileBurst>,
    /// When something was last in the ring.
    busy_at: Instant,
}

impl Recorder {
    fn begin(
        Watched { volume, journal, known_until, ordered }: Watched,
        looks: Looks,
        options: VfsOptions,
        slot: JournalSlot,
        status: Arc<Mutex<OriginStatus>>,
    ) -> Result<Recorder, CaptureError> {
        let mounts = File::open("/proc/self/mountinfo")
            .map_err(|source| CaptureError::Map { map: "FILE_SYSTEMS", source })?;
        let mut recorder = Recorder {
            watch: None,
            share: None,
            options,
            mounts,
            look_took: Duration::ZERO,
            volume,
            mount_points: Vec::new(),
            ordered,
            slot,
            status,
            aggregate: Aggregate::default(),
            bursts: Bursts::default(),
            looks,
            dismissed: 0,
            waiting: VecDeque::new(),
            unknown: None,
            placer: Placer::default(),
            missing: 0,
            missing_before: 0,
            records: 0,
            seen_until: known_until,
            journal,
            unwatched: Some(Unwatched::since(known_until)),
            known: Vec::new(),
            busy_at: Instant::now(),
        };
        recorder.look_at_mounts()?;
        Ok(recorder)
    }

    fn run(mut self, commands: &Receiver<Sender<()>>) -> Result<(), CaptureError> {
        let (mut handed_on, mut looked) = (Instant::now(), Instant::now());
        let mut changed = false;
        loop {
            let is_idle = self.busy_at.elapsed() >= IDLE;
            let request = commands.recv_timeout(if is_idle { POLL_IDLE } else { POLL });
            let finishing = request.is_ok();
            if finishing || handed_on.elapsed() >= if is_idle { WINDOW_IDLE } else { WINDOW } {
                handed_on = Instant::now();
                self.account();
                if finishing {
                    let looked = self.looks.finish(FINISH_LOOKS_MAX);
                    looked.into_iter().for_each(|looked| self.judge(looked));
                }
                self.close_window();
                self.hand_on();
                self.publish();
            } else {
                self.drain();
            }
            while let Some(looked) = self.looks.answer() {
                self.judge(looked);
            }
            // The kernel tells it once.
            changed |= self.mounts_changed();
            let rest = if changed { self.look_took * LOOKS_PART } else { LOOK_AT_MOUNTS };
            if looked.elapsed() >= rest.min(LOOK_AT_MOUNTS) {
                changed = false;
                looked = Instant::now();
                self.look_at_mounts()?;
            }
            match request {
                Ok(done) => {
                    let begun = Instant::now();
                    while !self.waiting.is_empty() && self.slot.is_set() && begun.elapsed() < FINISH_MAX {
                        self.hand_on();
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    // Whoever asked may have gone.
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Takes what is in the ring.
    fn drain(&mut self) {
        while let Some(watch) = &mut self.watch {
            let seen = watch.drain(EVENTS_MAX);
            let more = seen.len() >= EVENTS_MAX;
            if !seen.is_empty() {
                self.busy_at = Instant::now();
            }
            let clock_ns = monotonic_zero_ns();
            for seen in seen {
                match seen {
                    Seen::Change(change, paths) => {
                        let time = Timestamp(clock_ns.saturating_add(change.time_ns));
                        if let Some(suspicion) = self.bursts.add(&change, &paths, time) {
                            self.suspect(suspicion);
                        }
                        self.aggregate.add(&change, paths, time);
                    }
                    Seen::End { .. } => {}
                    Seen::NotUnderstood => self.lost(1, "an event was not understood"),
                }
            }
            if self.aggregate.is_full() {
                self.close_window();
            }
            if !more {
                return;
            }
        }
    }

    /// Takes what is in the ring, and finds out whether all was there.
    fn account(&mut self) {
        let before = realtime();
        let Some(counters) = self.watch.as_ref().map(FileWatch::counters) else { return };
        self.drain();
        // Counted before the ring was emptied: what is missing happened before now.
        let missing = self.missing_before + counters.missing();
        if missing > self.missing {
            let more = missing - self.missing;
            self.missing = missing;
            self.lost(more, "the probes had no room for them, or could not read them");
        } else {
            self.seen_until = before;
        }
    }

    fn suspect(&mut self, suspicion: Suspicion) {
        if let Err(unseen) = self.looks.ask(suspicion, &self.mount_points) {
            self.judge(unseen);
        }
    }

    fn judge(&mut self, Looked { found, comparison }: Looked) {
        if comparison.makes_burst(&found) {
            return self.tell_burst(found);
        }
        log::debug!(
            "{} rewrote {} files, none the worse",
            found.process.name.escape_ascii(),
            found.rewritten
        );
        self.dismissed += 1;
        if let Some(more) = self.bursts.acquit(&found) {
            self.suspect(more);
        }
    }

    fn tell_burst(&mut self, burst: FileBurst) {
        let random = match burst.random {
            0 => String::new(),
            random => format!(", {random} of {} looked into hold random bytes", burst.sampled),
        };
        let spoiled = match burst.compared {
            0 => String::new(),
            compared => format!(", {} of {compared} compared with before are spoiled", burst.spoiled),
        };
        log::warn!(
            "{} ({}) rewrote {} and removed {} files within seconds{random}{spoiled}: restore to before it with --to \
             before-burst:last, or --to time:{}",
            burst.process.name.escape_ascii(),
            burst.process.pid,
            burst.rewritten,
            burst.removed,
            Timestamp(burst.began.0.saturating_sub(1))
        );
        self.known.push(burst.clone());
        if self.known.len() > BURSTS_MAX {
            self.known.remove(0);
        }
        self.waiting.push_back(Origin::Burst(burst));
    }

    /// From when all was known until now it is not known who changed what.
    fn lost(&mut self, missing: u64, why: &str) {
        let (from, to) = (self.seen_until, realtime());
        let unknown =
            self.unknown.get_or_insert_with(|| OriginUnknown { from, to, missing: 0, why: why.into() });
        unknown.to = to;
        unknown.missing += missing;
    }

    /// What was put together becomes records.
    fn close_window(&mut self) {
        let unknown = self.unknown.take().map(Origin::Unknown);
        let changes: Vec<_> = self.aggregate.take().into_iter().map(bounded).collect();
        changes.iter().for_each(|changes| self.placer.add(changes));
        let changes = changes.into_iter().map(Origin::Changes);
        self.waiting.extend(unknown.into_iter().chain(changes));
        self.waiting.extend(self.placer.look());
        let given_up = self.waiting.len().saturating_sub(WAITING_MAX);
        if given_up > 0 {
            let missing = self.waiting.drain(..given_up).map(|origin| match origin {
                Origin::Changes(changes) => (changes.first, changes.count),
                Origin::Unknown(unknown) => (unknown.from, unknown.missing),
                Origin::Burst(burst) => (burst.began, 0),
                Origin::Places(places) => (places.at, 0),
            });
            let (from, missing) = missing
                .fold((Timestamp(u64::MAX), 0), |(from, sum), (first, count)| (from.min(first), sum + count));
            self.lost(missing, "the journal did not take them");
            if let Some(unknown) = &mut self.unknown {
                unknown.from = unknown.from.min(from);
            }
        }
    }

    fn hand_on(&mut self) {
        while !self.waiting.is_empty() && self.slot.is_set() {
            let count = self.waiting.len().min(ENTRY_RECORDS);
            let origins = self.waiting.drain(..count).collect();
            // Not before what it tells of: an instant of that time must not hold what came after.
            let entry = Entry::Origins { time: realtime(), origins, ordered: self.ordered };
            if let Some(Entry::Origins { origins, .. }) = self.slot.offer(entry) {
                origins.into_iter().rev().for_each(|origin| self.waiting.push_front(origin));
                return;
            }
            self.records += count as u64;
        }
        let is_told = self.watch.is_some() && self.unknown.is_none() && self.slot.is_set();
        if let Some(unwatched) = self.unwatched.take_if(|_| is_told) {
            unwatched.told(realtime()).note(&self.journal);
        }
    }

    fn mounts_changed(&self) -> bool {
        let mut mounts = [PollFd::new(self.mounts.as_fd(), PollFlags::POLLPRI)];
        matches!(poll(&mut mounts, PollTimeout::ZERO), Ok(count) if count > 0)
    }

    fn look_at_mounts(&mut self) -> Result<(), CaptureError> {
        let begun = Instant::now();
        let mounts = mounted_on(self.volume);
        self.look_took = begun.elapsed();
        // What can't be told now is told at the next look.
        let Ok(mounts) = mounts else { return Ok(()) };
        self.placer.mounted(self.volume, &mounts);
        self.mount_points = mounts.iter().map(|mount| mount.mount_point.clone()).collect();
        let number = |n: DeviceNumber| (n.major << 20) | n.minor;
        let file_systems: BTreeSet<u32> = mounts.into_iter().map(|mount| number(mount.number)).collect();
        if file_systems.is_empty() {
            self.account();
            // The last that is shown of these probes: nothing is under way any more that would be counted as seen only.
            self.publish();
            if self.watch.is_some() && self.unwatched.is_none() {
                let unwatched = self.unwatched.insert(Unwatched::since(self.seen_until));
                unwatched.note(&self.journal);
            }
            (self.watch, self.share) = (None, None);
            self.missing_before = self.missing;
        } else {
            let watch = match self.watch.take() {
                Some(watch) => watch,
                None => {
                    let probes = attach(&self.options);
                    give_back();
                    FileWatch::new(probes?)
                }
            };
            if watch.rung() == VfsRung::Syscall && self.options.rung.is_none() && self.share.is_none() {
                self.share = Some(CallShare::take(&run_dir::path())?);
            }
            let new = self.watch.insert(watch).watch(&file_systems)?;
            if !new.is_empty() {
                self.lost(0, "a file system was not watched until then");
            }
        }
        let mut status = self.status.lock().expect("nobody panics with the status locked");
        status.file_systems = file_systems.len();
        status.rung = self.watch.as_ref().map(FileWatch::rung);
        if let Some(watch) = &self.watch {
            status.absent = watch.absent().to_vec();
        }
        Ok(())
    }

    fn publish(&self) {
        let mut status = self.status.lock().expect("nobody panics with the status locked");
        if let Some(watch) = &self.watch {
            status.counters = watch.counters();
        }
        status.missing = self.missing;
        status.records = self.records;
        status.unplaced = self.placer.given_up();
        status.bursts.clone_from(&self.known);
        status.bursts_dismissed = self.dismissed;
    }
}

/// With no more than a record has room for.
fn bounded(changes: FileChanges) -> FileChanges {
    let short = |path: Vec<u8>| if path.len() > usize::from(u16::MAX) { Vec::new() } else { path };
    FileChanges { path: short(changes.path), new_path: short(changes.new_path), ..changes }
}
