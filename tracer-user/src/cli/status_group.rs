//! `status` of the service's groups.

use std::collections::HashMap;

use serde_json::Value;

use crate::cli::status_table::{age, printable};
use crate::model::Timestamp;
use crate::service::{GroupSeen, GroupStatus, volume_name};

/// Below the table of volumes.
pub(super) fn lines(groups: &[GroupSeen], now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    for group in groups {
        let GroupStatus { name, volumes, .. } = &group.status;
        let last = match &group.status.last_mark {
            Some(mark) => format!("{} {}", mark.name, last_mark(group, now)),
            None => last_mark(group, now),
        };
        lines.push(printable(&format!("group {name} ({}): {last}", volumes.join(", "))));
        for problem in &group.problems {
            let sign = if problem.urgent { "!" } else { "-" };
            lines.push(printable(&format!("{sign} group {name}: {}", problem.what)));
            lines.push(format!("    {}", problem.next_step));
        }
    }
    lines
}

/// `fs, frozen 31 ms, 12 s ago`.
pub(super) fn last_mark(group: &GroupSeen, now: Timestamp) -> String {
    let (Some(mark), Some(ns)) = (&group.status.last_mark, group.age(now)) else {
        return "no mark since the service was started".into();
    };
    let frozen = mark.frozen_ms.map(|ms| format!(", frozen {ms} ms")).unwrap_or_default();
    format!("{}{frozen}, {} ago", group.classes(), age(ns / 1_000_000_000))
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

/// Says of a volume's status in which group it is, if in any.
pub(super) fn add(status: &mut Value, of_volumes: &HashMap<String, String>) {
    let volume = status["source"].as_str().map(volume_name);
    status["group"] = volume.and_then(|volume| of_volumes.get(&volume).cloned()).into();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::samples;

    #[test]
    fn a_group_is_a_line_and_what_is_wrong_with_it_another() {
        let told = lines(&samples::groups(), samples::now());
        let expected = [
            "group ledger (data4, data5): group:ledger/2027-01-15T07:20:00.000000Z fs+crash, 40 min ago",
            "! group ledger: the last mark was not made: data5 took too long",
            "    it is tried again by itself; marks that volumes have of their own go on",
            "group new (data7, data8): no mark since the service was started",
            "group shop (data0, data1, data2): group:shop/2027-01-15T07:59:30.000000Z fs, frozen 31 ms, 30 s ago",
        ];
        assert_eq!(told, expected);
    }
}
