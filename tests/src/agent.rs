//! Runs `cadscope agent` and talks to it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::metrics::Metrics;
use crate::node::patient;
use crate::run;

/// A running agent, stopped with the value.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    port: u16,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

/// A port of 127.0.0.1 that was free a moment ago.
///
/// # Errors
/// None is.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Agent {
    /// Starts the agent with these further arguments and waits until it is ready.
    ///
    /// # Errors
    /// It ended, or was not ready within 60 s; with what it said.
    pub fn start<S: AsRef<OsStr>>(arguments: &[S]) -> Result<Self> {
        Self::launch(arguments)?.ready()
    }

    /// The same at a port that was another agent's.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_at(port: u16) -> Result<Self> {
        Self::launch_by::<&str>(Command::new(crate::node::cadscope()?), port, &[])?.ready()
    }

    /// The same, run by another program, whose words stand before it: one that replaces itself by the agent.
    ///
    /// # Errors
    /// See [`Agent::start`].
    pub fn start_under<S: AsRef<OsStr>>(wrapper: &[String], arguments: &[S]) -> Result<Self> {
        let (program, words) = wrapper.split_first().context("no program")?;
        let mut command = Command::new(program);
        command.args(words).arg(crate::node::cadscope()?);
        Self::launch_by(command, free_port()?, arguments)?.ready()
    }

    fn ready(mut self) -> Result<Self> {
        let agent = &mut self;
        let until = Instant::now() + patient(Duration::from_secs(60));
        while Instant::now() < until {
            if let Some(status) = agent.child.try_wait()? {
                bail!("agent ended with {status} before it was ready:\n{}", agent.log());
            }
            if agent.get("/readyz").is_ok_and(|(status, _)| status == 200) {
                return Ok(self);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("agent is not ready in time:\n{}", agent.log());
    }

    /// Starts the agent and does not wait.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn launch<S: AsRef<OsStr>>(arguments: &[S]) -> Result<Self> {
        Self::launch_by(Command::new(crate::node::cadscope()?), free_port()?, arguments)
    }

    fn launch_by<S: AsRef<OsStr>>(mut command: Command, port: u16, arguments: &[S]) -> Result<Self> {
        let folder = crate::node::scratch()?;
        let log = folder.path().join("log");
        let file = File::create(&log)?;
        let child = command
            .args(["agent", "--listen", &format!("127.0.0.1:{port}")])
            .env("CADSCOPE_STATE", folder.path().join("state"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("cannot start the agent")?;
        Ok(Self { child, port, log, _folder: folder })
    }

    /// What it has said.
    #[must_use]
    pub fn log(&self) -> String {
        run::text(&self.log)
    }

    /// Where its pages are.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The port of its pages, on 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The bytes that it has in memory.
    ///
    /// # Errors
    /// It is gone.
    pub fn resident(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("agent is gone")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    }

    /// Asks it for a path: status and body.
    ///
    /// # Errors
    /// It does not answer.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        self.ask(path, "*/*")
    }

    /// Asks it for a path in this form.
    ///
    /// # Errors
    /// It does not answer, or not with 200.
    pub fn get_as(&self, path: &str, accept: &str) -> Result<String> {
        let (status, body) = self.ask(path, accept)?;
        ensure!(status == 200, "{path} answers {status}: {body}");
        Ok(body)
    }

    fn ask(&self, path: &str, accept: &str) -> Result<(u16, String)> {
        request(self.port, path, accept)
    }

    /// Scrapes it.
    ///
    /// # Errors
    /// It does not answer, or not with metrics.
    pub fn metrics(&self) -> Result<Metrics> {
        let (status, body) = self.get("/metrics")?;
        ensure!(status == 200, "/metrics answers {status}: {body}");
        Metrics::read(&body)
    }

    fn files(&self) -> Result<Vec<serde_json::Value>> {
        let status: serde_json::Value = serde_json::from_str(&self.get("/status")?.1)?;
        Ok(status.get("files").and_then(|files| files.as_array()).context("no files in /status")?.clone())
    }

    /// Whether it has probes in place in each of these files, told by a part of their path.
    ///
    /// # Errors
    /// It does not answer, or not with the JSON that it should.
    pub fn has_probed(&self, paths: &[&str]) -> Result<bool> {
        let files = self.files()?;
        let probed =
            |file: &&serde_json::Value| file.get("attached").is_some_and(|attached| attached == true);
        let probed: Vec<&str> =
            files.iter().filter(probed).filter_map(|file| file.get("path")?.as_str()).collect();
        Ok(paths.iter().all(|path| probed.iter().any(|probed| probed.contains(path))))
    }

    /// Calls `job` until it has probes in place in each of these files.
    ///
    /// # Errors
    /// It has not within a minute; with what it said.
    pub fn learn(&self, paths: &[&str], mut job: impl FnMut() -> Result<()>) -> Result<()> {
        let until = Instant::now() + patient(Duration::from_secs(60));
        while !self.has_probed(paths)? {
            ensure!(
                Instant::now() < until,
                "not all of {paths:?} are probed: {}\nagent:\n{}",
                self.get("/status")?.1,
                self.log()
            );
            job()?;
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Ids of the probes that `/status` says are left out.
    ///
    /// # Errors
    /// It does not answer, or not with the JSON that it should.
    pub fn skipped(&self) -> Result<Vec<String>> {
        let files = self.files()?;
        let probes = files.iter().filter_map(|file| file.get("probes")?.as_array()).flatten();
        let skipped = probes.filter(|probe| probe.get("state").is_some_and(|state| state == "skipped"));
        Ok(skipped.filter_map(|probe| Some(probe.get("id")?.as_str()?.to_owned())).collect())
    }

    /// Scrapes until `done`, for at most `limit`; gives the last scrape in any case.
    ///
    /// # Errors
    /// It does not answer.
    pub fn metrics_when(&self, limit: Duration, done: impl Fn(&Metrics) -> bool) -> Result<Metrics> {
        let until = Instant::now() + patient(limit);
        loop {
            let metrics = self.metrics()?;
            if done(&metrics) || Instant::now() > until {
                return Ok(metrics);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Its exit code as a shell reports it, if it has ended.
    pub fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().map(run::shell_code)
    }

    /// Sends a signal and waits for its end.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(&mut self, signal: Signal) -> Result<i32> {
        self.signal(signal)?;
        let status = run::wait(&mut self.child, Duration::from_secs(20))?;
        Ok(run::shell_code(status))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.end(Signal::SIGTERM).is_err() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// Asks a port of 127.0.0.1 for a path, as [`Agent::get`] does.
///
/// # Errors
/// It does not answer.
pub fn fetch(port: u16, path: &str) -> Result<(u16, String)> {
    request(port, path, "*/*")
}

fn request(port: u16, path: &str, accept: &str) -> Result<(u16, String)> {
    let limit = patient(Duration::from_secs(10));
    let mut stream = TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), limit)?;
    stream.set_read_timeout(Some(limit))?;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split_whitespace().nth(1).context("no HTTP status")?.parse()?;
    Ok((status, body.to_owned()))
}
