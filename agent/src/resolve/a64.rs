//! The instruction set of arm64: where control goes, jump tables as GCC and Clang write them, and what the kernel does
//! under a probe.
//!
//! Every instruction is one word at a multiple of four, so that none can be missed, and only those that are asked for
//! are taken apart. Registers are numbers: 0 to 30, and 31 for the stack pointer or zero.

use cadscope_common::cookie::Base;

use super::elf::ElfFile;
use super::frames::{Distance, Frame};
use super::instruction::{Entry, Flow, Instruction, JumpTable, MOST_TABLE_ENTRIES, straight};
use super::{SiteClass, Unplaceable};

/// How far before an indirect jump its table's address may have been loaded, outside a loop.
const BASE_WINDOW: usize = 2048;
const STACK_POINTER: u32 = 31;
const LINK: u32 = 30;

/// An instruction at its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word {
    at: u64,
    word: u32,
}

impl Word {
    const fn is(self, mask: u32, value: u32) -> bool {
        self.word & mask == value
    }

    /// Bits from `low`, as many as asked for.
    const fn bits(self, low: u32, count: u32) -> u32 {
        self.word >> low & ((1 << count) - 1)
    }

    /// The register that most instructions write.
    const fn rd(self) -> u32 {
        self.bits(0, 5)
    }

    const fn rn(self) -> u32 {
        self.bits(5, 5)
    }

    const fn rm(self) -> u32 {
        self.bits(16, 5)
    }

    /// The address at a signed distance of so many words that lies in these bits.
    fn to(self, low: u32, count: u32) -> u64 {
        self.at.wrapping_add((signed(self.bits(low, count), count) << 2).cast_unsigned())
    }

    /// What `adr` makes, and `adrp`.
    fn address(self) -> Option<u64> {
        let number = signed(self.bits(5, 19) << 2 | self.bits(29, 2), 21);
        if self.is(0x9f00_0000, 0x1000_0000) {
            Some(self.at.wrapping_add(number.cast_unsigned()))
        } else if self.is(0x9f00_0000, 0x9000_0000) {
            Some((self.at & !0xfff).wrapping_add((number << 12).cast_unsigned()))
        } else {
            None
        }
    }

    /// A hint, by its number.
    fn hint(self) -> Option<u32> {
        self.is(0xffff_f01f, 0xd503_201f).then(|| self.bits(5, 7))
    }

    /// Loads or stores of one register or two, at most with an address that counts on.
    const fn is_plain_store(self) -> bool {
        // stp, stnp; str and stur with an immediate: bit 22 (23 in those of 128 bits, too) says load.
        self.is(0x3a40_0000, 0x2800_0000)
            || self.is(0x3b20_0000, 0x3800_0000) && self.is_store_size()
            || self.is(0x3b00_0000, 0x3900_0000) && self.is_store_size()
    }

    const fn is_store_size(self) -> bool {
        let is_vector = self.bits(26, 1) == 1;
        self.bits(22, 2) == 0 || is_vector && self.bits(30, 2) == 0 && self.bits(22, 2) == 2
    }

    /// It changes this register, or may: what is named first is not always written.
    fn may_write(self, register: u32) -> bool {
        match self.flow() {
            Flow::Call(_) | Flow::IndirectCall | Flow::Interrupt => matches!(register, 0..=18 | LINK),
            Flow::Next => {
                let is_load_of_two = self.is(0x3a40_0000, 0x2840_0000) && self.bits(10, 5) == register;
                // With an address that counts on: of two registers, of one.
                let counts = self.is(0x3a80_0000, 0x2880_0000) || self.is(0x3b20_0400, 0x3800_0400);
                is_load_of_two
                    || counts && self.rn() == register
                    || self.rd() == register && !self.is_plain_store()
            }
            _ => false,
        }
    }
}

/// A number of so many bits with its sign.
fn signed(number: u32, bits: u32) -> i64 {
    let unused = 64 - bits;
    (u64::from(number) << unused).cast_signed() >> unused
}

