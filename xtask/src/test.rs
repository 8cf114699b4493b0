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
    done: Vec<(&'static str, Duration, Option<Counts>)>,
}

/// What the lines `test result: …` of one stage add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u32,
    failed: u32,
    ignored: u32,
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
    stages.count("unit tests", |counts| {
        let mut cargo = cargo()?;
        cargo.args(["test", "--workspace", "--exclude", "cadscope-tests", "--"]);
        run_watched(cargo.args(rules.full.then_some("--include-ignored")), |line| counts.add(line))
    })?;
    let mut binary = None;
    stages.run("release build", || {
        binary = Some(build(Profile::Release)?);
        Ok(())
    })?;
    stages.run("other builds", || builds::make_for_tests(rules.full))?;
    stages.run("other kernels", || {
        let length = if rules.full { Length::Long } else { Length::Short };
        vm::test(length, binary.as_deref().context("not built")?)
    })?;
    stages.count("root tests", |counts| {
        let mut cargo = cargo()?;
        cargo.args(["test", "--package", "cadscope-tests", "--", "--test-threads=1"]);
        cargo.args(rules.full.then_some("--include-ignored"));
        cargo
            .env("CADSCOPE_BIN", binary.as_deref().context("not built")?)
            .env("CADSCOPE_BUILDS", builds::folder()?);
        if rules.full {
            cargo.env("CADSCOPE_FULL", "1").env("CADSCOPE_DEB", package::package()?);
            cargo.env("CADSCOPE_IMAGE", image::image(image::Machine::Amd64)?);
        }
        run_watched(&mut cargo, |line| counts.add(line))
    })
}

fn format(root: &Path) -> Result<()> {
    run(cargo()?.args(["fmt", "--all", "--check"]))?;
    // Not a member of the workspace: it is compiled for another machine, the kernel.
    run(cargo()?.args(["fmt", "--check", "--manifest-path"]).arg(root.join("ebpf/Cargo.toml")))
}

fn locked(root: &Path) -> Result<()> {
    for manifest in ["Cargo.toml", "ebpf/Cargo.toml"] {
        run(cargo()?.args(["fetch", "--locked", "--manifest-path"]).arg(root.join(manifest)))?;
    }
    Ok(())
}

/// Not advisories: their database is fetched from the network, and a test must not fail for what happened there.
fn licences(root: &Path) -> Result<()> {
    for manifest in ["Cargo.toml", "ebpf/Cargo.toml"] {
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

    fn count(&mut self, name: &'static str, stage: impl FnOnce(&mut Counts) -> Result<()>) -> Result<()> {
        let mut counts = Counts::default();
        let verdict = self.timed(name, || stage(&mut counts));
        if let Some(last) = self.done.last_mut() {
            last.2 = Some(counts);
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
            let counts = counts.map_or_else(String::new, |counts| {
                format!("{} passed, {} failed, {} ignored", counts.passed, counts.failed, counts.ignored)
            });
            println!("{name:14} {:>12}  {counts}", minutes(*time));
        }
    }
}

impl Counts {
    /// Adds a line `test result: ok. 3 passed; 0 failed; 1 ignored; …`; any other line adds nothing.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        for part in result.split("; ") {
            let mut words = part.rsplit(' ');
            let (Some(what), Some(number)) = (words.next(), words.next()) else {
                continue;
            };
            let Ok(number) = number.parse::<u32>() else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_all_binaries_are_added() {
        let mut counts = Counts::default();
        counts.add(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
        );
        counts.add("test something ... ok");
        counts.add("test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!(counts, Counts { passed: 7, failed: 2, ignored: 1 });
    }
}
