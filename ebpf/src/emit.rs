//! Puts records into the ring buffer: reserve, fill, submit; a failed reserve is counted.
//!
//! Operations do not wake the agent, which drains the buffer on a short tick, until a quarter of it is full, which each
//! thread looks at once in a while; rare records that the agent must act on at once do. A wakeup is an interrupt, 10 us in
//! a virtual machine, so that an agent which is late is not woken again and again.

use aya_ebpf::helpers::generated::{
    bpf_ringbuf_output, bpf_ringbuf_query, bpf_ringbuf_reserve, bpf_ringbuf_submit,
};
use cadscope_common::{
    open::Thread,
    record::{OPERATION_BARE_BYTES, Operation},
    settings::{Counter, RING_BYTES},
};

use crate::maps::{EVENTS, WOKEN, add, count};

const NO_WAKEUP: u64 = 1;
const FORCE_WAKEUP: u64 = 2;
const AVAILABLE_DATA: u64 = 0;
const QUARTER: u64 = RING_BYTES as u64 / 4;
/// A thread looks at how full the buffer is at each of so many records; a power of two.
const LOOK_EVERY: u32 = 32;
/// An agent that has been woken is not woken again for so long.
const AWAKE_NS: u64 = 2_000_000;

#[inline(always)]
fn ring() -> *mut core::ffi::c_void {
    (&raw const EVENTS).cast_mut().cast()
}

/// Sends the first `len` bytes of an operation record of this thread.
#[inline(always)]
pub unsafe fn operation(thread: *mut Thread, record: *const u8, len: u64, now_ns: u64) {
    let wakeup = wakeup(thread, now_ns);
    // SAFETY: the caller gives `len` readable bytes.
    if unsafe { bpf_ringbuf_output(ring(), record.cast_mut().cast(), len, wakeup) } != 0 {
        count(Counter::LostOperation);
    }
}

/// Sends an operation record of this thread that ends before its words, written in place by `fill`.
#[inline(always)]
pub fn bare_operation(thread: *mut Thread, now_ns: u64, fill: impl FnOnce(*mut Operation)) {
    let wakeup = wakeup(thread, now_ns);
    // SAFETY: the ring buffer is a map of this object.
    let record = unsafe { bpf_ringbuf_reserve(ring(), OPERATION_BARE_BYTES as u64, 0) };
    if record.is_null() {
        count(Counter::LostOperation);
        return;
    }
    fill(record.cast());
    // SAFETY: what was reserved, once.
    unsafe { bpf_ringbuf_submit(record, wakeup) };
}

/// Counts a record of this thread, and says how to send it.
#[inline(always)]
fn wakeup(thread: *mut Thread, now_ns: u64) -> u64 {
    // SAFETY: the thread's state is touched by the thread itself only.
    let sent = unsafe { (*thread).scratch.sent }.wrapping_add(1);
    // SAFETY: as above.
    unsafe { (*thread).scratch.sent = sent };
    if sent & (LOOK_EVERY - 1) != 0 {
        return NO_WAKEUP;
    }
    add(Counter::Sent, u64::from(LOOK_EVERY));
    if is_wanted(now_ns) { FORCE_WAKEUP } else { NO_WAKEUP }
}

/// Counts what a thread that ends has sent since it last counted.
#[inline(always)]
pub fn count_rest(thread: *const Thread) {
    // SAFETY: the thread is gone or this is it.
    add(Counter::Sent, u64::from(unsafe { (*thread).scratch.sent } & (LOOK_EVERY - 1)));
}

/// Whether the agent should drain the buffer now. Two CPUs that both find so wake it twice.
#[inline(always)]
fn is_wanted(now_ns: u64) -> bool {
    // SAFETY: the ring buffer is a map of this object.
    if unsafe { bpf_ringbuf_query(ring(), AVAILABLE_DATA) } <= QUARTER {
        return false;
    }
    let Some(woken) = WOKEN.get_ptr_mut(0) else { return false };
    // SAFETY: an aligned u64 in the map, which outlives the program.
    let last_ns = unsafe { core::ptr::read_volatile(woken) };
    if now_ns.wrapping_sub(last_ns) < AWAKE_NS {
        return false;
    }
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(woken, now_ns) };
    true
}

/// Sends a record that the agent should see at once.
#[inline(always)]
pub fn urgent<T: 'static>(record: &T) {
    // SAFETY: a live value of its own size.
    let sent = unsafe {
        bpf_ringbuf_output(
            ring(),
            (&raw const *record).cast_mut().cast(),
            size_of::<T>() as u64,
            FORCE_WAKEUP,
        )
    };
    if sent != 0 {
        count(Counter::LostRecord);
    }
}

/// Sends a record that can wait for the next drain.
#[inline(always)]
pub fn quiet<T: 'static>(record: &T) {
    // SAFETY: a live value of its own size.
    let sent = unsafe {
        bpf_ringbuf_output(ring(), (&raw const *record).cast_mut().cast(), size_of::<T>() as u64, NO_WAKEUP)
    };
    if sent != 0 {
        count(Counter::LostRecord);
    }
}
