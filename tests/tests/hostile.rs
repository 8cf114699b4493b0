//! Promise: a worker that means ill gets nothing of the node, stops nobody from being observed, and is treated as if
//! nobody watched.

#![allow(clippy::indexing_slicing, reason = "of a file that is there: out of bounds is a failed test")]

#[path = "hostile/begun.rs"]
mod begun;
#[path = "hostile/debugged.rs"]
mod debugged;
#[path = "hostile/elf.rs"]
mod elf;
#[path = "hostile/moved.rs"]
mod moved;
#[path = "hostile/same_pid.rs"]
mod same_pid;
#[path = "hostile/translated.rs"]
mod translated;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::collector::{Collector, Span};
use cadscope_tests::node::{cadscope, full, require_root, scratch, tool};
use cadscope_tests::privileges::{CAPABILITIES, only};
use cadscope_tests::reliability::harmless;
use cadscope_tests::run::{Ended, Running, run, shell_code, until, wait};
use cadscope_tests::worker::build_program;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;

const CATALOG: &str = r#"
[[probe]]
id = "hostile.call"
function = "hostile_call(long, long (*)(long))"
symbols = ["hostile_call"]
title = "call {n}"
metric = "hostile_call_duration_seconds"
help = "Duration of the hostile worker's calls."
labels = { status = "status" }
[[probe.layout]]
enter = { n = "u64(arg0)" }
leave = { result = "u64(ret)" }

[[probe]]
id = "hostile.look"
function = "hostile_look(unsigned int const*)"
symbols = ["hostile_look"]
title = "look {value}"
[[probe.layout]]
enter = { value = "u32[arg0]" }
"#;
const CALLS: &str = "hostile_call_duration_seconds_count";
const NOBODY: u32 = 65534;
const LIMIT: Duration = Duration::from_secs(60);
/// What the agent may have resident, whatever a worker does: the limit of the chart is 256 MiB.
const MOST_RESIDENT: u64 = 160 << 20;

/// An agent that knows the hostile worker's program.
struct Watched {
    agent: Agent,
    program: PathBuf,
    _folder: tempfile::TempDir,
}

impl Watched {
    fn start(wrapper: &[String], arguments: &[&str]) -> Result<Self> {
        let folder = scratch()?;
        // Where other users can run it.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let program = folder.path().join("hostile-worker");
        fs::copy(build_program("hostile/hostile.cpp")?, &program)?;
        let catalog = folder.path().join("hostile.toml");
        fs::write(&catalog, CATALOG)?;
        let mut words: Vec<&OsStr> = vec![OsStr::new("--catalog"), catalog.as_os_str()];
        words.extend(arguments.iter().map(OsStr::new));
        let agent = match wrapper {
            [] => Agent::start(&words)?,
            _ => Agent::start_under(wrapper, &words)?,
        };
        let watched = Self { agent, program, _folder: folder };
        watched.agent.learn(&["hostile-worker"], || watched.run(&["calls", "1", "0.2"]).map(drop))?;
        Ok(watched)
    }

