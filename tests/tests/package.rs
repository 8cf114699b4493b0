//! Promise: the unit of the Debian package is one that systemd takes, and that exposes little.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use cadscope_tests::chart::deploy;
use cadscope_tests::node::{cadscope, scratch, tool};
use cadscope_tests::run::run;

/// What docs/install-systemd.md says, in tenths.
const EXPOSURE: u32 = 26;

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
