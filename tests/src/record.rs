//! Reads the record that the torture worker writes about itself (`torture/record.hpp`) into calls.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// A probed call as the worker saw it.
#[derive(Clone, Debug)]
pub struct Call {
    /// Process.
    pub pid: i32,
    /// Thread.
    pub tid: i32,
    /// Names it in its process.
    pub seq: i64,
    /// Probe id.
    pub id: String,
    /// `seq` of the call around it.
    pub parent: Option<i64>,
    /// Calls open around it.
    pub depth: u32,
    /// Its first argument, if an integer.
    pub n: Option<i64>,
    /// What it returned, if an integer.
    pub result: Option<i64>,
    /// The clock before it was written down, thus before it began.
    pub before_ns: i64,
    /// The clock right around the call; only if its end was written.
    pub clock_ns: Option<(i64, i64)>,
    /// As `ended_by` of an operation.
    pub how: String,
    /// Type of the exception that left it.
    pub exception: Option<String>,
    /// Signal that ended its process.
    pub signal: Option<i32>,
}

#[derive(Deserialize)]
#[serde(tag = "e", rename_all = "lowercase")]
enum Line {
    Begin {
        pid: i32,
        tid: i32,
        seq: i64,
        id: String,
        parent: Option<i64>,
        depth: u32,
        n: Option<i64>,
        at: i64,
    },
    End {
        pid: i32,
        seq: i64,
        start: i64,
        end: i64,
        how: String,
        r#type: Option<String>,
        result: Option<i64>,
    },
    Fate {
        pid: i32,
        tid: i32,
        how: String,
        signal: i32,
    },
}

struct Fate {
    how: String,
    signal: Option<i32>,
}

/// The calls in the record at `path`, in the order in which they began.
///
/// # Errors
/// The record contradicts itself: a call ends twice, or never.
pub fn read(path: &Path) -> Result<Vec<Call>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("no record at {}", path.display()))?;
    let mut calls: Vec<Call> = Vec::new();
    let mut open: BTreeMap<(i32, i64), usize> = BTreeMap::new();
    let mut fates: HashMap<(i32, i32), Fate> = HashMap::new(); // tid 0: the whole process
    for line in text.lines() {
        match serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display()))? {
            Line::Begin { pid, tid, seq, id, parent, depth, n, at } => {
                open.insert((pid, seq), calls.len());
                calls.push(Call {
                    pid,
                    tid,
                    seq,
                    id,
                    parent,
                    depth,
                    n,
                    result: None,
                    before_ns: at,
                    clock_ns: None,
                    how: String::new(),
                    exception: None,
                    signal: None,
                });
            }
            Line::End { pid, seq, start, end, how, r#type, result } => {
                let index =
                    open.remove(&(pid, seq)).with_context(|| format!("ends but is not open: {line}"))?;
                let call = calls.get_mut(index).context("index of an open call")?;
                call.clock_ns = Some((start, end));
                call.how = how;
                call.exception = r#type;
                call.result = result;
            }
            Line::Fate { pid, how, .. } if how == "exec" => {
                // What is open now ends now; the new program's calls are not touched by it.
                let ending: Vec<_> = open.keys().filter(|k| k.0 == pid).copied().collect();
                for key in ending {
                    let call =
                        open.remove(&key).and_then(|i| calls.get_mut(i)).context("index of an open call")?;
                    call.how.clone_from(&how);
                }
            }
            Line::Fate { pid, tid, how, signal } => {
                fates.insert((pid, tid), Fate { how, signal: (signal != 0).then_some(signal) });
            }
        }
    }
    for (_, index) in open {
        let call = calls.get_mut(index).context("index of an open call")?;
        let fate = fates.get(&(call.pid, call.tid)).or_else(|| fates.get(&(call.pid, 0)));
        let fate = fate.with_context(|| format!("{} of {} never ended", call.id, call.pid))?;
        call.how.clone_from(&fate.how);
        call.signal = fate.signal;
    }
    ensure!(calls.iter().all(|c| !c.how.is_empty()), "{}: a call without an end", path.display());
    Ok(calls)
}

impl Call {
    /// The outcome that an operation must have for it.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match self.how.as_str() {
            "return" => "ok",
            "exception" => "exception",
            "jump" => "error",
            _ => "killed",
        }
    }
}
