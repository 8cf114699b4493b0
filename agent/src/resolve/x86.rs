//! The x86-64 instruction set: decoding, jump tables as GCC and Clang write them, and what the kernel does under a probe.

use cadscope_common::cookie::Base;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};

use super::elf::ElfFile;
use super::frames::{Distance, Frame};
use super::instruction::{self, Entry, Flow, JumpTable, MOST_TABLE_ENTRIES, straight};
use super::{SiteClass, Unplaceable};

/// How far before an indirect jump its table's address may have been loaded, outside a loop.
const BASE_WINDOW: usize = 2048;

impl instruction::Instruction for Instruction {
    const AT_SLOT: Distance = Distance { base: Base::StackPointer, bytes: 0 };
    type Scratch = Factory;

    fn decode(code: &[u8], start: u64) -> Result<Vec<Self>, Unplaceable> {
        let mut decoded = Vec::with_capacity(code.len() / 3);
        for instruction in Decoder::with_ip(64, code, start, DecoderOptions::NONE) {
            if instruction.is_invalid() {
                return Err(Unplaceable::Undecodable(instruction.ip()));
            }
            decoded.push(instruction);
        }
        Ok(decoded)
    }

    fn first(code: &[u8], start: u64) -> Option<Self> {
        Decoder::with_ip(64, code, start, DecoderOptions::NONE)
            .into_iter()
            .take(2)
            .find(|instruction| !instruction::Instruction::is_mark(instruction))
            .filter(|instruction| !instruction.is_invalid())
    }

    fn at(&self) -> u64 {
        self.ip()
    }

    fn end(&self) -> u64 {
        self.next_ip()
    }

    fn flow(&self) -> Flow {
        let is_near = self.op_count() > 0 && self.op0_kind() == OpKind::NearBranch64;
        match self.flow_control() {
            FlowControl::Next => Flow::Next,
            FlowControl::Return => Flow::Return,
            FlowControl::UnconditionalBranch if is_near => Flow::Jump(self.near_branch_target()),
            FlowControl::ConditionalBranch if is_near => Flow::Branch(self.near_branch_target()),
            FlowControl::Call if is_near => Flow::Call(self.near_branch_target()),
            FlowControl::Call | FlowControl::IndirectCall => Flow::IndirectCall,
            FlowControl::IndirectBranch => Flow::IndirectJump,
            FlowControl::Interrupt => Flow::Interrupt,
            FlowControl::Exception => Flow::Stop,
            _ => Flow::Unknown,
        }
    }

    fn is_mark(&self) -> bool {
        self.code() == Code::Endbr64
    }

    fn class(&self, file: &ElfFile<'_>) -> Option<SiteClass> {
        class_of(file.code(self.ip(), self.next_ip())?)
    }

    fn slot(&self) -> Option<u64> {
        self.is_ip_rel_memory_operand().then(|| self.ip_rel_memory_address())
    }

    fn stub_slot(code: &[u8], start: u64) -> Option<u64> {
        // endbr64, f2 (bnd) and ff 25 are all that a stub starts with: most targets are told by their first byte.
        if !matches!(code.first(), Some(0xf2 | 0xf3 | 0xff)) {
            return None;
        }
        let jump = <Self as instruction::Instruction>::first(code, start)?;
        if jump.code() != Code::Jmp_rm64 { None } else { jump.slot() }
    }

    fn jump_table(before: &[Self], jump: &Self) -> Option<JumpTable> {
        jump_table(before, jump)
    }

    fn is_table_like(before: &[Self], jump: &Self) -> bool {
        is_table_like(before, jump)
    }

    fn is_detour(&self, _: &ElfFile<'_>, _: u64) -> bool {
        false
    }

    fn keeps_arguments(&self, factory: &mut Factory, frame: &Frame) -> bool {
        keeps_arguments(&mut factory.0, frame, self)
    }

    fn before(&self, factory: &mut Factory, frame: &Frame, register: Option<u8>) -> Option<Option<u8>> {
        keeps_objects(&mut factory.0, frame, self)
            .then(|| register.and_then(|register| value_before(&mut factory.0, self, register)))
    }
}

/// What makes lists of the registers and memory that instructions use.
pub(super) struct Factory(InstructionInfoFactory);

impl Default for Factory {
    fn default() -> Self {
        Self(InstructionInfoFactory::new())
    }
}

