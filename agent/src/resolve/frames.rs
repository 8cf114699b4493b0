//! Turns `.eh_frame` into frames: which code belongs to which function or fragment, how far the slot is from a
//! register at each of its instructions, and where exceptions land in it.
//!
//! The slot is the canonical frame address less 8: on x86-64 the address of the return address; on arm64, where that is
//! in a register, the same place names the frame. Where the frame is not described by the stack or the frame pointer,
//! the distance is not known, and no probe may be placed.

use std::sync::OnceLock;

use cadscope_common::cookie::Base;
use gimli::{
    AArch64, BaseAddresses, CallFrameInstruction, CfaRule, EhFrame, EhFrameHdr, EndianSlice,
    FrameDescriptionEntry, LittleEndian, ParsedEhFrameHdr, Pointer, Reader, RegisterRule, UnwindContext,
    UnwindSection, Vendor, X86_64,
};

use super::elf::{ElfFile, Machine};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Longest frame description that is read, in bytes; the largest function of OCCT needs a tenth.
const LONGEST_DESCRIPTION: usize = 1 << 16;
/// Most frames that are indexed in a file without a search table.
const MOST_FRAMES: usize = 1 << 20;
/// Most call sites of one exception table.
const MOST_CALL_SITES: usize = 1 << 16;

/// The frame descriptions of a file.
#[derive(Debug)]
pub(super) struct Frames<'a> {
    section: EhFrame<Slice<'a>>,
    machine: Machine,
    /// Address of the section.
    vaddr: u64,
    bases: BaseAddresses,
    table: Option<ParsedEhFrameHdr<Slice<'a>>>,
    /// (start, end, offset in the section) by start; only without a table.
    index: OnceLock<Vec<(u64, u64, usize)>>,
}

/// How far the slot is from a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Distance {
    /// The register.
    pub(super) base: Base,
    /// Bytes from it to the slot.
    pub(super) bytes: i32,
}

/// The code that one frame description covers: a function or a fragment of one.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    /// Address of its first instruction.
    pub(super) start: u64,
    /// Address after its last one.
    pub(super) end: u64,
    /// It begins with a frame already open, which no function does: it is a fragment (`.cold`) of another.
    pub(super) is_cold: bool,
    /// Address of its exception table.
    exceptions: Option<u64>,
    /// (first address, distance) in order of address; each holds up to the next.
    rows: Vec<(u64, Option<Distance>)>,
}

impl<'a> Frames<'a> {
    /// From the search table that `PT_GNU_EH_FRAME` names.
    pub(super) fn with_table(file: &ElfFile<'a>, at: u64) -> Option<Self> {
        let bytes = file.bytes_at(at)?;
        let bases = BaseAddresses::default().set_eh_frame_hdr(at);
        let header = EhFrameHdr::new(bytes, LittleEndian).parse(&bases, 8).ok()?;
        let Pointer::Direct(section) = header.eh_frame_ptr() else { return None };
        let mut frames = Self::without_table(file, section)?;
        frames.bases = frames.bases.set_eh_frame_hdr(at);
        // Linkers write a 32-bit count and 32-bit distances from the header. gimli 0.34 multiplies what other
        // encodings could say without looking; a file with those is walked instead.
        let is_usual = matches!(bytes, [1, _, 0x03, 0x3b, ..]);
        frames.table = (is_usual && header.table().is_some()).then_some(header);
        Some(frames)
    }

    /// From the section alone, which is read from its begin to find a function.
    pub(super) fn without_table(file: &ElfFile<'a>, at: u64) -> Option<Self> {
        // Only a section header would tell where it ends; its terminator does as well.
        let mut section = EhFrame::new(file.bytes_at(at)?, LittleEndian);
        section.set_address_size(8);
        if file.machine == Machine::Arm64 {
            section.set_vendor(Vendor::AArch64);
        }
        Some(Self {
            section,
            machine: file.machine,
            vaddr: at,
            bases: BaseAddresses::default().set_eh_frame(at),
            table: None,
            index: OnceLock::new(),
        })
    }

