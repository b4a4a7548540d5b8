//! From events to records. Events say that and where something changed, never what: names, attributes and content are read
//! from the source afterwards, by inode, and what differs from the catalog is journaled. So nothing depends on the order of
//! events, nor on what a path means by now, and an event too many does no harm.

mod contents;
mod links;
mod marks;
mod names;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::io::clock::realtime;
use crate::journal::{JournalError, Writer};
use crate::model::{ByteRange, FileOp, NodeId, RecordBody, Timestamp, TreeChange};
use crate::tree::catalog::Catalog;
use crate::tree::collector::links::Links;
use crate::tree::event::{Change, Event, World};
use crate::tree::pending::{END, Name, Pending};
use crate::tree::source::Source;

pub use marks::MarkMade;

const EVENTS_MAX: usize = 4096;
/// Read in one turn, so that the ring is emptied in between.
const TURN_BYTES: u64 = 16 << 20;
const TURN_NAMES: usize = 256;
const HEAR_EVERY: Duration = Duration::from_millis(5);
/// More is not remembered one by one: then all is looked at again.
const PENDING_MAX: usize = 1 << 20;
/// So long after changes were lost all is looked at again: by then most that were under way are over.
const RESCAN_AFTER: Duration = Duration::from_secs(2);
const RESCAN_EVERY: Duration = Duration::from_secs(30);
/// By then all are. Until then a mark takes a look at all while the file system is frozen.
const CALLS_OVER: Duration = Duration::from_secs(60);
const COLLAPSE_OR_INSERT: u32 = 0x28;
const PAGE_MASK: u64 = 4095;

#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("the journal can't be written")]
    Journal(#[from] JournalError),
    #[error("the directory {path} can't be read any more")]
    Root {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} is another directory than the one that this journal is the history of. Name that one, or a new journal"
    )]
    AnotherTree { path: String },
}

/// A directory whose names are gone through.
struct Scan {
    dir: NodeId,
    /// Those left; none before it is its turn.
    names: Vec<Vec<u8>>,
    depth: Depth,
}

/// What is looked at of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    Names,
    /// All below it, too.
    Below,
    /// That, and whether files are as they are known.
    Contents,
}

/// What `status` shows of it.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct CollectorStatus {
    pub inodes: u64,
    pub pending: u64,
    pub pending_bytes: u64,
    pub scanning: bool,
    /// Changes were lost a while ago: each mark looks at all.
    pub lost: bool,
    /// Times that all was looked at again, as changes were lost.
    pub rescans: u64,
    /// Changes nobody was told of.
    pub missing: u64,
    pub seen: u64,
    pub data_bytes: u64,
    pub records: u64,
    /// Inodes that could not be read, and why the last one.
    pub unreadable: u64,
    pub unreadable_why: Option<String>,
}

pub struct Collector<W: World> {
    world: W,
    source: Source,
    writer: Writer,
    catalog: Catalog,
    pending: Pending,
    scans: VecDeque<Scan>,
    /// Until all was looked at once.
    incomplete: bool,
    /// When changes were lost, until all was looked at that they can have come to: no time of change proves anything.
    lost: Option<Instant>,
    rescan_at: Option<Instant>,
    rescanned: Option<Instant>,
    /// The file system is frozen.
    frozen: bool,
    /// Names come as paths: what moves is looked at whole.
    by_path: bool,
    links: Links,
    /// When a file's length was last changed by its path.
    cut_by_path: Option<Instant>,
    /// Written back before it is read: a store through a mapping is told only of pages that were clean.
    always_clean: bool,
    missing: u64,
    /// All that began before this was heard of.
    heard_until: Timestamp,
    heard_at: Instant,
    unreadable: BTreeSet<u64>,
    /// Inodes whose time of change proves nothing yet.
    unsettled: BTreeSet<NodeId>,
    status: CollectorStatus,
}

