//! A `cadscope agent` beside a job: started on a free port, asked by HTTP, ended with SIGTERM.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use crate::places::cache;

/// How long it may take to attach to everything that runs.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long it may take to detach and end.
const ENDED_WITHIN: Duration = Duration::from_secs(30);

/// The process and its address. Dropped, it is ended.
pub(crate) struct RunningAgent {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    log: PathBuf,
}

impl RunningAgent {
    /// Starts it and waits until it answers that everything that runs is attached.
    pub(crate) fn start(binary: &Path) -> Result<Self> {
        Self::start_with(binary, &[])
    }

    /// The same with further arguments.
    pub(crate) fn start_with(binary: &Path, arguments: &[&str]) -> Result<Self> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        std::fs::create_dir_all(cache()?)?;
        let log = cache()?.join(format!("agent-{}.log", address.port()));
        let child = Command::new(binary)
            .args(["agent", "--listen", &address.to_string()])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("{} did not start", binary.display()))?;
        let mut agent = Self { child, address, log };
        let begin = Instant::now();
        while agent.get("/readyz").is_err() {
            if let Some(status) = agent.child.try_wait()? {
                bail!("cadscope agent ended: {status}\n{}", agent.said());
            }
            if begin.elapsed() > READY_WITHIN {
                bail!("cadscope agent was not ready within {READY_WITHIN:?}\n{}", agent.said());
            }
            sleep(Duration::from_millis(50));
        }
        Ok(agent)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that it has had, in KiB.
    pub(crate) fn highest_kib(&self) -> Result<u64> {
        crate::bench::highest_kib(self.child.id())
    }

    /// The processor time that it has taken.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(self.child.id())?))?;
        Ok(clock_gettime(clock)?.into())
    }

    /// The body that it answers with; any status but 200 is an error.
    pub(crate) fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        // HTTP/1.0: the body is not chunked and ends with the connection.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.lines().next().unwrap_or_default();
        if status.split(' ').nth(1) != Some("200") {
            bail!("{path}: {status}");
        }
        Ok(body.to_owned())
    }

    /// Its metrics, once they count that many ended workers or more.
    pub(crate) fn metrics_after(&self, ended_workers: f64) -> Result<String> {
        let begin = Instant::now();
        loop {
            let metrics = self.get("/metrics")?;
            let sum = |name: &str| -> f64 {
                samples(&metrics).filter(|one| one.name == name).map(|one| one.value).sum()
            };
            // Workers that were seen and are no more.
            let ended = sum("cadscope_workers_seen_total") - sum("freecad_workers");
            if ended >= ended_workers {
                return Ok(metrics);
            }
            if begin.elapsed() > Duration::from_secs(10) {
                bail!(
                    "the agent counted {ended} ended workers instead of {ended_workers}: it did not observe the job\n{}",
                    self.said()
                );
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// Ends it and waits for it, so that its CPU time is known and its probes are gone.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.terminate()
    }

    fn terminate(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        let begin = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begin.elapsed() > ENDED_WITHIN {
                self.child.kill()?;
                self.child.wait()?;
                bail!("cadscope agent did not end within {ENDED_WITHIN:?} of SIGTERM\n{}", self.said());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for RunningAgent {
    fn drop(&mut self) {
        if let Err(error) = self.terminate() {
            eprintln!("xtask: {error:#}");
        }
        let _ = std::fs::remove_file(&self.log);
    }
}

/// Asks a process to end as Ctrl-C does.
pub(crate) fn interrupt(child: &Child) -> Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?)
}

/// One line of the text format.
#[derive(Debug, PartialEq)]
pub(crate) struct Sample<'a> {
    /// Up to the labels.
    pub(crate) name: &'a str,
    /// Name and labels.
    pub(crate) series: &'a str,
    /// The value.
    pub(crate) value: f64,
}

/// The samples of an exposition in the text format; exemplars are left out.
pub(crate) fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let name_ends = line.find(['{', ' '])?;
        let (name, labels_and_value) = line.split_at_checked(name_ends)?;
        let series_ends = match labels_and_value.starts_with('{') {
            true => name_ends + closing_brace(labels_and_value)? + 1,
            false => name_ends,
        };
        let (series, rest) = line.split_at_checked(series_ends)?;
        Some(Sample { name, series, value: rest.split_whitespace().next()?.parse().ok()? })
    })
}

/// The brace that closes the labels: not one in a quoted value.
fn closing_brace(labels: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    labels.char_indices().find_map(|(place, letter)| {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            '}' if !quoted => return Some(place),
            _ => {}
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_braces_in_labels_and_without_exemplars() {
        let text = "# TYPE a counter\na_total{x=\"{}\\\"}\"} 3.0 # {trace_id=\"1\"} 2 3\nb 0.5\nc NaN 12\n\n";
        let read: Vec<_> = samples(text).map(|one| (one.name, one.series, one.value)).collect();
        assert_eq!(read.len(), 3);
        assert_eq!(read[0], ("a_total", "a_total{x=\"{}\\\"}\"}", 3.0));
        assert_eq!(read[1], ("b", "b", 0.5));
        assert!(read[2].2.is_nan());
    }
}
