//! Promise: a newcomer with a cluster types what docs/install-kubernetes.md says, and within a minute the dashboards have
//! data of the FreeCAD that runs there already; what is upgraded goes on, what is removed leaves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cadscope_tests::chart::{deploy, kustomize, tool};
use cadscope_tests::collector::{Collector, Span};
use cadscope_tests::dashboard;
use cadscope_tests::document::{Block, Commands, blocks};
use cadscope_tests::kubernetes::{Cluster, FREECAD, agent_image, freecad_image};
use cadscope_tests::node::{require_root, scratch, tool as program};
use cadscope_tests::prometheus::Prometheus;
use cadscope_tests::residue::{altered_text, bpf_ids, named_uprobes};
use cadscope_tests::run::{run, until};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(120);
/// Of the node, for its pods.
const ADDRESS: &str = "172.31.255.2";
/// What the chart's values name with the page's registry, in the version of the chart.
const IMAGE: &str = concat!("localhost/cadscope:", env!("CARGO_PKG_VERSION"));

/// What the reader of the version comparison chooses: the one version that the pods have.
const VERSIONS: [(&str, &str); 2] = [("base", "7.9.2"), ("candidate", "7.9.2")];

/// Jobs of another team, which run before cadscope comes and after it has gone: one without an end, others one by one.
fn jobs() -> String {
    let script = "mkdir -p /tmp/jobs; cd /tmp/jobs; freecadcmd /jobs/endless.py & \
        while true; do for job in booleans documents exports; do freecadcmd /jobs/families/$job.py; done; done";
    let container = json!({
        "name": "worker", "image": FREECAD, "imagePullPolicy": "Never", "command": ["sh", "-c", script],
        "env": [
            { "name": "FLOW_TYPE", "value": "gear" },
            { "name": "HOME", "value": "/tmp/jobs" },
            { "name": "JOB_FOLDER", "value": "/tmp/jobs" },
            { "name": "JOB_SECONDS", "value": "3600" },
            { "name": "QT_QPA_PLATFORM", "value": "offscreen" },
        ],
    });
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "gear", "namespace": "cad" },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": [container] },
    })
    .to_string()
}

/// A pod of this team, whose jobs are short.
fn plate(team: &str) -> String {
    let script = "while true; do freecadcmd /jobs/short.py; done";
    let container = json!({
        "name": "worker", "image": FREECAD, "imagePullPolicy": "Never", "command": ["sh", "-c", script],
        "env": [{ "name": "HOME", "value": "/tmp" }, { "name": "QT_QPA_PLATFORM", "value": "offscreen" }],
    });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "plate", "namespace": "cad", "labels": { "team": team, "example.com/part": "plate" } },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": [container] },
    })
    .to_string()
}

/// The page's commands, with `helm` and `kubectl` that reach the node.
struct Page {
    commands: Commands,
    blocks: Vec<Block>,
    folder: tempfile::TempDir,
}

impl Page {
    fn read(cluster: &Cluster) -> Result<Self> {
        let page = fs::read_to_string(deploy().join("../docs/install-kubernetes.md"))?;
        let folder = scratch()?;
        let curl = program("curl", "curl")?;
        for (name, client) in [("helm", tool("helm")?), ("kubectl", tool("kubectl")?), ("curl", curl)] {
            let file = folder.path().join(name);
            fs::write(&file, cluster.client(&client)?)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        }
        let commands = Commands::of("install-kubernetes.md", "install")?;
        Ok(Self { commands, blocks: blocks(&page)?, folder })
    }

    /// Runs the block with this command, with what this cluster has in the place of what the page takes for an example.
    fn run(&self, command: &str, instead: &[(&str, &str)]) -> Result<String> {
        let mut script = self.commands.script(command)?.replace("registry.example", "localhost");
        for (example, own) in instead {
            ensure!(script.contains(example), "no `{example}` in {script}");
            script = script.replace(example, own);
        }
        let path = format!("{}:{}", self.folder.path().display(), std::env::var("PATH")?);
        let mut shell = Command::new("bash");
        shell.args(["-ec", &script]).env("PATH", path).current_dir(deploy().join(".."));
        let ended = run(&mut shell, LIMIT)?;
        ensure!(ended.code == 0, "{script}\n{}\n{}", ended.stdout, ended.stderr);
        Ok(ended.stdout)
    }