    fn catalog(&self) -> PathBuf {
        self.program.with_file_name("hostile.toml")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words);
        command
    }

    fn run(&self, words: &[&str]) -> Result<Ended> {
        run(&mut self.command(words), LIMIT)
    }

    /// A worker that waits until it is told to make calls, run by another program.
    fn waiting(&self, wrapper: &[&str], words: &[&str]) -> Result<Waiting> {
        Waiting::start(wrapper, &self.program, words)
    }

    /// A worker that maps these files and stays, with what they came to when they were mapped.
    fn mapping(&self, files: &[&Path]) -> Result<Running> {
        self.mapping_as(0, files)
    }

    /// The same as another user.
    fn mapping_as(&self, user: u32, files: &[&Path]) -> Result<Running> {
        let mut command = self.command(&["maps"]);
        command.uid(user).gid(user);
        let mut child = command.args(files).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut said = [0; 7];
        child.stdout.as_mut().context("no stdout")?.read_exact(&mut said)?;
        ensure!(&said == b"mapped\n");
        Ok(Running(child))
    }

    fn calls(&self) -> Result<f64> {
        Ok(self.agent.metrics()?.sum(CALLS, &[]))
    }

    /// Calls seen so far, once those of workers before have all been told: three readings in a row are the same.
    fn settled(&self) -> Result<f64> {
        let (mut last, mut same) = (self.calls()?, 0);
        let until = Instant::now() + LIMIT;
        while same < 2 {
            ensure!(Instant::now() < until, "calls go on, {last} so far");
            std::thread::sleep(Duration::from_millis(400));
            let now = self.calls()?;
            same = if now == last { same + 1 } else { 0 };
            last = now;
        }
        Ok(last)
    }

    /// Calls that are seen of what `job` does, once they are `expected` or a while is over.
    fn seen_of<T>(&self, expected: f64, job: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
        let before = self.settled()?;
        let done = job()?;
        let after =
            self.agent.metrics_when(Duration::from_secs(20), |m| m.sum(CALLS, &[]) >= before + expected)?;
        Ok((after.sum(CALLS, &[]) - before, done))
    }

    /// CPU time of the agent so far.
    fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.agent.pid()))?;
        let fields: Vec<&str> = stat.rsplit(") ").next().context("no stat")?.split(' ').collect();
        let ticks: u64 =
            fields.get(11..13).context("short stat")?.iter().map(|t| t.parse().unwrap_or(0)).sum();
        Ok(Duration::from_millis(ticks * 10))
    }

    /// It answers, is no larger than it may be, and sees every call of a worker that means well.
    fn is_well(&self) -> Result<()> {
        let (status, body) = self.agent.get("/livez")?;
        ensure!((status, body.as_str()) == (200, "ok\n"), "/livez: {status} {body}");
        let resident = self.agent.resident()?;
        ensure!(resident <= MOST_RESIDENT, "agent has {resident} bytes resident");
        let (seen, ended) = self.seen_of(25.0, || self.run(&["calls", "25"]))?;
        ensure!(ended.code == 0 && ended.stdout == "325\n", "{ended:?}");
        ensure!(seen == 25.0, "{seen} of 25 calls of a normal worker; agent:\n{}", self.agent.log());
        ensure!(!self.agent.log().contains("panicked"), "agent:\n{}", self.agent.log());
        Ok(())
    }

    /// Whatever it tells anybody.
    fn says(&self) -> Result<String> {
        let mut said = self.agent.log();
        for page in ["/metrics", "/status", "/"] {
            said += &self.agent.get(page)?.1;
        }
        Ok(said)
    }
}

/// A worker that makes its calls when it is told to.
struct Waiting {
    child: Running,
    said: std::io::Lines<BufReader<std::process::ChildStdout>>,
    /// The process that waits.
    pid: u32,
}

impl Waiting {
    fn start(wrapper: &[&str], program: &Path, words: &[&str]) -> Result<Self> {
        let mut command = Command::new(wrapper.first().map_or(program.as_os_str(), OsStr::new));
        command.args(wrapper.iter().skip(1));
        if !wrapper.is_empty() {
            command.arg(program);
        }
        command.arg("told").args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Where valgrind may leave what it makes of one that it ends.
        command.current_dir(program.parent().context("no folder")?);
        let mut child = Running(command.spawn()?);
        let said = BufReader::new(child.0.stdout.take().context("no stdout")?).lines();
        let mut waiting = Self { child, said, pid: 0 };
        waiting.pid = waiting.line()?.parse()?;
        Ok(waiting)
    }

    /// The next line that it says; empty if it says no more.
    fn line(&mut self) -> Result<String> {
        Ok(self.said.next().transpose()?.unwrap_or_default())
    }

    fn go(&mut self) -> Result<()> {
        Ok(self.child.0.stdin.as_mut().context("no stdin")?.write_all(b"x")?)
    }

    /// Tells it, and says how it ended.
    fn end(mut self) -> Result<Ended> {
        self.go()?;
        let stdout = self.line()?;
        let code = shell_code(wait(&mut self.child.0, LIMIT)?);
        let mut stderr = String::new();
        self.child.0.stderr.take().context("no stderr")?.read_to_string(&mut stderr)?;
        Ok(Ended { code, stdout, stderr })
    }
}

/// With the rights of the chart: no file is reached by its mapping, each by its path.
fn by_path() -> Vec<String> {
    only(&CAPABILITIES)
}

/// Whether files of the host have been opened since.
struct Untouched(Inotify);

