//! Ring, bitmap, ledger and journal as a small machine, walked breadth-first through every order of its steps, with a kill
//! after each change of a word. Ledger and bitmap are the real ones; the words they change are the machine's.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};

use crate::capture::Ledger;
use crate::capture::bitmap::{Word, Words};
use crate::model::{ByteRange, Granules};

const GRANULE: u64 = 4096;
const GRANULES: Granules = Granules::new(2 * GRANULE, GRANULE).unwrap();
const RING_MAX: usize = 2;

/// A step taken in the wrong order.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    None,
    EventConsumedBeforeOwed,
    BitsClearedBeforeOwed,
    TurnClearsBeforeItSets,
    SettledBeforeDurable,
    TurnedWithoutDrain,
    OlderNotAdopted,
}

/// The bitmaps, of a word each: they outlive the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Bitmaps {
    current: u64,
    older: u64,
    unscanned: u64,
    dirty: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Entry {
    Data(usize, u8),
    /// With what the device held at its instant.
    Mark([u8; 2]),
}

/// What the process knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Collector {
    pending: [bool; 2],
    /// The ledger was turned, and nothing goes to the journal before the mark of that instant: what the device held.
    turned: Option<[u8; 2]>,
    /// The mark of the last turn.
    mark: Option<u8>,
    marks: u8,
    acknowledged: u8,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Machine {
    device: [u8; 2],
    under_way: [bool; 2],
    ring: VecDeque<usize>,
    bitmaps: Bitmaps,
    /// `None`: killed, or its journal failed.
    collector: Option<Collector>,
    /// Appended, and not durable.
    tail: VecDeque<Entry>,
    durable: [u8; 2],
    /// What a restore of the last durable mark gives.
    restorable: [u8; 2],
    submissions_left: u8,
    marks_left: u8,
    kills_left: u8,
}

/// A word of the machine; each change of it is an instant to be killed at.
struct Traced<'a> {
    trace: &'a RefCell<Trace>,
    of: fn(&mut Bitmaps) -> &mut u64,
}

struct Trace {
    now: Bitmaps,
    instants: Vec<Bitmaps>,
}

impl Traced<'_> {
    fn change(&self, change: impl FnOnce(&mut u64)) {
        let mut trace = self.trace.borrow_mut();
        change((self.of)(&mut trace.now));
        let now = trace.now;
        trace.instants.push(now);
    }
}

impl Word for Traced<'_> {
    fn load(&self) -> u64 {
        *(self.of)(&mut self.trace.borrow_mut().now)
    }

    fn set(&self, bits: u64) {
        self.change(|word| *word |= bits);
    }

    fn clear(&self, bits: u64) {
        self.change(|word| *word &= !bits);
    }
}

impl<W: Word> Words for Vec<W> {
    type Word = W;

    fn words(&self) -> &[W] {
        self
    }
}

impl Bitmaps {
    /// Does what the real code does with the bitmaps, and gives back what they were after each change of a word.
    fn run(&mut self, act: impl FnOnce(&Ledger<Vec<Traced<'_>>>, &[Traced<'_>])) -> Vec<Bitmaps> {
        let trace = RefCell::new(Trace { now: *self, instants: Vec::new() });
        let traced = |of| Traced { trace: &trace, of };
        let words = vec![
            traced(|bitmaps| &mut bitmaps.current),
            traced(|bitmaps| &mut bitmaps.older),
            traced(|bitmaps| &mut bitmaps.unscanned),
        ];
        let ledger = Ledger::new(GRANULES.volume_bytes(), words);
        act(&ledger, &[traced(|bitmaps| &mut bitmaps.dirty)]);
        let Trace { now, instants } = trace.into_inner();
        *self = now;
        instants
    }
}

fn range(granule: usize) -> ByteRange {
    ByteRange::with_len(granule as u64 * GRANULE, GRANULE)
}

fn owed(ledger: &Ledger<Vec<Traced<'_>>>) -> [bool; 2] {
    let owed = ledger.owed();
    [0, 1].map(|granule| owed.iter().any(|one| one.intersect(range(granule)).is_some()))
}

