//! Promise: what the documentation says is so: its commands do what it says, its links lead somewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::document::{Block, anchors, blocks, links, matches};
use cadscope_tests::node::{cadscope, require_root, scratch};
use cadscope_tests::run::run;

/// A command takes at most so long.
const LIMIT: Duration = Duration::from_secs(120);
/// Pages whose commands need a cluster or another host: the tests of the chart and of the package run what they say.
const TESTED_ELSEWHERE: [&str; 2] = ["docs/install-kubernetes.md", "docs/install-systemd.md"];
/// Separates what two commands print.
const MARK: &str = "-- next command of the page --";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Paths of all pages, from the root of the repository.
fn pages() -> Result<Vec<PathBuf>> {
    let mut pages: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
        .iter()
        .map(PathBuf::from)
        .collect();
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    Ok(pages)
}

/// The pages of the table of contents.
fn listed() -> Result<Vec<PathBuf>> {
    let summary = links(&read(Path::new("docs/SUMMARY.md"))?);
    Ok(summary.into_iter().map(|link| Path::new("docs").join(link)).collect())
}

fn read(page: &Path) -> Result<String> {
    fs::read_to_string(root().join(page)).with_context(|| page.display().to_string())
}

#[test]
fn every_link_leads_somewhere() -> Result<()> {
    let mut dead = Vec::new();
    for page in pages()? {
        let text = read(&page)?;
        for link in links(&text) {
            if link.starts_with("https://") || link.starts_with("http://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(path, anchor)| (path, Some(anchor)));
            let folder = page.parent().unwrap_or(Path::new(""));
            let target = if path.is_empty() { root().join(&page) } else { root().join(folder).join(path) };
            let there = match anchor {
                None => target.exists(),
                Some(anchor) => {
                    fs::read_to_string(&target).is_ok_and(|text| anchors(&text).iter().any(|a| a == anchor))
                }
            };
            if !there {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    ensure!(dead.is_empty(), "links that lead nowhere:\n{}", dead.join("\n"));
    Ok(())
}

#[test]
fn every_page_is_in_the_table_of_contents() -> Result<()> {
    let listed = listed()?;
    for page in pages()?.iter().filter(|page| page.starts_with("docs") && !page.ends_with("SUMMARY.md")) {
        ensure!(listed.contains(page), "{} is not in docs/SUMMARY.md", page.display());
    }
    Ok(())
}

#[test]
fn every_command_says_whether_it_is_run() -> Result<()> {
    for page in
        listed()?.into_iter().filter(|page| !TESTED_ELSEWHERE.iter().any(|other| page == Path::new(other)))
    {
        for block in blocks(&read(&page)?).with_context(|| page.display().to_string())? {
            let place = format!("{}:{}", page.display(), block.line);
            for shell in ["sh", "bash", "shell", "shell-session"] {
                ensure!(!block.is(shell), "{place}: write ```console with `$ ` before each command");
            }
            if block.is("console") {
                ensure!(
                    block.has("run") != block.has("elsewhere"),
                    "{place}: ```console run, or ```console elsewhere"
                );
                ensure!(!block.steps().is_empty(), "{place}: no command begins with `$ `");
            }
        }
    }
    Ok(())
}

#[test]
fn the_commands_of_the_documentation_do_what_it_says() -> Result<()> {
    let _node = require_root()?;
    let mut wrong = Vec::new();
    let mut commands = 0;
    for page in listed()? {
        let blocks = blocks(&read(&page)?)?;
        if !blocks.iter().any(|block| block.has("run")) {
            continue;
        }
        let folder = scratch()?;
        for block in &blocks {
            if let Some(file) = block.file() {
                fs::write(folder.path().join(file), &block.text)?;
            } else if block.is("console") && block.has("run") {
                commands += block.steps().len();
                if let Err(error) = check(block, folder.path()) {
                    wrong.push(format!("{}:{}: {error:#}", page.display(), block.line));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    ensure!(commands > 15, "only {commands} commands were run");
    Ok(())
}

/// Runs a block in one shell, which ends what it has left running.
fn check(block: &Block, folder: &Path) -> Result<()> {
    let steps = block.steps();
    let mut script = String::from("set -m\n");
    for step in &steps {
        script.push_str(&format!("{}\ncode=$?; echo; echo '{MARK}' $code\n", step.command));
    }
    script.push_str("kill $(jobs -p) 2>/dev/null; wait\n");
    let bin = folder.join("bin");
    fs::create_dir_all(&bin)?;
    let link = bin.join("cadscope");
    if !link.exists() {
        std::os::unix::fs::symlink(cadscope()?, &link)?;
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH")?);
    let mut shell = Command::new("bash");
    shell.args(["-c", &script]).current_dir(folder).env("HOME", folder).env("PATH", path);
    shell.env("QT_QPA_PLATFORM", "offscreen").env("RUST_LOG", "error");
    let ended = run(&mut shell, LIMIT)?;
    let mut printed = ended.stdout.split(MARK);
    let mut output = printed.next().unwrap_or_default().to_owned();
    for step in &steps {
        let after = printed.next().with_context(|| format!("the shell ended: {ended:?}"))?;
        let (code, rest) = after.split_once('\n').unwrap_or((after, ""));
        ensure!(code.trim() == "0", "`{}` exits with {code}:\n{output}\n{}", step.command, ended.stderr);
        // The mark stands on a line of its own.
        let own = output.strip_suffix('\n').unwrap_or(&output);
        matches(&step.prints, own)
            .with_context(|| format!("`{}`, which also said: {}", step.command, ended.stderr))?;
        output = rest.to_owned();
    }
    Ok(())
}
