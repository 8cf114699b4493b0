//! Reads the text form of /metrics into samples.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// One line of /metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// With its suffix (`_count`, `_bucket`).
    pub name: String,
    /// Label values by name.
    pub labels: BTreeMap<String, String>,
    /// The number.
    pub value: f64,
}

/// Everything that one scrape gave.
#[derive(Clone, Debug, Default)]
pub struct Metrics(pub Vec<Sample>);

impl Metrics {
    /// Reads a scrape, Prometheus or OpenMetrics text; exemplars and timestamps are left out.
    ///
    /// # Errors
    /// A line is neither comment nor sample.
    pub fn read(text: &str) -> Result<Self> {
        let lines = text.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
        lines
            .map(|line| sample(line).with_context(|| format!("no sample: {line}")))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// Sum of the samples of `name` whose labels include all of `labels`.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).iter().map(|s| s.value).sum()
    }

    /// The samples of `name` whose labels include all of `labels`.
    #[must_use]
    pub fn select(&self, name: &str, labels: &[(&str, &str)]) -> Vec<&Sample> {
        let fits = |s: &&Sample| {
            s.name == name && labels.iter().all(|(k, v)| s.labels.get(*k).map(String::as_str) == Some(*v))
        };
        self.0.iter().filter(fits).collect()
    }

    /// Sum of `name` by the values of one label.
    #[must_use]
    pub fn by(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for sample in self.select(name, &[]) {
            *sums.entry(sample.labels.get(label).cloned().unwrap_or_default()).or_insert(0.0) += sample.value;
        }
        sums
    }
}

fn sample(line: &str) -> Option<Sample> {
    let line = line.split(" # ").next()?; // an exemplar follows
    let (name, rest) = match line.find('{') {
        Some(brace) => (line.get(..brace)?, line.get(brace + 1..)?),
        None => {
            let (name, value) = line.split_once(' ')?;
            return Some(Sample { name: name.to_owned(), labels: BTreeMap::new(), value: number(value)? });
        }
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest.trim_start();
    while !rest.starts_with('}') {
        let (label, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.insert(label.trim_start_matches(',').trim().to_owned(), value);
        rest = after.get(end + 1..)?;
    }
    Some(Sample { name: name.to_owned(), labels, value: number(rest.get(1..)?.trim())? })
}

fn number(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_escapes_and_exemplars_are_read() {
        let text = "# TYPE a histogram\na_bucket{le=\"+Inf\",n=\"x\\\"y,{}\"} 3 # {trace_id=\"1\"} 0.1\nb 2.5e-1 17\n";
        let metrics = Metrics::read(text).unwrap();
        assert_eq!(metrics.sum("a_bucket", &[("n", "x\"y,{}")]), 3.0);
        assert_eq!(metrics.sum("b", &[]), 0.25);
    }
}
