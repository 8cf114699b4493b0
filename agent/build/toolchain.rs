//! Turns what is installed into the toolchain that compiles the kernel side, or into one message that says what is
//! missing and how to get it.
//!
//! Shared by `agent/build.rs`, which compiles with it, and by `xtask`, which installs it. Two compilers will do,
//! because both can build `core` for a target that has none: a rustup nightly with `rust-src`, and Debian's
//! `rustc-web` with `rust-web-src`. Neither is ever chosen half-installed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

/// Where Debian's compiler is, whatever PATH puts before it.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// Variables of the surrounding cargo that would send the inner one to the wrong compiler, flags or directory.
const INHERITED: [&str; 14] = [
    "CARGO",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_MAKEFLAGS",
    "CARGO_TARGET_DIR",
    "CLIPPY_ARGS",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// A compiler that can build `core` from source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// `rustup run nightly`, with the component `rust-src`.
    Nightly,
    /// Debian's packages, allowed to use unstable options.
    Debian,
}

impl Compiler {
    /// The compiler that is complete, nightly first; otherwise what each of the two lacks, one line each.
    pub(crate) fn find() -> Result<Self, [String; 2]> {
        let nightly = match Self::Nightly.sysroot() {
            None => "nightly: not installed with rustup".to_owned(),
            Some(root) if has_library_source(&root) => return Ok(Self::Nightly),
            Some(_) => "nightly: installed, but without the component rust-src".to_owned(),
        };
        let debian = match Self::Debian.sysroot() {
            None => format!("Debian: no {DEBIAN_RUSTC}"),
            Some(root) if !has_library_source(&root) => "Debian: rustc without library source".to_owned(),
            Some(_) if !Path::new(DEBIAN_CARGO).exists() => format!("Debian: no {DEBIAN_CARGO}"),
            Some(_) => return Ok(Self::Debian),
        };
        Err([nightly, debian])
    }

    /// As people call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nightly => "rustup nightly with rust-src",
            Self::Debian => "Debian's rustc with library source",
        }
    }

    /// Where it is installed; none if it is not.
    fn sysroot(self) -> Option<PathBuf> {
        let mut rustc = match self {
            Self::Nightly => {
                let mut rustup = Command::new("rustup");
                rustup.args(["run", "nightly", "rustc"]);
                rustup
            }
            Self::Debian => Command::new(DEBIAN_RUSTC),
        };
        forget_inherited(&mut rustc);
        let answer = rustc.args(["--print", "sysroot"]).stdin(Stdio::null()).output().ok()?;
        let path = String::from_utf8(answer.stdout).ok()?;
        (answer.status.success() && !path.trim().is_empty()).then(|| PathBuf::from(path.trim()))
    }

    /// Its cargo, with nothing inherited from the cargo around us.
    fn cargo(self) -> Command {
        let mut cargo = match self {
            Self::Nightly => {
                let mut rustup = Command::new("rustup");
                rustup.args(["run", "nightly", "cargo"]);
                rustup
            }
            Self::Debian => {
                let mut cargo = Command::new(DEBIAN_CARGO);
                cargo.env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        };
        forget_inherited(&mut cargo);
        if self == Self::Debian {
            cargo.env("RUSTC", DEBIAN_RUSTC);
        }
        cargo
    }
}

/// The compiler and the linker together.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    /// What compiles.
    pub(crate) compiler: Compiler,
    /// Path of `bpf-linker`.
    pub(crate) linker: PathBuf,
}

impl Toolchain {
    /// What is installed, or the message that tells the reader what to do.
    pub(crate) fn find() -> Result<Self, String> {
        match (Compiler::find(), find_linker()) {
            (Ok(compiler), Some(linker)) => Ok(Self { compiler, linker }),
            (compiler, linker) => Err(explain(compiler.err(), linker.is_none())),
        }
    }

    /// The command that compiles the crate in `workspace/ebpf` for `arch` and puts everything into `target_dir`.
    ///
    /// The same sources give the same object to the byte with one compiler, whatever the folders are called: what
    /// debug information would name by its place on this machine, it names by [`names_of_folders`].
    pub(crate) fn compile(&self, workspace: &Path, arch: &str, target_dir: &Path) -> Command {
        let mut flags = OsString::from(format!("--cfg=bpf_target_arch=\"{arch}\""));
        for flag in ["-Cdebuginfo=2", "-Clink-arg=--btf"] {
            flags.push(BETWEEN_FLAGS);
            flags.push(flag);
        }
        for (folder, name) in names_of_folders(workspace, self.compiler) {
            flags.push(BETWEEN_FLAGS);
            flags.push("--remap-path-prefix=");
            flags.push(folder);
            flags.push("=");
            flags.push(name);
        }
        let mut cargo = self.compiler.cargo();
        cargo
            .current_dir(workspace)
            .args(["build", "--quiet", "--package", CRATE, "--features", "kernel", "--profile", PROFILE])
            .args(["--target", TARGET, "-Z", "build-std=core"])
            .arg("--target-dir")
            .arg(target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", flags)
            // As a flag the linker's path would go into the names of everything compiled.
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker)
            .stdin(Stdio::null());
        cargo
    }
}

