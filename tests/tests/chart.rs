//! Promise: the Helm chart and the plain manifests are valid for every Kubernetes from 1.25 on, ask for no more rights
//! than were measured to be needed, and say the same.
//!
//! `CADSCOPE_WRITE=1` writes deploy/kustomize/base/cadscope.yaml and docs/chart-values.md instead of comparing them; `cargo xtask docs` does that.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cadscope_tests::chart::{
    APPARMOR_FIELD, KUBERNETES, chart, deploy, helm, kustomize, objects, render, validate, validate_operator,
    value_sets,
};
use cadscope_tests::node::{cadscope, scratch};
use cadscope_tests::run::run;
use serde_json::{Value, json};

/// What `helm template` is told of a set of values.
fn arguments(set: Option<&PathBuf>) -> Vec<&OsStr> {
    set.iter().flat_map(|file| [OsStr::new("--values"), file.as_os_str()]).collect()
}

#[test]
fn every_set_of_values_makes_valid_objects_for_every_kubernetes() -> Result<()> {
    let folder = scratch()?;
    // All that the templates ask of the version is whether it has the field for AppArmor.
    let (mut files, mut rendered_for) = (Vec::new(), "");
    for kubernetes in KUBERNETES {
        if kubernetes == KUBERNETES[0] || kubernetes == APPARMOR_FIELD {
            (files, rendered_for) = (Vec::new(), kubernetes);
            for (number, set) in value_sets()?.iter().enumerate() {
                let file = folder.path().join(format!("{kubernetes}-{number}.yaml"));
                fs::write(&file, render(kubernetes, &arguments(set.as_ref()))?)?;
                files.push(file);
            }
        }
        validate(kubernetes, &files).with_context(|| format!("as rendered for {rendered_for}"))?;
    }
    Ok(())
}

/// Every object of the Prometheus operator that is shipped: the chart's, the component's, the rules'.
fn objects_of_the_operator() -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for set in value_sets()? {
        all.extend(objects(&render(KUBERNETES[12], &arguments(set.as_ref()))?)?);
    }
    for file in
        ["kustomize/components/pod-monitor/pod-monitor.yaml", "../alerts/cadscope.prometheusrule.yaml"]
    {
        all.extend(objects(&fs::read_to_string(deploy().join(file))?)?);
    }
    all.retain(|object| object["apiVersion"] == "monitoring.coreos.com/v1");
    Ok(all)
}

#[test]
fn monitors_and_rules_are_what_the_prometheus_operator_takes() -> Result<()> {
    let all = objects_of_the_operator()?;
    for (kind, count) in [("PodMonitor", 2), ("ServiceMonitor", 1), ("PrometheusRule", 2)] {
        let found = all.iter().filter(|object| object["kind"] == kind).count();
        ensure!(found == count, "{found} of kind {kind}");
    }
    validate_operator(&all)
}

#[test]
fn a_key_or_value_that_the_operator_does_not_know_is_found() -> Result<()> {
    let text = serde_json::to_string(&objects_of_the_operator()?)?;
    for (right, wrong, said) in [
        ("\"honorLabels\":", "\"honourLabels\":", "honourLabels"),
        ("\"interval\":\"15s\"", "\"interval\":\"15 s\"", "must match pattern"),
        ("\"expr\":", "\"expression\":", "expression"),
    ] {
        let all: Vec<Value> = serde_json::from_str(&text.replacen(right, wrong, 1))?;
        let found = validate_operator(&all).err().with_context(|| format!("{wrong} is not found"))?;
        ensure!(found.to_string().contains(said), "{wrong}: {found}");
    }
    Ok(())
}

#[test]
fn helm_lint_has_nothing_to_say() -> Result<()> {
    for set in value_sets()? {
        let chart = chart();
        let mut line = vec![OsStr::new("lint"), OsStr::new("--strict"), chart.as_os_str()];
        line.extend(arguments(set.as_ref()));
        let ended = helm(&line)?;
        ensure!(ended.code == 0, "{set:?}: {}{}", ended.stdout, ended.stderr);
    }
    Ok(())
}

