//! The volume that is chosen: how fast and where it is written, its last marks, what is wrong with it.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Sparkline, Wrap};

use crate::cli::size;
use crate::cli::status_table::{age, at_mark, behind, capture, printable, shortened, since};
use crate::cli::watch::{Marks, Watched};
use crate::model::{HISTORY_STEP_S, Timestamp};
use crate::service::{Reading, Seen};

/// Of the map.
const COLUMNS: usize = 64;
/// With this much beside the map, marks and problems stand there, else below it.
const BESIDE_FROM: u16 = 110;
const LEFT: u16 = COLUMNS as u16 + 2;
/// Since the last write, in seconds and in words, the sign and the colour; the signs alone tell enough.
const AGES: [(u64, &str, char, Color); 4] = [
    (10, "10 s", '█', Color::LightYellow),
    (60, "1 min", '▓', Color::Yellow),
    (600, "10 min", '▒', Color::LightBlue),
    (3600, "1 h", '░', Color::Blue),
];
/// Of a target's path; longer ones lose their middle.
const TARGET_MAX: usize = 40;
const EARLIER: (char, Color) = ('·', Color::DarkGray);

/// How much of the screen it takes.
pub(super) fn rows(screen: Rect) -> u16 {
    match screen.height {
        0..16 => 0,
        16..30 => 12,
        30..50 => 17,
        _ => 22,
    }
}

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, watched: &Watched, seen: &Seen) {
    if area.height == 0 {
        return;
    }
    let block = Block::new()
        .borders(Borders::TOP)
        .title(format!(" {} ", title(seen, usize::from(area.width).saturating_sub(2))));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let beside = area.width >= BESIDE_FROM;
    let columns = if beside {
        [Constraint::Length(LEFT), Constraint::Min(0)]
    } else {
        [Constraint::Min(0), Constraint::Length(0)]
    };
    let [left, right] = Layout::horizontal(columns).spacing(u16::from(beside) * 2).areas(inner);
    let mut lines = problems(seen);
    lines.extend(seen.status.as_ref().map_or(Vec::new(), targets));
    let tells_much = lines.len() > 3 && !beside;
    lines.extend(marks(watched.marks.get(&seen.name), watched.now, beside));
    let text = Paragraph::new(lines).wrap(Wrap { trim: false });
    let Some(read) = &seen.status else {
        return frame.render_widget(text, inner);
    };
    let map_rows = u16::try_from(read.activity.write_map.len().div_ceil(COLUMNS)).unwrap_or(0);
    let spark_rows = match left.height {
        16.. => 4,
        // What is wrong, and each target, is of more use.
        _ if tells_much => 0,
        _ => 2,
    };
    let parts = [
        Constraint::Length(1),
        Constraint::Length(spark_rows),
        Constraint::Length(if map_rows == 0 { 0 } else { 1 }),
        Constraint::Length(map_rows),
        Constraint::Min(0),
    ];
    let [facts, spark, legend, map, rest] = Layout::vertical(parts).areas(left);
    frame.render_widget(facts_of(read), facts);
    let history = &read.activity.write_history;
    // The newest at the right, as much as there is room for.
    let shown = &history[history.len().saturating_sub(usize::from(spark.width))..];
    frame.render_widget(Sparkline::default().data(shown).style(Style::new().fg(Color::LightBlue)), spark);
    if map_rows > 0 {
        frame.render_widget(legend_line(read), legend);
        frame.render_widget(Paragraph::new(map_of(read, watched.now)), map);
    }
    frame.render_widget(text, if beside { right } else { rest });
}

fn title(seen: &Seen, room: usize) -> String {
    let name = match &seen.group {
        Some(group) => format!("{}, of group {group}", seen.title()),
        None => seen.title().to_owned(),
    };
    shortened(&name, room)
}

fn facts_of(read: &Reading) -> Line<'static> {
    let history = &read.activity.write_history;
    let span = age(history.len() as u64 * HISTORY_STEP_S);
    let most = history.iter().copied().max().unwrap_or(0);
    let text = format!(
        "{}; writes {}/s, at most {}/s in {span}",
        capture(read),
        size(read.activity.write_rate),
        size(most)
    );
    Line::raw(printable(&text))
}

