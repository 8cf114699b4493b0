//! Turns a run of the unit and root tests into the share of the agent's lines that it has been in: docs/coverage.md.
//!
//! The crates of the workspace are compiled with the compiler's own counters, which are kept in files while a program runs
//! (LLVM's continuous mode): of an agent that is killed nothing is lost, and one in its sandbox need not open a file.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::builds;
use crate::places::{repository, target_dir};
use crate::setup::{self, LLVM, Purpose};
use crate::shell::{cargo, follow, headline, run, run_watched};
use crate::summary::Summary;

const TARGET: &str = "x86_64-unknown-linux-gnu";
const FIRST_MARK: &str = "<!-- cargo xtask coverage -->\n";
const LAST_MARK: &str = "<!-- end of cargo xtask coverage -->\n";

/// Between cargo and the compiler: neither what runs while compiling nor what the kernel runs is counted.
const WRAPPER: &str = r#"#!/bin/sh
case " $* " in *" build_script_build "*|*bpf*-unknown-none*) exec "$@" ;; esac
exec "$@" -C instrument-coverage -C llvm-args=-runtime-counter-relocation
"#;

/// Lines of one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lines {
    all: usize,
    reached: usize,
}

impl Lines {
    fn percent(self) -> f64 {
        if self.all == 0 { 100.0 } else { self.reached as f64 * 100.0 / self.all as f64 }
    }
}

impl std::ops::AddAssign for Lines {
    fn add_assign(&mut self, other: Self) {
        self.all += other.all;
        self.reached += other.reached;
    }
}

/// Runs the tests, all or those of these programs under `tests/`, and writes the page.
pub(crate) fn coverage(tests: &[String]) -> Result<()> {
    setup::install(Purpose::Test)?;
    builds::make_for_tests(false)?;
    let folder = target_dir()?.join("coverage");
    let profiles = folder.join("profiles");
    let _ = fs::remove_dir_all(&profiles);
    fs::create_dir_all(&profiles)?;
    let wrapper = folder.join("rustc");
    fs::write(&wrapper, WRAPPER)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let counting = |words: &[&str]| -> Result<Command> {
        let mut cargo = cargo()?;
        cargo.args(words).args(["--target", TARGET]);
        cargo.env("RUSTC_WORKSPACE_WRAPPER", &wrapper).env("CARGO_TARGET_DIR", &folder);
        cargo.env("LLVM_PROFILE_FILE", profiles.join("unit-%p%c.profraw"));
        Ok(cargo)
    };

    headline("with counters: unit tests");
    let unit = ["test", "--package", "cadscope", "--package", "cadscope-common", "--no-fail-fast"];
    let agent = folder.join(TARGET).join("debug/cadscope");
    let mut programs = vec![agent.clone()];
    follow(&mut counting(&[&unit[..], &["--no-run", "--message-format", "json"]].concat())?, |line| {
        programs.extend(program(line));
    })?;
    let mut summary = Summary::default();
    let unit = run_watched(&mut counting(&unit)?, |line| summary.add(line));
    run(&mut counting(&["build", "--package", "cadscope"])?)?;

    headline("with counters: root tests");
    let mut root = cargo()?;
    root.args(["test", "--package", "cadscope-tests", "--no-fail-fast"]);
    root.args(tests.iter().flat_map(|name| ["--test", name.as_str()])).args(["--", "--test-threads=1"]);
    root.env("CADSCOPE_BIN", &agent).env("CADSCOPE_BUILDS", builds::folder()?);
    root.env("LLVM_PROFILE_FILE", profiles.join("root-%p%c.profraw"));
    let root = run_watched(&mut root, |line| summary.add(line));
    for failed in [unit, root].into_iter().filter_map(Result::err) {
        // The counters of what ran are good, and a slower program is late for some tests.
        println!("with counters, some tests fail: {failed}");
    }

    headline("lines");
    let files = reached(&folder, &profiles, &programs)?;
    ensure!(!files.is_empty(), "the counters tell of no file");
    let page = page(&files, &summary);
    println!("{page}");
    let path = repository()?.join("docs/coverage.md");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    fs::write(&path, with_table(&text, &page)?)?;
    Ok(())
}

/// The program of a line of cargo's messages, if it is a test's.
fn program(line: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    message.get("executable")?.as_str().map(PathBuf::from)
}

fn reached(folder: &Path, profiles: &Path, programs: &[PathBuf]) -> Result<BTreeMap<String, Lines>> {
    let tools = Path::new(LLVM).join("bin");
    let merged = folder.join("merged.profdata");
    run(Command::new(tools.join("llvm-profdata"))
        .args(["merge", "--sparse", "--failure-mode=all", "-o"])
        .arg(&merged)
        .arg(profiles))?;
    let Some((first, others)) = programs.split_first() else { bail!("nothing was built") };
    let mut export = Command::new(tools.join("llvm-cov"));
    export.args(["export", "--format=lcov", "--instr-profile"]).arg(&merged).arg(first);
    for other in others {
        export.arg("--object").arg(other);
    }
    let answer = export.output().context("llvm-cov")?;
    ensure!(answer.status.success(), "llvm-cov: {}", String::from_utf8_lossy(&answer.stderr));
    let root = repository()?;
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    Ok(lines_of(&String::from_utf8_lossy(&answer.stdout), &root, text))
}

