//! Loads the BPF programs, places probes, and hands out what they send.
//!
//! aya loads the object, its maps and the process programs; the uprobe programs are loaded beside it for uprobe_multi
//! (Linux 6.6+: one link per file and program, CAP_BPF and CAP_PERFMON are enough), or by aya as perf events on older
//! kernels (5.15+, needs CAP_SYS_ADMIN).

pub mod bpf;
pub mod mapped_file;
pub mod offsets;
pub mod own_memory;
pub mod perf_uprobe;
pub mod plain;
pub mod records;
pub mod wait;

use std::borrow::Cow;
use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, PerCpuArray, PerCpuHashMap, RingBuf};
use aya::programs::{FEntry, FExit, ProgramError, RawTracePoint, UProbe};
use aya::{Btf, Ebpf, EbpfLoader, Endianness, RawTracePointRunOptions, TestRun as _};
use cadscope_common::aggregate::{Aggregate, AggregateKey};
use cadscope_common::cookie::{Cookie, Edge};
use cadscope_common::open::{Capture, Thread};
use cadscope_common::probe::{ProbeProgram, TallyKey, flags};
use cadscope_common::record::{Life, Operation, ProcessKey};
use cadscope_common::settings::{COUNTERS, Counter, MAX_COUNTED_CPUS, Settings};
use tracing::warn;

use self::offsets::OffsetError;
use self::perf_uprobe::PerfProbes;
use self::plain::{Raw, bytes_of};
pub use self::records::Records;
use crate::resolve::FileOffset;

/// The object that agent/build.rs built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("CADSCOPE_BPF_OBJECT"));

/// Where the kernel keeps its own types, below sysfs.
pub const KERNEL_BTF: &str = "kernel/btf/vmlinux";

/// Why the kernel side cannot run.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel's structures are not known.
    #[error(transparent)]
    Offsets(#[from] OffsetError),
    /// aya's refusal.
    #[error("cannot load the BPF object: {0}")]
    Load(#[from] aya::EbpfError),
    /// A program was refused.
    #[error("the kernel refused program {program}: {reason}")]
    Program {
        /// Which.
        program: &'static str,
        /// Why.
        reason: String,
    },
    /// A map is not there or not of its type.
    #[error("map {map}: {reason}")]
    Map {
        /// Which.
        map: &'static str,
        /// Why.
        reason: String,
    },
    /// The object itself is damaged.
    #[error("the built-in BPF object is damaged: {0}")]
    Object(String),
    /// The same, as a file.
    #[error("the built-in BPF object is damaged: {0}")]
    ObjectFile(#[from] object::Error),
}

/// Why probes could not be placed in a file.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel's refusal.
    #[error("the kernel refused {sites} probes: {reason}")]
    Refused {
        /// How many.
        sites: usize,
        /// Why.
        reason: String,
    },
}

/// How probes are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// One link for all sites of a file and program.
    UprobeMulti,
    /// One perf event a site.
    PerfEvents,
}

impl AttachMode {
    /// As `/status` and doctor say it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UprobeMulti => "uprobe_multi",
            Self::PerfEvents => "perf events",
        }
    }
}

/// The program that a site runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SiteProgram {
    /// A call begins.
    Enter,
    /// A call ends.
    Leave,
    /// A C++ exception has been caught.
    Caught,
    /// A cleanup has ended and hands its exception on.
    Resumed,
    /// An exception is thrown.
    Raised,
    /// longjmp is about to jump.
    Jumped,
    /// A call that is only counted.
    Tally,
    /// Plaintext goes to TLS.
    TlsWrite,
    /// Plaintext is asked for.
    TlsRead,
    /// It has come.
    TlsReadEnd,
    /// A TLS connection is given up.
    TlsFree,
}

