//! What is asked of an instruction, whatever its set: [`super::x86`] and [`super::a64`] answer.

use super::bytes::{u16_at, u32_at, u64_at};
use super::elf::ElfFile;
use super::frames::{Distance, Frame};
use super::{SiteClass, Unplaceable};

/// Most entries of one jump table.
pub(super) const MOST_TABLE_ENTRIES: u64 = 4096;
/// How far before an indirect jump its table is looked for, in instructions.
const TABLE_WINDOW: usize = 24;

/// Where control goes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// To the next one.
    Next,
    /// To the caller.
    Return,
    /// There, always.
    Jump(u64),
    /// There, or to the next one.
    Branch(u64),
    /// Where a register or memory says.
    IndirectJump,
    /// There, and back unless it gives up.
    Call(u64),
    /// Where a register or memory says, and back.
    IndirectCall,
    /// Into the kernel, and back.
    Interrupt,
    /// Nowhere: it stops the process.
    Stop,
    /// Where is not known, and nobody compiles it.
    Unknown,
}

/// An instruction at its address.
pub(super) trait Instruction: Copy {
    /// Where the slot is at a function's first instruction, at its return and at a tail call.
    const AT_SLOT: Distance;
    /// What is kept from question to question because it is dear to make.
    type Scratch: Default;

    /// All of the code at an address; all of it must be instructions.
    fn decode(code: &[u8], start: u64) -> Result<Vec<Self>, Unplaceable>;
    /// The first one that does something, which a mark of a function's start does not.
    fn first(code: &[u8], start: u64) -> Option<Self>;
    /// Its address.
    fn at(&self) -> u64;
    /// Address after it.
    fn end(&self) -> u64;
    /// Where control goes.
    fn flow(&self) -> Flow;
    /// It marks a function's start and does nothing that is observed.
    fn is_mark(&self) -> bool;
    /// How the kernel runs it under a probe; none if it refuses to probe it, or should.
    fn class(&self, file: &ElfFile<'_>) -> Option<SiteClass>;
    /// The GOT's slot through which an indirect jump or call goes.
    fn slot(&self) -> Option<u64>;
    /// The GOT's slot through which the PLT's stub at an address jumps.
    fn stub_slot(code: &[u8], start: u64) -> Option<u64>;
    /// The table by which an indirect jump behind this code finds its way.
    fn jump_table(before: &[Self], jump: &Self) -> Option<JumpTable>;
    /// Whether an indirect jump looks like that of a jump table, though the table was not found.
    fn is_table_like(before: &[Self], jump: &Self) -> bool;
    /// Whether a jump leads to an instruction that the linker moved, and behind it back.
    fn is_detour(&self, file: &ElfFile<'_>, to: u64) -> bool;
    /// Whether after it the argument registers and all memory but the own frame are as before, and the next one follows.
    fn keeps_arguments(&self, scratch: &mut Self::Scratch, frame: &Frame) -> bool;
    /// Where the value that a register holds after it was before, if it was anywhere. None if the instruction writes
    /// memory other than the own frame.
    fn before(&self, scratch: &mut Self::Scratch, frame: &Frame, register: Option<u8>) -> Option<Option<u8>>;

    /// Whether the next instruction can follow.
    fn falls_through(&self) -> bool {
        !matches!(self.flow(), Flow::Jump(_) | Flow::IndirectJump | Flow::Return | Flow::Stop)
    }
}

/// The last instructions that run one after another before a jump, conditional jumps out of them aside.
pub(super) fn straight<I: Instruction>(before: &[I]) -> &[I] {
    let window = before.get(before.len().saturating_sub(TABLE_WINDOW)..).unwrap_or_default();
    let start =
        window.iter().rposition(|instruction| !instruction.falls_through()).map_or(0, |last| last + 1);
    window.get(start..).unwrap_or_default()
}

/// A jump table: where it lies and how its entries name their targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JumpTable {
    /// Its address.
    pub(super) at: u64,
    /// What an entry is.
    pub(super) entry: Entry,
    /// Number of entries, if a comparison before the jump tells.
    pub(super) count: Option<u64>,
}

/// What an entry of a jump table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// The target's address, 64 bits.
    Address,
    /// Its distance.
    Distance {
        /// From here.
        origin: u64,
        /// Size of the entry.
        bytes: u64,
        /// It can be negative.
        is_signed: bool,
        /// It counts units of so many bits to the left.
        shift: u32,
    },
}

impl Entry {
    fn target(self, table: &[u8], index: u64) -> Option<u64> {
        let Self::Distance { origin, bytes, is_signed, shift } = self else {
            return u64_at(table, index * 8);
        };
        let (at, bits) = (index * bytes, u32::try_from(bytes * 8).ok()?);
        let number = match bytes {
            1 => u64::from(*table.get(usize::try_from(at).ok()?)?),
            2 => u64::from(u16_at(table, at)?),
            4 => u64::from(u32_at(table, at)?),
            _ => return None,
        };
        let unused = 64 - bits;
        let number =
            if is_signed { ((number << unused).cast_signed() >> unused).cast_unsigned() } else { number };
        Some(origin.wrapping_add(number << shift))
    }
}

impl JumpTable {
    /// Where it leads. Without a known count, as far as its entries are instructions of the body.
    pub(super) fn targets(self, file: &ElfFile<'_>, is_instruction: impl Fn(u64) -> bool) -> Vec<u64> {
        let Some(bytes) = file.bytes_at(self.at) else { return Vec::new() };
        let mut targets = Vec::new();
        for index in 0..self.count.unwrap_or(MOST_TABLE_ENTRIES).min(MOST_TABLE_ENTRIES) {
            match self.entry.target(bytes, index) {
                Some(target) if self.count.is_some() || is_instruction(target) => targets.push(target),
                _ => break,
            }
        }
        targets.sort_unstable();
        targets.dedup();
        targets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_addresses_or_distances_of_their_size() {
        let table = [0xff, 0xff, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00];
        let distance = |bytes, is_signed, shift| Entry::Distance { origin: 0x1000, bytes, is_signed, shift };
        assert_eq!(distance(1, true, 2).target(&table, 1), Some(0xffc));
        assert_eq!(distance(1, false, 2).target(&table, 1), Some(0x13fc));
        assert_eq!(distance(2, true, 0).target(&table, 1), Some(0x1001));
        assert_eq!(distance(4, true, 0).target(&table, 0), Some(0x2_0fff));
        assert_eq!(distance(4, true, 0).target(&table, 2), None);
        assert_eq!(Entry::Address.target(&table, 0), Some(0x1_ffff));
    }
}
