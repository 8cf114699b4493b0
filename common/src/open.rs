//! The calls that are open on a thread, as the kernel side keeps them in its maps and the agent reads them there.

use crate::probe::TEXT_BYTES;
use crate::record::{Exception, Operation, ProcessKey};
use crate::settings::MAX_DEPTH;

/// Bit of [`Frame::state`]: what was read at the entry stands in the `CAPTURES` map.
pub const CAPTURED: u32 = 1 << 31;

/// Bit of [`Frame::state`]: something is to be read when it returns, in it or in a call that goes on in it by a tail call.
pub const READS_AT_LEAVE: u32 = 1 << 30;

/// Bit of [`Frame::state`]: it gets no record when it returns, and no call inside names it.
pub const AGGREGATED: u32 = 1 << 29;
/// Bit of [`Frame::state`]: a call inside has got a record that names it.
pub const HOLDS_RECORD: u32 = 1 << 28;
/// Lowest bits of [`Frame::state`]: calls around it that are not [`AGGREGATED`].
pub const AROUND_MASK: u32 = 0xff;
/// Place of the bits of [`Frame::state`] that name the innermost of those: its index and one, 0 = none.
pub const VISIBLE_SHIFT: u32 = 8;

/// One open call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Frame {
    /// Address of its return address.
    pub slot: u64,
    /// When it was entered.
    pub start_ns: u64,
    /// Probe program.
    pub probe: u32,
    /// [`CAPTURED`], [`READS_AT_LEAVE`], [`AGGREGATED`], [`HOLDS_RECORD`]; [`AROUND_MASK`], [`VISIBLE_SHIFT`].
    pub state: u32,
    /// Resident pages of the process when it was entered, 0 = not known.
    pub pages: u32,
    /// The kernel's high-water mark of them then.
    pub mark_pages: u32,
}

/// A C++ exception between its throw and its catch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// For the programs alone.
    pub scratch: Scratch,
}

/// What the programs work on beside a stack of 512 bytes, which before Linux 6.13 all functions of a call share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Scratch {
    /// Registers by their x86 number, as far as they were read.
    pub registers: [u64; 16],
    /// The record of an exception.
    pub exception: Exception,
    /// What was last seen of the memory.
    pub seen: SeenMemory,
    /// Operations sent or lost, modulo 2^32.
    pub sent: u32,
    /// Zero.
    pub padding: u32,
}

/// A process's memory when one of its threads last looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SeenMemory {
    /// When, 0 = never.
    pub at_ns: u64,
    /// Resident pages.
    pub pages: u32,
    /// The kernel's high-water mark of them.
    pub mark_pages: u32,
}

/// The record of an open call, with room behind it: the verifier knows neither the place nor the size of a text, only
/// that both are bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Capture {
    /// The record as far as it is known.
    pub record: Operation,
    /// Written only by a probe program that the agent should not have made.
    pub slack: [u8; TEXT_BYTES],
}

const _: () = assert!(size_of::<Frame>() == 32);
const _: () = assert!(
    size_of::<Thread>()
        == 32 + MAX_FLIGHTS * size_of::<Flight>() + MAX_DEPTH * size_of::<Frame>() + size_of::<Scratch>()
);
const _: () = assert!(size_of::<Capture>() == size_of::<Operation>() + TEXT_BYTES);
