//! Turns nested operations into sums for each kind of them.

use std::collections::BTreeMap;

use super::forest::{Node, duration_ns};
use super::kind;
use crate::operation::Outcome;

/// The operations of one kind.
#[derive(Debug, Default)]
pub(super) struct Total {
    /// Sorted.
    durations: Vec<u64>,
    /// Those whose outcome is not ok.
    pub(super) failed: usize,
    /// Time that was not spent in an operation inside.
    pub(super) self_ns: u64,
}

impl Total {
    pub(super) fn count(&self) -> usize {
        self.durations.len()
    }

    pub(super) fn sum(&self) -> u64 {
        self.durations.iter().copied().fold(0, u64::saturating_add)
    }

    /// The lower of the two in the middle.
    pub(super) fn median(&self) -> u64 {
        self.durations.get(self.durations.len().saturating_sub(1) / 2).copied().unwrap_or_default()
    }

    pub(super) fn max(&self) -> u64 {
        self.durations.last().copied().unwrap_or_default()
    }
}

/// Every kind below these roots, the longest sum first.
pub(super) fn by_kind<'n, 'a: 'n>(roots: impl Iterator<Item = &'n Node<'a>>) -> Vec<(String, Total)> {
    let mut totals: BTreeMap<String, Total> = BTreeMap::new();
    let mut waiting: Vec<&Node<'_>> = roots.collect();
    while let Some(node) = waiting.pop() {
        let total = totals.entry(kind(node.operation)).or_default();
        total.durations.push(duration_ns(node.operation));
        total.failed += usize::from(node.operation.outcome != Outcome::Ok);
        total.self_ns = total.self_ns.saturating_add(node.self_ns());
        waiting.extend(&node.children);
    }
    let mut totals: Vec<_> = totals.into_iter().collect();
    for (_, total) in &mut totals {
        total.durations.sort_unstable();
    }
    totals.sort_by_cached_key(|(name, total)| (std::cmp::Reverse(total.sum()), name.clone()));
    totals
}
