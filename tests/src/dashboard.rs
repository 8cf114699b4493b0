//! Reads the dashboards, and fills in their variables as Grafana does.

#![allow(clippy::indexing_slicing, reason = "a key that JSON lacks is null, not a panic")]

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

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
