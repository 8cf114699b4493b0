//! Turns the crate in `ebpf/` into the BPF object that the agent carries: `env!("CADSCOPE_BPF_OBJECT")` is its path.
//!
//! `CADSCOPE_BPF_OBJECT_PREBUILT=FILE` takes an object compiled elsewhere instead. The object is always compiled
//! optimised, and once for all profiles of the workspace: its target directory stands beside theirs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use toolchain::{Toolchain, object_in};

#[path = "build/toolchain.rs"]
mod toolchain;

const PREBUILT: &str = "CADSCOPE_BPF_OBJECT_PREBUILT";
/// `e_machine` of a BPF object.
const EM_BPF: [u8; 2] = [247, 0];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("\ncadscope: {message}\n");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    println!("cargo::rerun-if-env-changed={PREBUILT}");
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let compiled = match env::var_os(PREBUILT).filter(|path| !path.is_empty()) {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", Path::new(&path).display());
            PathBuf::from(path)
        }
        None => compile(&out_dir)?,
    };
    let bytes = fs::read(&compiled).map_err(|error| format!("{}: {error}", compiled.display()))?;
    if !bytes.starts_with(b"\x7fELF") || bytes.get(18..20) != Some(&EM_BPF) {
        return Err(format!("{} is not a BPF object", compiled.display()));
    }
    let object = out_dir.join("cadscope.bpf.o");
    fs::write(&object, bytes).map_err(|error| format!("{}: {error}", object.display()))?;
    println!("cargo::rustc-env=CADSCOPE_BPF_OBJECT={}", object.display());
    Ok(())
}

/// Compiles the kernel side and answers where the object is.
fn compile(out_dir: &Path) -> Result<PathBuf, String> {
    let agent = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = agent.parent().ok_or("the agent's crate has no parent directory")?;
    let source = workspace.join("ebpf");
    for watched in ["Cargo.toml", "Cargo.lock", "ebpf/Cargo.toml", "ebpf/src", "common/src"] {
        let path = workspace.join(watched);
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    if !source.join("Cargo.toml").exists() {
        return Err(format!("{} is not there: the checkout is incomplete", source.display()));
    }
    if variable("CARGO_CFG_TARGET_ENDIAN")? != "little" {
        return Err("only little-endian machines are supported".to_owned());
    }
    let toolchain = Toolchain::find()?;
    let target_dir = beside_profiles(out_dir).join("bpf");
    let mut cargo = toolchain.compile(workspace, &variable("CARGO_CFG_TARGET_ARCH")?, &target_dir);
    let answer = cargo.output().map_err(|error| format!("{cargo:?} did not start: {error}"))?;
    let said = String::from_utf8_lossy(&answer.stderr);
    if !answer.status.success() {
        return Err(format!(
            "the kernel side (ebpf/) does not compile with {} and {}:\n\n{said}",
            toolchain.compiler.name(),
            toolchain.linker.display()
        ));
    }
    for line in said.lines() {
        println!("cargo::warning={line}");
    }
    Ok(object_in(&target_dir))
}

/// `…/target` of `…/target/PROFILE/build/PACKAGE/out`, so that a debug build, clippy and a release build share one
/// compilation of the kernel side; `out` itself should cargo arrange its directories otherwise.
fn beside_profiles(out_dir: &Path) -> &Path {
    match out_dir.ancestors().nth(2) {
        Some(build) if build.ends_with("build") => build.ancestors().nth(2).unwrap_or(out_dir),
        _ => out_dir,
    }
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}; cargo sets it for build scripts"))
}
