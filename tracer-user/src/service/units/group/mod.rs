//! Consistency groups: several volumes whose marks are of one instant. `coordinate` makes such a mark; `schedule` says when.

mod coordinate;
mod schedule;
mod together;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(super) use coordinate::Member;
pub(super) use schedule::{Groups, Marked};
pub use together::together;

use crate::collect::Hooks;
use crate::model::Timestamp;

/// What a configuration says of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    /// Names of volumes; frozen in this order.
    pub volumes: Vec<String>,
    pub mark_every: Option<Duration>,
    pub freeze_timeout: Duration,
    /// Run once around a mark of all.
    pub hooks: Option<Hooks>,
}

/// A mark that all members have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMark {
    /// The label of it in the journal of each.
    pub name: String,
    /// When all stood still.
    pub time: Timestamp,
    /// From the first freeze that was asked for to the last thaw that was confirmed; `None` if nothing was mounted.
    pub frozen_ms: Option<u64>,
    /// Why it is not of class app although it should be.
    pub hook_error: Option<String>,
    pub members: Vec<MemberMark>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberMark {
    pub volume: String,
    /// Of the mark there.
    pub id: u64,
    pub class: String,
}

/// For `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    pub name: String,
    pub volumes: Vec<String>,
    /// How often a mark is due; `None`: only by hand.
    #[serde(default)]
    pub mark_every_ms: Option<u64>,
    /// Since the service was started.
    pub last_mark: Option<GroupMark>,
    /// Why the last one that was tried was not made.
    pub last_mark_error: Option<String>,
}
