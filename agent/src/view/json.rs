//! Turns a report into JSON, schema 1: times in nanoseconds of CLOCK_MONOTONIC, absent values as null.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::{Skipped, TraceReport, WorkerReport, title};
use crate::operation::{Operation, Value};
use crate::python::{Frame, Source};
use crate::workers::Late;

/// The report as one object.
#[must_use]
pub fn render_json(report: &TraceReport) -> Json {
    json!({
        "schema": 1,
        "command": report.command,
        "workers": report.workers.iter().map(worker).collect::<Vec<_>>(),
        "operations": report.operations.iter().map(operation).collect::<Vec<_>>(),
        "losses": report.losses,
        "skipped": report.skipped.iter().map(skipped).collect::<Vec<_>>(),
        "late": report.late.iter().map(late).collect::<Vec<_>>(),
    })
}

fn worker(report: &WorkerReport) -> Json {
    json!({
        "pid": report.worker.process.pid,
        "program": report.worker.program,
        "freecad_version": report.worker.freecad_version,
        "occt_version": report.worker.occt_version,
        "started_ns": report.started_ns,
        "ended_ns": report.ended_ns,
        "exit": report.exit.map(|exit| json!({ "code": exit.code, "signal": exit.signal })),
    })
}

fn operation(operation: &Operation) -> Json {
    let values: BTreeMap<_, _> = operation
        .values
        .iter()
        .map(|(name, value)| match value {
            Value::Int(number) => (name.as_str(), json!(number)),
            Value::Text(text) => (name.as_str(), json!(text.as_ref())),
        })
        .collect();
    json!({
        "pid": operation.worker.process.pid,
        "tid": operation.tid,
        "start_ns": operation.start_ns,
        "end_ns": operation.end_ns,
        "parent_start_ns": operation.parent_start_ns,
        "depth": operation.depth,
        "probe": operation.probe.id,
        "name": title(operation),
        "outcome": operation.outcome.as_str(),
        "ended_by": operation.ended_by,
        "exception": operation.exception.as_deref(),
        "signal": operation.signal,
        "values": values,
        "memory": operation.memory.map(|memory| json!({
            "entry_bytes": memory.entry_bytes,
            "exit_bytes": memory.exit_bytes,
            "peak_bytes": memory.peak_bytes,
        })),
        "source": operation.source.as_deref().map(source),
    })
}

fn source(source: &Source) -> Json {
    let frame = |frame: &Frame| json!({ "file": frame.file, "line": frame.line, "function": frame.function });
    json!({ "at": frame(&source.at), "stack": source.stack.iter().map(frame).collect::<Vec<_>>() })
}

fn skipped(skipped: &Skipped) -> Json {
    json!({ "file": skipped.file, "probe": skipped.probe, "reason": skipped.reason })
}

fn late((pid, late): &(u32, Late)) -> Json {
    json!({
        "pid": pid,
        "file": late.path,
        "mapped_ns": late.mapped_ns,
        "unseen_ns": late.whole_ns(),
        "notice_ns": late.notice_ns,
        "analyse_ns": late.analyse_ns,
        "place_ns": late.place_ns,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::memory::Memory;
    use crate::operation::Outcome;
    use crate::samples;
    use crate::view::Exit;

    #[test]
    fn a_report_has_the_documented_form() {
        let (probe, worker) = (Arc::new(samples::boolean()), samples::worker(7, "freecadcmd"));
        let mut failed = samples::operation(&probe, &worker, 1.0, 2.5);
        failed.memory = Some(Memory { entry_bytes: 100, exit_bytes: None, peak_bytes: 300 });
        failed.values = [samples::int("operation", 2), samples::text("object", "Cut \u{1b}[2J")].into();
        failed.outcome = Outcome::Exception;
        failed.ended_by = "exception";
        failed.exception = Some("Standard_Failure".into());
        failed.parent_start_ns = Some(5);
        let report = TraceReport {
            command: vec!["freecadcmd".to_owned(), "job.py".to_owned()],
            workers: vec![WorkerReport {
                started_ns: 1,
                ended_ns: 9,
                exit: Some(Exit { code: Some(1), signal: None }),
                ..WorkerReport::new(worker)
            }],
            operations: vec![failed],
            losses: [("ring_full".to_owned(), 3)].into(),
            skipped: vec![Skipped {
                file: "/l.so".to_owned(),
                probe: "p".to_owned(),
                reason: "r".to_owned(),
            }],
            late: vec![(
                7,
                Late { path: "/l.so".to_owned(), mapped_ns: 9, notice_ns: 1, analyse_ns: 2, place_ns: 3 },
            )],
        };
        let expected = json!({
            "schema": 1,
            "command": ["freecadcmd", "job.py"],
            "workers": [{
                "pid": 7, "program": "freecadcmd", "freecad_version": "1.0.2", "occt_version": "7.8.1",
                "started_ns": 1, "ended_ns": 9, "exit": {"code": 1, "signal": null},
            }],
            "operations": [{
                "pid": 7, "tid": 7, "start_ns": 1_000_000, "end_ns": 2_500_000, "parent_start_ns": 5, "depth": 0,
                "probe": "bool.api_build", "name": "boolean 2", "outcome": "exception", "ended_by": "exception",
                "exception": "Standard_Failure", "signal": null,
                "values": {"operation": 2, "object": "Cut \u{1b}[2J"},
                "memory": {"entry_bytes": 100, "exit_bytes": null, "peak_bytes": 300}, "source": null,
            }],
            "losses": {"ring_full": 3},
            "skipped": [{"file": "/l.so", "probe": "p", "reason": "r"}],
            "late": [{
                "pid": 7, "file": "/l.so", "mapped_ns": 9, "unseen_ns": 6, "notice_ns": 1, "analyse_ns": 2, "place_ns": 3,
            }],
        });
        let mut rendered = render_json(&report);
        // The catalogue's matter, tested there.
        rendered["operations"][0]["name"] = "boolean 2".into();
        assert_eq!(rendered, expected);
    }
}
