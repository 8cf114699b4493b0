//! x86-64, System V ABI.

use aya_ebpf::programs::ProbeContext;
use cadscope_common::probe::base;

use super::put;
use crate::{
    maps::setting,
    task::{current_u64, kernel},
    user,
};

/// Bases of a fetch up to this one are registers.
pub const LAST_REGISTER: u8 = base::RETURN;
/// x86 numbers of the registers with the arguments, the first in the lowest four bits.
pub const ARGUMENTS: u32 = 0x98_1267;

/// `pt_regs::orig_ax` and `pt_regs::sp`.
const ORIG_AX: u32 = 120;
const SP: u32 = 152;
pub const SYS_EXIT: u64 = 60;
pub const SYS_EXIT_GROUP: u64 = 231;

/// The stack pointer lies at this offset of glibc's and musl's `jmp_buf`.
const JMP_BUF_RSP: u64 = 48;
/// glibc's pointer guard lies at this offset from the thread pointer.
const POINTER_GUARD: u64 = 0x30;

/// Whether glibc ends a thread by a jump that programs could make as well.
pub const ENDS_THREADS_BY_JUMP: bool = false;

/// Reads one register.
macro_rules! register {
    ($ctx:expr, $name:ident) => {
        // SAFETY: the context is a pt_regs for the whole program.
        unsafe { core::ptr::read_volatile(&raw const (*$ctx.regs).$name) }
    };
}

/// An argument, at a function's entry.
#[inline(always)]
pub fn argument<const NUMBER: u32>(ctx: &ProbeContext) -> u64 {
    match NUMBER {
        0 => register!(ctx, rdi),
        1 => register!(ctx, rsi),
        2 => register!(ctx, rdx),
        3 => register!(ctx, rcx),
        4 => register!(ctx, r8),
        _ => register!(ctx, r9),
    }
}

#[inline(always)]
pub fn stack_pointer(ctx: &ProbeContext) -> u64 {
    register!(ctx, rsp)
}

#[inline(always)]
pub fn frame_pointer(ctx: &ProbeContext) -> u64 {
    register!(ctx, rbp)
}

/// Keeps what is read of an entry.
#[inline(always)]
pub fn keep_arguments(ctx: &ProbeContext, to: *mut u64) {
    put(to, 7, register!(ctx, rdi));
    put(to, 6, register!(ctx, rsi));
    put(to, 2, register!(ctx, rdx));
    put(to, 1, register!(ctx, rcx));
    put(to, 8, register!(ctx, r8));
    put(to, 9, register!(ctx, r9));
}

/// Keeps what may hold the value that is returned.
#[inline(always)]
pub fn keep_registers(ctx: &ProbeContext, to: *mut u64) {
    // All, not a match: the verifier would walk the rest once for each register.
    put(to, 0, register!(ctx, rax));
    put(to, 1, register!(ctx, rcx));
    put(to, 2, register!(ctx, rdx));
    put(to, 3, register!(ctx, rbx));
    put(to, 5, register!(ctx, rbp));
    put(to, 6, register!(ctx, rsi));
    put(to, 7, register!(ctx, rdi));
    put(to, 8, register!(ctx, r8));
    put(to, 9, register!(ctx, r9));
    put(to, 10, register!(ctx, r10));
    put(to, 11, register!(ctx, r11));
    put(to, 12, register!(ctx, r12));
    put(to, 13, register!(ctx, r13));
    put(to, 14, register!(ctx, r14));
    put(to, 15, register!(ctx, r15));
}

/// The register that holds the returned value. All are read first: the verifier allows no computed place in the context.
#[inline(always)]
pub fn returned(ctx: &ProbeContext, number: u32) -> u64 {
    let (rax, rcx, rdx, rbx) =
        (register!(ctx, rax), register!(ctx, rcx), register!(ctx, rdx), register!(ctx, rbx));
    let (rbp, r12, r13, r14) =
        (register!(ctx, rbp), register!(ctx, r12), register!(ctx, r13), register!(ctx, r14));
    let r15 = register!(ctx, r15);
    match number {
        0 => rax,
        1 => rcx,
        2 => rdx,
        3 => rbx,
        5 => rbp,
        12 => r12,
        13 => r13,
        14 => r14,
        15 => r15,
        _ => 0,
    }
}

/// The number of the system call that a task is in, and its stack pointer outside of the kernel, by its `pt_regs`.
#[inline(always)]
pub fn system_call(registers: u64) -> (u64, u64) {
    (kernel(registers, ORIG_AX), kernel(registers, SP))
}

/// The stack pointer that a jump by this `jmp_buf` leads to. glibc mangles it.
#[inline(always)]
pub fn jump_target(buffer: u64) -> Option<u64> {
    let stored = user::read_u64(buffer.wrapping_add(JMP_BUF_RSP))?;
    if is_stack_pointer(stored) {
        return Some(stored);
    }
    let fsbase = current_u64(setting!(offsets.task_fsbase));
    let guard = user::read_u64(fsbase.wrapping_add(POINTER_GUARD))?;
    let target = stored.rotate_right(0x11) ^ guard;
    is_stack_pointer(target).then_some(target)
}

/// Whether a number can be a stack pointer; glibc's mangled ones look so once in 2^20.
#[inline(always)]
fn is_stack_pointer(number: u64) -> bool {
    number >> 47 == 0 && number & 7 == 0 && number != 0
}
