//! Turns the workspace into the binary `cadscope`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::places::target_dir;
use crate::setup::{self, Purpose};
use crate::shell::{cargo, run};

/// The machine that the agent is for.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The variable by which cargo is told the compiler's flags for it.
const TARGET_FLAGS: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS";

/// How it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// For debugging.
    Dev,
    /// As shipped: optimised, static.
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
    let binary = match profile {
        Profile::Dev => {
            run(&mut cargo)?;
            target_dir()?.join("debug/cadscope")
        }
        Profile::Release => {
            // The C library is linked in: one file that runs in an empty image and on any distribution. Flags for a
            // named target do not reach build scripts and macros, which must stay as they are.
            cargo.args(["--release", "--target", TARGET]).env(TARGET_FLAGS, "-C target-feature=+crt-static");
            run(&mut cargo)?;
            let binary = target_dir()?.join("release/cadscope");
            fs::create_dir_all(target_dir()?.join("release"))?;
            let _ = fs::remove_file(&binary);
            fs::hard_link(target_dir()?.join(TARGET).join("release/cadscope"), &binary)?;
            binary
        }
    };
    let bytes = fs::metadata(&binary).with_context(|| binary.display().to_string())?.len();
    println!("{} ({}.{} MB)", binary.display(), bytes / 1_000_000, bytes / 100_000 % 10);
    Ok(binary)
}
