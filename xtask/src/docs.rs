//! Turns the registry and the real builds into the pages that are made from them.

use anyhow::Result;

use crate::build::{Profile, build};
use crate::builds;
use crate::shell::{cargo, run};

/// Writes docs/metrics.md and docs/support-matrix.md.
pub(crate) fn write() -> Result<()> {
    let mut reference = cargo()?;
    reference.args(["test", "--package", "cadscope", "--test", "metrics_reference"]);
    run(reference.env("CADSCOPE_WRITE", "1"))?;
    builds::make_for_tests(true)?;
    let binary = build(Profile::Release)?;
    let mut cargo = cargo()?;
    cargo.args(["test", "--package", "cadscope-tests", "--test", "coverage", "support_matrix"]);
    cargo.env("CADSCOPE_BIN", binary).env("CADSCOPE_BUILDS", builds::folder()?).env("CADSCOPE_WRITE", "1");
    run(&mut cargo)
}
