//! Turns operations that end inside-out into the knowledge which of them lie inside another of their group.
//!
//! A STEP export of FreeCAD holds one of OCCT: both are spans, but only the outer one is an export in the metrics. An
//! operation ends before the ones around it, so those that belong to a group wait until the outermost operation of
//! their thread has ended. What waits is bounded; beyond, an operation counts by itself.
//!
//! An outer operation whose own outcome nothing tells (`Part::TopoShape::exportStl` returns nothing) fails if one of its
//! group inside it failed.

use std::collections::HashMap;

use crate::operation::{Operation, Outcome};

/// Operations that wait on one thread.
const MAX_WAITING: usize = 1024;
/// Threads on which operations wait.
const MAX_THREADS: usize = 16_384;
/// Empty lists that are kept for the next thread on which something waits.
const MAX_SPARE: usize = 64;

/// Operations that wait for the one around them, by process and thread.
#[derive(Debug, Default)]
pub struct Groups {
    waiting: HashMap<(u32, u32), Vec<(Operation, bool)>>,
    spare: Vec<Vec<(Operation, bool)>>,
}

impl Groups {
    /// Takes the next operation and gives out those whose place is known, each with whether it lies inside another of
    /// its group.
    pub fn push(&mut self, mut operation: Operation, mut give: impl FnMut(Operation, bool)) {
        let key = (operation.worker.process.pid, operation.tid);
        if let Some(waiting) = self.waiting.get_mut(&key)
            && let Some(group) = &operation.probe.group
        {
            let tells_nothing = operation.probe.error_when.is_empty() && operation.outcome == Outcome::Ok;
            for (inner, nested) in waiting {
                if inner.depth > operation.depth
                    && inner.start_ns >= operation.start_ns
                    && inner.probe.group.as_ref() == Some(group)
                {
                    *nested = true;
                    if tells_nothing && inner.outcome == Outcome::Error {
                        operation.outcome = Outcome::Error;
                    }
                }
            }
        }
        if operation.depth == 0 {
            if let Some(mut waiting) = self.waiting.remove(&key) {
                for (inner, nested) in waiting.drain(..) {
                    give(inner, nested);
                }
                if self.spare.len() < MAX_SPARE {
                    self.spare.push(waiting);
                }
            }
            give(operation, false);
        } else if operation.probe.group.is_none() {
            give(operation, false);
        } else {
            if self.waiting.len() >= MAX_THREADS {
                self.flush(&mut give);
            }
            let spare = &mut self.spare;
            let waiting = self.waiting.entry(key).or_insert_with(|| spare.pop().unwrap_or_default());
            if waiting.len() >= MAX_WAITING {
                give(operation, false);
            } else {
                waiting.push((operation, false));
            }
        }
    }

    /// Gives out what waits for a process that has ended.
    pub fn end(&mut self, pid: u32, mut give: impl FnMut(Operation, bool)) {
        let over: Vec<(u32, u32)> =
            self.waiting.keys().copied().filter(|(process, _)| *process == pid).collect();
        for key in over {
            for (operation, nested) in self.waiting.remove(&key).unwrap_or_default() {
                give(operation, nested);
            }
        }
    }

    fn flush(&mut self, give: &mut impl FnMut(Operation, bool)) {
        for (operation, nested) in self.waiting.drain().flat_map(|(_, waiting)| waiting) {
            give(operation, nested);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::catalog::Probe;
    use crate::samples;

    fn ended(group: Option<&str>, depth: u32, start_ms: f64, end_ms: f64) -> Operation {
        let probe = Arc::new(Probe {
            group: group.map(str::to_owned),
            ..samples::probe(group.unwrap_or("plain"), "")
        });
        Operation { depth, ..samples::operation(&probe, &samples::worker(7, "freecadcmd"), start_ms, end_ms) }
    }

    fn run(operations: Vec<Operation>) -> Vec<(u32, bool)> {
        let (mut groups, mut out) = (Groups::default(), Vec::new());
        for operation in operations {
            groups.push(operation, |operation, nested| out.push((operation.depth, nested)));
        }
        out
    }

    #[test]
    fn threads_that_come_and_go_leave_little_behind() {
        let mut groups = Groups::default();
        for tid in 0..1000 {
            for depth in [1, 0] {
                groups.push(Operation { tid, ..ended(Some("export"), depth, 1.0, 2.0) }, |_, _| {});
            }
            assert!(groups.waiting.is_empty());
            assert!(groups.spare.len() <= MAX_SPARE);
        }
    }

    #[test]
    fn only_the_outermost_of_a_group_counts() {
        let given = run(vec![ended(Some("export"), 1, 1.0, 2.0), ended(Some("export"), 0, 0.5, 3.0)]);
        assert_eq!(given, [(1, true), (0, false)]);
    }

    #[test]
    fn an_outer_operation_that_tells_nothing_fails_with_an_inner_one() {
        let failed = Operation { outcome: Outcome::Error, ..ended(Some("export"), 1, 1.0, 2.0) };
        let mut says = ended(Some("export"), 0, 0.5, 3.0);
        let mut probe = (*says.probe).clone();
        let returned = crate::catalog::Comparison { value: "ret".to_owned(), number: 0, equal: true };
        probe.error_when = vec![returned];
        says.probe = Arc::new(probe);
        for (outer, wanted) in [(ended(Some("export"), 0, 0.5, 3.0), Outcome::Error), (says, Outcome::Ok)] {
            let (mut groups, mut out) = (Groups::default(), Vec::new());
            for operation in [failed.clone(), outer] {
                groups.push(operation, |operation, _| out.push(operation.outcome));
            }
            assert_eq!(out, [Outcome::Error, wanted]);
        }
    }

    #[test]
    fn siblings_of_a_group_inside_something_else_count_both() {
        let given = run(vec![
            ended(Some("export"), 1, 1.0, 2.0),
            ended(Some("export"), 1, 2.5, 2.9),
            ended(None, 0, 0.5, 3.0),
        ]);
        assert_eq!(given, [(1, false), (1, false), (0, false)]);
    }

    #[test]
    fn what_waits_is_given_when_its_process_ends() {
        let (mut groups, mut out) = (Groups::default(), 0);
        groups.push(ended(Some("export"), 1, 1.0, 2.0), |_, _| out += 1);
        assert_eq!(out, 0);
        groups.end(7, |_, nested| out += 1 + u32::from(nested));
        assert_eq!(out, 1);
    }
}
