//! Places probes in the arm64 libraries of FreeCAD and OCCT, as Debian ships them, and has binutils check every way out:
//! all `ret` of a function, and all jumps to other functions, are sites, and nothing else is.
//!
//! Needs the builds `arm64-bookworm` and `arm64-trixie` (`cargo xtask builds NAME`) and `binutils-aarch64-linux-gnu`
//! (`cargo xtask setup`), and fails without them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use cadscope::catalog::Catalog;
use cadscope::identify::occt_version_from_file_name;
use cadscope::plan::{Versions, plan, survey};
use cadscope::resolve::{ElfFile, Exit, FollowPolicy, Machine, Placement, SiteClass, Sites, Unreadable};

const OBJDUMP: &str = "aarch64-linux-gnu-objdump";

fn build(name: &str) -> PathBuf {
    let folder = std::env::var_os("CADSCOPE_ARM64_BUILDS").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/cadscope/builds"),
        PathBuf::from,
    );
    let build = folder.join(name);
    assert!(build.is_dir(), "{} is not there: cargo xtask builds {name}", build.display());
    build
}

/// The libraries of OCCT and FreeCAD in a build.
fn libraries(name: &str) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![build(name)]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else if !path.is_symlink() && path.file_name().unwrap().to_string_lossy().contains(".so") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// An instruction as binutils reads it: mnemonic, and where it leads if that is said.
#[derive(Debug)]
struct Line {
    mnemonic: String,
    target: Option<(u64, String)>,
}

/// All code of a file, by address.
fn code(path: &Path) -> BTreeMap<u64, Line> {
    let output = Command::new(OBJDUMP).args(["-d", "-w", "--no-show-raw-insn"]).arg(path).output();
    let output =
        output.unwrap_or_else(|error| panic!("{OBJDUMP}: {error}: binutils-aarch64-linux-gnu is needed"));
    let mut code = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((address, text)) = line.split_once(":\t") else { continue };
        let Ok(address) = u64::from_str_radix(address.trim(), 16) else { continue };
        let mut words = text.split_whitespace();
        let mnemonic = words.next().unwrap_or_default().to_owned();
        // `b.hi  1234 <name+0x10>  // b.pmore`
        let target = text.split_once('<').and_then(|(before, rest)| {
            let address = u64::from_str_radix(before.split_whitespace().last()?, 16).ok()?;
            Some((address, rest.split_once('>')?.0.to_owned()))
        });
        code.insert(address, Line { mnemonic, target });
    }
    assert!(!code.is_empty(), "{} has no code", path.display());
    code
}

/// What a function of this address and size must have: (its returns, its jumps to other functions' first instructions).
fn ways_out(code: &BTreeMap<u64, Line>, start: u64, size: u64) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let (mut returns, mut jumps) = (BTreeSet::new(), BTreeSet::new());
    let body = start..start + size;
    for (address, line) in code.range(body.clone()) {
        let leaves = |target: &(u64, String)| !body.contains(&target.0) && !target.1.contains("+0x");
        match line.mnemonic.as_str() {
            "ret" | "retaa" | "retab" => drop(returns.insert(*address)),
            "b" if line.target.as_ref().is_some_and(leaves) => drop(jumps.insert(*address)),
            _ => {}
        }
    }
    (returns, jumps)
}

/// Compares one function. The operation ends at every jump, so that each is a site.
fn check(code: &BTreeMap<u64, Line>, start: u64, size: u64, sites: &Sites) -> Result<(), String> {
    let (returns, jumps) = ways_out(code, start, size);
    let body = start..start + size;
    let of = |wanted: fn(&Exit) -> bool| -> BTreeSet<u64> {
        sites.exits.iter().filter(|(_, exit)| wanted(exit)).map(|(site, _)| site.vaddr.0).collect()
    };
    let own =
        |all: BTreeSet<u64>| -> BTreeSet<u64> { all.into_iter().filter(|at| body.contains(at)).collect() };
    let found = of(|exit| matches!(exit, Exit::Return));
    if own(found.clone()) != returns {
        return Err(format!("returns {found:x?}, binutils {returns:x?}"));
    }
    if let Some(wrong) = found.iter().find(|at| code.get(at).is_none_or(|line| line.mnemonic != "ret")) {
        return Err(format!("{wrong:x} is no return"));
    }
    let found = own(of(|exit| matches!(exit, Exit::TailCall(_))));
    let direct: BTreeSet<u64> =
        found.iter().copied().filter(|at| code.get(at).is_some_and(|line| line.mnemonic != "br")).collect();
    // A jump to a function that has no symbol is a tail call too; binutils names what lies before it.
    if let Some(missed) = jumps.iter().find(|at| !direct.contains(at)) {
        return Err(format!("jump at {missed:x} is no site"));
    }
    if let Some(wrong) = direct.iter().find(|at| code.get(at).is_none_or(|line| line.mnemonic != "b")) {
        return Err(format!("{wrong:x} is no jump"));
    }
    let entry = code.get(&sites.entry.vaddr.0).ok_or("the entry is no instruction")?;
    if !body.contains(&sites.entry.vaddr.0) || entry.mnemonic.starts_with("ret") && returns.len() > 1 {
        return Err(format!("the entry is at {:x}", sites.entry.vaddr.0));
    }
    Ok(())
}

