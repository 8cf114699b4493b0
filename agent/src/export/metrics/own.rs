//! Turns what the agent knows of itself, and of what is there now, into its own families.

use std::collections::BTreeMap;
use std::time::Duration;

use super::series::Series;
use super::{Metrics, families};
use crate::ai::Call;
use crate::in_flight::InFlight;
use crate::validation::Verdict;

/// What the agent itself uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OwnUsage {
    /// User and system time since its start, seconds.
    pub cpu_seconds: f64,
    /// Resident bytes.
    pub resident_bytes: u64,
}

impl OwnUsage {
    /// Reads it from `/proc/self/stat`; zeros where that cannot be read.
    #[must_use]
    pub fn now() -> Self {
        let Ok(stat) = procfs::process::Process::myself().and_then(|own| own.stat()) else {
            return Self::default();
        };
        Self {
            cpu_seconds: (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64,
            resident_bytes: stat.rss.saturating_mul(procfs::page_size()),
        }
    }
}

impl Metrics {
    /// Sets the number of attached probes (one probe in one file).
    pub fn probes_attached(&self, count: usize) {
        self.set(&families::PROBES_ATTACHED, &[], count as f64);
    }

    /// Sets which probes are called too often, and what is done about it.
    pub fn probes_limited<'a>(&self, limited: impl Iterator<Item = (&'a str, &'static str)>) {
        self.zero(&families::PROBES_LIMITED);
        for (probe, measure) in limited {
            self.set(&families::PROBES_LIMITED, &[("measure", measure), ("probe", probe)], 1.0);
        }
    }

    /// Sets how many probes are not attached, by reason.
    pub fn probes_skipped(&self, by_reason: &BTreeMap<String, u64>) {
        self.zero(&families::PROBES_SKIPPED);
        for (reason, count) in by_reason {
            self.set(&families::PROBES_SKIPPED, &[("reason", reason)], *count as f64);
        }
    }

    /// Raises the counts of spans to their running totals.
    pub fn spans(&self, exported: u64, dropped: &[(&str, u64)]) {
        self.raise(&families::SPANS_EXPORTED, &[], exported as f64);
        for (reason, total) in dropped {
            self.raise(&families::SPANS_DROPPED, &[("reason", reason)], *total as f64);
        }
    }

    /// Raises the count of failed requests to another system to its running total.
    pub fn export_errors(&self, exporter: &str, total: u64) {
        self.raise(&families::EXPORT_ERRORS, &[("exporter", exporter)], total as f64);
    }

    /// Records a call of an AI provider.
    pub fn ai_call(&self, call: &Call) {
        let labels =
            [("provider", call.provider.as_str()), ("model", &call.model), ("operation", call.operation)];
        let observe = |family, duration: Option<Duration>| {
            let Some(duration) = duration else { return };
            self.own(family, &labels, |series| {
                if let Series::Durations(durations) = series {
                    durations.observe(duration.as_secs_f64(), None);
                }
            });
        };
        observe(&families::AI_FIRST_BYTE, call.first_byte);
        observe(&families::AI_LATENCY, call.first_byte.map(|_| call.whole));
        let [provider, model, operation] = labels;
        self.add(&families::AI_REQUESTS, &[provider, model, operation, ("status", call.outcome())], 1.0);
    }

    /// Sets who listens to progress, and raises what became of its events to the running totals.
    pub fn progress(&self, clients: usize, published: u64, dropped: &[(&str, u64)]) {
        self.set(&families::PROGRESS_CLIENTS, &[], clients as f64);
        self.raise(&families::PROGRESS_PUBLISHED, &[], published as f64);
        for (reason, total) in dropped {
            self.raise(&families::PROGRESS_DROPPED, &[("reason", reason)], *total as f64);
        }
    }

    /// Records the time from a worker's exec to its first attached probe.
    pub fn attach_latency(&self, latency: Duration) {
        self.own(&families::ATTACH_LATENCY, &[], |series| {
            if let Series::Durations(durations) = series {
                durations.observe(latency.as_secs_f64(), None);
            }
        });
    }

    /// Records how long a worker had mapped a file before its probes were in place.
    pub fn late_file(&self, late: Duration) {
        self.own(&families::LATE_FILES, &[], |series| {
            if let Series::Durations(durations) = series {
                durations.observe(late.as_secs_f64(), None);
            }
        });
    }

    /// Counts a discovered worker.
    pub fn worker_seen(&self) {
        self.add(&families::WORKERS_SEEN, &[], 1.0);
    }

    /// Counts a worker that could not be observed.
    pub fn worker_missed(&self, reason: &str) {
        self.add(&families::WORKERS_MISSED, &[("reason", reason)], 1.0);
    }

    /// Counts records that came out of the kernel.
    pub fn events_received(&self, count: u64) {
        self.add(&families::EVENTS_RECEIVED, &[], count as f64);
    }

    /// Raises the count of events that the kernel side lost to its running total; zero makes the series exist.
    pub fn events_lost(&self, reason: &str, total: u64) {
        self.raise(&families::EVENTS_LOST, &[("reason", reason)], total as f64);
    }

    /// Counts records that the agent dropped; zero makes the series exist.
    pub fn records_dropped(&self, reason: &str, count: u64) {
        self.add(&families::RECORDS_DROPPED, &[("reason", reason)], count as f64);
    }

    /// Counts an export that was compared with the earlier one of the same inputs, or could not be.
    pub fn export_validated(&self, verdict: &Verdict) {
        match verdict {
            Verdict::Compared { worker, format, same } => {
                let labels = [
                    ("format", format.as_str()),
                    ("result", if *same { "pass" } else { "fail" }),
                    ("freecad_version", worker.freecad_version.as_str()),
                    ("occt_version", worker.occt_version.as_str()),
                ];
                self.add(&families::EXPORT_VALIDATION, &labels, 1.0);
            }
            Verdict::Not(reason) => self.add(&families::EXPORTS_NOT_COMPARED, &[("reason", reason)], 1.0),
        }
    }

    /// Sets the number of workers alive, by `(freecad_version, occt_version)`.
    pub fn workers(&self, by_version: &BTreeMap<(String, String), u64>) {
        self.zero(&families::WORKERS);
        for ((freecad, occt), count) in by_version {
            let labels = [("freecad_version", freecad.as_str()), ("occt_version", occt.as_str())];
            self.set(&families::WORKERS, &labels, *count as f64);
        }
    }

    /// Sets what is open now; kinds that are not named are at zero.
    pub fn in_flight(&self, open: &[InFlight]) {
        self.zero(&families::IN_FLIGHT);
        self.zero(&families::OLDEST);
        for kind in open {
            let labels = [
                ("operation", kind.operation.as_str()),
                ("freecad_version", kind.freecad_version.as_str()),
                ("occt_version", kind.occt_version.as_str()),
            ];
            self.set(&families::IN_FLIGHT, &labels, kind.count as f64);
            let oldest = Duration::from_nanos(kind.oldest_ns).as_secs_f64();
            self.set(&families::OLDEST, &labels, oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_usage_is_read() {
        assert!(OwnUsage::now().resident_bytes > 0);
    }
}
