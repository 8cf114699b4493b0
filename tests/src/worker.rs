//! Builds the torture worker in its variants, and runs it.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::record::{self, Call};
use crate::run::{Ended, run};

/// Compiler flags that change how functions begin, end and keep their frames.
pub const VARIANTS: [(&str, &[&str]); 7] = [
    ("o0", &["-O0"]),
    ("o2", &["-O2"]),
    ("o3", &["-O3"]),
    ("o2-cf", &["-O2", "-fcf-protection=full"]),
    ("o2-bare", &["-O2", "-fomit-frame-pointer", "-fno-stack-protector", "-fcf-protection=none"]),
    (
        "o2-guarded",
        &["-O2", "-fno-omit-frame-pointer", "-fstack-protector-strong", "-fstack-clash-protection"],
    ),
    ("o2-debian", &["-O2", "-g", "-fstack-protector-strong", "-Wl,-z,relro", "-Wl,-z,now", "-s"]),
];

const SOURCES: [&str; 6] =
    ["torture.cpp", "functions.cpp", "functions.hpp", "record.hpp", "spin.hpp", "plugin.cpp"];

/// A built worker.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Name of the variant.
    pub variant: &'static str,
    /// Its program.
    pub program: PathBuf,
    /// The catalogue of its functions.
    pub catalog: PathBuf,
    /// Its scenarios.
    pub scenarios: Vec<Scenario>,
}

/// One thing that the worker can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Its argument.
    pub name: String,
    /// The process does not survive it.
    pub ends: bool,
}

fn source_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("torture")
}

/// Builds a variant, or finds it built from the same sources.
///
/// # Errors
/// No compiler, or the sources do not compile.
pub fn build(variant: &str) -> Result<Worker> {
    let (name, flags) =
        VARIANTS.into_iter().find(|v| v.0 == variant).with_context(|| format!("no variant {variant}"))?;
    if let Some(workers) = compiled_elsewhere() {
        let catalog = std::env::temp_dir().join(format!("torture-{name}.toml"));
        return Worker::at(name, &workers.join(name), catalog);
    }
    let compiler = crate::node::tool("g++", "g++")?;
    let mut hash = DefaultHasher::new();
    flags.hash(&mut hash);
    for source in SOURCES {
        fs::read(source_folder().join(source))?.hash(&mut hash);
    }
    let folder = crate::node::cache()?.join(format!("torture-{name}-{:016x}", hash.finish()));
    let catalog = folder.join("catalog.toml");
    if !catalog.is_file() {
        compile(&compiler, flags, &folder)?;
    }
    Worker::at(name, &folder, catalog)
}

/// Where all programs are, compiled before: by `cargo xtask vm` for a guest that has no compiler.
fn compiled_elsewhere() -> Option<PathBuf> {
    std::env::var_os("CADSCOPE_WORKERS").map(PathBuf::from)
}

/// The sources of all programs of one file.
pub const PROGRAMS: [&str; 5] =
    ["hostile/hostile.cpp", "hostile/same_pid.cpp", "hot/hot.cpp", "memory/memory.cpp", "sleep/sleep.cpp"];

/// Builds a program of one file of `tests/`, or finds it built from the same source; its exported functions keep their names.
///
/// # Errors
/// No compiler, or the source does not compile.
pub fn build_program(source: &str) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let name = source.file_stem().and_then(|name| name.to_str()).context("source has no name")?;
    if let Some(workers) = compiled_elsewhere() {
        return Ok(workers.join(name));
    }
    let mut hash = DefaultHasher::new();
    fs::read(&source).with_context(|| source.display().to_string())?.hash(&mut hash);
    let program = crate::node::cache()?.join(format!("{name}-{:016x}", hash.finish()));
    if !program.is_file() {
        let partial = program.with_extension("partial");
        let mut compiler = Command::new(crate::node::tool("g++", "g++")?);
        compiler.args(["-O1", "-rdynamic", "-pthread", "-o"]).args([&partial, &source]);
        let built = run(&mut compiler, Duration::from_secs(120))?;
        ensure!(built.code == 0, "{}", built.stderr);
        fs::rename(&partial, &program)?;
    }
    Ok(program)
}

fn compile(compiler: &Path, flags: &[&str], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let common = ["-std=c++20", "-Wall", "-Wextra", "-Wno-volatile", "-Werror", "-fwrapv"];
    let jobs: [(&[&str], &str); 2] = [
        (&["-fPIE", "-pie", "-rdynamic", "-pthread", "torture.cpp", "functions.cpp", "-ldl"], "torture"),
        (&["-fPIC", "-shared", "plugin.cpp"], "libtorture_plugin.so"),
    ];
    for (arguments, output) in jobs {
        let mut command = Command::new(compiler);
        command.args(common).args(flags).args(arguments).arg("-o").arg(folder.join(output));
        let ended = run(command.current_dir(source_folder()), Duration::from_secs(300))?;
        ensure!(ended.code == 0, "{command:?} failed:\n{}", ended.stderr);
    }
    // Last: it says that the build is whole.
    write_catalog(&folder.join("torture"), &folder.join("catalog.toml"))
}

fn write_catalog(program: &Path, catalog: &Path) -> Result<()> {
    let ended = run(Command::new(program).arg("--catalog"), crate::node::patient(Duration::from_secs(10)))?;
    ensure!(ended.code == 0, "torture --catalog failed: {ended:?}");
    Ok(fs::write(catalog, ended.stdout)?)
}

impl Worker {
    /// The one in this folder.
    fn at(variant: &'static str, folder: &Path, catalog: PathBuf) -> Result<Self> {
        let program = folder.join("torture");
        if !catalog.is_file() {
            write_catalog(&program, &catalog)?;
        }
        let list = run(Command::new(&program).arg("--list"), crate::node::patient(Duration::from_secs(10)))?;
        let scenarios = list
            .stdout
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, life)| Scenario { name: name.to_owned(), ends: life == "ends" })
            .collect::<Vec<_>>();
        ensure!(!scenarios.is_empty(), "{} lists no scenarios: {list:?}", program.display());
        Ok(Self { variant, program, catalog, scenarios })
    }

    /// Runs scenarios with nobody watching, or with whoever watches the node; with the worker's own record.
    ///
    /// # Errors
    /// It hung, or its record contradicts itself.
    pub fn run(&self, scenarios: &[&str]) -> Result<(Ended, Vec<Call>)> {
        self.run_settled(scenarios, Duration::ZERO)
    }

    /// The same, waiting so long at most until its files are probed: they may be new to the agent.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_settled(&self, scenarios: &[&str], settle: Duration) -> Result<(Ended, Vec<Call>)> {
        self.run_with(scenarios, settle, &[])
    }

    /// The same with more in its environment.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_with(
        &self,
        scenarios: &[&str],
        settle: Duration,
        environment: &[(&str, &Path)],
    ) -> Result<(Ended, Vec<Call>)> {
        let folder = crate::node::scratch()?;
        let file = folder.path().join("record");
        let mut command = Command::new(&self.program);
        command.args(scenarios).env("TORTURE_RECORD", &file);
        command.env("TORTURE_SETTLE_MS", settle.as_millis().to_string()).envs(environment.iter().copied());
        let ended = run(&mut command, Duration::from_secs(60))?;
        Ok((ended, record::read(&file)?))
    }

    /// Text of the program as argument of another.
    ///
    /// # Errors
    /// Its path is not UTF-8.
    pub fn program(&self) -> Result<&str> {
        self.program.to_str().context("path of the worker is not UTF-8")
    }
}
