//! Turns entries and exits of probed functions into operation records.
//!
//! A call is named by its thread and its slot, the address of its return address. Frames are pushed at entry and
//! popped at exit; a frame whose slot lies below where the thread now is has been abandoned.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_attach_cookie, bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::uprobe,
    programs::ProbeContext,
};
use cadscope_common::{
    cookie::{Base, Cookie, Edge, RETURN_NOT_FINAL},
    probe::{MAX_FETCHES, MAX_STEPS, ProbeProgram, TEXT_BLOCK, TEXT_BYTES, WORDS, base, edge, flags, kind},
    record::{OPERATION_HEAD_BYTES, Operation, ended_by, record_kind},
    settings::{Counter, MAX_DEPTH},
};

use crate::{
    emit,
    maps::{CAPTURES, Frame, PROBES, TARGETS, THREADS, Thread, ZERO_OPERATION, ZERO_THREAD, count, setting},
    process, user,
};

const CAPTURED: u32 = 1 << 31;

/// Frames further apart than this are taken to be on different stacks (a signal stack, a coroutine).
pub const STACK_SPAN: u64 = 16 << 20;

/// How frames end when they do not return.
#[derive(Clone, Copy)]
pub struct Ending {
    /// See [`ended_by`].
    pub by: u8,
    /// Signal number.
    pub signal: u8,
    /// Exception record.
    pub exception: u64,
    /// When.
    pub at_ns: u64,
}

/// Registers that fetches may start from.
struct Registers {
    args: [u64; 6],
    returned: u64,
}

#[inline(always)]
pub fn ids() -> (u32, u32) {
    // SAFETY: no preconditions.
    let both = unsafe { bpf_get_current_pid_tgid() };
    ((both >> 32) as u32, both as u32)
}

#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn slot_of(ctx: &ProbeContext, cookie: Cookie) -> u64 {
    // SAFETY: the context is a pt_regs for the whole program.
    let (sp, fp) = unsafe { ((*ctx.regs).rsp, (*ctx.regs).rbp) };
    let register = match cookie.base() {
        Base::StackPointer => sp,
        Base::FramePointer => fp,
    };
    register.wrapping_add_signed(cookie.distance())
}

#[inline(always)]
fn cookie_of(ctx: &ProbeContext) -> Cookie {
    // SAFETY: the context is the one the kernel gave.
    Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) })
}

#[inline(always)]
fn frame(thread: *mut Thread, index: u32) -> *mut Frame {
    // SAFETY: the mask keeps the index inside the array.
    unsafe { (&raw mut (*thread).frames).cast::<Frame>().add(index as usize & (MAX_DEPTH - 1)) }
}

#[inline(always)]
fn capture_key(tid: u32, index: u32) -> u64 {
    u64::from(tid) << 32 | u64::from(index)
}

#[uprobe]
pub fn call_enter(ctx: ProbeContext) -> u32 {
    enter(&ctx);
    0
}

#[inline(always)]
fn enter(ctx: &ProbeContext) -> Option<()> {
    let start_ns = now_ns();
    let (pid, tid) = ids();
    if setting!(only_targets) == 1 && TARGETS.get_ptr(pid).is_none() {
        return None;
    }
    let cookie = cookie_of(ctx);
    let program = PROBES.get_ptr(cookie.probe())?;
    count(Counter::Entered);
    let slot = slot_of(ctx, cookie);
    let thread = thread_of(pid, tid)?;
    let abandoned = Ending { by: ended_by::JUMP, signal: 0, exception: 0, at_ns: start_ns };
    // A frame with this very slot is dead too, unless its function goes on in this one by a tail call.
    if close_below(thread, tid, slot, true, abandoned) > 0 {
        count(Counter::Abandoned);
    }
    // SAFETY: the thread's state is touched by the thread itself only.
    let depth = unsafe { (*thread).depth };
    if depth as usize >= MAX_DEPTH {
        count(Counter::TooDeep);
        return None;
    }
    let mut state = 0;
    // SAFETY: map values live as long as the program.
    if unsafe { (*program).fetch_count } > 0 {
        match capture_of(thread, tid, depth) {
            Some(record) => {
                // SAFETY: the context is a pt_regs; fields are plain integers.
                let regs = unsafe { &*ctx.regs };
                let registers =
                    Registers { args: [regs.rdi, regs.rsi, regs.rdx, regs.rcx, regs.r8, regs.r9], returned: 0 };
                state = CAPTURED | fetch(program, record, edge::ENTER, &registers, false);
            }
            None => count(Counter::NoCapture),
        }
    }
    let top = frame(thread, depth);
    // SAFETY: inside the thread's frames.
    unsafe { *top = Frame { slot, start_ns, probe: cookie.probe(), state } };
    // SAFETY: as above.
    unsafe { (*thread).depth = depth + 1 };
    Some(())
}

