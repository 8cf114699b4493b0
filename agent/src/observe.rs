//! Turns a node's processes into a stream of observations: workers that come and go, operations that end.
//!
//! Owns the kernel side, the table of files and the table of workers. One thread calls [`Observer::poll`] in a loop;
//! everything that happens reaches the caller through its closure, in order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cadscope_common::record::{Life, ProcessKey};

use crate::ai::{Call, Providers};
use crate::attach::{Attacher, FileError, Placed, Seen};
use crate::budget::{Budget, Limits, Measure};
use crate::catalog::{Catalog, Probe};
use crate::config::SourceOptions;
use crate::counted::Counted;
use crate::discover::{self, Containers, FileId, Mapping, Mappings, MappingsError, Step};
use crate::ending::{End, How};
use crate::flow_type;
use crate::identify;
use crate::in_flight::{self, InFlight, OpenCall, OpenOperation};
use crate::installed::Installed;
use crate::job::{Job, Variables};
use crate::kernel::mapped_file::map_as_program;
use crate::kernel::records::MOST_RECORDS;
use crate::kernel::{AttachMode, Kernel, KernelError, Records, wait};
use crate::operation::{Operation, Texts, Value, Worker};
use crate::plan::Versions;
use crate::receive::{self, Event, Exceptions, Room};
use crate::sources::Sources;
use crate::workers::{Late, Live, Targets, Workers};
use crate::written::Written;

mod translators;

/// How often it is looked which workers are alive, in nanoseconds.
const REVIEW_NS: u64 = 10_000_000_000;
/// Each look reads the mappings of one worker in so many.
const REVIEW_PARTS: u32 = 6;
/// How many reviews a process whose file could not be looked at gets another look: ten minutes of them.
const LOOKS_AGAIN: u8 = 60;
/// How often the counts of calls without records are taken, in nanoseconds.
const COUNTED_NS: u64 = 1_000_000_000;
/// How often uninteresting files are forgotten, in nanoseconds.
const FORGET_NS: u64 = 300_000_000_000;

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
#[expect(
    clippy::large_enum_variant,
    reason = "operations are nearly all there is, and a box of each would be their only memory"
)]
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
        /// As `wait` reports it; `None` if it executed another program, or the end was not seen.
        status: Option<u32>,
        /// How it ended.
        end: Box<End>,
    },
    /// An operation ended.
    Operation(Operation),
    /// Calls of this kind returned so many times, each after about the same time, and are no operations of their own.
    Repeated {
        /// One of them, of mean duration, without values.
        operation: Box<Operation>,
        /// How many.
        count: u64,
        /// They lie inside one of their group.
        nested: bool,
    },
    /// A probe is called too often.
    Limited {
        /// Which.
        probe: Arc<Probe>,
        /// What was done.
        measure: Measure,
        /// Calls a second.
        rate: f64,
    },
    /// The probes in a worker's first file were ready so long after it executed its program.
    Ready(Duration),
    /// A worker mapped a file before its probes were in place: operations in that time are not seen.
    Late {
        /// Which worker.
        pid: u32,
        /// Which file, and how late.
        late: Late,
    },
    /// A file of a process could not be looked at or probed.
    Missed {
        /// Path as the process sees it.
        path: String,
        /// Which kind of failure.
        reason: &'static str,
        /// The failure itself.
        error: String,
    },
    /// A process has called an AI provider.
    Called(Box<Call>),
    /// A record was not understood.
    Dropped(&'static str),
}

/// The running observation.
pub struct Observer {
    kernel: Kernel,
    records: Records,
    mappings: Mappings,
    attacher: Attacher,
    workers: Workers,
    exceptions: Exceptions,
    texts: Texts,
    /// Name of the value that a tally is.
    tally: Arc<str>,
    containers: Containers,
    installed: Installed,
    flow_rules: Vec<flow_type::Rule>,
    written: Written,
    proc: PathBuf,
    variables: Variables,
    sources: Sources,
    ai_providers: Option<Providers>,
    targets: Targets,
    /// Ends of workers that were gone when they were recognised: told after what else the ring buffer has of them.
    late: Vec<Life>,
    /// Processes with a file that could not be looked at for a reason that may pass, and how often they will be looked at
    /// again.
    again: HashMap<u32, u8>,
    reviewed_ns: u64,
    reviews: u32,
    forgot_ns: u64,
    received: u64,
    budget: Budget,
    counted: Counted,
    counted_ns: u64,
    /// Counts of calls that came too late: nobody knows the process or the probe any more.
    unclaimed: u64,
    give_way: bool,
}

