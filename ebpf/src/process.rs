//! Turns forks, execs and exits into records, and ends what was open when a thread goes.

use aya_ebpf::{
    helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use cadscope_common::record::{Life, ProcessKey, ended_by, record_kind};

use crate::{
    call::{Ending, close_all, forget, ids, now_ns},
    emit,
    maps::{EXECUTED, TARGETS, THREADS, WORKERS, setting},
};

const SIGNAL_GROUP_EXIT: u32 = 4;

/// How a thread ends, by (the process ends) << 1 | (by a signal). Only exec kills single threads. A table, not a match:
/// the verifier would walk the rest once for each case.
static ENDINGS: [u8; 4] = [ended_by::THREAD_EXIT, ended_by::EXEC, ended_by::PROCESS_EXIT, ended_by::SIGNAL];

/// Reads a plain value from kernel memory; zero if it cannot be read.
#[inline(always)]
fn kernel<T: Copy + Default>(object: u64, offset: u32) -> T {
    let mut value = T::default();
    let from = object.wrapping_add(u64::from(offset));
    // SAFETY: the size of the value; the source is checked by the helper.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, from as *const _) };
    value
}

#[inline(always)]
fn current_task() -> u64 {
    // SAFETY: no preconditions.
    unsafe { bpf_get_current_task() }
}

/// A `u64` field of the current task.
#[inline(always)]
pub fn current_u64(offset: u32) -> u64 {
    kernel(current_task(), offset)
}

#[inline(always)]
fn key_of(task: u64, pid: u32) -> ProcessKey {
    let leader: u64 = kernel(task, setting!(offsets.task_group_leader));
    ProcessKey { pid, padding: 0, start_boottime_ns: kernel(leader, setting!(offsets.task_start_boottime)) }
}

/// The key of the process that runs.
#[inline(always)]
pub fn current(pid: u32) -> ProcessKey {
    key_of(current_task(), pid)
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_forked(ctx: RawTracePointContext) -> i32 {
    let task: u64 = ctx.arg(1);
    let child: u32 = kernel(task, setting!(offsets.task_tgid));
    let (parent, _) = ids();
    if child == parent {
        return 0;
    }
    if setting!(only_targets) == 1 && TARGETS.get_ptr(parent).is_some() {
        let _ = TARGETS.insert(child, 1, 0);
    }
    if WORKERS.get_ptr(parent).is_some() {
        let key = key_of(task, child);
        let _ = WORKERS.insert(child, key, 0);
        emit::urgent(&Life {
            kind: record_kind::FORK,
            status: 0,
            process: current(parent),
            child: key,
            at_ns: now_ns(),
        });
    }
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_executed(ctx: RawTracePointContext) -> i32 {
    let old_tid: u32 = ctx.arg::<i32>(1) as u32;
    let (pid, _) = ids();
    let at_ns = now_ns();
    if let Some(thread) = THREADS.get_ptr_mut(old_tid) {
        close_all(thread, old_tid, &Ending { by: ended_by::EXEC, signal: 0, exception: 0, at_ns });
        forget(thread, old_tid);
    }
    let _ = EXECUTED.insert(pid, at_ns, 0);
    if WORKERS.get_ptr(pid).is_some() {
        let _ = WORKERS.remove(pid);
        let key = current(pid);
        emit::urgent(&Life { kind: record_kind::EXEC, status: 0, process: key, child: key, at_ns });
    }
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn thread_exited(_ctx: RawTracePointContext) -> i32 {
    let (pid, tid) = ids();
    let task = current_task();
    let signal: u64 = kernel(task, setting!(offsets.task_signal));
    let last = kernel::<i32>(signal, setting!(offsets.signal_live)) == 0;
    let flags: u32 = kernel(signal, setting!(offsets.signal_flags));
    let own_code: u32 = kernel(task, setting!(offsets.task_exit_code));
    let group = flags & SIGNAL_GROUP_EXIT != 0;
    let status = if group { kernel(signal, setting!(offsets.signal_group_exit_code)) } else { own_code };
    let number = (status & 0x7f) as u8;
    let at_ns = now_ns();
    if let Some(thread) = THREADS.get_ptr_mut(tid) {
        let case = usize::from(group || last) << 1 | usize::from(number != 0);
        // SAFETY: two bits, four entries.
        let by = unsafe { core::ptr::read_volatile((&raw const ENDINGS).cast::<u8>().add(case & 3)) };
        let signal = if by == ended_by::SIGNAL { number } else { 0 };
        close_all(thread, tid, &Ending { by, signal, exception: 0, at_ns });
        forget(thread, tid);
    }
    if last {
        if setting!(only_targets) == 1 {
            let _ = TARGETS.remove(pid);
        }
        if WORKERS.get_ptr(pid).is_some() {
            let _ = WORKERS.remove(pid);
            let key = current(pid);
            emit::urgent(&Life { kind: record_kind::EXIT, status, process: key, child: key, at_ns });
        }
    }
    0
}
