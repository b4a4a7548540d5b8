//! Probes that outlive their process: found again, taken over, replaced without a gap, or removed.

use std::time::Duration;

use aya::maps::{Map, MapData, RingBuf};
use aya::programs::ProgramInfo;
use tracer_common::{BLOCK_EVENT_BYTES, EVENT_VERSION, counter, session as words_of};

use crate::capture::attach::{PINNED_MAPS, attach_on, dirty_granules, map_failed};
use crate::capture::features::{choose_rung, probe_features};
use crate::capture::ledger::Ledger;
use crate::capture::mapped::MappedArray;
use crate::capture::payload::PayloadAccess;
use crate::capture::pins::{self, Generation};
use crate::capture::positions::RingPositions;
use crate::capture::probes::{Capture, Skips};
use crate::capture::session::{
    Found, Session, claim, is_foreign, is_unclaimed, set_ready, set_unclaimed, settled_mark,
};
use crate::capture::{CaptureError, CaptureOptions, VolumeExtent, object};
use crate::model::{MarkId, VolumeId};

/// Longer than a probe runs.
const PROBES_RUN_OUT: Duration = Duration::from_millis(50);

/// Where the probes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Attached now: what was written before is not known.
    New,
    /// They were at work all the time.
    Adopted,
    /// The same, and they were replaced by this program's own while both were at work.
    Replaced,
    /// They were attached by [`attach`], before the journal was there.
    Early,
}

impl Capture {
    /// Attaches for this process alone, on the best rung that works.
    pub fn attach(volume: VolumeExtent, options: &CaptureOptions) -> Result<Capture, CaptureError> {
        object::inspect_embedded()?;
        attach_new(&volume, VolumeId([0; 16]), options, None)
    }

    /// The same with payload, for trying it.
    pub(super) fn attach_with(
        volume: VolumeExtent,
        options: &CaptureOptions,
        id: VolumeId,
        access: &PayloadAccess,
    ) -> Result<Capture, CaptureError> {
        let rung = options.rung.ok_or_else(|| CaptureError::NoRung { reasons: "none was named".into() })?;
        let session = Session::of(&volume, id, rung, true);
        attach_on(volume, &session, options, Some(access), None)
    }

    /// Takes over the probes that an earlier process left for this volume and its journal, or attaches and pins new ones.
    /// From the return on, no write to the volume goes unseen. `newest_mark`: the journal's last restorable one.
    pub fn open(
        volume: VolumeExtent,
        name: &str,
        id: VolumeId,
        newest_mark: Option<MarkId>,
        options: &CaptureOptions,
    ) -> Result<(Capture, Origin), CaptureError> {
        object::inspect_embedded()?;
        let root = match pins::root() {
            Ok(root) => root,
            Err(error) => {
                log::warn!("no BPF file system, so a restart after a crash reads the whole volume: {error}");
                let capture = attach_new(&volume, id, options, None)?;
                capture.ledger.scan_all();
                return Ok((capture, Origin::New));
            }
        };
        let pin_failed = |source| CaptureError::Pin { path: root.clone(), source };
        let in_use = pins::lock(&root, name).map_err(pin_failed)?;
        let in_use = in_use.ok_or_else(|| CaptureError::InUse { name: name.to_owned() })?;
        let generations = Generation::all(&root, name).map_err(pin_failed)?;
        let next = generations.last().map_or(1, |last| last.number + 1);
        let pin_new = || Generation::create(&root, name, next).map_err(pin_failed);
        let mut left = None;
        for generation in &generations {
            left = find(generation)?.or(left);
        }
        let left = left.filter(|left| left.session.is_of_disk(&volume));
        let is_others = |left: &&Left| !left.unclaimed && left.session.volume != id;
        if let Some(other) = left.as_ref().filter(is_others) {
            return Err(CaptureError::OtherJournal { name: name.to_owned(), volume: other.session.volume });
        }
        // Marks that let the ledger forget are not in this journal: it is an older copy.
        let left = left.filter(|left| left.settled_mark <= newest_mark.unwrap_or(MarkId(0)));

        let early = left.as_ref().is_some_and(|left| left.unclaimed);
        let (mut capture, origin) = match left {
            Some(left) if left.is_what_one_would_attach(options) => (left.open(volume)?, Origin::Adopted),
            Some(left) => {
                let rung = options.rung.or(Some(left.session.rung));
                let options = CaptureOptions { rung, ..options.clone() };
                let new = attach_new(&volume, id, &options, Some(&pin_new))?;
                hand_over(left.open(volume)?, &new);
                set_ready(&new.session);
                (new, Origin::Replaced)
            }
            None => {
                let new = attach_new(&volume, id, options, Some(&pin_new))?;
                new.ledger.scan_all();
                set_ready(&new.session);
                (new, Origin::New)
            }
        };
        for generation in generations.iter().filter(|generation| capture.pins.as_ref() != Some(generation)) {
            generation.remove().map_err(pin_failed)?;
        }
        capture.in_use = Some(in_use);
        if early {
            claim(&capture.session, id);
            return Ok((capture, Origin::Early));
        }
        Ok((capture, origin))
    }
}