/// How to observe.
#[derive(Clone, Debug)]
pub struct ObserverOptions {
    /// The probes.
    pub catalog: Arc<Catalog>,
    /// Mount point of the node's procfs.
    pub proc: PathBuf,
    /// Mount point of the node's sysfs.
    pub sys: PathBuf,
    /// The variables that say what a worker works on.
    pub variables: Variables,
    /// When the lines that called slow operations are looked for.
    pub sources: SourceOptions,
    /// Which command lines are which kind of job.
    pub flow_rules: Vec<flow_type::Rule>,
    /// How long probes stay on a file that no worker maps.
    pub linger: Duration,
    /// Observe only processes that are added as targets, and their descendants.
    pub only_targets: bool,
    /// Use uprobe_multi where the kernel has it.
    pub allow_multi: bool,
    /// The AI providers whose calls are measured; `None`: TLS is not looked at.
    pub ai_providers: Option<Providers>,
    /// Calls that return sooner are counted, and are no operations.
    pub min_duration: Duration,
    /// How many calls a second of one probe are borne.
    pub limits: Limits,
    /// Open the files that workers write and read, for their digests.
    pub keep_files: bool,
    /// Take the probes out of files that a program like valgrind runs.
    pub give_way: bool,
}

impl Observer {
    /// Loads the kernel side and begins to follow `mappings`, which were opened while the rights for it were there. Nothing is
    /// attached yet.
    ///
    /// # Errors
    /// What the node lacks.
    pub fn start(options: ObserverOptions, mut mappings: Mappings) -> Result<Self, ObserveError> {
        let tls = options.ai_providers.is_some();
        let mut kernel =
            Kernel::load(&options.sys, options.only_targets, options.allow_multi, tls, options.min_duration)?;
        let records = kernel.take_events()?;
        mappings.enable()?;
        let now = now_ns();
        let mut observer = Self {
            kernel,
            records,
            mappings,
            attacher: Attacher::new(options.catalog, options.linger, tls),
            ai_providers: options.ai_providers,
            workers: Workers::default(),
            exceptions: Exceptions::default(),
            texts: Texts::default(),
            tally: Arc::from("tally"),
            containers: Containers::default(),
            installed: Installed::default(),
            flow_rules: options.flow_rules,
            written: Written::new(&options.proc, options.keep_files),
            proc: options.proc,
            variables: options.variables,
            sources: Sources::new(options.sources),
            targets: Targets::new(!options.only_targets),
            late: Vec::new(),
            again: HashMap::new(),
            reviewed_ns: now,
            reviews: 0,
            forgot_ns: now,
            received: 0,
            budget: Budget::new(options.limits, now),
            counted: Counted::default(),
            counted_ns: now,
            unclaimed: 0,
            give_way: options.give_way,
        };
        observer.find_translators();
        Ok(observer)
    }

