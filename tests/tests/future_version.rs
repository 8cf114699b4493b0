//! Promise: of a version that nobody knows yet, what needs no layout is observed, and what is not is told.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::freecad::{Job, copy};
use cadscope_tests::node::{require_root, scratch};

/// Gives a copy of OCCT the file names of a version to come.
fn rename(libraries: &Path) -> Result<()> {
    for entry in fs::read_dir(libraries)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_symlink() || !name.ends_with(".so.7.6.3") {
            continue;
        }
        let future = name.replace(".so.7.6.3", ".so.9.9.9");
        fs::rename(entry.path(), libraries.join(&future))?;
        // What the others ask for, and what pointed to the old name.
        for link in [name.replace(".so.7.6.3", ".so.7"), name.replace(".so.7.6.3", ".so.7.6"), name.clone()] {
            let link = libraries.join(link);
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&future, link)?;
        }
    }
    Ok(())
}

#[test]
fn an_unknown_occt_is_observed_without_what_needs_a_layout_and_that_is_told() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let (program, libraries) = copy(folder.path())?;
    rename(&libraries)?;
    let agent = Agent::start::<&str>(&[])?;
    let path = libraries.to_str().context("path")?;
    let job = Job::with_program("operations.py", &program)?.with("LD_LIBRARY_PATH", path);
    job.run(Duration::from_secs(120))?;
    std::thread::sleep(Duration::from_secs(1));
    // Once more, with everything in place.
    let before = agent.metrics()?;
    job.run(Duration::from_secs(120))?;
    let done = job.record()?;
    let count = |kind: &str| done.iter().filter(|done| done.kind == kind).count() as f64;
    let future = [("occt_version", "9.9.9")];
    let rise = |name: &str, labels: &[(&str, &str)]| -> Result<f64> {
        let labels: Vec<(&str, &str)> = future.iter().chain(labels).copied().collect();
        let enough = |metrics: &cadscope_tests::metrics::Metrics| {
            metrics.sum(name, &labels) - before.sum(name, &labels)
        };
        let limit = Duration::from_secs(10);
        Ok(enough(&agent.metrics_when(limit, |metrics| enough(metrics) > 0.0)?))
    };
    // A layout that held in every version is used, and the default one for the result of a fillet.
    let union = rise("occt_boolean_duration_seconds_count", &[("operation", "union")])?;
    ensure!(union >= count("union") && union > 0.0, "{union} unions of {}\n{}", count("union"), agent.log());
    let fillets = rise("occt_feature_duration_seconds_count", &[("feature", "fillet")])?;
    ensure!(fillets >= count("fillet") && fillets > 0.0, "{fillets} fillets\n{}", agent.log());
    let failed = rise("occt_feature_duration_seconds_count", &[("feature", "fillet"), ("status", "error")])?;
    ensure!(failed > 0.0 && failed < fillets, "{failed} of {fillets} fillets failed\n{}", agent.log());
    // What lies elsewhere in each version is not read, and /status says which values these are.
    let (_, status) = agent.get("/status")?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let files = status.get("files").and_then(|files| files.as_array()).context("no files")?;
    let probes = files.iter().filter_map(|file| file.get("probes")?.as_array()).flatten();
    let said = |id: &str| {
        let mut said = probes.clone().filter(|probe| probe.get("id").is_some_and(|own| own == id));
        said.find_map(|probe| Some(probe.get("reason")?.as_str()?.to_owned()))
    };
    for (id, value) in [("feat.fillet_build", "contours"), ("feat.offset_core", "done")] {
        let reason = said(id).with_context(|| format!("nothing is said of {id}: {status}"))?;
        ensure!(reason.contains("9.9.9") && reason.contains(value), "{id}: {reason}");
    }
    ensure!(said("bool.api_build").is_none(), "{:?}", said("bool.api_build"));
    Ok(())
}
