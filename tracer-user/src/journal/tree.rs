//! The body of a Tree record: see docs/FORMAT.md. Pure.

use crate::journal::format::{FormatError, u32_at, u64_at};
use crate::journal::record::{DATA_LEN_MAX, VOLUME_END_MAX};
use crate::model::{Attributes, ByteRange, FileTime, NodeId, SourceInode, TreeChange};

const HEAD_LEN: usize = 16;
const INODE_LEN: usize = 96;
const XATTR_LEN: usize = 8;
const INODE: u8 = 1;
const DATA: u8 = 2;
const HOLE: u8 = 3;
const LINK: u8 = 4;
const UNLINK: u8 = 5;
/// Most bytes of a name.
const NAME_LEN_MAX: usize = 255;
/// Most bytes of what a symbolic link says, and of a handle.
const TARGET_LEN_MAX: usize = 4096;
const HANDLE_LEN_MAX: usize = 132;
const XATTR_NAME_LEN_MAX: usize = 255;
const NANOS: u32 = 1_000_000_000;

/// Bytes of the body.
///
/// # Errors
/// Says what is wrong when the format has no place for it.
pub fn encoded_len(change: &TreeChange) -> Result<usize, String> {
    let len = match change {
        TreeChange::Inode { attributes, source, .. } => {
            if attributes.link_target.len() > TARGET_LEN_MAX || source.handle.len() > HANDLE_LEN_MAX {
                return Err("a symbolic link or a file handle that is too long".into());
            }
            if attributes.size > VOLUME_END_MAX {
                return Err(format!("a file of {} bytes; files end at 2^63", attributes.size));
            }
            let times = [attributes.accessed, attributes.modified, source.changed];
            if times.iter().any(|time| time.nanos >= NANOS) {
                return Err("a time of a billion nanoseconds".into());
            }
            let mut len = INODE_LEN + attributes.link_target.len() + source.handle.len();
            for (name, value) in &attributes.xattrs {
                if name.is_empty() || name.len() > XATTR_NAME_LEN_MAX {
                    return Err("an extended attribute whose name is empty or too long".into());
                }
                len += XATTR_LEN + name.len() + value.len();
            }
            len
        }
        TreeChange::Data { start, bytes, .. } if *start > VOLUME_END_MAX - bytes.len() as u64 => {
            return Err(format!("data at byte {start}; files end at 2^63"));
        }
        TreeChange::Data { bytes, .. } => bytes.len(),
        TreeChange::Hole { range, .. } if range.start > range.end || range.end > VOLUME_END_MAX => {
            return Err(format!("hole {range}; ranges run forward and files end at 2^63"));
        }
        TreeChange::Hole { .. } => 0,
        TreeChange::Link { name, .. } | TreeChange::Unlink { name, .. } => {
            if !is_name(name) {
                return Err(format!("the name {}", name.escape_ascii()));
            }
            name.len() + if matches!(change, TreeChange::Link { .. }) { 8 } else { 0 }
        }
    };
    if len > DATA_LEN_MAX {
        return Err(format!("{len} bytes of one file at once; 4 MiB is the most"));
    }
    Ok(HEAD_LEN + len)
}

/// What a directory can hold.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= NAME_LEN_MAX
        && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

/// Offset and length of the record's header.
pub fn range(change: &TreeChange) -> ByteRange {
    match change {
        TreeChange::Data { start, bytes, .. } => ByteRange::with_len(*start, bytes.len() as u64),
        TreeChange::Hole { range, .. } => *range,
        _ => ByteRange { start: 0, end: 0 },
    }
}

/// Appends what [`encoded_len`] accepted.
pub fn encode(out: &mut Vec<u8>, change: &TreeChange) {
    let kind = match change {
        TreeChange::Inode { .. } => INODE,
        TreeChange::Data { .. } => DATA,
        TreeChange::Hole { .. } => HOLE,
        TreeChange::Link { .. } => LINK,
        TreeChange::Unlink { .. } => UNLINK,
    };
    out.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
    out.extend(change.node().0.to_le_bytes());
    match change {
        TreeChange::Inode { attributes, source, .. } => encode_inode(out, attributes, source),
        TreeChange::Data { bytes, .. } => out.extend_from_slice(bytes),
        TreeChange::Hole { .. } => {}
        TreeChange::Link { name, node, .. } => {
            out.extend(node.0.to_le_bytes());
            out.extend_from_slice(name);
        }
        TreeChange::Unlink { name, .. } => out.extend_from_slice(name),
    }
}

