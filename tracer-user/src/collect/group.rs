//! A volume's part in the mark of a group. Who coordinates says when to freeze and when to thaw; the volume tells how far it is,
//! and makes the mark only when it is told to the end. If nothing more is said it thaws and makes none.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::Timestamp;

/// What the coordinator says next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "lowercase", deny_unknown_fields)]
pub enum GroupOrder {
    Freeze,
    /// All were frozen at this time.
    Thaw {
        time: Timestamp,
    },
    /// The freeze of each held beyond that time: the mark is one of the group's.
    Commit,
}

/// How far a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "lowercase", deny_unknown_fields)]
pub enum GroupStep {
    /// Little is left to read. `freezes`: it has file systems that are mounted.
    Prepared { freezes: bool },
    /// What is on it stands still from now on; without a file system as long as nobody writes.
    Frozen,
    /// All of that is handed to the journal.
    Drained,
    /// It stood still until it was told to thaw.
    Held,
}

pub struct GroupPart {
    pub orders: Receiver<GroupOrder>,
    /// Doesn't wait. Nobody may be listening any more: then the orders end, too.
    pub tell: Box<dyn FnMut(GroupStep) + Send>,
    /// What writes was brought to rest.
    pub at_rest: bool,
    pub freeze_timeout: Duration,
}

/// Nobody coordinates any more.
pub(super) struct Abandoned;

impl GroupPart {
    pub(super) fn order(&self) -> Result<Option<GroupOrder>, Abandoned> {
        match self.orders.try_recv() {
            Ok(order) => Ok(Some(order)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Abandoned),
        }
    }
}
