//! Promise: FreeCAD's own test suite gives the same result while it is watched, and the operations counted for it are
//! those that an independent observer counts at the same functions in the same run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::agent::Agent;
use cadscope_tests::metrics::Metrics;
use cadscope_tests::{freecad, node, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const OCCT: &str = "/usr/lib/x86_64-linux-gnu";
const FREECAD: &str = "/usr/lib/freecad-python3/lib";

/// bpftrace counts entries of these functions, by a key.
const COUNTED: [(&str, &str, &str, &str); 8] = [
    (
        "boolean",
        OCCT,
        "libTKBO.so.7.6.3:_ZN28BRepAlgoAPI_BooleanOperation5BuildERK21Message_ProgressRange",
        "*(int32*)(arg0+0x100)",
    ),
    ("split", OCCT, "libTKBO.so.7.6.3:_ZN23BRepAlgoAPI_BuilderAlgo5BuildERK21Message_ProgressRange", "0"),
    ("split", OCCT, "libTKBO.so.7.6.3:_ZN20BRepAlgoAPI_Splitter5BuildERK21Message_ProgressRange", "0"),
    (
        "fillet",
        OCCT,
        "libTKFillet.so.7.6.3:_ZN24BRepFilletAPI_MakeFillet5BuildERK21Message_ProgressRange",
        "0",
    ),
    (
        "chamfer",
        OCCT,
        "libTKFillet.so.7.6.3:_ZN25BRepFilletAPI_MakeChamfer5BuildERK21Message_ProgressRange",
        "0",
    ),
    (
        "recompute",
        FREECAD,
        "libFreeCADApp.so:_ZN3App8Document9recomputeERKSt6vectorIPNS_14DocumentObjectESaIS3_EEbPbi",
        "0",
    ),
    ("object", FREECAD, "libFreeCADApp.so:_ZN3App8Document17_recomputeFeatureEPNS_14DocumentObjectE", "0"),
    ("created", FREECAD, "libFreeCADApp.so:_ZN3App8Document9addObjectEPKcS2_bS2_b", "arg3 & 0xff"),
];

/// The same from /metrics, with the keys that bpftrace has. Both see every worker of these files on the node.
fn from_metrics(metrics: &Metrics) -> BTreeMap<String, f64> {
    let mut counts = BTreeMap::new();
    let mut add = |key: &str, value: f64| {
        if value > 0.0 {
            counts.insert(key.to_owned(), value);
        }
    };
    let boolean = |operation| metrics.sum("occt_boolean_duration_seconds_count", &[("operation", operation)]);
    for (key, operation) in [
        ("boolean common", "common"),
        ("boolean union", "union"),
        ("boolean cut", "cut"),
        ("boolean section", "section"),
    ] {
        add(key, boolean(operation));
    }
    add("split", boolean("split"));
    for feature in ["fillet", "chamfer"] {
        add(feature, metrics.sum("occt_feature_duration_seconds_count", &[("feature", feature)]));
    }
    add("recompute", metrics.sum("freecad_recompute_duration_seconds_count", &[]));
    add("object", metrics.sum("freecad_object_recompute_duration_seconds_count", &[]));
    add("created", metrics.sum("freecad_object_created_total", &[]));
    counts
}

struct Independent {
    child: std::process::Child,
    folder: tempfile::TempDir,
}

impl Independent {
    fn start() -> Result<Self> {
        let bpftrace = node::tool("bpftrace", "bpftrace")?;
        let folder = node::scratch()?;
        let mut script = String::from("BEGIN { printf(\"ready\\n\"); }\n");
        for (index, (_, library, site, key)) in COUNTED.iter().enumerate() {
            script += &format!("uprobe:{library}/{site} {{ @c{index}[(int64)({key})] = count(); }}\n");
        }
        let file = folder.path().join("count.bt");
        fs::write(&file, script)?;
        let child = Command::new(bpftrace)
            .args(["-f", "json", "-o"])
            .arg(folder.path().join("counts"))
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(folder.path().join("errors"))?)
            .spawn()?;
        let counts = folder.path().join("counts");
        let started = run::until("bpftrace", Duration::from_secs(60), || {
            run::text(&counts).contains("ready").then_some(())
        });
        started.with_context(|| run::text(&folder.path().join("errors")))?;
        Ok(Self { child, folder })
    }

    fn end(mut self) -> Result<BTreeMap<String, f64>> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT)?;
        run::wait(&mut self.child, Duration::from_secs(60))?;
        read_counts(&self.folder.path().join("counts"))
    }
}

fn read_counts(path: &Path) -> Result<BTreeMap<String, f64>> {
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string(path)?.lines() {
        let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let Some(maps) = line
            .get("data")
            .filter(|_| line.get("type").is_some_and(|t| t == "map"))
            .and_then(|d| d.as_object())
        else {
            continue;
        };
        for (map, values) in maps {
            let index: usize = map.trim_start_matches("@c").parse()?;
            let name = COUNTED.get(index).context("unknown map")?.0;
            for (key, count) in values.as_object().context("no keyed map")? {
                let key = match (name, key.as_str()) {
                    ("boolean", "0") => "boolean common".to_owned(),
                    ("boolean", "1") => "boolean union".to_owned(),
                    ("boolean", "2" | "3") => "boolean cut".to_owned(),
                    ("boolean", "4") => "boolean section".to_owned(),
                    ("created", "0") => continue, // restored from a file, not created
                    _ => name.to_owned(),
                };
                *counts.entry(key).or_insert(0.0) += count.as_f64().context("no count")?;
            }
        }
    }
    Ok(counts)
}

#[test]
fn freecads_own_suite_gives_the_same_result_and_its_operations_are_all_counted() -> Result<()> {
    let _node = node::require_root()?;
    let alone = freecad::suite()?;
    let agent = Agent::start::<&str>(&[])?;
    // The libraries become known with a first job; from then on nothing may be missed.
    freecad::Job::new("operations.py")?.run(Duration::from_secs(60))?;
    let known = agent.metrics_when(Duration::from_secs(20), |m| from_metrics(m).contains_key("recompute"))?;
    ensure!(
        from_metrics(&known).contains_key("recompute"),
        "FreeCAD is not observed; agent:\n{}",
        agent.log()
    );
    freecad::Job::new("operations.py")?.run(Duration::from_secs(60))?;
    std::thread::sleep(Duration::from_secs(2));

    let before = from_metrics(&agent.metrics()?);
    let independent = Independent::start()?;
    let watched = freecad::suite()?;
    std::thread::sleep(Duration::from_secs(2));
    let after = from_metrics(&agent.metrics()?);
    let expected = independent.end()?;

    ensure!(watched == alone, "the suite's result differs: {watched:?}, alone {alone:?}");
    let counted: BTreeMap<String, f64> = after
        .iter()
        .map(|(key, n)| (key.clone(), n - before.get(key).copied().unwrap_or(0.0)))
        .filter(|(_, n)| *n != 0.0)
        .collect();
    eprintln!("{} tests, {}; {expected:?}", watched.ran, watched.verdict);
    ensure!(expected.len() >= 5, "bpftrace counted next to nothing: {expected:?}");
    ensure!(counted == expected, "cadscope counted {counted:?}, bpftrace {expected:?}");
    Ok(())
}
