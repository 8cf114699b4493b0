//! `cadscope trace`: runs or follows one process and its descendants, and prints what they did.
//!
//! The command's status becomes ours; what it prints is not touched.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal};

use crate::clock::now_ns;
use crate::config::{Target, TraceConfig, TraceFormat};
use crate::discover::{self, Mappings};
use crate::observe::{Observation, Observer, ObserverOptions};
use crate::operation::{Operation, Worker};
use crate::view::{Exit, Skipped, TraceReport, WorkerReport, json, page, perfetto, tree};
use crate::workers::Late;

mod start;

/// How long the trace waits for the last records after the command has ended.
const LAST_RECORDS: Duration = Duration::from_millis(20);
/// What shells exit with for a command that is not there, or that cannot be executed.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
/// Columns when standard output is no terminal.
const COLUMNS: usize = 120;

/// How often the memory of workers is looked at, at first.
const MEMORY_NS: u64 = 10_000_000;
/// Samples of a worker's memory. When there are more, every other one goes, and they are taken half as often.
const SAMPLES: usize = 2000;

/// What has been collected.
#[derive(Default)]
struct Collected {
    workers: Vec<WorkerReport>,
    index: HashMap<u32, usize>,
    operations: Vec<Operation>,
    missed: Vec<Skipped>,
    late: Vec<(u32, Late)>,
    dropped: u64,
    memory: MemoryClock,
    proc: PathBuf,
}

/// When memory is looked at.
struct MemoryClock {
    every_ns: u64,
    next_ns: u64,
}

impl Default for MemoryClock {
    fn default() -> Self {
        Self { every_ns: MEMORY_NS, next_ns: 0 }
    }
}

impl Collected {
    /// Looks at the memory of the workers that run, if it is time.
    fn look_at_memory(&mut self) {
        let now = now_ns();
        if now < self.memory.next_ns {
            return;
        }
        let mut full = false;
        for report in self.workers.iter_mut().filter(|report| report.exit.is_none()) {
            if let Some(bytes) = discover::resident_bytes(&self.proc, report.worker.process.pid) {
                report.memory.push((now, bytes));
                full |= report.memory.len() > SAMPLES;
            }
        }
        if full {
            self.memory.every_ns *= 2;
            for report in &mut self.workers {
                let mut keep = false;
                report.memory.retain(|_| {
                    keep = !keep;
                    keep
                });
            }
        }
        self.memory.next_ns = now + self.memory.every_ns;
    }

    fn take(&mut self, observation: Observation) {
        match observation {
            Observation::Started(worker) => {
                self.index.insert(worker.process.pid, self.workers.len());
                let now = now_ns();
                self.workers.push(WorkerReport {
                    started_ns: now,
                    ended_ns: now,
                    ..WorkerReport::new(worker)
                });
            }
            Observation::Renewed(worker) => {
                if let Some(report) = self.report(worker.process.pid) {
                    report.worker = worker;
                }
            }
            Observation::Ended { worker, started_ns, ended_ns, status, .. } => {
                if let Some(report) = self.report(worker.process.pid) {
                    report.started_ns = report.started_ns.min(started_ns);
                    report.ended_ns = ended_ns;
                    report.exit = status.map(exit_of);
                }
            }
            Observation::Operation(operation) => self.operations.push(operation),
            Observation::Ready(_)
            | Observation::Called(_)
            | Observation::Repeated { .. }
            | Observation::Limited { .. } => {}
            Observation::Late { pid, late } => self.late.push((pid, late)),
            Observation::Missed { path, reason, error } => {
                self.missed.push(Skipped { file: path, probe: reason.to_owned(), reason: error });
            }
            Observation::Dropped(_) => self.dropped += 1,
        }
    }

    fn report(&mut self, pid: u32) -> Option<&mut WorkerReport> {
        self.workers.get_mut(*self.index.get(&pid)?)
    }
}

fn exit_of(status: u32) -> Exit {
    let signal = u8::try_from(status & 0x7f).ok().filter(|signal| *signal != 0);
    let code = if signal.is_none() { i32::try_from(status >> 8 & 0xff).ok() } else { None };
    Exit { code, signal }
}

/// Runs the trace; returns the status to exit with.
///
/// # Errors
/// The node lacks something, the command cannot be run, or the report cannot be written.
pub fn run(config: &TraceConfig, options: ObserverOptions) -> anyhow::Result<u8> {
    let proc = options.proc.clone();
    let mappings = Mappings::open(&options.sys)?;
    let mut observer = Observer::start(ObserverOptions { only_targets: true, ..options }, mappings)?;
    let mut collected = Collected { proc, ..Collected::default() };
    let (command, status) = match &config.target {
        Target::Program(arguments) => {
            let status = run_program(arguments, &mut observer, &mut collected)?;
            (arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect(), status)
        }
        Target::Process(pid) => {
            follow(*pid, &mut observer, &mut collected)?;
            (Vec::new(), 0)
        }
    };
    std::thread::sleep(LAST_RECORDS);
    observer.drain(&mut |observation| collected.take(observation));
    let report = report(command, collected, &observer);
    write(config, &report)?;
    Ok(status)
}

