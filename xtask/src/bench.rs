//! Measures, and writes what was measured into docs/bench-*.md, with the machine and the day it was measured on.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::build::{Profile, build};
use crate::places::{cache, repository};
use crate::shell::first_line;

mod account;
mod calls;
mod instructions;
mod job;
mod load;
mod parts;
mod resolve;
mod times;

pub(crate) use self::calls::calls;
pub(crate) use self::instructions::instructions;
pub(crate) use self::job::{job, suite};
pub(crate) use self::load::{scale, throughput};
pub(crate) use self::resolve::resolve;
pub(crate) use self::times::{attach, highest_kib, ready, start};

/// Where it was measured, and when, as a list.
fn machine() -> Result<String> {
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let processors = file("/proc/cpuinfo");
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let count = processors.lines().filter(|line| line.starts_with("processor")).count();
    let guest = processors.lines().any(|line| line.starts_with("flags") && line.contains(" hypervisor"));
    let mut text = String::new();
    writeln!(text, "- date: {}", first_line(Command::new("date").args(["-u", "+%F"])).unwrap_or_default())?;
    writeln!(text, "- kernel: {}", file("/proc/sys/kernel/osrelease"))?;
    writeln!(
        text,
        "- processor: {count} x {}{}",
        model.map_or("unknown", |(_, name)| name),
        if guest { ", a virtual machine" } else { "" }
    )?;
    Ok(text)
}

/// Writes a page of docs and prints it.
fn write_page(name: &str, text: &str) -> Result<()> {
    let file = repository()?.join("docs").join(name);
    std::fs::write(&file, text).with_context(|| file.display().to_string())?;
    println!("\n{text}\nwritten to {}", file.display());
    Ok(())
}

/// What children used.
#[derive(Clone, Copy, Debug)]
struct Used {
    /// Seconds of CPU time.
    user: f64,
    /// The same, in the kernel.
    system: f64,
    /// Page faults that needed no disk.
    faults: f64,
}

impl Used {
    /// Seconds of CPU time, the kernel's too.
    fn cpu(self) -> f64 {
        self.user + self.system
    }

    /// What was used after an `earlier` look.
    fn since(self, earlier: Self) -> Self {
        Self {
            user: self.user - earlier.user,
            system: self.system - earlier.system,
            faults: self.faults - earlier.faults,
        }
    }
}

/// Of all children that were waited for. Those that still run are not among them.
fn children() -> Result<Used> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |time: TimeVal| -> Result<f64> {
        Ok(f64::from(u32::try_from(time.num_microseconds() / 1_000_000)?)
            + f64::from(u32::try_from(time.num_microseconds() % 1_000_000)?) / 1e6)
    };
    Ok(Used {
        user: seconds(usage.user_time())?,
        system: seconds(usage.system_time())?,
        faults: usage.minor_page_faults() as f64,
    })
}

/// The agent: `CADSCOPE_BIN`, or as it is shipped.
fn binary() -> Result<PathBuf> {
    match std::env::var_os("CADSCOPE_BIN") {
        Some(path) => Ok(path.into()),
        None => build(Profile::Release),
    }
}

/// Compiles a C program that lies beside this folder, in the cache.
fn compile(source: &str) -> Result<PathBuf> {
    let file = repository()?.join("xtask/bench").join(source);
    let program = cache()?.join("bench").join(Path::new(source).with_extension(""));
    std::fs::create_dir_all(program.parent().unwrap_or(&program))?;
    let status = Command::new("cc")
        .args(["-O2", "-pthread", "-Wall", "-Werror", "-o"])
        .arg(&program)
        .arg(&file)
        .arg("-ldl")
        .status()
        .context("cc: apt-get install gcc libc6-dev")?;
    ensure!(status.success(), "{}: {status}", file.display());
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_child_that_was_waited_for_is_seen() {
        let before = children().unwrap();
        let status =
            Command::new("sh").args(["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"]).status();
        assert!(status.unwrap().success());
        assert!(children().unwrap().since(before).user > 0.0);
    }
}
