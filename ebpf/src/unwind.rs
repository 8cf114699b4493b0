//! Turns exceptions and jumps into the end of the operations they left.
//!
//! No uretprobe is needed: where a cleanup ends (`_Unwind_Resume`) and where a handler begins (`__cxa_begin_catch`),
//! every frame below is gone, and the exception object names its type. A destructor that runs meanwhile can throw and
//! catch exceptions of its own; that these leave alone what the outer one has left is why a throw is noted.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use cadscope_common::{
    open::{Flight, MAX_FLIGHTS, Thread},
    record::{TYPE_NAME_BYTES, ended_by, record_kind},
    settings::MAX_DEPTH,
};

use crate::{
    emit,
    frames::{Ending, Left, STACK_SPAN, close_left},
    hit::{cookie_of, ids, now_ns, slot_of},
    machine::{ENDS_THREADS_BY_JUMP, argument, jump_target},
    maps::THREADS,
    stack, task, user,
};

/// `_Unwind_Exception` lies this far behind `exceptionType` in libstdc++'s and libc++abi's `__cxa_exception`.
const TYPE_BEFORE_UNWIND_HEADER: u64 = 80;
/// The thrown object lies this far behind `exceptionType` (the header is 112 bytes from there, libstdc++ and libc++abi).
const TYPE_BEFORE_OBJECT: u64 = 112;
/// In a dependent exception (`std::rethrow_exception`) the first field is the thrown object.
const DEPENDENT: u64 = 1;

/// Where both common unwinders keep the stack pointer of the handler in an `_Unwind_Exception`.
const HANDLER_STACK: u64 = 24;

#[inline(always)]
fn flight(thread: *mut Thread, index: u64) -> *mut Flight {
    // SAFETY: the mask keeps the index inside the array.
    unsafe { (&raw mut (*thread).flying).cast::<Flight>().add(index as usize & (MAX_FLIGHTS - 1)) }
}

#[inline(always)]
fn flights(thread: *mut Thread) -> u64 {
    // SAFETY: the thread's state is touched by the thread itself only.
    unsafe { (*thread).flights }
}

/// Frames below the first `index` exceptions in flight, which only these can end.
#[inline(always)]
fn floor_under(thread: *mut Thread, index: u64) -> u32 {
    if index == 0 {
        return 0;
    }
    // SAFETY: inside the thread's flights.
    unsafe { (*flight(thread, index - 1)).floor as u32 }
}

/// Frames that only an exception in flight can end.
#[inline(always)]
pub fn floor(thread: *mut Thread) -> u32 {
    floor_under(thread, flights(thread))
}

/// Forgets exceptions that cannot be in flight any more when a call with this slot begins: until it is caught, nothing
/// runs above its handler. They were swallowed without a catch.
#[inline(always)]
pub fn forget_stale_flights(thread: *mut Thread, slot: u64) {
    let count = flights(thread);
    if count == 0 {
        return;
    }
    // SAFETY: inside the thread's flights.
    let header = unsafe { (*flight(thread, count - 1)).header };
    let handler = user::read_u64(header.wrapping_add(HANDLER_STACK)).unwrap_or(0);
    let is_same_stack = handler.abs_diff(slot) <= STACK_SPAN;
    if !is_cpp(header) || is_same_stack && slot >= handler {
        // SAFETY: the thread's state is touched by the thread itself only.
        unsafe { (*thread).flights = 0 };
    }
}

/// Where an exception stands among those in flight; their number if it is not among them.
#[inline(always)]
fn place_of(thread: *mut Thread, header: u64) -> u64 {
    let count = flights(thread);
    let mut found = count;
    for index in 0..MAX_FLIGHTS as u64 {
        // SAFETY: inside the thread's flights.
        if index < found && unsafe { (*flight(thread, index)).header } == header {
            found = index;
        }
    }
    found
}

#[inline(always)]
fn open_thread() -> Option<(u32, u32, *mut Thread)> {
    let (pid, tid) = ids();
    let thread = THREADS.get_ptr_mut(tid)?;
    // SAFETY: the thread's state is touched by the thread itself only.
    (unsafe { (*thread).depth } > 0).then_some((pid, tid, thread))
}

#[uprobe]
pub fn exception_raised(ctx: ProbeContext) -> u32 {
    stack::keep_to_the_task();
    raised(&ctx);
    0
}

#[inline(always)]
fn raised(ctx: &ProbeContext) -> Option<()> {
    let (_, _, thread) = open_thread()?;
    let header = argument::<0>(ctx);
    if !is_cpp(header) {
        if ENDS_THREADS_BY_JUMP && user::read_u64(header) == Some(0) {
            note_forced(thread, header);
        }
        return None;
    }
    // An older one with this address is over: its memory has been used again.
    let place = place_of(thread, header);
    // SAFETY: the thread's state is touched by the thread itself only.
    unsafe { (*thread).flights = place };
    // SAFETY: as above.
    let depth = unsafe { (*thread).depth };
    if depth > floor(thread) && place < MAX_FLIGHTS as u64 {
        // SAFETY: inside the thread's flights.
        unsafe { *flight(thread, place) = Flight { header, floor: u64::from(depth) } };
        // SAFETY: as above.
        unsafe { (*thread).flights = place + 1 };
    }
    Some(())
}

