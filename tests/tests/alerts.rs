//! Promise: each alert fires when it should and only then, and gets from real work through Prometheus and Alertmanager to a
//! webhook, with a runbook.

#![allow(clippy::indexing_slicing, reason = "JSON that is not as it should be is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::builds::BUILDS;
use cadscope_tests::cgroup::Cgroup;
use cadscope_tests::freecad::Job;
use cadscope_tests::node::{require_root, scratch};
use cadscope_tests::prometheus::{Alertmanager, Prometheus, promtool};
use cadscope_tests::run::{self, Running};
use cadscope_tests::worker;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(180);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../alerts")
}

#[test]
fn rules_are_well_formed_and_fire_when_they_should_and_only_then() -> Result<()> {
    promtool(&["check", "rules", "cadscope.rules.yml"], &folder())?;
    promtool(&["test", "rules", "cadscope.test.yml"], &folder())
}

#[test]
fn every_alert_has_a_case_that_fires_and_one_that_does_not() -> Result<()> {
    let rules = fs::read_to_string(folder().join("cadscope.rules.yml"))?;
    let tests = fs::read_to_string(folder().join("cadscope.test.yml"))?;
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let cases: Vec<_> = tests.split(&format!("alertname: {alert}\n")).skip(1).collect();
        let silent = |case: &&&str| case.trim_start().starts_with("exp_alerts: []");
        ensure!(cases.iter().any(|case| silent(&case)), "{alert} has no case in which it is silent");
        ensure!(!cases.iter().all(|case| silent(&case)), "{alert} has no case in which it fires");
    }
    Ok(())
}

/// What a test cannot wait for, or would need hours of work to reach; each must stand in the rules.
const SHORTER: [(&str, &str); 17] = [
    ("interval: 30s", "interval: 1s"),
    ("interval: 5m", "interval: 1s"),
    ("for: 5m", "for: 1s"),
    ("for: 2m", "for: 1s"),
    ("for: 1m", "for: 1s"),
    ("for: 1h", "for: 1s"),
    ("[5m]", "[30s]"),
    ("[10m]", "[30s]"),
    ("[1h] offset 5m", "[60s] offset 30s"),
    ("[1h] offset 10m", "[60s] offset 30s"),
    ("[1d]", "[300s]"),
    ("duration_seconds:count1d >= 100", "duration_seconds:count1d >= 1"),
    ("boolean_duration_seconds:p95_10m > 30", "boolean_duration_seconds:p95_10m > 0.1"),
    ("memory_bytes:max_10m > 1610612736", "memory_bytes:max_10m > 1048576"),
    ("oldest_seconds) > 600", "oldest_seconds) > 5"),
    ("solve_duration_seconds:p95_10m > 15", "solve_duration_seconds:p95_10m > 0.0001"),
    // A sketch of coincident points needs none.
    ("iterations_per_solve:p95_10m > 200", "iterations_per_solve:p95_10m >= 0"),
];

fn shortened() -> Result<String> {
    let mut rules = fs::read_to_string(folder().join("cadscope.rules.yml"))?;
    let stage = ("stage_duration_seconds:p95_10m > 300", "stage_duration_seconds:p95_10m > 0.01");
    for (long, short) in SHORTER.into_iter().chain([stage]) {
        ensure!(rules.contains(long), "no `{long}` in the rules");
        rules = rules.replace(long, short);
    }
    Ok(rules)
}

/// All alerts but that of AI providers, which needs a provider, and that of a dead agent.
const OF_WORK: [&str; 11] = [
    "ModelGenerationHighFailureRate",
    "ModelGenerationSlow",
    "FreeCADWorkerFailure",
    "FreeCADWorkerOOM",
    "OCCTBooleanOperationSlow",
    "OCCTHighMemoryUsage",
    "OCCTOperationHung",
    "OCCTVersionRegression",
    "Assembly4SolverSlow",
    "Assembly4ExcessiveIterations",
    "CadscopeLosingEvents",
];

/// One alert of each name, as the webhook got it.
type Arrived = BTreeMap<String, Value>;

fn take(manager: &Alertmanager, within: Duration, arrived: &mut Arrived) {
    for alert in manager.next(within) {
        let name = alert["labels"]["alertname"].as_str().unwrap_or_default().to_owned();
        if alert["status"] == "firing" {
            arrived.entry(name).or_insert(alert);
        }
    }
}

/// A script that does not end well.
fn broken(text: &str) -> Result<()> {
    let job = Job::new("plate.py")?;
    let script = job.folder().join("broken.py");
    fs::write(&script, format!("import os, Part\nPart.makeBox(1, 1, 1).cut(Part.makeSphere(1))\n{text}\n"))?;
    let mut command = std::process::Command::new("freecadcmd");
    command.arg(&script).envs(job.environment()).current_dir(job.folder());
    run::run(&mut command, LIMIT).map(drop)
}

/// A job with a family of its own; what it expects is for other tests.
fn family_job(build: &str, job: &str) -> Result<()> {
    let build = BUILDS.iter().find(|one| one.name == build).context("no such build")?;
    let folder = scratch()?;
    build.run(&format!("{job}.py"), folder.path(), LIMIT).map(drop)
}

