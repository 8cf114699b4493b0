//! Promise: the dashboards are what Grafana takes, and every panel shows data of a real cadscope that observes real FreeCAD
//! jobs, and zero on a node where nothing happens.

#![allow(clippy::indexing_slicing, reason = "JSON that is not as it should be is a failed test")]

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::builds::{self, BUILDS, Build};
use cadscope_tests::dashboard::{self, Query};
use cadscope_tests::node::{cache, full, require_root, scratch};
use cadscope_tests::prometheus::{Prometheus, Series};
use cadscope_tests::run;

/// What the reader of the version comparison chooses.
const CHOICE: [(&str, &str); 2] = [("base", "7.6.3"), ("candidate", "7.9.2")];

/// Jobs, and the build that they run on.
const JOBS: [(&str, &[&str]); 2] = [
    ("freecad-0.20", &["booleans", "features", "documents", "sketch", "lcs", "exports", "workbenches"]),
    ("freecad-1.1", &["booleans", "features", "materials", "assembly", "documents"]),
];

const LIMIT: Duration = Duration::from_secs(300);

/// What these jobs do not do: have functions that cannot be placed, lose anything, run out of memory, talk to AI providers or a collector.
const QUIET: [&str; 15] = [
    "Probes skipped",
    "4. AI provider performance",
    "AI provider requests",
    "13. Export validation",
    "Out-of-memory kills",
    "Events lost",
    "Workers missed",
    "Records dropped",
    "Label sets over the limit",
    "Spans exported",
    "Spans dropped",
    "Failed requests",
    "Flows that failed",
    "Operations that failed",
    "15. Workbench usage",
];

/// What Grafana's types say of these files; an error if anything.
fn check(files: &[PathBuf]) -> Result<()> {
    let folder = builds::folder()?.join("grafana-schema");
    ensure!(folder.is_dir(), "{} is not there: run `cargo xtask builds grafana-schema`", folder.display());
    // It writes beside its modules; the builds are shared.
    let work = scratch()?;
    std::os::unix::fs::symlink(folder.join("node_modules"), work.path().join("node_modules"))?;
    for file in files {
        let mut check = Command::new("node");
        check.arg(folder.join("check.mjs")).arg(work.path()).arg(file);
        let ended = run::run(&mut check, Duration::from_secs(300))?;
        ensure!(ended.code == 0, "{}", ended.stderr);
    }
    Ok(())
}

#[test]
fn dashboards_have_the_types_that_grafana_publishes() -> Result<()> {
    let files: Vec<_> = dashboard::all()?.into_iter().map(|(path, _)| path).collect();
    check(&files)
}

#[test]
fn a_misspelt_option_of_a_panel_is_found() -> Result<()> {
    let (path, _) = dashboard::all()?.into_iter().next().context("no dashboard")?;
    let folder = scratch()?;
    let wrong = folder.path().join("wrong.json");
    std::fs::write(&wrong, std::fs::read_to_string(path)?.replacen("\"graphMode\"", "\"graphMood\"", 1))?;
    let found = check(&[wrong]).err().context("nothing was found")?.to_string();
    ensure!(found.contains("graphMood") && found.contains("panel 2"), "{found}");
    Ok(())
}

fn build(name: &str) -> Result<&'static Build> {
    BUILDS.iter().find(|build| build.name == name).context("no such build")
}

fn run_jobs() -> Result<()> {
    for (name, jobs) in JOBS {
        for job in jobs {
            let folder = scratch()?;
            build(name)?.run(&format!("{job}.py"), folder.path(), LIMIT)?;
        }
    }
    Ok(())
}

/// What no query of any dashboard answers.
fn complaints(
    prometheus: &Prometheus,
    seconds: u64,
    is_good: impl Fn(&Query, &[Series]) -> bool,
) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for (path, dashboard) in dashboard::all()? {
        for query in dashboard::queries(&dashboard) {
            let found = dashboard::answer(prometheus, &query, seconds, &CHOICE)?;
            if !is_good(&query, &found) {
                let name = path.file_name().unwrap_or_default().display();
                complaints.push(format!(
                    "{name}, {}: {} series: {}",
                    query.panel,
                    found.len(),
                    query.expression
                ));
            }
        }
    }
    Ok(complaints)
}

