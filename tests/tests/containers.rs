//! Promise: in containers that no Kubernetes manages, of podman and of runc alone, a worker killed for memory is told with
//! its operation and its container, and one whose container is stopped is not taken for it.

#![allow(clippy::indexing_slicing, reason = "a key that JSON lacks is null, not a panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::builds::{BUILDS, Build};
use cadscope_tests::node::{require_root, scratch, tool};
use cadscope_tests::podman::Podman;
use cadscope_tests::run::{run, until};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(180);
const MIB: u64 = 1 << 20;
/// Rows of the job, and its container's memory: one that needs more, one that has enough and takes its time.
type Size = (u32, u64);
const TOO_MUCH: Size = (40, 160 * MIB);
const SLOW: Size = (90, 4096 * MIB);
/// A first process without a handler is not ended by SIGTERM; its child is.
const SUPERVISED: &str =
    "trap 'kill -TERM $child; wait $child; exit 0' TERM; freecadcmd /jobs/oom.py & child=$!; wait $child";

/// The root file system with FreeCAD; nothing is written to it.
fn build() -> Result<&'static Build> {
    BUILDS.iter().find(|build| build.name == "freecad-1.1").context("no such build")
}

fn root() -> Result<PathBuf> {
    build()?.root()
}

/// Runs the job once outside of containers. The pages of the libraries are charged to who reads them first: a container that
/// has to read them itself drops and reads them again for minutes at its limit, before the kernel kills.
fn read_libraries() -> Result<()> {
    let ended = run(build()?.command("oom.py", &jobs())?.env("JOB_ROWS", TOO_MUCH.0.to_string()), LIMIT)?;
    ensure!(ended.stdout.contains("job done"), "{ended:?}");
    Ok(())
}

fn jobs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs")
}

/// A container that runs a job, as each of the two runs it.
trait Runtime {
    /// Starts a container with this job; its id.
    fn start(&mut self, name: &str, size: Size, command: &[&str]) -> Result<String>;
    /// Ends it: SIGTERM, then SIGKILL.
    fn stop(&mut self, id: &str) -> Result<()>;
    fn remove(&mut self, id: &str) -> Result<()>;
}

impl Runtime for Podman {
    fn start(&mut self, name: &str, (rows, memory): Size, command: &[&str]) -> Result<String> {
        let (root, jobs) =
            (format!("{}:O", root()?.display()), format!("--volume={}:/jobs:ro", jobs().display()));
        let (memory, name, rows) =
            (format!("--memory={memory}"), format!("--name={name}"), format!("--env=JOB_ROWS={rows}"));
        let mut arguments = vec!["--network=none", "--env=HOME=/tmp", "--env=QT_QPA_PLATFORM=offscreen"];
        arguments.extend(["--env=FLOW_TYPE=gear", "--env=JOB_WAIT=5", &rows, &memory, &name, &jobs]);
        arguments.extend(["--rootfs", &root]);
        Self::start(self, &arguments.iter().chain(command).copied().collect::<Vec<_>>())
    }

    fn stop(&mut self, id: &str) -> Result<()> {
        self.run(&["stop", "--time=2", id]).map(drop)
    }

    fn remove(&mut self, id: &str) -> Result<()> {
        self.run(&["wait", id])?;
        self.run(&["rm", "--force", "--time=0", id]).map(drop)
    }
}

/// runc with bundles in a folder of its own.
struct Runc {
    folder: tempfile::TempDir,
    made: u32,
    running: Option<cadscope_tests::run::Running>,
}

impl Runc {
    fn command(&self) -> Result<Command> {
        let mut runc = Command::new(tool("runc", "runc")?);
        runc.arg("--root").arg(self.folder.path().join("state"));
        Ok(runc)
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let ended = run(self.command()?.args(arguments), LIMIT)?;
        ensure!(ended.code == 0, "runc {}: {}", arguments.join(" "), ended.stderr);
        Ok(())
    }

    /// What `runc spec` writes, with the job in it.
    fn bundle(&self, id: &str, (rows, memory): Size, command: &[&str]) -> Result<PathBuf> {
        let bundle = self.folder.path().join(id);
        fs::create_dir(&bundle)?;
        self.run(&["spec", "--bundle", &bundle.display().to_string()])?;
        let file = bundle.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&file)?)?;
        let mut set = |at: &str, value: Value| -> Result<()> {
            let (parent, key) = at.rsplit_once('/').context("no path")?;
            let parent =
                spec.pointer_mut(parent).and_then(Value::as_object_mut).with_context(|| at.to_owned())?;
            parent.insert(key.to_owned(), value);
            Ok(())
        };
        set("/process/terminal", json!(false))?;
        set("/process/args", json!(command))?;
        let rows = format!("JOB_ROWS={rows}");
        let job = ["HOME=/tmp", "QT_QPA_PLATFORM=offscreen", "FLOW_TYPE=gear", "JOB_WAIT=5", &rows];
        set("/process/env", json!([&["PATH=/usr/bin:/bin"][..], &job].concat()))?;
        set("/root/path", json!(root()?))?;
        set("/linux/cgroupsPath", json!(format!("/cadscope-test/{id}")))?;
        set("/linux/resources/memory", json!({ "limit": memory }))?;
        let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut).context("no mounts")?;
        mounts.push(json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" }));
        mounts.push(
            json!({ "destination": "/mnt", "type": "bind", "source": jobs(), "options": ["bind", "ro"] }),
        );
        fs::write(&file, spec.to_string())?;
        Ok(bundle)
    }
}

