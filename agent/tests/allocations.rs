//! Promise: an operation of a kind that is known asks for no memory: not its record, not what was read of it, not its
//! metrics.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy.toml allows it in test functions, but not in what they call"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use cadscope::catalog::Catalog;
use cadscope::export::metrics::{Metrics, MetricsOptions};
use cadscope::group::Groups;
use cadscope::kernel::plain;
use cadscope::operation::{Operation, Texts, Value, Values, Worker};
use cadscope::receive::{self, Event, Exceptions, Room};
use cadscope::rollup::Rollups;
use cadscope_common::probe::{TEXT_BLOCK, TEXT_BYTES, WORDS};
use cadscope_common::record::{self, ended_by, record_kind};

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
    operation.values = Values::from([("kind", Value::Int(1)), ("shapes", Value::Int(2))]);
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

/// The record of a boolean, whose every value and text is there.
fn record() -> record::Operation {
    let mut text = [0; TEXT_BYTES];
    for block in text.chunks_mut(TEXT_BLOCK) {
        for (byte, letter) in block.iter_mut().zip(b"13TopoDS_TSolid") {
            *byte = *letter;
        }
    }
    record::Operation {
        kind: record_kind::OPERATION,
        ended_by: ended_by::RETURN,
        text_len: u32::try_from(TEXT_BYTES).unwrap(),
        words: [2; WORDS],
        text,
        start_ns: 1_000,
        end_ns: 5_000_000,
        tid: 7,
        ..plain::read(&[0; size_of::<record::Operation>()]).unwrap()
    }
}

#[test]
fn a_record_becomes_an_operation_without_any_memory() {
    let catalog = Catalog::builtin().unwrap();
    let mut most = 0;
    for probe in &catalog.probes {
        let worker = operation().worker;
        let layout = probe.layout_for("7.6.3", "0.20.2");
        let (exceptions, mut texts, mut room) = (Exceptions::default(), Texts::default(), Room::default());
        let bytes = plain::bytes_of(&record()).to_vec();
        let mut run = || {
            let Ok(Event::Ended(record)) = receive::read(&bytes, &mut room) else { panic!("no operation") };
            let worker = Arc::clone(&worker);
            let made = receive::operation(record, probe, layout, worker, &exceptions, &mut texts);
            most = most.max(made.values.iter().count());
        };
        run();
        assert_eq!(asked(&mut run), 0, "in {TIMES} operations of {}", probe.id);
    }
    assert!(most > 4, "{most} values");
}

#[test]
fn the_whole_way_of_an_operation_through_the_agent_asks_for_no_memory() {
    let worker = operation().worker;
    let metrics = Metrics::new(MetricsOptions::default());
    let catalog = Catalog::builtin().unwrap();
    let mut groups = Groups::default();
    let mut rollups = Rollups::new(&catalog);
    let (exceptions, mut texts, mut room) = (Exceptions::default(), Texts::default(), Room::default());
    let of = |id: &str| catalog.get(id).unwrap();
    // An export inside another: what waits for the one around it takes a place, too.
    let (inner, outer) = (of("io.step_w_stream"), of("part.exportStep"));
    let calls = [(inner, 1), (outer, 0), (of("bool.api_build"), 0)];
    let calls = calls.map(|(probe, depth)| (probe, probe.layout_for("7.6.3", "0.20.2"), depth));
    let mut run = || {
        for (probe, layout, depth) in calls {
            let bytes = record::Operation { depth, ..record() };
            let bytes = plain::bytes_of(&bytes);
            let Ok(Event::Ended(record)) = receive::read(bytes, &mut room) else { panic!("no operation") };
            let worker = Arc::clone(&worker);
            let made = receive::operation(record, probe, layout, worker, &exceptions, &mut texts);
            rollups.see(&made, |_| {});
            groups.push(made, |operation, nested| metrics.record(&operation, nested));
        }
    };
    run();
    assert_eq!(asked(run), 0, "in {TIMES} times three operations");
}
