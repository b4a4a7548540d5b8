//! The collector against a simulated disk whose probes copy payload: every instant that the journal calls restorable has to be
//! what a power cut could have left.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Parts, start};
use crate::capture::{Change, Payload};
use crate::collect::collector::Collector;
use crate::collect::*;
use crate::io::clock::monotonic_ns;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 12;
/// Of a block that was discarded: it may read as anything.
const ANYTHING: u32 = u32::MAX;

/// What each block holds: the number of a write, in all its bytes.
type Content = Vec<u32>;

#[derive(Clone, Copy, Debug)]
enum Op {
    Write {
        key: u64,
        block: u64,
        blocks: u64,
    },
    Discard {
        key: u64,
        block: u64,
    },
    Complete {
        which: usize,
        seen: bool,
        failed: bool,
    },
    Turn,
    Mark,
    Kill,
    /// To happen while the device is next read, or while the ring is.
    Meanwhile {
        block: u64,
        completes: bool,
        in_ring: bool,
    },
}

#[derive(Clone)]
struct UnderWay {
    key: u64,
    block: u64,
    blocks: u64,
    /// 0: a discard.
    number: u32,
}

#[derive(Default)]
struct Disk {
    content: Content,
    ring: VecDeque<Event>,
    ring_max: usize,
    taken: u64,
    dirty: ByteRangeSet,
    counters: Counters,
    under_way: Vec<UnderWay>,
    /// Of whoever was told that it failed, nobody may count on what is there: old or new.
    failed: Vec<UnderWay>,
    while_device_is_read: VecDeque<(u64, bool)>,
    while_ring_is_read: VecDeque<(u64, bool)>,
    /// All that is under way is done just before it is asked whether anything is.
    done_when_looked_at: bool,
    current: ByteRangeSet,
    older: ByteRangeSet,
    unscanned: ByteRangeSet,
    /// What a power cut could have left at each instant: by block, what is there and what was under way.
    instants: Vec<Vec<Vec<u32>>>,
}

fn blocks(block: u64, count: u64) -> ByteRange {
    ByteRange::new(block * BLOCK, (block + count).min(BLOCKS) * BLOCK)
}

fn bytes_of(number: u32, blocks: u64) -> Vec<u8> {
    number.to_le_bytes().repeat((blocks * BLOCK / 4) as usize)
}

impl Disk {
    fn room(&self) -> usize {
        self.ring_max.saturating_sub(self.ring.len())
    }

    fn push(&mut self, event: Event) -> bool {
        let room = self.room() > 0;
        if room {
            self.ring.push_back(event);
        }
        room
    }

    fn instant(&mut self) {
        let mut instant: Vec<Vec<u32>> = self.content.iter().map(|number| vec![*number]).collect();
        for write in self.under_way.iter().chain(&self.failed) {
            for block in write.block..write.block + write.blocks {
                let number = if write.number == 0 { ANYTHING } else { write.number };
                instant[block as usize].push(number);
            }
        }
        self.instants.push(instant);
    }

    fn submit(&mut self, key: u64, block: u64, blocks_wanted: u64, discard: bool) {
        let range = blocks(block, blocks_wanted);
        let count = range.len() / BLOCK;
        if self.under_way.iter().any(|write| write.key == key) {
            return;
        }
        let seq = self.counters.seen;
        self.counters.seen += 1;
        let number = if discard { 0 } else { seq as u32 + 1 };
        let submit = |change, payload| Event::Submit {
            key,
            first: true,
            range,
            change,
            time_ns: monotonic_ns(),
            seq,
            payload,
        };
        // As the probe: bytes while there is plenty of room, then where, then the bitmap.
        let plenty = self.room() > self.ring_max / 4;
        if discard || !plenty {
            let change = if discard { Change::Discard } else { Change::Write };
            self.report(range, submit(change, Payload::None));
        } else if count == 1 {
            self.counters.payload += 1;
            self.report(range, submit(Change::Write, Payload::Whole(bytes_of(number, 1))));
        } else {
            self.counters.payload += 1;
            self.report(range, submit(Change::Write, Payload::Follows));
            let fits = (block..block + count).all(|block| {
                self.push(Event::Piece { seq, range: blocks(block, 1), bytes: bytes_of(number, 1) })
            });
            if !fits {
                self.dirty.insert(range);
                self.counters.payload_lost += 1;
            }
        }
        self.under_way.push(UnderWay { key, block, blocks: count, number });
        self.instant();
    }

    fn report(&mut self, range: ByteRange, event: Event) {
        if self.push(event) {
            self.counters.emitted += 1;
        } else {
            self.dirty.insert(range);
            self.counters.marked += 1;
        }
    }

