//! Turns the series of a family into the message that all wire formats are written from.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::prometheus_protobuf::{self, prometheus_data_model as model};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::labels::Labels;
use super::series::{Durations, Series};
use super::{Kind, lock};

pub(super) fn message(
    name: String,
    help: String,
    kind: Kind,
    series: Vec<(Labels, Series)>,
) -> model::MetricFamily {
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
pub(super) fn histograms(durations: Vec<Arc<Durations>>) -> Vec<model::Histogram> {
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