    /// While the page's tunnel stands, the agent's pages are where the page says.
    fn tunnel(&self) -> Result<()> {
        let command = self.commands.script("port-forward")?;
        // The command is one; in a session of its own it can be ended with all that it has started.
        let script = format!(
            "setsid {} >tunnel & curl --silent --fail --retry 60 --retry-delay 1 --retry-all-errors \
             http://127.0.0.1:9777/status; code=$?; kill -- -$!; wait; exit $code",
            command.trim_end()
        );
        let path = format!("{}:{}", self.folder.path().display(), std::env::var("PATH")?);
        let mut shell = Command::new("bash");
        shell.args(["-c", &script]).env("PATH", path).current_dir(self.folder.path());
        let ended = run(&mut shell, LIMIT)?;
        let status: serde_json::Value =
            serde_json::from_str(&ended.stdout).with_context(|| format!("no status: {ended:?}"))?;
        ensure!(status.pointer("/ready") == Some(&json!(true)), "{status}");
        Ok(())
    }

    /// Prometheus as the page configures it, where it would run in the cluster.
    fn prometheus(&self, cluster: &Cluster) -> Result<Prometheus> {
        let config =
            self.blocks.iter().find(|block| block.file() == Some("scrape.yml")).context("no scrape.yml")?;
        // Inside a pod it finds the API by its service account.
        let outside = format!("{{role: pod, kubeconfig_file: {}}}", cluster.config()?.display());
        let config = config.text.replace("{role: pod}", &outside);
        Prometheus::start_with(&config, None, Some(cluster.network()))
    }
}

/// The worker that never ends, as this machine numbers it.
fn endless() -> Option<u32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line);
        let is_worker = line.starts_with("freecadcmd\0") && line.contains("/jobs/endless.py");
        is_worker.then(|| entry.file_name().to_str()?.parse().ok())?
    })
}

/// Programs, maps and links of BPF that no process holds, by kind.
fn left() -> Result<Vec<BTreeSet<u64>>> {
    ["prog", "map", "link"].iter().map(|kind| bpf_ids(kind)).collect()
}

/// The pod's cgroups, but those of the second hierarchy of a hybrid machine, where kubelet 1.20 leaves an empty folder of
/// every pod.
fn cgroups_of(uid: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        if folder.ends_with("unified") {
            continue;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().contains(uid) {
                    found.push(entry.path());
                }
                folders.push(entry.path());
            }
        }
    }
    found
}

/// The uid of the agent's pod.
fn agent_pod(cluster: &Cluster) -> Result<String> {
    let of = "-l=app.kubernetes.io/name=cadscope";
    cluster.kubectl(&["-n", "cadscope", "get", "pods", of, "-o", "jsonpath={.items[*].metadata.uid}"])
}

fn describe(cluster: &Cluster) -> String {
    let say = |arguments: &[&str]| cluster.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}"));
    let pods = say(&["-n", "cadscope", "describe", "pods"]);
    format!("{pods}\n{}", say(&["-n", "cadscope", "logs", "--tail=50", "daemonset/cadscope"]))
}

/// What is in the cluster of the release, whatever its kind.
fn objects(cluster: &Cluster) -> Result<String> {
    let kinds = "all,serviceaccounts,configmaps,secrets,networkpolicies,roles,rolebindings,clusterroles,clusterrolebindings";
    let of = ["--all-namespaces", "--ignore-not-found", "-o=name"];
    let labelled = ["get", kinds, "-l=app.kubernetes.io/instance=cadscope"];
    cluster.kubectl(&labelled.into_iter().chain(of).collect::<Vec<_>>())
}

