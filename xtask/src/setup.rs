//! Turns a machine with Rust into one that builds, shows and tests cadscope: looks, then installs what is missing.
//!
//! The list of tools is data, [`TOOLS`]; to need one more is one more entry. Nothing that is there is touched.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::places::{cache, freecadcmd};
use crate::shell::{first_line, headline, minutes, run};
use crate::toolchain::{Compiler, find_linker, find_program, forget_inherited};

/// What the machine is going to be used for; each includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Purpose {
    /// Compile the agent and its kernel side
    Build,
    /// Run it on a FreeCAD job
    Demo,
    /// Everything that `cargo xtask test` needs
    Test,
    /// Also containers and a Kubernetes node, which the long tests run jobs in
    Node,
    /// Also make the image and the Debian package, and run them
    Package,
    /// Also give inputs that coverage guides to what parses (needs rustup's nightly)
    Fuzz,
}

/// Something that has to be installed.
struct Tool {
    name: &'static str,
    why: &'static str,
    purpose: Purpose,
    is_there: fn() -> bool,
    source: Source,
}

/// Where it comes from.
enum Source {
    /// Debian packages.
    Debian(&'static [&'static str]),
    /// A program from the Rust package registry; variables and options for its compilation.
    Crate { name: &'static str, version: &'static str, variables: Pairs, options: &'static [&'static str] },
    /// A component of the active rustup toolchain.
    Component(&'static str),
    /// The standard library for another machine, of the same toolchain.
    Target(&'static str),
}

type Pairs = &'static [(&'static str, &'static str)];

/// LLVM of the Debian compiler; bpf-linker must not have an older one than the compiler.
pub(crate) const LLVM: &str = "/usr/lib/llvm-22";

const TOOLS: &[Tool] = &[
    Tool {
        name: "C++ compiler",
        why: "links Rust programs, and compiles the worker with known exceptions that the tests observe",
        purpose: Purpose::Build,
        is_there: || has("g++") && has("cc"),
        source: Source::Debian(&["g++"]),
    },
    Tool {
        name: "eBPF compiler",
        why: "compiles the kernel side; needs the source of Rust's core library, which rustup's nightly has with \
              rust-src and Debian as a package",
        purpose: Purpose::Build,
        is_there: || Compiler::find().is_ok(),
        source: Source::Debian(&["rustc-web", "cargo-web", "rust-web-src"]),
    },
    Tool {
        name: "LLVM 22",
        why: "bpf-linker is linked with it",
        purpose: Purpose::Build,
        is_there: || linker_runs() || llvm_is_complete(),
        source: Source::Debian(&["llvm-22-dev", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev"]),
    },
    Tool {
        name: "bpf-linker",
        why: "makes one BPF object with its type information out of what the compiler emits",
        purpose: Purpose::Build,
        is_there: linker_runs,
        source: Source::Crate {
            name: "bpf-linker",
            version: "0.13.0",
            variables: &[("LLVM_PREFIX", LLVM)],
            options: &["--no-default-features", "--features", "llvm-22"],
        },
    },
    Tool {
        name: "FreeCAD",
        why: "is what cadscope observes",
        purpose: Purpose::Demo,
        is_there: || freecadcmd().is_some(),
        source: Source::Debian(&["freecad-python3"]),
    },
    Tool {
        name: "binutils",
        why: "the tests compare the agent's reading of ELF files with readelf's and objdump's",
        purpose: Purpose::Test,
        is_there: || has("readelf") && has("objdump"),
        source: Source::Debian(&["binutils"]),
    },
    Tool {
        name: "gdb",
        why: "a second opinion on frames and return values",
        purpose: Purpose::Test,
        is_there: || has("gdb"),
        source: Source::Debian(&["gdb"]),
    },
    Tool {
        name: "valgrind",
        why: "counts calls independently of any probe",
        purpose: Purpose::Test,
        is_there: || has("valgrind"),
        source: Source::Debian(&["valgrind"]),
    },
    Tool {
        name: "bpftrace",
        why: "a second opinion on what a uprobe sees",
        purpose: Purpose::Test,
        is_there: || has("bpftrace"),
        source: Source::Debian(&["bpftrace"]),
    },
    Tool {
        name: "bpftool",
        why: "shows what is loaded and attached, so that a test can see that nothing is left behind",
        purpose: Purpose::Test,
        is_there: || has("bpftool") || Path::new("/usr/sbin/bpftool").exists(),
        source: Source::Debian(&["bpftool"]),
    },
    Tool {
        name: "curl",
        why: "asks the agent's HTTP server as a user would",
        purpose: Purpose::Test,
        is_there: || has("curl"),
        source: Source::Debian(&["curl"]),
    },
    Tool {
        name: "openssl",
        why: "makes the certificates of the servers that stand for an AI provider and the Kubernetes API",
        purpose: Purpose::Test,
        is_there: || has("openssl"),
        source: Source::Debian(&["openssl"]),
    },
    Tool {
        name: "Redis",
        why: "is the broker of the Celery worker in the test of one trace through a whole service, and gets the progress",
        purpose: Purpose::Test,
        is_there: || has("redis-server") && has("redis-cli"),
        source: Source::Debian(&["redis-server"]),
    },
    Tool {
        name: "Chromium",
        why: "opens the pages that cadscope writes, as a user's browser would",
        purpose: Purpose::Test,
        is_there: || has("chromium"),
        source: Source::Debian(&["chromium", "fonts-dejavu-core"]),
    },
    Tool {
        name: "tmux",
        why: "is the terminal in which `cadscope top` is tested",
        purpose: Purpose::Test,
        is_there: || has("tmux"),
        source: Source::Debian(&["tmux"]),
    },
    Tool {
        name: "Node.js",
        why: "checks the dashboards against the types that Grafana publishes, and draws them",
        purpose: Purpose::Test,
        is_there: || has("node") && has("npm"),
        source: Source::Debian(&["nodejs", "npm"]),
    },
    Tool {
        name: "mmdebstrap",
        why: "makes root file systems with the FreeCAD of other Debian suites, on which jobs are run",
        purpose: Purpose::Test,
        is_there: || has("mmdebstrap"),
        source: Source::Debian(&["mmdebstrap"]),
    },
    Tool {
        name: "Python's venv",
        why: "keeps the wheels of OCCT, CadQuery and build123d, on which jobs are run, apart from the system",
        purpose: Purpose::Test,
        is_there: || runs(Command::new("/usr/bin/python3").args(["-c", "import venv, ensurepip"])),
        source: Source::Debian(&["python3-venv"]),
    },
    Tool {
        name: "OpenGL library",
        why: "the wheels of OCCT load it, as on any desktop",
        purpose: Purpose::Test,
        is_there: || Path::new("/usr/lib/x86_64-linux-gnu/libGL.so.1").exists(),
        source: Source::Debian(&["libgl1"]),
    },
    Tool {
        name: "containerd and runc",
        why: "run containers as a Kubernetes node does",
        purpose: Purpose::Node,
        is_there: || has("containerd") && has("runc") && Path::new("/usr/lib/cni/bridge").exists(),
        source: Source::Debian(&["containerd", "runc", "containernetworking-plugins"]),
    },
    Tool {
        name: "podman and runc",
        why: "run containers without a daemon, whose memory ends inside a boolean",
        purpose: Purpose::Test,
        is_there: || has("podman") && has("runc"),
        source: Source::Debian(&["podman", "runc"]),
    },
    Tool {
        name: "binutils for arm64",
        why: "checks the exits that are found in code of that machine",
        purpose: Purpose::Test,
        is_there: || has("aarch64-linux-gnu-objdump"),
        source: Source::Debian(&["binutils-aarch64-linux-gnu"]),
    },
    Tool {
        name: "openssl and ip",
        why: "make the certificates and the network of the Kubernetes node",
        purpose: Purpose::Node,
        is_there: || has("openssl") && has("ip"),
        source: Source::Debian(&["openssl", "iproute2"]),
    },
    Tool {
        name: "systemd-analyze",
        why: "says whether systemd takes the unit of the Debian package, and what it exposes",
        purpose: Purpose::Test,
        is_there: || has("systemd-analyze"),
        source: Source::Debian(&["systemd"]),
    },
    Tool {
        name: "buildah",
        why: "builds the image as any builder does, without a daemon",
        purpose: Purpose::Package,
        is_there: || has("buildah"),
        source: Source::Debian(&["buildah"]),
    },
    Tool {
        name: "systemd-nspawn",
        why: "boots a Debian in which the package is installed and its unit runs",
        purpose: Purpose::Package,
        is_there: || has("systemd-nspawn"),
        source: Source::Debian(&["systemd-container"]),
    },
    Tool {
        name: "rustfmt",
        why: "the format is checked",
        purpose: Purpose::Test,
        is_there: || runs(Command::new("cargo").args(["fmt", "--version"])),
        source: Source::Component("rustfmt"),
    },
    Tool {
        name: "clippy",
        why: "lints are errors",
        purpose: Purpose::Test,
        is_there: || runs(Command::new("cargo").args(["clippy", "--version"])),
        source: Source::Component("clippy"),
    },
    Tool {
        name: "mdBook",
        why: "makes a site of the documentation, whose pages and links are checked",
        purpose: Purpose::Test,
        is_there: || find_program("mdbook").is_some(),
        source: Source::Crate {
            name: "mdbook",
            version: "0.5.4",
            // As for cargo-deny: it works for a second.
            variables: &[
                ("CARGO_PROFILE_RELEASE_LTO", "off"),
                ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
                ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
            ],
            // Neither a server nor a watch on files.
            options: &["--no-default-features", "--features", "search"],
        },
    },
    Tool {
        name: "cargo-deny",
        why: "checks licences and origins of dependencies",
        purpose: Purpose::Test,
        is_there: || find_program("cargo-deny").is_some(),
        source: Source::Crate {
            name: "cargo-deny",
            version: "0.20.2",
            // Runs for a second; its own profile (one unit, fat LTO) would be compiled for several minutes.
            variables: &[
                ("CARGO_PROFILE_RELEASE_LTO", "off"),
                ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
                ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
            ],
            options: &[],
        },
    },
    Tool {
        name: "cargo-fuzz",
        why: "compiles what parses so that libFuzzer sees which code an input reached",
        purpose: Purpose::Fuzz,
        is_there: || has("cargo-fuzz"),
        source: Source::Crate { name: "cargo-fuzz", version: "0.13.2", variables: &[], options: &[] },
    },
];

/// What compiles for arm64 on another machine: `cargo xtask vm arm64` alone needs it.
const ARM64: &[Tool] = &[
    Tool {
        name: "C++ compiler for arm64",
        why: "links the agent and its tests for that machine, and compiles the worker that they observe there",
        purpose: Purpose::Test,
        is_there: || has("aarch64-linux-gnu-g++"),
        source: Source::Debian(&["g++-aarch64-linux-gnu"]),
    },
    Tool {
        name: "Rust for arm64",
        why: "the standard library for that machine",
        purpose: Purpose::Test,
        is_there: || {
            let list = Command::new("rustup").args(["target", "list", "--installed"]).output();
            list.is_ok_and(|list| String::from_utf8_lossy(&list.stdout).contains("aarch64-unknown-linux-gnu"))
        },
        source: Source::Target("aarch64-unknown-linux-gnu"),
    },
];

#[cfg(test)]
/// Version of a program that is compiled from the Rust package registry.
pub(crate) fn crate_version(program: &str) -> Option<&'static str> {
    TOOLS.iter().find_map(|tool| match tool.source {
        Source::Crate { name, version, .. } if name == program => Some(version),
        _ => None,
    })
}

/// Installs what is missing for this purpose.
pub(crate) fn install(purpose: Purpose) -> Result<()> {
    let missing = missing(purpose);
    if missing.is_empty() {
        println!("setup: nothing to do, everything for `{}` is there", name(purpose));
        return Ok(());
    }
    install_tools(missing)
}

/// Installs what is missing to compile for arm64.
pub(crate) fn install_for_arm64() -> Result<()> {
    let missing: Vec<_> = ARM64.iter().filter(|tool| !(tool.is_there)()).collect();
    if missing.is_empty() { Ok(()) } else { install_tools(missing) }
}

fn install_tools(missing: Vec<&'static Tool>) -> Result<()> {
    headline("setup: missing on this machine");
    report(&missing);
    let packages = packages(&missing);
    let installs_packages = has("apt-get") && is_root();
    if !packages.is_empty() && !installs_packages {
        bail!(
            "Debian packages can only be installed by root on Debian; this is {}.\n\n{}",
            if has("apt-get") { "not root" } else { "not Debian" },
            by_hand(&missing)
        );
    }
    let begin = Instant::now();
    if !packages.is_empty() {
        headline(&format!("setup: Debian packages {}", packages.join(" ")));
        run(apt().arg("update"))?;
        // Recommended packages of FreeCAD are a desktop.
        run(apt().args(["install", "-y", "--no-install-recommends"]).args(&packages))
            .map_err(|error| error.context(format!("setup: by hand:\n\n{}", by_hand(&missing))))?;
        println!("setup: {} so far", minutes(begin.elapsed()));
    }
    for tool in &missing {
        match &tool.source {
            Source::Debian(_) => {}
            Source::Component(component) => {
                headline(&format!("setup: {} ({})", tool.name, tool.why));
                run(Command::new("rustup").args(["component", "add", component]))?;
            }
            Source::Target(target) => {
                headline(&format!("setup: {} ({})", tool.name, tool.why));
                run(Command::new("rustup").args(["target", "add", target]))?;
            }
            Source::Crate { name, version, variables, options } => {
                headline(&format!("setup: {} ({})", tool.name, tool.why));
                install_crate(name, version, variables, options)?;
                println!("setup: {} so far", minutes(begin.elapsed()));
            }
        }
    }
    let still: Vec<_> = missing.into_iter().filter(|tool| !(tool.is_there)()).collect();
    if !still.is_empty() {
        bail!("still missing after installing:\n{}", by_hand(&still));
    }
    println!("\nsetup: done in {}", minutes(begin.elapsed()));
    Ok(())
}

/// Reports; an error if anything is missing.
pub(crate) fn check(purpose: Purpose) -> Result<()> {
    let wanted: Vec<_> = TOOLS.iter().filter(|tool| tool.purpose <= purpose).collect();
    let mut lacking = Vec::new();
    for tool in wanted {
        let is_there = (tool.is_there)();
        println!("{:8} {:14} {}", if is_there { "ok" } else { "MISSING" }, tool.name, tool.why);
        if !is_there {
            lacking.push(tool);
        }
    }
    if lacking.is_empty() {
        return Ok(());
    }
    bail!("{} missing; run `cargo xtask setup`, or:\n\n{}", lacking.len(), by_hand(&lacking))
}

/// Like [`check`], without a word if everything is there.
pub(crate) fn check_quietly(purpose: Purpose) -> Result<()> {
    let missing = missing(purpose);
    if missing.is_empty() {
        return Ok(());
    }
    report(&missing);
    bail!("run `cargo xtask setup --for {}`, or:\n\n{}", name(purpose), by_hand(&missing))
}

/// Whether we may attach, install and test.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn missing(purpose: Purpose) -> Vec<&'static Tool> {
    TOOLS.iter().filter(|tool| tool.purpose <= purpose && !(tool.is_there)()).collect()
}

fn report(missing: &[&Tool]) {
    for tool in missing {
        println!("{:14} {}", tool.name, tool.why);
    }
}

fn packages(missing: &[&'static Tool]) -> Vec<&'static str> {
    let all: BTreeSet<_> = missing
        .iter()
        .filter_map(|tool| match tool.source {
            Source::Debian(packages) => Some(packages.iter().copied()),
            _ => None,
        })
        .flatten()
        .collect();
    all.into_iter().collect()
}

/// The commands that would install these tools on Debian 12, and what stands for them elsewhere.
fn by_hand(missing: &[&'static Tool]) -> String {
    let mut lines = Vec::new();
    let packages = packages(missing);
    if !packages.is_empty() {
        lines.push(format!("    apt-get install --no-install-recommends {}", packages.join(" ")));
    }
    for tool in missing {
        match &tool.source {
            Source::Debian(_) => {}
            Source::Component(component) => lines.push(format!("    rustup component add {component}")),
            Source::Target(target) => lines.push(format!("    rustup target add {target}")),
            Source::Crate { name, version, variables, options } => {
                let set = variables.iter().map(|(name, value)| format!("{name}={value}"));
                let words = ["cargo", "install", "--locked", "--version", version, name]
                    .into_iter()
                    .map(str::to_owned);
                let options = options.iter().map(|option| (*option).to_owned());
                lines.push(format!("    {}", set.chain(words).chain(options).collect::<Vec<_>>().join(" ")));
            }
        }
    }
    if packages.contains(&"rustc-web") {
        lines.push(
            "where there is no rustc-web: rustup toolchain install nightly --component rust-src".to_owned(),
        );
    }
    if packages.contains(&"llvm-22-dev") {
        lines.push(
            "where there is no llvm-22-dev: bpf-linker finds another LLVM 22 by LLVM_PREFIX".to_owned(),
        );
    }
    lines.join("\n")
}

fn install_crate(name: &str, version: &str, variables: Pairs, options: &[&str]) -> Result<()> {
    // In the cache, so that an interrupted installation goes on where it was.
    let target_dir = cache()?.join("build").join(name);
    let mut cargo = Command::new("cargo");
    forget_inherited(&mut cargo);
    cargo.args(["install", "--locked", "--version", version, name]).args(options);
    for (name, value) in variables {
        cargo.env(name, value);
    }
    run(cargo.arg("--target-dir").arg(&target_dir))?;
    std::fs::remove_dir_all(&target_dir)?;
    Ok(())
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
    apt
}

fn has(program: &str) -> bool {
    find_program(program).is_some()
}

/// It was linked with a library that may have gone since: only running it tells.
fn linker_runs() -> bool {
    find_linker().is_some_and(|path| first_line(Command::new(path).arg("--version")).is_some())
}

fn llvm_is_complete() -> bool {
    Path::new(LLVM).join("bin/llvm-config").exists()
        && Path::new(LLVM).join("lib/libPolly.a").exists()
        && ["zlib.h", "zstd.h"].iter().all(|header| Path::new("/usr/include").join(header).exists())
}

fn runs(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Build => "build",
        Purpose::Demo => "demo",
        Purpose::Test => "test",
        Purpose::Node => "node",
        Purpose::Package => "package",
        Purpose::Fuzz => "fuzz",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_name_every_package_and_program() {
        let all: Vec<_> = TOOLS.iter().collect();
        let text = by_hand(&all);
        for word in
            ["rust-web-src", "freecad-python3", "LLVM_PREFIX=/usr/lib/llvm-22", "cargo-deny", "clippy"]
        {
            assert!(text.contains(word), "{word} in {text}");
        }
    }

    #[test]
    fn every_tool_says_why() {
        for tool in TOOLS {
            assert!(tool.why.len() > 10, "{}", tool.name);
        }
    }
}
