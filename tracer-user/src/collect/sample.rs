//! Now and then a copied write is compared with what the device holds once it is done: memory that is changed while it is
//! written may reach the disk otherwise than it was copied. Pure: time is passed in.

use crate::collect::pending::MonotonicNs;
use crate::model::ByteRange;

/// One write in this time, at most.
const EVERY_NS: MonotonicNs = 50_000_000;
const BYTES_MAX: usize = 128 << 10;

enum Stage {
    UnderWay,
    /// Its range may be read.
    Done,
    /// It was, when the ring was filled so far: what may be seen of later writes stands before that.
    Read {
        differs: bool,
        ring_filled: u64,
    },
}

struct Write {
    key: u64,
    range: ByteRange,
    bytes: Vec<u8>,
    stage: Stage,
}

/// One write at a time.
#[derive(Default)]
pub struct Sample {
    write: Option<Write>,
    next: MonotonicNs,
}

impl Sample {
    /// A write begins.
    pub fn begin(&mut self, key: u64, range: ByteRange, bytes: &[u8], now: MonotonicNs) {
        if self.write.is_none() && now >= self.next && bytes.len() <= BYTES_MAX {
            self.next = now + EVERY_NS;
            self.write = Some(Write { key, range, bytes: bytes.to_vec(), stage: Stage::UnderWay });
        }
    }

    /// Something else is written there.
    pub fn overwritten(&mut self, range: ByteRange) {
        self.write.take_if(|write| write.range.intersect(range).is_some());
    }

    /// Nothing can be said of it.
    pub fn give_up(&mut self) {
        self.write = None;
    }

    pub fn done(&mut self, key: u64) {
        if let Some(write) = self.write.as_mut().filter(|write| write.key == key) {
            write.stage = Stage::Done;
        }
    }

    /// What is to be read now.
    pub fn wanted(&self) -> Option<ByteRange> {
        self.write.as_ref().filter(|write| matches!(write.stage, Stage::Done)).map(|write| write.range)
    }

    /// What was there.
    pub fn read(&mut self, found: &[u8], ring_filled: u64) {
        if let Some(write) = &mut self.write {
            write.stage = Stage::Read { differs: found != write.bytes, ring_filled };
            write.bytes = Vec::new();
        }
    }

    /// Once all that the ring held at the time of the read was taken from it, and none of it was written there: the range,
    /// if it differed.
    pub fn verdict(&mut self, ring_read: u64) -> Option<ByteRange> {
        let Stage::Read { differs, ring_filled } = self.write.as_ref()?.stage else { return None };
        if ring_read < ring_filled {
            return None;
        }
        let range = self.write.take()?.range;
        differs.then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: ByteRange = ByteRange { start: 4096, end: 4100 };

    fn read_as(found: &[u8]) -> Sample {
        let mut sample = Sample::default();
        sample.begin(1, RANGE, b"abcd", 0);
        assert_eq!(sample.wanted(), None);
        sample.done(2);
        assert_eq!(sample.wanted(), None);
        sample.done(1);
        assert_eq!(sample.wanted(), Some(RANGE));
        sample.read(found, 100);
        sample
    }

    #[test]
    fn what_differs_is_said_once_nothing_later_can_explain_it() {
        let mut sample = read_as(b"abxd");
        assert_eq!(sample.verdict(99), None);
        assert_eq!(sample.verdict(100), Some(RANGE));
        assert_eq!(sample.verdict(100), None);
        assert_eq!(read_as(b"abcd").verdict(100), None);
    }

    #[test]
    fn a_later_write_explains_it() {
        let mut sample = read_as(b"abxd");
        sample.overwritten(ByteRange::new(4099, 5000));
        assert_eq!(sample.verdict(100), None);
    }

    #[test]
    fn one_at_a_time_and_not_too_often() {
        let mut sample = Sample::default();
        sample.begin(1, RANGE, b"abcd", 0);
        sample.begin(2, ByteRange::new(0, 4), b"efgh", EVERY_NS);
        sample.done(2);
        assert_eq!(sample.wanted(), None);
        sample.give_up();
        sample.begin(3, RANGE, b"abcd", EVERY_NS - 1);
        sample.done(3);
        assert_eq!(sample.wanted(), None);
    }
}
