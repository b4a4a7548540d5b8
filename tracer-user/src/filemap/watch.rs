//! Hears of saves and maps them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::OFlags;

use crate::filemap::MapError;
use crate::filemap::cache::Cache;
use crate::filemap::copy::TICK;
use crate::filemap::criteria::Criteria;
use crate::filemap::events::{Event, Events};
use crate::filemap::fsyncs::{Fsyncs, can_be_found, place_of};
use crate::filemap::record::{EXTENTS_MAX, MapRecord, Why};
use crate::filemap::rescan::{nanos, rescan};
use crate::filemap::volume::{MapVolume, Watched};
use crate::io::Role;
use crate::io::clock::{monotonic_ns, realtime};
use crate::io::fiemap::extents_of;
use crate::io::priority::{Work as Claim, claim};
use crate::model::{FileId, FileTime};
use crate::tree::inode::{changed, modified, name_of};

/// Blocks are allocated by write-back, after 30 s by default. Looked at again after 1, 2, 4, … s, so often.
const SETTLE_TRIES: u32 = 7;
/// More files than these are left to the copy manager, which maps again anyway.
const SETTLING_MAX: usize = 65_536;
/// How often it is written down up to when all was heard of.
const HEARD_EVERY: Duration = Duration::from_secs(1);

pub struct WatchOptions {
    pub path: PathBuf,
    pub cache: PathBuf,
    pub criteria: Criteria,
    /// Map what is there already, too.
    pub all: bool,
    pub sync_every: Duration,
    /// Without it fsyncs are no saves.
    pub fsyncs: Option<Box<dyn Fsyncs>>,
}

/// What is told of the work.
pub enum Report<'a> {
    Ready {
        path: &'a Path,
        device: Option<&'a Path>,
        known: usize,
        /// Fsyncs are heard of.
        fsyncs: bool,
    },
    /// A record is in the cache. Times are of CLOCK_MONOTONIC.
    Mapped {
        map: &'a MapRecord,
        heard_ns: u64,
        recorded_ns: u64,
    },
    /// A queue was full, and what changed is looked for.
    Lost,
    Rescanned {
        mapped: u64,
    },
    /// There is nothing to do at the moment.
    Idle,
}

/// When a file is looked at, and why.
struct Due {
    at: Instant,
    heard_ns: u64,
    saved_ns: u64,
    work: Work,
}

enum Work {
    /// It was saved, and has to rest.
    Quiet { why: Why, dir: Vec<u8>, name: Vec<u8> },
    /// Not all of it had blocks.
    Settle { tries: u32 },
}

pub struct Watcher<'a> {
    pub watched: Watched,
    /// The handle of its directory.
    root: Vec<u8>,
    criteria: Criteria,
    cache: Cache,
    /// By handle.
    due: HashMap<Vec<u8>, Due>,
    order: BTreeSet<(Instant, Vec<u8>)>,
    report: &'a mut dyn FnMut(Report<'_>),
}

