//! Turns a function's code into its body: every instruction, every way in and every way out.
//!
//! The body is the code of the function's frame and of its `.cold` fragments. All of it must decode, and every jump,
//! jump table entry and landing pad must hit an instruction's first byte: then the instruction boundaries are
//! certain, and a probe cannot fall into the middle of one. What cannot be decided is refused.

use super::elf::ElfFile;
use super::frames::Frame;
use super::instruction::{Flow, Instruction};
use super::{Unplaceable, Vaddr};

/// Most code of one function with its fragments, in bytes.
const MOST_CODE_BYTES: u64 = 1 << 18;
/// Most pieces (function and fragments) of one function.
const MOST_PIECES: usize = 64;
/// Most ways out of one function.
const MOST_LEAVES: usize = 256;
/// Most jumps, table entries and landing pads of one function.
const MOST_ARRIVALS: usize = 1 << 16;
/// Largest function that is looked into to see whether it is a fragment that jumps back, in bytes.
const LARGEST_FRAGMENT_GUESS: u64 = 4096;

/// All code of one function.
#[derive(Debug)]
pub(super) struct Body<I> {
    /// The function first, then its fragments.
    pub(super) pieces: Vec<Piece<I>>,
    /// Where control arrives by other means than falling through, by address.
    pub(super) arrivals: Vec<Arrival>,
    /// Every way out.
    pub(super) leaves: Vec<Leave>,
}

/// A stretch of code under one frame description.
#[derive(Debug)]
pub(super) struct Piece<I> {
    /// Its frame.
    pub(super) frame: Frame,
    /// Its instructions, without gaps.
    pub(super) code: Vec<I>,
    /// It belongs to this function alone.
    pub(super) is_own: bool,
}

/// A place that control reaches by a jump or a landing exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Arrival {
    /// The place.
    pub(super) at: u64,
    /// The direct jump that leads there; none for a jump table or landing pad.
    pub(super) from: Option<u64>,
}

/// One way out, as (piece, instruction).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leave {
    /// Which piece.
    pub(super) piece: usize,
    /// Which instruction of it.
    pub(super) index: usize,
    /// How.
    pub(super) how: How,
}

/// How control leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// By a return.
    Return,
    /// By a tail call to a function of this file.
    TailCall(u64),
    /// By a tail call to a symbol, through the PLT or the GOT.
    TailCallByName(String),
    /// By a tail call through a register or memory: a virtual function.
    TailCallUnknown,
}

impl<I: Instruction> Body<I> {
    /// Reads the function that starts at an address.
    pub(super) fn read(file: &ElfFile<'_>, start: Vaddr, size: u64) -> Result<Self, Unplaceable> {
        let frame = file.frames.as_ref().and_then(|frames| frames.at(start.0)).ok_or(Unplaceable::NoFrame)?;
        if frame.start != start.0 || size > frame.end - frame.start {
            return Err(Unplaceable::NoFrame);
        }
        let mut reading = Reading {
            file,
            body: Self { pieces: Vec::new(), arrivals: Vec::new(), leaves: Vec::new() },
            bytes: 0,
        };
        reading.add(frame, true)?;
        let mut piece = 0;
        while piece < reading.body.pieces.len() {
            reading.read_piece(piece)?;
            piece += 1;
        }
        let mut body = reading.body;
        body.arrivals.sort_unstable();
        body.arrivals.dedup();
        match body.arrivals.iter().find(|arrival| body.find(arrival.at).is_none()) {
            Some(arrival) => Err(Unplaceable::Undecodable(arrival.at)),
            None => Ok(body),
        }
    }

    /// The instruction that starts at an address, as (piece, instruction).
    pub(super) fn find(&self, vaddr: u64) -> Option<(usize, usize)> {
        let piece = self.pieces.iter().position(|piece| piece.frame.contains(vaddr))?;
        let index = self.pieces.get(piece)?.code.binary_search_by_key(&vaddr, I::at).ok()?;
        Some((piece, index))
    }

    /// Ways to reach an address other than falling through.
    pub(super) fn arrivals_at(&self, vaddr: u64) -> &[Arrival] {
        let first = self.arrivals.partition_point(|arrival| arrival.at < vaddr);
        let rest = self.arrivals.get(first..).unwrap_or_default();
        rest.get(..rest.partition_point(|arrival| arrival.at == vaddr)).unwrap_or_default()
    }