    /// Observes a process and its descendants.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn add_target(&mut self, pid: u32) -> Result<(), KernelError> {
        self.targets.add(pid);
        self.kernel.add_target(pid)
    }

    /// Places the probes of files that a process is about to map, if any is of interest.
    pub fn prepare(&mut self, pid: u32, files: &[PathBuf], say: &mut dyn FnMut(Observation)) {
        let own = Path::new("/proc");
        let mut found = Vec::new();
        for path in files {
            // What cannot be told now is told when it is mapped.
            let Ok(page) = File::open(path).and_then(|file| map_as_program(&file)) else { continue };
            let address = page.as_ptr().addr() as u64;
            let mapping = discover::mappings_of(own, std::process::id())
                .into_iter()
                .find(|mapping| mapping.start == address);
            let Some(mapping) = mapping else { continue };
            let names = || files.iter().map(|path| path.to_string_lossy());
            let versions = || self.installed.versions_of(&self.proc, pid, names());
            match self.attacher.look(&mut self.kernel, own, &mapping, versions) {
                Ok(Seen::Plain) | Err(FileError::Elf(_)) => {}
                Ok(seen) => found.push((mapping, seen)),
                Err(error) => say(missed(&mapping.path, &error)),
            }
        }
        if found.iter().any(|(_, seen)| *seen == Seen::Worker) {
            for (mapping, _) in found {
                if let Err(error) = self.attacher.hold(&mut self.kernel, mapping.file, pid) {
                    say(missed(&mapping.path, &error));
                }
            }
        }
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

    /// Waits until something happens or `timeout` is over, and says what happened.
    pub fn poll(&mut self, timeout: Duration, say: &mut dyn FnMut(Observation)) {
        let records = std::iter::once(self.records.descriptor());
        let changes = self.attacher.descriptor();
        wait::readable(self.mappings.descriptors().chain(records).chain(changes), timeout);
        for path in self.attacher.drop_changed() {
            let error = "its probes were taken away, for they would now lie elsewhere".to_owned();
            say(Observation::Missed { path, reason: "rewritten_in_place", error });
        }
        self.drain(say);
        let now = now_ns();
        for live in self.workers.grown_up(now) {
            announce(live, say);
        }
        if now.saturating_sub(self.reviewed_ns) >= REVIEW_NS {
            self.reviewed_ns = now;
            self.review(now, say);
        }
        if now.saturating_sub(self.forgot_ns) >= FORGET_NS {
            self.forgot_ns = now;
            self.attacher.forget_plain();
        }
        if now.saturating_sub(self.counted_ns) >= COUNTED_NS {
            self.counted_ns = now;
            self.take_counts(None, say);
            self.judge(now, say);
        }
        self.sources.look(&self.proc, &self.kernel, now);
        self.attacher.sweep(&mut self.kernel, now);
        self.resume(say);
    }

    /// Takes everything that has arrived, and of what arrives meanwhile no more than would fill the buffer: workers that
    /// are quicker than this thread must not keep it from everything else.
    pub fn drain(&mut self, say: &mut dyn FnMut(Observation)) {
        let late = std::mem::take(&mut self.late);
        self.follow_mappings(say);
        let mut room = Room::default();
        for _ in 0..MOST_RECORDS {
            let Some(event) = self.records.next(|bytes| receive::read(bytes, &mut room)) else { break };
            self.received += 1;
            match event {
                Ok(event) => self.take(event, say),
                Err(error) => say(Observation::Dropped(match error {
                    receive::Unreadable::Truncated => "truncated",
                    receive::Unreadable::UnknownKind => "unknown_kind",
                    receive::Unreadable::UnknownProbe => "unknown_probe",
                })),
            }
        }
        // All that these workers did was in the ring buffer when their end was found, a whole round ago.
        for life in late {
            self.exited(&life, say);
        }
    }

    fn follow_mappings(&mut self, say: &mut dyn FnMut(Observation)) {
        let mut steps = Vec::new();
        self.mappings.drain(|step| steps.push(step));
        for step in steps {
            match step {
                Step::Executed { pid } => {
                    self.workers.executed(pid);
                    self.attacher.translates_no_more(pid);
                }
                Step::Mapped(mapping, at_ns) => self.mapped(&mapping, Some(at_ns), say),
            }
        }
    }

    /// Takes what the kernel has counted of calls without records, of one process or all. Counts of one that is not known
    /// stay where they are: its beginning, or its end, is still on its way.
    pub fn take_counts(&mut self, pid: Option<u32>, say: &mut dyn FnMut(Observation)) {
        let workers = &self.workers;
        let now = self.kernel.aggregates(|of| pid.map_or_else(|| workers.contains(of), |pid| of == pid));
        let added = self.counted.take(&now);
        for (key, more) in added {
            self.budget.note(key.probe, more.count);
            let (Some(slot), Some(live)) = (self.attacher.slot(key.probe), self.workers.get_mut(key.pid))
            else {
                self.unclaimed += more.count;
                continue;
            };
            announce(live, say);
            live.operations += more.count;
            let end_ns = more.sum_ns.checked_div(more.count).unwrap_or(0);
            let operation = Operation::unread(&slot.probe, &live.worker, end_ns);
            say(Observation::Repeated {
                operation: Box::new(operation),
                count: more.count,
                nested: key.nested == 1,
            });
        }
        if let Some(pid) = pid {
            self.kernel.forget_aggregates(now.iter().map(|(key, _)| *key).filter(|key| key.pid == pid));
            self.counted.forget(pid);
        }
    }

    /// Does what has to be done about probes that are called too often.
    fn judge(&mut self, now: u64, say: &mut dyn FnMut(Observation)) {
        for (probe, measure, rate) in self.budget.judge(now) {
            // A refusal comes again with the next second.
            if self.attacher.limit(&mut self.kernel, probe, measure, rate).unwrap_or(false)
                && let Some(slot) = self.attacher.slot(probe)
            {
                say(Observation::Limited { probe: Arc::clone(&slot.probe), measure, rate });
            }
        }
    }

    /// Looks at a mapping, made at a time of CLOCK_MONOTONIC if it has only now been made.
    fn mapped(&mut self, mapping: &Mapping, at_ns: Option<u64>, say: &mut dyn FnMut(Observation)) {
        if mapping.pid == std::process::id() {
            return;
        }
        self.workers.mapped(mapping.pid, &mapping.path);
        if self.targets.include(&self.proc, mapping.pid) {
            let noticed_ns = now_ns();
            self.see(mapping, say);
            if let Some(at_ns) = at_ns {
                self.tell_late(mapping, at_ns, noticed_ns, say);
            }
        } else {
            self.gives_way(mapping, say);
        }
    }

    /// Tells of a file that a worker mapped before its probes were in place.
    fn tell_late(
        &mut self,
        mapping: &Mapping,
        at_ns: u64,
        noticed_ns: u64,
        say: &mut dyn FnMut(Observation),
    ) {
        let placed = self.attacher.placed(mapping.file).filter(|placed| placed.placed_ns > at_ns);
        let Some(Placed { analysed_ns, placed_ns }) = placed else { return };
        let noticed_ns = noticed_ns.clamp(at_ns, placed_ns);
        let analysed_ns = analysed_ns.clamp(noticed_ns, placed_ns);
        let late = Late {
            path: mapping.path.clone(),
            mapped_ns: at_ns,
            notice_ns: noticed_ns.saturating_sub(at_ns),
            analyse_ns: analysed_ns.saturating_sub(noticed_ns),
            place_ns: placed_ns.saturating_sub(analysed_ns),
        };
        let news = match self.workers.get_mut(mapping.pid) {
            Some(live) => live.note_late(&late),
            None => self.workers.was_worker(mapping.pid),
        };
        if news {
            say(Observation::Late { pid: mapping.pid, late });
        }
    }

    /// Looks at the file of a mapping if it is new.
    fn look(&mut self, mapping: &Mapping) -> Result<Seen, FileError> {
        let (proc, installed) = (&self.proc, &mut self.installed);
        let versions = || {
            let mappings = discover::mappings_of(proc, mapping.pid);
            let paths = mappings.iter().map(|mapping| &mapping.path);
            let mut versions = installed.versions_of(proc, mapping.pid, paths);
            if versions.occt.is_empty() {
                let name = mapping.path.rsplit('/').next().unwrap_or_default();
                versions.occt = identify::occt_version_from_file_name(name).unwrap_or_default();
            }
            versions
        };
        self.attacher.look(&mut self.kernel, proc, mapping, versions)
    }

    fn see(&mut self, mapping: &Mapping, say: &mut dyn FnMut(Observation)) {
        if self.gives_way(mapping, say) {
            return;
        }
        match self.look(mapping) {
            Ok(Seen::Plain) => {}
            Ok(Seen::Worker) => {
                let new = !self.workers.contains(mapping.pid);
                self.hold(mapping, say);
                if new {
                    self.enlist(mapping.pid, say);
                }
            }
            Ok(Seen::Tls) => self.hold(mapping, say),
            Ok(Seen::Runtime) => {
                if self.workers.contains(mapping.pid) {
                    self.hold(mapping, say);
                } else if self.workers.was_worker(mapping.pid) {
                    self.hold_for_the_next(mapping, say);
                } else {
                    self.workers.maps_runtime(mapping);
                }
            }
            // Executable files that are not ELF files of this machine are none of our business.
            Err(FileError::Elf(_)) => {}
            Err(error) => self.missed(mapping, &error, say),
        }
    }

    fn missed(&mut self, mapping: &Mapping, error: &FileError, say: &mut dyn FnMut(Observation)) {
        if error.may_pass() {
            self.again.entry(mapping.pid).or_insert(LOOKS_AGAIN);
        }
        say(missed(&mapping.path, error));
    }

    fn hold(&mut self, mapping: &Mapping, say: &mut dyn FnMut(Observation)) {
        let analysed_ns = now_ns();
        match self.attacher.hold(&mut self.kernel, mapping.file, mapping.pid) {
            Ok(placed) => {
                if placed {
                    let placed = Placed { analysed_ns, placed_ns: now_ns() };
                    self.attacher.note_placed(mapping.file, placed);
                }
                self.refresh(mapping.pid, say);
            }
            Err(error) => self.missed(mapping, &error, say),
        }
    }

    /// Places the probes of a file that a worker mapped which is gone: the next of its kind finds them.
    fn hold_for_the_next(&mut self, mapping: &Mapping, say: &mut dyn FnMut(Observation)) {
        self.hold(mapping, say);
        self.attacher.release(mapping.pid, now_ns());
    }

    /// Makes a process a worker, with everything it maps already; also one that is gone by now.
    fn enlist(&mut self, pid: u32, say: &mut dyn FnMut(Observation)) {
        let now = now_ns();
        let executed = self.kernel.executed_ns(pid);
        let key = discover::key_of(&self.proc, pid);
        // First added, then asked for its end: one of the two sees it.
        let process = key.unwrap_or(ProcessKey { pid, padding: 0, start_boottime_ns: 0 });
        // A refusal shows when the process ends without notice: the review finds it.
        let _ = self.kernel.add_worker(process);
        let gone = self.kernel.ended(pid).filter(|life| is_end_of(life, key, executed));
        if let Some(life) = &gone {
            self.kernel.remove_worker(pid);
            if self.workers.has_ended(pid, life.at_ns) {
                for mapping in self.workers.runtimes_of(pid) {
                    self.hold(&mapping, say);
                }
                self.attacher.release(pid, now);
                self.written.release(pid);
                return;
            }
        } else if let Some(executed) = executed {
            say(Observation::Ready(Duration::from_nanos(now.saturating_sub(executed))));
        }
        let program = self.workers.program_of(pid);
        // Asked first: what it works on is there with its command.
        let begins = gone.is_none() && discover::has_no_command_yet(&self.proc, pid);
        let worker = self.worker(process, program, self.attacher.versions_of(pid), executed);
        let live = self.workers.enter(worker, executed.unwrap_or(now));
        if begins {
            // It is told when its exec is over.
            live.announced = false;
        } else {
            say(Observation::Started(Arc::clone(&live.worker)));
        }
        self.written.hold(pid, executed);
        for mapping in self.workers.runtimes_of(pid) {
            self.hold(&mapping, say);
        }
        for mapping in discover::mappings_of(&self.proc, pid) {
            self.see(&mapping, say);
        }
        self.late.extend(gone);
    }

    /// What is known of a process that is a worker.
    fn worker(
        &mut self,
        process: ProcessKey,
        program: Option<String>,
        versions: Versions,
        executed_ns: Option<u64>,
    ) -> Worker {
        let (proc, pid) = (&self.proc, process.pid);
        let job = discover::with_environ(proc, pid, |environ| Job::from_environ(environ, &self.variables));
        let job = Arc::new(job);
        let command = discover::command_of(proc, pid);
        Worker {
            process,
            program: program.unwrap_or_else(|| discover::program_of(proc, pid)),
            freecad_version: versions.freecad,
            occt_version: versions.occt,
            executed_ns,
            flow_type: flow_type::flow_type(&job.flow_type, &command, &self.flow_rules),
            container: self.containers.of(proc, pid),
            job,
        }
    }

    /// Takes over what a newly mapped file says of a worker's versions.
    fn refresh(&mut self, pid: u32, say: &mut dyn FnMut(Observation)) {
        let Some(live) = self.workers.get_mut(pid) else { return };
        renew(live, &self.attacher.versions_of(pid), say);
    }

    /// Finds workers whose end was not reported, and looks again at which files the others map, at some of them each
    /// time: it is read for the rare one that lets go of a library.
    fn review(&mut self, now: u64, say: &mut dyn FnMut(Observation)) {
        self.reviews = self.reviews.wrapping_add(1);
        for pid in self.workers.pids() {
            if discover::is_alive(&self.proc, pid) {
                if pid % REVIEW_PARTS != self.reviews % REVIEW_PARTS {
                    continue;
                }
                let mapped: HashSet<FileId> =
                    discover::mappings_of(&self.proc, pid).into_iter().map(|mapping| mapping.file).collect();
                if !mapped.is_empty() {
                    self.attacher.retain(pid, &mapped, now);
                }
            } else if let Some(life) = self.kernel.ended(pid) {
                self.exited(&life, say);
            } else {
                self.end(pid, now, None, |_| End::without_exit(How::Unseen), say);
            }
        }
        self.look_again(say);
        self.review_translators(now);
        let proc = &self.proc;
        self.attacher.release_gone(now, |pid| discover::is_alive(proc, pid));
    }

    /// What was missed then has been told.
    fn look_again(&mut self, say: &mut dyn FnMut(Observation)) {
        self.again.retain(|_, left| {
            *left = left.saturating_sub(1);
            *left > 0
        });
        let mut anew = |observation| {
            if !matches!(observation, Observation::Missed { .. }) {
                say(observation);
            }
        };
        for (pid, left) in std::mem::take(&mut self.again) {
            let mappings = discover::mappings_of(&self.proc, pid);
            if mappings.is_empty() && discover::is_alive(&self.proc, pid) {
                self.again.insert(pid, left);
            }
            for mapping in mappings {
                self.mapped(&mapping, None, &mut anew);
            }
            // Anything that failed again has entered it with all its looks.
            self.again.entry(pid).and_modify(|again| *again = left);
        }
    }

    fn take(&mut self, event: Event<'_>, say: &mut dyn FnMut(Observation)) {
        match event {
            Event::Thrown(exception) => self.exceptions.announce(&exception),
            Event::Ended(record) => {
                let Some(slot) = self.attacher.slot(record.probe).cloned() else {
                    say(Observation::Dropped("unknown_probe"));
                    return;
                };
                let worker = self.worker_of(record.process, &slot.versions, say);
                self.budget.note(record.probe, 1);
                let mut operation = receive::operation(
                    record,
                    &slot.probe,
                    slot.layout(),
                    worker,
                    &self.exceptions,
                    &mut self.texts,
                );
                if operation.probe.ignores(&operation.values) {
                    return;
                }
                if operation.probe.tally.is_some() {
                    let tally = self.kernel.take_tally(record.tid, record.start_ns);
                    let tally = i64::try_from(tally).unwrap_or(i64::MAX);
                    operation.values.insert(Arc::clone(&self.tally), Value::Int(tally));
                }
                self.written.look(&mut operation);
                operation.source = self.sources.take(record.tid, record.start_ns, record.end_ns);
                if let Some(live) = self.workers.get_mut(record.process.pid) {
                    live.did(&mut operation);
                }
                say(Observation::Operation(operation));
            }
            Event::Forked { parent, child } => {
                self.attacher.inherit_translation(parent.pid, child.pid);
                if self.workers.fork(parent.pid, child, now_ns()).is_some() {
                    self.attacher.inherit(parent.pid, child.pid);
                    self.written.hold(child.pid, None);
                }
            }
            Event::Executed(process, at_ns) => self.executed(process, at_ns, say),
            Event::Exited(life) => self.exited(&life, say),
            Event::Resident(resident) => {
                if let Some(live) = self.workers.get_mut(resident.pid) {
                    live.peaks.note(resident.at_ns, resident.pages);
                }
            }
            Event::Exchanged(exchange) => {
                let call = self.ai_providers.as_ref().and_then(|providers| providers.call(&exchange));
                if let Some(call) = call {
                    say(Observation::Called(Box::new(call)));
                }
            }
            Event::OutOfMemory(oom) => {
                self.workers.ran_out_of_memory(oom.process.pid, receive::out_of_memory(&oom));
            }
        }
    }

    /// Ends a worker that executed another program. An exec maps its program before it is over: a worker that was
    /// recognised by that is the new one.
    fn executed(&mut self, process: ProcessKey, at_ns: u64, say: &mut dyn FnMut(Observation)) {
        // Its beginning is told there, and before its end.
        self.follow_mappings(say);
        match self.workers.get_mut(process.pid) {
            Some(live) if live.execs == 0 => {
                live.executed(at_ns);
                let begun = (!live.announced).then(|| Arc::clone(&live.worker));
                // The kernel side has taken it for the old one.
                let _ = self.kernel.add_worker(process);
                if let Some(life) =
                    self.kernel.ended(process.pid).filter(|life| is_end_of(life, Some(process), Some(at_ns)))
                {
                    self.kernel.remove_worker(process.pid);
                    self.late.push(life);
                }
                if let Some(begun) = begun {
                    self.begun(&begun, at_ns, say);
                }
                return;
            }
            Some(live) if !live.announced => {
                self.attacher.release(process.pid, at_ns);
                self.written.release(process.pid);
                self.workers.end(process.pid, at_ns);
            }
            _ => self.end(process.pid, at_ns, None, |_| End::without_exit(How::Replaced), say),
        }
        // Mappings of its new program can have been reported before.
        self.scan(Some(&[process.pid]), say);
    }

    /// Tells of a worker that was recognised before its exec was over.
    fn begun(&mut self, known: &Worker, at_ns: u64, say: &mut dyn FnMut(Observation)) {
        let versions = Versions { freecad: known.freecad_version.clone(), occt: known.occt_version.clone() };
        let worker = self.worker(known.process, Some(known.program.clone()), versions, Some(at_ns));
        if let Some(live) = self.workers.get_mut(known.process.pid) {
            live.worker = Arc::new(worker);
            announce(live, say);
        }
    }

    /// The worker that did an operation; one that was not recognised in time is made from what is known.
    fn worker_of(
        &mut self,
        process: ProcessKey,
        of_file: &Versions,
        say: &mut dyn FnMut(Observation),
    ) -> Arc<Worker> {
        if !self.workers.contains(process.pid) {
            let executed = self.kernel.executed_ns(process.pid);
            let program = self.workers.program_of(process.pid);
            let worker = self.worker(process, program, of_file.clone(), executed);
            let gone = self.kernel.ended(process.pid).filter(|life| is_end_of(life, Some(process), executed));
            if gone.is_some_and(|life| self.workers.has_ended(process.pid, life.at_ns)) {
                return Arc::new(worker);
            }
            let live = self.workers.enter(worker, executed.unwrap_or_else(now_ns));
            live.settled = true;
            say(Observation::Started(Arc::clone(&live.worker)));
            self.written.hold(process.pid, executed);
            // The kernel side tells of its end: it has made a call.
            self.late.extend(gone);
            for mapping in self.workers.runtimes_of(process.pid) {
                self.hold(&mapping, say);
            }
        }
        let Some(live) = self.workers.get_mut(process.pid) else { return Arc::default() };
        announce(live, say);
        if !live.settled {
            live.settled = true;
            if let Some((file, mut versions)) = self.attacher.read_freecad(&self.proc, process.pid) {
                self.attacher.learn_freecad(file, &versions.freecad);
                // FreeCAD says which OCCT it was compiled with; the files say which it runs with, if less exactly.
                let files = self.attacher.versions_of(process.pid);
                if !versions.occt.starts_with(&files.occt) {
                    versions.occt = files.occt;
                }
                renew(live, &versions, say);
            }
        }
        Arc::clone(&live.worker)
    }

    fn exited(&mut self, life: &Life, say: &mut dyn FnMut(Observation)) {
        // One whose calls were only counted, and whose beginning was not seen: they are a worker's, as records would be.
        let pid = life.process.pid;
        if !self.workers.contains(pid) {
            let counts = self.kernel.aggregates(|of| of == pid);
            if let Some(slot) = counts.iter().find_map(|(key, _)| self.attacher.slot(key.probe)).cloned() {
                self.worker_of(life.process, &slot.versions, say);
            }
        }
        let end = |live: &mut Live| End {
            cpu_ns: Some(life.cpu_ns),
            peak_bytes: Some(life.peak_pages.saturating_mul(procfs::page_size())),
            ..End::of_exit(life.status, &life.fate, live.script_failed, live.take_oom())
        };
        // A program begun since, without news of it from the kernel side, is that of another process with its id, whose
        // mappings were taken for its own.
        let another = self.workers.get(pid).is_some_and(|live| live.execs > 0);
        self.end(pid, life.at_ns, Some(life.status), end, say);
        if another {
            self.scan(Some(&[pid]), say);
        }
    }

    fn end(
        &mut self,
        pid: u32,
        ended_ns: u64,
        status: Option<u32>,
        end: impl FnOnce(&mut Live) -> End,
        say: &mut dyn FnMut(Observation),
    ) {
        self.take_counts(Some(pid), say);
        self.attacher.release(pid, ended_ns);
        self.sources.end(pid);
        self.written.release(pid);
        if let Some(mut live) = self.workers.end(pid, ended_ns) {
            announce(&mut live, say);
            let end = Box::new(end(&mut live));
            let Live { worker, started_ns, .. } = live;
            say(Observation::Ended { worker, started_ns, ended_ns, status, end });
        }
    }

    /// The files of interest and their probes.
    #[must_use]
    pub const fn attacher(&self) -> &Attacher {
        &self.attacher
    }

    /// The live workers.
    pub fn workers(&self) -> impl Iterator<Item = &Live> {
        self.workers.iter()
    }

    /// The operations that are open now.
    #[must_use]
    pub fn in_flight(&self) -> Vec<InFlight> {
        in_flight::in_flight(&self.kernel, &self.attacher, &self.workers, now_ns())
    }

    /// The same one by one.
    #[must_use]
    pub fn open_operations(&self) -> Vec<OpenOperation> {
        let (kernel, attacher, workers) = (&self.kernel, &self.attacher, &self.workers);
        in_flight::open_operations(kernel, attacher, workers, &self.sources, now_ns())
    }

    /// The calls of probes that are wanted and open now.
    #[must_use]
    pub fn open_calls(&self, wanted: impl Fn(&Probe) -> bool) -> Vec<OpenCall> {
        in_flight::open_calls(&self.kernel, &self.attacher, &self.workers, now_ns(), wanted)
    }

    /// The node's procfs.
    #[must_use]
    pub fn proc(&self) -> &Path {
        &self.proc
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
            ("count_map_full", count(C::LostAggregate)),
            ("count_unclaimed", self.unclaimed),
            ("mappings_lost", self.mappings.lost()),
        ]
        .into_iter()
        .map(|(reason, count)| (reason.to_owned(), count))
        .collect()
    }
}

