//! Arbitrary instants against the log of the writes, where there is no note to say where in the log they belong.
//!
//! The log is in the order of completion, a journal of payload in that of submission. So what an instant holds need not
//! be a prefix of the log: a write that was submitted earlier may be completed, and logged, later. But let M be the
//! first write of the log that the instant lacks, wholly or in part. Every write behind M in the log that the instant
//! has was submitted before M and completed after it: so all of these were under way at the moment M was completed. There
//! are fewer than there can be writes under way at once. With one at a time there is none: then an instant is a prefix of
//! the log, and at most a part of the next write.
//!
//! A sector may hold the same bytes before and after a write. Such a write counts as neither missing nor there by that
//! sector.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Entry, Log, SECTOR_BYTES};
use crate::run;
use crate::seed::seed;

/// A mark of the journal with its two notes in the log.
struct Noted {
    label: String,
    lsn: u64,
    before: usize,
    after: usize,
}

/// Where in the log an instant was found.
#[derive(Debug)]
struct Cut {
    /// Entries before the first that is missing.
    prefix: usize,
    /// Those behind it that are there.
    ahead: usize,
    /// Entries up to the last one that is there for certain: one that changes nothing may be there or not.
    certain: usize,
}

/// Restores so many instants between the first and the last noted mark, and finds each in the log. `Err` inside says
/// what is wrong.
pub fn check(
    log: &Log,
    journal: &Path,
    count: u64,
    afterwrite: &Path,
    dir: &Path,
    volume_bytes: usize,
) -> Result<Result<(), String>> {
    let listing = run::output(Command::new(afterwrite).arg("points").arg(journal).arg("--json"))?;
    let listing: serde_json::Value = serde_json::from_str(&listing)?;
    let marks = noted(log, &listing)?;
    let stretches = listing["stretches"].as_array().context("`points --json` lists stretches")?;
    let ends =
        |stretch: &serde_json::Value| Some((stretch["from_lsn"].as_u64()?, stretch["to_lsn"].as_u64()?));
    let stretches: Vec<(u64, u64)> = stretches.iter().filter_map(ends).collect();
    if marks.len() < 2 {
        return Ok(Err("fewer than two marks have notes in the log".to_owned()));
    }
    let restorable = |lsn: &u64| stretches.iter().any(|(from, to)| (from..=to).contains(&lsn));
    let seed = seed()?;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut lsns: Vec<u64> = (0..count * 20)
        .map(|_| {
            // As many of a window with few records as of one with many.
            let window = random.usize(1..marks.len());
            random.u64(marks[window - 1].lsn..=marks[window].lsn)
        })
        .filter(restorable)
        .take(usize::try_from(count)?)
        .collect();
    if (lsns.len() as u64) < count {
        return Ok(Err(format!(
            "only {} of {} instants can be restored: {stretches:?}",
            lsns.len(),
            count * 20
        )));
    }
    lsns.sort_unstable();

    println!("    {count} instants, AFTERWRITE_SEED={seed}");
    let mut base = vec![0; volume_bytes];
    let mut applied = 0;
    for lsn in lsns {
        let window = marks.partition_point(|mark| mark.lsn < lsn).max(1);
        let (from, to) = (&marks[window - 1], &marks[window.min(marks.len() - 1)]);
        for entry in &log.entries[applied..from.before] {
            log.apply(entry, &mut base)?;
        }
        applied = from.before;
        // A write that was under way at the mark `to` may have been logged behind its notes.
        let end = marks.get(window + 1).map_or(log.entries.len(), |next| next.after);
        let image = dir.join("instant.img");
        let mut replay = Command::new(afterwrite);
        replay.arg("replay").arg(journal).args(["--to", &format!("lsn:{lsn}"), "--target"]);
        run::output(replay.arg(&image))?;
        let instant = fs::read(&image)?;
        fs::remove_file(&image)?;
        ensure!(instant.len() == base.len(), "instant {lsn} has {} bytes", instant.len());
        let found = cut(log, &log.entries[applied..end], &base, &instant)?;
        let wrong = match found {
            Ok(Cut { prefix, ahead, certain }) => {
                println!(
                    "    instant {lsn}, before mark {}: {prefix} entries of the log, and {ahead} further on",
                    to.label
                );
                match depth(&to.label) {
                    Some(depth) if ahead >= depth => format!(
                        "lacks a write of the log but has {ahead} that were completed after it, though only {depth} were \
                         under way at once"
                    ),
                    _ if applied + certain > to.after => {
                        format!("has all writes up to the mark {}, which came later", to.label)
                    }
                    _ => continue,
                }
            }
            Err(why) => why,
        };
        return Ok(Err(format!("instant {lsn}, between marks {} and {}: {wrong}", from.label, to.label)));
    }
    Ok(Ok(()))
}

/// How many writes were under way at most before this mark, if its label says so: `depth4-2`.
fn depth(label: &str) -> Option<usize> {
    label.strip_prefix("depth")?.split('-').next()?.parse().ok()
}

