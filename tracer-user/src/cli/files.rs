use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;

use crate::cli::plan::tell_before;
use crate::cli::{Outcome, Output, say, tree};
use crate::files::{Files, FilesAt, Listed, Means, open_files};
use crate::model::{FileTime, NodeKind, PointTarget};

/// List the files of a volume as they were at a point, straight from the journal
///
/// An ext4 (ext3, ext2) is read without rebuilding or mounting anything, by whoever may read the journal. Any other file system is
/// rebuilt in a scratch image and mounted read-only, as root.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Points: as of `afterwrite replay`

A line: type and permissions, owner, group, size, time of the last change of the content, path with what is not printable escaped.

Examples:
  afterwrite files /var/lib/afterwrite/home /alice
  afterwrite files /var/lib/afterwrite/home --to before-process:rm --recursive --json")]
pub(super) struct Args {
    #[command(flatten)]
    at: AtArgs,
    /// A directory, or a file, from the file system's root
    #[arg(default_value = "/")]
    path: OsString,
    /// All below the directory, too
    #[arg(long)]
    recursive: bool,
    /// Take a fuzzy point
    #[arg(long)]
    force: bool,
    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// What files to look at.
#[derive(Debug, clap::Args)]
pub(super) struct AtArgs {
    /// Directory of the journal
    journal: PathBuf,
    /// The point to look at
    #[arg(long, value_name = "POINT", default_value = "latest")]
    to: PointTarget,
    /// Of a volume with partitions, the one to look at
    #[arg(long, value_name = "NUMBER")]
    partition: Option<u32>,
    /// Let the kernel read the file system, from a scratch image
    #[arg(long)]
    mount: bool,
    /// Where that image is made; it takes as much room as the volume holds
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    scratch: PathBuf,
}

impl AtArgs {
    /// Opens them, and says how they are read.
    pub(super) fn open(&self, force: bool) -> anyhow::Result<Files> {
        let AtArgs { journal, to, partition, mount, scratch } = self;
        if tree::is_tree(journal) {
            anyhow::bail!(
                "{} is the journal of a directory tree: `afterwrite replay` a point of it to a directory",
                journal.display()
            );
        }
        let at = FilesAt {
            journal: journal.clone(),
            to: to.clone(),
            force,
            partition: *partition,
            mount: *mount,
            scratch: scratch.clone(),
        };
        let files =
            open_files(&at).with_context(|| format!("cannot look at the files in {}", journal.display()))?;
        let point = &files.point;
        match &files.means {
            Means::Journal { file_system, recovered_blocks: 0 } => {
                say(&format!("{point}: {file_system}, read from the journal"));
            }
            Means::Journal { file_system, recovered_blocks } => say(&format!(
                "{point}: {file_system}, read from the journal, and {recovered_blocks} blocks from its own"
            )),
            Means::Mount { file_system } => {
                say(&format!(
                    "{point}: {file_system}, rebuilt in {} and mounted read-only",
                    scratch.display()
                ));
            }
        }
        Ok(files)
    }
}

/// `--json`: a line for each: `path` (escaped), `kind` (file, dir, symlink, special), `mode` (octal), `uid`, `gid`, `size`, `modified`
/// (`seconds`, `nanos`), `inode`, `links`, and of a symbolic link `target`.
#[derive(Serialize)]
struct Line {
    path: String,
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    modified: Modified,
    inode: u64,
    links: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

#[derive(Serialize)]
struct Modified {
    seconds: i64,
    nanos: u32,
}

pub(super) fn run(args: &Args, out: &mut Output) -> anyhow::Result<Outcome> {
    let mut files = args.at.open(args.force)?;
    if !args.json {
        tell_before(files.before.as_ref(), out)?;
    }
    let mut printed = Ok(());
    let listed = files.list(args.path.as_bytes(), args.recursive, &mut |listed| {
        printed = if args.json { out.json(&line_of(&listed)) } else { out.line(row_of(&listed)) };
        printed.is_ok() && !out.is_closed()
    });
    printed?;
    listed.with_context(|| format!("cannot list {}", args.path.as_bytes().escape_ascii()))?;
    Ok(Outcome::Done)
}

fn line_of(Listed { path, node }: &Listed) -> Line {
    let attributes = &node.attributes;
    let kind = attributes.kind();
    let FileTime { seconds, nanos } = attributes.modified;
    Line {
        path: path.escape_ascii().to_string(),
        kind: match kind {
            NodeKind::File => "file",
            NodeKind::Dir => "dir",
            NodeKind::Symlink => "symlink",
            NodeKind::Special => "special",
        },
        mode: format!("{:04o}", attributes.mode & 0o7777),
        uid: attributes.uid,
        gid: attributes.gid,
        size: attributes.size,
        modified: Modified { seconds, nanos },
        inode: node.inode,
        links: node.links,
        target: (kind == NodeKind::Symlink).then(|| attributes.link_target.escape_ascii().to_string()),
    }
}

fn row_of(Listed { path, node }: &Listed) -> String {
    let attributes = &node.attributes;
    let kind = match attributes.mode & 0o170_000 {
        0o100_000 => '-',
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o010_000 => 'p',
        0o020_000 => 'c',
        0o060_000 => 'b',
        _ => 's',
    };
    let FileTime { seconds, nanos } = attributes.modified;
    let nanos = i32::try_from(nanos).unwrap_or(0);
    let modified = jiff::Timestamp::new(seconds, nanos).map_or_else(
        |_| format!("{seconds} s"),
        |time| time.round(jiff::Unit::Second).unwrap_or(time).to_string(),
    );
    let target = match attributes.kind() {
        NodeKind::Symlink => format!(" -> {}", attributes.link_target.escape_ascii()),
        _ => String::new(),
    };
    let (uid, gid, size, mode) = (attributes.uid, attributes.gid, attributes.size, attributes.mode & 0o7777);
    format!("{kind}{mode:04o}  {uid:>5} {gid:>5}  {size:>12}  {modified:20}  {}{target}", path.escape_ascii())
}