impl Untouched {
    fn watch(files: &[&Path]) -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        for file in files {
            inotify.add_watch(*file, AddWatchFlags::IN_OPEN | AddWatchFlags::IN_ACCESS)?;
        }
        Ok(Self(inotify))
    }

    fn check(&self, what: &str) -> Result<()> {
        let events = self.0.read_events();
        ensure!(
            matches!(events, Err(nix::Error::EAGAIN)),
            "{what}: a file of the host was opened: {events:?}"
        );
        Ok(())
    }
}

/// A file system in memory of its own, whose inode numbers begin anew; ends with the value.
struct Memory(PathBuf);

impl Memory {
    fn mount(at: PathBuf) -> Result<Self> {
        fs::create_dir_all(&at)?;
        let none = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), &at, Some("tmpfs"), none, None::<&str>)?;
        Ok(Self(at))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Runs `job` while the agent stands still: what it will look at is gone or another by then.
fn behind_its_back<T>(agent: &Agent, job: impl FnOnce() -> Result<T>) -> Result<T> {
    agent.signal(Signal::SIGSTOP)?;
    // A thread that is in the kernel goes on until it leaves it.
    until("every thread of the agent stands", Duration::from_secs(20), || {
        let threads = fs::read_dir(format!("/proc/{}/task", agent.pid())).ok()?;
        let stands = |thread: fs::DirEntry| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        threads.flatten().all(stands).then_some(())
    })?;
    let done = job();
    agent.signal(Signal::SIGCONT)?;
    done
}

/// Waits until the agent has looked at what was mapped before.
fn let_it_look(watched: &Watched) -> Result<()> {
    std::thread::sleep(Duration::from_millis(300));
    watched.is_well()
}

#[test]
fn a_path_that_leads_out_of_the_container_or_to_another_file_opens_nothing_of_the_host() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    // The same inode number in both: what is told by the number alone is told wrongly.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let (root, host) =
        (Memory::mount(folder.path().join("root"))?, Memory::mount(folder.path().join("host"))?);
    let (program, secret) = (root.0.join("hostile-copy"), host.0.join("hostile-copy"));
    let watched = Watched::start(&by_path(), &[])?;
    for copy in [&program, &secret] {
        fs::copy(&watched.program, copy)?;
        // Another build than the worker's, by its last byte.
        fs::OpenOptions::new().append(true).open(copy)?.write_all(b"x")?;
    }
    ensure!(fs::metadata(&program)?.ino() == fs::metadata(&secret)?.ino(), "inode numbers differ");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    let untouched = Untouched::watch(&[&secret])?;
    for link in [secret.clone(), PathBuf::from("../../..").join(secret.strip_prefix("/")?)] {
        let worker = behind_its_back(&watched.agent, || {
            let worker = watched.mapping_as(NOBODY, &[&program])?;
            fs::rename(&program, root.0.join("moved"))?;
            symlink(&link, &program)?;
            Ok(worker)
        })?;
        let_it_look(&watched)?;
        untouched.check(&link.display().to_string())?;
        ensure!(!watched.agent.has_probed(&["hostile-copy"])?, "the file at the path was probed");
        drop(worker);
        fs::remove_file(&program)?;
        fs::rename(root.0.join("moved"), &program)?;
    }
    harmless(
        "A library's path that leads out of the container",
        "an absolute and a relative link to a file of the host with the same inode number, by another user",
        "the file of the host is neither opened nor probed",
    )
}

#[test]
fn a_chrooted_workers_links_end_at_its_own_root() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let root = folder.path().join("root");
    fs::create_dir_all(root.join("lib"))?;
    let watched = Watched::start(&by_path(), &[])?;
    // What the worker needs to run in there.
    let needed = run(Command::new("ldd").arg(&watched.program), LIMIT)?.stdout;
    for library in needed.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("no folder")?)?;
        fs::copy(library, &to)?;
    }
    fs::copy(&watched.program, root.join("hostile-inside"))?;
    let host = folder.path().join("hostile-secret");
    fs::copy(&watched.program, &host)?;
    let untouched = Untouched::watch(&[&host])?;
    let in_chroot = |words: &[&str]| {
        let mut command = Command::new("chroot");
        command.arg(&root).arg("/hostile-inside").args(words);
        command
    };
    watched
        .agent
        .learn(&["/hostile-inside"], || run(&mut in_chroot(&["calls", "1", "0.2"]), LIMIT).map(drop))?;
    let (seen, ended) = watched.seen_of(10.0, || run(&mut in_chroot(&["calls", "10"]), LIMIT))?;
    ensure!((seen, ended.stdout.as_str()) == (10.0, "55\n"), "{seen} of 10 calls: {ended:?}");
    // From here on it leads out.
    fs::copy(&watched.program, root.join("lib/hostile-library"))?;
    let worker = behind_its_back(&watched.agent, || {
        let mut child = in_chroot(&["maps", "/lib/hostile-library"]);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        child.stdout.as_mut().context("no stdout")?.read_exact(&mut [0; 7])?;
        fs::remove_file(root.join("lib/hostile-library"))?;
        symlink(format!("../../..{}", host.display()), root.join("lib/hostile-library"))?;
        Ok(Running(child))
    })?;
    let_it_look(&watched)?;
    untouched.check("a link out of the chroot")?;
    drop(worker);
    ensure!(!watched.agent.has_probed(&["hostile-library"])?);
    ensure!(!watched.says()?.contains("hostile-secret"), "the host's file is named");
    harmless(
        "A chrooted worker's links",
        "a library replaced by a link out of its root while it is mapped",
        "the host's file is not opened, not probed and not named; the worker's 10 calls are counted",
    )
}

