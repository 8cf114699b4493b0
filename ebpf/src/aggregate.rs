//! Turns calls that get no record of their own into counts and durations by process and probe: those of a probe that is
//! hit too often, and those shorter than anybody wants to see one by one.

use core::arch::asm;

use cadscope_common::{
    aggregate::{Aggregate, AggregateKey, bucket_of},
    open::{AGGREGATED, Frame, HOLDS_RECORD, Thread},
    probe::flags,
    settings::{Counter, MAX_DEPTH},
};

use crate::maps::{AGGREGATES, PROBES, ZERO_AGGREGATE, count, setting};

/// Open calls around one that are looked at, from the innermost outwards, for one of its group.
const REACH: u32 = 16;

/// Whether a call that returned after so long, with this state, is only counted.
#[inline(always)]
pub fn is_wanted(state: u32, duration_ns: u64) -> bool {
    state & AGGREGATED != 0 || state & HOLDS_RECORD == 0 && duration_ns < setting!(min_duration_ns)
}

/// Counts a call that returned; `depth` calls are open around it.
#[inline(always)]
pub fn add(thread: *mut Thread, depth: u32, probe: u32, duration_ns: u64) {
    let nested = u8::from(is_nested(thread, depth, group_of(probe)));
    // SAFETY: the thread's state is touched by the thread itself only.
    let pid = unsafe { (*thread).process.pid };
    let key = AggregateKey { pid, probe, bucket: bucket_of(duration_ns), nested, padding: [0; 5] };
    let value = match AGGREGATES.get_ptr_mut(key) {
        Some(value) => value,
        None => {
            let Some(zero) = ZERO_AGGREGATE.get_ptr(0) else { return };
            // SAFETY: a map value that is never written. A refusal shows in the look that follows.
            let _ = AGGREGATES.insert(key, unsafe { &*zero }, 1);
            let Some(value) = AGGREGATES.get_ptr_mut(key) else {
                count(Counter::LostAggregate);
                return;
            };
            // After it is there: who looks for as many entries as are counted finds them.
            count(Counter::AggregateMade);
            value
        }
    };
    raise(value, duration_ns);
}

#[inline(always)]
fn raise(value: *mut Aggregate, duration_ns: u64) {
    // SAFETY: an aligned u64 in the map, which outlives the program. Another task's program can run on this CPU.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) value, in(reg) 1_u64) };
    // SAFETY: as above, the second field.
    unsafe { asm!("lock *(u64 *)({0} + 8) += {1}", in(reg) value, in(reg) duration_ns) };
}

/// Whether a call of this group is open around.
#[inline(always)]
fn is_nested(thread: *mut Thread, depth: u32, group: u32) -> bool {
    if group == 0 {
        return false;
    }
    for out in 1..=REACH {
        if out > depth {
            break;
        }
        let index = (depth - out) as usize & (MAX_DEPTH - 1);
        // SAFETY: the mask keeps the index inside the array.
        let probe = unsafe { (*(&raw const (*thread).frames).cast::<Frame>().add(index)).probe };
        if group_of(probe) == group {
            return true;
        }
    }
    false
}

#[inline(always)]
fn group_of(probe: u32) -> u32 {
    // SAFETY: map values live as long as the program.
    PROBES.get_ptr(probe).map_or(0, |program| unsafe { (*program).flags } & flags::GROUP_MASK)
}
