//! Turns what a test of a fault has shown into a row of `docs/reliability.md`.
//!
//! With `CADSCOPE_WRITE=1` the row is written; without it the page must have a row for the fault, so that no fault is tried
//! that the page does not tell of, and a row without a test fails this crate's. Figures are those of the run that wrote it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// A table of the page: what stands around it, and over its first column.
#[derive(Debug)]
struct Table {
    mark: &'static str,
    what: &'static str,
}

const FAULTS: Table = Table { mark: "faults", what: "fault" };
const WORKERS: Table = Table { mark: "hostile workers", what: "worker" };

/// Notes what came out of a fault: with how much it was tried, and what was seen.
///
/// # Errors
/// The page has no row for it, or cannot be written.
pub fn held(fault: &str, load: &str, result: &str) -> Result<()> {
    note(&FAULTS, fault, load, result)
}

/// The same of a worker that wants to do harm.
///
/// # Errors
/// As above.
pub fn harmless(worker: &str, load: &str, result: &str) -> Result<()> {
    note(&WORKERS, worker, load, result)
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reliability.md")
}

fn note(table: &Table, fault: &str, load: &str, result: &str) -> Result<()> {
    let page = page();
    let text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    if std::env::var_os("CADSCOPE_WRITE").is_none() {
        ensure!(
            text.contains(&format!("\n| {fault} |")),
            "docs/reliability.md does not tell of `{fault}`: run this test with CADSCOPE_WRITE=1"
        );
        return Ok(());
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let kernel: String = release.trim().split('-').next().unwrap_or_default().to_owned();
    Ok(fs::write(page, with_row(table, &text, fault, &format!("{kernel} | {load} | {result}"))?)?)
}

/// The page before a table, its rows, and the page after it.
fn parts<'a>(table: &Table, page: &'a str) -> Result<(&'a str, Vec<&'a str>, &'a str)> {
    let Table { mark, .. } = table;
    let first = format!("<!-- {mark} -->\n");
    let at = page.find(&first).with_context(|| format!("the page has no place for {mark}"))?;
    let (before, rest) = page.split_at(at + first.len());
    let end = rest.find(&format!("<!-- end of {mark} -->\n"));
    let (rows, after) = rest.split_at(end.with_context(|| format!("the page has no end of {mark}"))?);
    Ok((before, rows.lines().filter(|line| line.starts_with("| ")).skip(1).collect(), after))
}

fn with_row(table: &Table, page: &str, fault: &str, rest: &str) -> Result<String> {
    let (before, mut rows, after) = parts(table, page)?;
    let begin = format!("| {fault} |");
    rows.retain(|row| !row.starts_with(&begin));
    let row = format!("{begin} {rest} |");
    rows.push(&row);
    rows.sort_unstable();
    let head = format!("| {} | kernel | tried with | what came out |\n|---|---|---|---|", table.what);
    Ok(format!("{before}\n{head}\n{}\n\n{after}", rows.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_has_one_row() {
        let empty = "a\n<!-- faults -->\n<!-- end of faults -->\nz\n";
        let with = |page: &str, fault, rest| with_row(&FAULTS, page, fault, rest).unwrap();
        let one = with(empty, "b fault", "6 | x | y");
        let two = with(&one, "a fault", "6 | x | y");
        let again = with(&two, "b fault", "7 | x | y");
        assert!(again.contains("\n| a fault | 6 | x | y |\n| b fault | 7 | x | y |\n"), "{again}");
        assert!(again.starts_with("a\n") && again.ends_with("z\n"));
        assert_eq!(again.matches("| fault |").count(), 1);
        assert!(with_row(&FAULTS, "no marks", "a", "b").is_err());
        assert!(with_row(&WORKERS, empty, "a", "b").is_err());
    }

    #[test]
    fn every_row_is_that_of_a_test() {
        let text = fs::read_to_string(page()).unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let files = [folder.join("hostile"), folder].map(|folder| fs::read_dir(folder).unwrap());
        let files = files.into_iter().flatten().map(|file| file.unwrap().path());
        let tests: String =
            files.filter(|file| file.is_file()).map(|file| fs::read_to_string(file).unwrap()).collect();
        for table in [FAULTS, WORKERS] {
            let (_, rows, _) = parts(&table, &text).unwrap();
            assert!(rows.len() > 5, "{table:?}: {rows:?}");
            for row in rows {
                let name = row.split(" | ").next().unwrap().trim_start_matches("| ");
                assert!(tests.contains(&format!("\"{name}\"")), "no test has the row `{name}`");
            }
        }
    }
}
