//! `volume.toml`: which volume a journal is the history of. A person may read it; its last line is a checksum of
//! the lines before.

use serde::{Deserialize, Serialize};

use crate::io::store::Store;
use crate::journal::error::JournalError;
use crate::journal::walk::{io_error, read_all};
use crate::model::VolumeInfo;

pub const VOLUME_NAME: &str = "volume.toml";
pub const VOLUME_TEMP_NAME: &str = "volume.toml.tmp";
const VERSION: u64 = 1;
/// Of a directory tree: who knows devices only must not take it for one.
const VERSION_TREE: u64 = 2;
const LEN_MAX: u64 = 64 << 10;
const CHECKSUM_KEY: &str = "crc32c = \"";

#[derive(Serialize, Deserialize)]
struct VolumeFile {
    version: u64,
    #[serde(flatten)]
    info: VolumeInfo,
}

pub fn encode(info: &VolumeInfo) -> Result<String, String> {
    let file = VolumeFile { version: version_of(info), info: info.clone() };
    let mut text = toml::to_string(&file).map_err(|error| error.to_string())?;
    let crc = crc32c::crc32c(text.as_bytes());
    text.push_str(&format!("{CHECKSUM_KEY}{crc:08x}\"\n"));
    Ok(text)
}

/// Why `volume.toml` cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub enum BadVolumeFile {
    Version(u64),
    Other(String),
}

pub fn decode(text: &str) -> Result<VolumeInfo, BadVolumeFile> {
    let other = |what: &str| BadVolumeFile::Other(what.to_owned());
    #[derive(Deserialize)]
    struct OnlyVersion {
        version: u64,
    }
    let OnlyVersion { version } =
        toml::from_str(text).map_err(|_| other("volume.toml has no version or is no TOML"))?;
    if version != VERSION && version != VERSION_TREE {
        return Err(BadVolumeFile::Version(version));
    }
    let end = text.rfind(CHECKSUM_KEY).ok_or_else(|| other("volume.toml has no checksum"))?;
    let wanted = format!("{CHECKSUM_KEY}{:08x}\"\n", crc32c::crc32c(&text.as_bytes()[..end]));
    if text[end..] != wanted {
        return Err(other("the checksum of volume.toml is wrong: it was edited or damaged"));
    }
    let file: VolumeFile = toml::from_str(text).map_err(|error| other(error.message()))?;
    if file.version != version_of(&file.info) {
        return Err(other(
            "volume.toml names a tree in the version for devices, or a device in that for trees",
        ));
    }
    Ok(file.info)
}

fn version_of(info: &VolumeInfo) -> u64 {
    if info.is_tree() { VERSION_TREE } else { VERSION }
}

/// Reads and checks `volume.toml`.
pub fn read_volume<S: Store>(store: &S) -> Result<VolumeInfo, JournalError> {
    let not_a_journal =
        |why: &str| JournalError::NotAJournal { dir: store.dir().to_owned(), why: why.to_owned() };
    let size = match store.size(VOLUME_NAME) {
        Ok(size) => size,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(not_a_journal("there is no volume.toml in it"));
        }
        Err(error) => return Err(io_error(store, "read", VOLUME_NAME, error)),
    };
    if size > LEN_MAX {
        return Err(not_a_journal("its volume.toml is too large"));
    }
    let bytes = read_all(store, VOLUME_NAME, size)?;
    let damaged = |what: String| JournalError::Damaged { segment: VOLUME_NAME.to_owned(), offset: 0, what };
    let text = std::str::from_utf8(&bytes).map_err(|_| damaged("volume.toml is not text".to_owned()))?;
    decode(text).map_err(|error| match error {
        BadVolumeFile::Version(version) => {
            JournalError::UnsupportedVersion { file: VOLUME_NAME.to_owned(), version }
        }
        BadVolumeFile::Other(why) => damaged(why),
    })
}

/// Writes `volume.toml` so that it is there as a whole or not at all.
pub fn write_volume<S: Store>(store: &mut S, info: &VolumeInfo) -> Result<(), JournalError> {
    let text = encode(info).map_err(JournalError::InvalidRecord)?;
    let write = |store: &mut S| {
        store.create(VOLUME_TEMP_NAME)?;
        store.append(VOLUME_TEMP_NAME, text.as_bytes())?;
        store.sync(VOLUME_TEMP_NAME)?;
        store.rename(VOLUME_TEMP_NAME, VOLUME_NAME)?;
        store.sync_dir()
    };
    write(store).map_err(|error| io_error(store, "write", VOLUME_NAME, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::tests::sample_info;

    #[test]
    fn volume_file_round_trips_and_no_changed_byte_passes() {
        let text = encode(&sample_info()).unwrap();
        assert_eq!(decode(&text), Ok(sample_info()));
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let changed = String::from_utf8(bytes).unwrap();
            assert!(decode(&changed).is_err(), "byte {at}: {changed}");
        }
    }

    #[test]
    fn a_newer_volume_file_is_refused_by_its_version() {
        assert_eq!(decode("version = 3\nshape = \"round\"\n"), Err(BadVolumeFile::Version(3)));
    }
}
