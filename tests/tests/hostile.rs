//! Promise: a worker that means ill gets nothing of the node, stops nobody from being observed, and is treated as if
//! nobody watched.

#![allow(clippy::indexing_slicing, reason = "of a file that is there: out of bounds is a failed test")]

#[path = "hostile/begun.rs"]
mod begun;
#[path = "hostile/debugged.rs"]
mod debugged;
#[path = "hostile/elf.rs"]
mod elf;
#[path = "hostile/files.rs"]
mod files;
#[path = "hostile/moved.rs"]
mod moved;
#[path = "hostile/same_pid.rs"]
mod same_pid;
#[path = "hostile/translated.rs"]
mod translated;
#[path = "hostile/watched.rs"]
mod watched;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::collector::{Collector, Span};
use cadscope_tests::node::{cadscope, full, require_root, scratch, tool};
use cadscope_tests::privileges::{CAPABILITIES, only};
use cadscope_tests::reliability::harmless;
use cadscope_tests::run::{Ended, Running, run, shell_code, until, wait};
use cadscope_tests::worker::build_program;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;

use self::watched::*;

/// 1 MiB of garbage, an invalid id of each kind, a secret.
fn garbage(command: &mut Command, secret: &str) {
    let byte = |n: u32| u8::try_from(n.wrapping_mul(2_654_435_769) >> 24).unwrap_or(1).max(1);
    let noise: Vec<u8> = (0..120_000).map(byte).collect();
    for number in 0..9 {
        command.env(format!("NOISE_{number}"), OsStr::from_bytes(&noise));
    }
    for name in ["FLOW_TYPE", "JOB_ID", "REQUEST_ID", "TRACEPARENT", "TRACESTATE", "BAGGAGE"] {
        let mut value = b"\xff\xfe\n\x1b[31m\"} 1\n# HELP forged x\nforged{a=\"".to_vec();
        value.extend(noise.get(..5000).unwrap_or_default());
        command.env(name, OsStr::from_bytes(&value));
    }
    command.env("AWS_SECRET_ACCESS_KEY", secret).env("\u{1}odd", secret);
}

/// What `trace` writes of a worker with secrets.
fn traces_keep_the_secret(watched: &Watched, secret: &str) -> Result<()> {
    let folder = scratch()?;
    for format in ["json", "html", "perfetto", "tree"] {
        let file = folder.path().join(format);
        let mut trace = Command::new(cadscope()?);
        trace
            .arg("trace")
            .arg("--catalog")
            .arg(watched.catalog())
            .args(["--format", format, "-o"])
            .arg(&file);
        trace.arg("--").arg(&watched.program).args(["calls", "10"]);
        garbage(&mut trace, secret);
        let ended = run(&mut trace, LIMIT)?;
        let text = fs::read_to_string(&file)? + &ended.stdout + &ended.stderr;
        ensure!(text.contains("call 1"), "no calls in the {format} of a trace: {text}");
        ensure!(!text.contains(secret), "a secret of a worker got out by the {format} of a trace");
    }
    Ok(())
}

#[test]
fn an_environment_of_garbage_names_nothing_and_its_secrets_stay_in_it() -> Result<()> {
    let _node = require_root()?;
    let collector = Collector::start()?;
    let endpoint = collector.grpc();
    let spans = ["--otlp-endpoint", &endpoint, "--min-span-duration", "0s"];
    let watched = Watched::start(&[], &[&["--log-format=text"][..], &spans].concat())?;
    let secret = "canary-8c1f52d07be94";
    let with_secrets = || {
        let mut command = watched.command(&["calls", "10", "0.7", secret]);
        garbage(&mut command, secret);
        command
    };
    let all = |spans: &[Span]| spans.iter().filter(|span| span.name.starts_with("call")).count() >= 10;
    let (seen, ended) = watched.seen_of(10.0, || run(&mut with_secrets(), LIMIT))?;
    ensure!((seen, ended.stdout.as_str()) == (10.0, "55\n"), "{seen} of 10 calls: {ended:?}");
    let said = watched.says()?;
    collector.spans_when("spans of the worker", LIMIT, all)?;
    for (what, text) in [("its own pages and log", said.as_str()), ("spans", &collector.bodies())] {
        ensure!(!text.contains(secret), "a secret of a worker got out by {what}");
    }
    traces_keep_the_secret(&watched, secret)?;
    ensure!(!said.contains("\nforged") && !said.contains("\u{1b}[31m\"}"), "the environment forged a line");
    let metrics = watched.agent.metrics()?;
    let kinds = metrics.by("model_generation_started_total", "flow_type");
    ensure!(kinds.keys().all(|kind| ["unknown", "invalid"].contains(&kind.as_str())), "{kinds:?}");
    watched.is_well()?;
    harmless(
        "An environment of garbage, with secrets",
        "1 MiB of bytes that are no text, an invalid id of each kind, lines that forge metrics and terminal codes, a canary",
        "the kind of job is `unknown` or `invalid`; the canary is in no log, page, metric, span or trace",
    )
}

