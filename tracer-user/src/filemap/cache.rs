//! The directory of a cache: `cache.toml`, and one segment of records, `maps-NUMBER.awm`. When most of what it holds is outdated
//! a new segment with the newest record of each file takes its place.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::filemap::MapError;
use crate::filemap::record::{MapRecord, Record};
use crate::filemap::segment::{FRAME_HEADER_BYTES, Scanned, frame, header, scan};
use crate::filemap::syncer::Syncer;
use crate::filemap::volume::MapVolume;
use crate::io::store::{DirStore, LOCK_NAME};
use crate::io::{NEW_SUFFIX, replace as replace_file};
use crate::model::FileTime;

const VOLUME_FILE: &str = "cache.toml";
/// Outdated records may always take so much.
const OUTDATED_BYTES: u64 = 16 << 20;
/// How often a reader looks again that finds a segment replaced under it.
const TRIES: usize = 100;

/// What a cache holds, newest.
#[derive(Debug, Default)]
pub struct Content {
    /// By the file's handle.
    pub maps: HashMap<Vec<u8>, MapRecord>,
    pub heard_until_ns: u64,
}

/// Where the newest record of a file is, and what tells that the file has changed since.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    offset: u64,
    bytes: u64,
    pub size: u64,
    pub changed: FileTime,
}

/// The one writer.
pub struct Cache {
    dir: PathBuf,
    number: u64,
    file: Arc<File>,
    end: u64,
    next_record: u64,
    pub known: HashMap<Vec<u8>, Known>,
    pub heard_until_ns: u64,
    live_bytes: u64,
    syncer: Syncer,
    _lock: DirStore,
}

/// Reads what is there now, and writes nothing.
pub fn read(dir: &Path) -> Result<(MapVolume, Content), MapError> {
    let volume = read_volume(dir)?.ok_or_else(|| MapError::NotACache { path: dir.to_owned() })?;
    for _ in 0..TRIES {
        let Some((number, path)) = newest_segment(dir)? else { return Ok((volume, Content::default())) };
        match std::fs::read(&path) {
            Ok(bytes) => return Ok((volume, content(scanned(number, &path, &bytes)?))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(MapError::io("read", path)(source)),
        }
    }
    Err(MapError::io("read", dir)(io::Error::other("its file is replaced all the time; try again")))
}

fn content(scanned: Scanned) -> Content {
    let mut content = Content::default();
    for (_, record) in scanned.records {
        match record {
            Record::Map(map) => drop(content.maps.insert(map.handle.clone(), map)),
            Record::Heard { until_ns } => content.heard_until_ns = content.heard_until_ns.max(until_ns),
        }
    }
    content
}

impl Cache {
    /// Opens or makes a cache of this volume, and cuts a torn tail. `sync_every`: see docs/OPERATIONS.md.
    pub fn open(
        dir: &Path,
        is_of: impl Fn(&MapVolume) -> Result<bool, MapError>,
        new: impl Fn() -> Result<MapVolume, MapError>,
        sync_every: Duration,
    ) -> Result<Cache, MapError> {
        std::fs::create_dir_all(dir).map_err(MapError::io("make", dir))?;
        let lock = DirStore::open_exclusive(dir, LOCK_NAME).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => MapError::InUse { path: dir.to_owned() },
            _ => MapError::io("lock", dir)(source),
        })?;
        match read_volume(dir)? {
            Some(volume) if is_of(&volume)? => {}
            Some(volume) => {
                let (path, wanted) = (dir.to_owned(), new()?.path);
                return Err(MapError::OtherVolume { path, of: volume.path, wanted });
            }
            None => {
                let text = toml::to_string(&new()?).expect("strings, numbers and paths that are UTF-8");
                replace(dir, VOLUME_FILE, text.as_bytes())?;
            }
        }
        let (number, path) = match newest_segment(dir)? {
            Some(newest) => newest,
            None => {
                replace(dir, &segment_name(1), &header(1))?;
                (1, dir.join(segment_name(1)))
            }
        };
        let bytes = std::fs::read(&path).map_err(MapError::io("read", &path))?;
        let scanned = scanned(number, &path, &bytes)?;
        let file =
            OpenOptions::new().read(true).append(true).open(&path).map_err(MapError::io("open", &path))?;
        if scanned.end < bytes.len() as u64 {
            log::warn!(
                "{}: {} torn bytes at its end were cut off",
                path.display(),
                bytes.len() as u64 - scanned.end
            );
            file.set_len(scanned.end).and_then(|()| file.sync_all()).map_err(MapError::io("cut", &path))?;
        }
        let mut cache = Cache {
            dir: dir.to_owned(),
            number,
            file: Arc::new(file),
            end: scanned.end,
            next_record: 1,
            known: HashMap::new(),
            heard_until_ns: 0,
            live_bytes: 0,
            syncer: Syncer::start(sync_every),
            _lock: lock,
        };
        let ends = scanned.records.iter().skip(1).map(|(offset, _)| *offset).chain([scanned.end]);
        for ((offset, record), end) in scanned.records.iter().zip(ends) {
            cache.note(record, *offset, end - offset);
        }
        cache.remove_others()?;
        Ok(cache)
    }

    /// Appends a map, which gets the next number; it is of a save of its own if it names none. When this returns, only the
    /// machine's end can lose it, and after the next sync not even that.
    pub fn append(&mut self, mut map: MapRecord) -> Result<MapRecord, MapError> {
        map.number = self.next_record;
        if map.save == 0 {
            map.save = map.number;
        }
        let record = Record::Map(map);
        self.write(&record)?;
        let Record::Map(map) = record else { unreachable!("made just above") };
        Ok(map)
    }

    /// Of all that was saved before this time there is a record.
    pub fn heard(&mut self, until_ns: u64) -> Result<(), MapError> {
        self.write(&Record::Heard { until_ns })
    }

    /// Whether most of the segment is outdated.
    pub fn is_wasteful(&self) -> bool {
        self.end - self.live_bytes > OUTDATED_BYTES.max(self.live_bytes)
    }

    /// Writes a new segment, without what is outdated or of a file that `keeps` says is gone.
    pub fn compact(&mut self, keeps: impl Fn(&[u8]) -> bool) -> Result<(), MapError> {
        let number = self.number + 1;
        let (mut bytes, mut order) = (header(number).to_vec(), Vec::from_iter(self.known.values()));
        order.sort_by_key(|known| known.offset);
        let mut records = Vec::new();
        for known in order {
            let map = self.read(known)?;
            if keeps(&map.handle) {
                records.push(Record::Map(map));
            }
        }
        records.push(Record::Heard { until_ns: self.heard_until_ns });
        self.known.clear();
        self.live_bytes = 0;
        for record in &records {
            let (offset, frame) = (bytes.len() as u64, frame(number, bytes.len() as u64, record));
            self.note(record, offset, frame.len() as u64);
            bytes.extend(frame);
        }
        replace(&self.dir, &segment_name(number), &bytes)?;
        let path = self.dir.join(segment_name(number));
        let file =
            OpenOptions::new().read(true).append(true).open(&path).map_err(MapError::io("open", &path))?;
        (self.file, self.number, self.end) = (Arc::new(file), number, bytes.len() as u64);
        self.remove_others()
    }

    /// The newest record of a file that is known.
    pub fn stored(&self, handle: &[u8]) -> Result<Option<MapRecord>, MapError> {
        self.known.get(handle).map(|known| self.read(known)).transpose()
    }

    fn read(&self, known: &Known) -> Result<MapRecord, MapError> {
        let mut stored = vec![0; usize::try_from(known.bytes).expect("a frame fits in memory")];
        let read = self.file.read_exact_at(&mut stored, known.offset).and_then(|()| {
            match Record::decode(&stored[FRAME_HEADER_BYTES..]) {
                Ok(Record::Map(map)) => Ok(map),
                _ => Err(io::Error::other("a record that was written is not there")),
            }
        });
        read.map_err(MapError::io("read", self.dir.join(segment_name(self.number))))
    }

    /// A failed sync since: what is on the disk is not known.
    pub fn check(&self) -> Result<(), MapError> {
        self.syncer.check().map_err(MapError::io("sync", &self.dir))
    }

    fn write(&mut self, record: &Record) -> Result<(), MapError> {
        let frame = frame(self.number, self.end, record);
        // After an error the tail may be torn, and the caller ends; the next one who opens it cuts that off.
        (&*self.file).write_all(&frame).map_err(MapError::io("write to", &self.dir))?;
        self.note(record, self.end, frame.len() as u64);
        self.end += frame.len() as u64;
        self.syncer.appended(&self.file);
        Ok(())
    }

    fn note(&mut self, record: &Record, offset: u64, bytes: u64) {
        match record {
            Record::Heard { until_ns } => self.heard_until_ns = self.heard_until_ns.max(*until_ns),
            Record::Map(map) => {
                let known = Known { offset, bytes, size: map.size, changed: map.changed };
                let before = self.known.insert(map.handle.clone(), known);
                self.live_bytes = self.live_bytes + bytes - before.map_or(0, |before| before.bytes);
                self.next_record = self.next_record.max(map.number + 1);
            }
        }
    }

    /// A kill may have left the segment before this one, or half of a new one.
    fn remove_others(&self) -> Result<(), MapError> {
        for (name, path) in names(&self.dir)? {
            let other = number_of(&name).is_some_and(|number| number != self.number);
            if other || name.ends_with(NEW_SUFFIX) {
                std::fs::remove_file(&path).map_err(MapError::io("remove", &path))?;
            }
        }
        Ok(())
    }
}

