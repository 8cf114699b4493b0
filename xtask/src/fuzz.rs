//! Turns minutes into inputs that coverage guides, given to all that reads what a worker or a client says.
//!
//! libFuzzer with the targets of `agent/tests/mutations`, by the program of `tests/fuzz`. What a target learns is kept in
//! the cache; a choice of it goes into `tests/fuzz/corpus`, which the test of changed inputs reads in each test run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::places::{cache, repository, target_dir};
use crate::shell::{headline, run};
use crate::toolchain::find_program;

/// Each with the longest input in bytes, as in `agent/tests/mutations/targets.rs`.
const TARGETS: [(&str, usize); 13] = [
    ("elf", 96 << 10),
    ("proc", 4096),
    ("environ", 4096),
    ("cgroup", 4096),
    ("records", 4096),
    ("catalogue", 8192),
    ("config", 4096),
    ("http", 4096),
    ("memory", 4096),
    ("exports", 4096),
    ("names", 4096),
    ("accept", 4096),
    ("url", 4096),
];
/// What the repository keeps of a target: so many inputs, none longer.
const KEPT: usize = 40;
const KEPT_BYTES: usize = 4096;

/// Builds, then runs each target for so many minutes.
pub(crate) fn fuzz(names: &[String], minutes: u32) -> Result<()> {
    if let Some(name) = names.iter().find(|name| TARGETS.iter().all(|(known, _)| known != name)) {
        bail!("{name} is no target; there are {}", TARGETS.map(|(name, _)| name).join(", "));
    }
    let program = program()?;
    let mut report = Vec::new();
    for (name, most_bytes) in TARGETS {
        if names.is_empty() || names.iter().any(|chosen| chosen == name) {
            headline(name);
            report.push(target(&program, name, most_bytes, minutes)?);
        }
    }
    println!("\n{:<10} {:>12} {:>7} {:>6}", "target", "executions", "edges", "finds");
    for (name, executions, edges, finds) in &report {
        println!("{name:<10} {executions:>12} {edges:>7} {finds:>6}");
    }
    let finds: usize = report.iter().map(|(.., finds)| finds).sum();
    if finds > 0 {
        bail!(
            "{finds} inputs break a promise: mend what reads them; they are in tests/fuzz/corpus as find-…"
        );
    }
    Ok(())
}

/// The program of libFuzzer, compiled with a nightly compiler; the kernel's object comes from the usual build.
fn program() -> Result<PathBuf> {
    if find_program("cargo-fuzz").is_none() {
        bail!("cargo-fuzz is missing: run `cargo xtask setup --for fuzz`");
    }
    build::build(build::Profile::named(false))?;
    let folder = target_dir()?.join("fuzz");
    run(Command::new("rustup")
        .args(["run", "nightly", "cargo", "fuzz", "build", "--fuzz-dir", ".", "--sanitizer", "none"])
        .args(["--release", "--debug-assertions", "any"])
        .current_dir(repository()?.join("tests/fuzz"))
        .env_remove("CARGO")
        .env("CARGO_TARGET_DIR", &folder)
        .env("CADSCOPE_BPF_OBJECT_PREBUILT", object()?))?;
    Ok(folder.join("x86_64-unknown-linux-gnu/release/any"))
}

/// The newest object that a build has left.
fn object() -> Result<PathBuf> {
    let mut objects: Vec<(SystemTime, PathBuf)> = Vec::new();
    for build in fs::read_dir(target_dir()?.join("debug/build"))? {
        let path = build?.path().join("out/cadscope.bpf.o");
        if let Ok(file) = fs::metadata(&path) {
            objects.push((file.modified()?, path));
        }
    }
    objects.into_iter().max().map(|(_, path)| path).context("no BPF object: `cargo xtask build` makes one")
}

