//! Turns forks, execs, signals and exits into records, and ends what was open when a thread goes.

use aya_ebpf::{
    helpers::generated::bpf_get_current_comm, macros::raw_tracepoint, programs::RawTracePointContext,
};
use cadscope_common::record::{Fate, Life, ended_by, record_kind};

use crate::{
    emit,
    frames::{BPF_NOEXIST, Ending, close_all, forget},
    hit::{ids, now_ns},
    machine::{SYS_EXIT, SYS_EXIT_GROUP},
    maps::{ENDED, EXECUTED, FATES, RESIDENT, TARGETS, THREADS, WORKERS, setting},
    task::{current, current_task, kernel, key_of, system_call},
};

const SIGNAL_GROUP_EXIT: u32 = 4;

/// How a thread ends, by (the process ends) << 1 | (by a signal). Only exec kills single threads. A table, not a match:
/// the verifier would walk the rest once for each case.
static ENDINGS: [u8; 4] = [ended_by::THREAD_EXIT, ended_by::EXEC, ended_by::PROCESS_EXIT, ended_by::SIGNAL];

/// Signals that a broken program raises: ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS.
const FAULTS: u64 = 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 31;
/// Signals that end a process unless it objects: those and HUP, INT, QUIT, KILL, PIPE, ALRM, TERM, XCPU, XFSZ.
const ENDS: u64 =
    FAULTS | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 9 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 24 | 1 << 25;
const EEXIST: i64 = -17;

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
            process: current(parent),
            child: key,
            at_ns: now_ns(),
            ..Life::default()
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
        close_all(thread, old_tid, &Ending { by: ended_by::EXEC, ..Ending::gone(at_ns) });
        forget(thread, old_tid);
    }
    let _ = EXECUTED.insert(pid, at_ns, 0);
    if WORKERS.get_ptr(pid).is_some() {
        let _ = WORKERS.remove(pid);
        let _ = RESIDENT.remove(pid);
        let _ = FATES.remove(pid);
        let process = current(pid);
        emit::urgent(&Life { kind: record_kind::EXEC, process, at_ns, ..Life::default() });
    }
    0
}

/// Notes who sends a worker a signal that can end it.
#[raw_tracepoint(tracepoint = "signal_generate")]
pub fn signal_sent(ctx: RawTracePointContext) -> i32 {
    let signal: u32 = ctx.arg::<i32>(0) as u32;
    if signal > 31 || ENDS >> signal & 1 == 0 {
        return 0;
    }
    let task: u64 = ctx.arg(2);
    let pid: u32 = kernel(task, setting!(offsets.task_tgid));
    if WORKERS.get_ptr(pid).is_none() {
        return 0;
    }
    let (sender, _) = ids();
    if let Some(fate) = fate_of(pid) {
        // SAFETY: map values live as long as the program.
        unsafe {
            (*fate).sent = signal;
            (*fate).sender = sender;
            bpf_get_current_comm((&raw mut (*fate).sender_name).cast(), 16);
        }
    }
    0
}

/// Notes that a fault reaches a worker's handler, or its default.
#[raw_tracepoint(tracepoint = "signal_deliver")]
pub fn signal_delivered(ctx: RawTracePointContext) -> i32 {
    let signal: u32 = ctx.arg::<i32>(0) as u32;
    if signal > 31 || FAULTS >> signal & 1 == 0 {
        return 0;
    }
    let (pid, tid) = ids();
    if WORKERS.get_ptr(pid).is_none() {
        return 0;
    }
    let (_, sp) = system_call();
    if let Some(fate) = fate_of(pid) {
        // SAFETY: map values live as long as the program.
        unsafe {
            (*fate).fault = signal;
            (*fate).fault_tid = tid;
            (*fate).fault_sp = sp;
        }
    }
    0
}

#[inline(always)]
fn fate_of(pid: u32) -> Option<*mut Fate> {
    if let Some(fate) = FATES.get_ptr_mut(pid) {
        return Some(fate);
    }
    FATES.insert(pid, Fate::default(), 0).ok()?;
    FATES.get_ptr_mut(pid)
}

/// Whether the current thread ends the process from within the handler of a fault: it calls exit deeper on its stack
/// than where the fault struck. After a recovery (a jump, an exception) it is higher up.
#[inline(always)]
fn note_handled(pid: u32, tid: u32) {
    let Some(fate) = FATES.get_ptr_mut(pid) else { return };
    // SAFETY: map values live as long as the program.
    let (fault_tid, fault_sp) = unsafe { ((*fate).fault_tid, (*fate).fault_sp) };
    if fault_tid != tid || fault_sp == 0 {
        return;
    }
    let (call, sp) = system_call();
    if (call == SYS_EXIT || call == SYS_EXIT_GROUP) && sp < fault_sp {
        // SAFETY: as above.
        unsafe { (*fate).handled = 1 };
    }
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
        // A thread that ends itself does not end its process, although before Linux 6.16 whoever waited for it has been
        // woken by now, and may have ended that.
        let own = tid != pid && system_call().0 == SYS_EXIT;
        let case = usize::from((group || last) && !own) << 1 | usize::from(number != 0 && !own);
        // SAFETY: two bits, four entries.
        let by = unsafe { core::ptr::read_volatile((&raw const ENDINGS).cast::<u8>().add(case & 3)) };
        let signal = if by == ended_by::SIGNAL { number } else { 0 };
        close_all(thread, tid, &Ending { by, signal, ..Ending::gone(at_ns) });
        forget(thread, tid);
    }
    note_handled(pid, tid);
    if last {
        if setting!(only_targets) == 1 {
            let _ = TARGETS.remove(pid);
        }
        let process = current(pid);
        // Threads that end at the same time can each find nobody left: the first tells, and its time stays the end's.
        let known = ENDED.get_ptr(pid);
        // SAFETY: map values live as long as the program.
        if known
            .is_some_and(|known| unsafe { (*known).process.start_boottime_ns == process.start_boottime_ns })
        {
            return 0;
        }
        let insertion = if known.is_some() { 0 } else { BPF_NOEXIST };
        let own_cpu_ns: u64 = kernel(task, setting!(offsets.task_sum_exec_runtime));
        let gone_cpu_ns: u64 = kernel(signal, setting!(offsets.signal_sum_sched_runtime));
        let mut life = Life {
            kind: record_kind::EXIT,
            status,
            process,
            at_ns,
            cpu_ns: own_cpu_ns.wrapping_add(gone_cpu_ns),
            peak_pages: kernel(signal, setting!(offsets.signal_maxrss)),
            ..Life::default()
        };
        if let Some(fate) = FATES.get_ptr(pid) {
            // SAFETY: map values live as long as the program.
            life.fate = unsafe { *fate };
            let _ = FATES.remove(pid);
        }
        // It may turn out to have been a worker, or be learnt of late.
        if ENDED.insert(pid, life, insertion).is_err_and(|error| i64::from(error) == EEXIST) {
            return 0;
        }
        if WORKERS.get_ptr(pid).is_some() {
            let _ = WORKERS.remove(pid);
            let _ = RESIDENT.remove(pid);
            emit::urgent(&life);
        }
    }
    0
}
