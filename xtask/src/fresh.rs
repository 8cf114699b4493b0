//! Turns the README's promise into a trial: a Debian that has nothing but Rust, a clone, and one of its two commands.
//!
//! The Debian is a root file system of its own, made anew each time and removed afterwards. What it shares with this
//! machine is the kernel with its /proc, /sys and /dev, the Rust toolchains (read-only) and the network.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::builds::remove;
use crate::places::{cache, repository};
use crate::shell::{headline, minutes, run, run_watched};

/// What of the README is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Promise {
    /// `cargo xtask demo` ends with a waterfall and its metrics
    Demo,
    /// `cargo xtask test` passes
    Test,
}

/// What has been there before a user comes: Debian, what rustup downloads with, and the linker that Rust needs.
const DEBIAN: &[&str] = &[
    "--variant=minbase",
    "--architectures=amd64",
    "--include=ca-certificates,curl,git,gcc,libc6-dev",
    "bookworm",
];

/// Names under which rustup's one program is called.
const PROXIES: &[&str] =
    &["cargo", "rustc", "rustdoc", "rustfmt", "cargo-fmt", "cargo-clippy", "clippy-driver"];

/// Services of packages must not start: the process that a package asks for it is this machine's.
const NO_SERVICES: &str = "#!/bin/sh\nexit 101\n";

const ENTER: &str = r#"
root=$1 toolchains=$2
for folder in proc sys dev; do mount --rbind "/$folder" "$root/$folder"; done
mount --bind "$toolchains" "$root/root/.rustup"
mount -o remount,ro,bind "$root/root/.rustup"
mount --bind /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
exec chroot "$root" /usr/bin/env -i HOME=/root USER=root TERM=dumb DEBIAN_FRONTEND=noninteractive \
    PATH=/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    sh -ec 'cd /root/cadscope; exec cargo xtask "$1"' sh "$3"
"#;

/// Makes the Debian, clones what is committed, and runs the command there.
pub(crate) fn fresh(promise: Promise, keep: bool) -> Result<()> {
    let begin = Instant::now();
    let root = cache()?.join("fresh");
    remove(&root)?;
    headline(&format!("a Debian with nothing but Rust, in {}", root.display()));
    run(Command::new("mmdebstrap").args(DEBIAN).arg(&root))?;
    install_rust(&root)?;
    write_program(&root.join("usr/sbin/policy-rc.d"), NO_SERVICES)?;
    run(Command::new("git")
        .args(["clone", "--quiet", "--no-hardlinks"])
        .arg(repository()?)
        .arg(root.join("root/cadscope")))?;

    let word = if promise == Promise::Demo { "demo" } else { "test" };
    headline(&format!("cargo xtask {word}, there"));
    let mut enter = Command::new("unshare");
    enter.args(["--mount", "--propagation", "private", "sh", "-ec", ENTER, "sh"]);
    enter.arg(&root).arg(toolchains()?).arg(word);
    let mut seen = Vec::new();
    run_watched(&mut enter, |line| seen.push(line.to_owned()))?;
    if promise == Promise::Demo {
        // The waterfall names its operations, the agent counts the same.
        for what in ["cut", "occt_boolean_duration_seconds_count{"] {
            if !seen.iter().any(|line| line.contains(what)) {
                bail!("the demo ended well, but does not show `{what}`");
            }
        }
    }
    if !keep {
        remove(&root)?;
    }
    println!("\ncargo xtask {word} is all that a fresh Debian needs: {}", minutes(begin.elapsed()));
    Ok(())
}

/// rustup's program under its names; the toolchains are mounted later.
fn install_rust(root: &Path) -> Result<()> {
    let programs = root.join("root/.cargo/bin");
    fs::create_dir_all(&programs)?;
    fs::create_dir_all(root.join("root/.rustup"))?;
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home =
        cargo_home.or_else(|| Some(std::env::home_dir()?.join(".cargo"))).context("no home folder")?;
    let rustup = cargo_home.join("bin/rustup");
    fs::copy(&rustup, programs.join("rustup"))
        .with_context(|| format!("{}: this needs a Rust that rustup installed", rustup.display()))?;
    for name in PROXIES {
        symlink("rustup", programs.join(name))?;
    }
    Ok(())
}

/// Where rustup keeps toolchains.
fn toolchains() -> Result<PathBuf> {
    let told = std::env::var_os("RUSTUP_HOME").map(PathBuf::from);
    told.or_else(|| Some(std::env::home_dir()?.join(".rustup"))).context("no home folder")
}

fn write_program(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}