#[test]
#[ignore = "a Kubernetes node, and an image with FreeCAD: minutes"]
fn what_the_page_says_installs_upgrades_and_removes_cadscope_on_a_real_node() -> Result<()> {
    let folder = scratch()?;
    let (freecad, agent) = (freecad_image(folder.path())?, agent_image(folder.path(), IMAGE)?);
    let _node = require_root()?;
    let cluster = Cluster::up()?;
    for image in [freecad, agent] {
        cluster.load(&image)?;
        fs::remove_file(&image)?;
    }
    cluster.kubectl(&["create", "namespace", "cad"])?;
    cluster.apply(&jobs())?;
    let worker = until("FreeCAD in the pod", LIMIT, endless)?;
    let before = (left()?, named_uprobes());
    let clean = altered_text(worker)?;
    ensure!(clean.is_empty(), "someone else has probes in this worker: {clean:?}");
    let page = Page::read(&cluster)?;
    let prometheus = page.prometheus(&cluster)?;
    let collector = Collector::start_at(Some(cluster.network()), ADDRESS)?;

    let begin = Instant::now();
    page.run("helm install", &[]).with_context(|| describe(&cluster))?;
    let ready = begin.elapsed();
    let seconds = || begin.elapsed().as_secs() + 5;
    until("every main panel has data", LIMIT, || {
        dashboard::missing(&prometheus, seconds(), &VERSIONS).ok()?.is_empty().then_some(())
    })
    .with_context(|| {
        format!("{:?}\n{}", dashboard::missing(&prometheus, seconds(), &VERSIONS), describe(&cluster))
    })?;
    eprintln!("ready after {ready:.1?}, data in all panels after {:.1?}", begin.elapsed());
    observes(&cluster, &prometheus, worker)?;

    let old = agent_pod(&cluster)?;
    page.run("otlp.endpoint", &[("http://collector.observability:4317", &collector.grpc())])
        .with_context(|| describe(&cluster))?;
    cluster.kubectl(&["-n", "cadscope", "rollout", "status", "daemonset/cadscope", "--timeout=100s"])?;
    // Its series go on under the name of the node, from zero.
    let resets = "resets(process_cpu_seconds_total{job=\"cadscope\"}[5m])";
    until("the new agent is scraped", LIMIT, || {
        prometheus.instant(resets).ok()?.pop()?.values.pop().filter(|resets| *resets > 0.0)
    })?;
    let new = agent_pod(&cluster)?;
    ensure!(new != old, "the agent is the same: {old}");
    observes(&cluster, &prometheus, worker)?;

    page.tunnel().with_context(|| describe(&cluster))?;
    // Kubernetes of this node is older than the manifests without a component, so it is only asked what it thinks of them.
    page.run("apply -k", &[("apply -k", "apply --dry-run=server --validate=false -k")])?;

    let kept = keeps_digests(&cluster, &page, folder.path())?;
    labels(&cluster, &page, &collector)?;
    let now = digests()?;
    ensure!(now >= kept, "{now} bytes of digests; the agent before had {kept}");
    let new = agent_pod(&cluster)?;

    page.run("helm uninstall", &[])?;
    gone(&cluster, worker, &new, &before)?;
    plain(&cluster, &page, &prometheus, worker, folder.path())?;
    gone(&cluster, worker, &new, &before)?;
    page.commands.were_all_run()
}

/// The bytes that the agent in its pod has written to its one folder.
fn digests() -> Result<u64> {
    let is_agent = |pid: &str| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"/usr/bin/cadscope\0agent\0")
    };
    let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let pid = pids.into_iter().find(|pid| is_agent(pid)).context("no agent")?;
    Ok(fs::metadata(format!("/proc/{pid}/root/var/lib/cadscope/exports"))?.len())
}

/// Digests of exports are written to the pod's folder, and to one of the node where the page says so; gives how many bytes.
fn keeps_digests(cluster: &Cluster, page: &Page, folder: &Path) -> Result<u64> {
    // More than the head of the file.
    let written = || digests().ok().filter(|bytes| *bytes > 16);
    until("digests of exports in the pod", LIMIT, written).with_context(|| describe(cluster))?;
    let of_node = folder.join("digests");
    page.run("state.hostPath", &[("/var/lib/cadscope", of_node.to_str().context("path")?)])?;
    cluster.kubectl(&["-n", "cadscope", "rollout", "status", "daemonset/cadscope", "--timeout=100s"])?;
    let kept = until("digests of exports on the node", LIMIT, written).with_context(|| describe(cluster))?;
    let log = cluster.kubectl(&["-n", "cadscope", "logs", "daemonset/cadscope"])?;
    ensure!(!log.contains("not kept beyond this run"), "{log}");
    Ok(kept)
}

