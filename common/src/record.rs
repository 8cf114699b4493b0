//! The records that the kernel side sends through the ring buffer.
//!
//! Each starts with a [`kind`](record_kind) as a `u32`; the receiver picks the struct by kind and checks the length.
//! Times are nanoseconds of `CLOCK_MONOTONIC`. `pid` is the process (thread group), `tid` the thread, both as the
//! initial PID namespace numbers them.

use crate::probe::{TEXT_BYTES, WORDS};

/// First word of every record.
pub mod record_kind {
    /// [`Operation`](super::Operation): a call ended.
    pub const OPERATION: u32 = 1;
    /// [`Exception`](super::Exception): a C++ exception ended the operations that follow and name it.
    pub const EXCEPTION: u32 = 2;
    /// [`Life`](super::Life): a worker forked.
    pub const FORK: u32 = 3;
    /// [`Life`](super::Life): a worker replaced its program.
    pub const EXEC: u32 = 4;
    /// [`Life`](super::Life): a worker ended (its last thread is gone).
    pub const EXIT: u32 = 5;
    /// [`Resident`](super::Resident): a worker's memory is about to change after it has grown.
    pub const RESIDENT: u32 = 6;
    /// [`OutOfMemory`](super::OutOfMemory): the kernel chose a process to kill.
    pub const OUT_OF_MEMORY: u32 = 7;
    /// [`Exchange`](crate::tls::Exchange): a request over TLS was answered, or will not be.
    pub const EXCHANGE: u32 = 8;
}

/// How a call ended.
pub mod ended_by {
    /// It returned.
    pub const RETURN: u8 = 0;
    /// A C++ exception left it.
    pub const EXCEPTION: u8 = 1;
    /// `longjmp` or another jump left it: its frame was found abandoned.
    pub const JUMP: u8 = 2;
    /// Its thread ended.
    pub const THREAD_EXIT: u8 = 3;
    /// Its process ended by itself.
    pub const PROCESS_EXIT: u8 = 4;
    /// A signal ended its process; the number is in [`super::Operation::signal`].
    pub const SIGNAL: u8 = 5;
    /// Its process replaced its program.
    pub const EXEC: u8 = 6;
}

/// Identity of a process: PIDs are reused, start times are not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct ProcessKey {
    /// Thread group id in the initial PID namespace.
    pub pid: u32,
    /// Zero.
    pub padding: u32,
    /// `task_struct::start_boottime` of the group leader, in nanoseconds since boot.
    pub start_boottime_ns: u64,
}

/// A call that ended; `(tid, start_ns)` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Operation {
    /// [`record_kind::OPERATION`].
    pub kind: u32,
    /// Index of the probe program.
    pub probe: u32,
    /// The process.
    pub process: ProcessKey,
    /// The thread.
    pub tid: u32,
    /// Operations that were open on this thread when this one began.
    pub depth: u32,
    /// When it began.
    pub start_ns: u64,
    /// When it ended.
    pub end_ns: u64,
    /// `start_ns` of the operation around it on the same thread, 0 = none.
    pub parent_start_ns: u64,
    /// `id` of the [`Exception`] record that ended it, 0 = none.
    pub exception: u64,
    /// See [`ended_by`].
    pub ended_by: u8,
    /// Signal number if a signal ended the process.
    pub signal: u8,
    /// Bit n: fetch n could not be read.
    pub unread: u16,
    /// Bytes of `text` that follow in this record.
    pub text_len: u32,
    /// Resident pages of the process when it began; 0 = not known.
    pub entry_pages: u32,
    /// Resident pages when it ended; 0 = not known, its process was gone.
    pub exit_pages: u32,
    /// The process's own high-water mark in pages if it rose inside the operation, else 0.
    pub peak_pages: u32,
    /// Zero.
    pub padding: u32,
    /// What the integer fetches read.
    pub words: [u64; WORDS],
    /// What the text fetches read: each NUL-terminated in its blocks. The record is cut after `text_len` bytes.
    pub text: [u8; TEXT_BYTES],
}

