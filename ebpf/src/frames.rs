//! Turns what becomes of a thread's open calls into operation records.
//!
//! A call is named by its thread and its slot, the address of its return address. Frames are pushed at entry and
//! popped at exit; a frame whose slot lies below where the thread now is has been abandoned.

use cadscope_common::{
    open::{AGGREGATED, AROUND_MASK, CAPTURED, Frame, HOLDS_RECORD, READS_AT_LEAVE, Thread, VISIBLE_SHIFT},
    probe::{TEXT_BYTES, edge, flags},
    record::{OPERATION_HEAD_BYTES, Operation, ended_by, record_kind},
    settings::{Counter, MAX_DEPTH},
};

use crate::{
    aggregate, emit,
    fetch::{capture_key, fetch, registers},
    maps::{CAPTURES, Lowest, PROBES, RESIDENT, THREADS, WORKERS, ZERO_THREAD, count, setting},
    memory, task, unwind,
};

/// Inserts only what is not there.
pub const BPF_NOEXIST: u64 = 1;

/// Frames further apart than this are taken to be on different stacks (a coroutine's).
pub const STACK_SPAN: u64 = 16 << 20;

/// How frames end when they do not return.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Ending {
    /// See [`ended_by`].
    pub by: u8,
    /// Signal number.
    pub signal: u8,
    /// Exception record.
    pub exception: u64,
    /// When.
    pub at_ns: u64,
    /// Resident pages of the process then, 0 = not known.
    pub pages: u32,
    /// The kernel's high-water mark of them.
    pub mark_pages: u32,
}

impl Ending {
    /// At this time, by a jump unless said otherwise.
    #[inline(always)]
    pub fn now(thread: *mut Thread, at_ns: u64) -> Self {
        let (pages, mark_pages) = memory::resident_and_mark(thread, at_ns);
        Self { pages, mark_pages, ..Self::gone(at_ns) }
    }

    /// The same for a process whose memory is gone.
    #[inline(always)]
    pub const fn gone(at_ns: u64) -> Self {
        Self { by: ended_by::JUMP, signal: 0, exception: 0, at_ns, pages: 0, mark_pages: 0 }
    }
}

/// Which frames have been left.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Left {
    /// Those whose slot lies below this, on the same stack.
    pub below: u64,
    /// At least so many frames stay.
    pub floor: u32,
    /// 1 = those on the signal stack too, if `below` is not on it: a jump off that stack.
    pub off_signal_stack: u32,
}

/// The state of this thread, made if this is its first call.
#[inline(always)]
pub fn thread_of(pid: u32, tid: u32) -> Option<*mut Thread> {
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
    let key = task::current(pid);
    // SAFETY: the thread's state is touched by the thread itself only.
    unsafe { (*thread).process = key };
    // From its first call on, a process is a worker whose end is reported, however late the agent learns of it.
    let _ = WORKERS.insert(pid, key, 0);
    let _ = RESIDENT.insert(pid, Lowest { pages: 0 }, BPF_NOEXIST);
    Some(thread)
}

#[inline(always)]
pub fn frame(thread: *mut Thread, index: u32) -> *mut Frame {
    // SAFETY: the mask keeps the index inside the array.
    unsafe { (&raw mut (*thread).frames).cast::<Frame>().add(index as usize & (MAX_DEPTH - 1)) }
}

/// What the state of the frame around says of a new one: which calls around it have records, and whether something is
/// to be read when this one returns because the one around returns with it, having gone on here by a tail call.
#[inline(always)]
pub fn state_around(thread: *mut Thread, depth: u32, slot: u64) -> u32 {
    if depth == 0 {
        return 0;
    }
    let outer = frame(thread, depth - 1);
    // SAFETY: inside the thread's frames.
    let (outer_slot, state) = unsafe { ((*outer).slot, (*outer).state) };
    let mut own = visible_around(state, depth);
    if outer_slot == slot {
        own |= state & READS_AT_LEAVE;
    }
    own
}