/// Notes that glibc unwinds the whole thread to end it, and will jump out of that to where the thread began: the end of
/// what is open is the thread's. Nothing else is told of an unwinding with this address.
#[inline(always)]
fn note_forced(thread: *mut Thread, header: u64) {
    let place = flights(thread);
    // SAFETY: the thread's state is touched by the thread itself only.
    let depth = unsafe { (*thread).depth };
    if depth > floor(thread) && place < MAX_FLIGHTS as u64 {
        // SAFETY: inside the thread's flights.
        unsafe { *flight(thread, place) = Flight { header: header | 1, floor: u64::from(depth) } };
        // SAFETY: as above.
        unsafe { (*thread).flights = place + 1 };
    }
}

#[uprobe]
pub fn cleanup_ended(ctx: ProbeContext) -> u32 {
    stack::keep_to_the_task();
    resumed(&ctx);
    0
}

#[inline(always)]
fn resumed(ctx: &ProbeContext) -> Option<()> {
    let (pid, tid, thread) = open_thread()?;
    let (slot, header) = (slot_of(ctx, cookie_of(ctx)), argument::<0>(ctx));
    let place = place_of(thread, header);
    let known = place < flights(thread);
    if !known && !is_cpp(header) {
        return None;
    }
    close_left_by(thread, pid, tid, header, slot, floor_under(thread, place));
    if known {
        // SAFETY: the thread's state is touched by the thread itself only.
        let depth = u64::from(unsafe { (*thread).depth });
        // SAFETY: inside the thread's flights.
        let floor = unsafe { &mut (*flight(thread, place)).floor };
        *floor = (*floor).min(depth);
        // SAFETY: the thread's state is touched by the thread itself only.
        unsafe { (*thread).flights = place + 1 };
    }
    Some(())
}

#[uprobe]
pub fn exception_caught(ctx: ProbeContext) -> u32 {
    stack::keep_to_the_task();
    caught(&ctx);
    0
}

#[inline(always)]
fn caught(ctx: &ProbeContext) -> Option<()> {
    let (pid, tid, thread) = open_thread()?;
    let (slot, header) = (slot_of(ctx, cookie_of(ctx)), argument::<0>(ctx));
    let place = place_of(thread, header);
    close_left_by(thread, pid, tid, header, slot, floor_under(thread, place));
    // SAFETY: the thread's state is touched by the thread itself only.
    unsafe { (*thread).flights = place };
    Some(())
}

/// Ends what an exception has left by the time that code calls with this slot: all that this code called before.
#[inline(always)]
fn close_left_by(thread: *mut Thread, pid: u32, tid: u32, header: u64, slot: u64, floor: u32) {
    // SAFETY: the thread's state is touched by the thread itself only.
    let depth = unsafe { (*thread).depth };
    if depth <= floor {
        return;
    }
    // SAFETY: the mask keeps the index inside the array.
    let top = unsafe { (*thread).frames[(depth as usize - 1) & (MAX_DEPTH - 1)].slot };
    if top > slot || slot - top > STACK_SPAN {
        return;
    }
    let at_ns = now_ns();
    // SAFETY: inside the thread's scratch.
    let record = unsafe { &mut (*thread).scratch.exception };
    record.kind = record_kind::EXCEPTION;
    record.tid = tid;
    record.process = task::current(pid);
    record.id = at_ns;
    // What follows the name's end may be another's.
    record.type_name[0] = 0;
    if let Some(name) = type_name_of(header) {
        // SAFETY: the record's own bytes.
        if !unsafe { user::read_text(record.type_name.as_mut_ptr(), TYPE_NAME_BYTES as u32, name) } {
            record.type_name[0] = 0;
        }
    }
    emit::quiet(record);
    let ending = Ending { by: ended_by::EXCEPTION, exception: at_ns, ..Ending::now(thread, at_ns) };
    close_left(thread, tid, &Left { below: slot + 1, floor, off_signal_stack: 0 }, &ending);
}

/// Whether a C++ runtime made the exception.
#[inline(always)]
fn is_cpp(header: u64) -> bool {
    // "GNUCC++\0" or "CLNGC++\0" as a big-endian number; the last byte is 1 for a dependent exception.
    user::read_u64(header).is_some_and(|class| class >> 8 & 0xff_ffff == 0x43_2b2b)
}

/// Address of the mangled name of the exception's type, if a C++ runtime made it.
#[inline(always)]
fn type_name_of(header: u64) -> Option<u64> {
    if !is_cpp(header) {
        return None;
    }
    let class = user::read_u64(header)?;
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
    stack::keep_to_the_task();
    jump(&ctx);
    0
}

#[inline(always)]
fn jump(ctx: &ProbeContext) -> Option<()> {
    let (_, tid, thread) = open_thread()?;
    let below = jump_target(argument::<0>(ctx))?;
    let ending = Ending::now(thread, now_ns());
    close_left(thread, tid, &Left { below, floor: floor(thread), off_signal_stack: 1 }, &ending);
    Some(())
}