#[uprobe]
pub fn call_leave(ctx: ProbeContext) -> u32 {
    leave(&ctx);
    0
}

#[inline(always)]
fn leave(ctx: &ProbeContext) -> Option<()> {
    let end_ns = now_ns();
    let (pid, tid) = ids();
    let cookie = cookie_of(ctx);
    let own = cookie.edge_bits() == Edge::Leave as u8;
    let Some(thread) = THREADS.get_ptr_mut(tid) else {
        if own && (setting!(only_targets) == 0 || TARGETS.get_ptr(pid).is_some()) {
            count(Counter::ReturnWithoutEntry);
        }
        return None;
    };
    let slot = slot_of(ctx, cookie);
    let abandoned = Ending { by: ended_by::JUMP, signal: 0, exception: 0, at_ns: end_ns };
    if close_below(thread, tid, slot, false, abandoned) > 0 {
        count(Counter::Abandoned);
    }
    let mut closed = false;
    // SAFETY: the context is a pt_regs; the fields are plain integers.
    let regs = unsafe { &*ctx.regs };
    let register = cookie.return_register();
    let returned = match register {
        0 => regs.rax,
        1 => regs.rcx,
        2 => regs.rdx,
        3 => regs.rbx,
        5 => regs.rbp,
        6 => regs.rsi,
        7 => regs.rdi,
        8 => regs.r8,
        9 => regs.r9,
        10 => regs.r10,
        11 => regs.r11,
        12 => regs.r12,
        13 => regs.r13,
        14 => regs.r14,
        15 => regs.r15,
        _ => 0,
    };
    let registers = Registers { args: [0; 6], returned };
    for _ in 0..MAX_DEPTH {
        // SAFETY: the thread's state is touched by the thread itself only.
        let depth = unsafe { (*thread).depth };
        if depth == 0 {
            break;
        }
        let top = frame(thread, depth - 1);
        // SAFETY: inside the thread's frames.
        if unsafe { (*top).slot } != slot {
            break;
        }
        let ending = Ending { by: ended_by::RETURN, signal: 0, exception: 0, at_ns: end_ns };
        close_top(thread, tid, ending, Some((&registers, register != RETURN_NOT_FINAL)));
        closed = true;
    }
    if own && !closed {
        count(Counter::ReturnWithoutEntry);
    }
    Some(())
}

/// The state of this thread, made if this is its first call.
#[inline(always)]
fn thread_of(pid: u32, tid: u32) -> Option<*mut Thread> {
    if let Some(thread) = THREADS.get_ptr_mut(tid) {
        return Some(thread);
    }
    let zero = ZERO_THREAD.get_ptr(0)?;
    // SAFETY: a map value that is never written.
    if THREADS.insert(tid, unsafe { &*zero }, 0).is_err() {
        count(Counter::TooManyThreads);
        return None;
    }
    let thread = THREADS.get_ptr_mut(tid)?;
    // SAFETY: the thread's state is touched by the thread itself only.
    unsafe { (*thread).process = process::current(pid) };
    Some(thread)
}

/// The record of the call at this depth, made if it is the first there.
#[inline(always)]
fn capture_of(thread: *mut Thread, tid: u32, depth: u32) -> Option<*mut Operation> {
    let key = capture_key(tid, depth);
    if let Some(record) = CAPTURES.get_ptr_mut(key) {
        return Some(record);
    }
    let zero = ZERO_OPERATION.get_ptr(0)?;
    // SAFETY: a map value that is never written.
    CAPTURES.insert(key, unsafe { &*zero }, 0).ok()?;
    // SAFETY: the thread's state is touched by the thread itself only.
    unsafe { (*thread).captures |= 1 << (u64::from(depth) & 63) };
    CAPTURES.get_ptr_mut(key)
}

/// Runs the fetches of one edge; returns the bits of those that could not be read.
#[inline(always)]
fn fetch(
    program: *const ProbeProgram,
    record: *mut Operation,
    at: u8,
    registers: &Registers,
    return_known: bool,
) -> u32 {
    let mut unread = 0;
    // SAFETY: map values live as long as the program.
    let count_fetches = unsafe { (*program).fetch_count };
    for index in 0..MAX_FETCHES {
        if index as u32 >= count_fetches {
            break;
        }
        // SAFETY: the index is inside the array.
        let fetch = unsafe { &*(&raw const (*program).fetches).cast::<cadscope_common::probe::Fetch>().add(index) };
        if fetch.edge != at {
            continue;
        }
        if !fetch_one(fetch, record, registers, return_known) {
            unread |= 1 << index;
            count(Counter::Unread);
        }
    }
    unread
}

