use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Log sequence number: the journal's records are numbered from 1 without holes. 0 is "before all".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    pub const ZERO: Lsn = Lsn(0);

    pub fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Nanoseconds since the Unix epoch (CLOCK_REALTIME). Shown and parsed as RFC 3339, also in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub u64);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = i128::from(self.0);
        match jiff::Timestamp::from_nanosecond(time) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => write!(f, "@{}ns", self.0),
        }
    }
}

impl FromStr for Timestamp {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let time: jiff::Timestamp = text.parse()?;
        Ok(Timestamp(u64::try_from(time.as_nanosecond()).unwrap_or(0)))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(time) => time.to_string(),
            Err(_) => self.0.to_string(),
        })
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Identity of one protected volume's history, made when its journal is created.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VolumeId(pub [u8; 16]);

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a volume id is 32 hexadecimal digits, not {0:?}")]
pub struct BadVolumeId(String);

impl FromStr for VolumeId {
    type Err = BadVolumeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadVolumeId(text.to_owned());
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        u128::from_str_radix(text, 16).map(|id| VolumeId(id.to_be_bytes())).map_err(|_| bad())
    }
}

impl Serialize for VolumeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VolumeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What `volume.toml` in a journal says: which volume the journal is the history of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    pub id: VolumeId,
    /// The device as it was named when the journal was created, for people.
    pub source: String,
    /// How the device is recognised again: `wwid:…`, `dm:…`, `partuuid:…`, `loop:PATH` or `name:…`.
    pub identity: String,
    pub size_bytes: u64,
    /// Logical sector size of the device, 512 or 4096.
    pub sector_bytes: u32,
    pub created: Timestamp,
}

impl VolumeInfo {
    /// The identity of a tree begins with this.
    pub const TREE: &str = "tree:";

    /// It is the history of a directory tree, not of a device.
    pub fn is_tree(&self) -> bool {
        self.identity.starts_with(VolumeInfo::TREE)
    }
}
