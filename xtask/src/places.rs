//! Where things are: the repository, what cargo builds, what is kept between runs.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::toolchain::find_program;

/// The root of this checkout.
pub(crate) fn repository() -> Result<PathBuf> {
    // `cargo run` says which checkout runs; the value at compile time may be another's when they share a target
    // directory.
    let xtask =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    xtask.parent().map(Path::to_path_buf).context("xtask has no parent directory")
}

/// Cargo's target directory: xtask itself is in its `debug`.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let own = env::current_exe()?;
    own.ancestors().nth(2).map(Path::to_path_buf).context("xtask runs outside a target directory")
}

/// What is kept between runs and shared by checkouts.
pub(crate) fn cache() -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("CADSCOPE_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("cadscope")))
        .or_else(|| Some(env::home_dir()?.join(".cache/cadscope")))
        .context("no place for downloads: set CADSCOPE_CACHE")
}

/// FreeCAD without a window, by the names it has in distributions and in its own builds.
pub(crate) fn freecadcmd() -> Option<PathBuf> {
    ["freecadcmd", "FreeCADCmd", "freecadcmd-python3"].into_iter().find_map(find_program)
}

/// A job script: the one given, or the demonstration.
pub(crate) fn job_script(given: Option<PathBuf>) -> Result<PathBuf> {
    let script = given.unwrap_or(repository()?.join("xtask/demo/job.py"));
    if !script.is_file() {
        bail!("{} is not a file", script.display());
    }
    script.canonicalize().context("job script")
}
