//! Who changed what, as a journal says it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

use globset::{GlobBuilder, GlobMatcher};
use serde::Serialize;

use crate::journal::{Journal, JournalError};
use crate::model::{
    FileBurst, FileChanges, FileId, Lsn, Origin, OriginUnknown, PointTarget, Process, RecordBody, Timestamp,
};
use crate::restore::{FindError, ResolveError};

/// The kernel keeps so much of a process's name.
const COMM_LEN: usize = 15;

/// A pattern of paths within the volume's file system. `*` and `?` stop at `/`, `**` does not; one without `/` is that of a
/// name in any directory.
#[derive(Clone, Debug)]
pub struct PathGlob(GlobMatcher);

#[derive(Debug, thiserror::Error)]
#[error("no pattern of paths such as /etc/* or *.doc")]
pub struct BadGlob(#[from] globset::Error);

impl FromStr for PathGlob {
    type Err = BadGlob;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let anywhere = format!("**/{text}");
        let pattern = if text.contains('/') { text } else { &anywhere };
        Ok(PathGlob(GlobBuilder::new(pattern).literal_separator(true).build()?.compile_matcher()))
    }
}

impl PathGlob {
    fn is_of(&self, changes: &FileChanges) -> bool {
        let matches = |path: &[u8]| !path.is_empty() && self.0.is_match(OsStr::from_bytes(path));
        matches(&changes.path) || matches(&changes.new_path)
    }
}

/// Which changes are wanted; all that is given has to hold.
#[derive(Clone, Debug, Default)]
pub struct OriginQuery {
    pub file: Option<PathGlob>,
    pub process: Option<String>,
    pub pid: Option<u32>,
    pub cgroup: Option<u64>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Changes of one of these bytes of files: of what [`files_at`] tells.
    pub bytes: Option<Vec<(FileId, u64)>>,
}

impl OriginQuery {
    pub fn takes(&self, changes: &FileChanges) -> bool {
        let Process { pid, cgroup, name, .. } = &changes.process;
        self.file.as_ref().is_none_or(|glob| glob.is_of(changes))
            && self.process.as_ref().is_none_or(|wanted| is_named(name, wanted))
            && self.pid.is_none_or(|wanted| wanted == *pid)
            && self.cgroup.is_none_or(|wanted| wanted == *cgroup)
            && self.bytes.as_ref().is_none_or(|bytes| bytes.iter().any(|byte| changed(changes, *byte)))
            && self.within(changes.first, changes.last)
    }

    pub fn takes_unknown(&self, unknown: &OriginUnknown) -> bool {
        self.within(unknown.from, unknown.to)
    }

    pub fn takes_burst(&self, burst: &FileBurst) -> bool {
        self.within(burst.began, burst.recognised)
    }

    fn within(&self, first: Timestamp, last: Timestamp) -> bool {
        self.since.is_none_or(|since| last >= since) && self.until.is_none_or(|until| first <= until)
    }
}

fn changed(changes: &FileChanges, (file, offset): (FileId, u64)) -> bool {
    changes.file == file && changes.ranges.iter().any(|range| range.start <= offset && offset < range.end)
}

/// Which bytes of which files have lain at this one of the volume, as far as the journal tells.
///
/// # Errors
/// Damage on the way.
pub fn files_at(journal: &Journal, volume_byte: u64) -> Result<Vec<(FileId, u64)>, JournalError> {
    let mut found = Vec::new();
    origins(journal, |_, origin| {
        if let Origin::Places(places) = origin
            && let Some(offset) = places.offset_of(volume_byte)
            && !found.contains(&(places.file, offset))
        {
            found.push((places.file, offset));
        }
        true
    })?;
    Ok(found)
}

fn is_named(comm: &[u8], wanted: &str) -> bool {
    comm == &wanted.as_bytes()[..wanted.len().min(COMM_LEN)]
}

/// Goes through all that the journal says of origins, in order, until `take` says false.
///
/// # Errors
/// Damage on the way.
pub fn origins(journal: &Journal, mut take: impl FnMut(Lsn, Origin) -> bool) -> Result<(), JournalError> {
    for record in journal.records(journal.first_lsn()?, journal.last_lsn()?)? {
        let record = record?;
        if let RecordBody::Origin(origin) = record.body
            && !take(record.lsn, origin)
        {
            return Ok(());
        }
    }
    Ok(())
}

