//! Turns the lists of a snapshot into the rows of panels: filtered, sorted, as wide as the terminal.

use super::draw::{Look, Piece, Tone, time};
use super::state::{Panel, State};
use crate::live::{EndedWorker, KindRow, OpenRow, SlowRow, Snapshot, WorkerRow};
use crate::view::text::{fit, left, right};

/// Columns from which versions and more are shown.
const WIDE: usize = 110;
/// Eighths of a cell.
const BARS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ASCII_HEIGHTS: [char; 8] = ['_', '.', ',', '-', '=', '+', '*', '#'];
/// Ends of the scale of bars, in seconds.
const SCALE: [u64; 15] = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600, 86_400];
const SECOND_NS: u64 = 1_000_000_000;

/// A panel before it is cut to its place.
pub(super) struct Table {
    pub(super) title: &'static str,
    pub(super) note: String,
    pub(super) head: String,
    pub(super) rows: Vec<Vec<Piece>>,
    /// Instead of no rows.
    pub(super) empty: &'static str,
}

/// Makes a panel.
pub(super) fn table(
    panel: Panel,
    state: &State,
    look: Look,
    snapshot: &Snapshot,
    passed_ns: u64,
    columns: usize,
) -> Table {
    let made = Making { state, look, snapshot, passed_ns, columns };
    match panel {
        Panel::Open => made.open(),
        Panel::Workers => made.workers(),
        Panel::Kinds => made.kinds(),
        Panel::Slow => made.slow(),
        Panel::Ended => made.ended(),
    }
}

struct Making<'a> {
    state: &'a State,
    look: Look,
    snapshot: &'a Snapshot,
    passed_ns: u64,
    columns: usize,
}

