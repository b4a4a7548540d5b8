//! The metrics against the manual and the alerts; that they are served is tested on the binary.

use std::collections::BTreeSet;
use std::path::Path;

use crate::service::{Seen, Survey, samples};
use crate::web::metrics;

fn encoded() -> String {
    metrics::encode(&samples::survey_with_groups(16)).unwrap()
}

fn of(volumes: Vec<Seen>) -> Survey {
    Survey { volumes, groups: Vec::new() }
}

/// Names of all samples.
fn names() -> BTreeSet<String> {
    let text = encoded();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned).collect()
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Whatever begins with `afterwrite_`.
fn mentioned(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("afterwrite_")).map(str::to_owned).collect()
}

#[test]
fn every_metric_has_a_help_and_ends_as_prometheus_wants_it() {
    let text = encoded();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let described: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()).collect();
    for name in names() {
        assert!(described.contains(name.strip_suffix("_total").unwrap_or(&name)), "{name} has no help");
    }
    let sample = "afterwrite_last_mark_timestamp_seconds{volume=\"dm-0\"} 1799999988.0";
    assert!(text.lines().any(|line| line == sample), "{text}");
    assert!(text.contains("afterwrite_writes_seen_total{volume=\"dm-1\"} 22370"), "{text}");
    assert!(text.contains("afterwrite_up{volume=\"dm-14\"} 0"), "{text}");
    assert!(text.contains("afterwrite_state{volume=\"dm-14\",state=\"recording\"} 1"), "{text}");
    assert!(text.contains("afterwrite_paused{volume=\"dm-3\"} 1.0"), "{text}");
}

#[test]
fn each_target_has_metrics_of_its_own() {
    let text = metrics::encode(&of(vec![samples::of_two_targets()])).unwrap();
    for (name, first, second) in [
        ("error", "0.0", "1.0"),
        ("consistent", "1.0", "0.0"),
        ("behind_marks", "0.0", "412.0"),
        ("lag_seconds", "12.345", "10800.0"),
    ] {
        for (target, value) in [("/backup/1.img", first), ("/mnt/usb/1.img", second)] {
            let sample = format!("afterwrite_replica_{name}{{volume=\"dm-1\",target=\"{target}\"}} {value}");
            assert!(text.lines().any(|line| line == sample), "{sample} in {text}");
        }
    }
    // Of one that is told by itself, too.
    assert!(encoded().contains("afterwrite_replica_error{volume=\"dm-2\",target=\"/backup/2.img\"} 0.0"));
}

#[test]
fn a_group_tells_of_its_marks_and_who_is_in_it() {
    let text = encoded();
    for sample in [
        "group_member{group=\"shop\",volume=\"dm-1\"} 1",
        "group_mark_interval_seconds{group=\"shop\"} 300.0",
        "group_last_mark_timestamp_seconds{group=\"shop\"} 1799999970.0",
        "group_last_mark_frozen_seconds{group=\"shop\"} 0.031",
        "group_last_mark_failed{group=\"shop\"} 0.0",
        "group_last_mark_failed{group=\"ledger\"} 1.0",
        "group_last_mark_failed{group=\"new\"} 0.0",
    ] {
        assert!(text.lines().any(|line| line == format!("afterwrite_{sample}")), "{sample} in {text}");
    }
    // No time of a mark that was not made, and none is due in a group that is marked by hand.
    assert!(!text.contains("timestamp_seconds{group=\"new\"}"), "{text}");
    assert!(!text.contains("interval_seconds{group=\"new\"}"), "{text}");
}

#[test]
fn names_from_outside_are_escaped() {
    let mut seen = samples::seen(1);
    seen[0].name = "a\"b\\c\nd} 1".into();
    let text = metrics::encode(&of(seen)).unwrap();
    assert!(text.contains(r#"afterwrite_up{volume="a\"b\\c\nd} 1"} 1"#), "{text}");
}

#[test]
fn the_manual_has_every_metric() {
    let manual = read("docs/OPERATIONS.md");
    let rows: String = manual.lines().filter(|line| line.starts_with("| `afterwrite_")).collect();
    let (served, told) = (names(), mentioned(&rows));
    assert_eq!(served, told, "\nserved and not told: {:?}", served.difference(&told).collect::<Vec<_>>());
}

#[test]
fn alerts_use_metrics_that_are_there_and_are_explained() {
    let (rules, manual) = (read("dist/prometheus/afterwrite-alerts.yml"), read("docs/OPERATIONS.md"));
    let used = mentioned(&rules);
    assert!(used.len() > 5, "{used:?}");
    let unknown: Vec<_> = used.difference(&names()).cloned().collect();
    assert!(unknown.is_empty(), "there is no {unknown:?}");
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 5, "{alerts:?}");
    for alert in alerts {
        assert!(manual.contains(&format!("`{alert}`")), "the manual does not explain {alert}");
    }
}
