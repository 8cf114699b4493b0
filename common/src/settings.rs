//! What the agent tells the BPF programs once, before they are loaded, and what they count.
//!
//! The kernel's structures differ from build to build; their offsets are taken from its BTF by the agent and reach
//! the programs as constants, so that the verifier sees them as such.

/// Byte offsets into kernel structures, from BTF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct KernelOffsets {
    /// `task_struct::group_leader`.
    pub task_group_leader: u32,
    /// `task_struct::start_boottime`.
    pub task_start_boottime: u32,
    /// `task_struct::exit_code`.
    pub task_exit_code: u32,
    /// `task_struct::signal`.
    pub task_signal: u32,
    /// `task_struct::pid`.
    pub task_pid: u32,
    /// `task_struct::tgid`.
    pub task_tgid: u32,
    /// `task_struct::thread.fsbase` of x86-64, else [`ABSENT`].
    pub task_fsbase: u32,
    /// `task_struct::sas_ss_sp`.
    pub task_sas_ss_sp: u32,
    /// `task_struct::sas_ss_size`.
    pub task_sas_ss_size: u32,
    /// `signal_struct::live`.
    pub signal_live: u32,
    /// `signal_struct::group_exit_code`.
    pub signal_group_exit_code: u32,
    /// `signal_struct::flags`.
    pub signal_flags: u32,
    /// `signal_struct::maxrss`.
    pub signal_maxrss: u32,
    /// `signal_struct::sum_sched_runtime`.
    pub signal_sum_sched_runtime: u32,
    /// `task_struct::se.sum_exec_runtime`.
    pub task_sum_exec_runtime: u32,
    /// `task_struct::mm`.
    pub task_mm: u32,
    /// `task_struct::rss_stat.count`, what a task has not yet added to its mm (before Linux 6.2), else [`ABSENT`].
    pub task_rss_stat: u32,
    /// `mm_struct::rss_stat`.
    pub mm_rss_stat: u32,
    /// `mm_struct::hiwater_rss`.
    pub mm_hiwater_rss: u32,
    /// `percpu_counter::count`, if the counters are of this type (Linux 6.2+), else [`ABSENT`].
    pub percpu_count: u32,
    /// `percpu_counter::counters`.
    pub percpu_counters: u32,
    /// Size of a `percpu_counter`.
    pub percpu_size: u32,
    /// `bpf_array::pptrs`.
    pub array_pptrs: u32,
    /// `task_struct::cgroups`.
    pub task_cgroups: u32,
    /// `css_set::subsys[memory_cgrp_id]`, or [`ABSENT`] without memory cgroups.
    pub cgroups_memory: u32,
    /// `mem_cgroup::memory`.
    pub memcg_memory: u32,
    /// `page_counter::usage`.
    pub counter_usage: u32,
    /// `page_counter::max`.
    pub counter_max: u32,
    /// `page_counter::parent`.
    pub counter_parent: u32,
}

/// Offset of what this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// Fields of [`KernelOffsets`].
pub const KERNEL_OFFSETS: usize = 29;

impl KernelOffsets {
    /// All zero, for a static.
    pub const ZERO: Self = Self {
        task_group_leader: 0,
        task_start_boottime: 0,
        task_exit_code: 0,
        task_signal: 0,
        task_pid: 0,
        task_tgid: 0,
        task_fsbase: 0,
        task_sas_ss_sp: 0,
        task_sas_ss_size: 0,
        signal_live: 0,
        signal_group_exit_code: 0,
        signal_flags: 0,
        signal_maxrss: 0,
        signal_sum_sched_runtime: 0,
        task_sum_exec_runtime: 0,
        task_mm: 0,
        task_rss_stat: 0,
        mm_rss_stat: 0,
        mm_hiwater_rss: 0,
        percpu_count: 0,
        percpu_counters: 0,
        percpu_size: 0,
        array_pptrs: 0,
        task_cgroups: 0,
        cgroups_memory: 0,
        memcg_memory: 0,
        counter_usage: 0,
        counter_max: 0,
        counter_parent: 0,
    };
}

const _: () = assert!(size_of::<KernelOffsets>() == 4 * KERNEL_OFFSETS);

/// What the programs are to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// Where the kernel keeps what they read.
    pub offsets: KernelOffsets,
    /// Zero.
    pub padding: u32,
    /// Calls that return sooner are counted, and get no records.
    pub min_duration_ns: u64,
    /// 1 = only processes in `TARGETS` and their descendants are observed.
    pub only_targets: u32,
    /// CPUs whose share of a counter is added to it; 1 = only that of the CPU it is read on.
    pub counted_cpus: u32,
}

impl Settings {
    /// All zero, for a static.
    pub const ZERO: Self = Self {
        offsets: KernelOffsets::ZERO,
        padding: 0,
        min_duration_ns: 0,
        only_targets: 0,
        counted_cpus: 0,
    };
}

/// The most CPUs whose shares are added up: each is a read at both ends of a call. On larger machines resident memory
/// is known to within the shares of the others, at most 2 × CPUs pages each (`percpu_counter_batch`).
pub const MAX_COUNTED_CPUS: usize = 8;

const _: () = assert!(size_of::<Settings>() == size_of::<KernelOffsets>() + 20);

/// Index of a counter in the per-CPU `COUNTERS` map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Counter {
    /// Calls that were not counted because the map of counts was full.
    LostAggregate = 0,
    /// Operations sent or lost; what a thread has sent since its last 32 counts when it ends.
    Sent = 1,
    /// Operations not sent because the ring buffer was full.
    LostOperation = 2,
    /// Other records not sent because the ring buffer was full.
    LostRecord = 3,
    /// Entries not tracked because too many operations were open on the thread.
    TooDeep = 4,
    /// Entries not tracked because the thread map was full.
    TooManyThreads = 5,
    /// Returns of a call that was entered before the probe was there (or in the parent of a fork).
    ReturnWithoutEntry = 6,
    /// Hits of a place that was probed twice for a moment.
    Twice = 7,
    /// Fetches that could not be read.
    Unread = 8,
    /// Operations ended because their frame was found abandoned, with no exception or jump seen.
    Abandoned = 9,
    /// Operations whose record did not fit a map and went without their values.
    NoCapture = 10,
    /// Entries made in the map of counts, a few twice where CPUs race; while it stays, a map that was empty is empty.
    AggregateMade = 11,
}

/// Size of the ring buffer, a power of two: a quarter of a second of 200,000 operations a second.
pub const RING_BYTES: u32 = 4 << 20;

/// Number of counters.
pub const COUNTERS: u32 = 12;

/// Operations that can be open on one thread at once; a power of two.
pub const MAX_DEPTH: usize = 64;