impl Making<'_> {
    fn open(&self) -> Table {
        let empty = WorkerRow::default();
        let worker =
            |pid: u32| self.snapshot.workers.iter().find(|worker| worker.pid == pid).unwrap_or(&empty);
        let mut open: Vec<(&OpenRow, &WorkerRow, u64)> = self
            .snapshot
            .open
            .iter()
            .map(|row| (row, worker(row.pid), row.age_ns.saturating_add(self.passed_ns)))
            .filter(|(row, worker, _)| {
                let pid = row.pid.to_string();
                self.state.shows(&[
                    &row.title,
                    &row.kind,
                    &row.line,
                    &pid,
                    &worker.program,
                    &worker.job,
                    &worker.pod,
                ])
            })
            .collect();
        if self.state.view(Panel::Open).reversed {
            open.reverse();
        }
        let oldest = open.iter().map(|(_, _, age)| *age).max().unwrap_or(0);
        let scale_ns =
            SCALE.iter().map(|seconds| seconds * SECOND_NS).find(|end| oldest <= *end).unwrap_or(oldest);
        let room = (self.columns / 4).clamp(8, 40);
        let rows = open.iter().map(|(row, worker, age_ns)| {
            let kind = self.snapshot.kinds.iter().find(|kind| kind.kind == row.kind && kind.count > 0);
            let tone = lateness(*age_ns, kind.map(|kind| kind.p95_ns));
            let indent = "  ".repeat(usize::try_from(row.depth).unwrap_or(0).min(6));
            let title = format!(" {indent}{}", self.look.clean(&row.title));
            let whose = self.look.clean(&format!("  {} {} {}", worker.program, row.pid, worker.job));
            vec![
                (right(&time(self.look, *age_ns), 10), tone),
                (" ".to_owned(), Tone::Plain),
                (bar(*age_ns, scale_ns, room, self.look.ascii), tone),
                (title, Tone::Strong),
                (self.line(&row.line), Tone::Plain),
                (whose, Tone::Dim),
            ]
        });
        let note = format!("{}, bars up to {}", open.len(), time(self.look, scale_ns));
        Table {
            title: "In flight",
            note: if open.is_empty() { String::new() } else { note },
            head: format!("{} {} operation, line, worker", right("age", 10), left("", room, true)),
            rows: rows.collect(),
            empty: "nothing",
        }
    }

    fn workers(&self) -> Table {
        let innermost = |pid: u32| self.snapshot.open.iter().rfind(|open| open.pid == pid);
        let mut workers: Vec<&WorkerRow> = self
            .snapshot
            .workers
            .iter()
            .filter(|worker| {
                let now = innermost(worker.pid).map_or("", |open| open.title.as_str());
                let pid = worker.pid.to_string();
                let versions = format!("{} {}", worker.freecad_version, worker.occt_version);
                self.state.shows(&[
                    &worker.program,
                    &worker.job,
                    &worker.pod,
                    &worker.namespace,
                    &worker.container,
                    &worker.flow_type,
                    &versions,
                    &pid,
                    now,
                ])
            })
            .collect();
        let order = self.state.order(Panel::Workers);
        workers.sort_by(|a, b| {
            let by = match order {
                "CPU" => b.cpu_share.unwrap_or(-1.0).total_cmp(&a.cpu_share.unwrap_or(-1.0)),
                "operations" => b.operations.cmp(&a.operations),
                "failed" => b.failed.cmp(&a.failed),
                "age" => b.age_ns.cmp(&a.age_ns),
                "pid" => a.pid.cmp(&b.pid),
                _ => b.resident_bytes.cmp(&a.resident_bytes),
            };
            by.then(a.pid.cmp(&b.pid))
        });
        self.turn(Panel::Workers, &mut workers);
        let name = if self.columns >= WIDE { 24 } else { 18 };
        let wide = self.columns >= WIDE;
        let rows = workers.iter().map(|worker| {
            let versions =
                [&worker.freecad_version, &worker.occt_version].map(|version| match version.as_str() {
                    "" => self.look.pick("·", "-"),
                    version => version,
                });
            let cpu = worker.cpu_share.map_or_else(
                || self.look.pick("·", "-").to_owned(),
                |share| format!("{:.0}%", share * 100.0),
            );
            let pod = if worker.pod.is_empty() { &worker.job } else { &worker.pod };
            let now = innermost(worker.pid).map_or_else(String::new, |open| open.title.clone());
            let mut row = vec![
                (right(&worker.pid.to_string(), 7), Tone::Plain),
                (
                    format!(" {}", left(&self.look.clean(&worker.program), name, self.look.ascii)),
                    Tone::Strong,
                ),
            ];
            if wide {
                row.push((format!(" {}", left(&self.look.clean(pod), 20, self.look.ascii)), Tone::Plain));
                row.push((
                    left(&format!(" {} / {}", versions[0], versions[1]), 17, self.look.ascii),
                    Tone::Plain,
                ));
            }
            row.extend([
                (right(&self.count(worker.operations), 7), Tone::Plain),
                (right(&self.count(worker.failed), 5), if worker.failed > 0 { Tone::Bad } else { Tone::Dim }),
                (right(&cpu, 6), Tone::Plain),
                (right(&bytes(worker.resident_bytes), 7), Tone::Plain),
                (format!(" {}", spark(&worker.memory_kib, 12, self.look.ascii)), Tone::Memory),
                (format!(" {}", self.look.clean(&now)), Tone::Plain),
            ]);
            row
        });
        let versions = if wide {
            format!("{}{}", left(" pod or job", 21, true), left(" FreeCAD / OCCT", 17, true))
        } else {
            String::new()
        };
        let all = self.snapshot.worker_count;
        let number =
            if workers.len() < all { format!("{} of {all}", workers.len()) } else { all.to_string() };
        Table {
            title: "Workers",
            note: format!("{number}, {}", self.sorted(Panel::Workers)),
            head: format!(
                "{} {}{versions}{}{}{}{} {} now",
                right("pid", 7),
                left("program", name, true),
                right("ops", 7),
                right("fail", 5),
                right("CPU", 6),
                right("memory", 7),
                left("", 12, true)
            ),
            rows: rows.collect(),
            empty: "none is running",
        }
    }

    fn kinds(&self) -> Table {
        let mut kinds: Vec<&KindRow> =
            self.snapshot.kinds.iter().filter(|kind| self.state.shows(&[&kind.kind])).collect();
        let order = self.state.order(Panel::Kinds);
        kinds.sort_by(|a, b| {
            let by = match order {
                "rate" => b.per_second.total_cmp(&a.per_second),
                "count" => b.count.cmp(&a.count),
                "failed" => b.failed.cmp(&a.failed),
                "p95" => b.p95_ns.cmp(&a.p95_ns),
                "longest" => b.max_ns.cmp(&a.max_ns),
                "name" => a.kind.cmp(&b.kind),
                _ => b.total_ns.cmp(&a.total_ns),
            };
            by.then_with(|| a.kind.cmp(&b.kind))
        });
        self.turn(Panel::Kinds, &mut kinds);
        let name = self.columns.saturating_sub(58).clamp(12, 60);
        let rows = kinds.iter().map(|kind| {
            let cell = |ns: u64| (right(&time(self.look, ns), 10), Tone::Plain);
            vec![
                (format!("  {}", left(&self.look.clean(&kind.kind), name, self.look.ascii)), Tone::Strong),
                (right(&self.rate(kind.per_second), 7), Tone::Plain),
                (right(&self.count(kind.count), 8), Tone::Plain),
                (right(&self.count(kind.failed), 6), if kind.failed > 0 { Tone::Bad } else { Tone::Dim }),
                cell(kind.p50_ns),
                cell(kind.p95_ns),
                cell(kind.max_ns),
            ]
        });
        Table {
            title: "Operations",
            note: format!("{}, {}", kinds.len(), self.sorted(Panel::Kinds)),
            head: format!(
                "  {}{}{}{}{}{}{}",
                left("kind", name, true),
                right("/s", 7),
                right("count", 8),
                right("fail", 6),
                right("p50", 10),
                right("p95", 10),
                right("longest", 10)
            ),
            rows: rows.collect(),
            empty: "none has ended yet",
        }
    }

    fn slow(&self) -> Table {
        let mut slow: Vec<&SlowRow> = self
            .snapshot
            .slow
            .iter()
            .filter(|row| {
                let (pid, within) = (row.pid.to_string(), row.within.join(" "));
                self.state.shows(&[
                    &row.title,
                    &row.line,
                    &row.program,
                    &row.job,
                    &row.exception,
                    &row.outcome,
                    &pid,
                    &within,
                ])
            })
            .collect();
        if self.state.order(Panel::Slow) == "duration" {
            slow.sort_by_key(|row| std::cmp::Reverse(row.duration_ns));
        }
        self.turn(Panel::Slow, &mut slow);
        let rows = slow.iter().map(|row| {
            let ago = self.snapshot.at_ms.saturating_sub(row.at_ms).saturating_mul(1_000_000);
            let within: Vec<String> =
                row.within.iter().map(|outer| format!("  in {}", self.look.clean(outer))).collect();
            let (ending, tone) = self.outcome(&row.outcome, &row.exception);
            vec![
                (right(&self.ago(ago), 9), Tone::Dim),
                (right(&time(self.look, row.duration_ns), 10), Tone::Late),
                (format!("  {}", self.look.clean(&row.title)), Tone::Strong),
                (ending, tone),
                (self.line(&row.line), Tone::Plain),
                (within.concat(), Tone::Dim),
                (self.look.clean(&format!("  {} {} {}", row.program, row.pid, row.job)), Tone::Dim),
            ]
        });
        Table {
            title: "Slow",
            note: self.sorted(Panel::Slow),
            head: format!("{}{}  operation, line, what it is in", right("ago", 9), right("took", 10)),
            rows: rows.collect(),
            empty: "none so far",
        }
    }

    fn ended(&self) -> Table {
        let mut ended: Vec<&EndedWorker> = self
            .snapshot
            .ended
            .iter()
            .filter(|row| {
                self.state.shows(&[
                    &row.program,
                    &row.job,
                    &row.flow_type,
                    &row.how,
                    &row.operation,
                    &row.pid.to_string(),
                ])
            })
            .collect();
        self.turn(Panel::Ended, &mut ended);
        let rows = ended.iter().map(|row| {
            let ago = self.snapshot.at_ms.saturating_sub(row.at_ms).saturating_mul(1_000_000);
            let tone = match row.how.as_str() {
                "success" => Tone::Good,
                "killed" | "oom" => Tone::Killed,
                "unseen" => Tone::Dim,
                _ => Tone::Bad,
            };
            let by = match row.code {
                _ if !row.signal.is_empty() => format!(" {}", row.signal),
                Some(code) if row.how != "success" || code != 0 => format!(" exit {code}"),
                _ => String::new(),
            };
            let operation =
                if row.operation.is_empty() { String::new() } else { format!(" in {}", row.operation) };
            vec![
                (right(&self.ago(ago), 9), Tone::Dim),
                (format!("  {}", left(&format!("{}{by}", row.how), 18, self.look.ascii)), tone),
                (self.look.clean(&format!("{} {} {}", row.program, row.pid, row.job)), Tone::Strong),
                (self.look.clean(&operation), Tone::Killed),
                (
                    format!("  ran {}, {} operations", time(self.look, row.lived_ns), row.operations),
                    Tone::Plain,
                ),
                (if row.failed > 0 { format!(", {} failed", row.failed) } else { String::new() }, Tone::Bad),
            ]
        });
        Table {
            title: "Ended",
            note: format!("the last {}", ended.len()),
            head: format!("{}  {}worker", right("ago", 9), left("how", 18, true)),
            rows: rows.collect(),
            empty: "none so far",
        }
    }

    fn turn<T>(&self, panel: Panel, rows: &mut [T]) {
        if self.state.view(panel).reversed {
            rows.reverse();
        }
    }

    fn sorted(&self, panel: Panel) -> String {
        let way = if self.state.view(panel).reversed {
            self.look.pick("↑", "^")
        } else {
            self.look.pick("↓", "v")
        };
        format!("by {} {way}", self.state.order(panel))
    }

    /// The line of the job, after what it called.
    fn line(&self, line: &str) -> String {
        if line.is_empty() { String::new() } else { format!("  {}", self.look.clean(line)) }
    }

    fn outcome(&self, outcome: &str, exception: &str) -> (String, Tone) {
        let tone = match outcome {
            "ok" => return (String::new(), Tone::Plain),
            "killed" => Tone::Killed,
            _ => Tone::Bad,
        };
        let what = if exception.is_empty() { outcome } else { exception };
        (format!(" {} {}", self.look.pick("✗", "x"), self.look.clean(what)), tone)
    }

    fn count(&self, count: u64) -> String {
        match count {
            0 => self.look.pick("·", "-").to_owned(),
            1..1_000_000 => count.to_string(),
            _ => format!("{:.1}M", count as f64 / 1e6),
        }
    }

    fn rate(&self, rate: f64) -> String {
        match rate {
            0.0 => self.look.pick("·", "-").to_owned(),
            rate if rate < 100.0 => format!("{rate:.1}"),
            rate => format!("{rate:.0}"),
        }
    }

    fn ago(&self, ns: u64) -> String {
        let seconds = ns.saturating_add(self.passed_ns) / SECOND_NS;
        match seconds {
            0..60 => format!("{seconds} s"),
            60..3600 => format!("{} m {:02} s", seconds / 60, seconds % 60),
            _ => format!("{} h {:02} m", seconds / 3600, seconds % 3600 / 60),
        }
    }
}

