//! Turns recorded operations into expositions and checks what a scraper would read.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use prost::Message;

use super::message::histograms;
use super::series::{NATIVE_BUCKETS, NATIVE_ZERO};
use super::*;
use crate::catalog::{Label, Probe};
use crate::in_flight::InFlight;
use crate::memory::Memory;
use crate::operation::Outcome;
use crate::samples;

const OWN: OwnUsage = OwnUsage { cpu_seconds: 1.5, resident_bytes: 4096 };

fn metrics() -> Metrics {
    Metrics::new(MetricsOptions { version: "0.1.0".to_owned(), ..MetricsOptions::default() })
}

fn text(metrics: &Metrics, format: Format) -> String {
    String::from_utf8(metrics.encode(format, OWN)).unwrap()
}

/// Reads a page of length-delimited messages back.
fn decode(page: &[u8]) -> Vec<model::MetricFamily> {
    let mut rest = page;
    let mut families = Vec::new();
    while !rest.is_empty() {
        families.push(model::MetricFamily::decode_length_delimited(&mut rest).unwrap());
    }
    families
}

fn find<'a>(families: &'a [model::MetricFamily], name: &str) -> &'a model::MetricFamily {
    families.iter().find(|family| family.name == name).unwrap()
}

fn labels(metric: &model::Metric) -> String {
    metric.label.iter().map(|pair| format!("{}={} ", pair.name, pair.value)).collect()
}

/// Native buckets as (index, count).
fn native(histogram: &model::Histogram) -> Vec<(i32, i64)> {
    let mut deltas = histogram.positive_delta.iter();
    let (mut index, mut count, mut buckets) = (0, 0, Vec::new());
    for span in &histogram.positive_span {
        index += span.offset;
        for _ in 0..span.length {
            count += deltas.next().unwrap();
            buckets.push((index, count));
            index += 1;
        }
    }
    buckets
}

/// A cut of 0.2 s and one of 40 s with a trace.
fn two_cuts() -> Metrics {
    let metrics = metrics();
    let (probe, worker) = (Arc::new(samples::boolean()), samples::worker(7, "freecadcmd"));
    let mut operation = samples::operation(&probe, &worker, 0.0, 200.0);
    operation.values = [samples::int("operation", 2)].into();
    metrics.record(&operation, false);
    operation.end_ns = 40_000_000_000;
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    let trace =
        Exemplar { trace_id: "0af7651916cd43dd8448eb211c80319c", span_id: Some("b7ad6b7169203331"), at };
    metrics.record_traced(&operation, false, Some(trace));
    metrics.record(&operation, true);
    metrics
}

