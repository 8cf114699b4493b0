//! Runs FreeCAD jobs (`jobs/*.py`) and its own test suite, and reads what they say about themselves.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::run::{Ended, run};

/// Versions of Debian bookworm's packages, as every metric must name them.
pub const VERSIONS: (&str, &str) = ("0.20.2", "7.6.3");

/// Home and output of one or more runs of a job.
#[derive(Debug)]
pub struct Job {
    script: PathBuf,
    program: PathBuf,
    folder: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

/// One thing that a job did, as it said itself.
#[derive(Clone, Debug, Deserialize)]
pub struct Done {
    /// union, cut, common, section, fillet, chamfer, add, recompute, save, export, load, start, end.
    pub kind: String,
    /// CLOCK_MONOTONIC before the Python call.
    pub start: i64,
    /// After it.
    pub end: i64,
    /// ok, or the Python exception.
    pub outcome: String,
    /// Name of the object.
    pub object: Option<String>,
    /// Its class.
    pub r#type: Option<String>,
    /// Edges of a fillet or chamfer.
    pub contours: Option<i64>,
    /// Objects to recompute.
    pub objects: Option<i64>,
    /// Format of an export.
    pub format: Option<String>,
    /// File saved, written or loaded.
    pub path: Option<String>,
}

impl Job {
    /// A job of this crate, run by the installed FreeCAD.
    ///
    /// # Errors
    /// FreeCAD is not installed, or has another version than these tests are written for.
    pub fn new(script: &str) -> Result<Self> {
        let program = crate::node::tool("freecadcmd", "freecad-python3")?;
        Self::with_program(script, &program)
    }

    /// The same with another freecadcmd.
    ///
    /// # Errors
    /// The job does not exist.
    pub fn with_program(script: &str, program: &Path) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs").join(script);
        ensure!(script.is_file(), "no job {}", script.display());
        Ok(Self {
            script,
            program: program.to_owned(),
            folder: crate::node::scratch()?,
            environment: Vec::new(),
        })
    }

    /// Adds a variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Where it writes.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Program and arguments.
    #[must_use]
    pub fn command(&self) -> Vec<String> {
        vec![self.program.display().to_string(), self.script.display().to_string()]
    }

    /// All variables that it needs.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let folder = self.folder.path().display().to_string();
        let mut all = vec![
            ("HOME".to_owned(), folder.clone()),
            ("QT_QPA_PLATFORM".to_owned(), "offscreen".to_owned()),
            ("JOB_RECORD".to_owned(), format!("{folder}/record")),
            ("JOB_STOP".to_owned(), format!("{folder}/stop")),
            ("JOB_FOLDER".to_owned(), folder),
        ];
        all.extend(self.environment.iter().cloned());
        all
    }

    /// Ready to be started.
    #[must_use]
    pub fn prepared(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(&self.script).envs(self.environment()).current_dir(self.folder.path());
        command
    }

    /// Runs it to its end; it must say that it is done.
    ///
    /// # Errors
    /// It failed or hung.
    pub fn run(&self, limit: Duration) -> Result<Ended> {
        let ended = run(&mut self.prepared(), limit)?;
        ensure!(ended.code == 0 && ended.stdout.contains("job done"), "job failed: {ended:?}");
        Ok(ended)
    }

    /// Tells `endless.py` to end.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn stop(&self) -> Result<()> {
        Ok(fs::write(self.folder.path().join("stop"), "")?)
    }

    /// What it did.
    ///
    /// # Errors
    /// It has not run, or not to its end.
    pub fn record(&self) -> Result<Vec<Done>> {
        let text = fs::read_to_string(self.folder.path().join("record")).context("the job left no record")?;
        let done: Vec<Done> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        ensure!(done.last().is_some_and(|d| d.kind == "end"), "the job did not reach its end: {text}");
        Ok(done)
    }
}

/// What FreeCAD's own test suite says at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suite {
    /// `Ran N tests`.
    pub ran: u32,
    /// `OK`, `FAILED (failures=1)`.
    pub verdict: String,
    /// Tests that failed, with `ERROR:` or `FAIL:`.
    pub failed: BTreeSet<String>,
}

/// Runs `freecadcmd -t 0`.
///
/// # Errors
/// It did not reach its summary.
pub fn suite() -> Result<Suite> {
    let program = crate::node::tool("freecadcmd", "freecad-python3")?;
    let home = crate::node::scratch()?;
    let mut command = Command::new(program);
    command.args(["-t", "0"]).env("HOME", home.path()).env("QT_QPA_PLATFORM", "offscreen");
    let ended = run(command.current_dir(home.path()), Duration::from_secs(1200))?;
    let all = format!("{}\n{}", ended.stdout, ended.stderr);
    read_suite(&all).with_context(|| {
        let tail: Vec<&str> = all.lines().rev().take(30).collect();
        format!("the suite ended with {} and no summary:\n{}", ended.code, tail.join("\n"))
    })
}

fn read_suite(text: &str) -> Option<Suite> {
    let ran = text.lines().find_map(|l| l.strip_prefix("Ran ")?.split(' ').next()?.parse().ok())?;
    let verdict = text.lines().find(|l| *l == "OK" || l.starts_with("OK (") || l.starts_with("FAILED ("))?;
    let failed = text.lines().filter(|l| l.starts_with("ERROR: ") || l.starts_with("FAIL: "));
    Some(Suite { ran, verdict: verdict.to_owned(), failed: failed.map(str::to_owned).collect() })
}

/// A copy of FreeCAD and OCCT below `folder`, in files that this node has never seen. Gives its freecadcmd and the
/// folder for LD_LIBRARY_PATH.
///
/// # Errors
/// FreeCAD is not where Debian has it.
pub fn copy(folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let (bin, lib) = (folder.join("bin"), folder.join("lib"));
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(&lib)?;
    let installed = Path::new("/usr/lib/freecad");
    let program = bin.join("freecadcmd");
    fs::copy(crate::node::tool("freecadcmd", "freecad-python3")?, &program)?;
    for from in [fs::canonicalize(installed.join("lib"))?, PathBuf::from("/usr/lib/x86_64-linux-gnu")] {
        for entry in fs::read_dir(&from).with_context(|| from.display().to_string())? {
            let entry = entry?;
            let name = entry.file_name();
            let text = name.to_string_lossy().into_owned();
            let freecad = from.starts_with("/usr/lib/freecad-python3");
            if !entry.path().is_file() || !(freecad || text.starts_with("libTK")) {
                continue;
            }
            let target = lib.join(&name);
            if entry.file_type()?.is_symlink() {
                std::os::unix::fs::symlink(fs::read_link(entry.path())?, &target)?;
            } else {
                fs::copy(entry.path(), &target)?;
            }
        }
    }
    for part in ["Mod", "Ext", "share"] {
        let from = installed.join(part);
        if from.exists() {
            std::os::unix::fs::symlink(fs::canonicalize(from)?, folder.join(part))?;
        }
    }
    Ok((program, lib))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_of_the_suite_is_read() {
        let text = "FAIL: a (B)\nRan 739 tests in 67.3s\n\nFAILED (failures=1)\n";
        let suite = read_suite(text).unwrap();
        assert_eq!((suite.ran, suite.verdict.as_str(), suite.failed.len()), (739, "FAILED (failures=1)", 1));
    }
}
