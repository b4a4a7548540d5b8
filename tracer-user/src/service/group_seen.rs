//! A group of the service as it is seen from outside: `status`, the page, the metrics.

use std::collections::HashMap;

use serde::Serialize;

use crate::model::Timestamp;
use crate::service::reading::Problem;
use crate::service::run_dir::volume_name;
use crate::service::units::{GroupStatus, UnitStatus};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupSeen {
    #[serde(flatten)]
    pub status: GroupStatus,
    pub problems: Vec<Problem>,
}

impl GroupSeen {
    pub fn new(status: GroupStatus) -> GroupSeen {
        let mut problems = Vec::new();
        if let Some(why) = &status.last_mark_error {
            problems.push(Problem::urgent(
                format!("the last mark was not made: {why}"),
                "it is tried again by itself; marks that volumes have of their own go on",
            ));
        }
        if let Some(why) = status.last_mark.as_ref().and_then(|mark| mark.hook_error.as_ref()) {
            problems.push(Problem::note(
                format!("the last mark is not of class app: {why}"),
                "mend the command; the next mark runs it again",
            ));
        }
        GroupSeen { status, problems }
    }

    pub fn is_well(&self) -> bool {
        self.status.last_mark_error.is_none()
    }

    /// Classes of the last mark in the members: one word if they are all the same, else each in the order of the members.
    pub fn classes(&self) -> String {
        let members = self.status.last_mark.iter().flat_map(|mark| &mark.members);
        let mut classes: Vec<&str> = members.map(|member| member.class.as_str()).collect();
        if classes.iter().all(|class| *class == classes[0]) {
            classes.truncate(1);
        }
        classes.join("+")
    }

    /// In ns: since the last mark.
    pub fn age(&self, now: Timestamp) -> Option<u64> {
        self.status.last_mark.as_ref().map(|mark| now.0.saturating_sub(mark.time.0))
    }
}

/// In which group each volume of the service is, by the name that [`volume_name`] makes.
pub fn groups_of_volumes(units: &[UnitStatus], groups: &[GroupStatus]) -> HashMap<String, String> {
    let of = |unit: &UnitStatus| {
        let group = groups.iter().find(|group| group.volumes.contains(&unit.name))?;
        Some((volume_name(&unit.source), group.name.clone()))
    };
    units.iter().filter_map(of).collect()
}
