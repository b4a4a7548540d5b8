//! What user space owes to the journal, kept in a pinned BPF array: it outlives the process that owes.
//!
//! Three bitmaps. `current`: written, and taken out of the ring or the dirty bitmap. `older`: the same from before the
//! last instant at which journal and device said the same; forgotten once the mark of that instant is durable.
//! `unscanned`: what a baseline or a comparison has not come to. One thread writes them; each change leaves every range
//! that is owed in one of them at every instant.

use crate::capture::bitmap::{Word, Words};
use crate::capture::mapped::MappedArray;
use crate::model::{ByteRange, ByteRangeSet, Granules};

const GRANULE_BYTES_MIN: u64 = 4096;
const BITMAPS: usize = 3;

pub struct Ledger<S = MappedArray> {
    granules: Granules,
    words: S,
}

impl Ledger {
    pub fn granules(volume_bytes: u64) -> Granules {
        Granules::at_least(GRANULE_BYTES_MIN, volume_bytes)
    }

    /// Words in its map.
    pub fn words(volume_bytes: u64) -> usize {
        BITMAPS * Ledger::granules(volume_bytes).words()
    }
}

impl<S: Words> Ledger<S> {
    /// `words` holds [`Ledger::words`] of the volume.
    pub fn new(volume_bytes: u64, words: S) -> Ledger<S> {
        Ledger { granules: Ledger::granules(volume_bytes), words }
    }

    /// To be called before the event or the bit that told of the range is consumed.
    pub fn owe(&self, range: ByteRange) {
        self.granules.set(self.current(), range);
    }

    /// Written, and not under a durable mark.
    pub fn owed(&self) -> ByteRangeSet {
        let mut owed = self.granules.ranges(self.current());
        owed.extend(&self.granules.ranges(self.older()));
        owed
    }

    /// Journal and device say the same now. What is owed so far is settled by the durability of the mark of this
    /// instant.
    pub fn turn(&self) {
        for (older, current) in self.older().iter().zip(self.current()) {
            let bits = current.load();
            if bits != 0 {
                older.set(bits);
                current.clear(bits);
            }
        }
    }

    /// The mark of the last turn is durable.
    pub fn settle(&self) {
        self.older().iter().for_each(|word| word.clear(u64::MAX));
    }

    /// The scan has the whole volume before it.
    pub fn scan_all(&self) {
        self.granules.set(self.unscanned_words(), ByteRange::new(0, self.granules.volume_bytes()));
    }

    pub fn unscanned(&self) -> ByteRangeSet {
        self.granules.ranges(self.unscanned_words())
    }

    /// What the scan found of all but `left` is durable.
    pub fn keep_unscanned(&self, left: &ByteRangeSet) {
        let words = self.unscanned_words();
        for range in self.granules.ranges(words).iter() {
            for done in left.gaps(range) {
                // A granule that is done in part is not done.
                let granule = self.granules.granule_bytes();
                let start = done.start.next_multiple_of(granule);
                let end = match done.end >= self.granules.volume_bytes() {
                    true => done.end,
                    false => done.end - done.end % granule,
                };
                if start < end {
                    self.granules.clear(words, ByteRange::new(start, end));
                }
            }
        }
    }

    /// Adds all that another ledger holds.
    pub fn take_over(&self, other: &Ledger<S>) {
        other.owed().iter().for_each(|range| self.owe(range));
        other.unscanned().iter().for_each(|range| self.granules.set(self.unscanned_words(), range));
    }

    fn bitmap(&self, number: usize) -> &[S::Word] {
        let len = self.granules.words();
        &self.words.words()[number * len..(number + 1) * len]
    }

    fn current(&self) -> &[S::Word] {
        self.bitmap(0)
    }

    fn older(&self) -> &[S::Word] {
        self.bitmap(1)
    }

    fn unscanned_words(&self) -> &[S::Word] {
        self.bitmap(2)
    }
}
