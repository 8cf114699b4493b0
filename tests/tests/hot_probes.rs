//! Promise: a function that is called too often costs little and is told of exactly: counted instead of recorded, taken
//! away beyond, and what finds no room is counted as lost, to the last call.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::hot::{counted, lost, start};
use cadscope_tests::metrics::Metrics;
use cadscope_tests::node::require_root;
use cadscope_tests::reliability::held;
use cadscope_tests::run;
use nix::sys::signal::Signal;

/// For what depends on when the agent looks.
const LONG: Duration = Duration::from_secs(30);

fn limited(metrics: &Metrics, probe: &str, measure: &str) -> bool {
    metrics.sum("cadscope_probes_limited", &[("probe", probe), ("measure", measure)]) == 1.0
}

/// What `/status` says of a probe: its state, and why.
fn state(agent: &Agent, id: &str) -> Result<(String, String)> {
    let status: serde_json::Value = serde_json::from_str(&agent.get("/status")?.1)?;
    let files = status.get("files").and_then(|files| files.as_array()).context("no files")?;
    let mut probes = files.iter().filter_map(|file| file.get("probes")?.as_array()).flatten();
    let probe = probes.find(|probe| probe.get("id").is_some_and(|known| known == id));
    let word = |key: &str| Some(probe?.get(key)?.as_str()?.to_owned());
    Ok((word("state").context("no such probe")?, word("reason").unwrap_or_default()))
}

#[test]
fn a_function_called_too_often_is_counted_exactly_and_one_called_far_too_often_is_taken_away() -> Result<()> {
    let _node = require_root()?;
    let (agent, mut hot, _folder) = start(&["--count-above", "1000", "--remove-above", "20000"])?;
    let mut made = hot.call("warm", 300, 300, 1)?;
    let metrics = agent.metrics_when(LONG, |metrics| counted(metrics) >= made)?;
    ensure!(counted(&metrics) == made, "{} of {made} recorded calls", counted(&metrics));
    ensure!(!limited(&metrics, "hot.warm", "counted"), "300 calls a second are too many already");

    // Until it is counted, and for a while after that: calls with records and calls without add up.
    for _ in 0..30 {
        made += hot.call("warm", 4_000, 4_000, 1)?;
        if limited(&agent.metrics()?, "hot.warm", "counted") {
            break;
        }
    }
    made += hot.call("warm", 8_000, 4_000, 1)?;
    let metrics = agent.metrics_when(LONG, |metrics| counted(metrics) >= made)?;
    ensure!(counted(&metrics) == made, "{} of {made} calls; agent:\n{}", counted(&metrics), agent.log());
    ensure!(limited(&metrics, "hot.warm", "counted"), "4,000 calls a second are not limited");
    let (is, why) = state(&agent, "hot.warm")?;
    ensure!(is == "attached" && why.contains("counted, not recorded"), "/status: {is}, {why}");

    let removed = run::until("the hottest is taken away", LONG, || {
        hot.call("blazing", 50_000, 0, 1).ok()?;
        limited(&agent.metrics().ok()?, "hot.blazing", "removed").then_some(())
    });
    removed.with_context(|| agent.log())?;
    let (is, why) = state(&agent, "hot.blazing")?;
    ensure!(is == "skipped" && why.contains("too often"), "/status: {is}, {why}");
    // What was on its way has arrived when two looks, further apart than the agent's, see the same.
    let blazing = |metrics: &Metrics| metrics.sum("hot_blazing_seconds_count", &[]);
    let settled = run::until("its last calls are told", LONG, || {
        let before = blazing(&agent.metrics().ok()?);
        std::thread::sleep(Duration::from_secs(3));
        (blazing(&agent.metrics().ok()?) == before).then_some(before)
    })?;
    hot.call("blazing", 10_000, 0, 1)?;
    // The other probe of the file was placed anew meanwhile, and has missed nothing.
    made += hot.call("warm", 1_000, 4_000, 1)?;
    let metrics = agent.metrics_when(LONG, |metrics| counted(metrics) >= made)?;
    ensure!(counted(&metrics) == made, "{} of {made} calls; agent:\n{}", counted(&metrics), agent.log());
    ensure!(blazing(&metrics) == settled, "probes that were taken away are hit");
    held(
        "A function is called too often",
        "4,000 calls a second where 1,000 are too many, then as many as the machine makes where 20,000 are",
        "counted exactly without records; beyond that its probes are taken away, which is said, and no other's call is missed",
    )
}

#[test]
fn what_finds_no_room_is_counted_to_the_last_call() -> Result<()> {
    let _node = require_root()?;
    let (agent, mut hot, _folder) = start(&["--count-above", "4000000000", "--remove-above", "4000000000"])?;
    let mut made = hot.call("warm", 100, 0, 2)?;
    let metrics = agent.metrics_when(LONG, |metrics| counted(metrics) >= made)?;
    ensure!(counted(&metrics) == made && lost(&metrics) == 0.0, "{} of {made} calls", counted(&metrics));
    // The ring buffer holds some 40,000 records, which nobody takes.
    agent.signal(Signal::SIGSTOP)?;
    let calls = hot.call("warm", 60_000, 0, 2);
    agent.signal(Signal::SIGCONT)?;
    made += calls?;
    let metrics = agent.metrics_when(LONG, |metrics| counted(metrics) + lost(metrics) >= made)?;
    let (count, lost) = (counted(&metrics), lost(&metrics));
    ensure!(count + lost == made, "{made} calls, {count} counted, {lost} lost");
    ensure!(lost > 0.0 && count > 1_000.0, "{made} calls, {count} counted, {lost} lost");
    held(
        "The ring buffer is full",
        "120,000 calls while nobody takes records, some 40,000 of which fit",
        "counted + lost = made, to the last call",
    )
}
