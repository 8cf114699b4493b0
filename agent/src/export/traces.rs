//! Turns what is observed into spans on their way: [`Tracer`] makes them, [`Otlp`] sends them; neither where no
//! endpoint is configured.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use opentelemetry::KeyValue;
use opentelemetry_sdk::resource::{EnvResourceDetector, ResourceDetector};

use super::metrics::{Exemplar, Metrics};
use super::otlp::{Otlp, OtlpError};
use super::pods::{Pods, PodsError};
use super::spans::{Machine, SpanOptions, Traced, Tracer};
use crate::clock::WallClock;
use crate::config::AgentConfig;
use crate::observe::Observation;
use crate::operation::{Operation, Worker};

/// Why there can be no traces.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// They could not be sent.
    #[error(transparent)]
    Otlp(#[from] OtlpError),
    /// The labels of pods could not be asked for.
    #[error(transparent)]
    Pods(#[from] PodsError),
}

/// The traces of the agent.
#[derive(Debug)]
pub struct Traces(Option<Running>);

#[derive(Debug)]
struct Running {
    tracer: Tracer,
    otlp: Otlp,
    /// Processes whose first operation is still to come.
    starting: HashSet<u32>,
}

impl Traces {
    /// Starts the export, if it is configured.
    ///
    /// # Errors
    /// The configuration cannot work.
    pub fn start(config: &AgentConfig) -> Result<Self, TracesError> {
        let Some(otlp) = &config.otlp else { return Ok(Self(None)) };
        let options = SpanOptions { min_duration: config.min_span_duration, ratio: config.trace_ratio };
        let pods = config.span_pod_labels.then(Pods::start).transpose()?;
        let tracer = Tracer::new(options, this_machine(), WallClock::of_this_machine()).with_pods(pods);
        Ok(Self(Some(Running { tracer, otlp: Otlp::start(otlp)?, starting: HashSet::new() })))
    }

    /// Makes and sends the span of what was observed.
    pub fn see(&mut self, observation: &Observation) {
        let Some(Running { tracer, otlp, starting }) = &mut self.0 else { return };
        let span = match observation {
            Observation::Started(worker) => {
                starting.insert(worker.process.pid);
                tracer.meet(worker);
                None
            }
            Observation::Operation(operation) => {
                // Operations end inside-out: what is told first need not be what began first.
                if operation.depth == 0 && starting.remove(&operation.worker.process.pid) {
                    tracer.startup(operation).into_iter().for_each(|span| otlp.send(span));
                }
                tracer.operation(operation)
            }
            Observation::Ended { worker, started_ns, ended_ns, end, .. } => {
                starting.remove(&worker.process.pid);
                tracer.worker(worker, *started_ns, *ended_ns, Some(end))
            }
            _ => None,
        };
        if let Some(span) = span {
            otlp.send(span);
        }
    }

    /// Records an operation with the ids of its span as exemplar.
    pub fn record(&self, metrics: &Metrics, operation: &Operation, nested: bool) {
        let traced = self.0.as_ref().and_then(|running| running.tracer.traced(operation));
        let exemplar = traced.as_ref().map(|Traced { trace_id, span_id, at }| Exemplar {
            trace_id,
            span_id: Some(span_id),
            at: *at,
        });
        metrics.record_traced(operation, nested, exemplar);
    }

    /// To be called a few times a second: follows the wall clock, publishes what became of the spans.
    pub fn tick(&mut self, metrics: &Metrics) {
        let Some(Running { tracer, otlp, .. }) = &mut self.0 else { return };
        tracer.look_at_the_clock();
        let counts = otlp.counts();
        let total = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        let dropped = [("queue_full", total(&counts.queue_full)), ("not_taken", total(&counts.failed))];
        metrics.spans(total(&counts.exported), &dropped);
        metrics.export_errors("otlp", total(&counts.errors));
        if let Some(errors) = tracer.pod_errors() {
            metrics.export_errors("kubernetes", errors);
        }
    }

    /// Ends the export. Workers that still run get a root span up to now, so that what they did has one.
    pub fn end<'a>(self, running: impl Iterator<Item = (&'a Arc<Worker>, u64)>, now_ns: u64) {
        let Some(Running { mut tracer, otlp, .. }) = self.0 else { return };
        for (worker, started_ns) in running {
            if let Some(span) = tracer.worker(worker, started_ns, now_ns, None) {
                otlp.send(span);
            }
        }
        otlp.end();
    }
}

fn this_machine() -> Machine {
    // Without them, spans say less; no reason not to observe.
    let of_kernel = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
        text.trim().to_owned()
    };
    let mut attributes: Vec<KeyValue> = EnvResourceDetector::new()
        .detect()
        .iter()
        .map(|(name, value)| KeyValue::new(name.clone(), value.clone()))
        .collect();
    if let Some(name) = std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty()) {
        attributes.push(KeyValue::new("service.name", name));
    }
    Machine { boot_id: of_kernel("random/boot_id"), host_name: of_kernel("hostname"), attributes }
}