/// Attaches and pins the probes of a volume whose journal is not there yet; the next [`Capture::open`] takes them over. `look` is
/// called when they are at work, and says what the disk is. Whether they are new: those there are already are left alone.
pub fn attach(
    volume: &VolumeExtent,
    name: &str,
    options: &CaptureOptions,
    look: impl FnOnce() -> Option<Found>,
) -> Result<bool, CaptureError> {
    object::inspect_embedded()?;
    let failed = |source| CaptureError::Pin { path: name.into(), source };
    let root = pins::root().map_err(failed)?;
    let Some(_in_use) = pins::lock(&root, name).map_err(failed)? else { return Ok(false) };
    let generations = Generation::all(&root, name).map_err(failed)?;
    for generation in &generations {
        if find(generation)?.is_some_and(|left| left.session.is_of_disk(volume)) {
            return Ok(false);
        }
    }
    let next = generations.last().map_or(1, |last| last.number + 1);
    let pin_new = || Generation::create(&root, name, next).map_err(failed);
    let new = attach_new(volume, VolumeId([0; 16]), options, Some(&pin_new))?;
    if !new.is_pinned() {
        return Err(failed(std::io::Error::other("probes that end with this process are of no use")));
    }
    new.ledger.scan_all();
    if let Some(found) = look() {
        found.write(&new.session);
    }
    set_unclaimed(&new.session);
    set_ready(&new.session);
    generations.iter().try_for_each(Generation::remove).map_err(failed)?;
    Ok(true)
}

/// Removes the probes of a volume and all they recorded. Says whether there were any.
pub fn detach(name: &str) -> Result<bool, CaptureError> {
    let failed = |source| CaptureError::Pin { path: name.into(), source };
    let root = pins::root().map_err(failed)?;
    let generations = Generation::all(&root, name).map_err(failed)?;
    if generations.is_empty() {
        return Ok(false);
    }
    let in_use = pins::lock(&root, name).map_err(failed)?;
    let _in_use = in_use.ok_or_else(|| CaptureError::InUse { name: name.to_owned() })?;
    generations.iter().try_for_each(Generation::remove).map_err(failed)?;
    Ok(true)
}

/// Names of the volumes whose probes are pinned and whose record no process reads.
pub fn unattended_volumes() -> Vec<String> {
    let Ok(root) = pins::root() else { return Vec::new() };
    let mut names = pins::volumes(&root).unwrap_or_default();
    names.retain(|name| matches!(pins::lock(&root, name), Ok(Some(_))));
    names
}

/// Volumes whose probes are pinned and whose record a process reads, and which one.
pub fn attended_volumes() -> Vec<(String, u32)> {
    let Ok(root) = pins::root() else { return Vec::new() };
    let names = pins::volumes(&root).unwrap_or_default().into_iter();
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    names.filter_map(|name| pins::holder(&root, &name, &locks).map(|pid| (name, pid))).collect()
}

/// Whether complete probes of a volume are pinned: they see its writes, whether a process reads what they record or not.
pub fn are_at_work(name: &str) -> bool {
    let generations = pins::root().and_then(|root| Generation::all(&root, name)).unwrap_or_default();
    generations.iter().any(|generation| matches!(find(generation), Ok(Some(_))))
}

/// Bytes recorded for a volume and not under a durable mark, at least; `None` when its probes can't be understood.
pub fn recorded_bytes(name: &str) -> Option<u64> {
    let generations = Generation::all(&pins::root().ok()?, name).ok()?;
    let found = find(generations.last()?).ok()??;
    let size_bytes = found.session.on_disk.len();
    let ledger =
        Ledger::new(size_bytes, open_words(&found.generation, "LEDGER", Ledger::words(size_bytes)).ok()?);
    let volume = VolumeExtent { on_disk: found.session.on_disk, ..VolumeExtent::default() };
    let granules = dirty_granules(&volume);
    let dirty = open_words(&found.generation, "DIRTY", granules.words()).ok()?;
    let mut owed = ledger.owed();
    owed.extend(&granules.ranges(dirty.words()));
    Some(owed.bytes())
}

/// Complete probes that an earlier process left.
struct Left {
    generation: Generation,
    session: Session,
    settled_mark: MarkId,
    /// By any journal.
    unclaimed: bool,
    ring_bytes: u32,
}

/// `None` for ones that were not complete when their process died: they say nothing that others don't.
fn find(generation: &Generation) -> Result<Option<Left>, CaptureError> {
    if !generation.path("SESSION").exists() {
        return Ok(None);
    }
    let words = open_words(generation, "SESSION", words_of::COUNT as usize)?;
    if is_foreign(&words) {
        return Err(CaptureError::Foreign { path: generation.path("") });
    }
    let complete = PINNED_MAPS.iter().chain(&pins::LINKS).chain(&pins::PROGRAMS);
    if !complete.into_iter().all(|name| generation.path(name).exists()) {
        return Ok(None);
    }
    let Some(session) = Session::read(&words) else { return Ok(None) };
    let ring = open_map(generation, "EVENTS")?;
    let ring_bytes = ring.info().map_err(|e| map_failed("EVENTS", e))?.max_entries();
    let (settled_mark, unclaimed) = (settled_mark(&words), is_unclaimed(&words));
    Ok(Some(Left { generation: generation.clone(), session, settled_mark, unclaimed, ring_bytes }))
}