impl Machine {
    fn begin() -> Machine {
        Machine {
            collector: Some(Collector::default()),
            submissions_left: 3,
            marks_left: 2,
            kills_left: 2,
            ..Machine::default()
        }
    }

    /// Every state that one step leads to.
    fn next(&self, flaw: Flaw) -> Vec<Machine> {
        let mut next = Vec::new();
        self.writer(&mut next);
        match &self.collector {
            Some(collector) => self.collect(collector, flaw, &mut next),
            None => {
                let mut to = self.clone();
                let mut pending = [false; 2];
                to.bitmaps.run(|ledger, _| pending = owed(ledger));
                if flaw == Flaw::OlderNotAdopted {
                    pending = [0, 1].map(|granule| self.bitmaps.current & 1 << granule != 0);
                }
                to.collector = Some(Collector { pending, ..Collector::default() });
                next.push(to);
            }
        }
        if let Some(entry) = self.tail.front() {
            let mut to = self.clone();
            to.tail.pop_front();
            match *entry {
                Entry::Data(granule, version) => to.durable[granule] = version,
                Entry::Mark(_) => {
                    to.restorable = to.durable;
                    if let Some(collector) = &mut to.collector {
                        collector.acknowledged += 1;
                    }
                }
            }
            next.push(to);
        }
        next.extend(self.killed(self.bitmaps));
        next
    }

    /// A submission is reported before the device changes; the ring may have no room at any time.
    fn writer(&self, next: &mut Vec<Machine>) {
        for granule in 0..2 {
            if self.under_way[granule] {
                let mut to = self.clone();
                to.under_way[granule] = false;
                to.device[granule] += 1;
                next.push(to);
            } else if self.submissions_left > 0 {
                let mut to = self.clone();
                to.submissions_left -= 1;
                to.under_way[granule] = true;
                let mut marked = to.clone();
                marked.bitmaps.dirty |= 1 << granule;
                next.push(marked);
                if to.ring.len() < RING_MAX {
                    to.ring.push_back(granule);
                    next.push(to);
                }
            }
        }
    }

    fn collect(&self, collector: &Collector, flaw: Flaw, next: &mut Vec<Machine>) {
        self.take_event(flaw, next);
        self.take_dirty(flaw, next);
        for granule in 0..2 {
            if collector.pending[granule] && !self.under_way[granule] && collector.turned.is_none() {
                let mut to = self.with(|collector| collector.pending[granule] = false);
                to.tail.push_back(Entry::Data(granule, self.device[granule]));
                next.push(to);
            }
        }
        let taken = self.ring.is_empty() && self.bitmaps.dirty == 0;
        let drained = taken && collector.pending == [false; 2];
        if (drained || flaw == Flaw::TurnedWithoutDrain) && collector.turned.is_none() && self.marks_left > 0
        {
            let mut to = self.with(|collector| {
                collector.turned = Some(self.device);
                collector.mark = None;
            });
            to.marks_left -= 1;
            let instants = to.bitmaps.run(|ledger, _| ledger.turn());
            if flaw == Flaw::TurnClearsBeforeItSets {
                next.extend(self.killed(Bitmaps { current: 0, ..self.bitmaps }));
            }
            next.extend(instants.into_iter().filter_map(|bitmaps| self.killed(bitmaps)));
            next.push(to);
        }
        if let Some(device) = collector.turned {
            let mut to = self.with(|collector| {
                collector.turned = None;
                collector.marks += 1;
                collector.mark = Some(collector.marks);
            });
            to.tail.push_back(Entry::Mark(device));
            next.push(to);
            // The freeze did not hold: no mark.
            next.push(self.with(|collector| collector.turned = None));
        }
        if let Some(mark) = collector.mark
            && (mark <= collector.acknowledged || flaw == Flaw::SettledBeforeDurable)
        {
            let mut to = self.with(|collector| collector.mark = None);
            let instants = to.bitmaps.run(|ledger, _| ledger.settle());
            next.extend(instants.into_iter().filter_map(|bitmaps| self.killed(bitmaps)));
            next.push(to);
        }
    }