/// In the order of both.
fn noted(log: &Log, listing: &serde_json::Value) -> Result<Vec<Noted>> {
    let points = listing["points"].as_array().context("`points --json` lists points")?;
    let restorable = points.iter().filter(|point| point["restorable"] == true);
    let mut noted: Vec<Noted> = restorable
        .filter_map(|point| {
            let (label, lsn) = (point["label"].as_str()?, point["lsn"].as_u64()?);
            let find = |prefix: &str| (0..log.entries.len()).find(|at| log.mark(*at, prefix) == Some(label));
            Some(Noted { label: label.to_owned(), lsn, before: find("before-")?, after: find("after-")? })
        })
        .collect();
    noted.sort_by_key(|mark| mark.lsn);
    ensure!(noted.is_sorted_by_key(|mark| mark.before), "log and journal have the marks in another order");
    Ok(noted)
}

/// Finds an instant in these entries of the log, `base` being what the volume held before them.
fn cut(log: &Log, entries: &[Entry], base: &[u8], instant: &[u8]) -> Result<Result<Cut, String>> {
    // Of each sector, after which of its writes it held the instant's bytes.
    let mut sectors: BTreeMap<usize, Vec<(usize, bool)>> = BTreeMap::new();
    let mut image = base.to_vec();
    for (at, entry) in entries.iter().enumerate() {
        let range = log.apply(entry, &mut image)?;
        for sector in range.start / SECTOR_BYTES..range.end / SECTOR_BYTES {
            let bytes = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
            sectors.entry(sector).or_default().push((at, image[bytes.clone()] == instant[bytes]));
        }
    }
    let (mut missing, mut there) = (vec![false; entries.len()], vec![false; entries.len()]);
    for (sector, (before, now)) in base.chunks(SECTOR_BYTES).zip(instant.chunks(SECTOR_BYTES)).enumerate() {
        let writes = sectors.get(&sector).map_or(&[][..], Vec::as_slice);
        // State 0 is that of before, state n that after the sector's write n - 1.
        let states = std::iter::once(before == now).chain(writes.iter().map(|(_, equal)| *equal));
        let equal: Vec<usize> =
            states.enumerate().filter(|(_, equal)| *equal).map(|(state, _)| state).collect();
        let (Some(least), Some(most)) = (equal.first(), equal.last()) else {
            return Ok(Err(format!("sector {sector} holds what the log never had there")));
        };
        for (state, (at, _)) in (1..).zip(writes) {
            there[*at] |= state <= *least;
            missing[*at] |= state > *most;
        }
    }
    let prefix = missing.iter().position(|missing| *missing).unwrap_or(entries.len());
    let ahead = there.iter().skip(prefix + 1).filter(|there| **there).count();
    let certain = there.iter().rposition(|there| *there).map_or(0, |at| at + 1);
    Ok(Ok(Cut { prefix, ahead, certain }))
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::*;

    /// Sectors: 1s in 0 and 1; 2s in 1 and 2; sector 0 discarded; 3s in 3.
    fn found(sectors: [u8; 4]) -> Result<(usize, usize), String> {
        let log = example("instants");
        let instant: Vec<u8> = sectors.iter().flat_map(|byte| [*byte; 512]).collect();
        cut(&log, &log.entries, &[0; 2048], &instant).expect("inside").map(|cut| (cut.prefix, cut.ahead))
    }

    #[test]
    fn a_prefix_of_the_log_has_nothing_ahead() {
        for (sectors, prefix) in [([1, 1, 0, 0], 2), ([1, 2, 2, 0], 4), ([0, 2, 2, 0], 5), ([0, 2, 2, 3], 7)]
        {
            assert_eq!(found(sectors), Ok((prefix, 0)), "{sectors:?}");
        }
    }

    #[test]
    fn an_entry_that_changes_nothing_is_not_there_for_certain() {
        let log = example("certain");
        let instant: Vec<u8> = [1, 1, 0, 0].iter().flat_map(|byte| [*byte; 512]).collect();
        let cut = cut(&log, &log.entries, &[0; 2048], &instant).expect("inside").expect("it is in the log");
        assert_eq!((cut.prefix, cut.certain), (2, 1));
    }

    #[test]
    fn a_part_of_the_next_write_is_not_ahead_of_it() {
        assert_eq!(found([1, 2, 0, 0]), Ok((2, 0)));
        assert_eq!(found([1, 1, 2, 0]), Ok((2, 0)));
    }

    #[test]
    fn a_write_completed_later_may_be_ahead() {
        assert_eq!(found([1, 1, 0, 3]), Ok((2, 1)));
        assert_eq!(found([1, 2, 2, 3]), Ok((4, 1)));
        // Sector 0 is zeros before and after all: only sector 3 tells.
        assert_eq!(found([0, 0, 0, 3]), Ok((0, 1)));
    }

    #[test]
    fn bytes_that_were_never_there_are_found_out() {
        assert!(found([1, 1, 0, 4]).expect_err("no write of 4s").contains("sector 3"));
        assert!(found([2, 1, 0, 0]).expect_err("2s elsewhere").contains("sector 0"));
    }

    #[test]
    fn a_label_may_tell_the_depth() {
        assert_eq!((depth("depth4-2"), depth("depth1-a"), depth("ext4-1")), (Some(4), Some(1), None));
    }
}
