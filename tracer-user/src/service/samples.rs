//! Volumes as tests show them.

use serde_json::json;

use crate::model::Timestamp;
use crate::service::group_seen::GroupSeen;
use crate::service::progress::LeftOut;
use crate::service::reading::{Problem, Reading, ReplicaRead, Standing};
use crate::service::survey::{Seen, Survey};
use crate::service::units::GroupStatus;

/// A moment after all that they tell of.
pub fn now() -> Timestamp {
    Timestamp(1_800_000_000 * 1_000_000_000)
}

/// Of many, some are not well.
pub fn seen(count: u64) -> Vec<Seen> {
    (0..count).map(of).collect()
}

fn of(index: u64) -> Seen {
    let name = format!("dm-{index}");
    let mut read = reading(index);
    match index % 16 {
        3 => read.paused = Some("no space left for the journal: free some under /backup".into()),
        6 => {
            read.source = "/dev/mapper/a-volume-group-with-a-long-name-logical-volume".into();
            read.replica.error = Some("could not write the target /backup/\u{1b}[31m.img".into());
        }
        9 => {
            (read.state, read.scan_done_bytes) = (Standing::Baseline, read.scan_total_bytes / 3);
            (read.last_mark, read.replica.age_ms) = (None, None);
        }
        12 => (read.overrun, read.gap_open, read.counters.seen) = (true, true, u64::MAX),
        14 => {
            return Seen {
                name,
                standing: Standing::Recording,
                status: None,
                recorded_bytes: Some(3 << 20),
                group: None,
                problems: vec![Problem::urgent("no process runs", "start it again")],
            };
        }
        15 => {
            read = Reading {
                kind: "tree".into(),
                source: format!("/srv/data{index}"),
                rung: "fentry".into(),
                ..read
            };
            (read.ring_bytes, read.size_bytes, read.activity.write_map) = (0, None, Vec::new());
        }
        _ => {}
    }
    Seen::told(name, read)
}

/// Volumes in groups, and one of them with several targets.
pub fn survey_with_groups(count: u64) -> Survey {
    let mut volumes = seen(count);
    let groups = groups();
    for (index, volume) in volumes.iter_mut().enumerate() {
        let name = format!("data{index}");
        let group = groups.iter().find(|group| group.status.volumes.contains(&name));
        volume.group = group.map(|group| group.status.name.clone());
    }
    let group = volumes[1].group.take();
    volumes[1] = Seen { group, ..of_two_targets() };
    Survey { volumes, groups }
}

/// Of a service: one that is well, one that fails, and one without a mark.
pub fn groups() -> Vec<GroupSeen> {
    let mark = |group: &str, time: &str, frozen_ms: Option<u64>, classes: &[&str]| {
        let members = classes.iter().enumerate();
        let members = members.map(|(id, class)| json!({ "volume": "data", "id": id, "class": class }));
        let name = format!("group:{group}/{time}");
        json!({
            "name": name, "time": time, "frozen_ms": frozen_ms, "hook_error": null,
            "members": members.collect::<Vec<_>>()
        })
    };
    let status = json!([
        {
            "name": "ledger", "volumes": ["data4", "data5"], "mark_every_ms": 30_000,
            "last_mark": mark("ledger", "2027-01-15T07:20:00.000000Z", None, &["fs", "crash"]),
            "last_mark_error": "data5 took too long"
        },
        {
            "name": "new", "volumes": ["data7", "data8"], "mark_every_ms": null, "last_mark": null, "last_mark_error": null
        },
        {
            "name": "shop", "volumes": ["data0", "data1", "data2"], "mark_every_ms": 300_000,
            "last_mark": mark("shop", "2027-01-15T07:59:30.000000Z", Some(31), &["fs", "fs", "fs"]), "last_mark_error": null
        }
    ]);
    let status: Vec<GroupStatus> = serde_json::from_value(status).unwrap();
    status.into_iter().map(GroupSeen::new).collect()
}

/// With two targets, of which the second fails, and one that was left out.
pub fn of_two_targets() -> Seen {
    let mut read = reading(1);
    let first = ReplicaRead { target: "/backup/1.img".into(), ..read.replica.clone() };
    let second = ReplicaRead {
        target: "/mnt/usb/1.img".into(),
        consistent: false,
        age_ms: Some(3 * 3_600_000),
        lag_bytes: 10_200_000_000,
        behind_marks: 412,
        error: Some("no space left".into()),
        ..first.clone()
    };
    read.left_out = vec![LeftOut { target: "/mnt/old/1.img".into(), mark: Some(5) }];
    (read.replica, read.replicas) = (second.clone(), vec![first, second]);
    Seen::told("dm-1".into(), read)
}

/// Everything of it is given.
pub fn reading(index: u64) -> Reading {
    let now_s = now().0 / 1_000_000_000;
    let busy = (index + 1) % 5 * 3_000_000;
    let ages = [0, 3, 40, 400, 3000, 20_000];
    let history: Vec<u64> = (0..120).map(|step| busy * (step * (index + 3) % 17) / 17).collect();
    let map: Vec<u64> = (0..256)
        .map(|cell| match ages[((cell * cell / 37 + index) % 6) as usize] {
            0 => 0,
            age => now_s - age,
        })
        .collect();
    let status = json!({
        "source": format!("/dev/vg0/data{index}"), "size_bytes": (index + 1) << 34, "state": "live", "capture": "extents",
        "rung": "tp_btf", "recording": "ring", "pinned": true, "ring_bytes": 16 << 20, "ring_used_bytes": index << 17,
        "journal": format!("/journal/{index}"), "target": format!("/backup/{index}.img"),
        "counters": {
            "seen": 22_369 + index, "emitted": 22_369, "marked": index, "payload": 5, "completions_seen": 22_368,
            "completions_lost": 1
        },
        "failed_writes": 0, "scan_done_bytes": 3u64 << 32, "scan_total_bytes": 3u64 << 32, "pending_bytes": index << 12,
        "pending_ms": index, "journal_bytes": 1 << 27, "marks": 17, "last_frozen_ms": 31,
        "last_mark": { "id": 17, "class": "fs", "lsn": 4700, "time": "2027-01-15T07:59:48Z", "label": "" },
        "replica": { "consistent": true, "mark": 17, "age_ms": 12_345, "lag_bytes": index << 16, "error": null },
        "origin": { "rung": "fentry", "missing": 2, "bursts": [] }, "retention": { "error": null },
        "written_bytes": 1 << 29, "write_rate": busy, "write_history": history, "write_map": map
    });
    serde_json::from_value(status).unwrap()
}
