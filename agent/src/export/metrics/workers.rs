//! Turns the life of workers into its families: flows, exits, what workers use.
//!
//! Families with the labels of a pod have them only where a worker is in a container, and not at all if they are turned
//! off. What belongs to a pod that is long gone is forgotten, but for kills, which are few and outlive their container.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::families::{self, Family};
use super::labels::{Labels, tidy};
use super::series::Series;
use super::{Metrics, lock};
use crate::ending::{End, OutOfMemory, signal_name};
use crate::flow::Step;
use crate::operation::Worker;

/// What some workers of the same labels use together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Used {
    /// Resident now, all together.
    pub resident_bytes: u64,
    /// The most that one of them ever had resident.
    pub peak_bytes: u64,
}

/// Labels of a worker's versions, and of its pod if they are wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerLabels(Labels);

impl WorkerLabels {
    /// Of a worker.
    #[must_use]
    pub fn new(worker: &Worker, pod_labels: bool) -> Self {
        let mut labels = versions(worker);
        let container = &worker.container;
        if pod_labels && !container.id.is_empty() {
            labels.extend([
                ("namespace", container.namespace.as_str()),
                ("pod", container.pod.as_str()),
                ("container", container.name.as_str()),
            ]);
        }
        Self(owned(&labels))
    }
}

fn versions(worker: &Worker) -> Vec<(&'static str, &str)> {
    vec![("freecad_version", worker.freecad_version.as_str()), ("occt_version", worker.occt_version.as_str())]
}

fn owned(labels: &[(&str, &str)]) -> Labels {
    tidy(labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

impl Metrics {
    /// Counts a step of a flow.
    pub fn flow(&self, step: &Step<'_>) {
        match step {
            Step::Started(worker) => {
                self.add(&families::FLOWS_STARTED, &flow_labels(worker), 1.0);
            }
            Step::Stage(worker, stage, duration) => {
                let labels = [
                    ("flow_type", worker.flow_type.as_str()),
                    ("stage", *stage),
                    ("freecad_version", worker.freecad_version.as_str()),
                ];
                self.stage(&labels, *duration);
            }
            Step::Completed(worker, end) => self.completed(worker, end),
        }
    }

    fn stage(&self, labels: &[(&str, &str)], duration: Duration) {
        self.own(&families::FLOW_STAGES, labels, |series| {
            if let Series::Durations(durations) = series {
                durations.observe(duration.as_secs_f64(), None);
            }
        });
    }

    fn completed(&self, worker: &Worker, end: &End) {
        if let Some(status) = end.how.status() {
            let mut labels = flow_labels(worker);
            labels.push(("status", status));
            self.add(&families::FLOWS_COMPLETED, &labels, 1.0);
        } else {
            self.worker_missed("end_unseen");
        }
        if let Some(reason) = end.how.reason() {
            let signal = signal_name(end.signal);
            let mut labels = versions(worker);
            labels.extend([("reason", reason), ("signal", signal.as_str())]);
            self.add(&families::WORKER_EXITS, &labels, 1.0);
        }
    }

    /// Counts a worker that was killed because memory ran out.
    pub fn oom_kill(&self, labels: &WorkerLabels, oom: &OutOfMemory) {
        let operation = if oom.operation.is_empty() { "none" } else { oom.operation.as_str() };
        let mut labels: Vec<(&str, &str)> =
            labels.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        labels.push(("operation", operation));
        self.add(&families::WORKER_OOM_KILLS, &labels, 1.0);
    }

    /// Adds CPU time of workers.
    pub fn worker_cpu(&self, labels: &WorkerLabels, time: Duration) {
        let labels: Vec<(&str, &str)> =
            labels.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.add(&families::WORKER_CPU, &labels, time.as_secs_f64());
    }

    /// Sets what workers use now; labels that are not named have no worker.
    pub fn worker_memory(&self, used: &HashMap<WorkerLabels, Used>) {
        self.clear(&families::WORKER_RESIDENT);
        self.clear(&families::WORKER_PEAK);
        for (labels, used) in used {
            let labels: Vec<(&str, &str)> =
                labels.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            self.set(&families::WORKER_RESIDENT, &labels, used.resident_bytes as f64);
            self.set(&families::WORKER_PEAK, &labels, used.peak_bytes as f64);
        }
    }

    /// Forgets the CPU time of labels that no worker has had for long.
    pub fn forget_cpu(&self, kept: &HashSet<WorkerLabels>) {
        let mut state = lock(&self.state);
        if let Some(family) = state.families.get_mut(families::WORKER_CPU.name) {
            family.series.retain(|labels, _| kept.iter().any(|kept| kept.0 == *labels));
        }
    }

    /// Sets the flows that run, by (flow type, FreeCAD's version, OCCT's version).
    pub fn flows_active(&self, active: &BTreeMap<(String, String, String), u64>) {
        self.zero(&families::FLOWS_ACTIVE);
        for ((flow_type, freecad, occt), count) in active {
            let labels = [
                ("flow_type", flow_type.as_str()),
                ("freecad_version", freecad.as_str()),
                ("occt_version", occt.as_str()),
            ];
            self.set(&families::FLOWS_ACTIVE, &labels, *count as f64);
        }
    }

    /// Removes every series of a gauge.
    fn clear(&self, gauge: &Family) {
        let mut state = lock(&self.state);
        if let Some(family) = state.families.get_mut(gauge.name) {
            family.series.clear();
            family.overflow = None;
        }
    }
}

fn flow_labels(worker: &Worker) -> Vec<(&'static str, &str)> {
    let mut labels = versions(worker);
    labels.push(("flow_type", worker.flow_type.as_str()));
    labels
}
