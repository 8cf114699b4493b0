//! Turns the command line into what describes it: manual pages, completions, and the pages of the documentation.
//!
//! All are made from the same types that parse the command line, so they cannot be out of date.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::config::Args;

pub mod pages;

/// Prints the completions of a shell.
///
/// # Errors
/// Standard output is closed.
pub fn complete(shell: Shell) -> anyhow::Result<()> {
    let mut completions = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "cadscope", &mut completions);
    std::io::stdout().write_all(&completions).context("cannot write the completions")
}

/// Writes the manual pages: cadscope.1, cadscope-agent.1, ….
///
/// # Errors
/// The directory cannot be made or written to.
pub fn write(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let command = Args::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, directory)
        .with_context(|| format!("cannot write into {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_manual_page_with_its_examples() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("man1")).unwrap();
        for command in std::iter::once(String::new()).chain(names()) {
            let path = folder.path().join(format!("man1/cadscope{command}.1"));
            let page = fs::read_to_string(&path).unwrap();
            assert!(page.contains("Examples") && page.contains(".TH"), "{command}: {page}");
        }
    }

    fn names() -> impl Iterator<Item = String> {
        let command = Args::command();
        let names: Vec<String> =
            command.get_subcommands().map(|sub| format!("-{}", sub.get_name())).collect();
        names.into_iter()
    }
}
