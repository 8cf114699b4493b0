//! Reads the kernel's own structures, at the offsets that the agent took from its types.

use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_task_pt_regs,
};
use cadscope_common::record::ProcessKey;

use crate::{machine, maps::setting};

/// Reads a plain value from kernel memory; zero if it cannot be read.
#[inline(always)]
pub fn kernel<T: Copy + Default>(object: u64, offset: u32) -> T {
    let mut value = T::default();
    let from = object.wrapping_add(u64::from(offset));
    // SAFETY: the size of the value; the source is checked by the helper.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, from as *const _) };
    value
}

/// The task that runs.
#[inline(always)]
pub fn current_task() -> u64 {
    // SAFETY: no preconditions.
    unsafe { bpf_get_current_task() }
}

/// A `u64` field of the current task.
#[inline(always)]
pub fn current_u64(offset: u32) -> u64 {
    kernel(current_task(), offset)
}

/// The key of a task's process.
#[inline(always)]
pub fn key_of(task: u64, pid: u32) -> ProcessKey {
    let leader: u64 = kernel(task, setting!(offsets.task_group_leader));
    ProcessKey { pid, padding: 0, start_boottime_ns: kernel(leader, setting!(offsets.task_start_boottime)) }
}

/// The key of the process that runs.
#[inline(always)]
pub fn current(pid: u32) -> ProcessKey {
    key_of(current_task(), pid)
}

/// The number of the system call that the current task is in, and its stack pointer outside of the kernel.
#[inline(always)]
pub fn system_call() -> (u64, u64) {
    // SAFETY: no preconditions.
    let task = unsafe { bpf_get_current_task_btf() };
    // SAFETY: the task is the kernel's own pointer.
    let registers = unsafe { bpf_task_pt_regs(task) } as u64;
    machine::system_call(registers)
}
