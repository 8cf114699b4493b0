//! Promise: the Debian package installs a service that runs with little, and goes without a trace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::builds::folder;
use cadscope_tests::chart::deploy;
use cadscope_tests::document::Commands;
use cadscope_tests::node::{cadscope, require_root, scratch, tool};
use cadscope_tests::run::{Ended, Running, run, until};

/// What docs/install-systemd.md says, in tenths.
const EXPOSURE: u32 = 27;

#[test]
fn systemd_takes_the_unit_and_finds_it_little_exposed() -> Result<()> {
    let folder = scratch()?;
    let unit = fs::read_to_string(deploy().join("systemd/cadscope.service"))?;
    ensure!(unit.contains("ExecStart=/usr/bin/cadscope "), "the unit starts another program");
    let file = folder.path().join("cadscope.service");
    fs::write(&file, unit.replace("/usr/bin/cadscope", &cadscope()?.display().to_string()))?;
    let analyze = tool("systemd-analyze", "systemd")?;
    let ended = run(Command::new(&analyze).arg("verify").arg(&file), Duration::from_secs(60))?;
    ensure!(ended.code == 0 && ended.stderr.is_empty(), "{ended:?}");
    let mut security = Command::new(&analyze);
    security.args(["security", "--no-pager", "--offline=yes", &format!("--threshold={EXPOSURE}")]).arg(&file);
    let ended = run(&mut security, Duration::from_secs(60))?;
    ensure!(ended.code == 0, "{}", ended.stdout);
    let page = fs::read_to_string(deploy().join("../docs/install-systemd.md"))?;
    ensure!(
        page.contains(&format!("{}.{} of 10", EXPOSURE / 10, EXPOSURE % 10)),
        "the page says another exposure"
    );
    Ok(())
}

const LIMIT: Duration = Duration::from_secs(120);

/// A Debian that has booted, with the package at /cadscope.deb; what happens in it is lost when it ends.
struct Booted(Running);

impl Booted {
    fn boot() -> Result<Self> {
        let root = folder()?.join("debian-system");
        ensure!(root.is_dir(), "{} is not there: cargo xtask builds debian-system", root.display());
        let package = std::env::var_os("CADSCOPE_DEB").map(PathBuf::from);
        let package = package.context("CADSCOPE_DEB is not set: cargo xtask package makes the package")?;
        let mut nspawn = Command::new(tool("systemd-nspawn", "systemd-container")?);
        nspawn.arg("--directory").arg(root.canonicalize()?);
        nspawn.arg(format!("--bind-ro={}:/cadscope.deb", package.display()));
        nspawn.args(["--boot", "--volatile=overlay", "--register=no", "--keep-unit", "--private-network"]);
        // What a host has and nspawn takes away.
        nspawn.arg("--capability=CAP_BPF,CAP_PERFMON,CAP_SYS_PTRACE,CAP_DAC_READ_SEARCH");
        nspawn.arg("--system-call-filter=bpf perf_event_open process_vm_readv");
        let child = nspawn.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let booted = Self(Running(child));
        until("the Debian boots", LIMIT, || {
            let state = booted.run(&["systemctl", "is-system-running"]).ok()?.stdout;
            ["running", "degraded"].contains(&state.trim()).then_some(())
        })?;
        Ok(booted)
    }

    /// Its first process, as this machine numbers it.
    fn first(&self) -> Result<String> {
        let pid = self.0.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        Ok(children.split_whitespace().next().context("it has no process yet")?.to_owned())
    }

    fn run(&self, words: &[&str]) -> Result<Ended> {
        let first = self.first()?;
        run(Command::new("nsenter").args(["--target", &first, "--all", "--"]).args(words), LIMIT)
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // systemd's way to be told to power off; what is left of it goes with nspawn.
        if self.run(&["systemctl", "poweroff"]).is_ok() {
            cadscope_tests::run::wait(&mut self.0.0, Duration::from_secs(30)).ok();
        }
    }
}

