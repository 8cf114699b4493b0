//! Turns metric families into the bytes that a scraper asked for, and its `Accept` header into the format.
//!
//! One model, the messages of `io.prometheus.client`, and three writings of it: length-delimited protobuf (the only
//! one that carries native histograms), OpenMetrics text 1.0.0 (exemplars) and the older text 0.0.4.
//!
//! # Where the code comes from
//!
//! | library | dynamic labels | native histograms | exemplars beside them | protobuf | OpenMetrics | text 0.0.4 |
//! |---|---|---|---|---|---|---|
//! | prometheus-client 0.25 (of the Prometheus project) | yes | yes, with a bucket limit | no: `Exemplar` has no public constructor | yes | yes | no |
//! | metrics-exporter-prometheus 0.18 | yes | yes | no | yes | no | yes |
//! | prometheus 0.14 | per family | no | no | yes | no | yes |
//! | fastmetrics 0.7 (young, one author) | yes | no | classic only | yes | yes | yes |
//!
//! So prometheus-client does what is hard to get right (native buckets, their limit, the protobuf messages and their
//! framing) and this crate adds the exemplars to its messages and writes both texts from them, as client_golang's
//! `expfmt` does. Its own text writer is not used: it knows no 0.0.4 and does not escape help texts.

use std::fmt::Write;

use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model as model;
use prost::Message;

/// How metric families are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `io.prometheus.client.MetricFamily` messages, each after its length.
    Protobuf,
    /// OpenMetrics text 1.0.0.
    OpenMetrics,
    /// Prometheus text 0.0.4.
    Text,
}

impl Format {
    /// For the `Content-Type` header.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// The format that an `Accept` header prefers: highest `q`, then first named.
    ///
    /// A client that names none of them (curl, a browser) gets [`Format::Text`].
    #[must_use]
    pub fn negotiate(accept: &str) -> Self {
        let mut best = (Self::Text, 0.0);
        for range in accept.split(',').take(MAX_RANGES) {
            if let Some((format, quality)) = offered(range)
                && quality > best.1
            {
                best = (format, quality);
            }
        }
        best.0
    }
}

/// Media ranges of an `Accept` header that are looked at; Prometheus 3 sends five.
const MAX_RANGES: usize = 32;

/// The format that one media range names, and its `q`.
fn offered(range: &str) -> Option<(Format, f64)> {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next()?.to_ascii_lowercase();
    let mut quality = 1.0;
    let (mut proto, mut encoding, mut version) = (None, None, None);
    for part in parts {
        let Some((name, value)) = part.split_once('=') else { continue };
        let value = value.trim().trim_matches('"');
        match name.trim().to_ascii_lowercase().as_str() {
            "q" => quality = value.parse().ok().filter(|q| (0.0..=1.0).contains(q))?,
            "proto" => proto = Some(value),
            "encoding" => encoding = Some(value),
            "version" => version = Some(value),
            _ => {}
        }
    }
    let format = match media.as_str() {
        "application/vnd.google.protobuf" => {
            let delimited = encoding.is_none_or(|encoding| encoding == "delimited");
            (proto == Some("io.prometheus.client.MetricFamily") && delimited).then_some(Format::Protobuf)
        }
        "application/openmetrics-text" => {
            version.is_none_or(|version| version == "1.0.0").then_some(Format::OpenMetrics)
        }
        "text/plain" => version.is_none_or(|version| version == "0.0.4").then_some(Format::Text),
        "text/*" | "*/*" => Some(Format::Text),
        _ => None,
    };
    Some((format?, quality))
}

/// Writes the families.
#[must_use]
pub fn encode(families: &[model::MetricFamily], format: Format) -> Vec<u8> {
    match format {
        Format::Protobuf => families.iter().flat_map(Message::encode_length_delimited_to_vec).collect(),
        Format::OpenMetrics | Format::Text => {
            let mut text =
                Text { out: String::with_capacity(16 * 1024), open_metrics: format == Format::OpenMetrics };
            for family in families {
                text.family(family);
            }
            if text.open_metrics {
                text.out.push_str("# EOF\n");
            }
            text.out.into_bytes()
        }
    }
}

/// A text page under construction.
struct Text {
    out: String,
    open_metrics: bool,
}