    /// The frame that covers an address.
    pub(super) fn at(&self, vaddr: u64) -> Option<Frame> {
        let entry = match &self.table {
            Some(header) => {
                let table = header.table()?;
                let pointer = table.lookup(vaddr, &self.bases).ok()?;
                // gimli's `pointer_to_offset` overflows on a pointer before the section (0.34).
                let offset = pointer.direct().ok()?.checked_sub(self.vaddr)?;
                self.entry(usize::try_from(offset).ok()?)?
            }
            None => {
                let index = self.index.get_or_init(|| self.walk());
                let at = index.partition_point(|(start, _, _)| *start <= vaddr).checked_sub(1)?;
                self.entry(index.get(at)?.2)?
            }
        };
        (entry.contains(vaddr) && entry.entry_len() <= LONGEST_DESCRIPTION).then(|| self.read(&entry))
    }

    fn entry(&self, offset: usize) -> Option<FrameDescriptionEntry<Slice<'a>>> {
        self.section.fde_from_offset(&self.bases, offset.into(), EhFrame::cie_from_offset).ok()
    }

    fn walk(&self) -> Vec<(u64, u64, usize)> {
        let mut index = Vec::new();
        let mut entries = self.section.entries(&self.bases);
        while let Ok(Some(entry)) = entries.next() {
            if let gimli::CieOrFde::Fde(partial) = entry
                && let Ok(entry) = partial.parse(EhFrame::cie_from_offset)
                && index.len() < MOST_FRAMES
            {
                index.push((entry.initial_address(), entry.end_address(), entry.offset()));
            }
        }
        index.sort_unstable();
        index
    }

    fn read(&self, entry: &FrameDescriptionEntry<Slice<'a>>) -> Frame {
        let mut rows = Vec::new();
        let mut context = UnwindContext::new();
        if let Ok(mut table) = entry.rows(&self.section, &self.bases, &mut context) {
            loop {
                match table.next_row() {
                    Ok(Some(row)) => {
                        // On arm64 it starts in a register, and its place says nothing of the frame's.
                        let returns = self.machine == Machine::Arm64
                            || row.register(X86_64::RA) == Some(RegisterRule::Offset(-8));
                        let distance = if returns { self.distance(row.cfa()) } else { None };
                        rows.push((row.start_address(), distance));
                    }
                    Ok(None) => break,
                    Err(_) => {
                        // From here on nothing is known.
                        rows.clear();
                        break;
                    }
                }
            }
        }
        Frame {
            start: entry.initial_address(),
            end: entry.end_address(),
            is_cold: self.is_cold(entry),
            exceptions: self.exceptions(entry),
            rows,
        }
    }

    fn distance(&self, rule: &CfaRule<usize>) -> Option<Distance> {
        let CfaRule::RegisterAndOffset { register, offset } = rule else { return None };
        let base = match (self.machine, *register) {
            (Machine::X86_64, X86_64::RSP) | (Machine::Arm64, AArch64::SP) => Base::StackPointer,
            (Machine::X86_64, X86_64::RBP) | (Machine::Arm64, AArch64::X29) => Base::FramePointer,
            _ => return None,
        };
        Some(Distance { base, bytes: i32::try_from(offset.checked_sub(8)?).ok()? })
    }

    /// Address of the exception table. None is written as 0, which gimli counts from its place like any distance.
    fn exceptions(&self, entry: &FrameDescriptionEntry<Slice<'a>>) -> Option<u64> {
        let Some(Pointer::Direct(at)) = entry.lsda() else { return None };
        let start = self.vaddr.checked_add(u64::try_from(entry.offset()).ok()?)?;
        let end = start.checked_add(u64::try_from(entry.entry_len()).ok()?)?;
        (at != 0 && !(start..=end).contains(&at)).then_some(at)
    }

    /// A function starts with nothing but the return address on the stack. A fragment starts in the middle of an
    /// open frame: its description says so before the first instruction, or in a CIE of its own (where gas folds it),
    /// or saves more registers at once than an instruction can. Measured on unstripped libraries: 10,812 of 10,815
    /// fragments of GCC 10 found, 0 of 51,684 functions mistaken; GCC 12: 17,276 of 17,520 and 0 of 214,288.
    fn is_cold(&self, entry: &FrameDescriptionEntry<Slice<'a>>) -> bool {
        let (stack_pointer, offset, most_saved) = match self.machine {
            Machine::X86_64 => (X86_64::RSP, 8, 1),
            Machine::Arm64 => (AArch64::SP, 0, 2),
        };
        let mut initial = entry.cie().instructions(&self.section, &self.bases);
        while let Ok(Some(instruction)) = initial.next() {
            match instruction {
                CallFrameInstruction::Nop => {}
                CallFrameInstruction::DefCfa { register, offset: at }
                    if (register, at) == (stack_pointer, offset) => {}
                CallFrameInstruction::Offset { register: X86_64::RA, factored_offset: 1 }
                    if self.machine == Machine::X86_64 => {}
                _ => return true,
            }
        }
        let mut instructions = entry.instructions(&self.section, &self.bases);
        let (mut advances, mut saved) = (0, 0);
        while let Ok(Some(instruction)) = instructions.next() {
            match instruction {
                CallFrameInstruction::Nop => {}
                CallFrameInstruction::AdvanceLoc { .. } => advances += 1,
                _ if advances == 0 => return true,
                CallFrameInstruction::Offset { .. } => saved += 1,
                _ => {}
            }
            if advances > 1 {
                break;
            }
        }
        saved > most_saved
    }
}

