//! Promise: a kernel is used as far as it goes, and one that is too old is refused with what is needed. The same test on
//! the running kernel and in the virtual machines of `cargo xtask vm`.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::node::{cadscope, require_root};
use cadscope_tests::privileges::{CAPABILITIES, only};
use cadscope_tests::run::run;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
/// The oldest with attach cookies.
const OLDEST: (u32, u32) = (5, 15);
/// The oldest with uprobe_multi.
const MULTI: (u32, u32) = (6, 6);
const CAP_SYS_ADMIN: u32 = 21;

fn kernel() -> Result<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => anyhow::bail!("no version in {release}"),
    }
}

fn refused((major, minor): (u32, u32)) -> Result<()> {
    for arguments in [&["doctor"][..], &["agent", "--listen", "127.0.0.1:0"], &["trace", "--", "true"]] {
        let ended = run(Command::new(cadscope()?).args(arguments), LIMIT)?;
        let said = format!("{}{}", ended.stdout, ended.stderr);
        ensure!((1..126).contains(&ended.code) && !said.contains("panicked"), "{arguments:?}: {ended:?}");
        let words =
            [format!("Linux {major}.{minor}"), "Linux 5.15 or newer is needed (attach cookies)".to_owned()];
        ensure!(
            words.iter().all(|words| said.contains(words)),
            "{arguments:?}: not all of {words:?} in\n{said}"
        );
    }
    Ok(())
}

fn used(kernel: (u32, u32)) -> Result<()> {
    let multi = kernel >= MULTI;
    let doctor = run(Command::new(cadscope()?).arg("doctor"), LIMIT)?;
    let how = if multi { "load; probes by uprobe_multi\n" } else { "load; probes by perf events\n" };
    ensure!(doctor.code == 0 && doctor.stdout.contains(how), "{doctor:?}");
    for perf_events in if multi { &[false, true][..] } else { &[false] } {
        let way: &[&str] = if *perf_events { &["--attach", "perf-events"] } else { &[] };
        let arguments: Vec<&str> = way.iter().chain(&["--ai-latency"]).copied().collect();
        let agent = Agent::start(&arguments)?;
        let status: Value = serde_json::from_str(&agent.get("/status")?.1)?;
        let found = status.pointer("/kernel/mode").and_then(Value::as_str).context("no mode")?;
        let mode = if multi && !perf_events { "uprobe_multi" } else { "perf" };
        ensure!(found == mode, "{arguments:?}: {found}, not {mode}\n{}", agent.log());
    }
    Ok(())
}

#[test]
fn every_program_loads_and_the_best_way_is_taken_or_the_kernel_is_refused_by_name() -> Result<()> {
    let _node = require_root()?;
    let kernel = kernel()?;
    if kernel < OLDEST { refused(kernel) } else { used(kernel) }
}

/// A kernel parameter, as it was again with the end of the value.
struct Parameter {
    path: &'static str,
    was: String,
}

impl Parameter {
    fn set(path: &'static str, value: &str) -> Result<Self> {
        let was = std::fs::read_to_string(path)?;
        std::fs::write(path, value).with_context(|| path.to_owned())?;
        Ok(Self { path, was })
    }
}

impl Drop for Parameter {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(self.path, self.was.trim()) {
            eprintln!("{}: {error}", self.path);
        }
    }
}

#[test]
fn a_kernel_that_keeps_perf_events_to_itself_is_named_and_needs_one_parameter_or_a_start_as_root()
-> Result<()> {
    const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";
    let _node = require_root()?;
    if kernel()? < MULTI {
        return Ok(()); // There the agent needs CAP_SYS_ADMIN in any case.
    }
    let four = only(&CAPABILITIES);
    {
        let _parameter = Parameter::set(PARANOID, "3")?;
        // Kernels of Debian and Ubuntu refuse; the others know nothing above 2.
        if let Err(error) = Agent::start_under::<&str>(&four, &[]) {
            let said = format!("{error:#}");
            ensure!(
                said.contains("sysctl kernel.perf_event_paranoid=2") && said.contains("CAP_SYS_ADMIN"),
                "{said}"
            );
            eprintln!("refused: {}", said.lines().nth(1).unwrap_or_default());
        }
        let agent = Agent::start::<&str>(&[])?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
        let held = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
        let held = u64::from_str_radix(held.trim(), 16)?;
        ensure!(held >> CAP_SYS_ADMIN & 1 == 0, "CAP_SYS_ADMIN is kept: {held:x}");
    }
    let _parameter = Parameter::set(PARANOID, "2")?;
    Agent::start_under::<&str>(&four, &[]).map(drop)
}
