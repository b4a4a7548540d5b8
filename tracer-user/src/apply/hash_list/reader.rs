use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::apply::hash_list::HashListError;
use crate::apply::hash_list::format::{ENTRY_LEN, HEADER_LEN, HashListHeader, HeaderError, entry_start};
use crate::apply::{Checkpoint, ReplicaFiles};
use crate::model::GranuleHash;

/// A hash list, only to be read, also while the applier writes it: an entry half-written is an unknown one. Many threads
/// may read at once.
#[derive(Debug)]
pub struct HashListReader {
    file: File,
    path: PathBuf,
    header: HashListHeader,
}

impl HashListReader {
    /// # Errors
    /// When the file is missing, its header is not right, or it is shorter than its header says.
    pub fn open(path: &Path) -> Result<HashListReader, HashListError> {
        let file = File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => HashListError::Missing { path: path.to_owned() },
            _ => HashListError::Io { what: "open", path: path.to_owned(), source },
        })?;
        let header = read_header(&file, path)?;
        Ok(HashListReader { file, path: path.to_owned(), header })
    }

    /// The list of a replica: the one that its checkpoint names.
    pub fn of_replica(files: &ReplicaFiles) -> Result<HashListReader, HashListError> {
        let list = HashListReader::open(&files.hash_list())?;
        let checkpoint = Checkpoint::read(files).ok().flatten();
        match checkpoint.and_then(|checkpoint| checkpoint.hash_list) {
            Some(named) if named == list.header.id => Ok(list),
            _ => {
                let what = "the replica's checkpoint does not name it".to_owned();
                Err(HashListError::Unusable { path: list.path, what })
            }
        }
    }

    pub fn header(&self) -> &HashListHeader {
        &self.header
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The hash of each of `granules`, as far as it is known.
    pub fn read(&self, granules: Range<u64>) -> Result<Vec<Option<GranuleHash>>, HashListError> {
        let failed = |source| HashListError::Io { what: "read", path: self.path.clone(), source };
        let count = usize::try_from(granules.end.saturating_sub(granules.start))
            .map_err(|e| failed(io::Error::other(e)))?;
        let mut bytes = vec![0; count * ENTRY_LEN];
        self.file.read_exact_at(&mut bytes, entry_start(granules.start)).map_err(failed)?;
        Ok(self.header.decode_entries(granules.start, &bytes))
    }
}

/// The header of a file that has room for all of its entries.
pub(super) fn read_header(file: &File, path: &Path) -> Result<HashListHeader, HashListError> {
    let failed = |source| HashListError::Io { what: "read", path: path.to_owned(), source };
    let unusable = |what: String| HashListError::Unusable { path: path.to_owned(), what };
    let file_bytes = file.metadata().map_err(failed)?.len();
    if file_bytes < HEADER_LEN as u64 {
        return Err(unusable("its header is cut".to_owned()));
    }
    let mut bytes = [0; HEADER_LEN];
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    let header = HashListHeader::decode(&bytes).map_err(|error| {
        unusable(match error {
            HeaderError::Damaged(what) | HeaderError::Malformed(what) => what.to_owned(),
            HeaderError::Version(version) => format!("its version {version} is not known here"),
            HeaderError::Features(bits) => format!("its features {bits:#x} are not known here"),
        })
    })?;
    if file_bytes < header.file_bytes() {
        return Err(unusable(format!("it has {file_bytes} bytes instead of {}", header.file_bytes())));
    }
    Ok(header)
}