impl Frame {
    /// Distance from a register to the slot, before the instruction at an address runs.
    pub(super) fn distance(&self, vaddr: u64) -> Option<Distance> {
        if vaddr < self.start || vaddr >= self.end {
            return None;
        }
        let row = self.rows.partition_point(|(start, _)| *start <= vaddr).checked_sub(1)?;
        self.rows.get(row)?.1
    }

    /// Whether an address is in it.
    pub(super) fn contains(&self, vaddr: u64) -> bool {
        vaddr >= self.start && vaddr < self.end
    }

    /// Where control arrives without a jump: the landing pads of exceptions. They may lie in another fragment.
    ///
    /// None if the exception table cannot be read.
    pub(super) fn landing_pads(&self, file: &ElfFile<'_>) -> Option<Vec<u64>> {
        let Some(at) = self.exceptions else { return Some(Vec::new()) };
        let mut table = EncodedReader { rest: EndianSlice::new(file.bytes_at(at)?, LittleEndian), vaddr: at };
        let encoding = table.u8()?;
        let start = if encoding == gimli::DW_EH_PE_omit.0 { self.start } else { table.pointer(encoding)? };
        if table.u8()? != gimli::DW_EH_PE_omit.0 {
            table.uleb()?;
        }
        let encoding = table.u8()?;
        let length = table.uleb()?;
        let end = table.vaddr.checked_add(length)?;
        let mut pads = Vec::new();
        for _ in 0..MOST_CALL_SITES {
            if table.vaddr >= end {
                break;
            }
            let (_start, _length) = (table.pointer(encoding)?, table.pointer(encoding)?);
            let (pad, _action) = (table.pointer(encoding)?, table.uleb()?);
            if pad != 0 {
                pads.push(start.wrapping_add(pad));
            }
        }
        if table.vaddr < end {
            return None;
        }
        pads.sort_unstable();
        pads.dedup();
        Some(pads)
    }
}

/// Reads the values of an exception table and knows its address, from which some count.
struct EncodedReader<'a> {
    rest: Slice<'a>,
    vaddr: u64,
}

