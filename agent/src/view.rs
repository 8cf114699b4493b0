//! Turns what was seen of a run into something to read: [`tree`] for people, [`json`] for programs.
//!
//! Pure: reports in, text out. Names in a report come from workers, so nothing is printed that could steer a terminal.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::operation::{Operation, Worker};

mod bar;
mod forest;
pub mod json;
mod text;
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

/// What rows of one sort are called together.
fn kind(operation: &Operation) -> String {
    operation.probe.kind(&operation.values, operation.outcome)
}

/// What a row is called.
fn title(operation: &Operation) -> String {
    operation.probe.title(&operation.values)
}
