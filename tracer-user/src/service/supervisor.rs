//! Keeps a protection going. Collector and journal's thread run until they are told to stop, or until the journal fails:
//! then the probes go on recording where is written, the journal is tried again, and all goes on as after a kill.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

use crate::apply::ReplicaFiles;
use crate::capture::{Capture, Counters};
use crate::collect::{
    Acknowledged, Begin, CollectError, Collector, CollectorOptions, CollectorParts, CollectorStatus, Command,
    Ended, Entry, Freezer, Hooks, ReplicaBytes, State,
};
use crate::io::{BlockDevice, IoCounts, Space};
use crate::journal::{Journal, JournalError, JournalOptions, Writer};
use crate::model::{ByteRangeSet, Lsn, Point, VolumeInfo};
use crate::service::device_source::{DeviceSource, ReplicaFile};
use crate::service::limits::Limits;
use crate::service::origin::OriginThread;
use crate::service::pipeline::run_journal;
use crate::service::prepare::same_as_replica;
use crate::service::progress::SharedProgress;
use crate::service::stopped::Stopped;

/// Entries between collector and journal; one holds the records of 1 MiB at most.
const JOURNAL_QUEUE: usize = 32;
/// A journal that failed is tried again this often.
const RETRY_JOURNAL: Duration = Duration::from_secs(2);

pub struct Supervisor {
    /// Hands its records to the journal, too.
    pub origin: Arc<OriginThread>,
    pub device: BlockDevice,
    /// From before anything was read or written.
    pub counts_before: Option<IoCounts>,
    pub info: VolumeInfo,
    pub journal_dir: PathBuf,
    /// In the order of the progress.
    pub targets: Vec<(PathBuf, ReplicaFiles)>,
    pub journal: Arc<Journal>,
    pub journal_options: JournalOptions,
    /// After a stop in order, too.
    pub keep_probes: bool,
    pub mark_every: Option<Duration>,
    pub freeze_timeout: Duration,
    pub hooks: Option<Hooks>,
    pub limits: Limits,
    pub status: Arc<Mutex<CollectorStatus>>,
    pub progress: Arc<SharedProgress>,
}

/// How a run of collector and journal came to its end.
enum End {
    /// Journal and device said the same after so many submissions, or never.
    Stopped {
        at_rest: Option<u64>,
    },
    JournalFailed(JournalError),
}

impl Supervisor {
    /// Until the end. Stopped in order, nothing of the probes stays behind unless they are to be kept; after an error they do, and go
    /// on recording.
    pub fn run(self, writer: Writer, probes: Capture, commands: Receiver<Command>) {
        match self.supervise(writer, probes, commands) {
            Ok(()) => self.progress.update(|p| p.journal_ended = true),
            Err(error) => self.progress.fail(error),
        }
    }

    fn supervise(
        &self,
        mut writer: Writer,
        mut probes: Capture,
        mut commands: Receiver<Command>,
    ) -> anyhow::Result<()> {
        loop {
            let end;
            (probes, commands, end) = self.run_once(writer, probes, commands)?;
            writer = match end {
                End::Stopped { at_rest } => return self.end(probes, at_rest),
                End::JournalFailed(error) => self.pause(error, &probes, &commands)?,
            };
        }
    }

