//! Turns this checkout into a table of what holds under which kernel: the same test programs as on this machine, run in
//! virtual machines with Debian's kernels.
//!
//! What is tried is data, [`CLAIMS`]; on what, [`KERNELS`]. What came out is written into the table of docs/reliability.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::build::{Profile, build};
use crate::builds;
use crate::places::repository;
use crate::setup::{self, Purpose};
use crate::shell::{cargo, headline, minutes, run};

use self::guest::{Cgroups, Clock, Step, boot};
use self::kernel::{Cpu, KERNELS, Kernel};

mod arm64;
pub(crate) mod guest;
pub(crate) mod kernel;

/// What is tried under a kernel: tests of one file, chosen by a part of their names.
struct Claim {
    /// Its row of the table.
    says: &'static str,
    test: &'static str,
    filter: &'static str,
    /// `CADSCOPE_ONLY` in the short form; without, the claim is part of the long form only.
    short: Option<&'static str>,
    /// The same in the long form.
    long: &'static str,
    tried: Tried,
}

/// Under what a claim is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    /// Every kernel, also one that is to be refused.
    Everywhere,
    /// Every kernel that is not refused, with each way of placing probes.
    EachWay,
    /// Every kernel with uprobe_multi, in that way: programs of perf events cannot sleep, and count what they cannot read.
    WherePossible,
    /// Every kernel that is not refused, in the way that it is used.
    Once,
    /// The same, with both versions of cgroups.
    EachCgroup,
}

const CLAIMS: [Claim; 14] = [
    Claim {
        says: "Every program loads and probes are placed as the kernel can; one that is too old is refused by name",
        test: "kernels",
        filter: "",
        short: Some(""),
        long: "",
        tried: Tried::Everywhere,
    },
    Claim {
        says: "Torture worker, -O2: every call as it recorded it, with exceptions, jumps, signals, tail calls, forks",
        test: "torture",
        filter: "are_reported_as_they_happened",
        short: Some(
            "o2,returns,recursion,throw_frames,catch_inside,rethrow,destructors,signal_jump,long_jump",
        ),
        long: "o2",
        tried: Tried::EachWay,
    },
    Claim {
        says: "The first calls of a program never seen are traced",
        test: "torture",
        filter: "the_first_calls",
        short: None,
        long: "",
        tried: Tried::EachWay,
    },
    Claim {
        says: "A program that sleeps for the worker's memory mixes up nothing",
        test: "sleep",
        filter: "",
        short: None,
        long: "",
        tried: Tried::WherePossible,
    },
    Claim {
        says: "Resident memory of operations",
        test: "memory",
        filter: "",
        short: None,
        long: "",
        tried: Tried::Once,
    },
    Claim {
        says: "A FreeCAD job is shown exactly: 16 booleans, 9 fillets and chamfers, recomputes, files",
        test: "freecad_job",
        filter: "a_job_is_shown_exactly",
        short: None,
        long: "",
        tried: Tried::EachWay,
    },
    Claim {
        says: "Calls of AI providers, by a service and inside FreeCAD: which, how they went, and no secret of theirs",
        test: "ai_latency",
        filter: "calls_are_measured",
        short: None,
        long: "",
        tried: Tried::EachWay,
    },
    Claim {
        says: "A FreeCAD worker killed for memory is counted under its boolean",
        test: "oom",
        filter: "a_worker_killed_for_memory_in_a_boolean",
        short: None,
        long: "",
        tried: Tried::EachCgroup,
    },
    Claim {
        says: "A worker killed because the whole machine's memory ran out is counted under its operation, with no limit",
        test: "oom",
        filter: "memory_that_runs_out_on_the_whole_machine --ignored",
        short: None,
        long: "",
        tried: Tried::Once,
    },
    Claim {
        says: "Workers under valgrind, memcheck and callgrind print and end as unwatched; others of their file are counted",
        test: "hostile",
        filter: "under_valgrind",
        short: None,
        long: "",
        tried: Tried::EachWay,
    },
    Claim {
        says: "Workers that unwind, lie about their stack, throw without end, are debugged or confined do as unwatched",
        test: "hostile",
        filter: "a_worker_that_unwinds a_worker_under_seccomp a_worker_under_a_debugger",
        short: None,
        long: "",
        tried: Tried::EachWay,
    },
    Claim {
        says: "Workers that follow each other under one process id are told apart",
        test: "hostile",
        filter: "under_one_process_id",
        short: None,
        long: "",
        tried: Tried::Once,
    },
    Claim {
        says: "Frames or a map of the kernel side are full, or the agent stands still: counted + lost = made",
        test: "faults",
        filter: "counted_as_lost stopped_and_continued",
        short: None,
        long: "",
        tried: Tried::EachWay,
    },
    Claim {
        says: "An agent killed for memory, or killed and restarted under load, leaves nothing behind and harms no worker",
        test: "faults",
        filter: "killed_for_memory come_and_go_under_load",
        short: None,
        long: "",
        tried: Tried::EachWay,
    },
];

