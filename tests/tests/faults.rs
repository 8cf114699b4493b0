//! Promise: what a node can suffer harms no worker, loses nothing silently, and is over when it is over: no descriptors, no
//! disk, no room in maps, refused links, frozen workers, an agent that is stopped, restarted or killed for memory, two agents, a
//! clock that is set, a server that is dead.
//!
//! Each is a row of docs/reliability.md, written by these tests with `CADSCOPE_WRITE=1`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::builds::BUILDS;
use cadscope_tests::cgroup::{Cgroup, Frozen};
use cadscope_tests::collector::{Collector, Span};
use cadscope_tests::hot::{self, Hot, counted, lost};
use cadscope_tests::metrics::Metrics;
use cadscope_tests::node::{full, require_root, scratch, tool};
use cadscope_tests::pod::{Api, PodWorker};
use cadscope_tests::reliability::held;
use cadscope_tests::residue::{altered_text, bpf_ids};
use cadscope_tests::run::{Running, run, until, wait};
use cadscope_tests::wall_clock::Ahead;
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

fn limit_of_descriptors(agent: &Agent) -> Result<String> {
    let limits = fs::read_to_string(format!("/proc/{}/limits", agent.pid()))?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    Ok(limit.and_then(|rest| rest.split_whitespace().next()).context("no limit")?.to_owned())
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
    let before = limit_of_descriptors(&agent)?;
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
    let deep = |metrics: &_| Metrics::sum(metrics, "hot_deep_seconds_count", &[]);
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

/// The spans of a pod's calls.
fn of_pod<'a>(spans: &'a [Span], worker: &PodWorker) -> Vec<&'a Span> {
    let is = |span: &&Span| span.resource.get("k8s.pod.uid").is_some_and(|uid| uid == worker.uid());
    spans.iter().filter(is).filter(|span| span.name == "warm").collect()
}

fn has_label(span: &Span) -> bool {
    span.resource.get("k8s.pod.label.team").is_some_and(|team| team == "gears")
}

/// Calls until a span has the labels of the worker's pod.
fn label_comes(collector: &Collector, worker: &mut PodWorker, limit: Duration) -> Result<()> {
    until("a span with the labels of its pod", limit, || {
        worker.hot.call("warm", 1, 0, 1).ok()?;
        std::thread::sleep(Duration::from_millis(200));
        of_pod(&collector.spans(), worker).into_iter().any(has_label).then_some(())
    })
}

#[test]
fn a_kubernetes_api_that_is_dead_or_slow_holds_nothing_up_and_labels_come_later() -> Result<()> {
    let _node = require_root()?;
    let (mut api, collector) = (Api::new()?, Collector::start()?);
    api.fall_silent()?;
    let (_catalog, catalog) = hot::catalog()?;
    let endpoint = collector.grpc();
    let spans = ["--otlp-endpoint", &endpoint, "--min-span-duration", "0s", "--span-pod-labels"];
    let agent = Agent::start_under(&api.wrapper()?, &[&["--catalog", &catalog][..], &spans].concat())?;
    let pods = Cgroup::new("pods", None)?;
    let errors =
        |metrics: &Metrics| metrics.sum("cadscope_export_errors_total", &[("exporter", "kubernetes")]);
    let failed_again =
        |before: f64| agent.metrics_when(LIMIT, |metrics| errors(metrics) > before).map(|m| errors(&m));

    // Connections are taken, and nothing is said: calls are counted and their spans sent, without labels.
    let mut silent = PodWorker::start(&pods, 1)?;
    agent.learn(&["/hot-"], || Ok(()))?;
    counts(&agent, &mut silent.hot, 100)?;
    let arrived = |spans: &[Span]| of_pod(spans, &silent).len() >= 100;
    let sent = collector.spans_when("spans of a pod whose API is silent", LIMIT, arrived)?;
    ensure!(!of_pod(&sent, &silent).into_iter().any(has_label));
    let after_silence = failed_again(0.0)?;
    ensure!(after_silence > 0.0, "a request that was not answered is not counted\n{}", agent.log());
    let resident = agent.resident()?;

    api.refuse();
    let mut refused = PodWorker::start(&pods, 2)?;
    counts(&agent, &mut refused.hot, 100)?;
    ensure!(
        failed_again(after_silence)? > after_silence,
        "a refused request is not counted\n{}",
        agent.log()
    );
    // Pods without end, of which none can be asked for.
    let count = if full() { 200 } else { 20 };
    for number in 0..count {
        counts(&agent, &mut PodWorker::start(&pods, 100 + number)?.hot, 10)?;
    }

    // It is back, and takes its time: what ends before it has answered has no labels, what ends later has.
    api.answer_after(2)?;
    let mut slow = PodWorker::start(&pods, 3)?;
    counts(&agent, &mut slow.hot, 10)?;
    label_comes(&collector, &mut slow, LIMIT)?;
    counts(&agent, &mut slow.hot, 100)?;
    if full() {
        // Those that could not be asked for are asked for again after a minute.
        for worker in [&mut silent, &mut refused] {
            label_comes(&collector, worker, LIMIT * 2)?;
        }
    }
    let grown = agent.resident()?.saturating_sub(resident);
    ensure!(grown < 64 * MIB, "grown by {} MiB", grown / MIB);
    ensure!(lost(&agent.metrics()?) == 0.0, "{}", agent.log());
    held(
        "The Kubernetes API is dead or slow",
        &format!(
            "silent, then refusing (with {count} pods that come and go), then 2 s late; labels of pods in spans"
        ),
        "every call counted, spans sent without labels meanwhile, failed requests counted, labels in later spans",
    )
}