impl SiteProgram {
    /// Those that are always loaded.
    pub const ALWAYS: [Self; 7] =
        [Self::Enter, Self::Leave, Self::Caught, Self::Resumed, Self::Raised, Self::Jumped, Self::Tally];
    /// Those that are loaded if TLS is to be observed.
    pub const TLS: [Self; 4] = [Self::TlsWrite, Self::TlsRead, Self::TlsReadEnd, Self::TlsFree];

    /// The program for an edge.
    #[must_use]
    pub const fn for_edge(edge: Edge) -> Self {
        match edge {
            Edge::Enter => Self::Enter,
            Edge::Leave | Edge::TailLeave => Self::Leave,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Enter => "call_enter",
            Self::Leave => "call_leave",
            Self::Caught => "exception_caught",
            Self::Resumed => "cleanup_ended",
            Self::Raised => "exception_raised",
            Self::Jumped => "jumped",
            Self::Tally => "call_tally",
            Self::TlsWrite => "tls_write",
            Self::TlsRead => "tls_read",
            Self::TlsReadEnd => "tls_read_end",
            Self::TlsFree => "tls_free",
        }
    }
}

/// Probes in place; they go when it is dropped.
#[derive(Debug)]
pub enum Link {
    /// One descriptor for all.
    Multi(OwnedFd),
    /// An event for each.
    Perf(PerfProbes),
}

/// The loaded kernel side.
pub struct Kernel {
    ebpf: Ebpf,
    mode: AttachMode,
    multi: Vec<(SiteProgram, OwnedFd)>,
    sys: PathBuf,
    /// The map of counts was empty when so many of its entries had been made.
    empty_at: Option<u64>,
}

impl Kernel {
    /// Loads everything; `sys` is the node's sysfs. With `only_targets`, only processes given to [`Kernel::add_target`] and
    /// their descendants are observed. `allow_multi = false` forces perf events. `tls`: what goes over TLS is observed, too.
    /// Calls that return within `min_duration` are counted only.
    ///
    /// # Errors
    /// What the kernel lacks or refuses.
    pub fn load(
        sys: &Path,
        only_targets: bool,
        allow_multi: bool,
        tls: bool,
        min_duration: Duration,
    ) -> Result<Self, KernelError> {
        let facts = offsets::read(&sys.join(KERNEL_BTF))?;
        let multi = allow_multi && facts.has_uprobe_multi;
        let cpus = possible_cpus();
        let settings = Settings {
            offsets: facts.offsets,
            padding: 0,
            min_duration_ns: u64::try_from(min_duration.as_nanos()).unwrap_or(u64::MAX),
            only_targets: u32::from(only_targets),
            counted_cpus: if cpus.len() > MAX_COUNTED_CPUS { 1 } else { count_of(&cpus) },
        };
        let object = if multi { Cow::Borrowed(OBJECT) } else { Cow::Owned(bpf::without_sleep(OBJECT)?) };
        let mut loader = EbpfLoader::new();
        loader.override_global("SETTINGS", bytes_of(&settings), true);
        if !tls {
            // Room for what is never used.
            loader.map_max_entries("CONNECTIONS", 1).map_max_entries("READINGS", 1);
        }
        let mut ebpf = loader.load(&object)?;
        let programs: Vec<SiteProgram> =
            SiteProgram::ALWAYS.into_iter().chain(SiteProgram::TLS.into_iter().filter(|_| tls)).collect();
        let mut kernel_multi = Vec::new();
        let mode = if multi {
            kernel_multi = load_multi(&ebpf, &settings, &programs)?;
            AttachMode::UprobeMulti
        } else {
            for program in programs {
                let loaded: &mut UProbe = program_of(&mut ebpf, program.name())?;
                loaded.load().map_err(|error| refused(program.name(), &error))?;
            }
            AttachMode::PerfEvents
        };
        let mut kernel = Self { ebpf, mode, multi: kernel_multi, sys: sys.to_owned(), empty_at: None };
        kernel.locate_cpus(&cpus)?;
        kernel.attach_tracepoints()?;
        kernel.attach_to_memory(facts.has_cheap_mmap_lock)?;
        Ok(kernel)
    }

