//! Reads the dashboards, and fills in their variables as Grafana does.

#![allow(clippy::indexing_slicing, reason = "a key that JSON lacks is null, not a panic")]

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::prometheus::{Prometheus, Series};

/// What the first look at each dashboard falls on.
pub const MAIN: [(&str, &[&str]); 4] = [
    (
        "fleet",
        &[
            "Workers",
            "1. Model generation success rate",
            "2. P95 latencies",
            "5. Document operations",
            "6. OCCT operations",
            "7. OCCT memory usage",
            "14. Export duration",
            "16. Worker resources",
        ],
    ),
    ("worker", &["Workers", "Booleans", "Resident memory", "Cores used", "Exits"]),
    ("versions", &["Count on $base", "Count on $candidate", "p95 over time", "Booleans"]),
    ("agent", &["Agents", "Probes attached", "CPU", "Resident memory", "Records received", "Series"]),
];

/// The four files.
///
/// # Errors
/// They cannot be read.
pub fn all() -> Result<Vec<(PathBuf, Value)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dashboards");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let dashboard = serde_json::from_slice(&std::fs::read(&path)?)?;
            found.push((path, dashboard));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// One query of a panel.
#[derive(Clone, Debug)]
pub struct Query {
    /// The panel's title.
    pub panel: String,
    /// With its variables.
    pub expression: String,
    /// Asked for one moment only.
    pub instant: bool,
}

/// All queries of a dashboard.
#[must_use]
pub fn queries(dashboard: &Value) -> Vec<Query> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut queries = Vec::new();
    for panel in list(&dashboard["panels"]) {
        for target in list(&panel["targets"]) {
            queries.push(Query {
                panel: panel["title"].as_str().unwrap_or_default().to_owned(),
                expression: target["expr"].as_str().unwrap_or_default().to_owned(),
                instant: target["instant"] == true,
            });
        }
    }
    queries
}

/// What Prometheus answers to a query over the last seconds, with these variables.
///
/// # Errors
/// It refuses the query.
pub fn answer(
    prometheus: &Prometheus,
    query: &Query,
    seconds: u64,
    variables: &[(&str, &str)],
) -> Result<Vec<Series>> {
    let text = filled(&query.expression, &format!("{seconds}s"), variables);
    let answer = if query.instant { prometheus.instant(&text) } else { prometheus.range(&text, seconds) };
    answer.with_context(|| format!("{}: {text}", query.panel))
}

/// Whether there is more in it than zero.
#[must_use]
pub fn has_data(answer: &[Series]) -> bool {
    answer.iter().any(|series| series.values.iter().any(|value| value.is_finite() && *value != 0.0))
}

/// The [`MAIN`] panels that have no data yet.
///
/// # Errors
/// A panel is not there, or Prometheus refuses a query.
pub fn missing(prometheus: &Prometheus, seconds: u64, variables: &[(&str, &str)]) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for (path, dashboard) in all()? {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let (_, panels) =
            MAIN.iter().find(|(of, _)| *of == name).with_context(|| format!("{name} is new"))?;
        let queries = queries(&dashboard);
        for panel in *panels {
            let of_panel: Vec<&Query> = queries.iter().filter(|query| query.panel == *panel).collect();
            ensure!(!of_panel.is_empty(), "no panel {panel} in {name}");
            let mut found = false;
            for query in of_panel {
                found |= has_data(&answer(prometheus, query, seconds, variables)?);
            }
            if !found {
                missing.push(format!("{name}: {panel}"));
            }
        }
    }
    Ok(missing)
}

/// A variable by its name, or everything.
#[must_use]
pub fn filled(expression: &str, range: &str, variables: &[(&str, &str)]) -> String {
    let mut text = expression.replace("$__rate_interval", "10s").replace("$__range", range);
    for (name, value) in variables {
        text = text.replace(&format!("${{{name}}}"), value).replace(&format!("${name}"), value);
    }
    let all = [
        "node",
        "namespace",
        "pod",
        "freecad_version",
        "occt_version",
        "flow_type",
        "operation",
        "solids_range",
    ];
    for name in all {
        text = text.replace(&format!("${name}"), ".*");
    }
    text
}

/// The same dashboard with these variables chosen.
#[must_use]
pub fn chosen(dashboard: &Value, variables: &[(&str, &str)]) -> Value {
    let mut dashboard = dashboard.clone();
    let list = dashboard.pointer_mut("/templating/list").and_then(Value::as_array_mut);
    for variable in list.into_iter().flatten().filter_map(Value::as_object_mut) {
        let value = variables.iter().find(|(name, _)| variable.get("name").is_some_and(|n| n == name));
        if let Some((_, value)) = value {
            variable.insert("current".to_owned(), serde_json::json!({ "text": value, "value": value }));
        }
    }
    dashboard
}
