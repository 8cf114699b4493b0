//! Promise: mixed work and faults, for as long as one likes, change nothing: every boolean is counted, every worker's end
//! is, open operations return to none, and the agent's memory, descriptors and probes stay what they were.
//!
//! `cargo xtask soak --minutes N` runs it for longer than the tests do.

#![allow(clippy::indexing_slicing, reason = "places are counted just before: out of bounds is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::cgroup::Cgroup;
use cadscope_tests::freecad::Job;
use cadscope_tests::metrics::Metrics;
use cadscope_tests::node::require_root;
use cadscope_tests::residue::bpf_ids;
use cadscope_tests::run::{Running, run, until, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(60);

/// How a worker ends, and the reason of its exit in the metrics. What says nothing ends well.
const ENDS: [(&str, &str); 6] = [
    ("well", "success"),
    ("three", "failure"),
    ("segv", "signal"),
    ("abort", "signal"),
    ("killed", "signal"),
    ("eaten", "oom"),
];

/// What is done to the agent while workers run.
const FAULTS: [&str; 5] =
    ["none", "stopped for two seconds", "a silent client", "a storm of forks", "a frozen worker"];

/// What of the agent must stay as it was.
#[derive(Clone, Copy, Debug)]
struct Holding {
    rss_kb: u64,
    descriptors: usize,
    /// Those of the descriptors that are BPF objects: maps, programs, links.
    bpf: usize,
    operations: f64,
}

impl Holding {
    fn of(agent: &Agent, metrics: &Metrics) -> Result<Self> {
        let folder = std::path::PathBuf::from(format!("/proc/{}", agent.pid()));
        let status = std::fs::read_to_string(folder.join("status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let links = std::fs::read_dir(folder.join("fd"))?;
        let names: Vec<_> = links.flatten().filter_map(|link| std::fs::read_link(link.path()).ok()).collect();
        Ok(Self {
            rss_kb: rss.trim().trim_end_matches(" kB").parse()?,
            descriptors: names.len(),
            bpf: names.iter().filter(|name| name.to_string_lossy().contains("bpf")).count(),
            operations: metrics.sum("occt_operations_in_flight", &[]),
        })
    }
}

/// What was done, and must have been counted.
#[derive(Debug, Default)]
struct Done {
    cuts: f64,
    ends: BTreeMap<&'static str, f64>,
    faults: BTreeMap<&'static str, u32>,
}

struct Worker {
    child: Running,
    _job: Job,
    works: bool,
    reason: &'static str,
}

fn start(work: &str, end: &'static str, seconds: &str, tight: &Cgroup) -> Result<Worker> {
    let job = if end == "eaten" {
        Job::new("oom.py")?.with("JOB_ROWS", "40")
    } else {
        let end = if end == "killed" { "hang" } else { end };
        Job::new("soak.py")?.with("JOB_WORK", work).with("JOB_END", end).with("JOB_SECONDS", seconds)
    };
    let mut command = if end == "eaten" { tight.enter(&job.prepared()) } else { job.prepared() };
    let child = Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?);
    let reason = ENDS.iter().find(|(name, _)| *name == end).context("no such end")?.1;
    Ok(Worker { child, _job: job, works: work == "cut", reason })
}

impl Worker {
    /// Waits for its end; how many cuts it has made.
    fn end(mut self, done: &mut Done) -> Result<()> {
        let mut said = String::new();
        let output = self.child.0.stdout.take().context("stdout")?;
        let mut output = BufReader::new(output);
        if self.reason == "signal" && !self.works {
            output.read_line(&mut said)?;
            while !said.contains("working") && output.read_line(&mut said)? > 0 {}
            std::thread::sleep(Duration::from_millis(300));
            // One that ends itself is gone before, or gets a signal that is counted the same.
            kill(Pid::from_raw(i32::try_from(self.child.pid())?), Signal::SIGKILL).ok();
        }
        output.read_to_string(&mut said)?;
        let status = wait(&mut self.child.0, LIMIT)?;
        *done.ends.entry(self.reason).or_default() += 1.0;
        if self.works {
            let cuts = said.lines().find_map(|line| line.strip_prefix("job done "));
            let cuts = cuts.with_context(|| format!("a worker ended with {status}: {said}"))?;
            ensure!(status.success(), "a worker ended with {status}: {said}");
            done.cuts += cuts.trim().parse::<f64>()?;
        }
        Ok(())
    }
}

/// Does it while the workers run.
fn disturb(fault: &str, agent: &Agent, worker: &Worker) -> Result<Option<TcpStream>> {
    match fault {
        "stopped for two seconds" => {
            agent.signal(Signal::SIGSTOP)?;
            std::thread::sleep(Duration::from_secs(2));
            agent.signal(Signal::SIGCONT)?;
        }
        "a silent client" => return Ok(Some(TcpStream::connect(("127.0.0.1", agent.port()))?)),
        "a storm of forks" => {
            let storm = "i=0; while [ $i -lt 2000 ]; do (:); i=$((i+1)); done";
            run(Command::new("sh").args(["-c", storm]), LIMIT)?;
        }
        "a frozen worker" => {
            let pid = Pid::from_raw(i32::try_from(worker.child.pid())?);
            kill(pid, Signal::SIGSTOP)?;
            std::thread::sleep(Duration::from_secs(1));
            kill(pid, Signal::SIGCONT)?;
        }
        _ => {}
    }
    Ok(None)
}

/// One that is killed inside a cut has made it in part.
fn cuts(metrics: &Metrics) -> f64 {
    metrics.sum("occt_boolean_duration_seconds_count", &[("operation", "cut"), ("status", "ok")])
}

fn exits(metrics: &Metrics) -> BTreeMap<String, f64> {
    metrics.by("freecad_worker_exits_total", "reason")
}

fn lost(metrics: &Metrics) -> f64 {
    metrics.sum("cadscope_events_lost_total", &[]) + metrics.sum("cadscope_records_dropped_total", &[])
}

/// Waits until what was done is what was counted.
fn settle(agent: &Agent, begin: &Metrics, done: &Done) -> Result<Metrics> {
    let wanted = |metrics: &Metrics| {
        let risen = |reason: &str| {
            let now = exits(metrics).get(reason).copied().unwrap_or_default();
            now - exits(begin).get(reason).copied().unwrap_or_default()
        };
        let ended = done.ends.iter().all(|(reason, count)| (risen(reason) - count).abs() < 0.5);
        let counted = cuts(metrics) - cuts(begin);
        ended && (counted - done.cuts).abs() < 0.5 && metrics.sum("occt_operations_in_flight", &[]) == 0.0
    };
    let metrics = agent.metrics_when(LIMIT, wanted)?;
    ensure!(
        wanted(&metrics),
        "{done:?}; counted {} cuts, exits {:?} (before {:?}), in flight {}, lost {}\n{}",
        cuts(&metrics) - cuts(begin),
        exits(&metrics),
        exits(begin),
        metrics.sum("occt_operations_in_flight", &[]),
        lost(&metrics),
        agent.log()
    );
    Ok(metrics)
}

#[test]
fn mixed_work_and_faults_are_counted_to_the_last_and_leave_the_agent_as_it_was() -> Result<()> {
    let _node = require_root()?;
    let minutes = std::env::var("CADSCOPE_SOAK_MINUTES").ok().and_then(|text| text.parse::<f64>().ok());
    let length = Duration::from_secs_f64(minutes.map_or(45.0, |minutes| minutes * 60.0));
    let tight = Cgroup::new("soak", Some(160 << 20))?;
    let before = kept()?;
    // The collector is dead from the beginning to the end.
    let agent = Agent::start(&["--otlp-endpoint", "http://127.0.0.1:9", "--linger", "3"])?;
    // Its files become known.
    let mut unmeasured = Done::default();
    agent.learn(&["/libTKBO", "/libstdc++", "/Part.so"], || {
        start("cut", "well", "0.5", &tight)?.end(&mut unmeasured)
    })?;
    std::thread::sleep(Duration::from_secs(1));
    let begin = agent.metrics()?;

    let (mut done, mut held, mut lost_before) = (Done::default(), Vec::new(), lost(&begin));
    let until_then = Instant::now() + length;
    let mut round = 0;
    while Instant::now() < until_then || round < ENDS.len() {
        let (end, _) = ENDS[round % ENDS.len()];
        let fault = FAULTS[round % FAULTS.len()];
        let known = [start("cut", "well", "2", &tight)?, start("cut", "well", "1", &tight)?];
        let disturbed = start("union", end, "0.5", &tight)?;
        let client = disturb(fault, &agent, &known[0])?;
        disturbed.end(&mut done)?;
        for worker in known {
            worker.end(&mut done)?;
        }
        drop(client);
        *done.faults.entry(fault).or_default() += 1;
        let metrics = settle(&agent, &begin, &done)?;
        ensure!(
            lost(&metrics) == lost_before,
            "lost {}: {:?}",
            lost(&metrics),
            metrics.by("cadscope_events_lost_total", "reason")
        );
        let now = Holding::of(&agent, &metrics)?;
        eprintln!("round {round}: {end}, {fault}; {now:?}, {} cuts", done.cuts);
        held.push(now);
        round += 1;
        // Every few rounds nobody maps the files for longer than the probes linger: they go, and come again.
        if round % 10 == 0 {
            let gone = || agent.metrics().ok().filter(|m| m.sum("cadscope_probes_attached", &[]) == 0.0);
            until("probes go with the last worker", LIMIT, gone)?;
            agent.learn(&["/libTKBO", "/libstdc++", "/Part.so"], || {
                start("union", "well", "0.5", &tight)?.end(&mut done)
            })?;
            // A call that was under way when its file was probed is seen to return only.
            lost_before = lost(&agent.metrics()?);
        }
    }
    stays_flat(&held)?;
    drop(agent);
    // The kernel takes links and maps apart a moment later.
    until("nothing of the agent's is left in the kernel", LIMIT, || {
        let left = kept().ok()?;
        left.iter().zip(&before).all(|(left, before)| left.is_subset(before)).then_some(())
    })?;
    eprintln!("{round} rounds in {length:?}: {done:?}; first {:?}, last {:?}", held[0], held[held.len() - 1]);
    Ok(())
}

/// BPF programs, links and maps that nobody holds.
fn kept() -> Result<[BTreeSet<u64>; 3]> {
    Ok([bpf_ids("prog")?, bpf_ids("link")?, bpf_ids("map")?])
}

/// The last quarter holds what the second did: what is kept on purpose is full by then.
fn stays_flat(held: &[Holding]) -> Result<()> {
    let quarter = held.len() / 4;
    let worst = |part: &[Holding], of: fn(&Holding) -> u64| part.iter().map(of).max().unwrap_or_default();
    let (second, last) = (&held[quarter..held.len() / 2], &held[held.len() - quarter.max(1)..]);
    let rss: fn(&Holding) -> u64 = |h| h.rss_kb;
    let descriptors: fn(&Holding) -> u64 = |h| u64::try_from(h.descriptors).unwrap_or(u64::MAX);
    let bpf: fn(&Holding) -> u64 = |h| u64::try_from(h.bpf).unwrap_or(u64::MAX);
    ensure!(held.iter().all(|h| h.operations == 0.0), "operations stay open: {held:?}");
    ensure!(worst(last, rss) < 64 << 10, "the agent holds {} KiB", worst(last, rss));
    // Growth shows over many rounds only: in `cargo xtask soak`, not in the minute of a test run.
    if held.len() >= 24 {
        ensure!(worst(last, rss) <= worst(second, rss) + 4096, "memory grows: {held:?}");
        ensure!(worst(last, descriptors) <= worst(second, descriptors) + 4, "descriptors grow: {held:?}");
        ensure!(worst(last, bpf) <= worst(second, bpf), "BPF objects grow: {held:?}");
    }
    Ok(())
}