/// What a point `before-…` is before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Beginning {
    #[serde(flatten)]
    pub changes: FileChanges,
    /// Whiles before it of which it is not known who changed what: it may not have been the first.
    pub unknown: Vec<OriginUnknown>,
}

/// Which of the processes of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    /// From 1, in the order of their first changes.
    Number(usize),
    Last,
    /// The first that changed something from then on.
    Since(Timestamp),
}

impl Which {
    fn parse(text: &str) -> Option<Which> {
        let number = text.parse().ok().filter(|number| *number > 0).map(Which::Number);
        let last = || (text == "last").then_some(Which::Last);
        number.or_else(last).or_else(|| text.parse().ok().map(Which::Since))
    }

    /// Of things in the order of their `times`.
    fn of(self, times: impl ExactSizeIterator<Item = Timestamp>) -> Option<usize> {
        let count = times.len();
        let at = match self {
            Which::Number(number) => number - 1,
            Which::Last => count.checked_sub(1)?,
            Which::Since(since) => times.take_while(|time| *time < since).count(),
        };
        (at < count).then_some(at)
    }
}

/// `NAME`, `NAME@N`, `NAME@last`, `NAME@TIME`.
fn parse(text: &str) -> (&str, Which) {
    text.rsplit_once('@')
        .and_then(|(name, which)| Some((name, Which::parse(which)?)))
        .unwrap_or((text, Which::Number(1)))
}

/// The first change of what a point `before-process:`, `before-file:` or `before-burst:` names.
///
/// # Errors
/// `NoOrigins` and `NoSuchOrigin`, or damage on the way.
pub fn beginning(journal: &Journal, target: &PointTarget) -> Result<Beginning, FindError> {
    let mut found = Found::default();
    let glob;
    let (what, wanted): (String, &dyn Fn(&FileChanges) -> bool) = match target {
        PointTarget::BeforeFile(pattern) => {
            glob = pattern.parse::<PathGlob>()?;
            (format!("a file {pattern}"), &|changes| glob.is_of(changes))
        }
        PointTarget::BeforeProcess(text) => {
            let (name, which) = parse(text);
            found.which = which;
            found.by_process = true;
            (format!("a process {text}"), &move |changes| is_named(&changes.process.name, name))
        }
        PointTarget::BeforeBurst(which) => {
            let burst = burst(journal, which)?;
            let Process { pid, start_ns, .. } = burst.process;
            (format!("the burst {which}"), &move |changes| {
                let same = (changes.process.pid, changes.process.start_ns) == (pid, start_ns);
                same && changes.last >= burst.began
            })
        }
        _ => unreachable!("only points before something begin with it"),
    };
    origins(journal, |_, origin| {
        found.take(origin, wanted);
        true
    })?;
    found.finish(what)
}

/// The burst that `which` names among all there are.
fn burst(journal: &Journal, which: &str) -> Result<FileBurst, FindError> {
    let mut bursts = Vec::new();
    origins(journal, |_, origin| {
        if let Origin::Burst(burst) = origin {
            bursts.push(burst);
        }
        true
    })?;
    bursts.sort_by_key(|burst| burst.began);
    let at = Which::parse(which).and_then(|which| which.of(bursts.iter().map(|burst| burst.began)));
    match at {
        Some(at) => Ok(bursts.swap_remove(at)),
        None => Err(ResolveError::NoSuchBurst { which: which.to_owned(), found: bursts.len() }.into()),
    }
}

/// The first changes of each process that matches, in the order of their times.
struct Found {
    by_process: bool,
    which: Which,
    any: bool,
    firsts: Vec<FileChanges>,
    unknown: Vec<OriginUnknown>,
}

impl Default for Found {
    fn default() -> Self {
        Found {
            by_process: false,
            which: Which::Number(1),
            any: false,
            firsts: Vec::new(),
            unknown: Vec::new(),
        }
    }
}

impl Found {
    fn take(&mut self, origin: Origin, wanted: &dyn Fn(&FileChanges) -> bool) {
        self.any = true;
        let changes = match origin {
            Origin::Unknown(unknown) => return self.unknown.push(unknown),
            Origin::Burst(_) | Origin::Places(_) => return,
            Origin::Changes(changes) => changes,
        };
        if !wanted(&changes) || matches!(self.which, Which::Since(since) if changes.first < since) {
            return;
        }
        let key = |changes: &FileChanges| (changes.process.pid, changes.process.start_ns);
        let known = self.firsts.iter_mut().find(|known| !self.by_process || key(known) == key(&changes));
        match known {
            Some(known) if changes.first < known.first => *known = changes,
            Some(_) => {}
            None => self.firsts.push(changes),
        }
    }