/// Runs one target; its name, executions, edges and finds.
fn target(
    program: &Path,
    name: &'static str,
    most_bytes: usize,
    minutes: u32,
) -> Result<(&'static str, u64, u64, usize)> {
    let work = cache()?.join("fuzz").join(name);
    let (corpus, finds, chosen) = (work.join("corpus"), work.join("finds"), work.join("chosen"));
    // Finds of an earlier run are in the repository, mended or not.
    for folder in [&finds, &chosen] {
        let _ = fs::remove_dir_all(folder);
    }
    for folder in [&corpus, &finds, &chosen] {
        fs::create_dir_all(folder)?;
    }
    let mut command = Command::new(program);
    command.current_dir(&work).env("CADSCOPE_FUZZ_TARGET", name).env("CADSCOPE_FUZZ_SEEDS", &corpus);
    command.args([
        "corpus",
        "-timeout=20",
        "-rss_limit_mb=1024",
        "-malloc_limit_mb=512",
        "-print_final_stats=1",
    ]);
    command.args(["-artifact_prefix=finds/".to_owned(), format!("-max_len={most_bytes}")]);
    command.arg(format!("-max_total_time={}", u64::from(minutes) * 60));
    let log = work.join("log");
    command.stdin(Stdio::null()).stderr(fs::File::create(&log)?);
    let status = command.status().context("the fuzzer did not start")?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let found = fs::read_dir(&finds)?.count();
    if !status.success() && found == 0 {
        bail!("{name}: {status}; {} says why", log.display());
    }
    let merged = Command::new(program)
        .current_dir(&work)
        .env("CADSCOPE_FUZZ_TARGET", name)
        .args(["-set_cover_merge=1", "-timeout=20", "-rss_limit_mb=1024", "chosen", "corpus"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if merged.success() {
        keep(&chosen, &finds, name)?;
    }
    Ok((name, last_number(&said, "stat::number_of_executed_units:"), last_number(&said, "cov:"), found))
}

/// Renews a target's inputs in the repository; finds and real files (`real-…`) are never taken out.
fn keep(chosen: &Path, finds: &Path, name: &str) -> Result<()> {
    let corpus = repository()?.join("tests/fuzz/corpus").join(name);
    fs::create_dir_all(&corpus)?;
    for file in fs::read_dir(&corpus)? {
        let file = file?;
        let name = file.file_name();
        if !["find-", "real-"].iter().any(|lasting| name.to_string_lossy().starts_with(lasting)) {
            fs::remove_file(file.path())?;
        }
    }
    let mut files: Vec<PathBuf> =
        fs::read_dir(chosen)?.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
    let home = std::env::home_dir().unwrap_or_default();
    files.retain(|path| fs::read(path).is_ok_and(|input| is_for_all(&input, &home)));
    // Their names are hashes: any choice, and the same one for the same inputs.
    files.sort();
    for path in files.iter().take(KEPT) {
        fs::copy(path, corpus.join(path.file_name().context("a file has a name")?))?;
    }
    for find in fs::read_dir(finds)? {
        let find = find?;
        fs::copy(find.path(), corpus.join(format!("find-{}", find.file_name().to_string_lossy())))?;
    }
    Ok(())
}

/// Small, and without paths of this machine, which real texts of /proc have.
fn is_for_all(input: &[u8], home: &Path) -> bool {
    let home = home.as_os_str().as_encoded_bytes();
    input.len() <= KEPT_BYTES && (home.is_empty() || !input.windows(home.len()).any(|part| part == home))
}

/// The number after the last `word`; 0 if it was never said.
fn last_number(said: &str, word: &str) -> u64 {
    let after = said.rfind(word).and_then(|at| said.get(at + word.len()..));
    after.and_then(|after| after.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::last_number;

    #[test]
    fn figures_are_the_last_that_were_said() {
        let said = "#2 cov: 7 ft: 8\n#4 cov: 9 ft: 10\nstat::number_of_executed_units: 5\n";
        assert_eq!(last_number(said, "cov:"), 9);
        assert_eq!(last_number(said, "stat::number_of_executed_units:"), 5);
        assert_eq!(last_number(said, "stat::peak_rss_mb:"), 0);
    }
}
