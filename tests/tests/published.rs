//! Promise: the published test suites of CadQuery and build123d run unchanged beside the agent on each wheel, and it counts
//! their operations exactly as bpftrace counts the entries of OCCT's functions.
//!
//! A file of each suite by default, whole suites with `CADSCOPE_FULL=1`; `CADSCOPE_ONLY=wheel-7.7,cadquery-2.5.2` runs one.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::builds::{Build, folder, wanted};
use cadscope_tests::independent::Count;
use cadscope_tests::metrics::Metrics;
use cadscope_tests::node::{full, require_root, scratch};
use cadscope_tests::run::run;

/// Wheel, suite, and the file of it that is run by default.
const SUITES: [(&str, &str, &str); 6] = [
    ("wheel-7.7", "cadquery-2.5.2", "tests/test_free_functions.py"),
    ("wheel-7.7", "build123d-0.8.0", "tests/test_algebra.py"),
    ("wheel-7.8", "cadquery-2.7.0", "tests/test_free_functions.py"),
    ("wheel-7.8", "build123d-0.10.0", "tests/test_algebra.py"),
    ("wheel-7.9", "cadquery-2.8.0", "tests/test_free_functions.py"),
    ("wheel-8.0", "build123d-0.13.0", "tests/test_algebra.py"),
];
const LIMIT: Duration = Duration::from_secs(3000);

/// What the agent has counted of a build, by bpftrace's keys.
fn counted(metrics: &Metrics, build: &Build) -> BTreeMap<String, f64> {
    let of = [("freecad_version", ""), ("occt_version", build.occt_version)];
    let mut all = BTreeMap::new();
    for sample in metrics.select("occt_boolean_duration_seconds_count", &of) {
        let operation = sample.labels.get("operation").cloned().unwrap_or_default();
        let key = if operation == "split" { operation } else { format!("boolean {operation}") };
        *all.entry(key).or_insert(0.0) += sample.value;
    }
    for sample in metrics.select("occt_feature_duration_seconds_count", &of) {
        let feature = sample.labels.get("feature").cloned().unwrap_or_default();
        *all.entry(feature).or_insert(0.0) += sample.value;
    }
    all
}

/// Runs a suite, or the file of it; says what pytest says at its end.
fn suite(build: &Build, suite: &str, file: &str) -> Result<String> {
    let places = ["published", "published-older"].map(|name| folder().map(|folder| folder.join(name)));
    let mut places = places.into_iter().filter_map(Result::ok);
    let published = places.find(|place| place.join(suite).is_dir()).with_context(|| {
        format!("{suite} is not there: run `cargo xtask builds published published-older`")
    })?;
    let home = scratch()?;
    let mut command = Command::new(build.root()?.join("bin/python"));
    command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp"]).arg(home.path().join("tmp"));
    // What cannot be imported here is left out, and said.
    command.arg("--continue-on-collection-errors");
    command.arg(if full() { "tests" } else { file }).current_dir(published.join(suite));
    let mut modules = published.join("tools").into_os_string();
    if suite.starts_with("cadquery-") {
        modules.push(":");
        modules.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs/published"));
    }
    command.env("PYTHONPATH", modules).env("PYTHONDONTWRITEBYTECODE", "1").env("HOME", home.path());
    let ended = run(&mut command, LIMIT)?;
    let last = ended.stdout.lines().rev().find(|line| line.contains(" passed")).with_context(|| {
        format!("{suite} on {} ended with {}:\n{}\n{}", build.name, ended.code, ended.stdout, ended.stderr)
    })?;
    // Whole suites have tests that want what is not installed, or the network.
    ensure!(full() || ended.code == 0, "{suite} on {}:\n{}", build.name, ended.stdout);
    Ok(last.to_owned())
}

#[test]
fn published_suites_run_beside_the_agent_and_each_entry_is_counted() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start(&["--linger", "36000"])?;
    let mut complaints = Vec::new();
    for build in wanted().iter().filter(|build| !build.has_freecad()) {
        build.run("ocp_warm.py", scratch()?.path(), Duration::from_secs(300))?;
        let names = SUITES.map(|(_, name, _)| name);
        let chosen = |suite: &&(&str, &str, &str)| {
            suite.0 == build.name && cadscope_tests::node::wanted(suite.1, &names)
        };
        for (_, name, file) in SUITES.iter().filter(chosen) {
            let before = counted(&agent.metrics()?, build);
            let independent = Count::start_in_wheel(&build.libraries()?)?;
            let said = suite(build, name, file)?;
            let wanted = independent.end()?;
            let rise = |metrics: &Metrics| -> BTreeMap<String, f64> {
                let after = counted(metrics, build);
                let rise = |key: &String| {
                    let count = |all: &BTreeMap<String, f64>| all.get(key).copied().unwrap_or(0.0);
                    count(&after) - count(&before)
                };
                wanted.keys().map(|key| (key.clone(), rise(key))).collect()
            };
            let found =
                rise(&agent.metrics_when(Duration::from_secs(20), |metrics| rise(metrics) == wanted)?);
            eprintln!("{} {name}: {said}; entries {wanted:?}", build.name);
            ensure!(wanted.values().sum::<f64>() > 30.0, "{name} does too little: {wanted:?}");
            if found != wanted {
                complaints.push(format!("{} {name}: counted {found:?}, entered {wanted:?}", build.name));
            }
        }
    }
    ensure!(complaints.is_empty(), "{}\nagent:\n{}", complaints.join("\n"), agent.log());
    Ok(())
}
