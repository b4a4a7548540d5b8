use crate::model::{ByteRange, Lsn, MarkId, Origin, PointClass, Timestamp, TreeChange};

/// One entry of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub lsn: Lsn,
    pub time: Timestamp,
    /// Content as it was submitted, in the order of submission: a restorable point, if all since the last restorable mark is.
    pub ordered: bool,
    pub body: RecordBody,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordBody {
    /// The volume holds `bytes` from byte `start` on.
    Data { start: u64, bytes: Vec<u8> },
    /// The range reads as zeros.
    Zero(ByteRange),
    /// The range was discarded and reads as zeros: a target may give the space back.
    Discard(ByteRange),
    /// The state up to here is a point one can restore.
    Mark(Mark),
    /// What happened in this range since the last mark is not known in full. The next mark closes it.
    Gap(ByteRange),
    /// Who changed which file. Says nothing about the volume's bytes.
    Origin(Origin),
    /// A change of a directory tree, in the journal of a tree.
    Tree(TreeChange),
}

impl RecordBody {
    /// The bytes of the volume that this record says the content of.
    pub fn content_range(&self) -> Option<ByteRange> {
        match self {
            RecordBody::Data { start, bytes } => Some(ByteRange::with_len(*start, bytes.len() as u64)),
            RecordBody::Zero(range) | RecordBody::Discard(range) => Some(*range),
            RecordBody::Mark(_) | RecordBody::Gap(_) | RecordBody::Origin(_) | RecordBody::Tree(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub id: MarkId,
    pub class: PointClass,
    pub label: String,
}