    /// Has each CPU note where its share of per-CPU memory lies. One that is off has no share worth counting.
    fn locate_cpus(&mut self, cpus: &[u32]) -> Result<(), KernelError> {
        const NAME: &str = "cpu_located";
        let program: &mut RawTracePoint = program_of(&mut self.ebpf, NAME)?;
        program.load().map_err(|error| refused(NAME, &error))?;
        for cpu in cpus {
            let mut options = RawTracePointRunOptions::new();
            options.cpu = Some(*cpu);
            // What is not counted is a small, known share.
            let _ = program.test_run(options);
        }
        Ok(())
    }

    fn attach_tracepoints(&mut self) -> Result<(), KernelError> {
        for (name, tracepoint) in [
            ("process_forked", "sched_process_fork"),
            ("process_executed", "sched_process_exec"),
            ("thread_exited", "sched_process_exit"),
            ("signal_sent", "signal_generate"),
            ("signal_delivered", "signal_deliver"),
            ("victim_marked", "mark_victim"),
        ] {
            self.attach_tracepoint(name, tracepoint)?;
        }
        Ok(())
    }

    fn attach_tracepoint(&mut self, name: &'static str, tracepoint: &str) -> Result<(), KernelError> {
        let program: &mut RawTracePoint = program_of(&mut self.ebpf, name)?;
        program.load().map_err(|error| refused(name, &error))?;
        program.attach(tracepoint).map(drop).map_err(|error| refused(name, &error))
    }

    /// Lets what a process holds be seen before it gives some back.
    fn attach_to_memory(&mut self, cheap_mmap_lock: bool) -> Result<(), KernelError> {
        if cheap_mmap_lock {
            return self.attach_tracepoint("memory_changing", "mmap_lock_start_locking");
        }
        // A kernel need not be traceable by function; all else is seen without.
        if let Err(error) = self.attach_to_unmapping() {
            warn!("memory that an operation gives back before it ends is not seen on this kernel: {error}");
        }
        Ok(())
    }

    fn attach_to_unmapping(&mut self) -> Result<(), KernelError> {
        const FUNCTION: &str = "unmap_vmas";
        let (before, after) = ("memory_unmapping", "memory_unmapped");
        let types = Btf::parse_file(self.sys.join(KERNEL_BTF), Endianness::default());
        let types = types.map_err(|error| refused(before, &ProgramError::Btf(error)))?;
        let program: &mut FEntry = program_of(&mut self.ebpf, before)?;
        let attached = program.load(FUNCTION, &types).and_then(|()| program.attach().map(drop));
        attached.map_err(|error| refused(before, &error))?;
        let program: &mut FExit = program_of(&mut self.ebpf, after)?;
        let attached = program.load(FUNCTION, &types).and_then(|()| program.attach().map(drop));
        attached.map_err(|error| refused(after, &error))
    }

    /// How probes are placed on this kernel.
    #[must_use]
    pub const fn mode(&self) -> AttachMode {
        self.mode
    }

    /// The record stream. Can be taken once.
    ///
    /// # Errors
    /// It was taken before.
    pub fn take_events(&mut self) -> Result<Records, KernelError> {
        let map = self.ebpf.take_map("EVENTS").ok_or_else(|| no_map("EVENTS", "taken before"))?;
        RingBuf::try_from(map).map(Records::new).map_err(|error| no_map("EVENTS", &error.to_string()))
    }

    /// Writes a probe program.
    ///
    /// # Errors
    /// The index is too large or the kernel refused.
    pub fn set_probe(&mut self, index: u32, program: &ProbeProgram) -> Result<(), KernelError> {
        let mut program = program.seal();
        program.flags |= flags::LIVE;
        let mut probes: Array<_, Raw<ProbeProgram>> = self.typed_mut("PROBES")?;
        probes.set(index, Raw(program), 0).map_err(|error| no_map("PROBES", &error.to_string()))
    }