/// Builds that the long list's tests talk to or run.
const BESIDE: [&str; 2] = ["otelcol", "otel-python"];

/// A machine that is booted once.
#[derive(Clone, Copy, Debug)]
struct Machine {
    kernel: Kernel,
    /// Perf events where uprobe_multi could be had.
    perf_events: bool,
    cgroups: Cgroups,
}

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    Short,
    Long,
}

/// Tries the kernels of these names (none = all) with the release build, in these files of tests (none = all).
pub(crate) fn vm(names: &[String], short: bool, only: &[String]) -> Result<()> {
    setup::install(Purpose::Test)?;
    let binary = || match std::env::var_os("CADSCOPE_BIN") {
        Some(binary) => PathBuf::from(binary).canonicalize().context("CADSCOPE_BIN"),
        None => build(Profile::Release),
    };
    try_kernels(names, if short { Length::Short } else { Length::Long }, only, binary, &Table::write)
}

/// What is tried, compiled for the processor of its guests and named as they find it.
struct Subject {
    binary: PathBuf,
    tests: Programs,
    /// Folder of the workers, for guests without a compiler.
    workers: Option<PathBuf>,
}

/// Tries the kernels of these names (none = all of this machine's processor) in these files of tests (none = all) with the
/// agent that `binary` makes. What came out so far is shown after each machine.
fn try_kernels(
    names: &[String],
    length: Length,
    only: &[String],
    binary: impl FnOnce() -> Result<PathBuf>,
    show: &dyn Fn(&Table) -> Result<()>,
) -> Result<()> {
    if let Some(name) = only.iter().find(|name| CLAIMS.iter().all(|claim| claim.test != name.as_str())) {
        let known: std::collections::BTreeSet<_> = CLAIMS.iter().map(|claim| claim.test).collect();
        bail!(
            "no claim is tried by `{name}`; there are {}",
            known.into_iter().collect::<Vec<_>>().join(", ")
        );
    }
    if let Some(name) = names.iter().find(|name| KERNELS.iter().all(|kernel| kernel.name != name.as_str())) {
        let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
        bail!("no kernel `{name}`; there are {}", known.join(", "));
    }
    // Another processor is tried only where it is named: everything is compiled once more for it.
    let chosen = |kernel: &Kernel| match length {
        _ if !names.is_empty() => names.iter().any(|name| name == kernel.name),
        Length::Short => kernel.everyday,
        Length::Long => kernel.cpu == Cpu::X86_64,
    };
    let kernels: Vec<Kernel> = KERNELS.into_iter().filter(chosen).collect();
    let (arm64, x86): (Vec<Kernel>, Vec<Kernel>) =
        kernels.into_iter().partition(|kernel| kernel.cpu == Cpu::Arm64);
    let mut table = Table::default();
    if !x86.is_empty() {
        let beside: &[&str] = if length == Length::Long { &BESIDE } else { &[] };
        let wanted = ["qemu"].iter().chain(beside).copied().chain(x86.iter().map(|kernel| kernel.build));
        builds::make(&wanted.map(str::to_owned).collect::<Vec<_>>())?;
        let subject = Subject { binary: binary()?, tests: test_programs()?, workers: None };
        for machine in x86.iter().flat_map(|kernel| machines(*kernel, length)) {
            table.add(&machine, &subject, length, only)?;
            show(&table)?;
        }
    }
    if !arm64.is_empty() {
        let subject = arm64::subject()?;
        for machine in arm64.iter().flat_map(|kernel| machines(*kernel, length)) {
            table.add(&machine, &subject, length, only)?;
            show(&table)?;
        }
    }
    headline("kernels");
    println!("{}", table.text());
    if table.failures > 0 {
        bail!("{} claims do not hold", table.failures);
    }
    Ok(())
}

/// What `cargo xtask test` tries: nothing is written.
pub(crate) fn test(length: Length, binary: &Path) -> Result<()> {
    try_kernels(&[], length, &[], || Ok(binary.to_owned()), &|_| Ok(()))
}

