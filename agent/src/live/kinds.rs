//! Turns operations into counts, rates and quantiles of each kind.
//!
//! An operation costs one look into a table, by its probe and those of its values that its kind's name is made from;
//! the name is made once. Quantiles are exact, of the last 256.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::OpenRow;
use super::snapshot::KindRow;
use crate::catalog::{Label, Probe};
use crate::operation::{Operation, Outcome, Value};

/// Kinds that are told apart; what is over counts as `other`.
const MAX_KINDS: usize = 256;
/// Durations of a kind that are remembered.
const MAX_DURATIONS: usize = 256;
/// Seconds that a rate is made of.
const RATE_SECONDS: u64 = 10;
/// Seconds that are remembered: the one that runs is not used for a rate.
const SECONDS: usize = 12;
const SECOND_NS: u64 = 1_000_000_000;

/// All kinds.
#[derive(Debug, Default)]
pub(super) struct Kinds {
    by_key: HashMap<u64, usize>,
    by_name: HashMap<String, usize>,
    kinds: Vec<Kind>,
}

#[derive(Debug, Default)]
struct Kind {
    name: String,
    count: u64,
    failed: u64,
    total_ns: u64,
    max_ns: u64,
    durations: VecDeque<u64>,
    /// Second → how many ended in it.
    seconds: VecDeque<(u64, u64)>,
}

impl Kinds {
    pub(super) fn see(&mut self, operation: &Operation) {
        self.add(operation, 1, operation.end_ns);
    }

    /// Takes so many like this one, which has their mean duration and no place in time.
    pub(super) fn repeat(&mut self, operation: &Operation, times: u64, now_ns: u64) {
        self.add(operation, times, now_ns);
    }

    fn add(&mut self, operation: &Operation, times: u64, end_ns: u64) {
        let key = key(operation);
        let place = match self.by_key.get(&key) {
            Some(place) => *place,
            None => self.enter(key, operation),
        };
        if let Some(kind) = self.kinds.get_mut(place) {
            kind.add(operation, times, end_ns);
        }
    }

    fn enter(&mut self, key: u64, operation: &Operation) -> usize {
        let name = if self.by_name.len() < MAX_KINDS {
            super::cut(&operation.probe.kind(&operation.values, operation.outcome))
        } else {
            "other".to_owned()
        };
        let place = *self.by_name.entry(name).or_insert_with_key(|name| {
            self.kinds.push(Kind { name: name.clone(), ..Kind::default() });
            self.kinds.len() - 1
        });
        if self.by_key.len() >= 16 * MAX_KINDS {
            self.by_key.clear();
        }
        self.by_key.insert(key, place);
        place
    }

    /// The kinds that have been seen, the one with most time first.
    pub(super) fn rows(&self, now_ns: u64, open: &[OpenRow]) -> Vec<KindRow> {
        let mut rows: Vec<KindRow> = self.kinds.iter().map(|kind| kind.row(now_ns)).collect();
        for open in open {
            if let Some(row) = rows.iter_mut().find(|row| row.kind == open.kind) {
                row.open += 1;
            } else if rows.len() < MAX_KINDS {
                rows.push(KindRow { kind: open.kind.clone(), open: 1, ..KindRow::default() });
            }
        }
        rows.sort_by(|a, b| b.total_ns.cmp(&a.total_ns).then_with(|| a.kind.cmp(&b.kind)));
        rows
    }
}

impl Kind {
    fn add(&mut self, operation: &Operation, times: u64, end_ns: u64) {
        let duration_ns = operation.end_ns.saturating_sub(operation.start_ns);
        self.count = self.count.saturating_add(times);
        self.failed = self.failed.saturating_add(if operation.outcome == Outcome::Ok { 0 } else { times });
        self.total_ns = self.total_ns.saturating_add(duration_ns.saturating_mul(times));
        self.max_ns = self.max_ns.max(duration_ns);
        if self.durations.len() >= MAX_DURATIONS {
            self.durations.pop_front();
        }
        self.durations.push_back(duration_ns);
        let second = end_ns / SECOND_NS;
        match self.seconds.back_mut() {
            // Records of several CPUs come a little out of order.
            Some((last, count)) if *last >= second => *count = count.saturating_add(times),
            _ => {
                if self.seconds.len() >= SECONDS {
                    self.seconds.pop_front();
                }
                self.seconds.push_back((second, times));
            }
        }
    }

