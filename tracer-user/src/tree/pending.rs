//! What has changed and was not looked at since. Pure: times are handed in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::model::{ByteRange, ByteRangeSet};

/// A change rests for so long, so that what is written again is read once.
const REST: Duration = Duration::from_millis(20);
/// What is stored through a mapping can't be told from outside, so it rests longer.
const REST_MAPPED: Duration = Duration::from_secs(1);
/// A call whose end was not told is taken for over after this; until then it is looked again and again.
const CALL_MAX: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(1);
/// Files end here.
pub const END: u64 = 1 << 63;

/// A name that may lead elsewhere than it did.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// In the directory of this number.
    Entry { dir: u64, name: Vec<u8> },
    /// From the root of the tree on, its names.
    Path(Vec<Vec<u8>>),
}

/// What may be new of an inode: its attributes always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub ranges: ByteRangeSet,
    /// Write it back before it is read.
    pub clean: bool,
}

#[derive(Debug)]
struct Item<T> {
    what: T,
    due: Instant,
    again: Duration,
    calls: Vec<u64>,
    /// Since it was last heard of.
    looked_at: bool,
}

#[derive(Debug, Default)]
pub struct Pending {
    names: BTreeMap<Name, Item<()>>,
    contents: BTreeMap<u64, Item<Content>>,
    /// By thread: the call it is in.
    calls: HashMap<u32, (u64, Instant)>,
    open: HashSet<u64>,
    last_call: u64,
}

impl Pending {
    /// The thread is about to change something; what it changes in the same call has the same number.
    pub fn begins(&mut self, thread: u32, now: Instant) -> u64 {
        let (call, _) = *self.calls.entry(thread).or_insert_with(|| {
            self.last_call += 1;
            self.open.insert(self.last_call);
            (self.last_call, now)
        });
        call
    }

    pub fn ends(&mut self, thread: u32) {
        if let Some((call, _)) = self.calls.remove(&thread) {
            self.open.remove(&call);
        }
    }

    pub fn name(&mut self, name: Name, call: Option<u64>, now: Instant) {
        let due = now + REST;
        let item = self.names.entry(name).or_insert(Item::new((), due));
        item.touch(call, due);
    }

    pub fn content(
        &mut self,
        inode: u64,
        range: Option<ByteRange>,
        mapped: bool,
        call: Option<u64>,
        now: Instant,
    ) {
        let due = now + if mapped { REST_MAPPED } else { REST };
        let what = Content::default();
        let item = self.contents.entry(inode).or_insert(Item::new(what, due));
        if let Some(range) = range {
            item.what.ranges.insert(range);
        }
        item.what.clean |= mapped;
        item.touch(call, due);
    }

    /// What was taken and is still to be read; it has rested.
    pub fn again(&mut self, inode: u64, left: &Content, now: Instant) {
        let item = self.contents.entry(inode).or_insert(Item::new(Content::default(), now));
        left.ranges.iter().for_each(|range| item.what.ranges.insert(range));
        item.what.clean |= left.clean;
        item.touch(None, now);
    }

    /// Names to look at now. `all`: also those that should rest; those whose change is not known to be over stay besides.
    pub fn take_names(&mut self, now: Instant, all: bool) -> Vec<Name> {
        self.forget_calls(now);
        take(&mut self.names, &self.open, now, all).into_iter().map(|(name, ())| name).collect()
    }

    pub fn take_contents(&mut self, now: Instant, all: bool) -> Vec<(u64, Content)> {
        self.forget_calls(now);
        take(&mut self.contents, &self.open, now, all)
    }

    /// Neither names nor contents are left, and no call is under way that changes something.
    pub fn is_quiet(&self) -> bool {
        self.names.is_empty() && self.contents.is_empty() && self.open.is_empty()
    }

    /// Whether there may be more to come of this inode.
    pub fn has_inode(&self, inode: u64) -> bool {
        self.contents.contains_key(&inode)
    }

