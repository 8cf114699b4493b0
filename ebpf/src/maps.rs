//! Every map: key, value, who writes, who reads, its bound, and who removes what is dead.

use core::arch::asm;

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use cadscope_common::{
    probe::{MAX_PROBES, ProbeProgram, TEXT_BYTES},
    record::{Operation, ProcessKey},
    settings::{COUNTERS as COUNTER_COUNT, Counter, MAX_DEPTH, Settings},
};

const NO_PREALLOC: u32 = 1;

/// One open call.
#[repr(C)]
pub struct Frame {
    /// Address of its return address.
    pub slot: u64,
    /// When it was entered.
    pub start_ns: u64,
    /// Probe program.
    pub probe: u32,
    /// Bit 31: it has a capture.
    pub state: u32,
}

/// A C++ exception between its throw and its catch.
#[repr(C)]
pub struct Flight {
    /// Its `_Unwind_Exception`.
    pub header: u64,
    /// Frames open when it was thrown, and not yet known to have been left. Only it can end them.
    pub floor: u64,
}

/// Exceptions in flight at once on one thread that are told apart: all but the last were thrown before a destructor
/// that threw and catches another.
pub const MAX_FLIGHTS: usize = 4;

/// The open calls of one thread, outermost first.
#[repr(C)]
pub struct Thread {
    /// Its process.
    pub process: ProcessKey,
    /// Frames in use.
    pub depth: u32,
    /// Entries `(tid, n)` exist in `CAPTURES` for n below this.
    pub captures: u32,
    /// Exceptions in flight.
    pub flights: u64,
    /// They, innermost last.
    pub flying: [Flight; MAX_FLIGHTS],
    /// The frames.
    pub frames: [Frame; MAX_DEPTH],
}

/// The record of an open call, with room behind it: the verifier knows neither the place nor the size of a text, only
/// that both are bounded.
#[repr(C)]
pub struct Capture {
    /// The record as far as it is known.
    pub record: Operation,
    /// Written only by a probe program that the agent should not have made.
    pub slack: [u8; TEXT_BYTES],
}

/// What the agent says before load. Written once by the agent, read-only for the programs.
#[unsafe(no_mangle)]
static SETTINGS: Settings =
    Settings { offsets: cadscope_common::settings::KernelOffsets::ZERO, only_targets: 0, padding: 0 };

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

/// Records for the agent.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(16 << 20, 0);

/// What was seen, sent and lost; see [`Counter`].
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_COUNT, 0);

/// Adds one to a counter. Atomic, because a program can be preempted by another on its CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: an aligned u64 in the map, which outlives the program.
        unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) value, in(reg) 1_u64) };
    }
}
