//! Turns the libraries of each build into what it costs to find all probe sites in them, once: docs/bench-resolve.md.
//!
//! Measures `cadscope probes` over every library and module of a build; a worker maps fewer. The time is CPU time of the
//! whole program, its start included; the memory is its peak, pages of the analysed files included. What an agent spends on
//! workers that map the same files, the first and those after it, is its CPU time over a while, less that of idle ones.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{binary, children, compile, write_page};
use crate::builds::{self, BUILDS};
use crate::running_agent::RunningAgent;
use crate::setup::is_root;
use crate::shell::first_line;
use crate::statistics::median;

const RUNS: usize = 7;
/// Workers after the first, and as many times in which nothing happens.
const WORKERS: usize = 5;
/// How long an agent is watched for what one worker costs it.
const WATCHED: Duration = Duration::from_millis(1500);

/// Measures, prints and writes.
pub(crate) fn resolve() -> Result<()> {
    ensure!(is_root(), "attaching to other processes needs root: run this as root");
    builds::make_for_tests(true)?;
    let (binary, driver) = (binary()?, compile("maps.c")?);
    let kernel = first_line(Command::new("uname").args(["-sr"])).unwrap_or_default();
    let mut page = format!(
        "# What finding the probe sites costs\n\nWritten by `cargo xtask bench resolve` on {kernel}. Best of {RUNS} runs of `cadscope probes` over every library of the\nbuild: CPU time of the program, and its peak memory with the pages of the analysed files. The agent does this once for\neach file, however many containers map it, and never again while the file is in use.\n\n`first`: CPU time of an agent for a worker that maps all these files, their probes placed; `next`: for one that maps them\nwhile another does, median of {WORKERS}. Both less what the agent takes in the same time when nothing happens; other processes\nthat start on the machine meanwhile are in it, either way.\n\n| build | files | CPU, ms | peak, MiB | first, ms | next, ms |\n|---|---|---|---|---|---|\n"
    );
    for build in BUILDS.iter().filter(|build| build.has_cad()) {
        let files = libraries(&builds::folder()?.join(build.name))?;
        let (mut milliseconds, mut kibibytes) = (f64::MAX, u64::MAX);
        for _ in 0..RUNS {
            let (time, peak) = measure(&binary, &files)?;
            milliseconds = milliseconds.min(time);
            kibibytes = kibibytes.min(peak);
        }
        let (first, next) = workers(&binary, &driver, &files)?;
        let _ = writeln!(
            page,
            "| {} | {} | {milliseconds:.0} | {} | {first:.0} | {next:.1} |",
            build.name,
            files.len(),
            kibibytes / 1024
        );
    }
    write_page("bench-resolve.md", &page)
}

/// CPU time in milliseconds that an agent takes for the first worker with these files, and for those after it.
fn workers(binary: &Path, driver: &Path, files: &[PathBuf]) -> Result<(f64, f64)> {
    let agent = RunningAgent::start(binary)?;
    let over = || -> Result<f64> {
        let before = agent.cpu()?;
        std::thread::sleep(WATCHED);
        Ok((agent.cpu()? - before).as_secs_f64() * 1000.0)
    };
    let idle = (0..WORKERS).map(|_| over()).collect::<Result<Vec<f64>>>()?;
    let idle = median(&idle).context("no rounds")?;
    let (mut times, mut running) = (Vec::new(), Vec::new());
    for _ in 0..=WORKERS {
        let before = agent.cpu()?;
        running.push(Driver(
            Command::new(driver).args(files).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?,
        ));
        std::thread::sleep(WATCHED);
        times.push((agent.cpu()? - before).as_secs_f64() * 1000.0 - idle);
    }
    for driver in &mut running {
        ensure!(driver.0.try_wait()?.is_none(), "what maps the files has ended");
    }
    drop(running);
    agent.stop()?;
    let (first, next) = times.split_first().context("no rounds")?;
    Ok((*first, median(next).context("no rounds")?))
}

/// Ended when dropped.
struct Driver(std::process::Child);

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// CPU time in milliseconds and peak memory in KiB of one run.
fn measure(binary: &Path, files: &[PathBuf]) -> Result<(f64, u64)> {
    let before = children()?;
    let mut child = Command::new(binary)
        .args(["probes", "--format", "json"])
        .args(files)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| binary.display().to_string())?;
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak = 0;
    // The kernel keeps the peak; what is read last before the end is the peak, but for the last millisecond.
    let ended = loop {
        peak = peak.max(peak_of(&fs::read_to_string(&status).unwrap_or_default()));
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    ensure!(ended.success(), "cadscope probes: {ended}");
    Ok((children()?.since(before).cpu() * 1000.0, peak))
}

/// `VmHWM` of a /proc/PID/status, in KiB.
fn peak_of(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// OCCT's libraries and FreeCAD's modules below a build, and Python's module of a wheel.
fn libraries(root: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = vec![root.join("usr/lib/x86_64-linux-gnu"), root.join("usr/lib/freecad-python3/lib")];
    let packages = root.join("lib/python3.11/site-packages");
    let entries = fs::read_dir(&packages).into_iter().flatten().filter_map(Result::ok);
    folders.extend(entries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name == "OCP" || (name.starts_with("cadquery_ocp") && name.ends_with(".libs"))
    }));
    folders.push(packages);
    let mut files = Vec::new();
    for entry in folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten() {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let module = path.parent().is_some_and(|folder| folder.ends_with("freecad-python3/lib"));
        let ours = ["libTK", "libFreeCAD", "libOndsel", "OCP."].iter().any(|start| name.starts_with(start));
        if (ours || module) && name.contains(".so") && path.is_file() && !path.is_symlink() {
            files.push(path);
        }
    }
    ensure!(!files.is_empty(), "no libraries below {}", root.display());
    Ok(files)
}
