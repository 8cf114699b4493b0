//! Turns loads on the agent into what it uses and what it loses: docs/bench-throughput.md and docs/bench-scale.md.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::calls::{DISTANCE, LIBRARY, entry_of};
use super::{binary, compile, machine, write_page};
use crate::places::cache;
use crate::running_agent::{RunningAgent, samples};
use crate::setup::is_root;

/// Operations a second; 0 is as many as there can be.
const RATES: [u32; 5] = [1_000, 10_000, 100_000, SUSTAINED, 0];
/// The rate that is to be borne for as long as is asked; the others take so many seconds at most.
const SUSTAINED: u32 = 200_000;
const SHORT: u32 = 10;
/// Workers, and from how many images of the same libraries.
const WORKERS: [(usize, usize); 5] = [(1, 1), (50, 1), (200, 1), (20, 20), (100, 100)];
const FOLDER: &str = "/usr/lib/x86_64-linux-gnu";

/// A program that waits for its input.
struct Waiting {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Waiting {
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut waiting = Self { child, output };
        ensure!(waiting.line()?.trim() == "ready", "{command:?} did not start");
        Ok(waiting)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// What one rate came to.
struct Turn {
    calls: u64,
    seconds: f64,
    counted: f64,
    lost: f64,
    cpu_percent: f64,
    resident_mib: f64,
}

/// Measures at growing rates and writes.
pub(crate) fn throughput(seconds: u32) -> Result<()> {
    ensure!(is_root(), "attaching to other processes needs root: run this as root");
    let (agent, driver) = (binary()?, compile("load.c")?);
    let mut text = format!(
        "# How many operations a second the agent takes\n\nWritten by `cargo xtask bench throughput --seconds {seconds}`: two \
         threads call `Bnd_Box::Distance`, and each call is an\noperation with a record. Counted are those that `/metrics` \
         shows, lost those that it says are lost; made = counted + lost.\nThe rate of 200,000 is held that long, the others 10 s at most. The last lines leave the budget as it is: beyond \
         50,000 a second calls are counted in the kernel, beyond 500,000 the\nprobes are taken away: calls after that are \
         missing, on purpose.\n\n"
    );
    text.push_str(&machine()?);
    text.push_str(
        "\n| wanted a second | made a second | made | counted | lost | missing | agent's CPU, % of one | agent's memory, MiB \
         |\n|---|---|---|---|---|---|---|---|\n",
    );
    for (rate, budget) in RATES.iter().map(|rate| (*rate, false)).chain([(SUSTAINED, true), (0, true)]) {
        let seconds = if rate == SUSTAINED && !budget { seconds } else { seconds.min(SHORT) };
        let turn = turn(rate, seconds, budget, &agent, &driver)?;
        writeln!(
            text,
            "| {}{} | {:.0} | {} | {:.0} | {:.0} | {:.0} | {:.1} | {:.1} |",
            if rate == 0 { "all".to_owned() } else { rate.to_string() },
            if budget { ", with the budget" } else { "" },
            turn.calls as f64 / turn.seconds,
            turn.calls,
            turn.counted,
            turn.lost,
            turn.calls as f64 - turn.counted - turn.lost,
            turn.cpu_percent,
            turn.resident_mib
        )?;
        println!("{}", text.lines().last().unwrap_or_default());
    }
    write_page("bench-throughput.md", &text)
}

fn turn(rate: u32, seconds: u32, budget: bool, agent: &Path, driver: &Path) -> Result<Turn> {
    let catalog = cache()?.join("bench/load.toml");
    fs::write(&catalog, entry_of("Bnd_Box::Distance", DISTANCE, ""))?;
    let words = [LIBRARY, DISTANCE, &rate.to_string(), &seconds.to_string(), "2"].map(str::to_owned);
    let mut load = Waiting::start(Command::new(driver).args(words))?;
    let catalog = catalog.display().to_string();
    let mut arguments = vec!["--catalog", &catalog];
    if !budget {
        arguments.extend(["--count-above", "4000000000", "--remove-above", "4000000000"]);
    }
    let agent = RunningAgent::start_with(agent, &arguments)?;
    let before = sum(&agent, "process_cpu_seconds_total")?;
    let begin = Instant::now();
    load.child.stdin.as_ref().context("no input")?.write_all(b"\n")?;
    let line = load.line()?;
    let cpu = sum(&agent, "process_cpu_seconds_total")? - before;
    let cpu_percent = cpu / begin.elapsed().as_secs_f64() * 100.0;
    let mut numbers = line.split_whitespace();
    let calls: u64 = numbers.next().context("no count")?.parse()?;
    let seconds: f64 = numbers.next().context("no time")?.parse()?;
    let (mut counted, mut lost) = (0.0, 0.0);
    // What is still in the ring or in the kernel's counts arrives within two seconds.
    for _ in 0..40 {
        counted = sum(&agent, "bench_call_seconds_count")?;
        lost = sum(&agent, "cadscope_events_lost_total")?;
        if counted + lost >= calls as f64 {
            break;
        }
        sleep(Duration::from_millis(100));
    }
    let resident_mib = sum(&agent, "process_resident_memory_bytes")? / 1_048_576.0;
    agent.stop()?;
    Ok(Turn { calls, seconds, counted, lost, cpu_percent, resident_mib })
}

/// Measures beside idle workers and writes.
pub(crate) fn scale(seconds: u32) -> Result<()> {
    ensure!(is_root(), "attaching to other processes needs root: run this as root");
    let (binary, driver) = (binary()?, compile("idle.c")?);
    let libraries = ["libTKBO.so.7.6.3", "libTKFillet.so.7.6.3", "libTKSTEP.so.7.6.3", "libTKMesh.so.7.6.3"];
    let mut text = format!(
        "# What the agent uses beside idle workers\n\nWritten by `cargo xtask bench scale --seconds {seconds}`: each worker maps \
         OCCT's booleans, fillets, mesher and STEP, of one of so many images, and does nothing.\n\n"
    );
    text.push_str(&machine()?);
    text.push_str(
        "\n| workers | images | agent's CPU, % of one | agent's memory, MiB | its highest, MiB |\n|---|---|---|---|---|\n",
    );
    let folder = cache()?.join("bench/images");
    for (count, images) in WORKERS {
        let images = copies(&folder, &libraries, images)?;
        let workers: Vec<Waiting> = (0..count)
            .zip(images.iter().cycle())
            .map(|(_, image)| Waiting::start(Command::new(&driver).args(image)))
            .collect::<Result<_>>()?;
        let agent = RunningAgent::start_with(&binary, &[])?;
        // The first look is over; two seconds later its memory has been given back.
        sleep(Duration::from_secs(4));
        let (before, begin) = (sum(&agent, "process_cpu_seconds_total")?, Instant::now());
        sleep(Duration::from_secs(seconds.into()));
        let cpu = sum(&agent, "process_cpu_seconds_total")? - before;
        let resident = sum(&agent, "process_resident_memory_bytes")?;
        writeln!(
            text,
            "| {count} | {} | {:.2} | {:.1} | {:.1} |",
            images.len(),
            cpu / begin.elapsed().as_secs_f64() * 100.0,
            resident / 1_048_576.0,
            agent.highest_kib()? as f64 / 1024.0
        )?;
        println!("{}", text.lines().last().unwrap_or_default());
        agent.stop()?;
        drop(workers);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    write_page("bench-scale.md", &text)
}

/// The libraries of so many images: what is installed, or as many copies of it.
fn copies(folder: &Path, libraries: &[&str], images: usize) -> Result<Vec<Vec<PathBuf>>> {
    let installed = |name: &&str| Path::new(FOLDER).join(name);
    if images == 1 {
        return Ok(vec![libraries.iter().map(installed).collect()]);
    }
    let copy = |image: usize| {
        let folder = folder.join(image.to_string());
        fs::create_dir_all(&folder)?;
        let copied = libraries.iter().map(|name| {
            let to = folder.join(name);
            fs::copy(installed(name), &to).with_context(|| to.display().to_string())?;
            Ok(to)
        });
        copied.collect()
    };
    (0..images).map(copy).collect()
}

fn sum(agent: &RunningAgent, name: &str) -> Result<f64> {
    let metrics = agent.get("/metrics")?;
    Ok(samples(&metrics).filter(|one| one.name == name).map(|one| one.value).sum())
}
