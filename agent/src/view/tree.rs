//! Turns a report into the waterfall that people read: nested rows with their place in time, totals, and what was not seen.
//!
//! Bars share one scale, from the first start to the last end of the whole report, so workers that ran side by side are
//! seen side by side. Rows are not wider than asked; names are cleaned of what could steer a terminal.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::bar::{self, Canvas};
use super::forest::{self, Node, Row, duration_ns};
use super::text::{clean, duration, duration_cell, fit, left, right, width};
use super::{Exit, TraceReport, WorkerReport, by_worker, ending, exit_text, kind, title, totals};
use crate::operation::{Operation, Outcome, Worker};

/// How to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeOptions {
    /// Columns; taken as at least 72.
    pub width: usize,
    /// Colours; the caller honours `NO_COLOR` and looks whether it writes to a terminal.
    pub color: bool,
    /// ASCII only, for locales that are not UTF-8.
    pub ascii: bool,
    /// Every row, however many.
    pub full: bool,
    /// Operations above which short repeated rows are folded.
    pub max_rows: usize,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self { width: 100, color: false, ascii: false, full: false, max_rows: 200 }
    }
}

/// The waterfall.
#[must_use]
pub fn render_tree(report: &TraceReport, options: &TreeOptions) -> String {
    let mut page = Page::new(report, options);
    if !report.command.is_empty() {
        let command = fit(&clean(&report.command.join(" "), options.ascii), page.width - 2, options.ascii);
        page.paint(Style::Dim, &format!("$ {command}"));
        page.out.push('\n');
    }
    let workers = by_worker(report);
    for (worker, operations) in &workers {
        page.worker(worker, operations);
    }
    page.totals(&workers);
    page.not_seen(report);
    if page.out.is_empty() {
        page.out.push_str("no worker was seen\n");
    }
    page.out
}

/// What an operation added to its process's memory at its peak, where that is worth a word.
fn grown(operation: &Operation) -> String {
    const MIB: f64 = 1_048_576.0;
    let mib = operation.memory.map_or(0.0, |memory| memory.growth_bytes() as f64 / MIB);
    if mib < 1.0 { String::new() } else { format!(" +{mib:.0} MiB") }
}

/// Columns of a start or a duration.
const TIME: usize = 9;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Plain,
    Dim,
    Bold,
    Good,
    Bad,
    Killed,
    Bar,
}

impl Style {
    const fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Ok => Self::Plain,
            Outcome::Error | Outcome::Exception => Self::Bad,
            Outcome::Killed => Self::Killed,
        }
    }

    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Dim => "\x1b[2m",
            Self::Bold => "\x1b[1m",
            Self::Good => "\x1b[32m",
            Self::Bad => "\x1b[31m",
            Self::Killed => "\x1b[35m",
            Self::Bar => "\x1b[36m",
        }
    }
}

/// The text under construction.
struct Page {
    options: TreeOptions,
    width: usize,
    /// Columns of a bar.
    bar: usize,
    /// What a bar's columns stand for.
    from_ns: u64,
    whole_ns: u64,
    /// Rows shorter than this may be folded.
    short_ns: u64,
    out: String,
}

impl Page {
    fn new(report: &TraceReport, options: &TreeOptions) -> Self {
        let lives = report.workers.iter().map(|worker| (worker.started_ns, worker.ended_ns));
        let calls = report.operations.iter().map(|operation| (operation.start_ns, operation.end_ns));
        let (mut from_ns, mut to_ns) = (u64::MAX, 0);
        for (start, end) in lives.chain(calls) {
            from_ns = from_ns.min(start);
            to_ns = to_ns.max(end);
        }
        let whole_ns = to_ns.saturating_sub(from_ns).max(1);
        let width = options.width.max(72);
        let fold = !options.full && report.operations.len() > options.max_rows;
        Self {
            options: *options,
            width,
            bar: (width / 4).min(40),
            from_ns,
            whole_ns,
            short_ns: if fold { (whole_ns / 100).max(1) } else { 0 },
            out: String::new(),
        }
    }

