//! The values that flow out of the kernel's records: workers, and the operations they did.

use std::borrow::Cow;
use std::sync::Arc;

use cadscope_common::record::ProcessKey;

use crate::catalog::Probe;
use crate::container::Container;
use crate::inputs::Touched;
use crate::job::Job;
use crate::memory::Memory;
use crate::python::Source;
pub use crate::value::{Outcome, Texts, Value, Values};

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
    /// The line of the job that called it; `None` where it was not slow, or Python was not seen.
    pub source: Option<Arc<Source>>,
    /// What the probe read, by value name; a value that could not be read is absent.
    pub values: Values,
    /// Resident memory of its process; `None` where it was not read.
    pub memory: Option<Memory>,
    /// The file that it wrote or read; `None` where nobody wants it.
    pub file: Option<Touched>,
}

impl Operation {
    /// A call of which nothing was read but how long it took.
    #[must_use]
    pub fn unread(probe: &Arc<Probe>, worker: &Arc<Worker>, duration_ns: u64) -> Self {
        Self {
            probe: Arc::clone(probe),
            worker: Arc::clone(worker),
            tid: 0,
            depth: 0,
            start_ns: 0,
            end_ns: duration_ns,
            parent_start_ns: None,
            outcome: Outcome::Ok,
            ended_by: "return",
            exception: None,
            signal: None,
            source: None,
            values: Values::default(),
            memory: None,
            file: None,
        }
    }

    /// What families over all sorts of operations call it: see [`Probe::operation_name`].
    #[must_use]
    pub fn name(&self) -> Cow<'_, str> {
        self.probe.operation_name(&self.values)
    }
}

/// A process that maps a catalogued library.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// When it executed its program, CLOCK_MONOTONIC; `None` if that was not seen or it forked.
    pub executed_ns: Option<u64>,
    /// What kind of job it does: `unknown` if nothing says.
    pub flow_type: String,
    /// Where it runs; empty on a plain host.
    pub container: Arc<Container>,
}
