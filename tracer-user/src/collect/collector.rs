mod debt;
mod marks;
mod ordered;
mod reading;

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::capture::{Change, Event};
use crate::collect::collector::debt::Debt;
use crate::collect::collector::ordered::{History, Submission};
use crate::collect::freezer::Freeze;
use crate::collect::mark::{Asked, MarkInProgress, Quiet};
use crate::collect::pending::{MonotonicNs, Pending, merge_to};
use crate::collect::readers::Readers;
use crate::collect::sample::Sample;
use crate::collect::scan::Scan;
use crate::collect::staged::Staged;
use crate::collect::under_way::UnderWay;
use crate::collect::{
    Acknowledged, CollectError, CollectorOptions, CollectorStatus, Command, Entry, Probes, ReplicaBytes,
    Source, State,
};
use crate::io::clock::{monotonic_ns, monotonic_zero_ns, realtime};
use crate::model::{Activity, ByteRange, ByteRangeSet, MarkId, RecordBody, Timestamp};

/// Ranges are widened to it for direct reads.
const BLOCK_BYTES: u64 = 4096;
const EVENTS_MAX: usize = 64 << 10;
/// Gap records for one look at the bitmap; more become fewer, wider ones.
const GAPS_MAX: usize = 1024;
/// Between the submission's event and the moment the kernel counts the request as under way.
const SETTLE_NS: u64 = 50_000_000;
const HOUSEKEEPING: Duration = Duration::from_millis(200);
/// While nothing is written: then little can have changed, and most of it is asked of files of the kernel.
const HOUSEKEEPING_ASLEEP: Duration = Duration::from_secs(1);
/// Turns in a row that found nothing to do. A turn a millisecond at first, then one each ten, then it is asleep.
const DROWSY_TURNS: u32 = 300;
const ASLEEP_TURNS: u32 = 500;
/// How long `status` shows that the ring had no room.
const OVERRUN_SHOWN: Duration = Duration::from_secs(1);

/// What a collector is made of.
pub struct CollectorParts<P, S> {
    pub probes: P,
    pub source: S,
    pub replica: Option<Box<dyn ReplicaBytes + Send>>,
    pub freezer: Box<dyn Freeze + Send>,
    pub journal: SyncSender<Entry>,
    pub commands: Receiver<Command>,
    pub acknowledged: Arc<Acknowledged>,
    pub status: Arc<Mutex<CollectorStatus>>,
    pub options: CollectorOptions,
}

/// Where it begins.
pub struct Begin {
    /// Baseline, resync, or live.
    pub state: State,
    /// What the scan has to look at …
    pub unscanned: ByteRangeSet,
    /// … and where comparing with the replica is enough; all else of it is copied.
    pub same_as_replica: ByteRangeSet,
    /// Written before, and not known to be in the journal.
    pub owed: ByteRangeSet,
}

/// What is left when it ends, for another one to go on with.
pub struct Ended<P> {
    pub probes: P,
    pub commands: Receiver<Command>,
    /// Stopped with journal and device saying the same, after so many submissions.
    pub at_rest: Option<u64>,
    pub result: Result<(), CollectError>,
}

/// What was submitted until `cutoff` was done when the ring was filled up to `filled`.
struct Idle {
    cutoff: MonotonicNs,
    filled: u64,
}

/// Owns the way from the ring to the journal's queue. Each turn of [`Collector::run`] drains the ring first, then reads
/// one batch of ranges.
pub struct Collector<P, S> {
    probes: P,
    source: Arc<S>,
    readers: Readers<S>,
    replica: Option<Box<dyn ReplicaBytes + Send>>,
    journal: SyncSender<Entry>,
    /// Records that did not fit into the journal's queue; while there are any, nothing is read.
    outbox: VecDeque<Entry>,
    commands: Receiver<Command>,
    acknowledged: Arc<Acknowledged>,
    status: Arc<Mutex<CollectorStatus>>,
    options: CollectorOptions,
    size_bytes: u64,

    pending: Pending,
    /// Probes copy what is written.
    ordered: bool,
    under_way: UnderWay,
    staged: Staged,
    history: History,
    sample: Sample,
    /// From CLOCK_MONOTONIC to the time of day, in nanoseconds.
    clock_ns: u64,
    scan: Scan,
    unreadable: ByteRangeSet,
    /// Went through the bitmap, and the journal does not say so yet.
    gaps: ByteRangeSet,
    retry_unreadable: Instant,
    /// No event was left in the ring after `snapshot.counters` were read.
    ring_emptied: bool,
    settled: MonotonicNs,
    /// When the device was last seen idle, until all that was in the ring then is taken.
    idle: Option<Idle>,
    overrun_until: Option<Instant>,
    activity: Activity,
    debt: Debt,

