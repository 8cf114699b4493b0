//! Promise: the same image in many containers is looked at and probed once, and what each container does is counted.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::builds::{BUILDS, Build};
use cadscope_tests::node::{require_root, scratch};
use cadscope_tests::run::{self, Running};

const BOOLEANS: &str = "occt_boolean_duration_seconds_count";
const CONTAINERS: usize = 4;

/// As a runtime mounts an image: below a layer of the container's own, in a mount namespace of its own.
const CONTAINER: &str = "mkdir -p \"$2/upper\" \"$2/work\" \"$2/root\" && \
    mount -t overlay overlay -o \"lowerdir=$1,upperdir=$2/upper,workdir=$2/work\" \"$2/root\" && \
    mount -t proc proc \"$2/root/proc\" && cp \"$3\" \"$2/root/mnt/job.py\" && \
    exec chroot \"$2/root\" freecadcmd /mnt/job.py";

fn container(build: &Build, folder: &Path) -> Result<Running> {
    fs::create_dir_all(folder)?;
    let job = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs/short.py");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", CONTAINER, "sh"]);
    command.arg(build.root()?).arg(folder).arg(job);
    command
        .env("HOME", "/mnt")
        .env("QT_QPA_PLATFORM", "offscreen")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let out = fs::File::create(folder.join("out"))?;
    Ok(Running(command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn()?))
}

/// Files of `/status` with this in their name, and how many of their probes are in place.
fn files(agent: &Agent, name: &str) -> Result<(usize, usize)> {
    let status: serde_json::Value = serde_json::from_str(&agent.get("/status")?.1)?;
    let files = status.get("files").and_then(|files| files.as_array()).context("no files in /status")?;
    let path = |file: &&serde_json::Value| {
        file.get("path").and_then(|path| path.as_str()).unwrap_or("").contains(name)
    };
    let ours: Vec<&serde_json::Value> = files.iter().filter(path).collect();
    let probes = ours.iter().filter_map(|file| file.get("probes")?.as_array()).flatten();
    let attached = probes.filter(|probe| probe.get("state").is_some_and(|state| state == "attached"));
    Ok((ours.len(), attached.count()))
}

#[test]
fn one_image_in_many_containers_is_probed_once_and_each_is_observed() -> Result<()> {
    let _node = require_root()?;
    let build = BUILDS.iter().find(|build| build.name == "freecad-1.1").context("no such build")?;
    let agent = Agent::start(&["--linger", "3600"])?;
    let folder = scratch()?;
    let counted = |wanted: f64| {
        let of = [("freecad_version", build.freecad_version), ("occt_version", build.occt_version)];
        agent.metrics_when(Duration::from_secs(20), |metrics| metrics.sum(BOOLEANS, &of) >= wanted)?;
        std::thread::sleep(Duration::from_millis(300));
        Ok::<_, anyhow::Error>(agent.metrics()?.sum(BOOLEANS, &of))
    };
    let finish = |mut container: Running, name: &str| {
        let ended = run::wait(&mut container.0, Duration::from_secs(120))?;
        let said = run::text(&folder.path().join(name).join("out"));
        ensure!(ended.success() && said.contains("job done"), "{name} ended with {ended}:\n{said}");
        Ok(())
    };
    // The first one shows the files to the agent; a job can be over before they have been looked at.
    for number in 0..10 {
        let name = format!("first-{number}");
        finish(container(build, &folder.path().join(&name))?, &name)?;
        std::thread::sleep(Duration::from_secs(2));
        if files(&agent, "libTKBO.so")?.1 > 0 {
            break;
        }
    }
    let before = counted(0.0)?;
    let alone = files(&agent, "libTKBO.so")?;
    ensure!(alone.0 == 1 && alone.1 > 0, "{alone:?}\n{}", agent.log());
    let all = files(&agent, "/")?;
    let names: Vec<String> = (0..CONTAINERS).map(|number| format!("container-{number}")).collect();
    let running: Vec<Running> =
        names.iter().map(|name| container(build, &folder.path().join(name))).collect::<Result<_>>()?;
    for (container, name) in running.into_iter().zip(&names) {
        finish(container, name)?;
    }
    let wanted = 3.0 * CONTAINERS as f64;
    let found = counted(before + wanted)? - before;
    ensure!(found == wanted, "{found} of {wanted} booleans\n{}", agent.log());
    ensure!(files(&agent, "libTKBO.so")? == alone, "{:?} after {alone:?}", files(&agent, "libTKBO.so")?);
    ensure!(files(&agent, "/")? == all, "{:?} after {all:?}", files(&agent, "/")?);
    Ok(())
}
