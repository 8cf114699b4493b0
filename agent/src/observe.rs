//! Turns a node's processes into a stream of observations: workers that come and go, operations that end.
//!
//! Owns the kernel side, the table of files and the table of workers. One thread calls [`Observer::poll`] in a loop;
//! everything that happens reaches the caller through its closure, in order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use cadscope_common::record::ProcessKey;
use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::attach::{Attacher, FileError, Seen};
use crate::catalog::Catalog;
use crate::discover::{self, FileId, Mapping, Mappings, MappingsError, Step};
use crate::identify;
use crate::kernel::{AttachMode, Kernel, KernelError};
use crate::operation::{Operation, Worker};
use crate::plan::Versions;
use crate::receive::{self, Event, Exceptions};

/// Programs of processes that may become workers, remembered at once.
const MAX_PROGRAMS: usize = 65_536;
/// How often the mappings of workers are looked at again, in nanoseconds.
const REVIEW_NS: u64 = 10_000_000_000;
/// How often uninteresting files are forgotten, in nanoseconds.
const FORGET_NS: u64 = 300_000_000_000;
/// Where Debian's package database lies below the root of a worker, and how much of it is read.
const DPKG_STATUS: &str = "var/lib/dpkg/status";
const DPKG_BYTES: u64 = 16 << 20;

/// Why observation cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The kernel side.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The mapping stream.
    #[error(transparent)]
    Mappings(#[from] MappingsError),
}

/// What happened.
#[derive(Debug)]
pub enum Observation {
    /// A process was recognised as a worker.
    Started(Arc<Worker>),
    /// A worker's versions became known, or it forked: this replaces what was said of this process.
    Renewed(Arc<Worker>),
    /// A worker ended.
    Ended {
        /// Which.
        worker: Arc<Worker>,
        /// When it was recognised, CLOCK_MONOTONIC.
        started_ns: u64,
        /// When it ended.
        ended_ns: u64,
        /// As `wait` reports it; `None` if the end was not seen.
        status: Option<u32>,
    },
    /// An operation ended.
    Operation(Box<Operation>),
    /// The probes in a worker's first file were ready so long after it executed its program.
    Ready(Duration),
    /// A file of a process could not be looked at or probed.
    Missed {
        /// Path as the process sees it.
        path: String,
        /// Which kind of failure.
        reason: &'static str,
        /// The failure itself.
        error: String,
    },
    /// A record was not understood.
    Dropped(&'static str),
}

#[derive(Debug)]
struct Live {
    worker: Arc<Worker>,
    started_ns: u64,
    /// The versions were read from the process itself, or cannot be.
    settled: bool,
    operations: u64,
}

/// The running observation.
pub struct Observer {
    kernel: Kernel,
    events: RingBuf<MapData>,
    mappings: Mappings,
    attacher: Attacher,
    workers: HashMap<u32, Live>,
    programs: HashMap<u32, Option<String>>,
    exceptions: Exceptions,
    proc: PathBuf,
    only: Option<HashSet<u32>>,
    reviewed_ns: u64,
    forgot_ns: u64,
    received: u64,
}

/// How to observe.
#[derive(Clone, Debug)]
pub struct ObserverOptions {
    /// The probes.
    pub catalog: Arc<Catalog>,
    /// Mount point of the node's procfs.
    pub proc: PathBuf,
    /// How long probes stay on a file that no worker maps.
    pub linger: Duration,
    /// Observe only processes that are added as targets, and their descendants.
    pub only_targets: bool,
    /// Use uprobe_multi where the kernel has it.
    pub allow_multi: bool,
}

impl Observer {
    /// Loads the kernel side and opens the streams. Nothing is attached yet.
    ///
    /// # Errors
    /// What the node lacks.
    pub fn start(options: ObserverOptions) -> Result<Self, ObserveError> {
        let mut kernel = Kernel::load(options.only_targets, options.allow_multi)?;
        let events = kernel.take_events()?;
        let mappings = Mappings::open()?;
        let now = now_ns();
        Ok(Self {
            kernel,
            events,
            mappings,
            attacher: Attacher::new(options.catalog, options.linger),
            workers: HashMap::new(),
            programs: HashMap::new(),
            exceptions: Exceptions::default(),
            proc: options.proc,
            only: options.only_targets.then(HashSet::new),
            reviewed_ns: now,
            forgot_ns: now,
            received: 0,
        })
    }

