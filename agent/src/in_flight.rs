//! Turns the calls that are open in the kernel's map into what is in flight now: by operation and versions, so that a
//! hung boolean shows before it ends, or one by one.
//!
//! Threads run while they are looked at: a call that is seen in the middle of a change is left out, not guessed.

use std::collections::BTreeMap;
use std::sync::Arc;

use cadscope_common::open::{CAPTURED, Frame, Thread};

use crate::attach::{Attacher, Slot};
use crate::catalog::Probe;
use crate::kernel::Kernel;
use crate::operation::{Outcome, Texts, Values, Worker};
use crate::python::Source;
use crate::sources::Sources;
use crate::workers::Workers;

/// Open operations that are told one by one.
const MAX_OPEN: usize = 2000;

/// Operations of one kind that are open now.
#[derive(Clone, Debug, PartialEq)]
pub struct InFlight {
    /// See [`crate::catalog::Probe::operation_name`].
    pub operation: String,
    /// Version of FreeCAD.
    pub freecad_version: String,
    /// Version of OCCT.
    pub occt_version: String,
    /// How many.
    pub count: u64,
    /// Age of the oldest, in nanoseconds.
    pub oldest_ns: u64,
}

/// An operation that is open now.
#[derive(Clone, Debug)]
pub struct OpenOperation {
    /// Whose.
    pub worker: Arc<Worker>,
    /// Its thread.
    pub tid: u32,
    /// Operations open around it.
    pub depth: u32,
    /// Begin, nanoseconds of CLOCK_MONOTONIC.
    pub start_ns: u64,
    /// As far as what was read at its entry tells.
    pub title: String,
    /// See [`crate::catalog::Probe::kind`].
    pub kind: String,
    /// The line of the job that called it, if it is open for long.
    pub source: Option<Arc<Source>>,
}

/// The open operations one by one, the oldest first; 2,000 at most.
#[must_use]
pub fn open_operations(
    kernel: &Kernel,
    attacher: &Attacher,
    workers: &Workers,
    sources: &Sources,
    now_ns: u64,
) -> Vec<OpenOperation> {
    let calls = open_calls(kernel, attacher, workers, now_ns, |_| true);
    let mut open: Vec<OpenOperation> = calls
        .into_iter()
        .map(|call| OpenOperation {
            tid: call.tid,
            depth: call.depth,
            start_ns: call.start_ns,
            title: call.probe.title(&call.values),
            kind: call.probe.kind(&call.values, Outcome::Ok),
            source: sources.of_open(call.tid, call.start_ns),
            worker: call.worker,
        })
        .collect();
    open.sort_by_key(|operation| (operation.start_ns, operation.depth));
    open.truncate(MAX_OPEN);
    open
}

/// Looks at every thread of every worker.
#[must_use]
pub fn in_flight(kernel: &Kernel, attacher: &Attacher, workers: &Workers, now_ns: u64) -> Vec<InFlight> {
    let mut open: BTreeMap<(String, String, String), (u64, u64)> = BTreeMap::new();
    for (tid, thread) in kernel.threads() {
        let Some(live) = workers.get(thread.process.pid) else { continue };
        for (depth, frame) in frames(&thread, now_ns) {
            let Some(slot) = attacher.slot(frame.probe) else { continue };
            let name = slot.probe.operation_name(&values(kernel, slot, tid, depth, frame)).into_owned();
            let worker = &live.worker;
            let key = (name, worker.freecad_version.clone(), worker.occt_version.clone());
            let (count, oldest_ns) = open.entry(key).or_default();
            *count += 1;
            *oldest_ns = (*oldest_ns).max(now_ns.saturating_sub(frame.start_ns));
        }
    }
    open.into_iter()
        .map(|((operation, freecad_version, occt_version), (count, oldest_ns))| InFlight {
            operation,
            freecad_version,
            occt_version,
            count,
            oldest_ns,
        })
        .collect()
}

