//! Workers, probes and operations for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use cadscope_common::record::ProcessKey;

use crate::catalog::{Label, Probe};
use crate::operation::{Operation, Value, Worker};

/// A worker of FreeCAD 1.0.2 and OCCT 7.8.1.
pub(crate) fn worker(pid: u32, program: &str) -> Arc<Worker> {
    Arc::new(Worker {
        process: ProcessKey { pid, padding: 0, start_boottime_ns: u64::from(pid) },
        program: program.to_owned(),
        freecad_version: "1.0.2".to_owned(),
        occt_version: "7.8.1".to_owned(),
        ..Worker::default()
    })
}

/// A probe that nothing is exported from.
pub(crate) fn probe(id: &str, title: &str) -> Probe {
    Probe {
        id: id.to_owned(),
        function: String::new(),
        symbols: Vec::new(),
        title: title.to_owned(),
        metric: None,
        counter: None,
        help: String::new(),
        labels: BTreeMap::new(),
        attributes: BTreeMap::new(),
        layouts: Vec::new(),
        derived: BTreeMap::new(),
        group: None,
        error_when: Vec::new(),
        count_when: Vec::new(),
        ignore_when: Vec::new(),
        also: Vec::new(),
        tally: None,
        tallies: None,
        rollup: None,
        product: None,
        absent: None,
    }
}

/// `occt_boolean_duration_seconds{operation,status}`.
pub(crate) fn boolean() -> Probe {
    let names = BTreeMap::from([(1, "union".to_owned()), (2, "cut".to_owned())]);
    let labels = BTreeMap::from([
        ("operation".to_owned(), Label::Map("operation".to_owned(), names)),
        ("status".to_owned(), Label::Status),
    ]);
    Probe {
        metric: Some("occt_boolean_duration_seconds".to_owned()),
        help: "Duration of boolean operations.".to_owned(),
        labels,
        ..probe("bool.api_build", "boolean {operation}")
    }
}

/// An operation of the main thread, in milliseconds.
pub(crate) fn operation(probe: &Arc<Probe>, worker: &Arc<Worker>, start_ms: f64, end_ms: f64) -> Operation {
    let ns = |ms: f64| u64::try_from(std::time::Duration::from_secs_f64(ms / 1e3).as_nanos()).unwrap();
    let (tid, start_ns) = (worker.process.pid, ns(start_ms));
    Operation { tid, start_ns, ..Operation::unread(probe, worker, ns(end_ms)) }
}

/// An integer value.
pub(crate) fn int(name: &str, number: i64) -> (Arc<str>, Value) {
    (name.into(), Value::Int(number))
}

/// A text value.
pub(crate) fn text(name: &str, text: &str) -> (Arc<str>, Value) {
    (name.into(), Value::Text(text.into()))
}
