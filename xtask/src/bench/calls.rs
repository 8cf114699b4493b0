//! Turns millions of calls of real OCCT functions into what observing one of them costs: docs/bench-calls.md.
//!
//! One process calls a function in batches while it is observed in turn by nothing, by probes that do nothing (the
//! kernel's own cost, the floor), by cadscope, by probes that do nothing on its first instruction and its `ret`, and by
//! bpftrace's uprobe and uretprobe. Every way has its turn in every round, so that what drifts favours none. Times are
//! those of the calling thread's CPU.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{binary, compile, machine, write_page};
use crate::places::cache;
use crate::running_agent::RunningAgent;
use crate::setup::is_root;
use crate::shell::{cargo, run};
use crate::statistics::{estimate, median};

pub(super) const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libTKMath.so.7.6.3";
const BATCHES: u32 = 60;
const CALLS: u32 = 1000;

/// A function, and what is read of it.
struct Case {
    name: &'static str,
    function: &'static str,
    symbol: &'static str,
    /// Further lines of its catalogue entry.
    values: &'static str,
}

pub(super) const DISTANCE: &str = "_ZNK7Bnd_Box8DistanceERKS_";
const CASES: [Case; 3] = [
    Case { name: "both sites emulated", function: "Bnd_Box::Distance", symbol: DISTANCE, values: "" },
    Case {
        name: "the same, two values read at the entry and one at the exit",
        function: "Bnd_Box::Distance",
        symbol: DISTANCE,
        values: "[[probe.layout]]\n[probe.layout.enter]\na = \"i32[this + 0x38]\"\nb = \"i32[arg1 + 0x38]\"\n\
                 [probe.layout.leave]\nc = \"i32[this + 0x38]\"\n",
    },
    Case {
        name: "exit single-stepped (`ret`)",
        function: "gp_Trsf::SetRotation",
        symbol: "_ZN7gp_Trsf11SetRotationERK6gp_Ax1d",
        values: "",
    },
];

/// Ways to observe, in the order of the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Alone,
    Floor,
    Cadscope,
    FirstAndReturn,
    Bpftrace,
}

const WAYS: [Way; 5] = [Way::Alone, Way::Floor, Way::Cadscope, Way::FirstAndReturn, Way::Bpftrace];

/// Measures and writes.
pub(crate) fn calls(rounds: u32) -> Result<()> {
    ensure!(is_root(), "attaching to other processes needs root: run this as root");
    let agent = binary()?;
    let bare = bare_probes()?;
    let driver = compile("calls.c")?;
    let mut text = format!(
        "# What observing one call costs\n\nWritten by `cargo xtask bench calls --rounds {rounds}`: nanoseconds of CPU \
         time that an observed call takes beyond an\nunobserved one, entry and exit together. Median of {rounds} rounds \
         of {BATCHES} batches of {CALLS} calls; in each round every way\nhas its turn. The floor is a program that does \
         nothing on the sites that cadscope chose. bpftrace's program is a uprobe\nthat notes the time and a uretprobe \
         that adds the difference to a histogram.\n\n"
    );
    text.push_str(&machine()?);
    text.push_str(
        "\n| function | sites | floor | cadscope | empty program on first instruction and `ret` | bpftrace | cadscope / \
         floor | cadscope / first and `ret` | cadscope / bpftrace |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for case in &CASES {
        writeln!(text, "{}", row(case, rounds, &agent, &bare, &driver)?)?;
    }
    write_page("bench-calls.md", &text)
}

