//! `cadscope probes`: what of the catalogue can be observed in a file or a running process, and why not the rest.

use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::json;

use crate::attach::map;
use crate::catalog::{Catalog, Label, Probe, Product};
use crate::config::{Subject, TableFormat};
use crate::discover::{self, Mapping};
use crate::identify;
use crate::plan::{Plan, Versions, plan};
use crate::resolve::{Exit, Site, SiteClass, Sites};

struct Row {
    file: String,
    id: String,
    function: String,
    entry: String,
    exits: String,
    /// Why sites are single-stepped: `exit: several ways meet at 0x…`.
    stepped: Vec<String>,
    reason: String,
    /// What is not complete about a probe that can be placed.
    note: Option<String>,
}

/// Prints the table; returns the exit status: 0 if any probe can be placed.
///
/// # Errors
/// A file cannot be read, or the process is not there.
pub fn run(subject: &Subject, format: TableFormat, catalog: &Catalog, proc: &Path) -> anyhow::Result<u8> {
    let files = match subject {
        Subject::Files(paths) => {
            paths.iter().map(|path| open_file(path)).collect::<anyhow::Result<Vec<_>>>()?
        }
        Subject::Process(pid) => files_of(proc, *pid)?,
    };
    let occt = files.iter().find_map(|(path, _)| {
        identify::occt_version_from_file_name(path.rsplit('/').next().unwrap_or_default())
    });
    let freecad = installed_freecad(subject, proc);
    let versions = Versions { freecad, occt: occt.unwrap_or_default() };
    let mut rows = Vec::new();
    for (path, file) in &files {
        let bytes = map(file).with_context(|| format!("{path} cannot be read"))?;
        match plan(&bytes, catalog, &versions) {
            Ok(plan) => rows.extend(rows_of(path, &plan, &versions)),
            // A process maps many files; a person names few, and wants to hear.
            Err(error) if matches!(subject, Subject::Files(_)) => {
                bail!(
                    "{path}: {error}; `cadscope probes` takes shared libraries and programs, such as libTKBO.so.7.6.3"
                )
            }
            Err(_) => {}
        }
    }
    let placed = rows.iter().filter(|row| row.reason.is_empty()).count();
    match format {
        TableFormat::Json => {
            println!("{}", serde_json::to_string_pretty(&as_json(&rows, &versions, catalog))?);
        }
        TableFormat::Table => print!("{}", as_table(&rows, placed, catalog)),
    }
    Ok(u8::from(placed == 0))
}

fn open_file(path: &Path) -> anyhow::Result<(String, File)> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        bail!("{} is not a regular file", path.display());
    }
    let real: PathBuf = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    Ok((real.to_string_lossy().into_owned(), file))
}

fn files_of(proc: &Path, pid: u32) -> anyhow::Result<Vec<(String, File)>> {
    if !discover::is_alive(proc, pid) {
        bail!("there is no process {pid}");
    }
    let mappings: Vec<Mapping> = discover::mappings_of(proc, pid);
    if mappings.is_empty() {
        bail!("process {pid} maps no files, or its mappings cannot be read (root is needed)");
    }
    let mut seen = std::collections::HashSet::new();
    let mut files = Vec::new();
    for mapping in mappings {
        if seen.insert(mapping.file)
            && let Ok(file) = discover::open_mapped(proc, &mapping)
        {
            files.push((mapping.path, file));
        }
    }
    Ok(files)
}

/// FreeCAD's version by the package database of the process's root, or of this system.
fn installed_freecad(subject: &Subject, proc: &Path) -> String {
    let pid = match subject {
        Subject::Process(pid) => *pid,
        Subject::Files(_) => std::process::id(),
    };
    let status = discover::read_below_root(proc, pid, Path::new("var/lib/dpkg/status"), 16 << 20);
    let status = status.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    identify::freecad_version_from_dpkg_status(&status).unwrap_or_default()
}