/// Longer than 95 of 100 of its kind, or ten times as long.
fn lateness(age_ns: u64, p95_ns: Option<u64>) -> Tone {
    match p95_ns {
        Some(p95) if age_ns > p95.saturating_mul(10) && age_ns > SECOND_NS => Tone::Bad,
        Some(p95) if age_ns > p95 && age_ns > SECOND_NS / 10 => Tone::Late,
        _ => Tone::Good,
    }
}

/// A bar from the left, to an eighth of a cell.
fn bar(value: u64, whole: u64, columns: usize, ascii: bool) -> String {
    let columns_u64 = u64::try_from(columns).unwrap_or(0);
    let eighths = u128::from(value) * u128::from(columns_u64) * 8 / u128::from(whole.max(1));
    let eighths = usize::try_from(eighths).unwrap_or(usize::MAX).clamp(1, columns.saturating_mul(8));
    let (full, part) = (eighths / 8, eighths % 8);
    let mut out: String = std::iter::repeat_n(if ascii { '#' } else { '█' }, full).collect();
    if part > 0 {
        out.push(if ascii { '#' } else { BARS.get(part - 1).copied().unwrap_or('▏') });
    }
    left(&out, columns, ascii)
}

/// The last so many values, as heights.
fn spark(values: &[u64], columns: usize, ascii: bool) -> String {
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    let heights = if ascii { ASCII_HEIGHTS } else { HEIGHTS };
    let last = values.iter().skip(values.len().saturating_sub(columns));
    let drawn: String = last
        .filter_map(|value| {
            heights.get(usize::try_from(u128::from(*value) * 7 / u128::from(most)).unwrap_or(7))
        })
        .collect();
    right(&fit(&drawn, columns, ascii), columns)
}