fn machines(kernel: Kernel, length: Length) -> Vec<Machine> {
    let usual = Machine { kernel, perf_events: false, cgroups: Cgroups::V2 };
    let mut machines = vec![usual];
    if length == Length::Long && !kernel.refused {
        machines.extend(kernel.multi.then_some(Machine { perf_events: true, ..usual }));
        machines.extend(kernel.v1.then_some(Machine { cgroups: Cgroups::V1, ..usual }));
    }
    machines
}

impl Machine {
    fn tries(&self, claim: &Claim, length: Length) -> bool {
        let usual = !self.perf_events && self.cgroups == Cgroups::V2;
        let fits = match claim.tried {
            Tried::Everywhere => usual,
            Tried::EachWay => !self.kernel.refused && self.cgroups == Cgroups::V2,
            Tried::WherePossible => self.kernel.multi && usual,
            Tried::Once => !self.kernel.refused && usual,
            Tried::EachCgroup => !self.kernel.refused && !self.perf_events,
        };
        let can = self.kernel.cpu == Cpu::X86_64 || arm64::TESTS.contains(&claim.test);
        fits && can && (length == Length::Long || claim.short.is_some())
    }

    /// Head of its column.
    fn name(&self, release: &str) -> String {
        let way = match (self.kernel.refused, self.perf_events || !self.kernel.multi) {
            (true, _) => "",
            (false, true) => ", perf events",
            (false, false) => ", uprobe_multi",
        };
        let cgroups = if self.cgroups == Cgroups::V1 { ", cgroup v1" } else { "" };
        format!("{}{way}{cgroups}", release.trim_end_matches("-amd64"))
    }

    fn step(&self, claim: &Claim, subject: &Subject, length: Length) -> Result<Step> {
        let program = subject.tests.get(claim.test).with_context(|| format!("no test `{}`", claim.test))?;
        let only = match length {
            Length::Short => claim.short.unwrap_or_default(),
            Length::Long if self.kernel.cpu == Cpu::Arm64 && claim.long == "o2" => arm64::VARIANTS_TRIED,
            Length::Long => claim.long,
        };
        let mut variables =
            format!("CADSCOPE_EMULATED=1 RUST_BACKTRACE=1 CADSCOPE_BIN={}", subject.binary.display());
        match &subject.workers {
            Some(workers) => _ = write!(variables, " CADSCOPE_WORKERS={}", workers.display()),
            None => _ = write!(variables, " CADSCOPE_BUILDS={}", builds::folder()?.display()),
        }
        if !only.is_empty() {
            let _ = write!(variables, " CADSCOPE_ONLY={only}");
        }
        if self.perf_events {
            variables.push_str(" CADSCOPE_ATTACH=perf-events");
        }
        let command = format!("{variables} {} --test-threads=1 {}", program.display(), claim.filter);
        let limit = if length == Length::Short { 600 } else { 3600 };
        Ok(Step { command, limit: Duration::from_secs(limit) })
    }
}

/// What came out, by row and column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    cells: BTreeMap<(Column, String), String>,
    failures: usize,
}

/// A machine of the table: the place of its kernel among all, how probes are placed and its cgroups, its release.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Column {
    kernel: usize,
    way: String,
    release: String,
}

impl Column {
    /// `6.1.0-56, perf events`, as it stands at its head.
    fn read(head: &str) -> Option<Self> {
        let (release, way) = head.split_once(',').unwrap_or((head, ""));
        let kernel = KERNELS.iter().position(|kernel| kernel.has_release(release))?;
        Some(Self { kernel, way: way.trim().to_owned(), release: release.to_owned() })
    }

    fn text(&self) -> String {
        if self.way.is_empty() { self.release.clone() } else { format!("{}, {}", self.release, self.way) }
    }

    fn is_same_machine(&self, other: &Self) -> bool {
        (self.kernel, &self.way) == (other.kernel, &other.way)
    }
}

/// Of what only the short list was tried.
const SHORT: &str = "holds (short list)";

