//! Turns operations into observations of the series that their probes name.
//!
//! The steady path does not allocate: a probe, the values that its labels are made from, the outcome and the worker's
//! versions hash to the series that they were resolved to the first time.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::labels::{labels_of, tidy};
use super::series::{Durations, Exemplar, Number, Series};
use super::{Kind, Metrics, Origin, State, families, lock};
use crate::catalog::{Amount, Probe};
use crate::operation::{Operation, Outcome, Value, Worker};
use crate::rollup::Rolled;

/// Remembered resolutions (a hundred bytes each); forgotten together when there are more.
const RESOLVED: usize = 8192;

/// Where an operation is counted.
#[derive(Debug)]
pub(super) struct Resolved {
    /// Held, so that its address is not reused while it is part of a key.
    _probe: Arc<Probe>,
    durations: Option<Arc<Durations>>,
    calls: Option<Arc<Number>>,
    /// Where its memory was read.
    memory: Option<Arc<Durations>>,
    /// In the order of `probe.also`.
    also: Vec<Option<Series>>,
}

impl Metrics {
    /// Records a finished operation, unless it lies inside one of its own group, which already stands for it.
    pub fn record(&self, operation: &Operation, ancestors_same_group: bool) {
        self.record_traced(operation, ancestors_same_group, None);
    }

    /// Records an operation that was seen so many times.
    pub fn record_repeated(&self, operation: &Operation, ancestors_same_group: bool, count: u64) {
        for _ in 0..count {
            self.record(operation, ancestors_same_group);
        }
    }

    /// Like [`record`](Self::record), with the trace that holds the operation's span.
    pub fn record_traced(
        &self,
        operation: &Operation,
        ancestors_same_group: bool,
        exemplar: Option<Exemplar<'_>>,
    ) {
        let probe = &operation.probe;
        let has_family = probe.metric.is_some() || probe.counter.is_some() || !probe.also.is_empty();
        if ancestors_same_group || !has_family || !probe.counts(&operation.values) {
            return;
        }
        let key = self.key(operation);
        let mut state = lock(&self.state);
        if !state.resolved.contains_key(&key) {
            let resolved = self.resolve(&mut state, operation);
            if state.resolved.len() >= RESOLVED {
                state.resolved.clear();
            }
            state.resolved.insert(key, resolved);
        }
        let Some(resolved) = state.resolved.get(&key) else { return };
        if let Some(durations) = &resolved.durations {
            durations.observe(seconds(operation), exemplar);
        }
        if let Some(calls) = &resolved.calls {
            calls.add(1.0);
        }
        if let (Some(histogram), Some(memory)) = (&resolved.memory, &operation.memory) {
            histogram.observe(memory.growth_bytes() as f64, exemplar);
        }
        for (measure, series) in probe.also.iter().zip(&resolved.also) {
            let Some(series) = series else { continue };
            match (&measure.amount, series) {
                (Amount::One, Series::Number(calls)) => calls.add(1.0),
                (Amount::Add(value), Series::Number(sum)) => sum.add(count(operation, value).unwrap_or(0.0)),
                (Amount::Duration, Series::Durations(durations)) => {
                    durations.observe(seconds(operation), exemplar);
                }
                (Amount::Observe(value), Series::Durations(counts)) => {
                    if let Some(count) = count(operation, value) {
                        counts.observe(count, exemplar);
                    }
                }
                _ => {}
            }
        }
        drop(state);
        if operation.outcome == Outcome::Exception {
            let labels = [
                ("operation", operation.name().into_owned()),
                ("exception", operation.exception.as_deref().unwrap_or("unknown").to_owned()),
                ("freecad_version", operation.worker.freecad_version.clone()),
                ("occt_version", operation.worker.occt_version.clone()),
            ];
            let labels = labels.each_ref().map(|(name, value)| (*name, value.as_str()));
            self.add(&families::EXCEPTIONS, &labels, 1.0);
        }
    }

    /// Records what operations inside another add up to.
    pub fn record_rollup(&self, worker: &Worker, rolled: &Rolled<'_>) {
        let labels = [
            (rolled.label.0, rolled.label.1),
            ("freecad_version", worker.freecad_version.as_str()),
            ("occt_version", worker.occt_version.as_str()),
        ];
        let labels = tidy(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec());
        let mut state = lock(&self.state);
        let series =
            self.series(&mut state, rolled.family, rolled.help, Kind::Durations, labels, Origin::Catalogue);
        if let Some(Series::Durations(durations)) = series {
            durations.observe(rolled.seconds, None);
        }
    }

    /// Names the series of an operation. The hasher's key is random: a worker cannot aim for a collision.
    fn key(&self, operation: &Operation) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        Arc::as_ptr(&operation.probe).addr().hash(&mut hasher);
        operation.worker.freecad_version.hash(&mut hasher);
        operation.worker.occt_version.hash(&mut hasher);
        operation.outcome.hash(&mut hasher);
        operation.memory.is_some().hash(&mut hasher);
        let also = operation.probe.also.iter().flat_map(|measure| measure.labels.values());
        for label in operation.probe.labels.values().chain(also) {
            match label.value().and_then(|value| operation.values.get(value)) {
                None => 0_u8.hash(&mut hasher),
                Some(Value::Int(number)) => (1_u8, number).hash(&mut hasher),
                Some(Value::Text(text)) => (2_u8, text).hash(&mut hasher),
            }
        }
        hasher.finish()
    }

    fn resolve(&self, state: &mut State, operation: &Operation) -> Resolved {
        let probe = &operation.probe;
        let labels = labels_of(operation, &probe.labels);
        let durations = probe.metric.as_ref().and_then(|name| {
            match self.series(state, name, &probe.help, Kind::Durations, labels.clone(), Origin::Catalogue)? {
                Series::Durations(durations) => Some(durations),
                Series::Number(_) => None,
            }
        });
        let calls = probe.counter.as_ref().and_then(|name| {
            match self.series(state, name, &probe.help, Kind::Counter, labels, Origin::Catalogue)? {
                Series::Number(number) => Some(number),
                Series::Durations(_) => None,
            }
        });
        let also = probe.also.iter().map(|measure| {
            let kind = Kind::of(&measure.amount);
            let labels = labels_of(operation, &measure.labels);
            self.series(state, &measure.family, &measure.help, kind, labels, Origin::Catalogue)
        });
        let also = also.collect();
        let memory = operation.memory.and_then(|_| {
            let labels = [
                ("operation", operation.name().into_owned()),
                ("freecad_version", operation.worker.freecad_version.clone()),
                ("occt_version", operation.worker.occt_version.clone()),
            ];
            let labels = tidy(labels.map(|(name, value)| (name.to_owned(), value)).to_vec());
            match self.declared(state, &families::OPERATION_MEMORY, labels)? {
                Series::Durations(histogram) => Some(histogram),
                Series::Number(_) => None,
            }
        });
        Resolved { _probe: Arc::clone(probe), durations, calls, memory, also }
    }
}

fn seconds(operation: &Operation) -> f64 {
    Duration::from_nanos(operation.end_ns.saturating_sub(operation.start_ns)).as_secs_f64()
}

/// A count that an operation carries.
fn count(operation: &Operation, value: &str) -> Option<f64> {
    match operation.values.get(value) {
        Some(Value::Int(count)) if *count >= 0 => Some(*count as f64),
        _ => None,
    }
}
