//! `status` of the service's groups.

use serde_json::Value;

use crate::cli::status_table::{printable, since};
use crate::model::Timestamp;
use crate::service::GroupStatus;

/// Below the table of volumes.
pub(super) fn lines(groups: &[GroupStatus], now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    for GroupStatus { name, volumes, last_mark, last_mark_error } in groups {
        let mark = match last_mark {
            Some(mark) => {
                let class = mark.members.iter().map(|member| member.class.as_str()).collect::<Vec<_>>();
                let frozen = mark.frozen_ms.map(|ms| format!(", frozen {ms} ms")).unwrap_or_default();
                format!("{} {}{frozen}, {} ago", mark.name, class.join("+"), since(mark.time, now))
            }
            None => "no mark yet".into(),
        };
        lines.push(printable(&format!("group {name} ({}): {mark}", volumes.join(", "))));
        if let Some(why) = last_mark_error {
            lines.push(printable(&format!("! group {name}: the last mark was not made: {why}")));
        }
        if let Some(why) = last_mark.as_ref().and_then(|mark| mark.hook_error.as_ref()) {
            lines.push(printable(&format!("- group {name}: the last mark is not of class app: {why}")));
        }
    }
    lines
}

/// In `status --json`.
pub(super) fn objects(groups: &[GroupStatus]) -> serde_json::Result<Vec<Value>> {
    let object = |group: &GroupStatus| {
        let mut value = serde_json::to_value(group)?;
        value["kind"] = "group".into();
        Ok(value)
    };
    groups.iter().map(object).collect()
}
