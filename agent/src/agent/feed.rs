//! Turns observations into metrics, log lines and what is shown live.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use tracing::{debug, info, warn};

use crate::clock::now_ns;
use crate::discover;
use crate::ending::{End, How, Limit, OutOfMemory, signal_name};
use crate::export::http::OomStatus;
use crate::export::metrics::Metrics;
use crate::export::metrics::workers::WorkerLabels;
use crate::export::progress::{self, Progress};
use crate::export::traces::Traces;
use crate::flow::Flows;
use crate::group::Groups;
use crate::live::{Recent, Snapshot};
use crate::observe::{Observation, Observer};
use crate::operation::{Operation, Worker};
use crate::rollup::Rollups;
use crate::usage::Usages;
use crate::validation::Validation;
use crate::workers::Late;

/// Kills that `/status` shows.
const MAX_OOM_KILLS: usize = 100;

/// Where observations go.
pub(super) struct Feed<'a> {
    metrics: &'a Metrics,
    pod_labels: bool,
    groups: Groups,
    rollups: Rollups,
    flows: Flows,
    usages: Usages,
    oom_kills: VecDeque<OomStatus>,
    traces: Traces,
    recent: Recent,
    progress: Progress,
    validation: Option<Validation>,
}

impl<'a> Feed<'a> {
    pub(super) fn new(
        metrics: &'a Metrics,
        rollups: Rollups,
        pod_labels: bool,
        traces: Traces,
        validation: Option<Validation>,
        progress: Progress,
        slow: Duration,
    ) -> Self {
        Self {
            metrics,
            pod_labels,
            groups: Groups::default(),
            rollups,
            flows: Flows::new(boottime_ns()),
            usages: Usages::default(),
            oom_kills: VecDeque::new(),
            traces,
            recent: Recent::new(slow),
            progress,
            validation,
        }
    }

    pub(super) fn take(&mut self, observation: Observation) {
        let metrics = self.metrics;
        self.traces.see(&observation);
        self.recent.see(&observation);
        self.progress.see(&observation);
        let (traces, validation) = (&mut self.traces, &mut self.validation);
        let mut record = |operation: &Operation, nested| {
            traces.record(metrics, operation, nested);
            if let (Some(validation), false) = (&mut *validation, nested) {
                validation.see(operation, |verdict| metrics.export_validated(&verdict));
            }
        };
        self.flows.see(&observation, now_ns(), |step| metrics.flow(&step));
        match observation {
            Observation::Operation(operation) => {
                self.rollups.see(&operation, |rolled| metrics.record_rollup(&operation.worker, &rolled));
                self.groups.push(operation, |operation, nested| record(&operation, nested));
            }
            Observation::Started(worker) => {
                metrics.worker_seen();
                debug!(pid = worker.process.pid, program = worker.program, "worker");
            }
            Observation::Renewed(_) => {}
            Observation::Ended { worker, end, .. } => {
                let pid = worker.process.pid;
                self.rollups.end(pid);
                self.groups.end(pid, |operation, nested| record(&operation, nested));
                if let Some(validation) = &mut self.validation {
                    validation.end(worker.process, |verdict| metrics.export_validated(&verdict));
                }
                self.ended(&worker, &end);
            }
            Observation::Called(call) => metrics.ai_call(&call),
            Observation::Repeated { operation, count, nested } => {
                metrics.record_repeated(&operation, nested, count);
                if let (Some(validation), false) = (&mut self.validation, nested) {
                    validation.doubt(&operation.probe, operation.worker.process);
                }
            }
            Observation::Limited { probe, measure, rate } => {
                if let Some(validation) = &mut self.validation {
                    validation.limit(&probe, measure);
                }
                let probe = &probe.id;
                warn!(probe, rate = rate.round(), "a probe is called too often: {measure:?}");
            }
            Observation::Ready(latency) => metrics.attach_latency(latency),
            Observation::Late { pid, late } => {
                metrics.late_file(Duration::from_nanos(late.whole_ns()));
                let Late { path, notice_ns, analyse_ns, place_ns, .. } = late;
                let [notice_us, analyse_us, place_us] = [notice_ns, analyse_ns, place_ns].map(|ns| ns / 1000);
                debug!(pid, path, notice_us, analyse_us, place_us, "mapped before its probes were in place");
            }
            Observation::Missed { path, reason, error } => {
                metrics.worker_missed(reason);
                // Most processes that are gone at once are no CAD workers: counted, but no news.
                if reason == "process_gone" {
                    debug!(path, "a process was gone before its file could be looked at");
                } else {
                    warn!(path, reason, error, "a file could not be observed");
                }
            }
            Observation::Dropped(reason) => metrics.records_dropped(reason, 1),
        }
    }