/// What is visible from inside a frame, the `depth`-th: itself, unless it gets no record.
#[inline(always)]
fn visible_around(state: u32, depth: u32) -> u32 {
    if state & AGGREGATED == 0 {
        ((state & AROUND_MASK) + 1) & AROUND_MASK | (depth & AROUND_MASK) << VISIBLE_SHIFT
    } else {
        state & (AROUND_MASK | AROUND_MASK << VISIBLE_SHIFT)
    }
}

/// Whether the innermost frame may have been left by the time a call with this slot begins: looked at closer then.
#[inline(always)]
pub fn is_top_dead(thread: *mut Thread, slot: u64) -> bool {
    // SAFETY: the thread's state is touched by the thread itself only.
    let depth = unsafe { (*thread).depth };
    // SAFETY: inside the thread's frames.
    depth > 0 && unsafe { (*frame(thread, depth - 1)).slot <= slot }
}

/// Ends what a call that begins finds abandoned. A frame with its very slot is dead too, unless its function goes on
/// in this one by a tail call.
#[unsafe(no_mangle)]
pub extern "C" fn abandon(thread: *mut Thread, tid: u32, slot: u64, at_ns: u64) -> u32 {
    if thread.is_null() {
        return 0;
    }
    unwind::forget_stale_flights(thread, slot);
    let floor = unwind::floor(thread);
    let ending = Ending::now(thread, at_ns);
    let mut closed = close_left(thread, tid, &Left { below: slot, floor, off_signal_stack: 0 }, &ending);
    // SAFETY: the thread's state is touched by the thread itself only.
    let depth = unsafe { (*thread).depth };
    if depth > floor {
        let top = frame(thread, depth - 1);
        // SAFETY: inside the thread's frames.
        let (top_slot, probe) = unsafe { ((*top).slot, (*top).probe) };
        if top_slot == slot && !goes_on(probe) {
            let left = Left { below: slot + 1, floor, off_signal_stack: 0 };
            closed += close_left(thread, tid, &left, &ending);
        }
    }
    if closed > 0 {
        count(Counter::Abandoned);
    }
    closed
}

/// Ends the frames that have been left. Returns how many.
#[unsafe(no_mangle)]
pub extern "C" fn close_left(thread: *mut Thread, tid: u32, left: *const Left, ending: *const Ending) -> u32 {
    if thread.is_null() || left.is_null() || ending.is_null() {
        return 0;
    }
    // SAFETY: a live value of the caller.
    let left = unsafe { *left };
    let stack = SignalStack::current();
    let target_on_it = stack.holds(left.below);
    let mut closed = 0;
    for _ in 0..MAX_DEPTH {
        // SAFETY: the thread's state is touched by the thread itself only.
        let depth = unsafe { (*thread).depth };
        if depth <= left.floor {
            break;
        }
        // SAFETY: inside the thread's frames.
        let slot = unsafe { (*frame(thread, depth - 1)).slot };
        let frame_on_it = stack.holds(slot);
        let off = left.off_signal_stack == 1 && frame_on_it && !target_on_it;
        let below = slot < left.below && left.below - slot <= STACK_SPAN && frame_on_it == target_on_it;
        if !off && !below {
            break;
        }
        end_left(thread, tid, ending);
        closed += 1;
    }
    closed
}

/// Ends the frames that return with this slot, each but the innermost having gone on in the next by a tail call, and
/// before them those found abandoned. Returns how many returned.
#[unsafe(no_mangle)]
pub extern "C" fn close_returned(
    thread: *mut Thread,
    tid: u32,
    slot: u64,
    ending: *const Ending,
    returned: u32,
) -> u32 {
    if thread.is_null() || ending.is_null() {
        return 0;
    }
    let floor = unwind::floor(thread);
    if is_top_dead(thread, slot.wrapping_sub(1)) {
        let left = Left { below: slot, floor, off_signal_stack: 0 };
        // SAFETY: a live value of the caller.
        let abandoned = Ending { by: ended_by::JUMP, ..unsafe { *ending } };
        if close_left(thread, tid, &left, &abandoned) > 0 {
            count(Counter::Abandoned);
        }
    }
    let mut closed = 0;
    for _ in 0..MAX_DEPTH {
        // SAFETY: the thread's state is touched by the thread itself only.
        let depth = unsafe { (*thread).depth };
        if depth <= floor {
            break;
        }
        // SAFETY: inside the thread's frames.
        if unsafe { (*frame(thread, depth - 1)).slot } != slot {
            break;
        }
        end_returned(thread, tid, ending, returned);
        closed += 1;
    }
    closed
}

