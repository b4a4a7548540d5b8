use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::apply::{Checkpoint, ReplicaFiles};
use crate::capture::vfs::VfsOptions;
use crate::capture::{Capture, CaptureError, CaptureOptions, Origin, Rung};
use crate::collect::{CollectorStatus, Command, Hooks};
use crate::io::BlockDevice;
use crate::io::clock::realtime;
use crate::journal::{JournalOptions, PruneOptions, prune};
use crate::model::{ByteRangeSet, Point};
use crate::service::applier::{Applier, Shared, bring_one};
use crate::service::control::{self, Served, Shown};
use crate::service::device_source::volume_extent;
use crate::service::limits::Limits;
use crate::service::memory::{give_back, limit_allocator};
use crate::service::origin::{OriginStatus, OriginThread, Watched};
use crate::service::prepare::{PrepareError, Prepared, prepare};
use crate::service::progress::{
    LeftOut, Progress, ReplicaStatus, SharedProgress, Status, TargetProgress, furthest_behind,
};
use crate::service::replica_samples::Replicas;
use crate::service::retention::run_retention;
use crate::service::run_dir;
use crate::service::stopped::{Stopped, look};
use crate::service::supervisor::{Supervisor, first_state};
use crate::service::unwatched::Unwatched;

/// How long a device that takes bios may keep us from finding it idle once at the start.
const IDLE_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct ProtectOptions {
    pub source: PathBuf,
    pub journal: PathBuf,
    /// One at least.
    pub targets: Vec<PathBuf>,
    pub mark_every: Option<Duration>,
    pub freeze_timeout: Duration,
    /// Run around each mark.
    pub hooks: Option<Hooks>,
    pub limits: Limits,
    pub journal_options: JournalOptions,
    pub capture: CaptureOptions,
    /// Overwrite a target that is not empty.
    pub force: bool,
    /// How changes of files are watched, to journal who made them; `None`: they are not.
    pub origin: Option<VfsOptions>,
    /// Nothing else than this system writes to the source, nor does this system when protect has stopped to shut down.
    pub trust_reboot: bool,
    /// The probes stay at work after the stop, for what is written until `finish`.
    pub early: bool,
    /// What of the history is kept; all of it when not given.
    pub retention: Option<PruneOptions>,
}

#[derive(Debug, thiserror::Error)]
pub enum ProtectError {
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(
        "{device} never had an instant without writes in {IDLE_MAX:?}, so that writes from before the start can't be told \
         from later ones; start again when it is less busy"
    )]
    NeverIdle { device: PathBuf },
    #[error("the protection ended; the source was not touched, start again to resume: {0}")]
    Failed(String),
    #[error("interrupted before the last mark; start again to resume")]
    Aborted,
    #[error("could not start")]
    Start(#[source] anyhow::Error),
}

/// What a user interface may show.
pub enum ProtectEvent<'a> {
    /// The journal's end was torn by a crash and cut.
    Recovered {
        bytes: u64,
    },
    /// The replica is brought to the journal's last mark before the start.
    CatchingUp {
        mark: Option<&'a Point>,
    },
    /// Every write is captured from here on.
    Attached {
        rung: Rung,
        resumed: bool,
        origin: Origin,
        /// What has to be copied or compared; 0 when nothing was written since a clean stop.
        unscanned_bytes: u64,
    },
    /// Twice a second.
    Progress(&'a Status),
    Stopping,
}

#[derive(Clone, Debug)]
pub struct ProtectSummary {
    pub last: Status,
}

