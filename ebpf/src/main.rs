//! The kernel side of cadscope: turns probe hits and process events into records. It records facts and decides
//! nothing: what a call means, and whether anybody wants to know, is the agent's business.
//!
//! | module | programs |
//! |---|---|
//! | [`call`] | `call_enter`, `call_leave`: function entries and exits |
//! | [`unwind`] | `exception_caught`, `jumped`: frames left without a return |
//! | [`process`] | `process_forked`, `process_executed`, `thread_exited`, `signal_sent`, `signal_delivered` |
//! | [`tls`] | `tls_write`, `tls_read`, `tls_read_end`, `tls_free`: loaded only if they are asked for |
//! | [`memory`] | `memory_changing`, or `memory_unmapping` and `memory_unmapped`; `victim_marked`; `cpu_located`, run once on each CPU |
//!
//! uprobe programs can sleep, or be preempted by another task that hits a probe on the same CPU, so nothing is kept in
//! per-CPU scratch memory, nor in a stack that the kernel gives a CPU ([`stack`]): what a call needs lives in map values
//! that only its own thread touches.
#![no_std]
#![no_main]
// Inline assembly: the only way to an atomic add, which core does not offer for this target.
#![feature(asm_experimental_arch)]

mod aggregate;
mod call;
mod emit;
mod fetch;
mod frames;
mod hit;
mod machine;
mod maps;
mod memory;
mod process;
mod stack;
mod tally;
mod task;
mod tls;
mod unwind;
mod user;

/// The kernel lets only GPL-compatible programs use its tracing helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