#[test]
fn a_pipe_or_device_in_a_librarys_place_is_not_opened() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let watched = Watched::start(&by_path(), &[])?;
    for kind in ["fifo", "device", "folder", "nothing"] {
        let library = folder.path().join(format!("hostile-{kind}"));
        fs::copy(&watched.program, &library)?;
        let (worker, untouched) = behind_its_back(&watched.agent, || {
            let worker = watched.mapping(&[&library])?;
            fs::remove_file(&library)?;
            let mode = nix::sys::stat::Mode::S_IRWXU;
            match kind {
                "fifo" => nix::unistd::mkfifo(&library, mode)?,
                // /dev/zero: to open it does no harm if this test fails.
                "device" => {
                    let number = nix::sys::stat::makedev(1, 5);
                    nix::sys::stat::mknod(&library, nix::sys::stat::SFlag::S_IFCHR, mode, number)?;
                }
                "folder" => fs::create_dir(&library)?,
                _ => return Ok((worker, None)),
            }
            let untouched = Untouched::watch(&[&library])?;
            Ok((worker, Some(untouched)))
        })?;
        let_it_look(&watched)?;
        untouched.iter().try_for_each(|untouched| untouched.check(kind))?;
        ensure!(!watched.agent.has_probed(&[&library.to_string_lossy()])?, "{kind} was probed");
        drop(worker);
    }
    harmless(
        "A library's place taken by a fifo, a device, a folder, nothing",
        "each in the place of a file that is mapped",
        "none is opened or probed",
    )
}

#[test]
fn files_made_to_be_endless_to_read_cost_little() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let watched = Watched::start(&[], &[])?;
    let names = if full() { 4_000_000 } else { 1_000_000 };
    let files: [(&str, Vec<u8>, u64); 4] = [
        ("sparse-hash", elf::endless_hash(), 1 << 40),
        ("sparse-symbols", elf::endless_symbols(), 1 << 40),
        ("names-alike", elf::alike(names), 0),
        ("names-doubling", elf::doubling(), 0),
    ];
    for (name, bytes, length) in files {
        let library = folder.path().join(format!("libTK-{name}.so"));
        fs::write(&library, &bytes)?;
        if length != 0 {
            fs::OpenOptions::new().write(true).open(&library)?.set_len(length)?;
        }
        // It is taken for what it pretends to be.
        let said = run(Command::new(cadscope()?).args(["probes"]).arg(&library), LIMIT)?;
        ensure!(said.code < 2 && !said.stderr.contains("ELF"), "{name}: {said:?}");
        let cpu = watched.cpu()?;
        let begun = Instant::now();
        let worker = watched.mapping(&[&library])?;
        // It is looked at before what comes after.
        watched.is_well()?;
        let spent = watched.cpu()?.saturating_sub(cpu);
        eprintln!("{name}: {spent:?} of CPU, {:?}, {} MB", begun.elapsed(), watched.agent.resident()? >> 20);
        ensure!(spent < Duration::from_secs(10), "{name} took {spent:?} of CPU");
        // The file stays: another with its inode number would be taken for it.
        drop(worker);
    }
    harmless(
        "Libraries made to be endless to read",
        &format!(
            "two sparse ELF files of 1 TiB, {names} symbols named like ours, names that stand for gigabytes"
        ),
        "less than 10 s of CPU each",
    )
}