/// Protects until SIGINT or SIGTERM; then drains, marks and stops. A second signal ends it at once.
pub fn protect(
    options: &ProtectOptions,
    show: &mut dyn FnMut(ProtectEvent<'_>),
) -> Result<ProtectSummary, ProtectError> {
    run(options, false, show)
}

/// Journals what the probes recorded that an earlier protection left at work, makes a last mark, removes them, and leaves the marker
/// of a clean stop.
pub fn finish(
    options: &ProtectOptions,
    show: &mut dyn FnMut(ProtectEvent<'_>),
) -> Result<ProtectSummary, ProtectError> {
    // What hooks would tell has ended by now.
    let last = ProtectOptions { hooks: None, origin: None, retention: None, early: false, ..options.clone() };
    run(&last, true, show)
}

fn run(
    options: &ProtectOptions,
    is_last: bool,
    show: &mut dyn FnMut(ProtectEvent<'_>),
) -> Result<ProtectSummary, ProtectError> {
    limit_allocator();
    let run_dir = run_dir::path();
    let prepared = prepare(
        &options.source,
        &options.journal,
        &options.targets,
        options.journal_options.clone(),
        options.force,
        &run_dir,
    )?;
    if let Some(tail) = prepared.recovery.as_ref().and_then(|recovery| recovery.cut.as_ref()) {
        show(ProtectEvent::Recovered { bytes: tail.bytes });
    }
    let socket = run_dir::socket(&run_dir, &prepared.device.name);
    let running = Running::start(prepared, options, show)?;
    if is_last {
        // That it has ended by itself is found out as well.
        let _ = running.commands.send(Command::Stop);
    }
    let mut shows = |shown: Shown<'_, Status>| {
        show(match shown {
            Shown::Progress(status) => ProtectEvent::Progress(status),
            Shown::Stopping => ProtectEvent::Stopping,
        });
    };
    let Some(last) = control::serve(&socket, &running, &mut shows).map_err(ProtectError::Start)? else {
        return Err(ProtectError::Aborted);
    };
    match running.join() {
        Some(why) => Err(ProtectError::Failed(why)),
        None => Ok(ProtectSummary { last }),
    }
}

/// The threads of a protection and what they share.
struct Running {
    commands: Sender<Command>,
    collector_status: Arc<Mutex<CollectorStatus>>,
    progress: Arc<SharedProgress>,
    origin: Arc<OriginThread>,
    threads: Vec<JoinHandle<()>>,
    targets: Vec<PathBuf>,
    /// All but what changes.
    status: Status,
    _lock: run_dir::VolumeLock,
}

impl Running {
    fn start(
        prepared: Prepared,
        options: &ProtectOptions,
        show: &mut dyn FnMut(ProtectEvent<'_>),
    ) -> Result<Running, ProtectError> {
        let Prepared { device, lock, info, writer, journal, targets, restorable, resumed, .. } = prepared;
        let journal = Arc::new(journal);
        let counts_before = device.io_counts();
        // First of all: what happens from here on is known.
        let newest = restorable.as_ref().map(|mark| mark.id);
        let (capture, origin) =
            Capture::open(volume_extent(&device), &device.name, info.id, newest, &options.capture)?;
        give_back();
        let rung = capture.rung();
        let stopped = Stopped::take(&options.journal)
            .context("the marker of a clean stop can't be taken from the journal")
            .map_err(ProtectError::Start)?;
        let found = match origin {
            Origin::New => look(&device),
            Origin::Early => capture.found(),
            Origin::Adopted | Origin::Replaced => None,
        };
        let unchanged =
            stopped.is_some_and(|stopped| stopped.still_holds(&device, found, newest, options.trust_reboot));
        if unchanged {
            capture.ledger().keep_unscanned(&ByteRangeSet::new());
        }
        if options.early && origin == Origin::New && resumed {
            log::warn!(
                "what was written before this start is not known, as no probes were at work: is `afterwrite attach` in the \
                 initramfs (`update-initramfs -u`, or `dracut --force`)?"
            );
        }
        let unscanned = capture.ledger().unscanned();
        show(ProtectEvent::Attached { rung, resumed, origin, unscanned_bytes: unscanned.bytes() });
        if origin == Origin::New || (origin == Origin::Early && !unchanged) {
            await_idle(&device)?;
        }
        let progress = Arc::new(SharedProgress::new(Progress {
            durable: writer.durable(),
            last_mark: restorable.clone(),
            restorable: restorable.clone(),
            targets: targets.iter().map(|target| target.progress()).collect(),
            ..Progress::default()
        }));
        let named: Vec<_> =
            targets.iter().map(|target| (target.path.clone(), target.files.clone())).collect();
        let shared = Shared {
            source: device.clone(),
            info: info.clone(),
            journal: journal.clone(),
            progress: progress.clone(),
        };
        let of_targets = targets.into_iter().enumerate();
        let mut appliers: Vec<Applier> = of_targets
            .map(|(index, target)| Applier::new(index, target, options.limits.of_target(), &shared))
            .collect();
        let goal = restorable.as_ref().map_or(writer.durable(), |mark| mark.lsn);
        // What is to be compared with a replica needs one at the mark; else they come there by and by.
        if resumed && !appliers.iter().all(|applier| applier.is_at(goal)) {
            show(ProtectEvent::CatchingUp { mark: restorable.as_ref() });
        }
        if resumed && !unscanned.is_empty() {
            bring_one(&mut appliers, goal, restorable.as_ref()).map_err(ProtectError::Start)?;
        }

        let (commands, command_queue) = channel();
        let collector_status = Arc::new(Mutex::new(CollectorStatus {
            state: first_state(&unscanned, restorable.as_ref()),
            scan_total_bytes: info.size_bytes,
            ..CollectorStatus::default()
        }));
        let status = Status {
            volume: info.id,
            source: options.source.display().to_string(),
            size_bytes: info.size_bytes,
            pid: std::process::id(),
            capture: if capture.copies_payload() { "payload" } else { "extents" },
            rung,
            pinned: capture.is_pinned(),
            probes: origin,
            ring_bytes: options.capture.ring_bytes.into(),
            recording: "ring",
            paused: None,
            journal: options.journal.display().to_string(),
            collector: CollectorStatus::default(),
            durable_lsn: writer.durable(),
            journal_bytes: 0,
            last_mark: None,
            replica: ReplicaStatus::default(),
            replicas: Vec::new(),
            left_out: left_out(&options.journal, &named),
            origin: OriginStatus::default(),
            retention: None,
        };
        let last = restorable.as_ref().map_or(info.created, |mark| mark.time);
        let known_until = Unwatched::known_until(&options.journal, last).max(info.created);
        Unwatched::since(known_until).note(&options.journal);
        let watched = Watched {
            volume: device.number,
            journal: options.journal.clone(),
            known_until,
            ordered: capture.copies_payload(),
        };
        let replicas = Replicas { targets: named.clone(), progress: progress.clone() };
        let origin = Arc::new(match options.origin.clone() {
            Some(vfs) => OriginThread::start(watched, replicas, vfs)
                .context("a thread can't be started")
                .map_err(ProtectError::Start)?,
            None => OriginThread::not_wanted(),
        });
        let supervisor = Supervisor {
            origin: origin.clone(),
            device,
            counts_before,
            info: info.clone(),
            journal_dir: options.journal.clone(),
            targets: named,
            journal: journal.clone(),
            journal_options: options.journal_options.clone(),
            keep_probes: options.early,
            mark_every: options.mark_every,
            freeze_timeout: options.freeze_timeout,
            hooks: options.hooks.clone(),
            limits: options.limits,
            status: collector_status.clone(),
            progress: progress.clone(),
        };
        let mut threads = vec![spawn("collector", move || supervisor.run(writer, capture, command_queue))?];
        for applier in appliers {
            threads.push(spawn("applier", move || applier.run())?);
        }
        if let Some(retention) = options.retention.clone() {
            let (dir, pruned) = (options.journal.clone(), progress.clone());
            spawn("retention", move || {
                run_retention(&retention, |options, now| prune(&dir, options, now), &*pruned);
            })?;
        }
        Ok(Running {
            commands,
            collector_status,
            progress,
            origin,
            threads,
            targets: options.targets.clone(),
            status,
            _lock: lock,
        })
    }

    fn now(&self) -> Status {
        let collector = self.collector_status.lock().expect("nobody panics with the status locked").clone();
        let progress = self.progress.get().clone();
        let now = realtime();
        let of = |(index, path): (usize, &PathBuf)| {
            progress.replica_status(index, &path.display().to_string(), now)
        };
        let replicas: Vec<ReplicaStatus> = self.targets.iter().enumerate().map(of).collect();
        let on_bitmap = progress.paused.is_some() || collector.overrun;
        Status {
            collector,
            recording: if on_bitmap { "bitmap" } else { "ring" },
            paused: progress.paused,
            durable_lsn: progress.durable,
            journal_bytes: progress.journal_bytes,
            last_mark: progress.last_mark,
            replica: furthest_behind(&replicas),
            replicas,
            origin: self.origin.status(),
            retention: progress.retention,
            ..self.status.clone()
        }
    }

    /// Waits for the threads; the first failure, if there was one.
    fn join(self) -> Option<String> {
        // Without anybody to command it, and with the journal gone, each ends on its own.
        let failure = self.progress.get().failure.clone();
        if failure.is_none() {
            for thread in self.threads {
                if thread.join().is_err() {
                    return Some("a thread panicked, please report it".into());
                }
            }
        }
        let progress = self.progress.get();
        let behind = |(target, of): (&PathBuf, &TargetProgress)| {
            let why = of.error.as_ref()?;
            Some(format!("{} could not be brought to the last mark: {why}", target.display()))
        };
        let behind = || self.targets.iter().zip(&progress.targets).find_map(behind);
        progress.failure.clone().or_else(behind)
    }
}

impl Served for Running {
    type Status = Status;

    fn status(&self) -> Status {
        self.now()
    }

    fn commands(&self) -> Sender<Command> {
        self.commands.clone()
    }

    /// All threads ended, or one failed.
    fn ended(&self) -> bool {
        self.progress.get().failure.is_some() || self.threads.iter().all(JoinHandle::is_finished)
    }
}

/// Targets that were named before, and whose place has no other one now.
fn left_out(journal: &Path, named: &[(PathBuf, ReplicaFiles)]) -> Vec<LeftOut> {
    let files: Vec<_> = named.iter().map(|(_, files)| files).collect();
    let mut others = ReplicaFiles::of_others(journal, &files);
    others.retain(|other| named.iter().all(|(path, _)| path.as_path() != Path::new(&other.target_path)));
    let left_out =
        |other: Checkpoint| LeftOut { target: other.target_path, mark: other.mark.map(|mark| mark.0) };
    others.into_iter().map(left_out).collect()
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, ProtectError> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .context("a thread can't be started")
        .map_err(ProtectError::Start)
}

/// Writes that were under way when the probes came are nobody's: the scan must not read before they are done. A
/// request-based device tells the range of each when it completes, a bio-based one need not.
fn await_idle(device: &BlockDevice) -> Result<(), ProtectError> {
    let limit = if device.request_based { Duration::from_secs(1) } else { IDLE_MAX };
    let begun = Instant::now();
    while device.writes_in_flight().is_some_and(|count| count > 0) {
        if begun.elapsed() > limit {
            if device.request_based {
                return Ok(());
            }
            return Err(ProtectError::NeverIdle { device: device.path.clone() });
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
