//! Turns the question "is the new OCCT slower than the old one, at the same work?" into a dashboard.

use serde_json::{Value, json};

use super::model::{Dashboard, Draw, Panel, data_source_variable, label_variable, query_variable, set};
use super::query::{any_or_zero, gained, or_idle, or_zero};

const BOOLEANS: &str = "occt_boolean_duration_seconds";
const FEATURES: &str = "occt_feature_duration_seconds";

pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        name: "versions",
        title: "cadscope / version comparison",
        description: "The same operations on two versions of OCCT, and on all versions of FreeCAD. Choose the \
                      operation and the range of its number of solids, so that like is compared with like.",
        variables: variables(),
        from: "now-7d",
        rows: vec![
            ("Booleans: $operation of $solids_range solids, OCCT $candidate against $base", answer()),
            ("Course and spread", course()),
            ("Every operation", every()),
        ],
    }
}

fn variables() -> Vec<Value> {
    let counted = "occt_boolean_duration_seconds_count";
    let mut base = query_variable("base", "occt_version", "OCCT", counted, "The version that is known");
    set(&mut base, "sort", json!(3));
    let mut candidate =
        query_variable("candidate", "occt_version", "against", counted, "The version in question");
    set(&mut candidate, "sort", json!(4));
    let mut operation = label_variable("operation", "operation", "Boolean", counted, "Which boolean");
    set(&mut operation, "current", json!({ "text": ["union"], "value": ["union"] }));
    let mut solids = label_variable(
        "solids_range",
        "solids_range",
        "Solids",
        counted,
        "Range of the number of its solids",
    );
    set(&mut solids, "current", json!({ "text": "All", "value": "$__all" }));
    vec![
        data_source_variable(),
        label_variable("node", "instance", "Node", "cadscope_build_info", "Whose agent observed it"),
        base,
        candidate,
        operation,
        solids,
    ]
}

/// Series of the booleans chosen, that succeeded, on the version of this variable.
fn chosen(part: &str, version: &str) -> String {
    format!(
        r#"{BOOLEANS}_{part}{{instance=~"$node",operation=~"$operation",solids_range=~"$solids_range",status="ok",occt_version="${version}"}}"#
    )
}

/// A quantile over the whole time shown.
fn whole(quantile: f64, version: &str) -> String {
    format!("histogram_quantile({quantile}, {})", gained(&chosen("bucket", version), "le"))
}

fn answer() -> Vec<Panel> {
    let number = |title: &str, version: &str, description: &str| {
        Panel::new(Draw::Stat, title, "s", description).query("p95", or_zero(&whole(0.95, version)))
    };
    let change =
        |quantile: f64| format!("{} / {} - 1", whole(quantile, "candidate"), whole(quantile, "base"));
    let count = |title: &str, version: &str| {
        Panel::new(
            Draw::Stat,
            title,
            "short",
            "How many such booleans the figures beside it rest on. Below a few hundred, a p95 says little.",
        )
        .query("count", or_zero(&gained(&chosen("count", version), "")))
    };
    let worse = [(0.1, "orange"), (0.2, "red")];
    vec![
        number("p95 on OCCT $base", "base", "95th percentile over the whole time shown, on the version that is known."),
        number("p95 on OCCT $candidate", "candidate", "95th percentile over the whole time shown, on the version in question."),
        Panel::new(
            Draw::Stat,
            "Change of p95",
            "percentunit",
            "How much longer the slowest twentieth takes on the version in question; below zero it is faster. \
             OCCTVersionRegression fires at 20 %.",
        )
        .query("change", any_or_zero(&change(0.95)))
        .thresholds(&worse)
        .any_range(),
        Panel::new(
            Draw::Stat,
            "Change of the median",
            "percentunit",
            "How much longer the median boolean takes on the version in question.",
        )
        .query("change", any_or_zero(&change(0.5)))
        .thresholds(&worse)
        .any_range(),
        count("Count on $base", "base"),
        count("Count on $candidate", "candidate"),
    ]
}

fn course() -> Vec<Panel> {
    let line = |version: &str| {
        let rate = format!("sum by (le) (rate({}[$__rate_interval]))", chosen("bucket", version));
        format!("histogram_quantile(0.95, {rate})")
    };
    let heat = |version: &str| {
        let increase = format!("sum by (le) (increase({}[$__rate_interval]))", chosen("bucket", version));
        or_idle(&increase, "le", "+Inf")
    };
    vec![
        Panel::new(
            Draw::Lines,
            "p95 over time",
            "s",
            "95th percentile of the booleans chosen on both versions. Zero where none ran.",
        )
        .traced("OCCT $base", or_zero(&line("base")))
        .traced("OCCT $candidate", or_zero(&line("candidate")))
        .width(8),
        Panel::new(Draw::Heat, "OCCT $base", "s", "How many took how long on the version that is known.")
            .traced("{{le}}", heat("base"))
            .width(8),
        Panel::new(Draw::Heat, "OCCT $candidate", "s", "How many took how long on the version in question.")
            .traced("{{le}}", heat("candidate"))
            .width(8),
    ]
}

/// p95 over the whole time shown of a family, by its label and range.
fn by_kind(family: &str, labels: &str, version: &str) -> String {
    let buckets = format!(r#"{family}_bucket{{instance=~"$node",status="ok",occt_version="${version}"}}"#);
    format!("histogram_quantile(0.95, {})", gained(&buckets, &format!("le, {labels}")))
}

/// Both versions and the change between them.
fn comparison(title: &str, family: &str, labels: &str, columns: &[(&'static str, &'static str)]) -> Panel {
    let first = labels.split(',').next().unwrap_or(labels);
    let (base, candidate) = (by_kind(family, labels, "base"), by_kind(family, labels, "candidate"));
    let mut all = columns.to_vec();
    all.extend([("Value #A", "Known"), ("Value #B", "In question"), ("Value #C", "Change")]);
    Panel::new(
        Draw::Table,
        title,
        "s",
        "95th percentile over the whole time shown on both versions, and how much longer it takes on the one in question.",
    )
    .query("", or_idle(&base, first, "none yet"))
    .query("", or_idle(&candidate, first, "none yet"))
    .query("", format!("({candidate} / {base} - 1) > -Inf"))
    .columns(&all)
    .units(&[("Change", "percentunit")])
}

fn every() -> Vec<Panel> {
    let classes = r#"freecad_object_recompute_duration_seconds_bucket{instance=~"$node",status="ok"}"#;
    let recompute =
        format!("histogram_quantile(0.95, {})", gained(classes, "le, workbench, freecad_version"));
    vec![
        comparison(
            "Booleans",
            BOOLEANS,
            "operation, solids_range",
            &[("operation", "Boolean"), ("solids_range", "Solids")],
        ),
        comparison("Features", FEATURES, "feature", &[("feature", "Feature")]),
        Panel::new(
            Draw::Table,
            "Recompute of objects, by version of FreeCAD",
            "s",
            "95th percentile over the whole time shown of the recompute of one object, by workbench and FreeCAD's version.",
        )
        .query("", or_idle(&format!("sort_desc({recompute})"), "workbench", "none yet"))
        .columns(&[("workbench", "Workbench"), ("freecad_version", "FreeCAD"), ("Value", "p95")])
        .width(24),
    ]
}
