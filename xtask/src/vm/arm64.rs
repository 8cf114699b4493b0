//! Turns this checkout into what a guest for arm64 tries: the agent, the tests and their workers, compiled for it here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::builds;
use crate::places::{repository, target_dir};
use crate::setup;
use crate::shell::{cargo, run};
use crate::vm::guest::HOST;
use crate::vm::{Subject, executables};

/// Tests that need neither FreeCAD nor a compiler there.
pub(super) const TESTS: [&str; 3] = ["kernels", "torture", "sleep"];
/// `CADSCOPE_ONLY` where the long form on x86-64 has one variant of the worker.
pub(super) const VARIANTS_TRIED: &str = "o2,o2-guarded";

const TARGET: &str = "aarch64-unknown-linux-gnu";
/// Nothing of the guest is linked to, but by the workers.
const VARIABLES: [(&str, &str); 3] = [
    ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc"),
    ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static"),
    ("CC_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-gcc"),
];

/// Compiles all of it.
pub(super) fn subject() -> Result<Subject> {
    setup::install_for_arm64()?;
    builds::make(&["qemu-arm64".to_owned(), "linux-arm64".to_owned()])?;
    run(compile()?.args(["build", "--release", "--package", "cadscope", "--target", TARGET]))?;
    let mut tests = compile()?;
    tests.args(["test", "--package", "cadscope-tests", "--no-run", "--message-format=json"]);
    tests.args(["--target", TARGET]);
    for test in TESTS {
        tests.args(["--test", test]);
    }
    let tests = executables(&mut tests)?.into_iter().map(|(name, path)| (name, there(&path)));
    let binary = there(&target_dir()?.join(TARGET).join("release/cadscope"));
    Ok(Subject { binary, tests: tests.collect(), workers: Some(there(&workers()?)) })
}

fn compile() -> Result<Command> {
    let mut cargo = cargo()?;
    cargo.envs(VARIABLES);
    Ok(cargo)
}

/// How the guest finds a file of this machine.
fn there(path: &Path) -> PathBuf {
    Path::new(HOST).join(path.strip_prefix("/").unwrap_or(path))
}

/// Compiles the workers as `tests/src/worker.rs` does on a machine with a compiler.
fn workers() -> Result<PathBuf> {
    let sources = repository()?.join("tests");
    let folder = target_dir()?.join("vm/workers-arm64");
    let compiler = |folder: &str| {
        let mut compiler = Command::new("aarch64-linux-gnu-g++");
        compiler.args(["-std=c++20", "-Wall", "-Wextra", "-Wno-volatile", "-Werror", "-fwrapv"]);
        compiler.current_dir(sources.join(folder));
        compiler
    };
    for (variant, flags) in VARIANTS {
        let folder = folder.join(variant);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let mut program = compiler("torture");
        program.args(flags).args(["-fPIE", "-pie", "-rdynamic", "-pthread", "torture.cpp", "functions.cpp"]);
        run(program.args(["-ldl", "-o"]).arg(folder.join("torture")))?;
        let mut plugin = compiler("torture");
        plugin.args(flags).args(["-fPIC", "-shared", "plugin.cpp", "-o"]);
        run(plugin.arg(folder.join("libtorture_plugin.so")))?;
    }
    let mut sleep = Command::new("aarch64-linux-gnu-g++");
    sleep.current_dir(sources.join("sleep")).args(["-O1", "-rdynamic", "-pthread", "sleep.cpp", "-o"]);
    run(sleep.arg(folder.join("sleep")))?;
    Ok(folder)
}

/// The second with signed return addresses, landing pads and stack protector, as distributions compile.
const VARIANTS: [(&str, &[&str]); 2] =
    [("o2", &["-O2"]), ("o2-guarded", &["-O2", "-fstack-protector-strong", "-mbranch-protection=standard"])];
