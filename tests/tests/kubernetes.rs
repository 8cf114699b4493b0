//! Promise: a pod that is killed for memory inside an operation is named with it, also after it is gone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::kubernetes::{Cluster, FREECAD, freecad_image};
use cadscope_tests::node::{require_root, scratch};
use cadscope_tests::run::until;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(180);

/// A pod of which a container runs a job of `/jobs` under a memory limit, beside one that sleeps.
fn pod(name: &str, container: &str, limit: &str, command: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: cad, labels: {{app: gear}}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
    - name: sidecar
      image: localhost/busybox:1
      imagePullPolicy: Never
      command: [/bin/busybox, sleep, "3600"]
      resources: {{limits: {{memory: 32Mi}}}}
    - name: {container}
      image: {FREECAD}
      imagePullPolicy: Never
      command: {command}
      env:
        - {{name: FLOW_TYPE, value: gear}}
        - {{name: HOME, value: /tmp}}
        - {{name: QT_QPA_PLATFORM, value: offscreen}}
        - {{name: JOB_ROWS, value: "40"}}
        # Its image is new to the node: the agent takes its time.
        - {{name: JOB_WAIT, value: "5"}}
      resources: {{limits: {{memory: {limit}}}}}
"#
    )
}

/// Why the container that is not the sidecar ended.
fn reason(cluster: &Cluster, pod: &str) -> Option<String> {
    let found = cluster.kubectl(&["-n", "cad", "get", "pod", pod, "-o", "json"]).ok()?;
    let found: Value = serde_json::from_str(&found).ok()?;
    let all = found.pointer("/status/containerStatuses")?.as_array()?.clone();
    let own = all.iter().find(|status| status.get("name").is_some_and(|name| name != "sidecar"))?;
    Some(own.pointer("/state/terminated/reason")?.as_str()?.to_owned())
}

/// Runs a pod until its container has ended; then deletes it. Gives why it ended.
fn run_to_its_end(cluster: &Cluster, name: &str, manifest: &str) -> Result<String> {
    cluster.apply(manifest)?;
    let ended = until("the end of the container", LIMIT, || reason(cluster, name)).with_context(|| {
        cluster.kubectl(&["-n", "cad", "describe", "pod", name]).unwrap_or_else(|error| format!("{error:#}"))
    })?;
    cluster.kubectl(&["-n", "cad", "delete", "pod", name, "--wait=true"])?;
    Ok(ended)
}

#[test]
#[ignore = "a Kubernetes node, and an image with FreeCAD: minutes"]
fn a_pod_killed_for_memory_in_a_boolean_is_counted_under_its_name_each_time_it_is_made_anew() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let image = freecad_image(folder.path())?;
    let cluster = Cluster::up()?;
    cluster.load(&image)?;
    cluster.kubectl(&["create", "namespace", "cad"])?;
    let agent = Agent::start::<&str>(&[])?;
    let own = [("operation", "cut"), ("namespace", "cad"), ("pod", "gear"), ("container", "worker")];
    for round in 1..=2_u32 {
        let job = r#"[freecadcmd, /jobs/oom.py]"#;
        let ended = run_to_its_end(&cluster, "gear", &pod("gear", "worker", "160Mi", job))?;
        ensure!(ended == "OOMKilled", "round {round}: {ended}");
        let metrics = agent.metrics_when(LIMIT, |metrics| {
            metrics.sum("freecad_worker_oom_kills_total", &own) >= f64::from(round)
        })?;
        let kills = metrics.select("freecad_worker_oom_kills_total", &[]);
        let counted = metrics.sum("freecad_worker_oom_kills_total", &own);
        ensure!(counted == f64::from(round) && kills.len() == 1, "round {round}: {kills:?}\n{}", agent.log());
    }
    let status: Value = serde_json::from_str(&agent.get("/status")?.1)?;
    let kills = status.get("oom_kills").and_then(Value::as_array).context("oom_kills")?;
    let named = |kill: &Value| {
        [
            ("operation", "cut"),
            ("namespace", "cad"),
            ("pod", "gear"),
            ("container", "worker"),
            ("flow_type", "gear"),
        ]
        .iter()
        .all(|(key, value)| kill.get(*key).is_some_and(|found| found == value))
            && kill.get("limit_bytes").and_then(Value::as_u64) == Some(160 << 20)
    };
    ensure!(kills.len() == 2 && kills.iter().all(named), "{kills:?}");

    // The worker is a child of the container's first process, which survives it; another pod, another name.
    let child = r#"[sh, -c, "freecadcmd /jobs/oom.py; echo it ended with $?; exit 4"]"#;
    let ended = run_to_its_end(&cluster, "plate", &pod("plate", "job", "160Mi", child))?;
    let of_child = [("operation", "cut"), ("namespace", "cad"), ("pod", "plate"), ("container", "job")];
    let metrics = agent
        .metrics_when(LIMIT, |metrics| metrics.sum("freecad_worker_oom_kills_total", &of_child) >= 1.0)?;
    ensure!(metrics.sum("freecad_worker_oom_kills_total", &of_child) == 1.0, "{ended}\n{}", agent.log());
    // What is long gone is still counted, once each.
    ensure!(metrics.sum("freecad_worker_oom_kills_total", &own) == 2.0);
    ensure!(metrics.sum("freecad_worker_oom_kills_total", &[]) == 3.0);

    // A pod that is deleted in the middle of its work: told to end, and by whom, but no lack of memory.
    let slow = r#"[sh, -c, "JOB_ROWS=90 exec freecadcmd /jobs/oom.py"]"#;
    cluster.apply(&pod("slow", "worker", "4Gi", slow))?;
    until("a cut in the pod", LIMIT, || {
        let metrics = agent.metrics().ok()?;
        (metrics.sum("occt_operations_in_flight", &[("operation", "cut")]) >= 1.0).then_some(())
    })?;
    cluster.kubectl(&["-n", "cad", "delete", "pod", "slow", "--wait=true"])?;
    let killed = [("flow_type", "gear"), ("status", "killed")];
    let metrics = agent
        .metrics_when(LIMIT, |metrics| metrics.sum("model_generation_completed_total", &killed) >= 1.0)?;
    ensure!(metrics.sum("model_generation_completed_total", &killed) == 1.0, "{}", agent.log());
    ensure!(metrics.sum("freecad_worker_oom_kills_total", &[]) == 3.0);
    Ok(())
}