#[test]
fn a_file_that_changes_all_the_time_harms_nobody_else() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let watched = Watched::start(&[], &[])?;
    let library = folder.path().join("hostile-changing");
    let bytes = fs::read(&watched.program)?;
    fs::write(&library, &bytes)?;
    let file = fs::OpenOptions::new().read(true).write(true).open(&library)?;
    let end_after = Duration::from_secs(if full() { 30 } else { 3 });
    let end = Instant::now() + end_after;
    let mut rounds = 0_u64;
    while Instant::now() < end {
        let worker = watched.mapping(&[&library])?;
        for step in 0..20_u64 {
            match step % 4 {
                0 => file.set_len(4096 + 512 * step)?,
                1 => file.write_all_at(&bytes, 0)?,
                2 => file.write_all_at(&bytes[..4096], rounds % 7 * 4096)?,
                _ => file.set_len(0)?,
            }
            std::thread::sleep(Duration::from_micros(300 * (rounds % 5)));
        }
        file.write_all_at(&bytes, 0)?;
        drop(worker);
        rounds += 1;
    }
    ensure!(rounds > 3, "{rounds} rounds");
    watched.is_well()?;
    harmless(
        "A library that changes all the time",
        &format!("{} s of cutting, overwriting and mapping it again", end_after.as_secs()),
        "nobody else's calls are lost",
    )
}

/// 1 MiB of garbage, an invalid id of each kind, a secret.
fn garbage(command: &mut Command, secret: &str) {
    let byte = |n: u32| u8::try_from(n.wrapping_mul(2_654_435_769) >> 24).unwrap_or(1).max(1);
    let noise: Vec<u8> = (0..120_000).map(byte).collect();
    for number in 0..9 {
        command.env(format!("NOISE_{number}"), OsStr::from_bytes(&noise));
    }
    for name in ["FLOW_TYPE", "JOB_ID", "REQUEST_ID", "TRACEPARENT", "TRACESTATE", "BAGGAGE"] {
        let mut value = b"\xff\xfe\n\x1b[31m\"} 1\n# HELP forged x\nforged{a=\"".to_vec();
        value.extend(noise.get(..5000).unwrap_or_default());
        command.env(name, OsStr::from_bytes(&value));
    }
    command.env("AWS_SECRET_ACCESS_KEY", secret).env("\u{1}odd", secret);
}

/// What `trace` writes of a worker with secrets.
fn traces_keep_the_secret(watched: &Watched, secret: &str) -> Result<()> {
    let folder = scratch()?;
    for format in ["json", "html", "perfetto", "tree"] {
        let file = folder.path().join(format);
        let mut trace = Command::new(cadscope()?);
        trace
            .arg("trace")
            .arg("--catalog")
            .arg(watched.catalog())
            .args(["--format", format, "-o"])
            .arg(&file);
        trace.arg("--").arg(&watched.program).args(["calls", "10"]);
        garbage(&mut trace, secret);
        let ended = run(&mut trace, LIMIT)?;
        let text = fs::read_to_string(&file)? + &ended.stdout + &ended.stderr;
        ensure!(text.contains("call 1"), "no calls in the {format} of a trace: {text}");
        ensure!(!text.contains(secret), "a secret of a worker got out by the {format} of a trace");
    }
    Ok(())
}

#[test]
fn an_environment_of_garbage_names_nothing_and_its_secrets_stay_in_it() -> Result<()> {
    let _node = require_root()?;
    let collector = Collector::start()?;
    let endpoint = collector.grpc();
    let spans = ["--otlp-endpoint", &endpoint, "--min-span-duration", "0s"];
    let watched = Watched::start(&[], &[&["--log-format=text"][..], &spans].concat())?;
    let secret = "canary-8c1f52d07be94";
    let with_secrets = || {
        let mut command = watched.command(&["calls", "10", "0.7", secret]);
        garbage(&mut command, secret);
        command
    };
    let all = |spans: &[Span]| spans.iter().filter(|span| span.name.starts_with("call")).count() >= 10;
    let (seen, ended) = watched.seen_of(10.0, || run(&mut with_secrets(), LIMIT))?;
    ensure!((seen, ended.stdout.as_str()) == (10.0, "55\n"), "{seen} of 10 calls: {ended:?}");
    let said = watched.says()?;
    collector.spans_when("spans of the worker", LIMIT, all)?;
    for (what, text) in [("its own pages and log", said.as_str()), ("spans", &collector.bodies())] {
        ensure!(!text.contains(secret), "a secret of a worker got out by {what}");
    }
    traces_keep_the_secret(&watched, secret)?;
    ensure!(!said.contains("\nforged") && !said.contains("\u{1b}[31m\"}"), "the environment forged a line");
    let metrics = watched.agent.metrics()?;
    let kinds = metrics.by("model_generation_started_total", "flow_type");
    ensure!(kinds.keys().all(|kind| ["unknown", "invalid"].contains(&kind.as_str())), "{kinds:?}");
    watched.is_well()?;
    harmless(
        "An environment of garbage, with secrets",
        "1 MiB of bytes that are no text, an invalid id of each kind, lines that forge metrics and terminal codes, a canary",
        "the kind of job is `unknown` or `invalid`; the canary is in no log, page, metric, span or trace",
    )
}

