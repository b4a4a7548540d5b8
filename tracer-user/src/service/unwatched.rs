//! Since when it is not known who changes which file: `unwatched.toml` in the journal's directory. It is there before the probes
//! are, and its end is noted once the journal says so itself: else a mark made meanwhile would have the next start take all
//! before it for known.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::io::replace;
use crate::model::Timestamp;

const FILE_NAME: &str = "unwatched.toml";

/// Nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Unwatched {
    since_ns: u64,
    /// When the journal's queue had it: what was queued later, such as a mark, is not in the journal without it.
    told_ns: Option<u64>,
}

impl Unwatched {
    pub(super) fn since(since: Timestamp) -> Unwatched {
        Unwatched { since_ns: since.0, told_ns: None }
    }

    pub(super) fn told(self, at: Timestamp) -> Unwatched {
        Unwatched { told_ns: Some(at.0), ..self }
    }

    /// Up to when a start may take it for known who changed what. `mark`: of the journal's last restorable mark, or its beginning.
    pub(super) fn known_until(journal: &Path, mark: Timestamp) -> Timestamp {
        let text = match fs::read_to_string(journal.join(FILE_NAME)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return mark,
            Err(_) => String::new(),
        };
        match toml::from_str(&text) {
            Ok(Unwatched { told_ns: Some(told), .. }) if told <= mark.0 => mark,
            Ok(Unwatched { since_ns, .. }) => mark.min(Timestamp(since_ns)),
            // Then nothing is known.
            Err(_) => Timestamp(0),
        }
    }

    pub(super) fn note(&self, journal: &Path) {
        if let Err(error) = self.write(journal) {
            log::warn!(
                "it can't be noted since when changes of files are not seen: {error}; `log` may not tell of it"
            );
        }
    }

    fn write(&self, journal: &Path) -> io::Result<()> {
        let text = toml::to_string(self).map_err(io::Error::other)?;
        replace(&journal.join(FILE_NAME), text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_mark_vouches_for_is_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let known_until = |mark| Unwatched::known_until(dir.path(), Timestamp(mark)).0;
        assert_eq!(known_until(50), 50, "nothing else is said");
        let unwatched = Unwatched::since(Timestamp(20));
        unwatched.write(dir.path()).unwrap();
        assert_eq!((known_until(50), known_until(10)), (20, 10));
        unwatched.told(Timestamp(40)).write(dir.path()).unwrap();
        assert_eq!((known_until(39), known_until(40), known_until(50)), (20, 40, 50));
        fs::write(dir.path().join(FILE_NAME), "since_ns = \"x").unwrap();
        assert_eq!(known_until(50), 0);
    }
}
