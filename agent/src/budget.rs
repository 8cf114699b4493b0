//! Turns how often each probe is hit into what is done about it: one that is hit too often gets no records any more, its
//! calls are counted in the kernel; one that is hit far too often is taken away.
//!
//! Pure: time and hits are arguments. A probe that is counted stays so while its file is probed: changing back and forth
//! would cost what it saves.

/// How many calls a second of one probe are borne.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Beyond, they are counted.
    pub records: f64,
    /// Beyond, the probe is taken away.
    pub calls: f64,
}

impl Limits {
    /// None.
    pub const NONE: Self = Self { records: f64::INFINITY, calls: f64::INFINITY };
}

/// What is done about a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// Nothing: each call has a record.
    #[default]
    Record,
    /// Calls are counted.
    Count,
    /// It is taken away.
    Remove,
}

/// How long hits are gathered before they are judged, in nanoseconds.
const WINDOW_NS: u64 = 1_000_000_000;

/// Hits of each probe in this window.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    since_ns: u64,
    hits: Vec<u64>,
}

impl Budget {
    /// Nothing has been hit.
    #[must_use]
    pub const fn new(limits: Limits, now_ns: u64) -> Self {
        Self { limits, since_ns: now_ns, hits: Vec::new() }
    }

    /// Notes hits of a probe program.
    pub fn note(&mut self, probe: u32, hits: u64) {
        let index = usize::try_from(probe).unwrap_or(usize::MAX);
        if index >= self.hits.len() {
            // As many as there are probe programs; the kernel names no other.
            self.hits.resize(index.saturating_add(1).min(1 << 16), 0);
        }
        if let Some(count) = self.hits.get_mut(index) {
            *count += hits;
        }
    }

    /// When a window is over: the probes that are hit too often, with what is to be done and their calls a second.
    pub fn judge(&mut self, now_ns: u64) -> Vec<(u32, Measure, f64)> {
        let passed_ns = now_ns.saturating_sub(self.since_ns);
        if passed_ns < WINDOW_NS {
            return Vec::new();
        }
        self.since_ns = now_ns;
        let seconds = passed_ns as f64 / 1e9;
        let limits = self.limits;
        let judged = (0..).zip(&self.hits).filter_map(|(probe, hits)| {
            let rate = *hits as f64 / seconds;
            let measure = if rate > limits.calls {
                Measure::Remove
            } else if rate > limits.records {
                Measure::Count
            } else {
                return None;
            };
            Some((probe, measure, rate))
        });
        let judged = judged.collect();
        self.hits.fill(0);
        judged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hit_too_often_is_counted_and_what_is_hit_far_too_often_is_removed() {
        let mut budget = Budget::new(Limits { records: 100.0, calls: 1000.0 }, 0);
        let mut second = |number: u64, hits: [u64; 3]| {
            for (probe, hits) in (0..).zip(hits) {
                budget.note(probe, hits);
            }
            let judged = budget.judge(number * WINDOW_NS);
            judged.into_iter().map(|(probe, measure, _)| (probe, measure)).collect::<Vec<_>>()
        };
        assert_eq!(second(1, [100, 101, 1001]), [(1, Measure::Count), (2, Measure::Remove)]);
        assert_eq!(second(3, [150, 201, 0]), [(1, Measure::Count)], "two seconds have passed");
        assert_eq!(second(3, [9999, 0, 0]), [], "the window is not over");
    }
}
