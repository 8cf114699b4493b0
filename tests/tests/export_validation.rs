//! Promise: an export of the same inputs passes whenever it is made, in another folder and after a restart of the agent;
//! one that differs fails; one of other inputs is neither.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::builds::{Build, wanted};
use cadscope_tests::metrics::Metrics;
use cadscope_tests::node::{require_root, scratch};

const LIMIT: Duration = Duration::from_secs(300);
const VALIDATED: &str = "deterministic_export_validation_total";
const NOT_COMPARED: &str = "cadscope_exports_not_compared_total";

/// How many exports of each format passed or failed (`STEP pass`), and were not compared (`first`).
fn verdicts(metrics: &Metrics) -> BTreeMap<String, f64> {
    let mut verdicts = BTreeMap::new();
    let mut add = |key: String, count: f64| *verdicts.entry(key).or_insert(0.0) += count;
    for sample in metrics.select(VALIDATED, &[]) {
        let label = |name: &str| sample.labels.get(name).map_or("", String::as_str);
        add(format!("{} {}", label("format"), label("result")), sample.value);
    }
    metrics.by(NOT_COMPARED, "reason").into_iter().for_each(|(reason, count)| add(reason, count));
    verdicts
}

/// An agent that knows the libraries of these builds.
fn warm(state: &Path, builds: &[Build]) -> Result<Agent> {
    // Nothing is taken away while the others' turn is.
    let agent = Agent::start(&["--linger".as_ref(), "3600".as_ref(), "--state".as_ref(), state.as_os_str()])?;
    for build in builds {
        let job = if build.has_freecad() { "warm.py" } else { "ocp_warm.py" };
        build.run(job, scratch()?.path(), LIMIT)?;
    }
    Ok(agent)
}

/// Runs the job and gives the verdicts on its exports, and the formats that it says it wrote.
fn run(
    agent: &Agent,
    build: &Build,
    input: &str,
    variables: &[(&str, &str)],
) -> Result<(BTreeMap<String, f64>, Vec<String>)> {
    let folder = scratch()?;
    let job = if build.has_freecad() { "validated.py" } else { "ocp_validated.py" };
    // Times in files have seconds.
    std::thread::sleep(Duration::from_millis(1100));
    fs::write(folder.path().join("input.brep"), input)?;
    let before = verdicts(&agent.metrics()?);
    build.run_with(job, folder.path(), variables, LIMIT)?;
    let wrote = fs::read_to_string(folder.path().join("wrote")).context("it wrote nothing")?;
    let wrote: Vec<String> = wrote.split_whitespace().map(str::to_owned).collect();
    let rise = |metrics: &Metrics| -> BTreeMap<String, f64> {
        let rises = verdicts(metrics).into_iter().map(|(key, value)| {
            let rise = value - before.get(&key).copied().unwrap_or(0.0);
            (key, rise)
        });
        rises.filter(|(_, rise)| *rise != 0.0).collect()
    };
    let all = wrote.len() as f64;
    let after =
        agent.metrics_when(Duration::from_secs(20), |metrics| rise(metrics).values().sum::<f64>() >= all)?;
    Ok((rise(&after), wrote))
}

fn each(wrote: &[String], result: &str) -> BTreeMap<String, f64> {
    let mut wanted = BTreeMap::new();
    for format in wrote {
        *wanted.entry(format!("{format} {result}")).or_default() += 1.0;
    }
    wanted
}

fn first(wrote: &[String]) -> BTreeMap<String, f64> {
    BTreeMap::from([("first".to_owned(), wrote.len() as f64)])
}

#[test]
fn every_format_passes_if_the_geometry_is_the_same_and_fails_if_not_on_every_build() -> Result<()> {
    let _node = require_root()?;
    let state = scratch()?;
    let agent = warm(state.path(), &wanted())?;
    for build in wanted() {
        let (found, wrote) = run(&agent, &build, "", &[("SIZE", "10")])?;
        ensure!(found == first(&wrote), "{}, first run: {found:?}\n{}", build.name, agent.log());
    }
    drop(agent);
    let agent = warm(state.path(), &wanted())?;
    for build in wanted() {
        for (size, result) in [("10", "pass"), ("11", "fail"), ("11", "pass")] {
            let (found, wrote) = run(&agent, &build, "", &[("SIZE", size)])?;
            let wanted = each(&wrote, result);
            ensure!(
                found == wanted,
                "{}, size {size}: {found:?}, not {wanted:?}\n{}",
                build.name,
                agent.log()
            );
        }
        let fails = agent.log().lines().filter(|line| line.contains("an export differs")).count();
        ensure!(fails > 0, "nothing is said of a failure:\n{}", agent.log());
    }
    Ok(())
}