#[test]
fn the_open_metrics_page_is_complete() {
    let metrics = two_cuts();
    metrics.probes_skipped(&BTreeMap::from([("no_symbol".to_owned(), 3)]));
    metrics.workers(&BTreeMap::from([(("1.0.2".to_owned(), "7.8.1".to_owned()), 2)]));
    metrics.worker_seen();
    metrics.worker_missed("gone");
    metrics.events_received(10);
    metrics.events_lost("ring_full", 4);
    metrics.events_lost("ring_full", 2);
    let page = text(&metrics, Format::OpenMetrics);
    let v = r#"freecad_version="1.0.2",occt_version="7.8.1",operation="cut",status="ok""#;
    let trace =
        r#"# {trace_id="0af7651916cd43dd8448eb211c80319c",span_id="b7ad6b7169203331"} 40 1700000000.123"#;
    let mut buckets = String::new();
    for (le, count) in ["0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1"]
        .map(|le| (le, 0))
        .into_iter()
        .chain(["0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "15.0", "30.0"].map(|le| (le, 1)))
        .chain(["60.0", "120.0", "300.0", "600.0", "+Inf"].map(|le| (le, 2)))
    {
        let exemplar = if le == "60.0" { format!(" {trace}") } else { String::new() };
        buckets += &format!("occt_boolean_duration_seconds_bucket{{{v},le=\"{le}\"}} {count}{exemplar}\n");
    }
    let expected = format!(
        r#"# HELP cadscope_build_info The agent's version, as a label.
# TYPE cadscope_build_info gauge
cadscope_build_info{{version="0.1.0"}} 1
# HELP cadscope_events_lost Events that the kernel side could not record.
# TYPE cadscope_events_lost counter
cadscope_events_lost_total{{reason="ring_full"}} 4
# HELP cadscope_events_received Records received from the kernel.
# TYPE cadscope_events_received counter
cadscope_events_received_total 10
# HELP cadscope_probes_attached Probes attached now, over all files.
# TYPE cadscope_probes_attached gauge
cadscope_probes_attached 0
# HELP cadscope_probes_skipped Probes that a file does not have or that could not be placed, over all files.
# TYPE cadscope_probes_skipped gauge
cadscope_probes_skipped{{reason="no_symbol"}} 3
# HELP cadscope_series Series held, the overflow series included.
# TYPE cadscope_series gauge
cadscope_series 12
# HELP cadscope_workers_missed Workers that could not be observed, or not from their beginning.
# TYPE cadscope_workers_missed counter
cadscope_workers_missed_total{{reason="gone"}} 1
# HELP cadscope_workers_seen Workers discovered.
# TYPE cadscope_workers_seen counter
cadscope_workers_seen_total 1
# HELP freecad_workers Workers alive.
# TYPE freecad_workers gauge
freecad_workers{{freecad_version="1.0.2",occt_version="7.8.1"}} 2
# HELP occt_boolean_duration_seconds Duration of boolean operations.
# TYPE occt_boolean_duration_seconds histogram
{buckets}occt_boolean_duration_seconds_sum{{{v}}} 40.2
occt_boolean_duration_seconds_count{{{v}}} 2
# HELP process_cpu_seconds CPU time that the agent has used.
# TYPE process_cpu_seconds counter
process_cpu_seconds_total 1.5
# HELP process_resident_memory_bytes Resident memory of the agent.
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 4096
# EOF
"#
    );
    assert_eq!(page, expected);
}

#[test]
fn the_older_text_has_the_same_samples_without_exemplars() {
    let page = text(&two_cuts(), Format::Text);
    assert!(page.contains("# TYPE cadscope_workers_seen_total counter\ncadscope_workers_seen_total 0\n"));
    assert!(page.contains(r#"status="ok",le="60"} 2"#));
    assert!(!page.contains("trace_id") && !page.contains("# EOF"));
}

#[test]
fn protobuf_carries_both_histograms_and_the_exemplar() {
    let families = decode(&two_cuts().encode(Format::Protobuf, OWN));
    let family = find(&families, "occt_boolean_duration_seconds");
    assert_eq!(family.r#type(), model::MetricType::Histogram);
    let histogram = family.metric[0].histogram.as_ref().unwrap();
    assert_eq!((histogram.sample_count, histogram.bucket.len()), (2, DURATION_BOUNDS.len() + 1));
    assert_eq!((histogram.schema, histogram.zero_threshold), (3, NATIVE_ZERO));
    // 0.2 s in (2^(-19/8), 2^(-18/8)], 40 s in (2^(42/8), 2^(43/8)].
    assert_eq!(native(histogram), [(-18, 1), (43, 1)]);
    let exemplars: Vec<_> = histogram.bucket.iter().filter_map(|bucket| bucket.exemplar.as_ref()).collect();
    assert_eq!(exemplars.len(), 1);
    assert_eq!((exemplars[0].value, exemplars[0].label[0].name.as_str()), (40.0, "trace_id"));
    assert_eq!(find(&families, "cadscope_workers_seen_total").r#type(), model::MetricType::Counter);
}

#[test]
fn too_many_label_values_end_in_the_overflow_series() {
    let metrics = Metrics::new(MetricsOptions { series_per_family: 3, ..MetricsOptions::default() });
    let mut probe = samples::probe("x", "x");
    probe.metric = Some("x_seconds".to_owned());
    probe.labels.insert("class".to_owned(), Label::Text("class".to_owned()));
    let (probe, worker) = (Arc::new(probe), samples::worker(7, "freecadcmd"));
    for round in 0..2 {
        for class in 0..10 {
            let mut operation = samples::operation(&probe, &worker, 0.0, 1.0 + f64::from(round));
            operation.values = [samples::text("class", &format!("C{class}"))].into();
            metrics.record(&operation, false);
        }
    }
    let families = metrics.families(OWN);
    let family = find(&families, "x_seconds");
    let rows: Vec<_> = family
        .metric
        .iter()
        .map(|metric| (labels(metric), metric.histogram.as_ref().unwrap().sample_count))
        .collect();
    assert_eq!(rows.len(), 4);
    assert_eq!(rows[0], ("class=C0 freecad_version=1.0.2 occt_version=7.8.1 ".to_owned(), 2));
    assert_eq!(rows[3], ("class=overflow freecad_version=overflow occt_version=overflow ".to_owned(), 14));
    let dropped = &find(&families, families::SERIES_DROPPED.name).metric[0];
    assert_eq!(
        (labels(dropped), dropped.counter.as_ref().unwrap().value),
        ("family=x_seconds ".to_owned(), 7.0)
    );
}

#[test]
fn the_families_of_the_catalogue_share_a_limit_that_the_agents_own_do_not_feel() {
    let metrics = Metrics::new(MetricsOptions { series: 1, ..MetricsOptions::default() });
    let worker = samples::worker(7, "freecadcmd");
    for name in ["a_seconds", "b_seconds"] {
        let probe = Arc::new(Probe { metric: Some(name.to_owned()), ..samples::probe(name, name) });
        metrics.record(&samples::operation(&probe, &worker, 0.0, 1.0), false);
    }
    metrics.worker_missed("gone");
    let families = metrics.families(OWN);
    assert!(labels(&find(&families, "a_seconds").metric[0]).contains("7.8.1"));
    assert!(labels(&find(&families, "b_seconds").metric[0]).contains("overflow"));
    assert!(labels(&find(&families, "cadscope_workers_missed_total").metric[0]).contains("gone"));
}

#[test]
fn calls_are_counted_under_their_condition() {
    let metrics = metrics();
    let mut probe = samples::probe("document.add_object", "create object");
    probe.counter = Some("freecad_object_created".to_owned());
    probe.count_when = vec![crate::catalog::Comparison { value: "isNew".to_owned(), number: 1, equal: true }];
    let (probe, worker) = (Arc::new(probe), samples::worker(7, "freecadcmd"));
    for is_new in [0, 1, 1] {
        let mut operation = samples::operation(&probe, &worker, 0.0, 1.0);
        operation.values = [samples::int("isNew", is_new)].into();
        metrics.record(&operation, false);
    }
    let page = text(&metrics, Format::Text);
    assert!(
        page.contains("freecad_object_created_total{freecad_version=\"1.0.2\",occt_version=\"7.8.1\"} 2\n"),
        "{page}"
    );
}

#[test]
fn outcomes_and_versions_are_series_of_their_own() {
    let metrics = metrics();
    let probe = Arc::new(samples::boolean());
    let mut other = (*samples::worker(8, "python3")).clone();
    other.occt_version = "7.6.3".to_owned();
    for worker in [samples::worker(7, "freecadcmd"), Arc::new(other)] {
        for outcome in [Outcome::Ok, Outcome::Exception] {
            let mut operation = samples::operation(&probe, &worker, 0.0, 1.0);
            operation.outcome = outcome;
            metrics.record(&operation, false);
        }
    }
    assert_eq!(find(&metrics.families(OWN), "occt_boolean_duration_seconds").metric.len(), 4);
}

#[test]
fn a_family_of_two_types_is_refused_and_counted() {
    let metrics = metrics();
    let probe = Arc::new(Probe {
        metric: Some("both_total".to_owned()),
        counter: Some("both_total".to_owned()),
        ..samples::probe("x", "x")
    });
    metrics.record(&samples::operation(&probe, &samples::worker(7, "freecadcmd"), 0.0, 1.0), false);
    let page = text(&metrics, Format::Text);
    assert!(page.contains("cadscope_records_dropped_total{reason=\"family_of_two_types\"} 1\n"), "{page}");
    assert!(page.contains("both_total_count{"));
}

#[test]
fn a_gauge_that_is_not_set_again_is_zero() {
    let metrics = metrics();
    let open = InFlight {
        operation: "cut".to_owned(),
        freecad_version: String::new(),
        occt_version: "7.8.1".to_owned(),
        count: 2,
        oldest_ns: 61_500_000_000,
    };
    metrics.in_flight(std::slice::from_ref(&open));
    let labels = r#"{freecad_version="",occt_version="7.8.1",operation="cut"}"#;
    assert!(text(&metrics, Format::Text).contains(&format!("occt_operation_oldest_seconds{labels} 61.5\n")));
    metrics.in_flight(&[]);
    let page = text(&metrics, Format::Text);
    assert!(page.contains(&format!("occt_operations_in_flight{labels} 0\n")));
    assert!(page.contains(&format!("occt_operation_oldest_seconds{labels} 0\n")));
}

proptest! {
    /// The contract with the library: a value lies in the bucket that it is counted in, native and classic.
    #[test]
    fn a_value_lies_within_its_buckets(seconds in prop_oneof![1e-9..1e-3_f64, 1e-3..1e3_f64, 1e3..1e9_f64]) {
        let durations = Durations::new(DURATION_BOUNDS);
        durations.observe(seconds, Some(Exemplar { trace_id: "t", span_id: None, at: SystemTime::UNIX_EPOCH }));
        let histogram = histograms(vec![Arc::new(durations)]).remove(0);
        let buckets = native(&histogram);
        if seconds <= NATIVE_ZERO {
            prop_assert_eq!((histogram.zero_count, buckets.len()), (1, 0));
        } else {
            let width = f64::exp2(f64::from(histogram.schema));
            let upper = f64::exp2(f64::from(buckets[0].0) / width);
            let lower = f64::exp2(f64::from(buckets[0].0 - 1) / width);
            prop_assert_eq!(&buckets[..], &[(buckets[0].0, 1)]);
            prop_assert!(lower * (1.0 - 1e-12) <= seconds && seconds <= upper * (1.0 + 1e-12), "{lower} {seconds} {upper}");
        }
        let classic = histogram.bucket.iter().position(|bucket| bucket.cumulative_count == 1).unwrap();
        prop_assert!(seconds <= histogram.bucket[classic].upper_bound);
        prop_assert!(classic == 0 || seconds > histogram.bucket[classic - 1].upper_bound);
        prop_assert!(histogram.bucket[classic].exemplar.is_some());
    }

    /// The bound of memory: however the values spread, no more native buckets than the limit, and none lost.
    #[test]
    fn native_buckets_are_limited(exponents in prop::collection::vec(-18.0..12.0_f64, 1..2000)) {
        let durations = Durations::new(DURATION_BOUNDS);
        for exponent in &exponents {
            durations.observe(f64::exp2(*exponent), None);
        }
        let histogram = histograms(vec![Arc::new(durations)]).remove(0);
        let buckets = native(&histogram);
        prop_assert!(buckets.iter().filter(|(_, count)| *count > 0).count() <= NATIVE_BUCKETS);
        prop_assert!(buckets.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let counted = buckets.iter().map(|(_, count)| u64::try_from(*count).unwrap()).sum::<u64>();
        prop_assert_eq!(counted + histogram.zero_count, exponents.len() as u64);
    }
}

#[test]
fn memory_and_exceptions_of_operations_are_counted_by_their_name() {
    let metrics = metrics();
    let (probe, worker) = (Arc::new(samples::boolean()), samples::worker(7, "freecadcmd"));
    let mut operation = samples::operation(&probe, &worker, 0.0, 200.0);
    operation.values = [samples::int("operation", 2)].into();
    metrics.record(&operation, false);
    assert!(
        !text(&metrics, Format::Text).contains("occt_operation_memory_bytes"),
        "memory that was not read"
    );
    let (entry_bytes, peak_bytes) = (1 << 20, (1 << 20) + (3 << 30));
    operation.memory = Some(Memory { entry_bytes, exit_bytes: None, peak_bytes });
    operation.outcome = Outcome::Exception;
    operation.exception = Some("Standard_ConstructionError".into());
    metrics.record(&operation, false);
    metrics.record(&operation, true);
    let page = text(&metrics, Format::Text);
    let versions = r#"freecad_version="1.0.2",occt_version="7.8.1",operation="cut""#;
    for line in [
        format!("occt_operation_memory_bytes_bucket{{{versions},le=\"2147483648\"}} 0"),
        format!("occt_operation_memory_bytes_bucket{{{versions},le=\"4294967296\"}} 1"),
        format!("occt_exceptions_total{{exception=\"Standard_ConstructionError\",{versions}}} 1"),
    ] {
        assert!(page.contains(&line), "no {line} in\n{page}");
    }
}