    fn finish(mut self, what: String) -> Result<Beginning, FindError> {
        if !self.any {
            return Err(ResolveError::NoOrigins.into());
        }
        self.firsts.sort_by_key(|changes| changes.first);
        let Some(at) = self.which.of(self.firsts.iter().map(|changes| changes.first)) else {
            let (found, unknown) = (self.firsts.len(), self.unknown.len());
            return Err(ResolveError::NoSuchOrigin { what, found, unknown }.into());
        };
        let changes = self.firsts.swap_remove(at);
        self.unknown.retain(|unknown| unknown.from < changes.first);
        Ok(Beginning { changes, unknown: self.unknown })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::FileOps;

    fn changes(pid: u32, name: &str, path: &str, first: u64) -> FileChanges {
        FileChanges {
            process: Process { pid, start_ns: 1, cgroup: 3, name: name.into() },
            file: FileId { inode: 1, generation: 1, dev: 1 },
            path: path.into(),
            new_path: Vec::new(),
            ops: FileOps(2),
            first: Timestamp(first),
            last: Timestamp(first + 5),
            count: 1,
            ranges: Vec::new(),
        }
    }

    fn found(text: &str, records: Vec<FileChanges>) -> Option<u64> {
        let (name, which) = parse(text);
        let mut found = Found { by_process: true, which, ..Found::default() };
        for changes in records {
            found.take(Origin::Changes(changes), &|changes| is_named(&changes.process.name, name));
        }
        found.finish(String::new()).ok().map(|beginning| beginning.changes.first.0)
    }

    #[test]
    fn a_process_is_named_by_number_time_or_as_the_last() {
        let records = || {
            let of = |pid, first| changes(pid, "rm", "/a", first);
            // Handed to the journal in another order than they happened in.
            vec![of(1, 100), of(2, 300), of(1, 90), of(3, 250), changes(9, "cp", "/a", 1)]
        };
        assert_eq!(found("rm", records()), Some(90), "the very first change");
        assert_eq!(found("rm@2", records()), Some(250));
        assert_eq!(found("rm@3", records()), Some(300));
        assert_eq!(found("rm@last", records()), Some(300));
        assert_eq!(found("rm@4", records()), None);
        assert_eq!(found("rm@1970-01-01T00:00:00.000000095Z", records()), Some(100));
        assert_eq!(found("mv", records()), None);
        let mail = vec![changes(1, "a@b", "/a", 7)];
        assert_eq!(found("a@b", mail), Some(7), "a name may have an @");
    }

    #[test]
    fn a_long_name_is_as_long_as_the_kernel_keeps_it() {
        assert!(is_named(b"a-program-with-", "a-program-with-a-long-name"));
        assert!(!is_named(b"rm", "r") && !is_named(b"r", "rm"));
    }

    #[test]
    fn globs_are_of_whole_paths_or_of_names() {
        let is = |glob: &str, path: &str| glob.parse::<PathGlob>().unwrap().is_of(&changes(1, "x", path, 0));
        assert!(is("/etc/*", "/etc/passwd") && !is("/etc/*", "/etc/ssh/config"));
        assert!(is("/etc/**", "/etc/ssh/config"));
        assert!(is("*.doc", "/home/a/b.doc") && is("*.doc", "/b.doc") && !is("*.doc", "/b.docx"));
        assert!(is("/a\nb", "/a\nb"));
        let mut odd = changes(1, "x", "", 0);
        odd.path = b"/\xff\xfe.doc".to_vec();
        assert!("*.doc".parse::<PathGlob>().unwrap().is_of(&odd));
        assert!("[".parse::<PathGlob>().is_err());
    }

    #[test]
    fn what_is_not_known_before_is_said() {
        let unknown = |from| OriginUnknown {
            from: Timestamp(from),
            to: Timestamp(from + 1),
            missing: 1,
            why: "x".into(),
        };
        let mut found = Found::default();
        found.take(Origin::Unknown(unknown(5)), &|_| true);
        found.take(Origin::Changes(changes(1, "rm", "/a", 10)), &|_| true);
        found.take(Origin::Unknown(unknown(20)), &|_| true);
        assert_eq!(found.finish(String::new()).unwrap().unknown, [unknown(5)]);
    }
}
