use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use crate::cli::prune::{self, PruneArgs};
use crate::cli::{Outcome, Output, Progress, Unit, say, size};
use crate::journal::{CheckReport, Journal, JournalError, SegmentInfo, TornTail};
use crate::model::{
    FileBurst, FileChanges, FilePlaces, Lsn, MarkId, NodeId, Origin, OriginUnknown, PointClass, Record,
    RecordBody, Timestamp, TreeChange,
};

/// Look inside a journal, and apply retention to it
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    Ls(LsArgs),
    Dump(DumpArgs),
    Check(CheckArgs),
    Prune(PruneArgs),
}

/// List the segments
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  afterwrite journal ls /var/lib/afterwrite/home")]
pub(super) struct LsArgs {
    /// Directory of the journal
    journal: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Print the records, one a line
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  afterwrite journal dump /var/lib/afterwrite/home --from 800 --to 900")]
pub(super) struct DumpArgs {
    /// Directory of the journal
    journal: PathBuf,
    /// First record; the first that was not folded when not given
    #[arg(long, value_name = "LSN")]
    from: Option<u64>,
    /// Last record; the end of the journal when not given
    #[arg(long, value_name = "LSN", default_value_t = u64::MAX, hide_default_value = true)]
    to: u64,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// Read everything and check it: checksums, the chain of segments, record numbers
///
/// Exit code 1 when it is damaged. Bytes at the end that were being written when the writer stopped (a torn tail) are
/// told and are no damage: the next writer cuts them off.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  afterwrite journal check /var/lib/afterwrite/home")]
pub(super) struct CheckArgs {
    /// Directory of the journal
    journal: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `ls --json`: one object. `segments`: list of these; `folds`: list of `name`, `after`, `upto`, `bytes`, `marks`, `image`;
/// `torn_tail`: null or `segment`, `offset`, `bytes`.
#[derive(Serialize)]
struct Segment<'a> {
    name: &'a str,
    first_lsn: Lsn,
    last_lsn: Lsn,
    bytes: u64,
    sealed: bool,
    recovered: bool,
    marks: u64,
}

#[derive(Serialize)]
struct Folded {
    name: String,
    /// It changes the volume of this record, 0 for nothing,
    after: Lsn,
    /// to that of this one.
    upto: Lsn,
    bytes: u64,
    marks: usize,
    /// A base image of a mark that is in the segments, too.
    image: bool,
}

#[derive(Serialize)]
struct Torn<'a> {
    segment: &'a str,
    /// Byte of the segment.
    offset: u64,
    bytes: u64,
}

/// `dump --json`: one of these a line. `start` and `end` are bytes of the volume, `end` exclusive; a mark has `mark`,
/// `class` and `label` instead. `ordered`: captured as it was submitted, and in that order.
#[derive(Serialize)]
struct Dumped<'a> {
    lsn: Lsn,
    time: Timestamp,
    ordered: bool,
    kind: &'static str,
    #[serde(flatten)]
    detail: Detail<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Detail<'a> {
    Range {
        start: u64,
        end: u64,
    },
    Mark {
        mark: MarkId,
        class: PointClass,
        label: &'a str,
    },
    Changes(&'a FileChanges),
    Unknown(&'a OriginUnknown),
    Burst(&'a FileBurst),
    Places(&'a FilePlaces),
    Tree {
        change: &'static str,
        node: NodeId,
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        start: u64,
        end: u64,
    },
}

/// `check --json`: one object. `whole` is false when the journal is damaged; then there is `damage`, the text, and not
/// the numbers.
#[derive(Default, Serialize)]
struct Checked<'a> {
    whole: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
    #[serde(flatten)]
    found: Option<Found<'a>>,
}

#[derive(Serialize)]
struct Found<'a> {
    folds: u64,
    segments: u64,
    bytes: u64,
    records: u64,
    marks: u64,
    last_lsn: Lsn,
    torn_tail: Option<Torn<'a>>,
}

pub(super) fn run(command: &Command, out: &mut Output) -> anyhow::Result<Outcome> {
    match command {
        Command::Ls(args) => ls(args, out),
        Command::Dump(args) => dump(args, out),
        Command::Check(args) => check(args, out),
        Command::Prune(args) => prune::run(args, out),
    }
}

fn ls(args: &LsArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let cannot = || format!("cannot list the segments of {}", args.journal.display());
    let journal = Journal::open(&args.journal).with_context(cannot)?;
    let segments = journal.segments().with_context(cannot)?;
    let torn = journal.torn_tail().with_context(cannot)?;
    let folds = folded(&journal).with_context(cannot)?;
    if args.json {
        #[derive(Serialize)]
        struct Listing<'a> {
            segments: Vec<Segment<'a>>,
            folds: &'a [Folded],
            torn_tail: Option<Torn<'a>>,
        }
        let segments = segments.iter().map(Segment::from).collect();
        out.json(&Listing { segments, folds: &folds, torn_tail: torn.as_ref().map(Torn::from) })?;
        return Ok(Outcome::Done);
    }
    let width = segments.iter().map(|segment| segment.name.len()).max().unwrap_or(0).max(7);
    let heads = ("SEGMENT", "FIRST", "LAST", "BYTES", "MARKS");
    let (name, first, last, bytes, marks) = heads;
    out.line(format_args!("{name:width$}  {first:>10}  {last:>10}  {bytes:>12}  {marks:>7}  STATE"))?;
    for SegmentInfo { name, first_lsn, last_lsn, bytes, sealed, recovered, marks, .. } in &segments {
        let (first, last) = (first_lsn.0, last_lsn.0);
        let state = match (sealed, recovered) {
            (true, true) => "sealed by the next writer",
            (true, false) => "sealed",
            (false, _) => "open",
        };
        out.line(format_args!("{name:width$}  {first:>10}  {last:>10}  {bytes:>12}  {marks:>7}  {state}"))?;
    }
    for Folded { name, after, upto, bytes, marks, image } in &folds {
        let (after, state) = (after.0 + 1, if *image { "base image" } else { "folded" });
        out.line(format_args!(
            "{name:width$}  {after:>10}  {:>10}  {bytes:>12}  {marks:>7}  {state}",
            upto.0
        ))?;
    }
    torn.iter().for_each(tell_torn);
    Ok(Outcome::Done)
}

fn folded(journal: &Journal) -> Result<Vec<Folded>, JournalError> {
    let folds = journal.folds()?;
    let images = folds.images.iter().map(|fold| (fold, true));
    let listed = folds.folds.iter().map(|fold| (fold, false)).chain(images).map(|(fold, image)| Folded {
        name: fold.prefix() + "*",
        after: fold.after,
        upto: fold.upto(),
        bytes: fold.bytes,
        marks: fold.marks.len(),
        image,
    });
    Ok(listed.collect())
}

fn dump(args: &DumpArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let cannot = || format!("cannot print the records of {}", args.journal.display());
    let journal = Journal::open(&args.journal).with_context(cannot)?;
    let from = args.from.map_or_else(|| journal.first_lsn(), |from| Ok(Lsn(from))).with_context(cannot)?;
    for record in journal.records(from, Lsn(args.to)).with_context(cannot)? {
        let record = match record.with_context(cannot) {
            Ok(record) => record,
            Err(error) => {
                // What is good so far is shown before what is wrong is told.
                out.finish()?;
                return Err(error);
            }
        };
        if args.json {
            out.json(&Dumped::from(&record))?;
        } else {
            out.line(text(&record))?;
        }
        if out.is_closed() {
            break;
        }
    }
    Ok(Outcome::Done)
}

fn check(args: &CheckArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let mut shown = Progress::new("checking", Unit::Bytes, 0);
    let result = check_all(&args.journal, &mut |done, total| {
        shown.set_total(total);
        shown.set(done);
    });
    shown.finish();
    match result {
        Ok(report) => {
            if args.json {
                out.json(&Checked { whole: true, damage: None, found: Some(Found::from(&report)) })?;
            } else {
                let CheckReport { segments, bytes, records, marks, .. } = report;
                out.line(format_args!(
                    "whole: {records} records, {marks} marks, {segments} segments, {}",
                    size(bytes)
                ))?;
                report.torn_tail.iter().for_each(tell_torn);
            }
            Ok(Outcome::Done)
        }
        Err(error) if error.is_damage() => {
            if args.json {
                out.json(&Checked { damage: Some(error.to_string()), ..Checked::default() })?;
            } else {
                out.line(format_args!("damaged: {error}"))?;
            }
            Ok(Outcome::Wrong)
        }
        Err(error) => Err(error).with_context(|| format!("cannot check {}", args.journal.display())),
    }
}

fn check_all(dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<CheckReport, JournalError> {
    Journal::open(dir)?.check(progress)
}

fn tell_torn(torn: &TornTail) {
    say(&format!(
        "note: {} ends in {} bytes from byte {} on that were never acknowledged; the next writer cuts them off",
        torn.segment, torn.bytes, torn.offset
    ));
}

fn text(record: &Record) -> String {
    let Dumped { lsn, time, ordered, kind, detail } = Dumped::from(record);
    let detail = match detail {
        Detail::Range { start, end } => format!("{start}..{end} ({} bytes)", end - start),
        Detail::Mark { mark, class, label: "" } => format!("{mark} {class}"),
        Detail::Mark { mark, class, label } => format!("{mark} {class} \"{}\"", label.escape_debug()),
        Detail::Changes(FileChanges { process, path, ops, .. }) => {
            format!("{} by {} ({})  {ops}", path.escape_ascii(), process.name.escape_ascii(), process.pid)
        }
        Detail::Tree { change, node, name: Some(name), .. } => format!("{change} {node} {name}"),
        Detail::Tree { change, node, start, end, .. } => format!("{change} {node} {start}..{end}"),
        Detail::Unknown(OriginUnknown { from, to, why, .. }) => {
            format!("not known from {from} to {to}: {why}")
        }
        Detail::Places(FilePlaces { file, extents, .. }) => {
            format!("inode {} has {} extents", file.inode, extents.len())
        }
        Detail::Burst(FileBurst { process, began, rewritten, removed, .. }) => {
            let name = process.name.escape_ascii();
            format!(
                "burst by {name} ({}) since {began}: {rewritten} rewritten, {removed} removed",
                process.pid
            )
        }
    };
    let ordered = if ordered { " ordered" } else { "" };
    format!("{lsn} {time} {kind} {detail}{ordered}")
}

impl<'a> From<&'a Record> for Dumped<'a> {
    fn from(record: &'a Record) -> Dumped<'a> {
        let (kind, detail) = match &record.body {
            RecordBody::Data { start, bytes } => {
                ("data", Detail::Range { start: *start, end: start + bytes.len() as u64 })
            }
            RecordBody::Zero(range) => ("zero", Detail::Range { start: range.start, end: range.end }),
            RecordBody::Discard(range) => ("discard", Detail::Range { start: range.start, end: range.end }),
            RecordBody::Gap(range) => ("gap", Detail::Range { start: range.start, end: range.end }),
            RecordBody::Origin(Origin::Changes(changes)) => ("origin", Detail::Changes(changes)),
            RecordBody::Origin(Origin::Unknown(unknown)) => ("origin", Detail::Unknown(unknown)),
            RecordBody::Origin(Origin::Burst(burst)) => ("origin", Detail::Burst(burst)),
            RecordBody::Origin(Origin::Places(places)) => ("origin", Detail::Places(places)),
            RecordBody::Tree(change) => ("tree", tree_detail(change)),
            RecordBody::Mark(mark) => {
                ("mark", Detail::Mark { mark: mark.id, class: mark.class, label: &mark.label })
            }
        };
        Dumped { lsn: record.lsn, time: record.time, ordered: record.ordered, kind, detail }
    }
}

fn tree_detail(change: &TreeChange) -> Detail<'static> {
    let (start, end) = match change {
        TreeChange::Data { start, bytes, .. } => (*start, start + bytes.len() as u64),
        TreeChange::Hole { range, .. } => (range.start, range.end),
        _ => (0, 0),
    };
    let name = match change {
        TreeChange::Link { name, node, .. } => Some(format!("{} to {node}", name.escape_ascii())),
        TreeChange::Unlink { name, .. } => Some(name.escape_ascii().to_string()),
        _ => None,
    };
    Detail::Tree { change: change.name(), node: change.node(), name, start, end }
}

impl<'a> From<&'a SegmentInfo> for Segment<'a> {
    fn from(segment: &'a SegmentInfo) -> Segment<'a> {
        let SegmentInfo { name, first_lsn, last_lsn, bytes, sealed, recovered, marks, .. } = segment;
        Segment {
            name,
            first_lsn: *first_lsn,
            last_lsn: *last_lsn,
            bytes: *bytes,
            sealed: *sealed,
            recovered: *recovered,
            marks: *marks,
        }
    }
}

impl<'a> From<&'a TornTail> for Torn<'a> {
    fn from(torn: &'a TornTail) -> Torn<'a> {
        Torn { segment: &torn.segment, offset: torn.offset, bytes: torn.bytes }
    }
}

impl<'a> From<&'a CheckReport> for Found<'a> {
    fn from(report: &'a CheckReport) -> Found<'a> {
        Found {
            folds: report.folds,
            segments: report.segments,
            bytes: report.bytes,
            records: report.records,
            marks: report.marks,
            last_lsn: report.last_lsn,
            torn_tail: report.torn_tail.as_ref().map(Torn::from),
        }
    }
}
