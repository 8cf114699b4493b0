//! Turns workers and operations into OpenTelemetry spans: one root for each worker, one span for each operation in it.
//!
//! An operation is told when it ends, before the one around it and long before its worker. So ids are not drawn but
//! computed, from the machine's boot, the process, the thread and the time of the begin: a child names a parent that is
//! not there yet, and an agent that was restarted goes on with the same trace. A worker that was started inside a trace
//! belongs to it, and its sampled flag decides; any other worker is a trace of its own, sampled by ratio.
//!
//! Names of attributes are those of the OpenTelemetry semantic conventions 1.37, and `cad.*`, `freecad.version`,
//! `occt.version`. Pure but for the machine's clock in [`WallClock`], and for [`Pods`].

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cadscope_common::record::ProcessKey;
use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::pods::{Labels, Pods};
use crate::clock::WallClock;
use crate::ending::{End, How, Limit, signal_name};
use crate::flow::stage_of;
use crate::flow_type;
use crate::operation::{Operation, Outcome, Value, Worker};

/// Workers whose resource is remembered; made anew when it is not.
const RESOURCES: usize = 4096;
/// `start_boottime` is known in 10 ms where it came from /proc: ids use no more of it.
const START_STEP_NS: u64 = 10_000_000;

/// Which spans are made.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanOptions {
    /// Shorter operations have no span.
    pub min_duration: Duration,
    /// Share of the workers without a trace of their own that get one, 0 to 1.
    pub ratio: f64,
}

/// What spans say of the machine and the agent.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Differs between machines and between boots of one.
    pub boot_id: String,
    /// Its name.
    pub host_name: String,
    /// The user's resource attributes, which win over what is observed.
    pub attributes: Vec<KeyValue>,
}

/// A span with the resource that it belongs to.
#[derive(Clone, Debug)]
pub struct Span {
    /// The worker.
    pub process: ProcessKey,
    /// What the spans of the worker share.
    pub resource: Resource,
    /// The span.
    pub data: SpanData,
}

/// The ids behind an operation, in hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// 32 digits.
    pub trace_id: String,
    /// 16 digits.
    pub span_id: String,
    /// When the operation ended.
    pub at: SystemTime,
}

/// Makes spans.
#[derive(Debug)]
pub struct Tracer {
    options: SpanOptions,
    machine: Machine,
    clock: WallClock,
    scope: InstrumentationScope,
    resources: HashMap<ProcessKey, Resource>,
    pods: Option<Pods>,
}

/// A worker's place in a trace.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    trace_id: TraceId,
    root_id: SpanId,
    sampled: bool,
}

impl Tracer {
    /// A tracer that has seen nothing.
    #[must_use]
    pub fn new(options: SpanOptions, machine: Machine, clock: WallClock) -> Self {
        let scope = InstrumentationScope::builder("cadscope").with_version(env!("CARGO_PKG_VERSION")).build();
        Self { options, machine, clock, scope, resources: HashMap::new(), pods: None }
    }

    /// The same with the labels of pods, as far as they are known when a span is made.
    #[must_use]
    pub fn with_pods(self, pods: Option<Pods>) -> Self {
        Self { pods, ..self }
    }

    /// Requests for labels of pods that failed; `None` where nobody asks for them.
    #[must_use]
    pub fn pod_errors(&self) -> Option<u64> {
        self.pods.as_ref().map(Pods::errors)
    }

    /// Takes notice of a worker that starts: what has to be asked for is here when its first operation ends.
    pub fn meet(&self, worker: &Worker) {
        self.pod_labels(worker);
    }

    fn pod_labels(&self, worker: &Worker) -> Option<Labels> {
        self.pods
            .as_ref()
            .map_or_else(|| Some(Labels::default()), |pods| pods.labels(&worker.container, Instant::now()))
    }

    /// Follows the machine's wall clock; to be called often, so that a step of it is noticed soon.
    pub fn look_at_the_clock(&mut self) {
        self.clock.look();
    }