impl Table {
    fn add(&mut self, machine: &Machine, subject: &Subject, length: Length, only: &[String]) -> Result<()> {
        let is_chosen = |claim: &Claim| only.is_empty() || only.iter().any(|test| test == claim.test);
        let tried: Vec<&Claim> =
            CLAIMS.iter().filter(|claim| machine.tries(claim, length) && is_chosen(claim)).collect();
        if tried.is_empty() {
            return Ok(());
        }
        headline(&format!("Linux {}", machine.name(machine.kernel.name)));
        let steps = tried.iter().map(|claim| machine.step(claim, subject, length));
        let begin = Instant::now();
        let steps = steps.collect::<Result<Vec<_>>>()?;
        let outcome = boot(&machine.kernel, machine.cgroups, Clock::Real, &steps)?;
        println!("Linux {}: {}", outcome.release, minutes(begin.elapsed()));
        let column = Column::read(&machine.name(&outcome.release)).with_context(|| {
            format!("a guest with `{}` is not Linux {}", outcome.release, machine.kernel.name)
        })?;
        for (claim, status) in tried.into_iter().zip(outcome.ended.into_iter().chain(std::iter::repeat(-1))) {
            let refused = machine.kernel.refused && claim.tried == Tried::Everywhere;
            let cell = match status {
                0 if refused => "refused",
                0 if length == Length::Short && claim.short != Some(claim.long) => SHORT,
                0 => "holds",
                _ => "FAILS",
            };
            self.failures += usize::from(status != 0);
            self.cells.insert((column.clone(), claim.says.to_owned()), cell.to_owned());
        }
        Ok(())
    }

