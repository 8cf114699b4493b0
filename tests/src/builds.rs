//! Turns a name into a FreeCAD or OCCT that jobs can be run on: the installed one, a root file system, a set of wheels.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::freecad::VERSIONS;
use crate::metrics::{Metrics, Sample};
use crate::run::{Ended, run};

/// A build that jobs run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build {
    /// As `cargo xtask builds` names it; the installed FreeCAD is `freecad-0.20`.
    pub name: &'static str,
    /// What `/metrics` has to say.
    pub freecad_version: &'static str,
    /// What `/metrics` has to say.
    pub occt_version: &'static str,
    /// Part of every run of the tests.
    pub everyday: bool,
}

const fn build(
    name: &'static str,
    freecad_version: &'static str,
    occt_version: &'static str,
    everyday: bool,
) -> Build {
    Build { name, freecad_version, occt_version, everyday }
}

/// Every build.
pub const BUILDS: [Build; 7] = [
    build("freecad-0.20", VERSIONS.0, VERSIONS.1, true),
    build("freecad-1.0", "1.0.0", "7.8.1", false),
    build("freecad-1.1", "1.1.3", "7.9.2", true),
    build("wheel-7.7", "", "7.7.2", false),
    build("wheel-7.8", "", "7.8.1", false),
    build("wheel-7.9", "", "7.9.3", false),
    build("wheel-8.0", "", "8.0.1", true),
];

/// The builds of this run of the tests: those of every day, or all (`CADSCOPE_FULL=1`), or those in `CADSCOPE_ONLY`. Says
/// once which they are, and which are left out, also where the output of tests is captured.
#[must_use]
pub fn wanted() -> Vec<Build> {
    let names: Vec<&str> = BUILDS.iter().map(|build| build.name).collect();
    let chosen = std::env::var("CADSCOPE_ONLY").is_ok_and(|only| only.split(',').any(|o| names.contains(&o)));
    let wanted = |build: &Build| {
        crate::node::wanted(build.name, &names) && (chosen || build.everyday || crate::node::full())
    };
    let (wanted, left): (Vec<Build>, Vec<Build>) = BUILDS.into_iter().partition(wanted);
    static SAY: std::sync::Once = std::sync::Once::new();
    SAY.call_once(|| {
        let names = |builds: &[Build]| builds.iter().map(|build| build.name).collect::<Vec<_>>().join(", ");
        let left = if left.is_empty() {
            String::new()
        } else {
            format!("; not on {} (CADSCOPE_FULL=1 runs on all)", names(&left))
        };
        let _ = writeln!(std::io::stderr(), "builds: on {}{left}", names(&wanted));
    });
    wanted
}

/// Where `cargo xtask builds` puts what it makes.
///
/// # Errors
/// There is no home to look in.
pub fn folder() -> Result<PathBuf> {
    Ok(match std::env::var_os("CADSCOPE_BUILDS") {
        Some(folder) => PathBuf::from(folder),
        None => std::env::home_dir().context("no home")?.join(".cache/cadscope/builds"),
    })
}

impl Build {
    /// It has a FreeCAD; otherwise it is a Python with OCCT.
    #[must_use]
    pub const fn has_freecad(&self) -> bool {
        !self.freecad_version.is_empty()
    }

    /// Where it is; `/` for the installed one.
    ///
    /// # Errors
    /// It has not been made; says how.
    pub fn root(&self) -> Result<PathBuf> {
        if self.name == BUILDS[0].name {
            return Ok(PathBuf::from("/"));
        }
        let root = folder()?.join(self.name);
        ensure!(
            root.is_dir(),
            "{} is not there: run `cargo xtask builds {}`, and set CADSCOPE_BUILDS if the cache is elsewhere",
            root.display(),
            self.name
        );
        Ok(fs::canonicalize(root)?)
    }