fn encode_inode(out: &mut Vec<u8>, attributes: &Attributes, source: &SourceInode) {
    let short = |len: usize| u16::try_from(len).expect("encoded_len caps it").to_le_bytes();
    let Attributes { mode, uid, gid, rdev, size, accessed, modified, link_target, xattrs } = attributes;
    let count = u32::try_from(xattrs.len()).expect("encoded_len caps them");
    out.extend([*mode, *uid, *gid, count].into_iter().flat_map(u32::to_le_bytes));
    out.extend([*rdev, *size, source.number].into_iter().flat_map(u64::to_le_bytes));
    for time in [accessed, modified, &source.changed] {
        out.extend(time.seconds.to_le_bytes());
        out.extend(time.nanos.to_le_bytes());
        out.extend([0; 4]);
    }
    out.extend([source.handle.len(), link_target.len()].into_iter().flat_map(short));
    out.extend([0; 4]);
    out.extend_from_slice(&source.handle);
    out.extend_from_slice(link_target);
    for (name, value) in xattrs {
        out.extend(short(name.len()));
        out.extend([0; 2]);
        out.extend(u32::try_from(value.len()).expect("encoded_len caps it").to_le_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(value);
    }
}

/// The frame's checksum was right, so nothing here is torn.
pub fn decode(range: ByteRange, body: &[u8]) -> Result<TreeChange, FormatError> {
    let Some((head, rest)) = body.split_first_chunk::<HEAD_LEN>() else {
        return Err(FormatError::Malformed("an incomplete change of a tree"));
    };
    if head[1..8] != [0; 7] {
        return Err(FormatError::Unknown("something in the reserved bytes of a change of a tree".into()));
    }
    let node = NodeId(u64_at(head, 8));
    if !matches!(head[0], DATA | HOLE) && (range.start, range.end) != (0, 0) {
        return Err(FormatError::Malformed("a change of a tree with a range it can't have"));
    }
    let named = |name: &[u8]| {
        let bad = FormatError::Malformed("a name that no directory can hold");
        if is_name(name) { Ok(name.to_vec()) } else { Err(bad) }
    };
    match head[0] {
        INODE => decode_inode(node, rest),
        DATA if range.len() == rest.len() as u64 && rest.len() <= DATA_LEN_MAX => {
            Ok(TreeChange::Data { node, start: range.start, bytes: rest.to_vec() })
        }
        HOLE if rest.is_empty() => Ok(TreeChange::Hole { node, range }),
        LINK => match rest.split_first_chunk::<8>() {
            Some((child, name)) => {
                Ok(TreeChange::Link { dir: node, name: named(name)?, node: NodeId(u64_at(child, 0)) })
            }
            None => Err(FormatError::Malformed("an incomplete name")),
        },
        UNLINK => Ok(TreeChange::Unlink { dir: node, name: named(rest)? }),
        DATA | HOLE => Err(FormatError::Malformed("a change of a file whose lengths contradict each other")),
        kind => Err(FormatError::Unknown(format!("a change of a tree of kind {kind}"))),
    }
}

fn decode_inode(node: NodeId, rest: &[u8]) -> Result<TreeChange, FormatError> {
    let bad = || FormatError::Malformed("an inode whose lengths contradict each other");
    let Some((fixed, mut rest)) = rest.split_first_chunk::<INODE_LEN>() else { return Err(bad()) };
    let short = |bytes: &[u8], at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let time =
        |at: usize| FileTime { seconds: u64_at(fixed, at).cast_signed(), nanos: u32_at(fixed, at + 8) };
    if [52, 68, 84, 92].iter().any(|at| u32_at(fixed, *at) != 0) {
        return Err(FormatError::Unknown("something in the reserved bytes of an inode".into()));
    }
    let mut take = |len: usize| -> Result<&[u8], FormatError> {
        let (taken, left) = rest.split_at_checked(len).ok_or_else(bad)?;
        rest = left;
        Ok(taken)
    };
    let handle = take(short(fixed, 88))?.to_vec();
    let link_target = take(short(fixed, 90))?.to_vec();
    let mut xattrs = Vec::new();
    for _ in 0..u32_at(fixed, 12) {
        let head = take(XATTR_LEN)?;
        let (name, zero, value) = (short(head, 0), short(head, 2), u32_at(head, 4) as usize);
        if zero != 0 {
            return Err(FormatError::Unknown("something in the reserved bytes of an attribute".into()));
        }
        xattrs.push((take(name)?.to_vec(), take(value)?.to_vec()));
    }
    if !rest.is_empty() {
        return Err(bad());
    }
    let attributes = Attributes {
        mode: u32_at(fixed, 0),
        uid: u32_at(fixed, 4),
        gid: u32_at(fixed, 8),
        rdev: u64_at(fixed, 16),
        size: u64_at(fixed, 24),
        accessed: time(40),
        modified: time(56),
        link_target,
        xattrs,
    };
    let source = SourceInode { number: u64_at(fixed, 32), changed: time(72), handle };
    let change = TreeChange::Inode { node, attributes: Box::new(attributes), source };
    // What can be encoded again: lengths and times within their limits.
    encoded_len(&change).map_err(|_| FormatError::Malformed("an inode that says what can't be"))?;
    Ok(change)
}

#[cfg(test)]
pub(in crate::journal) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_time() -> impl Strategy<Value = FileTime> {
        (any::<i64>(), 0..NANOS).prop_map(|(seconds, nanos)| FileTime { seconds, nanos })
    }

    fn any_name() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 1..=NAME_LEN_MAX).prop_filter("a name", |name| is_name(name))
    }

    fn any_inode() -> impl Strategy<Value = TreeChange> {
        let bytes = |len| prop::collection::vec(any::<u8>(), 0..len);
        let xattrs = prop::collection::vec((prop::collection::vec(any::<u8>(), 1..20), bytes(40)), 0..4);
        let numbers = (any::<u64>(), any::<[u32; 3]>(), any::<u64>(), 0..=VOLUME_END_MAX, any::<u64>());
        let times = [any_time(), any_time(), any_time()];
        (numbers, times, bytes(60), bytes(HANDLE_LEN_MAX), xattrs).prop_map(
            |(
                (node, [mode, uid, gid], rdev, size, number),
                [accessed, modified, changed],
                link_target,
                handle,
                xattrs,
            )| {
                let attributes =
                    Attributes { mode, uid, gid, rdev, size, accessed, modified, link_target, xattrs };
                let source = SourceInode { number, changed, handle };
                TreeChange::Inode { node: NodeId(node), attributes: Box::new(attributes), source }
            },
        )
    }

    pub fn any_change() -> impl Strategy<Value = TreeChange> {
        let start = 0..VOLUME_END_MAX - 4096;
        prop_oneof![
            any_inode(),
            (any::<u64>(), start.clone(), prop::collection::vec(any::<u8>(), 0..300))
                .prop_map(|(node, start, bytes)| TreeChange::Data { node: NodeId(node), start, bytes }),
            (any::<u64>(), start, 0..4096u64).prop_map(|(node, start, len)| TreeChange::Hole {
                node: NodeId(node),
                range: ByteRange::with_len(start, len)
            }),
            (any::<u64>(), any_name(), any::<u64>()).prop_map(|(dir, name, node)| TreeChange::Link {
                dir: NodeId(dir),
                name,
                node: NodeId(node)
            }),
            (any::<u64>(), any_name()).prop_map(|(dir, name)| TreeChange::Unlink { dir: NodeId(dir), name }),
        ]
    }

    proptest! {
        #[test]
        fn a_change_of_a_tree_is_decoded_as_it_was(change in any_change()) {
            let mut body = Vec::new();
            encode(&mut body, &change);
            prop_assert_eq!(body.len(), encoded_len(&change).unwrap());
            prop_assert_eq!(decode(range(&change), &body), Ok(change));
        }

        #[test]
        fn any_bytes_are_a_change_that_encodes_to_them_or_are_refused(
            change in any_change(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in 0..20usize,
        ) {
            let mut body = Vec::new();
            encode(&mut body, &change);
            let at = at.index(body.len());
            body[at] = byte;
            body.truncate(body.len().saturating_sub(cut));
            if let Ok(decoded) = decode(range(&change), &body) {
                let mut again = Vec::new();
                encode(&mut again, &decoded);
                prop_assert_eq!(again, body);
            }
        }
    }
}