    /// Observes a process and its descendants.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn add_target(&mut self, pid: u32) -> Result<(), KernelError> {
        if let Some(only) = &mut self.only {
            only.insert(pid);
        }
        self.kernel.add_target(pid)
    }

    /// Looks at the processes that run already (all, or those given).
    pub fn scan(&mut self, pids: Option<&[u32]>, say: &mut dyn FnMut(Observation)) {
        let all;
        let pids = match pids {
            Some(pids) => pids,
            None => {
                all = discover::processes(&self.proc);
                &all
            }
        };
        let own = std::process::id();
        for pid in pids.iter().copied().filter(|pid| *pid != own) {
            for mapping in discover::mappings_of(&self.proc, pid) {
                self.see(&mapping, say);
            }
        }
    }

    /// Waits until something happens or `timeout` is over, and says what happened. `also` is a descriptor that ends
    /// the wait, too.
    pub fn poll(
        &mut self,
        timeout: Duration,
        also: Option<BorrowedFd<'_>>,
        say: &mut dyn FnMut(Observation),
    ) {
        self.wait(timeout, also);
        self.drain(say);
        let now = now_ns();
        if now.saturating_sub(self.reviewed_ns) >= REVIEW_NS {
            self.reviewed_ns = now;
            self.review(now, say);
        }
        if now.saturating_sub(self.forgot_ns) >= FORGET_NS {
            self.forgot_ns = now;
            self.attacher.forget_plain();
        }
        self.attacher.sweep(&mut self.kernel, now);
    }

    /// Takes everything that has arrived.
    pub fn drain(&mut self, say: &mut dyn FnMut(Observation)) {
        let mut steps = Vec::new();
        self.mappings.drain(|step| steps.push(step));
        for step in steps {
            match step {
                Step::Executed { pid } => self.executed(pid),
                Step::Mapped(mapping) => self.mapped(&mapping, say),
            }
        }
        while let Some(record) = self.events.next() {
            self.received += 1;
            let event = receive::read(&record);
            drop(record);
            match event {
                Ok(event) => Self::take(
                    event,
                    &mut Parts {
                        kernel: &mut self.kernel,
                        attacher: &mut self.attacher,
                        workers: &mut self.workers,
                        exceptions: &mut self.exceptions,
                        proc: &self.proc,
                    },
                    say,
                ),
                Err(error) => say(Observation::Dropped(match error {
                    receive::Unreadable::Truncated => "truncated",
                    receive::Unreadable::UnknownKind => "unknown_kind",
                    receive::Unreadable::UnknownProbe => "unknown_probe",
                })),
            }
        }
    }

    fn wait(&self, timeout: Duration, also: Option<BorrowedFd<'_>>) {
        let raw: Vec<RawFd> =
            self.mappings.descriptors().chain(std::iter::once(self.events.as_raw_fd())).collect();
        let mut polled: Vec<PollFd<'_>> = raw
            .iter()
            .map(|fd| {
                // SAFETY: the descriptors are owned by `self`, which outlives this call.
                PollFd::new(unsafe { BorrowedFd::borrow_raw(*fd) }, PollFlags::POLLIN)
            })
            .collect();
        if let Some(also) = &also {
            polled.push(PollFd::new(also.as_fd(), PollFlags::POLLIN));
        }
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        // An interrupted wait is as good as one that is over.
        let _ = nix::poll::poll(&mut polled, timeout);
    }

