//! Turns what is learnt of processes into the table of live workers.
//!
//! Bookkeeping only: no I/O and no clock. A process stands here from the moment it is recognised until it ends or
//! replaces its program. A fork of a worker is a worker, but is not told of before it has done an operation, lived for
//! a while or ended: most forks are on the way to another program.

pub mod targets;

use std::collections::HashMap;
use std::sync::Arc;

use cadscope_common::record::ProcessKey;

use crate::discover::Mapping;
use crate::ending::OutOfMemory;
use crate::memory::Peaks;
use crate::operation::{Operation, Outcome, Worker};
use crate::plan::Versions;

pub use self::targets::Targets;

/// Programs of processes that may become workers, remembered at once.
const MAX_PROGRAMS: usize = 65_536;
/// Ends that are remembered, so that what is learnt late of a process does not revive it.
const MAX_ENDED: usize = 16_384;
/// Processes chosen to be killed that are remembered.
const MAX_VICTIMS: usize = 256;
/// Processes that are no workers and whose runtimes are remembered.
const MAX_BYSTANDERS: usize = 4096;
/// Runtimes of one such process.
const MAX_RUNTIMES: usize = 16;
/// How long a fork is taken to be on the way to another program, in nanoseconds.
const FORK_NS: u64 = 1_000_000_000;
/// Late files of one worker that are remembered.
const MAX_LATE: usize = 64;
/// Threads of a dying worker whose operations are remembered.
const MAX_CUT_SHORT: usize = 64;
/// The probe whose end by an exception says that a script failed: FreeCAD imports a script, and if that fails it runs
/// the file again and swallows the exception.
const SCRIPT_PROBE: &str = "fc.run_file";
/// How `sys.exit` leaves a script; the exit code tells the rest.
const SYSTEM_EXIT: &str = "Base::SystemExitException";

/// A live worker.
#[derive(Clone, Debug)]
pub struct Live {
    /// What is known of it.
    pub worker: Arc<Worker>,
    /// When its program was executed or it was forked, else when it was recognised; CLOCK_MONOTONIC.
    pub started_ns: u64,
    /// The versions were read from the process itself, or cannot be.
    pub settled: bool,
    /// Programs that it has begun to execute since it was recognised.
    pub execs: u32,
    /// Operations that have ended.
    pub operations: u64,
    /// It has been told of.
    pub announced: bool,
    /// An exception of Python left the script that FreeCAD ran.
    pub script_failed: bool,
    /// What it had resident before it gave memory back.
    pub peaks: Peaks,
    /// Set when the kernel has chosen it to be killed.
    pub oom: Option<OutOfMemory>,
    /// Files that it mapped before their probes were in place.
    pub late: Vec<Late>,
    cut_short: Vec<CutShort>,
}

/// A file that a worker mapped before its probes were in place, and where the time went, in nanoseconds. Operations of
/// the file in that time are not seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Late {
    /// As the worker maps it.
    pub path: String,
    /// When it mapped it, CLOCK_MONOTONIC.
    pub mapped_ns: u64,
    /// Until the mapping was noticed.
    pub notice_ns: u64,
    /// From there until it was known where the probes go.
    pub analyse_ns: u64,
    /// From there until they were in place.
    pub place_ns: u64,
}

impl Late {
    /// Name of the file without its folder.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// How long operations of the file were not seen.
    #[must_use]
    pub const fn whole_ns(&self) -> u64 {
        self.notice_ns.saturating_add(self.analyse_ns).saturating_add(self.place_ns)
    }
}

/// The innermost operation of a thread that was open when its process ended.
#[derive(Clone, Debug)]
struct CutShort {
    tid: u32,
    name: String,
    growth_bytes: u64,
}