/// Recognises GCC's and Clang's forms: `lea t,[rip+table]; movsxd r,[t+i*4]; add r,t; jmp r` in
/// position-independent code, `jmp [table+i*8]` or a load of that otherwise.
fn jump_table(before: &[Instruction], jump: &Instruction) -> Option<JumpTable> {
    if jump.op0_kind() == OpKind::Memory {
        return absolute(before, jump);
    }
    let register = jump.op0_register();
    let window = straight(before);
    let writer = window.iter().rposition(|instruction| writes(instruction, register))?;
    let (earlier, writer) = (window.get(..writer)?, window.get(writer)?);
    if writer.mnemonic() == Mnemonic::Mov && writer.op1_kind() == OpKind::Memory {
        return absolute(earlier, writer);
    }
    if writer.mnemonic() != Mnemonic::Add || writer.op1_kind() != OpKind::Register {
        return None;
    }
    let summands = [register, writer.op1_register()];
    let load = earlier.iter().rfind(|instruction| {
        instruction.mnemonic() == Mnemonic::Movsxd && summands.contains(&instruction.op0_register())
    });
    let Some(load) = load else { return unoptimised(earlier, summands) };
    let base = load.memory_base();
    if load.op1_kind() != OpKind::Memory
        || load.memory_index_scale() != 4
        || load.memory_displacement64() != 0
    {
        return None;
    }
    // The base may have been loaded long before, outside a loop; its entries tell whether it was this one.
    let table =
        before.iter().rev().take(BASE_WINDOW).find(|instruction| {
            instruction.mnemonic() == Mnemonic::Lea && instruction.op0_register() == base
        })?;
    let at = table.is_ip_rel_memory_operand().then(|| table.ip_rel_memory_address())?;
    Some(relative(at, bound(window, load.memory_index())))
}

/// What `-O0` makes of it: `mov eax,[table+i*4]; cdqe; lea rdx,[rip+table]; add rax,rdx; jmp rax`.
fn unoptimised(window: &[Instruction], summands: [Register; 2]) -> Option<JumpTable> {
    let extended = window.iter().rposition(|instruction| instruction.mnemonic() == Mnemonic::Cdqe)?;
    let table = window.get(extended..)?.iter().rfind(|instruction| {
        instruction.mnemonic() == Mnemonic::Lea
            && instruction.is_ip_rel_memory_operand()
            && summands.contains(&instruction.op0_register())
    })?;
    Some(relative(table.ip_rel_memory_address(), bound(window, Register::None)))
}

fn absolute(before: &[Instruction], load: &Instruction) -> Option<JumpTable> {
    if load.memory_base() != Register::None
        || load.memory_index() == Register::None
        || load.memory_index_scale() != 8
    {
        return None;
    }
    let window = straight(before);
    Some(JumpTable {
        at: load.memory_displacement64(),
        entry: Entry::Address,
        count: bound(window, load.memory_index()),
    })
}

fn relative(at: u64, count: Option<u64>) -> JumpTable {
    JumpTable { at, entry: Entry::Distance { origin: at, bytes: 4, is_signed: true, shift: 0 }, count }
}

/// Number of table entries, from the last comparison of the index before the jump: `cmp index, last; ja default`.
fn bound(window: &[Instruction], index: Register) -> Option<u64> {
    let at = window.iter().rposition(|instruction| {
        instruction.mnemonic() == Mnemonic::Cmp && instruction.op1_kind() != OpKind::Register
    })?;
    let compare = window.get(at)?;
    let is_guarded =
        window.get(at + 1..)?.iter().any(|instruction| matches!(instruction.mnemonic(), Mnemonic::Ja));
    let compared = compare.op0_kind() == OpKind::Memory || same_register(compare.op0_register(), index) || {
        // The index may have been moved, for instance by `mov eax, edi` or `movzx eax, al`.
        window.get(at + 1..)?.iter().any(|instruction| {
            instruction.op0_kind() == OpKind::Register
                && same_register(instruction.op0_register(), index)
                && instruction.op1_kind() == OpKind::Register
                && same_register(instruction.op1_register(), compare.op0_register())
        })
    };
    (is_guarded && compared && compare.try_immediate(1).is_ok())
        .then(|| compare.immediate(1).checked_add(1))?
        .filter(|count| *count <= MOST_TABLE_ENTRIES)
}

