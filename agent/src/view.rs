//! Turns what was seen of a run into something to read: [`tree`] and [`page`] for people, [`json`] and [`perfetto`] for
//! programs.
//!
//! Pure: reports in, text out. Names in a report come from workers, so nothing is printed that could steer a terminal.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cadscope_common::record::ProcessKey;

use self::forest::Node;
use crate::ending::signal_name;
use crate::operation::{Operation, Outcome, Worker};
use crate::workers::Late;

mod bar;
mod forest;
pub mod json;
pub mod page;
pub mod perfetto;
pub(crate) mod text;
mod totals;
pub mod tree;

/// What was seen of one or more workers, from the first start to the last end.
#[derive(Clone, Debug, Default)]
pub struct TraceReport {
    /// The command that was run; empty when a running process was followed.
    pub command: Vec<String>,
    /// The workers, in order of their start.
    pub workers: Vec<WorkerReport>,
    /// Their operations, in any order.
    pub operations: Vec<Operation>,
    /// Events and records lost, by reason.
    pub losses: BTreeMap<String, u64>,
    /// Probes that are not in place.
    pub skipped: Vec<Skipped>,
    /// Files that a worker, of this process id, mapped before their probes were in place.
    pub late: Vec<(u32, Late)>,
}

/// A worker's life, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Debug)]
pub struct WorkerReport {
    /// Which worker.
    pub worker: Arc<Worker>,
    /// When it began, or was first seen.
    pub started_ns: u64,
    /// When it ended, or was last seen.
    pub ended_ns: u64,
    /// `None` while it runs.
    pub exit: Option<Exit>,
    /// Resident bytes by time; empty where nobody looked.
    pub memory: Vec<(u64, u64)>,
}

impl WorkerReport {
    /// A worker of which nothing is known but who it is.
    #[must_use]
    pub const fn new(worker: Arc<Worker>) -> Self {
        Self { worker, started_ns: 0, ended_ns: 0, exit: None, memory: Vec::new() }
    }
}

impl TraceReport {
    /// Files that workers mapped before their probes were in place, by process id, the longest time first.
    fn late_by_process(&self) -> BTreeMap<u32, Vec<&Late>> {
        let mut by_process: BTreeMap<u32, Vec<&Late>> = BTreeMap::new();
        for (pid, late) in &self.late {
            by_process.entry(*pid).or_default().push(late);
        }
        for files in by_process.values_mut() {
            files.sort_by_key(|late| std::cmp::Reverse(late.whole_ns()));
        }
        by_process
    }

    /// When the first of all that was seen began.
    fn begin_ns(&self) -> u64 {
        let lives = self.workers.iter().map(|worker| worker.started_ns);
        lives.chain(self.operations.iter().map(|operation| operation.start_ns)).min().unwrap_or(0)
    }
}

/// How a process ended: one of the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Its exit status.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<u8>,
}

/// A probe that is not in place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The file, as the worker maps it.
    pub file: String,
    /// The probe's id.
    pub probe: String,
    /// Why.
    pub reason: String,
}

/// The workers with their operations nested; one that has only operations gets a life from them.
fn by_worker(report: &TraceReport) -> Vec<(WorkerReport, Vec<Node<'_>>)> {
    let mut operations: HashMap<ProcessKey, Vec<&Operation>> = HashMap::new();
    for operation in &report.operations {
        operations.entry(operation.worker.process).or_default().push(operation);
    }
    let mut workers: Vec<_> = report
        .workers
        .iter()
        .map(|worker| {
            (worker.clone(), forest::nest(&operations.remove(&worker.worker.process).unwrap_or_default()))
        })
        .collect();
    let mut unknown: Vec<_> = operations.into_iter().collect();
    unknown.sort_by_key(|(process, _)| *process);
    for (_, operations) in unknown {
        if let Some(first) = operations.first() {
            let started_ns = operations.iter().map(|operation| operation.start_ns).min().unwrap_or_default();
            let ended_ns = operations.iter().map(|operation| operation.end_ns).max().unwrap_or_default();
            let worker =
                WorkerReport { started_ns, ended_ns, ..WorkerReport::new(Arc::clone(&first.worker)) };
            workers.push((worker, forest::nest(&operations)));
        }
    }
    workers
}

/// Why an operation did not end well; empty if it did.
fn ending(operation: &Operation) -> String {
    match operation.outcome {
        Outcome::Ok => String::new(),
        Outcome::Exception => operation.exception.as_deref().unwrap_or("exception").to_owned(),
        Outcome::Error if operation.ended_by == "jump" => "left by a jump".to_owned(),
        Outcome::Error => "failed".to_owned(),
        Outcome::Killed => match (operation.signal, operation.ended_by) {
            (Some(signal), _) => format!("killed by {}", signal_name(Some(signal))),
            (None, "thread_exit") => "its thread ended".to_owned(),
            (None, "exec") => "replaced by exec".to_owned(),
            (None, _) => "its process ended".to_owned(),
        },
    }
}

fn exit_text(exit: Option<Exit>) -> String {
    match exit {
        None => "still running".to_owned(),
        Some(Exit { signal: Some(signal), .. }) => format!("killed by {}", signal_name(Some(signal))),
        Some(Exit { code: Some(code), .. }) => format!("exit {code}"),
        Some(Exit { code: None, signal: None }) => "ended".to_owned(),
    }
}

/// What rows of one sort are called together.
fn kind(operation: &Operation) -> String {
    operation.probe.kind(&operation.values, operation.outcome)
}

/// What a row is called.
fn title(operation: &Operation) -> String {
    operation.probe.title(&operation.values)
}
