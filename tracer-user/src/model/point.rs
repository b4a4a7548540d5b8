use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::{Lsn, Timestamp};

/// Number of a mark, from 1, in the order they were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MarkId(pub u64);

impl fmt::Display for MarkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How much a point promises; later variants promise more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum PointClass {
    /// Converging: equal to no instant of the source. Not restorable without `--force`.
    Fuzzy = 1,
    /// As after a power cut: write order kept.
    Crash = 2,
    /// The file system was frozen.
    Fs = 3,
    /// Frozen after a pre-hook of the application.
    App = 4,
}

impl PointClass {
    pub fn restorable(self) -> bool {
        self >= PointClass::Crash
    }
}

impl fmt::Display for PointClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PointClass::Fuzzy => "fuzzy",
            PointClass::Crash => "crash",
            PointClass::Fs => "fs",
            PointClass::App => "app",
        })
    }
}

/// A mark as it stands in a journal: what one can restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    pub id: MarkId,
    pub class: PointClass,
    pub lsn: Lsn,
    pub time: Timestamp,
    pub label: String,
}

/// What a user asks for with `--to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The last restorable mark.
    Latest,
    /// A mark by number or label.
    Mark(String),
    /// Exactly this record.
    Lsn(Lsn),
    /// The last restorable mark at or before this time.
    Time(Timestamp),
}

#[derive(Debug, thiserror::Error)]
#[error(
    "a point is latest, mark:ID, mark:LABEL, lsn:N or time:RFC3339 (time:2026-01-31T12:00:00Z), not {0:?}"
)]
pub struct BadTarget(String);

impl FromStr for Target {
    type Err = BadTarget;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadTarget(text.to_owned());
        match text.split_once(':') {
            None if text == "latest" => Ok(Target::Latest),
            Some(("mark", name)) if !name.is_empty() => Ok(Target::Mark(name.to_owned())),
            Some(("lsn", number)) => number.parse().map(|n| Target::Lsn(Lsn(n))).map_err(|_| bad()),
            Some(("time", time)) => time.parse().map(Target::Time).map_err(|_| bad()),
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn point_targets_parse() {
        assert_eq!("latest".parse::<Target>().unwrap(), Target::Latest);
        assert_eq!("mark:7".parse::<Target>().unwrap(), Target::Mark("7".into()));
        assert_eq!("lsn:12".parse::<Target>().unwrap(), Target::Lsn(Lsn(12)));
        assert!(matches!("time:2026-01-31T12:00:00Z".parse::<Target>().unwrap(), Target::Time(_)));
        for wrong in ["", "mark:", "lsn:x", "time:noon", "yesterday", "latest:1"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn classes_are_ordered_by_promise() {
        assert!(PointClass::App > PointClass::Fs && PointClass::Fs > PointClass::Crash);
        assert!(PointClass::Crash.restorable() && !PointClass::Fuzzy.restorable());
    }
}