/// Every exported function of a library; returns (placed, refused by reason).
fn compare(path: &Path) -> (usize, BTreeMap<String, Vec<String>>) {
    let bytes = std::fs::read(path).unwrap();
    let file = ElfFile::parse(&bytes).unwrap();
    assert_eq!(file.machine(), Machine::Arm64);
    let code = code(path);
    let (mut placed, mut refused) = (0, BTreeMap::<String, Vec<String>>::new());
    let (mut wrong, mut exits, mut emulated) = (Vec::new(), 0, 0);
    for name in file.exported_names() {
        match file.place_with(name, FollowPolicy::Never, Placement::ReturnFinal, &[]) {
            Ok(sites) => {
                placed += 1;
                exits += sites.exits.len();
                emulated += usize::from(sites.entry.class == SiteClass::Emulated);
                assert!(sites.exits.iter().all(|(site, _)| site.class == SiteClass::Emulated), "{name}");
                let symbol = file.find(name).unwrap();
                if let Err(error) = check(&code, symbol.vaddr.0, symbol.size, &sites) {
                    wrong.push(format!("{name}: {error}"));
                }
            }
            Err(error) => {
                let why = format!("{error:?}");
                refused.entry(why.split('(').next().unwrap().to_owned()).or_default().push(name.to_owned());
            }
        }
    }
    println!("{}: {placed} placed, entry emulated in {emulated}, {exits} exits", path.display());
    for (why, names) in &refused {
        println!("    {why}: {} e.g. {:?}", names.len(), &names[..names.len().min(3)]);
    }
    assert!(
        wrong.is_empty(),
        "{}: {}\n{}",
        path.display(),
        wrong.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
    (placed, refused)
}

/// Of the libraries whose names contain one of these.
fn compare_all(name: &str, wanted: &[&str]) {
    let (mut placed, mut refused) = (0, 0);
    for path in libraries(name) {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        if wanted.iter().any(|wanted| file.contains(wanted)) {
            let (some, reasons) = compare(&path);
            placed += some;
            refused += reasons.values().map(Vec::len).sum::<usize>();
        }
    }
    println!("{name}: {placed} placed, {refused} refused");
    assert!(placed > 1000 && refused * 50 < placed, "{placed} placed, {refused} refused");
}

#[test]
fn ways_out_of_arm64_functions_are_those_that_binutils_sees() {
    compare_all("arm64-bookworm", &["libTKBO.so", "libTKFillet.so"]);
    compare_all("arm64-trixie", &["libTKBO.so"]);
}

#[test]
#[ignore = "reads every library: a minute or two"]
fn ways_out_of_all_arm64_functions_are_those_that_binutils_sees() {
    compare_all("arm64-bookworm", &["."]);
    compare_all("arm64-trixie", &["."]);
}

/// In a worker under an emulator, for instance.
#[test]
#[cfg(target_arch = "x86_64")]
fn nothing_is_attached_to_code_of_another_machine() {
    let library =
        libraries("arm64-bookworm").into_iter().find(|path| path.ends_with("libTKBO.so.7.6.3")).unwrap();
    let bytes = std::fs::read(library).unwrap();
    let survey = survey(&bytes, &Catalog::builtin().unwrap()).unwrap();
    assert!(survey.has_functions());
    assert_eq!(survey.of_this_machine().err(), Some(Unreadable::OtherMachine));
}

#[test]
fn every_function_of_the_catalogue_is_placed_on_arm64() {
    let catalog = Catalog::builtin().unwrap();
    for name in ["arm64-bookworm", "arm64-trixie"] {
        let (mut placed, mut refused) = (BTreeSet::new(), BTreeMap::new());
        for path in libraries(name) {
            let file = path.file_name().unwrap().to_string_lossy().into_owned();
            let occt = occt_version_from_file_name(&file).unwrap_or_default();
            let bytes = std::fs::read(&path).unwrap();
            let Ok(plan) = plan(&bytes, &catalog, &Versions { freecad: String::new(), occt }) else {
                continue;
            };
            for probe in &plan.probes {
                match &probe.sites {
                    Ok(_) => drop(placed.insert(probe.probe.id.clone())),
                    Err(error) => drop(refused.insert(probe.probe.id.clone(), format!("{file}: {error}"))),
                }
            }
        }
        println!("{name}: {} functions placed", placed.len());
        assert!(placed.len() > 100 && refused.is_empty(), "{name}: {} placed, {refused:#?}", placed.len());
    }
}