#[test]
fn kinds_of_job_without_end_become_a_bounded_number_of_series() -> Result<()> {
    let _node = require_root()?;
    let watched = Watched::start(&[], &[])?;
    let jobs = if full() { 5000 } else { 700 };
    for job in 0..jobs {
        let ended = run(watched.command(&["calls", "1"]).env("FLOW_TYPE", format!("kind{job}")), LIMIT)?;
        ensure!(ended.code == 0, "{ended:?}");
    }
    let all = f64::from(jobs);
    let started = "model_generation_started_total";
    let metrics = watched.agent.metrics_when(Duration::from_secs(20), |m| m.sum(started, &[]) >= all)?;
    let series = metrics.select(started, &[]).len();
    ensure!((300..=502).contains(&series), "{series} series of {started}");
    ensure!(metrics.sum(started, &[]) >= all, "jobs are missing: {}", metrics.sum(started, &[]));
    watched.is_well()?;
    harmless(
        "Labels without end",
        &format!("{jobs} kinds of job"),
        "at most 502 series of a family, every job counted",
    )
}

#[test]
fn a_storm_of_forks_leaves_nothing_behind() -> Result<()> {
    let _node = require_root()?;
    let watched = Watched::start(&[], &[])?;
    let seconds = if full() { "30" } else { "3" };
    let ended = watched.run(&["forks", seconds])?;
    eprintln!("{}, {} MB", ended.stderr.trim(), watched.agent.resident()? >> 20);
    ensure!((ended.code, ended.stdout.as_str()) == (0, "1\n"), "{ended:?}");
    until("no worker is left", Duration::from_secs(60), || {
        let status: serde_json::Value = serde_json::from_str(&watched.agent.get("/status").ok()?.1).ok()?;
        status.get("workers")?.as_array()?.is_empty().then_some(())
    })?;
    watched.is_well()?;
    harmless(
        "A storm of forks",
        &format!("children as fast as the machine makes them, {seconds} s"),
        "no worker stays",
    )
}

/// Runs a mode with nobody watching and with the agent: the same to the worker.
fn same_as_alone(watched: &Watched, alone: &Ended, words: &[&str]) -> Result<()> {
    let ended = watched.run(words)?;
    eprintln!("{words:?}: alone {:?}, watched {:?}", alone.stderr.trim(), ended.stderr.trim());
    ensure!(
        (ended.code, &ended.stdout) == (alone.code, &alone.stdout),
        "{words:?}: {ended:?}, alone {alone:?}"
    );
    // What was counted in the kernel comes a second later.
    let mut before = -1.0;
    until("what it did has arrived", LIMIT, || {
        std::thread::sleep(Duration::from_millis(1500));
        let now = watched.calls().ok()?;
        (std::mem::replace(&mut before, now) == now).then_some(())
    })?;
    watched.is_well()
}

fn alone(words: &[&str]) -> Result<Ended> {
    let ended = run(Command::new(build_program("hostile/hostile.cpp")?).args(words), LIMIT)?;
    ensure!(ended.code == 0, "{words:?} alone: {ended:?}");
    Ok(ended)
}

