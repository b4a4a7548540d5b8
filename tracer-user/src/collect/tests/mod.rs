//! The collector against a simulated disk: every restorable mark has to equal the disk at that very instant.

mod group;
mod instants;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::capture::{Change, Payload};
use crate::collect::collector::{Collector, CollectorParts};
use crate::io::clock::monotonic_ns;
use crate::model::PointClass;

const BLOCK: usize = 4096;
const BLOCKS: usize = 64;

/// A disk with a small ring and a dirty bitmap, whose writes take effect when they complete.
#[derive(Default)]
struct Disk {
    bytes: Vec<u8>,
    ring: VecDeque<Event>,
    ring_max: usize,
    dirty: ByteRangeSet,
    counters: Counters,
    under_way: Vec<(u64, ByteRange, u8)>,
    unreadable: Option<ByteRange>,
    failed_reads: u32,
    /// The ledger: outlives the collector.
    current: ByteRangeSet,
    older: ByteRangeSet,
    unscanned: ByteRangeSet,
    failures_handled: u64,
}

impl Disk {
    fn submit(&mut self, key: u64, block: usize, fill: u8) {
        let range = ByteRange::with_len((block * BLOCK) as u64, BLOCK as u64);
        if self.under_way.iter().any(|(k, other, _)| *k == key || other.intersect(range).is_some()) {
            return;
        }
        self.counters.seen += 1;
        let event = Event::Submit {
            key,
            first: true,
            range,
            change: Change::Write,
            time_ns: monotonic_ns(),
            seq: self.counters.seen,
            payload: Payload::None,
        };
        if self.ring.len() < self.ring_max {
            self.ring.push_back(event);
            self.counters.emitted += 1;
        } else {
            self.dirty.insert(range);
            self.counters.marked += 1;
        }
        self.under_way.push((key, range, fill));
    }

    fn complete(&mut self, index: usize, seen_by_probe: bool) {
        if self.under_way.is_empty() {
            return;
        }
        let (key, range, fill) = self.under_way.remove(index % self.under_way.len());
        self.bytes[range.start as usize..range.end as usize].fill(fill);
        if seen_by_probe && self.ring.len() < self.ring_max {
            self.ring.push_back(Event::Complete { key, range: Some(range), whole: true, failed: false });
        }
    }
}

fn whole() -> ByteRangeSet {
    [ByteRange::new(0, (BLOCK * BLOCKS) as u64)].into_iter().collect()
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Disk>>);

impl Shared {
    fn disk(&self) -> std::sync::MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }
}

impl Probes for Shared {
    fn next_event(&mut self) -> Option<Option<Event>> {
        let mut disk = self.disk();
        let event = disk.ring.pop_front()?;
        if let Event::Submit { range, .. } = &event {
            disk.current.insert(*range);
        }
        Some(Some(event))
    }

    fn ring_is_empty(&self) -> bool {
        self.disk().ring.is_empty()
    }

    fn counters(&self) -> Counters {
        self.disk().counters
    }

    fn take_dirty(&mut self) -> ByteRangeSet {
        let mut disk = self.disk();
        let dirty = std::mem::take(&mut disk.dirty);
        disk.current.extend(&dirty);
        dirty
    }

    fn lost_track(&mut self) -> bool {
        let mut disk = self.disk();
        let lost = disk.counters.read_failed != disk.failures_handled;
        disk.failures_handled = disk.counters.read_failed;
        if lost {
            disk.unscanned = whole();
        }
        lost
    }

    fn owe(&mut self, range: ByteRange) {
        self.disk().current.insert(range);
    }

    fn turn(&mut self) {
        let mut disk = self.disk();
        let current = std::mem::take(&mut disk.current);
        disk.older.extend(&current);
    }

    fn settle(&mut self, _: MarkId) {
        self.disk().older = ByteRangeSet::new();
    }

    fn keep_unscanned(&mut self, left: &ByteRangeSet) {
        self.disk().unscanned = left.clone();
    }
}

impl Source for Shared {
    fn size_bytes(&self) -> std::io::Result<u64> {
        Ok(self.disk().bytes.len() as u64)
    }

