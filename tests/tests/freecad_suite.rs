//! Promise: FreeCAD's own test suite gives the same result while it is watched, and the operations counted for it are
//! those that an independent observer counts at the same functions in the same run.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::independent::Count;
use cadscope_tests::metrics::Metrics;
use cadscope_tests::{freecad, node};

/// The same from /metrics, with the keys that bpftrace has. Both see every worker of these files on the node.
fn from_metrics(metrics: &Metrics) -> BTreeMap<String, f64> {
    let mut counts = BTreeMap::new();
    let mut add = |key: &str, value: f64| {
        if value > 0.0 {
            counts.insert(key.to_owned(), value);
        }
    };
    let boolean = |operation| metrics.sum("occt_boolean_duration_seconds_count", &[("operation", operation)]);
    for (key, operation) in [
        ("boolean common", "common"),
        ("boolean union", "union"),
        ("boolean cut", "cut"),
        ("boolean section", "section"),
    ] {
        add(key, boolean(operation));
    }
    add("split", boolean("split"));
    for feature in ["fillet", "chamfer"] {
        add(feature, metrics.sum("occt_feature_duration_seconds_count", &[("feature", feature)]));
    }
    add("recompute", metrics.sum("freecad_recompute_duration_seconds_count", &[]));
    add("object", metrics.sum("freecad_object_recompute_duration_seconds_count", &[]));
    add("created", metrics.sum("freecad_object_created_total", &[]));
    counts
}

#[test]
fn freecads_own_suite_gives_the_same_result_and_its_operations_are_all_counted() -> Result<()> {
    let _node = node::require_root()?;
    let alone = freecad::suite()?;
    let agent = Agent::start::<&str>(&[])?;
    // The libraries become known with a first job; from then on nothing may be missed.
    freecad::Job::new("operations.py")?.run(Duration::from_secs(60))?;
    let known = agent.metrics_when(Duration::from_secs(20), |m| from_metrics(m).contains_key("recompute"))?;
    ensure!(
        from_metrics(&known).contains_key("recompute"),
        "FreeCAD is not observed; agent:\n{}",
        agent.log()
    );
    freecad::Job::new("operations.py")?.run(Duration::from_secs(60))?;
    std::thread::sleep(Duration::from_secs(2));

    let before = from_metrics(&agent.metrics()?);
    let independent = Count::start()?;
    let watched = freecad::suite()?;
    std::thread::sleep(Duration::from_secs(2));
    let after = from_metrics(&agent.metrics()?);
    let expected = independent.end()?;

    ensure!(watched == alone, "the suite's result differs: {watched:?}, alone {alone:?}");
    let counted: BTreeMap<String, f64> = after
        .iter()
        .map(|(key, n)| (key.clone(), n - before.get(key).copied().unwrap_or(0.0)))
        .filter(|(_, n)| *n != 0.0)
        .collect();
    eprintln!("{} tests, {}; {expected:?}", watched.ran, watched.verdict);
    ensure!(expected.len() >= 5, "bpftrace counted next to nothing: {expected:?}");
    ensure!(counted == expected, "cadscope counted {counted:?}, bpftrace {expected:?}");
    Ok(())
}
