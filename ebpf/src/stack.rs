//! Keeps what a program works on in the stack of the task that runs it.
//!
//! From Linux 6.13 on the kernel gives the larger programs of this type one stack a CPU. That holds for kprobes, which
//! do not nest; a uprobe's program can sleep (the worker's page has to be read in) or be preempted, and the next task
//! that hits the probe on that CPU would work on the same bytes: calls of one worker would end up in another's thread.
//! A program with a tail call is left its task's stack.

use core::arch::asm;

/// Has the verifier see a tail call in this program, which no way leads to; it removes it.
#[inline(always)]
pub fn keep_to_the_task() {
    // SAFETY: always jumps over the call.
    unsafe {
        asm!("{zero} = 0", "if {zero} == 0 goto +1", "call 12", zero = out(reg) _, options(nostack));
    }
}