fn run_program(
    arguments: &[OsString],
    observer: &mut Observer,
    collected: &mut Collected,
) -> anyhow::Result<u8> {
    let Some((program, rest)) = arguments.split_first() else { bail!("no command to run") };
    // The child holds still before it executes the program until it is a target: nothing of the program is missed.
    let (gate, opener) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("cannot make a pipe")?;
    let mut command = Command::new(program);
    command.args(rest).stdin(Stdio::inherit());
    let wait = move || {
        let mut byte = [0_u8];
        // The parent writes one byte; if it is gone, the error opens the gate as well.
        let _ = nix::unistd::read(&gate, &mut byte);
        Ok(())
    };
    // SAFETY: the closure only calls read(2), which is async-signal-safe.
    unsafe { command.pre_exec(wait) };
    let spawned = std::thread::spawn(move || command.spawn().map(|child| (child, command)));
    let child_pid = wait_for_child(&spawned);
    if let Some(pid) = child_pid {
        observer.add_target(pid)?;
        observer.prepare(pid, &start::files(program), &mut |observation| collected.take(observation));
    }
    nix::unistd::write(&opener, &[1]).context("cannot start the command")?;
    let spawned = spawned.join().map_err(|_| anyhow::anyhow!("cannot start the command"))?;
    let (mut child, _) = match spawned {
        Ok(spawned) => spawned,
        Err(error) => {
            let program = program.to_string_lossy();
            eprintln!("cadscope: cannot run `{program}`: {error}; is it installed, executable and in PATH?");
            return Ok(if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE });
        }
    };
    if child_pid.is_none() {
        observer.add_target(child.id())?;
        observer.scan(Some(&[child.id()]), &mut |observation| collected.take(observation));
    }
    forward_signals(&child);
    let status = loop {
        observer.poll(Duration::from_millis(10), &mut |observation| collected.take(observation));
        collected.look_at_memory();
        if let Some(status) = child.try_wait().context("cannot wait for the command")? {
            break status;
        }
    };
    Ok(code_of(status))
}

/// The process id of the child that a thread is spawning: our only child that is not known yet.
fn wait_for_child<T>(spawning: &std::thread::JoinHandle<T>) -> Option<u32> {
    let own = std::process::id();
    for _ in 0..5_000 {
        if let Ok(tasks) = std::fs::read_dir("/proc/self/task") {
            for task in tasks.flatten() {
                let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
                if let Some(pid) = children.split_whitespace().next_back().and_then(|pid| pid.parse().ok())
                    && pid != own
                {
                    return Some(pid);
                }
            }
        }
        if spawning.is_finished() {
            return None;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    None
}

/// As a shell reports it: 128 + n for signal n.
fn code_of(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code & 0xff).unwrap_or(1)
}

/// Hands SIGTERM on to the command; the terminal sends SIGINT to it by itself.
fn forward_signals(child: &Child) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    if signals.thread_block().is_err() {
        return;
    }
    std::thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            if signal != Signal::SIGINT {
                // It may have ended already.
                let _ = nix::sys::signal::kill(pid, signal);
            }
        }
    });
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn follow(pid: u32, observer: &mut Observer, collected: &mut Collected) -> anyhow::Result<()> {
    if !std::path::Path::new("/proc").join(pid.to_string()).exists() {
        bail!("there is no process {pid}");
    }
    observer.add_target(pid)?;
    observer.scan(Some(&[pid]), &mut |observation| collected.take(observation));
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("cannot block signals")?;
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    });
    eprintln!("cadscope: following process {pid}; Ctrl-C ends the trace");
    while std::path::Path::new("/proc").join(pid.to_string()).exists() && !INTERRUPTED.load(Ordering::Relaxed)
    {
        observer.poll(Duration::from_millis(10), &mut |observation| collected.take(observation));
        collected.look_at_memory();
    }
    Ok(())
}

fn report(command: Vec<String>, collected: Collected, observer: &Observer) -> TraceReport {
    let mut losses = observer.losses();
    // Values that could not be read show in their operations; frames abandoned by a jump are not lost.
    losses.remove("frame_abandoned");
    losses.insert("records_dropped".to_owned(), collected.dropped);
    losses.retain(|_, count| *count > 0);
    let mut skipped = collected.missed;
    for file in observer.attacher().files().values() {
        for probe in &file.probes {
            if let Err(reason) = &probe.sites {
                skipped.push(Skipped {
                    file: file.path.clone(),
                    probe: probe.id.clone(),
                    reason: reason.clone(),
                });
            }
        }
    }
    let (mut operations, late) = (collected.operations, collected.late);
    let workers = collected.workers;
    // An operation carries what was known of its worker when it ended; the report knows more.
    let latest: HashMap<u32, Arc<Worker>> =
        workers.iter().map(|report| (report.worker.process.pid, Arc::clone(&report.worker))).collect();
    for operation in &mut operations {
        if let Some(worker) = latest.get(&operation.worker.process.pid) {
            operation.worker = Arc::clone(worker);
        }
    }
    operations.sort_by_key(|operation| (operation.start_ns, operation.depth));
    TraceReport { command, workers, operations, losses, skipped, late }
}

fn write(config: &TraceConfig, report: &TraceReport) -> anyhow::Result<()> {
    let to_terminal = config.output.is_none() && std::io::stdout().is_terminal();
    let text = match config.format {
        TraceFormat::Json => {
            let mut text = serde_json::to_string_pretty(&json::render_json(report))?;
            text.push('\n');
            text
        }
        TraceFormat::Perfetto => serde_json::to_string(&perfetto::render_perfetto(report))?,
        TraceFormat::Html => page::render_page(report),
        TraceFormat::Tree => {
            let width = if to_terminal { terminal_columns().unwrap_or(COLUMNS) } else { COLUMNS };
            let color = to_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            tree::render_tree(report, &tree::TreeOptions { width, color, ..tree::TreeOptions::default() })
        }
    };
    match &config.output {
        Some(path) => std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display())),
        None => {
            let mut out = std::io::stdout().lock();
            match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
                result => result.context("cannot write the report"),
            }
        }
    }
}

fn terminal_columns() -> Option<usize> {
    std::env::var("COLUMNS").ok()?.parse().ok().filter(|columns| *columns >= 40)
}