    /// The span of an operation, or none: it is too short, or its trace is not sampled.
    #[must_use]
    pub fn operation(&mut self, operation: &Operation) -> Option<Span> {
        let place = self.place_of_long(operation)?;
        let worker = &operation.worker;
        let around = operation.parent_start_ns.map(|start| self.span_id(worker, operation.tid, start));
        let id = self.span_id(worker, operation.tid, operation.start_ns);
        let (start_time, end_time) = self.clock.interval(operation.start_ns, operation.end_ns);
        let data = SpanData {
            parent_span_id: around.unwrap_or(place.root_id),
            parent_span_is_remote: false,
            name: Cow::Owned(operation.probe.kind(&operation.values, operation.outcome)),
            attributes: attributes_of(operation),
            events: SpanEvents::default(),
            status: Status::Unset,
            ..self.bare(worker, &place, id, start_time, end_time)
        };
        Some(self.with_resource(worker, with_failure(data, operation)))
    }

    /// The span of a worker's start-up, from exec to its first operation; none if it did not start under observation.
    #[must_use]
    pub fn startup(&mut self, first: &Operation) -> Option<Span> {
        let worker = &first.worker;
        let executed_ns = worker.executed_ns?;
        let place = Some(self.place(worker)).filter(|place| place.sampled)?;
        let id = self.span_id(worker, 0, executed_ns);
        let (start_time, end_time) = self.clock.interval(executed_ns, first.start_ns);
        let mut data = SpanData {
            parent_span_id: place.root_id,
            name: Cow::Borrowed("startup"),
            ..self.bare(worker, &place, id, start_time, end_time)
        };
        data.attributes.push(KeyValue::new("cad.stage", "startup"));
        data.attributes.extend(of_worker(worker));
        Some(self.with_resource(worker, data))
    }

    /// The root span of a worker, or none if its trace is not sampled. Without an end it still runs.
    #[must_use]
    pub fn worker(
        &mut self,
        worker: &Worker,
        started_ns: u64,
        ended_ns: u64,
        end: Option<&End>,
    ) -> Option<Span> {
        let place = self.place(worker);
        if !place.sampled {
            return None;
        }
        let (start_time, end_time) = self.clock.interval(started_ns, ended_ns);
        let mut data = SpanData {
            parent_span_id: worker.job.parent.span_id(),
            parent_span_is_remote: worker.job.parent.is_valid(),
            name: Cow::Owned(worker.program.clone()),
            ..self.bare(worker, &place, place.root_id, start_time, end_time)
        };
        data.attributes.push(KeyValue::new("process.pid", i64::from(worker.process.pid)));
        data.attributes.push(KeyValue::new("process.executable.name", worker.program.clone()));
        data.attributes.extend(of_worker(worker));
        if let Some(end) = end {
            ended(&mut data, end);
        }
        let span = self.with_resource(worker, data);
        self.resources.remove(&worker.process);
        Some(span)
    }

    /// The ids of an operation's span, if it has one.
    #[must_use]
    pub fn traced(&self, operation: &Operation) -> Option<Traced> {
        let place = self.place_of_long(operation)?;
        Some(Traced {
            trace_id: place.trace_id.to_string(),
            span_id: self.span_id(&operation.worker, operation.tid, operation.start_ns).to_string(),
            at: self.clock.interval(operation.start_ns, operation.end_ns).1,
        })
    }

    fn place_of_long(&self, operation: &Operation) -> Option<Place> {
        let duration = operation.end_ns.saturating_sub(operation.start_ns);
        if u128::from(duration) < self.options.min_duration.as_nanos() {
            return None;
        }
        Some(self.place(&operation.worker)).filter(|place| place.sampled)
    }

    fn place(&self, worker: &Worker) -> Place {
        let parent = &worker.job.parent;
        let root_id = self.span_id(worker, 0, 0);
        if parent.is_valid() {
            return Place { trace_id: parent.trace_id(), root_id, sampled: parent.is_sampled() };
        }
        let (high, low) = (self.number(worker, "trace high", 0, 0), self.number(worker, "trace low", 0, 0));
        // As the OpenTelemetry SDKs decide by ratio: by the lower half of the id.
        let sampled = (low >> 11) as f64 / (1_u64 << 53) as f64;
        Place {
            trace_id: TraceId::from(u128::from(high) << 64 | u128::from(low)),
            root_id,
            sampled: sampled < self.options.ratio,
        }
    }

    fn span_id(&self, worker: &Worker, tid: u32, start_ns: u64) -> SpanId {
        SpanId::from(self.number(worker, "span", tid, start_ns))
    }

