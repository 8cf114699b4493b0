//! Turns operations into the list of the last slow ones.
//!
//! A slow boolean makes the recompute around it slow, and the one around that. The list has one row for the three: the
//! innermost, which says what it lay within. An operation around that has at least as much time of its own gets its own.

use std::collections::VecDeque;
use std::time::Duration;

use super::snapshot::SlowRow;
use crate::operation::Operation;

/// Rows.
const MAX_SLOW: usize = 100;
/// Operations around a slow one that are named.
const MAX_WITHIN: usize = 6;

/// The list.
#[derive(Debug)]
pub(super) struct Slow {
    threshold_ns: u64,
    rows: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    tid: u32,
    start_ns: u64,
    end_ns: u64,
    row: SlowRow,
}

impl Slow {
    pub(super) fn new(threshold: Duration) -> Self {
        let threshold_ns = u64::try_from(threshold.as_nanos()).unwrap_or(u64::MAX).max(1);
        Self { threshold_ns, rows: VecDeque::new() }
    }

    pub(super) fn see(&mut self, operation: &Operation) {
        let duration_ns = operation.end_ns.saturating_sub(operation.start_ns);
        if duration_ns < self.threshold_ns {
            return;
        }
        let title = || super::cut(&operation.probe.title(&operation.values));
        let inside = self.rows.iter_mut().rev().find(|entry| {
            entry.tid == operation.tid
                && entry.start_ns >= operation.start_ns
                && entry.end_ns <= operation.end_ns
                && entry.row.duration_ns.saturating_mul(2) >= duration_ns
        });
        if let Some(inner) = inside {
            if inner.row.within.len() < MAX_WITHIN {
                inner.row.within.push(title());
            }
            return;
        }
        if self.rows.len() >= MAX_SLOW {
            self.rows.pop_front();
        }
        let worker = &operation.worker;
        let row = SlowRow {
            at_ms: 0,
            pid: worker.process.pid,
            program: super::cut(&worker.program),
            job: super::cut(&worker.job.id),
            title: title(),
            outcome: operation.outcome.as_str().to_owned(),
            exception: operation.exception.as_deref().map(super::cut).unwrap_or_default(),
            duration_ns,
            line: operation.source.as_deref().map(super::line).unwrap_or_default(),
            within: Vec::new(),
            memory_bytes: operation.memory.map_or(0, |memory| memory.growth_bytes()),
        };
        let (tid, start_ns, end_ns) = (operation.tid, operation.start_ns, operation.end_ns);
        self.rows.push_back(Entry { tid, start_ns, end_ns, row });
    }

    /// The newest first; `wall_ms` turns the clock of operations into that of the wall.
    pub(super) fn rows(&self, wall_ms: impl Fn(u64) -> u64) -> Vec<SlowRow> {
        let rows = self.rows.iter().rev();
        rows.map(|entry| SlowRow { at_ms: wall_ms(entry.end_ns), ..entry.row.clone() }).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::samples;

    #[test]
    fn what_is_slow_because_of_a_slow_operation_inside_is_not_told_twice() {
        let worker = samples::worker(7, "freecadcmd");
        let mut slow = Slow::new(Duration::from_millis(250));
        let mut see = |title: &str, start: f64, end: f64| {
            slow.see(&samples::operation(&Arc::new(samples::probe("a.b", title)), &worker, start, end));
        };
        see("quick", 0.0, 100.0);
        see("cut", 200.0, 900.0);
        see("recompute object", 150.0, 950.0);
        see("recompute document", 100.0, 1000.0);
        see("export", 2000.0, 2300.0);
        see("everything", 0.0, 9000.0);
        let rows = slow.rows(|end_ns| end_ns / 1_000_000);
        let told: Vec<_> = rows.iter().map(|row| (row.title.as_str(), row.within.len(), row.at_ms)).collect();
        assert_eq!(told, [("everything", 0, 9000), ("export", 0, 2300), ("cut", 2, 900)]);
        assert_eq!(rows[2].within, ["recompute object", "recompute document"]);
    }

    #[test]
    fn the_list_is_bounded_and_keeps_the_newest() {
        let (worker, probe) = (samples::worker(7, "freecadcmd"), Arc::new(samples::probe("a.b", "cut")));
        let mut slow = Slow::new(Duration::from_millis(250));
        for n in 0..1000 {
            let begin = f64::from(n) * 1000.0;
            slow.see(&samples::operation(&probe, &worker, begin, begin + 300.0));
        }
        let rows = slow.rows(|end_ns| end_ns / 1_000_000);
        assert_eq!((rows.len(), rows[0].at_ms), (MAX_SLOW, 999_300));
    }
}
