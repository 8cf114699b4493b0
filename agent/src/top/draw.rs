//! Turns a snapshot into the picture of a terminal: a headline, panels, a line of keys.
//!
//! Pure: the same snapshot and state give the same cells. Texts of workers are cleaned of what could steer the
//! terminal. Colour is never the only sign; NO_COLOR and terminals without UTF-8 are honoured.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph};

use super::panels::{self, Table};
use super::state::{Panel, State};
use crate::live::Snapshot;
use crate::view::text::{clean, duration, fit, left, width};

/// Rows of a panel that is not empty: title, head and two more.
const LEAST: u16 = 4;

/// What the terminal can show.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) color: bool,
    pub(super) ascii: bool,
}

/// What a text means, which its colour shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Dim,
    Strong,
    Good,
    Late,
    Bad,
    Killed,
    Memory,
}

/// A piece of a row.
pub(super) type Piece = (String, Tone);

impl Look {
    /// By NO_COLOR, and by what the locale says of characters.
    pub(super) fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")).unwrap_or_default();
        let locale = locale.to_ascii_lowercase();
        let dumb = set("TERM").is_some_and(|terminal| terminal == "dumb");
        let utf8 = locale.contains("utf-8") || locale.contains("utf8");
        Self { color: set("NO_COLOR").is_none() && !dumb, ascii: !utf8 }
    }

    pub(super) fn style(self, tone: Tone) -> Style {
        let (color, modifier) = match tone {
            Tone::Plain => (None, Modifier::empty()),
            Tone::Dim => (None, Modifier::DIM),
            Tone::Strong => (None, Modifier::BOLD),
            Tone::Good => (Some(Color::Green), Modifier::empty()),
            Tone::Late => (Some(Color::Yellow), Modifier::empty()),
            Tone::Bad => (Some(Color::Red), Modifier::BOLD),
            Tone::Killed => (Some(Color::Magenta), Modifier::BOLD),
            Tone::Memory => (Some(Color::Cyan), Modifier::empty()),
        };
        let style = Style::new().add_modifier(modifier);
        match color.filter(|_| self.color) {
            Some(color) => style.fg(color),
            None => style,
        }
    }

    /// A text of a worker.
    pub(super) fn clean(self, text: &str) -> String {
        clean(text, self.ascii)
    }

    pub(super) const fn pick<'t>(self, rich: &'t str, ascii: &'t str) -> &'t str {
        if self.ascii { ascii } else { rich }
    }
}

/// Draws everything. `passed_ns`: how old the snapshot is; `place`: where it is from, or what is wrong.
pub(super) fn draw(
    frame: &mut Frame<'_>,
    state: &mut State,
    look: &Look,
    snapshot: &Snapshot,
    passed_ns: u64,
    place: &str,
) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(headline(state, look, snapshot, place, head.width), head);
    let make = |panel: Panel| {
        (panel, panels::table(panel, state, *look, snapshot, passed_ns, usize::from(body.width)))
    };
    let mut tables: Vec<(Panel, Table)> =
        if state.zoomed { vec![make(state.focus)] } else { Panel::ALL.into_iter().map(make).collect() };
    // The last one gives way to the others.
    let needed: usize = tables.iter().map(|(_, table)| table.rows.len().min(6) + 2).sum();
    if needed > usize::from(body.height) && !state.zoomed && state.focus != Panel::Ended {
        tables.pop();
    }
    let heights = share(body.height, &tables.iter().map(|(_, table)| table.rows.len()).collect::<Vec<_>>());
    let mut top = body.y;
    for ((panel, table), height) in tables.into_iter().zip(heights) {
        let area = Rect { y: top, height, ..body };
        panel_in(frame, area, state, *look, panel, table);
        top = top.saturating_add(height);
    }
    frame.render_widget(footer(state, *look, foot.width), foot);
    if state.help {
        help(frame, *look);
    }
}

/// Before the first snapshot.
pub(super) fn wait(frame: &mut Frame<'_>, look: &Look, place: &str) {
    let text = format!("cadscope top: {}{}", look.clean(place), look.pick(", waiting…", ", waiting..."));
    frame.render_widget(Paragraph::new(text), frame.area());
}

fn headline(
    state: &State,
    look: &Look,
    snapshot: &Snapshot,
    place: &str,
    columns: u16,
) -> Paragraph<'static> {
    let rate: f64 = snapshot.kinds.iter().map(|kind| kind.per_second).sum();
    let lost: u64 = snapshot.losses.values().sum();
    let host = look.clean(&snapshot.host);
    let mut pieces = vec![(format!("cadscope {host} "), Tone::Strong)];
    if state.is_paused() {
        pieces.push(("PAUSED ".to_owned(), Tone::Late));
    }
    let (workers, in_flight) = (snapshot.worker_count, snapshot.open.len());
    let plural = if workers == 1 { "" } else { "s" };
    pieces.push((format!(" {workers} worker{plural}  {in_flight} in flight  {rate:.1}/s"), Tone::Plain));
    if lost > 0 {
        pieces.push((format!("  {lost} lost"), Tone::Bad));
    }
    let own = format!(
        "  {}  self {:.1}% {}",
        look.clean(place),
        snapshot.own.cpu_share * 100.0,
        panels::bytes(snapshot.own.resident_bytes)
    );
    pieces.push((own, Tone::Dim));
    Paragraph::new(line(*look, pieces, usize::from(columns)))
}

