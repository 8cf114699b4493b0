//! Promise: what a node can suffer harms no worker, loses nothing silently, and is over when it is over: no descriptors, no
//! disk, frozen workers, an agent that is stopped or killed for memory, two agents, a server that is dead.
//!
//! Each is a row of docs/reliability.md, written by these tests with `CADSCOPE_WRITE=1`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::builds::BUILDS;
use cadscope_tests::cgroup::{Cgroup, Frozen};
use cadscope_tests::hot::{self, Hot, counted, lost};
use cadscope_tests::node::{full, require_root, scratch, tool};
use cadscope_tests::reliability::held;
use cadscope_tests::residue::{altered_text, bpf_ids};
use cadscope_tests::run::{Running, run, until, wait};
use cadscope_tests::worker::build_program;
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// So many calls more are counted, and none is lost.
fn counts(agent: &Agent, hot: &mut Hot, calls: i64) -> Result<()> {
    let before = agent.metrics()?;
    let made = hot.call("warm", calls, 0, 1)?;
    let risen = |metrics: &_| counted(metrics) - counted(&before);
    let after = agent.metrics_when(LIMIT, |metrics| risen(metrics) >= made)?;
    ensure!(risen(&after) == made, "{} of {made} calls\n{}", risen(&after), agent.log());
    ensure!(lost(&after) == lost(&before), "lost {}", lost(&after) - lost(&before));
    Ok(())
}

/// A copy of the program, which no agent has seen.
fn copy(folder: &Path, name: &str) -> Result<Hot> {
    let path = folder.join(name);
    fs::copy(build_program("hot/hot.cpp")?, &path)?;
    Hot::start_by(&mut Command::new(path))
}

fn limit_descriptors(agent: &Agent, limit: &str) -> Result<()> {
    let tool = tool("prlimit", "util-linux")?;
    let pid = agent.pid().to_string();
    let ended = run(Command::new(tool).args(["--pid", &pid, &format!("--nofile={limit}:")]), LIMIT)?;
    ensure!(ended.code == 0, "{ended:?}");
    Ok(())
}

#[test]
fn without_descriptors_what_is_known_goes_on_and_what_is_new_is_found_later() -> Result<()> {
    let _node = require_root()?;
    let (agent, mut hot, _folder) = hot::start(&[])?;
    counts(&agent, &mut hot, 1_000)?;
    let open = fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count();
    let limits = fs::read_to_string(format!("/proc/{}/limits", agent.pid()))?;
    let before = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let before = before.and_then(|rest| rest.split_whitespace().next()).context("no limit")?.to_owned();
    limit_descriptors(&agent, &open.min(16).to_string())?;
    // It cannot be asked, nor can it open a file: the calls of a known program go on to be counted.
    let made = hot.call("warm", 1_000, 0, 1)?;
    let folder = scratch()?;
    let mut new = copy(folder.path(), "unseen")?;
    new.call("warm", 1_000, 0, 1)?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(!agent.log().contains("panicked"), "{}", agent.log());
    limit_descriptors(&agent, &before)?;
    let all = 1_000.0 + made;
    let metrics = agent.metrics_when(LIMIT, |metrics| counted(metrics) >= all)?;
    ensure!(counted(&metrics) == all, "{} of {all}\n{}", counted(&metrics), agent.log());
    ensure!(lost(&metrics) == 0.0, "lost {}", lost(&metrics));
    let said = agent.log();
    ensure!(said.contains("Too many open files"), "it does not say what it lacks:\n{said}");
    let missed = metrics.sum("cadscope_workers_missed_total", &[("reason", "file_not_opened")]);
    ensure!(missed > 0.0, "it was not counted");
    // The file that could not be opened is probed once it can be, for the worker that runs.
    agent.learn(&["/unseen"], || Ok(()))?;
    counts(&agent, &mut new, 1_000)?;
    held(
        "No descriptor left",
        "the agent's limit lowered below what it holds, 1,000 calls of a known worker, a new program",
        "every call of the known worker counted; the new program probed once the limit was raised",
    )
}

/// A file system without room.
struct Full {
    folder: tempfile::TempDir,
}