    /// The libraries and modules in which probes can lie.
    ///
    /// # Errors
    /// It has not been made.
    pub fn libraries(&self) -> Result<Vec<PathBuf>> {
        let root = self.root()?;
        let mut folders = Vec::new();
        if self.has_freecad() {
            folders.push(root.join("usr/lib/x86_64-linux-gnu"));
            folders.push(root.join("usr/lib/freecad-python3/lib"));
        } else {
            for entry in fs::read_dir(root.join("lib/python3.11/site-packages"))? {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if name.starts_with("cadquery_ocp") && name.ends_with(".libs") {
                    folders.push(path);
                }
            }
        }
        let mut files = Vec::new();
        for folder in folders {
            for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let own = ["libTK", "libFreeCAD", "libOndsel"].iter().any(|start| name.starts_with(start));
                let module = folder.ends_with("freecad-python3/lib") && name.ends_with(".so");
                if !path.is_symlink() && path.is_file() && (own || module) {
                    files.push(path);
                }
            }
        }
        files.sort();
        ensure!(!files.is_empty(), "no libraries below {}", root.display());
        Ok(files)
    }

    /// Runs a job of `jobs/families` to its end.
    ///
    /// # Errors
    /// It failed or hung.
    pub fn run(&self, job: &str, folder: &Path, limit: Duration) -> Result<Ended> {
        self.run_with(job, folder, &[], limit)
    }

    /// The same with these variables.
    ///
    /// # Errors
    /// It failed or hung.
    pub fn run_with(
        &self,
        job: &str,
        folder: &Path,
        variables: &[(&str, &str)],
        limit: Duration,
    ) -> Result<Ended> {
        let jobs = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs/families");
        for entry in fs::read_dir(&jobs).with_context(|| jobs.display().to_string())? {
            let entry = entry?;
            fs::copy(entry.path(), folder.join(entry.file_name()))?;
        }
        let ended = run(self.command(job, folder)?.envs(variables.iter().copied()), limit)?;
        let text = format!("{}\n{}", ended.stdout, ended.stderr);
        ensure!(
            ended.code == 0 && ended.stdout.contains("job done"),
            "{job} on {} ended with {}:\n{text}",
            self.name,
            ended.code
        );
        Ok(ended)
    }

    /// Ready to be started; `folder`, which holds the job, is `/mnt` in a root file system, whose own `/proc` it gets.
    ///
    /// # Errors
    /// It has not been made.
    pub fn command(&self, job: &str, folder: &Path) -> Result<Command> {
        let root = self.root()?;
        let mut command = if root == Path::new("/") {
            let mut command = Command::new(crate::node::tool("freecadcmd", "freecad-python3")?);
            command.arg(folder.join(job)).env("JOB_FOLDER", folder).env("HOME", folder);
            command
        } else if self.has_freecad() {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private", "sh", "-c"]);
            command.arg(
                "mount -t proc proc \"$1/proc\" && mount --bind \"$2\" \"$1/mnt\" && cd \"$1\" && exec chroot \"$1\" freecadcmd \"/mnt/$3\"",
            );
            command.arg("sh").arg(&root).arg(folder).arg(job).env("JOB_FOLDER", "/mnt").env("HOME", "/mnt");
            command
        } else {
            let mut command = Command::new(root.join("bin/python"));
            command.arg(folder.join(job)).env("JOB_FOLDER", folder).env("HOME", folder);
            command
        };
        command.env("QT_QPA_PLATFORM", "offscreen").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        // A folder of this machine, not of the root file system.
        command.env_remove("TMPDIR").current_dir(folder);
        Ok(command)
    }
}

/// A line of what a job expects.
#[derive(Clone, Debug, Deserialize)]
struct Line {
    scope: Option<String>,
    expect: Option<String>,
    expect_some: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    n: f64,
    #[serde(default)]
    done: bool,
}

/// What a job says it did.
#[derive(Clone, Debug)]
pub struct Expected(Vec<Line>);

