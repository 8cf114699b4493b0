//! Turns each family that the program itself declares into one constant, and these and the catalogue's into one list.
//!
//! A counter, gauge or histogram can be written only through its constant, so nothing is exposed that the list does not
//! have: docs/metrics.md is made from it, and a dashboard or an alert that names anything else fails a test.

use std::collections::BTreeMap;

use super::Kind;
use super::labels::family_name;
use crate::catalog::{Amount, Catalog, Probe};

/// A family that does not come from the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// With the suffix `_total` if it is a counter.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Every label that a series of it can have; one may lack some of them.
    pub labels: &'static [&'static str],
    /// Help text.
    pub help: &'static str,
}

macro_rules! families {
    ($($constant:ident = $name:literal $kind:ident [$($label:literal),*] $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: Family =
            Family { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*
        /// All of them.
        pub const DECLARED: &[Family] = &[$($constant),*];
    };
}

families! {
    BUILD_INFO = "cadscope_build_info" Gauge ["version"] "The agent's version, as a label.";
    PROBES_ATTACHED = "cadscope_probes_attached" Gauge [] "Probes attached now, over all files.";
    PROBES_SKIPPED = "cadscope_probes_skipped" Gauge ["reason"]
        "Probes that a file does not have or that could not be placed, over all files.";
    PROBES_LIMITED = "cadscope_probes_limited" Gauge ["measure", "probe"]
        "Probes that are called too often: their calls are counted in the kernel, or they are removed.";
    ATTACH_LATENCY = "cadscope_attach_latency_seconds" Durations []
        "From a worker's exec until its first probe is attached.";
    LATE_FILES = "cadscope_late_file_seconds" Durations []
        "From the moment that a worker mapped a file new to the agent until its probes were in place: operations of the file in that time are not seen.";
    WORKERS_SEEN = "cadscope_workers_seen_total" Counter [] "Workers discovered.";
    WORKERS_MISSED = "cadscope_workers_missed_total" Counter ["reason"]
        "Workers that could not be observed, or not from their beginning.";
    EVENTS_RECEIVED = "cadscope_events_received_total" Counter [] "Records received from the kernel.";
    EVENTS_LOST = "cadscope_events_lost_total" Counter ["reason"] "Events that the kernel side could not record.";
    RECORDS_DROPPED = "cadscope_records_dropped_total" Counter ["reason"]
        "Records and observations that the agent received and could not use.";
    SERIES = "cadscope_series" Gauge [] "Series held, the overflow series included.";
    SERIES_DROPPED = "cadscope_series_dropped_total" Counter ["family"]
        "Label sets that were over the limit of series; their observations are in the series whose labels say overflow.";
    SPANS_EXPORTED = "cadscope_spans_exported_total" Counter [] "Spans that the collector took.";
    SPANS_DROPPED = "cadscope_spans_dropped_total" Counter ["reason"] "Spans that were not exported.";
    EXPORT_ERRORS = "cadscope_export_errors_total" Counter ["exporter"]
        "Requests to another system that failed.";
    PROGRESS_CLIENTS = "cadscope_progress_clients" Gauge [] "Clients that listen to the progress of jobs.";
    PROGRESS_PUBLISHED = "cadscope_progress_published_total" Counter []
        "Events of the progress feed that Redis took.";
    PROGRESS_DROPPED = "cadscope_progress_dropped_total" Counter ["reason"]
        "Events of the progress feed that found no room or were refused, and clients that did not keep up.";
    EXPORTS_NOT_COMPARED = "cadscope_exports_not_compared_total" Counter ["reason"]
        "Exported files that were not compared: the first of their inputs, or for the reason told.";
    PROCESS_CPU = "process_cpu_seconds_total" Counter [] "CPU time that the agent has used.";
    PROCESS_RESIDENT = "process_resident_memory_bytes" Gauge [] "Resident memory of the agent.";

    WORKERS = "freecad_workers" Gauge ["freecad_version", "occt_version"] "Workers alive.";
    WORKER_CPU = "freecad_worker_cpu_seconds_total" Counter
        ["freecad_version", "occt_version", "namespace", "pod", "container"] "CPU time of workers.";
    WORKER_RESIDENT = "freecad_worker_resident_memory_bytes" Gauge
        ["freecad_version", "occt_version", "namespace", "pod", "container"]
        "Resident memory of workers, all together.";
    WORKER_PEAK = "freecad_worker_peak_memory_bytes" Gauge
        ["freecad_version", "occt_version", "namespace", "pod", "container"]
        "The most memory that one of the workers alive ever had resident.";
    WORKER_EXITS = "freecad_worker_exits_total" Counter ["reason", "signal", "freecad_version", "occt_version"]
        "Workers that exited.";
    WORKER_OOM_KILLS = "freecad_worker_oom_kills_total" Counter
        ["operation", "freecad_version", "occt_version", "namespace", "pod", "container"]
        "Workers that the kernel killed because memory ran out, by the operation they were in.";

    IN_FLIGHT = "occt_operations_in_flight" Gauge ["operation", "freecad_version", "occt_version"]
        "Operations that have begun and not ended.";
    OLDEST = "occt_operation_oldest_seconds" Gauge ["operation", "freecad_version", "occt_version"]
        "Age of the oldest operation that has not ended.";

    OPERATION_MEMORY = "occt_operation_memory_bytes" Bytes ["operation", "freecad_version", "occt_version"]
        "What an operation added to its worker's resident memory at its peak.";
    EXCEPTIONS = "occt_exceptions_total" Counter ["operation", "exception", "freecad_version", "occt_version"]
        "C++ exceptions that left an operation, by their type.";

    AI_LATENCY = "ai_provider_latency_seconds" Durations ["provider", "model", "operation"]
        "Calls of AI providers: from the request's first byte to the response's last.";
    AI_FIRST_BYTE = "ai_provider_first_byte_seconds" Durations ["provider", "model", "operation"]
        "Calls of AI providers: from the request's first byte to the response's first.";
    AI_REQUESTS = "ai_provider_requests_total" Counter ["provider", "model", "operation", "status"]
        "Calls of AI providers; status is ok, or error: an HTTP status from 400 on, or no response.";
    EXPORT_VALIDATION = "deterministic_export_validation_total" Counter
        ["format", "result", "freecad_version", "occt_version"]
        "Exported files that are what the earlier export of the same inputs wrote (pass), or are not (fail).";

    FLOWS_STARTED = "model_generation_started_total" Counter ["flow_type", "freecad_version", "occt_version"]
        "Workers that started, each one flow.";
    FLOWS_COMPLETED = "model_generation_completed_total" Counter
        ["flow_type", "status", "freecad_version", "occt_version"]
        "Workers that ended, by what happened to them; not by their exit status alone.";
    FLOWS_ACTIVE = "model_generation_active" Gauge ["flow_type", "freecad_version", "occt_version"]
        "Flows that run.";
    FLOW_STAGES = "model_generation_stage_duration_seconds" Durations ["flow_type", "stage", "freecad_version"]
        "Stages of flows: from exec to the first operation, then the outermost operations.";
}

/// A family as a reader of `/metrics` meets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its type.
    pub kind: Kind,
    /// Every label that a series of it can have.
    pub labels: Vec<String>,
    /// Help text.
    pub help: String,
    /// Ids of the probes that it is measured by; none for a family that the program declares.
    pub probes: Vec<String>,
}

/// Every family that an agent with this catalogue can expose, by name.
#[must_use]
pub fn describe(catalog: &Catalog) -> BTreeMap<String, Description> {
    let mut all: BTreeMap<String, Description> = BTreeMap::new();
    for family in DECLARED {
        let labels = family.labels.iter().map(|label| (*label).to_owned()).collect();
        let help = family.help.to_owned();
        all.insert(
            family.name.to_owned(),
            Description { kind: family.kind, labels, help, probes: Vec::new() },
        );
    }
    for probe in &catalog.probes {
        for (name, kind, labels, help) in measured(probe) {
            let family = all.entry(family_name(name, kind)).or_insert_with(|| Description {
                kind,
                labels: Vec::new(),
                help: String::new(),
                probes: Vec::new(),
            });
            for label in labels.into_iter().chain(["freecad_version", "occt_version"]) {
                if !family.labels.iter().any(|known| known == label) {
                    family.labels.push(label.to_owned());
                }
            }
            if family.help.is_empty() {
                help.clone_into(&mut family.help);
            }
            family.probes.push(probe.id.clone());
        }
    }
    all
}

/// The families that a probe's calls go to.
fn measured(probe: &Probe) -> Vec<(&str, Kind, Vec<&str>, &str)> {
    let own = || probe.labels.keys().map(String::as_str).collect::<Vec<_>>();
    let mut all = Vec::new();
    all.extend(probe.metric.iter().map(|name| (name.as_str(), Kind::Durations, own(), probe.help.as_str())));
    all.extend(probe.counter.iter().map(|name| (name.as_str(), Kind::Counter, own(), probe.help.as_str())));
    for measure in &probe.also {
        let labels = measure.labels.keys().map(String::as_str).collect();
        all.push((&measure.family, Kind::of(&measure.amount), labels, &measure.help));
    }
    let rollup = probe.rollup.iter();
    all.extend(rollup.map(|r| (r.family.as_str(), Kind::Durations, vec![r.label.as_str()], r.help.as_str())));
    all
}

impl Kind {
    /// The type of the family that such an amount goes to.
    #[must_use]
    pub fn of(amount: &Amount) -> Self {
        match amount {
            Amount::Duration => Self::Durations,
            Amount::Observe(_) => Self::Counts,
            Amount::One | Amount::Add(_) => Self::Counter,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_described_once_with_help_and_one_type() {
        let catalog = Catalog::builtin().unwrap();
        let all = describe(&catalog);
        let names: std::collections::BTreeSet<_> = DECLARED.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), DECLARED.len(), "a name is declared twice");
        for (name, family) in &all {
            assert!(!family.help.is_empty(), "{name} has no help text");
            assert_eq!(family.kind == Kind::Counter, name.ends_with("_total"), "{name}");
        }
        for probe in &catalog.probes {
            for (name, kind, ..) in measured(probe) {
                let family = all.get(&family_name(name, kind)).unwrap();
                assert_eq!(family.kind, kind, "{name} of {}", probe.id);
                assert!(!names.contains(name), "{name} of {} is the program's own", probe.id);
            }
        }
    }

    #[test]
    fn a_family_of_the_catalogue_has_the_labels_of_all_its_probes() {
        let all = describe(&Catalog::builtin().unwrap());
        let booleans = &all["occt_boolean_duration_seconds"];
        for label in ["operation", "solids_range", "status", "freecad_version", "occt_version"] {
            assert!(booleans.labels.iter().any(|known| known == label), "{label}: {booleans:?}");
        }
        assert!(booleans.probes.iter().any(|id| id == "bool.api_build"), "{booleans:?}");
    }
}