/// Tells of a fork that is a worker after all.
fn announce(live: &mut Live, say: &mut dyn FnMut(Observation)) {
    if !live.announced {
        live.announced = true;
        say(Observation::Started(Arc::clone(&live.worker)));
    }
}

/// Whether an end that was seen is that of the process which bears the pid now, or bore it last.
fn is_end_of(life: &Life, key: Option<ProcessKey>, executed_ns: Option<u64>) -> bool {
    // procfs counts in steps of 10 ms.
    const STEP_NS: u64 = 10_000_000;
    let started = |key: ProcessKey| key.start_boottime_ns / STEP_NS;
    key.is_none_or(|key| started(key) == started(life.process))
        && executed_ns.is_none_or(|at| at <= life.at_ns)
}

fn renew(live: &mut Live, versions: &Versions, say: &mut dyn FnMut(Observation)) {
    if live.renew(versions) {
        say(Observation::Renewed(Arc::clone(&live.worker)));
    }
}

fn missed(path: &str, error: &FileError) -> Observation {
    let reason = match error {
        FileError::Open(discover::OpenError::Gone) => "process_gone",
        FileError::Open(_) => "file_not_opened",
        FileError::Read(_) => "file_not_read",
        FileError::Changed => "file_changed",
        FileError::Closing => "former_probes",
        FileError::Translated => "translated",
        FileError::Elf(_) => "not_elf",
        FileError::Attach(_) => "attach_refused",
        FileError::Kernel(_) => "kernel_map",
    };
    Observation::Missed { path: path.to_owned(), reason, error: error.to_string() }
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
