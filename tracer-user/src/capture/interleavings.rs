//! Probes and collector as threads of loom, which runs them in every interleaving and with every value that the memory
//! model lets a load return. `Granules`, `Ledger` and `Counters` are the real ones, over loom's atomics; the probes do what
//! `submit` and `complete` of `tracer-ebpf/src/report.rs` do, the ring what the kernel's does.

use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use loom::sync::{Arc, Mutex};
use loom::thread;
use tracer_common::counter;

use crate::capture::bitmap::Word;
use crate::capture::{Counters, Ledger};
use crate::model::{ByteRange, Granules};

const GRANULE: u64 = 4096;
const GRANULES: Granules = Granules::new(2 * GRANULE, GRANULE).unwrap();
/// With three threads, one is switched against its will at most this often in a run: with more it takes hours. Two
/// threads are run in every way there is.
const PREEMPTIONS: usize = 3;

impl Word for AtomicU64 {
    fn load(&self) -> u64 {
        AtomicU64::load(self, Acquire)
    }

    fn set(&self, bits: u64) {
        self.fetch_or(bits, AcqRel);
    }

    fn clear(&self, bits: u64) {
        self.fetch_and(!bits, AcqRel);
    }
}

/// Slots are used once; the room is what bounds how many are taken at a time.
struct Ring {
    room: u64,
    reserving: Mutex<()>,
    produced: AtomicU64,
    consumed: AtomicU64,
    /// 0 until its probe has written it.
    slots: [AtomicU64; 2],
}

/// A completion in the ring; a submission is the number of its granule plus one.
const COMPLETION: u64 = 100;

impl Ring {
    fn emit(&self, event: u64) -> bool {
        let slot = {
            let _lock = self.reserving.lock().unwrap();
            let slot = self.produced.load(Relaxed);
            if slot - self.consumed.load(Acquire) == self.room {
                return false;
            }
            self.produced.store(slot + 1, Release);
            slot
        };
        self.slots[slot as usize].store(event, Release);
        true
    }

    fn is_empty(&self) -> bool {
        self.consumed.load(Relaxed) == self.produced.load(Acquire)
    }
}

struct Kernel {
    counters: [AtomicU64; counter::COUNT as usize],
    ring: Ring,
    dirty: Vec<AtomicU64>,
}

impl Kernel {
    fn new(ring_room: u64) -> Kernel {
        let ring = Ring {
            room: ring_room,
            reserving: Mutex::new(()),
            produced: AtomicU64::new(0),
            consumed: AtomicU64::new(0),
            slots: [AtomicU64::new(0), AtomicU64::new(0)],
        };
        Kernel { counters: std::array::from_fn(|_| AtomicU64::new(0)), ring, dirty: vec![AtomicU64::new(0)] }
    }

    /// Gives back the number of the submission.
    fn submit(&self, granule: u64) -> u64 {
        let seq = self.count(counter::SEEN);
        if self.ring.emit(granule + 1) {
            self.count(counter::EMITTED);
        } else {
            self.dirty[0].fetch_or(1 << granule, Relaxed);
            self.count(counter::MARKED);
        }
        seq
    }

    fn complete(&self) {
        self.ring.emit(COMPLETION);
    }

    fn count(&self, index: u32) -> u64 {
        self.counters[index as usize].fetch_add(1, SeqCst)
    }

    fn counters(&self) -> Counters {
        Counters::read(|index| match index {
            counter::EMITTED | counter::MARKED | counter::SEEN => self.counters[index as usize].load(Acquire),
            // Nothing in this model depends on the others.
            _ => 0,
        })
    }
}

fn ledger() -> Ledger<Vec<AtomicU64>> {
    Ledger::new(GRANULES.volume_bytes(), (0..3).map(|_| AtomicU64::new(0)).collect())
}

fn range(granule: u64) -> ByteRange {
    ByteRange::with_len(granule * GRANULE, GRANULE)
}

/// What the collector keeps between turns.
#[derive(Default)]
struct Collector {
    taken: u64,
    counters: Counters,
    ring_emptied: bool,
}

impl Collector {
    /// As `drain_ring` of the collector.
    fn drain(&mut self, kernel: &Kernel, ledger: &Ledger<Vec<AtomicU64>>) {
        let counters = kernel.counters();
        let ring = &kernel.ring;
        while ring.consumed.load(Relaxed) < ring.produced.load(Acquire) {
            let slot = ring.consumed.load(Relaxed);
            let event = ring.slots[slot as usize].load(Acquire);
            if event == 0 {
                break;
            }
            if event != COMPLETION {
                ledger.owe(range(event - 1));
                self.taken |= 1 << (event - 1);
            }
            ring.consumed.store(slot + 1, Release);
        }
        self.ring_emptied = true;
        if counters.marked != self.counters.marked {
            let dirty = GRANULES.take(&kernel.dirty, |range| ledger.owe(range));
            dirty.iter().for_each(|range| self.taken |= bits(range));
        }
        self.counters = counters;
    }

