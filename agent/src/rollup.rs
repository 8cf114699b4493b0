//! Turns operations inside another into one observation of the outer one: how long they took together, by their number.
//!
//! The placements of local coordinate systems are resolved one by one while a document is recomputed; of interest is
//! what all of them took. An inner operation ends before the outer one, so it waits until that ends on its thread; what
//! waits is bounded, and an outer operation that is never seen to end is forgotten with its process.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::{Catalog, Probe, ranges};
use crate::operation::{Operation, Value};

/// Inner operations that wait on one thread; those beyond are left out.
const MAX_WAITING: usize = 65_536;
/// Threads on which some wait.
const MAX_THREADS: usize = 4096;

/// One observation of a family.
#[derive(Clone, Debug, PartialEq)]
pub struct Rolled<'a> {
    /// The family.
    pub family: &'a str,
    /// Its help text.
    pub help: &'a str,
    /// Its label and value.
    pub label: (&'a str, &'static str),
    /// The time of all.
    pub seconds: f64,
}

/// What waits, by process and thread: begin, and how long it took, in nanoseconds.
#[derive(Debug, Default)]
pub struct Rollups {
    inner: Vec<Arc<Probe>>,
    waiting: HashMap<(u32, u32), Vec<(u64, u64)>>,
}

impl Rollups {
    /// Those of a catalogue.
    #[must_use]
    pub fn new(catalog: &Catalog) -> Self {
        let inner = catalog.probes.iter().filter(|probe| probe.rollup.is_some()).cloned().collect();
        Self { inner, waiting: HashMap::new() }
    }

    /// Takes an operation; gives what it completes.
    pub fn see(&mut self, operation: &Operation, mut give: impl FnMut(Rolled<'_>)) {
        let key = (operation.worker.process.pid, operation.tid);
        if is_wanted(operation) && (self.waiting.len() < MAX_THREADS || self.waiting.contains_key(&key)) {
            let waiting = self.waiting.entry(key).or_default();
            if waiting.len() < MAX_WAITING {
                waiting.push((operation.start_ns, operation.end_ns.saturating_sub(operation.start_ns)));
            }
        }
        for rollup in self.inner.iter().filter_map(|probe| probe.rollup.as_ref()) {
            if rollup.inside != operation.probe.id {
                continue;
            }
            let Some(waiting) = self.waiting.get_mut(&key) else { continue };
            let (mut count, mut ns) = (0_u64, 0_u64);
            waiting.retain(|(start_ns, took_ns)| {
                let inside = *start_ns >= operation.start_ns;
                count += u64::from(inside);
                ns += if inside { *took_ns } else { 0 };
                !inside
            });
            if waiting.is_empty() {
                self.waiting.remove(&key);
            }
            if count > 0 {
                let seconds = Duration::from_nanos(ns).as_secs_f64();
                let label = (rollup.label.as_str(), ranges::of_count(count));
                give(Rolled { family: &rollup.family, help: &rollup.help, label, seconds });
            }
        }
    }

    /// Forgets a process.
    pub fn end(&mut self, pid: u32) {
        self.waiting.retain(|(process, _), _| *process != pid);
    }
}

fn is_wanted(operation: &Operation) -> bool {
    operation.probe.rollup.as_ref().is_some_and(|rollup| {
        matches!(operation.values.get(&rollup.value), Some(Value::Text(text)) if text.ends_with(&rollup.suffix))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn what_was_wanted_inside_is_one_observation_of_the_outer_call() {
        let catalog = Catalog::builtin().unwrap();
        let worker = samples::worker(7, "freecadcmd");
        let (inner, outer) = (catalog.get("fc.recompute_feature"), catalog.get("fc.doc_recompute"));
        let (inner, outer) = (inner.unwrap(), outer.unwrap());
        let mut rollups = Rollups::new(&catalog);
        let mut seen = Vec::new();
        for (probe, class, start_ms, end_ms) in [
            (inner, "PartDesign::CoordinateSystem", 1.0, 2.0),
            (inner, "Part::Box", 2.0, 3.0),
            (inner, "Part::LocalCoordinateSystem", 3.0, 5.0),
            (outer, "", 0.5, 6.0),
            (outer, "", 7.0, 8.0),
        ] {
            let mut operation = samples::operation(probe, &worker, start_ms, end_ms);
            operation.values.extend([samples::text("class", class)]);
            rollups.see(&operation, |rolled| seen.push((rolled.label.1, rolled.seconds)));
        }
        assert_eq!(seen, [("0002-0005", 0.003)]);
    }
}
