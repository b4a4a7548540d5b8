use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::capture::{Capture, CaptureError, CaptureOptions, Rung};
use crate::collect::{
    Collector, CollectorOptions, CollectorParts, CollectorStatus, Command, Entry, Freezer, ReplicaBytes,
    State,
};
use crate::io::{BlockDevice, ReadError};
use crate::journal::JournalOptions;
use crate::model::{ByteRange, ByteRangeSet, Lsn, Point, RecordBody, Timestamp};
use crate::service::control;
use crate::service::device_source::{DeviceSource, ReplicaFile, volume_extent};
use crate::service::memory::limit_allocator;
use crate::service::pipeline::{advance, run_applier, run_journal};
use crate::service::prepare::{PrepareError, Prepared, prepare, same_as_replica};
use crate::service::progress::{Progress, ReplicaStatus, SharedProgress, Status};
use crate::service::run_dir;

/// Entries between collector and journal; one holds the records of 1 MiB at most.
const JOURNAL_QUEUE: usize = 32;
/// How long a device that takes bios may keep us from finding it idle once at the start.
const IDLE_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct ProtectOptions {
    pub source: PathBuf,
    pub journal: PathBuf,
    pub target: PathBuf,
    pub mark_every: Option<Duration>,
    pub freeze_timeout: Duration,
    pub journal_options: JournalOptions,
    pub capture: CaptureOptions,
    /// Overwrite a target that is not empty.
    pub force: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ProtectError {
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error("the source can't be read")]
    Source(#[from] ReadError),
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
    limit_allocator();
    let run_dir = run_dir::path();
    let prepared = prepare(
        &options.source,
        &options.journal,
        &options.target,
        options.journal_options.clone(),
        options.force,
        &run_dir,
    )?;
    if let Some(tail) = prepared.recovery.as_ref().and_then(|recovery| recovery.cut.as_ref()) {
        show(ProtectEvent::Recovered { bytes: tail.bytes });
    }
    let socket = run_dir::socket(&run_dir, &prepared.device.name);
    let running = Running::start(prepared, options, show)?;
    let Some(last) = control::serve(&socket, &running, show).map_err(ProtectError::Start)? else {
        return Err(ProtectError::Aborted);
    };
    match running.join() {
        Some(why) => Err(ProtectError::Failed(why)),
        None => Ok(ProtectSummary { last }),
    }
}

/// The threads of a protection and what they share.
pub(super) struct Running {
    pub commands: Sender<Command>,
    collector_status: Arc<Mutex<CollectorStatus>>,
    progress: Arc<SharedProgress>,
    threads: Vec<JoinHandle<()>>,
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
        let Prepared { device, lock, info, mut writer, journal, mut replica, restorable, resumed, .. } =
            prepared;
        let prepare_failed = |error| ProtectError::Prepare(PrepareError::Journal(error));

        // The helper is there before anything could freeze.
        let freezer = Freezer::spawn().context("the freezer process").map_err(ProtectError::Start)?;
        let progress = Arc::new(SharedProgress::new(Progress {
            durable: writer.durable(),
            last_mark: restorable.clone(),
            restorable: restorable.clone(),
            ..Progress::default()
        }));
        let goal = restorable.as_ref().map_or(writer.durable(), |mark| mark.lsn);
        if resumed && goal > Lsn::ZERO {
            show(ProtectEvent::CatchingUp { mark: restorable.as_ref() });
            advance(&mut replica, &journal, goal, restorable.as_ref(), &progress)
                .map_err(ProtectError::Start)?;
        }
        let same = same_as_replica(&journal, restorable.as_ref(), info.size_bytes).map_err(prepare_failed)?;
        if resumed {
            let whole = RecordBody::Gap(ByteRange::new(0, info.size_bytes));
            let now = jiff::Timestamp::now().as_nanosecond();
            writer.append(Timestamp(u64::try_from(now).unwrap_or(0)), whole).map_err(prepare_failed)?;
        }

        let capture = Capture::attach(volume_extent(&device), &options.capture)?;
        await_idle(&device)?;
        let rung = capture.rung();
        show(ProtectEvent::Attached { rung, resumed });

        let (journal_queue, entries) = sync_channel::<Entry>(JOURNAL_QUEUE);
        let (commands, command_queue) = channel();
        let state = if restorable.is_some() { State::Resync } else { State::Baseline };
        let collector_status = Arc::new(Mutex::new(CollectorStatus { state, ..CollectorStatus::default() }));
        let replica_bytes = ReplicaFile::open(&options.target)
            .context("the target can't be read")
            .map_err(ProtectError::Start)?;
        let parts = CollectorParts {
            probes: capture,
            source: DeviceSource::open(device)?,
            replica: Some(Box::new(replica_bytes) as Box<dyn ReplicaBytes + Send>),
            freezer: Box::new(freezer),
            journal: journal_queue,
            commands: command_queue,
            status: collector_status.clone(),
            options: CollectorOptions {
                mark_every: options.mark_every,
                freeze_timeout: options.freeze_timeout,
                next_mark: writer.next_mark(),
            },
        };
        let status = Status {
            volume: info.id,
            source: options.source.display().to_string(),
            size_bytes: info.size_bytes,
            pid: std::process::id(),
            capture: "extents",
            rung,
            journal: options.journal.display().to_string(),
            target: options.target.display().to_string(),
            collector: CollectorStatus::default(),
            durable_lsn: writer.durable(),
            journal_bytes: 0,
            last_mark: None,
            replica: ReplicaStatus::default(),
        };

        let mut threads = Vec::new();
        let failed = progress.clone();
        threads.push(spawn("collector", move || run_collector(parts, &same, state, &failed))?);
        let journaled = progress.clone();
        threads.push(spawn("journal", move || run_journal(writer, &entries, &journaled))?);
        let applied = progress.clone();
        threads.push(spawn("applier", move || run_applier(replica, &journal, &applied))?);
        Ok(Running { commands, collector_status, progress, threads, status, _lock: lock })
    }

    pub fn status(&self) -> Status {
        let collector = self.collector_status.lock().expect("nobody panics with the status locked").clone();
        let progress = self.progress.get().clone();
        let age = progress.replica_mark.as_ref().map(|mark| {
            let now = jiff::Timestamp::now().as_nanosecond();
            u64::try_from((now - i128::from(mark.time.0)).max(0) / 1_000_000).unwrap_or(u64::MAX)
        });
        Status {
            collector,
            durable_lsn: progress.durable,
            journal_bytes: progress.journal_bytes,
            last_mark: progress.last_mark,
            replica: ReplicaStatus {
                applied_lsn: progress.applied,
                consistent: progress.consistent,
                mark: progress.replica_mark.map(|mark| mark.id),
                age_ms: age,
                written_bytes: progress.target_bytes,
            },
            ..self.status.clone()
        }
    }

    /// All threads ended, or one failed.
    pub fn ended(&self) -> bool {
        self.progress.get().failure.is_some() || self.threads.iter().all(JoinHandle::is_finished)
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
        self.progress.get().failure.clone()
    }
}

fn run_collector(
    parts: CollectorParts<Capture, DeviceSource>,
    same: &ByteRangeSet,
    state: State,
    progress: &Arc<SharedProgress>,
) {
    let result = Collector::new(parts, same, state).and_then(Collector::run);
    if let Err(error) = result {
        progress.fail(error.into());
    }
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
