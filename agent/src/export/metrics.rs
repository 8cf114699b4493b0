//! Turns operations and the agent's own numbers into metric series, and the series into metric families.
//!
//! Families come from the catalogue, so names, labels and label values are data that no one can trust to be few: every
//! family has a cap, all catalogue families together have one, and what is over it lands in the family's one series whose
//! label values are all `overflow`. The steady path does not allocate: a probe, the values that its labels are made from,
//! the outcome and the worker's versions hash to the series that they were resolved to the first time.
//!
//! Refused: a family under two types (counted, not exposed).

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::prometheus_protobuf::{self, prometheus_data_model as model};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::{Histogram, NativeHistogramConfig};
use prometheus_client::registry::Registry;

use self::families::Family;
use super::exposition::{self, Format};
use crate::ai::Call;
use crate::catalog::{Amount, Label, Probe};
use crate::in_flight::InFlight;
use crate::operation::{Operation, Outcome, Value, Worker};
use crate::rollup::Rolled;
use crate::validation::Verdict;

/// Upper bounds of the classic duration buckets, seconds: 1 ms, below which no alert cares, to the 10 minutes after which
/// a job is given up; each threshold of an alert (15 s, 30 s, 300 s) is a bound.
pub const DURATION_BOUNDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0,
    300.0, 600.0,
];

/// Upper bounds of the classic buckets of a count of iterations; 500 is the threshold of an alert.
pub const COUNT_BOUNDS: &[f64] = &[
    0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 70.0, 100.0, 150.0, 200.0, 300.0, 500.0,
    1000.0, 2000.0, 5000.0, 10_000.0,
];

/// Upper bounds of the classic buckets of memory, bytes: 1 MiB to 16 GiB; 1.5 GiB is the threshold of an alert.
pub const BYTES_BOUNDS: &[f64] = &[
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    134_217_728.0,
    268_435_456.0,
    536_870_912.0,
    1_073_741_824.0,
    1_610_612_736.0,
    2_147_483_648.0,
    4_294_967_296.0,
    8_589_934_592.0,
    17_179_869_184.0,
];

/// Native buckets a doubling: 2^3 = 8, each 9 % wider than the one before.
const NATIVE_SCHEMA: i8 = 3;
/// Native buckets of one series, after which its resolution is halved.
const NATIVE_BUCKETS: usize = 160;
/// 2^-20: what is shorter than about a microsecond is no work. A bucket bound in every schema, as Prometheus wants it.
const NATIVE_ZERO: f64 = 1.0 / 1_048_576.0;

/// Label values are cut here, in bytes.
const LABEL_VALUE_BYTES: usize = 160;
/// Families of the catalogue and its extensions; more are refused.
const FAMILIES: usize = 256;
/// Remembered resolutions (a hundred bytes each); forgotten together when there are more.
const RESOLVED: usize = 8192;

const OVERFLOW: &str = "overflow";

/// Bounds, and who this is.
#[derive(Clone, Debug)]
pub struct MetricsOptions {
    /// The agent's version, for `cadscope_build_info`.
    pub version: String,
    /// Series of one family, the overflow series not counted.
    pub series_per_family: usize,
    /// Series of all catalogue families together.
    pub series: usize,
}

impl Default for MetricsOptions {
    fn default() -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), series_per_family: 500, series: 5000 }
    }
}

/// The trace behind an observation.
#[derive(Clone, Copy, Debug)]
pub struct Exemplar<'a> {
    /// 32 hex digits.
    pub trace_id: &'a str,
    /// 16 hex digits.
    pub span_id: Option<&'a str>,
    /// When the operation ended.
    pub at: SystemTime,
}

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

/// Every series of the agent. Shared: one writer (the agent's loop), one reader (the scrape).
#[derive(Debug)]
pub struct Metrics {
    options: MetricsOptions,
    hasher: RandomState,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    families: BTreeMap<String, Held>,
    /// Series of catalogue families, overflow series not counted.
    catalogue_series: usize,
    resolved: HashMap<u64, Resolved>,
}