/// The stack on which this thread's signal handlers run.
#[derive(Clone, Copy)]
struct SignalStack {
    start: u64,
    bytes: u64,
}

impl SignalStack {
    #[inline(always)]
    fn current() -> Self {
        Self {
            start: task::current_u64(setting!(offsets.task_sas_ss_sp)),
            bytes: task::current_u64(setting!(offsets.task_sas_ss_size)),
        }
    }

    #[inline(always)]
    fn holds(self, address: u64) -> bool {
        address.wrapping_sub(self.start) < self.bytes
    }
}

#[inline(always)]
fn goes_on(probe: u32) -> bool {
    // SAFETY: map values live as long as the program.
    PROBES.get_ptr(probe).is_some_and(|program| unsafe { (*program).flags } & flags::TAIL_CALLS != 0)
}

/// Ends every frame of a thread.
#[inline(always)]
pub fn close_all(thread: *mut Thread, tid: u32, ending: &Ending) {
    for _ in 0..MAX_DEPTH {
        // SAFETY: the thread is gone or this is it.
        if unsafe { (*thread).depth } == 0 {
            break;
        }
        end_left(thread, tid, ending);
    }
}

/// Forgets a thread.
#[inline(always)]
pub fn forget(thread: *mut Thread, tid: u32) {
    emit::count_rest(thread);
    // SAFETY: the thread is gone or this is it.
    let captures = unsafe { (*thread).captures };
    for depth in 0..MAX_DEPTH as u32 {
        if depth >= captures {
            break;
        }
        let _ = CAPTURES.remove(capture_key(tid, depth));
    }
    let _ = THREADS.remove(tid);
}

/// How many of the first `depth` frames are open around a call with this slot. All, unless an exception in flight has
/// left some that it will name when it is caught.
#[inline(always)]
fn frames_around(thread: *mut Thread, depth: u32, slot: u64) -> u32 {
    let mut around = depth;
    // SAFETY: inside the thread's frames.
    if depth == 0 || unsafe { (*frame(thread, depth - 1)).slot } >= slot || unwind::floor(thread) < depth {
        return around;
    }
    let stack = SignalStack::current();
    for _ in 0..MAX_DEPTH {
        if around == 0 {
            break;
        }
        // SAFETY: inside the thread's frames.
        let outer = unsafe { (*frame(thread, around - 1)).slot };
        if outer >= slot || slot - outer > STACK_SPAN || stack.holds(outer) != stack.holds(slot) {
            break;
        }
        around -= 1;
    }
    around
}

/// How many of the frames around have records, and when the innermost of these was entered, 0 if none.
#[inline(always)]
fn visible(thread: *mut Thread, around: u32) -> (u32, u64) {
    if around == 0 {
        return (0, 0);
    }
    // SAFETY: inside the thread's frames.
    let seen = visible_around(unsafe { (*frame(thread, around - 1)).state }, around);
    let parent = seen >> VISIBLE_SHIFT & AROUND_MASK;
    if parent == 0 {
        return (0, 0);
    }
    let parent = frame(thread, parent - 1);
    // SAFETY: inside the thread's frames.
    unsafe { (*parent).state |= HOLDS_RECORD };
    // SAFETY: as above.
    (seen & AROUND_MASK, unsafe { (*parent).start_ns })
}