    fn read(&self, range: ByteRange) -> std::io::Result<AlignedBuf> {
        let mut disk = self.0.lock().unwrap();
        if disk.unreadable.is_some_and(|bad| bad.intersect(range).is_some()) {
            disk.failed_reads += 1;
            return Err(std::io::Error::from_raw_os_error(libc::EIO));
        }
        let mut buffer = AlignedBuf::with_capacity(range.len() as usize);
        buffer.set_len(range.len() as usize);
        buffer.copy_from_slice(&disk.bytes[range.start as usize..range.end as usize]);
        Ok(buffer)
    }

    fn writing(&self) -> Option<bool> {
        Some(!self.disk().under_way.is_empty())
    }

    fn is_busy(&self) -> bool {
        false
    }

    fn completions_name_ranges(&self) -> bool {
        false
    }

    fn mounts(&self) -> std::io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

struct NoFreezer;

impl Freeze for NoFreezer {
    fn sync(&mut self, _: &[PathBuf]) -> std::io::Result<()> {
        Ok(())
    }
    fn freeze(&mut self, _: &[PathBuf], _: Duration) -> std::io::Result<()> {
        Ok(())
    }
    fn thaw(&mut self) -> std::io::Result<()> {
        Ok(())
    }
    fn poll(&mut self) -> Option<FreezeReply> {
        None
    }
}

struct Bench {
    disk: Shared,
    collector: Collector<Shared, Shared>,
    commands: Sender<Command>,
    journal: Receiver<Entry>,
    acknowledged: Arc<Acknowledged>,
    queue: usize,
    image: Vec<u8>,
    /// The image as it was at the last mark or barrier.
    durable: Vec<u8>,
    marks: Vec<Mark>,
    /// Marks whose image was not the disk.
    wrong: Vec<Mark>,
}

fn collector(disk: &Shared, queue: usize, state: State, next_mark: MarkId) -> Parts<Shared> {
    collector_with(disk, None, queue, state, next_mark)
}

/// With a replica all of which is to be compared.
fn collector_with(
    disk: &Shared,
    replica: Option<Box<dyn ReplicaBytes + Send>>,
    queue: usize,
    state: State,
    next_mark: MarkId,
) -> Parts<Shared> {
    let same_as_replica = if replica.is_some() { whole() } else { ByteRangeSet::new() };
    let mut owed = disk.disk().current.clone();
    owed.extend(&disk.disk().older);
    let unscanned = disk.disk().unscanned.clone();
    let begin = Begin { state, unscanned, same_as_replica, owed };
    start(disk, replica, queue, begin, next_mark)
}

type Parts<D> = (Collector<D, D>, Sender<Command>, Receiver<Entry>, Arc<Acknowledged>);

/// A collector on a disk that is its own probes.
fn start<D: Probes + Source + Clone + Send + 'static>(
    disk: &D,
    replica: Option<Box<dyn ReplicaBytes + Send>>,
    queue: usize,
    begin: Begin,
    next_mark: MarkId,
) -> Parts<D> {
    let (journal, entries) = sync_channel(queue);
    let (commands, receiver) = channel();
    let acknowledged = Arc::new(Acknowledged::default());
    let parts = CollectorParts {
        probes: disk.clone(),
        source: disk.clone(),
        replica,
        freezer: Box::new(NoFreezer),
        journal,
        commands: receiver,
        acknowledged: acknowledged.clone(),
        status: Arc::default(),
        options: CollectorOptions {
            mark_every: None,
            freeze_timeout: Duration::from_secs(1),
            next_mark,
            scan_pace: Pace::new(None, 0, Instant::now()),
        },
    };
    (Collector::new(parts, begin).unwrap(), commands, entries, acknowledged)
}

impl Bench {
    fn new(ring_max: usize, queue: usize) -> Bench {
        let bytes = vec![1; BLOCK * BLOCKS];
        let disk = Disk { bytes, ring_max, unscanned: whole(), ..Disk::default() };
        let disk = Shared(Arc::new(Mutex::new(disk)));
        let (collector, commands, journal, acknowledged) =
            collector(&disk, queue, State::Baseline, MarkId(1));
        let image = vec![0xEE; BLOCK * BLOCKS];
        let durable = image.clone();
        let (marks, wrong) = (vec![], vec![]);
        Bench { disk, collector, commands, journal, acknowledged, queue, image, durable, marks, wrong }
    }

