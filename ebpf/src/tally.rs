//! Turns entries of functions that are called too often for a record each into a count for the open calls around them.
//!
//! A solver's iterations are such: thousands in one solve. The agent takes the count when the solve's record arrives.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use cadscope_common::{
    open::Frame,
    probe::{TallyKey, flags},
    settings::MAX_DEPTH,
};

use crate::{
    hit::{cookie_of, ids},
    maps::{PROBES, TALLIES, THREADS},
    stack,
};

/// Open calls that are looked at, from the innermost outwards.
const REACH: u32 = 6;

#[uprobe]
pub fn call_tally(ctx: ProbeContext) -> u32 {
    stack::keep_to_the_task();
    tally(&ctx);
    0
}

#[inline(always)]
fn tally(ctx: &ProbeContext) -> Option<()> {
    let (_, tid) = ids();
    // No open call, nothing to count for.
    let thread = THREADS.get_ptr_mut(tid)?;
    let wanted = tally_of(cookie_of(ctx).probe())?;
    // SAFETY: the thread's state is touched by the thread itself only.
    let depth = unsafe { (*thread).depth };
    for out in 1..=REACH {
        if out > depth {
            break;
        }
        let index = (depth - out) as usize & (MAX_DEPTH - 1);
        // SAFETY: the mask keeps the index inside the array.
        let frame = unsafe { (&raw const (*thread).frames).cast::<Frame>().add(index) };
        // SAFETY: inside the thread's frames.
        let (probe, start_ns) = unsafe { ((*frame).probe, (*frame).start_ns) };
        if tally_of(probe) == Some(wanted) {
            add(&TallyKey { tid, padding: 0, start_ns });
        }
    }
    Some(())
}

#[inline(always)]
fn tally_of(probe: u32) -> Option<u32> {
    let program = PROBES.get_ptr(probe)?;
    // SAFETY: map values live as long as the program.
    let tally = unsafe { (*program).flags } & flags::TALLY_MASK;
    if tally == 0 { None } else { Some(tally) }
}

#[inline(always)]
fn add(key: &TallyKey) {
    match TALLIES.get_ptr_mut(key) {
        // SAFETY: only the thread that the key names writes this value.
        Some(count) => unsafe { *count += 1 },
        None => {
            let _ = TALLIES.insert(key, 1, 0);
        }
    }
}
