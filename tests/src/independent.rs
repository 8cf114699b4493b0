//! Counts entries of FreeCAD's and OCCT's functions by another way than cadscope's: bpftrace.
//!
//! It counts all calls on the node in the installed files, whoever makes them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::node;
use crate::run::{self, Running};

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

/// bpftrace, counting.
#[derive(Debug)]
pub struct Count {
    child: Running,
    folder: tempfile::TempDir,
}

impl Count {
    /// Starts counting; returns when all its probes are in place.
    ///
    /// # Errors
    /// bpftrace is missing or cannot attach; says what it said.
    pub fn start() -> Result<Self> {
        let bpftrace = node::tool("bpftrace", "bpftrace")?;
        let folder = node::scratch()?;
        let ready = folder.path().join("ready"); // BEGIN runs when all is attached; its own output is buffered
        let mut script = format!("BEGIN {{ system(\"touch {}\"); }}\n", ready.display());
        for (index, (_, library, site, key)) in COUNTED.iter().enumerate() {
            script += &format!("uprobe:{library}/{site} {{ @c{index}[(int64)({key})] = count(); }}\n");
        }
        let file = folder.path().join("count.bt");
        fs::write(&file, script)?;
        let child = Command::new(bpftrace)
            .args(["--unsafe", "-f", "json", "-o"])
            .arg(folder.path().join("counts"))
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(folder.path().join("errors"))?)
            .spawn()?;
        let child = Running(child);
        let started = run::until("bpftrace", Duration::from_secs(60), || ready.exists().then_some(()));
        started.with_context(|| run::text(&folder.path().join("errors")))?;
        Ok(Self { child, folder })
    }

    /// Stops counting. Keys: `boolean union|cut|common|section`, `split`, `fillet`, `chamfer`, `recompute`, `object`,
    /// `created`.
    ///
    /// # Errors
    /// bpftrace does not end or gave no counts.
    pub fn end(mut self) -> Result<BTreeMap<String, f64>> {
        self.child.interrupt()?;
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