    fn another_write(&mut self, block: u64, completes: bool) {
        let key = 1000 + self.counters.seen;
        self.submit(key, block, 1, false);
        if completes {
            let last = self.under_way.len() - 1;
            self.complete(last, true, false);
        }
    }

    fn complete(&mut self, which: usize, seen: bool, failed: bool) {
        if self.under_way.is_empty() {
            return;
        }
        let write = self.under_way.remove(which % self.under_way.len());
        let overwrites = |other: &UnderWay| {
            write.block <= other.block && other.block + other.blocks <= write.block + write.blocks
        };
        if failed {
            self.failed.push(write.clone());
        } else {
            self.failed.retain(|other| !overwrites(other));
        }
        // One that failed may have been written all the same.
        if !failed || which.is_multiple_of(2) {
            let number = if write.number == 0 { ANYTHING } else { write.number };
            self.content[write.block as usize..(write.block + write.blocks) as usize].fill(number);
        }
        if seen {
            let range = Some(blocks(write.block, write.blocks));
            self.push(Event::Complete { key: write.key, range, whole: true, failed });
        }
        self.instant();
    }
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
        if let Some((block, completes)) = disk.while_ring_is_read.pop_front() {
            disk.another_write(block, completes);
        }
        let event = disk.ring.pop_front()?;
        disk.taken += 1;
        if let Event::Submit { range, .. } = &event {
            disk.current.insert(*range);
        }
        Some(Some(event))
    }

    fn ring_is_empty(&self) -> bool {
        self.disk().ring.is_empty()
    }

    fn copy_payload(&self) -> bool {
        true
    }

    fn positions(&self) -> Positions {
        let disk = self.disk();
        Positions { read: disk.taken, filled: disk.taken + disk.ring.len() as u64 }
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
        false
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
        Ok(BLOCKS * BLOCK)
    }

    fn read(&self, range: ByteRange) -> std::io::Result<AlignedBuf> {
        let mut disk = self.0.lock().unwrap();
        let mut buffer = AlignedBuf::with_capacity(range.len() as usize);
        buffer.set_len(range.len() as usize);
        for (index, part) in buffer.chunks_mut(BLOCK as usize).enumerate() {
            // A read is not one instant: between any two blocks others write.
            if let Some((block, completes)) = disk.while_device_is_read.pop_front() {
                disk.another_write(block, completes);
            }
            let number = disk.content[(range.start / BLOCK) as usize + index];
            part.copy_from_slice(&bytes_of(number, 1));
        }
        Ok(buffer)
    }

    fn writing(&self) -> Option<bool> {
        let mut disk = self.disk();
        while disk.done_when_looked_at && !disk.under_way.is_empty() {
            disk.complete(0, true, false);
        }
        Some(!disk.under_way.is_empty())
    }

    fn is_busy(&self) -> bool {
        false
    }

    fn completions_name_ranges(&self) -> bool {
        true
    }

    fn mounts(&self) -> std::io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

/// What a journal says so far.
#[derive(Clone)]
struct Image {
    content: Content,
    /// A restorable mark was made, and nothing broke the history since.
    exact: bool,
    records: usize,
}

struct Bench {
    disk: Shared,
    queue: usize,
    collector: Collector<Shared, Shared>,
    commands: Sender<Command>,
    journal: Receiver<Entry>,
    acknowledged: Arc<Acknowledged>,
    image: Image,
    durable: Image,
    marks: Vec<Mark>,
    restorable: usize,
    /// States called restorable that no power cut could have left.
    wrong: Vec<(usize, Content)>,
}

fn collector(disk: &Shared, queue: usize, state: State, next_mark: MarkId) -> Parts<Shared> {
    let mut owed = disk.disk().current.clone();
    owed.extend(&disk.disk().older);
    let unscanned = disk.disk().unscanned.clone();
    let begin = Begin { state, unscanned, same_as_replica: ByteRangeSet::new(), owed };
    start(disk, None, queue, begin, next_mark)
}

impl Bench {
    fn new(ring_max: usize) -> Bench {
        Bench::with_queue(ring_max, 1000)
    }

    fn with_queue(ring_max: usize, queue: usize) -> Bench {
        let whole = [blocks(0, BLOCKS)].into_iter().collect();
        let content = vec![ANYTHING - 1; BLOCKS as usize];
        let mut disk = Disk { content: content.clone(), ring_max, unscanned: whole, ..Disk::default() };
        disk.instant();
        let disk = Shared(Arc::new(Mutex::new(disk)));
        let (collector, commands, journal, acknowledged) =
            collector(&disk, queue, State::Baseline, MarkId(1));
        let image = Image { content: vec![ANYTHING - 2; BLOCKS as usize], exact: false, records: 0 };
        let durable = image.clone();
        let (marks, wrong) = (vec![], vec![]);
        Bench {
            disk,
            queue,
            collector,
            commands,
            journal,
            acknowledged,
            image,
            durable,
            marks,
            restorable: 0,
            wrong,
        }
    }