impl Instruction for Word {
    /// The return address is in a register; the frame is named as on x86-64 nevertheless.
    const AT_SLOT: Distance = Distance { base: Base::StackPointer, bytes: -8 };
    type Scratch = ();

    fn decode(code: &[u8], start: u64) -> Result<Vec<Self>, Unplaceable> {
        let (words, []) = code.as_chunks() else { return Err(Unplaceable::Undecodable(start)) };
        let mut at = start;
        let mut decoded = Vec::with_capacity(words.len());
        for word in words {
            decoded.push(Self { at, word: u32::from_le_bytes(*word) });
            at = at.wrapping_add(4);
        }
        if start.is_multiple_of(4) { Ok(decoded) } else { Err(Unplaceable::Undecodable(start)) }
    }

    fn first(code: &[u8], start: u64) -> Option<Self> {
        let words = Self::decode(code.get(..8)?, start).ok()?;
        words.into_iter().find(|word| !word.is_mark()).filter(|word| word.flow() != Flow::Unknown)
    }

    fn at(&self) -> u64 {
        self.at
    }

    fn end(&self) -> u64 {
        self.at.wrapping_add(4)
    }

    fn flow(&self) -> Flow {
        match self.bits(25, 4) {
            // `udf` with any number, which nobody would come back from; other words of these groups are none.
            0 if self.bits(16, 16) == 0 => return Flow::Stop,
            0 | 1 | 3 => return Flow::Unknown,
            10 | 11 => {}
            _ => return Flow::Next,
        }
        match self.bits(26, 6) {
            0b00_0101 => return Flow::Jump(self.to(0, 26)),
            0b10_0101 => return Flow::Call(self.to(0, 26)),
            _ => {}
        }
        match self.bits(24, 8) {
            // b.cond, cbz, cbnz.
            0x54 | 0x34 | 0x35 | 0xb4 | 0xb5 => Flow::Branch(self.to(5, 19)),
            // tbz, tbnz.
            0x36 | 0x37 | 0xb6 | 0xb7 => Flow::Branch(self.to(5, 14)),
            0xd4 if self.is(0xffe0_001f, 0xd400_0001) => Flow::Interrupt,
            // brk and hlt.
            0xd4 if self.is(0xffe0_001f, 0xd420_0000) || self.is(0xffe0_001f, 0xd440_0000) => Flow::Stop,
            0xd5 => Flow::Next,
            0xd6 | 0xd7 => self.register_flow(),
            _ => Flow::Unknown,
        }
    }

    fn is_mark(&self) -> bool {
        // bti with any target, paciasp, pacibsp.
        matches!(self.hint(), Some(32 | 34 | 36 | 38 | 25 | 27))
    }

    /// After `arm_probe_decode_insn` and `aarch64_insn_is_steppable` of arch/arm64/kernel/probes (Linux 5.15 to 6.18).
    fn class(&self, _: &ElfFile<'_>) -> Option<SiteClass> {
        self.kernel_class()
    }

    fn slot(&self) -> Option<u64> {
        None
    }

    fn stub_slot(code: &[u8], start: u64) -> Option<u64> {
        let stub = Self::decode(code.get(..code.len() / 4 * 4)?, start).ok()?;
        let stub = if stub.first()?.hint().is_some() { stub.get(1..)? } else { &stub };
        let [page, load, ..] = stub else { return None };
        // adrp x16, page; ldr x17, [x16, #within]
        (page.is(0x9f00_001f, 0x9000_0010) && load.is(0xffc0_03ff, 0xf940_0211))
            .then(|| Some(page.address()?.wrapping_add(u64::from(load.bits(10, 12)) * 8)))?
    }

    fn jump_table(before: &[Self], jump: &Self) -> Option<JumpTable> {
        let window = straight(before);
        let (earlier, add) = last_writer(window, jump.rn())?;
        let (shift, sign) = add.scaled_sum()?;
        // One summand is an address, the other the entry.
        let entry_of = |origin: u32, entry: u32| {
            let (_, load) = last_writer(earlier, entry)?;
            Some((address_in(before, earlier, origin)?, load.table_load()?))
        };
        let found = entry_of(add.rn(), add.rm());
        let found = if shift == 0 { found.or_else(|| entry_of(add.rm(), add.rn())) } else { found };
        let (origin, load) = found?;
        let at = address_in(before, earlier, load.base)?;
        let (bytes, is_signed) = (load.bytes, load.is_signed || sign);
        Some(JumpTable {
            at,
            entry: Entry::Distance { origin, bytes, is_signed, shift },
            count: bound(window, load.index),
        })
    }

