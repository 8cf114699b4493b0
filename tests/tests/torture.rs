//! Promise: a worker does the same with and without cadscope, whatever its functions do to the stack, and what is
//! reported is what happened.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::compare::{Rules, compare, duration_error};
use cadscope_tests::node::{emulated, full, patient, require_root, wanted};
use cadscope_tests::trace::trace;
use cadscope_tests::worker::{self, Worker};

/// Functions that hand their work to one that cannot be named beforehand, or that lies in another file: such a
/// function may be left out, with its reason.
const SKIPPABLE: [&str; 3] = ["torture.tail_register", "torture.tail_table", "torture.tail_library"];

/// The worker waits at most so long until its files are probed. That its very first calls are seen without is a test of
/// its own, so that the others say what is wrong with calls and not with speed.
const SETTLE: Duration = Duration::from_secs(10);

/// Calls open at once on a thread that are tracked; deeper ones are counted.
const MAX_DEPTH: u32 = 64;

fn rules(scenario: &str) -> Rules<'static> {
    let losses: &[&str] = match scenario {
        "recursion_deep" => &["deep", "return_without_entry"],
        // The child of a fork returns out of calls that its parent entered.
        "fork_child_goes_on" => &["return_without_entry"],
        // Where a tail call ends, what was returned may not be at hand.
        "tail_calls" | "tail_elsewhere" | "tail_mutual" | "tail_probed" | "throw_tail" => &["unread"],
        // Frames left by longjmp announce themselves to nobody.
        "long_jump"
        | "long_jump_caught"
        | "long_jump_then_deeper"
        | "signal_jump"
        | "signals_other_stack"
        | "signals_stack_above" => &["abandoned"],
        "threads" => &["abandoned", "unread"],
        _ => &[],
    };
    Rules { skippable: &SKIPPABLE, max_depth: MAX_DEPTH, losses }
}

/// A call's own duration and the reported one, nanoseconds.
type Durations = Vec<(i64, i64)>;

/// Scenarios whose durations are compared.
const TIMED: [&str; 2] = ["durations", "tail_calls"];

/// Scenarios that share a process: those that survive and may lose the same. In the long form each has its own.
fn groups(worker: &Worker) -> Vec<Vec<&str>> {
    let names: Vec<&str> = worker.scenarios.iter().map(|scenario| scenario.name.as_str()).collect();
    let mut shared: BTreeMap<&[&str], Vec<&str>> = BTreeMap::new();
    let mut groups = Vec::new();
    for scenario in worker.scenarios.iter().filter(|scenario| wanted(&scenario.name, &names)) {
        let name = scenario.name.as_str();
        if full() || scenario.ends || TIMED.contains(&name) {
            groups.push(vec![name]);
        } else {
            shared.entry(rules(name).losses).or_default().push(name);
        }
    }
    groups.extend(shared.into_values());
    groups
}

/// Runs scenarios alone and under `trace`; the differences, in words, and the durations: own and reported.
fn check(worker: &Worker, scenarios: &[&str], settle: Duration) -> Result<(Vec<String>, Durations)> {
    let (alone, _) = worker.run(scenarios)?;
    let folder = cadscope_tests::node::scratch()?;
    let record = folder.path().join("record");
    let record_text = record.display().to_string();
    let settle = settle.as_millis().to_string();
    let environment = [("TORTURE_RECORD", record_text.as_str()), ("TORTURE_SETTLE_MS", settle.as_str())];
    let command: Vec<&str> = std::iter::once(worker.program()?).chain(scenarios.iter().copied()).collect();
    let (watched, trace) = trace(Some(&worker.catalog), &command, &environment, Duration::from_secs(60))?;

    let mut complaints = Vec::new();
    if watched.stdout != alone.stdout {
        complaints.push(format!("prints {:?}, alone {:?}", watched.stdout, alone.stdout));
    }
    if watched.code != alone.code {
        complaints.push(format!("exits with {}, alone {}: {}", watched.code, alone.code, watched.stderr));
    }
    let calls = cadscope_tests::record::read(&record)?;
    let losses = scenarios.first().map_or(rules(""), |scenario| rules(scenario));
    let comparison = compare(&calls, &trace, losses);
    complaints.extend(comparison.complaints);
    let deep: u64 = trace.losses.iter().filter(|(name, _)| name.contains("deep")).map(|(_, n)| n).sum();
    if deep != comparison.too_deep {
        complaints.push(format!("{} calls were too deep, {deep} counted as such", comparison.too_deep));
    }
    let durations = comparison
        .pairs
        .iter()
        .filter(|(call, _)| matches!(call.how.as_str(), "return" | "exception"))
        .filter_map(|(call, operation)| call.clock_ns.map(|(s, e)| (e - s, operation.duration_ns())))
        .collect();
    Ok((complaints, durations))
}