impl<'a> EncodedReader<'a> {
    fn read<T>(&mut self, read: impl FnOnce(&mut Slice<'a>) -> gimli::Result<T>) -> Option<T> {
        let before = self.rest.len();
        let value = read(&mut self.rest).ok()?;
        self.vaddr = self.vaddr.checked_add(u64::try_from(before - self.rest.len()).ok()?)?;
        Some(value)
    }

    fn u8(&mut self) -> Option<u8> {
        self.read(Reader::read_u8)
    }

    fn uleb(&mut self) -> Option<u64> {
        self.read(Reader::read_uleb128)
    }

    /// A value in a `DW_EH_PE` encoding: absolute or counted from its own address.
    #[allow(clippy::cast_sign_loss, reason = "added modulo 2^64")]
    fn pointer(&mut self, encoding: u8) -> Option<u64> {
        let at = self.vaddr;
        let value = match encoding & 15 {
            0x00 | 0x04 | 0x0c => self.read(Reader::read_u64)?,
            0x01 => self.uleb()?,
            0x02 => u64::from(self.read(Reader::read_u16)?),
            0x03 => u64::from(self.read(Reader::read_u32)?),
            0x09 => self.read(Reader::read_sleb128)? as u64,
            0x0a => i64::from(self.read(Reader::read_i16)?) as u64,
            0x0b => i64::from(self.read(Reader::read_i32)?) as u64,
            _ => return None,
        };
        match encoding & 0xf0 {
            0x00 => Some(value),
            0x10 if value == 0 => Some(0),
            0x10 => Some(value.wrapping_add(at)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::elf::tests::fixture::{CODE, Fixture, STRIDE, cfa};
    use super::*;

    const AT_SLOT: Option<Distance> = Some(Distance { base: Base::StackPointer, bytes: 0 });

    fn below(bytes: i32) -> Option<Distance> {
        Some(Distance { base: Base::StackPointer, bytes })
    }

    fn frame_at(fixture: &Fixture, vaddr: u64) -> Option<Frame> {
        let bytes = fixture.build();
        ElfFile::parse(&bytes).unwrap().frames.as_ref()?.at(vaddr)
    }

    #[test]
    fn distance_follows_the_stack_pointer() {
        let cfi = [cfa(1, 16), cfa(4, 48), cfa(2, 16), cfa(1, 8)].concat();
        for no_table in [false, true] {
            let fixture = Fixture::default().no_table(no_table).function("a", &[0x90; 9], &cfi).function(
                "b",
                &[0xc3],
                &[],
            );
            let frame = frame_at(&fixture, CODE + 3).unwrap();
            assert_eq!((frame.start, frame.end, frame.is_cold), (CODE, CODE + 9, false));
            let distances: Vec<_> = (0..9).map(|at| frame.distance(CODE + at)).collect();
            assert_eq!(
                distances,
                [AT_SLOT, below(8), below(8), below(8), below(8), below(40), below(40), below(8), AT_SLOT]
            );
            assert_eq!((frame.distance(CODE - 1), frame.distance(CODE + 9)), (None, None));
            assert!(frame_at(&fixture, CODE + 9).is_none(), "between functions");
            assert_eq!(frame_at(&fixture, CODE + STRIDE).unwrap().end, CODE + STRIDE + 1);
        }
    }

    #[test]
    fn frame_pointer_is_a_base_and_an_expression_is_none() {
        // def_cfa rbp+16; then def_cfa_expression (breg6 -8, deref); then def_cfa r10+0.
        let cfi = [0x41, 0x0c, 6, 16, 0x41, 0x0f, 3, 0x76, 0x78, 0x06, 0x41, 0x0c, 10, 0];
        let frame = frame_at(&Fixture::default().function("a", &[0x90; 4], &cfi), CODE).unwrap();
        assert_eq!(frame.distance(CODE + 1), Some(Distance { base: Base::FramePointer, bytes: 8 }));
        assert_eq!((frame.distance(CODE + 2), frame.distance(CODE + 3)), (None, None));
    }

    #[test]
    fn a_frame_that_is_open_at_its_begin_is_a_fragment() {
        let is_cold =
            |cfi: &[u8]| frame_at(&Fixture::default().function("a", &[0x90; 9], cfi), CODE).unwrap().is_cold;
        assert!(!is_cold(&[]));
        assert!(!is_cold(&[0x41, 0x0e, 16, 0x86, 2]), "push rbp");
        assert!(is_cold(&[0x0e, 32, 0x86, 2]), "no instruction has run yet");
        assert!(is_cold(&[0x41, 0x0e, 32, 0x86, 2, 0x83, 3]), "no instruction saves two registers");
    }

    #[test]
    fn landing_pads_come_from_the_exception_table() {
        // No LPStart, no types, uleb128: (start, length, pad, action).
        let table = [0xff, 0xff, 0x01, 8, 0, 4, 0, 0, 4, 2, 6, 1];
        let fixture =
            Fixture::default().function("a", &[0x90; 9], &[]).exceptions(0, 0x1f00).data(0x1f00, &table);
        let bytes = fixture.build();
        let file = ElfFile::parse(&bytes).unwrap();
        let frame = file.frames.as_ref().unwrap().at(CODE).unwrap();
        assert_eq!(frame.landing_pads(&file), Some(vec![CODE + 6]));
        // A table that runs out of the file is not read as an empty one.
        let bytes = fixture.data(0x1f00, &[0xff, 0xff, 0x01, 0xff, 0xff, 0xff, 0xff, 0x7f]).build();
        let file = ElfFile::parse(&bytes).unwrap();
        assert_eq!(file.frames.as_ref().unwrap().at(CODE).unwrap().landing_pads(&file), None);
    }
}
