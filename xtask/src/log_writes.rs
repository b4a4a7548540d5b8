//! dm-log-writes as a second witness of what a volume held at a mark.
//!
//! The guest protects a volume that stands on the kernel's `log-writes` target, which notes every write in the order
//! of completion on a disk of its own. Around each mark the scenario has the target note `before-LABEL` and
//! `after-LABEL`. Here that log is replayed write by write, and somewhere between the two the image must equal the
//! point that `afterwrite replay` makes of the mark, to the byte.
//!
//! The format: Documentation/admin-guide/device-mapper/log-writes.rst and drivers/md/dm-log-writes.c of the kernel. A
//! sector of superblock; then for each entry a sector that says what it is, and the sectors that were written.

mod instants;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
const HEAD_BYTES: usize = 32;
/// The unit in which images are compared.
const SECTOR_BYTES: usize = 512;

/// Images of the disks of a scenario.
pub struct Images<'a> {
    pub log: &'a Path,
    /// Under the `log-writes` target.
    pub volume: &'a Path,
    /// ext4, with the journal in `/journal`.
    pub journal: &'a Path,
    /// How many instants besides the marks are restored and found in the log, see `log_writes/instants.rs`.
    pub instants: u64,
}

/// Compares each mark that is noted in the log. `Err` inside says what is wrong; else how many marks were equal.
pub fn check(images: &Images<'_>, afterwrite: &Path, dir: &Path) -> Result<Result<usize, String>> {
    let journal = dir.join("journal");
    if journal.exists() {
        fs::remove_dir_all(&journal)?;
    }
    let copy = ["-R", "rdump /journal ."];
    run::output(run::program("debugfs")?.args(copy).arg(images.journal).current_dir(dir))?;
    let classes = classes(afterwrite, &journal)?;

    let log = Log::open(images.log)?;
    let mut image = vec![0; usize::try_from(fs::metadata(images.volume)?.len())?];
    let mut next = 0;
    let mut equal = 0;
    while let Some(before) = (next..log.entries.len()).find(|at| log.mark(*at, "before-").is_some()) {
        let label = log.mark(before, "before-").expect("just found");
        let after = (before..log.entries.len()).find(|at| log.mark(*at, "after-") == Some(label));
        let after = after.with_context(|| format!("the log holds no after-{label}"))?;
        let class = classes.get(label).with_context(|| format!("the journal holds no point {label}"))?;
        let point_image = dir.join("point.img");
        let mut replay = Command::new(afterwrite);
        replay.arg("replay").arg(&journal).args(["--to", &format!("mark:{label}"), "--force", "--target"]);
        run::output(replay.arg(&point_image))?;
        let point = fs::read(&point_image)?;
        ensure!(point.len() == image.len(), "point {label} has {} bytes", point.len());

        for entry in &log.entries[next..before] {
            log.apply(entry, &mut image)?;
        }
        let Some(writes) = log.position(&log.entries[before..after], &mut image, &point)? else {
            return Ok(Err(format!(
                "mark {label} ({class}) equals the log of the writes nowhere between before-{label} and after-{label}"
            )));
        };
        println!("    mark {label} ({class}): the log after {writes} of {} entries", after - before - 1);
        next = after;
        fs::remove_file(&point_image)?;
        equal += 1;
    }
    // That the log is complete and read rightly, or its word would be worth nothing.
    for entry in &log.entries[next..] {
        log.apply(entry, &mut image)?;
    }
    if fs::read(images.volume)? != image {
        return Ok(Err("the whole log of the writes does not give the volume".to_owned()));
    }
    if images.instants > 0
        && let Err(why) = instants::check(&log, &journal, images.instants, afterwrite, dir, image.len())?
    {
        return Ok(Err(why));
    }
    fs::remove_dir_all(&journal)?;
    Ok(Ok(equal))
}

/// Of each label's last restorable mark.
fn classes(afterwrite: &Path, journal: &Path) -> Result<BTreeMap<String, String>> {
    let listing = run::output(Command::new(afterwrite).arg("points").arg(journal).arg("--json"))?;
    let listing: serde_json::Value = serde_json::from_str(&listing)?;
    let points = listing["points"].as_array().context("`points --json` lists points")?;
    let restorable = points.iter().filter(|point| point["restorable"] == true);
    let named = restorable.filter_map(|point| Some((point["label"].as_str()?, point["class"].as_str()?)));
    Ok(named.map(|(label, class)| (label.to_owned(), class.to_owned())).collect())
}

struct Log {
    file: File,
    sector_bytes: u64,
    entries: Vec<Entry>,
}

struct Entry {
    sector: u64,
    sectors: u64,
    flags: u64,
    /// Its text, if it is a mark.
    mark: String,
    /// Where in the log the written bytes are.
    data_at: u64,
}

impl Log {
    fn open(path: &Path) -> Result<Log> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut head = [0; HEAD_BYTES];
        file.read_exact_at(&mut head, 0)?;
        ensure!(u64_at(&head, 0) == MAGIC, "{} is no log of dm-log-writes", path.display());
        ensure!(u64_at(&head, 8) == VERSION, "{} has another version", path.display());
        let count = u64_at(&head, 16);
        let sector_bytes = u64_at(&head, 24) & u64::from(u32::MAX);
        ensure!(sector_bytes == 512 || sector_bytes == 4096, "sectors of {sector_bytes} bytes");