/// The first query of a panel is its zero.
fn is_first(query: &Query) -> bool {
    query.expression.contains("vector(0)")
}

/// A Prometheus that has scraped this agent, for which every query of every panel is zero at least.
fn scraped(agent: &Agent) -> Result<Prometheus> {
    let prometheus = Prometheus::start(&[agent.port()], None, None)?;
    run::until("the agent is scraped", Duration::from_secs(60), || {
        prometheus.instant("cadscope_build_info").ok().filter(|found| !found.is_empty())
    })?;
    let empty = complaints(&prometheus, 5, |query, found| !is_first(query) || !found.is_empty())?;
    ensure!(empty.is_empty(), "without a job these panels are empty, not zero:\n{}", empty.join("\n"));
    Ok(prometheus)
}

/// An error that names what has no data, with what both sides of the scrape say.
fn all_have_data(missing: &[String], agent: &Agent, prometheus: &Prometheus) -> Result<()> {
    ensure!(
        missing.is_empty(),
        "no data in:\n{}\nagent:\n{}\nPrometheus:\n{}",
        missing.join("\n"),
        agent.log(),
        prometheus.log()
    );
    Ok(())
}

/// The short form of the test below.
#[test]
fn every_query_is_answered_and_the_main_panels_show_data_of_real_jobs() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start::<&str>(&[])?;
    let prometheus = scraped(&agent)?;
    let begin = Instant::now();
    // The version of the one FreeCAD stands on both sides of the comparison.
    let versions = [("base", CHOICE[0].1), ("candidate", CHOICE[0].1)];
    let mut missing = Vec::new();
    // A rate needs a job that comes again.
    for job in ["booleans", "documents", "exports"].iter().cycle() {
        let folder = scratch()?;
        build("freecad-0.20")?.run(&format!("{job}.py"), folder.path(), LIMIT)?;
        missing = dashboard::missing(&prometheus, begin.elapsed().as_secs() + 5, &versions)?;
        if missing.is_empty() || begin.elapsed() > LIMIT {
            break;
        }
    }
    all_have_data(&missing, &agent, &prometheus)
}

#[test]
#[ignore = "minutes long"]
fn every_panel_shows_data_of_real_jobs_and_zero_before() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start::<&str>(&[])?;
    let prometheus = scraped(&agent)?;
    let begin = Instant::now();
    // A counter begins with its first event: only what happens again has a rate.
    run_jobs()?;
    run_jobs()?;
    let has_data =
        |query: &Query, found: &[Series]| QUIET.contains(&query.panel.as_str()) || dashboard::has_data(found);
    // The last operations are scraped within a second or two.
    let missing = run::until("every panel has data", Duration::from_secs(20), || {
        let found = complaints(&prometheus, begin.elapsed().as_secs() + 5, has_data);
        found.as_ref().map_or(true, Vec::is_empty).then_some(found)
    })
    .unwrap_or_else(|_| complaints(&prometheus, begin.elapsed().as_secs() + 5, has_data))?;
    if full() {
        draw(&prometheus, begin.elapsed().as_secs() + 5)?;
    }
    all_have_data(&missing, &agent, &prometheus)
}

/// Pictures of the dashboards with Grafana's own components, in target/tmp/dashboards.
fn draw(prometheus: &Prometheus, seconds: u64) -> Result<()> {
    let page = builds::folder()?.join("grafana-ui");
    ensure!(page.is_dir(), "{} is not there: run `cargo xtask builds grafana-ui`", page.display());
    let pictures = cache()?.join("dashboards");
    std::fs::create_dir_all(&pictures)?;
    for (path, dashboard) in dashboard::all()? {
        let name = path.file_stem().unwrap_or_default().display().to_string();
        let file = pictures.join(format!("{name}.json"));
        std::fs::write(&file, serde_json::to_vec(&dashboard::chosen(&dashboard, &CHOICE))?)?;
        let mut shot = Command::new("node");
        shot.arg("shot.cjs").arg(&file).arg(pictures.join(format!("{name}.png")));
        shot.arg(prometheus.url()).arg(seconds.to_string()).current_dir(&page);
        let ended = run::run(&mut shot, Duration::from_secs(300))?;
        ensure!(ended.code == 0, "{name}:\n{}\n{}", ended.stdout, ended.stderr);
    }
    Ok(())
}
