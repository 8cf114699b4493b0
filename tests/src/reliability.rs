//! Turns what a test of a fault has shown into a row of `docs/reliability.md`.
//!
//! With `CADSCOPE_WRITE=1` the row is written; without it the page must have a row for the fault, so that no fault is tried
//! that the page does not tell of. Figures are those of the run that wrote it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

const FIRST_MARK: &str = "<!-- faults -->\n";
const LAST_MARK: &str = "<!-- end of faults -->\n";
const HEAD: &str = "\n| fault | kernel | tried with | what came out |\n|---|---|---|---|\n";

/// Notes what came out of a fault: with how much it was tried, and what was seen.
///
/// # Errors
/// The page has no row for it, or cannot be written.
pub fn held(fault: &str, load: &str, result: &str) -> Result<()> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reliability.md");
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
    Ok(fs::write(page, with_row(&text, fault, &format!("{kernel} | {load} | {result}"))?)?)
}

fn with_row(page: &str, fault: &str, rest: &str) -> Result<String> {
    let (before, after) = page.split_once(FIRST_MARK).context("the page has no place for faults")?;
    let (table, after) = after.split_once(LAST_MARK).context("the page has no end of faults")?;
    let begin = format!("| {fault} |");
    let mut rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    rows.retain(|row| !row.starts_with(&begin));
    let row = format!("{begin} {rest} |");
    rows.push(&row);
    rows.sort_unstable();
    Ok(format!("{before}{FIRST_MARK}{HEAD}{}\n\n{LAST_MARK}{after}", rows.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_has_one_row() {
        let empty = format!("a\n{FIRST_MARK}{LAST_MARK}z\n");
        let one = with_row(&empty, "b fault", "6 | x | y").unwrap();
        let two = with_row(&one, "a fault", "6 | x | y").unwrap();
        let again = with_row(&two, "b fault", "7 | x | y").unwrap();
        assert!(again.contains("\n| a fault | 6 | x | y |\n| b fault | 7 | x | y |\n"), "{again}");
        assert!(again.starts_with("a\n") && again.ends_with("z\n"));
        assert_eq!(again.matches("| fault |").count(), 1);
        assert!(with_row("no marks", "a", "b").is_err());
    }
}
