//! Promise: every query of the dashboards and of the alerts parses, and names only families and labels that are exported.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "clippy.toml allows it in test functions, but not in what they call"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cadscope::catalog::Catalog;
use cadscope::export::metrics::families::{Description, describe};
use promql_parser::label::{Labels, METRIC_NAME};
use promql_parser::parser::{self, Expr, LabelModifier, VectorSelector};

/// Labels that Prometheus adds, and what it exports on its targets itself.
const TARGET_LABELS: [&str; 3] = ["instance", "job", "le"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Name → labels of everything that a query may ask for.
fn exported() -> BTreeMap<String, BTreeSet<String>> {
    let described = describe(&Catalog::builtin().unwrap());
    let own =
        described.into_iter().map(|(name, Description { labels, .. })| (name, labels.into_iter().collect()));
    own.chain([("up".to_owned(), BTreeSet::new())]).collect()
}

/// What is wrong with a query.
fn complaints(query: &str, exported: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    match parser::parse(&without_variables(query)) {
        Ok(expression) => {
            let mut complaints = Vec::new();
            labels(&expression, exported, &mut complaints);
            complaints
        }
        Err(error) => vec![format!("does not parse: {error}")],
    }
}

/// As Grafana would fill it in.
fn without_variables(query: &str) -> String {
    let mut text = query.replace("$__rate_interval", "1m").replace("$__range", "1h");
    while let Some(at) = text.find("${") {
        let end = text[at..].find('}').unwrap() + at + 1;
        text.replace_range(at..end, "x");
    }
    text.replace('$', "")
}

/// Labels that the result may have; notes what no family has.
fn labels(
    expression: &Expr,
    exported: &BTreeMap<String, BTreeSet<String>>,
    complaints: &mut Vec<String>,
) -> BTreeSet<String> {
    match expression {
        Expr::VectorSelector(selector) => of_selector(selector, exported, complaints),
        Expr::MatrixSelector(matrix) => of_selector(&matrix.vs, exported, complaints),
        Expr::Aggregate(aggregate) => {
            let inner = labels(&aggregate.expr, exported, complaints);
            if let Some(LabelModifier::Include(by)) = &aggregate.modifier {
                unknown(by, &inner, complaints);
                return by.labels.iter().cloned().collect();
            }
            inner
        }
        Expr::Binary(binary) => {
            let mut both = labels(&binary.lhs, exported, complaints);
            both.extend(labels(&binary.rhs, exported, complaints));
            let matching = binary.modifier.as_ref().and_then(|modifier| modifier.matching.as_ref());
            if let Some(LabelModifier::Include(on)) = matching {
                unknown(on, &both, complaints);
            }
            both
        }
        Expr::Call(call) => {
            let mut all = BTreeSet::new();
            for argument in &call.args.args {
                all.extend(labels(argument, exported, complaints));
            }
            if let (true, Some(Expr::StringLiteral(new))) =
                (call.func.name == "label_replace", call.args.args.get(1).map(AsRef::as_ref))
            {
                all.insert(new.val.clone());
            }
            all
        }
        Expr::Paren(inner) => labels(&inner.expr, exported, complaints),
        Expr::Unary(inner) => labels(&inner.expr, exported, complaints),
        Expr::Subquery(inner) => labels(&inner.expr, exported, complaints),
        _ => BTreeSet::new(),
    }
}

fn of_selector(
    selector: &VectorSelector,
    exported: &BTreeMap<String, BTreeSet<String>>,
    complaints: &mut Vec<String>,
) -> BTreeSet<String> {
    let Some(name) = &selector.name else {
        complaints.push(format!("a selector without a name: {selector}"));
        return BTreeSet::new();
    };
    let family =
        ["", "_bucket", "_sum", "_count"].iter().find_map(|suffix| exported.get(name.strip_suffix(suffix)?));
    let Some(known) = family else {
        complaints.push(format!("no family {name} is exported"));
        return BTreeSet::new();
    };
    let mut known = known.clone();
    known.extend(TARGET_LABELS.map(str::to_owned));
    for matcher in &selector.matchers.matchers {
        if matcher.name != METRIC_NAME && !known.contains(&matcher.name) {
            complaints.push(format!("{name} has no label {}", matcher.name));
        }
    }
    known
}

fn unknown(wanted: &Labels, known: &BTreeSet<String>, complaints: &mut Vec<String>) {
    for label in wanted.labels.iter().filter(|label| !known.contains(*label)) {
        complaints.push(format!("nothing inside has the label {label}"));
    }
}

/// Texts of this key, at any depth.
fn texts(value: &serde_json::Value, key: &str, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            found.extend(map.get(key).and_then(|text| text.as_str()).map(str::to_owned));
            map.values().for_each(|inner| texts(inner, key, found));
        }
        serde_json::Value::Array(list) => list.iter().for_each(|inner| texts(inner, key, found)),
        _ => {}
    }
}

