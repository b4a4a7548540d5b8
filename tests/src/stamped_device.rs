//! Writers of stamped sectors to a device without a file system, and what an image of it holds of their writes.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::fcntl::OFlag;

use crate::pace::Pace;
use crate::stamp::SECTOR_BYTES;
use crate::{Aligned, Operation, Presence, Random, Stamp, Ticks};

/// A write of some sectors.
#[derive(Clone, Copy, Debug)]
pub struct DeviceWrite {
    pub operation: Operation,
    /// On the device.
    pub first_sector: u64,
    pub sectors: u64,
}

/// A part of the device that only one writer writes, in units.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    pub writer: u32,
    pub start: u64,
    pub len: u64,
    /// What a write is a multiple of: 512 bytes, or a device's larger sectors.
    pub unit: u64,
}

/// All that was written to a device.
pub struct DeviceHistory {
    /// What it held before.
    initial: Vec<u8>,
    regions: Vec<Region>,
    /// Of each region's writer, by number.
    writes: Vec<Vec<DeviceWrite>>,
}

/// The writers' ways, by turns.
#[derive(Clone, Copy, Debug)]
enum Way {
    Plain,
    /// Now and then an fdatasync, acknowledged as the write was.
    Flushing,
    /// O_DSYNC: on a device with a cache, writes with FUA or a flush behind each.
    Synced,
}

impl Region {
    /// Equal ones for so many writers, from the start of the device.
    pub fn all(writers: u32, len: u64, unit: u64) -> Vec<Region> {
        (0..writers).map(|writer| Region { writer, start: u64::from(writer) * len, len, unit }).collect()
    }

    /// A random range in it: a few units mostly, up to 64 KiB.
    pub fn any_range(&self, random: &mut Random) -> (u64, u64) {
        let longest = random.pick(&[4 << 10, 4 << 10, 16 << 10, 64 << 10]) / self.unit;
        let units = (1 + random.below(longest)).min(self.len / self.unit);
        let start = random.below(self.len / self.unit - units + 1);
        (self.start + start * self.unit, units * self.unit)
    }
}

impl DeviceHistory {
    pub fn new(initial: Vec<u8>, regions: Vec<Region>, writes: Vec<Vec<DeviceWrite>>) -> DeviceHistory {
        DeviceHistory { initial, regions, writes }
    }

    /// What of each write an image holds. An error if there is a sector in it that nobody wrote there.
    pub fn find(&self, image: &[u8]) -> Result<Vec<(Operation, Presence)>> {
        ensure!(image.len() == self.initial.len(), "the image has {} bytes", image.len());
        let mut found = Vec::new();
        let mut next = 0;
        for (region, writes) in self.regions.iter().zip(&self.writes) {
            let (start, end) = (usize::try_from(region.start)?, usize::try_from(region.start + region.len)?);
            ensure!(
                image[next..start] == self.initial[next..start],
                "bytes that nobody wrote, before {start}"
            );
            next = end;
            // By sector, the number of the write whose bytes it holds.
            let mut holds = Vec::new();
            for at in (start..end).step_by(SECTOR_BYTES) {
                let range = at..at + SECTOR_BYTES;
                let sector = &image[range.clone()];
                let untouched = sector == &self.initial[range];
                let number = if untouched { None } else { Some(written_by(sector, at, region, writes)?) };
                holds.push(number);
            }
            for write in writes {
                let first = usize::try_from(write.first_sector - region.start / SECTOR_BYTES as u64)?;
                let holds = &holds[first..first + usize::try_from(write.sectors)?];
                let there = holds.iter().filter(|holds| **holds >= Some(write.operation.number)).count();
                let presence = match there {
                    0 => Presence::Absent,
                    all if all == holds.len() => Presence::Whole,
                    _ => Presence::Torn,
                };
                found.push((write.operation, presence));
            }
        }
        ensure!(image[next..] == self.initial[next..], "bytes that nobody wrote, after {next}");
        Ok(found)
    }
}

/// The number of the write that this sector is of.
fn written_by(sector: &[u8], at: usize, region: &Region, writes: &[DeviceWrite]) -> Result<u64> {
    let stamp = Stamp::of(sector)
        .with_context(|| format!("byte {at}: neither a whole sector that was written nor what was there"))?;
    let write = writes.get(usize::try_from(stamp.number)?).filter(|_| stamp.writer == region.writer);
    let write = write.with_context(|| format!("byte {at}: a sector of a write that never was: {stamp:?}"))?;
    let sectors = write.first_sector..write.first_sector + write.sectors;
    ensure!(
        stamp.tick == write.operation.begun.tick
            && sectors.contains(&stamp.sector)
            && stamp.sector == (at / SECTOR_BYTES) as u64,
        "byte {at}: a sector that belongs elsewhere: {stamp:?}"
    );
    Ok(stamp.number)
}