    /// Observes a process and its descendants.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn add_target(&mut self, pid: u32) -> Result<(), KernelError> {
        let mut targets: HashMap<_, u32, u32> = self.typed_mut("TARGETS")?;
        targets.insert(pid, 1, 0).map_err(|error| no_map("TARGETS", &error.to_string()))
    }

    /// Has the forks, execs and the exit of a process reported.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn add_worker(&mut self, process: ProcessKey) -> Result<(), KernelError> {
        let mut workers: HashMap<_, u32, Raw<ProcessKey>> = self.typed_mut("WORKERS")?;
        workers.insert(process.pid, Raw(process), 0).map_err(|error| no_map("WORKERS", &error.to_string()))
    }

    /// Takes a process back that [`Kernel::add_worker`] added too late.
    pub fn remove_worker(&mut self, pid: u32) {
        if let Ok(mut workers) = self.typed_mut::<HashMap<_, u32, Raw<ProcessKey>>>("WORKERS") {
            // What is not there need not be removed.
            let _ = workers.remove(&pid);
        }
    }

    /// The end of a process that was not added as a worker in time; forgotten after some thousand others.
    #[must_use]
    pub fn ended(&self, pid: u32) -> Option<Life> {
        let map: HashMap<_, u32, Raw<Life>> = HashMap::try_from(self.ebpf.map("ENDED")?).ok()?;
        map.get(&pid, 0).ok().map(|Raw(life)| life)
    }

    /// Every thread with its open calls, as it is at this moment; one that runs may be seen in the middle of a change.
    #[must_use]
    pub fn threads(&self) -> Vec<(u32, Thread)> {
        let Some(map) = self.ebpf.map("THREADS") else { return Vec::new() };
        let Ok(map) = HashMap::<_, u32, Raw<Thread>>::try_from(map) else { return Vec::new() };
        map.iter().filter_map(Result::ok).map(|(tid, Raw(thread))| (tid, thread)).collect()
    }

    /// The open calls of one thread.
    #[must_use]
    pub fn thread(&self, tid: u32) -> Option<Thread> {
        let map: HashMap<_, u32, Raw<Thread>> = HashMap::try_from(self.ebpf.map("THREADS")?).ok()?;
        map.get(&tid, 0).ok().map(|Raw(thread)| thread)
    }

    /// What was read at the entry of an open call.
    #[must_use]
    pub fn capture(&self, tid: u32, depth: u32) -> Option<Operation> {
        let map: HashMap<_, u64, Raw<Capture>> = HashMap::try_from(self.ebpf.map("CAPTURES")?).ok()?;
        map.get(&(u64::from(tid) << 32 | u64::from(depth)), 0).ok().map(|Raw(capture)| capture.record)
    }

    /// The count of what was tallied so far inside a call that is open.
    #[must_use]
    pub fn tally(&self, tid: u32, start_ns: u64) -> u64 {
        let map = self.ebpf.map("TALLIES").map(HashMap::<_, Raw<TallyKey>, u64>::try_from);
        let count = map
            .and_then(Result::ok)
            .and_then(|map| map.get(&Raw(TallyKey { tid, padding: 0, start_ns }), 0).ok());
        count.unwrap_or(0)
    }

    /// Takes the count of what was tallied inside a call that has ended.
    pub fn take_tally(&mut self, tid: u32, start_ns: u64) -> u64 {
        let Ok(mut map) = self.typed_mut::<HashMap<_, Raw<TallyKey>, u64>>("TALLIES") else { return 0 };
        let key = Raw(TallyKey { tid, padding: 0, start_ns });
        let count = map.get(&key, 0).unwrap_or(0);
        if count > 0 {
            // The kernel forgets it in time.
            let _ = map.remove(&key);
        }
        count
    }

    /// What is counted of the calls without records of these processes, summed over the CPUs.
    #[must_use]
    pub fn aggregates(&mut self, wanted: impl Fn(u32) -> bool) -> Vec<(AggregateKey, Aggregate)> {
        // Asked before the walk: an entry that it misses is counted after.
        let made = self.counter(Counter::AggregateMade);
        if made.is_some() && made == self.empty_at {
            return Vec::new();
        }
        let Some(map) = self.ebpf.map("AGGREGATES") else { return Vec::new() };
        let Ok(map) = PerCpuHashMap::<_, Raw<AggregateKey>, Raw<Aggregate>>::try_from(map) else {
            return Vec::new();
        };
        let sum = |sum: Aggregate, Raw(one): &Raw<Aggregate>| Aggregate {
            count: sum.count.wrapping_add(one.count),
            sum_ns: sum.sum_ns.wrapping_add(one.sum_ns),
        };
        let mut is_empty = true;
        let counts = map
            .keys()
            .inspect(|_| is_empty = false)
            .filter_map(Result::ok)
            .filter(|Raw(key)| wanted(key.pid))
            .filter_map(|key| Some((key.0, map.get(&key, 0).ok()?.iter().fold(Aggregate::default(), sum))))
            .collect();
        self.empty_at = made.filter(|_| is_empty);
        counts
    }

    /// One of what the programs counted, summed over the CPUs.
    fn counter(&self, counter: Counter) -> Option<u64> {
        let map = PerCpuArray::<_, u64>::try_from(self.ebpf.map("COUNTERS")?).ok()?;
        Some(map.get(&(counter as u32), 0).ok()?.iter().sum())
    }

    /// Forgets what was counted of a process that has ended.
    pub fn forget_aggregates(&mut self, keys: impl Iterator<Item = AggregateKey>) {
        if let Ok(mut map) =
            self.typed_mut::<PerCpuHashMap<_, Raw<AggregateKey>, Raw<Aggregate>>>("AGGREGATES")
        {
            for key in keys {
                // What is not there need not be removed.
                let _ = map.remove(&Raw(key));
            }
        }
    }

    /// When a process last executed a program, nanoseconds of CLOCK_MONOTONIC; `None` if before the agent.
    #[must_use]
    pub fn executed_ns(&self, pid: u32) -> Option<u64> {
        let map: HashMap<_, u32, u64> = HashMap::try_from(self.ebpf.map("EXECUTED")?).ok()?;
        map.get(&pid, 0).ok()
    }

    /// What the programs counted, summed over the CPUs, by [`cadscope_common::settings::Counter`].
    #[must_use]
    pub fn counters(&self) -> Vec<u64> {
        let Some(map) = self.ebpf.map("COUNTERS") else { return Vec::new() };
        let Ok(map) = PerCpuArray::<_, u64>::try_from(map) else { return Vec::new() };
        (0..COUNTERS).map(|index| map.get(&index, 0).map_or(0, |cpus| cpus.iter().sum())).collect()
    }

    /// Places probes in a file.
    ///
    /// # Errors
    /// The kernel's refusal; nothing stays behind then.
    pub fn attach(
        &mut self,
        file: &File,
        program: SiteProgram,
        sites: &[(FileOffset, Cookie)],
    ) -> Result<Link, AttachError> {
        let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
        let refused = |reason: String| AttachError::Refused { sites: sites.len(), reason };
        match self.mode {
            AttachMode::UprobeMulti => {
                let (_, fd) = self
                    .multi
                    .iter()
                    .find(|(kind, _)| *kind == program)
                    .ok_or_else(|| refused("program not loaded".to_owned()))?;
                let offsets: Vec<u64> = sites.iter().map(|(offset, _)| offset.0).collect();
                let cookies: Vec<u64> = sites.iter().map(|(_, cookie)| cookie.0).collect();
                bpf::link_uprobe_multi(fd.as_fd(), &path, &offsets, &cookies)
                    .map(Link::Multi)
                    .map_err(|error| refused(error.to_string()))
            }
            AttachMode::PerfEvents => {
                let loaded: &mut UProbe =
                    program_of(&mut self.ebpf, program.name()).map_err(|error| refused(error.to_string()))?;
                let fd = loaded.fd().map_err(|error| refused(error.to_string()))?;
                let sites = sites.iter().map(|(offset, cookie)| (offset.0, cookie.0));
                PerfProbes::place(&self.sys, fd.as_fd(), &path, sites)
                    .map(Link::Perf)
                    .map_err(|error| refused(error.to_string()))
            }
        }
    }

    fn typed_mut<'a, M: TryFrom<&'a mut Map, Error = aya::maps::MapError>>(
        &'a mut self,
        name: &'static str,
    ) -> Result<M, KernelError> {
        let map = self.ebpf.map_mut(name).ok_or_else(|| no_map(name, "missing"))?;
        M::try_from(map).map_err(|error| no_map(name, &error.to_string()))
    }
}

