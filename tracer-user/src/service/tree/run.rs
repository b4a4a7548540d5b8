//! The threads: one collects and journals, one brings the target from mark to mark.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::capture::vfs::{VfsRung, attach};
use crate::collect::{Command, Freezer, MarkDone, MarkReply};
use crate::io::clock::realtime;
use crate::journal::{Journal, Writer};
use crate::model::{Activity, ActivityShown, Point};
use crate::origin::FileWatch;
use crate::service::control::{self, Served, Shown};
use crate::service::retention::run_retention;
use crate::service::run_dir;
use crate::service::tree::prepare::{Prepared, prepare};
use crate::service::tree::status::{Shared, TreeReplicaStatus, TreeStatus};
use crate::service::tree::world::Probes;
use crate::service::tree::{TreeEvent, TreeOptions};
use crate::tree::{Collector, CollectorStatus, MarkMade, Source, TreeError, TreeReplica, load, prune};

const POLL: Duration = Duration::from_millis(2);
/// When nothing has happened for so many turns.
const POLL_IDLE: Duration = Duration::from_millis(20);
const IDLE_TURNS: u32 = 500;
const TRY_AGAIN: Duration = Duration::from_secs(2);
const STATUS_EVERY: Duration = Duration::from_millis(100);

/// Protects until SIGINT or SIGTERM; then makes a last mark and stops. A second signal ends it at once: `None`.
pub fn protect_tree(
    options: &TreeOptions,
    show: &mut dyn FnMut(TreeEvent<'_>),
) -> anyhow::Result<Option<TreeStatus>> {
    let Prepared { source, name, lock, info, writer, replica, resumed, not_frozen, dev, root } =
        prepare(options)?;
    let mut watch = FileWatch::new(attach(&options.probes)?);
    watch.watch(&BTreeSet::from([dev]))?;
    let journal = Journal::open(&options.journal)?;
    let marks = journal.points()?;
    let last = marks.iter().rev().find(|mark| mark.class.restorable()).cloned();
    let status = TreeStatus {
        kind: "tree",
        volume: info.id,
        source: info.source.clone(),
        pid: std::process::id(),
        state: if resumed { "resync" } else { "baseline" },
        rung: watch.rung(),
        absent: watch.absent().to_vec(),
        counters: watch.counters(),
        journal: options.journal.display().to_string(),
        target: options.target.display().to_string(),
        not_frozen: not_frozen.clone(),
        collector: CollectorStatus::default(),
        journal_bytes: 0,
        paused: None,
        last_mark: marks.last().cloned(),
        last_mark_error: None,
        replica: TreeReplicaStatus::default(),
        retention: None,
        activity: ActivityShown::default(),
    };
    show(TreeEvent::Attached { status: &status, resumed });
    let shared = Shared::new(status);
    shared.update(|state| state.goal = last);
    let mount = source.path().to_owned();
    let world = Probes {
        always_clean: watch.rung() == VfsRung::Syscall,
        watch,
        root,
        mount,
        freezer: Freezer::spawn(None).context("the process that freezes can't be started")?,
        freeze_at_most: options.freeze_timeout,
    };
    let (commands, orders) = channel();
    let recorder = Recorder {
        options: options.clone(),
        orders,
        shared: shared.clone(),
        frozen_at_most: not_frozen.is_none().then_some(options.freeze_timeout),
        stopping: false,
        activity: Activity::new(0),
        data_bytes: 0,
    };
    let mut threads = Vec::new();
    let of_tree = shared.clone();
    threads.push(spawn("tree", move || {
        let ends = Ends(of_tree.clone());
        let result = recorder.run(world, source, writer);
        drop(ends);
        of_tree.update(|state| {
            if let Err(error) = result {
                state.failure.get_or_insert_with(|| format!("{error:#}"));
            }
        });
    })?);
    let (of_target, dir, target) = (shared.clone(), options.journal.clone(), options.target.clone());
    threads.push(spawn("target", move || {
        apply(&of_target, replica, &dir, &target);
    })?);
    if let Some(retention) = options.retention.clone() {
        let (of_journal, dir) = (shared.clone(), options.journal.clone());
        spawn("retention", move || {
            run_retention(&retention, |options, now| prune(&dir, options, now), &*of_journal);
        })?;
    }
    let running = Running { shared: shared.clone(), commands, threads };
    let socket = run_dir::socket(&run_dir::path(), &name);
    let last = control::serve(&socket, &running, &mut |shown| {
        show(match shown {
            Shown::Progress(status) => TreeEvent::Progress(status),
            Shown::Stopping => TreeEvent::Stopping,
        });
    })?;
    let Some(last) = last else { return Ok(None) };
    for thread in running.threads {
        if thread.join().is_err() {
            anyhow::bail!("a thread of the protection panicked, please report it");
        }
    }
    drop(lock);
    match shared.update(|state| state.failure.take()) {
        Some(why) => anyhow::bail!("the protection failed: {why}"),
        None => Ok(Some(last)),
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(run)
}

/// However the thread that journals ends, the one that applies hears of it.
struct Ends(Arc<Shared>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.update(|state| state.ended = true);
    }
}

struct Running {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    threads: Vec<JoinHandle<()>>,
}

impl Served for Running {
    type Status = TreeStatus;

    fn status(&self) -> TreeStatus {
        self.shared.status()
    }

    fn commands(&self) -> Sender<Command> {
        self.commands.clone()
    }

    fn ended(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }
}

/// The thread that collects and journals.
struct Recorder {
    options: TreeOptions,
    orders: Receiver<Command>,
    shared: Arc<Shared>,
    frozen_at_most: Option<Duration>,
    stopping: bool,
    activity: Activity,
    /// Of the collector when it was last looked at.
    data_bytes: u64,
}

impl Recorder {
    fn run(mut self, mut world: Probes, mut source: Source, writer: Writer) -> anyhow::Result<()> {
        let mut next = Some(writer);
        loop {
            let writer = match next.take() {
                Some(writer) => writer,
                None => match self.reopen(&mut world)? {
                    Some(writer) => writer,
                    None => return Ok(()),
                },
            };
            let always_clean = world.always_clean;
            let journal = Journal::open(&self.options.journal)?;
            let catalog = load(&journal, writer.durable())?;
            let path = source.path().to_owned();
            let mut collector = Collector::new(world, source, writer, catalog, always_clean)?;
            match self.collect(&mut collector) {
                Ok(()) => return Ok(()),
                // It may have room again, or be back.
                Err(TreeError::Journal(error)) => {
                    let why = format!("{:#}", anyhow::Error::from(error));
                    self.shared.update(|state| state.status.paused = Some(why));
                }
                Err(error) => return Err(error.into()),
            }
            world = collector.into_world();
            source = Source::open(&path)?;
        }
    }

    /// Waits until the journal can be written; what happens meanwhile is found by looking at all. `None`: told to stop.
    fn reopen(&mut self, world: &mut Probes) -> anyhow::Result<Option<Writer>> {
        use crate::tree::event::World;
        loop {
            let begun = Instant::now();
            while begun.elapsed() < TRY_AGAIN {
                while !world.events(4096).is_empty() {}
                match self.orders.recv_timeout(Duration::from_millis(20)) {
                    Ok(Command::Mark { reply: Some(reply), .. }) => {
                        // Nobody may be waiting any more.
                        let _ = reply.send(Err("the journal can't be written at the moment".into()));
                    }
                    Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(None),
                    Ok(Command::Mark { .. }) | Err(RecvTimeoutError::Timeout) => {}
                }
            }
            match Writer::open(&self.options.journal, self.options.journal_options.clone()) {
                Ok((writer, _)) => {
                    self.shared.update(|state| state.status.paused = None);
                    return Ok(Some(writer));
                }
                Err(error) => {
                    let why = format!("{:#}", anyhow::Error::from(error));
                    self.shared.update(|state| state.status.paused = Some(why));
                }
            }
        }
    }

    fn collect(&mut self, collector: &mut Collector<Probes>) -> Result<(), TreeError> {
        let (mut shown, mut marked) = (Instant::now(), Instant::now());
        let (mut first, mut idle_turns) = (true, 0u32);
        while !self.stopping {
            let busy = collector.turn()?;
            if collector.is_complete() && first {
                first = false;
                self.mark(collector, "", None)?;
                marked = Instant::now();
            }
            match self.orders.try_recv() {
                Ok(Command::Mark { group: Some(_), reply, .. }) => {
                    reply.map(|reply| reply.try_send(Err("a tree is in no group".into())));
                }
                Ok(Command::Mark { label, reply, group: None }) => {
                    self.mark(collector, &label, reply)?;
                    marked = Instant::now();
                }
                Ok(Command::Stop) => self.stopping = true,
                Err(_) => {}
            }
            if self.options.mark_every.is_some_and(|every| marked.elapsed() >= every)
                && collector.is_complete()
            {
                self.mark(collector, "", None)?;
                marked = Instant::now();
            }
            if shown.elapsed() >= STATUS_EVERY {
                shown = Instant::now();
                self.publish(collector);
            }
            idle_turns = if busy { 0 } else { idle_turns.saturating_add(1) };
            if !busy {
                std::thread::sleep(if idle_turns < IDLE_TURNS { POLL } else { POLL_IDLE });
            }
        }
        self.mark(collector, "stop", None)?;
        collector.writer().sync()?;
        self.publish(collector);
        Ok(())
    }

    fn mark(
        &mut self,
        collector: &mut Collector<Probes>,
        label: &str,
        reply: Option<MarkReply>,
    ) -> Result<(), TreeError> {
        let made = collector.mark(label, self.frozen_at_most)?;
        self.publish(collector);
        let done = made.map(|MarkMade { point, frozen }| {
            let frozen_ms = frozen.map(|held| u64::try_from(held.as_millis()).unwrap_or(u64::MAX));
            MarkDone { point, frozen_ms }
        });
        self.shared.update(|state| {
            state.status.last_mark_error = done.as_ref().err().cloned();
            if let Ok(MarkDone { point, .. }) = &done {
                state.status.last_mark = Some(point.clone());
                if point.class.restorable() {
                    state.goal = Some(point.clone());
                }
            }
        });
        if let Some(reply) = reply {
            // Nobody may be waiting any more.
            let _ = reply.send(done);
        }
        Ok(())
    }

    fn publish(&mut self, collector: &mut Collector<Probes>) {
        let (status, complete) = (collector.status(), collector.is_complete());
        // Another collector, after the journal failed, counts from 0 again.
        let new = status.data_bytes.checked_sub(self.data_bytes).unwrap_or(status.data_bytes);
        self.data_bytes = status.data_bytes;
        self.activity.wrote(new, realtime());
        let activity = ActivityShown { write_map: Vec::new(), ..self.activity.shown(realtime()) };
        let journal_bytes = collector.writer().bytes_written();
        let counters = collector.world().watch.counters();
        self.shared.update(|state| {
            if complete && state.status.last_mark.is_some() {
                state.status.state = "live";
            } else if state.status.state == "live" {
                state.status.state = "resync";
            }
            (state.status.collector, state.status.journal_bytes) = (status, journal_bytes);
            state.status.counters = counters;
            state.status.activity = activity;
        });
    }
}

/// The thread that brings the target from mark to mark. What fails is tried again.
fn apply(shared: &Shared, replica: TreeReplica, dir: &Path, target: &Path) {
    let mut replica = Some(replica);
    let mut tried = None::<Instant>;
    loop {
        let (goal, ended) =
            shared.wait(Duration::from_millis(100), |state| (state.goal.clone(), state.ended));
        if tried.is_some_and(|tried| tried.elapsed() < TRY_AGAIN) && !ended {
            continue;
        }
        let result = bring(shared, &mut replica, goal.as_ref(), dir, target);
        let failed = result.err().map(|error| format!("{:#}", anyhow::Error::from(error)));
        if failed.is_some() {
            replica = None;
        }
        tried = failed.is_some().then(Instant::now);
        let there = goal.is_none()
            || replica.as_ref().is_some_and(|replica| {
                goal.as_ref().is_some_and(|goal| goal.lsn <= replica.checkpoint().applied)
            });
        let failing = failed.is_some();
        shared.update(|state| {
            if failing && ended {
                state.failure.get_or_insert_with(|| failed.clone().unwrap_or_default());
            }
            state.status.replica.error = failed;
        });
        if ended && (there || failing) {
            return;
        }
    }
}

fn bring(
    shared: &Shared,
    replica: &mut Option<TreeReplica>,
    goal: Option<&Point>,
    dir: &Path,
    target: &Path,
) -> Result<(), crate::tree::TreeReplayError> {
    let replica = match replica {
        Some(replica) => replica,
        None => replica.insert(TreeReplica::open(dir, target, false)?),
    };
    if let Some(goal) = goal
        && goal.lsn > replica.checkpoint().applied
    {
        shared.update(|state| state.status.replica.consistent = false);
        let applied = replica.bring_to(goal)?;
        shared.update(|state| {
            state.status.replica.data_bytes += applied.data_bytes;
            state.status.replica.names += applied.names;
        });
    }
    let checkpoint = replica.checkpoint().clone();
    shared.update(|state| {
        let shown = &mut state.status.replica;
        (shown.applied_lsn, shown.mark) = (checkpoint.applied, checkpoint.mark);
        shown.consistent = checkpoint.mark.is_some() && checkpoint.applying.is_none();
        shown.at = goal.filter(|goal| Some(goal.id) == checkpoint.mark).cloned().or(shown.at.take());
    });
    Ok(())
}
