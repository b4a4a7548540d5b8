//! The collector against a simulated disk: every restorable mark has to equal the disk at that very instant.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::collect::collector::{Collector, CollectorParts};
use crate::model::{ByteRangeSet, PointClass};

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
}

impl Disk {
    fn submit(&mut self, key: u64, block: usize, fill: u8) {
        let range = ByteRange::with_len((block * BLOCK) as u64, BLOCK as u64);
        if self.under_way.iter().any(|(k, other, _)| *k == key || other.intersect(range).is_some()) {
            return;
        }
        self.counters.seen += 1;
        let event =
            Event::Submit { key, first: true, range, discard: false, time_ns: 0, seq: self.counters.seen };
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

#[derive(Clone)]
struct Shared(Arc<Mutex<Disk>>);

impl Shared {
    fn disk(&self) -> std::sync::MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }
}

impl Probes for Shared {
    fn next_event(&mut self) -> Option<Option<Event>> {
        self.disk().ring.pop_front().map(Some)
    }

    fn counters(&self) -> Counters {
        self.disk().counters
    }

    fn take_dirty(&mut self) -> Vec<ByteRange> {
        std::mem::take(&mut self.disk().dirty).iter().collect()
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
    image: Vec<u8>,
    marks: Vec<Mark>,
    /// Marks whose image was not the disk.
    wrong: Vec<Mark>,
}

impl Bench {
    fn new(ring_max: usize, queue: usize) -> Bench {
        let disk = Disk { bytes: vec![1; BLOCK * BLOCKS], ring_max, ..Disk::default() };
        let disk = Shared(Arc::new(Mutex::new(disk)));
        let (journal, entries) = sync_channel(queue);
        let (commands, receiver) = channel();
        let parts = CollectorParts {
            probes: disk.clone(),
            source: disk.clone(),
            replica: None,
            freezer: Box::new(NoFreezer),
            journal,
            commands: receiver,
            status: Arc::default(),
            options: CollectorOptions {
                mark_every: None,
                freeze_timeout: Duration::from_secs(1),
                next_mark: MarkId(1),
            },
        };
        let collector = Collector::new(parts, &ByteRangeSet::new(), State::Baseline).unwrap();
        let image = vec![0xEE; BLOCK * BLOCKS];
        Bench { disk, collector, commands, journal: entries, image, marks: vec![], wrong: vec![] }
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
                Entry::Mark { mark, .. } => {
                    if mark.class.restorable() && self.image != self.disk.disk().bytes {
                        self.wrong.push(mark.clone());
                    }
                    self.marks.push(mark);
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
        self.commands.send(Command::Mark { label: label.into(), reply: None }).unwrap();
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
    bench.commands.send(Command::Mark { label: "while unreadable".into(), reply: Some(reply) }).unwrap();
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
fn unreadable_kernel_memory_copies_the_whole_volume_again() {
    let mut bench = Bench::new(100, 1000);
    bench.turn_until("a mark", |b| !b.marks.is_empty());
    // A write that no probe reported.
    bench.disk.disk().bytes[..BLOCK].fill(99);
    bench.disk.disk().counters.read_failed = 1;
    bench.turn();
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

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 50, ..ProptestConfig::with_cases(64) })]

    /// Small rings, lost completions, slow journals, writes between any two turns: no restorable mark ever lies.
    #[test]
    fn every_restorable_mark_equals_the_disk(
        ring_max in 1usize..12,
        queue in 1usize..8,
        ops in prop::collection::vec((0u8..8, 0u64..6, 0usize..BLOCKS, any::<u8>()), 1..150),
    ) {
        let mut bench = Bench::new(ring_max, queue);
        for (op, key, block, fill) in ops {
            match op {
                0..=2 => bench.disk.disk().submit(key + 1, block, fill),
                3 => bench.disk.disk().complete(block, true),
                4 => bench.disk.disk().complete(block, false),
                5 => bench.ask("x"),
                _ => bench.turn(),
            }
        }
        loop {
            let mut disk = bench.disk.disk();
            if disk.under_way.is_empty() { break }
            disk.complete(0, true);
        }
        bench.turn_until("the baseline", |b| !b.marks.is_empty());
        bench.ask("last");
        bench.turn_until("the last mark", |b| b.marks.last().is_some_and(|m| m.label == "last"));
        prop_assert!(bench.wrong.is_empty(), "{:?}", bench.wrong);
        prop_assert_eq!(bench.marks.last().unwrap().class, PointClass::Crash);
        prop_assert!(bench.image == bench.disk.disk().bytes);
    }
}
