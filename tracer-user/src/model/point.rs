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

/// Records between which every instant of the source can be restored, as class crash: all content after `from` was
/// captured as it was submitted, and in that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// A restorable mark.
    pub from_lsn: Lsn,
    pub from_time: Timestamp,
    /// The last record before the first one that breaks the history, or the last there is.
    pub to_lsn: Lsn,
    pub to_time: Timestamp,
}

impl Stretch {
    pub fn contains(&self, lsn: Lsn) -> bool {
        self.from_lsn <= lsn && lsn <= self.to_lsn
    }
}

/// All that can be restored from a journal, in the order of LSNs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    pub points: Vec<Point>,
    /// Only those that hold more than marks.
    pub stretches: Vec<Stretch>,
    /// The last record there is; 0 when there is none.
    pub last_lsn: Lsn,
}

impl Timeline {
    /// Whether the state after this record is one that the source was in, though it may be no mark.
    pub fn is_instant(&self, lsn: Lsn) -> bool {
        let after = self.stretches.partition_point(|stretch| stretch.from_lsn <= lsn);
        after.checked_sub(1).is_some_and(|at| self.stretches[at].contains(lsn))
    }
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
    /// The last restorable instant at or before this time.
    Time(Timestamp),
    /// The last one before the first write of a process of this name.
    BeforeProcess(String),
    /// The last one before the first write to a file whose path matches.
    BeforeFile(String),
    /// The last one before many files were rewritten or removed at once.
    BeforeBurst(String),
}

impl Target {
    /// It is named by a change of files.
    pub fn is_before_something(&self) -> bool {
        matches!(self, Target::BeforeProcess(_) | Target::BeforeFile(_) | Target::BeforeBurst(_))
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "a point is latest, mark:ID, mark:LABEL, lsn:N, time:RFC3339 (time:2026-01-31T12:00:00Z), before-process:NAME, \
     before-file:GLOB or before-burst:last, not {0:?}"
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
            Some(("before-process", name)) if !name.is_empty() => Ok(Target::BeforeProcess(name.to_owned())),
            Some(("before-file", glob)) if !glob.is_empty() => Ok(Target::BeforeFile(glob.to_owned())),
            Some(("before-burst", which)) if !which.is_empty() => Ok(Target::BeforeBurst(which.to_owned())),
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
        assert_eq!("before-process:rm".parse::<Target>().unwrap(), Target::BeforeProcess("rm".into()));
        assert_eq!("before-burst:2".parse::<Target>().unwrap(), Target::BeforeBurst("2".into()));
        assert_eq!("before-file:/etc/*".parse::<Target>().unwrap(), Target::BeforeFile("/etc/*".into()));
        for wrong in
            ["", "mark:", "before-process:", "before-file:", "lsn:x", "time:noon", "yesterday", "latest:1"]
        {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn classes_are_ordered_by_promise() {
        assert!(PointClass::App > PointClass::Fs && PointClass::Fs > PointClass::Crash);
        assert!(PointClass::Crash.restorable() && !PointClass::Fuzzy.restorable());
    }
}