/// Rows for panels with so many rows each (their title and head not counted): none gets more than it needs while
/// another lacks some.
fn share(height: u16, rows: &[usize]) -> Vec<u16> {
    let needs: Vec<u16> =
        rows.iter().map(|rows| u16::try_from(rows.saturating_add(2)).unwrap_or(u16::MAX)).collect();
    let mut heights: Vec<u16> = needs.iter().map(|need| (*need).clamp(2, LEAST)).collect();
    let mut left = height.saturating_sub(heights.iter().sum());
    while left > 0 {
        let lacking = heights.iter_mut().zip(&needs).filter(|(height, need)| **height < **need);
        let Some((least, _)) = lacking.min_by_key(|(height, _)| **height) else { break };
        *least += 1;
        left -= 1;
    }
    // Where there is not even room for the least, the last ones go.
    let mut room = height;
    for height in &mut heights {
        *height = (*height).min(room);
        room -= *height;
    }
    if let Some(last) = heights.last_mut() {
        *last += room;
    }
    heights
}

fn panel_in(frame: &mut Frame<'_>, area: Rect, state: &mut State, look: Look, panel: Panel, table: Table) {
    let columns = usize::from(area.width);
    let page = usize::from(area.height.saturating_sub(2));
    let first = state.drawn(panel, table.rows.len(), page);
    let focused = state.focus == panel;
    let rule = look.pick("─", "-");
    let mark = if focused { look.pick("▶ ", "> ") } else { "  " };
    let hidden = table.rows.len().saturating_sub(first + page);
    let more = match (first, hidden) {
        (0, 0) => String::new(),
        (above, below) => format!("  {} {above} above, {below} below", look.pick("↕", "|")),
    };
    let title = format!("{mark}{}  {}{more} ", table.title, table.note);
    let filled = columns.saturating_sub(width(&title));
    let tone = if focused { Tone::Strong } else { Tone::Dim };
    let mut lines = vec![line(look, vec![(title, tone), (rule.repeat(filled), Tone::Dim)], columns)];
    if table.rows.is_empty() {
        lines.push(line(look, vec![(format!("  {}", table.empty), Tone::Dim)], columns));
    } else {
        lines.push(line(look, vec![(table.head, Tone::Dim)], columns));
        let rows = table.rows.into_iter().skip(first).take(page);
        lines.extend(rows.map(|row| line(look, row, columns)));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn footer(state: &State, look: Look, columns: u16) -> Paragraph<'static> {
    let pieces = if state.typing {
        vec![
            (format!("filter: {}{}", state.filter, look.pick("▏", "_")), Tone::Strong),
            ("  Enter keeps it, Esc clears it".to_owned(), Tone::Dim),
        ]
    } else {
        let mut pieces = Vec::new();
        if !state.filter.is_empty() {
            pieces.push((format!("filter: {}  ", state.filter), Tone::Late));
        }
        let keys = "q quit  ? help  / filter  Tab panel  z zoom  s sort  r reverse  Space pause";
        pieces.push((keys.to_owned(), Tone::Dim));
        pieces
    };
    Paragraph::new(line(look, pieces, usize::from(columns)))
}

fn help(frame: &mut Frame<'_>, look: Look) {
    const KEYS: [(&str, &str); 13] = [
        ("q, Ctrl-C", "quit"),
        ("Tab, Shift-Tab", "the next panel, the one before"),
        ("1 to 5", "one panel alone: in flight, workers, operations, slow, ended"),
        ("z, Enter", "the panel in focus alone, and back"),
        ("s, r", "sort it by the next column; the other way round"),
        ("arrows, j k, Page, Home, End", "move in it"),
        ("/", "filter: rows with all of these words"),
        ("Esc", "back to all panels; no filter"),
        ("Space", "hold the picture still, and go on"),
        ("", ""),
        ("bars", "age of what is in flight; yellow: longer than 95 % of its kind,"),
        ("", "red: ten times as long"),
        (" ✗ ", "failed: error, exception, killed"),
    ];
    let area = frame.area();
    let columns = area.width.min(76);
    let rows = u16::try_from(KEYS.len()).unwrap_or(20).saturating_add(4).min(area.height);
    let box_area = Rect {
        x: area.x + (area.width - columns) / 2,
        y: area.y + (area.height - rows) / 2,
        width: columns,
        height: rows,
    };
    let inner = usize::from(columns);
    let blank = || Line::styled(" ".repeat(inner), Style::new().add_modifier(Modifier::REVERSED));
    let mut lines = vec![blank()];
    let title = left("  cadscope top: what a node does now. Any key closes this.", inner, look.ascii);
    lines.push(Line::styled(title, Style::new().add_modifier(Modifier::REVERSED | Modifier::BOLD)));
    for (key, what) in KEYS {
        let key = if look.ascii && !key.is_ascii() { "x" } else { key };
        let text = format!("  {}{what}", left(key.trim(), 16, look.ascii));
        // A long key has its own row of the text's room.
        let text = if width(key) > 15 { format!("  {key}: {what}") } else { text };
        lines.push(Line::styled(
            left(&text, inner, look.ascii),
            Style::new().add_modifier(Modifier::REVERSED),
        ));
    }
    lines.push(blank());
    frame.render_widget(Clear, box_area);
    frame.render_widget(Paragraph::new(lines), box_area);
}

/// Pieces in so many columns, the end cut.
fn line(look: Look, pieces: Vec<Piece>, columns: usize) -> Line<'static> {
    let mut room = columns;
    let mut spans = Vec::new();
    for (text, tone) in pieces {
        let text = fit(&text, room, look.ascii);
        room -= width(&text).min(room);
        spans.push(Span::styled(text, look.style(tone)));
    }
    Line::from(spans)
}

/// A duration for a column.
pub(super) fn time(look: Look, ns: u64) -> String {
    if ns == 0 { look.pick("·", "-").to_owned() } else { duration(ns, look.ascii) }
}

#[cfg(test)]
mod tests;
