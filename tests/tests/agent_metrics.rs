//! Promise: a node runs `cadscope agent`, and Prometheus reads a job's operations as version-labelled histograms.

#![allow(clippy::indexing_slicing, reason = "buckets come in windows of two: out of bounds is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::freecad::{Job, VERSIONS};
use cadscope_tests::metrics::Metrics;
use cadscope_tests::node::{require_root, scratch};
use cadscope_tests::run::{self, Running};
use cadscope_tests::worker;
use nix::sys::signal::Signal;

/// A sample that one run of `operations.py` raises, and by how much.
type Raise = (&'static str, &'static [(&'static str, &'static str)], f64);

const RAISES: [Raise; 17] = [
    ("occt_boolean_duration_seconds_count", &[("operation", "union"), ("status", "ok")], 6.0),
    ("occt_boolean_duration_seconds_count", &[("operation", "cut"), ("status", "ok")], 5.0),
    ("occt_boolean_duration_seconds_count", &[("operation", "common"), ("status", "ok")], 3.0),
    ("occt_boolean_duration_seconds_count", &[("operation", "section"), ("status", "ok")], 2.0),
    ("occt_boolean_duration_seconds_count", &[], 16.0),
    ("occt_feature_duration_seconds_count", &[("feature", "fillet"), ("status", "ok")], 4.0),
    ("occt_feature_duration_seconds_count", &[("feature", "fillet"), ("status", "error")], 2.0),
    ("occt_feature_duration_seconds_count", &[("feature", "chamfer"), ("status", "ok")], 3.0),
    ("freecad_recompute_duration_seconds_count", &[], 3.0),
    ("freecad_object_recompute_duration_seconds_count", &[("status", "ok")], 6.0),
    (
        "freecad_object_recompute_duration_seconds_count",
        &[("status", "error"), ("class", "Part::Fillet")],
        1.0,
    ),
    ("freecad_object_created_total", &[("workbench", "Part")], 7.0),
    ("freecad_object_created_total", &[("class", "Part::Fillet")], 2.0),
    ("freecad_document_load_seconds_count", &[("source", "fcstd")], 1.0),
    ("export_duration_seconds_count", &[("format", "STEP"), ("status", "ok")], 1.0),
    ("export_duration_seconds_count", &[("format", "STL"), ("status", "ok")], 1.0),
    ("export_duration_seconds_count", &[("format", "BREP"), ("status", "ok")], 1.0),
];

fn with_versions(labels: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let versions = [("freecad_version", VERSIONS.0), ("occt_version", VERSIONS.1)];
    labels.iter().copied().chain(versions).collect()
}

fn all_raised(metrics: &Metrics, times: f64) -> bool {
    RAISES.iter().all(|(name, labels, n)| metrics.sum(name, &with_versions(labels)) >= n * times)
}

#[test]
fn a_job_is_counted_exactly_with_its_versions() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start::<&str>(&[])?;
    // The first job makes the files known (discovery.rs tests that it is observed too).
    Job::new("operations.py")?.run(Duration::from_secs(60))?;
    std::thread::sleep(Duration::from_secs(2));
    let before = agent.metrics()?;
    for _ in 0..3 {
        Job::new("operations.py")?.run(Duration::from_secs(60))?;
    }
    let after = agent.metrics_when(Duration::from_secs(15), |m| {
        all_raised(m, 3.0)
            && m.sum("occt_boolean_duration_seconds_count", &[])
                >= before.sum("occt_boolean_duration_seconds_count", &[]) + 48.0
    })?;
    let mut complaints = Vec::new();
    for (name, labels, n) in RAISES {
        let labels = with_versions(labels);
        let raised = after.sum(name, &labels) - before.sum(name, &labels);
        if raised != n * 3.0 {
            complaints.push(format!("{name}{labels:?} rose by {raised}, not {}", n * 3.0));
        }
    }
    ensure!(complaints.is_empty(), "{}\nagent:\n{}", complaints.join("\n"), agent.log());
    check_histograms(&after)
}

