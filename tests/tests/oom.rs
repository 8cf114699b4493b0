//! Promise: a worker that the kernel kills because memory ran out is counted with the operation that it was in.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::cgroup::Cgroup;
use cadscope_tests::collector::{Collector, Span};
use cadscope_tests::freecad::Job;
use cadscope_tests::node::{emulated, patient, require_root, scratch};
use cadscope_tests::run::{Running, run, until};
use cadscope_tests::worker::build_program;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(180);
const MIB: u64 = 1 << 20;

fn kills(agent: &Agent, operation: &str) -> Result<f64> {
    Ok(agent.metrics()?.sum("freecad_worker_oom_kills_total", &[("operation", operation)]))
}

/// An agent whose probes are in FreeCAD already.
fn agent(arguments: &[&str]) -> Result<Agent> {
    let agent = Agent::start(arguments)?;
    let job = Job::new("endless.py")?.with("JOB_SECONDS", "180");
    let mut child =
        Running(job.prepared().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    let cuts =
        agent.metrics_when(LIMIT, |metrics| metrics.sum("occt_boolean_duration_seconds_count", &[]) > 0.0)?;
    ensure!(cuts.sum("occt_boolean_duration_seconds_count", &[]) > 0.0, "{}", agent.log());
    job.stop()?;
    child.0.wait()?;
    // What it was in stays in the metrics for a moment, and is not what a test looks for.
    until("no cut of the first job in flight", Duration::from_secs(30), || {
        (agent.metrics().ok()?.sum("occt_operations_in_flight", &[]) == 0.0).then_some(())
    })?;
    Ok(agent)
}

/// What `/status` says of the last kill.
fn last_kill(agent: &Agent, count: usize) -> Result<Value> {
    until("a kill in /status", patient(Duration::from_secs(20)), || {
        let status: Value = serde_json::from_str(&agent.get("/status").ok()?.1).ok()?;
        let kills = status.get("oom_kills")?.as_array()?.clone();
        (kills.len() == count).then(|| kills.last().cloned())?
    })
}

#[test]
fn a_worker_killed_for_memory_in_a_boolean_is_counted_under_it_and_stays_so() -> Result<()> {
    let _node = require_root()?;
    let collector = Collector::start()?;
    let agent = agent(&["--otlp-endpoint", &collector.grpc()])?;
    for round in 1..=2 {
        let cgroup = Cgroup::new("oom", Some(64 * MIB))?;
        // Probes that lingered for a minute are gone before an emulated machine has started the next FreeCAD.
        let wait = if emulated() { "30" } else { "0" };
        let job = Job::new("oom.py")?.with("FLOW_TYPE", "gear").with("JOB_WAIT", wait);
        let ended = run(&mut cgroup.enter(&job.prepared()), LIMIT)?;
        ensure!(ended.code == 128 + 9, "the job was to be killed: {ended:?}");
        drop(cgroup);
        let kill = last_kill(&agent, round)?;
        ensure!(kill.get("operation").is_some_and(|o| o == "cut"), "{kill}; {ended:?}");
        ensure!(kill.get("flow_type").is_some_and(|o| o == "gear"), "{kill}");
        ensure!(kill.get("limit_bytes").and_then(Value::as_u64) == Some(64 * MIB), "{kill}");
        let resident = kill.get("resident_bytes").and_then(Value::as_u64).context("resident_bytes")?;
        // Beside what is charged to the cgroup, it maps libraries that others have read.
        ensure!((50 * MIB..250 * MIB).contains(&resident), "{kill}");
        let count = kills(&agent, "cut")?;
        ensure!(count == f64::from(u32::try_from(round)?), "{count} kills after round {round}");
    }
    let metrics = agent.metrics()?;
    let of_oom = metrics.sum("freecad_worker_exits_total", &[("reason", "oom"), ("signal", "SIGKILL")]);
    let flows = metrics.sum("model_generation_completed_total", &[("flow_type", "gear"), ("status", "oom")]);
    ensure!(of_oom == 2.0 && flows == 2.0, "{of_oom} exits, {flows} flows");
    // On a plain host there is no pod to name.
    let kills = metrics.select("freecad_worker_oom_kills_total", &[]);
    ensure!(kills.iter().all(|kill| !kill.labels.contains_key("pod")), "{kills:?}");
    let booleans =
        metrics.sum("occt_boolean_duration_seconds_count", &[("operation", "cut"), ("status", "killed")]);
    ensure!(booleans == 2.0, "{booleans} killed cuts");
    let log = agent.log();
    ensure!(log.matches("worker killed: out of memory").count() == 2, "{log}");
    // In their traces it is an event of the worker, and the cut in it did not end well.
    let killed = |span: &&Span| span.attributes.get("error.type").is_some_and(|kind| kind == "oom");
    let arrived = |spans: &[Span]| spans.iter().filter(killed).count() >= 2;
    let spans = collector.spans_when("the ends of both workers", Duration::from_secs(30), arrived)?;
    for worker in spans.iter().filter(killed) {
        ensure!(worker.status == 2 && worker.events.iter().any(|event| event == "oom_kill"), "{worker:?}");
        let cut = spans.iter().find(|span| span.parent == worker.id && span.name == "boolean cut");
        ensure!(cut.is_some_and(|cut| cut.status == 2), "{cut:?}");
    }
    Ok(())
}

#[test]
fn limits_above_the_worker_and_kills_outside_of_operations_and_by_others_are_told_apart() -> Result<()> {
    let _node = require_root()?;
    let agent = agent(&[])?;
    // Memory runs out in the pod's cgroup, of which the container has no own part, in no operation; and the worker is a
    // child of the container's first process, which lives on.
    let pod = Cgroup::new("pod", Some(64 * MIB))?;
    let container = pod.child("container", None)?;
    let job = Job::new("short.py")?;
    let script = job.folder().join("eat.py");
    std::fs::write(&script, "import Part\nPart.makeBox(1, 1, 1)\nkept = bytearray(1 << 30)\n")?;
    let mut first = Command::new("sh");
    first.args(["-c", "freecadcmd \"$1\"; echo the worker ended with $?", "sh"]).arg(&script);
    first.envs(job.environment());
    let ended = run(&mut container.enter(&first), LIMIT)?;
    ensure!(ended.stdout.contains("the worker ended with 137"), "{ended:?}");
    let killed = last_kill(&agent, 1)?;
    ensure!(killed.get("operation").is_some_and(|o| o == "" || o == "none"), "{killed}");
    ensure!(killed.get("limit_bytes").and_then(Value::as_u64) == Some(64 * MIB), "{killed}");
    ensure!(
        kills(&agent, "none")? == 1.0,
        "{:?}",
        agent.metrics()?.by("freecad_worker_oom_kills_total", "operation")
    );

    // SIGKILL from outside, in a cgroup with a limit, in the middle of a boolean.
    let roomy = Cgroup::new("roomy", Some(1024 * MIB))?;
    let job = Job::new("oom.py")?.with("JOB_ROWS", "60").with("FLOW_TYPE", "shot");
    let mut child = Running(
        roomy
            .enter(&job.prepared())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?,
    );
    until("a cut in flight", LIMIT, || {
        let metrics = agent.metrics().ok()?;
        (metrics.sum("occt_operations_in_flight", &[("operation", "cut")]) == 1.0).then_some(())
    })?;
    kill(Pid::from_raw(i32::try_from(child.pid())?), Signal::SIGKILL)?;
    child.0.wait()?;
    let of = [("flow_type", "shot"), ("status", "killed")];
    let metrics = agent.metrics_when(Duration::from_secs(30), |metrics| {
        metrics.sum("model_generation_completed_total", &of) == 1.0
    })?;
    ensure!(metrics.sum("model_generation_completed_total", &of) == 1.0, "{}", agent.log());
    ensure!(metrics.sum("freecad_worker_oom_kills_total", &[]) == 1.0);
    let exits = metrics.sum("freecad_worker_exits_total", &[("reason", "signal"), ("signal", "SIGKILL")]);
    ensure!(exits == 1.0, "{exits}");
    Ok(())
}

const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

/// Puts what memory there is, but so much, aside for nobody, without writing to it: that takes its time in a guest.
struct Aside;

impl Aside {
    fn all_but(bytes: u64) -> Result<Self> {
        let known = std::fs::read_to_string("/proc/meminfo")?;
        let line = known.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
        let available = line.context("MemAvailable")?.trim().trim_end_matches(" kB").parse::<u64>()? << 10;
        std::fs::write(HUGE_PAGES, (available.saturating_sub(bytes) / (2 * MIB)).to_string())?;
        Ok(Self)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(HUGE_PAGES, "0") {
            eprintln!("{HUGE_PAGES}: {error}");
        }
    }
}

/// A guest of `cargo xtask vm` has its memory for itself: elsewhere nobody's machine is brought to its end.
#[test]
#[ignore = "uses up the memory of the machine: cargo xtask vm runs it in a guest"]
fn memory_that_runs_out_on_the_whole_machine_is_told_as_that() -> Result<()> {
    const CATALOG: &str = "[[probe]]\nid = \"memory.grow\"\nfunction = \"grow(long, int)\"\nsymbols = [\"grow\"]\ntitle = \"grow\"\n";
    let _node = require_root()?;
    if !emulated() {
        eprintln!("not tried here: cargo xtask vm does, in a guest");
        return Ok(());
    }
    let folder = scratch()?;
    let catalog = folder.path().join("memory.toml");
    std::fs::write(&catalog, CATALOG)?;
    let program = build_program("memory/memory.cpp")?;
    let agent = Agent::start(&["--catalog".as_ref(), catalog.as_os_str()])?;
    // Its file is new to the node.
    run(Command::new(&program).arg("k:1"), LIMIT)?;
    let probed = agent.metrics_when(LIMIT, |metrics| metrics.sum("cadscope_probes_attached", &[]) >= 1.0)?;
    ensure!(probed.sum("cadscope_probes_attached", &[]) >= 1.0, "{}", agent.log());

    // The kernel may choose a second victim while the first one goes.
    for pid in [agent.pid(), std::process::id()] {
        std::fs::write(format!("/proc/{pid}/oom_score_adj"), "-1000")?;
    }
    let _aside = Aside::all_but(192 * MIB)?;
    let mut worker = Command::new("sh");
    worker.args(["-c", "echo 1000 >/proc/self/oom_score_adj; exec \"$@\"", "sh"]).arg(&program);
    let ended = run(worker.args(std::iter::repeat_n("k:32768", 64)), LIMIT)?;
    ensure!(ended.code == 128 + 9, "the worker was to be killed: {ended:?}");
    let killed = last_kill(&agent, 1)?;
    ensure!(killed.get("operation").is_some_and(|operation| operation == "grow"), "{killed}");
    ensure!(killed.get("limit_bytes").is_none(), "{killed}");
    let resident = killed.get("resident_bytes").and_then(Value::as_u64).context("resident_bytes")?;
    ensure!((32 * MIB..1024 * MIB).contains(&resident), "{killed}");
    ensure!(kills(&agent, "grow")? == 1.0, "{}", agent.log());
    let metrics = agent.metrics()?;
    ensure!(metrics.sum("freecad_worker_exits_total", &[("reason", "oom"), ("signal", "SIGKILL")]) == 1.0);
    Ok(())
}

#[test]
fn a_hung_boolean_shows_with_its_age_while_it_runs() -> Result<()> {
    let _node = require_root()?;
    let agent = agent(&[])?;
    let job = Job::new("oom.py")?.with("JOB_ROWS", "60");
    let child =
        Running(job.prepared().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    let cut = [("operation", "cut"), ("occt_version", "7.6.3")];
    let age = |agent: &Agent| Some(agent.metrics().ok()?.sum("occt_operation_oldest_seconds", &cut));
    let first = until("a cut in flight", LIMIT, || age(&agent).filter(|age| *age > 0.0))?;
    // Not running is as hung as can be.
    let pid = Pid::from_raw(i32::try_from(child.pid())?);
    kill(pid, Signal::SIGSTOP)?;
    let since = std::time::Instant::now();
    until("its age grows", LIMIT, || age(&agent).filter(|age| *age > first + 2.0))?;
    ensure!(since.elapsed().as_secs_f64() > 1.0, "its age runs ahead of the clock");
    ensure!(agent.metrics()?.sum("occt_operations_in_flight", &cut) == 1.0);
    kill(pid, Signal::SIGKILL)?;
    drop(child);
    let gone = agent.metrics_when(Duration::from_secs(30), |metrics| {
        metrics.sum("occt_operations_in_flight", &[]) == 0.0
    })?;
    ensure!(gone.sum("occt_operations_in_flight", &[]) == 0.0, "{gone:?}");
    ensure!(gone.sum("occt_operation_oldest_seconds", &[]) == 0.0, "{gone:?}");
    Ok(())
}
