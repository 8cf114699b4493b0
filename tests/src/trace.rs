//! Runs `cadscope trace --format json` and reads its answer.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::run::{Ended, run, text};

/// The file that `trace --format json` writes.
#[derive(Clone, Debug, Deserialize)]
pub struct Trace {
    /// Version of this form.
    pub schema: u32,
    /// What was run.
    pub command: Vec<String>,
    /// The processes seen.
    pub workers: Vec<Worker>,
    /// The calls seen.
    pub operations: Vec<Operation>,
    /// What was lost, by counter.
    pub losses: BTreeMap<String, u64>,
    /// What was not attached.
    pub skipped: Vec<Skipped>,
    /// Files that were mapped before their probes were in place.
    pub late: Vec<Late>,
}

/// A file that a process mapped before its probes were in place.
#[derive(Clone, Debug, Deserialize)]
pub struct Late {
    /// The process.
    pub pid: i32,
    /// The file.
    pub file: String,
    /// When, CLOCK_MONOTONIC.
    pub mapped_ns: i64,
    /// How long it had no probes.
    pub unseen_ns: i64,
    /// Until it was noticed.
    pub notice_ns: i64,
    /// From there until it was analysed.
    pub analyse_ns: i64,
    /// From there until its probes were in place.
    pub place_ns: i64,
}

/// A process.
#[derive(Clone, Debug, Deserialize)]
pub struct Worker {
    /// Process id.
    pub pid: i32,
    /// File name of its program.
    pub program: String,
    /// `""` without FreeCAD.
    pub freecad_version: String,
    /// `""` without OCCT.
    pub occt_version: String,
    /// How it ended, absent while it runs.
    pub exit: Option<Exit>,
}

/// How a process ended.
#[derive(Clone, Debug, Deserialize)]
pub struct Exit {
    /// Exit code, if it ended by itself.
    pub code: Option<i32>,
    /// Signal, if one ended it.
    pub signal: Option<i32>,
}

/// A call.
#[derive(Clone, Debug, Deserialize)]
pub struct Operation {
    /// Process.
    pub pid: i32,
    /// Thread.
    pub tid: i32,
    /// Begin, CLOCK_MONOTONIC.
    pub start_ns: i64,
    /// End.
    pub end_ns: i64,
    /// Begin of the call around it.
    pub parent_start_ns: Option<i64>,
    /// Calls open around it.
    pub depth: u32,
    /// Probe id.
    pub probe: String,
    /// Title, filled in.
    pub name: String,
    /// ok, error, exception, killed.
    pub outcome: String,
    /// return, exception, jump, thread_exit, process_exit, signal, exec.
    pub ended_by: String,
    /// Demangled type.
    pub exception: Option<String>,
    /// Signal that ended its process.
    pub signal: Option<i32>,
    /// What was read.
    pub values: BTreeMap<String, serde_json::Value>,
    /// The Python stack that called it, if it was slow.
    #[serde(default)]
    pub source: Option<serde_json::Value>,
    /// Resident memory of the process.
    pub memory: Option<Memory>,
}

/// Resident memory of the process around a call, in bytes.
#[derive(Clone, Debug, Deserialize)]
pub struct Memory {
    /// When it began.
    pub entry_bytes: i64,
    /// When it ended, absent if the process was gone.
    pub exit_bytes: Option<i64>,
    /// The most in between.
    pub peak_bytes: i64,
}

/// A probe that was not attached to a file.
#[derive(Clone, Debug, Deserialize)]
pub struct Skipped {
    /// The file.
    pub file: String,
    /// Probe id.
    pub probe: String,
    /// Why.
    pub reason: String,
}

impl Operation {
    /// Duration in nanoseconds.
    #[must_use]
    pub fn duration_ns(&self) -> i64 {
        self.end_ns - self.start_ns
    }

    /// An integer that was read.
    #[must_use]
    pub fn int(&self, value: &str) -> Option<i64> {
        self.values.get(value)?.as_i64()
    }

    /// A text that was read.
    #[must_use]
    pub fn text(&self, value: &str) -> Option<&str> {
        self.values.get(value)?.as_str()
    }
}

impl Trace {
    /// The operations of one probe.
    #[must_use]
    pub fn of(&self, probe: &str) -> Vec<&Operation> {
        self.operations.iter().filter(|o| o.probe == probe).collect()
    }
}

/// Runs `command` under `cadscope trace`; `catalog` adds probes, `environment` variables.
///
/// # Errors
/// cadscope did not end in time or wrote nothing that can be read.
pub fn trace(
    catalog: Option<&Path>,
    command: &[&str],
    environment: &[(&str, &str)],
    limit: Duration,
) -> Result<(Ended, Trace)> {
    let folder = crate::node::scratch()?;
    let file = folder.path().join("trace.json");
    let mut cadscope = Command::new(crate::node::cadscope()?);
    cadscope.args(["trace", "--format", "json", "-o"]).arg(&file);
    if let Some(catalog) = catalog {
        cadscope.arg("--catalog").arg(catalog);
    }
    cadscope.arg("--").args(command).envs(environment.iter().copied());
    let ended = run(&mut cadscope, limit)?;
    let json = text(&file);
    let trace = serde_json::from_str(&json).with_context(|| {
        let head: String = json.chars().take(500).collect();
        format!(
            "{cadscope:?} ended with {} and wrote no trace: {head:?}\n--- stderr\n{}",
            ended.code, ended.stderr
        )
    })?;
    Ok((ended, trace))
}
