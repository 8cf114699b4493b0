//! Promise: on every build each entry of the catalogue is placed, or absent for a reason that the catalogue states; and
//! the support matrix of the documentation says the same; and where the probes lie is what docs/probe-sites.md says.
//!
//! `CADSCOPE_WRITE=1` writes both pages instead of comparing them; `cargo xtask docs` does that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::builds::{BUILDS, Build, wanted};
use cadscope_tests::node::cadscope;
use cadscope_tests::run::run;
use serde::Deserialize;

#[derive(Deserialize)]
struct Coverage {
    families: Vec<Family>,
    probes: Vec<Placed>,
}

/// A function in a file: its sites as people read them, or why there are none.
#[derive(Deserialize)]
struct Placed {
    function: String,
    entry: String,
    exits: String,
    stepped: Vec<String>,
    reason: String,
}

#[derive(Deserialize)]
struct Family {
    family: String,
    of: String,
    probes: Vec<Probe>,
}

#[derive(Deserialize)]
struct Probe {
    probe: String,
    state: String,
    why: String,
}

/// What `cadscope probes` says of all libraries of a build.
fn coverage(build: &Build) -> Result<Coverage> {
    let mut command = Command::new(cadscope()?);
    command.args(["probes", "--format", "json"]).args(build.libraries()?);
    // Versions of FreeCAD come from the package database of the root that the program runs in.
    let ended = run(&mut command, Duration::from_secs(120))?;
    ensure!(ended.code == 0, "cadscope probes on {}: {}", build.name, ended.stderr);
    serde_json::from_str(&ended.stdout).context("the output of `cadscope probes` is no JSON")
}

#[test]
fn every_entry_is_placed_or_absent_for_a_stated_reason_on_every_build() -> Result<()> {
    let mut complaints = Vec::new();
    for build in wanted() {
        let (mut observed, mut absent) = (0, 0);
        for probe in coverage(&build)?.families.into_iter().flat_map(|family| family.probes) {
            match probe.state.as_str() {
                // A note is another signature, or a layout that is not known: of a build that is tested that is wrong.
                "observed" if probe.why.is_empty() || !knows_version(&build) => observed += 1,
                "absent" if !probe.why.is_empty() => absent += 1,
                state => {
                    complaints.push(format!("{}: {} is {state}: {:?}", build.name, probe.probe, probe.why));
                }
            }
        }
        eprintln!("{:14} {observed} observed, {absent} absent, each with its reason", build.name);
    }
    ensure!(complaints.is_empty(), "wrong:\n{}", complaints.join("\n"));
    Ok(())
}

/// Files alone tell the version of FreeCAD only on the installed system; elsewhere the jobs of `families.rs` prove it.
fn knows_version(build: &Build) -> bool {
    build.name == BUILDS[0].name
}

fn matrix_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/support-matrix.md")
}

#[test]
fn the_support_matrix_is_what_the_builds_have() -> Result<()> {
    let write = std::env::var_os("CADSCOPE_WRITE").is_some();
    let builds = if write { BUILDS.to_vec() } else { wanted() };
    let mut rows: BTreeMap<(String, String), BTreeMap<&str, String>> = BTreeMap::new();
    for build in &builds {
        for family in coverage(build)?.families {
            let cell = if family.probes.iter().any(|probe| probe.state == "observed") {
                "yes".to_owned()
            } else {
                let mut why: Vec<&str> = family.probes.iter().map(|probe| probe.why.as_str()).collect();
                why.sort_unstable();
                why.dedup();
                format!("no: {}", why.join("; "))
            };
            rows.entry((family.family, family.of)).or_default().insert(build.name, cell);
        }
    }
    if write {
        return Ok(fs::write(matrix_file(), page(&rows))?);
    }
    let text = fs::read_to_string(matrix_file()).context("docs/support-matrix.md: run `cargo xtask docs`")?;
    let header: Vec<&str> =
        text.lines().find(|line| line.starts_with("| family")).context("no table")?.split('|').collect();
    for build in &builds {
        let column = header
            .iter()
            .position(|name| name.split_whitespace().next() == Some(build.name))
            .with_context(|| format!("no column {}", build.name))?;
        for ((family, of), cells) in &rows {
            let start = format!("| {family} | {of} |");
            let line = text
                .lines()
                .find(|line| line.starts_with(&start))
                .with_context(|| format!("no row {start}"))?;
            let cell = line.split('|').nth(column).unwrap_or_default().trim();
            ensure!(
                cells.get(build.name).is_some_and(|wanted| wanted == cell),
                "docs/support-matrix.md says `{cell}` for {family} {of} on {}, it is {:?}: run `cargo xtask docs`",
                build.name,
                cells.get(build.name)
            );
        }
    }
    Ok(())
}