fn site(sites: &Sites, site: &Site) -> String {
    let class = match (site.class, sites.obstacle(site)) {
        (SiteClass::Emulated, _) => "emulated".to_owned(),
        (SiteClass::SingleStep, None) => "stepped".to_owned(),
        (SiteClass::SingleStep, Some(obstacle)) => format!("stepped ({obstacle})"),
    };
    format!("{:#x} {class}", site.offset.0)
}

/// Why sites are single-stepped, each reason once.
fn stepped(sites: &Sites) -> Vec<String> {
    let of = |what: &str, site: &Site| sites.obstacle(site).map(|obstacle| format!("{what}: {obstacle}"));
    let exits = sites.exits.iter().filter_map(|(site, _)| of("exit", site));
    let mut all: Vec<String> = of("entry", &sites.entry).into_iter().chain(exits).collect();
    all.dedup();
    all
}

fn rows_of(path: &str, plan: &Plan, versions: &Versions) -> Vec<Row> {
    plan.probes
        .iter()
        .map(|planned| {
            let (entry, exits, stepped, reason) = match &planned.sites {
                Ok(sites) => {
                    let exits = sites.exits.iter().map(|(at, exit)| match exit {
                        Exit::Return => site(sites, at),
                        Exit::TailCall(to) => {
                            format!(
                                "{} tail call to {}",
                                site(sites, at),
                                to.as_deref().unwrap_or("a register")
                            )
                        }
                        Exit::Followed(to) => format!("{} in {to}", site(sites, at)),
                    });
                    let exits = exits.collect::<Vec<_>>().join(", ");
                    (site(sites, &sites.entry), exits, stepped(sites), String::new())
                }
                Err(reason) => (String::new(), String::new(), Vec::new(), reason.to_string()),
            };
            Row {
                file: path.to_owned(),
                id: planned.probe.id.clone(),
                function: planned.probe.function.clone(),
                entry,
                exits,
                stepped,
                reason,
                note: planned.note(versions),
            }
        })
        .collect()
}

fn as_json(rows: &[Row], versions: &Versions, catalog: &Catalog) -> serde_json::Value {
    let probes: Vec<serde_json::Value> = rows
        .iter()
        .map(|row| {
            json!({
                "file": row.file, "probe": row.id, "function": row.function,
                "attachable": row.reason.is_empty(), "entry": row.entry, "exits": row.exits,
                "stepped": row.stepped, "reason": row.reason, "note": row.note,
            })
        })
        .collect();
    let families: Vec<serde_json::Value> = coverage_of(rows, catalog)
        .into_iter()
        .map(|family| {
            let probes = family
                .probes
                .iter()
                .map(|(id, state)| json!({ "probe": id, "state": state.word(), "why": state.why() }));
            json!({ "family": family.name, "of": family.of, "probes": probes.collect::<Vec<_>>() })
        })
        .collect();
    json!({
        "freecad_version": versions.freecad, "occt_version": versions.occt, "probes": probes, "families": families,
    })
}

/// What is observed of one thing that a family tells apart.
struct FamilyCoverage<'a> {
    name: &'a str,
    /// The value of the label that tells it apart: `fillet`, `STEP`; empty where there is none.
    of: String,
    probes: Vec<(&'a str, State)>,
}

/// What became of a probe in all files together.
enum State {
    Observed(Option<String>),
    Absent(String),
    NotPlaced(String),
}

impl State {
    const fn word(&self) -> &'static str {
        match self {
            Self::Observed(_) => "observed",
            Self::Absent(_) => "absent",
            Self::NotPlaced(_) => "not placed",
        }
    }

    fn why(&self) -> &str {
        match self {
            Self::Observed(note) => note.as_deref().unwrap_or_default(),
            Self::Absent(why) | Self::NotPlaced(why) => why,
        }
    }
}

