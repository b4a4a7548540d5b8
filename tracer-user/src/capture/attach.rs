use std::sync::atomic::Ordering;

use aya::maps::{HashMap, Map, MapData, RingBuf};
use aya::programs::{BtfTracePoint, Program, ProgramError, RawTracePoint, TracePoint};
use aya::{Btf, Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use tracer_common::{SECTOR_BYTES, counter};

use crate::capture::features::{Rung, choose_rung, probe_features};
use crate::capture::layout::{KernelLayout, kernel_btf_path};
use crate::capture::mapped::MappedArray;
use crate::capture::tracefs::{self, FormatLayout};
use crate::capture::{CaptureError, Counters, Event, object};
use crate::model::ByteRange;

/// Bits in the dirty bitmap at most: 2 MiB of memory.
const DIRTY_BITS_MAX: u64 = 16 << 20;
const GRANULE_BYTES_MIN: u64 = 64 << 10;

/// The protected volume as the block layer counts it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeExtent {
    /// Of the whole disk.
    pub disk_major: u32,
    pub disk_first_minor: u32,
    /// The volume's bytes on the whole disk.
    pub on_disk: ByteRange,
    /// The driver takes requests (blk-mq); otherwise it takes bios.
    pub request_based: bool,
    /// (major, minor) of the disk and of all its partitions, for the tracepoint rung.
    pub device_numbers: Vec<(u32, u32)>,
}

#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// A rung to use instead of the best.
    pub rung: Option<Rung>,
    /// A power of two, at least 4096.
    pub ring_bytes: u32,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        CaptureOptions { rung: None, ring_bytes: 16 << 20 }
    }
}

/// Attached probes of one volume. Dropping it detaches them.
pub struct Capture {
    volume: VolumeExtent,
    rung: Rung,
    granule_bytes: u64,
    ring: RingBuf<MapData>,
    counters: MappedArray,
    dirty: MappedArray,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    _programs: Ebpf,
}

impl Capture {
    /// Attaches on the best rung that works. From the return on, no write to the volume goes unseen.
    pub fn attach(volume: VolumeExtent, options: &CaptureOptions) -> Result<Capture, CaptureError> {
        object::inspect_embedded()?;
        let rungs = choose_rung(&probe_features(), options.rung)?;
        let mut refusals = Vec::new();
        for rung in rungs {
            match Self::attach_on(volume.clone(), rung, options) {
                Ok(capture) => return Ok(capture),
                Err(error) if options.rung.is_some() => return Err(error),
                Err(error) => {
                    log::warn!("rung {rung} does not work here: {}", chain(&error));
                    refusals.push(format!("{rung}: {}", chain(&error)));
                }
            }
        }
        Err(CaptureError::NoRung { reasons: refusals.join("; ") })
    }

    fn attach_on(
        volume: VolumeExtent,
        rung: Rung,
        options: &CaptureOptions,
    ) -> Result<Capture, CaptureError> {
        let sectors = volume.on_disk.len() / SECTOR_BYTES;
        let granule_bytes = granule_bytes(volume.on_disk.len());
        let dirty_words = volume.on_disk.len().div_ceil(granule_bytes).div_ceil(64);
        let offsets = match rung {
            Rung::TpBtf | Rung::RawTp => KernelLayout::read(&kernel_btf_path())?.offsets,
            Rung::Tracepoint => {
                let root = tracefs::find()
                    .ok_or_else(|| CaptureError::NoRung { reasons: "tracefs is not mounted".into() })?;
                FormatLayout::read(&root, hooks(rung, volume.request_based).complete_hook)?.offsets
            }
        };
        let disk_dev = (volume.disk_major << 20) | volume.disk_first_minor;
        let start = volume.on_disk.start / SECTOR_BYTES;
        let end = start + sectors;
        let granule_shift = (granule_bytes / SECTOR_BYTES).trailing_zeros();

        let mut loader = EbpfLoader::new();
        for (name, offset) in &offsets {
            loader.override_global(name, offset, true);
        }
        loader
            .override_global("DISK_DEV", &disk_dev, true)
            .override_global("VOLUME_START", &start, true)
            .override_global("VOLUME_END", &end, true)
            .override_global("GRANULE_SHIFT", &granule_shift, true)
            .map_max_entries("EVENTS", options.ring_bytes)
            .map_max_entries("DIRTY", u32::try_from(dirty_words).unwrap_or(u32::MAX));
        let mut programs =
            loader.load(object::EMBEDDED).map_err(|source| CaptureError::Load(Box::new(source)))?;

        let logger = EbpfLogger::init(&mut programs)
            .inspect_err(|error| log::debug!("the probes' own log is not available: {error}"))
            .ok();
        let ring =
            RingBuf::try_from(take_map(&mut programs, "EVENTS")?).map_err(|e| map_failed("EVENTS", e))?;
        let counters = map_words(&mut programs, "COUNTERS", counter::COUNT as usize)?;
        let dirty = map_words(&mut programs, "DIRTY", usize::try_from(dirty_words).unwrap_or(usize::MAX))?;
        if rung == Rung::Tracepoint {
            fill_device_numbers(&mut programs, &volume.device_numbers)?;
        }
        attach_hooks(&mut programs, rung, volume.request_based)?;
        Ok(Capture { volume, rung, granule_bytes, ring, counters, dirty, logger, _programs: programs })
    }

    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// What one bit of the dirty bitmap stands for.
    pub fn granule_bytes(&self) -> u64 {
        self.granule_bytes
    }