impl Full {
    fn new() -> Result<Self> {
        let full = Self { folder: scratch()? };
        let mount = tool("mount", "mount")?;
        let options = ["-t", "tmpfs", "-o", "size=64k", "full"];
        let ended = run(Command::new(mount).args(options).arg(full.folder.path()), LIMIT)?;
        ensure!(ended.code == 0, "{ended:?}");
        fs::write(full.folder.path().join("filling"), vec![0; 60 << 10])?;
        Ok(full)
    }

    fn fill(&self) {
        // As far as it goes.
        fs::write(self.folder.path().join("rest"), vec![0; 64 << 10]).ok();
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.folder.path()), LIMIT).ok();
    }
}

#[test]
fn on_a_full_disk_exports_are_still_compared_and_a_trace_that_cannot_be_written_says_so() -> Result<()> {
    let _node = require_root()?;
    let full = Full::new()?;
    let state = full.folder.path().join("state");
    fs::create_dir(&state)?;
    full.fill();
    let agent = Agent::start(&["--linger".as_ref(), "3600".as_ref(), "--state".as_ref(), state.as_os_str()])?;
    let build = BUILDS[0];
    build.run("warm.py", scratch()?.path(), LIMIT * 5)?;
    let validated = |result: &str| {
        let of = [("result", result)];
        agent.metrics().map(|metrics| metrics.sum("deterministic_export_validation_total", &of))
    };
    for _ in 0..2 {
        build.run_with("validated.py", scratch()?.path(), &[("SIZE", "10")], LIMIT * 5)?;
    }
    until("exports of the second run are judged", LIMIT, || (validated("pass").ok()? > 5.0).then_some(()))
        .with_context(|| agent.log())?;
    ensure!(validated("fail")? == 0.0, "{}", agent.log());
    ensure!(agent.log().contains("not kept beyond this run"), "{}", agent.log());

    let ended = run(
        Command::new(cadscope_tests::node::cadscope()?)
            .args(["trace", "--format", "json", "-o"])
            .arg(full.folder.path().join("trace.json"))
            .args(["--", "freecadcmd"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs/short.py")),
        LIMIT,
    )?;
    ensure!(ended.code != 0 && ended.stderr.contains("No space left on device"), "{ended:?}");
    held(
        "No room on the disk",
        "the folder of digests and the file of a trace on a full file system, two runs of exports in each format",
        "exports compared from memory, which is said; the trace fails and names the file and the reason",
    )
}

#[test]
fn a_frozen_container_is_attached_to_and_loses_no_call() -> Result<()> {
    let _node = require_root()?;
    let frozen = Frozen::new("ice")?;
    let mut command = frozen.enter(&Command::new(build_program("hot/hot.cpp")?));
    let mut hot = Hot::start_by(&mut command)?;
    hot.call("warm", 1, 0, 1)?;
    frozen.freeze()?;
    // An agent that comes while it is frozen, and is asked while it is frozen.
    let (_catalog, catalog) = hot::catalog()?;
    let agent = Agent::start(&["--catalog", &catalog])?;
    agent.learn(&["/hot-"], || Ok(()))?;
    ensure!(agent.metrics()?.sum("freecad_workers", &[]) >= 1.0, "{}", agent.log());
    frozen.thaw()?;
    counts(&agent, &mut hot, 1_000)?;
    // Frozen again and again while it calls.
    let before = agent.metrics()?;
    let until_then = Instant::now() + Duration::from_secs(3);
    let calls = std::thread::scope(|scope| -> Result<f64> {
        let calling = scope.spawn(|| hot.call("warm", 300_000, 60_000, 1));
        while Instant::now() < until_then {
            frozen.freeze()?;
            std::thread::sleep(Duration::from_millis(300));
            frozen.thaw()?;
            std::thread::sleep(Duration::from_millis(100));
        }
        calling.join().map_err(|_| anyhow::anyhow!("the caller panicked"))?
    })?;
    let risen = |metrics: &_| counted(metrics) - counted(&before);
    let after = agent.metrics_when(LIMIT, |metrics| risen(metrics) >= calls)?;
    ensure!(risen(&after) == calls && lost(&after) == lost(&before), "{} of {calls}", risen(&after));
    held(
        "A frozen container",
        "attached to while frozen; then frozen again and again in 300,000 calls",
        "every call counted, none lost, the worker's results as they were",
    )
}

#[test]
fn an_agent_killed_for_memory_harms_no_worker_and_leaves_nothing_behind() -> Result<()> {
    let _node = require_root()?;
    let mut hot = Hot::start()?;
    hot.call("warm", 1, 0, 1)?;
    let clean = altered_text(hot.pid())?;
    ensure!(clean.is_empty(), "someone else's probes are in the worker: {clean:?}");
    let (programs, links) = (bpf_ids("prog")?, bpf_ids("link")?);
    let (_catalog, catalog) = hot::catalog()?;
    let tight = Cgroup::new("agent", Some(192 * MIB))?;
    // The kernel may not choose anyone else.
    let mut wrapper = tight.wrapper();
    wrapper[2].insert_str(0, "echo 1000 >/proc/self/oom_score_adj && ");
    let mut agent = Agent::start_under(&wrapper, &["--catalog", &catalog])?;
    agent.learn(&["/hot-"], || Ok(()))?;
    counts(&agent, &mut hot, 1_000)?;
    ensure!(!altered_text(hot.pid())?.is_empty(), "the agent has no probes in the worker");

    // Someone in its cgroup takes all there is.
    let mut eater = Command::new("/usr/bin/python3");
    eater.args(["-c", "import time\nx = []\nwhile True: x.append(bytearray(1 << 20)); time.sleep(0.001)"]);
    let mut eater = tight.enter(&eater);
    let mut eater = Running(eater.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    let code = until("the agent's end", LIMIT, || agent.ended());
    eater.0.kill().ok();
    eater.0.wait()?;
    ensure!(code? == 128 + 9, "it ended otherwise:\n{}", agent.log());
    until("everything of the agent is gone", LIMIT, || {
        let left = |kind: &str, before: &std::collections::BTreeSet<u64>| {
            bpf_ids(kind).ok().map(|now| now.difference(before).count())
        };
        let none = left("prog", &programs)? == 0 && left("link", &links)? == 0;
        (none && altered_text(hot.pid()).ok()?.is_empty()).then_some(())
    })?;
    hot.call("warm", 1_000, 0, 1)?;
    // The next one finds the worker that runs.
    let agent = Agent::start(&["--catalog", &catalog])?;
    agent.learn(&["/hot-"], || Ok(()))?;
    counts(&agent, &mut hot, 1_000)?;
    held(
        "The agent is killed for memory",
        "in a cgroup of 192 MiB that someone else fills",
        "no program, link or breakpoint left, the worker's results as they were, and the next agent counts it",
    )
}

#[test]
fn two_agents_on_a_node_each_count_everything_and_one_may_die() -> Result<()> {
    let _node = require_root()?;
    let (first, mut hot, folder) = hot::start(&[])?;
    let catalog = folder.path().join("hot.toml");
    let mut second = Agent::start(&["--catalog".as_ref(), catalog.as_os_str()])?;
    second.learn(&["/hot-"], || Ok(()))?;
    let calls = if full() { 200_000 } else { 20_000 };
    let made = hot.call("warm", calls, 20_000, 1)?;
    for agent in [&first, &second] {
        let metrics = agent.metrics_when(LIMIT, |metrics| counted(metrics) >= made)?;
        ensure!(
            counted(&metrics) == made && lost(&metrics) == 0.0,
            "{} of {made}, {} lost",
            counted(&metrics),
            lost(&metrics)
        );
    }
    second.end(Signal::SIGKILL)?;
    counts(&first, &mut hot, 10_000)?;
    ensure!(counted(&first.metrics()?) == made + 10_000.0);
    held(
        "Two agents on a node",
        &format!("the same worker, {calls} calls at 20,000/s; then one agent is killed, and 10,000 more"),
        "each counts every call once; the one that is left goes on",
    )
}

#[test]
fn calls_deeper_than_is_followed_are_counted_as_lost() -> Result<()> {
    let _node = require_root()?;
    let (agent, mut hot, _folder) = hot::start(&[])?;
    let mut made = 0.0;
    let deep = |metrics: &_| cadscope_tests::metrics::Metrics::sum(metrics, "hot_deep_seconds_count", &[]);
    for depth in [1, 63, 64, 65, 1_000, 10_000] {
        made += hot.nest(depth)?;
        let metrics = agent.metrics_when(LIMIT, |metrics| deep(metrics) + lost(metrics) >= made)?;
        let (seen, lost) = (deep(&metrics), lost(&metrics));
        ensure!(seen + lost == made, "depth {depth}: {seen} counted and {lost} lost of {made}");
        ensure!(depth > 64 || lost == 0.0, "depth {depth}: {lost} lost");
    }
    // And the thread is followed as before.
    counts(&agent, &mut hot, 1_000)?;
    held(
        "A thread's frames are full",
        "recursion 1 to 10,000 deep; 64 open calls a thread are followed",
        "counted + lost = made at each depth, and calls after it are counted",
    )
}

#[test]
fn an_agent_that_is_stopped_and_continued_counts_or_tells_what_it_lost() -> Result<()> {
    let _node = require_root()?;
    let above = "4000000000";
    let (agent, mut hot, _folder) = hot::start(&["--count-above", above, "--remove-above", above])?;
    counts(&agent, &mut hot, 1_000)?;
    let stopped = Duration::from_secs(if full() { 60 } else { 5 });
    agent.signal(Signal::SIGSTOP)?;
    let begin = Instant::now();
    let mut made = 1_000.0;
    let calls = (|| -> Result<f64> {
        let mut calls = 0.0;
        while begin.elapsed() < stopped {
            calls += hot.call("warm", 20_000, 20_000, 1)?;
        }
        Ok(calls)
    })();
    // Workers come and go, too, while nobody looks.
    let folder = scratch()?;
    for number in 0..20 {
        copy(folder.path(), &format!("brief-{number}"))?.call("warm", 10, 0, 1)?;
    }
    agent.signal(Signal::SIGCONT)?;
    made += calls?;
    let metrics = agent.metrics_when(LIMIT, |metrics| counted(metrics) + lost(metrics) >= made)?;
    let (seen, lost) = (counted(&metrics), lost(&metrics));
    ensure!(seen + lost == made, "{seen} counted and {lost} lost of {made}\n{}", agent.log());
    counts(&agent, &mut hot, 1_000)?;
    held(
        "The agent is stopped (SIGSTOP) and continued",
        &format!("{} s, calls at 20,000/s, 20 workers of other files come and go", stopped.as_secs()),
        "counted + lost = made, to the last call; afterwards nothing is lost",
    )
}

#[test]
fn a_thousand_threads_call_at_once_and_every_call_is_counted() -> Result<()> {
    let _node = require_root()?;
    let (agent, mut hot, _folder) = hot::start(&[])?;
    let made = hot.call("warm", 20, 0, 1_000)?;
    let metrics = agent.metrics_when(LIMIT, |metrics| counted(metrics) + lost(metrics) >= made)?;
    ensure!(counted(&metrics) == made && lost(&metrics) == 0.0, "{} of {made}", counted(&metrics));
    held("Many threads", "1,000 threads of one worker, 20 calls each", "every call counted")
}

#[test]
fn workers_killed_as_they_start_do_not_stay_and_hide_no_call() -> Result<()> {
    let _node = require_root()?;
    let (agent, mut hot, folder) = hot::start(&[])?;
    let program = build_program("hot/hot.cpp")?;
    let count = if full() { 1_000 } else { 100 };
    let before = agent.metrics()?.sum("freecad_worker_exits_total", &[]);
    for _ in 0..count {
        let mut child = Running(Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?);
        child.0.kill()?;
        wait(&mut child.0, LIMIT)?;
    }
    counts(&agent, &mut hot, 1_000)?;
    drop(folder);
    let live = agent.metrics_when(LIMIT, |metrics| metrics.sum("freecad_workers", &[]) <= 1.0)?;
    ensure!(live.sum("freecad_workers", &[]) <= 1.0, "{live:?}");
    let ended = live.sum("freecad_worker_exits_total", &[]) - before;
    let missed = live.sum("cadscope_workers_missed_total", &[]);
    ensure!(ended <= f64::from(count), "{ended} ends of {count} workers, {missed} missed");
    held(
        "Workers killed as they start (/proc races)",
        &format!("{count} in a row, SIGKILL right after exec"),
        "no worker stays in the gauges, and those that live are counted as before",
    )
}
