//! Turns a report into one HTML page: waterfall with zoom and search, totals, memory.
//!
//! The page is whole in itself: no network, which its content security policy makes sure of. Its data is JSON in a
//! script element; what a worker wrote stands there escaped, and reaches the page as text only.

use serde_json::{Value as Json, json};

use super::forest::{Node, duration_ns};
use super::{TraceReport, WorkerReport, by_worker, ending, exit_text, kind, title, totals};
use crate::operation::Value;
use crate::python::Frame;

/// The page around the data.
const TEMPLATE: &str = include_str!("page.html");
/// Where the data goes.
const PLACE: &str = "\"DATA\"";

/// The page.
#[must_use]
pub fn render_page(report: &TraceReport) -> String {
    TEMPLATE.replacen(PLACE, &escaped(&data(report).to_string()), 1)
}

/// JSON that cannot leave its script element.
fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            other => out.push(other),
        }
    }
    out
}

/// Times are nanoseconds since the beginning of the report.
fn data(report: &TraceReport) -> Json {
    let begin_ns = report.begin_ns();
    let workers = by_worker(report);
    let totals = totals::by_kind(workers.iter().flat_map(|(_, roots)| roots));
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "command": report.command.join(" "),
        "workers": workers.iter().map(|(worker, roots)| of_worker(worker, roots, begin_ns)).collect::<Vec<_>>(),
        "totals": totals.iter().map(|(name, total)| json!({
            "kind": name,
            "count": total.count(),
            "failed": total.failed,
            "total": total.sum(),
            "self": total.self_ns,
            "p50": total.median(),
            "max": total.max(),
        })).collect::<Vec<_>>(),
        "losses": report.losses,
        "late": report.late_by_process().into_iter().map(|(pid, files)| {
            json!([pid, files.iter().map(|late| json!([late.name(), late.whole_ns()])).collect::<Vec<_>>()])
        }).collect::<Vec<_>>(),
        "skipped": report.skipped.iter().map(|skip| json!([skip.probe, skip.reason, skip.file])).collect::<Vec<_>>(),
    })
}

fn of_worker(report: &WorkerReport, roots: &[Node<'_>], begin_ns: u64) -> Json {
    let worker = &report.worker;
    let mut rows = Vec::new();
    for root in roots {
        row(root, 0, begin_ns, &mut rows);
    }
    json!({
        "pid": worker.process.pid,
        "program": worker.program,
        "freecad": worker.freecad_version,
        "occt": worker.occt_version,
        "job": worker.job.id,
        "start": report.started_ns.saturating_sub(begin_ns),
        "end": report.ended_ns.saturating_sub(begin_ns),
        "exit": exit_text(report.exit),
        "good": report.exit.is_none_or(|exit| exit.code == Some(0)),
        "memory": report.memory.iter().map(|(at_ns, bytes)| json!([at_ns.saturating_sub(begin_ns), bytes])).collect::<Vec<_>>(),
        "rows": rows,
    })
}

fn line(frame: &Frame) -> String {
    format!("{}:{} {}", frame.file, frame.line, frame.function)
}

fn row(node: &Node<'_>, depth: usize, begin_ns: u64, rows: &mut Vec<Json>) {
    let operation = node.operation;
    let values: serde_json::Map<String, Json> = operation
        .values
        .iter()
        .map(|(name, value)| {
            let value = match value {
                Value::Int(number) => json!(number),
                Value::Text(text) => json!(text.as_ref()),
            };
            (name.clone(), value)
        })
        .collect();
    rows.push(json!({
        "s": operation.start_ns.saturating_sub(begin_ns),
        "d": duration_ns(operation),
        "own": node.self_ns(),
        "l": depth,
        "t": title(operation),
        "k": kind(operation),
        "o": operation.outcome.as_str(),
        "e": ending(operation),
        "tid": operation.tid,
        "f": operation.probe.function,
        "v": values,
        "line": operation.source.as_deref().map(|source| line(&source.at)),
        "stack": operation.source.as_deref().map(|source| source.stack.iter().map(line).collect::<Vec<_>>()),
    }));
    for child in &node.children {
        row(child, depth + 1, begin_ns, rows);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::operation::{Operation, Outcome};
    use crate::samples;

    fn report(name: &str) -> TraceReport {
        let (probe, worker) =
            (Arc::new(samples::probe("p.q", "work on {object}")), samples::worker(7, "freecadcmd"));
        let mut outer = samples::operation(&probe, &worker, 1.0, 5.0);
        outer.values = [samples::text("object", name)].into();
        let inner = Operation {
            parent_start_ns: Some(1_000_000),
            depth: 1,
            outcome: Outcome::Exception,
            exception: Some("Standard_Failure".into()),
            ..samples::operation(&probe, &worker, 2.0, 3.0)
        };
        TraceReport {
            workers: vec![WorkerReport {
                started_ns: 1_000_000,
                ended_ns: 6_000_000,
                ..WorkerReport::new(worker)
            }],
            operations: vec![outer, inner],
            ..TraceReport::default()
        }
    }

    fn data_of(page: &str) -> Json {
        let begin = page.find("type=\"application/json\">").unwrap() + "type=\"application/json\">".len();
        let end = begin + page[begin..].find("</script>").unwrap();
        serde_json::from_str(&page[begin..end]).unwrap()
    }

    #[test]
    fn the_page_holds_the_report() {
        let data = data_of(&render_page(&report("Box")));
        let rows = data["workers"][0]["rows"].as_array().unwrap();
        assert_eq!(
            (&rows[0]["t"], &rows[0]["s"], &rows[0]["d"]),
            (&json!("work on Box"), &json!(0), &json!(4_000_000))
        );
        assert_eq!((&rows[1]["l"], &rows[1]["e"]), (&json!(1), &json!("Standard_Failure")));
        assert_eq!(data["totals"][0]["count"], 2);
    }

    #[test]
    fn nothing_a_worker_writes_leaves_its_place() {
        let hostile = "</script><script>alert(1)</script><!-- \u{2028} & \"DATA\" ";
        let page = render_page(&report(hostile));
        assert_eq!(page.matches("</script>").count(), TEMPLATE.matches("</script>").count());
        assert!(!page.contains("alert(1)</"));
        let title = format!("work on {hostile}");
        assert_eq!(data_of(&page)["workers"][0]["rows"][0]["t"].as_str().unwrap(), title);
    }

    #[test]
    fn the_page_asks_nobody_for_anything() {
        assert!(TEMPLATE.contains("default-src 'none'"));
        for outside in ["http:", "https:", "src=", "@import", "url("] {
            assert!(!TEMPLATE.contains(outside), "{outside}");
        }
        assert_eq!(TEMPLATE.matches(PLACE).count(), 1);
    }
}
