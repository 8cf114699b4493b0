//! Turns exceptions that were caught and jumps that were made into the end of the operations they left.
//!
//! No uretprobe and no probe at `throw` is needed: at `__cxa_begin_catch` every frame below the catching one is gone,
//! and the exception object names its type.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use cadscope_common::{
    record::{Exception, TYPE_NAME_BYTES, ended_by, record_kind},
    settings::MAX_DEPTH,
};

use crate::{
    call::{Ending, STACK_SPAN, close_below, ids, now_ns, register},
    emit,
    maps::{THREADS, setting},
    task, user,
};

/// `_Unwind_Exception` lies this far behind `exceptionType` in libstdc++'s and libc++abi's `__cxa_exception`.
const TYPE_BEFORE_UNWIND_HEADER: u64 = 80;
/// The thrown object lies this far behind `exceptionType` (the header is 112 bytes from there, libstdc++ and libc++abi).
const TYPE_BEFORE_OBJECT: u64 = 112;
/// In a dependent exception (`std::rethrow_exception`) the first field is the thrown object.
const DEPENDENT: u64 = 1;

#[uprobe]
pub fn exception_caught(ctx: ProbeContext) -> u32 {
    caught(&ctx);
    0
}

#[inline(always)]
fn caught(ctx: &ProbeContext) -> Option<()> {
    let (pid, tid) = ids();
    let thread = THREADS.get_ptr_mut(tid)?;
    let (sp, header) = (register!(ctx, rsp), register!(ctx, rdi));
    // SAFETY: the thread's state is touched by the thread itself only.
    let depth = unsafe { (*thread).depth };
    if depth == 0 {
        return None;
    }
    // SAFETY: the mask keeps the index inside the array.
    let top = unsafe { (*thread).frames[(depth as usize - 1) & (MAX_DEPTH - 1)].slot };
    if top > sp || sp - top > STACK_SPAN {
        return None;
    }
    let at_ns = now_ns();
    let mut record = Exception {
        kind: record_kind::EXCEPTION,
        tid,
        process: task::current(pid),
        id: at_ns,
        type_name: [0; TYPE_NAME_BYTES],
    };
    if let Some(name) = type_name_of(header) {
        // SAFETY: the record's own bytes.
        if !unsafe { user::read_text(record.type_name.as_mut_ptr(), TYPE_NAME_BYTES as u32, name) } {
            record.type_name[0] = 0;
        }
    }
    emit::quiet(&record);
    // A callee's slot is at most the stack pointer with which the catching function calls; frames at it are dead.
    let ending = Ending { by: ended_by::EXCEPTION, exception: at_ns, ..Ending::now(at_ns) };
    close_below::<MAX_DEPTH>(thread, tid, sp + 1, false, ending);
    Some(())
}

/// Address of the mangled name of the exception's type, if a C++ runtime made it.
#[inline(always)]
fn type_name_of(header: u64) -> Option<u64> {
    // "GNUCC++\0" or "CLNGC++\0" as a big-endian number; the last byte is 1 for a dependent exception.
    let class = user::read_u64(header)?;
    if class >> 8 & 0xff_ffff_ffff != 0x0043_432b_2b00 >> 8 && class >> 8 & 0xff_ffff != 0x43_2b2b {
        return None;
    }
    let type_info = if class & 0xff == DEPENDENT {
        let object = user::read_u64(header.wrapping_sub(TYPE_BEFORE_UNWIND_HEADER))?;
        user::read_u64(object.wrapping_sub(TYPE_BEFORE_OBJECT))?
    } else {
        user::read_u64(header.wrapping_sub(TYPE_BEFORE_UNWIND_HEADER))?
    };
    user::read_u64(type_info.wrapping_add(8))
}

#[uprobe]
pub fn jumped(ctx: ProbeContext) -> u32 {
    jump(&ctx);
    0
}

/// The stack pointer lies at this offset of glibc's and musl's `jmp_buf`.
const JMP_BUF_RSP: u64 = 48;
/// glibc's pointer guard lies at this offset from the thread pointer.
const POINTER_GUARD: u64 = 0x30;

#[inline(always)]
fn jump(ctx: &ProbeContext) -> Option<()> {
    let (_, tid) = ids();
    let thread = THREADS.get_ptr_mut(tid)?;
    // SAFETY: the thread's state is touched by the thread itself only.
    if unsafe { (*thread).depth } == 0 {
        return None;
    }
    let (sp, buffer) = (register!(ctx, rsp), register!(ctx, rdi));
    let stored = user::read_u64(buffer.wrapping_add(JMP_BUF_RSP))?;
    let plausible = |target: u64| target > sp && target - sp < STACK_SPAN;
    let target = if plausible(stored) {
        stored
    } else {
        let fsbase = task::current_u64(setting!(offsets.task_fsbase));
        let guard = user::read_u64(fsbase.wrapping_add(POINTER_GUARD))?;
        stored.rotate_right(0x11) ^ guard
    };
    if plausible(target) {
        close_below::<MAX_DEPTH>(thread, tid, target, false, Ending::now(now_ns()));
    }
    Some(())
}
