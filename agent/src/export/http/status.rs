//! What `/status` shows, as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

/// What `/status` shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// Whether the first full attach pass is over and events can be received.
    pub ready: bool,
    /// What it waits for while it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
    /// How the kernel is used.
    pub kernel: KernelStatus,
    /// Workers alive.
    pub workers: Vec<WorkerStatus>,
    /// Files with probes, or that could have some.
    pub files: Vec<FileStatus>,
    /// The last kills because memory ran out, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub oom_kills: Vec<OomStatus>,
    /// Events and records lost, by reason; zeros are left out.
    pub losses: BTreeMap<String, u64>,
}

/// How the kernel is used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KernelStatus {
    /// How probes are attached; `None` until the first one.
    pub mode: Option<AttachMode>,
}

/// How probes are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// One link for each file and program (Linux 6.6).
    UprobeMulti,
    /// One perf event for each site.
    Perf,
}

/// A worker alive.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct WorkerStatus {
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
    /// Its container's id; `""` on a plain host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// Its pod's namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// Operations received so far.
    pub operations: u64,
    /// Files that it mapped before their probes were in place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub late: Vec<LateStatus>,
}

/// A file that a worker mapped before its probes were in place.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LateStatus {
    /// As the worker maps it.
    pub path: String,
    /// How long: operations of the file in that time are not seen.
    pub seconds: f64,
    /// Of these, until the mapping was noticed.
    pub notice_seconds: f64,
    /// From there until it was known where the probes go.
    pub analyse_seconds: f64,
    /// From there until they were in place.
    pub place_seconds: f64,
}

/// A worker that the kernel killed because memory ran out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OomStatus {
    /// When, seconds since 1970.
    pub at_seconds: u64,
    /// Process id on the node.
    pub pid: u32,
    /// File name of its program.
    pub program: String,
    /// What kind of job it did.
    pub flow_type: String,
    /// The operation it was in; `""` if it was in none.
    pub operation: String,
    /// What it had resident; 0 if not known.
    pub resident_bytes: u64,
    /// The limit of the cgroup that was full; absent if the whole node was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// Its pod's namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// Its container's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// Its container's id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container_id: String,
}

/// A library or program file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FileStatus {
    /// As a worker maps it.
    pub path: String,
    /// `major:minor:inode` of the file below overlays.
    pub inode: String,
    /// Workers that map it.
    pub workers: usize,
    /// Its probes, those for exceptions and jumps too, are in place.
    pub attached: bool,
    /// What the catalogue has for it.
    pub probes: Vec<ProbeStatus>,
}

/// A probe in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProbeStatus {
    /// `bool.api_build`.
    pub id: String,
    /// Whether it is in place.
    pub state: ProbeState,
    /// Why it is skipped, or incomplete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// File offset of its entry site.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<u64>,
    /// Exit sites.
    pub exits: usize,
}

/// Whether a probe is in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeState {
    /// It is.
    Attached,
    /// It is not, and the reason is given.
    Skipped,
}
