//! Retention carried out: old history is folded, and what the folds stand for is removed. See docs/FORMAT.md, "Folds".

use std::collections::BTreeSet;
use std::path::Path;

use crate::io::store::{DirStore, Store};
use crate::journal::error::JournalError;
use crate::journal::fold::{NetEffect, Scratch, write_fold};
use crate::journal::folds::{Fold, Folds, is_left_over, read_folds, write_folds};
use crate::journal::reader::{Journal, SegmentInfo};
use crate::journal::retention::Retention;
use crate::journal::segment::{parse_segment_name, segment_name};
use crate::journal::walk::{Summary, io_error, summarise};
use crate::model::{Lsn, MarkId, Point, Timestamp};

const LOCK_NAME: &str = "prune.lock";

#[derive(Clone, Debug)]
pub struct PruneOptions {
    pub retention: Retention,
    /// A base image is made when the segments since the last one hold this many times its bytes; 0 for never.
    pub image_factor: u64,
    /// Keeps more than it has to for a while, so that not each time the whole base is written anew.
    pub lazy: bool,
    /// All marks from this one on are kept: a target is at one of them, and can go on from nowhere else.
    pub keep_from: Option<Lsn>,
}

/// What a prune does: shown by a dry run, carried out as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrunePlan {
    /// Up to here the history is folded afterwards; 0 when nothing is.
    pub upto: Lsn,
    /// Restorable marks that go.
    pub dropped: Vec<Point>,
    /// Marks that can be restored and of which the writes around them can't be told any more.
    pub kept_marks: u64,
    /// Folds to be made, by what they follow on and the marks they hold.
    folds: Vec<NewFold>,
    /// A base image to be made of this mark.
    pub image: Option<Point>,
    /// Folds and images that go.
    superseded: Vec<Fold>,
    /// Segments that go: first and last record, and bytes.
    segments: Vec<SegmentInfo>,
    next_first: Option<(Lsn, [u8; 32])>,
    /// Bytes of files that go; the folds made need room, but less.
    pub freed_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum NewFold {
    Stays(Fold),
    Made { after: Lsn, marks: Vec<Point> },
}

impl PrunePlan {
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.superseded.is_empty() && self.image.is_none()
    }

    pub fn segments(&self) -> u64 {
        self.segments.len() as u64
    }

    /// How many folds are made.
    pub fn made(&self) -> u64 {
        self.folds.iter().filter(|fold| matches!(fold, NewFold::Made { .. })).count() as u64
    }
}

/// The plan of a prune at `now`. Reads indexes only, takes no lock.
///
/// # Errors
/// As [`Journal::points`].
pub fn plan_prune(
    journal: &Journal,
    options: &PruneOptions,
    now: Timestamp,
) -> Result<PrunePlan, JournalError> {
    plan_in(journal, options, now)
}

/// Carries out what [`plan_prune`] says for a volume, also beside the journal's writer: only sealed segments are touched. At any
/// instant the journal holds every point that is kept. Returns what was done.
///
/// # Errors
/// `Pruning` when another one is at work; `NoSpace`, `Io`; damage that was met. What was begun is of no effect then, and
/// removed by the next prune.
pub fn prune(dir: &Path, options: &PruneOptions, now: Timestamp) -> Result<PrunePlan, JournalError> {
    prune_with(dir, options, now, &mut Scratch::open(dir)?)
}

/// [`prune`] of what `net` knows how to fold.
///
/// # Errors
/// As [`prune`].
pub fn prune_with(
    dir: &Path,
    options: &PruneOptions,
    now: Timestamp,
    net: &mut impl NetEffect,
) -> Result<PrunePlan, JournalError> {
    let journal = Journal::open(dir)?;
    let mut store = DirStore::open_exclusive(dir, LOCK_NAME).map_err(|source| match source.kind() {
        std::io::ErrorKind::WouldBlock => JournalError::Pruning { dir: dir.to_owned() },
        _ => JournalError::Io { action: "lock", path: dir.join(LOCK_NAME), source },
    })?;
    prune_in(&mut store, &journal, options, now, net)
}