/// The table.
#[derive(Debug, Default)]
pub struct Workers {
    live: HashMap<u32, Live>,
    programs: HashMap<u32, Option<String>>,
    /// Process → when it ended.
    ended: HashMap<u32, u64>,
    /// Processes that the kernel has chosen to be killed, and that are not known as workers yet.
    victims: HashMap<u32, OutOfMemory>,
    /// Process that is no worker yet → the runtimes that it maps.
    runtimes: HashMap<u32, Vec<Mapping>>,
}

impl Workers {
    /// Notes that a process executed a program, whose file it will map next.
    pub fn executed(&mut self, pid: u32) {
        if self.programs.len() >= MAX_PROGRAMS {
            self.programs.clear();
        }
        self.programs.insert(pid, None);
        self.runtimes.remove(&pid);
        if let Some(live) = self.live.get_mut(&pid) {
            live.execs += 1;
        }
    }

    /// Notes a runtime that a process maps which is no worker; it may turn out to be one when it is gone.
    pub fn maps_runtime(&mut self, mapping: &Mapping) {
        if self.runtimes.len() >= MAX_BYSTANDERS && !self.runtimes.contains_key(&mapping.pid) {
            self.runtimes.clear();
        }
        let known = self.runtimes.entry(mapping.pid).or_default();
        if known.len() < MAX_RUNTIMES && known.iter().all(|other| other.file != mapping.file) {
            known.push(mapping.clone());
        }
    }

    /// The runtimes that a process mapped before it was recognised. Told once.
    pub fn runtimes_of(&mut self, pid: u32) -> Vec<Mapping> {
        self.runtimes.remove(&pid).unwrap_or_default()
    }

    /// Whether a process that is none now was a worker: what is learnt of it late is of a worker.
    #[must_use]
    pub fn was_worker(&self, pid: u32) -> bool {
        self.ended.contains_key(&pid) && !self.contains(pid)
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
        let oom = self.victims.remove(&pid).filter(|oom| oom.at_ns >= started_ns);
        let live = Live {
            worker: Arc::new(worker),
            started_ns,
            settled: false,
            execs: 0,
            operations: 0,
            announced: true,
            script_failed: false,
            peaks: Peaks::default(),
            oom,
            late: Vec::new(),
            cut_short: Vec::new(),
        };
        self.live.entry(pid).insert_entry(live).into_mut()
    }

    /// Enters the child of a worker; `None` if the parent is none.
    pub fn fork(&mut self, parent: u32, child: ProcessKey, at_ns: u64) -> Option<&mut Live> {
        let parent = self.live.get(&parent)?;
        let worker = Worker { process: child, executed_ns: None, ..(*parent.worker).clone() };
        let settled = parent.settled;
        let live = self.enter(worker, at_ns);
        live.settled = settled;
        live.announced = false;
        // Recognised before any exec of its own, of which may have been told already.
        live.execs = 1;
        Some(live)
    }

    /// Notes that the kernel has chosen a process to be killed; it may turn out to be a worker.
    pub fn ran_out_of_memory(&mut self, pid: u32, oom: OutOfMemory) {
        if let Some(live) = self.live.get_mut(&pid) {
            live.oom = Some(oom);
            return;
        }
        if self.victims.len() >= MAX_VICTIMS {
            self.victims.clear();
        }
        self.victims.insert(pid, oom);
    }

    /// Removes a worker that ended at this time.
    pub fn end(&mut self, pid: u32, at_ns: u64) -> Option<Live> {
        let live = self.live.remove(&pid)?;
        if self.ended.len() >= MAX_ENDED {
            self.ended.clear();
        }
        self.ended.insert(pid, at_ns);
        Some(live)
    }

    /// Whether it is this end that has been told of.
    #[must_use]
    pub fn has_ended(&self, pid: u32, at_ns: u64) -> bool {
        self.ended.get(&pid) == Some(&at_ns)
    }

    /// Forks that are workers after all, because they have lived long enough.
    pub fn grown_up(&mut self, now_ns: u64) -> impl Iterator<Item = &mut Live> {
        self.live
            .values_mut()
            .filter(move |live| !live.announced && now_ns.saturating_sub(live.started_ns) >= FORK_NS)
    }

