//! Turns a report into a Chrome trace in JSON, which Perfetto's UI (ui.perfetto.dev) and chrome://tracing open.
//!
//! A worker is a process, its threads have their operations as slices, and its memory is a counter. Times are
//! microseconds since the beginning of the report, with three decimals, so that no nanosecond is lost. Slices of one
//! thread are properly nested, as Perfetto wants them, because operations are.

use serde_json::{Value as Json, json};

use super::{TraceReport, WorkerReport, kind, title};
use crate::operation::{Operation, Outcome, Value};

/// The trace as one object.
#[must_use]
pub fn render_perfetto(report: &TraceReport) -> Json {
    let begin_ns = report.begin_ns();
    let mut events = Vec::new();
    for worker in &report.workers {
        life(worker, begin_ns, &mut events);
    }
    let mut threads = std::collections::BTreeSet::new();
    for operation in &report.operations {
        let pid = operation.worker.process.pid;
        if operation.tid != pid && threads.insert((pid, operation.tid)) {
            let name = format!("thread {}", operation.tid);
            events.push(named("thread_name", pid, operation.tid, &name));
        }
        events.push(slice(operation, begin_ns));
    }
    json!({
        "displayTimeUnit": "ms",
        "otherData": {
            "cadscope": env!("CARGO_PKG_VERSION"),
            "command": report.command.join(" "),
            "losses": report.losses,
        },
        "traceEvents": events,
    })
}

fn life(report: &WorkerReport, begin_ns: u64, events: &mut Vec<Json>) {
    let worker = &report.worker;
    let pid = worker.process.pid;
    events.push(named("process_name", pid, pid, &worker.program));
    events.push(named("thread_name", pid, pid, "main thread"));
    events.push(json!({
        "ph": "X", "cat": "worker", "name": worker.program, "pid": pid, "tid": pid,
        "ts": microseconds(report.started_ns.saturating_sub(begin_ns)),
        "dur": microseconds(report.ended_ns.saturating_sub(report.started_ns)),
        "args": {
            "freecad_version": worker.freecad_version,
            "occt_version": worker.occt_version,
            "job": worker.job.id,
            "exit_code": report.exit.and_then(|exit| exit.code),
            "signal": report.exit.and_then(|exit| exit.signal),
        },
    }));
    for (at_ns, bytes) in &report.memory {
        events.push(json!({
            "ph": "C", "name": "resident memory", "pid": pid,
            "ts": microseconds(at_ns.saturating_sub(begin_ns)),
            "args": { "bytes": bytes },
        }));
    }
}

fn named(what: &str, pid: u32, tid: u32, name: &str) -> Json {
    json!({ "ph": "M", "name": what, "pid": pid, "tid": tid, "args": { "name": name } })
}

fn slice(operation: &Operation, begin_ns: u64) -> Json {
    let mut arguments = serde_json::Map::new();
    for (name, value) in operation.values.iter() {
        let value = match value {
            Value::Int(number) => json!(number),
            Value::Text(text) => json!(text.as_ref()),
        };
        arguments.insert(name.to_owned(), value);
    }
    arguments.insert("title".to_owned(), title(operation).into());
    arguments.insert("probe".to_owned(), operation.probe.id.as_str().into());
    arguments.insert("outcome".to_owned(), operation.outcome.as_str().into());
    if operation.outcome != Outcome::Ok {
        arguments.insert("ended_by".to_owned(), operation.ended_by.into());
    }
    if let Some(exception) = &operation.exception {
        arguments.insert("exception".to_owned(), exception.as_ref().into());
    }
    if let Some(source) = &operation.source {
        arguments.insert("line".to_owned(), format!("{}:{}", source.at.file, source.at.line).into());
        arguments.insert("stack".to_owned(), source.to_string().into());
    }
    let group = operation.probe.id.split('.').next().unwrap_or_default();
    json!({
        "ph": "X", "cat": group, "name": kind(operation),
        "pid": operation.worker.process.pid, "tid": operation.tid,
        "ts": microseconds(operation.start_ns.saturating_sub(begin_ns)),
        "dur": microseconds(operation.end_ns.saturating_sub(operation.start_ns)),
        "args": arguments,
    })
}

fn microseconds(ns: u64) -> Json {
    // Exact in a double for 104 days.
    json!(ns as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::samples;
    use crate::view::Exit;

    #[test]
    fn a_report_is_a_chrome_trace() {
        let (probe, worker) = (Arc::new(samples::boolean()), samples::worker(7, "freecadcmd"));
        let mut failed = samples::operation(&probe, &worker, 1.0, 2.5);
        failed.values = [samples::int("operation", 2)].into();
        failed.outcome = Outcome::Exception;
        failed.ended_by = "exception";
        failed.exception = Some("Standard_Failure".into());
        let other = Operation { tid: 9, ..samples::operation(&probe, &worker, 3.0, 3.5) };
        let report = TraceReport {
            command: vec!["freecadcmd".to_owned(), "job.py".to_owned()],
            workers: vec![WorkerReport {
                started_ns: 500_000,
                ended_ns: 9_000_001,
                exit: Some(Exit { code: Some(1), signal: None }),
                memory: vec![(600_000, 1024)],
                ..WorkerReport::new(worker)
            }],
            operations: vec![failed, other],
            ..TraceReport::default()
        };
        let trace = render_perfetto(&report);
        let events = trace["traceEvents"].as_array().unwrap();
        let slices: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(slices[0]["dur"], json!(8500.001));
        assert_eq!(
            *slices[1],
            json!({
                "ph": "X", "cat": "bool", "name": "boolean cut", "pid": 7, "tid": 7, "ts": 500.0, "dur": 1500.0,
                "args": {"operation": 2, "title": "boolean cut", "probe": "bool.api_build", "outcome": "exception",
                    "ended_by": "exception", "exception": "Standard_Failure"},
            })
        );
        let names: Vec<_> =
            events.iter().filter(|event| event["ph"] == "M").map(|event| &event["args"]["name"]).collect();
        assert_eq!(names, ["freecadcmd", "main thread", "thread 9"]);
        let counter = events.iter().find(|event| event["ph"] == "C").unwrap();
        assert_eq!((&counter["ts"], &counter["args"]["bytes"]), (&json!(100.0), &json!(1024)));
    }
}
