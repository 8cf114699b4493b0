//! Promise: workers are found by events: files never seen, short jobs, replaced libraries, and who was there before.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::freecad::{Job, copy};
use cadscope_tests::node::{require_root, scratch};
use cadscope_tests::residue;
use cadscope_tests::run::{self, Running};

const BOOLEANS: &str = "occt_boolean_duration_seconds_count";

/// Scrapes until `expected` booleans are counted, and a little longer, so that one too many shows as well.
fn booleans(agent: &Agent, expected: f64) -> Result<f64> {
    agent.metrics_when(Duration::from_secs(10), |m| m.sum(BOOLEANS, &[]) >= expected)?;
    std::thread::sleep(Duration::from_millis(300));
    Ok(agent.metrics()?.sum(BOOLEANS, &[]))
}

fn short_job(program: &Path, libraries: &Path) -> Result<Job> {
    Ok(Job::with_program("short.py", program)?.with("LD_LIBRARY_PATH", libraries.to_str().context("path")?))
}

/// The job really runs from the copy.
fn check_copy(program: &Path, libraries: &Path) -> Result<()> {
    let path = libraries.to_str().context("path")?;
    let job =
        Job::with_program("endless.py", program)?.with("LD_LIBRARY_PATH", path).with("JOB_SECONDS", "20");
    let mut child = Running(job.prepared().stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
    let mapped = run::until("libTKBO is mapped", Duration::from_secs(15), || {
        let mappings = residue::text_mappings(child.pid()).ok()?;
        mappings.into_iter().map(|m| m.3).find(|p| p.to_string_lossy().contains("libTKBO"))
    });
    job.stop()?;
    run::wait(&mut child.0, Duration::from_secs(60))?;
    let mapped = mapped?;
    ensure!(mapped.starts_with(libraries), "the copy of FreeCAD runs with {}", mapped.display());
    Ok(())
}

#[test]
fn a_worker_from_files_never_seen_is_observed_from_its_first_operation() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start::<&str>(&[])?;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let folder = scratch()?; // each time other inodes
        let (program, libraries) = copy(folder.path())?;
        let before = agent.metrics()?;
        short_job(&program, &libraries)?.run(Duration::from_secs(60))?;
        let start = before.sum(BOOLEANS, &[]);
        let counted = booleans(&agent, start + 3.0)? - start;
        let latency = "cadscope_attach_latency_seconds_count";
        let measured = agent.metrics()?.sum(latency, &[]) - before.sum(latency, &[]);
        seen.push((counted, measured));
        check_copy(&program, &libraries)?;
    }
    ensure!(
        seen.iter().all(|s| s.0 == 3.0),
        "3 booleans a job, (counted, latencies): {seen:?}; agent:\n{}",
        agent.log()
    );
    ensure!(seen.iter().all(|s| s.1 >= 1.0), "attach latency is not measured: {seen:?}");
    Ok(())
}

#[test]
fn fifty_short_jobs_from_a_known_image_are_all_observed() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start::<&str>(&[])?;
    let job = Job::new("short.py")?;
    job.run(Duration::from_secs(30))?;
    std::thread::sleep(Duration::from_secs(2));
    let start = agent.metrics()?.sum(BOOLEANS, &[]);
    let begin = Instant::now();
    for _ in 0..50 {
        job.run(Duration::from_secs(30))?;
    }
    eprintln!("fifty jobs took {:?}", begin.elapsed());
    let counted = booleans(&agent, start + 150.0)? - start;
    ensure!(counted == 150.0, "{counted} of 150 booleans; agent:\n{}", agent.log());
    Ok(())
}

#[test]
fn a_library_replaced_on_disk_is_observed_as_the_new_file() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let (program, libraries) = copy(folder.path())?;
    let agent = Agent::start::<&str>(&[])?;
    let job = short_job(&program, &libraries)?;
    job.run(Duration::from_secs(60))?;
    booleans(&agent, 3.0)?;
    for round in 0..3 {
        // As a package manager does it: a new file takes the name while the old one may still be mapped.
        let library = libraries.join("libTKBO.so.7.6.3");
        let new = libraries.join("new");
        fs::copy(&library, &new)?;
        fs::rename(&new, &library)?;
        let start = agent.metrics()?.sum(BOOLEANS, &[]);
        job.run(Duration::from_secs(60))?;
        let counted = booleans(&agent, start + 3.0)? - start;
        ensure!(counted == 3.0, "replacement {round}: {counted} of 3 booleans; agent:\n{}", agent.log());
    }
    Ok(())
}

#[test]
fn a_worker_that_was_there_before_the_agent_is_observed() -> Result<()> {
    let _node = require_root()?;
    let job = Job::new("endless.py")?.with("JOB_SECONDS", "60");
    let mut child = Running(job.prepared().stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
    std::thread::sleep(Duration::from_secs(2));
    let result = (|| {
        let agent = Agent::start::<&str>(&[])?;
        let start = agent.metrics()?.sum(BOOLEANS, &[]);
        std::thread::sleep(Duration::from_secs(2));
        let counted = agent.metrics()?.sum(BOOLEANS, &[]) - start;
        ensure!(counted >= 10.0, "{counted} booleans of a worker in 2 s; agent:\n{}", agent.log());
        Ok(())
    })();
    job.stop()?;
    run::wait(&mut child.0, Duration::from_secs(60))?;
    result
}

#[test]
fn probes_of_a_file_that_nobody_maps_any_more_are_taken_away() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start(&["--linger", "2"])?;
    let folder = scratch()?;
    let (program, libraries) = copy(folder.path())?;
    short_job(&program, &libraries)?.run(Duration::from_secs(60))?;
    booleans(&agent, 3.0)?;
    let name = libraries.join("libTKBO.so.7.6.3").display().to_string();
    drop(folder);
    // A file may be kept for the next job of the same image, but not once it is gone from the disk for long.
    run::until("the deleted file leaves /status", Duration::from_secs(40), || {
        agent.get("/status").ok().filter(|(_, body)| !body.contains(&name)).map(|_| ())
    })
}