    fn ended(&mut self, worker: &Worker, end: &End) {
        let pid = worker.process.pid;
        let labels = WorkerLabels::new(worker, self.pod_labels);
        let cpu = self.usages.end(pid, labels.clone(), end.cpu_ns, now_ns());
        self.metrics.worker_cpu(&labels, cpu);
        if let Some(oom) = &end.oom {
            self.metrics.oom_kill(&labels, oom);
            self.note_oom(worker, oom);
        }
        let (program, code, signal) = (&worker.program, end.code, signal_name(end.signal));
        match end.how {
            How::Killed | How::Crash => {
                let sender = end.sender.as_ref().map(|(pid, name)| format!("{name} ({pid})"));
                let core_dump = end.core_dump;
                info!(pid, program, code, signal, sender, core_dump, "worker ended: {:?}", end.how);
            }
            _ => debug!(pid, program, code, signal, "worker ended: {:?}", end.how),
        }
    }

    fn note_oom(&mut self, worker: &Worker, oom: &OutOfMemory) {
        let limit_bytes = match oom.limit {
            Limit::Cgroup { bytes, .. } => Some(bytes),
            Limit::Node => None,
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let container = &worker.container;
        let kill = OomStatus {
            at_seconds: now.as_secs(),
            pid: worker.process.pid,
            program: worker.program.clone(),
            flow_type: worker.flow_type.clone(),
            operation: oom.operation.clone(),
            resident_bytes: oom.resident_bytes,
            limit_bytes,
            namespace: container.namespace.clone(),
            pod: container.pod.clone(),
            container: container.name.clone(),
            container_id: container.id.clone(),
        };
        warn!(
            pid = kill.pid,
            program = kill.program,
            flow_type = kill.flow_type,
            operation = kill.operation,
            resident_bytes = kill.resident_bytes,
            limit_bytes = kill.limit_bytes,
            namespace = kill.namespace,
            pod = kill.pod,
            container = kill.container,
            container_id = kill.container_id,
            "worker killed: out of memory"
        );
        if self.oom_kills.len() >= MAX_OOM_KILLS {
            self.oom_kills.pop_front();
        }
        self.oom_kills.push_back(kill);
    }

    /// To be called a few times a second.
    pub(super) fn tick(&mut self, observer: &mut Observer) {
        self.flows.tick(now_ns(), |step| self.metrics.flow(&step));
        self.traces.tick(self.metrics);
        if self.progress.is_wanted() {
            // What is open now has its record afterwards at the latest: nothing before the cut is unknown.
            let cut_ns = now_ns();
            let open = observer.open_calls(progress::is_phase);
            observer.drain(&mut |observation| self.take(observation));
            self.progress.tell(&open, cut_ns);
        } else {
            self.progress.rest();
        }
        let counts = self.progress.counts();
        let (published, refused) = counts.broker();
        let dropped = [("slow_client", counts.slow()), ("queue_full", counts.lost()), ("redis", refused)];
        self.metrics.progress(counts.clients(), published, &dropped);
        self.validate(observer);
    }

    fn validate(&mut self, observer: &mut Observer) {
        if self.validation.as_ref().is_some_and(Validation::waits) {
            observer.take_counts(None, &mut |observation| self.take(observation));
        }
        let metrics = self.metrics;
        let Some(validation) = &mut self.validation else { return };
        validation.settle(None, |verdict| metrics.export_validated(&verdict));
        for verdict in validation.verdicts() {
            metrics.export_validated(&verdict);
        }
    }

    /// Asks procfs what the workers use.
    pub(super) fn look_at_usage(&mut self, observer: &Observer) {
        let now = now_ns();
        self.usages.begin();
        for live in observer.workers().filter(|live| live.announced) {
            let worker = &live.worker;
            let Some(usage) = discover::usage_of(observer.proc(), worker.process.pid) else { continue };
            if worker.executed_ns.is_none() {
                self.usages.skip(worker.process.pid, usage.cpu_ns);
            }
            self.recent.usage(worker.process.pid, usage, now);
            let labels = WorkerLabels::new(worker, self.pod_labels);
            let added = self.usages.take(worker, labels.clone(), usage, now);
            self.metrics.worker_cpu(&labels, added);
        }
        self.metrics.worker_memory(self.usages.used());
        self.metrics.forget_cpu(&self.usages.kept(now));
    }

    /// What the node does now.
    pub(super) fn snapshot(&mut self, observer: &Observer) -> Snapshot {
        self.recent.snapshot(observer)
    }

    /// Sends what is left; the workers still run.
    pub(super) fn end(self, observer: &Observer) {
        let running = observer.workers().filter(|live| live.announced);
        self.traces.end(running.map(|live| (&live.worker, live.started_ns)), now_ns());
    }

    pub(super) fn oom_kills(&mut self) -> &[OomStatus] {
        self.oom_kills.make_contiguous()
    }
}

/// Nanoseconds since boot, the clock that processes' starts are told in.
fn boottime_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.map_or(0, |now| {
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec()).unwrap_or(0))
    })
}
