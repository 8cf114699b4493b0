//! Promise: whoever waits for a job is told what it is at and how far, by HTTP and by Redis, and slows nothing down.

#![allow(clippy::indexing_slicing, reason = "out of bounds is a failed test")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::{Agent, free_port};
use cadscope_tests::freecad::Job;
use cadscope_tests::node::{require_root, scratch, tool};
use cadscope_tests::run::{self, Running};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

type Told = Arc<Mutex<Vec<(Instant, Value)>>>;

/// Listens to a feed until the agent ends.
fn listen(agent: &Agent, asked: &str) -> Result<Told> {
    let mut stream = TcpStream::connect(("127.0.0.1", agent.port()))?;
    write!(stream, "GET /progress{asked} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n")?;
    let mut lines = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(lines.read_line(&mut head)? > 0, "{head}");
    }
    ensure!(head.starts_with("HTTP/1.1 200") && head.contains("text/event-stream"), "{head}");
    let told = Told::default();
    let kept = Arc::clone(&told);
    std::thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            let Some(data) = line.strip_prefix("data: ") else { continue };
            let Ok(event) = serde_json::from_str(data) else { continue };
            kept.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), event));
        }
    });
    Ok(told)
}

fn events(told: &Told) -> Vec<(Instant, Value)> {
    told.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn until_the_end(told: &Told) -> Result<Vec<(Instant, Value)>> {
    let ended = || events(told).iter().any(|(_, event)| event["event"] == "job_end").then_some(());
    run::until("the job's end is told", LIMIT, ended).with_context(|| format!("{:#?}", events(told)))?;
    Ok(events(told))
}

fn start(job: &Job, id: &str) -> Result<Running> {
    let mut command = job.prepared();
    command.env("JOB_ID", id).env("REQUEST_ID", "r-1").env("FLOW_TYPE", "plate");
    command.env("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    Ok(Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
}

/// The places in the feed at which these events stand, in this order.
fn in_order(told: &[(Instant, Value)], wanted: &[&str]) -> Result<Vec<usize>> {
    let mut places = Vec::new();
    let mut from = 0;
    for name in wanted {
        let place = told[from..].iter().position(|(_, event)| event["event"] == *name);
        let place = place.with_context(|| format!("no {name} after {:#?}", &told[..from]))? + from;
        places.push(place);
        from = place + 1;
    }
    Ok(places)
}

#[test]
fn a_job_is_followed_from_its_start_over_each_object_to_its_end() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let port = free_port()?;
    let mut redis = Command::new(tool("redis-server", "redis-server")?);
    redis.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--requirepass", "s3cret"]);
    redis.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
    let _redis = Running(redis.spawn()?);
    run::until("Redis listens", LIMIT, || TcpStream::connect(("127.0.0.1", port)).is_ok().then_some(()))?;
    let heard = folder.path().join("heard");
    let mut subscriber = Command::new(tool("redis-cli", "redis-tools")?);
    subscriber.args([
        "-p",
        &port.to_string(),
        "--no-auth-warning",
        "-a",
        "s3cret",
        "PSUBSCRIBE",
        "cadscope:progress*",
    ]);
    subscriber.stdin(Stdio::null()).stdout(fs::File::create(&heard)?);
    let _subscriber = Running(subscriber.spawn()?);
    run::until("the subscription", LIMIT, || run::text(&heard).contains("psubscribe").then_some(()))?;

    let agent = Agent::start(&["--progress-redis", &format!("redis://:s3cret@127.0.0.1:{port}")])?;
    let job = Job::new("progress.py")?;
    // The first run finds the libraries.
    ensure!(run::wait(&mut start(&job, "first")?.0, 2 * LIMIT)?.success());
    let (mine, others) = (listen(&agent, "?job_id=j-1")?, listen(&agent, "?job_id=j-2")?);
    let begin = Instant::now();
    let mut worker = start(&job, "j-1")?;
    let by_pid = listen(&agent, &format!("?pid={}", worker.pid()))?;
    ensure!(run::wait(&mut worker.0, 2 * LIMIT)?.success());
    let told = until_the_end(&mine)?;

    let places = in_order(
        &told,
        &[
            "job_start",
            "solve_start",
            "solve_end",
            "recompute_start",
            "object_start",
            "object_end",
            "recompute_end",
            "export_start",
            "export_end",
            "save_start",
            "save_end",
            "load_start",
            "load_end",
            "job_end",
        ],
    )?;
    let event = |place: usize| &told[places[place]].1;
    ensure!(event(2)["iterations"].is_u64(), "{}", event(2));
    let recompute = told.iter().find(|(_, e)| e["event"] == "recompute_start" && e["objects"] == 8);
    let (_, recompute) = recompute.with_context(|| format!("{told:#?}"))?;
    ensure!(recompute["document"] == "Plate", "{recompute}");
    let slow =
        told.iter().find(|(_, e)| e["event"] == "object_start" && e["what"].to_string().contains("Slow"));
    let (seen, slow) = slow.with_context(|| format!("the slow object is not told of: {told:#?}"))?;
    ensure!(slow["objects"] == 8 && slow["object"].as_u64().is_some_and(|k| (1..=8).contains(&k)), "{slow}");
    let end = told.iter().find(|(_, e)| e["event"] == "recompute_end" && e["objects"] == 8);
    let (over, end) = end.context("the recompute does not end")?;
    ensure!(end["outcome"] == "ok" && end["recomputed"].as_u64().is_some_and(|n| n >= 7), "{end}");
    // It is told while it runs, not afterwards.
    ensure!(*over > *seen + Duration::from_millis(300), "told {:?} before its end", *over - *seen);
    let numbers: Vec<u64> = told.iter().filter_map(|(_, e)| e["object"].as_u64()).collect();
    ensure!(numbers.iter().max().is_some_and(|k| *k >= 7), "{numbers:?}");
    let last = &told.last().context("nothing")?.1;
    ensure!(last["event"] == "job_end" && last["outcome"] == "success" && last["exit_code"] == 0, "{last}");
    for (_, event) in &told {
        ensure!(
            event["job_id"] == "j-1" && event["request_id"] == "r-1" && event["flow_type"] == "plate",
            "{event}"
        );
        ensure!(event["trace_id"] == "0af7651916cd43dd8448eb211c80319c", "{event}");
        ensure!(event["pid"].as_u64() == Some(u64::from(worker.pid())), "{event}");
    }
    println!("{} events in {:?}", told.len(), begin.elapsed());
    ensure!(events(&others).is_empty(), "{:?}", events(&others));
    ensure!(until_the_end(&by_pid)?.len() > 5);

    let heard = run::text(&heard);
    ensure!(heard.contains("cadscope:progress:j-1") && heard.contains("cadscope:progress:first"), "{heard}");
    let published: Vec<Value> = heard.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let same = |event: &Value| published.iter().any(|p| p == event);
    for (_, event) in told.iter().filter(|(_, event)| event["event"] != "job_start") {
        ensure!(same(event), "not published: {event}");
    }
    let metrics = agent.metrics()?;
    ensure!(metrics.sum("cadscope_progress_published_total", &[]) >= told.len() as f64);
    ensure!(!agent.log().contains("s3cret"), "{}", agent.log());
    Ok(())
}

#[test]
fn clients_that_do_not_read_and_a_redis_that_is_gone_slow_nothing_down() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start(&["--progress-redis", &format!("redis://127.0.0.1:{}", free_port()?)])?;
    // The first run finds the libraries.
    let job = Job::new("cuts.py")?.with("JOB_OBJECTS", "200").with("JOB_CUTS", "20");
    ensure!(run::wait(&mut start(&job, "first")?.0, 2 * LIMIT)?.success());
    let mut silent = Vec::new();
    for _ in 0..32 {
        let mut stream = TcpStream::connect(("127.0.0.1", agent.port()))?;
        write!(stream, "GET /progress HTTP/1.1\r\nHost: x\r\n\r\n")?;
        silent.push(stream);
    }
    let clients =
        |n: f64| agent.metrics_when(LIMIT, |m| (m.sum("cadscope_progress_clients", &[]) - n).abs() < 0.5);
    ensure!((clients(32.0)?.sum("cadscope_progress_clients", &[]) - 32.0).abs() < 0.5);
    ensure!(agent.get("/progress")?.0 == 503 && agent.get("/progress?pid=x")?.0 == 400);
    ensure!(run::wait(&mut start(&job, "j")?.0, 2 * LIMIT)?.success());
    let metrics = agent
        .metrics_when(LIMIT, |m| m.sum("cadscope_progress_dropped_total", &[("reason", "redis")]) > 0.0)?;
    ensure!(
        metrics.sum("cadscope_progress_dropped_total", &[("reason", "redis")]) > 0.0,
        "no event was refused"
    );
    let counted = agent.metrics_when(LIMIT, |m| m.sum("occt_boolean_duration_seconds_count", &[]) >= 20.0)?;
    ensure!(counted.sum("occt_boolean_duration_seconds_count", &[]) >= 20.0, "booleans are missing");
    let begin = Instant::now();
    agent.metrics()?;
    ensure!(begin.elapsed() < Duration::from_secs(2), "/metrics took {:?}", begin.elapsed());
    drop(silent);
    ensure!(clients(0.0)?.sum("cadscope_progress_clients", &[]) < 0.5, "clients that are gone still count");
    Ok(())
}
