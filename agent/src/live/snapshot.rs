//! What a node does now, as `/live` sends it and `cadscope top` reads it: field names are the JSON's.
//!
//! Durations are nanoseconds (`_ns`), moments are milliseconds since 1970 (`_ms`). Texts come from workers: whoever
//! shows them takes care of that.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a node does now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The agent's version.
    pub version: String,
    /// The node.
    pub host: String,
    /// Now.
    pub at_ms: u64,
    /// How long it has been observing.
    pub up_seconds: u64,
    /// What observing costs.
    pub own: Own,
    /// Workers alive; `workers` has the first thousand.
    pub worker_count: usize,
    /// By process id.
    pub workers: Vec<WorkerRow>,
    /// Operations in flight, the oldest first.
    pub open: Vec<OpenRow>,
    /// Kinds of operations, the one with most time first.
    pub kinds: Vec<KindRow>,
    /// Slow operations, the newest first.
    pub slow: Vec<SlowRow>,
    /// Workers that ended, the newest first.
    pub ended: Vec<EndedWorker>,
    /// Which probes are in place.
    pub coverage: Coverage,
    /// Events lost, by reason; zeros are left out.
    pub losses: BTreeMap<String, u64>,
}

/// What observing costs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Own {
    /// CPU time so far.
    pub cpu_ns: u64,
    /// Part of one CPU, lately.
    pub cpu_share: f64,
    /// Resident memory.
    pub resident_bytes: u64,
}

/// A worker alive.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerRow {
    /// Process id on the node.
    pub pid: u32,
    /// File name of its program.
    pub program: String,
    /// `""`: none, or not known.
    pub freecad_version: String,
    /// `""`: not known.
    pub occt_version: String,
    /// What kind of job it does.
    pub flow_type: String,
    /// The job's id; `""` where its environment does not say.
    pub job: String,
    /// Its pod's namespace; `""` outside of a pod.
    pub namespace: String,
    /// Its pod.
    pub pod: String,
    /// Its container's name.
    pub container: String,
    /// Since it started, or was first seen.
    pub age_ns: u64,
    /// Operations that have ended.
    pub operations: u64,
    /// Those whose outcome is not ok.
    pub failed: u64,
    /// Operations in flight.
    pub open: usize,
    /// CPUs that it keeps busy, lately; absent until it has been looked at twice.
    pub cpu_share: Option<f64>,
    /// Resident memory now.
    pub resident_bytes: u64,
    /// Resident memory in KiB at even times, the last one now.
    pub memory_kib: Vec<u64>,
}

/// An operation in flight.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OpenRow {
    /// Its worker.
    pub pid: u32,
    /// Its thread.
    pub tid: u32,
    /// Operations open around it.
    pub depth: u32,
    /// For how long.
    pub age_ns: u64,
    /// What it does.
    pub title: String,
    /// The kind that it is counted in.
    pub kind: String,
    /// The line of the job that called it; `""` if it is not open for long.
    pub line: String,
}

/// The operations of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KindRow {
    /// Its name.
    pub kind: String,
    /// In flight.
    pub open: usize,
    /// A second, over the last ten.
    pub per_second: f64,
    /// Since observing began.
    pub count: u64,
    /// Those whose outcome is not ok.
    pub failed: u64,
    /// All their time.
    pub total_ns: u64,
    /// Median of the last 256.
    pub p50_ns: u64,
    /// 95 % of the last 256 were at most so long.
    pub p95_ns: u64,
    /// The longest since observing began.
    pub max_ns: u64,
}

/// A slow operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SlowRow {
    /// When it ended.
    pub at_ms: u64,
    /// Its worker.
    pub pid: u32,
    /// The worker's program.
    pub program: String,
    /// The worker's job; `""` where its environment does not say.
    pub job: String,
    /// What it did.
    pub title: String,
    /// ok, error, exception, killed.
    pub outcome: String,
    /// The exception that left it.
    pub exception: String,
    /// How long.
    pub duration_ns: u64,
    /// The line of the job that called it; `""` where Python was not seen.
    pub line: String,
    /// The operations around it that were slow because of it, innermost first.
    pub within: Vec<String>,
    /// What it needed of memory at its peak; 0 where that was not read.
    pub memory_bytes: u64,
}

/// A worker that ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndedWorker {
    /// When.
    pub at_ms: u64,
    /// Process id on the node.
    pub pid: u32,
    /// File name of its program.
    pub program: String,
    /// What kind of job it did.
    pub flow_type: String,
    /// The job's id; `""` where its environment does not say.
    pub job: String,
    /// success, failure, crash, killed, oom; unseen.
    pub how: String,
    /// Exit code, if it exited.
    pub code: Option<u8>,
    /// The signal that ended it; `""` for none.
    pub signal: String,
    /// The operation in which memory ran out.
    pub operation: String,
    /// For how long it ran.
    pub lived_ns: u64,
    /// Operations that it did.
    pub operations: u64,
    /// Those whose outcome is not ok.
    pub failed: u64,
}

/// Which probes are in place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// Probes in place, over all files.
    pub attached: usize,
    /// Probes that cannot be placed.
    pub skipped: usize,
    /// Why, and how many.
    pub reasons: BTreeMap<String, usize>,
    /// By path; the first two hundred.
    pub files: Vec<FileCoverage>,
}

/// The probes of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCoverage {
    /// As a worker maps it.
    pub path: String,
    /// Workers that map it.
    pub workers: usize,
    /// Probes in place.
    pub attached: usize,
    /// Probes that cannot be placed.
    pub skipped: usize,
}