/// Spans have the labels of their pod, also those of a pod made anew under the same name; the agent may get pods only.
fn labels(cluster: &Cluster, page: &Page, collector: &Collector) -> Result<()> {
    // No kube-proxy leads to the service's own address here.
    let reached = format!(
        "spanPodLabels=true --set-string extraEnv[0].name=KUBERNETES_SERVICE_HOST,extraEnv[0].value={ADDRESS} \
         --set-string extraEnv[1].name=KUBERNETES_SERVICE_PORT,extraEnv[1].value=6443"
    );
    page.run("spanPodLabels", &[("spanPodLabels=true", &reached)]).with_context(|| describe(cluster))?;
    cluster.kubectl(&["-n", "cadscope", "rollout", "status", "daemonset/cadscope", "--timeout=100s"])?;
    for (verb, kind, may) in [("get", "pods", "yes"), ("list", "pods", "no"), ("get", "secrets", "no")] {
        let who = "--as=system:serviceaccount:cadscope:cadscope";
        let script = ["auth", "can-i", verb, kind, "-n", "cad", who];
        // It fails where the answer is no.
        let answer = cluster.kubectl(&script).unwrap_or_else(|error| format!("{error:#}"));
        ensure!(answer.split_whitespace().last() == Some(may), "{verb} {kind}: {answer}");
    }
    for team in ["one", "two"] {
        cluster.apply(&plate(team))?;
        let named =
            |span: &Span, key: &str, value: &str| span.resource.get(key).is_some_and(|found| found == value);
        collector
            .spans_when(&format!("spans of team {team}"), LIMIT, |spans| {
                spans.iter().any(|span| {
                    named(span, "k8s.pod.name", "plate")
                        && named(span, "k8s.pod.label.team", team)
                        && named(span, "k8s.pod.label.example.com/part", "plate")
                        && span.attributes.contains_key("cad.outcome")
                })
            })
            .with_context(|| describe(cluster))?;
        cluster.kubectl(&["-n", "cad", "delete", "pod", "plate", "--wait=true"])?;
    }
    // No pod was ever taken for its successor.
    let mut teams: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for span in collector.spans() {
        if let (Some(uid), Some(team)) =
            (span.resource.get("k8s.pod.uid"), span.resource.get("k8s.pod.label.team"))
        {
            teams.entry(uid.clone()).or_default().insert(team.clone());
        }
    }
    ensure!(teams.len() == 2 && teams.values().all(|teams| teams.len() == 1), "{teams:?}");
    Ok(())
}

/// The new agent sees the worker in the other pod, under its names, and has probes in it.
fn observes(cluster: &Cluster, prometheus: &Prometheus, worker: u32) -> Result<()> {
    let query = "sum by (namespace, pod, container, instance) (freecad_worker_resident_memory_bytes{freecad_version=\"1.1.3\"})";
    let rate = "sum(rate(occt_boolean_duration_seconds_count{operation=\"cut\"}[5s]))";
    let series = until("cuts of the pod", LIMIT, || {
        let rises = prometheus.instant(rate).ok()?.pop()?.values.pop()? > 0.0;
        prometheus.instant(query).ok()?.pop().filter(|_| rises)
    })
    .with_context(|| describe(cluster))?;
    for (label, value) in
        [("namespace", "cad"), ("pod", "gear"), ("container", "worker"), ("instance", "node1")]
    {
        ensure!(series.labels.get(label).is_some_and(|found| found == value), "{label}: {series:?}");
    }
    ensure!(!altered_text(worker)?.is_empty(), "no probe in the worker");
    Ok(())
}

/// Nothing is left of it, in the cluster, the kernel and the worker, which goes on.
fn gone(cluster: &Cluster, worker: u32, uid: &str, before: &(Vec<BTreeSet<u64>>, Vec<String>)) -> Result<()> {
    until("the agent's pod is gone", LIMIT, || cgroups_of(uid).is_empty().then_some(()))?;
    let found = objects(cluster)?;
    ensure!(found.is_empty(), "left in the cluster: {found}");
    let of_kernel = || -> Result<bool> {
        let left = left()?.iter().zip(&before.0).all(|(now, then)| now.is_subset(then));
        Ok(left && altered_text(worker)?.is_empty() && named_uprobes() == before.1)
    };
    until("no program, map, link or probe is left", Duration::from_secs(30), || {
        of_kernel().ok()?.then_some(())
    })
    .with_context(|| format!("{:?}: {:?}", left(), altered_text(worker)))?;
    ensure!(endless() == Some(worker), "the worker did not live through it");
    Ok(())
}

/// The same by the plain manifests.
fn plain(cluster: &Cluster, page: &Page, prometheus: &Prometheus, worker: u32, folder: &Path) -> Result<()> {
    let kustomization = folder.join("plain");
    fs::create_dir(&kustomization)?;
    let up = "../".repeat(kustomization.components().count() - 1);
    let checkout = deploy().join("..").canonicalize()?;
    let checkout = format!("{up}{}", checkout.display().to_string().trim_start_matches('/'));
    let example = page.blocks.iter().find(|block| block.text.contains("components:"));
    let example = example.context("no kustomization on the page")?;
    let text = example.text.replace("../cadscope", &checkout).replace("registry.example", "localhost");
    fs::write(kustomization.join("kustomization.yaml"), text)?;
    let manifests = kustomize(&kustomization)?;
    cluster.apply(&manifests)?;
    let file = folder.join("plain.yaml");
    fs::write(&file, &manifests)?;
    cluster
        .kubectl(&["-n", "cadscope", "rollout", "status", "daemonset/cadscope", "--timeout=100s"])
        .with_context(|| describe(cluster))?;
    observes(cluster, prometheus, worker)?;
    cluster.kubectl(&["delete", "--wait=true", "-f", file.to_str().context("path")?])?;
    Ok(())
}