/// Bytes of an [`Operation`] record before its words. A record of a call without values ends here.
pub const OPERATION_BARE_BYTES: usize = 88;

/// Bytes of an [`Operation`] record before its text.
pub const OPERATION_HEAD_BYTES: usize = OPERATION_BARE_BYTES + 8 * WORDS;

/// Bytes of a C++ type name kept.
pub const TYPE_NAME_BYTES: usize = 128;

/// A C++ exception that left at least one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Exception {
    /// [`record_kind::EXCEPTION`].
    pub kind: u32,
    /// The thread.
    pub tid: u32,
    /// The process.
    pub process: ProcessKey,
    /// Names it in the operations it ended: the time at which it was caught.
    pub id: u64,
    /// Mangled name of its type (`16Standard_Failure`), NUL-terminated; empty for a foreign exception.
    pub type_name: [u8; TYPE_NAME_BYTES],
}

/// Bytes of a process's name.
pub const NAME_BYTES: usize = 16;

/// A step in the life of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Life {
    /// [`record_kind::FORK`], [`record_kind::EXEC`] or [`record_kind::EXIT`].
    pub kind: u32,
    /// Exit: the status as `wait` reports it (`exit code << 8 | core dump << 7 | signal`).
    pub status: u32,
    /// The process; for a fork the parent.
    pub process: ProcessKey,
    /// For a fork the child.
    pub child: ProcessKey,
    /// When.
    pub at_ns: u64,
    /// Exit: CPU time of all its threads.
    pub cpu_ns: u64,
    /// Exit: most pages it ever had resident.
    pub peak_pages: u64,
    /// Exit: what was sent to it.
    pub fate: Fate,
}

/// Signals that end a process, as far as they reached it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fate {
    /// The last signal that would end it, 0 = none.
    pub sent: u32,
    /// Who sent it; itself for a fault.
    pub sender: u32,
    /// The sender's name.
    pub sender_name: [u8; NAME_BYTES],
    /// The last fault (SIGSEGV, SIGABRT, …) that was delivered, 0 = none.
    pub fault: u32,
    /// On which thread.
    pub fault_tid: u32,
    /// With which stack pointer.
    pub fault_sp: u64,
    /// 1 = the process ended from within the handler of that fault.
    pub handled: u32,
    /// Zero.
    pub padding: u32,
}

/// A worker's resident memory at a moment after which it may shrink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Resident {
    /// [`record_kind::RESIDENT`].
    pub kind: u32,
    /// The process.
    pub pid: u32,
    /// When.
    pub at_ns: u64,
    /// Pages.
    pub pages: u64,
}

/// The kernel chose a process to kill because memory ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct OutOfMemory {
    /// [`record_kind::OUT_OF_MEMORY`].
    pub kind: u32,
    /// Steps from the victim's cgroup up to the one that was full; [`NO_LIMIT`] if none was: the machine was.
    pub level: u32,
    /// The victim.
    pub process: ProcessKey,
    /// When.
    pub at_ns: u64,
    /// Resident pages of the victim, 0 = not known.
    pub pages: u64,
    /// Limit of the full cgroup in pages.
    pub limit_pages: u64,
    /// Who asked for memory.
    pub asking_pid: u32,
    /// Zero.
    pub padding: u32,
}

/// [`OutOfMemory::level`] where no cgroup was at its limit.
pub const NO_LIMIT: u32 = u32::MAX;

const _: () = assert!(size_of::<ProcessKey>() == 16);
const _: () = assert!(size_of::<Operation>() == OPERATION_HEAD_BYTES + TEXT_BYTES);
const _: () = assert!(size_of::<Exception>() == 32 + TYPE_NAME_BYTES);
const _: () = assert!(size_of::<Fate>() == 48);
const _: () = assert!(size_of::<Life>() == 64 + size_of::<Fate>());
const _: () = assert!(size_of::<Resident>() == 24);
const _: () = assert!(size_of::<OutOfMemory>() == 56);
