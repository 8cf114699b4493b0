//! Puts records into the ring buffer: reserve, fill, submit; a failed reserve is counted.
//!
//! Operations do not wake the agent, which drains the buffer on a short tick, until a quarter of it is full; rare
//! records that the agent must act on at once do.

use aya_ebpf::helpers::generated::{bpf_ringbuf_output, bpf_ringbuf_query};
use cadscope_common::settings::Counter;

use crate::maps::{EVENTS, count};

const NO_WAKEUP: u64 = 1;
const FORCE_WAKEUP: u64 = 2;
const AVAILABLE_DATA: u64 = 0;
const QUARTER: u64 = 4 << 20;

#[inline(always)]
fn ring() -> *mut core::ffi::c_void {
    (&raw const EVENTS).cast_mut().cast()
}

/// Sends the first `len` bytes of an operation record.
#[inline(always)]
pub unsafe fn operation(record: *const u8, len: u64) {
    // SAFETY: the ring buffer is a map of this object.
    let pending = unsafe { bpf_ringbuf_query(ring(), AVAILABLE_DATA) };
    let wakeup = if pending > QUARTER { FORCE_WAKEUP } else { NO_WAKEUP };
    // SAFETY: the caller gives `len` readable bytes.
    if unsafe { bpf_ringbuf_output(ring(), record.cast_mut().cast(), len, wakeup) } == 0 {
        count(Counter::Sent);
    } else {
        count(Counter::LostOperation);
    }
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
