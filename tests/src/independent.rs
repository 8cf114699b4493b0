//! Counts entries of FreeCAD's and OCCT's functions by another way than cadscope's: bpftrace.
//!
//! It counts all calls on the node in the files it is told, whoever makes them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::node;
use crate::run::{self, Running};

const OCCT: &str = "/usr/lib/x86_64-linux-gnu";
const FREECAD: &str = "/usr/lib/freecad-python3/lib";

/// What of the installed files is counted: a key, the library and the function, and what tells calls apart.
const INSTALLED: [(&str, &str, &str, &str, &str); 9] = [
    ("boolean", OCCT, "libTKBO.so.7.6.3", BOOLEAN, KIND),
    ("split", OCCT, "libTKBO.so.7.6.3", FUSE, "0"),
    ("split", OCCT, "libTKBO.so.7.6.3", SPLIT, "0"),
    ("fillet", OCCT, "libTKFillet.so.7.6.3", FILLET, "0"),
    ("chamfer", OCCT, "libTKFillet.so.7.6.3", CHAMFER, "0"),
    (
        "recompute",
        FREECAD,
        "libFreeCADApp.so",
        "_ZN3App8Document9recomputeERKSt6vectorIPNS_14DocumentObjectESaIS3_EEbPbi",
        "0",
    ),
    ("object", FREECAD, "libFreeCADApp.so", "_ZN3App8Document17_recomputeFeatureEPNS_14DocumentObjectE", "0"),
    ("created", FREECAD, "libFreeCADApp.so", "_ZN3App8Document9addObjectEPKcS2_bS2_b", "arg3 & 0xff"),
    ("created", FREECAD, "libFreeCADApp.so", "_ZN3App8Document9addObjectEPNS_14DocumentObjectEPKc", "1"),
];

const BOOLEAN: &str = "_ZN28BRepAlgoAPI_BooleanOperation5BuildERK21Message_ProgressRange";
const KIND: &str = "*(int32*)(arg0+0x100)";
const FUSE: &str = "_ZN23BRepAlgoAPI_BuilderAlgo5BuildERK21Message_ProgressRange";
const SPLIT: &str = "_ZN20BRepAlgoAPI_Splitter5BuildERK21Message_ProgressRange";
const FILLET: &str = "_ZN24BRepFilletAPI_MakeFillet5BuildERK21Message_ProgressRange";
const CHAMFER: &str = "_ZN25BRepFilletAPI_MakeChamfer5BuildERK21Message_ProgressRange";

/// What of a wheel is counted: a key, how the library's name begins, the function, and what tells calls apart. All of
/// them are named so in every version, and none is called inside another feature.
const WHEEL: [(&str, &str, &str, &str); 11] = [
    ("boolean", "libTKBO-", BOOLEAN, KIND),
    ("split", "libTKBO-", FUSE, "0"),
    ("split", "libTKBO-", SPLIT, "0"),
    ("fillet", "libTKFillet-", FILLET, "0"),
    ("chamfer", "libTKFillet-", CHAMFER, "0"),
    ("loft", "libTKOffset-", "_ZN26BRepOffsetAPI_ThruSections5BuildERK21Message_ProgressRange", "0"),
    ("prism", "libTKPrim-", "_ZN15BRepSweep_PrismC1ERK12TopoDS_ShapeRK6gp_Vecbb", "0"),
    ("prism", "libTKPrim-", "_ZN15BRepSweep_PrismC1ERK12TopoDS_ShapeRK6gp_Dirbbb", "0"),
    ("revolution", "libTKPrim-", "_ZN15BRepSweep_RevolC1ERK12TopoDS_ShapeRK6gp_Ax1db", "0"),
    ("revolution", "libTKPrim-", "_ZN15BRepSweep_RevolC1ERK12TopoDS_ShapeRK6gp_Ax1b", "0"),
    (
        "mesh",
        "libTKMesh-",
        "_ZN24BRepMesh_IncrementalMesh7PerformERKN11opencascade6handleI18IMeshTools_ContextEERK21Message_ProgressRange",
        "0",
    ),
];

/// An entry that is counted.
#[derive(Clone, Debug)]
struct Counted {
    name: &'static str,
    library: PathBuf,
    symbol: &'static str,
    key: &'static str,
}

/// bpftrace, counting.
#[derive(Debug)]
pub struct Count {
    child: Running,
    folder: tempfile::TempDir,
    names: Vec<&'static str>,
}

impl Count {
    /// Starts counting in the installed FreeCAD and OCCT; returns when all its probes are in place.
    ///
    /// # Errors
    /// bpftrace is missing or cannot attach; says what it said.
    pub fn start() -> Result<Self> {
        let counted = INSTALLED.iter().map(|(name, folder, library, symbol, key)| Counted {
            name,
            library: Path::new(folder).join(library),
            symbol,
            key,
        });
        Self::of(&counted.collect::<Vec<_>>())
    }

    /// The same in the libraries of a wheel.
    ///
    /// # Errors
    /// As above, or a library is not there.
    pub fn start_in_wheel(libraries: &[PathBuf]) -> Result<Self> {
        let counted = WHEEL.iter().map(|(name, library, symbol, key)| {
            let named = |path: &&PathBuf| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(library))
            };
            let library = libraries.iter().find(named).with_context(|| format!("no {library}"))?.clone();
            Ok(Counted { name, library, symbol, key })
        });
        Self::of(&counted.collect::<Result<Vec<_>>>()?)
    }

    /// The same of single functions: a key, the file, the mangled name.
    ///
    /// # Errors
    /// As above.
    pub fn start_of(counted: &[(&'static str, PathBuf, &'static str)]) -> Result<Self> {
        let counted = counted.iter().map(|(name, library, symbol)| Counted {
            name,
            library: library.clone(),
            symbol,
            key: "0",
        });
        Self::of(&counted.collect::<Vec<_>>())
    }

    fn of(counted: &[Counted]) -> Result<Self> {
        let bpftrace = node::tool("bpftrace", "bpftrace")?;
        let folder = node::scratch()?;
        let ready = folder.path().join("ready"); // BEGIN runs when all is attached; its own output is buffered
        let mut script = format!("BEGIN {{ system(\"touch {}\"); }}\n", ready.display());
        for (index, Counted { library, symbol, key, .. }) in counted.iter().enumerate() {
            let library = library.display();
            script += &format!("uprobe:{library}:{symbol} {{ @c{index}[(int64)({key})] = count(); }}\n");
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
        Ok(Self { child, folder, names: counted.iter().map(|counted| counted.name).collect() })
    }

    /// Stops counting. Keys: `boolean union|cut|common|section`, and the keys above.
    ///
    /// # Errors
    /// bpftrace does not end or gave no counts.
    pub fn end(mut self) -> Result<BTreeMap<String, f64>> {
        self.child.interrupt()?;
        read_counts(&self.folder.path().join("counts"), &self.names)
    }
}

fn read_counts(path: &Path, names: &[&str]) -> Result<BTreeMap<String, f64>> {
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
            let name = *names.get(index).context("unknown map")?;
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
