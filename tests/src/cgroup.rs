//! Memory-limited cgroups of either version, in which a test runs workers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::run::until;

/// Where the memory controller is: v1, or the one hierarchy of v2.
const V1: &str = "/sys/fs/cgroup/memory";
const V1_FREEZER: &str = "/sys/fs/cgroup/freezer";
const V2: &str = "/sys/fs/cgroup";

/// A cgroup, removed with the value once its processes are gone.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes one below the root, with a limit if any.
    ///
    /// # Errors
    /// There is no memory controller to be had.
    pub fn new(name: &str, limit_bytes: Option<u64>) -> Result<Self> {
        let root = if Path::new(V1).is_dir() { V1 } else { V2 };
        Self::below(Path::new(root), &format!("cadscope-{name}-{}", std::process::id()), limit_bytes)
    }

    /// Makes one below this one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn child(&self, name: &str, limit_bytes: Option<u64>) -> Result<Self> {
        Self::below(&self.path, name, limit_bytes)
    }

    fn below(parent: &Path, name: &str, limit_bytes: Option<u64>) -> Result<Self> {
        let control = parent.join("cgroup.subtree_control");
        if control.exists() {
            fs::write(&control, "+memory")
                .with_context(|| format!("no memory controller in {}", control.display()))?;
        }
        let path = parent.join(name);
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        let cgroup = Self { path };
        if let Some(limit) = limit_bytes {
            let files = ["memory.limit_in_bytes", "memory.max"].map(|file| cgroup.path.join(file));
            let file = files.iter().find(|file| file.exists()).context("no memory controller")?;
            fs::write(file, limit.to_string())?;
        }
        Ok(cgroup)
    }

    /// The words before a command that start it in the cgroup.
    #[must_use]
    pub fn wrapper(&self) -> [String; 4] {
        let processes = self.path.join("cgroup.procs").display().to_string();
        ["sh".to_owned(), "-c".to_owned(), "echo $$ >\"$0\" && exec \"$@\"".to_owned(), processes]
    }

    /// The same command, to be started in the cgroup.
    #[must_use]
    pub fn enter(&self, command: &Command) -> Command {
        let [shell, words @ ..] = self.wrapper();
        let mut inside = Command::new(shell);
        inside.args(words);
        inside.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            inside.current_dir(folder);
        }
        inside
    }
}

/// A cgroup whose processes can be frozen. They go on when the value is dropped.
#[derive(Debug)]
pub struct Frozen {
    cgroup: Cgroup,
}

impl Frozen {
    /// Makes one below the root.
    ///
    /// # Errors
    /// There is no freezer to be had.
    pub fn new(name: &str) -> Result<Self> {
        let root = if Path::new(V1_FREEZER).is_dir() { V1_FREEZER } else { V2 };
        let name = format!("cadscope-{name}-{}", std::process::id());
        let path = Path::new(root).join(name);
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self { cgroup: Cgroup { path } })
    }

    /// See [`Cgroup::enter`].
    #[must_use]
    pub fn enter(&self, command: &Command) -> Command {
        self.cgroup.enter(command)
    }

    /// Stops its processes, wherever they are.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn freeze(&self) -> Result<()> {
        self.set("FROZEN", "1")
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn thaw(&self) -> Result<()> {
        self.set("THAWED", "0")
    }

    fn set(&self, v1: &str, v2: &str) -> Result<()> {
        let (old, new) = (self.cgroup.path.join("freezer.state"), self.cgroup.path.join("cgroup.freeze"));
        let (file, word) = if old.exists() { (old, v1) } else { (new, v2) };
        fs::write(&file, word).with_context(|| file.display().to_string())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = self.thaw() {
            eprintln!("{error:#}");
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that has been waited for leaves a moment later.
        let gone = until("removal of a cgroup", Duration::from_secs(10), || fs::remove_dir(&self.path).ok());
        if let Err(error) = gone {
            eprintln!("{}: {error:#}", self.path.display());
        }
    }
}