    fn is_table_like(before: &[Self], jump: &Self) -> bool {
        let window = straight(before);
        last_writer(window, jump.rn()).is_some_and(|(_, writer)| {
            writer.scaled_sum().is_some()
                // A load with a scaled index.
                || writer.is(0xffe0_0c00, 0xf860_0800) && writer.bits(12, 1) == 1
        })
    }

    /// A linker moves some loads out of the way of an erratum of the Cortex-A53.
    fn is_detour(&self, file: &ElfFile<'_>, to: u64) -> bool {
        let code = to.checked_add(8).and_then(|end| file.code(to, end));
        let Some(Ok(words)) = code.map(|code| Self::decode(code, to)) else { return false };
        matches!(words[..], [moved, back] if moved.flow() == Flow::Next && back.flow() == Flow::Jump(self.end()))
    }

    fn keeps_arguments(&self, (): &mut (), _: &Frame) -> bool {
        if self.is_plain_store() {
            return self.rn() == STACK_POINTER;
        }
        // add and sub with an immediate, a register moved, adr, adrp.
        let makes_one = self.is(0x1f80_0000, 0x1100_0000)
            || self.is(0x7fe0_ffe0, 0x2a00_03e0)
            || self.is(0x1f00_0000, 0x1000_0000);
        self.is_mark() || self.hint() == Some(0) || makes_one && self.rd() > 8
    }

    /// Not needed: the kernel emulates `ret`, so that no cheaper place before it is looked for.
    fn before(&self, (): &mut (), _: &Frame, _: Option<u8>) -> Option<Option<u8>> {
        None
    }
}

impl Word {
    /// Jumps, calls and returns through a register, with and without authentication.
    fn register_flow(self) -> Flow {
        match (self.word >> 10, self.rd()) {
            // br; braaz and brabz; braa and brab.
            (0x35_87c0, 0) | (0x35_87c2 | 0x35_87c3, 31) | (0x35_c7c2 | 0x35_c7c3, _) => Flow::IndirectJump,
            (0x35_8fc0, 0) | (0x35_8fc2 | 0x35_8fc3, 31) | (0x35_cfc2 | 0x35_cfc3, _) => Flow::IndirectCall,
            (0x35_97c0, 0) if self.rn() == LINK => Flow::Return,
            // Back to where another register says, as the linker's and compiler's helpers for prologues do.
            (0x35_97c0, 0) => Flow::IndirectJump,
            (0x35_97c2 | 0x35_97c3, 31) if self.rn() == STACK_POINTER => Flow::Return,
            _ => Flow::Unknown,
        }
    }

    fn kernel_class(self) -> Option<SiteClass> {
        let (steps, emulates) = (Some(SiteClass::SingleStep), Some(SiteClass::Emulated));
        match self.flow() {
            Flow::Unknown | Flow::Stop | Flow::Interrupt => None,
            // b.cond with bit 4 is `bc.cond`, which the kernel does not know.
            Flow::Branch(_) => {
                if self.is(0xff00_0010, 0x5400_0010) {
                    None
                } else {
                    emulates
                }
            }
            Flow::Jump(_) | Flow::Call(_) => emulates,
            // With authentication there is more to do than it does.
            Flow::Return | Flow::IndirectJump | Flow::IndirectCall => {
                (self.bits(10, 6) == 0).then_some(SiteClass::Emulated)
            }
            Flow::Next if self.address().is_some() => emulates,
            // Loads relative to themselves, and loads and stores that must follow one another undisturbed.
            Flow::Next if self.is(0x3b00_0000, 0x1800_0000) || self.is(0x3f80_0000, 0x0800_0000) => None,
            // msr of a number or a register.
            Flow::Next if self.is(0xfff8_f01f, 0xd500_401f) || self.is(0xfff0_0000, 0xd510_0000) => None,
            Flow::Next => match self.hint() {
                // nop, xpaclri, pac…, bti.
                None | Some(0 | 7 | 8 | 10 | 24..=27 | 32 | 34 | 36 | 38) => steps,
                Some(_) => None,
            },
        }
    }