/// [`prune`] on any store, of which `journal` is another handle.
pub(super) fn prune_in<S: Store>(
    store: &mut S,
    journal: &Journal<S>,
    options: &PruneOptions,
    now: Timestamp,
    net: &mut impl NetEffect,
) -> Result<PrunePlan, JournalError> {
    let mut folds = read_folds(store)?;
    remove_left_over(store, &folds)?;
    let plan = plan_in(journal, options, now)?;
    if plan.is_empty() {
        return Ok(plan);
    }
    let mut made = Vec::new();
    for fold in &plan.folds {
        made.push(match fold {
            NewFold::Stays(fold) => fold.clone(),
            NewFold::Made { after, marks } => {
                let fold = write_fold(journal, folds.next_number, *after, marks, net)?;
                folds.next_number += 1;
                fold
            }
        });
    }
    if let Some(mark) = &plan.image {
        let image = write_fold(journal, folds.next_number, Lsn::ZERO, std::slice::from_ref(mark), net)?;
        folds.next_number += 1;
        folds.images.push(image);
    }
    folds.images.retain(|image| !plan.superseded.contains(image));
    folds.folds = made;
    if let Some((first_lsn, previous)) = plan.next_first {
        (folds.first_lsn, folds.previous) = (first_lsn, previous);
    }
    if let Some(mark) = plan.folds.iter().rev().find_map(last_mark) {
        folds.last_mark = folds.last_mark.max(mark);
    }
    // From here on readers take the folds; nothing that they need is removed below.
    write_folds(store, &folds)?;
    remove_left_over(store, &folds)?;
    Ok(plan)
}

fn last_mark(fold: &NewFold) -> Option<MarkId> {
    match fold {
        NewFold::Stays(_) => None,
        NewFold::Made { marks, .. } => marks.last().map(|mark| mark.id),
    }
}

/// Removes what is not part of the journal any more, or never was: folded segments, and folds that the manifest does not name.
fn remove_left_over<S: Store>(store: &mut S, folds: &Folds) -> Result<(), JournalError> {
    let mut names = store.list().map_err(|error| io_error(store, "list", "", error))?;
    let is_folded = |name: &str| parse_segment_name(name).is_some_and(|first| first < folds.first_lsn);
    names.retain(|name| is_left_over(name, folds) || is_folded(name));
    if !names.is_empty() {
        // The manifest that makes them superfluous may be one whose writer failed just then.
        sync_dir(store)?;
    }
    // The oldest first, so that what is left has no hole.
    names.sort_unstable();
    for name in &names {
        store.remove(name).map_err(|error| io_error(store, "remove", name, error))?;
    }
    if names.is_empty() {
        return Ok(());
    }
    sync_dir(store)
}

fn sync_dir<S: Store>(store: &mut S) -> Result<(), JournalError> {
    store.sync_dir().map_err(|error| io_error(store, "sync", "", error))
}

fn plan_in<S: Store>(
    journal: &Journal<S>,
    options: &PruneOptions,
    now: Timestamp,
) -> Result<PrunePlan, JournalError> {
    journal.looking(|folds| plan_of(journal, folds, options, now))
}

fn plan_of<S: Store>(
    journal: &Journal<S>,
    folds: &Folds,
    options: &PruneOptions,
    now: Timestamp,
) -> Result<PrunePlan, JournalError> {
    let points = journal.points()?;
    let segments = journal.segments()?;
    // What is in a sealed segment is durable: a mark that a power cut could take away must not be folded.
    let sealed_upto = segments.iter().rfind(|segment| segment.sealed).map_or(Lsn::ZERO, |s| s.last_lsn);
    let old: Vec<Point> = points.iter().filter(|point| point.lsn <= sealed_upto).cloned().collect();
    let may_fold = options.retention.fold_upto(&old, now).unwrap_or(Lsn::ZERO).max(folds.upto());

    // The segments that may go, if the one behind them can begin the journal.
    let mut gone = Vec::new();
    let mut next_first = None;
    for pair in segments.windows(2) {
        let (segment, next) = (&pair[0], &pair[1]);
        if !segment.sealed || segment.last_lsn > may_fold {
            break;
        }
        let Summary::Sealed(sealed) = summarise(journal.store(), journal.info().id, segment.first_lsn)?
        else {
            break;
        };
        gone.push(segment.clone());
        next_first = Some((next.first_lsn, sealed.seal.hash));
    }
    // No further than they need: what lies behind keeps its writes.
    let needed = gone.last().map_or(Lsn::ZERO, |segment| segment.last_lsn);
    let first_enough = points.iter().find(|point| point.class.restorable() && point.lsn >= needed);
    let upto = match gone.is_empty() {
        true => folds.upto(),
        false => first_enough.map_or(may_fold, |point| point.lsn).max(folds.upto()),
    };

    let mut kept = options.retention.kept(&points, now);
    kept.insert(upto);
    let is_ahead = |point: &&Point| options.keep_from.is_some_and(|from| from <= point.lsn);
    kept.extend(points.iter().filter(is_ahead).map(|point| point.lsn));
    let mut layout = lay_out(folds, &points, &kept, upto);
    if options.lazy && gone.is_empty() && !is_worth_it(folds, &layout) {
        layout = folds.folds.iter().cloned().map(NewFold::Stays).collect();
    } else if options.lazy && !is_worth_it(folds, &layout) {
        kept.extend(folds.folds.iter().flat_map(|fold| fold.marks.iter().copied()));
        layout = lay_out(folds, &points, &kept, upto);
    }
    let stays = |fold: &Fold| layout.contains(&NewFold::Stays(fold.clone()));
    let mut superseded: Vec<Fold> = folds.folds.iter().filter(|fold| !stays(fold)).cloned().collect();
    superseded.extend(folds.images.iter().filter(|image| image.upto() <= upto).cloned());
    let image = image_due(journal, folds, &segments, &points, options, upto)?;
    let kept_in_layout: BTreeSet<Lsn> = layout.iter().flat_map(NewFold::lsns).collect();
    let is_dropped = |point: &&Point| {
        point.class.restorable() && point.lsn <= upto && !kept_in_layout.contains(&point.lsn)
    };
    let freed_bytes = gone.iter().map(|segment| segment.bytes).sum::<u64>()
        + superseded.iter().map(|fold| fold.bytes).sum::<u64>();
    Ok(PrunePlan {
        upto,
        dropped: points.iter().filter(is_dropped).cloned().collect(),
        kept_marks: kept_in_layout.len() as u64,
        folds: layout,
        image,
        superseded,
        segments: gone,
        next_first,
        freed_bytes,
    })
}