fn same_register(one: Register, other: Register) -> bool {
    one.full_register() == other.full_register()
}

fn writes(instruction: &Instruction, register: Register) -> bool {
    instruction.op_count() > 0
        && instruction.op0_kind() == OpKind::Register
        && same_register(instruction.op0_register(), register)
        && !matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push)
}

/// Whether an indirect jump looks like that of a jump table, though the table was not found.
fn is_table_like(before: &[Instruction], jump: &Instruction) -> bool {
    if jump.op0_kind() == OpKind::Memory {
        return jump.memory_index_scale() == 8 || is_notrack(jump);
    }
    let register = jump.op0_register();
    let window = straight(before);
    let writer = window.iter().rfind(|instruction| writes(instruction, register));
    is_notrack(jump)
        || writer.is_some_and(|writer| {
            matches!(writer.mnemonic(), Mnemonic::Add | Mnemonic::Sub)
                && writer.op1_kind() == OpKind::Register
                || writer.op1_kind() == OpKind::Memory && writer.memory_index_scale() == 8
        })
}

/// GCC marks the jumps of its jump tables so when it protects indirect jumps (`-fcf-protection`).
fn is_notrack(jump: &Instruction) -> bool {
    jump.segment_prefix() == Register::DS
}

/// Whether after an instruction the argument registers and all memory but the own frame are as before, and the next
/// instruction follows.
fn keeps_arguments(factory: &mut InstructionInfoFactory, frame: &Frame, instruction: &Instruction) -> bool {
    const ARGUMENTS: [Register; 6] =
        [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];
    instruction.flow_control() == FlowControl::Next
        && keeps_objects(factory, frame, instruction)
        && factory
            .info(instruction)
            .used_registers()
            .iter()
            .all(|used| !is_write(used.access()) || !ARGUMENTS.contains(&used.register().full_register()))
}

/// Whether an instruction writes no memory but the own frame: through rsp, or through rbp where that holds the frame
/// and is not used for anything else.
fn keeps_objects(factory: &mut InstructionInfoFactory, frame: &Frame, instruction: &Instruction) -> bool {
    let has_frame_pointer =
        || frame.distance(instruction.ip()).is_some_and(|distance| distance.base == Base::FramePointer);
    factory.info(instruction).used_memory().iter().all(|used| {
        !is_write(used.access())
            || used.base() == Register::RSP
            || used.base() == Register::RBP && used.index() == Register::None && has_frame_pointer()
    })
}

/// Where the value of a register was before an instruction; none if the instruction made it.
fn value_before(factory: &mut InstructionInfoFactory, instruction: &Instruction, register: u8) -> Option<u8> {
    let is_written = factory
        .info(instruction)
        .used_registers()
        .iter()
        .any(|used| is_write(used.access()) && number(used.register()) == Some(register));
    if !is_written {
        return Some(register);
    }
    let is_move = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register
        && instruction.op0_register().size() >= 4
        && number(instruction.op0_register()) == Some(register)
        && instruction.op1_register().is_gpr();
    is_move.then(|| number(instruction.op1_register()))?
}

/// The encoding of a general register, whatever part of it is named.
fn number(register: Register) -> Option<u8> {
    if register.is_gpr() { u8::try_from(register.full_register().number()).ok() } else { None }
}

fn is_write(access: OpAccess) -> bool {
    !matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
}

