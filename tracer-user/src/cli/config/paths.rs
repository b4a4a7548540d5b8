//! Whether what is configured is in each other's way. What the devices below have to do with each other is looked at when they
//! are there, by each protection and by [`check`] of those of others.

use std::path::{Component, Path, PathBuf};

use crate::cli::config::{Entry, Mistake};
use crate::io::{BlockDevice, Role, ensure_not_on_volume};
use crate::service::UnitKind;

/// A journal or target.
struct Place<'a> {
    of: &'a Entry,
    role: Role,
    path: PathBuf,
    line: usize,
}

pub(super) fn check(entries: &[Entry], mistakes: &mut Vec<Mistake>) {
    let places: Vec<Place<'_>> = entries
        .iter()
        .flat_map(|of| {
            let place = |role, path: &PathBuf, line| Place { of, role, path: real(path), line };
            let targets = of.unit.targets.iter().map(move |path| place(Role::Target, path, of.target_line));
            std::iter::once(place(Role::Journal, &of.unit.journal, of.journal_line)).chain(targets)
        })
        .collect();
    for (at, entry) in entries.iter().enumerate() {
        for other in &entries[..at] {
            if real(&entry.unit.source) == real(&other.unit.source) {
                mistakes.push(told_twice(entry, other));
            }
        }
    }
    for (at, place) in places.iter().enumerate() {
        for other in &places[..at] {
            if within(&place.path, &other.path) || within(&other.path, &place.path) {
                let (name, role) = (&other.of.unit.name, other.role);
                let what = format!(
                    "{} is where the {role} of {name} is: each needs a place of its own",
                    place.path.display()
                );
                mistakes.push(Mistake { line: place.line.max(other.line), what });
            }
        }
        mistakes.extend(entries.iter().filter_map(|entry| protected(place, entry)));
    }
}

fn told_twice(entry: &Entry, other: &Entry) -> Mistake {
    let (later, earlier) =
        if entry.source_line > other.source_line { (entry, other) } else { (other, entry) };
    let what = format!("{} is protected by {} already", later.unit.source.display(), earlier.unit.name);
    Mistake { line: later.source_line, what }
}

/// What is written there would be written to what it protects, or to what another one does, and be journaled again.
fn protected(place: &Place<'_>, entry: &Entry) -> Option<Mistake> {
    let why = match entry.unit.kind {
        UnitKind::Tree => within(&place.path, &real(&entry.unit.source))
            .then(|| format!("the {} {} lies in the tree", place.role, place.path.display())),
        // One that is not there now is looked at when it is.
        UnitKind::Volume => BlockDevice::open(&entry.unit.source)
            .ok()
            .and_then(|volume| ensure_not_on_volume(&volume, &place.path, place.role).err())
            .map(|error| error.to_string()),
    }?;
    let whose =
        if place.of.unit.name == entry.unit.name { "itself".to_owned() } else { entry.unit.name.clone() };
    Some(Mistake { line: place.line, what: format!("{why}, which is protected ({whose}); put it elsewhere") })
}

fn within(path: &Path, dir: &Path) -> bool {
    path.starts_with(dir)
}

/// As the kernel sees it, as far as it is there.
fn real(path: &Path) -> PathBuf {
    let mut rest = Vec::new();
    for dir in path.ancestors() {
        if let Ok(dir) = dir.canonicalize() {
            return rest.into_iter().rev().fold(dir, |path: PathBuf, name| path.join(name));
        }
        match dir.components().next_back() {
            Some(Component::Normal(name)) => rest.push(name),
            _ => return path.to_owned(),
        }
    }
    path.to_owned()
}
