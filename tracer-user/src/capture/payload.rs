//! What copying the bytes of a write needs to know of the running kernel: found out, and seen to work, on a disk of our own
//! before a volume is captured that way.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use tracer_common::calibration;

use crate::capture::attach::{attach_program, load, map_words};
use crate::capture::features::Rung;
use crate::capture::layout::{PayloadLayout, kernel_btf_path};
use crate::capture::{Capture, CaptureError, CaptureOptions, Event, Payload, VolumeExtent};
use crate::io::{AlignedBuf, BlockDevice, ScratchDisk};
use crate::model::{ByteRange, VolumeId};

const SCRATCH_BYTES: u64 = 4 << 20;
const PAGE: usize = 4096;
/// Pages that have to agree on where the kernel maps memory.
const PAGES: u64 = 16;

/// See `tracer-ebpf/src/settings.rs`.
#[derive(Clone, Debug)]
pub struct PayloadAccess {
    pub layout: PayloadLayout,
    pub page_constant: u64,
}

impl PayloadAccess {
    /// Finds it and tries it.
    ///
    /// # Errors
    /// The reason why what is written can't be copied here.
    pub fn find(rung: Rung) -> Result<PayloadAccess, String> {
        if rung == Rung::Tracepoint {
            return Err("formatted tracepoints don't show the memory of a write".into());
        }
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let layout = PayloadLayout::read(&kernel_btf_path()).map_err(|e| text(&e))?;
        let disk = ScratchDisk::new(SCRATCH_BYTES)
            .map_err(|error| format!("there is no loop device to try it on: {error}"))?;
        let mut access = PayloadAccess { layout, page_constant: 0 };
        access.page_constant = calibrate(&access, rung, &disk)?;
        try_out(&access, rung, &disk)?;
        Ok(access)
    }
}

/// Why what is written can't be copied on this rung; `None` when it can. Makes a loop device for a moment.
pub fn payload_obstacle(rung: Rung) -> Option<String> {
    PayloadAccess::find(rung).err()
}

/// A verifier's log would follow it.
fn first_line(error: CaptureError) -> String {
    let text = format!("{:#}", anyhow::Error::new(error));
    text.lines().next().unwrap_or_default().to_owned()
}

fn extent_of(disk: &ScratchDisk) -> Result<VolumeExtent, String> {
    let device = BlockDevice::open(disk.path()).map_err(|error| error.to_string())?;
    Ok(VolumeExtent {
        disk_major: device.disk.number.major,
        disk_first_minor: device.disk.number.minor,
        on_disk: ByteRange::new(0, device.size_bytes),
        request_based: device.request_based,
        ..VolumeExtent::default()
    })
}

/// Writes numbers that are nowhere else in memory, and has the probe look for them.
fn calibrate(access: &PayloadAccess, rung: Rung, disk: &ScratchDisk) -> Result<u64, String> {
    let volume = extent_of(disk)?;
    if !volume.request_based {
        return Err("the loop devices of this kernel take no requests".into());
    }
    let mut programs = load(&volume, rung, Some(access), PAGE as u32).map_err(first_line)?;
    let words = map_words(&mut programs, "CALIBRATION", calibration::COUNT as usize).map_err(first_line)?;
    let program = if rung == Rung::TpBtf { "calibrate_btf" } else { "calibrate_raw" };
    attach_program(&mut programs, program, rung, "block_rq_issue").map_err(first_line)?;
    let mut random = File::open("/dev/urandom").map_err(|error| error.to_string())?;
    // Kept, so that each is another page.
    let mut pages = Vec::new();
    let mut constants = Vec::new();
    for number in 0..PAGES {
        let mut magic = [0; 8];
        random.read_exact(&mut magic).map_err(|error| error.to_string())?;
        // The probe's own copy must not be what it finds.
        words.set(calibration::MAGIC, !u64::from_le_bytes(magic));
        let mut page = AlignedBuf::with_capacity(PAGE);
        page.set_len(PAGE);
        page[..8].copy_from_slice(&magic);
        let found = words.get(calibration::FOUND);
        disk.file().write_all_at(&page, number * PAGE as u64).map_err(|error| error.to_string())?;
        if words.get(calibration::FOUND) > found {
            constants.push(words.get(calibration::CONSTANT));
        }
        pages.push(page);
    }
    let all_the_same = constants.iter().all(|constant| Some(constant) == constants.first());
    match constants.first() {
        Some(constant) if all_the_same && constants.len() as u64 == PAGES => Ok(*constant),
        _ => Err(format!(
            "{} of {PAGES} pages were found in the kernel's memory, after {} writes",
            constants.len(),
            words.get(calibration::SEARCHED)
        )),
    }
}

/// Writes in several shapes, and compares what is captured of them.
fn try_out(access: &PayloadAccess, rung: Rung, disk: &ScratchDisk) -> Result<(), String> {
    let options = CaptureOptions { rung: Some(rung), ring_bytes: 4 * SCRATCH_BYTES as u32, payload: true };
    let volume = extent_of(disk)?;
    let mut capture =
        Capture::attach_with(volume, &options, VolumeId([0; 16]), access).map_err(first_line)?;
    let mut random = File::open("/dev/urandom").map_err(|error| error.to_string())?;
    let mut written = AlignedBuf::with_capacity(SCRATCH_BYTES as usize);
    written.set_len(SCRATCH_BYTES as usize);
    random.read_exact(&mut written).map_err(|error| error.to_string())?;
    let mut at = 0;
    // One sector, one page, one and a half, and as large as requests get.
    for len in [512, PAGE, 3 * PAGE / 2, 64 * PAGE, 256 * PAGE].into_iter().cycle() {
        let end = SCRATCH_BYTES as usize - 512;
        // The memory starts at other places of a page than the disk's bytes.
        let from = (at + 512).min(end);
        let bytes = &written[from..(from + len).min(SCRATCH_BYTES as usize)];
        disk.file().write_all_at(bytes, at as u64).map_err(|error| error.to_string())?;
        at += bytes.len();
        if at >= end {
            break;
        }
    }
    compare(&mut capture, &written, at)
}

fn compare(capture: &mut Capture, written: &[u8], written_bytes: usize) -> Result<(), String> {
    let mut captured = vec![None; SCRATCH_BYTES as usize];
    let mut keep = |range: ByteRange, bytes: &[u8]| {
        let range = range.start as usize..range.end as usize;
        captured[range].iter_mut().zip(bytes).for_each(|(slot, byte)| *slot = Some(*byte));
    };
    while let Some(event) = capture.next_event() {
        match event {
            Some(Event::Submit { range, payload: Payload::Whole(bytes), .. }) => keep(range, &bytes),
            Some(Event::Piece { range, bytes, .. }) => keep(range, &bytes),
            Some(_) => {}
            None => return Err("a probe reported what can't be understood".into()),
        }
    }
    let wrong =
        (0..written_bytes).filter(|at| captured[*at] != Some(written[(at + 512).min(written.len() - 1)]));
    match wrong.count() {
        0 => Ok(()),
        wrong => Err(format!("of {written_bytes} bytes written to a test disk {wrong} were captured wrong")),
    }
}
