//! Turns pairs of runs into a statement of what being observed costs, in a file that says where it was measured.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::account::Account;
use super::parts::{Disturbed, Parts, costs};
use super::{Used, binary, children, machine, write_page};
use crate::demo;
use crate::places::{cache, freecadcmd, job_script, repository};
use crate::running_agent::RunningAgent;
use crate::setup::{self, Purpose, is_root};
use crate::statistics::{Estimate, estimate, median};

/// Row of docs/bench-calls.md whose floor is two traps at sites that the kernel emulates.
const TWO_TRAPS: &str = "| both sites emulated |";

/// What one run cost.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Seconds from its begin to its end.
    wall: f64,
    used: Used,
}

/// A run; the job may have said what its parts took.
struct Run {
    cost: Cost,
    parts: Option<Parts>,
}

/// Two runs of the same job.
#[derive(Clone, Copy, Debug)]
struct Pair {
    alone: Cost,
    observed: Cost,
    /// CPU seconds of the agent itself, from its start to its end, its first attach and an unmeasured run included.
    agent_cpu: f64,
}

/// Measures a job and writes docs/bench-job.md.
pub(crate) fn job(pairs: u32, script: Option<PathBuf>) -> Result<()> {
    let script = job_script(script)?;
    let shown = script.strip_prefix(repository()?).unwrap_or(&script).display().to_string();
    measure(pairs, &script, &script, "job", &format!("`{shown}`"))
}

/// Measures FreeCAD's own tests and writes docs/bench-suite.md.
pub(crate) fn suite(pairs: u32) -> Result<()> {
    let (script, first) = suite_scripts()?;
    measure(pairs, &script, &first, "suite", "FreeCAD's own tests (`TestApp.All`)")
}

/// FreeCAD's own tests, and what only maps the files that they do.
pub(super) fn suite_scripts() -> Result<(PathBuf, PathBuf)> {
    let folder = cache()?.join("bench");
    std::fs::create_dir_all(&folder)?;
    let first = folder.join("suite-found.py");
    std::fs::write(
        &first,
        "import unittest\nimport TestApp\nunittest.defaultTestLoader.loadTestsFromName('TestApp.All')\n",
    )?;
    Ok((repository()?.join("xtask/bench/suite.py"), first))
}

/// `first` maps the files that `script` does: the agent sees it before.
fn measure(pairs: u32, script: &Path, first: &Path, command: &str, what: &str) -> Result<()> {
    if !is_root() {
        bail!("attaching to other processes needs root: run this as root");
    }
    setup::install(Purpose::Demo)?;
    let binary = binary()?;
    let freecad = freecadcmd().context("no freecadcmd")?;
    let (mut measured, mut parts) = (Vec::new(), Vec::new());
    for index in 0..pairs {
        // Alternately, so that what drifts (heat, other guests) does not favour one side.
        let (alone, (observed, agent_cpu)) = if index % 2 == 0 {
            let alone = alone(&freecad, script, first)?;
            (alone, observed(&binary, &freecad, script, first)?)
        } else {
            let observed = observed(&binary, &freecad, script, first)?;
            (alone(&freecad, script, first)?, observed)
        };
        let pair = Pair { alone: alone.cost, observed: observed.cost, agent_cpu };
        parts.extend(alone.parts.zip(observed.parts));
        println!(
            "pair {:2} of {pairs}: CPU {:.3} s alone, {:.3} s observed ({:+.2} %); agent {:.3} s",
            index + 1,
            pair.alone.used.cpu(),
            pair.observed.used.cpu(),
            (pair.observed.used.cpu() / pair.alone.used.cpu() - 1.0) * 100.0,
            pair.agent_cpu
        );
        measured.push(pair);
    }
    let mut text = document(&measured, command, what, &freecad)?;
    let agent = RunningAgent::start(&binary)?;
    run(&freecad, first)?;
    let (account, run) = Account::during(agent.pid(), || run(&freecad, script))?;
    agent.stop()?;
    let calls = std::fs::read_to_string(repository()?.join("docs/bench-calls.md"))?;
    let trap = trap_seconds(&calls).context("docs/bench-calls.md has no floor: cargo xtask bench calls")?;
    // Too short for the machine's other guests to disturb most runs of each.
    if let Some(costs) = costs(&parts, Disturbed::Runs) {
        text.push_str(&costs.text(parts.len()));
    }
    text.push_str(&accounted(account, run.cost, trap));
    write_page(&format!("bench-{command}.md"), &text)
}

