//! Memory-limited cgroups of either version, in which a test runs workers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::run::until;

/// Where the memory controller is: v1, or the one hierarchy of v2.
const V1: &str = "/sys/fs/cgroup/memory";
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

    /// The same command, to be started in the cgroup.
    #[must_use]
    pub fn enter(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(self.path.join("cgroup.procs"));
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

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that has been waited for leaves a moment later.
        let gone = until("removal of a cgroup", Duration::from_secs(10), || fs::remove_dir(&self.path).ok());
        if let Err(error) = gone {
            eprintln!("{}: {error:#}", self.path.display());
        }
    }
}