/// The pod that a DaemonSet makes, and its one container.
fn pod(manifests: &str) -> Result<(Value, Value)> {
    let all = objects(manifests)?;
    let mut sets = all.iter().filter(|object| object.get("kind").is_some_and(|kind| kind == "DaemonSet"));
    let (Some(set), None) = (sets.next(), sets.next()) else { bail!("not one DaemonSet:\n{manifests}") };
    let pod = set.pointer("/spec/template/spec").context("no pod")?;
    let containers = pod.get("containers").and_then(Value::as_array).context("no containers")?;
    let [container] = containers.as_slice() else { bail!("{} containers", containers.len()) };
    Ok((pod.clone(), container.clone()))
}

/// What the agent may do is what it was measured to need (`privileges.rs` runs it with exactly this).
#[test]
fn the_agent_has_the_measured_capabilities_and_nothing_else() -> Result<()> {
    for set in value_sets()? {
        let old_kernel = set.as_ref().is_some_and(|file| file.ends_with("old-kernel.yaml"));
        let mut expected: Vec<&str> = cadscope_tests::privileges::CAPABILITIES.to_vec();
        expected.extend(old_kernel.then_some("SYS_ADMIN"));
        for kubernetes in [KUBERNETES[0], KUBERNETES[KUBERNETES.len() - 1]] {
            let manifests = render(kubernetes, &arguments(set.as_ref()))?;
            let (pod, container) = pod(&manifests)?;
            // Only who wants the labels of pods in spans lets the agent ask the API, for one pod at a time.
            let asks = set.as_ref().is_some_and(|file| file.ends_with("everything.yaml"));
            assert_eq!(pod["automountServiceAccountToken"], json!(asks));
            let rules: Vec<Value> = objects(&manifests)?
                .iter()
                .filter(|object| object["kind"].as_str().is_some_and(|kind| kind.ends_with("Role")))
                .map(|role| role["rules"].clone())
                .collect();
            let one = json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] }]);
            assert_eq!(rules, if asks { vec![one] } else { vec![] });
            let rights = &container["securityContext"];
            assert_eq!(rights["capabilities"], json!({ "drop": ["ALL"], "add": expected }), "{set:?}");
            assert_eq!(rights["privileged"], json!(false));
            assert_eq!(rights["allowPrivilegeEscalation"], json!(false));
            assert_eq!(rights["readOnlyRootFilesystem"], json!(true));
            assert_eq!((&pod["hostPID"], &pod["hostNetwork"]), (&json!(true), &json!(false)));
            assert!(pod["securityContext"]["seccompProfile"]["type"] != "Unconfined");
            writes_to_one_folder(&pod, &container, asks.then_some("/var/lib/cadscope"));
        }
    }
    Ok(())
}

/// The agent's own folder is all that it may write to, and of the node there is nothing but what it was given for that.
fn writes_to_one_folder(pod: &Value, container: &Value, of_node: Option<&str>) {
    let list = |of: &Value, key: &str| of.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut writable = list(container, "volumeMounts");
    writable.retain(|mount| mount.get("readOnly") != Some(&json!(true)));
    assert_eq!(writable, [json!({ "name": "state", "mountPath": "/var/lib/cadscope" })]);
    for volume in list(pod, "volumes") {
        let path = if volume.get("name") == Some(&json!("state")) { of_node } else { None };
        let expected = path.map(|path| json!({ "path": path, "type": "DirectoryOrCreate" }));
        assert_eq!(volume.get("hostPath"), expected.as_ref(), "{volume}");
    }
}

#[test]
fn values_that_cannot_be_meant_are_refused() -> Result<()> {
    for (wrong, named) in [
        ("imagee.tag=x", "imagee"),
        ("port=80", "port"),
        ("security.privileged=true", "privileged"),
        ("log.format=xml", "format"),
        ("otlp.endpoint=collector:4317", "endpoint"),
        ("image.digest=sha256:1", "digest"),
        ("security.kernelBefore66=true", "kernelBefore66"),
        ("state.hostPath=var/lib", "hostPath"),
        ("catalogs.gears=x", "gears"),
        ("metrics.podMonitor.interval=soon", "interval"),
    ] {
        let error = render(KUBERNETES[12], &["--set".as_ref(), wrong.as_ref()]);
        let message = error.err().with_context(|| format!("{wrong} is not refused"))?.to_string();
        ensure!(message.contains(named), "{wrong}: {message}");
    }
    Ok(())
}

