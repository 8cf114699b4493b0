//! Turns the resident memory of a process at a few moments into what an operation needed.
//!
//! The kernel side reads it at both ends of an operation, and sends it when a process that has grown is about to give
//! memory back. Between two such moments memory only grows, so nothing higher lies between them.

use std::collections::VecDeque;

/// Moments that are remembered of a process; the oldest go first.
const MAX_PEAKS: usize = 512;

/// Resident memory of the whole process around an operation, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// When it began.
    pub entry_bytes: u64,
    /// When it ended; `None` where the process was gone by then.
    pub exit_bytes: Option<u64>,
    /// The most in between.
    pub peak_bytes: u64,
}

impl Memory {
    /// What the operation added at its peak.
    #[must_use]
    pub const fn growth_bytes(&self) -> u64 {
        self.peak_bytes.saturating_sub(self.entry_bytes)
    }
}

/// What a process had resident before it gave memory back: times rise, pages fall. What is followed by something higher
/// is forgotten, because who asks for the time since then finds that.
#[derive(Clone, Debug, Default)]
pub struct Peaks(VecDeque<(u64, u64)>);

impl Peaks {
    /// Notes a moment.
    pub fn note(&mut self, at_ns: u64, pages: u64) {
        while self.0.back().is_some_and(|(_, lower)| *lower <= pages) {
            self.0.pop_back();
        }
        if self.0.len() >= MAX_PEAKS {
            self.0.pop_front();
        }
        self.0.push_back((at_ns, pages));
    }

    /// The most pages since a moment; 0 if nothing was noted since.
    #[must_use]
    pub fn since(&self, at_ns: u64) -> u64 {
        let first = self.0.partition_point(|(noted, _)| *noted < at_ns);
        self.0.get(first).map_or(0, |(_, pages)| *pages)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_highest_since_a_moment_is_found() {
        let mut peaks = Peaks::default();
        for (at, pages) in [(1, 50), (2, 90), (3, 20), (4, 60), (5, 10)] {
            peaks.note(at, pages);
        }
        assert_eq!([0, 2, 3, 4, 5, 6].map(|at| peaks.since(at)), [90, 90, 60, 60, 10, 0]);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_list_of_everything(pages in prop::collection::vec(1..1000_u64, 1..300), from in 0..300_u64) {
            let mut peaks = Peaks::default();
            for (at, pages) in (0..).zip(&pages) {
                peaks.note(at, *pages);
            }
            let from = from.min(pages.len() as u64);
            let highest = pages.iter().skip(usize::try_from(from).unwrap()).max().copied().unwrap_or(0);
            prop_assert_eq!(peaks.since(from), highest);
        }
    }
}
