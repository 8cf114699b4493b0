//! What a test needs from the machine; what is missing is a failure that says what to do, never a silent skip.

use std::fs::{File, create_dir_all};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Held by a test while it runs: tests of different programs (`cargo test` runs one per file) do not overlap.
#[derive(Debug)]
pub struct Node {
    _lock: File,
}

/// Takes the node for one test: root, the program under test, and nobody else's test.
///
/// # Errors
/// Says what is missing and how to get it.
pub fn require_root() -> Result<Node> {
    cadscope()?;
    require_root_only()
}

/// The same for a test of the harness itself, which needs no cadscope.
///
/// # Errors
/// Says what is missing and how to get it.
pub fn require_root_only() -> Result<Node> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test loads BPF programs and needs root: run it as `sudo -E cargo test -p cadscope-tests`"
    );
    for capability in [21, 38, 39] {
        // CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF
        ensure!(
            has_capability(capability)?,
            "root here lacks capability {capability} (21 sys_admin, 38 perfmon, 39 bpf): run the tests in a \
             privileged container or on the host"
        );
    }
    let path = std::env::temp_dir().join("cadscope-tests.lock");
    let lock = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    // SAFETY: flock takes a descriptor that `lock` keeps open, and no memory.
    let done = unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) };
    ensure!(done == 0, "cannot lock {}: {}", path.display(), std::io::Error::last_os_error());
    Ok(Node { _lock: lock })
}

fn has_capability(number: u32) -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|l| l.strip_prefix("CapEff:")).context("no CapEff in /proc/self/status")?;
    Ok(u64::from_str_radix(line.trim(), 16)? >> number & 1 == 1)
}

/// The program under test.
///
/// # Errors
/// It has not been built.
pub fn cadscope() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CADSCOPE_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "CADSCOPE_BIN={} is no file", path.display());
        return Ok(path);
    }
    let path = target()?.join("release/cadscope");
    ensure!(
        path.is_file(),
        "{} is not there: run `cargo xtask build --release`, or set CADSCOPE_BIN",
        path.display()
    );
    Ok(path)
}

/// Where a tool lies.
///
/// # Errors
/// It is not installed; says from which Debian package it comes.
pub fn tool(name: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin:/usr/sbin:/sbin".into());
    for folder in std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]) {
        let file = folder.join(name);
        if file.is_file() {
            return Ok(file);
        }
    }
    bail!("{name} is not installed: `apt-get install {package}`, or `cargo xtask setup`");
}

/// The long form of the tests is wanted.
#[must_use]
pub fn full() -> bool {
    std::env::var("CADSCOPE_FULL").is_ok_and(|v| v == "1")
}

/// The processor is emulated (`cargo xtask vm`): clocks mean little there, and everything takes long.
#[must_use]
pub fn emulated() -> bool {
    std::env::var("CADSCOPE_EMULATED").is_ok_and(|v| v == "1")
}

/// A limit of time as this machine needs it.
#[must_use]
pub fn patient(limit: Duration) -> Duration {
    if emulated() { limit * 10 } else { limit }
}

/// Whether `CADSCOPE_ONLY` lets any of these names through.
#[must_use]
pub fn wanted(name: &str, all: &[&str]) -> bool {
    let Ok(only) = std::env::var("CADSCOPE_ONLY") else { return true };
    let chosen: Vec<&str> = only.split(',').filter(|o| all.contains(o)).collect();
    chosen.is_empty() || chosen.contains(&name)
}

/// Scratch space for a test, removed with the value.
///
/// # Errors
/// The file system refuses.
pub fn scratch() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("cadscope-test-").tempdir()?)
}

/// Where things that are built once are kept: below cargo's target directory.
///
/// # Errors
/// The file system refuses.
pub fn cache() -> Result<PathBuf> {
    let folder = target()?.join("tmp");
    create_dir_all(&folder)?;
    Ok(folder)
}

/// Cargo's target directory: the running test lies in `<target>/<profile>/deps/`.
fn target() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    test.ancestors().nth(3).map(Path::to_owned).with_context(|| format!("{} is not cargo's", test.display()))
}
