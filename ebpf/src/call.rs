//! Turns entries and exits of probed functions into frames that begin and frames that return.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use cadscope_common::{
    cookie::{Edge, RETURN_NOT_FINAL},
    open::{AGGREGATED, CAPTURED, Frame, READS_AT_LEAVE, Thread},
    probe::{edge, flags},
    record::ended_by,
    settings::{Counter, MAX_DEPTH},
};

use crate::{
    fetch::{capture_of, fetch, registers},
    frames::{Ending, abandon, close_returned, end_returned, frame, is_top_dead, state_around, thread_of},
    hit::{cookie_of, ids, now_ns, slot_of},
    machine,
    maps::{PROBES, TARGETS, THREADS, count, setting},
    memory, stack,
};

#[uprobe]
pub fn call_enter(ctx: ProbeContext) -> u32 {
    stack::keep_to_the_task();
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
    let slot = slot_of(ctx, cookie);
    let thread = thread_of(pid, tid)?;
    if is_top_dead(thread, slot) {
        abandon(thread, tid, slot, start_ns);
    }
    // SAFETY: the thread's state is touched by the thread itself only.
    let depth = unsafe { (*thread).depth };
    if depth as usize >= MAX_DEPTH {
        count(Counter::TooDeep);
        return None;
    }
    // SAFETY: map values live as long as the program.
    let probe_flags = unsafe { (*program).flags };
    if probe_flags & flags::RELINKING != 0 && is_hit_again(thread, depth, slot, cookie.probe(), start_ns) {
        count(Counter::Twice);
        return None;
    }
    let mut state = state_around(thread, depth, slot);
    if probe_flags & flags::AGGREGATE != 0 {
        state |= AGGREGATED;
    // SAFETY: map values live as long as the program.
    } else if unsafe { (*program).fetch_count } > 0 {
        match capture_of(thread, tid, depth) {
            Some(record) => {
                let registers = registers(thread);
                machine::keep_arguments(ctx, registers);
                // SAFETY: a record that only this thread touches.
                unsafe { (*record).unread = 0 };
                fetch(program, record, edge::ENTER, registers, u32::from(RETURN_NOT_FINAL));
                state |= CAPTURED;
                // SAFETY: map values live as long as the program.
                if unsafe { (*program).leave_fetches } != 0 {
                    state |= READS_AT_LEAVE;
                }
            }
            None => count(Counter::NoCapture),
        }
    }
    let (pages, mark_pages) = memory::resident_and_mark(thread, start_ns);
    let top = frame(thread, depth);
    // SAFETY: inside the thread's frames.
    unsafe { *top = Frame { slot, start_ns, probe: cookie.probe(), state, pages, mark_pages } };
    // SAFETY: as above.
    unsafe { (*thread).depth = depth + 1 };
    Some(())
}

/// Whether this is the second hit of an entry that is probed twice for a moment.
#[inline(always)]
fn is_hit_again(thread: *mut Thread, depth: u32, slot: u64, probe: u32, now_ns: u64) -> bool {
    const AGAIN_NS: u64 = 20_000;
    if depth == 0 {
        return false;
    }
    let top = frame(thread, depth - 1);
    // SAFETY: inside the thread's frames.
    let (top_slot, top_probe, start_ns) = unsafe { ((*top).slot, (*top).probe, (*top).start_ns) };
    top_slot == slot && top_probe == probe && now_ns.wrapping_sub(start_ns) < AGAIN_NS
}

#[uprobe]
pub fn call_leave(ctx: ProbeContext) -> u32 {
    stack::keep_to_the_task();
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
    // SAFETY: the thread's state is touched by the thread itself only.
    let depth = unsafe { (*thread).depth };
    // SAFETY: inside the thread's frames.
    let (top_slot, state) = unsafe {
        let top = frame(thread, depth.wrapping_sub(1));
        ((*top).slot, (*top).state)
    };
    if depth == 0 || top_slot > slot {
        // Below a full stack of frames: an entry that was too deep, and is counted as that.
        if own && (depth as usize) < MAX_DEPTH {
            // SAFETY: the thread's state is touched by the thread itself only.
            unsafe { (*thread).flights = 0 };
            count(if is_relinking(cookie.probe()) { Counter::Twice } else { Counter::ReturnWithoutEntry });
        }
        return None;
    }
    // What lies above an abandoned frame is not known here.
    if top_slot != slot || state & READS_AT_LEAVE != 0 {
        machine::keep_registers(ctx, registers(thread));
    }
    let returned = u32::from(cookie.return_register());
    let ending = Ending { by: ended_by::RETURN, ..Ending::now(thread, end_ns) };
    if top_slot == slot && returns_alone(thread, depth, slot) {
        end_returned(thread, tid, &ending, returned);
        return Some(());
    }
    let mut closed = close_returned(thread, tid, slot, &ending, returned);
    if closed == 0 && own {
        // A frame that an exception was thought to have left returns: no exception is in flight.
        // SAFETY: the thread's state is touched by the thread itself only.
        unsafe { (*thread).flights = 0 };
        closed = close_returned(thread, tid, slot, &ending, returned);
    }
    if own && closed == 0 {
        count(Counter::ReturnWithoutEntry);
    }
    Some(())
}

/// Whether the innermost frame, which has this slot, is all that returns with it: nothing went on in it by a tail call,
/// and no exception holds frames. So it is with nearly all calls, which are spared a closer look.
#[inline(always)]
fn returns_alone(thread: *mut Thread, depth: u32, slot: u64) -> bool {
    // SAFETY: the thread's state is touched by the thread itself only; inside its frames.
    unsafe { (*thread).flights == 0 && (depth < 2 || (*frame(thread, depth - 2)).slot != slot) }
}

#[inline(always)]
fn is_relinking(probe: u32) -> bool {
    // SAFETY: map values live as long as the program.
    PROBES.get_ptr(probe).is_some_and(|program| unsafe { (*program).flags } & flags::RELINKING != 0)
}