impl NewFold {
    fn lsns(&self) -> Vec<Lsn> {
        match self {
            NewFold::Stays(fold) => fold.marks.clone(),
            NewFold::Made { marks, .. } => marks.iter().map(|mark| mark.lsn).collect(),
        }
    }
}

/// The folds that hold the marks in `kept` up to `upto`, which is one of them; those there are stay where they can.
fn lay_out(folds: &Folds, points: &[Point], kept: &BTreeSet<Lsn>, upto: Lsn) -> Vec<NewFold> {
    let mut layout = Vec::new();
    let mut after = Lsn::ZERO;
    // Marks of folds that lose some.
    let mut open: Vec<Point> = Vec::new();
    let mut merging = false;
    let wanted = |range: std::ops::RangeInclusive<u64>| {
        let is_kept = |point: &&Point| range.contains(&point.lsn.0) && kept.contains(&point.lsn);
        points.iter().filter(is_kept).filter(|point| point.class.restorable()).cloned().collect::<Vec<_>>()
    };
    for fold in &folds.folds {
        let marks = wanted(fold.after.0 + 1..=fold.upto().0);
        if !merging && marks.len() == fold.marks.len() {
            layout.push(NewFold::Stays(fold.clone()));
            after = fold.upto();
            continue;
        }
        open.extend(marks);
        merging = true;
        if open.last().is_some_and(|mark| mark.lsn == fold.upto()) {
            layout.push(NewFold::Made { after, marks: std::mem::take(&mut open) });
            after = fold.upto();
            merging = false;
        }
    }
    open.extend(wanted(folds.upto().0 + 1..=upto.0));
    if !open.is_empty() {
        layout.push(NewFold::Made { after, marks: open });
    }
    layout
}

/// Whether what is merged with the base is so much that the base may be written anew for it.
fn is_worth_it(folds: &Folds, layout: &[NewFold]) -> bool {
    let Some((base, others)) = folds.folds.split_first() else { return true };
    if layout.contains(&NewFold::Stays(base.clone())) {
        return true;
    }
    let merged = others.iter().filter(|fold| !layout.contains(&NewFold::Stays((*fold).clone())));
    merged.map(|fold| fold.bytes).sum::<u64>() >= base.bytes / 8
}

/// The mark a base image is to be made of: the last durable one, when replaying from the last base has become long.
fn image_due<S: Store>(
    journal: &Journal<S>,
    folds: &Folds,
    segments: &[SegmentInfo],
    points: &[Point],
    options: &PruneOptions,
    upto: Lsn,
) -> Result<Option<Point>, JournalError> {
    if options.image_factor == 0 {
        return Ok(None);
    }
    let since = folds.images.iter().map(Fold::upto).max().unwrap_or(Lsn::ZERO).max(upto);
    let sealed = segments.iter().filter(|segment| segment.sealed);
    let (mut bytes, mut last) = (0, Lsn::ZERO);
    for segment in sealed {
        last = segment.last_lsn;
        if segment.first_lsn > since {
            bytes += segment.raw_bytes.unwrap_or(segment.bytes);
        }
    }
    let base = folds.all().filter(|fold| fold.after == Lsn::ZERO).map(|fold| fold.bytes).max();
    // Of a tree it is not known how large it is, until there is a base.
    let of_volume = (!journal.info().is_tree()).then_some(journal.info().size_bytes);
    let Some(data) = base.or(of_volume) else { return Ok(None) };
    if bytes < data.saturating_mul(options.image_factor) {
        return Ok(None);
    }
    let is_due = |point: &&Point| point.class.restorable() && since < point.lsn && point.lsn <= last;
    Ok(points.iter().rfind(is_due).cloned())
}

impl PrunePlan {
    /// The names of the segments that go.
    pub fn segment_names(&self) -> Vec<String> {
        self.segments.iter().map(|segment| segment_name(segment.first_lsn)).collect()
    }
}
