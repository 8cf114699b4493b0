//! `cadscope agent`: observes every worker of the node and serves what it sees over HTTP.
//!
//! One thread owns the observation and feeds the metrics; the pages are served by tokio. The two share the metric
//! registry and the status, nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use tracing::{debug, info, warn};

use crate::config::AgentConfig;
use crate::export::http::{
    self, FileStatus, KernelStatus, ProbeState, ProbeStatus, Shared, Status, WorkerStatus,
};
use crate::export::metrics::{Metrics, MetricsOptions};
use crate::export::traces::Traces;
use crate::group::Groups;
use crate::kernel;
use crate::observe::{Observation, Observer, ObserverOptions, now_ns};
use crate::operation::Operation;

/// How often records are taken when none is urgent.
const TICK: Duration = Duration::from_millis(100);
/// Ticks between two renewals of `/status`.
const STATUS_TICKS: u32 = 5;

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// The port is taken or the node lacks something.
pub fn run(config: &AgentConfig, options: ObserverOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let metrics = Arc::new(Metrics::new(MetricsOptions::default()));
    let status = Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        waiting_for: Some("the first look at all processes".to_owned()),
        ..Status::default()
    };
    let shared = Arc::new(Shared::new(metrics, status));
    let listener = runtime.block_on(http::bind(&config.listen.to_string()))?;
    let traces = Traces::start(config)?;
    let observer = Observer::start(options)?;
    info!(listen = %listener.local_addr()?, kernel = observer.mode().as_str(), "observing");
    let stop = Arc::new(AtomicBool::new(false));
    let thread = {
        let (shared, stop) = (Arc::clone(&shared), Arc::clone(&stop));
        std::thread::Builder::new()
            .name("observe".to_owned())
            .spawn(move || observe(observer, traces, &shared, &stop))?
    };
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .context("cannot listen for SIGTERM")?;
        http::serve(listener, Arc::clone(&shared), async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        })
        .await;
        anyhow::Ok(())
    })?;
    stop.store(true, Ordering::Relaxed);
    thread.join().map_err(|_| anyhow::anyhow!("the observing thread ended unexpectedly"))?;
    info!("stopped");
    Ok(())
}

fn observe(mut observer: Observer, traces: Traces, shared: &Shared, stop: &AtomicBool) {
    let mut feed = Feed { metrics: shared.metrics(), groups: Groups::default(), traces };
    observer.scan(None, &mut |observation| feed.take(observation));
    observer.drain(&mut |observation| feed.take(observation));
    renew_status(&observer, shared);
    let mut tick = 0_u32;
    let mut received = 0;
    while !stop.load(Ordering::Relaxed) {
        observer.poll(TICK, &mut |observation| feed.take(observation));
        feed.metrics.events_received(observer.received().saturating_sub(received));
        received = observer.received();
        feed.traces.tick(feed.metrics);
        tick = tick.wrapping_add(1);
        if tick.is_multiple_of(STATUS_TICKS) {
            renew_status(&observer, shared);
        }
    }
    observer.drain(&mut |observation| feed.take(observation));
    feed.traces.end(observer.workers().map(|(worker, started_ns, _)| (worker, started_ns)), now_ns());
}

/// Where observations go.
struct Feed<'a> {
    metrics: &'a Metrics,
    groups: Groups,
    traces: Traces,
}

impl Feed<'_> {
    fn take(&mut self, observation: Observation) {
        let Self { metrics, groups, traces } = self;
        traces.see(&observation);
        let record = |operation: Operation, nested| traces.record(metrics, &operation, nested);
        match observation {
            Observation::Operation(operation) => groups.push(*operation, record),
            Observation::Started(worker) => {
                metrics.worker_seen();
                debug!(pid = worker.process.pid, program = worker.program, "worker");
            }
            Observation::Renewed(_) => {}
            Observation::Ended { worker, .. } => {
                groups.end(worker.process.pid, record);
                debug!(pid = worker.process.pid, program = worker.program, "worker ended");
            }
            Observation::Ready(latency) => metrics.attach_latency(latency),
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
}

/// Brings `/status` and the gauges up to date.
fn renew_status(observer: &Observer, shared: &Shared) {
    let mut versions: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut workers = Vec::new();
    for (worker, _, operations) in observer.workers() {
        *versions.entry((worker.freecad_version.clone(), worker.occt_version.clone())).or_default() += 1;
        workers.push(WorkerStatus {
            pid: worker.process.pid,
            program: worker.program.clone(),
            freecad_version: worker.freecad_version.clone(),
            occt_version: worker.occt_version.clone(),
            operations,
        });
    }
    workers.sort_by_key(|worker| worker.pid);
    let mut attached = 0;
    let mut skipped: BTreeMap<String, u64> = BTreeMap::new();
    let mut files = Vec::new();
    for (id, file) in observer.attacher().files() {
        let probes: Vec<ProbeStatus> = file
            .probes
            .iter()
            .map(|probe| match &probe.sites {
                Ok((entry, exits)) if file.is_attached() => {
                    attached += 1;
                    ProbeStatus {
                        id: probe.id.clone(),
                        state: ProbeState::Attached,
                        reason: probe.note.clone(),
                        entry: Some(entry.0),
                        exits: *exits,
                    }
                }
                other => {
                    let reason = other.as_ref().err().cloned();
                    let reason = reason.unwrap_or_else(|| "no worker maps the file".to_owned());
                    if other.is_err() {
                        *skipped.entry(reason_label(&reason).to_owned()).or_default() += 1;
                    }
                    ProbeStatus {
                        id: probe.id.clone(),
                        state: ProbeState::Skipped,
                        reason: Some(reason),
                        entry: None,
                        exits: 0,
                    }
                }
            })
            .collect();
        files.push(FileStatus {
            path: file.path.clone(),
            inode: id.to_string(),
            workers: file.workers.len(),
            probes,
        });
    }
    let losses = observer.losses();
    let metrics = shared.metrics();
    metrics.workers(&versions);
    metrics.probes_attached(attached);
    metrics.probes_skipped(&skipped);
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
        status.files = files;
        status.losses = losses.into_iter().filter(|(_, count)| *count > 0).collect();
    });
}

/// The reason without the addresses and names in it, for a label.
fn reason_label(reason: &str) -> &str {
    if reason.contains("another file") {
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