/// Counts the lines of an lcov report by file, for the agent and what it shares with the kernel side; not those of tests,
/// which are files named so, or stand at the end of a file.
fn lines_of(lcov: &str, root: &Path, text: impl Fn(&str) -> String) -> BTreeMap<String, Lines> {
    let mut files = BTreeMap::<String, Lines>::new();
    let mut now: Option<(String, usize)> = None;
    for line in lcov.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            now = Path::new(path).strip_prefix(root).ok().and_then(|name| {
                let name = name.to_str()?;
                let ours = name.starts_with("agent/src/") || name.starts_with("common/src/");
                let test = name.ends_with("/tests.rs") || name.contains("/tests/");
                let text = text(path);
                let end = text.lines().position(|line| line == "#[cfg(test)]").unwrap_or(usize::MAX);
                (ours && !test).then(|| (name.to_owned(), end))
            });
        } else if let (Some((name, end)), Some(data)) = (&now, line.strip_prefix("DA:")) {
            let mut numbers = data.split(',').map(str::parse::<usize>);
            if let (Some(Ok(number)), Some(Ok(count))) = (numbers.next(), numbers.next())
                && number <= *end
            {
                *files.entry(name.clone()).or_default() += Lines { all: 1, reached: usize::from(count > 0) };
            }
        }
    }
    files
}

/// `agent/src/export/http.rs` is of `agent export`, `common/src/record.rs` of `common`.
fn part_of(file: &str) -> String {
    match file.strip_prefix("agent/src/") {
        Some(rest) => {
            let part = rest.split('/').next().unwrap_or(rest);
            format!("agent {}", part.trim_end_matches(".rs"))
        }
        None => "common".to_owned(),
    }
}

fn page(files: &BTreeMap<String, Lines>, summary: &Summary) -> String {
    let mut parts = BTreeMap::<String, Lines>::new();
    let mut total = Lines::default();
    for (file, lines) in files {
        *parts.entry(part_of(file)).or_default() += *lines;
        total += *lines;
    }
    let row = |name: &str, lines: &Lines| {
        format!("| {name} | {} | {} | {:.1} % |\n", lines.all, lines.reached, lines.percent())
    };
    // The names of those that failed are printed, and differ from run to run.
    let counts = summary.to_string();
    let counts = counts.lines().next().unwrap_or_default();
    let mut page = format!("\nUnit and root tests together: {counts}.\n\n");
    page += "| part | lines | reached | share |\n|---|---:|---:|---:|\n";
    page += &row("**all**", &total);
    page.extend(parts.iter().map(|(name, lines)| row(name, lines)));
    page.push('\n');
    page
}

fn with_table(text: &str, table: &str) -> Result<String> {
    let (before, rest) =
        text.split_once(FIRST_MARK).context("docs/coverage.md has no place for the table")?;
    let (_, after) = rest.split_once(LAST_MARK).context("docs/coverage.md has no end of the table")?;
    Ok(format!("{before}{FIRST_MARK}{table}{LAST_MARK}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_tests_and_of_others_do_not_count() {
        let lcov = "SF:/r/agent/src/a/b.rs\nDA:1,0\nDA:2,7\nDA:5,9\nend_of_record\nSF:/r/agent/src/a/tests.rs\nDA:1,1\n\
                    end_of_record\nSF:/r/xtask/src/main.rs\nDA:1,1\nend_of_record\nSF:/elsewhere/agent/src/c.rs\nDA:1,1\n";
        let text = |_: &str| "one\ntwo\n\n#[cfg(test)]\nmod tests {\n".to_owned();
        let files = lines_of(lcov, Path::new("/r"), text);
        let wanted = [("agent/src/a/b.rs".to_owned(), Lines { all: 2, reached: 1 })];
        assert_eq!(files, BTreeMap::from(wanted));
        assert!((files["agent/src/a/b.rs"].percent() - 50.0).abs() < 0.01);
    }

    #[test]
    fn files_belong_to_parts() {
        assert_eq!(part_of("agent/src/export/http.rs"), "agent export");
        assert_eq!(part_of("agent/src/export.rs"), "agent export");
        assert_eq!(part_of("common/src/record.rs"), "common");
    }

    #[test]
    fn the_table_is_replaced() {
        let text = format!("a\n{FIRST_MARK}old\n{LAST_MARK}z\n");
        assert_eq!(with_table(&text, "new\n").unwrap(), format!("a\n{FIRST_MARK}new\n{LAST_MARK}z\n"));
        assert!(with_table("nothing", "").is_err());
    }
}