#[test]
#[ignore = "boots a Debian and installs the package in it: a minute"]
fn the_package_runs_in_a_debian_with_the_rights_of_its_unit_and_goes_without_a_trace() -> Result<()> {
    let _node = require_root()?;
    let system = Booted::boot()?;
    let page = Commands::of("install-systemd.md", "package")?;
    let shell = |script: &str| -> Result<String> {
        let ended = system.run(&["sh", "-ec", &format!("export SYSTEMD_PAGER=cat\n{script}")])?;
        ensure!(ended.code == 0, "{script}: {ended:?}");
        Ok(ended.stdout)
    };
    // The first command of the page has made the package that this test was given.
    let package = page.script("cargo xtask package")?;
    let package = package.split_whitespace().last().context("no file")?.to_owned();
    let name = Path::new(&package).file_name().context("no name")?;
    let given = PathBuf::from(std::env::var_os("CADSCOPE_DEB").unwrap_or_default());
    ensure!(
        given.file_name() == Some(name),
        "the page calls the package {name:?}; it is {}",
        given.display()
    );
    shell(&page.script("apt-get install")?.replace(&format!("./{package}"), "/cadscope.deb"))?;
    let log = || system.run(&["journalctl", "--unit=cadscope", "--no-pager"]).map(|ended| ended.stdout);
    let ready = until("the service is ready", LIMIT, || {
        let asked = system.run(&["curl", "--silent", "--fail", "http://127.0.0.1:9777/readyz"]).ok()?;
        (asked.code == 0).then_some(())
    });
    ready.with_context(|| log().unwrap_or_default())?;
    let status = system.run(&["sh", "-c", "cat /proc/$(pidof cadscope)/status"])?.stdout;
    let line = |name: &str| status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim()));
    // dac_read_search, sys_ptrace, perfmon, bpf
    let kept = format!("{:016x}", 1_u64 << 2 | 1 << 19 | 1 << 38 | 1 << 39);
    for (name, value) in
        [("CapEff:", kept.as_str()), ("CapBnd:", &kept), ("NoNewPrivs:", "1"), ("Seccomp:", "2")]
    {
        ensure!(line(name) == Some(value), "{name} is not {value}:\n{status}");
    }
    ensure!(line("Uid:").is_some_and(|uids| !uids.starts_with("0\t")), "it runs as root:\n{status}");
    // The unit's filters leave it what it needs to look at every process of its system.
    ensure!(!log()?.contains("could not be observed"), "{}", log()?);
    ensure!(!log()?.contains("not kept beyond this run"), "{}", log()?);
    ensure!(system.run(&["systemctl", "is-enabled", "cadscope"])?.stdout.trim() == "enabled");
    let said = shell(&page.script("systemctl status")?)?;
    for part in ["active (running)", "cadscope_build_info", "systemd[1]: Started"] {
        ensure!(said.contains(part), "no {part} in {said}");
    }
    // With the one capability more that older kernels want.
    shell(&page.script("sys-admin.conf")?)?;
    let wider = format!("CapBnd:\t{:016x}\n", 1_u64 << 2 | 1 << 19 | 1 << 21 | 1 << 38 | 1 << 39);
    until("the service with one capability more", LIMIT, || {
        let read = system.run(&["sh", "-c", "cat /proc/$(pidof cadscope)/status"]).ok()?;
        read.stdout.contains(&wider).then_some(())
    })
    .with_context(|| log().unwrap_or_default())?;
    shell("rm -r /etc/systemd/system/cadscope.service.d; systemctl daemon-reload")?;
    page.were_all_run()?;

    let removed = system.run(&["dpkg", "--purge", "cadscope"])?;
    ensure!(removed.code == 0, "{removed:?}");
    ensure!(system.run(&["pidof", "cadscope"])?.code == 1, "it runs on");
    let left = system.run(&["find", "/etc", "/usr", "/var/lib/cadscope", "-name", "*cadscope*"])?.stdout;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}