    /// Whether the function does anything by calling, other than ending the process.
    pub(super) fn calls(&self, file: &ElfFile<'_>) -> bool {
        self.pieces.first().is_some_and(|piece| {
            piece.code.iter().any(|instruction| match instruction.flow() {
                Flow::IndirectCall => true,
                Flow::Call(_) => !gives_up(file, instruction),
                _ => false,
            })
        })
    }
}

/// A body while it is read.
struct Reading<'f, 'a, I> {
    file: &'f ElfFile<'a>,
    body: Body<I>,
    bytes: u64,
}

impl<I: Instruction> Reading<'_, '_, I> {
    /// Decodes the code of a frame and adds it.
    fn add(&mut self, frame: Frame, is_own: bool) -> Result<(), Unplaceable> {
        self.bytes = self.bytes.saturating_add(frame.end.saturating_sub(frame.start));
        if self.bytes > MOST_CODE_BYTES || self.body.pieces.len() >= MOST_PIECES {
            return Err(Unplaceable::TooLarge(self.bytes));
        }
        let code = decode(self.file, &frame)?;
        self.body.pieces.push(Piece { frame, code, is_own });
        Ok(())
    }

    /// Finds the ways into and out of a piece, and the fragments that it leads to.
    fn read_piece(&mut self, piece: usize) -> Result<(), Unplaceable> {
        let Some(frame) = self.body.pieces.get(piece).map(|piece| piece.frame.clone()) else { return Ok(()) };
        let pads = frame.landing_pads(self.file).ok_or(Unplaceable::NoFrame)?;
        for pad in pads {
            if !self.covers(pad) {
                self.add(self.frame_at(pad).ok_or(Unplaceable::Undecodable(pad))?, true)?;
            }
            self.body.arrivals.push(Arrival { at: pad, from: None });
        }
        let mut index = 0;
        while let Some(instruction) =
            self.body.pieces.get(piece).and_then(|piece| piece.code.get(index)).copied()
        {
            let how = match instruction.flow() {
                Flow::Return => Some(How::Return),
                Flow::Call(to) => {
                    // A call into the body is recursion, or code that nobody compiles.
                    if frame.contains(to) && to != frame.start {
                        self.body.arrivals.push(Arrival { at: to, from: None });
                    }
                    None
                }
                Flow::Jump(to) => self.jump(&frame, &instruction, to, false)?,
                Flow::Branch(to) => self.jump(&frame, &instruction, to, true)?,
                Flow::IndirectJump => self.indirect_jump(&frame, piece, index, &instruction)?,
                Flow::Unknown => return Err(Unplaceable::Undecodable(instruction.at())),
                Flow::Next | Flow::IndirectCall | Flow::Interrupt | Flow::Stop => None,
            };
            if let Some(how) = how {
                self.body.leaves.push(Leave { piece, index, how });
            }
            if self.body.leaves.len() > MOST_LEAVES || self.body.arrivals.len() > MOST_ARRIVALS {
                return Err(Unplaceable::TooLarge(self.bytes));
            }
            index += 1;
        }
        Ok(())
    }