    /// The next event of the ring. `Some(None)` is one that no probe of this version writes.
    pub fn next_event(&mut self) -> Option<Option<Event>> {
        self.ring.next().map(|item| Event::parse(&item, &self.volume))
    }

    pub fn counters(&self) -> Counters {
        // Emitted and marked are read before seen, so that seen is never the smaller one.
        let emitted = self.counters.get(counter::EMITTED);
        let marked = self.counters.get(counter::MARKED);
        Counters {
            emitted,
            marked,
            seen: self.counters.get(counter::SEEN),
            completions_seen: self.counters.get(counter::COMPLETE_SEEN),
            completions_lost: self.counters.get(counter::COMPLETE_LOST),
            read_failed: self.counters.get(counter::READ_FAILED),
        }
    }

    /// Takes all set granules out of the bitmap, as ranges of the volume.
    pub fn take_dirty(&mut self) -> Vec<ByteRange> {
        let size = self.volume.on_disk.len();
        let mut ranges: Vec<ByteRange> = Vec::new();
        for (index, word) in (0u64..).zip(self.dirty.words()) {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let bits = word.swap(0, Ordering::AcqRel);
            for bit in (0..64).filter(|bit| bits & (1 << bit) != 0) {
                let start = (index * 64 + bit) * self.granule_bytes;
                let range = ByteRange::new(start, (start + self.granule_bytes).min(size));
                match ranges.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => ranges.push(range),
                }
            }
        }
        ranges
    }

    /// Hands the probes' diagnostics to `log`.
    pub fn flush_diagnostics(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }
}

/// 64 KiB up to a TiB; beyond that as much as keeps the bitmap at 2 MiB.
fn granule_bytes(volume_bytes: u64) -> u64 {
    volume_bytes.div_ceil(DIRTY_BITS_MAX).next_power_of_two().max(GRANULE_BYTES_MIN)
}

/// Which program goes to which tracepoint.
struct Hooks {
    complete: &'static str,
    complete_hook: &'static str,
    submit: &'static str,
    submit_hook: &'static str,
}

fn hooks(rung: Rung, request_based: bool) -> Hooks {
    let (submit_hook, complete_hook) = match (rung, request_based) {
        // A formatted rq_issue can't show the ranges of merged discards; bio_queue fires before it in any case.
        (Rung::Tracepoint, true) => ("block_bio_queue", "block_rq_complete"),
        (_, true) => ("block_rq_issue", "block_rq_complete"),
        (_, false) => ("block_bio_queue", "block_bio_complete"),
    };
    let (submit, complete) = match (rung, request_based) {
        (Rung::TpBtf, true) => ("rq_issue_btf", "rq_complete_btf"),
        (Rung::TpBtf, false) => ("bio_queue_btf", "bio_complete_btf"),
        (Rung::RawTp, true) => ("rq_issue_raw", "rq_complete_raw"),
        (Rung::RawTp, false) => ("bio_queue_raw", "bio_complete_raw"),
        (Rung::Tracepoint, true) => ("bio_queue_tp", "rq_complete_tp"),
        (Rung::Tracepoint, false) => ("bio_queue_tp", "bio_complete_tp"),
    };
    Hooks { complete, complete_hook, submit, submit_hook }
}