    fn run_once(
        &self,
        writer: Writer,
        probes: Capture,
        commands: Receiver<Command>,
    ) -> anyhow::Result<(Capture, Receiver<Command>, End)> {
        // The helper is there before anything could freeze.
        let freezer = Freezer::spawn(self.hooks.clone()).context("the freezer process can't be started")?;
        let begin = self.begin(&probes)?;
        let replica = match begin.same_as_replica.is_empty() {
            true => None,
            false => self.replica(&writer),
        };
        let acknowledged = Arc::new(Acknowledged::default());
        let (queue, entries) = sync_channel::<Entry>(JOURNAL_QUEUE);
        self.origin.slot.set(Some(queue.clone()));
        let parts = CollectorParts {
            probes,
            source: DeviceSource::open(self.device.clone())?,
            replica: replica.map(|replica| Box::new(replica) as Box<dyn ReplicaBytes + Send>),
            freezer: Box::new(freezer),
            journal: queue,
            commands,
            acknowledged: acknowledged.clone(),
            status: self.status.clone(),
            options: CollectorOptions {
                mark_every: self.mark_every,
                freeze_timeout: self.freeze_timeout,
                next_mark: writer.next_mark(),
                scan_pace: self.limits.of_scan(),
            },
        };
        let collector = Collector::new(parts, begin)?;
        let progress = self.progress.clone();
        let journal = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || run_journal(writer, &entries, &acknowledged, &progress))
            .context("a thread can't be started")?;
        let Ended { probes, commands, at_rest, result } = collector.run();
        // The journal's thread ends when nobody has its queue any more.
        self.origin.finish();
        let journaled = journal.join().map_err(|_| anyhow!("a thread panicked, please report it"))?;
        match (result, journaled) {
            (Ok(()), Ok(())) => Ok((probes, commands, End::Stopped { at_rest })),
            // Nobody waits for it to heal: the next start goes on.
            (Ok(()), Err(error)) => Err(error).context("the last mark could not be made durable"),
            (Err(CollectError::JournalEnded), Err(error)) => {
                Ok((probes, commands, End::JournalFailed(error)))
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    /// One to compare with. Without any, all is copied.
    fn replica(&self, writer: &Writer) -> Option<ReplicaFile> {
        let goal = self.goal(writer);
        let there = self.progress.get().targets_at(goal);
        there.into_iter().find_map(|at| {
            let (path, files) = &self.targets[at];
            let failed = |error: &std::io::Error| {
                log::warn!("the replica {} can't be read for comparing: {error}", path.display());
            };
            ReplicaFile::open(path, files).inspect_err(failed).ok()
        })
    }

    /// What a replica has to be at to be compared with.
    fn goal(&self, writer: &Writer) -> Lsn {
        self.progress.get().restorable.as_ref().map_or(writer.durable(), |mark| mark.lsn)
    }

    /// Removes the probes. What they count must still be so after the kernel was asked what it has counted: then no write
    /// falls in between.
    fn end(&self, probes: Capture, at_rest: Option<u64>) -> anyhow::Result<()> {
        if self.keep_probes && probes.is_pinned() {
            return Ok(());
        }
        let mark = self.progress.get().restorable.as_ref().map(|mark| mark.id);
        let stopped = mark.zip(at_rest).and_then(|(mark, seen)| {
            let stopped = Stopped::of(&self.device, mark, self.counts_before.as_ref()?)?;
            (probes.counters().seen == seen).then_some(stopped)
        });
        probes.detach()?;
        if let Some(stopped) = stopped {
            // Without it the next start compares the volume, that is all.
            let _ = stopped.write(&self.journal_dir).inspect_err(|error| {
                log::warn!("the clean stop can't be recorded in {}: {error}", self.journal_dir.display());
            });
        }
        Ok(())
    }

    /// What has to be read first: what the probes' ledger says.
    fn begin(&self, probes: &Capture) -> anyhow::Result<Begin> {
        let restorable = self.progress.get().restorable.clone();
        let unscanned = probes.ledger().unscanned();
        let same_as_replica = match unscanned.is_empty() {
            true => ByteRangeSet::new(),
            false => same_as_replica(&self.journal, restorable.as_ref(), self.info.size_bytes)?,
        };
        let state = first_state(&unscanned, restorable.as_ref());
        Ok(Begin { state, unscanned, same_as_replica, owed: probes.ledger().owed() })
    }

    /// Until the journal can be written again.
    fn pause(
        &self,
        why: JournalError,
        probes: &Capture,
        commands: &Receiver<Command>,
    ) -> anyhow::Result<Writer> {
        let full = matches!(why, JournalError::NoSpace { .. });
        let mut why = format!("{:#}", anyhow!(why));
        log::error!("paused, as the journal can't be written; where is written is recorded: {why}");
        loop {
            self.show_paused(&why, probes.counters());
            match commands.recv_timeout(RETRY_JOURNAL) {
                Ok(Command::Mark { reply, .. }) => {
                    reply.map(|reply| reply.try_send(Err(format!("paused, no mark can be made: {why}"))));
                    continue;
                }
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    bail!("stopped while the journal could not be written, the probes go on recording: {why}")
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            match self.reopen(full, probes) {
                Ok(writer) => {
                    log::warn!("the journal can be written again");
                    self.progress.update(|p| p.paused = None);
                    return Ok(writer);
                }
                Err(error) => why = format!("{error:#}"),
            }
        }
    }

    fn reopen(&self, was_full: bool, probes: &Capture) -> anyhow::Result<Writer> {
        if was_full {
            let space = Space::of(&self.journal_dir).context("the journal's disk can't be looked at")?;
            if !space.is_enough_to_resume() {
                bail!("no space left for the journal: free some under {}", self.journal_dir.display());
            }
        }
        let (writer, _) = Writer::open(&self.journal_dir, self.journal_options.clone())?;
        let goal = self.goal(&writer);
        if self.progress.get().targets_at(goal).is_empty() && !probes.ledger().unscanned().is_empty() {
            bail!(
                "the rest of the volume is to be compared with a replica, and none has come to record {goal} yet"
            );
        }
        Ok(writer)
    }

    fn show_paused(&self, why: &str, counters: Counters) {
        self.progress.update(|p| p.paused = Some(why.to_owned()));
        let mut status = self.status.lock().expect("nobody panics with the status locked");
        status.state = State::Paused;
        status.counters = counters;
    }
}

/// What a protection begins with.
pub fn first_state(unscanned: &ByteRangeSet, restorable: Option<&Point>) -> State {
    match (unscanned.is_empty(), restorable) {
        (true, _) => State::Live,
        (false, Some(_)) => State::Resync,
        (false, None) => State::Baseline,
    }
}