    /// Follows a direct jump: within the body, into a fragment of it, or out of it.
    fn jump(
        &mut self,
        frame: &Frame,
        jump: &I,
        to: u64,
        is_conditional: bool,
    ) -> Result<Option<How>, Unplaceable> {
        let from = jump.at();
        if self.covers(to) {
            self.body.arrivals.push(Arrival { at: to, from: Some(from) });
            return Ok(None);
        }
        let distance = frame.distance(from);
        let at_slot = distance == Some(I::AT_SLOT);
        if let Some(name) = plt_name::<I>(self.file, to) {
            return match (is_conditional, at_slot) {
                (false, true) => Ok(Some(How::TailCallByName(name.to_owned()))),
                (true, _) => Err(Unplaceable::ConditionalTailCall(from)),
                (false, false) => Err(Unplaceable::NoDistance(from)),
            };
        }
        let Some(target) = self.frame_at(to) else {
            if jump.is_detour(self.file, to) {
                self.body.arrivals.push(Arrival { at: jump.end(), from: None });
                return Ok(None);
            }
            // Assembly without a frame description.
            return if at_slot && !is_conditional && self.file.file_offset(to).is_some() {
                Ok(Some(How::TailCall(to)))
            } else {
                Err(Unplaceable::IndirectJump(from))
            };
        };
        let is_fragment = to != target.start || target.is_cold || !at_slot || self.jumps_back(&target);
        if is_fragment && target.distance(to) != distance {
            return Err(Unplaceable::NoDistance(from));
        }
        if !is_fragment && !is_conditional {
            return Ok(Some(How::TailCall(to)));
        }
        // A conditional jump to something that looks like a function is a fragment that starts without a frame, or
        // a conditional tail call. Its returns end this operation either way; others may call it too.
        let is_own = is_fragment && (target.is_cold || to == target.start);
        self.add(target, is_own)?;
        self.body.arrivals.push(Arrival { at: to, from: Some(from) });
        Ok(None)
    }

    /// Follows a jump through a register or memory: a jump table or a tail call.
    fn indirect_jump(
        &mut self,
        frame: &Frame,
        piece: usize,
        index: usize,
        jump: &I,
    ) -> Result<Option<How>, Unplaceable> {
        let from = jump.at();
        let before =
            self.body.pieces.get(piece).and_then(|piece| piece.code.get(..index)).unwrap_or_default();
        if let Some(table) = I::jump_table(before, jump) {
            let targets = table.targets(self.file, |to| self.body.find(to).is_some());
            if targets.is_empty() {
                return Err(Unplaceable::IndirectJump(from));
            }
            for to in targets {
                if !self.covers(to) {
                    let target = self.frame_at(to).ok_or(Unplaceable::IndirectJump(from))?;
                    if target.distance(to) != frame.distance(from) || !(target.is_cold || to != target.start)
                    {
                        return Err(Unplaceable::IndirectJump(from));
                    }
                    let is_own = target.is_cold;
                    self.add(target, is_own)?;
                }
                self.body.arrivals.push(Arrival { at: to, from: None });
            }
            return Ok(None);
        }
        if frame.distance(from) != Some(I::AT_SLOT) || I::is_table_like(before, jump) {
            return Err(Unplaceable::IndirectJump(from));
        }
        let name = jump.slot().and_then(|slot| self.file.slot_name(slot));
        Ok(Some(name.map_or(How::TailCallUnknown, |name| How::TailCallByName(name.to_owned()))))
    }

    fn covers(&self, vaddr: u64) -> bool {
        self.body.pieces.iter().any(|piece| piece.frame.contains(vaddr))
    }

    fn frame_at(&self, vaddr: u64) -> Option<Frame> {
        self.file.frames.as_ref()?.at(vaddr)
    }

    /// Whether code jumps into the middle of the body, as only a fragment of it does.
    fn jumps_back(&self, target: &Frame) -> bool {
        if target.end - target.start > LARGEST_FRAGMENT_GUESS
            || self.file.name_at(Vaddr(target.start)).is_some()
        {
            return false;
        }
        let starts: Vec<u64> = self.body.pieces.iter().map(|piece| piece.frame.start).collect();
        decode::<I>(self.file, target).is_ok_and(|code| {
            code.iter().any(|instruction| match instruction.flow() {
                Flow::Jump(to) | Flow::Branch(to) => self.covers(to) && !starts.contains(&to),
                _ => false,
            })
        })
    }
}

/// Decodes all code of a frame.
fn decode<I: Instruction>(file: &ElfFile<'_>, frame: &Frame) -> Result<Vec<I>, Unplaceable> {
    let length = frame.end.saturating_sub(frame.start);
    if length > MOST_CODE_BYTES {
        return Err(Unplaceable::TooLarge(length));
    }
    I::decode(file.code(frame.start, frame.end).ok_or(Unplaceable::NotCode)?, frame.start)
}

/// The symbol that a PLT stub at an address jumps to.
fn plt_name<'a, I: Instruction>(file: &ElfFile<'a>, vaddr: u64) -> Option<&'a str> {
    let code = file.code(vaddr, vaddr.checked_add(16)?)?;
    file.slot_name(I::stub_slot(code, vaddr)?)
}

