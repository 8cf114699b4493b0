//! Turns a step of a job into the JSON that listeners get; `docs/progress.md` states its form.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value as Json};

use super::Call;
use crate::catalog::Probe;
use crate::ending::{End, signal_name};
use crate::flow::stage_of;
use crate::operation::{Operation, Outcome, Worker};

/// What a job can be at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// A document or shape is read.
    Load,
    /// A document is recomputed.
    Recompute,
    /// One object of it is.
    Object,
    /// A solver runs.
    Solve,
    /// Something is exported.
    Export,
    /// A document is saved.
    Save,
    /// A shape is checked.
    Validation,
}

impl Phase {
    /// The phase that calls of a probe are, if any.
    #[must_use]
    pub fn of(probe: &Probe) -> Option<Self> {
        match stage_of(probe) {
            Some("load") => return Some(Self::Load),
            Some("recompute") => return Some(Self::Recompute),
            Some("export") => return Some(Self::Export),
            Some("save") => return Some(Self::Save),
            Some("validation") => return Some(Self::Validation),
            _ => {}
        }
        if probe.metric.as_deref() == Some("freecad_object_recompute_duration_seconds") {
            return Some(Self::Object);
        }
        // Expressions are a solver too, but one that nobody waits for.
        (probe.group.as_deref() == Some("solve") && probe.tally.is_some()).then_some(Self::Solve)
    }

    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Load => ("load_start", "load_end"),
            Self::Recompute => ("recompute_start", "recompute_end"),
            Self::Object => ("object_start", "object_end"),
            Self::Solve => ("solve_start", "solve_end"),
            Self::Export => ("export_start", "export_end"),
            Self::Save => ("save_start", "save_end"),
            Self::Validation => ("validation_start", "validation_end"),
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A worker began.
    JobStart,
    /// A phase began.
    Start(Phase),
    /// A solver has iterated further.
    SolveProgress,
    /// A phase ended.
    End(Phase),
    /// A worker ended.
    JobEnd,
}

impl Kind {
    /// The name in the feed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JobStart => "job_start",
            Self::Start(phase) => phase.names().0,
            Self::SolveProgress => "solve_progress",
            Self::End(phase) => phase.names().1,
            Self::JobEnd => "job_end",
        }
    }
}

/// A step of a job.
#[derive(Clone, Debug)]
pub struct Event {
    /// What.
    pub kind: Kind,
    /// Whose.
    pub worker: Arc<Worker>,
    data: Map<String, Json>,
    /// Process, thread and begin of the recompute that an object which ended well is of.
    object_of: Option<(u32, u32, u64)>,
}

impl Event {
    /// With what every event says.
    #[must_use]
    pub fn new(kind: Kind, worker: &Arc<Worker>, at: SystemTime) -> Self {
        let mut event = Self { kind, worker: Arc::clone(worker), data: Map::new(), object_of: None };
        let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        event.set("event", kind.as_str());
        event.set("time_ms", u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
        event.set("pid", worker.process.pid);
        event.set("program", worker.program.as_str());
        let job = &worker.job;
        for (name, value) in
            [("job_id", &job.id), ("request_id", &job.request_id), ("flow_type", &worker.flow_type)]
        {
            if !value.is_empty() {
                event.set(name, value.as_str());
            }
        }
        if job.parent.is_valid() {
            event.set("trace_id", job.parent.trace_id().to_string());
        }
        event
    }

    fn set(&mut self, name: &str, value: impl Into<Json>) {
        self.data.insert(name.to_owned(), value.into());
    }

    /// Adds what is done, to which document, and how many objects that has.
    #[must_use]
    pub fn with_call(mut self, title: &str, document: Option<&str>, objects: Option<u64>) -> Self {
        self.set("what", title);
        if let Some(document) = document {
            self.set("document", document);
        }
        if let Some(objects) = objects {
            self.set("objects", objects);
        }
        self
    }

    /// Adds which object of how many it is, if it is one.
    #[must_use]
    pub(super) fn with_object(mut self, call: &Call, number: u64, objects: Option<u64>) -> Self {
        if call.phase != Phase::Object {
            return self;
        }
        // An object can be recomputed more than once.
        self.set("object", objects.map_or(number, |objects| number.min(objects)));
        if let Some(objects) = objects {
            self.set("objects", objects);
        }
        let ended_well = self.data.get("outcome").is_some_and(|outcome| outcome == Outcome::Ok.as_str());
        if let (true, Some(around)) = (ended_well, call.parent_start_ns) {
            self.object_of = Some((self.worker.process.pid, call.tid, around));
        }
        self
    }

    /// Adds how many objects a recompute has done.
    #[must_use]
    pub fn with_done(mut self, done: u64) -> Self {
        self.set("recomputed", done);
        self
    }

    /// Adds a solver's iterations so far.
    #[must_use]
    pub fn with_iterations(mut self, iterations: u64) -> Self {
        self.set("iterations", iterations);
        self
    }

    /// Adds how an operation ended and how long it took.
    #[must_use]
    pub fn with_outcome(mut self, operation: &Operation) -> Self {
        self.set("outcome", operation.outcome.as_str());
        let duration = Duration::from_nanos(operation.end_ns.saturating_sub(operation.start_ns));
        self.set("seconds", duration.as_secs_f64());
        if let Some(exception) = &operation.exception {
            self.set("exception", exception.as_ref());
        }
        self
    }

    /// Adds how a worker ended.
    #[must_use]
    pub fn with_end(mut self, end: &End) -> Self {
        self.set("outcome", end.how.status().unwrap_or("unknown"));
        if let Some(code) = end.code {
            self.set("exit_code", code);
        }
        if end.signal.is_some() {
            self.set("signal", signal_name(end.signal));
        }
        self
    }

    /// The recompute of an object that ended well; of several in a row the last is enough.
    pub(super) const fn object_of(&self) -> Option<(u32, u32, u64)> {
        self.object_of
    }

    /// The JSON.
    #[must_use]
    pub fn json(&self) -> String {
        Json::Object(self.data.clone()).to_string()
    }
}
