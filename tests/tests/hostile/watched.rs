//! An agent that watches the hostile worker, and that worker.

use super::*;

pub(super) const CATALOG: &str = r#"
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
pub(super) const CALLS: &str = "hostile_call_duration_seconds_count";
pub(super) const NOBODY: u32 = 65534;
pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// What the agent may have resident, whatever a worker does: the limit of the chart is 256 MiB.
pub(super) const MOST_RESIDENT: u64 = 160 << 20;

/// An agent that knows the hostile worker's program.
pub(super) struct Watched {
    pub(super) agent: Agent,
    pub(super) program: PathBuf,
    _folder: tempfile::TempDir,
}

impl Watched {
    pub(super) fn start(wrapper: &[String], arguments: &[&str]) -> Result<Self> {
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

    pub(super) fn catalog(&self) -> PathBuf {
        self.program.with_file_name("hostile.toml")
    }

    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words);
        command
    }

    pub(super) fn run(&self, words: &[&str]) -> Result<Ended> {
        run(&mut self.command(words), LIMIT)
    }

    /// A worker that waits until it is told to make calls, run by another program.
    pub(super) fn waiting(&self, wrapper: &[&str], words: &[&str]) -> Result<Waiting> {
        Waiting::start(wrapper, &self.program, words)
    }

    /// A worker that maps these files and stays, with what they came to when they were mapped.
    pub(super) fn mapping(&self, files: &[&Path]) -> Result<Running> {
        self.mapping_as(0, files)
    }

    /// The same as another user.
    pub(super) fn mapping_as(&self, user: u32, files: &[&Path]) -> Result<Running> {
        let mut command = self.command(&["maps"]);
        command.uid(user).gid(user);
        let mut child = command.args(files).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut said = [0; 7];
        child.stdout.as_mut().context("no stdout")?.read_exact(&mut said)?;
        ensure!(&said == b"mapped\n");
        Ok(Running(child))
    }

    pub(super) fn calls(&self) -> Result<f64> {
        Ok(self.agent.metrics()?.sum(CALLS, &[]))
    }

    /// Calls seen so far, once those of workers before have all been told: three readings in a row are the same.
    pub(super) fn settled(&self) -> Result<f64> {
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
    pub(super) fn seen_of<T>(&self, expected: f64, job: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
        let before = self.settled()?;
        let done = job()?;
        let after =
            self.agent.metrics_when(Duration::from_secs(20), |m| m.sum(CALLS, &[]) >= before + expected)?;
        Ok((after.sum(CALLS, &[]) - before, done))
    }

    /// CPU time of the agent so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.agent.pid()))?;
        let fields: Vec<&str> = stat.rsplit(") ").next().context("no stat")?.split(' ').collect();
        let ticks: u64 =
            fields.get(11..13).context("short stat")?.iter().map(|t| t.parse().unwrap_or(0)).sum();
        Ok(Duration::from_millis(ticks * 10))
    }

    /// It answers, is no larger than it may be, and sees every call of a worker that means well.
    pub(super) fn is_well(&self) -> Result<()> {
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
    pub(super) fn says(&self) -> Result<String> {
        let mut said = self.agent.log();
        for page in ["/metrics", "/status", "/"] {
            said += &self.agent.get(page)?.1;
        }
        Ok(said)
    }
}

/// A worker that makes its calls when it is told to.
pub(super) struct Waiting {
    pub(super) child: Running,
    pub(super) said: std::io::Lines<BufReader<std::process::ChildStdout>>,
    /// The process that waits.
    pub(super) pid: u32,
}

impl Waiting {
    pub(super) fn start(wrapper: &[&str], program: &Path, words: &[&str]) -> Result<Self> {
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
    pub(super) fn line(&mut self) -> Result<String> {
        Ok(self.said.next().transpose()?.unwrap_or_default())
    }

    pub(super) fn go(&mut self) -> Result<()> {
        Ok(self.child.0.stdin.as_mut().context("no stdin")?.write_all(b"x")?)
    }

    /// Tells it, and says how it ended.
    pub(super) fn end(mut self) -> Result<Ended> {
        self.go()?;
        let stdout = self.line()?;
        let code = shell_code(wait(&mut self.child.0, LIMIT)?);
        let mut stderr = String::new();
        self.child.0.stderr.take().context("no stderr")?.read_to_string(&mut stderr)?;
        Ok(Ended { code, stdout, stderr })
    }
}

/// With the rights of the chart: no file is reached by its mapping, each by its path.
pub(super) fn by_path() -> Vec<String> {
    only(&CAPABILITIES)
}

/// Runs `job` while the agent stands still: what it will look at is gone or another by then.
pub(super) fn behind_its_back<T>(agent: &Agent, job: impl FnOnce() -> Result<T>) -> Result<T> {
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
pub(super) fn let_it_look(watched: &Watched) -> Result<()> {
    std::thread::sleep(Duration::from_millis(300));
    watched.is_well()
}