/// Whether a call ends the process: the stack protector's, or a failed assertion. A call that throws does not.
pub(super) fn gives_up<I: Instruction>(file: &ElfFile<'_>, call: &I) -> bool {
    const NAMES: [&str; 6] = [
        "__stack_chk_fail",
        "__stack_chk_fail_local",
        "abort",
        "__assert_fail",
        "__chk_fail",
        "_ZSt9terminatev",
    ];
    let name = match call.flow() {
        Flow::Call(to) => plt_name::<I>(file, to).or_else(|| file.name_at(Vaddr(to))),
        Flow::IndirectCall => call.slot().and_then(|slot| file.slot_name(slot)),
        _ => None,
    };
    name.is_some_and(|name| NAMES.contains(&name))
}

#[cfg(test)]
mod tests {
    use iced_x86::Instruction as X86;

    use super::super::elf::tests::fixture::{CODE, Fixture, GOT, PLT, STRIDE, cfa, word};
    use super::*;

    fn ways(fixture: &Fixture) -> Result<Vec<(u64, How)>, Unplaceable> {
        let bytes = fixture.build();
        let file = ElfFile::parse(&bytes).unwrap();
        let body = Body::<X86>::read(&file, Vaddr(CODE), file.find("a").unwrap().size)?;
        let at = |leave: &Leave| body.pieces[leave.piece].code[leave.index].ip();
        Ok(body.leaves.iter().map(|leave| (at(leave), leave.how.clone())).collect())
    }

    fn a(code: &[u8], cfi: &[u8]) -> Fixture {
        Fixture::default().import("free").function("a", code, cfi)
    }

    fn jump(from: u64, to: u64) -> Vec<u8> {
        let distance = word(to.wrapping_sub(from + 5));
        [&[0xe9][..], &distance].concat()
    }

    #[test]
    fn every_return_is_a_way_out() {
        // test edi,edi; je +1; ret; rep ret
        assert_eq!(
            ways(&a(&[0x85, 0xff, 0x74, 0x01, 0xc3, 0xf3, 0xc3], &[])),
            Ok(vec![(CODE + 4, How::Return), (CODE + 5, How::Return)])
        );
    }

    #[test]
    fn a_jump_with_the_frame_left_is_a_tail_call() {
        let plt = jump(CODE, PLT);
        assert_eq!(ways(&a(&plt, &[])), Ok(vec![(CODE, How::TailCallByName("free".to_owned()))]));
        let other = a(&jump(CODE, CODE + STRIDE), &[]).function("b", &[0xc3], &[]);
        assert_eq!(ways(&other), Ok(vec![(CODE, How::TailCall(CODE + STRIDE))]));
        assert_eq!(ways(&a(&[0xff, 0xe0], &[])), Ok(vec![(CODE, How::TailCallUnknown)]));
        assert_eq!(ways(&a(&[0xff, 0x60, 0x18], &[])), Ok(vec![(CODE, How::TailCallUnknown)]));
        // jmp [rip + slot of free]
        let slot = word(GOT.wrapping_sub(CODE + 6));
        let code = [&[0xff, 0x25][..], &slot].concat();
        assert_eq!(ways(&a(&code, &[])), Ok(vec![(CODE, How::TailCallByName("free".to_owned()))]));
    }

    #[test]
    fn a_jump_out_of_an_open_frame_is_refused() {
        // push rax; jmp free@plt / jmp b / jmp rax
        let open = cfa(1, 16);
        let code = |jump: Vec<u8>| [vec![0x50], jump].concat();
        let plt = code(jump(CODE + 1, PLT));
        assert_eq!(ways(&a(&plt, &open)), Err(Unplaceable::NoDistance(CODE + 1)));
        let other = a(&code(jump(CODE + 1, CODE + STRIDE)), &open).function("b", &[0xc3], &[]);
        assert_eq!(ways(&other), Err(Unplaceable::NoDistance(CODE + 1)));
        assert_eq!(ways(&a(&code(vec![0xff, 0xe0]), &open)), Err(Unplaceable::IndirectJump(CODE + 1)));
        // je free@plt
        let [_, rest @ ..] = &jump(CODE + 1, PLT)[..] else { unreachable!() };
        let conditional = [&[0x0f, 0x84][..], rest, &[0xc3]].concat();
        assert_eq!(ways(&a(&conditional, &[])), Err(Unplaceable::ConditionalTailCall(CODE)));
    }