fn run_out_of_memory() -> Result<()> {
    let cgroup = Cgroup::new("alert", Some(64 << 20))?;
    let job = Job::new("plate.py")?.with("JOB_ROWS", "60");
    let ended = run::run(&mut cgroup.enter(&job.prepared()), LIMIT)?;
    ensure!(ended.code == 128 + 9, "the job was to be killed: {ended:?}");
    Ok(())
}

/// A job that stands still in the middle of a cut.
fn hang(agent: &Agent) -> Result<Running> {
    let job = Job::new("plate.py")?.with("JOB_ROWS", "60");
    let mut command = job.prepared();
    let child = Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    run::until("a cut in flight", LIMIT, || {
        let metrics = agent.metrics().ok()?;
        (metrics.sum("occt_operations_in_flight", &[("operation", "cut")]) >= 1.0).then_some(())
    })?;
    kill(Pid::from_raw(i32::try_from(child.pid())?), Signal::SIGSTOP)?;
    Ok(child)
}

/// The short form of the test below.
#[test]
fn a_worker_without_memory_and_a_dead_agent_are_alerts_at_the_webhook() -> Result<()> {
    let _node = require_root()?;
    let manager = Alertmanager::start()?;
    let mut agent = Agent::start::<&str>(&[])?;
    let prometheus = Prometheus::start(&[agent.port()], Some(&shortened()?), Some(&manager))?;
    agent.learn(&["libTKBool", "libTKBO"], || Job::new("plate.py")?.run(LIMIT).map(drop))?;
    let mut arrived = Arrived::new();
    let mut arrives = |name: &str, again: &dyn Fn() -> Result<()>| {
        let begin = Instant::now();
        while !arrived.contains_key(name) {
            again()?;
            take(&manager, Duration::from_secs(1), &mut arrived);
            ensure!(begin.elapsed() < LIMIT, "no {name}: {:?}\n{}", prometheus.alerts()?, prometheus.log());
        }
        Ok(arrived[name].clone())
    };
    let killed = arrives("FreeCADWorkerOOM", &run_out_of_memory)?;
    ensure!(killed["labels"]["operation"] == "cut", "{killed}");
    agent.end(Signal::SIGKILL)?;
    let down = arrives("CadscopeDown", &|| Ok(()))?;
    for alert in [killed, down] {
        let link = alert["annotations"]["runbook_url"].as_str().unwrap_or_default();
        let page = link.rsplit_once("/docs/").map_or("", |(_, page)| page);
        ensure!(folder().join("../docs").join(page).is_file() && !page.is_empty(), "{alert}");
    }
    Ok(())
}

#[test]
#[ignore = "minutes long"]
fn an_alert_of_each_kind_gets_from_real_work_to_the_webhook() -> Result<()> {
    let _node = require_root()?;
    let torture = worker::build("o2")?;
    let manager = Alertmanager::start()?;
    let mut agent = Agent::start(&["--catalog".as_ref(), torture.catalog.as_os_str()])?;
    let prometheus = Prometheus::start(&[agent.port()], Some(&shortened()?), Some(&manager))?;
    let mut arrived = Arrived::new();
    let begin = Instant::now();

    run_out_of_memory()?;
    let mut hung = hang(&agent)?;
    while !OF_WORK.iter().all(|name| arrived.contains_key(*name)) {
        Job::new("plate.py")?.run(LIMIT)?;
        family_job("wheel-8.0", "ocp_booleans")?;
        family_job("freecad-0.20", "sketch")?;
        broken("raise RuntimeError('no such part')")?;
        broken("os.abort()")?;
        torture.run_settled(&["recursion_deep"], Duration::from_secs(5))?;
        take(&manager, Duration::from_secs(1), &mut arrived);
        let missing: Vec<_> = OF_WORK.iter().filter(|name| !arrived.contains_key(**name)).collect();
        ensure!(
            begin.elapsed() < Duration::from_secs(900),
            "{missing:?} did not arrive; Prometheus has {:?}\n{}\nagent:\n{}",
            prometheus.alerts()?,
            prometheus.log(),
            agent.log()
        );
    }
    hung.0.kill()?;
    hung.0.wait()?;

    agent.end(Signal::SIGKILL)?;
    while !arrived.contains_key("CadscopeDown") {
        take(&manager, Duration::from_secs(1), &mut arrived);
        ensure!(
            begin.elapsed() < Duration::from_secs(1000),
            "a dead agent is not told: {:?}",
            prometheus.alerts()?
        );
    }
    eprintln!("{} alerts arrived within {:.0?}", arrived.len(), begin.elapsed());
    for (name, alert) in &arrived {
        let link = alert["annotations"]["runbook_url"].as_str().unwrap_or_default();
        ensure!(link.ends_with(&format!("/docs/runbooks/{name}.md")), "{alert}");
        for text in ["summary", "description"] {
            let text = alert["annotations"][text].as_str().unwrap_or_default();
            ensure!(!text.is_empty() && !text.contains("<no value>"), "{alert}");
        }
    }
    let told = |name: &str, label: &str, value: &str| {
        ensure!(arrived[name]["labels"][label] == value, "{label} is not {value}: {}", arrived[name]);
        Ok(())
    };
    told("FreeCADWorkerOOM", "operation", "cut")?;
    told("OCCTOperationHung", "operation", "cut")?;
    told("OCCTVersionRegression", "occt_version", "7.6.3")?;
    told("CadscopeLosingEvents", "reason", "too_deep")
}