/// Measures one function.
fn row(case: &Case, rounds: u32, agent: &Path, bare: &Path, driver: &Path) -> Result<String> {
    let catalog = cache()?.join("bench/calls.toml");
    std::fs::write(&catalog, entry_of(case.function, case.symbol, case.values))?;
    let sites = Places::find(case, agent, &catalog)?;
    let mut caller = Caller::start(driver, case.symbol)?;
    let mut costs = [const { Vec::new() }; WAYS.len()];
    for round in 0..rounds {
        for (way, costs) in WAYS.iter().zip(&mut costs) {
            costs.push(match way {
                Way::Alone => caller.cost()?,
                Way::Floor => with_bare(bare, &sites.chosen, &mut caller)?,
                Way::FirstAndReturn => with_bare(bare, &sites.first_and_return, &mut caller)?,
                Way::Cadscope => with_agent(agent, &catalog, rounds, &mut caller)?,
                Way::Bpftrace => with_bpftrace(case.symbol, &mut caller)?,
            });
        }
        let last: Vec<f64> = costs.iter().filter_map(|costs| costs.last().copied()).collect();
        println!("{}, round {}: {last:.0?}", case.name, round + 1);
    }
    let [alone, others @ ..] = &costs;
    let alone = median(alone).context("no rounds")?;
    let beyond = |way: usize| -> Result<Vec<f64>> {
        Ok(others.get(way).context("no such way")?.iter().map(|cost| cost - alone).collect())
    };
    let [floor, ours, first, traced] = [beyond(0)?, beyond(1)?, beyond(2)?, beyond(3)?];
    let ratio = |other: &[f64]| -> Result<String> {
        let ratios: Vec<f64> = ours.iter().zip(other).map(|(ours, other)| ours / other).collect();
        let found = estimate(&ratios).context("no rounds")?;
        Ok(format!("{:.2} ({:.2} – {:.2})", found.median, found.low, found.high))
    };
    let middle = |costs: &[f64]| median(costs).unwrap_or(f64::NAN);
    Ok(format!(
        "| {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {} | {} | {} |",
        case.function,
        case.name,
        middle(&floor),
        middle(&ours),
        middle(&first),
        middle(&traced),
        ratio(&floor)?,
        ratio(&first)?,
        ratio(&traced)?
    ))
}

pub(super) fn entry_of(function: &str, symbol: &str, values: &str) -> String {
    format!(
        "[[probe]]\nid = \"bench.call\"\nfunction = \"{function}\"\nsymbols = [\"{symbol}\"]\ntitle = \"call\"\n\
         metric = \"bench_call_seconds\"\nhelp = \"Time of a call.\"\n{values}"
    )
}

/// File offsets.
struct Places {
    chosen: Vec<u64>,
    first_and_return: Vec<u64>,
}

impl Places {
    /// The sites as cadscope chooses them, and those that it would have without choice.
    fn find(case: &Case, agent: &Path, catalog: &Path) -> Result<Self> {
        let answer = Command::new(agent).args(["probes", "--catalog"]).arg(catalog).arg(LIBRARY).output()?;
        let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
        let line = answer.lines().find(|line| line.trim_start().starts_with("bench.call"));
        let line = line.with_context(|| format!("{} is not placed:\n{answer}", case.symbol))?;
        // A site says how it is run; other addresses stand in the reasons.
        let words: Vec<&str> = line.split_whitespace().collect();
        let site = |pair: &[&str]| match pair {
            [at, "emulated" | "emulated," | "stepped"] => {
                u64::from_str_radix(at.strip_prefix("0x")?, 16).ok()
            }
            _ => None,
        };
        let chosen: Vec<u64> = words.windows(2).filter_map(site).collect();
        Ok(Self { chosen, first_and_return: first_and_return(case.symbol)? })
    }
}

/// By objdump: code of this library lies at its address in the file.
fn first_and_return(symbol: &str) -> Result<Vec<u64>> {
    let answer = Command::new("objdump")
        .args(["-d", "-w", "--no-show-raw-insn", &format!("--disassemble={symbol}"), LIBRARY])
        .output()
        .context("objdump: apt-get install binutils")?;
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    let code: Vec<(u64, &str)> = answer
        .lines()
        .filter_map(|line| line.split_once(":\t"))
        .filter_map(|(at, text)| Some((u64::from_str_radix(at.trim(), 16).ok()?, text.trim())))
        .collect();
    let first = code.first().context("objdump shows no code")?.0;
    let returns = code.iter().filter(|(_, text)| *text == "ret").map(|(at, _)| *at);
    Ok(std::iter::once(first).chain(returns).collect())
}

