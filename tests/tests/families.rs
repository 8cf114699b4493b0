//! Promise: on every build of FreeCAD and OCCT, each family of operations is counted exactly as the job did it, with the
//! labels that the job knows to be right; what no script knows, iterations of the assembly solver, as bpftrace counts it.
//!
//! `CADSCOPE_ONLY=freecad-1.1,booleans` runs one job on one build.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::builds::{Build, Expected, wanted};
use cadscope_tests::independent::Count;
use cadscope_tests::metrics::Metrics;
use cadscope_tests::node::{require_root, scratch};

/// Jobs for builds with FreeCAD, and the first version that has what they do.
const FREECAD_JOBS: [(&str, &str); 14] = [
    ("booleans", ""),
    ("features", ""),
    ("healing", ""),
    ("validity", ""),
    ("documents", ""),
    ("sketch", ""),
    ("expressions", ""),
    ("lcs", ""),
    ("exports", ""),
    ("imports", ""),
    ("workbenches", ""),
    ("incompatible", ""),
    ("materials", "1"),
    ("assembly", "1"),
];
/// Jobs for builds with OCCT alone.
const OCCT_JOBS: [(&str, &str); 4] =
    [("ocp_booleans", ""), ("ocp_features", ""), ("ocp_validity", ""), ("ocp_formats", "")];

fn check(agent: &Agent, build: &Build, job: &str) -> Result<Vec<String>> {
    let folder = scratch()?;
    let before = agent.metrics()?;
    build.run(&format!("{job}.py"), folder.path(), Duration::from_secs(300))?;
    let expected = Expected::read(folder.path())?;
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let complaints = expected.complaints(build, &before, &agent.metrics()?);
        if complaints.is_empty() || Instant::now() > deadline {
            return Ok(complaints.into_iter().map(|c| format!("{} {job}: {c}", build.name)).collect());
        }
    }
}

#[test]
fn every_family_is_counted_as_the_job_did_it_on_every_build() -> Result<()> {
    let _node = require_root()?;
    // Nothing is taken away while another job runs for long.
    let agent = Agent::start(&["--linger", "3600"])?;
    let mut complaints = Vec::new();
    for build in wanted() {
        let (warm, jobs): (_, &[(&str, &str)]) =
            if build.has_freecad() { ("warm.py", &FREECAD_JOBS) } else { ("ocp_warm.py", &OCCT_JOBS) };
        let folder = scratch()?;
        if let Err(error) = build.run(warm, folder.path(), Duration::from_secs(300)) {
            complaints.push(format!("{error:#}"));
            continue;
        }
        let names: Vec<&str> = jobs.iter().map(|(job, _)| *job).collect();
        for (job, since) in jobs {
            if build.freecad_version < *since || !cadscope_tests::node::wanted(job, &names) {
                continue;
            }
            let begin = Instant::now();
            let found = check(&agent, &build, job);
            eprintln!(
                "{:14} {job:14} {:.1?} {}",
                build.name,
                begin.elapsed(),
                match &found {
                    Ok(found) if found.is_empty() => "ok".to_owned(),
                    Ok(found) => format!("{} complaints", found.len()),
                    Err(_) => "did not run".to_owned(),
                }
            );
            match found {
                Ok(found) => complaints.extend(found),
                Err(error) => complaints.push(format!("{error:#}")),
            }
        }
    }
    ensure!(complaints.is_empty(), "{}\nagent:\n{}", complaints.join("\n"), agent.log());
    Ok(())
}

/// How often the solver moves its root; and those moves that are not of positions.
const MOVES: [(&str, &str); 3] = [
    ("move", "_ZN3MbD13NewtonRaphson30calcDXNormImproveRootCalcYNormEv"),
    ("other", "_ZN3MbD16AccNewtonRaphson15incrementIterNoEv"),
    ("step", "_ZN3MbD16PosNewtonRaphson15incrementIterNoEv"),
];

#[test]
fn iterations_of_the_assembly_solver_are_as_many_as_bpftrace_counts() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start(&["--linger", "3600"])?;
    for build in wanted().iter().filter(|build| build.freecad_version >= "1") {
        build.run("warm.py", scratch()?.path(), Duration::from_secs(300))?;
        let named = |path: &std::path::PathBuf| path.to_string_lossy().contains("/libOndselSolver.so");
        let library = build.libraries()?.into_iter().find(named).context("no solver")?;
        let of = [
            ("solver", "ondsel"),
            ("freecad_version", build.freecad_version),
            ("occt_version", build.occt_version),
        ];
        let iterations = |metrics: &Metrics| metrics.sum("a4_solver_iterations_total", &of);
        let before = iterations(&agent.metrics()?);
        let independent = Count::start_of(&MOVES.map(|(key, symbol)| (key, library.clone(), symbol)))?;
        build.run("assembly.py", scratch()?.path(), Duration::from_secs(300))?;
        let counts = independent.end()?;
        let count = |key: &str| counts.get(key).copied().unwrap_or(0.0);
        let risen = |metrics: &Metrics| iterations(metrics) - before;
        let metrics =
            agent.metrics_when(Duration::from_secs(20), |metrics| risen(metrics) == count("step"))?;
        eprintln!("{:14} iterations {}, bpftrace {counts:?}", build.name, risen(&metrics));
        ensure!(count("step") > 0.0 && risen(&metrics) == count("step"), "{counts:?}\n{}", agent.log());
        ensure!(count("step") == count("move") - count("other"), "{}: {counts:?}", build.name);
    }
    Ok(())
}