    fn take_event(&self, flaw: Flaw, next: &mut Vec<Machine>) {
        let Some(granule) = self.ring.front().copied() else { return };
        let mut to = self.with(|collector| collector.pending[granule] = true);
        let instants = to.bitmaps.run(|ledger, _| ledger.owe(range(granule)));
        to.ring.pop_front();
        match flaw {
            Flaw::EventConsumedBeforeOwed => {
                next.extend(Machine { bitmaps: self.bitmaps, ..to.clone() }.killed(self.bitmaps));
            }
            _ => next.extend(instants.into_iter().filter_map(|bitmaps| self.killed(bitmaps))),
        }
        next.push(to);
    }

    fn take_dirty(&self, flaw: Flaw, next: &mut Vec<Machine>) {
        if self.bitmaps.dirty == 0 {
            return;
        }
        let dirty = self.bitmaps.dirty;
        let mut to = self.with(|collector| {
            (0..2).for_each(|granule| collector.pending[granule] |= dirty & 1 << granule != 0);
        });
        let instants = to.bitmaps.run(|ledger, dirty| {
            GRANULES.take(dirty, |range| ledger.owe(range));
        });
        if flaw == Flaw::BitsClearedBeforeOwed {
            next.extend(self.killed(Bitmaps { dirty: 0, ..self.bitmaps }));
        }
        next.extend(instants.into_iter().filter_map(|bitmaps| self.killed(bitmaps)));
        next.push(to);
    }

    fn with(&self, change: impl FnOnce(&mut Collector)) -> Machine {
        let mut to = self.clone();
        if let Some(collector) = &mut to.collector {
            change(collector);
        }
        to
    }

    /// The process is killed, or its journal fails: what was not durable is lost.
    fn killed(&self, bitmaps: Bitmaps) -> Option<Machine> {
        let alive = self.collector.is_some() && self.kills_left > 0;
        alive.then(|| Machine {
            collector: None,
            tail: VecDeque::new(),
            kills_left: self.kills_left - 1,
            bitmaps,
            ..self.clone()
        })
    }

    /// What is wrong here, if anything.
    fn wrong(&self) -> Option<String> {
        let mut journal = self.durable;
        for entry in &self.tail {
            match *entry {
                Entry::Data(granule, version) => journal[granule] = version,
                Entry::Mark(device) if device != journal => {
                    return Some(format!("a mark of {device:?} restores {journal:?}"));
                }
                Entry::Mark(_) => {}
            }
        }
        let Bitmaps { current, older, dirty, .. } = self.bitmaps;
        (0..2).find_map(|granule| {
            let known = (current | older | dirty) & 1 << granule != 0 || self.ring.contains(&granule);
            let owed = self.under_way[granule] || self.device[granule] != self.restorable[granule];
            (owed && !known).then(|| format!("a write to granule {granule} is nowhere"))
        })
    }
}

/// How many states there are, or what is wrong in the first wrong one.
fn explore(flaw: Flaw) -> Result<usize, String> {
    let mut known = HashSet::from([Machine::begin()]);
    let mut open = VecDeque::from([Machine::begin()]);
    while let Some(machine) = open.pop_front() {
        if let Some(wrong) = machine.wrong() {
            return Err(format!("{wrong}: {machine:?}"));
        }
        for next in machine.next(flaw) {
            if known.insert(next.clone()) {
                open.push_back(next);
            }
        }
    }
    Ok(known.len())
}

#[test]
fn killed_at_any_change_of_a_word_no_write_is_nowhere_and_every_mark_is_true() {
    let states = explore(Flaw::None).unwrap();
    assert!(states > 100_000, "{states} states only: the machine stands still somewhere");
}

#[test]
fn every_order_of_steps_that_the_ledger_relies_on_is_needed() {
    for flaw in [
        Flaw::EventConsumedBeforeOwed,
        Flaw::BitsClearedBeforeOwed,
        Flaw::TurnClearsBeforeItSets,
        Flaw::SettledBeforeDurable,
        Flaw::TurnedWithoutDrain,
        Flaw::OlderNotAdopted,
    ] {
        assert!(explore(flaw).is_err(), "{flaw:?} goes unnoticed");
    }
}