    /// The collector is killed, or the journal fails: what was not durable is lost, and another goes on by the ledger.
    fn kill(&mut self) {
        self.image.clone_from(&self.durable);
        let next_mark = MarkId(self.marks.last().map_or(1, |mark| mark.id.0 + 1));
        (self.collector, self.commands, self.journal, self.acknowledged) =
            collector(&self.disk, self.queue, State::Resync, next_mark);
    }

    /// One turn, and as many more as it takes to empty a short queue while the disk stands still.
    fn turn(&mut self) {
        self.collector.turn().unwrap();
        while let Ok(entry) = self.journal.try_recv() {
            self.collector.turn().unwrap();
            match entry {
                Entry::Records { bodies, .. } => {
                    for body in bodies {
                        let Some(range) = body.content_range() else { continue };
                        let at = &mut self.image[range.start as usize..range.end as usize];
                        match body {
                            RecordBody::Data { bytes, .. } => at.copy_from_slice(&bytes),
                            _ => at.fill(0),
                        }
                    }
                }
                Entry::Ordered { .. } => unreachable!("these probes copy nothing"),
                Entry::Mark { mark, .. } => {
                    if mark.class.restorable() && self.image != self.disk.disk().bytes {
                        self.wrong.push(mark.clone());
                    }
                    self.acknowledged.mark.store(mark.id.0, Ordering::Release);
                    self.durable.clone_from(&self.image);
                    self.marks.push(mark);
                }
                Entry::Origins { .. } => unreachable!("the collector knows of none"),
                Entry::Barrier(number) => {
                    self.acknowledged.barrier.store(number, Ordering::Release);
                    self.durable.clone_from(&self.image);
                }
            }
        }
    }