    /// A number that names something of a worker; never zero.
    fn number(&self, worker: &Worker, what: &str, tid: u32, start_ns: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        let ProcessKey { pid, start_boottime_ns, .. } = worker.process;
        (what, &self.machine.boot_id, pid, start_boottime_ns / START_STEP_NS, tid, start_ns)
            .hash(&mut hasher);
        hasher.finish().max(1)
    }

    fn bare(
        &self,
        worker: &Worker,
        place: &Place,
        id: SpanId,
        start_time: SystemTime,
        end_time: SystemTime,
    ) -> SpanData {
        let parent = &worker.job.parent;
        let state = if parent.is_valid() { parent.trace_state().clone() } else { TraceState::NONE };
        SpanData {
            span_context: SpanContext::new(place.trace_id, id, TraceFlags::SAMPLED, false, state),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: Cow::Borrowed(""),
            start_time,
            end_time,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }

    fn with_resource(&mut self, worker: &Worker, data: SpanData) -> Span {
        if self.resources.len() >= RESOURCES {
            self.resources.clear();
        }
        let resource = match self.resources.get(&worker.process) {
            Some(resource) => resource.clone(),
            None => {
                let labels = self.pod_labels(worker);
                let resource = resource_of(worker, &self.machine, labels.as_deref());
                // Without its labels it is not whole yet.
                if labels.is_some() {
                    self.resources.insert(worker.process, resource.clone());
                }
                resource
            }
        };
        Span { process: worker.process, resource, data }
    }
}

fn resource_of(worker: &Worker, machine: &Machine, labels: Option<&BTreeMap<String, String>>) -> Resource {
    let observed = [
        KeyValue::new("service.name", worker.program.clone()),
        KeyValue::new("process.pid", i64::from(worker.process.pid)),
        KeyValue::new("process.executable.name", worker.program.clone()),
        KeyValue::new("host.name", machine.host_name.clone()),
        KeyValue::new("telemetry.distro.name", "cadscope"),
        KeyValue::new("telemetry.distro.version", env!("CARGO_PKG_VERSION")),
    ];
    let container = &worker.container;
    let of_container = [
        ("container.id", &container.id),
        ("container.runtime.name", &container.runtime),
        ("k8s.namespace.name", &container.namespace),
        ("k8s.pod.name", &container.pod),
        ("k8s.pod.uid", &container.pod_uid),
        // A container that podman or Docker named is in no pod.
        (if container.pod.is_empty() { "container.name" } else { "k8s.container.name" }, &container.name),
    ];
    let of_container = of_container.into_iter().filter(|(_, value)| !value.is_empty());
    let of_container = of_container.map(|(name, value)| KeyValue::new(name, value.clone()));
    let labels = labels.into_iter().flatten();
    let labels = labels.map(|(name, value)| KeyValue::new(format!("k8s.pod.label.{name}"), value.clone()));
    let observed = observed.into_iter().chain(of_container).chain(labels);
    Resource::builder_empty().with_attributes(observed).with_attributes(machine.attributes.clone()).build()
}

/// What every span of a worker says.
fn of_worker(worker: &Worker) -> impl Iterator<Item = KeyValue> {
    [
        ("freecad.version", &worker.freecad_version),
        ("occt.version", &worker.occt_version),
        ("cad.job.id", &worker.job.id),
        ("cad.request.id", &worker.job.request_id),
        ("cad.flow_type", &worker.flow_type),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty() && *value != flow_type::UNKNOWN)
    .map(|(name, value)| KeyValue::new(name, value.clone()))
}

fn attributes_of(operation: &Operation) -> Vec<KeyValue> {
    let probe = &operation.probe;
    let function = probe.function.split('(').next().unwrap_or_default().to_owned();
    let mut attributes = vec![
        KeyValue::new("thread.id", i64::from(operation.tid)),
        KeyValue::new("cad.probe", probe.id.clone()),
        KeyValue::new("cad.outcome", operation.outcome.as_str()),
    ];
    // The outermost of a thread are the stages of the flow.
    attributes.extend(stage_of(probe).map(|stage| KeyValue::new("cad.stage", stage)));
    if !function.is_empty() {
        attributes.push(KeyValue::new("cad.function", function.clone()));
    }
    // The line of the job where it is known, else what ran.
    match &operation.source {
        Some(source) => attributes.extend([
            KeyValue::new("code.file.path", source.at.file.clone()),
            KeyValue::new("code.line.number", i64::from(source.at.line)),
            KeyValue::new("code.function.name", source.at.function.clone()),
            KeyValue::new("code.stacktrace", source.to_string()),
        ]),
        None if function.is_empty() => {}
        None => attributes.push(KeyValue::new("code.function.name", function)),
    }
    attributes.extend(of_worker(&operation.worker));
    if let Some(memory) = &operation.memory {
        attributes.push(KeyValue::new("cad.memory.growth", to_int(memory.growth_bytes())));
    }
    for (name, value) in probe.attribute_values(&operation.values, operation.outcome) {
        attributes.push(match value {
            Value::Int(number) => KeyValue::new(name.to_owned(), number),
            Value::Text(text) => KeyValue::new(name.to_owned(), text),
        });
    }
    attributes
}

/// Adds why an operation did not end well.
fn with_failure(mut data: SpanData, operation: &Operation) -> SpanData {
    let (kind, description): (Arc<str>, String) = match operation.outcome {
        Outcome::Ok => return data,
        Outcome::Error => ("error".into(), "the operation reported failure".to_owned()),
        Outcome::Exception => {
            let exception = operation.exception.clone().unwrap_or_else(|| "exception".into());
            let attributes = vec![KeyValue::new("exception.type", Arc::clone(&exception))];
            data.events.events.push(Event::new("exception", data.end_time, attributes, 0));
            let description = format!("left by {exception}");
            (exception, description)
        }
        Outcome::Killed => match operation.signal {
            Some(signal) => {
                let name = signal_name(Some(signal));
                (name.as_str().into(), format!("its process was killed by {name}"))
            }
            None => (operation.ended_by.into(), "its thread or process ended inside it".to_owned()),
        },
    };
    data.attributes.push(KeyValue::new("error.type", kind));
    data.status = Status::error(description);
    data
}

/// Adds how a process ended.
fn ended(data: &mut SpanData, end: &End) {
    let (at, signal) = (data.end_time, end.signal.map(|signal| signal_name(Some(signal))));
    let mut event = |name, attributes| data.events.events.push(Event::new(name, at, attributes, 0));
    if let Some(oom) = &end.oom {
        let resident = KeyValue::new("cad.memory.resident", to_int(oom.resident_bytes));
        let mut attributes = vec![resident, KeyValue::new("cad.operation", oom.operation.clone())];
        if let Limit::Cgroup { bytes, .. } = oom.limit {
            attributes.push(KeyValue::new("cad.memory.limit", to_int(bytes)));
        }
        event("oom_kill", attributes);
    }
    let code = end.code.map(|code| KeyValue::new("process.exit.code", i64::from(code)));
    let named = signal.clone().map(|name| KeyValue::new("cad.signal", name));
    let sender = end.sender.as_ref().map(|(_, name)| KeyValue::new("cad.signal.sender", name.clone()));
    if end.code.is_some() || end.signal.is_some() {
        event("process.end", code.iter().chain(&named).chain(&sender).cloned().collect());
    }
    data.attributes.extend(code);
    data.attributes.extend(end.peak_bytes.map(|bytes| KeyValue::new("cad.memory.peak", to_int(bytes))));
    let Some((kind, description)) = failure(end, signal) else { return };
    data.attributes.push(KeyValue::new("error.type", kind));
    data.status = Status::error(description);
}

/// `error.type` and description of an end that is none to wish for.
fn failure(end: &End, signal: Option<String>) -> Option<(String, String)> {
    let signal = signal.unwrap_or_default();
    match (end.how, end.code) {
        (How::Success | How::Replaced | How::Unseen, _) => None,
        (How::OutOfMemory, _) => Some(("oom".to_owned(), "killed: out of memory".to_owned())),
        (How::Crash, _) => Some((signal.clone(), format!("crashed: {signal}"))),
        (How::Killed, _) => Some((signal.clone(), format!("killed by {signal}"))),
        (How::Failure, Some(0) | None) => {
            Some(("exception".to_owned(), "its script raised an exception".to_owned()))
        }
        (How::Failure, Some(code)) => Some((code.to_string(), format!("exit status {code}"))),
    }
}

fn to_int(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
