//! Turns the real builds into the pages that are made from them, and the Helm chart into the plain manifests.

use anyhow::Result;

use crate::build::{Profile, build};
use crate::builds;
use crate::shell::{cargo, run};

/// Writes docs/support-matrix.md and deploy/kustomize.
pub(crate) fn write() -> Result<()> {
    builds::make_for_tests(true)?;
    let binary = build(Profile::Release)?;
    for (test, claim) in [("coverage", "support_matrix"), ("chart", "plain_manifests")] {
        let mut cargo = cargo()?;
        cargo.args(["test", "--package", "cadscope-tests", "--test", test, claim]);
        cargo.env("CADSCOPE_BIN", &binary).env("CADSCOPE_BUILDS", builds::folder()?);
        run(cargo.env("CADSCOPE_WRITE", "1"))?;
    }
    Ok(())
}
