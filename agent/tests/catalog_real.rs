//! The built-in catalogue and the version finder against the FreeCAD and OCCT of this machine.
//!
//! Needs Debian's `freecad-python3`; says so and passes without it, except in CI, where that is a failure.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in test functions, but not in what they call")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cadscope::catalog::Catalog;
use cadscope::identify::{
    FREECAD_CONFIG_SYMBOL, Versions, freecad_version_from_dpkg_status, occt_version_from_file_name,
    versions_from_config,
};
use object::{Object, ObjectSymbol};

const OCCT_DIRECTORY: &str = "/usr/lib/x86_64-linux-gnu";
const FREECAD_DIRECTORY: &str = "/usr/lib/freecad-python3/lib";

fn installed_freecad() -> Option<String> {
    let status = fs::read_to_string("/var/lib/dpkg/status").unwrap_or_default();
    let version = freecad_version_from_dpkg_status(&status);
    if version.is_none() {
        assert!(std::env::var_os("CI").is_none(), "freecad-python3 is not installed");
        eprintln!("skipped: freecad-python3 is not installed");
    }
    version
}

fn files(directory: &str, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .filter(|path| !path.is_symlink() && wanted(&path.file_name().unwrap().to_string_lossy()))
        .collect()
}

fn defined_symbols(path: &Path) -> Vec<(String, u64)> {
    let bytes = fs::read(path).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let defined = file.dynamic_symbols().filter(|symbol| !symbol.is_undefined());
    defined.map(|symbol| (symbol.name().unwrap().to_owned(), symbol.address())).collect()
}

#[test]
fn every_probe_is_found_in_the_installed_libraries() {
    let Some(freecad) = installed_freecad() else { return };
    let mut paths = files(OCCT_DIRECTORY, |name| occt_version_from_file_name(name).is_some());
    assert!(paths.len() > 20, "{paths:?}");
    paths.extend(files(FREECAD_DIRECTORY, |name| name.ends_with(".so")));
    let defined: BTreeSet<String> =
        paths.iter().flat_map(|path| defined_symbols(path)).map(|(name, _)| name).collect();
    let catalog = Catalog::builtin().unwrap();
    // What is not there has to say why a build may lack it; `tests/tests/coverage.rs` compares each build's libraries.
    let unexplained: BTreeSet<&str> = catalog
        .probes
        .iter()
        .filter(|probe| !probe.symbols.iter().any(|symbol| defined.contains(symbol)))
        .filter(|probe| probe.absent.is_none())
        .map(|probe| probe.id.as_str())
        .collect();
    assert_eq!(unexplained, BTreeSet::new(), "FreeCAD {freecad}");
}

#[test]
fn a_changed_signature_is_found_by_class_and_method_and_says_so() {
    if installed_freecad().is_none() {
        return;
    }
    let mut catalog = Catalog::default();
    // As if the next version had taken a parameter away.
    let symbol = "_ZN28BRepAlgoAPI_BooleanOperation5BuildERK21Message_ProgressRangeb";
    let text = format!(
        "[[probe]]\nid = \"t\"\nfunction = \"f\"\nsymbols = [\"{symbol}\"]\n[[probe.layout]]\n[probe.layout.enter]\nkind = \"i32[this + 0x100]\"\n"
    );
    catalog.add(&text, "test").unwrap();
    let library = files(OCCT_DIRECTORY, |name| name.starts_with("libTKBO.so."));
    let bytes = fs::read(&library[0]).unwrap();
    let versions = cadscope::plan::Versions::default();
    let plan = cadscope::plan::plan(&bytes, &catalog, &versions).unwrap();
    let planned = &plan.probes[0];
    assert!(planned.sites.is_ok() && planned.layout().is_none(), "{planned:?}");
    let note = planned.note(&versions).unwrap();
    assert!(note.contains("BRepAlgoAPI_BooleanOperation::Build(Message_ProgressRange const&)"), "{note}");
}

struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where the dynamic symbol of a mapped file lies in the process.
fn address_of(pid: u32, symbol: &str) -> Option<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let mut firsts: Vec<(u64, PathBuf)> = maps
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let start = u64::from_str_radix(fields.next()?.split_once('-')?.0, 16).ok()?;
            let first = fields.nth(1)? == "00000000";
            let path = PathBuf::from(fields.nth(2)?);
            let is_wanted = path == exe || path.ends_with("libFreeCADApp.so");
            (first && is_wanted).then_some((start, path))
        })
        .collect();
    firsts.sort_by_key(|(_, path)| *path != exe);
    firsts.iter().find_map(|(base, path)| {
        let (_, vaddr) = defined_symbols(path).into_iter().find(|(name, _)| name == symbol)?;
        Some(base + vaddr)
    })
}

#[test]
fn a_running_freecad_tells_its_versions() {
    let Some(freecad) = installed_freecad() else { return };
    // As `cadscope_tests::node` does: an agent under test would see this worker.
    let node = fs::File::create(std::env::temp_dir().join("cadscope-tests.lock")).unwrap();
    node.lock().unwrap();
    let script = tempfile::Builder::new().suffix(".py").tempfile().unwrap();
    fs::write(script.path(), "import time\ntime.sleep(60)\n").unwrap();
    let mut command = Command::new("freecadcmd");
    command.arg(script.path()).env("QT_QPA_PLATFORM", "offscreen").stdin(Stdio::null()).stdout(Stdio::null());
    let worker = Worker(command.spawn().unwrap());
    let pid = worker.0.id();
    let deadline = Instant::now() + Duration::from_secs(30);
    let versions = loop {
        let versions = address_of(pid, FREECAD_CONFIG_SYMBOL).map(|addr| {
            let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
            versions_from_config(addr, |addr, buf| memory.read_exact_at(buf, addr).is_ok())
        });
        match versions {
            Some(versions) if !versions.occt.is_empty() => break versions,
            _ if Instant::now() > deadline => panic!("no versions: {versions:?}"),
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let kernel = files(OCCT_DIRECTORY, |name| name.starts_with("libTKernel.so."));
    let occt = occt_version_from_file_name(&kernel[0].file_name().unwrap().to_string_lossy()).unwrap();
    assert_eq!(versions, Versions { freecad, occt });
}