    fn turn_until(&mut self, what: &str, done: impl Fn(&Bench) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !done(self) {
            assert!(Instant::now() < deadline, "not reached: {what}");
            self.turn();
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn ask(&self, label: &str) {
        self.commands.send(Command::Mark { label: label.into(), reply: None, group: None }).unwrap();
    }
}

#[test]
fn the_baseline_ends_in_a_mark_that_equals_the_disk() {
    let mut bench = Bench::new(100, 1000);
    bench.turn_until("a mark", |b| !b.marks.is_empty());
    assert_eq!(bench.marks[0].label, "baseline");
    assert_eq!(bench.marks[0].class, PointClass::Crash);
    assert!(bench.wrong.is_empty());
}

#[test]
fn a_write_without_an_end_makes_the_mark_fuzzy() {
    let mut bench = Bench::new(100, 1000);
    bench.turn_until("a mark", |b| !b.marks.is_empty());
    bench.disk.disk().submit(1, 3, 7);
    bench.ask("busy");
    bench.turn_until("a mark", |b| b.marks.len() == 2);
    assert_eq!(bench.marks[1].class, PointClass::Fuzzy);
}

#[test]
fn an_unreadable_range_forbids_a_restorable_mark_until_it_can_be_read() {
    let mut bench = Bench::new(100, 1000);
    bench.turn_until("a mark", |b| !b.marks.is_empty());
    bench.disk.disk().unreadable = Some(ByteRange::with_len(5 * BLOCK as u64, BLOCK as u64));
    bench.disk.disk().submit(1, 5, 9);
    bench.disk.disk().complete(0, true);
    bench.turn_until("a failed read", |b| b.disk.disk().failed_reads > 0);
    let (reply, answer) = sync_channel(1);
    bench
        .commands
        .send(Command::Mark { label: "while unreadable".into(), reply: Some(reply), group: None })
        .unwrap();
    bench.turn();
    let why = answer.try_recv().unwrap().unwrap_err();
    assert!(why.contains("4096 bytes of the source can't be read"), "{why}");
    bench.disk.disk().unreadable = None;
    bench.turn_until("it is read", |b| b.image == b.disk.disk().bytes);
    bench.ask("readable again");
    bench.turn_until("a mark", |b| b.marks.len() == 2);
    assert_eq!(bench.marks[1].class, PointClass::Crash);
    assert!(bench.wrong.is_empty());
}

#[test]
fn it_is_shown_where_was_written_and_a_gap_until_the_next_mark() {
    // The second write finds no room in the ring.
    let mut bench = Bench::new(1, 1000);
    bench.turn_until("a mark", |b| !b.marks.is_empty());
    bench.turn_until("it is shown", |b| b.collector.shown().marks == 1);
    assert!(!bench.collector.shown().gap_open);
    bench.disk.disk().submit(1, 3, 7);
    bench.disk.disk().submit(2, 9, 7);
    bench.turn_until("a gap", |b| b.collector.shown().gap_open);
    let shown = bench.collector.shown().activity;
    assert_eq!(shown.written_bytes, BLOCK as u64);
    // A block is four of the 256 cells.
    let cells: Vec<usize> = (0..256).filter(|cell| shown.write_map[*cell] != 0).collect();
    assert_eq!(cells, [12, 13, 14, 15, 36, 37, 38, 39]);
    bench.disk.disk().complete(0, true);
    bench.disk.disk().complete(0, true);
    bench.ask("after");
    bench.turn_until("a mark that closes it", |b| !b.collector.shown().gap_open);
    assert_eq!(bench.marks[1].class, PointClass::Crash);
}

#[test]
fn unreadable_kernel_memory_copies_the_whole_volume_again() {
    let mut bench = Bench::new(100, 1000);
    bench.turn_until("a mark", |b| !b.marks.is_empty());
    // A write that no probe reported.
    bench.disk.disk().bytes[..BLOCK].fill(99);
    bench.disk.disk().counters.read_failed = 1;
    bench.turn_until("the copy", |b| b.image == b.disk.disk().bytes);
    bench.ask("after");
    bench.turn_until("a mark", |b| b.marks.len() == 2);
    assert_eq!(bench.marks[1].class, PointClass::Crash);
}

#[test]
fn stop_drains_and_makes_a_last_mark() {
    let mut bench = Bench::new(100, 1000);
    bench.turn_until("a mark", |b| !b.marks.is_empty());
    bench.disk.disk().submit(1, 3, 7);
    bench.disk.disk().complete(0, true);
    bench.commands.send(Command::Stop).unwrap();
    bench.turn_until("a mark", |b| b.marks.len() == 2);
    assert!(bench.wrong.is_empty());
    assert_eq!(bench.image, bench.disk.disk().bytes);
}

#[test]
fn resting_it_does_what_it_is_told_and_sees_what_is_written() {
    let mut bench = Bench::new(100, 1000);
    bench.turn_until("a mark", |b| !b.marks.is_empty());
    let Bench { disk, collector, commands, journal, acknowledged, .. } = bench;
    let running = std::thread::spawn(move || collector.run());
    let wait_for = |wanted: &dyn Fn(&Entry) -> bool| loop {
        let entry = journal.recv_timeout(Duration::from_secs(30)).expect("it is awake");
        match &entry {
            Entry::Mark { mark, .. } => acknowledged.mark.store(mark.id.0, Ordering::Release),
            Entry::Barrier(number) => acknowledged.barrier.store(*number, Ordering::Release),
            _ => {}
        }
        if wanted(&entry) {
            break;
        }
    };
    for (order, label) in [
        (Command::Mark { label: "asked".into(), reply: None, group: None }, "asked"),
        (Command::Stop, "stop"),
    ] {
        // Turns take less: it rests.
        std::thread::sleep(Duration::from_millis(20));
        disk.disk().submit(1, 3, 7);
        disk.disk().complete(0, true);
        wait_for(&|entry| matches!(entry, Entry::Records { .. }));
        commands.send(order).unwrap();
        wait_for(&|entry| matches!(entry, Entry::Mark { mark, .. } if mark.label == label));
    }
    running.join().unwrap().result.unwrap();
}

/// A replica of 16 granules that notes where it is read.
struct Replica {
    bytes: Vec<u8>,
    hashes: Arc<Hashes>,
    read: Arc<Mutex<ByteRangeSet>>,
}

struct Hashes(Vec<Option<GranuleHash>>);

const GRANULE: usize = 4 * BLOCK;

impl ReplicaBytes for Replica {
    fn read(&mut self, range: ByteRange) -> std::io::Result<&[u8]> {
        self.read.lock().unwrap().insert(range);
        Ok(&self.bytes[range.start as usize..range.end as usize])
    }

    fn hashes(&self) -> Option<Arc<dyn ReplicaHashes>> {
        Some(self.hashes.clone())
    }
}

impl ReplicaHashes for Hashes {
    fn granules(&self) -> Granules {
        Granules::new((BLOCK * BLOCKS) as u64, GRANULE as u64).unwrap()
    }

    fn hashes(&self, granules: Range<u64>) -> Vec<Option<GranuleHash>> {
        self.0[granules.start as usize..granules.end as usize].to_vec()
    }
}

#[test]
fn of_the_replica_only_what_its_hashes_do_not_show_to_be_the_same_is_read() {
    let granule = |index: usize| ByteRange::with_len((index * GRANULE) as u64, GRANULE as u64);
    let old = vec![7; BLOCK * BLOCKS];
    let mut hashes: Vec<_> = old.chunks(GRANULE).map(|bytes| Some(GranuleHash::of(bytes))).collect();
    hashes[5] = None;
    hashes[9] = None;
    let read = Arc::<Mutex<ByteRangeSet>>::default();
    let replica = Replica { bytes: old.clone(), hashes: Arc::new(Hashes(hashes)), read: read.clone() };
    let mut bytes = old;
    // In a granule whose hash is known, and in one whose hash is not.
    bytes[3 * GRANULE + BLOCK] = 8;
    bytes[9 * GRANULE] = 8;
    let disk = Disk { bytes, ring_max: 8, unscanned: whole(), ..Disk::default() };
    let disk = Shared(Arc::new(Mutex::new(disk)));
    let (mut collector, _commands, entries, _) =
        collector_with(&disk, Some(Box::new(replica)), 64, State::Resync, MarkId(1));
    for _ in 0..10 {
        collector.turn().unwrap();
    }
    let mut journaled = ByteRangeSet::new();
    while let Ok(entry) = entries.try_recv() {
        let Entry::Records { bodies, .. } = entry else { continue };
        bodies.iter().filter_map(RecordBody::content_range).for_each(|range| journaled.insert(range));
    }
    let block = |start: usize| ByteRange::with_len(start as u64, BLOCK as u64);
    assert_eq!(journaled, [block(3 * GRANULE + BLOCK), block(9 * GRANULE)].into_iter().collect());
    assert_eq!(*read.lock().unwrap(), [3, 5, 9].map(granule).into_iter().collect());
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20, ..ProptestConfig::with_cases(32) })]

    /// Small rings, lost completions, slow journals, writes between any two turns, kills that lose what was not durable:
    /// no restorable mark ever lies.
    #[test]
    fn every_restorable_mark_equals_the_disk(
        ring_max in 1usize..12,
        queue in 1usize..8,
        ops in prop::collection::vec((0u8..10, 0u64..6, 0usize..BLOCKS, any::<u8>()), 1..150),
    ) {
        let mut bench = Bench::new(ring_max, queue);
        for (op, key, block, fill) in ops {
            match op {
                0..=2 => bench.disk.disk().submit(key + 1, block, fill),
                3 => bench.disk.disk().complete(block, true),
                4 => bench.disk.disk().complete(block, false),
                5 => bench.ask("x"),
                6 => bench.kill(),
                _ => bench.turn(),
            }
        }
        loop {
            let mut disk = bench.disk.disk();
            if disk.under_way.is_empty() { break }
            disk.complete(0, true);
        }
        bench.turn_until("the end of the scan", |b| b.disk.disk().unscanned.is_empty());
        bench.ask("last");
        bench.turn_until("the last mark", |b| b.marks.iter().any(|m| m.label == "last"));
        prop_assert!(bench.wrong.is_empty(), "{:?}", bench.wrong);
        let last = bench.marks.iter().find(|mark| mark.label == "last").unwrap();
        prop_assert_eq!(last.class, PointClass::Crash);
        prop_assert!(bench.image == bench.disk.disk().bytes);
    }
}
