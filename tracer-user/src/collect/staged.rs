//! Records in the order in which the ring told of them, until it is known that nothing is missing before them.

use std::time::{Duration, Instant};

use crate::model::{ByteRange, RecordBody, Timestamp};

/// They wait for the look at whether something is missing, which costs too much to be made for each …
const WAIT: Duration = Duration::from_millis(20);
/// … unless there are this many bytes.
const BYTES_WANTED: u64 = 1 << 20;
const BYTES_MAX: u64 = 8 << 20;
/// What a record counts at least.
const RECORD_BYTES: u64 = 64;

#[derive(Default)]
pub struct Staged {
    records: Vec<(Timestamp, RecordBody)>,
    bytes: u64,
    since: Option<Instant>,
}

impl Staged {
    pub fn push(&mut self, time: Timestamp, body: RecordBody) {
        self.bytes +=
            RECORD_BYTES + if let RecordBody::Data { bytes, .. } = &body { bytes.len() as u64 } else { 0 };
        self.since.get_or_insert_with(Instant::now);
        self.records.push((time, body));
    }

    /// From here on the history of the range is not known.
    pub fn gap(&mut self, time: Timestamp, range: ByteRange) {
        let again = matches!(self.records.last(), Some((_, RecordBody::Gap(last))) if *last == range);
        if !again {
            self.push(time, RecordBody::Gap(range));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub fn is_due(&self) -> bool {
        self.bytes >= BYTES_WANTED || self.since.is_some_and(|since| since.elapsed() >= WAIT)
    }

    /// No more may be taken from the ring.
    pub fn is_full(&self) -> bool {
        self.bytes >= BYTES_MAX
    }

    /// All of them, in portions of about a frame of the journal.
    pub fn take(&mut self) -> Vec<Vec<(Timestamp, RecordBody)>> {
        let Staged { records, .. } = std::mem::take(self);
        let mut portions = Vec::new();
        let mut bytes = u64::MAX;
        for record in records {
            if bytes >= BYTES_WANTED {
                portions.push(Vec::new());
                bytes = 0;
            }
            bytes += RECORD_BYTES
                + if let RecordBody::Data { bytes, .. } = &record.1 { bytes.len() as u64 } else { 0 };
            portions.last_mut().expect("there is one by now").push(record);
        }
        portions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_keep_the_order() {
        let mut staged = Staged::default();
        for number in 0..40u64 {
            let body = RecordBody::Data { start: number, bytes: vec![0; 100_000] };
            staged.push(Timestamp(number), body);
        }
        assert!(staged.is_due() && !staged.is_full());
        let portions = staged.take();
        assert!(staged.is_empty() && portions.len() >= 3);
        let times: Vec<u64> = portions.into_iter().flatten().map(|(time, _)| time.0).collect();
        assert_eq!(times, (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn a_gap_is_not_said_twice() {
        let mut staged = Staged::default();
        for _ in 0..3 {
            staged.gap(Timestamp(0), ByteRange::new(0, 10));
        }
        staged.gap(Timestamp(0), ByteRange::new(0, 11));
        assert_eq!(staged.take().concat().len(), 2);
    }
}
