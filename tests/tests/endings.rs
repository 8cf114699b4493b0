//! Promise: every worker's end is counted once, as what happened to it, however many end at once.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::cgroup::Cgroup;
use cadscope_tests::freecad::{self, Job};
use cadscope_tests::metrics::Metrics;
use cadscope_tests::node::{cache, require_root, scratch, tool};
use cadscope_tests::run::{run, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const CATALOG: &str = r#"
[[probe]]
id = "endings.work"
function = "work(long)"
symbols = ["work"]
title = "work"
"#;

/// Argument of the worker; what is done to it; reason and signal of its exit; status of its flow.
type Case = (&'static str, Option<Signal>, &'static str, &'static str, &'static str);

const CASES: [Case; 10] = [
    ("success", None, "success", "", "success"),
    ("three", None, "failure", "", "failure"),
    ("wait", Some(Signal::SIGTERM), "signal", "SIGTERM", "killed"),
    ("wait", Some(Signal::SIGKILL), "signal", "SIGKILL", "killed"),
    ("segv", None, "signal", "SIGSEGV", "crash"),
    ("inside", None, "signal", "SIGSEGV", "crash"),
    ("handled", None, "signal", "SIGSEGV", "crash"),
    ("abort", None, "signal", "SIGABRT", "crash"),
    ("terminate", None, "signal", "SIGABRT", "crash"),
    ("eat", None, "oom", "SIGKILL", "oom"),
];

/// Workers that run at once.
const AT_ONCE: usize = 8;
const WORKERS: usize = 500;
const LIMIT: Duration = Duration::from_secs(120);

fn program() -> Result<PathBuf> {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("endings/endings.cpp");
    let program = cache()?.join("endings-worker");
    let mut compile = Command::new(tool("g++", "g++")?);
    let built = run(compile.args(["-O1", "-rdynamic", "-o"]).args([&program, &source]), LIMIT)?;
    ensure!(built.code == 0, "{}", built.stderr);
    Ok(program)
}

/// Starts a worker; one that waits has been told its signal when this returns.
fn start(program: &PathBuf, case: &Case, tight: &Cgroup) -> Result<Child> {
    let mut command = Command::new(program);
    command.arg(case.0);
    if case.0 == "eat" {
        command = tight.enter(&command);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    if let Some(signal) = case.1 {
        let mut said = [0; 5];
        child.stdout.take().context("stdout")?.read_exact(&mut said)?;
        kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
    }
    Ok(child)
}

/// The count by two labels, of the samples that have these others.
fn counted(
    metrics: &Metrics,
    family: &str,
    of: [(&str, &str); 1],
    labels: [&str; 2],
) -> BTreeMap<(String, String), f64> {
    let mut found = BTreeMap::new();
    for sample in metrics.select(family, &of) {
        let label = |name: &str| sample.labels.get(name).cloned().unwrap_or_default();
        *found.entry((label(labels[0]), label(labels[1]))).or_insert(0.0) += sample.value;
    }
    found
}

#[test]
fn five_hundred_workers_end_in_ten_ways_and_each_is_counted_once() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let catalog = folder.path().join("endings.toml");
    std::fs::write(&catalog, CATALOG)?;
    let (program, tight) = (program()?, Cgroup::new("endings", Some(8 << 20))?);
    let agent = Agent::start(&["--catalog".as_ref(), catalog.as_os_str()])?;
    // Of a file that the node has never seen, only what happens after its probes are in place is known in full.
    let mut first = Command::new(&program).arg("wait").stdout(Stdio::null()).spawn()?;
    let probed = agent.metrics_when(LIMIT, |metrics| metrics.sum("cadscope_probes_attached", &[]) >= 1.0)?;
    first.kill()?;
    first.wait()?;
    ensure!(probed.sum("cadscope_probes_attached", &[]) >= 1.0, "{}", agent.log());
    let begin = Instant::now();
    let mut running = std::collections::VecDeque::new();
    let killed = (CASES[3].2.to_owned(), CASES[3].3.to_owned());
    let mut exits = BTreeMap::from([(killed, 1.0)]);
    let mut flows = BTreeMap::from([((CASES[3].4.to_owned(), String::new()), 1.0)]);
    for case in CASES.iter().cycle().take(WORKERS) {
        if running.len() >= AT_ONCE {
            let mut oldest: Child = running.pop_front().context("no worker")?;
            wait(&mut oldest, LIMIT)?;
        }
        running.push_back(start(&program, case, &tight)?);
        *exits.entry((case.2.to_owned(), case.3.to_owned())).or_insert(0.0) += 1.0;
        *flows.entry((case.4.to_owned(), String::new())).or_insert(0.0) += 1.0;
    }
    for mut worker in running {
        wait(&mut worker, LIMIT)?;
    }
    eprintln!("{WORKERS} workers in {:.1} s", begin.elapsed().as_secs_f64());
    // Other workers of this machine have a version of OCCT.
    let own = [("occt_version", "")];
    let all = |metrics: &Metrics| metrics.sum("freecad_worker_exits_total", &own) > WORKERS as f64;
    agent.metrics_when(Duration::from_secs(60), all)?;
    // Whatever is counted twice has had its time, too.
    std::thread::sleep(Duration::from_millis(500));
    let metrics = agent.metrics()?;
    let counted_exits = counted(&metrics, "freecad_worker_exits_total", own, ["reason", "signal"]);
    ensure!(counted_exits == exits, "{counted_exits:#?}");
    let counted_flows =
        counted(&metrics, "model_generation_completed_total", own, ["status", "freecad_version"]);
    ensure!(counted_flows == flows, "{counted_flows:#?}\n{}", agent.log());
    let started = metrics.sum("model_generation_started_total", &own);
    ensure!(started == (WORKERS + 1) as f64, "{started} started");
    let kills = metrics.by("freecad_worker_oom_kills_total", "operation");
    ensure!(kills == BTreeMap::from([("work".to_owned(), 50.0)]), "{kills:?}");
    Ok(())
}

/// Script; whether it ends well as FreeCAD tells; what happened.
const SCRIPTS: [(&str, &str, &str, &str, &str); 11] = [
    ("done", "pass", "success", "success", ""),
    ("caught", "try:\n    Part.makeBox(-1, 1, 1)\nexcept Exception:\n    pass", "success", "success", ""),
    ("raises", "raise ValueError('uncaught')", "failure", "failure", ""),
    ("does-not-parse", "if:", "failure", "failure", ""),
    ("native-error", "Part.makeBox(-1, 1, 1)", "failure", "failure", ""),
    ("exit-0", "import sys; sys.exit(0)", "success", "success", ""),
    ("exit-3", "import sys; sys.exit(3)", "failure", "failure", ""),
    ("segv", "import ctypes; ctypes.string_at(0)", "crash", "signal", "SIGSEGV"),
    ("abort", "import os; os.abort()", "crash", "signal", "SIGABRT"),
    ("term", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "killed", "signal", "SIGTERM"),
    ("kill", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed", "signal", "SIGKILL"),
];

/// A process that is gone has no environment: an agent that the machine keeps waiting could not tell the job by it.
const BEGIN: &str = "import time\nimport Part\nPart.makeBox(1, 1, 1)\ntime.sleep(2)\n";

#[test]
fn freecads_jobs_are_counted_by_what_happened_though_its_exit_status_says_otherwise() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start::<&str>(&[])?;
    let mut wrong = Vec::new();
    for (name, body, status, reason, signal) in SCRIPTS {
        let job = Job::new("short.py")?;
        let script = job.folder().join(format!("{name}.py"));
        std::fs::write(&script, format!("{BEGIN}{body}\n"))?;
        let mut command = Command::new(tool("freecadcmd", "freecad-python3")?);
        command.arg(&script).envs(job.environment()).env("FLOW_TYPE", name).current_dir(job.folder());
        let ended = run(&mut command, LIMIT)?;
        let of = [("flow_type", name)];
        let metrics = agent.metrics_when(Duration::from_secs(30), |metrics| {
            metrics.sum("model_generation_completed_total", &of) > 0.0
        })?;
        let started = metrics.sum("model_generation_started_total", &of);
        let completed = metrics.select("model_generation_completed_total", &of);
        let seen: Vec<_> = completed.iter().map(|s| (s.labels.get("status").cloned(), s.value)).collect();
        let versions = completed.iter().all(|sample| {
            sample.labels.get("freecad_version").map(String::as_str) == Some(freecad::VERSIONS.0)
        });
        if started != 1.0 || seen != [(Some(status.to_owned()), 1.0)] || !versions {
            wrong.push(format!("{name} (exit code {}): started {started}, {completed:?}", ended.code));
        }
        eprintln!("{name}: exit code {}, {seen:?}, {reason} {signal}", ended.code);
    }
    let metrics = agent.metrics()?;
    let exits = counted(
        &metrics,
        "freecad_worker_exits_total",
        [("freecad_version", freecad::VERSIONS.0)],
        ["reason", "signal"],
    );
    let mut expected = BTreeMap::new();
    for (.., reason, signal) in SCRIPTS {
        *expected.entry((reason.to_owned(), signal.to_owned())).or_insert(0.0) += 1.0;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(exits == expected, "{exits:?}");
    Ok(())
}