    fn executed(&mut self, pid: u32) {
        if self.programs.len() >= MAX_PROGRAMS {
            self.programs.clear();
        }
        self.programs.insert(pid, None);
    }

    fn mapped(&mut self, mapping: &Mapping, say: &mut dyn FnMut(Observation)) {
        if mapping.pid == std::process::id() {
            return;
        }
        if let Some(program @ None) = self.programs.get_mut(&mapping.pid) {
            *program = Some(mapping.path.rsplit('/').next().unwrap_or_default().to_owned());
        }
        if let Some(only) = &self.only
            && !only.contains(&mapping.pid)
            && !self.descends_from_target(mapping.pid)
        {
            return;
        }
        self.see(mapping, say);
    }

    /// Whether one of a process's ancestors is a target.
    fn descends_from_target(&mut self, pid: u32) -> bool {
        let Some(only) = &mut self.only else { return true };
        let mut lineage = vec![pid];
        let mut current = pid;
        for _ in 0..32 {
            let Some(parent) = discover::parent_of(&self.proc, current) else { return false };
            if only.contains(&parent) {
                only.extend(lineage);
                return true;
            }
            lineage.push(parent);
            current = parent;
        }
        false
    }

    fn see(&mut self, mapping: &Mapping, say: &mut dyn FnMut(Observation)) {
        let proc = &self.proc;
        let versions = || {
            let mut versions = versions_of(proc, mapping.pid);
            if versions.occt.is_empty() {
                let name = mapping.path.rsplit('/').next().unwrap_or_default();
                versions.occt = identify::occt_version_from_file_name(name).unwrap_or_default();
            }
            versions
        };
        match self.attacher.look(&mut self.kernel, proc, mapping, versions) {
            Ok(Seen::Plain) => {}
            Ok(Seen::Worker) => {
                let new = !self.workers.contains_key(&mapping.pid);
                self.hold(mapping, say);
                if new {
                    self.enlist(mapping.pid, say);
                }
            }
            Ok(Seen::Runtime) => {
                if self.workers.contains_key(&mapping.pid) {
                    self.hold(mapping, say);
                }
            }
            // Executable files that are not ELF files of this machine are none of our business.
            Err(FileError::Elf(_)) => {}
            Err(error) => say(missed(mapping, &error)),
        }
    }

    fn hold(&mut self, mapping: &Mapping, say: &mut dyn FnMut(Observation)) {
        match self.attacher.hold(&mut self.kernel, mapping.file, mapping.pid) {
            Ok(_) => self.refresh(mapping.pid, say),
            Err(error) => say(missed(mapping, &error)),
        }
    }

    /// Makes a process a worker, with everything it maps already.
    fn enlist(&mut self, pid: u32, say: &mut dyn FnMut(Observation)) {
        let now = now_ns();
        let executed = self.kernel.executed_ns(pid);
        if let Some(executed) = executed {
            say(Observation::Ready(Duration::from_nanos(now.saturating_sub(executed))));
        }
        let process =
            discover::key_of(&self.proc, pid).unwrap_or(ProcessKey { pid, padding: 0, start_boottime_ns: 0 });
        let program = match self.programs.remove(&pid).flatten() {
            Some(program) => program,
            None => discover::program_of(&self.proc, pid),
        };
        let versions = self.attacher.versions_of(pid);
        let worker = Arc::new(Worker {
            process,
            program,
            freecad_version: versions.freecad,
            occt_version: versions.occt,
        });
        let started_ns = executed.unwrap_or(now);
        self.workers
            .insert(pid, Live { worker: Arc::clone(&worker), started_ns, settled: false, operations: 0 });
        say(Observation::Started(worker));
        // A refusal shows when the process ends without notice: the review finds it.
        let _ = self.kernel.add_worker(process);
        for mapping in discover::mappings_of(&self.proc, pid) {
            self.see(&mapping, say);
        }
    }

