//! Turns runs of a job in an emulated machine, which counts instructions, into what being observed costs it of them.
//!
//! Valgrind's counter sees nothing of a probe: while valgrind runs a file it has none. The emulator sees all that is
//! executed for a process, the kernel's part too, and what else the machine does changes nothing about it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::job::{SETTINGS, SETTINGS_TOLD, suite_scripts};
use super::parts::{Disturbed, Parts, costs};
use super::{binary, machine, write_page};
use crate::builds;
use crate::places::{freecadcmd, job_script, repository, target_dir};
use crate::setup::{self, Purpose};
use crate::statistics::{Estimate, median, ratio_of_means};
use crate::vm::guest::{Cgroups, Clock, Outcome, Step, boot};
use crate::vm::kernel::{KERNELS, Kernel};

const PAGE: &str = "bench-instructions.md";
/// What guests said and kept, each line behind the number of its job and a word.
const MEASURED: &str = "bench-instructions.txt";
/// The kernel of the guest.
const KERNEL: &str = "6.12";

/// Runs of a part of a job differ by no more than this share, or it is no measure.
const SAME: f64 = 0.01;
/// What comes out by others, so that a reader sees what hangs on it.
const OTHERS: [f64; 5] = [0.001, 0.002, 0.005, 0.02, 0.05];

/// A run in the guest.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Run {
    instructions: f64,
    /// Records that the agent got; 0 alone.
    records: f64,
}

/// Measures the demo's job and FreeCAD's own tests, so many pairs of each, and writes docs/bench-instructions.md. Of none the
/// page keeps its row. What was measured is kept in a file beside the programs, from which the page can be made anew.
pub(crate) fn instructions(pairs: &[u32], from: Option<&Path>) -> Result<()> {
    let guests = if from.is_none() { Some(Guests::prepare()?) } else { None };
    let measured = from.map(fs::read_to_string).transpose()?.unwrap_or_default();
    let keep = target_dir()?.join(MEASURED);
    let job = job_script(None)?;
    let (tests, import) = suite_scripts()?;
    let mut text = format!(
        "# What being observed costs a FreeCAD job, in instructions\n\nWritten by `cargo xtask bench instructions --pairs \
         {}`: an emulated machine (QEMU, Linux {KERNEL}, one processor) whose\nclock counts instructions, so that \
         the CPU time of a process is how many were executed for it, by itself\nand by the kernel, and nothing else that \
         this machine does is in it. Median of the runs, in millions, and between what they lay; the ratio of their means \
         (of logarithms),\nobserved / alone, with Student's 95 % interval of two samples.\nHow long an instruction takes is \
         not in it: a processor needs longer for a trap than for another instruction.\n{SETTINGS_TOLD}\n\n",
        pairs.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
    );
    text.push_str(&machine()?);
    text.push_str(
        "\n| job | FreeCAD | alone | observed | more | ratio | records |\n|---|---|---|---|---|---|---|\n",
    );
    let jobs =
        [("`xtask/demo/job.py`", &job, &job), ("FreeCAD's own tests (`TestApp.All`)", &import, &tests)];
    let mut by_parts = String::new();
    let page = repository()?.join("docs").join(PAGE);
    let before = fs::read_to_string(&page).unwrap_or_default();
    let mut all = String::new();
    for (number, ((name, first, script), count)) in jobs.into_iter().zip(pairs).enumerate() {
        if *count == 0 {
            let kept =
                before.lines().find(|line| line.strip_prefix("| ").is_some_and(|row| row.starts_with(name)));
            text.extend(kept.iter().flat_map(|row| [row, "\n"]));
            continue;
        }
        let Outcome { said, kept, .. } = match &guests {
            Some(guests) => guests.measure(first, script, *count)?,
            None => measured_before(&measured, number),
        };
        let marked = |what, lines: &[String]| {
            lines.iter().map(|line| format!("{number} {what} {line}\n")).collect::<String>()
        };
        all.push_str(&(marked("say", &said) + &marked("keep", &kept)));
        if from.is_none() {
            fs::write(&keep, &all).with_context(|| keep.display().to_string())?;
        }
        text.push_str(&row(name, &said).with_context(|| format!("the guest said {said:?}"))?);
        let parts = pairs_of_parts(&kept, *count)?;
        if let Some(found) = costs(&parts, Disturbed::Parts(SAME)) {
            by_parts.push_str(&found.text(*count as usize));
            by_parts.push_str(
                "\n| by another limit | of all instructions | ratio | 95 % interval |\n|---|---|---|---|\n",
            );
            by_parts.extend(
                OTHERS.iter().filter_map(|limit| Some(costs(&parts, Disturbed::Parts(*limit))?.row(*limit))),
            );
        }
    }
    text.push_str(&by_parts);
    write_page(PAGE, &text)
}

/// What an earlier run of the command kept of its job of this number.
fn measured_before(all: &str, number: usize) -> Outcome {
    let of = |what: &str| {
        let marked = format!("{number} {what} ");
        all.lines().filter_map(|line| line.strip_prefix(&marked).map(str::to_owned)).collect()
    };
    Outcome { said: of("say"), kept: of("keep"), ..Outcome::default() }
}

/// What guests run.
struct Guests {
    agent: PathBuf,
    freecad: PathBuf,
    kernel: Kernel,
}

impl Guests {
    /// Installs and makes what is missing.
    fn prepare() -> Result<Self> {
        setup::install(Purpose::Test)?;
        builds::make(&["qemu".to_owned(), format!("linux-{KERNEL}")])?;
        let kernel = KERNELS.into_iter().find(|kernel| kernel.name == KERNEL).context("no such kernel")?;
        let (agent, freecad) = (binary()?.canonicalize()?, freecadcmd().context("no freecadcmd")?);
        Ok(Self { agent, freecad, kernel })
    }