/// Ends the innermost frame, which did not return, and sends its record.
///
/// A global function, which the verifier looks at once and not once a caller; its arguments are plain pointers,
/// because the debug information of Rust's enums is no valid BTF. It reads nothing of the worker's, which may sleep.
#[unsafe(no_mangle)]
pub extern "C" fn end_left(thread: *mut Thread, tid: u32, ending: *const Ending) -> u32 {
    if !thread.is_null() && !ending.is_null() {
        end_top(thread, tid, ending, None);
    }
    0
}

/// Ends the innermost frame, which returned, and sends its record; `returned` is the register with the value.
#[unsafe(no_mangle)]
pub extern "C" fn end_returned(thread: *mut Thread, tid: u32, ending: *const Ending, returned: u32) -> u32 {
    if !thread.is_null() && !ending.is_null() {
        end_top(thread, tid, ending, Some(returned));
    }
    0
}

#[inline(always)]
fn end_top(thread: *mut Thread, tid: u32, ending: *const Ending, returned: Option<u32>) -> Option<()> {
    // SAFETY: a live value of the caller.
    let ending = unsafe { &*ending };
    // SAFETY: the thread's state is touched by the thread itself only.
    let depth = unsafe { (*thread).depth }.wrapping_sub(1);
    // SAFETY: as above.
    unsafe { (*thread).depth = depth };
    let top = frame(thread, depth);
    // SAFETY: inside the thread's frames.
    let (start_ns, probe, state) = unsafe { ((*top).start_ns, (*top).probe, (*top).state) };
    // SAFETY: as above.
    let (entry_pages, entry_mark) = unsafe { ((*top).pages, (*top).mark_pages) };
    let duration_ns = ending.at_ns.wrapping_sub(start_ns);
    if returned.is_some() && aggregate::is_wanted(state, duration_ns) {
        aggregate::add(thread, depth, probe, duration_ns);
        return None;
    }
    // SAFETY: inside the thread's frames.
    let around = frames_around(thread, depth, unsafe { (*top).slot });
    let (around, parent_start_ns) = visible(thread, around);
    // SAFETY: the thread's state is touched by the thread itself only.
    let process = unsafe { (*thread).process };
    let peak_pages = if ending.mark_pages > entry_mark { ending.mark_pages } else { 0 };
    let fill = |record: *mut Operation, text_len: u32| {
        // SAFETY: both kinds of record have room for what comes before the words.
        unsafe {
            (*record).kind = record_kind::OPERATION;
            (*record).probe = probe;
            (*record).process = process;
            (*record).tid = tid;
            (*record).depth = around;
            (*record).start_ns = start_ns;
            (*record).end_ns = ending.at_ns;
            (*record).parent_start_ns = parent_start_ns;
            (*record).exception = ending.exception;
            (*record).ended_by = ending.by;
            (*record).signal = ending.signal;
            (*record).text_len = text_len;
            (*record).entry_pages = entry_pages;
            (*record).exit_pages = ending.pages;
            (*record).peak_pages = peak_pages;
            (*record).padding = 0;
        }
    };
    let capture = if state & CAPTURED != 0 { CAPTURES.get_ptr_mut(capture_key(tid, depth)) } else { None };
    let Some(capture) = capture else {
        emit::bare_operation(thread, ending.at_ns, |record| {
            fill(record, 0);
            // SAFETY: before the words.
            unsafe { (*record).unread = u16::MAX };
        });
        return Some(());
    };
    let program = PROBES.get_ptr(probe)?;
    let record = capture.cast::<Operation>();
    match returned {
        Some(returned) => fetch(program, record, edge::LEAVE, registers(thread), returned),
        // SAFETY: a record that only this thread touches; map values live as long as the program.
        None => unsafe { (*record).unread |= (*program).leave_fetches as u16 },
    }
    // SAFETY: map values live as long as the program.
    let text_len = unsafe { (*program).text_len };
    fill(record, text_len);
    let bytes = OPERATION_HEAD_BYTES as u64 + u64::from(text_len).min(TEXT_BYTES as u64);
    // SAFETY: a whole record.
    unsafe { emit::operation(thread, capture.cast(), bytes, ending.at_ns) };
    Some(())
}
