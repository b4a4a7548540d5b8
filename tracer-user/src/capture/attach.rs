//! Loads the probes, attaches them, and pins them.

use aya::maps::{HashMap, Map, RingBuf};
use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, Program, ProgramError, ProgramFd, RawTracePoint, TracePoint};
use aya::{Btf, Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use tracer_common::{SECTOR_BYTES, counter, session};

use crate::capture::features::Rung;
use crate::capture::layout::{KernelLayout, kernel_btf_path};
use crate::capture::ledger::Ledger;
use crate::capture::mapped::MappedArray;
use crate::capture::payload::PayloadAccess;
use crate::capture::pins::{self, Generation};
use crate::capture::positions::RingPositions;
use crate::capture::probes::{Capture, Skips};
use crate::capture::session::Session;
use crate::capture::tracefs::{self, FormatLayout};
use crate::capture::{CaptureError, CaptureOptions, VolumeExtent, object};
use crate::model::Granules;

const DIRTY_GRANULE_BYTES_MIN: u64 = 64 << 10;
/// The maps that outlive the process.
pub const PINNED_MAPS: [&str; 5] = ["EVENTS", "DIRTY", "COUNTERS", "LEDGER", "SESSION"];

pub fn dirty_granules(volume: &VolumeExtent) -> Granules {
    Granules::at_least(DIRTY_GRANULE_BYTES_MIN, volume.on_disk.len())
}

/// Attaches on one rung, and pins all there is when `pins` are given. From the return on, no write goes unseen.
pub fn attach_on(
    volume: VolumeExtent,
    session: &Session,
    options: &CaptureOptions,
    access: Option<&PayloadAccess>,
    pins: Option<Generation>,
) -> Result<Capture, CaptureError> {
    let rung = session.rung;
    let size_bytes = volume.on_disk.len();
    let granules = dirty_granules(&volume);
    let mut programs = load(&volume, rung, access, options.ring_bytes)?;

    let logger = EbpfLogger::init(&mut programs)
        .inspect_err(|error| log::debug!("the probes' own log is not available: {error}"))
        .ok();
    if let Some(pins) = &pins {
        pin_maps(&programs, pins)?;
    }
    let ring = RingBuf::try_from(take_map(&mut programs, "EVENTS")?).map_err(|e| map_failed("EVENTS", e))?;
    let counters = map_words(&mut programs, "COUNTERS", counter::COUNT as usize)?;
    let dirty = map_words(&mut programs, "DIRTY", granules.words())?;
    let ledger = Ledger::new(size_bytes, map_words(&mut programs, "LEDGER", Ledger::words(size_bytes))?);
    let words = map_words(&mut programs, "SESSION", session::COUNT as usize)?;
    session.write(&words);
    if rung == Rung::Tracepoint {
        fill_device_numbers(&mut programs, &volume.device_numbers)?;
    }
    let skips = attach_hooks(&mut programs, rung, volume.request_based, pins.as_ref())?;
    Ok(Capture {
        volume,
        rung,
        payload: access.is_some(),
        granules,
        positions: RingPositions::new(&ring).map_err(|source| CaptureError::Map { map: "EVENTS", source })?,
        ring,
        ring_bytes: options.ring_bytes,
        counters,
        dirty,
        ledger,
        session: words,
        skips,
        logger,
        // Pinned links hold theirs.
        _programs: pins.is_none().then_some(programs),
        pins,
        in_use: None,
    })
}

/// Hands the object to the kernel, told what to watch and where this kernel keeps things.
pub fn load(
    volume: &VolumeExtent,
    rung: Rung,
    access: Option<&PayloadAccess>,
    ring_bytes: u32,
) -> Result<Ebpf, CaptureError> {
    let size_bytes = volume.on_disk.len();
    let granules = dirty_granules(volume);
    let offsets = match rung {
        Rung::TpBtf | Rung::RawTp => KernelLayout::read(&kernel_btf_path())?.offsets,
        Rung::Tracepoint => {
            let root = tracefs::find()
                .ok_or_else(|| CaptureError::NoRung { reasons: "tracefs is not mounted".into() })?;
            FormatLayout::read(&root, hooks(rung, volume.request_based).complete.hook)?.offsets
        }
    };
    let start = volume.on_disk.start / SECTOR_BYTES;
    let end = volume.on_disk.end / SECTOR_BYTES;
    let granule_shift = (granules.granule_bytes() / SECTOR_BYTES).trailing_zeros();
    let entries = |words: usize| u32::try_from(words).expect("bitmaps are bounded");

    let mut loader = loader();
    for (name, offset) in &offsets {
        loader.override_global(name, offset, true);
    }
    let disk_dev = volume.disk_dev();
    loader
        .override_global("DISK_DEV", &disk_dev, true)
        .override_global("VOLUME_START", &start, true)
        .override_global("VOLUME_END", &end, true)
        .override_global("GRANULE_SHIFT", &granule_shift, true)
        .map_max_entries("EVENTS", ring_bytes)
        .map_max_entries("DIRTY", entries(granules.words()))
        .map_max_entries("LEDGER", entries(Ledger::words(size_bytes)));
    let ring_size = u64::from(ring_bytes);
    if let Some(PayloadAccess { layout, page_constant }) = access {
        for (name, offset) in &layout.offsets {
            loader.override_global(name, offset, true);
        }
        loader
            .override_global("PAYLOAD", &1u32, true)
            .override_global("RING_BYTES", &ring_size, true)
            .override_global("PAGE_FACTOR", &layout.page_factor, true)
            .override_global("PAGE_CONSTANT", page_constant, true);
    }
    loader.load(object::EMBEDDED).map_err(|source| CaptureError::Load(Box::new(source)))
}

/// Of objects that were not compiled against a kernel's types, as ours: it need not keep those of this one.
pub fn loader<'a>() -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    loader
}