    #[test]
    fn returns_of_a_fragment_are_ways_out() {
        // push rax; je fragment; pop rax; ret  |  fragment: pop rax; ret
        let distance = word(STRIDE - 7);
        let code = [&[0x50, 0x0f, 0x84][..], &distance, &[0x58, 0xc3]].concat();
        let cfi = [cfa(1, 16), cfa(7, 8)].concat();
        let fragment = [&[0x0e, 16][..], &cfa(1, 8)].concat();
        let whole = a(&code, &cfi).function("", &[0x58, 0xc3], &fragment);
        assert_eq!(ways(&whole), Ok(vec![(CODE + 8, How::Return), (CODE + STRIDE + 1, How::Return)]));
        // A fragment that expects another frame is not one of this function.
        let fragment = [&[0x0e, 32][..], &cfa(1, 8)].concat();
        assert_eq!(
            ways(&a(&code, &cfi).function("", &[0x58, 0xc3], &fragment)),
            Err(Unplaceable::NoDistance(CODE + 1))
        );
    }

    #[test]
    fn what_lands_inside_an_instruction_is_refused() {
        // je +1 into `mov eax, 0xc3`
        assert_eq!(
            ways(&a(&[0x74, 0x01, 0xb8, 0xc3, 0, 0, 0, 0xc3], &[])),
            Err(Unplaceable::Undecodable(CODE + 3))
        );
        // `push es` does not exist in 64-bit code; the last instruction is cut off.
        assert_eq!(ways(&a(&[0x06, 0xc3], &[])), Err(Unplaceable::Undecodable(CODE)));
        assert_eq!(ways(&a(&[0xc3, 0xb8, 0], &[])), Err(Unplaceable::Undecodable(CODE + 1)));
    }

    /// cmp edi,1; ja +15; lea rax,[rip+table]; movsxd rdx,[rax+rdi*4]; add rax,rdx; [notrack] jmp rax; ret; ret
    fn switch(entries: [u64; 2]) -> Fixture {
        let table = 0x1f00_u64;
        let lea = word(table.wrapping_sub(CODE + 12));
        let code = [
            &[0x83, 0xff, 0x01, 0x77, 0x11, 0x48, 0x8d, 0x05][..],
            &lea,
            &[0x48, 0x63, 0x14, 0xb8, 0x48, 0x01, 0xd0, 0x3e, 0xff, 0xe0, 0xc3, 0xc3],
        ]
        .concat();
        let entries: Vec<u8> = entries.iter().flat_map(|to| word(to.wrapping_sub(table))).collect();
        a(&code, &[]).data(table, &entries)
    }

    #[test]
    fn a_jump_table_leads_into_the_body() {
        assert_eq!(
            ways(&switch([CODE + 22, CODE + 23])),
            Ok(vec![(CODE + 22, How::Return), (CODE + 23, How::Return)])
        );
        assert_eq!(ways(&switch([CODE + 22, CODE + 13])), Err(Unplaceable::Undecodable(CODE + 13)));
        assert_eq!(ways(&switch([CODE + 22, 0x10])), Err(Unplaceable::IndirectJump(CODE + 19)));
        let bytes = switch([CODE + 22, CODE + 23]).build();
        let file = ElfFile::parse(&bytes).unwrap();
        let body = Body::<X86>::read(&file, Vaddr(CODE), 0).unwrap();
        assert_eq!(body.arrivals_at(CODE + 23), [Arrival { at: CODE + 23, from: None }]);
    }

    #[test]
    fn landing_pads_are_arrivals() {
        let table = [0xff, 0xff, 0x01, 4, 0, 1, 1, 0];
        let bytes = a(&[0x90, 0xc3], &[]).exceptions(0, 0x1f00).data(0x1f00, &table).build();
        let file = ElfFile::parse(&bytes).unwrap();
        let body = Body::<X86>::read(&file, Vaddr(CODE), 2).unwrap();
        assert_eq!(body.arrivals, [Arrival { at: CODE + 1, from: None }]);
    }
}