/// Buckets grow with `le`, and the last one is the count.
fn check_histograms(metrics: &Metrics) -> Result<()> {
    let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for sample in metrics.0.iter().filter(|s| s.name.ends_with("_bucket")) {
        let mut labels = sample.labels.clone();
        let bound = labels.remove("le").context("a bucket without le")?;
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse()? };
        series.entry(format!("{} {labels:?}", sample.name)).or_default().push((bound, sample.value));
    }
    ensure!(!series.is_empty(), "no buckets");
    for (name, buckets) in &series {
        ensure!(buckets.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1), "{name}: {buckets:?}");
        ensure!(buckets.last().is_some_and(|b| b.0.is_infinite()), "{name} has no +Inf");
    }
    let family = "occt_boolean_duration_seconds";
    let last: f64 = metrics.sum(&format!("{family}_bucket"), &[("le", "+Inf")]);
    ensure!(last == metrics.sum(&format!("{family}_count"), &[]), "{family}: +Inf is not the count");
    ensure!(metrics.sum(&format!("{family}_sum"), &[]) > 0.0, "{family}: no time passed");
    Ok(())
}

#[test]
fn health_and_status_answer() -> Result<()> {
    let _node = require_root()?;
    let mut agent = Agent::start::<&str>(&[])?;
    for path in ["/livez", "/readyz", "/metrics", "/status"] {
        let (status, body) = agent.get(path)?;
        ensure!(status == 200, "{path} answers {status}: {body}");
    }
    let job = Job::new("endless.py")?.with("JOB_SECONDS", "60");
    let mut command = job.prepared();
    let mut child = Running(command.stdout(Stdio::null()).stdin(Stdio::null()).spawn()?);
    let pid = child.pid().to_string();
    let seen = run::until("/status names the worker", Duration::from_secs(20), || {
        let known = [&pid, VERSIONS.0, VERSIONS.1, "bool.api_build"]; // the versions come with the libraries
        agent.get("/status").ok().filter(|(_, body)| known.iter().all(|k| body.contains(k)))
    });
    job.stop()?;
    run::wait(&mut child.0, Duration::from_secs(60))?;
    let (_, body) = seen?;
    let status: serde_json::Value = serde_json::from_str(&body).with_context(|| body.clone())?;
    for key in ["workers", "files", "losses"] {
        ensure!(status.get(key).is_some(), "/status has no {key}: {body}");
    }
    ensure!(
        body.contains(VERSIONS.0) && body.contains(VERSIONS.1) && body.contains("bool.api_build"),
        "{body}"
    );
    let unknown = agent.get("/no/such/path")?.0;
    ensure!(unknown == 404, "an unknown path answers {unknown}");
    let code = agent.end(Signal::SIGTERM)?;
    ensure!(code == 0, "the agent ends with {code} when told to: {}", agent.log());
    Ok(())
}

#[test]
fn a_probe_of_the_users_own_needs_no_recompilation() -> Result<()> {
    let _node = require_root()?;
    let worker = worker::build("o2")?;
    let folder = scratch()?;
    let config = folder.path().join("cadscope.toml");
    fs::write(
        &config,
        r#"
[[probe]]
id = "mine.work"
function = "torture::work(int)"
symbols = ["_ZN7torture4workEi"]
title = "work {n}"
metric = "torture_work_duration_seconds"
help = "Duration of torture::work."
labels = { status = "status" }
[[probe.layout]]
enter = { n = "i32(arg0)" }
leave = { result = "i32(ret)" }
"#,
    )?;
    let agent = Agent::start(&["--config".as_ref(), config.as_os_str()])?;
    worker.run(&["durations"])?;
    std::thread::sleep(Duration::from_secs(1));
    let family = "torture_work_duration_seconds";
    let before = agent.metrics()?.sum(&format!("{family}_count"), &[]);
    let (_, calls) = worker.run(&["durations"])?;
    let own: Vec<i64> = calls
        .iter()
        .filter(|c| c.id == "torture.work")
        .filter_map(|c| c.clock_ns.map(|(s, e)| e - s))
        .collect();
    let expected = before + f64::from(u32::try_from(own.len())?);
    let after = agent
        .metrics_when(Duration::from_secs(10), |m| m.sum(&format!("{family}_count"), &[]) >= expected)?;
    ensure!(
        after.sum(&format!("{family}_count"), &[("status", "ok")]) == expected,
        "{:?}",
        after.select(&format!("{family}_count"), &[])
    );
    let (_, text) = agent.get("/metrics")?;
    ensure!(text.contains("Duration of torture::work."), "no help text");
    Ok(())
}
