//! Turns a node's processes into a stream of observations: workers that come and go, operations that end.
//!
//! Owns the kernel side, the table of files and the table of workers. One thread calls [`Observer::poll`] in a loop;
//! everything that happens reaches the caller through its closure, in order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cadscope_common::record::Life;

use crate::ai::Providers;
use crate::attach::{Attacher, FileError, Seen};
use crate::budget::{Budget, Limits};
use crate::catalog::{Catalog, Probe};
use crate::clock::now_ns;
use crate::config::SourceOptions;
use crate::counted::Counted;
use crate::discover::{self, Containers, FileId, Mappings, Step};
use crate::ending::{End, How};
use crate::flow_type;
use crate::in_flight::{self, InFlight, OpenCall, OpenOperation};
use crate::installed::Installed;
use crate::job::Variables;
use crate::kernel::mapped_file::map_as_program;
use crate::kernel::records::MOST_RECORDS;
use crate::kernel::{AttachMode, Kernel, KernelError, Records, wait};
use crate::operation::{Operation, Texts, Value};
use crate::receive::{self, Event, Exceptions, Room};
use crate::sources::Sources;
use crate::workers::{Live, Targets, Workers};
use crate::written::Written;

mod files;
mod lives;
mod observation;
mod translators;

pub use self::observation::{Observation, ObserveError};

use self::lives::announce;

/// How often it is looked which workers are alive, in nanoseconds.
const REVIEW_NS: u64 = 10_000_000_000;
/// Each look reads the mappings of one worker in so many.
const REVIEW_PARTS: u32 = 6;
/// How often the counts of calls without records are taken, in nanoseconds.
const COUNTED_NS: u64 = 1_000_000_000;
/// How often uninteresting files are forgotten, in nanoseconds.
const FORGET_NS: u64 = 300_000_000_000;

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
                Err(error) => say(Observation::missed(&mapping.path, &error)),
            }
        }
        if found.iter().any(|(_, seen)| *seen == Seen::Worker) {
            for (mapping, _) in found {
                if let Err(error) = self.attacher.hold(&mut self.kernel, mapping.file, pid) {
                    say(Observation::missed(&mapping.path, &error));
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