impl<W: World> Collector<W> {
    /// `catalog` is what the journal says. Probes are at work already.
    pub fn new(
        mut world: W,
        source: Source,
        writer: Writer,
        catalog: Catalog,
        always_clean: bool,
    ) -> Result<Collector<W>, TreeError> {
        let path = source.path().display().to_string();
        let root = source.root().map_err(|source| TreeError::Root { path: path.clone(), source })?;
        let known = catalog.node(NodeId::ROOT);
        if known.is_some_and(|known| known.source.handle != root.handle) {
            return Err(TreeError::AnotherTree { path });
        }
        let resumed = known.is_some();
        let missing = world.counters().missing;
        let mut collector = Collector {
            world,
            source,
            writer,
            catalog,
            pending: Pending::default(),
            scans: VecDeque::new(),
            incomplete: true,
            lost: None,
            rescan_at: None,
            rescanned: None,
            frozen: false,
            by_path: false,
            links: Links::default(),
            cut_by_path: None,
            always_clean,
            missing,
            heard_until: Timestamp(0),
            heard_at: Instant::now(),
            unreadable: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            status: CollectorStatus::default(),
        };
        if resumed {
            collector.append(RecordBody::Gap(ByteRange { start: 0, end: END }))?;
            collector.refresh(NodeId::ROOT, true)?;
        } else {
            let attributes = root.attributes().map_err(|source| TreeError::Root { path, source })?;
            collector.emit(TreeChange::Inode {
                node: NodeId::ROOT,
                attributes: Box::new(attributes),
                source: root.inode(false),
            })?;
        }
        collector.scan(NodeId::ROOT, Depth::Contents);
        Ok(collector)
    }

    /// One turn: takes what happened and does a part of what is due. Says whether it did anything.
    pub fn turn(&mut self) -> Result<bool, TreeError> {
        let heard = self.hear()?;
        if self.rescan_at.is_some_and(|at| at <= Instant::now()) {
            self.rescan();
        }
        let done = self.look(false)? | self.go_through()?;
        if self.scans.is_empty() && self.pending.is_quiet() {
            self.completes();
        }
        self.writer.tick(Instant::now())?;
        Ok(heard > 0 || done)
    }

    pub fn writer(&mut self) -> &mut Writer {
        &mut self.writer
    }

    pub fn world(&mut self) -> &mut W {
        &mut self.world
    }

    /// Looks at all again, from the beginning; once more when the calls are over whose changes were lost.
    fn rescan(&mut self) {
        let now = Instant::now();
        self.rescan_at = self.lost.map(|lost| lost + CALLS_OVER).filter(|over| *over > now);
        self.rescanned = Some(now);
        self.status.rescans += 1;
        self.scans.clear();
        self.scan(NodeId::ROOT, Depth::Contents);
    }

    /// All was looked at.
    fn completes(&mut self) {
        self.incomplete = false;
        if self.rescan_at.is_none() {
            self.lost = None;
        }
    }

    /// What the world is left to when this ends.
    pub fn into_world(self) -> W {
        self.world
    }

    /// All was read once.
    pub fn is_complete(&self) -> bool {
        !self.incomplete
    }

    pub fn status(&mut self) -> CollectorStatus {
        let counters = self.world.counters();
        CollectorStatus {
            inodes: self.catalog.count() as u64,
            pending: self.pending.count() as u64,
            pending_bytes: self.pending.bytes(),
            scanning: !self.scans.is_empty(),
            lost: self.lost.is_some(),
            missing: counters.missing,
            seen: counters.seen,
            unreadable: self.unreadable.len() as u64,
            ..self.status.clone()
        }
    }

    /// While much is read, so that the ring does not fill up. To ask each probe what it missed takes longer than to read a
    /// small file.
    fn hear_meanwhile(&mut self) -> Result<(), TreeError> {
        match self.heard_at.elapsed() < HEAR_EVERY {
            true => Ok(()),
            false => self.hear().map(drop),
        }
    }

    /// Takes what happened; says how much that was.
    fn hear(&mut self) -> Result<usize, TreeError> {
        let before = realtime();
        self.heard_at = Instant::now();
        let events = self.world.events(EVENTS_MAX);
        let count = events.len();
        let now = Instant::now();
        let mut lost = false;
        for event in events {
            match event {
                Event::Change(change) => {
                    lost |= self.is_misled(&change, now);
                    self.hear_of(change, now);
                }
                Event::End { thread } => self.pending.ends(thread),
                Event::NotUnderstood => lost = true,
            }
        }
        let missing = self.world.counters().missing;
        if missing > self.missing || lost || self.pending.count() > PENDING_MAX {
            self.missing = missing;
            self.lose(now)?;
        }
        if count < EVENTS_MAX {
            self.heard_until = before;
        }
        Ok(count)
    }