/// A call that is open now.
#[derive(Clone, Debug)]
pub struct OpenCall {
    /// The worker.
    pub worker: Arc<Worker>,
    /// The thread.
    pub tid: u32,
    /// Operations open around it.
    pub depth: u32,
    /// When it began, CLOCK_MONOTONIC.
    pub start_ns: u64,
    /// Begin of the observed call around it on its thread.
    pub parent_start_ns: Option<u64>,
    /// The probe it is seen by.
    pub probe: Arc<Probe>,
    /// What was read at its entry.
    pub values: Values,
    /// What was tallied inside it so far.
    pub tally: u64,
}

/// The open calls of probes that are wanted, outermost first on each thread.
#[must_use]
pub fn open_calls(
    kernel: &Kernel,
    attacher: &Attacher,
    workers: &Workers,
    now_ns: u64,
    wanted: impl Fn(&Probe) -> bool,
) -> Vec<OpenCall> {
    let mut open = Vec::new();
    for (tid, thread) in kernel.threads() {
        let Some(live) = workers.get(thread.process.pid) else { continue };
        let mut parent_start_ns = None;
        let mut of_thread = Vec::new();
        for (depth, frame) in frames(&thread, now_ns) {
            let around = parent_start_ns.replace(frame.start_ns);
            let Some(slot) = attacher.slot(frame.probe).filter(|slot| wanted(&slot.probe)) else { continue };
            of_thread.push(OpenCall {
                worker: Arc::clone(&live.worker),
                tid,
                depth,
                start_ns: frame.start_ns,
                parent_start_ns: around,
                probe: Arc::clone(&slot.probe),
                values: values(kernel, slot, tid, depth, frame),
                tally: if slot.probe.tally.is_some() { kernel.tally(tid, frame.start_ns) } else { 0 },
            });
        }
        if of_thread.is_empty() {
            continue;
        }
        // What ended meanwhile may have been read as what came after it.
        let now =
            kernel.thread(tid).map(|thread| frames(&thread, u64::MAX).map(|(_, f)| f.start_ns).collect());
        let now: Vec<u64> = now.unwrap_or_default();
        open.extend(of_thread.into_iter().filter(|call| now.contains(&call.start_ns)));
    }
    open
}

/// The open calls of a thread with their depth.
fn frames(thread: &Thread, now_ns: u64) -> impl Iterator<Item = (u32, &Frame)> {
    let open = usize::try_from(thread.depth).unwrap_or(0);
    (0..)
        .zip(thread.frames.iter().take(open))
        .filter(move |(_, frame)| (1..=now_ns).contains(&frame.start_ns))
}

/// What was read at the entry of an open call.
fn values(kernel: &Kernel, slot: &Slot, tid: u32, depth: u32, frame: &Frame) -> Values {
    let captured = (frame.state & CAPTURED != 0).then(|| kernel.capture(tid, depth)).flatten();
    let values = captured
        .zip(slot.layout())
        .map(|(record, layout)| slot.probe.decode(layout, &record, &record.text, &mut Texts::default()));
    values.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use cadscope_common::settings::MAX_DEPTH;

    use super::*;
    use crate::kernel::plain;

    #[test]
    fn calls_that_are_half_written_are_left_out() {
        let frame = |start_ns| Frame { slot: 1, start_ns, probe: 0, state: 0, pages: 0, mark_pages: 0 };
        let mut frames_of_thread = [frame(0); MAX_DEPTH];
        for (place, start_ns) in frames_of_thread.iter_mut().zip([5, 0, 99, 7]) {
            *place = frame(start_ns);
        }
        let mut thread: Thread = plain::read(&[0; size_of::<Thread>()]).unwrap();
        thread.frames = frames_of_thread;
        let mut depths = |depth| {
            thread.depth = depth;
            frames(&thread, 50).map(|(depth, _)| depth).collect::<Vec<_>>()
        };
        assert_eq!(depths(4), [0, 3]);
        assert_eq!(depths(0), [0_u32; 0]);
        assert_eq!(depths(u32::MAX), [0, 3]);
    }
}
