//! The metrics, in OpenMetrics' text format. Their names, units and meaning are in docs/OPERATIONS.md, and
//! `the_manual_has_every_metric` holds that against this.

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::model::PointClass;
use crate::service::{GroupSeen, Reading, ReplicaRead, Seen, Standing, Survey};

pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfVolume {
    volume: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfTarget {
    volume: String,
    target: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfGroup {
    group: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Member {
    group: String,
    volume: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct InState {
    volume: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfClass {
    volume: String,
    class: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Facts {
    volume: String,
    source: String,
    kind: &'static str,
    capture: String,
    rung: String,
    journal: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Version {
    version: &'static str,
}

type Value = fn(&Reading) -> Option<f64>;

/// Each is `afterwrite_` and this; what it is not known of has no sample.
const GAUGES: &[(&str, &str, Value)] = &[
    ("volume_size_bytes", "Size of the volume", |r| r.size_bytes.map(float)),
    ("copied_ratio", "How much of the volume the first copy or the comparison has done", |r| {
        (r.scan_total_bytes > 0).then(|| float(r.scan_done_bytes) / float(r.scan_total_bytes))
    }),
    ("pending_bytes", "Changed and not in the journal yet", |r| Some(float(r.pending_bytes))),
    ("pending_age_seconds", "Age of the oldest change that is not in the journal yet", |r| {
        volume(r)?;
        Some(float(r.pending_ms) / 1000.0)
    }),
    ("ring_size_bytes", "Size of the ring between probes and collector", |r| {
        (r.ring_bytes > 0).then(|| float(r.ring_bytes))
    }),
    ("ring_used_ratio", "The fullest the ring was within the last 200 ms", |r| {
        (r.ring_bytes > 0).then(|| float(r.ring_used_bytes) / float(r.ring_bytes))
    }),
    ("ring_overrun", "1 if the ring had no room within the last second", |r| {
        volume(r)?;
        Some(flag(r.overrun))
    }),
    ("gap_open", "1 if what was written since the last restorable mark is known in part only", |r| {
        volume(r)?;
        Some(flag(r.gap_open))
    }),
    ("every_write_restorable", "1 if each write since the last mark is a point", |r| {
        volume(r)?;
        Some(flag(r.every_write))
    }),
    ("paused", "1 while the journal can't be written", |r| Some(flag(r.paused.is_some()))),
    ("last_mark_timestamp_seconds", "When the last mark was made, of any class", |r| {
        r.last_mark.as_ref().map(|mark| float(mark.time.0) / 1e9)
    }),
    ("last_mark_failed", "1 if the last mark that was tried was not made", |r| {
        Some(flag(r.last_mark_error.is_some()))
    }),
    ("last_mark_frozen_seconds", "How long writers were held for the last mark", |r| {
        r.last_frozen_ms.map(|ms| float(ms) / 1000.0)
    }),
    ("unreadable_bytes", "Of the source; while there are any, no restorable mark can be made", |r| {
        volume(r)?;
        Some(float(r.unreadable_bytes))
    }),
    ("unreadable_files", "Of a tree: files and directories that can't be read", |r| {
        r.is_tree().then(|| float(r.unreadable))
    }),
    ("retention_error", "1 if the journal could not be pruned the last time", |r| {
        r.retention.as_ref().map(|retention| flag(retention.error.is_some()))
    }),
    ("origin_bursts", "Programs of late that rewrote or removed many files", |r| {
        volume(r)?;
        Some(float(r.origin.bursts.len() as u64))
    }),
];

type OfReplica = fn(&Reading, &ReplicaRead) -> Option<f64>;

/// As `GAUGES`, one of each for each target.
const REPLICA_GAUGES: &[(&str, &str, OfReplica)] = &[
    (
        "replica_lag_bytes",
        "Stored bytes journaled in this session after the replica's mark",
        |read, replica| {
            volume(read)?;
            Some(float(replica.lag_bytes))
        },
    ),
    ("replica_lag_seconds", "Time since the replica's mark", |_, replica| {
        replica.age_ms.map(|ms| float(ms) / 1000.0)
    }),
    ("replica_behind_marks", "Restorable marks that the replica was not brought to yet", |read, replica| {
        volume(read)?;
        Some(float(replica.behind_marks))
    }),
    ("replica_consistent", "1 if the replica is at a mark", |_, replica| Some(flag(replica.consistent))),
    ("replica_error", "1 while the target can't be written", |_, replica| {
        Some(flag(replica.error.is_some()))
    }),
];

type OfOneGroup = fn(&GroupSeen) -> Option<f64>;

/// As `GAUGES`, of groups.
const GROUP_GAUGES: &[(&str, &str, OfOneGroup)] = &[
    ("group_mark_interval_seconds", "How often a mark of the group is due", |group| {
        group.status.mark_every_ms.map(|ms| float(ms) / 1000.0)
    }),
    (
        "group_last_mark_timestamp_seconds",
        "When the last mark of the group was made, since the service was started",
        |group| group.status.last_mark.as_ref().map(|mark| float(mark.time.0) / 1e9),
    ),
    ("group_last_mark_failed", "1 if the last mark of the group that was tried was not made", |group| {
        Some(flag(!group.is_well()))
    }),
    (
        "group_last_mark_frozen_seconds",
        "How long writers were held for the last mark of the group",
        |group| {
            let frozen = group.status.last_mark.as_ref().and_then(|mark| mark.frozen_ms);
            frozen.map(|ms| float(ms) / 1000.0)
        },
    ),
];

type Count = fn(&Reading) -> Option<u64>;

/// `_total` is appended. Those of the probes count since they were attached, the others since `protect` was started.
const COUNTERS: &[(&str, &str, Count)] = &[
    ("writes_seen", "Submissions the probes saw", |r| Some(r.counters.seen)),
    ("writes_emitted", "Submissions that went through the ring", |r| Some(r.counters.emitted)),
    ("writes_marked", "Submissions that found the ring full and are in the bitmap", |r| {
        volume(r)?;
        Some(r.counters.marked)
    }),
    ("completions_seen", "Completions the probes saw", |r| {
        volume(r)?;
        Some(r.counters.completions_seen)
    }),
    ("completions_lost", "Completions that found the ring full", |r| {
        volume(r)?;
        Some(r.counters.completions_lost)
    }),
    ("written_bytes", "Written to the source, as the ring told", |r| Some(r.activity.written_bytes)),
    ("journal_bytes", "Written to the journal, compressed", |r| Some(r.journal_bytes)),
    ("marks", "Marks made, of any class", |r| {
        volume(r)?;
        Some(r.marks)
    }),
    ("failed_writes", "Writes of the source that failed, by the device's account", |r| {
        volume(r)?;
        Some(r.failed_writes)
    }),
    ("changes_missed", "Changes of files of which it is not known what or whose they were", |r| {
        Some(if r.is_tree() { r.missing } else { r.origin.missing })
    }),
];

/// # Errors
/// None that can happen: the text is made in memory.
pub fn encode(Survey { volumes: seen, groups }: &Survey) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("afterwrite");
    let version = Family::<Version, Gauge>::default();
    version.get_or_create(&Version { version: env!("CARGO_PKG_VERSION") }).set(1);
    registry.register("build_info", "Version of this afterwrite", version);
    standings(&mut registry, seen);
    let told = || seen.iter().filter_map(|seen| Some((label(&seen.name), seen.status.as_ref()?)));

    let facts = Family::<Facts, Gauge>::default();
    let classes = Family::<OfClass, Gauge>::default();
    for (volume, read) in told() {
        if let Some(mark) = &read.last_mark {
            for class in [PointClass::App, PointClass::Fs, PointClass::Crash, PointClass::Fuzzy] {
                let labels = OfClass { volume: volume.clone(), class: class.to_string() };
                classes.get_or_create(&labels).set(i64::from(class == mark.class));
            }
        }
        let labels = Facts {
            volume,
            source: label(&read.source),
            kind: if read.is_tree() { "tree" } else { "volume" },
            capture: label(&read.capture),
            rung: label(&read.rung),
            journal: label(&read.journal),
        };
        facts.get_or_create(&labels).set(1);
    }
    registry.register("volume_info", "What is protected, and how it is captured", facts);
    registry.register("last_mark_class", "1 for the class of the last mark, 0 for the others", classes);

    for (name, help, value) in GAUGES {
        let family = Family::<OfVolume, Gauge<f64, AtomicU64>>::default();
        for (volume, read) in told() {
            if let Some(value) = value(read) {
                family.get_or_create(&OfVolume { volume }).set(value);
            }
        }
        registry.register(*name, *help, family);
    }
    for (name, help, value) in REPLICA_GAUGES {
        let family = Family::<OfTarget, Gauge<f64, AtomicU64>>::default();
        for (volume, read) in told() {
            for replica in &read.replicas {
                if let Some(value) = value(read, replica) {
                    let target = label(&replica.target);
                    family.get_or_create(&OfTarget { volume: volume.clone(), target }).set(value);
                }
            }
        }
        registry.register(*name, *help, family);
    }
    for (name, help, value) in COUNTERS {
        let family = Family::<OfVolume, Counter>::default();
        for (volume, read) in told() {
            if let Some(value) = value(read) {
                family.get_or_create(&OfVolume { volume }).inc_by(value);
            }
        }
        registry.register(*name, *help, family);
    }
    of_groups(&mut registry, seen, groups);
    let mut encoded = String::new();
    text::encode(&mut encoded, &registry)?;
    Ok(encoded)
}

/// What is known without an answer.
fn standings(registry: &mut Registry, seen: &[Seen]) {
    let up = Family::<OfVolume, Gauge>::default();
    let states = Family::<InState, Gauge>::default();
    let recorded = Family::<OfVolume, Gauge<f64, AtomicU64>>::default();
    for seen in seen {
        let labels = OfVolume { volume: label(&seen.name) };
        up.get_or_create(&labels).set(i64::from(seen.status.is_some()));
        if let Some(bytes) = seen.recorded_bytes {
            recorded.get_or_create(&labels).set(float(bytes));
        }
        for standing in Standing::ALL {
            let labels = InState { volume: label(&seen.name), state: standing.as_str() };
            states.get_or_create(&labels).set(i64::from(standing == seen.standing));
        }
    }
    registry.register("up", "1 if the volume's process answers", up);
    registry.register("state", "1 for the state the volume is in, 0 for the others", states);
    registry.register("recorded_bytes", "Without a process: written and not under a durable mark", recorded);
}

fn of_groups(registry: &mut Registry, seen: &[Seen], groups: &[GroupSeen]) {
    let members = Family::<Member, Gauge>::default();
    for seen in seen {
        if let Some(group) = &seen.group {
            members.get_or_create(&Member { group: label(group), volume: label(&seen.name) }).set(1);
        }
    }
    registry.register("group_member", "1 for each volume of a group", members);
    for (name, help, value) in GROUP_GAUGES {
        let family = Family::<OfGroup, Gauge<f64, AtomicU64>>::default();
        for group in groups {
            if let Some(value) = value(group) {
                family.get_or_create(&OfGroup { group: label(&group.status.name) }).set(value);
            }
        }
        registry.register(*name, *help, family);
    }
}

/// The crate writes values as they are (0.24).
fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Only of a volume.
fn volume(read: &Reading) -> Option<()> {
    (!read.is_tree()).then_some(())
}

fn float(value: u64) -> f64 {
    value as f64
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}