/// Where an operation is counted.
#[derive(Debug)]
struct Resolved {
    /// Held, so that its address is not reused while it is part of a key.
    _probe: Arc<Probe>,
    durations: Option<Arc<Durations>>,
    calls: Option<Arc<Number>>,
    /// Where its memory was read.
    memory: Option<Arc<Durations>>,
    /// In the order of `probe.also`.
    also: Vec<Option<Series>>,
}

/// A family's place in the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The agent's own: only the family's cap.
    Own,
    /// The catalogue's: the shared cap too.
    Catalogue,
}

/// A family's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// A histogram of seconds.
    Durations,
    /// A histogram of counts.
    Counts,
    /// A histogram of sizes.
    Bytes,
}

/// Label pairs, sorted by name.
type Labels = Vec<(String, String)>;

/// A family that has series.
#[derive(Debug)]
struct Held {
    help: String,
    kind: Kind,
    series: BTreeMap<Labels, Series>,
    overflow: Option<(Labels, Series)>,
}

#[derive(Clone, Debug)]
enum Series {
    Number(Arc<Number>),
    Durations(Arc<Durations>),
}

/// A counter or gauge.
#[derive(Debug, Default)]
struct Number(AtomicU64);

impl Number {
    fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// All writers hold the registry's lock.
    fn add(&self, amount: f64) {
        self.set(self.get() + amount);
    }
}

/// A histogram, of durations unless its bounds say otherwise.
#[derive(Debug)]
struct Durations {
    bounds: &'static [f64],
    histogram: Histogram,
    /// The last one of each classic bucket; empty until the first.
    exemplars: Mutex<Vec<Option<model::Exemplar>>>,
}

impl Durations {
    fn new(bounds: &'static [f64]) -> Self {
        let native = NativeHistogramConfig::with_schema(NATIVE_SCHEMA)
            .zero_threshold(NATIVE_ZERO)
            .max_buckets(NATIVE_BUCKETS);
        Self {
            bounds,
            histogram: Histogram::new_classic_and_native(bounds.iter().copied(), native),
            exemplars: Mutex::default(),
        }
    }