fn scanned(number: u64, path: &Path, bytes: &[u8]) -> Result<Scanned, MapError> {
    scan(number, bytes).map_err(|source| MapError::Damaged { path: path.to_owned(), source })
}

fn read_volume(dir: &Path) -> Result<Option<MapVolume>, MapError> {
    let path = dir.join(VOLUME_FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(MapError::io("read", path)(source)),
    };
    let unknown = |error: String| MapError::io("understand", &path)(io::Error::other(error));
    let volume: MapVolume = toml::from_str(&text).map_err(|error| unknown(error.to_string()))?;
    match volume.version {
        MapVolume::VERSION => Ok(Some(volume)),
        version => Err(unknown(format!("its version is {version}; use a newer afterwrite"))),
    }
}

fn segment_name(number: u64) -> String {
    format!("maps-{number:016x}.awm")
}

fn number_of(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("maps-")?.strip_suffix(".awm")?, 16).ok()
}

fn newest_segment(dir: &Path) -> Result<Option<(u64, PathBuf)>, MapError> {
    let numbered = names(dir)?.into_iter().filter_map(|(name, path)| Some((number_of(&name)?, path)));
    Ok(numbered.max_by_key(|(number, _)| *number))
}

fn names(dir: &Path) -> Result<Vec<(String, PathBuf)>, MapError> {
    let list = || -> io::Result<Vec<(String, PathBuf)>> {
        std::fs::read_dir(dir)?
            .map(|entry| entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())))
            .collect()
    };
    list().map_err(MapError::io("list", dir))
}

/// Whole and durable under its name, or not there.
fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), MapError> {
    let path = dir.join(name);
    replace_file(&path, bytes).map_err(MapError::io("write", &path))
}
