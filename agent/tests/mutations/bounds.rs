//! Turns a parser and an input into a verdict: no panic, no hang, and memory in proportion to the input.

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// One input is done within this; a machine that does much else is allowed for.
const LONGEST: Duration = Duration::from_secs(20);
/// Memory that an input may take: so much in any case, and so many times its size.
const ANY_BYTES: usize = 64 << 20;
const TIMES: usize = 64;

/// The system's allocator, which remembers the most that was in use.
struct Counting;
static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
/// Also those that a runtime catches.
static PANICS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts panics from now on, and tells them.
pub(crate) fn count_panics() {
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        eprintln!("{panic}");
    }));
}

/// What is wrong with how the target took the input; one at a time, so that memory is its own.
pub(crate) fn judge(target: &dyn Fn(&[u8]), input: &[u8]) -> Result<(), String> {
    let (before, panics) = (NOW.load(Ordering::Relaxed), PANICS.load(Ordering::Relaxed));
    MOST.store(before, Ordering::Relaxed);
    let begun = Instant::now();
    let done = catch_unwind(AssertUnwindSafe(|| target(input)));
    if done.is_err() || PANICS.load(Ordering::Relaxed) != panics {
        return Err("panicked".to_owned());
    }
    if begun.elapsed() > LONGEST {
        return Err(format!("took {:?}", begun.elapsed()));
    }
    let took = MOST.load(Ordering::Relaxed).saturating_sub(before);
    if took > ANY_BYTES.saturating_add(input.len().saturating_mul(TIMES)) {
        return Err(format!("took {took} bytes of memory for {} of input", input.len()));
    }
    Ok(())
}
