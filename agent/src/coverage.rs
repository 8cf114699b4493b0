//! `cadscope probes`: what of the catalogue can be observed in a file or a running process, and why not the rest.

use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::json;

use crate::attach::map;
use crate::catalog::Catalog;
use crate::config::{Subject, TableFormat};
use crate::discover::{self, Mapping};
use crate::identify;
use crate::plan::{Plan, Versions, plan};
use crate::resolve::{Exit, Site, SiteClass};

struct Row {
    file: String,
    id: String,
    function: String,
    entry: String,
    exits: String,
    reason: String,
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
            Ok(plan) => rows.extend(rows_of(path, &plan)),
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
        TableFormat::Json => println!("{}", serde_json::to_string_pretty(&as_json(&rows, &versions))?),
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

fn site(site: &Site) -> String {
    let class = match site.class {
        SiteClass::Emulated => "emulated",
        SiteClass::SingleStep => "stepped",
    };
    format!("{:#x} {class}", site.offset.0)
}

fn rows_of(path: &str, plan: &Plan) -> Vec<Row> {
    plan.probes
        .iter()
        .map(|planned| {
            let (entry, exits, reason) = match &planned.sites {
                Ok(sites) => {
                    let exits = sites.exits.iter().map(|(at, exit)| match exit {
                        Exit::Return => site(at),
                        Exit::TailCall(to) => {
                            format!("{} tail call to {}", site(at), to.as_deref().unwrap_or("a register"))
                        }
                        Exit::Followed(to) => format!("{} in {to}", site(at)),
                    });
                    (site(&sites.entry), exits.collect::<Vec<_>>().join(", "), String::new())
                }
                Err(reason) => (String::new(), String::new(), reason.to_string()),
            };
            Row {
                file: path.to_owned(),
                id: planned.probe.id.clone(),
                function: planned.probe.function.clone(),
                entry,
                exits,
                reason,
            }
        })
        .collect()
}

fn as_json(rows: &[Row], versions: &Versions) -> serde_json::Value {
    let probes: Vec<serde_json::Value> = rows
        .iter()
        .map(|row| {
            json!({
                "file": row.file, "probe": row.id, "function": row.function,
                "attachable": row.reason.is_empty(), "entry": row.entry, "exits": row.exits, "reason": row.reason,
            })
        })
        .collect();
    json!({ "freecad_version": versions.freecad, "occt_version": versions.occt, "probes": probes })
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
            writeln!(out, "  {:width$}  enter {}  leave {}", row.id, row.entry, row.exits)
        } else {
            writeln!(out, "  {:width$}  not observed: {}", row.id, row.reason)
        };
    }
    let found: std::collections::HashSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let absent: Vec<&str> =
        catalog.probes.iter().map(|probe| probe.id.as_str()).filter(|id| !found.contains(id)).collect();
    let _ = writeln!(out, "{placed} of {} probes can be placed", catalog.probes.len());
    if !absent.is_empty() {
        let _ = writeln!(out, "not defined here: {}", absent.join(", "));
    }
    out
}
