//! Runs podman with runc and a storage of its own, on a machine whose root may lack capabilities.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::node::{scratch, tool};
use crate::run::run;

const LIMIT: Duration = Duration::from_secs(180);

/// A storage; its containers and images go with the value.
#[derive(Debug)]
pub struct Podman {
    folder: TempDir,
}

impl Podman {
    /// An empty one.
    ///
    /// # Errors
    /// podman or runc is not installed.
    pub fn new() -> Result<Self> {
        tool("podman", "podman")?;
        tool("runc", "runc")?;
        Ok(Self { folder: scratch()? })
    }

    fn command(&self) -> Command {
        let mut podman = Command::new("podman");
        podman.arg("--root").arg(self.folder.path().join("storage"));
        podman.arg("--runroot").arg(self.folder.path().join("run"));
        podman.args(["--cgroup-manager=cgroupfs", "--runtime=runc", "--events-backend=file"]);
        podman
    }

    /// Runs a command of podman to success; what it printed.
    ///
    /// # Errors
    /// It failed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let ended = run(self.command().args(arguments), LIMIT)?;
        ensure!(ended.code == 0, "podman {}: {}\n{}", arguments.join(" "), ended.stdout, ended.stderr);
        Ok(ended.stdout.trim().to_owned())
    }

    /// Takes in an image from an archive.
    ///
    /// # Errors
    /// It is none.
    pub fn load(&self, image: &Path) -> Result<()> {
        self.run(&["load", "--quiet", "--input", &image.display().to_string()]).map(drop)
    }

    /// Starts a container in the background; its id. Limits are those that a root without CAP_SYS_RESOURCE may set.
    ///
    /// # Errors
    /// podman refuses.
    pub fn start(&self, arguments: &[&str]) -> Result<String> {
        let fixed = ["run", "--detach", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"];
        self.run(&fixed.iter().chain(arguments).copied().collect::<Vec<_>>())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        for arguments in [&["rm", "--all", "--force", "--time=0"][..], &["rmi", "--all", "--force"]] {
            if let Err(error) = self.run(arguments) {
                eprintln!("{error:#}");
            }
        }
    }
}