/// How the kernel runs an instruction under a probe; none if it refuses to probe it, or should.
///
/// After `branch_setup_xol_ops`, `push_setup_xol_ops`, `is_prefix_bad` and `good_insns_64` of
/// arch/x86/kernel/uprobes.c (Linux 5.15 to 6.18).
fn class_of(bytes: &[u8]) -> Option<SiteClass> {
    const NOPS: [&[u8]; 9] = [
        &[0x90],
        &[0x66, 0x90],
        &[0x0f, 0x1f, 0x00],
        &[0x0f, 0x1f, 0x40, 0x00],
        &[0x0f, 0x1f, 0x44, 0x00, 0x00],
        &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
        &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
        &[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
        &[0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
    ];
    if NOPS.contains(&bytes) {
        return Some(SiteClass::Emulated);
    }
    let prefixes = bytes.iter().take_while(|byte| {
        matches!(byte, 0x66 | 0x67 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0xf0)
    });
    let (prefixes, rest) = bytes.split_at_checked(prefixes.count())?;
    if prefixes.iter().any(|prefix| matches!(prefix, 0x26 | 0x2e | 0x36 | 0x3e | 0xf0)) {
        return None;
    }
    let (rex, opcode) = match rest {
        [rex @ 0x40..=0x4f, rest @ ..] => (Some(*rex), rest),
        rest => (None, rest),
    };
    let (first, second) = (*opcode.first()?, opcode.get(1).copied());
    let is_branch =
        matches!((first, second), (0xe8 | 0xe9 | 0xeb | 0x70..=0x7f, _) | (0x0f, Some(0x80..=0x8f)));
    match first {
        // Intel and AMD differ in what a 16-bit near branch is.
        _ if is_branch => (!prefixes.contains(&0x66)).then_some(SiteClass::Emulated),
        // The kernel takes `xchg r8, rax` for a `nop`.
        0x90 => rex.is_none_or(|rex| rex & 1 == 0).then_some(SiteClass::Emulated),
        0x50..=0x57 if prefixes.is_empty() && matches!(rex, None | Some(0x41)) => Some(SiteClass::Emulated),
        // Breakpoints, port I/O, interrupt control, EVEX: not on the kernel's list.
        0xcc..=0xcf | 0x62 | 0x6c..=0x6f | 0xe4..=0xe7 | 0xec..=0xef | 0xf1 | 0xf4 | 0xfa | 0xfb => None,
        // `mov ss`, `pop ss` hold off the trap by which a step ends.
        0x8e | 0x17 => None,
        _ => Some(SiteClass::SingleStep),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_the_kernels() {
        use SiteClass::{Emulated, SingleStep};
        for (bytes, class) in [
            (&[0x55][..], Some(Emulated)),                                   // push rbp
            (&[0x41, 0x57], Some(Emulated)),                                 // push r15
            (&[0x48, 0x55], Some(SingleStep)),                               // push rbp with a useless REX.W
            (&[0x66, 0x55], Some(SingleStep)),                               // push bp
            (&[0x6a, 0], Some(SingleStep)),                                  // push 0
            (&[0xff, 0x30], Some(SingleStep)),                               // push [rax]
            (&[0x90], Some(Emulated)),                                       // nop
            (&[0x66, 0x90], Some(Emulated)),                                 // xchg ax,ax
            (&[0xf3, 0x90], Some(Emulated)),                                 // pause
            (&[0x41, 0x90], None),                                           // xchg r8,rax
            (&[0x0f, 0x1f, 0x44, 0, 0], Some(Emulated)),                     // nop of 5 bytes
            (&[0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0], Some(Emulated)),      // nop of 9 bytes
            (&[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0], None),          // nop with a segment prefix
            (&[0x0f, 0x1f, 0xc0], Some(SingleStep)), // a nop that assemblers do not write
            (&[0xf3, 0x0f, 0x1e, 0xfa], Some(SingleStep)), // endbr64
            (&[0x75, 0], Some(Emulated)),            // jne
            (&[0x0f, 0x84, 0, 0, 0, 0], Some(Emulated)), // je rel32
            (&[0x3e, 0x75, 0], None),                // jne with a branch hint
            (&[0x66, 0xe8, 0, 0], None),             // call rel16
            (&[0xf2, 0xe9, 0, 0, 0, 0], Some(Emulated)), // bnd jmp
            (&[0xeb, 0], Some(Emulated)),            // jmp rel8
            (&[0xe3, 0], Some(SingleStep)),          // jrcxz
            (&[0xe8, 0, 0, 0, 0], Some(Emulated)),   // call
            (&[0xff, 0xe0], Some(SingleStep)),       // jmp rax
            (&[0x3e, 0xff, 0xe0], None),             // notrack jmp rax
            (&[0xc3], Some(SingleStep)),             // ret
            (&[0x64, 0x48, 0x8b, 4, 0x25, 0x28, 0, 0, 0], Some(SingleStep)), // mov rax,fs:0x28
            (&[0xf0, 0x48, 0xff, 0x07], None),       // lock inc [rdi]
            (&[0xcc], None),                         // int3
            (&[], None),
        ] {
            assert_eq!(class_of(bytes), class, "{bytes:x?}");
        }
    }
}