/// Nanoseconds since 1970.
fn wall_ns() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}

/// Calls until the span of one begins when the wall clock says that it was called.
fn spans_follow_the_clock(collector: &Collector, hot: &mut Hot) -> Result<()> {
    // A batch of spans may take its time, which is far less than the step.
    let near = Duration::from_secs(8).as_nanos();
    until("a span that begins when its call did", LIMIT, || {
        let before = wall_ns().ok()?;
        hot.call("warm", 1, 0, 1).ok()?;
        std::thread::sleep(Duration::from_millis(200));
        let spans = collector.spans();
        let last = spans.iter().rfind(|span| span.name == "warm")?;
        (u128::from(last.start_ns.abs_diff(before)) < near).then_some(())
    })
}

#[test]
fn when_the_wall_clock_is_set_calls_are_counted_durations_are_right_and_spans_follow_it() -> Result<()> {
    let _node = require_root()?;
    let collector = Collector::start()?;
    let endpoint = collector.grpc();
    let (agent, mut hot, _folder) = hot::start(&["--otlp-endpoint", &endpoint, "--min-span-duration", "0s"])?;
    spans_follow_the_clock(&collector, &mut hot)?;
    let seconds = if full() { 3600 } else { 20 };
    let ahead = Ahead::by(seconds)?;
    counts(&agent, &mut hot, 1_000)?;
    spans_follow_the_clock(&collector, &mut hot)?;
    drop(ahead);
    counts(&agent, &mut hot, 1_000)?;
    spans_follow_the_clock(&collector, &mut hot)?;
    // None has become as long as the step, and none ends before it begins.
    let longest = Duration::from_secs(10).as_nanos();
    for span in collector.spans().iter().filter(|span| span.name == "warm") {
        let duration = span.end_ns.checked_sub(span.start_ns);
        ensure!(duration.is_some_and(|ns| u128::from(ns) < longest), "{span:?}");
    }
    let spent = agent.metrics()?.sum("hot_warm_seconds_sum", &[]);
    ensure!((0.0..10.0).contains(&spent), "{spent} s in calls");
    held(
        "The wall clock is set",
        &format!("{seconds} s ahead and back, 1,000 calls after each"),
        "every call counted, durations as they were, spans begin when the new clock says",
    )
}

#[test]
fn calls_that_find_the_map_of_counts_full_are_counted_as_lost() -> Result<()> {
    let _node = require_root()?;
    let (folder, catalog) = hot::catalog()?;
    let crowd = hot::catalog_of_the_crowd(&folder)?;
    let mut hot = Hot::start()?;
    // Calls are counted in the kernel, one count for each process and function, as long as nobody takes the counts.
    let agent = Agent::start(&["--catalog", &catalog, "--catalog", &crowd, "--min-duration", "1s"])?;
    agent.learn(&["/hot-"], || Ok(()))?;
    let seen = |metrics: &Metrics| metrics.sum("hot_crowd_seconds_count", &[]);
    let full = |metrics: &Metrics| metrics.sum("cadscope_events_lost_total", &[("reason", "count_map_full")]);
    agent.signal(Signal::SIGSTOP)?;
    let made = hot::crowd(&mut hot, 300);
    agent.signal(Signal::SIGCONT)?;
    let made = made?;
    let metrics = agent.metrics_when(LIMIT, |metrics| seen(metrics) + lost(metrics) >= made)?;
    ensure!(
        seen(&metrics) + lost(&metrics) == made && full(&metrics) > 0.0,
        "{} counted and {} lost of {made}, {} of them without room\n{}",
        seen(&metrics),
        lost(&metrics),
        full(&metrics),
        agent.log()
    );
    counts(&agent, &mut hot, 1_000)?;
    held(
        "A map of the kernel side is full",
        "19,200 counts of processes and functions where 16,384 have room, while nobody takes them",
        "counted + lost = made, to the last call; there is room again afterwards",
    )
}