    /// All that is left was looked at since it was last heard of.
    pub fn is_looked_at(&self) -> bool {
        self.names.values().all(|item| item.looked_at) && self.contents.values().all(|item| item.looked_at)
    }

    pub fn bytes(&self) -> u64 {
        let ranges = self.contents.values().flat_map(|item| item.what.ranges.iter());
        ranges.map(|range| if range.end >= END { 0 } else { range.len() }).sum()
    }

    pub fn count(&self) -> usize {
        self.names.len() + self.contents.len()
    }

    pub fn clear(&mut self) {
        self.names.clear();
        self.contents.clear();
    }

    /// Of threads that nobody saw leave the kernel.
    fn forget_calls(&mut self, now: Instant) {
        let open = &mut self.open;
        self.calls.retain(|_, (call, since)| {
            let stays = now.duration_since(*since) < CALL_MAX;
            if !stays {
                open.remove(call);
            }
            stays
        });
    }
}

impl<T> Item<T> {
    fn new(what: T, due: Instant) -> Item<T> {
        Item { what, due, again: AGAIN, calls: Vec::new(), looked_at: false }
    }

    fn touch(&mut self, call: Option<u64>, due: Instant) {
        self.due = self.due.min(due);
        self.again = AGAIN;
        self.looked_at = false;
        if let Some(call) = call
            && !self.calls.contains(&call)
        {
            self.calls.push(call);
        }
    }
}

fn take<K: Ord + Clone, T: Clone>(
    items: &mut BTreeMap<K, Item<T>>,
    open: &HashSet<u64>,
    now: Instant,
    all: bool,
) -> Vec<(K, T)> {
    let mut taken = Vec::new();
    items.retain(|key, item| {
        let calls = item.calls.len();
        item.calls.retain(|call| open.contains(call));
        let over = item.calls.is_empty();
        if over && calls > 0 {
            // It ended just now, or a while ago; what it did is there.
            item.due = item.due.min(now);
        }
        let due = all || item.due <= now;
        if over && due {
            taken.push((key.clone(), item.what.clone()));
            return false;
        }
        // Its end may never be told.
        if !over && (all || item.due + item.again <= now) {
            taken.push((key.clone(), item.what.clone()));
            item.again = (item.again * 2).min(CALL_MAX);
            item.looked_at = true;
        }
        true
    });
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_write_is_read_once_it_is_over_and_has_rested() {
        let (mut pending, t) = (Pending::default(), Instant::now());
        let call = pending.begins(7, t);
        pending.content(5, Some(ByteRange::new(0, 10)), false, Some(call), t);
        assert!(pending.take_contents(t + ms(100), false).is_empty());
        pending.ends(7);
        pending.content(5, Some(ByteRange::new(20, 30)), false, None, t + ms(100));
        let taken = pending.take_contents(t + ms(101), false);
        assert_eq!(taken[0].1.ranges.iter().count(), 2);
        assert!(pending.is_quiet());
    }

    #[test]
    fn a_change_whose_end_is_not_told_is_looked_at_and_stays_until_it_must_be_over() {
        let (mut pending, t) = (Pending::default(), Instant::now());
        let call = pending.begins(7, t);
        pending.name(Name::Entry { dir: 2, name: b"f".to_vec() }, Some(call), t);
        for _ in 0..100 {
            assert_eq!(pending.take_names(t + ms(1), true).len(), 1);
        }
        let call = pending.begins(7, t);
        pending.name(Name::Entry { dir: 2, name: b"f".to_vec() }, Some(call), t);
        assert_eq!(pending.take_names(t + ms(1), true).len(), 1);
        assert!(pending.take_names(t + ms(2), false).is_empty());
        assert_eq!(pending.take_names(t + ms(2_100), false).len(), 1);
        assert!(!pending.is_quiet());
        assert_eq!(pending.take_names(t + ms(60_001), false).len(), 1);
        assert!(pending.is_quiet());
    }
}
