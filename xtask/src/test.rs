//! Turns a checkout into a verdict: stages from cheap to expensive, the first that fails ends it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::build::{Profile, build};
use crate::builds;
use crate::image;
use crate::imports;
use crate::package;
use crate::places::repository;
use crate::setup::{self, Purpose, is_root};
use crate::shell::{cargo, headline, minutes, run, run_watched};
use crate::summary::Summary;
use crate::vm::{self, Length};

/// How much is tested, and how strictly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Also what takes long: tests marked `#[ignore]`, and the long form of others (`CADSCOPE_FULL=1`).
    pub(crate) full: bool,
    /// The lock files are as they have to be; one that cargo would have to change is a failure.
    pub(crate) locked: bool,
}

/// Name, duration and test counts of the stages so far.
#[derive(Default)]
struct Stages {
    done: Vec<(&'static str, Duration, Option<Summary>)>,
}

/// Runs all stages.
pub(crate) fn test(rules: Rules) -> Result<()> {
    if !is_root() {
        bail!("tests attach probes and install what is missing: run this as root");
    }
    let mut stages = Stages::default();
    let verdict = all(&mut stages, rules);
    stages.print();
    verdict
}

/// Runs the soak test for so long.
pub(crate) fn soak(length: u32) -> Result<()> {
    setup::install(Purpose::Test)?;
    let binary = build(Profile::Release)?;
    run(cargo()?
        .args(["test", "--package", "cadscope-tests", "--test", "soak", "--", "--nocapture"])
        .env("CADSCOPE_BIN", binary)
        .env("CADSCOPE_BUILDS", builds::folder()?)
        .env("CADSCOPE_SOAK_MINUTES", length.to_string()))
}

fn all(stages: &mut Stages, rules: Rules) -> Result<()> {
    let root = repository()?;
    stages.run("setup", || setup::install(if rules.full { Purpose::Package } else { Purpose::Test }))?;
    stages.run("format", || format(&root))?;
    stages.run("imports", || imports::check(&root.join("agent/src")))?;
    stages.run("licences", || licences(&root))?;
    if rules.locked {
        stages.run("lock files", || locked(&root))?;
    }
    stages.run("lints", || {
        run(cargo()?.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    })?;
    stages.run("other builds", || builds::make_for_tests(rules.full))?;
    stages.count("unit tests", |summary| {
        let mut cargo = cargo()?;
        cargo.env("CADSCOPE_ARM64_BUILDS", builds::folder()?);
        cargo.args(["test", "--workspace", "--exclude", "cadscope-tests", "--"]);
        run_watched(cargo.args(rules.full.then_some("--include-ignored")), |line| summary.add(line))
    })?;
    let mut binary = None;
    stages.run("release build", || {
        binary = Some(build(Profile::Release)?);
        Ok(())
    })?;
    stages.run("other kernels", || {
        let length = if rules.full { Length::Long } else { Length::Short };
        vm::test(length, binary.as_deref().context("not built")?)
    })?;
    let binary = binary.as_deref().context("not built")?;
    stages.count("root tests", |summary| root_tests(summary, binary, rules.full))
}

/// All of them, also after one has failed.
fn root_tests(summary: &mut Summary, binary: &Path, full: bool) -> Result<()> {
    let mut cargo = cargo()?;
    cargo.args(["test", "--package", "cadscope-tests", "--no-fail-fast", "--", "--test-threads=1"]);
    cargo.args(full.then_some("--include-ignored"));
    cargo.env("CADSCOPE_BIN", binary).env("CADSCOPE_BUILDS", builds::folder()?);
    if full {
        cargo.env("CADSCOPE_FULL", "1").env("CADSCOPE_DEB", package::package()?);
        cargo.env("CADSCOPE_IMAGE", image::image(image::Machine::Amd64)?);
    }
    run_watched(&mut cargo, |line| summary.add(line))
}

/// The workspace, and what is no member of it because it is compiled by another compiler.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "tests/fuzz/Cargo.toml"];

fn format(root: &Path) -> Result<()> {
    for manifest in MANIFESTS {
        run(cargo()?.args(["fmt", "--all", "--check", "--manifest-path"]).arg(root.join(manifest)))?;
    }
    Ok(())
}

fn locked(root: &Path) -> Result<()> {
    for manifest in MANIFESTS {
        run(cargo()?.args(["fetch", "--locked", "--manifest-path"]).arg(root.join(manifest)))?;
    }
    Ok(())
}

/// Not advisories: their database is fetched from the network, and a test must not fail for what happened there.
fn licences(root: &Path) -> Result<()> {
    for manifest in MANIFESTS {
        run(cargo()?
            .args(["deny", "--log-level", "error", "--config", "deny.toml", "--manifest-path"])
            .arg(root.join(manifest))
            .args(["check", "bans", "licenses", "sources"]))?;
    }
    Ok(())
}

impl Stages {
    fn run(&mut self, name: &'static str, stage: impl FnOnce() -> Result<()>) -> Result<()> {
        self.timed(name, stage).map(drop)
    }

    fn count(&mut self, name: &'static str, stage: impl FnOnce(&mut Summary) -> Result<()>) -> Result<()> {
        let mut summary = Summary::default();
        let verdict = self.timed(name, || stage(&mut summary));
        if let Some(last) = self.done.last_mut() {
            last.2 = Some(summary);
        }
        verdict
    }

    fn timed(&mut self, name: &'static str, stage: impl FnOnce() -> Result<()>) -> Result<()> {
        headline(name);
        let begin = Instant::now();
        let verdict = stage();
        self.done.push((name, begin.elapsed(), None));
        verdict.with_context(|| format!("stage `{name}`"))
    }

    fn print(&self) {
        headline("stages");
        for (name, time, counts) in &self.done {
            let counts = counts.as_ref().map_or_else(String::new, Summary::to_string);
            println!("{name:14} {:>12}  {counts}", minutes(*time));
        }
    }
}