    /// Takes over what a newly mapped file says of a worker's versions.
    fn refresh(&mut self, pid: u32, say: &mut dyn FnMut(Observation)) {
        let Some(live) = self.workers.get_mut(&pid) else { return };
        let versions = self.attacher.versions_of(pid);
        renew(live, &versions, say);
    }

    /// Looks again at which files live workers map, and finds workers whose end was not reported.
    fn review(&mut self, now: u64, say: &mut dyn FnMut(Observation)) {
        let pids: Vec<u32> = self.workers.keys().copied().collect();
        for pid in pids {
            if discover::is_alive(&self.proc, pid) {
                let mapped: HashSet<FileId> =
                    discover::mappings_of(&self.proc, pid).into_iter().map(|mapping| mapping.file).collect();
                if !mapped.is_empty() {
                    self.attacher.retain(pid, &mapped, now);
                }
            } else if let Some(live) = self.workers.remove(&pid) {
                self.attacher.release(pid, now);
                say(Observation::Ended {
                    worker: live.worker,
                    started_ns: live.started_ns,
                    ended_ns: now,
                    status: None,
                });
            }
        }
    }

    fn take(event: Event, parts: &mut Parts<'_>, say: &mut dyn FnMut(Observation)) {
        match event {
            Event::Thrown(exception) => parts.exceptions.announce(&exception),
            Event::Ended(record) => {
                let Some(slot) = parts.attacher.slot(record.probe).cloned() else {
                    say(Observation::Dropped("unknown_probe"));
                    return;
                };
                let worker = parts.worker_of(record.process, &slot.versions, say);
                let operation = receive::operation(&record, &slot, worker, parts.exceptions);
                if !operation.probe.ignores(&operation.values) {
                    say(Observation::Operation(Box::new(operation)));
                }
            }
            Event::Forked { parent, child } => {
                let Some(live) = parts.workers.get(&parent.pid) else { return };
                let worker = Arc::new(Worker { process: child, ..(*live.worker).clone() });
                let settled = live.settled;
                parts.attacher.inherit(parent.pid, child.pid);
                say(Observation::Started(Arc::clone(&worker)));
                parts
                    .workers
                    .insert(child.pid, Live { worker, started_ns: now_ns(), settled, operations: 0 });
            }
            Event::Executed(process) => parts.end(process, None, now_ns(), say),
            Event::Exited(process, status, at_ns) => parts.end(process, Some(status), at_ns, say),
        }
    }

    /// The files of interest and their probes.
    #[must_use]
    pub const fn attacher(&self) -> &Attacher {
        &self.attacher
    }

    /// The live workers with the number of their operations so far.
    pub fn workers(&self) -> impl Iterator<Item = (&Arc<Worker>, u64, u64)> {
        self.workers.values().map(|live| (&live.worker, live.started_ns, live.operations))
    }

    /// How probes are placed.
    #[must_use]
    pub const fn mode(&self) -> AttachMode {
        self.kernel.mode()
    }

    /// Records received.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// What could not be seen or sent, by reason; zeros too.
    #[must_use]
    pub fn losses(&self) -> BTreeMap<String, u64> {
        use cadscope_common::settings::Counter as C;
        let counters = self.kernel.counters();
        let count = |counter: C| counters.get(counter as usize).copied().unwrap_or(0);
        [
            ("ring_buffer_full", count(C::LostOperation)),
            ("ring_buffer_full_process", count(C::LostRecord)),
            ("too_deep", count(C::TooDeep)),
            ("too_many_threads", count(C::TooManyThreads)),
            ("return_without_entry", count(C::ReturnWithoutEntry)),
            ("values_unread", count(C::Unread)),
            ("frame_abandoned", count(C::Abandoned)),
            ("no_capture", count(C::NoCapture)),
            ("mappings_lost", self.mappings.lost()),
        ]
        .into_iter()
        .map(|(reason, count)| (reason.to_owned(), count))
        .collect()
    }
}

