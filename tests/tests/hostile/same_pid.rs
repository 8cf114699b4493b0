//! Workers that follow each other under one process id, as on a node whose ids wrap.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

/// Of six, the agent sees nothing of these before the next has begun.
const UNSEEN: [u32; 3] = [1, 2, 4];
const PEAK: &str = "freecad_worker_peak_memory_bytes";

/// Waits until the agent knows this worker, which waits, as one that has done nothing yet.
fn known(watched: &Watched, pid: u32, kind: &str) -> Result<()> {
    let listed = until("the worker is known by its own job", LIMIT, || {
        let status: serde_json::Value = serde_json::from_str(&watched.agent.get("/status").ok()?.1).ok()?;
        let workers = status.get("workers")?.as_array()?;
        let is_it = |worker: &&serde_json::Value| {
            worker.get("pid").is_some_and(|of| *of == pid)
                && worker.get("flow_type").is_some_and(|of| *of == kind)
                && worker.get("operations").is_some_and(|of| *of == 0)
        };
        (workers.iter().filter(is_it).count() == 1 && workers.len() == 1).then_some(())
    });
    listed.with_context(|| {
        format!("{}\n{}", watched.agent.log(), watched.agent.get("/status").unwrap_or_default().1)
    })
}

#[test]
fn workers_that_follow_each_other_under_one_process_id_are_told_apart() -> Result<()> {
    let _node = require_root()?;
    let collector = Collector::start()?;
    let endpoint = collector.grpc();
    let watched = Watched::start(&[], &["--otlp-endpoint", &endpoint, "--min-span-duration", "0s"])?;
    let agent = &watched.agent;
    until("nobody else is there", LIMIT, || {
        let status: serde_json::Value = serde_json::from_str(&agent.get("/status").ok()?.1).ok()?;
        status.get("workers")?.as_array()?.is_empty().then_some(())
    })?;
    let before = agent.metrics()?;
    let rounds: u32 = if full() { 60 } else { 6 };
    // So that some are interrupted, and looked at, while they execute.
    let _busy =
        if full() { (0..3).map(|_| Running::busy()).collect::<Result<Vec<_>>>()? } else { Vec::new() };
    let mut launcher = Command::new(build_program("hostile/same_pid.cpp")?);
    launcher.arg(rounds.to_string()).arg(&watched.program).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = Running(launcher.spawn()?);
    let said = BufReader::new(child.0.stdout.take().context("no stdout")?).lines();
    // Made before the traces' own names begin, which are no part of them.
    let mut waiting = Waiting { child, said, pid: 0 };
    let mut pids = BTreeSet::new();
    let mut next = waiting.line()?;
    for round in 0..rounds {
        let pid: u32 = next.parse().with_context(|| format!("round {round}: {next}"))?;
        pids.insert(pid);
        let odd = round % 2 == 1;
        known(&watched, pid, if odd { "odd" } else { "even" }).with_context(|| format!("round {round}"))?;
        // What it has resident is its own, not what the one before had.
        let own = |peak: f64| if odd { peak > 0.0 && peak < 5e7 } else { peak > 1e8 };
        let peak = agent.metrics_when(LIMIT, |m| own(m.sum(PEAK, &[])))?.sum(PEAK, &[]);
        ensure!(own(peak), "round {round}: peak {peak}; {}", agent.log());
        let mut finish = || -> Result<(String, String)> {
            waiting.go()?;
            Ok((waiting.line()?, waiting.line()?))
        };
        // The agent hears of the one's end and the other's beginning at once, or as they come.
        let (sum, following) =
            if UNSEEN.contains(&(round % 6)) { behind_its_back(agent, finish)? } else { finish()? };
        let expected: u32 = (1..=10 + round).sum();
        ensure!(sum == expected.to_string(), "round {round}: {sum}");
        next = following;
    }
    ensure!(pids.len() == 1, "more than one process id: {pids:?}");
    ensure!(shell_code(wait(&mut waiting.child.0, LIMIT)?) == 0);
    let made: u32 = (0..rounds).map(|round| 10 + round).sum();
    let completed = "model_generation_completed_total";
    let rise = |m: &cadscope_tests::metrics::Metrics, name: &str, labels: &[(&str, &str)]| {
        m.sum(name, labels) - before.sum(name, labels)
    };
    let metrics = agent.metrics_when(LIMIT, |m| {
        rise(m, CALLS, &[]) >= f64::from(made) && rise(m, completed, &[]) >= f64::from(rounds)
    })?;
    let half = f64::from(rounds / 2);
    for (kind, status) in [("even", "success"), ("odd", "failure")] {
        let started = rise(&metrics, "model_generation_started_total", &[("flow_type", kind)]);
        let ended = rise(&metrics, completed, &[("flow_type", kind), ("status", status)]);
        ensure!(
            (started, ended) == (half, half),
            "{kind}: {started} started, {ended} {status}\n{}",
            agent.log()
        );
    }
    ensure!(rise(&metrics, completed, &[]) == f64::from(rounds));
    ensure!(rise(&metrics, CALLS, &[]) == f64::from(made), "{} of {made} calls", rise(&metrics, CALLS, &[]));
    // Each has a trace of its own.
    let by_trace = |spans: &[Span]| {
        let mut calls: BTreeMap<String, u32> = BTreeMap::new();
        for span in spans.iter().filter(|span| span.name == "call") {
            *calls.entry(span.trace.clone()).or_default() += 1;
        }
        calls.into_values().filter(|count| *count >= 10).collect::<BTreeSet<u32>>()
    };
    let expected: BTreeSet<u32> = (0..rounds).map(|round| 10 + round).collect();
    collector.spans_when("a trace of each worker", LIMIT, |spans| by_trace(spans) == expected)?;
    watched.is_well()?;
    harmless(
        "Process ids that wrap",
        &format!(
            "{rounds} workers one after the other under one id, the next as soon as the one before was waited for"
        ),
        "each has its own kind of job, calls, memory, end and trace",
    )
}