/// Until `stop` can be read.
pub fn watch(
    options: WatchOptions,
    stop: &impl AsFd,
    report: &mut dyn FnMut(Report<'_>),
) -> Result<(), MapError> {
    let watched = Watched::open(&options.path)?;
    watched.ensure_elsewhere(&options.cache, Role::Cache)?;
    let cache = Cache::open(
        &options.cache,
        |volume| volume.is_of(&watched),
        || MapVolume::new(&watched),
        options.sync_every,
    )?;
    let path = watched.source.path().to_owned();
    let failed = |source| MapError::Fanotify { path: path.clone(), source };
    let mut events = Events::of(&path).map_err(failed)?;
    let device = watched.device.as_ref().map(|device| device.path.clone());
    let (due, order) = (HashMap::new(), BTreeSet::new());
    let root = watched.source.root().map_err(MapError::io("look at", &path))?.handle;
    let mut fsyncs = options.fsyncs.filter(|_| can_be_found(&root));
    let mut watcher = Watcher { watched, root, criteria: options.criteria, cache, due, order, report };
    let now = realtime().0;
    let since = match (options.all, watcher.cache.heard_until_ns) {
        (true, _) => Some(0),
        (false, 0) => None,
        (false, until) => Some(until),
    };
    let known = watcher.cache.known.len();
    let hears_fsyncs = fsyncs.is_some();
    (watcher.report)(Report::Ready { path: &path, device: device.as_deref(), known, fsyncs: hears_fsyncs });
    if let Some(since) = since {
        watcher.catch_up(since)?;
    }
    watcher.heard(now)?;
    claim(Claim::Prompt);
    let (mut heard_at, mut rest, mut missing) = (Instant::now(), true, 0);
    loop {
        // What is queued from here on is later than this.
        let now = realtime().0;
        // A file that was synced several times meanwhile is looked at once.
        let synced: HashSet<FileId> = fsyncs.iter_mut().flat_map(|fsyncs| fsyncs.take()).collect();
        let taken = events.take().map_err(failed)?;
        let idle = taken.is_empty() && synced.is_empty();
        rest = rest && idle;
        let missing_now = fsyncs.as_ref().filter(|_| idle).map_or(missing, |fsyncs| fsyncs.missing());
        if taken.contains(&Event::Lost) || missing_now != missing {
            (watcher.report)(Report::Lost);
            watcher.catch_up(watcher.cache.heard_until_ns)?;
            missing = missing_now;
        }
        for file in synced {
            watcher.synced(file)?;
        }
        for event in taken {
            if let Event::Saved { why, handle, dir, name } = event {
                watcher.saved(why, &handle, &dir, &name)?;
            }
        }
        watcher.work_due()?;
        if !idle {
            continue;
        }
        (watcher.report)(Report::Idle);
        watcher.cache.check()?;
        if !rest && heard_at.elapsed() >= HEARD_EVERY {
            watcher.heard(now)?;
            (heard_at, rest) = (Instant::now(), true);
        }
        if watcher.cache.is_wasteful() {
            watcher.compact()?;
        }
        let mut wait = watcher.order.first().map(|(at, _)| at.saturating_duration_since(Instant::now()));
        if !rest {
            wait = Some(wait.map_or(HEARD_EVERY, |wait| wait.min(HEARD_EVERY)));
        }
        let wait = wait.map_or(PollTimeout::NONE, |wait| {
            PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let sources =
            [Some(stop.as_fd()), Some(events.as_fd()), fsyncs.as_ref().map(|fsyncs| fsyncs.as_fd())];
        let mut polled =
            Vec::from_iter(sources.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut polled, wait) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        let mut readable = polled.iter().map(|fd| fd.any() == Some(true));
        if readable.next() == Some(true) && !readable.any(|more| more) {
            return watcher.heard(realtime().0);
        }
    }
}

impl Watcher<'_> {
    /// An inode of the watched file system.
    pub fn open(&self, handle: &[u8], flags: OFlags) -> io::Result<Option<File>> {
        self.watched.source.open_inode(handle, flags)
    }

    /// Whether it is still as its record says; `None` if there is no record.
    pub fn is_as_known(&self, handle: &[u8], size: u64, changed: FileTime) -> Option<bool> {
        self.cache.known.get(handle).map(|known| known.size == size && known.changed == changed)
    }

    fn synced(&mut self, file: FileId) -> Result<(), MapError> {
        let place = place_of(&self.watched, &self.root, file);
        match place.map_err(MapError::io("find a file of", self.watched.source.path()))? {
            Some(place) => self.saved(Why::Fsync, &place.handle, &place.dir, &place.name).map(drop),
            None => Ok(()),
        }
    }

    /// Maps a file that was saved, or sees to that it is mapped later. False if it is none of ours.
    pub fn saved(&mut self, why: Why, handle: &[u8], dir: &[u8], name: &[u8]) -> Result<bool, MapError> {
        let (heard_ns, saved_ns) = (monotonic_ns(), realtime().0);
        if self.criteria.quiet.is_zero() {
            return self.map(why, handle, dir, name, (heard_ns, saved_ns));
        }
        let at = Instant::now() + self.criteria.quiet;
        let work = Work::Quiet { why, dir: dir.to_vec(), name: name.to_vec() };
        self.later(handle, Due { at, heard_ns, saved_ns, work });
        Ok(true)
    }

    fn map(
        &mut self,
        why: Why,
        handle: &[u8],
        dir: &[u8],
        name: &[u8],
        (heard_ns, saved_ns): (u64, u64),
    ) -> Result<bool, MapError> {
        let Some(path) = self.path_below(dir, name)? else { return Ok(false) };
        if !self.criteria.wants_path(Path::new(std::ffi::OsStr::from_bytes(&path))) {
            return Ok(false);
        }
        let Some(mut map) = self.look(handle)? else { return Ok(false) };
        if why == Why::Fsync && self.is_recorded(&map)? {
            return Ok(true);
        }
        (map.why, map.saved_ns, map.dir, map.path) = (why, saved_ns, dir.to_vec(), path);
        self.append(map, heard_ns)?;
        Ok(true)
    }

    /// It is as its record says, and that was made so long after the last change that another one would have another time.
    fn is_recorded(&self, map: &MapRecord) -> Result<bool, MapError> {
        if self.is_as_known(&map.handle, map.size, map.changed) != Some(true) {
            return Ok(false);
        }
        let stored = self.cache.stored(&map.handle)?;
        let changed = Duration::from_nanos(nanos(map.changed));
        let later = |stored: &MapRecord| Duration::from_nanos(stored.saved_ns) > changed + TICK;
        Ok(stored.is_some_and(|stored| stored.extents == map.extents && later(&stored)))
    }

    fn append(&mut self, map: MapRecord, heard_ns: u64) -> Result<(), MapError> {
        let map = self.cache.append(map)?;
        (self.report)(Report::Mapped { map: &map, heard_ns, recorded_ns: monotonic_ns() });
        if map.is_unsettled() && map.why != Why::Settled && self.due.len() < SETTLING_MAX {
            let at = Instant::now() + Duration::from_secs(1);
            let saved_ns = map.saved_ns;
            self.later(&map.handle, Due { at, heard_ns, saved_ns, work: Work::Settle { tries: 0 } });
        }
        Ok(())
    }

    /// Where the file lies now; `None` if it is gone, or not one that is wanted.
    fn look(&self, handle: &[u8]) -> Result<Option<MapRecord>, MapError> {
        let look = || -> io::Result<Option<MapRecord>> {
            // Opening a device would do something to it.
            let Some(found) = self.open(handle, OFlags::PATH)? else { return Ok(None) };
            if !self.criteria.wants_file(&found.metadata()?) {
                return Ok(None);
            }
            let Some(file) = self.open(handle, OFlags::RDONLY | OFlags::NOATIME)? else { return Ok(None) };
            // What is saved meanwhile is heard of later: the times have to be the older ones.
            let metadata = file.metadata()?;
            let (extents, truncated) = extents_of(&file, false, EXTENTS_MAX)?;
            Ok(Some(MapRecord {
                truncated,
                inode: metadata.ino(),
                size: metadata.len(),
                mode: metadata.mode(),
                uid: metadata.uid(),
                gid: metadata.gid(),
                modified: modified(&metadata),
                changed: changed(&metadata),
                handle: handle.to_vec(),
                extents,
                ..MapRecord::default()
            }))
        };
        look().map_err(MapError::io("map a file of", self.watched.source.path()))
    }

    /// `None` if it is not below the watched directory.
    fn path_below(&self, dir: &[u8], name: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        path_below(&self.watched, dir, name)
            .map_err(MapError::io("look up a path of", self.watched.source.path()))
    }

    fn later(&mut self, handle: &[u8], due: Due) {
        if let Some(before) = self.due.remove(handle) {
            self.order.remove(&(before.at, handle.to_vec()));
        }
        self.order.insert((due.at, handle.to_vec()));
        self.due.insert(handle.to_vec(), due);
    }

    fn work_due(&mut self) -> Result<(), MapError> {
        while self.order.first().is_some_and(|(at, _)| *at <= Instant::now()) {
            let Some((_, handle)) = self.order.pop_first() else { break };
            let Some(Due { heard_ns, saved_ns, work, .. }) = self.due.remove(&handle) else { continue };
            match work {
                Work::Quiet { why, dir, name } => {
                    self.map(why, &handle, &dir, &name, (heard_ns, saved_ns))?;
                }
                Work::Settle { tries } => self.settle(&handle, tries, saved_ns)?,
            }
        }
        Ok(())
    }

    /// Maps it again if it has blocks now.
    fn settle(&mut self, handle: &[u8], tries: u32, saved_ns: u64) -> Result<(), MapError> {
        let Some(before) = self.cache.stored(handle)? else { return Ok(()) };
        let Some(mut map) = self.look(handle)? else { return Ok(()) };
        // A later save is heard of by itself.
        if (map.size, map.changed) != (before.size, before.changed) {
            return Ok(());
        }
        if map.is_unsettled() && tries < SETTLE_TRIES {
            let at = Instant::now() + Duration::from_secs(1 << (tries + 1).min(6));
            let work = Work::Settle { tries: tries + 1 };
            self.later(handle, Due { at, heard_ns: monotonic_ns(), saved_ns, work });
            return Ok(());
        }
        if before.extents == map.extents {
            return Ok(());
        }
        (map.why, map.save, map.saved_ns) = (Why::Settled, before.save, before.saved_ns);
        (map.dir, map.path) = (before.dir, before.path);
        self.append(map, monotonic_ns())
    }

    /// After a time in which nobody was told.
    fn catch_up(&mut self, since_ns: u64) -> Result<(), MapError> {
        claim(Claim::Steady);
        let mapped = rescan(self, since_ns)?;
        claim(Claim::Prompt);
        (self.report)(Report::Rescanned { mapped });
        Ok(())
    }

    fn compact(&mut self) -> Result<(), MapError> {
        claim(Claim::Steady);
        let source = &self.watched.source;
        self.cache.compact(|handle| !matches!(source.open_inode(handle, OFlags::PATH), Ok(None)))?;
        claim(Claim::Prompt);
        Ok(())
    }

    /// All that was saved before is in the cache, but for what has to rest first.
    fn heard(&mut self, until_ns: u64) -> Result<(), MapError> {
        let resting = self.due.values().filter(|due| matches!(due.work, Work::Quiet { .. }));
        let until_ns = resting.map(|due| due.saved_ns).fold(until_ns, u64::min);
        self.cache.heard(until_ns)
    }
}

/// The path below the watched directory of what is called `name` in the directory of this handle, wherever that is by now.
pub fn path_below(watched: &Watched, dir: &[u8], name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let Some(dir) = watched.source.open_inode(dir, OFlags::PATH)? else { return Ok(None) };
    let path = std::fs::read_link(name_of(&dir))?;
    let Ok(below) = path.strip_prefix(watched.source.path()) else { return Ok(None) };
    Ok(Some(below.join(std::ffi::OsStr::from_bytes(name)).into_os_string().into_vec()))
}