/// Which part of a cost.
type Part = fn(Cost) -> f64;

/// What comes before is the same as when it is observed.
fn alone(freecad: &Path, script: &Path, first: &Path) -> Result<Run> {
    run(freecad, first)?;
    run(freecad, script)
}

/// The first run lets the agent find and attach the files, as it has in a node's life; the second is measured.
fn observed(binary: &Path, freecad: &Path, script: &Path, first: &Path) -> Result<(Run, f64)> {
    let agent = RunningAgent::start(binary)?;
    run(freecad, first)?;
    let run = run(freecad, script)?;
    agent.metrics_after(2.0)?;
    let before = children()?;
    agent.stop()?;
    Ok((run, children()?.since(before).cpu()))
}

/// What the kernel takes for a trap, as it was measured last.
fn trap_seconds(calls: &str) -> Option<f64> {
    let floor = calls.lines().find_map(|line| line.split_once(TWO_TRAPS)?.1.split('|').next())?;
    Some(floor.trim().parse::<f64>().ok()? / 2.0 / 1e9)
}

/// What the kernel says of one more run: without the noise that two runs differ by.
fn accounted(account: Account, cost: Cost, trap: f64) -> String {
    let Account { probes, others } = account;
    let share = |seconds: f64| seconds / cost.used.cpu() * 100.0;
    let traps = probes.count as f64 * trap;
    format!(
        "\nOf one more observed run the kernel says (`kernel.bpf_stats_enabled`), of {:.2} s of CPU time, the agent's \
         programs of the whole machine in it:\n\n| | runs | seconds | % of the CPU time |\n|---|---|---|---|\n\
         | programs at the sites of probes | {} | {:.4} | {:.3} |\n| programs at tracepoints | {} | {:.4} | {:.3} |\n\
         | traps of the sites, at {:.0} ns each, see bench-calls | {} | {traps:.4} | {:.3} |\n| together | | {:.4} | {:.3} |\n",
        cost.used.cpu(),
        probes.count,
        probes.seconds(),
        share(probes.seconds()),
        others.count,
        others.seconds(),
        share(others.seconds()),
        trap * 1e9,
        probes.count,
        share(traps),
        probes.seconds() + others.seconds() + traps,
        share(probes.seconds() + others.seconds() + traps),
    )
}

/// What a job is run with, alone and observed, so that it does the same in each run. Hashes are not drawn anew, nor, by
/// `setarch -R`, places in memory. And the heap is not given back whenever its end happens to be free: some runs of
/// FreeCAD's tests call brk 2,400 times, others 3,700 times and have 110,000 page faults more, alone as observed.
pub(super) const SETTINGS: [(&str, &str); 4] = [
    ("QT_QPA_PLATFORM", "offscreen"),
    ("PYTHONHASHSEED", "0"),
    ("MALLOC_TRIM_THRESHOLD_", "1073741824"),
    ("MALLOC_MMAP_THRESHOLD_", "33554432"),
];
/// What they and the layout mean to a reader.
pub(super) const SETTINGS_TOLD: &str = "Hashes and places in memory are the same in all runs, and the heap is not given \
     back (PYTHONHASHSEED, no ASLR, MALLOC_TRIM_THRESHOLD_): where its end\nhappens to lie decides otherwise over 110,000 of \
     600,000 page faults of FreeCAD's tests, alone as observed.";

fn run(freecad: &Path, script: &Path) -> Result<Run> {
    let file = tempfile::NamedTempFile::new()?;
    let mut job = Command::new("setarch");
    job.arg("-R").arg(freecad).arg(script).stdin(Stdio::null());
    job.envs(SETTINGS).env("CADSCOPE_PARTS", file.path());
    let before = children()?;
    let begin = Instant::now();
    let status = job.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    let wall = begin.elapsed().as_secs_f64();
    let used = children()?.since(before);
    if !status.success() {
        bail!("{} failed: {status}", script.display());
    }
    let said = file.as_file().metadata()?.len() > 0;
    let parts = said.then(|| Parts::read(file.path())).transpose()?;
    Ok(Run { cost: Cost { wall, used }, parts })
}