impl Expected {
    /// Reads what a job left in its folder.
    ///
    /// # Errors
    /// It left nothing, or did not reach its end.
    pub fn read(folder: &Path) -> Result<Self> {
        let text = fs::read_to_string(folder.join("expected")).context("the job left no expectations")?;
        let lines: Vec<Line> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        if !lines.last().is_some_and(|line| line.done) {
            bail!("the job did not reach its end:\n{text}");
        }
        Ok(Self(lines))
    }

    /// Where the rise between two scrapes is not what the job did, for the versions of a build. Empty = all is right.
    #[must_use]
    pub fn complaints(&self, build: &Build, before: &Metrics, after: &Metrics) -> Vec<String> {
        let rises = rises(build, before, after);
        let mut wanted: BTreeMap<(String, BTreeMap<String, String>), f64> = BTreeMap::new();
        for line in &self.0 {
            if let Some(family) = &line.expect {
                *wanted.entry((family.clone(), line.labels.clone())).or_default() += line.n;
            }
        }
        let mut complaints = Vec::new();
        for ((family, labels), n) in &wanted {
            let rise: f64 =
                rises.iter().filter(|r| r.0 == *family && includes(&r.1, labels)).map(|r| r.2).sum();
            if (rise - n).abs() > 1e-9 {
                complaints.push(format!("{family}{labels:?} rose by {rise}, not {n}"));
            }
        }
        let some: Vec<_> =
            self.0.iter().filter_map(|line| Some((line.expect_some.as_ref()?, &line.labels))).collect();
        for (family, labels) in &some {
            if !rises.iter().any(|rise| rise.0 == **family && includes(&rise.1, labels)) {
                complaints.push(format!("{family}{labels:?} did not rise"));
            }
        }
        let sum = |family: &str| rises.iter().filter(|rise| rise.0 == family).map(|rise| rise.2).sum::<f64>();
        let iterations = ["a4_solver_iterations_total", "a4_solver_iterations_per_solve_sum"].map(sum);
        if iterations[0] != iterations[1] {
            complaints.push(format!("iterations, in all and by solve: {iterations:?}"));
        }
        for (family, labels, rise) in &rises {
            let in_scope = self
                .0
                .iter()
                .any(|line| line.scope.as_ref() == Some(family) && includes(labels, &line.labels));
            let wanted = wanted.keys().map(|(name, labels)| (name, labels)).chain(some.iter().copied());
            let expected =
                wanted.into_iter().any(|(name, wanted)| name == family && includes(labels, wanted));
            if in_scope && !expected {
                complaints.push(format!("{family}{labels:?} rose by {rise}, unexpectedly"));
            }
        }
        complaints
    }
}

fn includes(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// Family, labels without versions, rise: of every series with the versions of the build that rose.
fn rises(build: &Build, before: &Metrics, after: &Metrics) -> Vec<(String, BTreeMap<String, String>, f64)> {
    let versions = [("freecad_version", build.freecad_version), ("occt_version", build.occt_version)];
    // Stages of flows do not tell OCCT's version.
    let of = |sample: &&Sample| {
        sample.labels.contains_key(versions[0].0)
            && versions
                .iter()
                .all(|(name, value)| sample.labels.get(*name).is_none_or(|found| found == value))
            && (sample.name.ends_with("_count")
                || sample.name.ends_with("_total")
                || sample.name.ends_with("_sum"))
    };
    let mut rises = Vec::new();
    for sample in after.0.iter().filter(of) {
        let old = before.0.iter().find(|old| old.name == sample.name && old.labels == sample.labels);
        let rise = sample.value - old.map_or(0.0, |old| old.value);
        if rise == 0.0 {
            continue;
        }
        let mut labels = sample.labels.clone();
        labels.retain(|name, _| versions.iter().all(|(version, _)| name != version));
        // A family of durations goes by its own name; its sum, for counts of iterations, by `…_sum`.
        let family = sample.name.strip_suffix("_count").unwrap_or(&sample.name).to_owned();
        rises.push((family, labels, rise));
    }
    rises
}
