//! Renders the Helm chart and the plain manifests of `deploy/`, and reads the objects in them.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::builds::folder;
use crate::run::{Ended, run};

/// The versions of Kubernetes whose schemas there are, oldest first.
pub const KUBERNETES: [&str; 13] =
    ["1.25", "1.26", "1.27", "1.28", "1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"];

/// The first version whose pods have a field for their AppArmor profile instead of an annotation.
pub const APPARMOR_FIELD: &str = "1.30";

/// `deploy/` of this checkout.
#[must_use]
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The chart.
#[must_use]
pub fn chart() -> PathBuf {
    deploy().join("chart/cadscope")
}

/// The sets of values that the chart is checked with: none, and each of `ci/`.
///
/// # Errors
/// The folder cannot be read.
pub fn value_sets() -> Result<Vec<Option<PathBuf>>> {
    let mut sets = vec![None];
    for entry in std::fs::read_dir(chart().join("ci"))? {
        sets.push(Some(entry?.path()));
    }
    sets.sort();
    Ok(sets)
}

/// A program of `cargo xtask builds kubernetes-tools`: `helm` or `kubectl`.
///
/// # Errors
/// It has not been made; says how.
pub fn tool(name: &str) -> Result<PathBuf> {
    made("kubernetes-tools", &format!("bin/{name}"))
}

fn made(build: &str, file: &str) -> Result<PathBuf> {
    let path = folder()?.join(build).join(file);
    ensure!(path.is_file(), "{} is not there: run `cargo xtask builds {build}`", path.display());
    Ok(path)
}

/// Runs `helm`.
///
/// # Errors
/// It cannot be run; what it refuses is no error.
pub fn helm<S: AsRef<OsStr>>(arguments: &[S]) -> Result<Ended> {
    run(Command::new(tool("helm")?).args(arguments), Duration::from_secs(60))
}

/// What `helm template` makes of the chart for a version of Kubernetes with these further arguments.
///
/// # Errors
/// It refuses.
pub fn render(kubernetes: &str, arguments: &[&OsStr]) -> Result<String> {
    let chart = chart();
    let version = format!("--kube-version={kubernetes}.0");
    let fixed = ["template", "cadscope"].map(OsStr::new);
    let fixed =
        fixed.into_iter().chain([chart.as_os_str(), "--namespace=cadscope".as_ref(), version.as_ref()]);
    let ended = helm(&fixed.chain(arguments.iter().copied()).collect::<Vec<_>>())?;
    ensure!(ended.code == 0, "helm template: {}", ended.stderr);
    Ok(ended.stdout)
}

/// What `kubectl kustomize` makes of a folder.
///
/// # Errors
/// It refuses.
pub fn kustomize(folder: &Path) -> Result<String> {
    let ended = run(Command::new(tool("kubectl")?).arg("kustomize").arg(folder), Duration::from_secs(60))?;
    ensure!(ended.code == 0, "kubectl kustomize {}: {}", folder.display(), ended.stderr);
    Ok(ended.stdout)
}

const TO_JSON: &str =
    "import json, sys, yaml; json.dump([d for d in yaml.safe_load_all(sys.stdin) if d], sys.stdout)";

/// The objects in a text of YAML documents.
///
/// # Errors
/// It is no YAML.
pub fn objects(yaml: &str) -> Result<Vec<Value>> {
    let mut child = Command::new(made("kubernetes-schemas", "bin/python")?)
        .args(["-c", TO_JSON])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no pipe")?.write_all(yaml.as_bytes())?;
    let answer = child.wait_with_output()?;
    ensure!(answer.status.success(), "no YAML:\n{yaml}");
    Ok(serde_json::from_slice(&answer.stdout)?)
}

/// Checks the objects of the Prometheus operator among these against its own types: keys and values.
///
/// # Errors
/// One is not what the operator takes, or there is none.
pub fn validate_operator(objects: &[Value]) -> Result<()> {
    let check = made("operator-models", "check.mjs")?;
    // It writes beside its modules; the builds are shared.
    let work = crate::node::scratch()?;
    let modules = check.with_file_name("node_modules");
    std::os::unix::fs::symlink(std::fs::canonicalize(modules)?, work.path().join("node_modules"))?;
    let file = work.path().join("objects.json");
    std::fs::write(&file, serde_json::to_vec(objects)?)?;
    let mut command = Command::new(crate::node::tool("node", "nodejs")?);
    let ended = run(command.arg(&check).arg(work.path()).arg(&file), Duration::from_secs(120))?;
    ensure!(ended.code == 0, "{}", ended.stderr);
    ensure!(!ended.stdout.starts_with("0 objects"), "no object of the operator");
    Ok(())
}

/// Checks files with manifests against the strict schemas of a version of Kubernetes. Kinds of the Prometheus operator
/// are not among them: [`validate_operator`].
///
/// # Errors
/// One is not valid.
pub fn validate(kubernetes: &str, files: &[PathBuf]) -> Result<()> {
    let mut command = Command::new(made("kubernetes-schemas", "bin/python")?);
    command.args(["-m", "kubernetes_validate", "--strict", "--no-warn", "-k", kubernetes]).args(files);
    let ended = run(&mut command, Duration::from_secs(120))?;
    ensure!(ended.code == 0, "Kubernetes {kubernetes}:\n{}{}", ended.stdout, ended.stderr);
    Ok(())
}