    /// `add` of two 64-bit registers: how far the second is shifted, and whether it is taken with its sign.
    fn scaled_sum(self) -> Option<(u32, bool)> {
        if self.is(0xffe0_0000, 0x8b20_0000) {
            // sxtb, sxth, sxtw.
            matches!(self.bits(13, 3), 4..=6).then(|| (self.bits(10, 3), true))
        } else {
            self.is(0xffe0_0000, 0x8b00_0000).then(|| (self.bits(10, 6), false))
        }
    }

    /// A load of one entry of a table, by its index in a register.
    fn table_load(self) -> Option<TableLoad> {
        let (bytes, is_signed) = match self.word & 0xffe0_0c00 {
            0x3860_0800 => (1, false),
            0x38a0_0800 => (1, true),
            0x7860_0800 => (2, false),
            0x78a0_0800 => (2, true),
            0xb860_0800 => (4, false),
            0xb8a0_0800 => (4, true),
            _ => return None,
        };
        let is_scaled = bytes == 1 || self.bits(12, 1) == 1;
        is_scaled.then(|| TableLoad { bytes, is_signed, base: self.rn(), index: self.rm() })
    }
}

/// A load from a table.
struct TableLoad {
    bytes: u64,
    is_signed: bool,
    base: u32,
    index: u32,
}

/// The last instruction that may write a register, and those before it.
fn last_writer(window: &[Word], register: u32) -> Option<(&[Word], Word)> {
    let at = window.iter().rposition(|word| word.may_write(register))?;
    Some((window.get(..at)?, *window.get(at)?))
}

/// The address that a register holds: by `adr`, or by `adrp` and `add`. It may have been loaded long before, outside a
/// loop; the table's entries tell whether it was this one.
fn address_in(before: &[Word], straight: &[Word], register: u32) -> Option<u64> {
    if let Some((_, word)) = last_writer(straight, register)
        && word.is(0x9f00_0000, 0x1000_0000)
    {
        return word.address();
    }
    let window = before.get(before.len().saturating_sub(BASE_WINDOW)..)?;
    let makes = |word: &Word| {
        word.rd() == register && (word.is(0xffc0_0000, 0x9100_0000) || word.is(0x9f00_0000, 0x1000_0000))
    };
    let at = window.iter().rposition(makes)?;
    let word = *window.get(at)?;
    if let Some(address) = word.address() {
        return Some(address);
    }
    let page =
        window.get(..at)?.iter().rfind(|page| page.rd() == word.rn() && page.is(0x9f00_0000, 0x9000_0000))?;
    Some(page.address()?.wrapping_add(u64::from(word.bits(10, 12))))
}

