//! The whole screen: what it is called, a row for each volume, and one of them in detail.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState, Wrap};

use crate::cli::status_group;
use crate::cli::status_table::{capture, lag, last_mark, printable, rate, ring, shortened, state};
use crate::cli::watch::{Watched, detail};
use crate::service::{GroupSeen, Reading, Seen, Standing};

/// From these widths on a row has these besides.
const WITH_SPARKS: u16 = 110;
const WITH_CAPTURE: u16 = 150;
const SPARKS: usize = 24;
/// Longer names of groups lose their middle.
const GROUP_MAX: usize = 20;

pub(super) fn draw(frame: &mut Frame<'_>, watched: &Watched) {
    let area = frame.area();
    let detail_rows = if watched.seen.is_empty() { 0 } else { detail::rows(area) };
    let groups = groups(watched, area);
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(u16::try_from(groups.len()).unwrap_or(0)),
        Constraint::Length(detail_rows),
    ]);
    let [head, body, between, below] = areas.areas(area);
    draw_head(frame, head, watched);
    let Some(selected) = watched.seen.get(watched.index()) else {
        return draw_nothing(frame, body, watched);
    };
    draw_rows(frame, body, watched);
    frame.render_widget(Paragraph::new(groups), between);
    detail::draw(frame, below, watched, selected);
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, watched: &Watched) {
    let title = " afterwrite  ";
    let counts = counts(&watched.seen);
    let room = usize::from(area.width).saturating_sub(title.len());
    // The counts say more than the keys.
    let fits = |keys: &&str| counts.chars().count() + 2 + keys.chars().count() <= room;
    let keys = ["↑↓ choose  q quit ", "q quit "].into_iter().find(fits).unwrap_or_default();
    let left = Span::styled(title, Style::new().add_modifier(Modifier::BOLD));
    frame.render_widget(Line::from(vec![left, Span::raw(counts)]), area);
    let keys = Line::styled(keys, Style::new().add_modifier(Modifier::DIM));
    let width = u16::try_from(keys.width()).unwrap_or(0).min(area.width);
    frame.render_widget(keys, Rect { x: area.right() - width, width, ..area });
}

/// `3 volumes: 2 live, 1 paused`.
fn counts(seen: &[Seen]) -> String {
    let of = |standing| seen.iter().filter(|seen| seen.standing == standing).count();
    let each = Standing::ALL.into_iter().map(|standing| (of(standing), standing.as_str()));
    let each: Vec<String> =
        each.filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")).collect();
    let noun = if seen.len() == 1 { "volume" } else { "volumes" };
    match seen.is_empty() {
        true => String::new(),
        false => format!("{} {noun}: {}", seen.len(), each.join(", ")),
    }
}

/// A line for each group, those that fail first; where there is little room, not of all.
fn groups(watched: &Watched, screen: Rect) -> Vec<Line<'static>> {
    let room = usize::from(screen.height / 8);
    let mut sorted: Vec<&GroupSeen> = watched.groups.iter().collect();
    sorted.sort_by_key(|group| group.is_well());
    let shown = if sorted.len() > room { room.saturating_sub(1) } else { sorted.len() };
    let mut lines: Vec<_> =
        sorted.iter().take(shown).map(|group| group_line(group, watched, screen.width)).collect();
    if shown < sorted.len() && room > 0 {
        lines
            .push(Line::raw(format!("       and {} groups more: `afterwrite status`", sorted.len() - shown)));
    }
    lines
}

fn group_line(group: &GroupSeen, watched: &Watched, width: u16) -> Line<'static> {
    let (sign, style) = match group.is_well() {
        true => (" ", Style::new()),
        false => ("!", Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)),
    };
    let mut text = format!(
        "{sign}group {} ({} volumes): {}",
        shortened(&group.status.name, GROUP_MAX),
        group.status.volumes.len(),
        status_group::last_mark(group, watched.now)
    );
    if let Some(why) = &group.status.last_mark_error {
        text += &format!("; then failed: {}", printable(why));
    }
    let room = usize::from(width);
    if text.chars().count() > room {
        text = text.chars().take(room.saturating_sub(1)).chain(['…']).collect();
    }
    Line::styled(text, style)
}

