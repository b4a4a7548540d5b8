//! What was copied into a target already: a file of lines of JSON in it. The first names the cache, each other one a file and the
//! save it was copied as. A line that is torn or lost costs a copy, no more.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::filemap::MapError;

const NAME: &str = ".afterwrite-copied";

#[derive(Serialize, Deserialize)]
struct Of {
    cache: String,
}

#[derive(Serialize, Deserialize)]
struct Line {
    /// Its handle in hexadecimal digits.
    file: String,
    save: u64,
}

pub struct Copied {
    path: PathBuf,
    file: File,
    /// By handle, as in `Line`.
    saves: HashMap<String, u64>,
}

impl Copied {
    /// Reads it and writes it anew, without what is outdated.
    pub fn open(target: &Path, cache: &str) -> Result<Copied, MapError> {
        let path = target.join(NAME);
        let saves = match std::fs::read(&path) {
            Ok(bytes) => parse(&bytes, cache),
            Err(error) if error.kind() == io::ErrorKind::NotFound => HashMap::new(),
            Err(source) => return Err(MapError::io("read", path)(source)),
        };
        let new = target.join(format!("{NAME}.new"));
        let write = || -> io::Result<File> {
            let mut lines = line(&Of { cache: cache.to_owned() })?;
            for (file, save) in &saves {
                lines += &line(&Line { file: file.clone(), save: *save })?;
            }
            let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&new)?;
            file.write_all(lines.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            Ok(file)
        };
        let file = write().map_err(MapError::io("write", &path))?;
        Ok(Copied { path, file, saves })
    }

    pub fn has(&self, file: &str, save: u64) -> bool {
        self.saves.get(file).is_some_and(|copied| *copied >= save)
    }

    /// The copy itself is durable.
    pub fn note(&mut self, file: String, save: u64) -> Result<(), MapError> {
        let write = |mut to: &File, text: String| to.write_all(text.as_bytes());
        let line = line(&Line { file: file.clone(), save });
        line.and_then(|line| write(&self.file, line)).map_err(MapError::io("write to", &self.path))?;
        self.saves.insert(file, save);
        Ok(())
    }
}

fn parse(bytes: &[u8], cache: &str) -> HashMap<String, u64> {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    match lines.next().map(serde_json::from_slice::<Of>) {
        Some(Ok(of)) if of.cache == cache => {}
        _ => return HashMap::new(),
    }
    let lines = lines.filter_map(|line| serde_json::from_slice::<Line>(line).ok());
    lines.map(|line| (line.file, line.save)).collect()
}

fn line(value: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string(value)? + "\n")
}