    freezer: Box<dyn Freeze + Send>,
    mark: Option<MarkInProgress>,
    waiting_marks: VecDeque<Asked>,
    next_mark: MarkId,
    next_mark_at: Option<Instant>,
    /// Content records since the last mark.
    changed_since_mark: bool,
    was_live: bool,
    /// A restorable mark was made in this session.
    restorable_made: bool,
    stopping: Option<Stopping>,
    at_rest: Option<u64>,
    housekeeping: Instant,
    idle_turns: u32,
    snapshot: CollectorStatus,
}

enum Stopping {
    LastMark,
    LastQuiet { quiet: Quiet },
    Done,
}

impl<P: Probes, S: Source + Send + 'static> Collector<P, S> {
    pub fn new(parts: CollectorParts<P, S>, begin: Begin) -> Result<Collector<P, S>, CollectError> {
        let size_bytes = parts.source.size_bytes().map_err(CollectError::Gone)?;
        let now = Instant::now();
        let source = Arc::new(parts.source);
        let hashes = parts.replica.as_ref().and_then(|replica| replica.hashes());
        let readers = Readers::start(source.clone(), hashes).map_err(CollectError::Readers)?;
        let mut pending = Pending::new(size_bytes, BLOCK_BYTES, source.completions_name_ranges());
        // What is still under way of it is not known either.
        begin.owed.iter().for_each(|range| pending.insert_unpaired(range));
        let mut gaps = begin.owed;
        // Before the first mark there is no history to miss.
        if begin.state != State::Baseline {
            gaps.extend(&begin.unscanned);
        }
        merge_to(&mut gaps, GAPS_MAX, size_bytes);
        let scan = Scan::new(size_bytes, &begin.unscanned, &begin.same_as_replica);
        Ok(Collector {
            pending,
            ordered: parts.probes.copy_payload(),
            under_way: UnderWay::default(),
            staged: Staged::default(),
            history: History::default(),
            sample: Sample::default(),
            clock_ns: 0,
            debt: Debt::new(&scan),
            scan,
            size_bytes,
            probes: parts.probes,
            source,
            readers,
            replica: parts.replica,
            journal: parts.journal,
            outbox: VecDeque::new(),
            commands: parts.commands,
            acknowledged: parts.acknowledged,
            status: parts.status,
            next_mark: parts.options.next_mark,
            options: parts.options,
            unreadable: ByteRangeSet::new(),
            gaps,
            restorable_made: false,
            retry_unreadable: now,
            ring_emptied: false,
            settled: 0,
            idle: None,
            overrun_until: None,
            activity: Activity::new(size_bytes),
            freezer: parts.freezer,
            mark: None,
            waiting_marks: VecDeque::new(),
            next_mark_at: None,
            changed_since_mark: false,
            was_live: false,
            stopping: None,
            at_rest: None,
            housekeeping: now,
            idle_turns: 0,
            snapshot: CollectorStatus { state: begin.state, ..CollectorStatus::default() },
        })
    }

    /// Runs until stopped, or until it can't go on.
    pub fn run(mut self) -> Ended<P> {
        let result = self.run_to_end();
        if let Err(error) = &result {
            self.refuse_marks(&format!(
                "{error}: no mark was made; see `afterwrite status`, and ask again once it is live"
            ));
        }
        self.publish();
        Ended { probes: self.probes, commands: self.commands, at_rest: self.at_rest, result }
    }

    fn run_to_end(&mut self) -> Result<(), CollectError> {
        while !matches!(self.stopping, Some(Stopping::Done)) {
            let worked = self.turn()?;
            // Those who write wait for a mark.
            let is_busy = worked || self.mark.is_some();
            self.idle_turns = if is_busy { 0 } else { self.idle_turns.saturating_add(1) };
            if !worked {
                // What is copied needs the ring read in time, should many writes begin at once.
                let millis = match self.idle_turns {
                    0..DROWSY_TURNS => 1,
                    DROWSY_TURNS..ASLEEP_TURNS => 10,
                    _ if self.ordered => 20,
                    _ => 100,
                };
                self.rest(Duration::from_millis(millis));
            }
        }
        Ok(())
    }

    /// So long, or until it is told something.
    fn rest(&mut self, at_most: Duration) {
        match self.commands.recv_timeout(at_most) {
            Ok(command) => self.obey(command),
            Err(RecvTimeoutError::Timeout) => {}
            // Nobody is left to tell it anything, which takes no time to find out.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(at_most),
        }
    }

    /// What `status` is told.
    #[cfg(test)]
    pub fn shown(&self) -> CollectorStatus {
        self.status.lock().expect("nobody panics with the status locked").clone()
    }

    /// One turn; says whether there was anything to do.
    pub fn turn(&mut self) -> Result<bool, CollectError> {
        let now = monotonic_ns();
        let drained_events = self.drain_ring(now)?;
        self.settle(now);
        self.take_commands();
        self.pay_debt();
        self.flush_staged();
        self.journal_gaps();
        self.flush_outbox()?;
        let copied = self.copy(now)?;
        self.look_at_sample(now);
        self.advance_mark()?;
        self.renew_history();
        self.advance_state();
        let every = if self.idle_turns < ASLEEP_TURNS { HOUSEKEEPING } else { HOUSEKEEPING_ASLEEP };
        if self.housekeeping.elapsed() >= every {
            self.housekeeping = Instant::now();
            self.keep_house()?;
        }
        Ok(drained_events || copied)
    }

    fn drain_ring(&mut self, now: MonotonicNs) -> Result<bool, CollectError> {
        // Before the events: what is counted as emitted by now is among them.
        let counters = self.probes.counters();
        let positions = self.probes.positions();
        let ring_used = positions.filled.saturating_sub(positions.read);
        self.snapshot.ring_used_bytes = self.snapshot.ring_used_bytes.max(ring_used);
        let mut any = false;
        self.ring_emptied = false;
        self.clock_ns = monotonic_zero_ns();
        for _ in 0..EVENTS_MAX {
            // What is copied is kept as it is: the ring is where it waits.
            if self.staged.is_full() || (self.ordered && !self.outbox.is_empty()) {
                break;
            }
            let Some(event) = self.probes.next_event() else {
                self.ring_emptied = true;
                self.history_reaches(now);
                break;
            };
            any = true;
            match event {
                Some(Event::Submit { key, first, range, change, time_ns, seq, payload }) => {
                    self.show_change(range, change, now);
                    self.submitted(Submission { key, first, range, change, seq, payload, time_ns }, now);
                }
                Some(Event::Piece { seq, range, bytes }) => {
                    self.piece(seq, range, &bytes, now);
                }
                Some(Event::Complete { key, range, whole, failed }) => {
                    self.snapshot.failed_writes += u64::from(failed);
                    match self.completed(key, range, whole, failed, now) {
                        true => {}
                        false if failed => self.pending.fail(key, range, whole, now),
                        false => self.pending.complete(key, range, whole, now),
                    }
                }
                None => return Err(CollectError::UnknownEvent),
            }
        }
        if counters.in_bitmap() != self.snapshot.counters.in_bitmap() {
            any = true;
            self.overrun_until = Some(Instant::now() + OVERRUN_SHOWN);
            self.take_dirty();
        }
        self.snapshot.counters = counters;
        Ok(any)
    }

    fn time_of(&self, monotonic: MonotonicNs) -> Timestamp {
        Timestamp(self.clock_ns.saturating_add(monotonic))
    }

    /// For people to see; nothing depends on it.
    fn show_change(&mut self, range: ByteRange, change: Change, now: MonotonicNs) {
        let now = self.time_of(now);
        self.activity.touched(range, now);
        if change != Change::Discard {
            self.activity.wrote(range.len(), now);
        }
    }

    /// A write went unreported: says so, and has the whole volume copied.
    fn lost_track(&mut self) -> bool {
        let lost = self.probes.lost_track();
        if lost {
            log::error!("a probe could not tell what was written: copying the whole volume again");
            self.gaps.insert(ByteRange::new(0, self.size_bytes));
            self.scan.restart();
            self.debt.scan_restarted();
        }
        lost
    }

    /// The ring was full: what was written is in the bitmap, its history until the next mark is not known.
    fn take_dirty(&mut self) {
        self.sample.give_up();
        for range in self.probes.take_dirty().iter() {
            self.pending.insert_unpaired(range);
            self.gaps.insert(range);
            self.activity.touched(range, realtime());
        }
        merge_to(&mut self.gaps, GAPS_MAX, self.size_bytes);
    }

    /// After a mark that is being thawed: what is found out then is no part of it.
    fn journal_gaps(&mut self) {
        if !self.gaps.is_empty() && !self.mark_holds_journal() {
            self.history_broken();
            self.snapshot.gap_open = true;
            let bodies = std::mem::take(&mut self.gaps).iter().map(RecordBody::Gap).collect();
            self.outbox.push_back(Entry::Records { time: realtime(), bodies });
        }
    }

    fn mark_holds_journal(&self) -> bool {
        self.mark.as_ref().is_some_and(MarkInProgress::holds_journal)
    }

    /// Submissions whose completion was not seen are done once the device is idle. But not before all that was in the ring
    /// then is taken: a copied write in it may be older than one that came through the bitmap, and must not count as what
    /// came over it.
    fn settle(&mut self, now: MonotonicNs) {
        let read = self.probes.positions().read;
        if let Some(Idle { cutoff, .. }) = self.idle.take_if(|idle| read >= idle.filled) {
            self.pending.settle(cutoff, now);
            self.settle_copied(now);
        }
        let awaits = self.pending.awaits_device() || !self.under_way.is_empty();
        if !awaits || self.idle.is_some() || now.saturating_sub(self.settled) < SETTLE_NS {
            return;
        }
        // Before the look: what comes after it is not settled by it.
        let cutoff = now.saturating_sub(SETTLE_NS);
        self.settled = now;
        if self.source.writing() == Some(false) {
            self.under_way.device_was_idle(cutoff);
            self.idle = Some(Idle { cutoff, filled: self.probes.positions().filled });
        }
    }

    fn take_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Mark { reply, .. } if self.stopping.is_some() => {
                reply.map(|reply| reply.try_send(Err("the protection is ending".into())));
            }
            Command::Mark { label, reply, group } => self.ask_for_mark(Asked { label, reply, group }),
            Command::Stop if self.scan.is_done() => {
                self.snapshot.state = State::Stopping;
                self.ask_for_mark(Asked { label: "stop".into(), ..Asked::default() });
                self.stopping = Some(Stopping::LastMark);
            }
            // Half a baseline is no point; what was journaled is kept for the next start.
            Command::Stop => self.stopping = Some(Stopping::Done),
        }
    }

    /// Hands over what the journal's queue has room for; never waits for it.
    fn flush_outbox(&mut self) -> Result<(), CollectError> {
        while let Some(entry) = self.outbox.pop_front() {
            match self.journal.try_send(entry) {
                Ok(()) => {}
                Err(TrySendError::Full(entry)) => {
                    self.outbox.push_front(entry);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => return Err(CollectError::JournalEnded),
            }
        }
        Ok(())
    }

    fn keep_house(&mut self) -> Result<(), CollectError> {
        self.probes.flush_diagnostics();
        self.lost_track();
        // While nothing is written nothing is sent either, which is what would say it otherwise.
        if Arc::strong_count(&self.acknowledged) == 1 {
            return Err(CollectError::JournalEnded);
        }
        let now = self.source.size_bytes().map_err(CollectError::Gone)?;
        if now != self.size_bytes {
            return Err(CollectError::Resized { was: self.size_bytes, now });
        }
        self.publish();
        Ok(())
    }

    fn publish(&mut self) {
        self.snapshot.skipped = self.probes.skipped();
        self.snapshot.overrun = self.overrun_until.is_some_and(|until| Instant::now() < until);
        self.snapshot.every_write = self.every_write_is_a_point();
        self.snapshot.scan_done_bytes = self.scan.done_bytes();
        self.snapshot.scan_total_bytes = self.scan.total_bytes();
        self.snapshot.pending_bytes = self.pending.bytes();
        self.snapshot.pending_ms = self.pending.ready_age_ns(monotonic_ns()) / 1_000_000;
        self.snapshot.unreadable_bytes = self.unreadable.bytes();
        self.snapshot.activity = self.activity.shown(realtime());
        self.status.lock().expect("nobody panics with the status locked").clone_from(&self.snapshot);
        self.snapshot.ring_used_bytes = 0;
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
