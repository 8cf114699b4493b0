//! Turns what workers use at a few moments into what their families say: CPU time as it grows, memory now.
//!
//! Pure. The CPU time of a worker is counted up to its last moment, which the kernel's own account of its end tells.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::discover::Usage;
use crate::export::metrics::workers::{Used, WorkerLabels};
use crate::operation::Worker;

/// How long CPU time of labels without a worker stays: three scrapes of five minutes.
const KEPT_NS: u64 = 900_000_000_000;

/// The usage of all workers.
#[derive(Debug, Default)]
pub struct Usages {
    /// Process → CPU time that has been counted.
    counted: HashMap<u32, u64>,
    used: HashMap<WorkerLabels, Used>,
    last_seen: HashMap<WorkerLabels, u64>,
}

impl Usages {
    /// Begins a look at all workers.
    pub fn begin(&mut self) {
        self.used.clear();
    }

    /// Takes what a worker uses; gives the CPU time to add to its labels.
    pub fn take(&mut self, worker: &Worker, labels: WorkerLabels, usage: Usage, now_ns: u64) -> Duration {
        let added = self.count(worker.process.pid, usage.cpu_ns);
        let used = self.used.entry(labels.clone()).or_default();
        used.resident_bytes = used.resident_bytes.saturating_add(usage.resident_bytes);
        used.peak_bytes = used.peak_bytes.max(usage.peak_bytes);
        self.last_seen.insert(labels, now_ns);
        added
    }

    /// Takes the end of a worker; gives the CPU time to add to its labels.
    pub fn end(&mut self, pid: u32, labels: WorkerLabels, cpu_ns: Option<u64>, now_ns: u64) -> Duration {
        let added = cpu_ns.map_or(Duration::ZERO, |cpu_ns| self.count(pid, cpu_ns));
        self.counted.remove(&pid);
        self.last_seen.insert(labels, now_ns);
        added
    }

    /// A worker that ran before the agent has used CPU time that is none of the agent's to count.
    pub fn skip(&mut self, pid: u32, cpu_ns: u64) {
        self.counted.entry(pid).or_insert(cpu_ns);
    }

    /// Memory by labels, as of the last look.
    #[must_use]
    pub const fn used(&self) -> &HashMap<WorkerLabels, Used> {
        &self.used
    }

    /// Labels whose CPU time is still of interest.
    pub fn kept(&mut self, now_ns: u64) -> HashSet<WorkerLabels> {
        self.last_seen.retain(|_, seen_ns| now_ns.saturating_sub(*seen_ns) < KEPT_NS);
        self.last_seen.keys().cloned().collect()
    }

    fn count(&mut self, pid: u32, cpu_ns: u64) -> Duration {
        let counted = self.counted.entry(pid).or_default();
        let added = cpu_ns.saturating_sub(*counted);
        *counted = (*counted).max(cpu_ns);
        Duration::from_nanos(added)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn cpu_time_is_counted_once_and_to_the_end() {
        let (mut usages, worker) = (Usages::default(), samples::worker(7, "freecadcmd"));
        let labels = || WorkerLabels::new(&worker, true);
        let at = |cpu_ns| Usage { cpu_ns, resident_bytes: 10, peak_bytes: 20 };
        let mut total = Duration::ZERO;
        usages.begin();
        total += usages.take(&worker, labels(), at(50), 1);
        total += usages.take(&worker, labels(), at(80), 2);
        assert_eq!(usages.used()[&labels()], Used { resident_bytes: 20, peak_bytes: 20 });
        total += usages.end(7, labels(), Some(95), 3);
        assert_eq!(total, Duration::from_nanos(95));
        assert_eq!(usages.kept(4).len(), 1);
        assert_eq!(usages.kept(3 + KEPT_NS).len(), 0);
    }
}