    /// Reads the table that [`text`](Self::text) writes; rows and columns that are no more are left out.
    fn read(text: &str) -> Self {
        let row = |line: &str| -> Vec<String> {
            line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        let mut lines = text.lines().filter(|line| line.starts_with('|'));
        let columns: Vec<Option<Column>> =
            lines.next().map(row).unwrap_or_default().iter().map(|head| Column::read(head)).collect();
        let mut table = Self::default();
        for cells in lines.skip(1).map(row) {
            let Some(says) = cells.first().filter(|says| CLAIMS.iter().any(|claim| claim.says == **says))
            else {
                continue;
            };
            for (column, cell) in columns.iter().zip(&cells) {
                if let (Some(column), false) = (column, cell == "—") {
                    table.cells.insert((column.clone(), says.clone()), cell.clone());
                }
            }
        }
        table
    }

    /// Puts what came out now over what came out before. A short list does not replace a long one.
    fn over(&self, before: &Self) -> Self {
        let mut table = self.clone();
        for ((column, says), cell) in &before.cells {
            let now = self.cells.iter().find(|((c, s), _)| c.is_same_machine(column) && s == says);
            if let Some((key, _)) = now.filter(|(_, now)| *now == SHORT) {
                table.cells.insert(key.clone(), cell.clone());
            } else if now.is_none() {
                let column =
                    self.cells.keys().map(|(c, _)| c).find(|c| c.is_same_machine(column)).unwrap_or(column);
                table.cells.insert((column.clone(), says.clone()), cell.clone());
            }
        }
        table
    }

    /// As Markdown, without rows that were not tried.
    fn text(&self) -> String {
        let columns: std::collections::BTreeSet<&Column> =
            self.cells.keys().map(|(column, _)| column).collect();
        let heads: Vec<String> = columns.iter().map(|column| column.text()).collect();
        let mut text = format!("| | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
        for claim in &CLAIMS {
            let cell = |column: &Column| self.cells.get(&(column.clone(), claim.says.to_owned()));
            let cells: Vec<&str> =
                columns.iter().map(|column| cell(column).map_or("—", String::as_str)).collect();
            if cells.iter().any(|cell| *cell != "—") {
                let _ = writeln!(text, "| {} | {} |", claim.says, cells.join(" | "));
            }
        }
        text
    }

    /// Into the page, over what it says of these machines.
    fn write(&self) -> Result<()> {
        let page = repository()?.join("docs/reliability.md");
        let text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
        let before = text.split_once(FIRST_MARK).map(|(_, rest)| rest).unwrap_or_default();
        let before = before.split_once(LAST_MARK).map(|(table, _)| table).unwrap_or_default();
        fs::write(&page, between_marks(&text, &self.over(&Self::read(before)).text())?)?;
        println!("written to {}", page.display());
        Ok(())
    }
}

const FIRST_MARK: &str = "<!-- cargo xtask vm -->\n";
const LAST_MARK: &str = "<!-- end of cargo xtask vm -->\n";

fn between_marks(page: &str, table: &str) -> Result<String> {
    let (before, rest) =
        page.split_once(FIRST_MARK).context("docs/reliability.md has no place for the table")?;
    let (_, after) = rest.split_once(LAST_MARK).context("docs/reliability.md has no end of the table")?;
    Ok(format!("{before}{FIRST_MARK}\n{table}\n{LAST_MARK}{after}"))
}

/// Test programs by the name of their file.
type Programs = BTreeMap<String, PathBuf>;

/// Compiles the tests that are tried, and what they run: a guest cannot write beside them.
fn test_programs() -> Result<Programs> {
    let mut compile = cargo()?;
    compile.args(["test", "--package", "cadscope-tests", "--no-run", "--message-format=json"]);
    for test in CLAIMS.iter().map(|claim| claim.test).collect::<std::collections::BTreeSet<_>>() {
        compile.args(["--test", test]);
    }
    let programs = executables(&mut compile)?;
    let mut workers = cargo()?;
    workers.args(["test", "--package", "cadscope-tests", "--test", "harness", "every_program_of_the_tests"]);
    run(&mut workers)?;
    Ok(programs)
}

fn executables(cargo: &mut Command) -> Result<Programs> {
    let answer = cargo.stderr(std::process::Stdio::inherit()).output().context("cargo did not start")?;
    if !answer.status.success() {
        bail!("the tests do not compile");
    }
    let mut programs = Programs::new();
    for line in String::from_utf8_lossy(&answer.stdout).lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        let name = message.pointer("/target/name").and_then(|name| name.as_str());
        let program = message.get("executable").and_then(|program| program.as_str());
        if let (Some(name), Some(program)) = (name, program) {
            programs.insert(name.to_owned(), program.into());
        }
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_claim_names_a_test() {
        for claim in CLAIMS {
            let folder = format!("{}/../tests/tests/{}", env!("CARGO_MANIFEST_DIR"), claim.test);
            let mut tests = fs::read_to_string(format!("{folder}.rs")).unwrap();
            for module in fs::read_dir(&folder).into_iter().flatten() {
                tests += &fs::read_to_string(module.unwrap().path()).unwrap();
            }
            for wanted in claim.filter.split(' ').filter(|word| !word.starts_with("--")) {
                let named = tests.lines().any(|line| line.starts_with("fn ") && line.contains(wanted));
                assert!(
                    named,
                    "no test of {} is named `{wanted}`: a guest would run none, and pass",
                    claim.test
                );
            }
        }
    }

    #[test]
    fn the_table_is_written_between_its_marks_only() {
        let page = format!("a\n{FIRST_MARK}old\n{LAST_MARK}b\n");
        let written = between_marks(&page, "| new |\n").unwrap();
        assert_eq!(written, format!("a\n{FIRST_MARK}\n| new |\n\n{LAST_MARK}b\n"));
        assert_eq!(between_marks(&written, "| new |\n").unwrap(), written);
        assert!(between_marks("no place", "").is_err());
    }

    #[test]
    fn a_run_replaces_what_the_table_said_of_its_machines_and_a_short_list_no_long_one() {
        let row = |says: &str, cells: &str| format!("| {says} | {cells} |\n");
        let [first, second] = [CLAIMS[0].says, CLAIMS[1].says];
        let head = "| | 5.10.1 | 6.1.9, perf events | 7.2.1, uprobe_multi |\n|---|---|---|---|\n";
        let before =
            format!("{head}{}{}", row(first, "refused | holds | holds"), row(second, "— | holds | FAILS"));
        assert_eq!(Table::read(&before).text(), before);
        let now = format!(
            "| | 6.1.10, perf events | 7.2.2, uprobe_multi |\n|---|---|---|\n{}{}",
            row(first, "FAILS | holds"),
            row(second, &format!("{SHORT} | holds"))
        );
        let head = "| | 5.10.1 | 6.1.10, perf events | 7.2.2, uprobe_multi |\n|---|---|---|---|\n";
        let after =
            format!("{head}{}{}", row(first, "refused | FAILS | holds"), row(second, "— | holds | holds"));
        assert_eq!(Table::read(&now).over(&Table::read(&before)).text(), after);
    }

    #[test]
    fn everyday_are_a_kernel_that_is_refused_and_one_that_is_not() {
        let everyday: Vec<Kernel> = KERNELS.into_iter().filter(|kernel| kernel.everyday).collect();
        assert!(
            everyday.iter().any(|kernel| kernel.refused) && everyday.iter().any(|kernel| !kernel.refused)
        );
        for kernel in everyday {
            let [machine] = machines(kernel, Length::Short)[..] else { panic!("one machine") };
            assert!(CLAIMS.iter().any(|claim| machine.tries(claim, Length::Short)), "{}", kernel.name);
        }
    }

    #[test]
    fn an_unknown_kernel_or_test_is_refused_with_those_that_there_are() {
        let error = try_kernels(&["4.19".to_owned()], Length::Short, &[], || Ok(PathBuf::new()), &|_| Ok(()));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("6.12"), "{error}");
        let error = try_kernels(&[], Length::Long, &["memry".to_owned()], || Ok(PathBuf::new()), &|_| Ok(()))
            .unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
    }
}
