//! Turns runs of a job in an emulated machine, which counts instructions, into what being observed costs it of them.
//!
//! Valgrind's counter sees nothing of a probe: while valgrind runs a file it has none. The emulator sees all that is
//! executed for a process, the kernel's part too, and what else the machine does changes nothing about it.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::job::{freecad_version, suite_scripts};
use super::{binary, machine, write_page};
use crate::builds;
use crate::places::{freecadcmd, job_script, repository};
use crate::setup::{self, Purpose};
use crate::statistics::median;
use crate::vm::guest::{Cgroups, Clock, Step, boot};
use crate::vm::kernel::KERNELS;

/// The kernel of the guest.
const KERNEL: &str = "6.12";

/// A run of the guest.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Run {
    user: f64,
    system: f64,
    /// Records that the agent got; 0 alone.
    records: f64,
}

/// Which of a run's numbers.
type Part = fn(Run) -> f64;

impl Run {
    fn all(self) -> f64 {
        self.user + self.system
    }
}

/// Measures the demo's job and FreeCAD's own tests, so many pairs of each, and writes docs/bench-instructions.md.
pub(crate) fn instructions(pairs: &[u32]) -> Result<()> {
    setup::install(Purpose::Test)?;
    builds::make(&["qemu".to_owned(), format!("linux-{KERNEL}")])?;
    let (agent, freecad) = (binary()?.canonicalize()?, freecadcmd().context("no freecadcmd")?);
    let job = job_script(None)?;
    let (tests, import) = suite_scripts()?;
    let mut text = format!(
        "# What being observed costs a FreeCAD job, in instructions\n\nWritten by `cargo xtask bench instructions --pairs \
         {}`: an emulated machine (QEMU, Linux {KERNEL}, one processor) whose\nclock counts instructions, so that the CPU \
         time of a process is how many were executed for it, by itself and by the kernel, and nothing\nelse that this \
         machine does is in it. Median of the runs, in millions, and between what they lay. What an instruction takes is \
         not in it:\na processor needs longer for a trap than for another instruction.\n\n",
        pairs.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
    );
    text.push_str(&machine()?);
    writeln!(text, "- FreeCAD: {}", freecad_version(&freecad).unwrap_or_else(|| "unknown".to_owned()))?;
    text.push_str(
        "\n| job | | alone | observed | more | % more | records |\n|---|---|---|---|---|---|---|\n",
    );
    let jobs =
        [("`xtask/demo/job.py`", &job, &job), ("FreeCAD's own tests (`TestApp.All`)", &import, &tests)];
    for ((name, first, script), count) in jobs.into_iter().zip(pairs).filter(|(_, count)| **count > 0) {
        let (alone, observed) = measure(&agent, &freecad, first, script, *count)?;
        text.push_str(&rows(name, &alone, &observed).context("no runs")?);
    }
    write_page("bench-instructions.md", &text)
}

/// Runs of a guest, alone and observed.
fn measure(
    agent: &Path,
    freecad: &Path,
    first: &Path,
    script: &Path,
    pairs: u32,
) -> Result<(Vec<Run>, Vec<Run>)> {
    let kernel = KERNELS.iter().find(|kernel| kernel.name == KERNEL).context("no such kernel")?;
    let words = [agent, freecad, first, script].map(|path| path.display().to_string()).join(" ");
    let program = repository()?.join("xtask/bench/guest.py");
    let step = Step {
        command: format!("python3 {} {words} {pairs}", program.display()),
        limit: Duration::from_secs(3600 * u64::from(pairs)),
    };
    let outcome = boot(kernel, Cgroups::V2, Clock::Instructions, &[step])?;
    ensure!(outcome.ended == [0], "the guest did not measure: {outcome:?}");
    let runs = |kind: &str| outcome.said.iter().filter_map(|line| run(line.strip_prefix(kind)?)).collect();
    Ok((runs("alone "), runs("observed ")))
}

/// Nanoseconds of user and system time and, if it was observed, records.
fn run(line: &str) -> Option<Run> {
    let mut numbers = line.split(' ').map(|word| word.parse().ok());
    Some(Run {
        user: numbers.next()??,
        system: numbers.next()??,
        records: numbers.next().flatten().unwrap_or(0.0),
    })
}

fn rows(name: &str, alone: &[Run], observed: &[Run]) -> Option<String> {
    let mut text = String::new();
    let of = |runs: &[Run], part: Part| runs.iter().map(|run| part(*run) / 1e6).collect::<Vec<_>>();
    let records = median(&observed.iter().map(|run| run.records).collect::<Vec<_>>())?;
    let parts: [(&str, Part); 3] =
        [("all", Run::all), ("its own", |run| run.user), ("the kernel's", |run| run.system)];
    for (part, number) in parts {
        let (alone, observed) = (of(alone, number), of(observed, number));
        let (before, after) = (median(&alone)?, median(&observed)?);
        let spread = |values: &[f64]| {
            let (low, high) =
                values.iter().fold((f64::MAX, 0.0_f64), |(low, high), v| (low.min(*v), high.max(*v)));
            format!("{low:.1} – {high:.1}")
        };
        let _ = writeln!(
            text,
            "| {name} | {part} | {before:.1} ({}) | {after:.1} ({}) | {:.1} | {:.3} | {records:.0} |",
            spread(&alone),
            spread(&observed),
            after - before,
            (after / before - 1.0) * 100.0
        );
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read_and_compared() {
        assert_eq!(run("1000000 2000000"), Some(Run { user: 1e6, system: 2e6, records: 0.0 }));
        assert_eq!(run("1 2 3"), Some(Run { user: 1.0, system: 2.0, records: 3.0 }));
        assert_eq!(run("1 x"), None);
        let (alone, observed) = (run("100000000 0").unwrap(), run("100000000 1000000 7").unwrap());
        let text = rows("job", &[alone; 3], &[observed; 3]).unwrap();
        assert!(
            text.contains("| job | all | 100.0 (100.0 – 100.0) | 101.0 (101.0 – 101.0) | 1.0 | 1.000 | 7 |"),
            "{text}"
        );
        assert_eq!(rows("job", &[], &[]), None);
    }
}