/// The CPUs that can be on.
fn possible_cpus() -> Vec<u32> {
    let count = aya::util::nr_cpus().unwrap_or(1);
    (0..u32::try_from(count).unwrap_or(1)).collect()
}

fn count_of(cpus: &[u32]) -> u32 {
    u32::try_from(cpus.len()).unwrap_or(1)
}

fn no_map(map: &'static str, reason: &str) -> KernelError {
    KernelError::Map { map, reason: reason.to_owned() }
}

fn refused(program: &'static str, error: &ProgramError) -> KernelError {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        reason = format!("{reason}: {inner}");
        source = inner.source();
    }
    KernelError::Program { program, reason }
}

fn program_of<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program =
        ebpf.program_mut(name).ok_or(KernelError::Program { program: name, reason: "missing".to_owned() })?;
    program.try_into().map_err(|error| refused(name, &error))
}

/// Loads the uprobe programs for uprobe_multi, over the maps that aya made.
fn load_multi(
    ebpf: &Ebpf,
    settings: &Settings,
    programs: &[SiteProgram],
) -> Result<Vec<(SiteProgram, OwnedFd)>, KernelError> {
    let damaged = |error: &dyn std::fmt::Display| KernelError::Object(error.to_string());
    let mut object = aya_obj::Object::parse(OBJECT).map_err(|error| damaged(&error))?;
    let globals = std::collections::HashMap::from([("SETTINGS", (bytes_of(settings), true))]);
    object.patch_map_data(globals).map_err(|error| damaged(&error))?;
    let btf = match aya::features().btf() {
        Some(features) => object.fixup_and_sanitize_btf(features).map_err(|error| damaged(&error))?,
        None => None,
    };
    let types = btf.map(|btf| bpf::load_btf(&btf.to_bytes())).transpose().map_err(|error| damaged(&error))?;
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let maps: Vec<(String, RawFd, aya_obj::Map)> = object
        .maps
        .iter()
        .filter_map(|(name, map)| Some((name.clone(), map_fd(ebpf.map(name)?)?, map.clone())))
        .collect();
    object
        .relocate_maps(maps.iter().map(|(name, fd, map)| (name.as_str(), *fd, map)), &text)
        .map_err(|error| damaged(&error))?;
    object.relocate_calls(&text).map_err(|error| damaged(&error))?;
    let mut loaded = Vec::new();
    for program in programs.iter().copied() {
        let name = program.name();
        let found = object.programs.get(name).ok_or_else(|| damaged(&name))?;
        let function = object.functions.get(&found.function_key()).ok_or_else(|| damaged(&name))?;
        let functions = &function.func_info.func_info;
        let types = types.as_ref().map(|types| (types.as_fd(), functions.as_slice()));
        let fd = bpf::load_uprobe_multi(name, &function.instructions, &found.license, types)
            .map_err(|error| KernelError::Program { program: name, reason: error.to_string() })?;
        loaded.push((program, fd));
    }
    Ok(loaded)
}

fn map_fd(map: &Map) -> Option<RawFd> {
    let data = match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::RingBuf(data) => data,
        _ => return None,
    };
    Some(data.fd().as_fd().as_raw_fd())
}
