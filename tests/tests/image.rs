//! Promise: the image that is built runs with four capabilities and a read-only root, observes FreeCAD of the machine, and
//! lists what is in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::{fetch, free_port};
use cadscope_tests::freecad::Job;
use cadscope_tests::metrics::Metrics;
use cadscope_tests::node::{require_root, scratch};
use cadscope_tests::podman::Podman;
use cadscope_tests::privileges::CAPABILITIES;
use cadscope_tests::run::{run, until};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(120);
const NAME: &str = concat!("localhost/cadscope:", env!("CARGO_PKG_VERSION"));

/// podman's profile for system calls, with those that need a capability of the agent's: its own lets them through to
/// CAP_SYS_ADMIN only.
fn profile(folder: &Path) -> Result<PathBuf> {
    let mut profile: Value = serde_json::from_slice(&fs::read("/usr/share/containers/seccomp.json")?)?;
    let own = ["bpf", "perf_event_open"];
    let rules = profile.get_mut("syscalls").and_then(Value::as_array_mut).context("no rules")?;
    for names in rules.iter_mut().filter_map(|rule| rule.get_mut("names")?.as_array_mut()) {
        names.retain(|name| !own.iter().any(|own| name == own));
    }
    rules.push(json!({ "names": own, "action": "SCMP_ACT_ALLOW" }));
    let file = folder.join("seccomp.json");
    fs::write(&file, profile.to_string())?;
    Ok(file)
}

#[test]
#[ignore = "needs the image, which takes many minutes to build: cargo xtask image"]
fn the_image_runs_with_little_observes_freecad_and_lists_what_is_in_it() -> Result<()> {
    let image = std::env::var_os("CADSCOPE_IMAGE").map(PathBuf::from);
    let image = image.context("CADSCOPE_IMAGE is not set: cargo xtask image makes the image")?;
    let _node = require_root()?;
    let (folder, podman) = (scratch()?, Podman::new()?);
    podman.load(&image)?;
    let about: Value = serde_json::from_str(&podman.run(&["image", "inspect", NAME])?)?;
    let about = about.get(0).context("no image")?;
    let label =
        |name: &str| about.pointer("/Labels").and_then(|labels| labels.get(name)).and_then(Value::as_str);
    ensure!(label("org.opencontainers.image.version") == Some(env!("CARGO_PKG_VERSION")), "{about}");
    ensure!(label("org.opencontainers.image.revision").is_some_and(|hash| hash.len() == 40), "{about}");
    let megabytes = about.get("Size").and_then(Value::as_u64).context("no size")? / 1_000_000;
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md"))?;
    let says = |number: u64| readme.contains(&format!("image of that one program ({number} MB)"));
    ensure!((megabytes - 1..=megabytes + 1).any(says), "it has {megabytes} MB");

    let port = free_port()?;
    let (seccomp, listen) = (
        format!("--security-opt=seccomp={}", profile(folder.path())?.display()),
        format!("--listen=127.0.0.1:{port}"),
    );
    let mut rights = vec!["--cap-drop=ALL".to_owned()];
    rights.extend(CAPABILITIES.iter().map(|name| format!("--cap-add={name}")));
    let mut arguments =
        vec!["--pid=host", "--network=host", "--read-only", "--memory=256m", "--name=cadscope"];
    arguments.extend(["--security-opt=no-new-privileges", "--security-opt=apparmor=unconfined", &seccomp]);
    arguments.extend(rights.iter().map(String::as_str));
    let container =
        podman.start(&arguments.into_iter().chain([NAME, "agent", &listen]).collect::<Vec<_>>())?;
    let log = || podman.run(&["logs", &container]).unwrap_or_else(|error| format!("{error:#}"));
    until("the agent is ready", LIMIT, || fetch(port, "/readyz").ok().filter(|(status, _)| *status == 200))
        .with_context(log)?;
    let pid = podman.run(&["inspect", "--format={{.State.Pid}}", &container])?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kept = format!("CapEff:\t{:016x}", 1_u64 << 2 | 1 << 19 | 1 << 38 | 1 << 39);
    ensure!(status.contains(&kept), "{status}");

    until("cuts of a job", LIMIT, || {
        Job::new("short.py").ok()?.run(LIMIT).ok()?;
        let metrics = Metrics::read(&fetch(port, "/metrics").ok()?.1).ok()?;
        (metrics.sum("occt_boolean_duration_seconds_count", &[("operation", "cut")]) >= 1.0).then_some(())
    })
    .with_context(log)?;

    let tar = folder.path().join("root.tar");
    podman.run(&["export", "--output", &tar.display().to_string(), &container])?;
    let unpack = run(Command::new("tar").arg("xf").arg(&tar).arg("-C").arg(folder.path()), LIMIT)?;
    ensure!(unpack.code == 0, "{}", unpack.stderr);
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock"))?;
    for (list, crates) in [
        ("agent", ["aya", "tokio", "ratatui"]),
        ("ebpf", ["aya-ebpf", "aya-ebpf-bindings", "aya-ebpf-macros"]),
    ] {
        let file = folder.path().join(format!("usr/share/doc/cadscope/{list}.cdx.json"));
        let list: Value =
            serde_json::from_slice(&fs::read(&file).with_context(|| file.display().to_string())?)?;
        ensure!(list.get("bomFormat").is_some_and(|format| format == "CycloneDX"), "{list}");
        let components = list.get("components").and_then(Value::as_array).context("no components")?;
        for name in crates {
            let found = components.iter().find(|one| one.get("name").is_some_and(|found| found == name));
            let version =
                found.and_then(|one| one.get("version")?.as_str()).with_context(|| format!("no {name}"))?;
            let locked = format!("name = \"{name}\"\nversion = \"{version}\"");
            ensure!(
                name.starts_with("aya-ebpf") || lock.contains(&locked),
                "{name} {version} is not what is built"
            );
        }
    }
    podman.run(&["stop", "--time=20", &container])?;
    let code = podman.run(&["inspect", "--format={{.State.ExitCode}}", &container])?;
    ensure!(code == "0", "it ended with {code}: {}", log());
    Ok(())
}
