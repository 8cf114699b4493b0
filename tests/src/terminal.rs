//! Runs a program in a terminal (tmux), types, and reads the screen, as a person would.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::run::run;

/// A terminal of its own server; it ends with the value.
#[derive(Debug)]
pub struct Terminal {
    tmux: std::path::PathBuf,
    socket: String,
    folder: tempfile::TempDir,
}

impl Terminal {
    /// A terminal of this size in which a shell command runs.
    ///
    /// # Errors
    /// tmux is not installed.
    pub fn start(columns: u16, rows: u16, command: &str) -> Result<Self> {
        let folder = crate::node::scratch()?;
        let socket = folder.path().join("tmux").display().to_string();
        let terminal = Self { tmux: crate::node::tool("tmux", "tmux")?, socket, folder };
        let (columns, rows) = (columns.to_string(), rows.to_string());
        terminal.tmux(&["new-session", "-d", "-x", &columns, "-y", &rows, command])?;
        Ok(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.tmux);
        command.args(["-u", "-S", &self.socket, "-f", "/dev/null"]).args(arguments);
        command.env("HOME", self.folder.path()).env("LANG", "C.UTF-8").env_remove("TMUX");
        let ended = run(&mut command, Duration::from_secs(20))?;
        ensure!(ended.code == 0, "tmux {arguments:?}: {}", ended.stderr);
        Ok(ended.stdout)
    }

    /// Types keys, as tmux names them.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn press(&self, keys: &[&str]) -> Result<()> {
        let mut arguments = vec!["send-keys"];
        arguments.extend(keys);
        self.tmux(&arguments).map(drop)
    }

    /// The processes that its shell has started.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn children(&self) -> Result<Vec<u32>> {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"])?;
        let path = format!("/proc/{0}/task/{0}/children", shell.trim());
        let children = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        Ok(children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
    }

    /// What is on the screen.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The same with its colours, as escape sequences.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn coloured_screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    /// Waits until the screen is as wanted; gives it.
    ///
    /// # Errors
    /// It is not within a minute and a half; with what was there last.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let until = Instant::now() + Duration::from_secs(90);
        loop {
            let screen = self.screen().context("the terminal is gone")?;
            if wanted(&screen) {
                return Ok(screen);
            }
            if Instant::now() > until {
                bail!("{what}: not within 90 s\n{screen}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}