#[test]
fn a_worker_that_unwinds_switches_stacks_or_throws_without_end_does_as_if_nobody_watched() -> Result<()> {
    let _node = require_root()?;
    let modes: [&[&str]; 4] =
        [&["stack_lies"], &["unwinds_itself"], &["exceptions", if full() { "20" } else { "2" }], &["strict"]];
    let alone: Vec<Ended> = modes.iter().map(|mode| alone(mode)).collect::<Result<_>>()?;
    let watched = Watched::start(&[], &[])?;
    for (mode, alone) in modes.iter().zip(&alone) {
        same_as_alone(&watched, alone, mode)?;
    }
    harmless(
        "A worker that unwinds, lies about its stack, throws without end",
        "a stack pointer that lies, a program that unwinds by itself, exceptions for 2 s or more, strict seccomp",
        "it prints and ends as it does unwatched",
    )
}

#[test]
fn a_worker_under_seccomp_is_seen_whole() -> Result<()> {
    let _node = require_root()?;
    let watched = Watched::start(&[], &[])?;
    let (seen, ended) = watched.seen_of(50.0, || watched.run(&["strict"]))?;
    ensure!((seen, ended.stdout.as_str()) == (50.0, "strict 1275\n"), "{seen} of 50 calls: {ended:?}");
    watched.is_well()?;
    harmless(
        "A worker under seccomp",
        "strict mode, 50 calls",
        "it does as unwatched, and every call is counted",
    )
}

#[test]
fn a_worker_under_a_debugger_does_as_if_nobody_watched() -> Result<()> {
    let _node = require_root()?;
    let watched = Watched::start(&[], &[])?;
    let alone_program = build_program("hostile/hostile.cpp")?;
    let gdb = |program: &Path, script: &[&str]| -> Result<Command> {
        let mut command = Command::new(tool("gdb", "gdb")?);
        command.args(["-q", "-nx", "-batch"]).args(script.iter().flat_map(|line| ["-ex", line]));
        command.arg("--args").arg(program).args(["calls", "40"]);
        Ok(command)
    };
    let stops = ["break hostile_call", "run", "bt 1", "delete", "continue"];
    let steps = ["break *hostile_call", "run", "stepi 30", "delete", "continue"];
    let of = |ended: &Ended, what: &str| ended.stdout.lines().filter(|line| line.contains(what)).count();
    for script in [&["run"][..], &stops, &steps] {
        // The copy is another file: nobody has placed probes in it.
        let alone = run(&mut gdb(&alone_program, script)?, LIMIT)?;
        let ended = run(&mut gdb(&watched.program, script)?, LIMIT)?;
        for ended in [&alone, &ended] {
            ensure!(
                (ended.code, of(ended, "820"), of(ended, "exited")) == (0, 1, 1),
                "{script:?}: {ended:?}"
            );
        }
        ensure!(
            of(&alone, "Breakpoint") == of(&ended, "Breakpoint"),
            "{script:?}: {ended:?}, alone {alone:?}"
        );
    }
    watched.is_well()?;
    harmless(
        "A worker under a debugger",
        "gdb: run, breakpoint at a probed function, 30 single steps from a probe",
        "gdb says the same as unwatched, and the worker does the same",
    )
}

/// The program that reads for the probe sleeps in the worker, as long as the worker likes.
#[test]
fn a_worker_whose_page_never_comes_stops_nobody_else() -> Result<()> {
    let _node = require_root()?;
    let watched = Watched::start(&[], &["--linger", "1"])?;
    let folder = scratch()?;
    let library = folder.path().join("hostile-passing");
    fs::copy(&watched.program, &library)?;
    let mut child = watched.command(&["waits_forever"]).stdout(Stdio::piped()).spawn()?;
    child.stdout.as_mut().context("no stdout")?.read_exact(&mut [0; 6])?;
    let stuck = Running(child);
    watched.is_well()?;
    // Probes that are placed and taken away meanwhile: their file is rewritten, and nobody maps it any more.
    let worker = watched.mapping(&[&library])?;
    watched.agent.learn(&["hostile-passing"], || Ok(()))?;
    fs::OpenOptions::new().append(true).open(&library)?.write_all(b"x")?;
    std::thread::sleep(Duration::from_millis(300));
    drop(worker);
    watched.is_well()?;
    until("its probes are taken away", Duration::from_secs(20), || {
        (!watched.agent.has_probed(&["hostile-passing"]).ok()?).then_some(())
    })?;
    watched.is_well()?;
    drop(stuck);
    watched.is_well()?;
    harmless(
        "A worker whose memory never comes",
        "a page that userfaultfd holds back under a probe that reads it, while probes are placed and taken away",
        "nobody else waits, and the probes go",
    )
}