/// A thread for each region, which has one direct write under way at a time.
pub fn write_one_at_a_time(
    device: &Path,
    regions: &[Region],
    load: Duration,
    random: &mut Random,
) -> Result<Vec<Vec<DeviceWrite>>> {
    let ticks = Arc::new(Ticks::default());
    let pace = Pace::start(load);
    let ways = [Way::Plain, Way::Flushing, Way::Synced];
    let threads: Vec<_> = regions
        .iter()
        .zip(ways.into_iter().cycle())
        .map(|(region, way)| {
            let (region, ticks, device) = (*region, Arc::clone(&ticks), device.to_owned());
            let random = Random::new(random.number());
            thread::spawn(move || write_region(&device, region, way, pace, &ticks, random))
        })
        .collect();
    let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a writer panicked"))?);
    joined.collect()
}

fn write_region(
    device: &Path,
    region: Region,
    way: Way,
    pace: Pace,
    ticks: &Ticks,
    mut random: Random,
) -> Result<Vec<DeviceWrite>> {
    let flags = match way {
        Way::Synced => OFlag::O_DIRECT | OFlag::O_DSYNC,
        _ => OFlag::O_DIRECT,
    };
    let file = File::options().write(true).custom_flags(flags.bits()).open(device)?;
    let mut writes = Vec::new();
    while pace.next(&mut random) {
        let (start, len) = region.any_range(&mut random);
        let (first_sector, sectors) = (start / SECTOR_BYTES as u64, len / SECTOR_BYTES as u64);
        let number = writes.len() as u64;
        let begun = ticks.now();
        let stamp = Stamp { writer: region.writer, number, tick: begun.tick, sector: first_sector };
        file.write_all_at(Aligned::holding(&stamp.sectors(sectors)).bytes(), start)?;
        let operation = Operation { writer: region.writer, number, begun, acknowledged: Some(ticks.now()) };
        writes.push(DeviceWrite { operation, first_sector, sectors });
        if matches!(way, Way::Flushing) && random.below(8) == 0 {
            file.sync_data()?;
        }
    }
    Ok(writes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Moment, judge};

    const UNIT: u64 = 512;

    /// Two regions of four sectors each, behind them two that nobody writes. Writer 0: sectors 0–1, then 1–3.
    fn example() -> (DeviceHistory, [Vec<u8>; 2]) {
        let initial = vec![0xee; 10 * SECTOR_BYTES];
        let write = |number, first_sector, sectors| {
            let at = |tick| Moment { tick, time_ns: tick };
            let operation = Operation {
                writer: 0,
                number,
                begun: at(number * 2),
                acknowledged: Some(at(number * 2 + 1)),
            };
            DeviceWrite { operation, first_sector, sectors }
        };
        let writes = vec![write(0, 0, 2), write(1, 1, 3)];
        let bytes = [(0, 0, 2), (1, 1, 3)].map(|(number, sector, count)| {
            Stamp { writer: 0, number, tick: number * 2, sector }.sectors(count)
        });
        (DeviceHistory::new(initial, Region::all(2, 4 * UNIT, UNIT), vec![writes, Vec::new()]), bytes)
    }

    fn presences(history: &DeviceHistory, image: &[u8]) -> [Presence; 2] {
        let found = history.find(image).expect("a state of these writes");
        [found[0].1, found[1].1]
    }

    #[test]
    fn writes_are_found_whole_torn_overwritten_or_not_at_all() {
        let (history, [first, second]) = example();
        let mut image = history.initial.clone();
        assert_eq!(presences(&history, &image), [Presence::Absent; 2]);
        image[..512].copy_from_slice(&first[..512]);
        assert_eq!(presences(&history, &image), [Presence::Torn, Presence::Absent]);
        image[..1024].copy_from_slice(&first);
        assert_eq!(presences(&history, &image), [Presence::Whole, Presence::Absent]);
        image[512..1024].copy_from_slice(&second[..512]);
        assert_eq!(presences(&history, &image), [Presence::Whole, Presence::Torn]);
        image[512..2048].copy_from_slice(&second);
        assert_eq!(presences(&history, &image), [Presence::Whole, Presence::Whole]);
    }

    #[test]
    fn a_sector_that_nobody_wrote_there_is_an_error() {
        let (history, [first, second]) = example();
        let place = |at: usize, sector: &[u8]| {
            let mut image = history.initial.clone();
            image[at..at + sector.len()].copy_from_slice(sector);
            history.find(&image).expect_err("an illegal sector").to_string()
        };
        // Torn within a sector, a sector of another place, of another region, outside of all regions.
        let mut torn = first[..512].to_vec();
        torn[100..].fill(0xee);
        assert!(place(0, &torn).contains("neither"), "{}", place(0, &torn));
        assert!(place(1024, &second[..512]).contains("belongs elsewhere"));
        assert!(place(4 * 512, &first[..512]).contains("never was"));
        assert!(place(8 * 512, &first[..512]).contains("nobody wrote"));
        let unknown = Stamp { writer: 0, number: 7, tick: 1, sector: 0 }.sector();
        assert!(place(0, &unknown).contains("never was"));
    }

    #[test]
    fn ranges_are_within_their_region() {
        let mut random = Random::new(3);
        for region in Region::all(3, 128 << 10, 4096) {
            for _ in 0..1000 {
                let (start, len) = region.any_range(&mut random);
                assert!(start >= region.start && len > 0 && start + len <= region.start + region.len);
                assert!(start.is_multiple_of(4096) && len.is_multiple_of(4096));
            }
        }
    }

    /// What a simulated device did: writes of two writers in the order of their submission, several under way at once.
    struct Simulated {
        history: DeviceHistory,
        /// Region, number, when it was submitted.
        submitted: Vec<(usize, usize, u64)>,
    }

    fn simulate(random: &mut Random) -> Simulated {
        let initial = vec![0; 8 << 10];
        let regions = Region::all(2, 4 << 10, UNIT);
        let mut writes = vec![Vec::new(), Vec::new()];
        let mut submitted = Vec::new();
        let mut free_at = [0; 2];
        for tick in 0..30 {
            let writer = usize::try_from(random.below(2)).expect("0 or 1");
            // In milliseconds; a writer has one write under way at a time.
            let begun = (tick * 10).max(free_at[writer]) + random.below(5);
            let done = begun + 2 + random.below(40);
            free_at[writer] = done + 1;
            let at = |ms: u64| Moment { tick: ms, time_ns: ms * 1_000_000 };
            let number = writes[writer].len();
            let region: &Region = &regions[writer];
            let (start, len) = region.any_range(random);
            let operation = Operation {
                writer: region.writer,
                number: number as u64,
                begun: at(begun),
                acknowledged: Some(at(done)),
            };
            writes[writer].push(DeviceWrite { operation, first_sector: start / UNIT, sectors: len / UNIT });
            submitted.push((writer, number, begun + 1));
        }
        submitted.sort_by_key(|(_, _, at)| *at);
        Simulated { history: DeviceHistory::new(initial, regions, writes), submitted }
    }

    /// The device after the first `count` submissions, less the one numbered `without`, and the instant in nanoseconds.
    fn prefix(simulated: &Simulated, count: usize, without: Option<usize>) -> (Vec<u8>, u64) {
        let mut image = simulated.history.initial.clone();
        for (nth, (writer, number, _)) in simulated.submitted[..count].iter().enumerate() {
            let write = &simulated.history.writes[*writer][*number];
            let (first, tick) = (write.first_sector, write.operation.begun.tick);
            let bytes = Stamp { writer: write.operation.writer, number: *number as u64, tick, sector: first }
                .sectors(write.sectors);
            let at = usize::try_from(first * UNIT).expect("small");
            if Some(nth) != without {
                image[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
        (image, simulated.submitted[count - 1].2 * 1_000_000)
    }

    #[test]
    fn every_prefix_of_the_submissions_is_legal_and_one_with_a_hole_is_not() {
        let (mut holes, mut seen) = (0, 0);
        for seed in 0..8 {
            let simulated = simulate(&mut Random::new(seed));
            for count in 1..=simulated.submitted.len() {
                let (image, at_ns) = prefix(&simulated, count, None);
                let found = simulated.history.find(&image).expect("sectors that were written");
                judge(&found, at_ns).unwrap_or_else(|illegal| panic!("seed {seed}, {count}: {illegal}"));
                // Any of the submissions missing, but for the last few, which may still have been under way.
                for without in 0..count {
                    let (holed, _) = prefix(&simulated, count, Some(without));
                    let (writer, number, _) = simulated.submitted[without];
                    let done =
                        simulated.history.writes[writer][number].operation.acknowledged.expect("all are");
                    if holed == image || done.time_ns + 1_000_000 > at_ns {
                        continue;
                    }
                    holes += 1;
                    let found = simulated.history.find(&holed).expect("sectors that were written");
                    seen += u64::from(judge(&found, at_ns).is_err());
                }
            }
        }
        assert!(holes > 200, "{holes}");
        assert_eq!(seen, holes, "a lost write was taken for legal");
    }
}
