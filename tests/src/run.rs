//! Runs a program to its end, with a time limit, and keeps what it said.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::node::patient;

/// How a program ended and what it printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code; `128 + n` if signal n ended it, as a shell reports it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Exit code as a shell reports it.
#[must_use]
pub fn shell_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Waits for a child; kills it when `limit` is over.
///
/// # Errors
/// It did not end in time.
pub fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let until = Instant::now() + patient(limit);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > until {
            child.kill().ok();
            child.wait().ok();
            bail!("did not end within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A child that does not outlive the test, however the test ends.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// A process that only takes time.
    ///
    /// # Errors
    /// It does not start.
    pub fn busy() -> Result<Self> {
        Ok(Self(Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn()?))
    }

    /// Asks it to end and waits.
    ///
    /// # Errors
    /// It is gone already or does not end.
    pub fn interrupt(&mut self) -> Result<ExitStatus> {
        kill(Pid::from_raw(i32::try_from(self.0.id())?), Signal::SIGINT)?;
        wait(&mut self.0, Duration::from_secs(60))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Runs `command` to its end.
///
/// # Errors
/// It could not be started or did not end in time.
pub fn run(command: &mut Command, limit: Duration) -> Result<Ended> {
    let folder = crate::node::scratch()?;
    let (out, err) = (folder.path().join("stdout"), folder.path().join("stderr"));
    command.stdin(Stdio::null()).stdout(File::create(&out)?).stderr(File::create(&err)?);
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let status = wait(&mut child, limit)
        .with_context(|| format!("{command:?}\n--- stdout\n{}\n--- stderr\n{}", text(&out), text(&err)))?;
    Ok(Ended { code: shell_code(status), stdout: text(&out), stderr: text(&err) })
}

/// Text of a file, `""` if there is none, other bytes replaced.
#[must_use]
pub fn text(path: &std::path::Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        file.read_to_end(&mut bytes).ok();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Looks every 20 ms until `look` gives a value.
///
/// # Errors
/// Nothing came within `limit`; says `what`.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + patient(limit);
    loop {
        if let Some(value) = look() {
            return Ok(value);
        }
        if Instant::now() > end {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