    /// What they say: the version, then the runs; and keep: side, pair and part of each run.
    fn measure(&self, first: &Path, script: &Path, pairs: u32) -> Result<Outcome> {
        let words = [&self.agent, &self.freecad, first, script]
            .map(|path: &Path| path.display().to_string())
            .join(" ");
        let program = repository()?.join("xtask/bench/guest.py");
        let settings = SETTINGS.map(|(name, value)| format!("{name}={value}")).join(" ");
        let guest = |from: u32, to: u32| {
            let step = Step {
                command: format!("python3 {} {words} {from} {to} {settings}", program.display()),
                limit: Duration::from_secs(7200 * u64::from(pairs)),
            };
            let outcome = boot(&self.kernel, Cgroups::V2, Clock::Instructions, &[step])?;
            ensure!(outcome.ended == [0], "the guest did not measure: {outcome:?}");
            Ok(outcome)
        };
        // As many side by side as processors: they do not disturb each other.
        let guests = u32::try_from(thread::available_parallelism()?.get())?.min(pairs);
        thread::scope(|scope| {
            let running: Vec<_> = (0..guests)
                .map(|number| {
                    scope.spawn(move || guest(pairs * number / guests, pairs * (number + 1) / guests))
                })
                .collect();
            let mut all = Outcome::default();
            for guest in running {
                let Outcome { said, kept, .. } =
                    guest.join().map_err(|_| anyhow!("a guest's thread panicked"))??;
                all.said.extend(said);
                all.kept.extend(kept);
            }
            Ok(all)
        })
    }
}

/// The parts of each pair, alone and observed. None, if the job has none.
fn pairs_of_parts(kept: &[String], pairs: u32) -> Result<Vec<(Parts, Parts)>> {
    if kept.is_empty() {
        return Ok(Vec::new());
    }
    let of = |side: &str, pair: u32| {
        let run = format!("{side} {pair} ");
        let lines: Vec<&str> = kept.iter().filter_map(|line| line.strip_prefix(&run)).collect();
        Parts::parse(&lines.join("\n")).with_context(|| format!("{side}, pair {pair}"))
    };
    (0..pairs).map(|pair| Ok((of("alone", pair)?, of("observed", pair)?))).collect()
}

/// Nanoseconds of CPU time, each an instruction, and the records if it was observed.
fn run(line: &str) -> Option<Run> {
    let mut numbers = line.split(' ').map(|word| word.parse().ok());
    Some(Run { instructions: numbers.next()??, records: numbers.next().flatten().unwrap_or(0.0) })
}

fn row(name: &str, said: &[String]) -> Option<String> {
    let version = said.iter().find_map(|line| line.strip_prefix("FreeCAD ")?.split(',').next())?;
    let runs =
        |kind: &str| -> Vec<Run> { said.iter().filter_map(|line| run(line.strip_prefix(kind)?)).collect() };
    let (alone, observed) = (runs("alone "), runs("observed "));
    let all = |runs: &[Run]| runs.iter().map(|run| run.instructions / 1e6).collect::<Vec<_>>();
    let records = median(&observed.iter().map(|run| run.records).collect::<Vec<_>>())?;
    let (alone, observed) = (all(&alone), all(&observed));
    let (before, after) = (median(&alone)?, median(&observed)?);
    let spread = |values: &[f64]| {
        let (low, high) =
            values.iter().fold((f64::MAX, 0.0_f64), |(low, high), value| (low.min(*value), high.max(*value)));
        format!("{low:.1} – {high:.1}")
    };
    let ratio = match ratio_of_means(&alone, &observed) {
        Some(Estimate { median: ratio, low, high }) => format!("{ratio:.4} ({low:.4} – {high:.4})"),
        None => format!("{:.4}", after / before),
    };
    Some(format!(
        "| {name} | {version} | {before:.1} ({}) | {after:.1} ({}) | {:.1} | {ratio} | {records:.0} |\n",
        spread(&alone),
        spread(&observed),
        after - before,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read_and_compared() {
        assert_eq!(run("1000000"), Some(Run { instructions: 1e6, records: 0.0 }));
        assert_eq!(run("2 3"), Some(Run { instructions: 2.0, records: 3.0 }));
        assert_eq!(run("x 1"), None);
        let said = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let lines = ["FreeCAD 0.20.2, Libs: 0.20.2", "alone 100000000", "observed 101000000 7"];
        assert_eq!(
            row("job", &said(&lines)).unwrap(),
            "| job | 0.20.2 | 100.0 (100.0 – 100.0) | 101.0 (101.0 – 101.0) | 1.0 | 1.0100 | 7 |\n"
        );
        assert_eq!(row("job", &said(&lines[..2])), None);
    }

    #[test]
    fn what_was_measured_before_is_read_by_job() {
        let found = measured_before("0 say a\n1 say b\n1 keep alone 0 c 1\n", 1);
        assert_eq!((found.said, found.kept), (vec!["b".to_owned()], vec!["alone 0 c 1".to_owned()]));
    }

    #[test]
    fn parts_are_those_of_their_run() {
        let kept =
            ["alone 0 a b 10", "observed 0 a b 11", "observed 1 a b 13", "alone 1 a b 12"].map(str::to_owned);
        let pairs = pairs_of_parts(&kept, 2).unwrap();
        assert_eq!(pairs[1], (Parts::parse("a b 12").unwrap(), Parts::parse("a b 13").unwrap()));
        assert!(pairs_of_parts(&kept, 3).is_err());
        assert_eq!(pairs_of_parts(&[], 3).unwrap(), []);
    }
}
