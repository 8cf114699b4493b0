//! Turns the bytes of an ELF file into sites: where to probe so that every call's begin and end is seen.
//!
//! Pure: bytes in, values out; no I/O, no clock. Whatever the bytes are, the answer is a value, in bounded time.
//! What cannot be placed with certainty is refused with the reason: a probe inside an instruction corrupts the
//! worker, and one at the wrong exit reports nonsense.

mod a64;
mod bytes;
mod elf;
mod exits;
mod frames;
mod instruction;
mod placement;
mod x86;

pub use elf::{ElfFile, Machine, Symbol};
pub use placement::{FollowPolicy, Placement};

use cadscope_common::cookie::{Base, Edge};

/// An offset into a file, in bytes: what a uprobe is placed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileOffset(pub u64);

/// A virtual address as the ELF file states it, before relocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vaddr(pub u64);

/// How the kernel runs the probed instruction, which decides what a hit costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SiteClass {
    /// It emulates it: about half a microsecond in a VM.
    Emulated,
    /// It single-steps a copy of it: about ten microseconds in a VM.
    SingleStep,
}

/// One place to probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    /// Where.
    pub offset: FileOffset,
    /// The same place as the ELF file addresses it.
    pub vaddr: Vaddr,
    /// What it marks.
    pub edge: Edge,
    /// Register that the slot is counted from.
    pub base: Base,
    /// Bytes from that register to the slot (the address of the return address).
    pub distance: i32,
    /// Number of the register that holds the return value here;
    /// [`cadscope_common::cookie::RETURN_NOT_FINAL`] if it is not final.
    pub return_register: u8,
    /// What a hit costs.
    pub class: SiteClass,
}

/// What a function's exit is made of, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A `ret` (marked there or at an emulated instruction that always leads to it).
    Return,
    /// A tail call that ends the operation at the jump: the callee, named if known, is not part of it.
    TailCall(Option<String>),
    /// A tail call into the function that does the work; the operation ends where that one returns.
    Followed(String),
}

/// All sites of one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sites {
    /// The entry.
    pub entry: Site,
    /// Every way out, with what it is.
    pub exits: Vec<(Site, Exit)>,
    /// Some exit is followed into another function: the frame's slot is kept across the jump.
    pub tail_calls: bool,
    /// For each site that the kernel single-steps, sorted, why no instruction that it emulates tells the same.
    pub obstacles: Vec<(Vaddr, Obstacle)>,
}

impl Sites {
    /// Why a site is single-stepped.
    #[must_use]
    pub fn obstacle(&self, site: &Site) -> Option<Obstacle> {
        let found = self.obstacles.binary_search_by_key(&site.vaddr, |(at, _)| *at);
        found.ok().and_then(|index| self.obstacles.get(index)).map(|(_, obstacle)| *obstacle)
    }
}

/// What ends the search for an emulated instruction that tells the same as a single-stepped one, with the address where
/// it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Obstacle {
    /// Between it and the site is nothing that the kernel emulates.
    #[error("a call at {0:#x} lies between, during which the operation goes on")]
    Call(u64),
    /// From it control may not reach the site.
    #[error("control may go elsewhere at {0:#x}")]
    Branch(u64),
    /// It is reached from several places.
    #[error("several ways meet at {0:#x}")]
    Meeting(u64),
    /// An observer reads what it changes.
    #[error("the instruction at {0:#x} changes an object or an argument")]
    Change(u64),
    /// The return value is read, and comes into being behind it.
    #[error("what is returned is not known yet at {0:#x}")]
    ReturnNotFinal(u64),
    /// The function leaves there through a register or memory, which is never emulated.
    #[error("the function leaves at {0:#x} through a register or memory")]
    IndirectJump(u64),
    /// The code begins there.
    #[error("the code begins at {0:#x}")]
    Start(u64),
    /// So many instructions were looked at.
    #[error("nothing emulated within {0} instructions")]
    Far(usize),
}

/// Why a function of this file cannot be observed correctly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unplaceable {
    /// The file does not define the symbol.
    #[error("not in this file")]
    Absent,
    /// The symbol is there but is no function with code.
    #[error("symbol is not a function with code")]
    NotCode,
    /// No .eh_frame entry starts at the function.
    #[error("no frame description starts at the function")]
    NoFrame,
    /// An instruction could not be decoded.
    #[error("instruction at {0:#x} cannot be decoded")]
    Undecodable(u64),
    /// The kernel puts no probe on the instruction (`lock` and segment prefixes; exclusive loads, `retaa`).
    #[error("instruction at {0:#x} cannot be probed")]
    Unprobeable(u64),
    /// A jump through a register or memory that is neither a jump table nor provably a tail call.
    #[error("indirect jump at {0:#x} is neither a known jump table nor a tail call")]
    IndirectJump(u64),
    /// A conditional jump that leaves for another file: whether it is an exit is not known where it stands.
    #[error("conditional tail call at {0:#x}")]
    ConditionalTailCall(u64),
    /// A loop runs over the entry, so that nothing in it is executed once a call.
    #[error("the entry is the head of a loop")]
    EntryRepeats,
    /// The work is done by a function of another file, or by a virtual one, that it jumps to.
    #[error("its work is done by {}, in another file", .0.as_deref().unwrap_or("a virtual function"))]
    WorkElsewhere(Option<String>),
    /// A callee that does the work could not be followed.
    #[error("the end of its work cannot be placed")]
    NoExit,
    /// The distance from stack pointer to frame is not known where a probe must be.
    #[error("frame distance unknown at {0:#x}")]
    NoDistance(u64),
    /// Larger than what is looked at.
    #[error("function of {0} bytes is too large")]
    TooLarge(u64),
}

/// Why a file as a whole cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Not an ELF file that is understood (64-bit little-endian, x86-64 or arm64, shared object or executable).
    #[error("not an ELF file of a known machine: {0}")]
    NotElf(String),
    /// Its code is for another machine than this one.
    #[error("its code is for another machine")]
    OtherMachine,
    /// A table lies outside the file or contradicts another.
    #[error("damaged ELF file: {0}")]
    Damaged(String),
}