    fn kill(&mut self) {
        self.image.clone_from(&self.durable);
        let next_mark = MarkId(self.marks.last().map_or(1, |mark| mark.id.0 + 1));
        (self.collector, self.commands, self.journal, self.acknowledged) =
            collector(&self.disk, self.queue, State::Resync, next_mark);
    }

    fn apply(&mut self, body: &RecordBody) {
        let Some(range) = body.content_range() else { return };
        for (index, block) in (range.start / BLOCK..range.end / BLOCK).enumerate() {
            self.image.content[block as usize] = match body {
                RecordBody::Data { bytes, .. } => {
                    u32::from_le_bytes(*bytes[index * BLOCK as usize..].first_chunk().unwrap())
                }
                _ => 0,
            };
        }
    }

    /// What the journal says now is said to be restorable.
    fn judge(&mut self) {
        self.restorable += 1;
        let content = &self.image.content;
        let could_be = |instant: &Vec<Vec<u32>>| {
            content
                .iter()
                .zip(instant)
                .all(|(number, possible)| possible.contains(number) || possible.contains(&ANYTHING))
        };
        if !self.disk.disk().instants.iter().any(could_be) {
            self.wrong.push((self.image.records, content.clone()));
        }
    }

    fn turn(&mut self) {
        self.collector.turn().unwrap();
        while let Ok(entry) = self.journal.try_recv() {
            match entry {
                Entry::Records { bodies, .. } => {
                    // Only one that changes nothing leaves a history whole.
                    self.image.exact = false;
                    self.image.records += bodies.len();
                    bodies.iter().for_each(|body| self.apply(body));
                }
                Entry::Ordered { records } => {
                    for (_, body) in records {
                        self.image.records += 1;
                        self.image.exact &= body.content_range().is_some();
                        self.apply(&body);
                        if self.image.exact {
                            self.judge();
                        }
                    }
                }
                Entry::Mark { mark, .. } => {
                    if mark.class.restorable() {
                        self.image.exact = true;
                        self.judge();
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

    /// Turns for so long, with a journal that takes nothing.
    fn stall(&mut self, length: Duration) {
        let end = Instant::now() + length;
        while Instant::now() < end {
            self.collector.turn().unwrap();
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn turn_until(&mut self, what: &str, done: impl Fn(&Bench) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done(self) {
            assert!(Instant::now() < deadline, "not reached: {what}");
            self.turn();
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn is_true(&self) -> bool {
        let disk = self.disk.disk();
        self.image.content.iter().zip(&disk.content).all(|(a, b)| a == b || *b == ANYTHING)
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Write { key, block, blocks } => self.disk.disk().submit(key, block, blocks, false),
            Op::Discard { key, block } => self.disk.disk().submit(key, block, 1, true),
            Op::Complete { which, seen, failed } => self.disk.disk().complete(which, seen, failed),
            Op::Meanwhile { block, completes, in_ring: true } => {
                self.disk.disk().while_ring_is_read.push_back((block, completes));
            }
            Op::Meanwhile { block, completes, in_ring: false } => {
                self.disk.disk().while_device_is_read.push_back((block, completes));
            }
            Op::Mark => {
                self.commands.send(Command::Mark { label: "x".into(), reply: None, group: None }).unwrap()
            }
            Op::Kill => self.kill(),
            Op::Turn => self.turn(),
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    let block = 0..BLOCKS;
    prop_oneof![
        8 => (1u64..8, block.clone(), 1u64..4)
            .prop_map(|(key, block, blocks)| Op::Write { key, block, blocks }),
        1 => (1u64..8, block.clone()).prop_map(|(key, block)| Op::Discard { key, block }),
        7 => (any::<usize>(), prop::bool::weighted(0.9), prop::bool::weighted(0.05))
            .prop_map(|(which, seen, failed)| Op::Complete { which, seen, failed }),
        5 => Just(Op::Turn),
        1 => Just(Op::Mark),
        1 => Just(Op::Kill),
        4 => (block, any::<bool>(), any::<bool>())
            .prop_map(|(block, completes, in_ring)| Op::Meanwhile { block, completes, in_ring }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, ..ProptestConfig::with_cases(120) })]

    #[test]
    fn every_instant_called_restorable_is_one_a_power_cut_could_have_left(
        ring_max in 4usize..60,
        ops in prop::collection::vec(op(), 1..200),
    ) {
        let mut bench = Bench::new(ring_max);
        for op in ops {
            bench.run(op);
            prop_assert!(bench.wrong.is_empty(), "{:?}", bench.wrong);
        }
        loop {
            let mut disk = bench.disk.disk();
            disk.while_device_is_read.clear();
            disk.while_ring_is_read.clear();
            if disk.under_way.is_empty() { break }
            disk.complete(0, true, false);
        }
        bench.turn_until("the end of the scan", |b| b.disk.disk().unscanned.is_empty());
        bench.commands.send(Command::Mark { label: "last".into(), reply: None, group: None }).unwrap();
        bench.turn_until("the last mark", |b| b.marks.iter().any(|m| m.label == "last"));
        bench.turn_until("the journal says what the device holds", Bench::is_true);
        prop_assert!(bench.wrong.is_empty(), "{:?}", bench.wrong);
    }
}

#[test]
fn with_room_in_the_ring_each_write_is_a_point() {
    let mut bench = Bench::new(1000);
    bench.turn_until("the baseline", |b| !b.marks.is_empty());
    let before = bench.restorable;
    for number in 0..50 {
        bench.run(Op::Write { key: 1, block: number % BLOCKS, blocks: 1 });
        bench.run(Op::Complete { which: 0, seen: true, failed: false });
    }
    bench.turn_until("the points", |b| b.restorable == before + 50);
    assert!(bench.wrong.is_empty() && bench.marks.len() == 1);
}

#[test]
fn a_completion_that_came_just_before_the_device_was_seen_idle_is_not_a_lost_one() {
    let mut bench = Bench::new(1000);
    bench.turn_until("the baseline", |b| !b.marks.is_empty());
    bench.run(Op::Write { key: 1, block: 3, blocks: 1 });
    bench.disk.disk().done_when_looked_at = true;
    bench.turn_until("a look at the device", |b| b.disk.disk().under_way.is_empty());
    bench.turn();
    bench.turn();
    assert!(bench.image.exact && bench.marks.len() == 1);
}

#[test]
fn a_write_that_is_done_after_a_discard_of_it_breaks_the_history() {
    let mut bench = Bench::new(1000);
    bench.turn_until("the baseline", |b| !b.marks.is_empty());
    bench.run(Op::Write { key: 1, block: 3, blocks: 1 });
    bench.run(Op::Discard { key: 2, block: 3 });
    bench.run(Op::Complete { which: 1, seen: true, failed: false });
    bench.run(Op::Complete { which: 0, seen: true, failed: false });
    bench.run(Op::Write { key: 3, block: 5, blocks: 1 });
    bench.turn_until("the write in the journal", |b| b.image.content[5] == 3);
    bench.run(Op::Complete { which: 0, seen: true, failed: false });
    bench.turn_until("what is there was read", Bench::is_true);
    assert!(bench.wrong.is_empty(), "{:?}", bench.wrong);
}

#[test]
fn a_copied_write_taken_late_does_not_stand_for_a_later_one_that_the_bitmap_told_of() {
    let mut bench = Bench::with_queue(12, 1);
    bench.turn_until("the baseline", |b| !b.marks.is_empty());
    // The journal is slow: nothing is taken from the ring, but the bitmap is.
    for key in 1..4 {
        bench.run(Op::Write { key, block: key, blocks: 1 });
        bench.run(Op::Complete { which: 0, seen: true, failed: false });
        bench.stall(Duration::from_millis(30));
    }
    bench.run(Op::Write { key: 4, block: 5, blocks: 1 });
    bench.run(Op::Complete { which: 0, seen: true, failed: false });
    while bench.disk.disk().room() > 0 {
        bench.run(Op::Write { key: 5, block: 6, blocks: 1 });
        bench.run(Op::Complete { which: 0, seen: true, failed: false });
    }
    bench.run(Op::Write { key: 6, block: 5, blocks: 1 });
    bench.run(Op::Complete { which: 0, seen: true, failed: false });
    bench.stall(Duration::from_millis(250));
    let disk = bench.disk.disk();
    assert!(disk.counters.marked == 1 && disk.dirty.is_empty() && disk.ring.len() == disk.ring_max);
    drop(disk);
    bench.run(Op::Mark);
    bench.turn_until("the mark", |b| b.marks.iter().any(|mark| mark.label == "x"));
    assert!(bench.is_true() && bench.wrong.is_empty(), "{:?}", bench.wrong);
}

#[test]
fn after_an_overrun_the_history_begins_anew_by_itself() {
    let mut bench = Bench::new(8);
    bench.turn_until("the baseline", |b| !b.marks.is_empty());
    for number in 0..30 {
        bench.run(Op::Write { key: number + 1, block: number % BLOCKS, blocks: 1 });
    }
    assert!(bench.disk.disk().counters.marked > 0);
    bench.turn();
    assert!(!bench.image.exact);
    for _ in 0..30 {
        bench.run(Op::Complete { which: 0, seen: true, failed: false });
    }
    bench.turn_until("a mark nobody asked for", |b| b.marks.len() == 2);
    assert!(bench.wrong.is_empty(), "{:?}", bench.wrong);
}