impl Text {
    fn family(&mut self, family: &model::MetricFamily) {
        let (kind, name) = match family.r#type() {
            // OpenMetrics names the family without the suffix of its samples.
            model::MetricType::Counter if self.open_metrics => {
                ("counter", family.name.strip_suffix("_total").unwrap_or(&family.name))
            }
            model::MetricType::Counter => ("counter", family.name.as_str()),
            model::MetricType::Histogram => ("histogram", family.name.as_str()),
            _ => ("gauge", family.name.as_str()),
        };
        self.line(format_args!("# HELP {name} "));
        escape(&mut self.out, &family.help, self.open_metrics);
        self.line(format_args!("\n# TYPE {name} {kind}\n"));
        for metric in &family.metric {
            if let Some(counter) = &metric.counter {
                self.sample(&family.name, "", &metric.label, None, &number(counter.value));
                self.exemplar(counter.exemplar.as_ref());
            } else if let Some(gauge) = &metric.gauge {
                self.sample(&family.name, "", &metric.label, None, &number(gauge.value));
                self.exemplar(None);
            } else if let Some(histogram) = &metric.histogram {
                self.histogram(&family.name, &metric.label, histogram);
            }
        }
    }

    fn histogram(&mut self, name: &str, labels: &[model::LabelPair], histogram: &model::Histogram) {
        for bucket in &histogram.bucket {
            let mut le = number(bucket.upper_bound);
            // Canonical numbers of OpenMetrics; Prometheus 2 tells series apart by this text.
            if self.open_metrics && bucket.upper_bound.is_finite() && !le.contains('.') {
                le.push_str(".0");
            }
            self.sample(name, "_bucket", labels, Some(&le), &bucket.cumulative_count.to_string());
            self.exemplar(bucket.exemplar.as_ref());
        }
        self.sample(name, "_sum", labels, None, &number(histogram.sample_sum));
        self.exemplar(None);
        self.sample(name, "_count", labels, None, &histogram.sample_count.to_string());
        self.exemplar(None);
    }

    fn sample(
        &mut self,
        name: &str,
        suffix: &str,
        labels: &[model::LabelPair],
        le: Option<&str>,
        value: &str,
    ) {
        self.out.push_str(name);
        self.out.push_str(suffix);
        let pairs = labels.iter().map(|pair| (pair.name.as_str(), pair.value.as_str()));
        self.labels(pairs.chain(le.map(|le| ("le", le))));
        self.line(format_args!(" {value}"));
    }

    fn labels<'a>(&mut self, pairs: impl Iterator<Item = (&'a str, &'a str)>) {
        let mut opened = false;
        for (name, value) in pairs {
            self.out.push(if opened { ',' } else { '{' });
            opened = true;
            self.line(format_args!("{name}=\""));
            escape(&mut self.out, value, true);
            self.out.push('"');
        }
        if opened {
            self.out.push('}');
        }
    }

    /// Ends a sample's line.
    fn exemplar(&mut self, exemplar: Option<&model::Exemplar>) {
        if let Some(exemplar) = exemplar.filter(|_| self.open_metrics) {
            self.out.push_str(" # ");
            self.labels(exemplar.label.iter().map(|pair| (pair.name.as_str(), pair.value.as_str())));
            self.line(format_args!(" {}", number(exemplar.value)));
            if let Some(at) = &exemplar.timestamp {
                self.line(format_args!(" {}.{:03}", at.seconds, at.nanos / 1_000_000));
            }
        }
        self.out.push('\n');
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.out.write_fmt(text);
    }
}

/// A number as Prometheus reads it.
fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() }
    } else {
        value.to_string()
    }
}

/// Appends `text` with backslash, line feed and (in label values, and OpenMetrics help) quotes escaped.
fn escape(out: &mut String, text: &str, quotes: bool) {
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prometheus_gets_what_it_prefers() {
        let native = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,\
            application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(Format::negotiate(native), Format::Protobuf);
        let plain = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(Format::negotiate(plain), Format::OpenMetrics);
        assert_eq!(Format::negotiate("text/plain;version=0.0.4;q=1,*/*;q=0.1"), Format::Text);
    }

    #[test]
    fn people_get_plain_text() {
        for accept in [
            "",
            "*/*",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "application/vnd.google.protobuf",
            ";;,=",
        ] {
            assert_eq!(Format::negotiate(accept), Format::Text, "{accept}");
        }
    }

    fn family(kind: model::MetricType, metric: model::Metric) -> Vec<model::MetricFamily> {
        let name = "x_total".to_owned();
        vec![model::MetricFamily {
            name,
            help: "a \"b\" \\ c\nd".to_owned(),
            r#type: kind.into(),
            metric: vec![metric],
            ..Default::default()
        }]
    }

    #[test]
    fn labels_and_help_are_escaped() {
        let metric = model::Metric {
            label: vec![model::LabelPair { name: "l".to_owned(), value: "q\"b\\n\n{},é".to_owned() }],
            counter: Some(model::Counter { value: 2.5, ..Default::default() }),
            ..Default::default()
        };
        let families = family(model::MetricType::Counter, metric);
        let text = String::from_utf8(encode(&families, Format::Text)).unwrap();
        assert_eq!(
            text,
            "# HELP x_total a \"b\" \\\\ c\\nd\n# TYPE x_total counter\nx_total{l=\"q\\\"b\\\\n\\n{},é\"} 2.5\n"
        );
        let open = String::from_utf8(encode(&families, Format::OpenMetrics)).unwrap();
        assert_eq!(
            open,
            "# HELP x a \\\"b\\\" \\\\ c\\nd\n# TYPE x counter\nx_total{l=\"q\\\"b\\\\n\\n{},é\"} 2.5\n# EOF\n"
        );
    }

    #[test]
    fn special_numbers_have_their_names() {
        assert_eq!(number(f64::INFINITY), "+Inf");
        assert_eq!(number(f64::NEG_INFINITY), "-Inf");
        assert_eq!(number(f64::NAN), "NaN");
        assert_eq!(number(0.0025), "0.0025");
        assert_eq!(number(1e9), "1000000000");
    }

    proptest! {
        #[test]
        fn negotiation_accepts_any_header(accept in "\\PC*") {
            let _ = Format::negotiate(&accept);
        }

        #[test]
        fn an_escaped_value_stays_on_its_line_and_reads_back(value in any::<String>()) {
            let mut out = String::new();
            escape(&mut out, &value, true);
            prop_assert!(!out.contains('\n'));
            let mut read = String::new();
            let mut characters = out.chars();
            while let Some(character) = characters.next() {
                match character {
                    '\\' => read.push(match characters.next() { Some('n') => '\n', Some(other) => other, None => panic!() }),
                    '"' => prop_assert!(false, "a bare quote"),
                    other => read.push(other),
                }
            }
            prop_assert_eq!(read, value);
        }
    }
}
