//! Turns operations and the agent's own numbers into metric series, and the series into metric families.
//!
//! Families come from the catalogue, so names, labels and label values are data that no one can trust to be few: every
//! family has a cap, all catalogue families together have one, and what is over it lands in the family's one series whose
//! label values are all `overflow`.
//!
//! Refused: a family under two types (counted, not exposed).

use std::collections::{BTreeMap, HashMap};
use std::hash::RandomState;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model as model;

use self::families::Family;
use self::labels::{Labels, family_name, tidy};
use self::message::message;
use self::operations::Resolved;
use self::series::{Durations, Series};
use super::exposition::{self, Format};

pub use self::own::OwnUsage;
pub use self::series::{BYTES_BOUNDS, COUNT_BOUNDS, DURATION_BOUNDS, Exemplar};

pub mod families;
mod labels;
mod message;
mod operations;
mod own;
mod series;
pub mod workers;

/// Families of the catalogue and its extensions; more are refused.
const FAMILIES: usize = 256;

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

/// A family that has series.
#[derive(Debug)]
struct Held {
    help: String,
    kind: Kind,
    series: BTreeMap<Labels, Series>,
    overflow: Option<(Labels, Series)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held leaves numbers, and those are always whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests;