#[test]
fn queries_of_dashboards_name_what_is_exported() {
    let exported = exported();
    let mut problems = Vec::new();
    let mut seen = 0;
    for entry in fs::read_dir(repository().join("dashboards")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let dashboard: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let (mut queries, mut variables) = (Vec::new(), Vec::new());
        texts(&dashboard, "expr", &mut queries);
        texts(&dashboard, "query", &mut variables);
        for variable in variables.iter().filter(|query| query.starts_with("label_values(")) {
            let inner = variable.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
            let (series, label) = inner.unwrap().rsplit_once(", ").unwrap();
            queries.push(format!("count by ({label}) ({series})"));
        }
        seen += queries.len();
        for query in queries {
            let found = complaints(&query, &exported);
            problems
                .extend(found.into_iter().map(|problem| format!("{}: {problem}: {query}", path.display())));
        }
    }
    assert!(seen > 100, "only {seen} queries");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Name and expression of each rule of the file, as promtool would read it (a test of the tests checks it for well-formedness).
fn rules() -> Vec<(String, String)> {
    let text = fs::read_to_string(repository().join("alerts/cadscope.rules.yml")).unwrap();
    let mut rules: Vec<(String, String)> = Vec::new();
    let mut block: Option<usize> = None;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim();
        if let Some(name) = line.strip_prefix("- record: ").or_else(|| line.strip_prefix("- alert: ")) {
            rules.push((name.to_owned(), String::new()));
        }
        let Some((_, expression)) = rules.last_mut() else { continue };
        if let Some(rest) = line.strip_prefix("expr: ") {
            if rest == "|" {
                block = Some(indent);
            } else {
                rest.clone_into(expression);
            }
        } else if block.is_some_and(|outer| indent > outer) {
            expression.push_str(line);
            expression.push('\n');
        } else {
            block = None;
        }
    }
    rules
}

#[test]
fn alerts_name_what_is_exported_or_recorded() {
    let mut exported = exported();
    let rules = rules();
    let mut problems = Vec::new();
    for (name, expression) in &rules {
        assert!(!expression.is_empty(), "{name} has no expression");
        if name.contains(':') {
            let parsed = parser::parse(expression).unwrap_or_else(|error| panic!("{name}: {error}"));
            let recorded = labels(&parsed, &exported, &mut problems);
            exported.insert(name.clone(), recorded);
        } else {
            let found = complaints(expression, &exported);
            problems.extend(found.into_iter().map(|problem| format!("{name}: {problem}")));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    for name in ALERTS {
        assert!(rules.iter().any(|(rule, _)| rule == name), "no alert {name}");
    }
}

/// The alerts that were promised.
const ALERTS: [&str; 13] = [
    "ModelGenerationHighFailureRate",
    "FreeCADWorkerFailure",
    "AIProviderHighErrorRate",
    "ModelGenerationSlow",
    "OCCTBooleanOperationSlow",
    "OCCTHighMemoryUsage",
    "Assembly4SolverSlow",
    "Assembly4ExcessiveIterations",
    "OCCTOperationHung",
    "FreeCADWorkerOOM",
    "CadscopeDown",
    "CadscopeLosingEvents",
    "OCCTVersionRegression",
];

#[test]
fn every_alert_has_its_runbook() {
    let text = fs::read_to_string(repository().join("alerts/cadscope.rules.yml")).unwrap();
    let links: Vec<_> = text.lines().filter_map(|line| line.trim().strip_prefix("runbook_url: ")).collect();
    assert_eq!(links.len(), ALERTS.len());
    for name in ALERTS {
        let file = format!("docs/runbooks/{name}.md");
        assert!(links.iter().any(|link| link.trim_matches('"').ends_with(&file)), "no link to {file}");
        let runbook = fs::read_to_string(repository().join(&file)).unwrap_or_default();
        assert!(runbook.starts_with(&format!("# {name}\n")), "{file} is no runbook of {name}");
        for headline in ["## What it means", "## What to look at", "## What to do"] {
            assert!(runbook.contains(headline), "{file} lacks {headline}");
        }
    }
}

#[test]
fn a_name_that_is_not_exported_is_found() {
    let exported = exported();
    let wrong = [
        "rate(no_such_family_total[5m])",
        "sum by (colour) (freecad_workers)",
        r#"freecad_workers{colour="red"}"#,
        "sum(freecad_workers",
        "freecad_workers / on (colour) freecad_workers",
    ];
    for query in wrong {
        assert_eq!(complaints(query, &exported).len(), 1, "{query}: {:?}", complaints(query, &exported));
    }
    let right = r#"histogram_quantile(0.95, sum by (le, operation) (rate(occt_boolean_duration_seconds_bucket{instance=~"$node"}[$__rate_interval])))"#;
    assert!(complaints(right, &exported).is_empty(), "{:?}", complaints(right, &exported));
}
