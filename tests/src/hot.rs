//! Runs a program that calls functions when it is told to, as often as it is told, under an agent that knows them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::agent::Agent;
use crate::metrics::Metrics;
use crate::node::scratch;
use crate::worker::build_program;

const CATALOG: &str = r#"
[[probe]]
id = "hot.warm"
function = "warm(long)"
symbols = ["warm"]
title = "warm"
metric = "hot_warm_seconds"
help = "Time of a call."
[[probe]]
id = "hot.deep"
function = "deep(long)"
symbols = ["deep"]
title = "deep"
metric = "hot_deep_seconds"
help = "Time of a call."
[[probe]]
id = "hot.blazing"
function = "blazing(long)"
symbols = ["blazing"]
title = "blazing"
metric = "hot_blazing_seconds"
help = "Time of a call."
"#;

/// The program.
#[derive(Debug)]
pub struct Hot {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Hot {
    /// Starts it.
    ///
    /// # Errors
    /// It cannot be built or started.
    pub fn start() -> Result<Self> {
        Self::start_by(&mut Command::new(build_program("hot/hot.cpp")?))
    }

    /// The same, by a command that becomes the program.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_by(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, input, output })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has each of so many threads make so many calls, so many a second (0: as fast as it goes); how many were made. They
    /// returned what they should.
    ///
    /// # Errors
    /// They did not, or the program is gone.
    pub fn call(&mut self, function: &str, calls: i64, rate: u32, threads: i64) -> Result<f64> {
        writeln!(self.input, "{function} {calls} {rate} {threads}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let each = if function == "warm" { 1 } else { 2 };
        let sum = threads * (calls * (calls - 1) / 2 + each * calls);
        ensure!(line.trim() == format!("{} {sum}", calls * threads), "another result: {line}");
        Ok((calls * threads) as f64)
    }

    /// Calls `deep`, which calls itself until so many calls are open.
    ///
    /// # Errors
    /// It returned another number, or the program is gone.
    pub fn nest(&mut self, depth: i64) -> Result<f64> {
        writeln!(self.input, "deep {depth} 0 1")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.trim() == format!("{depth} {depth}"), "another result: {line}");
        Ok(depth as f64)
    }
}

impl Drop for Hot {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The catalogue of its functions, in a folder of its own.
///
/// # Errors
/// It cannot be written.
pub fn catalog() -> Result<(TempDir, String)> {
    let folder = scratch()?;
    let path = folder.path().join("hot.toml");
    fs::write(&path, CATALOG)?;
    Ok((folder, path.to_str().context("path is not UTF-8")?.to_owned()))
}

/// An agent with these arguments that has probed the program.
///
/// # Errors
/// It has not.
pub fn start(arguments: &[&str]) -> Result<(Agent, Hot, TempDir)> {
    let (folder, catalog) = catalog()?;
    let hot = Hot::start()?;
    let mut all = vec!["--catalog", &catalog];
    all.extend(arguments);
    let agent = Agent::start(&all)?;
    agent.learn(&["/hot-"], || Ok(()))?;
    Ok((agent, hot, folder))
}

/// Has so many processes, one after another, call each function of the crowd once; how many calls that are.
///
/// # Errors
/// One returned another number, or the program is gone.
pub fn crowd(hot: &mut Hot, processes: u32) -> Result<f64> {
    writeln!(hot.input, "crowd {processes} 0 1")?;
    let mut line = String::new();
    hot.output.read_line(&mut line)?;
    ensure!(line.trim() == format!("{processes} {processes}"), "another result: {line}");
    Ok(f64::from(processes) * f64::from(CROWD))
}

/// Functions of the crowd.
const CROWD: u32 = 64;

/// A catalogue of the crowd, in the folder of the other, all with one metric.
///
/// # Errors
/// It cannot be written.
pub fn catalog_of_the_crowd(folder: &TempDir) -> Result<String> {
    let probe = |number: u32| {
        format!(
            "[[probe]]\nid = \"hot.crowd{number}\"\nfunction = \"crowd<{number}>(long)\"\n\
             symbols = [\"_Z5crowdILi{number}EEll\"]\ntitle = \"crowd\"\nmetric = \"hot_crowd_seconds\"\n\
             help = \"Time of a call.\"\n"
        )
    };
    let path = folder.path().join("crowd.toml");
    fs::write(&path, (0..CROWD).map(probe).collect::<String>())?;
    Ok(path.to_str().context("path is not UTF-8")?.to_owned())
}

/// Calls of `warm` that have been counted.
#[must_use]
pub fn counted(metrics: &Metrics) -> f64 {
    metrics.sum("hot_warm_seconds_count", &[])
}

/// Events that found no room.
#[must_use]
pub fn lost(metrics: &Metrics) -> f64 {
    metrics.sum("cadscope_events_lost_total", &[])
}
