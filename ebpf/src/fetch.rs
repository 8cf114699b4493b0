//! Turns what a probe asks for into values of its call's record: registers, and what they lead to in the worker's memory.

use cadscope_common::{
    open::Thread,
    probe::{Fetch, MAX_FETCHES, MAX_STEPS, ProbeProgram, TEXT_BLOCK, TEXT_BYTES, WORDS, base, edge, kind},
    record::Operation,
    settings::Counter,
};

use crate::{
    machine,
    maps::{CAPTURES, ZERO_CAPTURE, count},
    user,
};

/// Where the thread's registers are put for the fetches.
#[inline(always)]
pub fn registers(thread: *mut Thread) -> *mut u64 {
    // SAFETY: inside the thread's scratch.
    unsafe { (&raw mut (*thread).scratch.registers).cast() }
}

#[inline(always)]
pub fn capture_key(tid: u32, index: u32) -> u64 {
    u64::from(tid) << 32 | u64::from(index)
}

/// The record of the call at this depth, made if it is the first there.
#[inline(always)]
pub fn capture_of(thread: *mut Thread, tid: u32, depth: u32) -> Option<*mut Operation> {
    let key = capture_key(tid, depth);
    if let Some(record) = CAPTURES.get_ptr_mut(key) {
        return Some(record.cast());
    }
    let zero = ZERO_CAPTURE.get_ptr(0)?;
    // SAFETY: a map value that is never written.
    CAPTURES.insert(key, unsafe { &*zero }, 0).ok()?;
    // SAFETY: the thread's state is touched by the thread itself only.
    unsafe { (*thread).captures = (*thread).captures.max(depth + 1) };
    CAPTURES.get_ptr_mut(key).map(|capture| capture.cast())
}

/// Runs the fetches of one edge and notes in the record those that could not be read.
///
/// The note goes straight to map memory, whose contents the verifier does not follow: kept in a register it would
/// double the verifier's states with every fetch.
#[inline(always)]
pub fn fetch(
    program: *const ProbeProgram,
    record: *mut Operation,
    at: u8,
    registers: *const u64,
    returned: u32,
) {
    // SAFETY: map values live as long as the program.
    let count_fetches = unsafe { (*program).fetch_count };
    for index in 0..MAX_FETCHES {
        if index as u32 >= count_fetches {
            break;
        }
        // SAFETY: the index is inside the array.
        let fetch = unsafe { &*(&raw const (*program).fetches).cast::<Fetch>().add(index) };
        if fetch.edge != at {
            continue;
        }
        if !fetch_one(fetch, record, registers, returned) {
            // SAFETY: a record that only this thread touches.
            unsafe { (*record).unread |= 1 << index };
            count(Counter::Unread);
        }
    }
}

#[inline(always)]
fn fetch_one(fetch: &Fetch, record: *mut Operation, registers: *const u64, returned: u32) -> bool {
    let from = fetch.base;
    let mut value = if from <= machine::LAST_REGISTER {
        let is_argument = from != base::RETURN;
        // Arguments are there at the entry, a returned value at the exit.
        if is_argument != (fetch.edge == edge::ENTER) || !is_argument && returned > 15 {
            return false;
        }
        let number = if is_argument { machine::ARGUMENTS >> (4 * u32::from(from)) } else { returned };
        // Else the compiler, which knows that the mask is not needed, leaves it out, and the verifier does not know.
        let number = core::hint::black_box(number);
        // SAFETY: the mask keeps the index inside the array.
        unsafe { *registers.add(number as usize & 15) }
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
    let size = (u32::from(blocks) * TEXT_BLOCK as u32).min(TEXT_BYTES as u32);
    // SAFETY: the text and the slack behind it have room for a whole text from any block.
    unsafe { user::read_text(to, size, address) }
}
