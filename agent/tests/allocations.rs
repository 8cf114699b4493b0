//! Promise: an operation costs the agent no memory that stays, and its metrics none at all once its kind is known.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy.toml allows it in test functions, but not in what they call"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use cadscope::catalog::Catalog;
use cadscope::export::metrics::{Metrics, MetricsOptions};
use cadscope::operation::{Operation, Value, Worker};
use cadscope::receive::{self, Event};
use cadscope_common::record::{OPERATION_BARE_BYTES, record_kind};

/// The system's, which counts what each thread asks for.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

fn note() {
    // A thread that ends has no counter any more.
    let _ = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

// SAFETY: every call is the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const TIMES: u64 = 10_000;

/// How often memory was asked for in so many calls.
fn asked(mut run: impl FnMut()) -> u64 {
    let before = ASKED.get();
    (0..TIMES).for_each(|_| run());
    ASKED.get() - before
}

/// A boolean of a FreeCAD worker, with what is read of it.
fn operation() -> Operation {
    let catalog = Catalog::builtin().unwrap();
    let probe = catalog.get("bool.api_build").unwrap();
    let worker = Arc::new(Worker {
        program: "freecadcmd".to_owned(),
        freecad_version: "0.20.2".to_owned(),
        occt_version: "7.6.3".to_owned(),
        ..Worker::default()
    });
    let mut operation = Operation::unread(probe, &worker, 1_000_000);
    operation.values =
        BTreeMap::from([("kind", 1), ("shapes", 2)].map(|(n, v)| (n.to_owned(), Value::Int(v))));
    operation
}

#[test]
fn metrics_of_a_kind_that_is_known_ask_for_no_memory() {
    let metrics = Metrics::new(MetricsOptions::default());
    let mut operation = operation();
    // Durations of all sizes, so that each bucket is there.
    for power in 0..40 {
        operation.end_ns = 1 << power;
        metrics.record(&operation, false);
    }
    let mut power = 0;
    let asked = asked(|| {
        power = (power + 1) % 40;
        operation.end_ns = 1 << power;
        metrics.record(&operation, false);
    });
    assert_eq!(asked, 0, "in {TIMES} operations");
}

#[test]
fn a_record_is_read_into_one_block_which_goes_with_it() {
    let mut record = [0_u8; OPERATION_BARE_BYTES];
    record.first_chunk_mut().map(|kind: &mut [u8; 4]| *kind = record_kind::OPERATION.to_ne_bytes()).unwrap();
    let asked = asked(|| match receive::read(&record) {
        Ok(Event::Ended(_)) => {}
        other => panic!("{other:?}"),
    });
    assert_eq!(asked, TIMES);
}