    /// Whether a process is a worker.
    #[must_use]
    pub fn contains(&self, pid: u32) -> bool {
        self.live.contains_key(&pid)
    }

    /// A worker.
    #[must_use]
    pub fn get(&self, pid: u32) -> Option<&Live> {
        self.live.get(&pid)
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
    /// Notes a file that was mapped before its probes were in place; whether it is news.
    pub fn note_late(&mut self, late: &Late) -> bool {
        let news = self.late.len() < MAX_LATE && self.late.iter().all(|known| known.path != late.path);
        if news {
            self.late.push(late.clone());
        }
        news
    }

    /// Notes an operation, and completes what is known of its memory.
    pub fn did(&mut self, operation: &mut Operation) {
        self.operations += 1;
        if let Some(memory) = &mut operation.memory {
            let noted = self.peaks.since(operation.start_ns).saturating_mul(procfs::page_size());
            memory.peak_bytes = memory.peak_bytes.max(noted);
        }
        if operation.probe.id == SCRIPT_PROBE && operation.depth == 0 {
            self.script_failed = operation.outcome == Outcome::Exception
                && operation.exception.as_deref().is_none_or(|name| name != SYSTEM_EXIT);
        }
        if matches!(operation.ended_by, "signal" | "process_exit") {
            self.cut_short(operation);
        }
    }

    /// Operations of a thread end innermost first.
    fn cut_short(&mut self, operation: &Operation) {
        let growth_bytes = operation.memory.map_or(0, |memory| memory.growth_bytes());
        if let Some(inner) = self.cut_short.iter_mut().find(|inner| inner.tid == operation.tid) {
            inner.growth_bytes = inner.growth_bytes.max(growth_bytes);
        } else if self.cut_short.len() < MAX_CUT_SHORT {
            let name = operation.name().into_owned();
            self.cut_short.push(CutShort { tid: operation.tid, name, growth_bytes });
        }
    }

    /// Notes when its program was executed, if it was recognised before that was over.
    pub fn executed(&mut self, at_ns: u64) {
        self.started_ns = at_ns;
        self.worker = Arc::new(Worker { executed_ns: Some(at_ns), ..(*self.worker).clone() });
    }

    /// The kill that memory running out led to, with what the worker was doing: the innermost operation of the thread
    /// whose operations had grown most.
    pub fn take_oom(&mut self) -> Option<OutOfMemory> {
        let mut oom = self.oom.take()?;
        let most = self.cut_short.iter().max_by_key(|cut| cut.growth_bytes);
        oom.operation = most.map(|cut| cut.name.clone()).unwrap_or_default();
        Some(oom)
    }

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
    use crate::ending::Limit;
    use crate::memory::Memory;
    use crate::samples;

    fn key(pid: u32) -> ProcessKey {
        ProcessKey { pid, padding: 0, start_boottime_ns: u64::from(pid) * 10 }
    }

    fn worker(pid: u32) -> Worker {
        Worker {
            process: key(pid),
            program: "freecadcmd".to_owned(),
            occt_version: "7.6.3".to_owned(),
            ..Worker::default()
        }
    }

    #[test]
    fn runtimes_of_a_process_are_told_when_it_turns_out_to_be_a_worker_and_forgotten_when_it_executes() {
        let runtime = |pid, inode| Mapping {
            pid,
            file: crate::discover::FileId { major: 8, minor: 1, inode, changed_ns: 0 },
            start: 0,
            end: 4096,
            offset: 0,
            path: "/lib/libstdc++.so.6".to_owned(),
        };
        let mut workers = Workers::default();
        for mapping in [runtime(7, 1), runtime(7, 2), runtime(7, 1), runtime(8, 1)] {
            workers.maps_runtime(&mapping);
        }
        assert_eq!(workers.runtimes_of(7), [runtime(7, 1), runtime(7, 2)]);
        assert!(workers.runtimes_of(7).is_empty());
        workers.executed(8);
        assert!(workers.runtimes_of(8).is_empty());
        for pid in 0..10_000 {
            workers.maps_runtime(&runtime(pid, 1));
        }
        assert!(workers.runtimes.len() <= MAX_BYSTANDERS);
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
        assert_eq!(workers.grown_up(FORK_NS).count(), 0);
        assert_eq!(workers.grown_up(FORK_NS + 2).count(), 1);
        assert_eq!(workers.end(8, 5).unwrap().started_ns, 2);
        assert!(!workers.contains(8) && workers.contains(7));
        assert!(workers.has_ended(8, 5) && !workers.has_ended(8, 6));
    }

    #[test]
    fn an_exec_that_began_before_a_worker_was_recognised_is_told_from_one_that_began_after() {
        let mut workers = Workers::default();
        workers.executed(7);
        workers.enter(worker(7), 1).executed(3);
        let live = workers.get(7).unwrap();
        assert_eq!((live.execs, live.started_ns, live.worker.executed_ns), (0, 3, Some(3)));
        workers.executed(7);
        assert_eq!(workers.get(7).unwrap().execs, 1);
        assert_eq!(workers.fork(7, key(8), 4).unwrap().execs, 1);
    }

    #[test]
    fn a_victim_that_is_recognised_late_is_one_but_not_who_bears_its_pid_later() {
        let oom =
            |at_ns| OutOfMemory { at_ns, resident_bytes: 0, limit: Limit::Node, operation: String::new() };
        let mut workers = Workers::default();
        for pid in [7, 8] {
            workers.ran_out_of_memory(pid, oom(5));
        }
        assert!(workers.enter(worker(7), 1).oom.is_some());
        assert!(workers.enter(worker(8), 6).oom.is_none());
        workers.ran_out_of_memory(8, oom(9));
        assert!(workers.get(8).unwrap().oom.is_some());
    }

    #[test]
    fn memory_runs_out_in_the_innermost_operation_of_the_thread_that_grew_most() {
        let mut workers = Workers::default();
        let shared = Arc::new(worker(7));
        let live = workers.enter(worker(7), 1);
        live.oom =
            Some(OutOfMemory { at_ns: 9, resident_bytes: 0, limit: Limit::Node, operation: String::new() });
        for (tid, id, growth) in [(1, "a.idle", 1), (2, "a.inner", 5), (2, "a.outer", 9)] {
            let probe = Arc::new(samples::probe(id, ""));
            let memory = Memory { entry_bytes: 10, exit_bytes: None, peak_bytes: 10 + growth };
            let mut operation = Operation {
                tid,
                ended_by: "signal",
                memory: Some(memory),
                ..samples::operation(&probe, &shared, 0.0, 1.0)
            };
            live.did(&mut operation);
        }
        assert_eq!(live.take_oom().unwrap().operation, "inner");
    }

    #[test]
    fn a_script_failed_if_the_last_run_of_its_file_ended_by_an_exception_that_is_no_exit() {
        let (shared, probe) = (Arc::new(worker(7)), Arc::new(samples::probe(SCRIPT_PROBE, "")));
        let mut workers = Workers::default();
        let live = workers.enter(worker(7), 1);
        for (outcome, exception, failed) in [
            (Outcome::Exception, Some("Base::PyException"), true),
            (Outcome::Exception, Some(SYSTEM_EXIT), false),
            (Outcome::Exception, None, true),
            (Outcome::Ok, None, false),
        ] {
            let mut operation = Operation {
                outcome,
                exception: exception.map(Into::into),
                ..samples::operation(&probe, &shared, 0.0, 1.0)
            };
            live.did(&mut operation);
            assert_eq!(live.script_failed, failed, "{outcome:?} {exception:?}");
        }
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