    /// It is not known what all has changed.
    fn lose(&mut self, now: Instant) -> Result<(), TreeError> {
        if self.lost.is_none() {
            log::warn!("changes of the tree were lost: all of it is looked at again");
            self.append(RecordBody::Gap(ByteRange { start: 0, end: END }))?;
        }
        if self.pending.count() > PENDING_MAX {
            self.pending.clear();
        }
        self.lost = Some(now);
        let soon = now + RESCAN_AFTER;
        self.rescan_at = Some(self.rescanned.map_or(soon, |last| soon.max(last + RESCAN_EVERY)));
        Ok(())
    }

    fn hear_of(&mut self, change: Change, now: Instant) {
        let call = Some(self.pending.begins(change.thread, now));
        let Change { op, detail, inode, offset, length, names, .. } = change;
        let end = length.map_or(END, |length| offset.saturating_add(length).min(END));
        let known = self.catalog.of_inode(inode).and_then(|node| self.catalog.node(node));
        let range = match op {
            // Where it begins is a guess where calls are seen as they come, so all from there on.
            FileOp::Write if self.always_clean && known.is_none_or(|node| end > node.attributes.size) => {
                Some((offset, END))
            }
            FileOp::Clone if length == Some(0) => Some((offset, END)),
            FileOp::Fallocate if detail & COLLAPSE_OR_INSERT != 0 => Some((offset, END)),
            FileOp::Truncate => Some((offset, END)),
            FileOp::Ioctl => Some((0, END)),
            _ if op.changes_content() => Some((offset, end)),
            _ => None,
        };
        let range = range.filter(|(start, end)| start < end).map(|(start, end)| match self.always_clean {
            // Whatever else changes in a page that is not written back yet is not told.
            true => ByteRange {
                start: start & !PAGE_MASK,
                end: end.saturating_add(PAGE_MASK).min(END) & !PAGE_MASK,
            },
            false => ByteRange { start, end },
        });
        let mapped = matches!(op, FileOp::Mmap | FileOp::Dirty);
        if inode != 0 {
            self.pending.content(inode, range, mapped, call, now);
        }
        for name in names {
            if let Name::Path(path) = &name {
                self.by_path = true;
                // What only its attributes are new of is looked at by its name.
                if range.is_some() {
                    self.cut_by_path = Some(now);
                    if let Some(found) = self.found_at(path) {
                        self.pending.content(found.number, range, mapped, call, now);
                    }
                }
            }
            self.pending.name(name, call, now);
        }
    }

    fn scan(&mut self, dir: NodeId, depth: Depth) {
        self.scans.push_back(Scan { dir, names: Vec::new(), depth });
    }

    fn emit(&mut self, change: TreeChange) -> Result<(), TreeError> {
        if self.by_path {
            self.note_links_gone(&change);
        }
        self.catalog.apply(&change);
        self.note_unsettled(&change);
        if let TreeChange::Data { bytes, .. } = &change {
            self.status.data_bytes += bytes.len() as u64;
        }
        self.append(RecordBody::Tree(change))
    }

    fn append(&mut self, body: RecordBody) -> Result<(), TreeError> {
        self.status.records += 1;
        self.writer.append(realtime(), body)?;
        Ok(())
    }

    /// An inode could not be read: no mark is true until it can be, or is gone.
    fn fails(&mut self, inode: u64, error: &io::Error) {
        self.unreadable.insert(inode);
        self.status.unreadable_why = Some(error.to_string());
        log::warn!("an inode of the tree ({inode}) can't be read: {error}");
        self.pending.content(inode, Some(ByteRange { start: 0, end: END }), true, None, Instant::now());
    }

    /// The inode, opened without access to its content.
    fn open(&self, node: NodeId, flags: OFlags) -> io::Result<Option<std::fs::File>> {
        match self.catalog.node(node) {
            Some(node) => self.source.open_inode(&node.source.handle, flags),
            None => Ok(None),
        }
    }
}
