//! Turns exports into verdicts: whether what was written is what the earlier export of the same inputs wrote.
//!
//! What the same inputs are is told in [`crate::inputs`], what of a file counts in [`crate::digest`]. Files are read by a
//! thread of its own; between it and the thread that observes lies a channel that is bounded: what does not fit is not
//! judged, and counted. A process of which something was dropped has unknown inputs from then on, and so has one whose loads
//! or exports were only counted: where that can be, exports are held until the counts have been asked for. An export that
//! was the first of its inputs has no verdict; nor has one whose file was changed or removed before it was read.

mod judge;
mod store;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};

use cadscope_common::record::ProcessKey;

use self::judge::Judge;
pub use self::store::Store;
use crate::budget::Measure;
use crate::catalog::Probe;
use crate::config::ValidationConfig;
use crate::inputs::{OpenFile, Touched};
use crate::operation::{Operation, Outcome, Worker};

/// Files that wait for the thread, and ends of processes.
const WAITING: usize = 512;
/// Processes that are kept apart (if there are ever more, nothing is judged any more), and names of exports of each.
const MAX_PROCESSES: usize = 4096;
const MAX_NAMES: usize = 1024;

/// What became of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is what the earlier one was, or is not.
    Compared {
        /// Who wrote it.
        worker: Arc<Worker>,
        /// As labels have it.
        format: String,
        /// It is.
        same: bool,
    },
    /// There is none yet, or it could not be judged, for this reason.
    Not(&'static str),
}

/// The side of the thread that observes.
#[derive(Debug)]
pub struct Validation {
    to_thread: SyncSender<Message>,
    verdicts: Receiver<Verdict>,
    processes: HashMap<u32, Process>,
    /// Counts how often something was dropped.
    epoch: u64,
    /// Nothing is judged any more.
    is_blind: bool,
    /// Calls can be without records: exports wait until these have been counted.
    holds: bool,
    held: Vec<(ProcessKey, Box<Export>)>,
}

#[derive(Debug)]
struct Process {
    /// The epoch in which it was first heard of.
    since: u64,
    /// Of some of its loads or exports nothing is known but that they were.
    is_doubted: bool,
    /// How many exports there were of a format and file name.
    exports: BTreeMap<(String, String), u32>,
}

#[derive(Debug)]
struct Message {
    epoch: u64,
    /// Of the process.
    since: u64,
    process: ProcessKey,
    what: What,
}

#[derive(Debug)]
enum What {
    Loaded(Option<Arc<OpenFile>>, u64),
    Exported(Box<Export>),
    Ended,
}

#[derive(Debug)]
struct Export {
    worker: Arc<Worker>,
    file: Arc<OpenFile>,
    format: String,
    number: u32,
    ended_ns: u64,
}

impl Validation {
    /// Starts the thread. `holds`: short calls are only counted.
    ///
    /// # Errors
    /// The system has no room for one.
    pub fn start(config: &ValidationConfig, store: Store, holds: bool) -> io::Result<Self> {
        let (to_thread, messages) = sync_channel(WAITING);
        let (say, verdicts) = channel();
        let judge = Judge::new(config, store, say);
        std::thread::Builder::new().name("exports".to_owned()).spawn(move || judge.run(&messages))?;
        Ok(Self { holds, ..Self::new(to_thread, verdicts) })
    }

    fn new(to_thread: SyncSender<Message>, verdicts: Receiver<Verdict>) -> Self {
        let (processes, held) = (HashMap::new(), Vec::new());
        Self { to_thread, verdicts, processes, epoch: 0, is_blind: false, holds: false, held }
    }

    /// Takes the outermost operation of its group.
    pub fn see(&mut self, operation: &Operation, mut say: impl FnMut(Verdict)) {
        let process = operation.worker.process;
        if operation.probe.loads() {
            let file = match &operation.file {
                Some(Touched::Open(file)) => Some(Arc::clone(file)),
                _ => None,
            };
            self.send(process, What::Loaded(file, operation.end_ns));
        } else if let Some((_, path)) = operation.probe.written_file(&operation.values)
            && let Some(format) = operation.probe.labels.get("format")
        {
            let format = format.text(&operation.values, operation.outcome).into_owned();
            let name = path.rsplit('/').next().unwrap_or_default().to_owned();
            let number = self.number(process.pid, format.clone(), name);
            if operation.outcome != Outcome::Ok {
                return;
            }
            if let Err(reason) = self.export(operation, format, number) {
                say(Verdict::Not(reason));
            }
        }
    }

