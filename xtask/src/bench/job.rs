//! Turns pairs of runs into a statement of what being observed costs, in a file that says where it was measured.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::account::Account;
use super::{binary, children, machine, write_page};
use crate::demo;
use crate::places::{cache, freecadcmd, job_script, repository};
use crate::running_agent::RunningAgent;
use crate::setup::{self, Purpose, is_root};
use crate::statistics::{Estimate, estimate, median};

/// What the kernel takes for a trap at a site that it emulates: half the floor of docs/bench-calls.md.
const TRAP_SECONDS: f64 = 700e-9;

/// Seconds of one run.
#[derive(Clone, Copy, Debug)]
struct Cost {
    wall: f64,
    user: f64,
    system: f64,
}

impl Cost {
    fn cpu(self) -> f64 {
        self.user + self.system
    }
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
    let folder = cache()?.join("bench");
    std::fs::create_dir_all(&folder)?;
    let find = "import sys, unittest\nimport TestApp\nfound = unittest.defaultTestLoader.loadTestsFromName('TestApp.All')\n";
    let (script, found) = (folder.join("suite.py"), folder.join("suite-found.py"));
    std::fs::write(&script, format!("{find}unittest.TextTestRunner().run(found)\n"))?;
    std::fs::write(&found, find)?;
    measure(pairs, &script, &found, "suite", "FreeCAD's own tests (`TestApp.All`)")
}

/// `first` maps the files that `script` does: the agent sees it before.
fn measure(pairs: u32, script: &Path, first: &Path, command: &str, what: &str) -> Result<()> {
    if !is_root() {
        bail!("attaching to other processes needs root: run this as root");
    }
    setup::install(Purpose::Demo)?;
    let binary = binary()?;
    let freecad = freecadcmd().context("no freecadcmd")?;
    let mut measured = Vec::new();
    for index in 0..pairs {
        // Alternately, so that what drifts (heat, other guests) does not favour one side.
        let pair = if index % 2 == 0 {
            let alone = run(&freecad, script)?;
            let (observed, agent_cpu) = observed(&binary, &freecad, script, first)?;
            Pair { alone, observed, agent_cpu }
        } else {
            let (observed, agent_cpu) = observed(&binary, &freecad, script, first)?;
            Pair { alone: run(&freecad, script)?, observed, agent_cpu }
        };
        println!(
            "pair {:2} of {pairs}: CPU {:.3} s alone, {:.3} s observed ({:+.2} %); agent {:.3} s",
            index + 1,
            pair.alone.cpu(),
            pair.observed.cpu(),
            (pair.observed.cpu() / pair.alone.cpu() - 1.0) * 100.0,
            pair.agent_cpu
        );
        measured.push(pair);
    }
    let mut text = document(&measured, command, what, &freecad)?;
    let agent = RunningAgent::start(&binary)?;
    run(&freecad, first)?;
    let (account, cost) = Account::during(agent.pid(), || run(&freecad, script))?;
    agent.stop()?;
    text.push_str(&accounted(account, cost));
    write_page(&format!("bench-{command}.md"), &text)
}

/// Which of the times.
type Seconds = fn(Cost) -> f64;

/// The first run lets the agent find and attach the files, as it has in a node's life; the second is measured.
fn observed(binary: &Path, freecad: &Path, script: &Path, first: &Path) -> Result<(Cost, f64)> {
    let agent = RunningAgent::start(binary)?;
    run(freecad, first)?;
    let cost = run(freecad, script)?;
    agent.metrics_after(2.0)?;
    let before = children()?;
    agent.stop()?;
    let after = children()?;
    Ok((cost, after.0 - before.0 + after.1 - before.1))
}

/// What the kernel says of one more run: without the noise that two runs differ by.
fn accounted(account: Account, cost: Cost) -> String {
    let Account { probes, others } = account;
    let share = |seconds: f64| seconds / cost.cpu() * 100.0;
    let traps = probes.count as f64 * TRAP_SECONDS;
    format!(
        "\nOf one more observed run the kernel says (`kernel.bpf_stats_enabled`), of {:.2} s of CPU time, the agent's \
         programs of the whole machine in it:\n\n| | runs | seconds | % of the CPU time |\n|---|---|---|---|\n\
         | programs at the sites of probes | {} | {:.4} | {:.3} |\n| programs at tracepoints | {} | {:.4} | {:.3} |\n\
         | traps of the sites, at {:.0} ns each, see bench-calls | {} | {traps:.4} | {:.3} |\n| together | | {:.4} | {:.3} |\n",
        cost.cpu(),
        probes.count,
        probes.seconds(),
        share(probes.seconds()),
        others.count,
        others.seconds(),
        share(others.seconds()),
        TRAP_SECONDS * 1e9,
        probes.count,
        share(traps),
        probes.seconds() + others.seconds() + traps,
        share(probes.seconds() + others.seconds() + traps),
    )
}

fn run(freecad: &Path, script: &Path) -> Result<Cost> {
    let before = children()?;
    let begin = Instant::now();
    let status = demo::job(freecad, script).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    let wall = begin.elapsed().as_secs_f64();
    let after = children()?;
    if !status.success() {
        bail!("{} failed: {status}", script.display());
    }
    Ok(Cost { wall, user: after.0 - before.0, system: after.1 - before.1 })
}

fn document(pairs: &[Pair], command: &str, what: &str, freecad: &Path) -> Result<String> {
    let mut text = String::from("# What being observed costs a FreeCAD job\n\n");
    writeln!(text, "Written by `cargo xtask bench {command} --pairs {}` for {what}.", pairs.len())?;
    writeln!(
        text,
        "Each pair is one run alone and one beside `cadscope agent`, which had seen the job's files before; the \
         order alternates.\nRatios are observed / alone within a pair: median and its 95 % bootstrap interval.\n"
    )?;
    text.push_str(&machine()?);
    writeln!(text, "- FreeCAD: {}", freecad_version(freecad).unwrap_or_else(|| "unknown".to_owned()))?;
    text.push_str("\n| | alone, s | observed, s | ratio | 95 % interval |\n|---|---|---|---|---|\n");
    let rows: [(&str, Seconds); 4] = [
        ("CPU (user + system)", Cost::cpu),
        ("user", |cost| cost.user),
        ("system", |cost| cost.system),
        ("wall", |cost| cost.wall),
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
        let cost = |cpu: f64| Cost { wall: cpu, user: cpu / 2.0, system: cpu / 2.0 };
        let pair = Pair { alone: cost(1.0), observed: cost(1.5), agent_cpu: 0.25 };
        let text = document(&[pair; 5], "job", "`job.py`", Path::new("/nonexistent")).unwrap();
        assert!(
            text.contains("| CPU (user + system) | 1.000 | 1.500 | 1.5000 | 1.5000 – 1.5000 |"),
            "{text}"
        );
        let runs = |count, ns| Runs { count, ns };
        let account = Account { probes: runs(1_000_000, 200_000_000), others: runs(10, 100_000_000) };
        let said = accounted(account, cost(100.0));
        assert!(said.contains("| together | | 1.0000 | 1.000 |"), "{said}");
        assert!(text.contains("0.250 s of CPU") && text.contains("FreeCAD: unknown"), "{text}");
    }
}
