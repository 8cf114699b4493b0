//! Turns what is observed into the state of one series: a number, or a histogram with its exemplars.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model as model;
use prometheus_client::metrics::histogram::{Histogram, NativeHistogramConfig};

use super::lock;

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
pub(super) const NATIVE_BUCKETS: usize = 160;
/// 2^-20: what is shorter than about a microsecond is no work. A bucket bound in every schema, as Prometheus wants it.
pub(super) const NATIVE_ZERO: f64 = 1.0 / 1_048_576.0;

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

#[derive(Clone, Debug)]
pub(super) enum Series {
    Number(Arc<Number>),
    Durations(Arc<Durations>),
}

/// A counter or gauge.
#[derive(Debug, Default)]
pub(super) struct Number(AtomicU64);

impl Number {
    pub(super) fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// All writers hold the registry's lock.
    pub(super) fn add(&self, amount: f64) {
        self.set(self.get() + amount);
    }
}

/// A histogram, of durations unless its bounds say otherwise.
#[derive(Debug)]
pub(super) struct Durations {
    bounds: &'static [f64],
    pub(super) histogram: Histogram,
    /// The last one of each classic bucket; empty until the first.
    pub(super) exemplars: Mutex<Vec<Option<model::Exemplar>>>,
}

impl Durations {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        let native = NativeHistogramConfig::with_schema(NATIVE_SCHEMA)
            .zero_threshold(NATIVE_ZERO)
            .max_buckets(NATIVE_BUCKETS);
        Self {
            bounds,
            histogram: Histogram::new_classic_and_native(bounds.iter().copied(), native),
            exemplars: Mutex::default(),
        }
    }

    pub(super) fn observe(&self, seconds: f64, exemplar: Option<Exemplar<'_>>) {
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

fn pair(name: &str, value: &str) -> model::LabelPair {
    model::LabelPair { name: name.to_owned(), value: value.to_owned() }
}