/// Attaches a program that is not pinned, to a tracepoint.
pub fn attach_program(
    programs: &mut Ebpf,
    name: &'static str,
    rung: Rung,
    hook: &str,
) -> Result<(), CaptureError> {
    let btf = kernel_btf(rung, name)?;
    let program = program(programs, name)?;
    load_and_attach(program, btf.as_ref(), hook, false).map_err(|e| attach_failed(name, rung, e))?;
    Ok(())
}

fn kernel_btf(rung: Rung, program: &'static str) -> Result<Option<Btf>, CaptureError> {
    match rung {
        Rung::TpBtf => Btf::from_sys_fs().map(Some).map_err(|e| attach_failed(program, rung, e)),
        Rung::RawTp | Rung::Tracepoint => Ok(None),
    }
}

fn program<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, CaptureError> {
    programs.program_mut(name).ok_or_else(|| CaptureError::Object(format!("the program {name} is missing")))
}

/// A program and the tracepoint it goes to.
struct Hook {
    program: &'static str,
    hook: &'static str,
}

struct Hooks {
    complete: Hook,
    submit: Hook,
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
    Hooks {
        complete: Hook { program: complete, hook: complete_hook },
        submit: Hook { program: submit, hook: submit_hook },
    }
}

/// Completions first: one that comes without its submission is understood, the reverse costs a wait.
fn attach_hooks(
    programs: &mut Ebpf,
    rung: Rung,
    request_based: bool,
    pins: Option<&Generation>,
) -> Result<Skips, CaptureError> {
    let hooks = hooks(rung, request_based);
    let btf = kernel_btf(rung, hooks.submit.program)?;
    let mut attach = |hook: &Hook, number: usize| -> Result<ProgramFd, CaptureError> {
        let name = hook.program;
        let program = program(programs, name)?;
        let link = load_and_attach(program, btf.as_ref(), hook.hook, pins.is_some())
            .map_err(|source| attach_failed(name, rung, source))?;
        if let (Some(pins), Some(link)) = (pins, link) {
            let failed = |source| CaptureError::Pin { path: pins.path(""), source };
            link.pin(pins.path(pins::LINKS[number])).map_err(|e| failed(std::io::Error::other(e)))?;
            program.pin(pins.path(pins::PROGRAMS[number])).map_err(|e| failed(std::io::Error::other(e)))?;
        }
        program.info().and_then(|info| info.fd()).map_err(|source| attach_failed(name, rung, source))
    };
    let complete = attach(&hooks.complete, 1)?;
    let submit = attach(&hooks.submit, 0)?;
    Ok(Skips { submit, complete })
}

/// The link, if it is to be pinned.
fn load_and_attach(
    program: &mut Program,
    btf: Option<&Btf>,
    hook: &str,
    pin: bool,
) -> Result<Option<FdLink>, ProgramError> {
    if let Some(btf) = btf {
        let program: &mut BtfTracePoint = program.try_into()?;
        program.load(hook, btf)?;
        let link = program.attach()?;
        return pin.then(|| program.take_link(link).map(FdLink::from)).transpose();
    }
    if let Program::RawTracePoint(_) = program {
        let program: &mut RawTracePoint = program.try_into()?;
        program.load()?;
        let link = program.attach(hook)?;
        return pin.then(|| program.take_link(link).map(FdLink::from)).transpose();
    }
    let program: &mut TracePoint = program.try_into()?;
    program.load()?;
    let link = program.attach("block", hook)?;
    let owned = |link| FdLink::try_from(link).map_err(|e| ProgramError::IOError(std::io::Error::other(e)));
    pin.then(|| program.take_link(link).and_then(owned)).transpose()
}

fn pin_maps(programs: &Ebpf, pins: &Generation) -> Result<(), CaptureError> {
    for name in PINNED_MAPS {
        let map =
            programs.map(name).ok_or_else(|| CaptureError::Object(format!("the map {name} is missing")))?;
        map.pin(pins.path(name)).map_err(|source| CaptureError::Pin {
            path: pins.path(name),
            source: std::io::Error::other(source),
        })?;
    }
    Ok(())
}

fn take_map(programs: &mut Ebpf, name: &'static str) -> Result<Map, CaptureError> {
    programs.take_map(name).ok_or_else(|| CaptureError::Object(format!("the map {name} is missing")))
}

pub fn map_words(programs: &mut Ebpf, name: &'static str, len: usize) -> Result<MappedArray, CaptureError> {
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

pub fn map_failed(map: &'static str, error: aya::maps::MapError) -> CaptureError {
    CaptureError::Map { map, source: std::io::Error::other(error) }
}

fn attach_failed(
    probe: &'static str,
    rung: Rung,
    source: impl std::error::Error + Send + Sync + 'static,
) -> CaptureError {
    CaptureError::Attach { probe, rung, source: Box::new(source) }
}
