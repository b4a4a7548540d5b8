//! What a burst is: its thresholds, all of them, and the rule. Pure.

use crate::model::FileBurst;
use crate::origin::content::Content;

/// So many files rewritten or removed …
pub const FILES: usize = 100;
/// … within this time by programs of one name are looked into.
pub const WINDOW_NS: u64 = 10_000_000_000;
/// Of the files rewritten last so many are compared with what they held before, of those written last as many are looked into.
pub const SAMPLES_MAX: usize = 16;
/// Of fewer than these nothing is concluded from what they held before.
const COMPARED_MIN: usize = 4;
/// It is a burst if so many of them are spoiled …
const SPOILED_MIN: u8 = 2;
/// … and that is at least one of so many that were not random all along.
const SPOILED_PART: u8 = 4;

/// Rewritten files, as they were before and as they are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    pub compared: u8,
    /// Of them, those that hold random bytes or nothing, and held something else.
    pub spoiled: u8,
    /// Of them, those that held random bytes and still do: it can't be said whether they are worth as much.
    pub still_random: u8,
}

impl Comparison {
    pub fn add(&mut self, before: Content, now: Content) {
        self.compared += 1;
        match (before, now) {
            (Content::Readable, Content::Random) => self.spoiled += 1,
            (Content::Readable | Content::Random, Content::Nothing) => self.spoiled += 1,
            (Content::Random, Content::Random) => self.still_random += 1,
            _ => {}
        }
    }

    /// Whether of so many files something can be concluded.
    pub fn is_enough(compared: usize) -> bool {
        compared >= COMPARED_MIN
    }

    /// Removed files count always. Rewritten ones count if they are spoiled; or if that is not known.
    pub fn makes_burst(&self, found: &FileBurst) -> bool {
        let open = self.compared - self.still_random;
        let spoils = self.spoiled >= SPOILED_MIN && self.spoiled >= open.div_ceil(SPOILED_PART);
        found.removed as usize >= FILES || !Comparison::is_enough(self.compared.into()) || spoils
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Process, Timestamp};
    use Content::{Nothing, Random, Readable};

    fn found(removed: u32) -> FileBurst {
        let (process, began, recognised) = (Process::default(), Timestamp(0), Timestamp(0));
        let (sampled, random, compared, spoiled) = (0, 0, 0, 0);
        let rewritten = 100 - removed;
        FileBurst { process, began, recognised, rewritten, removed, sampled, random, compared, spoiled }
    }

    fn is_burst(removed: u32, pairs: &[(usize, Content, Content)]) -> bool {
        let mut comparison = Comparison::default();
        for (count, before, now) in pairs {
            (0..*count).for_each(|_| comparison.add(*before, *now));
        }
        comparison.makes_burst(&found(removed))
    }

    #[test]
    fn texts_that_become_random_or_nothing_are_a_burst() {
        assert!(is_burst(0, &[(16, Readable, Random)]));
        assert!(is_burst(0, &[(16, Readable, Nothing)]));
        assert!(is_burst(0, &[(16, Random, Nothing)]));
        assert!(is_burst(0, &[(4, Readable, Random), (12, Readable, Readable)]), "a quarter is enough");
        assert!(is_burst(0, &[(2, Readable, Random), (14, Random, Random)]), "all that can be told by");
    }

    #[test]
    fn what_is_as_readable_as_before_is_none() {
        for (before, now) in [(Random, Random), (Readable, Readable), (Random, Readable), (Nothing, Random)] {
            assert!(!is_burst(0, &[(16, before, now)]), "{before:?} {now:?}");
        }
        assert!(!is_burst(0, &[(3, Readable, Random), (13, Readable, Readable)]), "less than a quarter");
        assert!(!is_burst(0, &[(1, Readable, Random), (15, Random, Random)]), "one alone");
    }

    #[test]
    fn removed_files_count_whatever_the_others_hold() {
        assert!(is_burst(100, &[(16, Readable, Readable)]));
        assert!(!is_burst(99, &[(16, Readable, Readable)]));
    }

    #[test]
    fn without_what_they_held_before_many_files_are_a_burst() {
        assert!(is_burst(0, &[]));
        assert!(is_burst(0, &[(3, Readable, Readable)]));
        assert!(!is_burst(0, &[(4, Readable, Readable)]));
    }
}