/// The installed FreeCAD reads a file whose contents change under the same name.
#[test]
fn what_a_job_has_read_is_part_of_its_inputs() -> Result<()> {
    let _node = require_root()?;
    let (state, build) = (scratch()?, cadscope_tests::builds::BUILDS[0]);
    let agent = warm(state.path(), &[build])?;
    let made = scratch()?;
    build.run_with("validated.py", made.path(), &[("SIZE", "3")], LIMIT)?;
    let small = fs::read_to_string(made.path().join("shape.brep"))?;
    build.run_with("validated.py", made.path(), &[("SIZE", "4")], LIMIT)?;
    let large = fs::read_to_string(made.path().join("shape.brep"))?;
    for (text, size, result) in
        [(&small, "10", "first"), (&large, "11", "first"), (&large, "11", "pass"), (&small, "12", "fail")]
    {
        let variables = [("SIZE", size), ("INPUT", "input.brep")];
        let (found, wrote) = run(&agent, &build, text, &variables)?;
        let wanted = if result == "first" { first(&wrote) } else { each(&wrote, result) };
        ensure!(found == wanted, "size {size}: {found:?}, not {wanted:?}\n{}", agent.log());
    }
    Ok(())
}

/// What is only counted is short; the export is long.
#[test]
fn an_export_behind_a_load_that_was_only_counted_is_not_judged() -> Result<()> {
    let _node = require_root()?;
    let (state, build) = (scratch()?, cadscope_tests::builds::BUILDS[0]);
    let made = scratch()?;
    build.run_with("validated.py", made.path(), &[("SIZE", "3")], LIMIT)?;
    let small = fs::read_to_string(made.path().join("shape.brep"))?;
    let options = ["--linger", "3600", "--min-duration", "20ms", "--state"];
    let options = options.iter().map(AsRef::as_ref).chain([state.path().as_os_str()]);
    let agent = Agent::start(&options.collect::<Vec<_>>())?;
    build.run("warm.py", scratch()?.path(), LIMIT)?;
    for (input, spheres) in [(small.as_str(), "2000"), ("", "2001")] {
        let folder = scratch()?;
        fs::write(folder.path().join("input.brep"), input)?;
        let before = agent.metrics()?.sum(NOT_COMPARED, &[]);
        let variables = [("SPHERES", spheres), ("INPUT", "input.brep")];
        build.run_with("long_export.py", folder.path(), &variables, LIMIT)?;
        let told = |metrics: &Metrics| metrics.sum(NOT_COMPARED, &[]) > before;
        let metrics = agent.metrics_when(Duration::from_secs(20), told)?;
        ensure!(told(&metrics), "nothing is said of the export of {spheres} spheres\n{}", agent.log());
        // Where the load took long after all, it was seen, and the export is the first of its inputs.
        ensure!(metrics.sum(VALIDATED, &[]) == 0.0, "{:?}\n{}", verdicts(&metrics), agent.log());
    }
    Ok(())
}

#[test]
fn exports_are_not_read_where_that_is_not_wanted() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start(&["--export-validation", "false"])?;
    let folder = scratch()?;
    let build = cadscope_tests::builds::BUILDS[0];
    build.run("warm.py", scratch()?.path(), LIMIT)?;
    build.run_with("validated.py", folder.path(), &[("SIZE", "10")], LIMIT)?;
    let seen = |metrics: &Metrics| metrics.sum("export_duration_seconds_count", &[]) >= 11.0;
    let metrics = agent.metrics_when(Duration::from_secs(20), seen)?;
    ensure!(seen(&metrics) && verdicts(&metrics).is_empty(), "{:?}\n{}", verdicts(&metrics), agent.log());
    Ok(())
}