/// Runs scenarios as `check` does; what differs goes into the report.
fn check_into(report: &mut BTreeMap<String, String>, worker: &Worker, scenarios: &[&str]) -> Durations {
    let (complaints, pairs) = check(worker, scenarios, patient(SETTLE))
        .unwrap_or_else(|error| (vec![format!("{error:#}")], Vec::new()));
    if !complaints.is_empty() {
        report.insert(scenarios.join(" "), complaints.join("\n"));
    }
    pairs
}

fn is_timed(scenarios: &[&str]) -> bool {
    TIMED.contains(&scenarios.concat().as_str())
}

/// All scenarios of one variant.
fn check_variant(variant: &'static str) -> Result<()> {
    let names: Vec<&str> = worker::VARIANTS.iter().map(|v| v.0).collect();
    if !wanted(variant, &names) {
        return Ok(());
    }
    let _node = require_root()?;
    let worker = worker::build(variant)?;
    let groups = groups(&worker);
    let mut report = BTreeMap::new();
    let mut durations = Vec::new();
    for scenarios in &groups {
        let pairs = check_into(&mut report, &worker, scenarios);
        if is_timed(scenarios) {
            durations.extend(pairs);
        }
    }
    // What a busy machine does to one run it does not do to three; what cadscope does, it does to each.
    let (mut error, mut count) = duration_error(&durations, 1_000_000);
    for _ in 0..2 {
        if error <= 1.0 || emulated() {
            break;
        }
        eprintln!("{variant}: median error {:.0} % of what is allowed, once more", error * 100.0);
        let timed = groups.iter().filter(|scenarios| is_timed(scenarios));
        durations = timed.flat_map(|scenarios| check_into(&mut report, &worker, scenarios)).collect();
        (error, count) = duration_error(&durations, 1_000_000);
    }
    eprintln!("{variant}: {count} calls over 1 ms, median error {:.0} % of what is allowed", error * 100.0);
    if error > 1.0 && !emulated() {
        report.insert(
            "durations".to_owned(),
            format!("median of {count} is {error:.2} times max(1 %, 30 us) off"),
        );
    }
    let text: String = report.iter().map(|(scenario, what)| format!("== {scenario}\n{what}\n")).collect();
    ensure!(report.is_empty(), "{variant}: {} of {} runs differ\n{text}", report.len(), groups.len());
    Ok(())
}

#[test]
fn calls_of_unoptimised_code_are_reported_as_they_happened() -> Result<()> {
    check_variant("o0")
}

#[test]
fn calls_of_optimised_code_are_reported_as_they_happened() -> Result<()> {
    check_variant("o2")
}

#[test]
fn calls_of_o3_code_are_reported_as_they_happened() -> Result<()> {
    check_variant("o3")
}

#[test]
fn calls_of_code_with_control_flow_protection_are_reported_as_they_happened() -> Result<()> {
    check_variant("o2-cf")
}

#[test]
fn calls_of_code_without_frame_pointer_and_stack_protector_are_reported_as_they_happened() -> Result<()> {
    check_variant("o2-bare")
}

#[test]
fn calls_of_code_with_stack_protector_are_reported_as_they_happened() -> Result<()> {
    check_variant("o2-guarded")
}

#[test]
fn calls_of_stripped_code_are_reported_as_they_happened() -> Result<()> {
    check_variant("o2-debian")
}