/// The agent reads what the chart writes for it.
#[test]
fn the_agent_understands_its_arguments_and_files() -> Result<()> {
    let set = chart().join("ci/everything.yaml");
    let manifests = render(KUBERNETES[12], &arguments(Some(&set)))?;
    let folder = scratch()?;
    let all = objects(&manifests)?;
    let files = all
        .iter()
        .find(|object| object["kind"] == "ConfigMap" && object["data"]["cadscope.toml"].is_string());
    for (name, text) in files.context("no ConfigMap")?["data"].as_object().context("no data")? {
        fs::write(folder.path().join(name), text.as_str().context("no text")?)?;
    }
    let (_, container) = pod(&manifests)?;
    let own = format!("{}/", folder.path().display());
    let arguments: Vec<String> = container["args"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|argument| Some(argument.as_str()?.replace("/etc/cadscope/", &own)))
        .collect();
    // Flags are looked at in their order, and the last one is wrong: those before it are right.
    let mut command = Command::new(cadscope()?);
    let ended = run(command.args(&arguments).arg("--attach=nonsense"), Duration::from_secs(20))?;
    ensure!(ended.code == 2 && ended.stderr.contains("nonsense"), "{arguments:?}: {ended:?}");
    let mut command = Command::new(cadscope()?);
    command.args(["probes", "--catalog"]).arg(folder.path().join("gears.toml"));
    command.arg("--config").arg(folder.path().join("cadscope.toml")).arg("/bin/true");
    let ended = run(&mut command, Duration::from_secs(60))?;
    // 1: it has no probes, which is another matter.
    ensure!(ended.code == 1 && ended.stdout.contains("gear_build_seconds"), "{}", ended.stderr);
    Ok(())
}

#[test]
fn a_changed_configuration_starts_the_agents_anew() -> Result<()> {
    let checksum = |config: &str| -> Result<String> {
        let set = format!("config=linger = {config}");
        let manifests = render(KUBERNETES[12], &["--set".as_ref(), set.as_ref()])?;
        let line = manifests.lines().find(|line| line.contains("checksum/config")).context("no checksum")?;
        Ok(line.to_owned())
    };
    assert_ne!(checksum("1")?, checksum("2")?);
    Ok(())
}

/// The chart reaches them by links, which a package of the chart follows.
#[test]
fn alerts_and_dashboards_of_the_chart_are_those_of_the_repository() -> Result<()> {
    let set = chart().join("ci/everything.yaml");
    let all = objects(&render(KUBERNETES[12], &arguments(Some(&set)))?)?;
    let of = |kind: &'static str| all.iter().filter(move |object| object["kind"] == kind);
    let rules = objects(&fs::read_to_string(deploy().join("../alerts/cadscope.rules.yml"))?)?;
    let [rule] = of("PrometheusRule").collect::<Vec<_>>()[..] else { panic!("not one PrometheusRule") };
    assert_eq!(rule["spec"]["groups"], rules[0]["groups"]);
    let mut dashboards = 0;
    for entry in fs::read_dir(deploy().join("../dashboards"))? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(OsStr::to_str).filter(|name| name.ends_with(".json"))
        else {
            continue;
        };
        let there: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        let key = format!("cadscope-{name}");
        let here = of("ConfigMap").find_map(|object| object["data"][&key].as_str());
        let here: Value = serde_json::from_str(here.with_context(|| format!("no {key}"))?)?;
        assert_eq!(here, there, "{key}");
        dashboards += 1;
    }
    assert!(dashboards > 0);
    Ok(())
}

/// Lines that only make sense where Helm manages the objects.
fn is_plain(line: &&str) -> bool {
    !["# Source: ", "helm.sh/chart: ", "app.kubernetes.io/managed-by: "]
        .iter()
        .any(|helm| line.trim_start().starts_with(helm))
}

#[test]
fn the_plain_manifests_are_the_chart_with_its_defaults() -> Result<()> {
    let file = deploy().join("kustomize/base/cadscope.yaml");
    let rendered = render(APPARMOR_FIELD, &[])?;
    let lines: Vec<&str> = rendered.lines().filter(is_plain).collect();
    let text = format!("# Made from deploy/chart by `cargo xtask docs`.\n{}\n", lines.join("\n"));
    if std::env::var_os("CADSCOPE_WRITE").is_some() {
        fs::write(&file, &text)?;
    }
    let there = fs::read_to_string(&file).unwrap_or_default();
    ensure!(there == text, "{} is not what the chart makes: run `cargo xtask docs`", file.display());
    Ok(())
}