#[inline(always)]
fn fetch_one(
    fetch: &cadscope_common::probe::Fetch,
    record: *mut Operation,
    registers: &Registers,
    return_known: bool,
) -> bool {
    let from = fetch.base;
    let mut value = if from <= base::ARG5 {
        registers.args[from as usize & 7 % 6]
    } else if from == base::RETURN {
        if !return_known {
            return false;
        }
        registers.returned
    } else {
        // SAFETY: the mask keeps the index inside the array.
        unsafe { *(&raw const (*record).words).cast::<u64>().add(from as usize & (WORDS - 1)) }
    };
    let steps = fetch.steps as usize;
    for step in 0..MAX_STEPS {
        if step >= steps {
            break;
        }
        let address = value.wrapping_add_signed(i64::from(fetch.offsets[step]));
        if step + 1 == steps {
            value = address;
            break;
        }
        match user::read_u64(address) {
            Some(next) => value = next,
            None => return false,
        }
    }
    if fetch.kind == kind::TEXT {
        return fetch_text(fetch.place, fetch.blocks, record, value);
    }
    let mut word = value;
    if steps > 0 {
        word = 0;
        let size: u32 = match fetch.kind {
            kind::U64 => 8,
            kind::I32 | kind::U32 => 4,
            kind::U16 => 2,
            _ => 1,
        };
        // SAFETY: at most eight bytes into a u64.
        if !unsafe { user::read((&raw mut word).cast(), size, value) } {
            return false;
        }
    }
    let word = match fetch.kind {
        kind::I32 => word as u32 as i32 as i64 as u64,
        kind::U32 => word & 0xffff_ffff,
        kind::U16 => word & 0xffff,
        kind::U8 => word & 0xff,
        _ => word,
    };
    // SAFETY: the mask keeps the index inside the array.
    unsafe { *(&raw mut (*record).words).cast::<u64>().add(fetch.place as usize & (WORDS - 1)) = word };
    true
}

#[inline(always)]
fn fetch_text(place: u8, blocks: u8, record: *mut Operation, address: u64) -> bool {
    const BLOCKS: usize = TEXT_BYTES / TEXT_BLOCK;
    let first = place as usize & (BLOCKS - 1);
    // SAFETY: the block is inside the text.
    let to = unsafe { (&raw mut (*record).text).cast::<u8>().add(first * TEXT_BLOCK) };
    // SAFETY: the first byte of a block.
    unsafe { *to = 0 };
    // The sizes are constants in each branch, so that the verifier sees that they stay inside the text.
    match (blocks, first) {
        // SAFETY: the whole text.
        (4, 0) => unsafe { user::read_text(to, 256, address) },
        // SAFETY: three blocks from the first or second.
        (3, 0 | 1) => unsafe { user::read_text(to, 192, address) },
        // SAFETY: two blocks from the first to third.
        (2, 0..=2) => unsafe { user::read_text(to, 128, address) },
        // SAFETY: one block.
        (1, _) => unsafe { user::read_text(to, 64, address) },
        _ => false,
    }
}

/// Ends the frames whose slot lies below `slot` on the same stack (or at it, if `at_too` and the frame's function does
/// not go on by a tail call). Returns how many.
#[inline(always)]
pub fn close_below(thread: *mut Thread, tid: u32, slot: u64, at_too: bool, ending: Ending) -> u32 {
    let mut closed = 0;
    for _ in 0..MAX_DEPTH {
        // SAFETY: the thread's state is touched by the thread itself only.
        let depth = unsafe { (*thread).depth };
        if depth == 0 {
            break;
        }
        let top = frame(thread, depth - 1);
        // SAFETY: inside the thread's frames.
        let (top_slot, probe) = unsafe { ((*top).slot, (*top).probe) };
        if top_slot > slot || slot - top_slot > STACK_SPAN {
            break;
        }
        if top_slot == slot && (!at_too || goes_on(probe)) {
            break;
        }
        close_top(thread, tid, ending, None);
        closed += 1;
    }
    closed
}

#[inline(always)]
fn goes_on(probe: u32) -> bool {
    // SAFETY: map values live as long as the program.
    PROBES.get_ptr(probe).is_some_and(|program| unsafe { (*program).flags } & flags::TAIL_CALLS != 0)
}