#[test]
fn kinds_of_job_without_end_become_a_bounded_number_of_series() -> Result<()> {
    let _node = require_root()?;
    let watched = Watched::start(&[], &[])?;
    let jobs = if full() { 5000 } else { 700 };
    for job in 0..jobs {
        let ended = run(watched.command(&["calls", "1"]).env("FLOW_TYPE", format!("kind{job}")), LIMIT)?;
        ensure!(ended.code == 0, "{ended:?}");
    }
    let all = f64::from(jobs);
    let started = "model_generation_started_total";
    let metrics = watched.agent.metrics_when(Duration::from_secs(20), |m| m.sum(started, &[]) >= all)?;
    let series = metrics.select(started, &[]).len();
    ensure!((300..=502).contains(&series), "{series} series of {started}");
    ensure!(metrics.sum(started, &[]) >= all, "jobs are missing: {}", metrics.sum(started, &[]));
    watched.is_well()?;
    harmless(
        "Labels without end",
        &format!("{jobs} kinds of job"),
        "at most 502 series of a family, every job counted",
    )
}

#[test]
fn a_storm_of_forks_leaves_nothing_behind() -> Result<()> {
    let _node = require_root()?;
    let watched = Watched::start(&[], &[])?;
    let seconds = if full() { "30" } else { "3" };
    let ended = watched.run(&["forks", seconds])?;
    eprintln!("{}, {} MB", ended.stderr.trim(), watched.agent.resident()? >> 20);
    ensure!((ended.code, ended.stdout.as_str()) == (0, "1\n"), "{ended:?}");
    until("no worker is left", Duration::from_secs(60), || {
        let status: serde_json::Value = serde_json::from_str(&watched.agent.get("/status").ok()?.1).ok()?;
        status.get("workers")?.as_array()?.is_empty().then_some(())
    })?;
    watched.is_well()?;
    harmless(
        "A storm of forks",
        &format!("children as fast as the machine makes them, {seconds} s"),
        "no worker stays",
    )
}

/// Runs a mode with nobody watching and with the agent: the same to the worker.
fn same_as_alone(watched: &Watched, alone: &Ended, words: &[&str]) -> Result<()> {
    let ended = watched.run(words)?;
    eprintln!("{words:?}: alone {:?}, watched {:?}", alone.stderr.trim(), ended.stderr.trim());
    ensure!(
        (ended.code, &ended.stdout) == (alone.code, &alone.stdout),
        "{words:?}: {ended:?}, alone {alone:?}"
    );
    // What was counted in the kernel comes a second later.
    let mut before = -1.0;
    until("what it did has arrived", LIMIT, || {
        std::thread::sleep(Duration::from_millis(1500));
        let now = watched.calls().ok()?;
        (std::mem::replace(&mut before, now) == now).then_some(())
    })?;
    watched.is_well()
}

fn alone(words: &[&str]) -> Result<Ended> {
    let ended = run(Command::new(build_program("hostile/hostile.cpp")?).args(words), LIMIT)?;
    ensure!(ended.code == 0, "{words:?} alone: {ended:?}");
    Ok(ended)
}