impl Runtime for Runc {
    fn start(&mut self, _name: &str, size: Size, command: &[&str]) -> Result<String> {
        self.made += 1;
        let id = format!("{:056x}{:08x}", std::process::id(), self.made);
        // The root is read-only and has no /jobs.
        let command: Vec<String> = command.iter().map(|word| word.replace("/jobs/", "/mnt/")).collect();
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let bundle = self.bundle(&id, size, &command)?;
        let mut runc = self.command()?;
        let log = fs::File::create(bundle.join("log"))?;
        runc.args(["run", "--bundle"]).arg(&bundle).arg(&id).stdin(std::process::Stdio::null());
        let child = runc.stdout(log.try_clone()?).stderr(log).spawn()?;
        self.running = Some(cadscope_tests::run::Running(child));
        Ok(id)
    }

    fn stop(&mut self, id: &str) -> Result<()> {
        self.run(&["kill", id, "TERM"])?;
        let child = &mut self.running.as_mut().context("nothing runs")?.0;
        let ended = until("its end", Duration::from_secs(2), || child.try_wait().ok()?);
        if ended.is_err() {
            self.run(&["kill", id, "KILL"])?;
        }
        Ok(())
    }

    fn remove(&mut self, id: &str) -> Result<()> {
        let child = &mut self.running.as_mut().context("nothing runs")?.0;
        cadscope_tests::run::wait(child, LIMIT)?;
        self.running = None;
        Ok(fs::remove_dir_all(self.folder.path().join(id))?)
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        for number in 1..=self.made {
            let id = format!("{:056x}{number:08x}", std::process::id());
            // What has ended is gone already.
            let _ = self.run(&["delete", "--force", &id]);
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(hierarchy.path().join("cadscope-test"));
        }
    }
}

#[test]
fn a_worker_killed_for_memory_under_podman_is_told_with_its_container_each_time() -> Result<()> {
    let _node = require_root()?;
    told(&mut Podman::new()?, Some("gear"))
}

#[test]
fn a_worker_killed_for_memory_under_runc_alone_is_told_with_the_containers_id() -> Result<()> {
    let _node = require_root()?;
    told(&mut Runc { folder: scratch()?, made: 0, running: None }, None)
}

fn told(runtime: &mut impl Runtime, name: Option<&str>) -> Result<()> {
    read_libraries()?;
    let agent = Agent::start::<&str>(&[])?;
    let mut labels = vec![("operation", "cut")];
    labels.extend(name.map(|name| ("container", name)));
    // The same name twice: two containers, one series.
    for round in 1..=2_u32 {
        let id = runtime.start("gear", TOO_MUCH, &["freecadcmd", "/jobs/oom.py"])?;
        runtime.remove(&id)?;
        let kills = |metrics: &cadscope_tests::metrics::Metrics| {
            metrics.sum("freecad_worker_oom_kills_total", &labels)
        };
        let metrics = agent.metrics_when(LIMIT, |metrics| kills(metrics) >= f64::from(round))?;
        ensure!(kills(&metrics) == f64::from(round), "round {round}\n{}", agent.log());
        let series = metrics.select("freecad_worker_oom_kills_total", &[]);
        ensure!(
            series.len() == 1 && series.iter().all(|one| one.labels.get("pod").is_some_and(String::is_empty)),
            "{series:?}"
        );
        // /status is renewed a moment after the metrics.
        let told = until("the kill in /status", LIMIT, || {
            let status: Value = serde_json::from_str(&agent.get("/status").ok()?.1).ok()?;
            let told = status.pointer("/oom_kills")?.as_array()?.last()?.clone();
            (told["container_id"] == json!(id)).then_some(told)
        })
        .with_context(|| agent.log())?;
        ensure!(told["limit_bytes"] == json!(TOO_MUCH.1), "{told}");
        ensure!(agent.log().contains(&id), "{}", agent.log());
    }
    // Stopped in a cut: a child of the first process by SIGTERM, the first process itself by the SIGKILL that follows.
    let stopped: [(&str, &[&str]); 2] =
        [("SIGTERM", &["sh", "-c", SUPERVISED]), ("SIGKILL", &["freecadcmd", "/jobs/oom.py"])];
    for (signal, command) in stopped {
        let id = runtime.start("gear", SLOW, command)?;
        until("a cut in the container", LIMIT, || {
            let metrics = agent.metrics().ok()?;
            (metrics.sum("occt_operations_in_flight", &[("operation", "cut")]) >= 1.0).then_some(())
        })
        .with_context(|| agent.log())?;
        runtime.stop(&id)?;
        runtime.remove(&id)?;
        let of = [("reason", "signal"), ("signal", signal)];
        let metrics =
            agent.metrics_when(LIMIT, |metrics| metrics.sum("freecad_worker_exits_total", &of) >= 1.0)?;
        ensure!(metrics.sum("freecad_worker_exits_total", &of) == 1.0, "{signal}\n{}", agent.log());
    }
    let metrics = agent.metrics()?;
    let flows = |status| {
        metrics.sum("model_generation_completed_total", &[("flow_type", "gear"), ("status", status)])
    };
    ensure!(
        (flows("oom"), flows("killed")) == (2.0, 2.0),
        "{:?}",
        metrics.select("model_generation_completed_total", &[])
    );
    ensure!(metrics.sum("freecad_worker_oom_kills_total", &[]) == 2.0, "{}", agent.log());
    Ok(())
}
