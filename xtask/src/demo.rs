//! Turns a real FreeCAD job into what a user gets: the waterfall of its operations, then its metrics.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::build::{Profile, build};
use crate::places::{freecadcmd, job_script};
use crate::running_agent::{RunningAgent, samples};
use crate::setup::{self, Purpose, is_root};
use crate::shell::{headline, run};

/// Sets up, builds, traces the job, then observes it with the agent.
pub(crate) fn demo(script: Option<PathBuf>) -> Result<()> {
    if !is_root() {
        bail!("attaching to other processes needs root (or CAP_BPF and CAP_PERFMON): run this as root");
    }
    let script = job_script(script)?;
    setup::install(Purpose::Demo)?;
    let binary = build(Profile::Release)?;
    let freecad = freecadcmd().context("no freecadcmd")?;

    headline("cadscope trace: one process, as a waterfall");
    run(Command::new(&binary)
        .args(["trace", "--"])
        .arg(&freecad)
        .arg(&script)
        .env("QT_QPA_PLATFORM", "offscreen"))?;

    headline("cadscope agent: every worker of this machine, as metrics");
    let agent = RunningAgent::start(&binary)?;
    println!("listening on http://{}/", agent.address);
    run(job(&freecad, &script).stdout(Stdio::null()).stderr(Stdio::null()))?;
    let metrics = agent.metrics_after(1.0)?;
    for line in worth_showing(&metrics) {
        println!("{line}");
    }
    agent.stop()
}

/// The job, without a display.
pub(crate) fn job(freecad: &Path, script: &Path) -> Command {
    let mut job = Command::new(freecad);
    job.arg(script).env("QT_QPA_PLATFORM", "offscreen").stdin(Stdio::null());
    job
}

/// What the job caused: every sample that is not zero, without buckets, and little of the agent about itself.
fn worth_showing(metrics: &str) -> Vec<String> {
    const ABOUT_ITSELF: [&str; 3] = ["cadscope_probes", "cadscope_events", "cadscope_attach"];
    samples(metrics)
        .filter(|one| one.value != 0.0)
        .filter(|one| !one.name.ends_with("_bucket") && !one.name.ends_with("_created"))
        .filter(|one| {
            let own = one.name.starts_with("cadscope_");
            !own || ABOUT_ITSELF.iter().any(|prefix| one.name.starts_with(prefix))
        })
        .map(|one| format!("{} {}", one.series, one.value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_and_buckets_are_not_shown() {
        let metrics =
            "a_bucket{le=\"1\"} 4\na_count 4\nb_total 0\ncadscope_series 5\ncadscope_probes_attached 7\n";
        assert_eq!(worth_showing(metrics), ["a_count 4", "cadscope_probes_attached 7"]);
    }
}