    /// As `drained` of the collector: how many submissions are covered, if the verdict is yes.
    fn drained(&self, kernel: &Kernel) -> Option<u64> {
        let drained =
            self.ring_emptied && self.counters.cover_all_until(&kernel.counters()) && kernel.ring.is_empty();
        drained.then_some(self.counters.seen)
    }
}

fn bits(range: ByteRange) -> u64 {
    (range.start / GRANULE..range.end.div_ceil(GRANULE)).fold(0, |bits, granule| bits | 1 << granule)
}

fn model(preemptions: Option<usize>, run: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions;
    model.check(run);
}

/// Submissions to two granules, each by the next probe, while the collector makes some turns.
fn verdicts_cover_what_they_count(ring_room: u64, probes: u64, turns: usize) {
    let preemptions = (probes > 1).then_some(PREEMPTIONS);
    model(preemptions, move || {
        let kernel = Arc::new(Kernel::new(ring_room));
        let ledger = ledger();
        let probes: Vec<_> = (0..probes)
            .map(|probe| {
                let kernel = kernel.clone();
                let granules = (probe..2).step_by(probes as usize);
                thread::spawn(move || granules.map(|granule| (granule, kernel.submit(granule))).collect())
            })
            .collect();
        let mut collector = Collector::default();
        let mut verdicts = Vec::new();
        for _ in 0..turns {
            collector.drain(&kernel, &ledger);
            verdicts.extend(collector.drained(&kernel).map(|covered| (covered, collector.taken)));
        }
        let numbers: Vec<Vec<(u64, u64)>> = probes.into_iter().map(|probe| probe.join().unwrap()).collect();
        for (granule, number) in numbers.into_iter().flatten() {
            for (covered, taken) in &verdicts {
                assert!(
                    number >= *covered || taken & 1 << granule != 0,
                    "covered by a verdict, and not taken"
                );
            }
        }
        // All have reported: one more turn has all.
        collector.drain(&kernel, &ledger);
        assert_eq!((collector.drained(&kernel), collector.taken), (Some(2), 0b11));
        assert_eq!(ledger.owed().bytes(), 2 * GRANULE);
    });
}

#[test]
fn what_a_drained_verdict_counts_was_taken_though_one_probe_reports_between_any_two_steps() {
    for ring_room in 0..=2 {
        verdicts_cover_what_they_count(ring_room, 1, 1);
    }
}

#[test]
fn what_a_drained_verdict_counts_was_taken_though_two_probes_report_at_once() {
    for ring_room in 0..=2 {
        verdicts_cover_what_they_count(ring_room, 2, 1);
    }
}

#[test]
fn an_event_behind_one_that_is_still_being_written_is_no_empty_ring() {
    model(Some(PREEMPTIONS), || {
        let kernel = Arc::new(Kernel::new(2));
        let ledger = ledger();
        let completes = thread::spawn({
            let kernel = kernel.clone();
            move || kernel.complete()
        });
        let submits = thread::spawn({
            let kernel = kernel.clone();
            move || kernel.submit(0)
        });
        let mut collector = Collector::default();
        collector.drain(&kernel, &ledger);
        if collector.drained(&kernel) == Some(1) {
            assert_eq!(collector.taken, 1, "covered by a verdict, and not taken");
        }
        completes.join().unwrap();
        submits.join().unwrap();
    });
}

/// Whoever finds the bitmaps at any instant (the next process, after a kill) sees a marked write in one of them.
#[test]
fn a_bit_is_in_the_ledger_before_it_is_gone_from_the_bitmap() {
    model(Some(PREEMPTIONS), || {
        let kernel = Arc::new(Kernel::new(0));
        let ledger = Arc::new(ledger());
        let probe = thread::spawn({
            let kernel = kernel.clone();
            move || kernel.submit(0)
        });
        let collector = thread::spawn({
            let (kernel, ledger) = (kernel.clone(), ledger.clone());
            move || GRANULES.take(&kernel.dirty, |range| ledger.owe(range)).bytes()
        });
        if kernel.counters().marked == 1 {
            let in_bitmap = GRANULES.ranges(&kernel.dirty).bytes() > 0;
            assert!(in_bitmap || ledger.owed().bytes() > 0, "in neither");
        }
        probe.join().unwrap();
        collector.join().unwrap();
    });
}