/// What stands between two flags in `CARGO_ENCODED_RUSTFLAGS`.
const BETWEEN_FLAGS: &str = "\u{1f}";

/// The folders that sources come from on this machine, each with the name that debug information gives it.
fn names_of_folders(workspace: &Path, compiler: Compiler) -> Vec<(PathBuf, &'static str)> {
    // Where cargo's own current directory is, whatever links led here.
    let workspace = workspace.canonicalize().unwrap_or_else(|_| workspace.to_owned());
    let mut folders = vec![(workspace, "/cadscope")];
    let registries = cargo_home().and_then(|home| fs::read_dir(home.join("registry/src")).ok());
    folders
        .extend(registries.into_iter().flatten().filter_map(|entry| Some((entry.ok()?.path(), "/registry"))));
    folders.extend(compiler.sysroot().map(|sysroot| (sysroot.join("lib/rustlib/src/rust"), "/rust")));
    folders
}

/// Where the compiled object is in `target_dir`.
pub(crate) fn object_in(target_dir: &Path) -> PathBuf {
    target_dir.join(TARGET).join(PROFILE).join(CRATE)
}

/// Name of the package in `ebpf/`, and of its binary.
const CRATE: &str = "cadscope-ebpf";
/// Its profile in the workspace's manifest.
const PROFILE: &str = "bpf";
/// What the kernel side is compiled for.
const TARGET: &str = "bpfel-unknown-none";

/// `bpf-linker` in PATH, or where `cargo install` puts it.
pub(crate) fn find_linker() -> Option<PathBuf> {
    find_program("bpf-linker")
}

/// A program in PATH, or where `cargo install` puts it.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo_home().map(|home| home.join("bin")))
        .map(|directory| directory.join(name))
        .find(|candidate| fs::metadata(candidate).is_ok_and(|found| found.is_file()))
}

/// Where cargo keeps programs and the sources of dependencies.
pub(crate) fn cargo_home() -> Option<PathBuf> {
    let set = env::var_os("CARGO_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    set.or_else(|| Some(env::home_dir()?.join(".cargo")))
}

/// Removes what the cargo around us has set for its own compilation.
pub(crate) fn forget_inherited(command: &mut Command) {
    for name in INHERITED {
        command.env_remove(name);
    }
    // Profiles are the workspace's: the kernel side compiled otherwise is refused by the verifier.
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_PROFILE_")) {
        command.env_remove(name);
    }
    // A toolchain that is not there is an answer, not an order to download it.
    command.env("RUSTUP_AUTO_INSTALL", "0");
}

/// `-Z build-std` reads the lock file of the standard library; `rust-src` has it, a bare sysroot does not.
fn has_library_source(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/Cargo.lock").exists()
}

fn explain(compilers: Option<[String; 2]>, linker_missing: bool) -> String {
    let mut lines = vec![
        "the eBPF toolchain, which compiles the kernel side of cadscope, is incomplete.".to_owned(),
        String::new(),
        "    run: cargo xtask setup".to_owned(),
        String::new(),
    ];
    if let Some(reasons) = compilers {
        lines
            .push("missing: a compiler that can build `core` from source; one of these is enough".to_owned());
        lines.extend(reasons.map(|reason| format!("  - {reason}")));
        lines.push("by hand: rustup toolchain install nightly --component rust-src".to_owned());
        lines.push("  or, on Debian 12: apt-get install rustc-web cargo-web rust-web-src".to_owned());
    }
    if linker_missing {
        lines.push("missing: bpf-linker, neither in PATH nor where `cargo install` puts programs".to_owned());
        lines.push("by hand: apt-get install llvm-22-dev libpolly-22-dev zlib1g-dev libzstd-dev".to_owned());
        lines.push(
            "         LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --no-default-features --features llvm-22"
                .to_owned(),
        );
    }
    lines.push(
        "or point CADSCOPE_BPF_OBJECT_PREBUILT to a BPF object that was compiled elsewhere.".to_owned(),
    );
    lines.join("\n")
}