#[test]
fn a_link_that_the_kernel_refuses_leaves_nothing_half_placed_and_is_made_later() -> Result<()> {
    let _node = require_root()?;
    let (folder, catalog) = hot::catalog()?;
    let crowd = hot::catalog_of_the_crowd(&folder)?;
    let mut hot = Hot::start()?;
    // A probe is a descriptor each, so that the kernel refuses in the midst of a file.
    let agent = Agent::start(&["--catalog", &catalog, "--catalog", &crowd, "--attach", "perf-events"])?;
    agent.learn(&["/hot-"], || Ok(()))?;
    counts(&agent, &mut hot, 1_000)?;
    let open = fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count();
    let before = limit_of_descriptors(&agent)?;
    limit_descriptors(&agent, &(open + 40).to_string())?;
    let mut new = copy(folder.path(), "unseen")?;
    let refused = [("reason", "attach_refused")];
    let metrics =
        agent.metrics_when(LIMIT, |metrics| metrics.sum("cadscope_workers_missed_total", &refused) > 0.0)?;
    ensure!(
        metrics.sum("cadscope_workers_missed_total", &refused) > 0.0,
        "no refusal is counted\n{}",
        agent.log()
    );
    new.call("warm", 1_000, 0, 1)?;
    // Libraries that it shares with known programs have theirs.
    until("nothing is left in the new program", LIMIT, || {
        let altered = altered_text(new.pid()).ok()?;
        altered.iter().all(|place| !place.contains("/unseen")).then_some(())
    })?;
    counts(&agent, &mut hot, 1_000)?;
    limit_descriptors(&agent, &before)?;
    agent.learn(&["/unseen"], || Ok(()))?;
    counts(&agent, &mut new, 1_000)?;
    held(
        "The kernel refuses a link",
        "in the midst of a program's 67 functions, for lack of descriptors",
        "counted and said, nothing half placed, known programs are counted as before; made once the kernel allows it",
    )
}

#[test]
fn agents_that_come_and_go_under_load_harm_no_worker_and_each_counts() -> Result<()> {
    let _node = require_root()?;
    let (_folder, catalog) = hot::catalog()?;
    let (mut busy, mut hot) = (Hot::start()?, Hot::start()?);
    hot.call("warm", 1, 0, 1)?;
    let clean = altered_text(hot.pid())?;
    ensure!(clean.is_empty(), "someone else's probes are in the worker: {clean:?}");
    let (programs, links) = (bpf_ids("prog")?, bpf_ids("link")?);
    let rounds = if full() { 100 } else { 6 };
    let over = AtomicBool::new(false);
    let made = std::thread::scope(|scope| -> Result<f64> {
        let load = scope.spawn(|| -> Result<f64> {
            let mut made = 0.0;
            while !over.load(Ordering::Relaxed) {
                made += busy.call("blazing", 1_000, 5_000, 1)?;
            }
            Ok(made)
        });
        let done = (0..rounds).try_for_each(|round| {
            let mut agent = Agent::start(&["--catalog", &catalog])?;
            agent.learn(&["/hot-"], || Ok(()))?;
            // A call of the load that was open when its probes were placed counts as lost: it is not looked at here.
            let counted = |metrics: &Metrics| counted(metrics) >= 1_000.0;
            hot.call("warm", 1_000, 0, 1)?;
            let seen = hot::counted(&agent.metrics_when(LIMIT, counted)?);
            ensure!(seen == 1_000.0, "round {round}: {seen} of 1,000 calls\n{}", agent.log());
            let signal = if round % 2 == 0 { Signal::SIGKILL } else { Signal::SIGTERM };
            agent.end(signal)?;
            hot.call("warm", 1_000, 0, 1).map(drop)
        });
        over.store(true, Ordering::Relaxed);
        let made = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
        done.and(made)
    })?;
    until("everything of the agents is gone", LIMIT, || {
        let left = |kind: &str, before: &std::collections::BTreeSet<u64>| {
            bpf_ids(kind).ok().map(|now| now.difference(before).count())
        };
        let none = left("prog", &programs)? == 0 && left("link", &links)? == 0;
        (none && altered_text(hot.pid()).ok()?.is_empty()).then_some(())
    })?;
    eprintln!("{rounds} agents, {made} calls of the load");
    held(
        "The agent is restarted under load",
        &format!("{rounds} times, every second time killed, with a worker that makes 5,000 calls a second"),
        "each agent counts every call made while its probes are in place; results as they were; nothing left of them",
    )
}