        let mut entries = Vec::new();
        let mut at = sector_bytes;
        for _ in 0..count {
            let mut head = vec![0; usize::try_from(sector_bytes)?];
            file.read_exact_at(&mut head, at)?;
            let (sector, sectors, flags) = (u64_at(&head, 0), u64_at(&head, 8), u64_at(&head, 16));
            let text = if flags & MARK == 0 { 0 } else { usize::try_from(u64_at(&head, 24))? };
            let text = head.get(HEAD_BYTES..HEAD_BYTES + text).context("a mark longer than its sector")?;
            let mark = String::from_utf8_lossy(text).into_owned();
            let data_at = at + sector_bytes;
            at = data_at + if flags & DISCARD == 0 { sectors * sector_bytes } else { 0 };
            entries.push(Entry { sector, sectors, flags, mark, data_at });
        }
        Ok(Log { file, sector_bytes, entries })
    }

    /// What follows the prefix in the mark at this place.
    fn mark(&self, at: usize, prefix: &str) -> Option<&str> {
        self.entries[at].mark.strip_prefix(prefix)
    }

    /// Does to the image what the entry says; which bytes that were. The disks of the tests read zeros where they
    /// discarded.
    fn apply(&self, entry: &Entry, image: &mut [u8]) -> Result<std::ops::Range<usize>> {
        let start = usize::try_from(entry.sector * self.sector_bytes)?;
        let range = start..start + usize::try_from(entry.sectors * self.sector_bytes)?;
        if entry.sectors == 0 {
            return Ok(0..0);
        }
        let bytes = image.get_mut(range.clone()).context("the log holds a write beyond the volume")?;
        if entry.flags & DISCARD == 0 {
            self.file.read_exact_at(bytes, entry.data_at)?;
        } else {
            bytes.fill(0);
        }
        Ok(range)
    }

    /// Applies the entries until the image equals the point, and then the rest; after how many it did.
    fn position(&self, entries: &[Entry], image: &mut [u8], point: &[u8]) -> Result<Option<usize>> {
        let sectors = image.chunks(SECTOR_BYTES).zip(point.chunks(SECTOR_BYTES));
        let mut differs: Vec<bool> = sectors.map(|(a, b)| a != b).collect();
        let mut different = differs.iter().filter(|differs| **differs).count();
        let mut found = (different == 0).then_some(0);
        for (index, entry) in entries.iter().enumerate() {
            let range = self.apply(entry, image)?;
            let written = range.start / SECTOR_BYTES..range.end / SECTOR_BYTES;
            for (sector, differs) in written.clone().zip(&mut differs[written]) {
                let bytes = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
                let now = image[bytes.clone()] != point[bytes];
                different = different + usize::from(now) - usize::from(*differs);
                *differs = now;
            }
            if different == 0 && found.is_none() {
                found = Some(index);
            }
        }
        Ok(found)
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sector: u64, sectors: u64, flags: u64, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for field in [sector, sectors, flags, data.len() as u64] {
            bytes.extend(field.to_le_bytes());
        }
        if flags & MARK != 0 {
            bytes.extend(data);
        }
        bytes.resize(512, 0);
        if flags & (MARK | DISCARD) == 0 {
            bytes.extend(data);
        }
        bytes
    }

    fn log(name: &str, entries: &[Vec<u8>]) -> Log {
        let mut bytes = Vec::new();
        for field in [MAGIC, VERSION, entries.len() as u64, 512] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.resize(512, 0);
        bytes.extend(entries.concat());
        let path = std::env::temp_dir().join(format!("xtask-log-writes-{name}-{}", std::process::id()));
        fs::write(&path, bytes).expect("it can be written");
        let log = Log::open(&path).expect("a good log");
        fs::remove_file(&path).expect("it is open");
        log
    }

    /// Writes 1s, marks, writes 2s, flushes, discards, writes 3s, marks.
    pub fn example(name: &str) -> Log {
        let entries = [
            entry(0, 2, 0, &[1; 1024]),
            entry(0, 0, MARK, b"before-x"),
            entry(1, 2, 0, &[2; 1024]),
            entry(0, 0, 1, b""),
            entry(0, 1, DISCARD, b""),
            entry(3, 1, 2, &[3; 512]),
            entry(0, 0, MARK, b"after-x"),
        ];
        log(name, &entries)
    }

    #[test]
    fn each_state_between_the_marks_is_found_and_no_other() {
        let log = example("states");
        assert_eq!(
            (log.mark(1, "before-"), log.mark(6, "after-"), log.mark(0, "after-")),
            (Some("x"), Some("x"), None)
        );
        let point = |sectors: [u8; 4]| sectors.iter().flat_map(|byte| [*byte; 512]).collect::<Vec<_>>();
        let found = |sectors| {
            let mut image = vec![0; 2048];
            log.apply(&log.entries[0], &mut image).expect("inside");
            log.position(&log.entries[1..6], &mut image, &point(sectors)).expect("inside")
        };
        assert_eq!(found([1, 1, 0, 0]), Some(0));
        assert_eq!(found([1, 2, 2, 0]), Some(1));
        assert_eq!(found([0, 2, 2, 0]), Some(3));
        assert_eq!(found([0, 2, 2, 3]), Some(4));
        // Half a write, a write too few, and one too many.
        for wrong in [[1, 2, 0, 0], [1, 2, 2, 3], [0, 0, 0, 0], [0, 2, 2, 4]] {
            assert_eq!(found(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_write_beyond_the_volume_is_an_error() {
        let log = example("beyond");
        assert!(log.apply(&log.entries[2], &mut vec![0; 1024]).is_err());
    }
}
