//! Promise: a container of podman is named, with its out-of-memory kills and its other ends.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::builds::BUILDS;
use cadscope_tests::node::{require_root, scratch, tool};
use cadscope_tests::run::{run, until};

const LIMIT: Duration = Duration::from_secs(180);

/// Runs podman with a store of its own below `folder`.
struct Podman<'a>(&'a Path);

impl Podman<'_> {
    fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = Command::new(tool("podman", "podman")?);
        let (root, run) = (self.0.join("root"), self.0.join("run"));
        command.arg("--root").arg(root).arg("--runroot").arg(run);
        // crun refuses a machine with both versions of cgroups.
        command.args([
            "--runtime",
            "/usr/sbin/runc",
            "--cgroup-manager",
            "cgroupfs",
            "--events-backend",
            "none",
        ]);
        command.args(words);
        Ok(command)
    }

    /// The exit code of `podman run` with this container name, limit and job.
    fn run(&self, name: &str, memory: &str, rows: &str) -> Result<i32> {
        let root = BUILDS.iter().find(|build| build.name == "freecad-1.1").map(|build| build.root());
        let root = root.transpose()?.unwrap_or_default();
        let jobs = format!("{}:/jobs:ro", Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs").display());
        let rows = format!("JOB_ROWS={rows}");
        let rootfs = format!("{}:O", root.display());
        let mut command = self.command(&[
            "run",
            "--rm",
            "--name",
            name,
            "--memory",
            memory,
            "--network",
            "none",
            "--volume",
            &jobs,
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=4096:4096",
            "--env",
            &rows,
            "--env",
            "HOME=/tmp",
            "--env",
            "QT_QPA_PLATFORM=offscreen",
            "--env",
            "FLOW_TYPE=gear",
            "--rootfs",
            &rootfs,
            "freecadcmd",
            "/jobs/oom.py",
        ])?;
        let ended = run(&mut command, LIMIT)?;
        eprintln!("{name}: {ended:?}");
        Ok(ended.code)
    }
}

#[test]
#[ignore = "needs podman"]
fn a_container_of_podman_killed_for_memory_in_a_boolean_is_counted_under_its_name() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let podman = Podman(folder.path());
    let agent = Agent::start::<&str>(&[])?;
    let own = [("operation", "cut"), ("pod", ""), ("container", "gear")];
    for round in 1..=2_u32 {
        let code = podman.run("gear", "160m", "40")?;
        ensure!(code == 137, "round {round}: exit code {code}");
        let metrics = agent.metrics_when(LIMIT, |metrics| {
            metrics.sum("freecad_worker_oom_kills_total", &[]) >= f64::from(round)
        })?;
        let kills = metrics.select("freecad_worker_oom_kills_total", &[]);
        let counted = metrics.sum("freecad_worker_oom_kills_total", &own);
        ensure!(counted == f64::from(round), "round {round}: {kills:?}\n{}", agent.log());
    }
    // Stopped in the middle of its work: its first process has no handler for SIGTERM, so SIGKILL follows.
    let stopped = std::thread::scope(|scope| {
        let running = scope.spawn(|| podman.run("slow", "4g", "90"));
        until("a cut in the container", LIMIT, || {
            let metrics = agent.metrics().ok()?;
            (metrics.sum("occt_operations_in_flight", &[("operation", "cut")]) >= 1.0).then_some(())
        })?;
        let stop = run(&mut podman.command(&["stop", "--time", "1", "slow"])?, LIMIT)?;
        ensure!(stop.code == 0, "{stop:?}");
        running.join().map_err(|_| anyhow::anyhow!("podman run panicked"))?
    })?;
    ensure!(stopped == 137, "exit code {stopped}");
    let killed = [("flow_type", "gear"), ("status", "killed")];
    let metrics = agent
        .metrics_when(LIMIT, |metrics| metrics.sum("model_generation_completed_total", &killed) >= 1.0)?;
    ensure!(metrics.sum("model_generation_completed_total", &killed) == 1.0, "{}", agent.log());
    ensure!(metrics.sum("freecad_worker_oom_kills_total", &[]) == 2.0);
    ensure!(metrics.sum("freecad_worker_exits_total", &[("reason", "oom")]) == 2.0);
    Ok(())
}
