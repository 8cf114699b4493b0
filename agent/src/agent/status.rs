//! Turns the state of the observation into `/status` and the gauges.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::attach::TrackedFile;
use crate::budget::Measure;
use crate::export::http::{
    self, FileStatus, KernelStatus, LateStatus, OomStatus, ProbeState, ProbeStatus, Shared, WorkerStatus,
};
use crate::kernel;
use crate::observe::Observer;
use crate::workers::Late;

/// Why a file has no probes although workers map it.
const TRANSLATED: &str = "taken away while valgrind runs the file";

/// What the files with probes come to.
#[derive(Default)]
struct Files {
    attached: usize,
    skipped: BTreeMap<String, u64>,
    files: Vec<FileStatus>,
}

/// Brings `/status` and the gauges up to date.
pub(super) fn renew(observer: &Observer, shared: &Shared, oom_kills: &[OomStatus]) {
    let workers = workers(observer, shared);
    let mut files = Files::default();
    let limited = observer.attacher().limited();
    let limited: BTreeMap<&str, String> = limited
        .filter(|(_, measure, _)| *measure == Measure::Count)
        .map(|(id, _, rate)| {
            (id, format!("called {rate:.0} times a second: counted, not recorded one by one"))
        })
        .collect();
    for (id, file) in observer.attacher().files() {
        files.add(id.to_string(), file, &limited);
    }
    let losses = observer.losses();
    let metrics = shared.metrics();
    metrics.probes_attached(files.attached);
    metrics.probes_skipped(&files.skipped);
    metrics.probes_limited(observer.attacher().limited().filter_map(|(id, measure, _)| {
        let measure = match measure {
            Measure::Record => return None,
            Measure::Count => "counted",
            Measure::Remove => "removed",
        };
        Some((id, measure))
    }));
    for (reason, total) in &losses {
        metrics.events_lost(reason, *total);
    }
    let mode = match observer.mode() {
        kernel::AttachMode::UprobeMulti => http::AttachMode::UprobeMulti,
        kernel::AttachMode::PerfEvents => http::AttachMode::Perf,
    };
    shared.update(|status| {
        status.ready = true;
        status.waiting_for = None;
        status.kernel = KernelStatus { mode: Some(mode) };
        status.workers = workers;
        status.files = files.files;
        status.losses = losses.into_iter().filter(|(_, count)| *count > 0).collect();
        status.oom_kills = oom_kills.to_vec();
    });
}

fn workers(observer: &Observer, shared: &Shared) -> Vec<WorkerStatus> {
    let mut versions: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut flows: BTreeMap<(String, String, String), u64> = BTreeMap::new();
    let mut workers = Vec::new();
    for live in observer.workers().filter(|live| live.announced) {
        let worker = &live.worker;
        let version = (worker.freecad_version.clone(), worker.occt_version.clone());
        *flows.entry((worker.flow_type.clone(), version.0.clone(), version.1.clone())).or_default() += 1;
        *versions.entry(version).or_default() += 1;
        workers.push(WorkerStatus {
            pid: worker.process.pid,
            program: worker.program.clone(),
            freecad_version: worker.freecad_version.clone(),
            occt_version: worker.occt_version.clone(),
            flow_type: worker.flow_type.clone(),
            container: worker.container.id.clone(),
            namespace: worker.container.namespace.clone(),
            pod: worker.container.pod.clone(),
            operations: live.operations,
            late: live.late.iter().map(late).collect(),
        });
    }
    shared.metrics().workers(&versions);
    shared.metrics().flows_active(&flows);
    workers.sort_by_key(|worker| worker.pid);
    workers
}

fn late(late: &Late) -> LateStatus {
    let seconds = |ns| Duration::from_nanos(ns).as_secs_f64();
    LateStatus {
        path: late.path.clone(),
        seconds: seconds(late.whole_ns()),
        notice_seconds: seconds(late.notice_ns),
        analyse_seconds: seconds(late.analyse_ns),
        place_seconds: seconds(late.place_ns),
    }
}

impl Files {
    fn add(&mut self, inode: String, file: &TrackedFile, limited: &BTreeMap<&str, String>) {
        let probes = file.probes.iter().map(|probe| match &probe.sites {
            Ok((entry, exits)) if file.is_attached() => {
                self.attached += 1;
                ProbeStatus {
                    id: probe.id.clone(),
                    state: ProbeState::Attached,
                    reason: probe.note.clone().or_else(|| limited.get(probe.id.as_str()).cloned()),
                    entry: Some(entry.0),
                    exits: *exits,
                }
            }
            other => {
                let reason = other.as_ref().err().cloned();
                let reason = reason.unwrap_or_else(|| {
                    let without = if file.gives_way() { TRANSLATED } else { "no worker maps the file" };
                    without.to_owned()
                });
                if other.is_err() || file.gives_way() {
                    *self.skipped.entry(reason_label(&reason).to_owned()).or_default() += 1;
                }
                ProbeStatus {
                    id: probe.id.clone(),
                    state: ProbeState::Skipped,
                    reason: Some(reason),
                    entry: None,
                    exits: 0,
                }
            }
        });
        let probes = probes.collect();
        let (path, workers) = (file.path.clone(), file.workers.len());
        self.files.push(FileStatus { path, inode, workers, attached: file.is_attached(), probes });
    }
}

/// The reason without the addresses and names in it, for a label.
fn reason_label(reason: &str) -> &str {
    if reason == TRANSLATED {
        "translated"
    } else if reason.contains("too often") {
        "called_too_often"
    } else if reason.contains("another file") {
        "work_in_another_file"
    } else if reason.contains("decoded") {
        "undecodable"
    } else if reason.contains("indirect jump") {
        "indirect_jump"
    } else if reason.contains("frame") {
        "no_frame"
    } else if reason.contains("no exit") {
        "no_exit"
    } else {
        "other"
    }
}