    fn row(&self, now_ns: u64) -> KindRow {
        let mut sorted: Vec<u64> = self.durations.iter().copied().collect();
        sorted.sort_unstable();
        let quantile = |percent: usize| {
            let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
            sorted.get(place).copied().unwrap_or(0)
        };
        let now = now_ns / SECOND_NS;
        let lately = |second: u64| (now.saturating_sub(RATE_SECONDS)..now).contains(&second);
        let count: u64 =
            self.seconds.iter().filter(|(second, _)| lately(*second)).map(|second| second.1).sum();
        KindRow {
            kind: self.name.clone(),
            open: 0,
            per_second: count as f64 / RATE_SECONDS as f64,
            count: self.count,
            failed: self.failed,
            total_ns: self.total_ns,
            p50_ns: quantile(50),
            p95_ns: quantile(95),
            max_ns: self.max_ns,
        }
    }
}

/// Two operations with one key have kinds of one name: that is made from the probe, which lives as long as the
/// catalogue, and from those of its labels that stand in its title.
fn key(operation: &Operation) -> u64 {
    let mut hasher = DefaultHasher::new();
    let probe: *const Probe = Arc::as_ptr(&operation.probe);
    probe.hash(&mut hasher);
    for label in operation.probe.labels.values() {
        match label {
            Label::Status | Label::StatusAs(_) => operation.outcome.hash(&mut hasher),
            label => match label.value().and_then(|name| operation.values.get(name)) {
                Some(Value::Int(number)) => number.hash(&mut hasher),
                Some(Value::Text(text)) => text.hash(&mut hasher),
                None => 0_u8.hash(&mut hasher),
            },
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::samples;

    #[test]
    fn a_kind_has_its_count_rate_and_quantiles() {
        let (worker, probe) = (samples::worker(7, "freecadcmd"), Arc::new(samples::boolean()));
        let mut kinds = Kinds::default();
        for step in 0..300_u32 {
            let end = 1000.0 + f64::from(step);
            let operation = Operation {
                values: crate::operation::Values::from([samples::int(
                    "operation",
                    1 + i64::from(step % 3 == 0),
                )]),
                outcome: if step == 7 { Outcome::Error } else { Outcome::Ok },
                ..samples::operation(&probe, &worker, end - f64::from(step), end)
            };
            kinds.see(&operation);
        }
        let open = [OpenRow { kind: "boolean cut".to_owned(), ..OpenRow::default() }];
        let rows = kinds.rows(5_000_000_000, &open);
        let row = |name: &str| rows.iter().find(|row| row.kind == name).unwrap();
        let (union, cut) = (row("boolean union"), row("boolean cut"));
        assert_eq!((union.count, union.failed, union.open), (200, 1, 0));
        assert_eq!((cut.count, cut.failed, cut.open), (100, 0, 1));
        assert!((union.per_second - 20.0).abs() < 1e-9, "{union:?}");
        assert_eq!((cut.p50_ns, cut.p95_ns, cut.max_ns), (147_000_000, 282_000_000, 297_000_000));
        assert!(kinds.rows(60_000_000_000, &[]).iter().all(|row| row.per_second == 0.0));
    }

    #[test]
    fn repeated_calls_count_as_many_now() {
        let (worker, probe) = (samples::worker(7, "freecadcmd"), Arc::new(samples::boolean()));
        let mut kinds = Kinds::default();
        kinds.repeat(&samples::operation(&probe, &worker, 0.0, 2.0), 1000, 4_500_000_000);
        let rows = kinds.rows(5_000_000_000, &[]);
        assert_eq!((rows[0].count, rows[0].total_ns, rows[0].p50_ns), (1000, 2_000_000_000, 2_000_000));
        assert!((rows[0].per_second - 100.0).abs() < 1e-9);
    }

    #[test]
    fn kinds_are_bounded() {
        let worker = samples::worker(7, "freecadcmd");
        let mut kinds = Kinds::default();
        let probes: Vec<_> =
            (0..10_000).map(|n| Arc::new(samples::probe("a.b", &format!("work {n}")))).collect();
        for probe in probes.iter().chain(&probes) {
            kinds.see(&samples::operation(probe, &worker, 0.0, 1.0));
        }
        assert_eq!(kinds.kinds.len(), MAX_KINDS + 1);
        assert!(kinds.by_key.len() <= 16 * MAX_KINDS);
        let all: u64 = kinds.rows(0, &[]).iter().map(|row| row.count).sum();
        assert_eq!(all, 20_000);
    }
}