/// What a record needs while the ring buffer is being read.
struct Parts<'a> {
    kernel: &'a mut Kernel,
    attacher: &'a mut Attacher,
    workers: &'a mut HashMap<u32, Live>,
    exceptions: &'a mut Exceptions,
    proc: &'a Path,
}

impl Parts<'_> {
    /// The worker that did an operation; one that was not recognised in time is made from what is known.
    fn worker_of(
        &mut self,
        process: ProcessKey,
        of_file: &Versions,
        say: &mut dyn FnMut(Observation),
    ) -> Arc<Worker> {
        let Some(live) = self.workers.get_mut(&process.pid) else {
            let worker = Arc::new(Worker {
                process,
                program: discover::program_of(self.proc, process.pid),
                freecad_version: of_file.freecad.clone(),
                occt_version: of_file.occt.clone(),
            });
            say(Observation::Started(Arc::clone(&worker)));
            // A refusal shows when the process ends without notice: the review finds it.
            let _ = self.kernel.add_worker(process);
            let live =
                Live { worker: Arc::clone(&worker), started_ns: now_ns(), settled: true, operations: 1 };
            self.workers.insert(process.pid, live);
            return worker;
        };
        live.operations += 1;
        if !live.settled {
            live.settled = true;
            if let Some((file, versions)) = self.attacher.read_freecad(self.proc, process.pid) {
                self.attacher.learn_freecad(file, &versions.freecad);
                renew(live, &versions, say);
            }
        }
        Arc::clone(&live.worker)
    }

    fn end(
        &mut self,
        process: ProcessKey,
        status: Option<u32>,
        at_ns: u64,
        say: &mut dyn FnMut(Observation),
    ) {
        self.attacher.release(process.pid, at_ns);
        if let Some(live) = self.workers.remove(&process.pid) {
            say(Observation::Ended {
                worker: live.worker,
                started_ns: live.started_ns,
                ended_ns: at_ns,
                status,
            });
        }
    }
}

fn renew(live: &mut Live, versions: &Versions, say: &mut dyn FnMut(Observation)) {
    let mut worker = (*live.worker).clone();
    if !versions.freecad.is_empty() {
        worker.freecad_version.clone_from(&versions.freecad);
    }
    if !versions.occt.is_empty() {
        worker.occt_version.clone_from(&versions.occt);
    }
    if worker != *live.worker {
        live.worker = Arc::new(worker);
        say(Observation::Renewed(Arc::clone(&live.worker)));
    }
}

fn missed(mapping: &Mapping, error: &FileError) -> Observation {
    let reason = match error {
        FileError::Open(discover::OpenError::Gone) => "process_gone",
        FileError::Open(_) => "file_not_opened",
        FileError::Read(_) => "file_not_read",
        FileError::Elf(_) => "not_elf",
        FileError::Attach(_) => "attach_refused",
        FileError::Kernel(_) => "kernel_map",
    };
    Observation::Missed { path: mapping.path.clone(), reason, error: error.to_string() }
}

/// What the files of a process say of its versions, without looking into its memory.
fn versions_of(proc: &Path, pid: u32) -> Versions {
    let mut versions = Versions::default();
    let mut has_freecad = false;
    for mapping in discover::mappings_of(proc, pid) {
        let name = mapping.path.rsplit('/').next().unwrap_or_default();
        has_freecad |= name.starts_with("libFreeCAD") || name.starts_with("freecad");
        if versions.occt.is_empty() {
            versions.occt = identify::occt_version_from_file_name(name).unwrap_or_default();
        }
    }
    if has_freecad {
        let status = discover::read_below_root(proc, pid, Path::new(DPKG_STATUS), DPKG_BYTES);
        let status = status.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        versions.freecad = identify::freecad_version_from_dpkg_status(&status).unwrap_or_default();
    }
    versions
}

/// Nanoseconds of CLOCK_MONOTONIC, the clock of all records.
#[must_use]
pub fn now_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| {
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec()).unwrap_or(0))
    })
}