/// Bytes in five columns: `512K`, `12.3M`, `1.2G`.
pub(super) fn bytes(bytes: u64) -> String {
    let value = bytes as f64;
    for (unit, size) in [("G", 1_073_741_824.0), ("M", 1_048_576.0), ("K", 1024.0)] {
        if value >= size {
            let scaled = value / size;
            return if scaled < 9.95 { format!("{scaled:.1}{unit}") } else { format!("{scaled:.0}{unit}") };
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow_by_eighths() {
        assert_eq!(bar(0, 100, 4, false), "▏   ");
        assert_eq!(bar(50, 100, 4, false), "██  ");
        assert_eq!(bar(54, 100, 4, false), "██▏ ");
        assert_eq!(bar(100, 100, 4, false), "████");
        assert_eq!(bar(200, 100, 4, true), "####");
    }

    #[test]
    fn sparklines_end_now() {
        assert_eq!(spark(&[0, 50, 100], 5, false), "  ▁▄█");
        assert_eq!(spark(&[9, 9, 0, 100], 2, true), "_#");
        assert_eq!(spark(&[], 3, false), "   ");
    }

    #[test]
    fn bytes_are_short() {
        for (number, text) in
            [(0, "0B"), (1023, "1023B"), (1536, "1.5K"), (300 << 20, "300M"), (5 << 30, "5.0G")]
        {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn late_is_longer_than_most_of_its_kind() {
        assert_eq!(lateness(5 * SECOND_NS, None), Tone::Good);
        assert_eq!(lateness(5 * SECOND_NS, Some(SECOND_NS)), Tone::Late);
        assert_eq!(lateness(50 * SECOND_NS, Some(SECOND_NS)), Tone::Bad);
        assert_eq!(lateness(1000, Some(1)), Tone::Good);
    }
}
