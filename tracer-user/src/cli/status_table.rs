//! `status` of all volumes: a row for each, and below it what is not as it should be and what to do.

use crate::cli::size;
use crate::model::Timestamp;
use crate::service::{Reading, ReplicaRead, Seen};

const HEAD: [&str; 8] =
    ["VOLUME", "STATE", "WRITES", "REPLICA LAG", "LAST MARK", "RING", "CAPTURE", "SEEN = EMITTED + MARKED"];
/// Where the column of groups is, if there are any.
const GROUP_AT: usize = 2;
/// Longer ones lose their middle.
const NAME_MAX: usize = 32;

/// The lines of it.
pub(super) fn table(seen: &[Seen], now: Timestamp) -> Vec<String> {
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    rows.extend(seen.iter().map(|seen| row(seen, now).to_vec()));
    if seen.iter().any(|seen| seen.group.is_some()) {
        let of = |seen: &Seen| seen.group.as_ref().map_or("-".into(), |group| shortened(group, NAME_MAX));
        let groups = std::iter::once("GROUP".to_owned()).chain(seen.iter().map(of));
        rows.iter_mut().zip(groups).for_each(|(row, group)| row.insert(GROUP_AT, group));
    }
    let mut lines = aligned(&rows, "");
    for seen in seen {
        for problem in &seen.problems {
            let sign = if problem.urgent { "!" } else { "-" };
            lines.push(format!("{sign} {}: {}", shortened(seen.title(), NAME_MAX), printable(&problem.what)));
            lines.push(format!("    {}", problem.next_step));
        }
    }
    lines.extend(seen.iter().flat_map(targets));
    lines
}

/// Of several, or where one was left out, a line for each.
fn targets(seen: &Seen) -> Vec<String> {
    let Some(read) = seen.status.as_ref().filter(|read| read.replicas.len() + read.left_out.len() > 1) else {
        return Vec::new();
    };
    let mut rows: Vec<Vec<String>> = read
        .replicas
        .iter()
        .map(|replica| vec![replica.stands().to_owned(), behind(replica), printable(&replica.target)])
        .collect();
    for left in &read.left_out {
        rows.push(vec!["left out".to_owned(), at_mark(left.mark), printable(&left.target)]);
    }
    let head = format!("targets of {}:", shortened(seen.title(), NAME_MAX));
    std::iter::once(head).chain(aligned(&rows, "    ")).collect()
}

pub(super) fn at_mark(mark: Option<u64>) -> String {
    mark.map_or_else(|| "at no mark".into(), |mark| format!("at mark {mark}"))
}

/// How far it is behind: what is lost if the source dies now.
pub(super) fn behind(replica: &ReplicaRead) -> String {
    match replica.age_ms {
        None => "not at a mark".to_owned(),
        Some(ms) if replica.behind_marks > 1 => {
            let (lag, marks) = (size(replica.lag_bytes), replica.behind_marks);
            format!("{}, {lag}, {marks} marks", age(ms / 1000))
        }
        Some(ms) => format!("{}, {}", age(ms / 1000), size(replica.lag_bytes)),
    }
}

/// Columns below each other.
fn aligned(rows: &[Vec<String>], before: &str) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{before}{}", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn row(seen: &Seen, now: Timestamp) -> [String; 8] {
    let nothing = || "-".to_owned();
    let (name, state) = (shortened(seen.title(), NAME_MAX), state(seen));
    let Some(read) = &seen.status else {
        let recorded = seen.recorded_bytes.map_or_else(nothing, |bytes| format!("{} recorded", size(bytes)));
        return [name, state, nothing(), recorded, nothing(), nothing(), nothing(), nothing()];
    };
    [name, state, rate(read), lag(read), last_mark(read, now), ring(read), capture(read), writes(read)]
}

pub(super) fn state(seen: &Seen) -> String {
    match &seen.status {
        Some(read) if read.scan_done_bytes < read.scan_total_bytes => {
            // Of u64 bytes a hundredfold may be too many.
            let percent = u128::from(read.scan_done_bytes) * 100 / u128::from(read.scan_total_bytes);
            format!("{} {percent} %", seen.standing.as_str())
        }
        _ => seen.standing.as_str().to_owned(),
    }
}

pub(super) fn rate(read: &Reading) -> String {
    format!("{}/s", size(read.activity.write_rate))
}