fn draw_nothing(frame: &mut Frame<'_>, area: Rect, watched: &Watched) {
    let text = match watched.asking {
        true => "asking …",
        false => {
            "No volume is protected.\n\nStart with: afterwrite protect DEV --journal DIR --target PATH\nIt is seen here a moment later."
        }
    };
    let middle = Rect { y: area.y + area.height / 3, height: area.height - area.height / 3, ..area };
    frame.render_widget(Paragraph::new(text).alignment(Alignment::Center).wrap(Wrap { trim: true }), middle);
}

fn draw_rows(frame: &mut Frame<'_>, area: Rect, watched: &Watched) {
    let wide = |from: u16| area.width >= from;
    let mut columns = vec![
        ("STATE", 14),
        ("WRITES", 12),
        ("REPLICA LAG", if wide(WITH_SPARKS) { 18 } else { 13 }),
        ("LAST MARK", if wide(WITH_SPARKS) { 20 } else { 13 }),
        ("RING", 5),
    ];
    if wide(WITH_SPARKS) {
        columns.push(("OF LATE", SPARKS as u16));
    }
    if wide(WITH_CAPTURE) {
        columns.push(("CAPTURE", 22));
    }
    // With a space before each. The name has the rest.
    let others: u16 = columns.iter().map(|(_, width)| width + 1).sum();
    let name_width = area.width.saturating_sub(others);
    columns.insert(0, (" VOLUME", name_width));
    let count = columns.len();
    let rows = watched.seen.iter().map(|seen| {
        let mut cells = cells(seen, watched, wide(WITH_SPARKS), name_width);
        cells.truncate(count);
        Row::new(cells)
    });
    let (names, widths): (Vec<&str>, Vec<Constraint>) =
        columns.into_iter().map(|(name, width)| (name, Constraint::Length(width))).unzip();
    let head = Row::new(names).style(Style::new().add_modifier(Modifier::BOLD));
    let table = Table::new(rows, widths)
        .header(head)
        .column_spacing(1)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut chosen = TableState::new().with_selected(watched.index());
    frame.render_stateful_widget(table, area, &mut chosen);
}

fn cells(seen: &Seen, watched: &Watched, wide: bool, name_width: u16) -> Vec<Cell<'static>> {
    let urgent = seen.problems.iter().any(|problem| problem.urgent);
    let name = format!(
        "{}{}",
        if urgent { "!" } else { " " },
        shortened(seen.title(), usize::from(name_width).saturating_sub(1))
    );
    let mut cells = vec![Cell::new(name), Cell::new(Span::styled(state(seen), style(seen.standing)))];
    let Some(read) = &seen.status else { return cells };
    let mark = last_mark(read, watched.now);
    let mark = match (&read.last_mark, wide) {
        // Its class and age are what counts.
        (Some(_), false) => mark.split_once(' ').map_or(mark.clone(), |(_, rest)| rest.replace(" ago", "")),
        _ => mark,
    };
    let lag = if wide { lag(read) } else { lag(read).split(',').next().unwrap_or_default().to_owned() };
    let texts = [rate(read), lag, mark, ring(read), sparks(read), capture(read)];
    cells.extend(texts.map(|text| Cell::new(printable(&text))));
    cells
}

/// The last two minutes as a line of bars.
fn sparks(read: &Reading) -> String {
    let history = &read.activity.write_history;
    let shown = &history[history.len().saturating_sub(SPARKS)..];
    let most = shown.iter().copied().max().unwrap_or(0).max(1);
    let bar = |value: &u64| match value {
        0 => '▁',
        // 0 to 7; the product may not fit into 64 bits.
        value => {
            ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'][(u128::from(*value) * 7).div_ceil(most.into()) as usize]
        }
    };
    shown.iter().map(bar).collect()
}

pub(super) fn style(standing: Standing) -> Style {
    match standing {
        Standing::Live => Style::new().fg(Color::Green),
        Standing::Baseline | Standing::Resync | Standing::Stopping => Style::new().fg(Color::Yellow),
        Standing::Paused | Standing::Failed | Standing::Recording | Standing::Stopped | Standing::Silent => {
            Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
        }
    }
}
