//! A writer that has many writes under way at once, by io_uring: submitted in batches, so that the kernel merges those
//! that are neighbours into one request.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, opcode, types};
use nix::fcntl::OFlag;

use crate::pace::Pace;
use crate::stamp::SECTOR_BYTES;
use crate::stamped_device::{DeviceWrite, Region};
use crate::{Aligned, Operation, Random, Stamp, Ticks};

const DEPTH: usize = 24;
const BATCH_MAX: u64 = 12;

/// One under way. The kernel reads the buffer until it is done.
struct UnderWay {
    number: u64,
    start: u64,
    len: u64,
    buffer: Aligned,
}

/// Writes to one region, of which no two under way at once touch the same sector: their order would be nobody's to say.
pub fn write_many_at_a_time(
    device: &Path,
    region: Region,
    load: Duration,
    random: &mut Random,
) -> Result<Vec<DeviceWrite>> {
    let file = File::options().write(true).custom_flags(OFlag::O_DIRECT.bits()).open(device)?;
    let mut ring = IoUring::new(u32::try_from(DEPTH)?.next_power_of_two()).context("no io_uring")?;
    let ticks = Ticks::default();
    let pace = Pace::start(load);
    let mut under_way: Vec<UnderWay> = Vec::new();
    let mut writes: Vec<DeviceWrite> = Vec::new();
    loop {
        let goes_on = pace.next(random);
        if goes_on {
            for (start, len) in batch(&region, &under_way, random) {
                let number = writes.len() as u64;
                let first_sector = start / SECTOR_BYTES as u64;
                let sectors = len / SECTOR_BYTES as u64;
                let begun = ticks.now();
                let stamp = Stamp { writer: region.writer, number, tick: begun.tick, sector: first_sector };
                let mut write =
                    UnderWay { number, start, len, buffer: Aligned::holding(&stamp.sectors(sectors)) };
                let operation = Operation { writer: region.writer, number, begun, acknowledged: None };
                writes.push(DeviceWrite { operation, first_sector, sectors });
                let bytes = write.buffer.bytes();
                let entry = opcode::Write::new(
                    types::Fd(file.as_raw_fd()),
                    bytes.as_ptr(),
                    u32::try_from(bytes.len())?,
                );
                let entry = entry.offset(start).build().user_data(number);
                // SAFETY: the buffer is on the heap and stays in `under_way` until its completion came. When this
                // function fails before that, the ring is given up, and the kernel has taken hold of the pages.
                unsafe { ring.submission().push(&entry) }.context("the ring has no room")?;
                under_way.push(write);
            }
        }
        if under_way.is_empty() && !goes_on {
            return Ok(writes);
        }
        // Not all: some stay under way while the next are begun. In a pause and at the end all.
        let keep = if goes_on { random.below(under_way.len() as u64) } else { 0 };
        let wanted = under_way.len() - usize::try_from(keep)?;
        ring.submit_and_wait(wanted)?;
        let completions: Vec<_> =
            ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        for (number, result) in completions {
            let at = under_way
                .iter()
                .position(|write| write.number == number)
                .context("a completion of nothing")?;
            let done = under_way.swap_remove(at);
            ensure!(u64::try_from(result).ok() == Some(done.len), "write {number}: {result}");
            writes[usize::try_from(number)?].operation.acknowledged = Some(ticks.now());
        }
    }
}

/// Ranges that are free, some of them neighbours.
fn batch(region: &Region, under_way: &[UnderWay], random: &mut Random) -> Vec<(u64, u64)> {
    let mut taken: Vec<(u64, u64)> = under_way.iter().map(|write| (write.start, write.len)).collect();
    let wanted = random.below(BATCH_MAX) + 1;
    let mut chosen = Vec::new();
    for _ in 0..wanted {
        let (mut start, len) = region.any_range(random);
        if let (Some((before, before_len)), true) = (chosen.last(), random.below(2) == 0) {
            start = before + before_len;
        }
        let is_free = taken.iter().all(|(at, of)| start + len <= *at || at + of <= start);
        if is_free && start + len <= region.start + region.len && taken.len() < DEPTH {
            taken.push((start, len));
            chosen.push((start, len));
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_overlaps_nothing_that_is_under_way() {
        let region = Region { writer: 0, start: 1 << 20, len: 256 << 10, unit: 512 };
        let mut random = Random::new(5);
        let mut neighbours = 0;
        for _ in 0..200 {
            let first = batch(&region, &[], &mut random);
            let under_way: Vec<_> = first
                .iter()
                .map(|(start, len)| UnderWay { number: 0, start: *start, len: *len, buffer: Aligned::new(0) })
                .collect();
            let mut all = [first, batch(&region, &under_way, &mut random)].concat();
            all.sort_unstable();
            assert!(all.len() <= DEPTH);
            for pair in all.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?}");
                neighbours += u64::from(pair[0].0 + pair[0].1 == pair[1].0);
            }
            assert!(
                all.iter()
                    .all(|(start, len)| *start >= region.start && start + len <= region.start + region.len)
            );
        }
        assert!(neighbours > 50, "{neighbours}");
    }
}