#[test]
fn a_worker_that_unwinds_switches_stacks_or_throws_without_end_does_as_if_nobody_watched() -> Result<()> {
    let _node = require_root()?;
    let modes: [&[&str]; 4] =
        [&["stack_lies"], &["unwinds_itself"], &["exceptions", if full() { "20" } else { "2" }], &["strict"]];
    let alone: Vec<Ended> = modes.iter().map(|mode| alone(mode)).collect::<Result<_>>()?;
    let watched = Watched::start(&[], &[])?;
    for (mode, alone) in modes.iter().zip(&alone) {
        same_as_alone(&watched, alone, mode)?;
    }
    harmless(
        "A worker that unwinds, lies about its stack, throws without end",
        "a stack pointer that lies, a program that unwinds by itself, exceptions for 2 s or more, strict seccomp",
        "it prints and ends as it does unwatched",
    )
}

#[test]
fn a_worker_under_seccomp_is_seen_whole() -> Result<()> {
    let _node = require_root()?;
    let watched = Watched::start(&[], &[])?;
    let (seen, ended) = watched.seen_of(50.0, || watched.run(&["strict"]))?;
    ensure!((seen, ended.stdout.as_str()) == (50.0, "strict 1275\n"), "{seen} of 50 calls: {ended:?}");
    watched.is_well()?;
    harmless(
        "A worker under seccomp",
        "strict mode, 50 calls",
        "it does as unwatched, and every call is counted",
    )
}

#[test]
fn a_worker_under_a_debugger_does_as_if_nobody_watched() -> Result<()> {
    let _node = require_root()?;
    let watched = Watched::start(&[], &[])?;
    let alone_program = build_program("hostile/hostile.cpp")?;
    let gdb = |program: &Path, script: &[&str]| -> Result<Command> {
        let mut command = Command::new(tool("gdb", "gdb")?);
        command.args(["-q", "-nx", "-batch"]).args(script.iter().flat_map(|line| ["-ex", line]));
        command.arg("--args").arg(program).args(["calls", "40"]);
        Ok(command)
    };
    let stops = ["break hostile_call", "run", "bt 1", "delete", "continue"];
    let steps = ["break *hostile_call", "run", "stepi 30", "delete", "continue"];
    let of = |ended: &Ended, what: &str| ended.stdout.lines().filter(|line| line.contains(what)).count();
    for script in [&["run"][..], &stops, &steps] {
        // The copy is another file: nobody has placed probes in it.
        let alone = run(&mut gdb(&alone_program, script)?, LIMIT)?;
        let ended = run(&mut gdb(&watched.program, script)?, LIMIT)?;
        for ended in [&alone, &ended] {
            ensure!(
                (ended.code, of(ended, "820"), of(ended, "exited")) == (0, 1, 1),
                "{script:?}: {ended:?}"
            );
        }
        ensure!(
            of(&alone, "Breakpoint") == of(&ended, "Breakpoint"),
            "{script:?}: {ended:?}, alone {alone:?}"
        );
    }
    watched.is_well()?;
    harmless(
        "A worker under a debugger",
        "gdb: run, breakpoint at a probed function, 30 single steps from a probe",
        "gdb says the same as unwatched, and the worker does the same",
    )
}

/// The program that reads for the probe sleeps in the worker, as long as the worker likes.
#[test]
fn a_worker_whose_page_never_comes_stops_nobody_else() -> Result<()> {
    let _node = require_root()?;
    let watched = Watched::start(&[], &["--linger", "1"])?;
    let folder = scratch()?;
    let library = folder.path().join("hostile-passing");
    fs::copy(&watched.program, &library)?;
    let mut child = watched.command(&["waits_forever"]).stdout(Stdio::piped()).spawn()?;
    child.stdout.as_mut().context("no stdout")?.read_exact(&mut [0; 6])?;
    let stuck = Running(child);
    watched.is_well()?;
    // Probes that are placed and taken away meanwhile: their file is rewritten, and nobody maps it any more.
    let worker = watched.mapping(&[&library])?;
    watched.agent.learn(&["hostile-passing"], || Ok(()))?;
    fs::OpenOptions::new().append(true).open(&library)?.write_all(b"x")?;
    std::thread::sleep(Duration::from_millis(300));
    drop(worker);
    watched.is_well()?;
    until("its probes are taken away", Duration::from_secs(20), || {
        (!watched.agent.has_probed(&["hostile-passing"]).ok()?).then_some(())
    })?;
    watched.is_well()?;
    drop(stuck);
    watched.is_well()?;
    harmless(
        "A worker whose memory never comes",
        "a page that userfaultfd holds back under a probe that reads it, while probes are placed and taken away",
        "nobody else waits, and the probes go",
    )
}
