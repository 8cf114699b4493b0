//! arm64, AAPCS64 as Linux has it.
//!
//! The return address is in a register at a function's entry and on its way out. The slot is nevertheless eight bytes
//! below the canonical frame address, as on x86-64: the cookie's distance says so.

use aya_ebpf::programs::ProbeContext;
use cadscope_common::probe::base;

use super::put;
use crate::{task::kernel, user};

/// Bases of a fetch up to this one are registers.
pub const LAST_REGISTER: u8 = base::RESULT_PLACE;
/// Numbers of the registers with the arguments, the first in the lowest four bits, and of that with the result's place.
pub const ARGUMENTS: u32 = 0x8054_3210;

/// `pt_regs::syscallno` and `pt_regs::sp`.
const SYSCALLNO: u32 = 280;
const SP: u32 = 248;
pub const SYS_EXIT: u64 = 93;
pub const SYS_EXIT_GROUP: u64 = 94;

/// The stack pointer and the frame pointer lie at these offsets of glibc's and musl's `jmp_buf`.
const JMP_BUF_SP: u64 = 104;
const JMP_BUF_X29: u64 = 80;

/// Whether glibc ends a thread by a jump that programs could make as well: `pthread_exit` and cancellation call `longjmp`.
pub const ENDS_THREADS_BY_JUMP: bool = true;

/// Reads one register of those with a number.
macro_rules! register {
    ($ctx:expr, $number:expr) => {
        // SAFETY: the context is a user_pt_regs for the whole program.
        unsafe { core::ptr::read_volatile((&raw const (*$ctx.regs).regs).cast::<u64>().add($number)) }
    };
}

/// An argument, at a function's entry.
#[inline(always)]
pub fn argument<const NUMBER: u32>(ctx: &ProbeContext) -> u64 {
    register!(ctx, NUMBER as usize & 7)
}

#[inline(always)]
pub fn stack_pointer(ctx: &ProbeContext) -> u64 {
    // SAFETY: the context is a user_pt_regs for the whole program.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.regs).sp) }
}

#[inline(always)]
pub fn frame_pointer(ctx: &ProbeContext) -> u64 {
    register!(ctx, 29)
}

/// Keeps what is read of an entry.
#[inline(always)]
pub fn keep_arguments(ctx: &ProbeContext, to: *mut u64) {
    put(to, 0, register!(ctx, 0));
    put(to, 1, register!(ctx, 1));
    put(to, 2, register!(ctx, 2));
    put(to, 3, register!(ctx, 3));
    put(to, 4, register!(ctx, 4));
    put(to, 5, register!(ctx, 5));
    put(to, 8, register!(ctx, 8));
}

/// Keeps what holds the value that is returned: exits are on the return itself, or on a jump with the callee's value to come.
#[inline(always)]
pub fn keep_registers(ctx: &ProbeContext, to: *mut u64) {
    put(to, 0, register!(ctx, 0));
}

/// The register that holds the returned value.
#[inline(always)]
pub fn returned(ctx: &ProbeContext, number: u32) -> u64 {
    let x0 = register!(ctx, 0);
    if number == 0 { x0 } else { 0 }
}

/// The number of the system call that a task is in, and its stack pointer outside of the kernel, by its `pt_regs`.
#[inline(always)]
pub fn system_call(registers: u64) -> (u64, u64) {
    (u64::from(kernel::<u32>(registers, SYSCALLNO)), kernel(registers, SP))
}

/// The stack pointer that a jump by this `jmp_buf` leads to, or an address in its frame above all that it called.
///
/// glibc mangles the stack pointer with a guard that lies in the loader's memory, but not the frame pointer, which by
/// the ABI addresses the frame's record: that lies in the frame that is jumped to.
#[inline(always)]
pub fn jump_target(buffer: u64) -> Option<u64> {
    let stored = user::read_u64(buffer.wrapping_add(JMP_BUF_SP))?;
    if is_stack_pointer(stored) {
        return Some(stored);
    }
    let record = user::read_u64(buffer.wrapping_add(JMP_BUF_X29))?;
    is_stack_pointer(record).then_some(record)
}

/// Whether a number can be a stack pointer; glibc's mangled ones look so once in 2^20.
#[inline(always)]
fn is_stack_pointer(number: u64) -> bool {
    number >> 48 == 0 && number & 15 == 0 && number != 0
}