/// Completions first: one that comes without its submission is understood, the reverse costs a wait.
fn attach_hooks(programs: &mut Ebpf, rung: Rung, request_based: bool) -> Result<(), CaptureError> {
    let hooks = hooks(rung, request_based);
    let btf = match rung {
        Rung::TpBtf => Some(Btf::from_sys_fs().map_err(|e| CaptureError::Attach {
            probe: hooks.submit,
            rung,
            source: Box::new(e),
        })?),
        Rung::RawTp | Rung::Tracepoint => None,
    };
    for (name, hook) in [(hooks.complete, hooks.complete_hook), (hooks.submit, hooks.submit_hook)] {
        let program = programs
            .program_mut(name)
            .ok_or_else(|| CaptureError::Object(format!("the program {name} is missing")))?;
        load_and_attach(program, btf.as_ref(), hook).map_err(|source| CaptureError::Attach {
            probe: name,
            rung,
            source: Box::new(source),
        })?;
    }
    Ok(())
}

fn load_and_attach(program: &mut Program, btf: Option<&Btf>, hook: &str) -> Result<(), ProgramError> {
    if let Some(btf) = btf {
        let program: &mut BtfTracePoint = program.try_into()?;
        program.load(hook, btf)?;
        return program.attach().map(|_| ());
    }
    if let Program::RawTracePoint(_) = program {
        let program: &mut RawTracePoint = program.try_into()?;
        program.load()?;
        return program.attach(hook).map(|_| ());
    }
    let program: &mut TracePoint = program.try_into()?;
    program.load()?;
    program.attach("block", hook).map(|_| ())
}

fn take_map(programs: &mut Ebpf, name: &'static str) -> Result<Map, CaptureError> {
    programs.take_map(name).ok_or_else(|| CaptureError::Object(format!("the map {name} is missing")))
}

fn map_words(programs: &mut Ebpf, name: &'static str, len: usize) -> Result<MappedArray, CaptureError> {
    let Map::Array(data) = take_map(programs, name)? else {
        return Err(CaptureError::Object(format!("the map {name} is no array")));
    };
    MappedArray::new(data, len).map_err(|source| CaptureError::Map { map: name, source })
}

fn fill_device_numbers(programs: &mut Ebpf, numbers: &[(u32, u32)]) -> Result<(), CaptureError> {
    const NAME: &str = "FORMAT_DEVS";
    let map =
        programs.map_mut(NAME).ok_or_else(|| CaptureError::Object(format!("the map {NAME} is missing")))?;
    let mut map: HashMap<_, u32, u8> = map.try_into().map_err(|e| map_failed(NAME, e))?;
    for (major, minor) in numbers {
        map.insert((major << 20) | minor, 1, 0).map_err(|e| map_failed(NAME, e))?;
    }
    Ok(())
}

fn map_failed(map: &'static str, error: aya::maps::MapError) -> CaptureError {
    CaptureError::Map { map, source: std::io::Error::other(error) }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bitmap_stays_within_two_mib() {
        assert_eq!(granule_bytes(1 << 30), 64 << 10);
        assert_eq!(granule_bytes(1 << 40), 64 << 10);
        assert_eq!(granule_bytes((1 << 40) + 1), 128 << 10);
        assert_eq!(granule_bytes(1 << 50), 64 << 20);
        for size in [1u64 << 20, 1 << 40, 3 << 41, 1 << 62] {
            assert!(size.div_ceil(granule_bytes(size)) <= DIRTY_BITS_MAX);
        }
    }

    /// Over a device of its own; needs root, as protecting does.
    #[test]
    fn every_write_has_the_next_number_and_the_counters_add_up() {
        use std::os::unix::fs::FileExt;

        const WRITES: u64 = 20;
        if !nix::unistd::geteuid().is_root() {
            println!("SKIP: BPF programs can only be loaded by root");
            return;
        }
        let disk = crate::io::test_devices::Loop::of_size(1 << 20);
        let device = crate::io::BlockDevice::open(&disk.device).unwrap();
        let volume = VolumeExtent {
            disk_major: device.disk.number.major,
            disk_first_minor: device.disk.number.minor,
            on_disk: ByteRange::new(0, device.size_bytes),
            request_based: device.request_based,
            device_numbers: Vec::new(),
        };
        let mut capture = Capture::attach(volume, &CaptureOptions::default()).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&disk.device).unwrap();
        for number in 0..WRITES {
            file.write_all_at(&[1; 4096], number * 8192).unwrap();
            file.sync_data().unwrap();
        }
        let mut numbers = Vec::new();
        while let Some(event) = capture.next_event() {
            if let Event::Submit { seq, .. } = event.unwrap() {
                numbers.push(seq);
            }
        }
        assert_eq!(numbers, (0..WRITES).collect::<Vec<_>>());
        let counters = capture.counters();
        assert_eq!((counters.seen, counters.emitted, counters.marked), (WRITES, WRITES, 0));
        assert!(counters.completions_seen >= WRITES && counters.read_failed == 0, "{counters:?}");
        assert!(capture.take_dirty().is_empty());
    }
}
