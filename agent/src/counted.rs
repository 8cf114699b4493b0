//! Turns the kernel's counts of calls that got no records into how many there were since the last look.

use std::collections::HashMap;

use cadscope_common::aggregate::{Aggregate, AggregateKey};

/// What was counted at the last look.
#[derive(Debug, Default)]
pub struct Counted {
    seen: HashMap<AggregateKey, Aggregate>,
}

impl Counted {
    /// Takes the counts as they are now and gives what has been added.
    pub fn take(&mut self, now: &[(AggregateKey, Aggregate)]) -> Vec<(AggregateKey, Aggregate)> {
        let mut added = Vec::new();
        for (key, total) in now {
            let before = self.seen.insert(*key, *total).unwrap_or_default();
            let more = Aggregate {
                count: total.count.saturating_sub(before.count),
                sum_ns: total.sum_ns.saturating_sub(before.sum_ns),
            };
            if more.count > 0 {
                added.push((*key, more));
            }
        }
        added
    }

    /// Forgets a process that has ended.
    pub fn forget(&mut self, pid: u32) {
        self.seen.retain(|key, _| key.pid != pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_given_once() {
        let mut counted = Counted::default();
        let key = AggregateKey { pid: 7, ..AggregateKey::default() };
        let at = |count, sum_ns| [(key, Aggregate { count, sum_ns })];
        assert_eq!(counted.take(&at(3, 30)), at(3, 30));
        assert_eq!(counted.take(&at(3, 30)), []);
        assert_eq!(counted.take(&at(5, 70)), at(2, 40));
        counted.forget(7);
        assert_eq!(counted.take(&at(1, 2)), at(1, 2), "another process with this number");
    }
}