/// The example of the agent that places empty programs.
pub(super) fn bare_probes() -> Result<PathBuf> {
    let mut build = cargo()?;
    run(build.args(["build", "--package", "cadscope", "--example", "bare_probes"]))?;
    Ok(crate::places::target_dir()?.join("debug/examples/bare_probes"))
}

/// The process that calls.
struct Caller {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Caller {
    fn start(driver: &Path, symbol: &str) -> Result<Self> {
        let mut child = Command::new(driver)
            .args([LIBRARY, symbol, &BATCHES.to_string(), &CALLS.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut caller = Self { child, input, output };
        ensure!(caller.line()?.trim() == "ready", "{} did not start", driver.display());
        Ok(caller)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line)
    }

    /// Nanoseconds a call.
    fn cost(&mut self) -> Result<f64> {
        // One turn to warm up, one that counts.
        let mut cost = 0.0;
        for _ in 0..2 {
            self.input.as_ref().context("no input")?.write_all(b"go\n")?;
            let line = self.line()?;
            cost = line.split_whitespace().next().context("the caller ended")?.parse()?;
        }
        Ok(cost)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        // The end of its input is the end of its loop.
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

fn with_bare(program: &Path, offsets: &[u64], caller: &mut Caller) -> Result<f64> {
    let mut child = Command::new(program)
        .arg(LIBRARY)
        .args(offsets.iter().map(u64::to_string))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    // It says more than that: what it writes to must stay open until it has ended.
    let mut output = BufReader::new(child.stdout.take().context("no output")?);
    output.read_line(&mut line)?;
    let cost = if line.trim() == "ready" { caller.cost() } else { Err(anyhow::anyhow!("no probes")) };
    drop(child.stdin.take());
    let status = child.wait()?;
    ensure!(status.success(), "the empty programs ended with {status}");
    drop(output);
    cost
}

fn with_agent(binary: &Path, catalog: &Path, rounds: u32, caller: &mut Caller) -> Result<f64> {
    let catalog = catalog.display().to_string();
    let agent = RunningAgent::start_with(binary, &["--catalog", &catalog])?;
    let cost = caller.cost()?;
    // Seen, not only slowed down.
    let seen = f64::from(BATCHES * CALLS);
    for _ in 0..50 {
        let metrics = agent.get("/metrics")?;
        let counted = crate::running_agent::samples(&metrics)
            .filter(|one| one.name == "bench_call_seconds_count")
            .map(|one| one.value)
            .sum::<f64>();
        if counted >= seen {
            agent.stop()?;
            return Ok(cost);
        }
        sleep(Duration::from_millis(100));
    }
    bail!("cadscope did not count the calls of one of {rounds} rounds")
}

fn with_bpftrace(symbol: &str, caller: &mut Caller) -> Result<f64> {
    let place = format!("{LIBRARY}:{symbol}");
    let program = format!(
        "BEGIN {{ printf(\"ready\\n\"); }} uprobe:{place} {{ @start[tid] = nsecs; }} \
         uretprobe:{place} /@start[tid]/ {{ @ns = hist(nsecs - @start[tid]); delete(@start[tid]); }}"
    );
    let mut child = Command::new("bpftrace")
        .args(["-e", &program])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("bpftrace: cargo xtask setup")?;
    let mut output = BufReader::new(child.stdout.take().context("no output")?);
    let mut line = String::new();
    while line.trim() != "ready" {
        line.clear();
        ensure!(output.read_line(&mut line)? > 0, "bpftrace ended");
    }
    // Its first probe has run; the others are placed at the same time.
    sleep(Duration::from_millis(300));
    let cost = caller.cost();
    crate::running_agent::interrupt(&child)?;
    drop(output);
    child.wait()?;
    cost
}
