//! Turns the command line, the registry, the real builds and the Helm chart into the pages and plain manifests that are made from them.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build::{Profile, build};
use crate::builds;
use crate::places::repository;
use crate::setup::{self, Purpose};
use crate::shell::{cargo, run};
use crate::toolchain::find_program;

/// Writes docs/commands.md, docs/configuration.md, docs/metrics.md, docs/chart-values.md, docs/support-matrix.md, docs/probe-sites.md, pictures and deploy/kustomize.
pub(crate) fn write() -> Result<()> {
    let mut reference = cargo()?;
    reference.args(["test", "--package", "cadscope", "--test", "metrics_reference"]);
    run(reference.env("CADSCOPE_WRITE", "1"))?;
    let mut pages = cargo()?;
    pages.args(["test", "--package", "cadscope", "--lib", "manual::pages"]);
    run(pages.env("CADSCOPE_WRITE", "1"))?;
    builds::make_for_tests(true)?;
    let binary = build(Profile::Release)?;
    for (test, claim) in [
        ("coverage", "support_matrix"),
        ("coverage", "each_site"),
        ("chart", "plain_manifests"),
        ("chart", "page_of_values"),
        ("live_page", "while_it_does_it"),
    ] {
        let mut cargo = cargo()?;
        cargo.args(["test", "--package", "cadscope-tests", "--test", test, claim]);
        cargo.env("CADSCOPE_BIN", &binary).env("CADSCOPE_BUILDS", builds::folder()?);
        run(cargo.env("CADSCOPE_WRITE", "1"))?;
    }
    Ok(())
}

/// Makes a site of docs/ in target/book.
pub(crate) fn book() -> Result<()> {
    setup::install(Purpose::Test)?;
    let mdbook = find_program("mdbook").context("mdBook is not there: `cargo xtask setup`")?;
    let root = repository()?;
    run(Command::new(mdbook).arg("build").arg(root.join("docs")))?;
    println!("{}", root.join("target/book/index.html").display());
    Ok(())
}
