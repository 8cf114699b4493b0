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
    /// [`Mapping`](super::Mapping): a process mapped a file executable.
    pub const MAPPING: u32 = 3;
    /// [`Life`](super::Life): a worker forked.
    pub const FORK: u32 = 4;
    /// [`Life`](super::Life): a worker replaced its program.
    pub const EXEC: u32 = 5;
    /// [`Life`](super::Life): a worker ended (its last thread is gone).
    pub const EXIT: u32 = 6;
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

/// Identity of a file on this node, as the kernel sees it below overlays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FileKey {
    /// Inode number.
    pub inode: u64,
    /// Device of the super block, kernel encoding (`major << 20 | minor`).
    pub device: u32,
    /// Inode generation: tells a reused inode number.
    pub generation: u32,
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
    /// What the integer fetches read.
    pub words: [u64; WORDS],
    /// What the text fetches read: each NUL-terminated in its blocks. The record is cut after `text_len` bytes.
    pub text: [u8; TEXT_BYTES],
}

/// Bytes of an [`Operation`] record before its text.
pub const OPERATION_HEAD_BYTES: usize = 72 + 8 * WORDS;

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

/// Bytes of a file name kept.
pub const FILE_NAME_BYTES: usize = 128;

/// A process mapped a file executable that is new or is known to hold probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Mapping {
    /// [`record_kind::MAPPING`].
    pub kind: u32,
    /// The thread that called mmap.
    pub tid: u32,
    /// The process.
    pub process: ProcessKey,
    /// The file.
    pub file: FileKey,
    /// First address of the mapping.
    pub start: u64,
    /// Address after the mapping.
    pub end: u64,
    /// When.
    pub at_ns: u64,
    /// When the process last executed a program, 0 = before the agent.
    pub exec_ns: u64,
    /// Last component of the file's name, NUL-terminated.
    pub name: [u8; FILE_NAME_BYTES],
}

/// A step in the life of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Life {
    /// [`record_kind::FORK`], [`record_kind::EXEC`] or [`record_kind::EXIT`].
    pub kind: u32,
    /// Exit: the status as `wait` reports it (`exit code << 8 | signal`).
    pub status: u32,
    /// The process; for a fork the parent.
    pub process: ProcessKey,
    /// For a fork the child.
    pub child: ProcessKey,
    /// When.
    pub at_ns: u64,
}

const _: () = assert!(size_of::<ProcessKey>() == 16);
const _: () = assert!(size_of::<FileKey>() == 16);
const _: () = assert!(size_of::<Operation>() == OPERATION_HEAD_BYTES + TEXT_BYTES);
const _: () = assert!(size_of::<Exception>() == 32 + TYPE_NAME_BYTES);
const _: () = assert!(size_of::<Mapping>() == 72 + FILE_NAME_BYTES);
const _: () = assert!(size_of::<Life>() == 48);