fn document(pairs: &[Pair], command: &str, what: &str, freecad: &Path) -> Result<String> {
    let mut text = String::from("# What being observed costs a FreeCAD job\n\n");
    writeln!(text, "Written by `cargo xtask bench {command} --pairs {}` for {what}.", pairs.len())?;
    writeln!(
        text,
        "Each pair is one run alone and one beside `cadscope agent`, which had seen the job's files before; the \
         order alternates.\n{SETTINGS_TOLD}\nRatios are observed / alone within a pair: median and its 95 % bootstrap interval.\n"
    )?;
    text.push_str(&machine()?);
    writeln!(text, "- FreeCAD: {}", freecad_version(freecad).unwrap_or_else(|| "unknown".to_owned()))?;
    text.push_str("\n| | alone | observed | ratio | 95 % interval |\n|---|---|---|---|---|\n");
    let rows: [(&str, Part); 5] = [
        ("CPU (user + system), s", |cost| cost.used.cpu()),
        ("user, s", |cost| cost.used.user),
        ("system, s", |cost| cost.used.system),
        ("wall, s", |cost| cost.wall),
        ("page faults, thousands", |cost| cost.used.faults / 1e3),
    ];
    for (name, of) in rows {
        let column = |side: fn(&Pair) -> Cost| pairs.iter().map(|pair| of(side(pair))).collect::<Vec<_>>();
        let ratios: Vec<f64> = pairs.iter().map(|pair| of(pair.observed) / of(pair.alone)).collect();
        let Estimate { median: ratio, low, high } = estimate(&ratios).context("no pairs")?;
        writeln!(
            text,
            "| {name} | {:.3} | {:.3} | {ratio:.4} | {low:.4} – {high:.4} |",
            median(&column(|pair| pair.alone)).context("no pairs")?,
            median(&column(|pair| pair.observed)).context("no pairs")?,
        )?;
    }
    let agent: Vec<f64> = pairs.iter().map(|pair| pair.agent_cpu).collect();
    writeln!(
        text,
        "\nThe agent itself used {:.3} s of CPU (median) from its start to its end, both runs and the first attach \
         included.",
        median(&agent).context("no pairs")?
    )?;
    Ok(text)
}

/// From the greeting with which it starts: in 0.20 `--version` crashes.
fn freecad_version(freecad: &Path) -> Option<String> {
    let answer = demo::job(freecad, Path::new("/dev/null")).output().ok()?;
    let said = [answer.stdout, answer.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let greeting = said.lines().find_map(|line| line.strip_prefix("FreeCAD "))?;
    Some(greeting.split(',').next().unwrap_or(greeting).to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::account::Runs;
    use super::*;

    #[test]
    fn the_table_states_ratio_and_interval() {
        let used = |cpu: f64| Used { user: cpu / 2.0, system: cpu / 2.0, faults: 1e6 };
        let cost = |cpu: f64| Cost { wall: cpu, used: used(cpu) };
        let pair = Pair { alone: cost(1.0), observed: cost(1.5), agent_cpu: 0.25 };
        let text = document(&[pair; 5], "job", "`job.py`", Path::new("/nonexistent")).unwrap();
        assert!(
            text.contains("| CPU (user + system), s | 1.000 | 1.500 | 1.5000 | 1.5000 – 1.5000 |"),
            "{text}"
        );
        let runs = |count, ns| Runs { count, ns };
        let account = Account { probes: runs(1_000_000, 200_000_000), others: runs(10, 100_000_000) };
        let page = "| Bnd_Box::Distance | both sites emulated | 1400 | 1800 |\n";
        assert_eq!(trap_seconds("no table"), None);
        let said = accounted(account, cost(100.0), trap_seconds(page).unwrap());
        assert!(said.contains("| together | | 1.0000 | 1.000 |"), "{said}");
        assert!(text.contains("0.250 s of CPU") && text.contains("FreeCAD: unknown"), "{text}");
    }
}
