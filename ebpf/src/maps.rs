//! Every map: key, value, who writes, who reads, its bound, and who removes what is dead.

use core::arch::asm;

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf},
};
use cadscope_common::{
    aggregate::{Aggregate, AggregateKey},
    open::{Capture, Thread},
    probe::{MAX_PROBES, ProbeProgram, TallyKey},
    record::{Fate, Life, ProcessKey},
    settings::{COUNTERS as COUNTER_COUNT, Counter, RING_BYTES, Settings},
    tls::{Connection, ConnectionKey, Reading},
};

const NO_PREALLOC: u32 = 1;

/// What the agent says before load. Written once by the agent, read-only for the programs.
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings::ZERO;

/// The settings; volatile, because the loader replaces them after compilation.
#[inline(always)]
pub fn settings() -> *const Settings {
    core::hint::black_box(&raw const SETTINGS)
}

/// Reads one field of the settings.
macro_rules! setting {
    ($($field:tt)+) => {
        // SAFETY: a field of a live static.
        unsafe { core::ptr::read_volatile(&raw const (*$crate::maps::settings()).$($field)+) }
    };
}
pub(crate) use setting;

/// Probe index → probe program. Agent writes, programs read; fixed size.
#[map]
pub static PROBES: Array<ProbeProgram> = Array::with_max_entries(MAX_PROBES, 0);

/// Thread id → its open calls. Programs write, the agent reads (operations in flight); removed when the thread exits
/// or executes a program.
#[map]
pub static THREADS: HashMap<u32, Thread> = HashMap::with_max_entries(65536, NO_PREALLOC);

/// `tid << 32 | depth` → the record of that open call as far as it is known. Written by the thread itself, kept for
/// the next call at that depth, removed with the thread.
#[map]
pub static CAPTURES: HashMap<u64, Capture> = HashMap::with_max_entries(262_144, NO_PREALLOC);

/// One all-zero thread, to insert copies of. Never written.
#[map]
pub static ZERO_THREAD: Array<Thread> = Array::with_max_entries(1, 0);

/// One all-zero record, to insert copies of. Never written.
#[map]
pub static ZERO_CAPTURE: Array<Capture> = Array::with_max_entries(1, 0);

/// Process id → 1: the processes to observe when `only_targets` is set. The agent starts it, forks inherit, process
/// exit removes.
#[map]
pub static TARGETS: HashMap<u32, u32> = HashMap::with_max_entries(65536, NO_PREALLOC);

/// Process id → key, for processes that map a file with probes. Written by the agent
/// or at the process's first call; forks inherit; process exit and exec remove.
#[map]
pub static WORKERS: HashMap<u32, ProcessKey> = HashMap::with_max_entries(65536, NO_PREALLOC);

/// Process id → when it last executed a program. The kernel forgets the least recently used.
#[map]
pub static EXECUTED: LruHashMap<u32, u64> = LruHashMap::with_max_entries(16384, 0);

/// What a worker had resident when it last could shrink.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Lowest {
    /// Pages, 0 = not read yet.
    pub pages: u64,
}

/// Process id → what it had resident at its lowest since it last grew. Made at a process's first call; exit and exec
/// remove.
#[map]
pub static RESIDENT: HashMap<u32, Lowest> = HashMap::with_max_entries(65536, NO_PREALLOC);

/// Process id → the signals that reached a worker. Exit and exec remove.
#[map]
pub static FATES: HashMap<u32, Fate> = HashMap::with_max_entries(65536, NO_PREALLOC);

/// Process id → its end; the agent asks for those that were not known as workers then and turn out to have been. The kernel forgets the least recently used.
#[map]
pub static ENDED: LruHashMap<u32, Life> = LruHashMap::with_max_entries(4096, 0);

/// CPU → where its share of the kernel's per-CPU memory lies, less the place within. Written once on each CPU.
#[map]
pub static CPU_OFFSETS: Array<u64> = Array::with_max_entries(1024, 0);

/// Some per-CPU memory, to learn from where it lies. Never written.
#[map]
pub static CPU_SHARE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Open call → what was tallied inside it. Programs write; the agent takes it when the call has ended; the kernel
/// forgets the least recently used.
#[map]
pub static TALLIES: LruHashMap<TallyKey, u64> = LruHashMap::with_max_entries(16384, 0);

/// Connection → where the exchange over it is. TLS programs write and remove; the kernel forgets the least recently
/// used. Of one entry unless these programs are in use.
#[map]
pub static CONNECTIONS: LruHashMap<ConnectionKey, Connection> = LruHashMap::with_max_entries(4096, 0);

/// Thread id → the read that it is in, on a connection above. Made at its entry, removed at its exit; else as above.
#[map]
pub static READINGS: LruHashMap<u32, Reading> = LruHashMap::with_max_entries(4096, 0);

/// One all-zero connection, to insert copies of. Never written.
#[map]
pub static ZERO_CONNECTION: Array<Connection> = Array::with_max_entries(1, 0);

/// Calls that get no records → how many, and how long. Programs write; the agent reads, and removes those of a process
/// that has ended.
#[map]
pub static AGGREGATES: PerCpuHashMap<AggregateKey, Aggregate> =
    PerCpuHashMap::with_max_entries(16384, NO_PREALLOC);

/// One all-zero count, to insert copies of. Never written.
#[map]
pub static ZERO_AGGREGATE: Array<Aggregate> = Array::with_max_entries(1, 0);

/// Records for the agent. Its pages are in the agent's memory twice, all of them at once.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// 0 → when the agent was last woken to drain a buffer that filled. Programs write and read.
#[map]
pub static WOKEN: Array<u64> = Array::with_max_entries(1, 0);

/// What was seen, sent and lost; see [`Counter`].
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_COUNT, 0);

/// Adds one to a counter.
#[inline(always)]
pub fn count(counter: Counter) {
    add(counter, 1);
}

/// Adds to a counter. Atomic, because a program can be preempted by another on its CPU.
#[inline(always)]
pub fn add(counter: Counter, amount: u64) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: an aligned u64 in the map, which outlives the program.
        unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) value, in(reg) amount) };
    }
}
