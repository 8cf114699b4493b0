//! Promise: the agent needs the four capabilities that deploy/ gives it, gives up what else it has, and with them alone
//! observes jobs of every user.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::chart::deploy;
use cadscope_tests::node::{cadscope, require_root, scratch, tool};
use cadscope_tests::privileges::{CAPABILITIES, only, only_as};
use cadscope_tests::run::run;

/// `nobody`.
const USER: u32 = 65534;

/// Twenty cuts and an export, and time enough to be seen in.
const JOB: &str = "
import os, time, Part, FreeCAD
solid = Part.makeBox(10, 10, 10)
for n in range(20):
    solid = solid.cut(Part.makeSphere(3 + n / 100, FreeCAD.Vector(n / 2, 0, 0)))
solid.exportStep(os.environ['HOME'] + '/private.step')
time.sleep(0.3)
print('job done')
";

/// A job of `nobody`, whose files and environment are for nobody else.
fn run_private_job(folder: &Path) -> Result<()> {
    let script = folder.join("job.py");
    fs::write(&script, JOB)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    for path in [folder, &script] {
        chown(path, Some(USER), Some(USER))?;
    }
    let mut command = Command::new("sh");
    command.args(["-c", "umask 077; exec \"$0\" job.py"]).arg(tool("freecadcmd", "freecad-python3")?);
    command.current_dir(folder).uid(USER).gid(USER);
    command.envs([("FLOW_TYPE", "private"), ("QT_QPA_PLATFORM", "offscreen")]).env("HOME", folder);
    let ended = run(&mut command, Duration::from_secs(120))?;
    ensure!(ended.code == 0 && ended.stdout.contains("job done"), "{ended:?}");
    Ok(())
}

#[test]
fn with_the_rights_of_the_chart_a_job_of_another_user_is_observed_whole() -> Result<()> {
    let _node = require_root()?;
    observe_private_jobs(&only(&CAPABILITIES))
}

#[test]
fn with_the_rights_of_the_unit_a_job_of_another_user_is_observed_whole() -> Result<()> {
    let _node = require_root()?;
    let unit = fs::read_to_string(deploy().join("systemd/cadscope.service"))?;
    for setting in ["AmbientCapabilities=", "CapabilityBoundingSet="] {
        let line = unit.lines().find_map(|line| line.strip_prefix(setting)).context("no capabilities")?;
        let names: Vec<&str> = line.split(' ').filter_map(|name| name.strip_prefix("CAP_")).collect();
        assert_eq!(names, CAPABILITIES, "{setting}");
    }
    observe_private_jobs(&only_as(USER - 1, &CAPABILITIES))
}

fn observe_private_jobs(wrapper: &[String]) -> Result<()> {
    let config = deploy().join("systemd/cadscope.toml");
    let agent = Agent::start_under(wrapper, &[OsStr::new("--config"), config.as_os_str()])?;
    let folder = scratch()?;
    // The first places the probes, if no one has used the libraries before.
    run_private_job(folder.path())?;
    let private = [("flow_type", "private")];
    let ended = |jobs: f64| {
        let agent = &agent;
        agent.metrics_when(Duration::from_secs(20), move |metrics| {
            metrics.sum("model_generation_completed_total", &private) >= jobs
        })
    };
    let before = ended(1.0)?;
    run_private_job(folder.path())?;
    let after = ended(2.0)?;
    let rise = |name: &str, labels: &[(&str, &str)]| after.sum(name, labels) - before.sum(name, labels);
    assert_eq!(rise("model_generation_completed_total", &[private[0], ("status", "success")]), 1.0);
    assert_eq!(rise("occt_boolean_duration_seconds_count", &[("operation", "cut")]), 20.0);
    // The size is that of a file that only its owner may read, in a folder that only its owner may enter.
    assert_eq!(rise("export_duration_seconds_count", &[("format", "STEP"), ("status", "ok")]), 1.0);
    assert_eq!(rise("export_duration_seconds_count", &[("file_size_range", "unknown")]), 0.0);
    Ok(())
}

/// Every line of /proc/PID/status with this name, of all its threads.
fn status_lines(pid: u32, name: &str) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("status"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        lines.push(line.with_context(|| format!("no {name}"))?.trim().to_owned());
    }
    Ok(lines)
}

#[test]
fn an_agent_of_root_keeps_five_capabilities_and_can_gain_none() -> Result<()> {
    let _node = require_root()?;
    let agent = Agent::start(&["--log-format=text"])?;
    // dac_read_search, sys_ptrace, perfmon, bpf, checkpoint_restore
    let kept = format!("{:016x}", 1_u64 << 2 | 1 << 19 | 1 << 38 | 1 << 39 | 1 << 40);
    let nothing = format!("{:016x}", 0);
    for (name, value) in [
        ("CapEff", kept.as_str()),
        ("CapPrm", &kept),
        ("CapInh", &nothing),
        ("CapBnd", &nothing),
        ("CapAmb", &nothing),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        let lines = status_lines(agent.pid(), name)?;
        ensure!(lines.len() > 1 && lines.iter().all(|line| line == value), "{name}: {lines:?}, not {value}");
    }
    Ok(())
}

#[test]
fn a_missing_capability_is_named() -> Result<()> {
    let _node = require_root()?;
    for missing in CAPABILITIES {
        let rest: Vec<&str> = CAPABILITIES.into_iter().filter(|name| *name != missing).collect();
        for command in ["agent", "doctor"] {
            let wrapper = only(&rest);
            let mut under = Command::new(&wrapper[0]);
            under.args(&wrapper[1..]).arg(cadscope()?).arg(command);
            let ended = run(&mut under, Duration::from_secs(20))?;
            let said = format!("{}{}", ended.stdout, ended.stderr);
            ensure!(
                ended.code == 1 && said.contains(&format!("CAP_{missing} missing")),
                "{missing}: {ended:?}"
            );
        }
    }
    Ok(())
}