    fn observe(&self, seconds: f64, exemplar: Option<Exemplar<'_>>) {
        self.histogram.observe(seconds);
        let Some(exemplar) = exemplar else { return };
        let mut exemplars = lock(&self.exemplars);
        exemplars.resize(self.bounds.len() + 1, None);
        if let Some(slot) = exemplars.get_mut(self.bounds.partition_point(|bound| *bound < seconds)) {
            let span = exemplar.span_id.map(|id| pair("span_id", id));
            *slot = Some(model::Exemplar {
                label: [pair("trace_id", exemplar.trace_id)].into_iter().chain(span).collect(),
                value: seconds,
                timestamp: Some(exemplar.at.into()),
            });
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held leaves numbers, and those are always whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pair(name: &str, value: &str) -> model::LabelPair {
    model::LabelPair { name: name.to_owned(), value: value.to_owned() }
}

impl Metrics {
    /// A registry with the families that always exist, at zero.
    #[must_use]
    pub fn new(options: MetricsOptions) -> Self {
        let metrics = Self { options, hasher: RandomState::new(), state: Mutex::default() };
        let version = metrics.options.version.clone();
        metrics.set(&families::BUILD_INFO, &[("version", &version)], 1.0);
        metrics.probes_attached(0);
        metrics.events_received(0);
        metrics.add(&families::WORKERS_SEEN, &[], 0.0);
        metrics
    }

    /// Records a finished operation, unless it lies inside one of its own group, which already stands for it.
    pub fn record(&self, operation: &Operation, ancestors_same_group: bool) {
        self.record_traced(operation, ancestors_same_group, None);
    }

    /// Records an operation that was seen so many times.
    pub fn record_repeated(&self, operation: &Operation, ancestors_same_group: bool, count: u64) {
        for _ in 0..count {
            self.record(operation, ancestors_same_group);
        }
    }

    /// Like [`record`](Self::record), with the trace that holds the operation's span.
    pub fn record_traced(
        &self,
        operation: &Operation,
        ancestors_same_group: bool,
        exemplar: Option<Exemplar<'_>>,
    ) {
        let probe = &operation.probe;
        let has_family = probe.metric.is_some() || probe.counter.is_some() || !probe.also.is_empty();
        if ancestors_same_group || !has_family || !probe.counts(&operation.values) {
            return;
        }
        let key = self.key(operation);
        let mut state = lock(&self.state);
        if !state.resolved.contains_key(&key) {
            let resolved = self.resolve(&mut state, operation);
            if state.resolved.len() >= RESOLVED {
                state.resolved.clear();
            }
            state.resolved.insert(key, resolved);
        }
        let Some(resolved) = state.resolved.get(&key) else { return };
        if let Some(durations) = &resolved.durations {
            durations.observe(seconds(operation), exemplar);
        }
        if let Some(calls) = &resolved.calls {
            calls.add(1.0);
        }
        if let (Some(histogram), Some(memory)) = (&resolved.memory, &operation.memory) {
            histogram.observe(memory.growth_bytes() as f64, exemplar);
        }
        for (measure, series) in probe.also.iter().zip(&resolved.also) {
            let Some(series) = series else { continue };
            match (&measure.amount, series) {
                (Amount::One, Series::Number(calls)) => calls.add(1.0),
                (Amount::Add(value), Series::Number(sum)) => sum.add(count(operation, value).unwrap_or(0.0)),
                (Amount::Duration, Series::Durations(durations)) => {
                    durations.observe(seconds(operation), exemplar);
                }
                (Amount::Observe(value), Series::Durations(counts)) => {
                    if let Some(count) = count(operation, value) {
                        counts.observe(count, exemplar);
                    }
                }
                _ => {}
            }
        }
        drop(state);
        if operation.outcome == Outcome::Exception {
            let labels = [
                ("operation", operation.name().into_owned()),
                ("exception", operation.exception.as_deref().unwrap_or("unknown").to_owned()),
                ("freecad_version", operation.worker.freecad_version.clone()),
                ("occt_version", operation.worker.occt_version.clone()),
            ];
            let labels = labels.each_ref().map(|(name, value)| (*name, value.as_str()));
            self.add(&families::EXCEPTIONS, &labels, 1.0);
        }
    }

    /// Records what operations inside another add up to.
    pub fn record_rollup(&self, worker: &Worker, rolled: &Rolled<'_>) {
        let labels = [
            (rolled.label.0, rolled.label.1),
            ("freecad_version", worker.freecad_version.as_str()),
            ("occt_version", worker.occt_version.as_str()),
        ];
        let labels = tidy(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec());
        let mut state = lock(&self.state);
        let series =
            self.series(&mut state, rolled.family, rolled.help, Kind::Durations, labels, Origin::Catalogue);
        if let Some(Series::Durations(durations)) = series {
            durations.observe(rolled.seconds, None);
        }
    }

    /// Names the series of an operation. The hasher's key is random: a worker cannot aim for a collision.
    fn key(&self, operation: &Operation) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        Arc::as_ptr(&operation.probe).addr().hash(&mut hasher);
        operation.worker.freecad_version.hash(&mut hasher);
        operation.worker.occt_version.hash(&mut hasher);
        operation.outcome.hash(&mut hasher);
        operation.memory.is_some().hash(&mut hasher);
        let also = operation.probe.also.iter().flat_map(|measure| measure.labels.values());
        for label in operation.probe.labels.values().chain(also) {
            match label.value().and_then(|value| operation.values.get(value)) {
                None => 0_u8.hash(&mut hasher),
                Some(Value::Int(number)) => (1_u8, number).hash(&mut hasher),
                Some(Value::Text(text)) => (2_u8, text).hash(&mut hasher),
            }
        }
        hasher.finish()
    }

    fn resolve(&self, state: &mut State, operation: &Operation) -> Resolved {
        let probe = &operation.probe;
        let labels = labels_of(operation, &probe.labels);
        let durations = probe.metric.as_ref().and_then(|name| {
            match self.series(state, name, &probe.help, Kind::Durations, labels.clone(), Origin::Catalogue)? {
                Series::Durations(durations) => Some(durations),
                Series::Number(_) => None,
            }
        });
        let calls = probe.counter.as_ref().and_then(|name| {
            match self.series(state, name, &probe.help, Kind::Counter, labels, Origin::Catalogue)? {
                Series::Number(number) => Some(number),
                Series::Durations(_) => None,
            }
        });
        let also = probe.also.iter().map(|measure| {
            let kind = Kind::of(&measure.amount);
            let labels = labels_of(operation, &measure.labels);
            self.series(state, &measure.family, &measure.help, kind, labels, Origin::Catalogue)
        });
        let also = also.collect();
        let memory = operation.memory.and_then(|_| {
            let labels = [
                ("operation", operation.name().into_owned()),
                ("freecad_version", operation.worker.freecad_version.clone()),
                ("occt_version", operation.worker.occt_version.clone()),
            ];
            let labels = tidy(labels.map(|(name, value)| (name.to_owned(), value)).to_vec());
            match self.declared(state, &families::OPERATION_MEMORY, labels)? {
                Series::Durations(histogram) => Some(histogram),
                Series::Number(_) => None,
            }
        });
        Resolved { _probe: Arc::clone(probe), durations, calls, memory, also }
    }

    /// The series of these labels: an old one, a new one, or the family's overflow. `None`: there is no such family.
    fn series(
        &self,
        state: &mut State,
        name: &str,
        help: &str,
        kind: Kind,
        labels: Labels,
        origin: Origin,
    ) -> Option<Series> {
        let name = family_name(name, kind);
        if !state.families.contains_key(&name) {
            if origin == Origin::Catalogue && state.families.len() >= FAMILIES {
                self.count_refusal(state, "too_many_families");
                return None;
            }
            let family = Held { help: help.to_owned(), kind, series: BTreeMap::new(), overflow: None };
            state.families.insert(name.clone(), family);
        }
        let shared_room = origin == Origin::Own || state.catalogue_series < self.options.series;
        let family = state.families.get_mut(&name)?;
        if family.kind != kind {
            self.count_refusal(state, "family_of_two_types");
            return None;
        }
        if family.help.is_empty() {
            help.clone_into(&mut family.help);
        }
        if let Some(series) = family.series.get(&labels) {
            return Some(series.clone());
        }
        let new = match kind {
            Kind::Counter | Kind::Gauge => Series::Number(Arc::default()),
            Kind::Durations => Series::Durations(Arc::new(Durations::new(DURATION_BOUNDS))),
            Kind::Counts => Series::Durations(Arc::new(Durations::new(COUNT_BOUNDS))),
            Kind::Bytes => Series::Durations(Arc::new(Durations::new(BYTES_BOUNDS))),
        };
        if shared_room && family.series.len() < self.options.series_per_family {
            family.series.insert(labels, new.clone());
            state.catalogue_series += usize::from(origin == Origin::Catalogue);
            return Some(new);
        }
        let (_, overflow) = family.overflow.get_or_insert_with(|| {
            (labels.into_iter().map(|(name, _)| (name, OVERFLOW.to_owned())).collect(), new)
        });
        let overflow = overflow.clone();
        if name != families::SERIES_DROPPED.name {
            let labels = vec![("family".to_owned(), name)];
            if let Some(Series::Number(dropped)) = self.declared(state, &families::SERIES_DROPPED, labels) {
                dropped.add(1.0);
            }
        }
        Some(overflow)
    }

    fn count_refusal(&self, state: &mut State, reason: &str) {
        let labels = vec![("reason".to_owned(), reason.to_owned())];
        if let Some(Series::Number(number)) = self.declared(state, &families::RECORDS_DROPPED, labels) {
            number.add(1.0);
        }
    }

    /// The series of a family that the program declares.
    fn declared(&self, state: &mut State, family: &Family, labels: Labels) -> Option<Series> {
        debug_assert!(
            labels.iter().all(|(name, _)| family.labels.contains(&name.as_str())),
            "{} is declared without one of the labels {labels:?}: add it in families.rs",
            family.name
        );
        self.series(state, family.name, family.help, family.kind, labels, Origin::Own)
    }

    fn own(&self, family: &Family, labels: &[(&str, &str)], write: impl FnOnce(&Series)) {
        let labels =
            tidy(labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect());
        let mut state = lock(&self.state);
        if let Some(series) = self.declared(&mut state, family, labels) {
            write(&series);
        }
    }

    /// Adds to a counter of the agent's own.
    fn add(&self, family: &Family, labels: &[(&str, &str)], amount: f64) {
        self.own(family, labels, |series| {
            if let Series::Number(number) = series {
                number.add(amount);
            }
        });
    }

    /// Raises a counter of the agent's own to a total that is kept elsewhere.
    fn raise(&self, family: &Family, labels: &[(&str, &str)], total: f64) {
        self.own(family, labels, |series| {
            if let Series::Number(number) = series {
                number.set(total.max(number.get()));
            }
        });
    }

    /// Sets a gauge of the agent's own.
    fn set(&self, family: &Family, labels: &[(&str, &str)], value: f64) {
        self.own(family, labels, |series| {
            if let Series::Number(number) = series {
                number.set(value);
            }
        });
    }

    /// Sets every series of a gauge to zero: what is not set again is gone.
    fn zero(&self, gauge: &Family) {
        let state = lock(&self.state);
        let Some(family) = state.families.get(gauge.name) else { return };
        for series in family.series.values().chain(family.overflow.iter().map(|(_, series)| series)) {
            if let Series::Number(number) = series {
                number.set(0.0);
            }
        }
    }

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

    /// Every family, sorted by name, its series by labels.
    #[must_use]
    pub fn families(&self, own: OwnUsage) -> Vec<model::MetricFamily> {
        self.raise(&families::PROCESS_CPU, &[], own.cpu_seconds);
        self.set(&families::PROCESS_RESIDENT, &[], own.resident_bytes as f64);
        self.set(&families::SERIES, &[], 0.0);
        let mut state = lock(&self.state);
        let held = state
            .families
            .values()
            .map(|family| family.series.len() + usize::from(family.overflow.is_some()))
            .sum::<usize>();
        if let Some(Series::Number(series)) =
            state.families.get_mut(families::SERIES.name).and_then(|family| family.series.get(&Labels::new()))
        {
            series.set(held as f64);
        }
        // Only handles are taken under the lock; the histograms are read and everything is written after it.
        let families: Vec<_> = state
            .families
            .iter()
            .map(|(name, family)| {
                let series = family
                    .series
                    .iter()
                    .chain(family.overflow.iter().map(|(labels, series)| (labels, series)));
                let series: Vec<_> =
                    series.map(|(labels, series)| (labels.clone(), series.clone())).collect();
                (name.clone(), family.help.clone(), family.kind, series)
            })
            .collect();
        drop(state);
        families.into_iter().map(|(name, help, kind, series)| message(name, help, kind, series)).collect()
    }

    /// The page that a scraper asked for.
    #[must_use]
    pub fn encode(&self, format: Format, own: OwnUsage) -> Vec<u8> {
        exposition::encode(&self.families(own), format)
    }
}

fn seconds(operation: &Operation) -> f64 {
    Duration::from_nanos(operation.end_ns.saturating_sub(operation.start_ns)).as_secs_f64()
}

/// A count that an operation carries.
fn count(operation: &Operation, value: &str) -> Option<f64> {
    match operation.values.get(value) {
        Some(Value::Int(count)) if *count >= 0 => Some(*count as f64),
        _ => None,
    }
}

/// The labels that a family's probe makes, and the versions of the worker.
fn labels_of(operation: &Operation, labels: &BTreeMap<String, Label>) -> Labels {
    let own = labels
        .iter()
        .map(|(name, label)| (name.clone(), label.text(&operation.values, operation.outcome).into_owned()));
    let versions = [
        ("freecad_version", &operation.worker.freecad_version),
        ("occt_version", &operation.worker.occt_version),
    ];
    let versions = versions.map(|(name, version)| (name.to_owned(), version.clone()));
    tidy(own.chain(versions).collect())
}

/// Sorts label pairs, keeps the last of each name, and makes names and values fit to expose.
fn tidy(labels: Labels) -> Labels {
    let unique: BTreeMap<_, _> =
        labels.into_iter().map(|(name, value)| (label_name(&name), cut(value))).collect();
    unique.into_iter().collect()
}

/// `le` is the histograms' own.
fn label_name(name: &str) -> String {
    if name == "le" { "le_".to_owned() } else { valid_name(name, false) }
}

fn cut(mut value: String) -> String {
    value.truncate(value.floor_char_boundary(LABEL_VALUE_BYTES));
    value
}

/// The name of a family: valid, and with the suffix that counters have.
fn family_name(name: &str, kind: Kind) -> String {
    let mut name = valid_name(name, true);
    if kind == Kind::Counter && !name.ends_with("_total") {
        name.push_str("_total");
    }
    name
}

/// Replaces what Prometheus does not take in a name.
fn valid_name(name: &str, colons: bool) -> String {
    let valid = |character: char| {
        character.is_ascii_alphanumeric() || character == '_' || (colons && character == ':')
    };
    let mut out: String =
        name.chars().map(|character| if valid(character) { character } else { '_' }).collect();
    if out.chars().next().is_none_or(|first| first.is_ascii_digit()) {
        out.insert(0, '_');
    }
    out
}

fn message(name: String, help: String, kind: Kind, series: Vec<(Labels, Series)>) -> model::MetricFamily {
    let r#type = match kind {
        Kind::Counter => model::MetricType::Counter,
        Kind::Gauge => model::MetricType::Gauge,
        Kind::Durations | Kind::Counts | Kind::Bytes => model::MetricType::Histogram,
    };
    let durations = series.iter().filter_map(|(_, series)| match series {
        Series::Durations(durations) => Some(Arc::clone(durations)),
        Series::Number(_) => None,
    });
    let mut histograms = histograms(durations.collect()).into_iter();
    let metric = series.into_iter().map(|(labels, series)| {
        let mut metric = model::Metric {
            label: labels.into_iter().map(|(name, value)| model::LabelPair { name, value }).collect(),
            ..Default::default()
        };
        match (series, kind) {
            (Series::Durations(_), _) => metric.histogram = histograms.next(),
            (Series::Number(number), Kind::Counter) => {
                metric.counter = Some(model::Counter { value: number.get(), ..Default::default() });
            }
            (Series::Number(number), _) => metric.gauge = Some(model::Gauge { value: number.get() }),
        }
        metric
    });
    model::MetricFamily { metric: metric.collect(), name, help, r#type: r#type.into(), ..Default::default() }
}

/// The messages of histograms, in their order, with the exemplars that the library cannot carry beside native buckets.
fn histograms(durations: Vec<Arc<Durations>>) -> Vec<model::Histogram> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Batch(durations.clone())));
    // Fails only for a creation time before 1970; then the family is empty, which a scraper takes.
    let families = prometheus_protobuf::encode(&registry).unwrap_or_default();
    let metrics = families.into_iter().flat_map(|family| family.metric);
    let mut histograms: Vec<_> = metrics.filter_map(|metric| metric.histogram).collect();
    for (histogram, durations) in histograms.iter_mut().zip(&durations) {
        for (bucket, exemplar) in histogram.bucket.iter_mut().zip(lock(&durations.exemplars).iter()) {
            bucket.exemplar.clone_from(exemplar);
        }
    }
    histograms
}

/// Histograms to encode together.
#[derive(Debug)]
struct Batch(Vec<Arc<Durations>>);

impl Collector for Batch {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut family = encoder.encode_descriptor("batch", "", None, MetricType::Histogram)?;
        let no_labels: &[(&str, &str)] = &[];
        for durations in &self.0 {
            durations.histogram.encode(family.encode_family(&no_labels)?)?;
        }
        Ok(())
    }
}

pub mod families;
pub mod workers;

#[cfg(test)]
mod tests;
