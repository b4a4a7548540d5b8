//! Where a volume was written last, and how fast of late: what is drawn of it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::model::{ByteRange, Timestamp};

/// Parts of the volume whose last write is remembered.
pub const MAP_CELLS: usize = 256;
/// A sum of the history: five seconds, for ten minutes.
pub const HISTORY_STEP_S: u64 = 5;
const HISTORY_LEN: usize = 120;
/// The rate is a mean that forgets at this pace.
const RATE_S: f64 = 3.0;
const NS: u64 = 1_000_000_000;

/// Told of each change, looked at now and then.
#[derive(Clone, Debug)]
pub struct Activity {
    cell_bytes: u64,
    cells: Vec<u64>,
    bytes: u64,
    history: VecDeque<u64>,
    /// Number of the last sum's step, since 1970.
    step: u64,
    looked: Timestamp,
    looked_bytes: u64,
    rate: f64,
}

/// As `status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ActivityShown {
    /// Written in this session, as the ring told.
    pub written_bytes: u64,
    /// Bytes a second, of the last seconds.
    pub write_rate: u64,
    /// Bytes a second of each five seconds, the last ones not over yet last; ten minutes at most.
    pub write_history: Vec<u64>,
    /// For each 256th of the volume when it was last changed in this session, in seconds since 1970; 0: not.
    pub write_map: Vec<u64>,
}

impl Activity {
    pub fn new(size_bytes: u64) -> Activity {
        Activity {
            cell_bytes: size_bytes.div_ceil(MAP_CELLS as u64).max(1),
            cells: vec![0; MAP_CELLS],
            bytes: 0,
            history: VecDeque::new(),
            step: 0,
            looked: Timestamp(0),
            looked_bytes: 0,
            rate: 0.0,
        }
    }

    /// The range changed.
    pub fn touched(&mut self, range: ByteRange, now: Timestamp) {
        if range.is_empty() {
            return;
        }
        let cell = |at: u64| usize::try_from(at / self.cell_bytes).unwrap_or(MAP_CELLS).min(MAP_CELLS - 1);
        let (first, last) = (cell(range.start), cell(range.end - 1));
        self.cells[first..=last].fill(now.0 / NS);
    }

    /// So many bytes were written.
    pub fn wrote(&mut self, bytes: u64, now: Timestamp) {
        self.advance(now);
        self.bytes += bytes;
        if let Some(sum) = self.history.back_mut() {
            *sum += bytes;
        }
    }

    pub fn shown(&mut self, now: Timestamp) -> ActivityShown {
        self.advance(now);
        let seconds = now.0.saturating_sub(self.looked.0) as f64 / NS as f64;
        if seconds > 0.0 {
            let rate = (self.bytes - self.looked_bytes) as f64 / seconds;
            // Of the first look nobody knows how long it is since.
            let share = if self.looked.0 == 0 { 0.0 } else { 1.0 - (-seconds / RATE_S).exp() };
            self.rate += (rate - self.rate) * share;
            (self.looked, self.looked_bytes) = (now, self.bytes);
        }
        let sums = self.history.len();
        // The last sum is not over: what it has is that of a part of its time.
        let partly = (now.0 / NS % HISTORY_STEP_S + 1).min(HISTORY_STEP_S);
        let seconds = |index: usize| if index + 1 == sums { partly } else { HISTORY_STEP_S };
        ActivityShown {
            written_bytes: self.bytes,
            // Below a byte a second it is nothing.
            write_rate: self.rate as u64,
            write_history: self
                .history
                .iter()
                .enumerate()
                .map(|(index, bytes)| bytes / seconds(index))
                .collect(),
            write_map: self.cells.clone(),
        }
    }

    /// Begins the sums that are due. A clock that was set back adds to the last one.
    fn advance(&mut self, now: Timestamp) {
        let step = now.0 / NS / HISTORY_STEP_S;
        let new = match self.history.is_empty() {
            true => 1,
            false => step.saturating_sub(self.step).min(HISTORY_LEN as u64),
        };
        for _ in 0..new {
            if self.history.len() == HISTORY_LEN {
                self.history.pop_front();
            }
            self.history.push_back(0);
        }
        self.step = self.step.max(step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * NS)
    }

    #[test]
    fn the_map_has_the_last_write_of_each_part() {
        // Sizes that are no multiple of the cells, smaller than them, and the largest there is.
        for size in [1, 255, 256, 257, 1 << 20, (1 << 20) + 1, u64::MAX] {
            let mut activity = Activity::new(size);
            activity.touched(ByteRange::new(0, size), at(7));
            activity.touched(ByteRange::new(0, 1), at(9));
            activity.touched(ByteRange::new(0, 0), at(99));
            let map = activity.shown(at(10)).write_map;
            assert_eq!(map.len(), MAP_CELLS);
            assert_eq!(map[0], 9, "{size}");
            if size >= 256 {
                assert!(map[1..].iter().take(120).all(|cell| *cell == 7), "{size}");
            }
        }
    }

    #[test]
    fn one_write_over_a_border_is_in_both_parts_and_no_other() {
        let mut activity = Activity::new(256 * 4096);
        activity.touched(ByteRange::new(4096 * 10 - 1, 4096 * 10 + 1), at(5));
        let map = activity.shown(at(5)).write_map;
        let changed: Vec<usize> = (0..MAP_CELLS).filter(|cell| map[*cell] != 0).collect();
        assert_eq!(changed, [9, 10]);
    }

    #[test]
    fn the_history_has_ten_minutes_and_its_pauses() {
        let mut activity = Activity::new(1 << 20);
        activity.wrote(5000, at(1000));
        activity.wrote(10_000, at(1010));
        assert_eq!(activity.shown(at(1014)).write_history, [1000, 0, 2000]);
        assert_eq!(activity.shown(at(1014)).written_bytes, 15_000);
        // A step that is not over tells of its part.
        activity.wrote(3000, at(1015));
        assert_eq!(activity.shown(at(1015)).write_history, [1000, 0, 2000, 3000]);
        let late = activity.shown(at(1_000_000)).write_history;
        assert_eq!(late, [0; HISTORY_LEN]);
        // The clock is set back: nothing is lost, nothing panics.
        activity.wrote(10, at(5));
        assert_eq!(activity.shown(at(5)).written_bytes, 18_010);
    }

    #[test]
    fn the_rate_follows_and_forgets() {
        let mut activity = Activity::new(1 << 20);
        let mut now = 1000;
        activity.shown(at(now));
        for _ in 0..30 {
            now += 1;
            activity.wrote(1_000_000, at(now));
            activity.shown(at(now));
        }
        let busy = activity.shown(at(now)).write_rate;
        assert!((990_000..=1_000_000).contains(&busy), "{busy}");
        assert_eq!(activity.shown(at(now + 60)).write_rate, 0);
    }
}