/// Ends every frame of a thread.
#[inline(always)]
pub fn close_all(thread: *mut Thread, tid: u32, ending: Ending) {
    for _ in 0..MAX_DEPTH {
        // SAFETY: the thread is gone or this is it.
        if unsafe { (*thread).depth } == 0 {
            break;
        }
        close_top(thread, tid, ending, None);
    }
}

/// Forgets a thread.
#[inline(always)]
pub fn forget(thread: *mut Thread, tid: u32) {
    // SAFETY: the thread is gone or this is it.
    let captures = unsafe { (*thread).captures };
    for depth in 0..MAX_DEPTH as u32 {
        if captures >> depth & 1 != 0 {
            let _ = CAPTURES.remove(capture_key(tid, depth));
        }
    }
    let _ = THREADS.remove(tid);
}

/// Ends the innermost frame and sends its record. `returned` is there only if it returned.
#[inline(never)]
fn close_top(thread: *mut Thread, tid: u32, ending: Ending, returned: Option<(&Registers, bool)>) {
    close_top_inner(thread, tid, ending, returned);
}

#[inline(always)]
fn close_top_inner(
    thread: *mut Thread,
    tid: u32,
    ending: Ending,
    returned: Option<(&Registers, bool)>,
) -> Option<()> {
    // SAFETY: the thread's state is touched by the thread itself only.
    let depth = unsafe { (*thread).depth }.wrapping_sub(1);
    // SAFETY: as above.
    unsafe { (*thread).depth = depth };
    let top = frame(thread, depth);
    // SAFETY: inside the thread's frames.
    let (start_ns, probe, state) = unsafe { ((*top).start_ns, (*top).probe, (*top).state) };
    let program = PROBES.get_ptr(probe)?;
    // SAFETY: map values live as long as the program.
    if ending.at_ns.wrapping_sub(start_ns) < unsafe { (*program).min_duration_ns } {
        count(Counter::TooShort);
        return None;
    }
    let parent_start_ns = if depth == 0 {
        0
    } else {
        // SAFETY: inside the thread's frames.
        unsafe { (*frame(thread, depth - 1)).start_ns }
    };
    let mut head = [0_u64; OPERATION_HEAD_BYTES / 8];
    let capture = if state & CAPTURED != 0 { CAPTURES.get_ptr_mut(capture_key(tid, depth)) } else { None };
    let (record, text_len, mut unread) = match capture {
        Some(record) => {
            // SAFETY: map values live as long as the program.
            let text_len = unsafe { (*program).flags } >> flags::TEXT_LEN_SHIFT;
            (record, text_len, state & 0xffff)
        }
        None => (head.as_mut_ptr().cast::<Operation>(), 0, 0xffff),
    };
    if capture.is_some() {
        match returned {
            Some((registers, known)) => unread |= fetch(program, record, edge::LEAVE, registers, known),
            None => unread |= leave_bits(program),
        }
    }
    // SAFETY: both kinds of record have room for the head.
    unsafe {
        (*record).kind = record_kind::OPERATION;
        (*record).probe = probe;
        (*record).process = (*thread).process;
        (*record).tid = tid;
        (*record).depth = depth;
        (*record).start_ns = start_ns;
        (*record).end_ns = ending.at_ns;
        (*record).parent_start_ns = parent_start_ns;
        (*record).exception = ending.exception;
        (*record).ended_by = ending.by;
        (*record).signal = ending.signal;
        (*record).unread = unread as u16;
        (*record).text_len = text_len;
    }
    let extra = u64::from(text_len).min(TEXT_BYTES as u64);
    match capture {
        // SAFETY: a whole record.
        Some(record) => unsafe { emit::operation(record.cast(), OPERATION_HEAD_BYTES as u64 + extra) },
        // SAFETY: the head.
        None => unsafe { emit::operation(head.as_ptr().cast(), OPERATION_HEAD_BYTES as u64) },
    }
    Some(())
}

/// The bits of all fetches of the leave edge.
#[inline(always)]
fn leave_bits(program: *const ProbeProgram) -> u32 {
    let mut bits = 0;
    for index in 0..MAX_FETCHES {
        // SAFETY: the index is inside the array.
        let fetch = unsafe { &*(&raw const (*program).fetches).cast::<cadscope_common::probe::Fetch>().add(index) };
        // SAFETY: map values live as long as the program.
        if (index as u32) < unsafe { (*program).fetch_count } && fetch.edge == edge::LEAVE {
            bits |= 1 << index;
        }
    }
    bits
}