impl Left {
    fn is_what_one_would_attach(&self, options: &CaptureOptions) -> bool {
        self.session.object == *blake3::hash(object::EMBEDDED).as_bytes()
            && self.session.event_version == EVENT_VERSION
            && self.ring_bytes == options.ring_bytes
            && self.session.payload == options.payload
            && options.rung.is_none_or(|rung| rung == self.session.rung)
    }

    fn open(self, volume: VolumeExtent) -> Result<Capture, CaptureError> {
        let Left { generation, session, ring_bytes, .. } = self;
        let size_bytes = volume.on_disk.len();
        let granules = dirty_granules(&volume);
        let ring = RingBuf::try_from(Map::RingBuf(open_map(&generation, "EVENTS")?));
        let program = |name| {
            ProgramInfo::from_pin(generation.path(name)).and_then(|info| info.fd()).map_err(|source| {
                CaptureError::Pin { path: generation.path(name), source: std::io::Error::other(source) }
            })
        };
        let ring = ring.map_err(|e| map_failed("EVENTS", e))?;
        let positions =
            RingPositions::new(&ring).map_err(|source| CaptureError::Map { map: "EVENTS", source })?;
        Ok(Capture {
            rung: session.rung,
            payload: session.payload,
            granules,
            ring_bytes,
            positions,
            ring,
            counters: open_words(&generation, "COUNTERS", counter::COUNT as usize)?,
            dirty: open_words(&generation, "DIRTY", granules.words())?,
            ledger: Ledger::new(size_bytes, open_words(&generation, "LEDGER", Ledger::words(size_bytes))?),
            session: open_words(&generation, "SESSION", words_of::COUNT as usize)?,
            skips: Skips { submit: program(pins::PROGRAMS[0])?, complete: program(pins::PROGRAMS[1])? },
            logger: None,
            pins: Some(generation),
            in_use: None,
            _programs: None,
            volume,
        })
    }
}

/// Both are attached. What the old probes saw before the new ones came goes from ring and bitmap into their own ledger,
/// which stays whole, and is copied: killed at any instant, one of the two generations holds all.
fn hand_over(mut old: Capture, new: &Capture) {
    // A write that only the old probes saw is being reported by one that is still running, at most.
    std::thread::sleep(PROBES_RUN_OUT);
    if old.session.get(words_of::EVENT_VERSION) == EVENT_VERSION {
        // As much as the ring holds at once: what comes later, the new probes have too.
        for _ in 0..old.ring_bytes as usize / BLOCK_EVENT_BYTES {
            if old.next_event().is_none() {
                break;
            }
        }
    } else {
        old.ledger.scan_all();
    }
    old.take_dirty();
    // It is in the ledger then.
    old.lost_track();
    new.ledger.take_over(&old.ledger);
    new.session.set(words_of::SETTLED_MARK, old.session.get(words_of::SETTLED_MARK));
    if let Some(found) = Found::read(&old.session) {
        found.write(&new.session);
    }
    if is_unclaimed(&old.session) {
        set_unclaimed(&new.session);
    }
}

/// On the best rung that works; pinned, if that works.
fn attach_new(
    volume: &VolumeExtent,
    id: VolumeId,
    options: &CaptureOptions,
    pin: Option<&dyn Fn() -> Result<Generation, CaptureError>>,
) -> Result<Capture, CaptureError> {
    let rungs = choose_rung(&probe_features(), options.rung)?;
    let mut refusals = Vec::new();
    for rung in rungs {
        let access = options.payload.then(|| PayloadAccess::find(rung)).and_then(|found| {
            found
                .inspect_err(|why| {
                    log::warn!("what is written can't be copied, only where is recorded: {why}")
                })
                .ok()
        });
        let session = Session::of(volume, id, rung, access.is_some());
        let attach = |pins| attach_on(volume.clone(), &session, options, access.as_ref(), pins);
        let mut attached = match pin {
            Some(pin) => {
                let pins = pin()?;
                attach(Some(pins.clone())).inspect_err(|_| {
                    let _ = pins.remove();
                })
            }
            None => attach(None),
        };
        if let Err(CaptureError::Pin { path, source }) = &attached {
            log::warn!(
                "the probes can't be pinned at {}, so a restart after a crash reads the whole volume: {source}",
                path.display()
            );
            attached = attach(None);
        }
        match attached {
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

fn open_map(generation: &Generation, name: &'static str) -> Result<MapData, CaptureError> {
    MapData::from_pin(generation.path(name)).map_err(|e| map_failed(name, e))
}

fn open_words(generation: &Generation, name: &'static str, len: usize) -> Result<MappedArray, CaptureError> {
    let map = open_map(generation, name)?;
    MappedArray::new(map, len).map_err(|source| CaptureError::Map { map: name, source })
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