pub(super) fn lag(read: &Reading) -> String {
    let (count, failing) = (read.replicas.len(), read.replicas.iter().filter(|r| r.error.is_some()).count());
    let lag = match read.replica.age_ms {
        _ if failing > 0 && count > 1 => return format!("{failing} of {count} fail"),
        _ if failing > 0 => "target fails".into(),
        None => "not at a mark".into(),
        Some(ms) if read.is_tree() => age(ms / 1000),
        Some(ms) => format!("{}, {}", age(ms / 1000), size(read.replica.lag_bytes)),
    };
    if count > 1 { format!("{lag}, {count} targets") } else { lag }
}

pub(super) fn last_mark(read: &Reading, now: Timestamp) -> String {
    match &read.last_mark {
        None => "none yet".into(),
        Some(mark) => {
            format!("{} {}, {} ago", mark.id, mark.class, since(mark.time, now))
        }
    }
}

pub(super) fn ring(read: &Reading) -> String {
    match read.ring_used_bytes.saturating_mul(100).checked_div(read.ring_bytes) {
        None => "-".into(),
        Some(_) if read.overrun => "full".into(),
        Some(percent) => format!("{percent} %"),
    }
}

pub(super) fn capture(read: &Reading) -> String {
    let what = if read.is_tree() { "files" } else { &read.capture };
    format!("{what} by {}", read.rung)
}

fn writes(read: &Reading) -> String {
    let counters = &read.counters;
    if read.is_tree() {
        return format!("{} seen, {} missed", counters.seen, read.missing);
    }
    // While writes come, some may have been seen and not told yet.
    let sign = if read.adds_up() { "=" } else { "≠" };
    let gap = if read.gap_open { ", gap until the next mark" } else { "" };
    format!("{} {sign} {} + {}{gap}", counters.seen, counters.emitted, counters.marked)
}

pub(super) fn since(time: Timestamp, now: Timestamp) -> String {
    age(now.0.saturating_sub(time.0) / 1_000_000_000)
}

/// `12 s`, `3 min`, `5 h`, `2 d`.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..90 => format!("{seconds} s"),
        90..5400 => format!("{} min", seconds / 60),
        5400..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// What does no harm to a terminal.
pub(super) fn printable(text: &str) -> String {
    let harmless = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(harmless).collect()
}

/// Without its middle where it is longer.
pub(super) fn shortened(name: &str, max: usize) -> String {
    let name = printable(name);
    let count = name.chars().count();
    if count <= max {
        return name;
    }
    let (head, tail) = (max / 3, (max - max / 3).saturating_sub(1));
    let begin: String = name.chars().take(head).collect();
    let end: String = name.chars().skip(count - tail).collect();
    format!("{begin}…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::samples;

    #[test]
    fn of_several_targets_it_is_told_how_many_and_which_fails() {
        let mut seen = samples::of_two_targets();
        let lines = table(std::slice::from_ref(&seen), samples::now());
        assert!(lines[1].contains("1 of 2 fail"), "{lines:?}");
        assert!(lines[2].contains("the target /mnt/usb/1.img fails"), "{lines:?}");
        let below = [
            "targets of /dev/vg0/data1:",
            "    current   12 s, 64.0 KiB           /backup/1.img",
            "    fails     3 h, 9.5 GiB, 412 marks  /mnt/usb/1.img",
            "    left out  at mark 5                /mnt/old/1.img",
        ];
        assert_eq!(lines[4..], below);
        let read = seen.status.as_mut().unwrap();
        read.replicas[1].error = None;
        assert_eq!(lag(read), "3 h, 9.5 GiB, 2 targets");
    }

    #[test]
    fn volumes_are_rows_and_what_is_wrong_is_below() {
        let lines = table(&samples::seen(16), samples::now());
        assert_eq!(lines[0].split_whitespace().next(), Some("VOLUME"));
        let wanted = "/dev/vg0/data1                    live           5.7 MiB/s   12 s, 64.0 KiB    17 fs, 12 s ago  0 %   \
                      extents by tp_btf  22370 = 22369 + 1";
        assert_eq!(lines[2], wanted);
        // Columns stand below each other.
        let column = lines[0].find("LAST MARK").unwrap();
        assert!(
            lines[1..17]
                .iter()
                .all(|line| line.is_char_boundary(0) && line.chars().nth(column - 1) == Some(' '))
        );
        let below = lines[17..].join("\n");
        assert!(below.contains("! /dev/vg0/data3: paused, no points are made: no space left"), "{below}");
        assert!(below.contains("ring is full"), "{below}");
        assert!(!lines.concat().chars().any(char::is_control));
        // What does not add up is not said to.
        assert!(lines[13].contains('≠') && lines[13].contains("gap"), "{}", lines[13]);
        assert_eq!(table(&[], samples::now()).len(), 1);
    }
}