fn legend_line(read: &Reading) -> Line<'static> {
    let mut spans = vec![Span::raw("written ")];
    for (_, name, sign, colour) in AGES {
        spans.push(Span::styled(sign.to_string(), Style::new().fg(colour)));
        spans.push(Span::raw(format!(" {name}  ")));
    }
    spans.push(Span::styled(EARLIER.0.to_string(), Style::new().fg(EARLIER.1)));
    spans.push(Span::raw(" earlier"));
    if let Some(bytes) = read.size_bytes {
        spans.push(Span::raw(format!("; of {}", size(bytes))));
    }
    Line::from(spans)
}

fn map_of(read: &Reading, now: Timestamp) -> Vec<Line<'static>> {
    let now = now.0 / 1_000_000_000;
    let sign = |at: &u64| {
        let (sign, colour) = match at {
            0 => (' ', EARLIER.1),
            at => AGES
                .iter()
                .find(|(limit, ..)| now.saturating_sub(*at) < *limit)
                .map_or(EARLIER, |(_, _, sign, colour)| (*sign, *colour)),
        };
        Span::styled(sign.to_string(), Style::new().fg(colour))
    };
    read.activity.write_map.chunks(COLUMNS).map(|row| row.iter().map(sign).collect::<Line<'_>>()).collect()
}

fn problems(seen: &Seen) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for problem in &seen.problems {
        let colour = if problem.urgent { Color::Red } else { Color::Yellow };
        let sign = if problem.urgent { "! " } else { "- " };
        lines.push(Line::styled(format!("{sign}{}", printable(&problem.what)), Style::new().fg(colour)));
        lines
            .push(Line::styled(format!("  {}", problem.next_step), Style::new().add_modifier(Modifier::DIM)));
    }
    lines
}

/// Of one alone all is said above.
fn targets(read: &Reading) -> Vec<Line<'static>> {
    if read.replicas.len() + read.left_out.len() < 2 {
        return Vec::new();
    }
    let line = |target: &str, stands: &str, far: &str| {
        Line::raw(format!("target {}: {stands}, {far}", shortened(target, TARGET_MAX)))
    };
    let told = read.replicas.iter().map(|replica| {
        let told = line(&replica.target, replica.stands(), &behind(replica));
        if replica.error.is_some() { told.style(Style::new().fg(Color::Red)) } else { told }
    });
    let left_out = read.left_out.iter().map(|left| line(&left.target, "left out", &at_mark(left.mark)));
    told.chain(left_out).collect()
}

/// One a line, or all in one.
fn marks(marks: Option<&Marks>, now: Timestamp, one_a_line: bool) -> Vec<Line<'static>> {
    let points = match marks.map(|marks| &marks.points) {
        None => return Vec::new(),
        Some(Err(why)) => return vec![Line::raw(format!("its marks can't be read: {}", printable(why)))],
        Some(Ok(points)) => points,
    };
    let told = points.iter().map(|point| {
        let ago = since(point.time, now);
        let label =
            if point.label.is_empty() { String::new() } else { format!(" {}", printable(&point.label)) };
        format!("{} {}, {ago} ago{label}", point.id, point.class)
    });
    match one_a_line {
        true if points.is_empty() => Vec::new(),
        true => std::iter::once("marks".to_owned())
            .chain(told.map(|mark| format!("  {mark}")))
            .map(Line::raw)
            .collect(),
        // A line ends between two of them, not within one.
        false => {
            let told = told.take(8).map(|mark| mark.replace(' ', "\u{a0}"));
            vec![Line::raw(told.collect::<Vec<_>>().join("; "))]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::samples;

    #[test]
    fn each_of_several_targets_has_a_line() {
        let text = |read: &Reading| targets(read).iter().map(Line::to_string).collect::<Vec<_>>();
        let two = samples::of_two_targets();
        let expected = [
            "target /backup/1.img: current, 12 s, 64.0 KiB",
            "target /mnt/usb/1.img: fails, 3 h, 9.5 GiB, 412 marks",
            "target /mnt/old/1.img: left out, at mark 5",
        ];
        assert_eq!(text(two.status.as_ref().unwrap()), expected);
        assert!(text(&samples::reading(1).with_replicas()).is_empty());
    }
}
