//! Promise: a probe that is called too often loses its records, then its sites, but no other probe loses a call by it.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::metrics::Metrics;
use cadscope_tests::node::{cache, require_root, scratch, tool};
use cadscope_tests::run::run;

const CATALOG: &str = r#"
[[probe]]
id = "hot"
function = "hot(int)"
symbols = ["hot"]
title = "hot"
metric = "hot_seconds"
help = "Often."
[[probe]]
id = "calm"
function = "calm(int)"
symbols = ["calm"]
title = "calm"
metric = "calm_seconds"
help = "Now and then."
"#;

const WITHIN: Duration = Duration::from_secs(60);

fn worker() -> Result<PathBuf> {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("hot/hot.cpp");
    let program = cache()?.join("hot-worker");
    let built = run(
        Command::new(tool("g++", "g++")?).args(["-O2", "-rdynamic", "-o"]).args([&program, &source]),
        Duration::from_secs(120),
    )?;
    ensure!(built.code == 0, "{}", built.stderr);
    Ok(program)
}

/// Has the worker work beside an agent with these arguments; its own counts of hot and calm calls, and the metrics once
/// they hold every calm call and `done` says so.
fn observed(arguments: &[&str], done: impl Fn(&Metrics, f64) -> bool) -> Result<(f64, f64, Metrics)> {
    let folder = scratch()?;
    let catalog = folder.path().join("hot.toml");
    fs::write(&catalog, CATALOG)?;
    let mut child =
        Command::new(worker()?).arg("4000").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut arguments = arguments.to_vec();
    arguments.extend(["--catalog", catalog.to_str().context("path is not UTF-8")?]);
    let agent = Agent::start(&arguments)?;
    child.stdin.as_ref().context("no input")?.write_all(b"\n")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
    let counts: Vec<f64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [hot, calm] = counts[..] else { anyhow::bail!("no counts: {line:?}") };
    let metrics = agent.metrics_when(WITHIN, |m| m.sum("calm_seconds_count", &[]) >= calm && done(m, hot))?;
    drop(child.stdin.take());
    child.wait()?;
    for reason in ["return_without_entry", "frame_abandoned", "ring_buffer_full", "count_map_full"] {
        let lost = metrics.sum("cadscope_events_lost_total", &[("reason", reason)]);
        ensure!(lost == 0.0, "{lost} {reason}");
    }
    Ok((hot, calm, metrics))
}

#[test]
fn calls_that_are_only_counted_are_all_counted() -> Result<()> {
    let _node = require_root()?;
    let (hot, calm, metrics) =
        observed(&["--count-above", "3000"], |m, hot| m.sum("hot_seconds_count", &[]) >= hot)?;
    let counted = [metrics.sum("hot_seconds_count", &[]), metrics.sum("calm_seconds_count", &[])];
    ensure!(counted == [hot, calm], "{counted:?} of {hot} and {calm}");
    let limited = metrics.by("cadscope_probes_limited", "probe");
    ensure!(limited.get("hot") == Some(&1.0) && !limited.contains_key("calm"), "{limited:?}");
    Ok(())
}

#[test]
fn calls_that_are_too_short_are_counted() -> Result<()> {
    let _node = require_root()?;
    let (hot, calm, metrics) =
        observed(&["--min-duration", "1s"], |m, hot| m.sum("hot_seconds_count", &[]) >= hot)?;
    let counted = [metrics.sum("hot_seconds_count", &[]), metrics.sum("calm_seconds_count", &[])];
    ensure!(counted == [hot, calm], "{counted:?} of {hot} and {calm}");
    let received = metrics.sum("cadscope_events_received_total", &[]);
    ensure!(received < 100.0, "{received} records");
    Ok(())
}

#[test]
fn a_probe_that_is_taken_away_takes_no_call_of_another_with_it() -> Result<()> {
    let _node = require_root()?;
    let (hot, calm, metrics) = observed(&["--count-above", "2000", "--remove-above", "3000"], |_, _| true)?;
    let counted = [metrics.sum("hot_seconds_count", &[]), metrics.sum("calm_seconds_count", &[])];
    ensure!(counted[1] == calm, "{} of {calm} calm calls", counted[1]);
    ensure!(counted[0] < hot, "all {hot} hot calls were seen");
    let removed = metrics.sum("cadscope_probes_limited", &[("probe", "hot"), ("measure", "removed")]);
    ensure!(removed == 1.0, "{:?}", metrics.by("cadscope_probes_limited", "probe"));
    Ok(())
}