/// The scenarios that many runs repeat: all that live, are short and do not wait.
const MIX: [&str; 26] = [
    "returns",
    "branches",
    "cold",
    "frames",
    "recursion",
    "mutual_recursion",
    "tail_probed",
    "tail_mutual",
    "throw_frames",
    "throw_types",
    "throw_tail",
    "rethrow",
    "translate",
    "rethrow_pointer",
    "catch_inside",
    "catch_nested",
    "destructors",
    "long_jump",
    "long_jump_caught",
    "signals",
    "signals_other_stack",
    "signal_jump",
    "fork_child_exits",
    "fork_child_goes_on",
    "vfork_exec",
    "thread_exits_inside",
];

/// The counts by status, when they rise no more.
fn settled(agent: &Agent, family: &str) -> Result<BTreeMap<String, f64>> {
    let mut before = agent.metrics()?.by(family, "status");
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = agent.metrics()?.by(family, "status");
        if now == before {
            return Ok(now);
        }
        before = now;
    }
}

#[test]
fn a_thousand_runs_print_the_same_and_every_call_of_theirs_is_counted() -> Result<()> {
    let _node = require_root()?;
    let runs = if full() { 1000 } else { 100 };
    let worker = worker::build("o2")?;
    let alone = worker.run(&MIX)?.0;
    ensure!(alone.code == 0, "{alone:?}");
    let agent = Agent::start(&["--catalog".as_ref(), worker.catalog.as_os_str()])?;

    // Its files become known; from then on nothing may be missed.
    let family = "torture_call_duration_seconds_count";
    agent.learn(&["/torture", "/libstdc++", "/libgcc_s", "/libc."], || worker.run(&["returns"]).map(drop))?;
    let before = settled(&agent, family)?;

    let mut expected: BTreeMap<String, f64> = before;
    let left_out: Vec<String> = agent.skipped()?;
    for run in 0..runs {
        let (watched, calls) = worker.run(&MIX)?;
        ensure!(
            watched.code == alone.code && watched.stdout == alone.stdout,
            "run {run} differs: {watched:?}"
        );
        let seen = |id: &str| !(SKIPPABLE.contains(&id) && left_out.iter().any(|probe| probe == id));
        for call in calls.iter().filter(|call| seen(&call.id)) {
            *expected.entry(call.outcome().to_owned()).or_default() += 1.0;
        }
    }
    let after = agent.metrics_when(Duration::from_secs(20), |m| m.by(family, "status") == expected)?;
    let counted = after.by(family, "status");
    ensure!(counted == expected, "{runs} runs made {expected:?} calls, counted {counted:?}");
    Ok(())
}

#[test]
fn threads_that_torture_at_once_do_the_same_while_watched() -> Result<()> {
    let _node = require_root()?;
    let worker = worker::build("o3")?;
    let alone = worker.run(&["threads"])?.0;
    let _agent = Agent::start(&["--catalog".as_ref(), worker.catalog.as_os_str()])?;
    for run in 0..if full() { 100 } else { 10 } {
        let watched = worker.run(&["threads"])?.0;
        ensure!(
            watched.code == alone.code && watched.stdout == alone.stdout,
            "run {run} differs: {watched:?}"
        );
    }
    Ok(())
}

#[test]
fn the_first_calls_of_a_program_never_seen_are_traced() -> Result<()> {
    let _node = require_root()?;
    let built = worker::build("o2")?;
    for scenario in ["returns", "throw_frames", "exit_inside"] {
        let folder = cadscope_tests::node::scratch()?;
        let program = folder.path().join("torture"); // other inodes each time
        std::fs::copy(&built.program, &program)?;
        std::fs::copy(
            built.program.with_file_name("libtorture_plugin.so"),
            folder.path().join("libtorture_plugin.so"),
        )?;
        let worker = Worker { program, ..built.clone() };
        let (complaints, _) = check(&worker, &[scenario], Duration::ZERO)?;
        ensure!(complaints.is_empty(), "{scenario}:\n{}", complaints.join("\n"));
    }
    Ok(())
}