/// The catalogue by family, and in a family by what it tells apart, with what became of each probe.
fn coverage_of<'a>(rows: &[Row], catalog: &'a Catalog) -> Vec<FamilyCoverage<'a>> {
    let has = |product: Product| {
        let ours = |probe: &Probe| probe.product == Some(product);
        rows.iter().any(|row| catalog.get(&row.id).is_some_and(|probe| ours(probe)))
    };
    let present = [Product::Occt, Product::FreeCad].map(|product| (product, has(product)));
    let mut all: Vec<FamilyCoverage<'a>> = Vec::new();
    for probe in &catalog.probes {
        let name = probe.metric.as_deref().or(probe.counter.as_deref()).unwrap_or("spans only");
        let of = told_apart(probe);
        let state = state_of(rows, probe, &present);
        match all.iter_mut().find(|family| family.name == name && family.of == of) {
            Some(family) => family.probes.push((&probe.id, state)),
            None => all.push(FamilyCoverage { name, of, probes: vec![(&probe.id, state)] }),
        }
    }
    all.sort_by(|a, b| (a.name, &a.of).cmp(&(b.name, &b.of)));
    all
}

/// What the constant labels of a probe say, and what its mapped ones can say.
fn told_apart(probe: &Probe) -> String {
    let values = probe.labels.values().filter_map(|label| match label {
        Label::Constant(text) if text != "unknown" => Some(text.clone()),
        Label::Map(_, names) => Some(join(names.values())),
        Label::FileType(_, names) => Some(join(names.values())),
        _ => None,
    });
    let values: Vec<String> = values.collect();
    if values.is_empty() && probe.metric.is_none() && probe.counter.is_none() {
        return probe.title.clone();
    }
    values.join(", ")
}

fn join<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let unique: std::collections::BTreeSet<&str> = names.map(String::as_str).collect();
    unique.into_iter().collect::<Vec<_>>().join("/")
}

fn state_of(rows: &[Row], probe: &Probe, present: &[(Product, bool)]) -> State {
    let mut of_probe = rows.iter().filter(|row| row.id == probe.id).peekable();
    if of_probe.peek().is_none() {
        let lacks = present.iter().find(|(product, has)| probe.product == Some(*product) && !has);
        let why = match (lacks, &probe.absent) {
            (Some((Product::FreeCad, _)), _) => "no FreeCAD here",
            (Some((Product::Occt, _)), _) => "no OCCT here",
            (None, Some(why)) => why,
            (None, None) => "",
        };
        return State::Absent(why.to_owned());
    }
    let mut reason = String::new();
    for row in of_probe {
        if row.reason.is_empty() {
            return State::Observed(row.note.clone());
        }
        reason.clone_from(&row.reason);
    }
    State::NotPlaced(reason)
}

fn as_table(rows: &[Row], placed: usize, catalog: &Catalog) -> String {
    let width = rows.iter().map(|row| row.id.len()).max().unwrap_or(0).max(5);
    let mut out = String::new();
    let mut file = "";
    for row in rows {
        if row.file != file {
            file = &row.file;
            let _ = writeln!(out, "{file}");
        }
        let _ = if row.reason.is_empty() {
            let note = row.note.as_ref().map(|note| format!("  ({note})")).unwrap_or_default();
            writeln!(out, "  {:width$}  enter {}  leave {}{note}", row.id, row.entry, row.exits)
        } else {
            writeln!(out, "  {:width$}  not observed: {}", row.id, row.reason)
        };
    }
    let _ = writeln!(out, "\n{:44} {:40} observed by, or why not", "family", "of");
    for family in coverage_of(rows, catalog) {
        let observed: Vec<&str> = family
            .probes
            .iter()
            .filter(|(_, state)| matches!(state, State::Observed(_)))
            .map(|(id, _)| *id)
            .collect();
        let text = if observed.is_empty() {
            let why: std::collections::BTreeSet<&str> =
                family.probes.iter().map(|(_, state)| state.why()).filter(|why| !why.is_empty()).collect();
            let why: Vec<&str> = why.into_iter().collect();
            format!("- {}", if why.is_empty() { "not defined here".to_owned() } else { why.join("; ") })
        } else {
            observed.join(", ")
        };
        let _ = writeln!(out, "{:44} {:40} {text}", family.name, family.of);
    }
    let _ = writeln!(out, "{placed} of {} probes can be placed", catalog.probes.len());
    out
}
