//! The values that flow out of the kernel's records: workers, and the operations they did.

use std::collections::BTreeMap;
use std::sync::Arc;

use cadscope_common::record::ProcessKey;

use crate::catalog::Probe;
use crate::job::Job;
pub use crate::value::{Outcome, Value};

/// One finished call. `(process, tid, start_ns)` names it.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The probe it was seen by.
    pub probe: Arc<Probe>,
    /// The worker.
    pub worker: Arc<Worker>,
    /// The thread.
    pub tid: u32,
    /// Operations open around it.
    pub depth: u32,
    /// Begin, nanoseconds of CLOCK_MONOTONIC.
    pub start_ns: u64,
    /// End, the same clock.
    pub end_ns: u64,
    /// Begin of the operation around it on the same thread.
    pub parent_start_ns: Option<u64>,
    /// How it went.
    pub outcome: Outcome,
    /// `return`, `exception`, `jump`, `thread_exit`, `process_exit`, `signal`, `exec`.
    pub ended_by: &'static str,
    /// Demangled type of the exception that left it.
    pub exception: Option<Arc<str>>,
    /// Signal that ended its process.
    pub signal: Option<u8>,
    /// What the probe read, by value name; a value that could not be read is absent.
    pub values: BTreeMap<String, Value>,
}

/// A process that maps a catalogued library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Which process.
    pub process: ProcessKey,
    /// File name of its program.
    pub program: String,
    /// `""` where there is no FreeCAD or its version is not known.
    pub freecad_version: String,
    /// `""` where OCCT's version is not known.
    pub occt_version: String,
    /// What it works on; that of its parent where it forked.
    pub job: Arc<Job>,
}
