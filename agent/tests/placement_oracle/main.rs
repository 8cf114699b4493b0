//! The sites of every function of the real libraries, judged by the processor: each function is run instruction by
//! instruction from several states, and an entry must be reached once with nothing changed, an exit once with nothing
//! after it but the end, both with the slot where it is.
//!
//! A sample of the functions of FreeCAD 0.20.2 and OCCT 7.6.3 (`freecad-python3`, which `cargo xtask setup` installs) is
//! judged each time; with `CADSCOPE_FULL=1` every function of every library, of the other builds too, or with
//! `CADSCOPE_STEP=N` every N-th.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test"
)]
#![allow(unreachable_pub, missing_docs, reason = "modules of a test")]

use std::path::{Path, PathBuf};

use cadscope::resolve::{ElfFile, Sites};

use self::image::{Function, Image};
use self::trial::Oracle;

mod image;
mod processor;
mod trial;

/// Of so many functions one is judged, unless all are.
const SAMPLE: usize = 97;
const LIBRARIES: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu/libTKMath.so.7.6.3",
    "/usr/lib/x86_64-linux-gnu/libTKBO.so.7.6.3",
    "/usr/lib/x86_64-linux-gnu/libTKFillet.so.7.6.3",
    "/usr/lib/x86_64-linux-gnu/libTKSTEP.so.7.6.3",
    "/usr/lib/freecad-python3/lib/libFreeCADApp.so",
    "/usr/lib/freecad-python3/lib/Part.so",
];

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    functions: usize,
    placed: usize,
    exits: usize,
    entries_confirmed: usize,
    exits_confirmed: usize,
    runs: usize,
    wrong: usize,
}

fn is_full() -> bool {
    std::env::var("CADSCOPE_FULL").is_ok_and(|value| value == "1")
}

/// Judges every `step`-th function of a file.
fn judge(path: &Path, step: usize, wrong: &mut Vec<String>) -> Tally {
    let image = Image::read(path);
    let file = ElfFile::parse(&image.bytes).unwrap();
    let mut oracle = Oracle::new(&image);
    let mut tally = Tally::default();
    for Function { name, vaddr } in image.functions.iter().step_by(step) {
        tally.functions += 1;
        let Ok(sites) = file.place(name) else { continue };
        tally.placed += 1;
        tally.exits += sites.exits.len();
        match oracle.judge(*vaddr, &sites) {
            Ok(verdict) => {
                tally.entries_confirmed += usize::from(verdict.entry_confirmed);
                tally.exits_confirmed += verdict.exits_confirmed;
            }
            Err(reason) => {
                tally.wrong += 1;
                wrong.push(format!("{}: {name} at {vaddr:#x}: {reason}; {sites:x?}", path.display()));
            }
        }
    }
    tally.runs = oracle.runs;
    tally
}

/// Libraries below a folder whose functions an agent would probe.
fn libraries(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let name = entry.file_name().to_string_lossy().into_owned();
        // Code of another machine is judged by `resolve_arm64`.
        if kind.is_dir() && !name.starts_with("arm64") {
            libraries(&path, found);
        } else if kind.is_file()
            && name.contains(".so")
            && (name.starts_with("libTK")
                || name.starts_with("libFreeCAD")
                || name.starts_with("OCP.")
                || folder.ends_with("freecad-python3/lib"))
        {
            found.push(path);
        }
    }
}

#[test]
fn every_site_marks_what_the_processor_does() {
    let mut paths: Vec<PathBuf> = LIBRARIES.iter().map(PathBuf::from).collect();
    if let Some(only) = std::env::var_os("CADSCOPE_LIBRARY") {
        paths = vec![only.into()];
    } else if is_full() {
        paths.clear();
        for folder in ["/usr/lib/x86_64-linux-gnu", "/usr/lib/freecad-python3"] {
            libraries(Path::new(folder), &mut paths);
        }
        if let Some(builds) = std::env::var_os("CADSCOPE_BUILDS") {
            libraries(Path::new(&builds), &mut paths);
        }
    }
    let asked = std::env::var("CADSCOPE_STEP").map(|step| step.parse().expect("a number"));
    let step = asked.unwrap_or(if is_full() { 1 } else { SAMPLE });
    let (mut wrong, mut all) = (Vec::new(), Tally::default());
    for path in &paths {
        assert!(path.is_file(), "{} is not there: apt-get install freecad-python3", path.display());
        let tally = judge(path, step, &mut wrong);
        println!("{}: {tally:?}", path.display());
        all.functions += tally.functions;
        all.placed += tally.placed;
        all.exits += tally.exits;
        all.entries_confirmed += tally.entries_confirmed;
        all.exits_confirmed += tally.exits_confirmed;
        all.runs += tally.runs;
    }
    println!("{} libraries: {all:?}", paths.len());
    assert!(wrong.is_empty(), "{} of {} functions are wrong:\n{}", wrong.len(), all.placed, wrong.join("\n"));
    assert!(all.entries_confirmed * 100 > all.placed * 90, "too few entries were reached: {all:?}");
    assert!(all.exits_confirmed * 100 > all.exits * 30, "too few exits were reached: {all:?}");
}

/// Each kind of mistake that a rule of placement could make.
type Fault = (&'static str, fn(&mut Sites, &ElfFile<'_>));

const FAULTS: [Fault; 6] = [
    ("a distance that is wrong by a word at the entry", |sites, _| sites.entry.distance += 8),
    ("a distance that is wrong by a word at an exit", |sites, _| {
        for (site, _) in &mut sites.exits {
            site.distance -= 8;
        }
    }),
    ("an exit that is not seen", |sites, _| drop(sites.exits.pop())),
    ("an exit at the entry", |sites, _| {
        let entry = sites.entry;
        for (site, _) in &mut sites.exits {
            (site.vaddr, site.distance, site.base) = (entry.vaddr, entry.distance, entry.base);
        }
    }),
    ("a returned value in a register that has another", |sites, _| {
        for (site, _) in &mut sites.exits {
            site.return_register = 4;
        }
    }),
    ("an entry at an exit", |sites, _| {
        if let Some((site, _)) = sites.exits.first() {
            sites.entry = *site;
        }
    }),
];

#[test]
fn a_rule_that_places_wrongly_is_caught() {
    let path = Path::new(LIBRARIES[0]);
    let image = Image::read(path);
    let file = ElfFile::parse(&image.bytes).unwrap();
    let mut oracle = Oracle::new(&image);
    // Functions whose sites the processor has confirmed, all of them.
    let mut confirmed = Vec::new();
    for function in image.functions.iter().step_by(SAMPLE / 2) {
        if let Ok(sites) = file.place(&function.name)
            && oracle.judge(function.vaddr, &sites).is_ok_and(|verdict| {
                verdict.entry_confirmed
                    && verdict.exits_confirmed == sites.exits.len()
                    && !sites.exits.is_empty()
            })
        {
            confirmed.push((function, sites));
        }
    }
    assert!(confirmed.len() >= 20, "only {} functions are confirmed", confirmed.len());
    for (name, fault) in FAULTS {
        let mut caught = 0;
        for (function, sites) in &confirmed {
            let mut wrong = sites.clone();
            fault(&mut wrong, &file);
            caught += usize::from(oracle.judge(function.vaddr, &wrong).is_err());
        }
        println!("{name}: caught in {caught} of {} functions", confirmed.len());
        assert!(
            caught * 10 >= confirmed.len() * 6,
            "{name}: caught in {caught} of {} functions",
            confirmed.len()
        );
    }
}