    fn paint(&mut self, style: Style, text: &str) {
        if self.options.color && style != Style::Plain && !text.is_empty() {
            self.out.push_str(style.code());
            self.out.push_str(text);
            self.out.push_str("\x1b[0m");
        } else {
            self.out.push_str(text);
        }
    }

    /// One of two texts, by what the terminal can show.
    fn glyph(&self, unicode: &'static str, ascii: &'static str) -> &'static str {
        if self.options.ascii { ascii } else { unicode }
    }

    fn duration(&self, ns: u64) -> String {
        duration(ns, self.options.ascii)
    }

    fn time(&self, ns: u64) -> String {
        right(&duration_cell(ns, self.options.ascii), TIME)
    }

    /// Ends a line without trailing blanks.
    fn end_line(&mut self) {
        self.out.truncate(self.out.trim_end_matches(' ').len());
        self.out.push('\n');
    }

    fn worker(&mut self, report: &WorkerReport, roots: &[Node<'_>]) {
        if !self.out.is_empty() {
            self.out.push('\n');
        }
        let Worker { process, program, freecad_version, occt_version, .. } = report.worker.as_ref();
        let separator = self.glyph(" · ", ", ");
        let program = fit(&clean(program, self.options.ascii), self.width / 4, self.options.ascii);
        self.paint(Style::Bold, &program);
        let mut facts = format!("{separator}pid {}", process.pid);
        for (product, version) in [("FreeCAD", freecad_version), ("OCCT", occt_version)] {
            if !version.is_empty() {
                let _ = write!(facts, "{separator}{product} {}", clean(version, self.options.ascii));
            }
        }
        let life = report.ended_ns.saturating_sub(report.started_ns);
        let _ = write!(facts, "{separator}{}{separator}", self.duration(life));
        self.out.push_str(&facts);
        let exit = exit_text(report.exit);
        let style = match report.exit {
            None => Style::Dim,
            Some(Exit { signal: Some(_), .. }) => Style::Killed,
            Some(Exit { code: Some(0), .. }) => Style::Good,
            Some(Exit { code: Some(_), .. }) => Style::Bad,
            Some(Exit { code: None, signal: None }) => Style::Plain,
        };
        self.paint(style, &exit);
        self.out.push('\n');
        if roots.is_empty() {
            self.paint(Style::Dim, "  no operations");
            self.out.push('\n');
            return;
        }
        self.axis();
        self.rows(roots, "", true);
    }

    fn axis(&mut self) {
        let whole = self.duration(self.whole_ns);
        let axis = format!("0{}", right(&whole, self.bar.saturating_sub(1)));
        let line = format!("{} {}  {axis}", right("start ", TIME), right("duration ", TIME));
        self.paint(Style::Dim, &line);
        self.out.push('\n');
    }

    fn rows(&mut self, siblings: &[Node<'_>], guide: &str, roots: bool) {
        let rows = forest::fold(siblings, self.short_ns);
        let count = rows.len();
        for (position, row) in rows.iter().enumerate() {
            let last = position + 1 == count;
            let (branch, below) = match (roots, last) {
                (true, _) => ("", ""),
                (false, false) => (self.glyph("├ ", "|-"), self.glyph("│ ", "| ")),
                (false, true) => (self.glyph("└ ", "`-"), "  "),
            };
            self.row(row, &format!("{guide}{branch}"), roots);
            if let Row::One(node) = row {
                self.rows(&node.children, &format!("{guide}{below}"), false);
            }
        }
    }

    fn row(&mut self, row: &Row<'_, '_>, guide: &str, root: bool) {
        let Some(operation) = row.first() else { return };
        let (name, detail, ns, end_ns) = match row {
            Row::One(node) => {
                let name = clean(&title(operation), self.options.ascii);
                let orphan = if node.orphan { self.glyph("⋯ ", "... ") } else { "" };
                (
                    format!("{orphan}{name}{}{}", grown(operation), self.line(operation)),
                    self.ending(operation),
                    duration_ns(operation),
                    operation.end_ns,
                )
            }
            Row::Folded(nodes) => self.folded(nodes),
        };
        let start = self.time(operation.start_ns.saturating_sub(self.from_ns));
        self.paint(Style::Dim, &start);
        let time = self.time(ns);
        let _ = write!(self.out, " {time}  ");
        let folded = matches!(row, Row::Folded(_));
        let bar = bar::draw(
            (operation.start_ns.saturating_sub(self.from_ns), end_ns.saturating_sub(self.from_ns)),
            self.whole_ns,
            &Canvas { columns: self.bar, ascii: self.options.ascii, folded },
        );
        let style = if operation.outcome == Outcome::Ok { Style::Bar } else { Style::of(operation.outcome) };
        self.paint(style, &bar);
        self.out.push(' ');

        let room = self.width.saturating_sub(2 * TIME + 4 + self.bar);
        // Deep rows keep the inner end of their guide.
        let guide_width = width(guide).min(room / 2);
        let guide: String = guide.chars().skip(width(guide) - guide_width).collect();
        self.paint(Style::Dim, &guide);
        let mut room = room - guide_width;
        if root && operation.tid != operation.worker.process.pid {
            let thread = format!("[{}] ", operation.tid);
            room = room.saturating_sub(thread.len());
            self.paint(Style::Dim, &thread);
        }
        let mark = match operation.outcome {
            Outcome::Ok => "",
            Outcome::Error | Outcome::Exception => self.glyph("✗ ", "x "),
            Outcome::Killed => self.glyph("† ", "! "),
        };
        let style = Style::of(operation.outcome);
        self.paint(style, mark);
        let room = room.saturating_sub(width(mark));
        // The ending is worth more than the end of a long name, up to two thirds of the place.
        let detail = fit(&detail, room * 2 / 3, self.options.ascii);
        let name = fit(&name, room.saturating_sub(width(&detail)), self.options.ascii);
        self.paint(if folded && style == Style::Plain { Style::Dim } else { Style::Plain }, &name);
        self.paint(if style == Style::Plain { Style::Bad } else { style }, &detail);
        self.end_line();
    }

    /// The line of the job that called it: the name of the file says enough here.
    fn line(&self, operation: &Operation) -> String {
        let Some(source) = &operation.source else { return String::new() };
        let file = source.at.file.rsplit('/').next().unwrap_or_default();
        clean(&format!("  {file}:{}", source.at.line), self.options.ascii)
    }

    /// Why it did not end well.
    fn ending(&self, operation: &Operation) -> String {
        let ending = ending(operation);
        if ending.is_empty() { ending } else { format!(": {}", clean(&ending, self.options.ascii)) }
    }

    /// Name, failures, total and end of several rows as one.
    fn folded(&self, nodes: &[&Node<'_>]) -> (String, String, u64, u64) {
        let total = nodes.iter().map(|node| duration_ns(node.operation)).fold(0, u64::saturating_add);
        let end = nodes.iter().map(|node| node.operation.end_ns).max().unwrap_or_default();
        let mut failed = 0_usize;
        for node in nodes {
            node.inside(&mut |operation| failed += usize::from(operation.outcome != Outcome::Ok));
        }
        let mut kinds: Vec<_> = nodes.iter().map(|node| kind(node.operation)).collect();
        kinds.dedup();
        let name = match kinds.as_slice() {
            [one] => one.clone(),
            // Of several kinds, what their titles have in common.
            _ => nodes.first().map(|node| node.operation.probe.common_title()).unwrap_or_default(),
        };
        let text = format!(
            "{} {} {} {} (total {})",
            self.glyph("…", "..."),
            nodes.len(),
            self.glyph("×", "x"),
            clean(&name, self.options.ascii),
            self.duration(total)
        );
        let inside = if failed > 0 { format!(": {failed} failed") } else { String::new() };
        (text, inside, total, end)
    }

    fn totals(&mut self, workers: &[(WorkerReport, Vec<Node<'_>>)]) {
        let totals = totals::by_kind(workers.iter().flat_map(|(_, roots)| roots));
        if totals.is_empty() {
            return;
        }
        let totals: Vec<_> =
            totals.into_iter().map(|(name, total)| (clean(&name, self.options.ascii), total)).collect();
        let shown = if self.options.full { totals.len() } else { KINDS };
        let longest = totals.iter().take(shown).map(|(name, _)| width(name)).max().unwrap_or_default();
        let name_width =
            longest.max("operation".len()).min(self.width.saturating_sub(2 * 8 + 4 * (TIME + 1)));
        let heads = [("total ", TIME), ("self ", TIME), ("p50 ", TIME), ("max ", TIME)];
        let heads: String =
            heads.iter().map(|(head, columns)| format!(" {}", right(head, *columns))).collect();
        let operation = left("operation", name_width, self.options.ascii);
        self.out.push('\n');
        self.paint(
            Style::Dim,
            format!("{operation}{}{}{heads}", right("count", 8), right("failed", 8)).trim_end(),
        );
        self.out.push('\n');
        for (name, total) in totals.iter().take(shown) {
            let name = left(name, name_width, self.options.ascii);
            let _ = write!(self.out, "{name}{:>8}", total.count());
            let failed = right(
                &if total.failed == 0 { self.glyph("·", "-").to_owned() } else { total.failed.to_string() },
                8,
            );
            self.paint(if total.failed == 0 { Style::Dim } else { Style::Bad }, &failed);
            for ns in [total.sum(), total.self_ns, total.median(), total.max()] {
                let cell = self.time(ns);
                let _ = write!(self.out, " {cell}");
            }
            self.end_line();
        }
        if let Some(more) = totals.len().checked_sub(shown).filter(|more| *more > 0) {
            let line = format!("{} {more} more kinds", self.glyph("…", "..."));
            self.paint(Style::Dim, &line);
            self.out.push('\n');
        }
    }

    fn not_seen(&mut self, report: &TraceReport) {
        let losses: Vec<_> = report.losses.iter().filter(|(_, count)| **count > 0).collect();
        let mut skipped: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for skip in &report.skipped {
            skipped.entry(&skip.reason).or_default().push(&skip.probe);
        }
        if losses.is_empty() && skipped.is_empty() && report.late.is_empty() {
            return;
        }
        self.out.push('\n');
        self.paint(Style::Bold, "not seen");
        self.out.push('\n');
        for (reason, count) in losses {
            let line = format!("  {count} lost: {}", clean(reason, self.options.ascii));
            let line = fit(&line, self.width, self.options.ascii);
            self.paint(Style::Bad, &line);
            self.out.push('\n');
        }
        for (pid, files) in report.late_by_process() {
            let names: Vec<String> = files
                .iter()
                .map(|late| format!("{} {}", late.name(), self.duration(late.whole_ns())))
                .collect();
            let line = format!("  process {pid}, until probes were in place: {}", names.join(", "));
            let line = fit(&clean(&line, self.options.ascii), self.width, self.options.ascii);
            self.out.push_str(&line);
            self.out.push('\n');
        }
        for (reason, mut probes) in skipped {
            probes.sort_unstable();
            probes.dedup();
            let noun = if probes.len() == 1 { "probe" } else { "probes" };
            let line = format!("  {} {noun} skipped, {reason}: {}", probes.len(), probes.join(", "));
            let line = fit(&clean(&line, self.options.ascii), self.width, self.options.ascii);
            self.out.push_str(&line);
            self.out.push('\n');
        }
    }
}

/// Kinds of operations in the table.
const KINDS: usize = 40;

#[cfg(test)]
mod tests;