/// What no probe of the catalogue shows, and why; kept here because nothing can be derived from what is not there.
const NOT_OBSERVED: [(&str, &str, &str); 8] = [
    ("export_duration_seconds", "SVG, DAE, IFC", "written by pure Python modules of FreeCAD"),
    (
        "export_duration_seconds",
        "DXF by FreeCAD's older, Python exporter (Draft's setting)",
        "pure Python; what `Import` writes is observed",
    ),
    ("export_duration_seconds", "`Shape.exportBinary`", "the function that saving a document calls too"),
    ("freecad_document_load_seconds", "SVG, DAE, IFC", "read by pure Python modules of FreeCAD"),
    (
        "freecad_workbench_invocations_total",
        "pure Python workbenches",
        "no native function is called; their windows' activation is seen",
    ),
    (
        "material_library_access_total",
        "label `library`: libraries of the user's own",
        "`other`: their names are not a bounded set",
    ),
    (
        "material_…",
        "materials of FreeCAD 0.20",
        "pure Python there, without a native call: no uprobe sees them",
    ),
    (
        "topology_hash_compute_duration_seconds",
        "scope=assembly",
        "FreeCAD names the elements of each part's shape by itself, also in an assembly (jobs/families/assembly.py)",
    ),
];

fn page(rows: &BTreeMap<(String, String), BTreeMap<&str, String>>) -> String {
    let mut out = String::from(
        "# What is observed on which build\n\nGenerated by `cargo xtask docs` from the libraries of the real builds; a test compares it with them.\n`yes`: the functions are found and probes can be placed; what their labels say is proven by the jobs in\n`tests/jobs/families`, which run on each build.\n\n",
    );
    let names: Vec<String> = BUILDS.iter().map(|b| format!("{} (OCCT {})", b.name, b.occt_version)).collect();
    let _ = writeln!(out, "| family | of | {} |", names.join(" | "));
    let _ = writeln!(out, "|---|---|{}", "---|".repeat(BUILDS.len()));
    for ((family, of), cells) in rows {
        let cells: Vec<&str> =
            BUILDS.iter().map(|build| cells.get(build.name).map_or("", String::as_str)).collect();
        let _ = writeln!(out, "| {family} | {of} | {} |", cells.join(" | "));
    }
    let _ = writeln!(out, "\n## Not observed, on no build\n\n| family | what | why |\n|---|---|---|");
    for (family, what, why) in NOT_OBSERVED {
        let _ = writeln!(out, "| {family} | {what} | {why} |");
    }
    out
}

/// How the kernel runs the instructions of one function's sites; `None` if it is not placed.
fn stepped(placed: &Placed) -> Option<(bool, bool)> {
    placed.reason.is_empty().then(|| (placed.entry.contains("stepped"), placed.exits.contains("stepped")))
}