/// Number of table entries, from the last comparison of the index before the jump: `cmp index, last; b.hi default`.
fn bound(window: &[Word], index: u32) -> Option<u64> {
    let at = window.iter().rposition(|word| word.is(0x7fc0_001f, 0x7100_001f))?;
    let compare = window.get(at)?;
    let is_guarded = window.get(at + 1..)?.iter().any(|word| word.is(0xff00_001f, 0x5400_0008));
    (is_guarded && compare.rn() == index)
        .then(|| u64::from(compare.bits(10, 12)) + 1)
        .filter(|count| *count <= MOST_TABLE_ENTRIES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::elf::tests::fixture::{CODE, Fixture};
    use super::*;

    fn words(code: &[u32]) -> Vec<Word> {
        let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        Word::decode(&bytes, 0x1_0000).unwrap()
    }

    fn word(word: u32) -> Word {
        Word { at: 0x1_0000, word }
    }

    #[test]
    fn control_goes_where_the_instruction_says() {
        for (code, flow) in [
            (0xd65f_03c0, Flow::Return),           // ret
            (0xd65f_0bff, Flow::Return),           // retaa
            (0xd65f_0220, Flow::IndirectJump),     // ret x17
            (0x1400_0002, Flow::Jump(0x1_0008)),   // b +8
            (0x17ff_ffff, Flow::Jump(0xfffc)),     // b -4
            (0x9400_0001, Flow::Call(0x1_0004)),   // bl +4
            (0xd61f_0220, Flow::IndirectJump),     // br x17
            (0xd63f_0060, Flow::IndirectCall),     // blr x3
            (0xd71f_0a30, Flow::IndirectJump),     // braa x17, x16
            (0x5400_0048, Flow::Branch(0x1_0008)), // b.hi +8
            (0xb4ff_ffe0, Flow::Branch(0xfffc)),   // cbz x0, -4
            (0x3707_ffe0, Flow::Branch(0xfffc)),   // tbnz w0, 0, -4
            (0xd400_0001, Flow::Interrupt),        // svc 0
            (0xd420_0020, Flow::Stop),             // brk 1
            (0x0000_0000, Flow::Stop),             // udf 0
            (0xd503_201f, Flow::Next),             // nop
            (0xa9bd_7bfd, Flow::Next),             // stp x29, x30, [sp, -48]!
            (0x0200_0000, Flow::Unknown),
            (0xd69f_03e0, Flow::Unknown), // eret
        ] {
            assert_eq!(word(code).flow(), flow, "{code:x}");
        }
    }

    #[test]
    fn classes_are_the_kernels() {
        use SiteClass::{Emulated, SingleStep};
        for (code, class) in [
            (0xd65f_03c0, Some(Emulated)),   // ret
            (0xd65f_0bff, None),             // retaa
            (0x1400_0002, Some(Emulated)),   // b
            (0xd61f_0220, Some(Emulated)),   // br x17
            (0x5400_0048, Some(Emulated)),   // b.hi
            (0x5400_0058, None),             // bc.hi
            (0x9000_0000, Some(Emulated)),   // adrp x0
            (0x1000_0000, Some(Emulated)),   // adr x0
            (0xd503_233f, Some(SingleStep)), // paciasp
            (0xd503_245f, Some(SingleStep)), // bti c
            (0xd503_23bf, None),             // autiasp
            (0xd503_203f, None),             // yield
            (0xa9bd_7bfd, Some(SingleStep)), // stp x29, x30, [sp, -48]!
            (0xc85f_7c20, None),             // ldxr x0, [x1]
            (0xc802_7c20, None),             // stxr w2, x0, [x1]
            (0x5800_0040, None),             // ldr x0, +8
            (0x1c00_0040, None),             // ldr s0, +8
            (0xd51b_d040, None),             // msr tpidr_el0, x0
            (0xd53b_d040, Some(SingleStep)), // mrs x0, tpidr_el0
            (0xd503_3bbf, Some(SingleStep)), // dmb ish
            (0xd400_0001, None),             // svc 0
        ] {
            assert_eq!(word(code).kernel_class(), class, "{code:x}");
        }
    }

    #[test]
    fn a_jump_table_of_gcc_is_read() {
        // cmp w1, 7; b.hi; adrp x0, +0x1000; add x0, x0, 0x10; ldrb w0, [x0, w1, uxtw]; adr x1, +12; add x0, x1, w0, sxtb 2; br x0
        let code = words(&[
            0x7100_1c3f,
            0x5400_0108,
            0xb000_0000,
            0x9100_4000,
            0x3861_4800,
            0x1000_0061,
            0x8b20_8820,
            0xd61f_0000,
        ]);
        let (jump, before) = code.split_last().unwrap();
        let entry = Entry::Distance { origin: 0x1_0020, bytes: 1, is_signed: true, shift: 2 };
        let table = JumpTable { at: 0x1_1010, entry, count: Some(8) };
        assert_eq!(Word::jump_table(before, jump), Some(table));
        // Not without the comparison's guard; and a register that a call changed says nothing.
        assert_eq!(Word::jump_table(&before[2..], jump), Some(JumpTable { count: None, ..table }));
        let mut called = before.to_vec();
        called.push(word(0x9400_0001));
        assert_eq!(Word::jump_table(&called, jump), None);
        assert!(Word::is_table_like(before, jump) && !Word::is_table_like(&before[..4], jump));
    }

    #[test]
    fn a_jump_table_of_clang_is_read() {
        // adrp x9, +0; add x9, x9, 0x20; adr x10, +8; ldrb w11, [x9, x8]; add x10, x10, x11, lsl 2; br x10
        let code = words(&[0x9000_0009, 0x9100_8129, 0x1000_004a, 0x3868_692b, 0x8b0b_094a, 0xd61f_0140]);
        let (jump, before) = code.split_last().unwrap();
        let entry = Entry::Distance { origin: 0x1_0010, bytes: 1, is_signed: false, shift: 2 };
        assert_eq!(Word::jump_table(before, jump), Some(JumpTable { at: 0x1_0020, entry, count: None }));
    }

    #[test]
    fn a_stub_of_the_plt_is_read() {
        // bti c; adrp x16, +0x1000; ldr x17, [x16, 0x18]; add x16, x16, 0x18
        let stub = [0xd503_245f_u32, 0xb000_0010, 0xf940_0e11, 0x9100_6210];
        let bytes: Vec<u8> = stub.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(Word::stub_slot(&bytes, 0x1_0000), Some(0x1_1018));
        assert_eq!(Word::stub_slot(&bytes[4..], 0x1_0000), Some(0x1_1018));
        assert_eq!(Word::stub_slot(&bytes[8..], 0x1_0000), None);
    }

    #[test]
    fn an_instruction_that_the_linker_moved_is_no_way_out() {
        // ldr x0, [x0]; b back  |  ret; b back
        let back = 0x1400_0040;
        for (moved, is_detour) in [(0xf940_0000_u32, true), (0xd65f_03c0, false)] {
            let code: Vec<u8> = [moved, back].iter().flat_map(|word| word.to_le_bytes()).collect();
            let bytes = Fixture::default().import("free").function("a", &code, &[]).build();
            let file = ElfFile::parse(&bytes).unwrap();
            let jump = Word { at: CODE + 0x100, word: 0x17ff_ffc0 };
            assert_eq!(jump.flow(), Flow::Jump(CODE));
            assert_eq!(jump.is_detour(&file, CODE), is_detour);
            assert!(!Word { at: CODE + 0x104, ..jump }.is_detour(&file, CODE));
        }
    }

    #[test]
    fn what_opens_a_frame_keeps_the_arguments() {
        let bytes = Fixture::default().import("free").function("a", &[0xc3], &[]).build();
        let frame = ElfFile::parse(&bytes).unwrap().frames.unwrap().at(CODE).unwrap();
        for (code, keeps) in [
            (0xa9bd_7bfd, true),  // stp x29, x30, [sp, -48]!
            (0xd100_83ff, true),  // sub sp, sp, 32
            (0x9100_03fd, true),  // mov x29, sp
            (0xaa00_03f3, true),  // mov x19, x0
            (0x6dbd_27e8, true),  // stp d8, d9, [sp, -48]!
            (0xf900_0bf3, true),  // str x19, [sp, 16]
            (0xd503_233f, true),  // paciasp
            (0xf900_0001, false), // str x1, [x0]
            (0xf940_0000, false), // ldr x0, [x0]
            (0xaa01_03e0, false), // mov x0, x1
            (0x9400_0001, false), // bl
        ] {
            assert_eq!(word(code).keeps_arguments(&mut (), &frame), keeps, "{code:x}");
        }
    }

    proptest! {
        #[test]
        fn any_words_get_an_answer(code in proptest::collection::vec(any::<u32>(), 1..64)) {
            let code = words(&code);
            for (index, jump) in code.iter().enumerate() {
                let _ = (Word::jump_table(&code[..index], jump), Word::is_table_like(&code[..index], jump));
                let _ = (jump.kernel_class(), jump.flow(), jump.is_mark());
            }
        }
    }
}