/// Every value in its order: path, default and comment, behind those of what it is part of.
fn documented_values(text: &str) -> Result<Vec<(String, String, String)>> {
    let defaults = objects(text)?.into_iter().next().context("no values")?;
    let mut rows = Vec::new();
    let mut above: Vec<(String, String)> = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    for line in text.lines() {
        let bare = line.trim_start();
        let depth = (line.len() - bare.len()) / 2;
        if let Some(words) = bare.strip_prefix("# ") {
            comment.push(words);
            continue;
        }
        let key =
            bare.split_once(':').map(|(key, _)| key).filter(|key| !key.contains(['#', '-', ' ', '.', '/']));
        if let Some(key) = key {
            above.truncate(depth);
            let inherited = above.last().map(|(_, comment)| comment.as_str()).unwrap_or_default();
            let all = format!("{inherited} {}", comment.join(" ")).trim().to_owned();
            above.push((key.to_owned(), all));
            let path: Vec<&str> = above.iter().map(|(key, _)| key.as_str()).collect();
            let value = defaults.pointer(&format!("/{}", path.join("/"))).cloned().unwrap_or_default();
            // A map with keys of the user's own is one value.
            let is_own = |map: &serde_json::Map<String, Value>| map.keys().all(|key| key.contains('/'));
            if value.as_object().is_none_or(is_own) {
                let comment = above.last().map(|(_, comment)| comment.clone()).unwrap_or_default();
                rows.push((path.join("."), value.to_string(), comment));
            }
        }
        comment.clear();
    }
    Ok(rows)
}

#[test]
fn the_page_of_values_is_what_the_chart_says_and_says_what_each_is() -> Result<()> {
    let rows = documented_values(&fs::read_to_string(chart().join("values.yaml"))?)?;
    ensure!(rows.len() > 60, "{} values", rows.len());
    let mut page = "<!-- Made from deploy/chart/cadscope/values.yaml by `cargo xtask docs`. -->\n# Values of the Helm chart\n\n\
        A key that is not here is refused. How to use them: [Install on Kubernetes](install-kubernetes.md).\n\n\
        | value | default | what it is |\n|---|---|---|\n"
        .to_owned();
    for (path, default, comment) in &rows {
        ensure!(!comment.is_empty(), "{path} says nowhere what it is");
        page.push_str(&format!("| `{path}` | `{default}` | {} |\n", comment.replace('|', "\\|")));
    }
    let file = deploy().join("../docs/chart-values.md");
    if std::env::var_os("CADSCOPE_WRITE").is_some() {
        fs::write(&file, &page)?;
    }
    let there = fs::read_to_string(&file).unwrap_or_default();
    ensure!(there == page, "{} is not what the chart says: run `cargo xtask docs`", file.display());
    Ok(())
}

#[test]
fn the_plain_manifests_are_valid_with_each_component() -> Result<()> {
    let folder = scratch()?;
    let base = deploy().join("kustomize/base").canonicalize()?;
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(deploy().join("kustomize/components"))? {
        names.push(entry?.path().canonicalize()?);
    }
    ensure!(!names.is_empty(), "no components");
    // A component for each, and all together; the folder lies beside them, as kustomize wants it.
    for (number, components) in names.iter().map(|name| vec![name.clone()]).chain([names.clone()]).enumerate()
    {
        let overlay = folder.path().join(number.to_string());
        fs::create_dir(&overlay)?;
        let up = "../".repeat(overlay.components().count());
        let relative = |path: &PathBuf| format!("{up}{}", path.display().to_string().trim_start_matches('/'));
        let components: Vec<String> = components.iter().map(&relative).collect();
        let text = json!({ "resources": [relative(&base)], "components": components });
        fs::write(overlay.join("kustomization.yaml"), text.to_string())?;
        let file = folder.path().join(format!("{number}.yaml"));
        let manifests = kustomize(&overlay)?;
        let old = components.iter().any(|path| path.ends_with("kubernetes-before-1.30"));
        ensure!(manifests.contains("appArmorProfile:") != old, "the AppArmor profile of {components:?}");
        fs::write(&file, manifests)?;
        validate(if old { KUBERNETES[0] } else { APPARMOR_FIELD }, &[file])?;
    }
    let (_, container) = pod(&kustomize(&base)?)?;
    assert_eq!(
        container["securityContext"]["capabilities"]["add"],
        json!(cadscope_tests::privileges::CAPABILITIES)
    );
    Ok(())
}
