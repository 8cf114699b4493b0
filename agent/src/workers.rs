//! Turns what is learnt of processes into the table of live workers.
//!
//! Bookkeeping only: no I/O and no clock. A process stands here from the moment it is recognised until it ends or
//! replaces its program; a fork of a worker is a worker.

pub mod targets;

use std::collections::HashMap;
use std::sync::Arc;

use cadscope_common::record::ProcessKey;

use crate::operation::Worker;
use crate::plan::Versions;

pub use self::targets::Targets;

/// Programs of processes that may become workers, remembered at once.
const MAX_PROGRAMS: usize = 65_536;

/// A live worker.
#[derive(Clone, Debug)]
pub struct Live {
    /// What is known of it.
    pub worker: Arc<Worker>,
    /// When its program was executed or it was forked, else when it was recognised; CLOCK_MONOTONIC.
    pub started_ns: u64,
    /// The versions were read from the process itself, or cannot be.
    pub settled: bool,
    /// Operations that have ended.
    pub operations: u64,
}

/// The table.
#[derive(Debug, Default)]
pub struct Workers {
    live: HashMap<u32, Live>,
    programs: HashMap<u32, Option<String>>,
}

impl Workers {
    /// Notes that a process executed a program, whose file it will map next.
    pub fn executed(&mut self, pid: u32) {
        if self.programs.len() >= MAX_PROGRAMS {
            self.programs.clear();
        }
        self.programs.insert(pid, None);
    }

    /// Notes what a process maps: the first file after exec is its program.
    pub fn mapped(&mut self, pid: u32, path: &str) {
        if let Some(program @ None) = self.programs.get_mut(&pid) {
            *program = Some(path.rsplit('/').next().unwrap_or_default().to_owned());
        }
    }

    /// The program of a process that is not a worker yet, if its start was seen. Told once.
    pub fn program_of(&mut self, pid: u32) -> Option<String> {
        self.programs.remove(&pid).flatten()
    }

    /// Enters a worker.
    pub fn enter(&mut self, worker: Worker, started_ns: u64) -> &mut Live {
        let pid = worker.process.pid;
        let live = Live { worker: Arc::new(worker), started_ns, settled: false, operations: 0 };
        self.live.entry(pid).insert_entry(live).into_mut()
    }

    /// Enters the child of a worker; `None` if the parent is none.
    pub fn fork(&mut self, parent: u32, child: ProcessKey, at_ns: u64) -> Option<&mut Live> {
        let parent = self.live.get(&parent)?;
        let (worker, settled) = (Worker { process: child, ..(*parent.worker).clone() }, parent.settled);
        let live = self.enter(worker, at_ns);
        live.settled = settled;
        Some(live)
    }

    /// Removes a worker.
    pub fn end(&mut self, pid: u32) -> Option<Live> {
        self.live.remove(&pid)
    }

    /// Whether a process is a worker.
    #[must_use]
    pub fn contains(&self, pid: u32) -> bool {
        self.live.contains_key(&pid)
    }

    /// A worker.
    pub fn get_mut(&mut self, pid: u32) -> Option<&mut Live> {
        self.live.get_mut(&pid)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Live> {
        self.live.values()
    }

    /// Their processes.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.live.keys().copied().collect()
    }
}

impl Live {
    /// Takes over versions that are known better now; whether that changed anything.
    pub fn renew(&mut self, versions: &Versions) -> bool {
        let mut worker = (*self.worker).clone();
        if !versions.freecad.is_empty() {
            worker.freecad_version.clone_from(&versions.freecad);
        }
        if !versions.occt.is_empty() {
            worker.occt_version.clone_from(&versions.occt);
        }
        let changed = worker != *self.worker;
        if changed {
            self.worker = Arc::new(worker);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pid: u32) -> ProcessKey {
        ProcessKey { pid, padding: 0, start_boottime_ns: u64::from(pid) * 10 }
    }

    fn worker(pid: u32) -> Worker {
        Worker {
            process: key(pid),
            program: "freecadcmd".to_owned(),
            freecad_version: String::new(),
            occt_version: "7.6.3".to_owned(),
            job: std::sync::Arc::default(),
        }
    }

    #[test]
    fn the_first_file_mapped_after_exec_is_the_program() {
        let mut workers = Workers::default();
        workers.mapped(7, "/lib/early.so");
        assert_eq!(workers.program_of(7), None);
        workers.executed(7);
        workers.mapped(7, "/usr/bin/freecadcmd");
        workers.mapped(7, "/lib/libTKernel.so.7");
        assert_eq!(workers.program_of(7).as_deref(), Some("freecadcmd"));
        assert_eq!(workers.program_of(7), None);
    }

    #[test]
    fn a_fork_is_a_worker_with_its_own_count_until_it_ends() {
        let mut workers = Workers::default();
        let parent = workers.enter(worker(7), 1);
        parent.operations = 5;
        parent.settled = true;
        let child = workers.fork(7, key(8), 2).unwrap();
        assert_eq!((child.worker.process, child.operations, child.settled), (key(8), 0, true));
        assert!(workers.fork(9, key(10), 3).is_none());
        assert_eq!(workers.end(8).unwrap().started_ns, 2);
        assert!(!workers.contains(8) && workers.contains(7));
    }

    #[test]
    fn an_unknown_version_replaces_no_known_one() {
        let mut workers = Workers::default();
        let live = workers.enter(worker(7), 1);
        assert!(!live.renew(&Versions::default()));
        assert!(live.renew(&Versions { freecad: "1.0.0".to_owned(), ..Versions::default() }));
        assert_eq!((&*live.worker.freecad_version, &*live.worker.occt_version), ("1.0.0", "7.6.3"));
    }
}