    fn export(
        &mut self,
        operation: &Operation,
        format: String,
        number: Option<u32>,
    ) -> Result<(), &'static str> {
        let process = operation.worker.process;
        let (number, file) = match (number, &operation.file) {
            (_, Some(Touched::Missed(reason))) => return Err(reason),
            (Some(number), Some(Touched::Open(file))) if operation.tid == process.pid => (number, file),
            _ => return Err("inputs_unknown"),
        };
        let export = Export {
            worker: Arc::clone(&operation.worker),
            file: Arc::clone(file),
            format,
            number,
            ended_ns: operation.end_ns,
        };
        let export = Box::new(export);
        if self.holds {
            self.held.push((process, export));
            return Ok(());
        }
        self.judge(process, export)
    }

    fn judge(&mut self, process: ProcessKey, export: Box<Export>) -> Result<(), &'static str> {
        match self.process(process.pid) {
            Some(known) if !known.is_doubted => {
                if self.send(process, What::Exported(export)) {
                    Ok(())
                } else {
                    Err("busy")
                }
            }
            _ => Err("inputs_unknown"),
        }
    }

    /// Calls of this probe have no records from now on.
    pub fn limit(&mut self, probe: &Probe, measure: Measure) {
        if !is_input(probe) {
            return;
        }
        match measure {
            Measure::Record => {}
            Measure::Count => self.holds = true,
            Measure::Remove => self.is_blind = true,
        }
    }

    /// A call of this process has been counted, and nothing else is known of it.
    pub fn doubt(&mut self, probe: &Probe, process: ProcessKey) {
        if is_input(probe)
            && let Some(process) = self.process(process.pid)
        {
            process.is_doubted = true;
        }
    }

    /// Exports wait for [`Self::settle`].
    #[must_use]
    pub fn waits(&self) -> bool {
        !self.held.is_empty()
    }

    /// What had been counted when these exports (of one process or all) ended has been doubted: they are judged.
    pub fn settle(&mut self, of: Option<ProcessKey>, mut say: impl FnMut(Verdict)) {
        for (process, export) in std::mem::take(&mut self.held) {
            if of.is_some_and(|of| of != process) {
                self.held.push((process, export));
                continue;
            }
            if let Err(reason) = self.judge(process, export) {
                say(Verdict::Not(reason));
            }
        }
    }

    /// Counts the exports of a name; `None` where too much is not known of the process.
    fn number(&mut self, pid: u32, format: String, name: String) -> Option<u32> {
        let exports = &mut self.process(pid)?.exports;
        if exports.len() >= MAX_NAMES {
            return None;
        }
        let number = exports.entry((format, name)).or_default();
        *number += 1;
        Some(*number - 1)
    }

    fn process(&mut self, pid: u32) -> Option<&mut Process> {
        self.is_blind |= self.processes.len() >= MAX_PROCESSES;
        if self.is_blind {
            self.processes.clear();
            return None;
        }
        let new = Process { since: self.epoch, is_doubted: false, exports: BTreeMap::new() };
        Some(self.processes.entry(pid).or_insert(new))
    }

    fn send(&mut self, process: ProcessKey, what: What) -> bool {
        let epoch = self.epoch;
        let Some(since) = self.process(process.pid).map(|process| process.since) else { return false };
        let sent = self.to_thread.try_send(Message { epoch, since, process, what }).is_ok();
        if !sent {
            self.epoch += 1;
        }
        sent
    }

    /// A process is over, and its counts have been doubted.
    pub fn end(&mut self, process: ProcessKey, say: impl FnMut(Verdict)) {
        self.settle(Some(process), say);
        if self.processes.contains_key(&process.pid) {
            self.send(process, What::Ended);
            self.processes.remove(&process.pid);
        }
    }

    /// What has been found out since.
    pub fn verdicts(&self) -> impl Iterator<Item = Verdict> {
        self.verdicts.try_iter()
    }
}

/// Its calls are inputs of what is exported after them, or exports that are numbered.
fn is_input(probe: &Probe) -> bool {
    probe.loads() || probe.group.as_deref() == Some("export")
}

#[cfg(test)]
mod tests;