/// One build's row: functions, with all sites emulated, with an entry or exit that is single-stepped, not placed.
fn sites_row(build: &Build, placed: &[Placed]) -> String {
    let sites: Vec<Option<(bool, bool)>> = placed.iter().map(stepped).collect();
    let emulated = sites.iter().filter(|sites| **sites == Some((false, false))).count();
    let placed_sites = || sites.iter().flatten();
    format!(
        "| {} | {} | {emulated} ({:.0} %) | {} | {} | {} |",
        build.name,
        placed.len(),
        emulated as f64 / placed.len().max(1) as f64 * 100.0,
        placed_sites().filter(|(entry, _)| *entry).count(),
        placed_sites().filter(|(_, exit)| *exit).count(),
        sites.iter().filter(|sites| sites.is_none()).count(),
    )
}

/// Why a function has a site that is single-stepped, or none at all.
fn why_stepped(placed: &Placed) -> Option<String> {
    let why = if placed.reason.is_empty() { placed.stepped.join("; ") } else { placed.reason.clone() };
    // Addresses differ from build to build, and several exits have one reason.
    let words = |why: &str| {
        let words = why.split(' ').map(|word| if word.starts_with("0x") { "…" } else { word });
        words.collect::<Vec<_>>().join(" ")
    };
    let reasons: BTreeSet<String> = why.split("; ").filter(|why| !why.is_empty()).map(words).collect();
    (!reasons.is_empty()).then(|| reasons.into_iter().collect::<Vec<_>>().join("; "))
}

const SITES_HEAD: &str = "# Where the probes lie

Generated by `cargo xtask docs` from the libraries of the real builds; a test compares it with them. A probe on an
instruction that the kernel emulates costs half a microsecond in a virtual machine, one that it single-steps ten
([how it works](how-it-works.md)). A function counts once for each file that defines it.

| build | functions | all sites emulated | entry stepped | an exit stepped | not placed |
|---|---|---|---|---|---|
";

#[test]
fn each_site_is_emulated_or_its_reason_is_in_the_documentation() -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/probe-sites.md");
    let write = std::env::var_os("CADSCOPE_WRITE").is_some();
    let mut rows = Vec::new();
    let mut reasons: BTreeMap<(String, String), Vec<&str>> = BTreeMap::new();
    for build in if write { BUILDS.to_vec() } else { wanted() } {
        let placed = coverage(&build)?.probes;
        rows.push(sites_row(&build, &placed));
        for one in &placed {
            let is_stepped = stepped(one) != Some((false, false));
            let Some(why) = why_stepped(one) else {
                ensure!(!is_stepped, "{} has no reason for a stepped site", one.function);
                continue;
            };
            let builds = reasons.entry((one.function.clone(), why)).or_default();
            if builds.last() != Some(&build.name) {
                builds.push(build.name);
            }
        }
    }
    if write {
        let mut page = format!("{SITES_HEAD}{}\n", rows.join("\n"));
        page.push_str("\n## Functions with a site that is single-stepped, or without sites\n\n");
        page.push_str("| function | why | builds |\n|---|---|---|\n");
        for ((function, why), builds) in &reasons {
            let _ = writeln!(page, "| `{function}` | {why} | {} |", builds.join(", "));
        }
        return Ok(fs::write(file, page)?);
    }
    let text = fs::read_to_string(file).context("docs/probe-sites.md: run `cargo xtask docs`")?;
    for row in &rows {
        ensure!(text.contains(row.as_str()), "docs/probe-sites.md lacks `{row}`: run `cargo xtask docs`");
    }
    for ((function, why), builds) in &reasons {
        let start = format!("| `{function}` | {why} | ");
        let line = text.lines().find_map(|line| line.strip_prefix(start.as_str()));
        let listed =
            |build: &&&str| line.is_some_and(|line| line.split([',', ' ']).any(|word| word == **build));
        let missing = builds.iter().find(|build| !listed(build));
        ensure!(missing.is_none(), "docs/probe-sites.md lacks `{start}{missing:?}`: run `cargo xtask docs`");
    }
    Ok(())
}
