//! Turns starts, attachments and new files into how long they take: docs/bench-start.md, bench-attach.md, bench-ready.md.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::calls::{LIBRARY, bare_probes};
use super::{binary, compile, machine, write_page};
use crate::places::cache;
use crate::running_agent::{RunningAgent, samples};
use crate::setup::is_root;
use crate::shell::first_line;
use crate::statistics::median;

/// Sites that are placed at once.
const SITES: usize = 1000;

/// From the start of the agent until it is ready.
pub(crate) fn start(rounds: u32) -> Result<()> {
    ensure!(is_root(), "attaching to other processes needs root: run this as root");
    let binary = binary()?;
    let (mut times, mut peaks) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let begin = Instant::now();
        let agent = RunningAgent::start_with(&binary, &[])?;
        times.push(begin.elapsed().as_secs_f64() * 1000.0);
        peaks.push(agent.highest_kib()? as f64 / 1024.0);
        agent.stop()?;
    }
    let text = format!(
        "# How long the agent takes to start\n\nWritten by `cargo xtask bench start --rounds {rounds}`: from its start until \
         `/readyz` says so, asked every 50 ms: types of the kernel\nread, programs verified, every process looked at. \
         Median.\n\n{}\n| ready after, ms | highest memory, MiB |\n|---|---|\n| {:.0} | {:.1} |\n",
        machine()?,
        median(&times).context("no rounds")?,
        median(&peaks).context("no rounds")?
    );
    write_page("bench-start.md", &text)
}

/// Time to place and to take away many sites of one file, by one link.
pub(crate) fn attach(rounds: u32) -> Result<()> {
    ensure!(is_root(), "attaching to other processes needs root: run this as root");
    let bare = bare_probes()?;
    let functions = Command::new("nm").args(["-D", "--defined-only", LIBRARY]).output().context("nm")?;
    let functions = String::from_utf8_lossy(&functions.stdout).into_owned();
    let mut offsets: Vec<u64> = functions
        .lines()
        .filter_map(|line| line.split_once(" T "))
        .filter_map(|(at, _)| u64::from_str_radix(at, 16).ok())
        .collect();
    offsets.sort_unstable();
    offsets.dedup();
    offsets.truncate(SITES);
    ensure!(offsets.len() == SITES, "{LIBRARY} has {} functions", offsets.len());
    let (mut placed, mut removed) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut command = Command::new(&bare);
        command.arg(LIBRARY).args(offsets.iter().map(u64::to_string)).stdin(Stdio::null());
        let answer = command.output()?;
        let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
        let time = |word: &str| -> Option<f64> {
            answer.lines().find_map(|line| line.strip_prefix(word)?.trim().parse().ok())
        };
        placed.push(time("placed").with_context(|| format!("no time in {answer:?}"))?);
        removed.push(time("removed").with_context(|| format!("no time in {answer:?}"))?);
    }
    let text = format!(
        "# How long probes take to place and to take away\n\nWritten by `cargo xtask bench attach --rounds {rounds}`: {SITES} \
         sites of one library by one uprobe_multi link, nobody mapping it.\nMedian.\n\n{}\n| sites | placed in, ms | taken away \
         in, ms |\n|---|---|---|\n| {SITES} | {:.1} | {:.1} |\n",
        machine()?,
        median(&placed).context("no rounds")?,
        median(&removed).context("no rounds")?
    );
    write_page("bench-attach.md", &text)
}

/// From a worker's exec until its first probe is in place, as the agent says it.
pub(crate) fn ready(rounds: u32) -> Result<()> {
    ensure!(is_root(), "attaching to other processes needs root: run this as root");
    let (binary, driver) = (binary()?, compile("idle.c")?);
    let mut text = format!(
        "# How long a worker runs before it is observed\n\nWritten by `cargo xtask bench ready --rounds {rounds}`: from exec of \
         a program that maps `libTKBO` until that file's probes are in place,\nas `cadscope_attach_latency_seconds` says. A \
         new file is a copy, as that of an image never seen before.\n\n{}\n| file | workers | mean, ms | within 10 ms | within \
         25 ms | within 50 ms | within 100 ms |\n|---|---|---|---|---|---|---|\n",
        machine()?
    );
    let folder = cache()?.join("bench/ready");
    std::fs::create_dir_all(&folder)?;
    for (name, is_new) in [("new", true), ("known", false)] {
        let agent = RunningAgent::start_with(&binary, &[])?;
        for round in 0..rounds {
            let copy = folder.join(format!("libTKBO-{}.so.7.6.3", if is_new { round } else { 0 }));
            if is_new || round == 0 {
                std::fs::copy("/usr/lib/x86_64-linux-gnu/libTKBO.so.7.6.3", &copy)?;
            }
            let mut child =
                Command::new(&driver).arg(&copy).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
            std::thread::sleep(std::time::Duration::from_millis(300));
            drop(child.stdin.take());
            child.wait()?;
        }
        text.push_str(&latencies(&agent, name)?);
        agent.stop()?;
    }
    std::fs::remove_dir_all(&folder)?;
    text.push_str(&format!("\nLoad of the machine meanwhile: {}.\n", load()));
    write_page("bench-ready.md", &text)
}

fn load() -> String {
    first_line(Command::new("cut").args(["-d", " ", "-f1", "/proc/loadavg"])).unwrap_or_default()
}

fn latencies(agent: &RunningAgent, name: &str) -> Result<String> {
    let metrics = agent.get("/metrics")?;
    let value = |series: &str| samples(&metrics).find(|one| one.series == series).map(|one| one.value);
    let family = "cadscope_attach_latency_seconds";
    let count = value(&format!("{family}_count")).context("no latency was seen")?;
    let mean = value(&format!("{family}_sum")).context("no latency was seen")? / count * 1000.0;
    let mut row = format!("| {name} | {count:.0} | {mean:.1} |");
    for bound in ["0.01", "0.025", "0.05", "0.1"] {
        let within = value(&format!("{family}_bucket{{le=\"{bound}\"}}")).unwrap_or(0.0);
        write!(row, " {:.1} % |", within / count * 100.0)?;
    }
    row.push('\n');
    Ok(row)
}

/// `VmHWM` of a process, in KiB.
pub(crate) fn highest_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    Ok(line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0))
}
