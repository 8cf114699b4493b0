//! Turns the workspace into the binary `cadscope`.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::places::target_dir;
use crate::setup::{self, Purpose};
use crate::shell::{cargo, run};

/// How it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// For debugging.
    Dev,
    /// As shipped.
    Release,
}

impl Profile {
    /// By cargo's flag.
    pub(crate) const fn named(release: bool) -> Self {
        if release { Self::Release } else { Self::Dev }
    }
}

/// Builds the agent and answers where it is. Does not install: it says what to run if something is missing.
pub(crate) fn build(profile: Profile) -> Result<PathBuf> {
    setup::check_quietly(Purpose::Build)?;
    let mut cargo = cargo()?;
    cargo.args(["build", "--package", "cadscope"]);
    let directory = match profile {
        Profile::Dev => "debug",
        Profile::Release => {
            cargo.arg("--release");
            "release"
        }
    };
    run(&mut cargo)?;
    let binary = target_dir()?.join(directory).join("cadscope");
    let bytes = std::fs::metadata(&binary).with_context(|| binary.display().to_string())?.len();
    println!("{} ({}.{} MB)", binary.display(), bytes / 1_000_000, bytes / 100_000 % 10);
    Ok(binary)
}
