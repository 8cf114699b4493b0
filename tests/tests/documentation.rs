//! Promise: what the documentation says is so: its commands do what it says, its links lead somewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::document::{Block, anchors, blocks, is_like, links, matches};
use cadscope_tests::node::{cadscope, full, require_root, scratch, tool};
use cadscope_tests::run::run;

/// A command takes at most so long.
const LIMIT: Duration = Duration::from_secs(120);
/// A build takes longer.
const LONG_LIMIT: Duration = Duration::from_secs(1800);
/// Separates what two commands print.
const MARK: &str = "-- next command of the page --";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Paths of all pages, from the root of the repository.
fn pages() -> Result<Vec<PathBuf>> {
    let mut pages: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
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

/// The pages whose commands users type.
fn typed() -> Result<Vec<PathBuf>> {
    let mut pages = listed()?;
    pages.push(PathBuf::from("README.md"));
    Ok(pages)
}

fn read(page: &Path) -> Result<String> {
    fs::read_to_string(root().join(page)).with_context(|| page.display().to_string())
}

/// Every source file below a folder.
fn sources(folder: &Path) -> Result<String> {
    let mut text = String::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            text += &sources(&entry.path())?;
        } else if entry.path().extension().is_some_and(|extension| extension == "rs") {
            text += &fs::read_to_string(entry.path())?;
        }
    }
    Ok(text)
}

#[test]
fn every_test_that_a_threat_is_defended_by_exists() -> Result<()> {
    let page = read(Path::new("docs/threats.md"))?;
    let mut code = String::new();
    for folder in ["agent/src", "agent/tests", "tests/tests"] {
        code += &sources(&root().join(folder))?;
    }
    let is_test = |name: &&str| {
        name.matches('_').count() > 3 && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    };
    let named: Vec<&str> = page.split('`').skip(1).step_by(2).filter(is_test).collect();
    let missing: Vec<&&str> = named.iter().filter(|name| !code.contains(&format!("fn {name}()"))).collect();
    ensure!(
        named.len() > 15 && missing.is_empty(),
        "{} tests are named; there is no {missing:?}",
        named.len()
    );
    let rows = page.lines().filter(|line| line.starts_with("| ") && line.matches(" | ").count() == 2);
    let bare: Vec<&str> = rows.skip(1).filter(|row| !row.contains('`')).collect();
    ensure!(bare.is_empty(), "defended by no test: {bare:?}");
    Ok(())
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

/// What leads from the pages of a site to another place of it, but is not there.
fn dead_links(site: &Path) -> Result<Vec<String>> {
    let mut pages = Vec::new();
    let mut folders = vec![site.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "html")
                && !path.ends_with("404.html")
            {
                // That one is served for any address, and says what its links are relative to.
                pages.push(path);
            }
        }
    }
    ensure!(pages.len() > 30, "{} pages in {}", pages.len(), site.display());
    let mut dead = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page)?;
        for link in quoted(&text, "href=").into_iter().chain(quoted(&text, "src=")) {
            if ["https://", "http://", "mailto:", "data:"].iter().any(|scheme| link.starts_with(scheme)) {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if path.is_empty() { page.clone() } else { page.parent().unwrap_or(site).join(path) };
            let there = match anchor {
                "" => target.exists() && target.canonicalize()?.starts_with(site.canonicalize()?),
                anchor => {
                    fs::read_to_string(&target).is_ok_and(|text| quoted(&text, "id=").contains(&anchor))
                }
            };
            if !there {
                dead.push(format!("{}: {link}", page.strip_prefix(site).unwrap_or(&page).display()));
            }
        }
    }
    Ok(dead)
}

/// The values of an attribute, whatever stands around it.
fn quoted<'a>(text: &'a str, attribute: &str) -> Vec<&'a str> {
    let begin = format!(" {attribute}\"");
    let values = text.split(begin.as_str()).skip(1);
    values.filter_map(|rest| rest.split('"').next()).collect()
}

/// A site of `docs/` in this folder.
fn site(of: &Path, into: &Path) -> Result<()> {
    let mut mdbook = Command::new(tool("mdbook", "mdbook")?);
    let ended = run(mdbook.arg("build").arg(of).arg("--dest-dir").arg(into), LIMIT)?;
    ensure!(ended.code == 0 && !ended.stderr.contains("WARN"), "{ended:?}");
    Ok(())
}

#[test]
fn the_site_has_every_page_and_every_link_in_it_leads_somewhere() -> Result<()> {
    let folder = scratch()?;
    let into = folder.path().join("site");
    site(&root().join("docs"), &into)?;
    for page in listed()? {
        let page = into.join(page.strip_prefix("docs")?).with_extension("html");
        ensure!(page.is_file(), "no {}", page.display());
    }
    let dead = dead_links(&into)?;
    ensure!(dead.is_empty(), "links that lead nowhere:\n{}", dead.join("\n"));
    // And one that leads nowhere is found.
    let page = into.join("faq.html");
    let broken =
        fs::read_to_string(&page)?.replacen("<main>", "<main><a href=\"metrics.html#nothing\">x</a>", 1);
    fs::write(&page, broken)?;
    ensure!(dead_links(&into)? == ["faq.html: metrics.html#nothing"], "{:?}", dead_links(&into)?);
    Ok(())
}

#[test]
fn every_command_says_which_test_runs_it() -> Result<()> {
    for page in typed()? {
        for block in blocks(&read(&page)?).with_context(|| page.display().to_string())? {
            let place = format!("{}:{}", page.display(), block.line);
            for shell in ["sh", "bash", "shell", "shell-session"] {
                ensure!(!block.is(shell), "{place}: write ```console with `$ ` before each command");
            }
            ensure!(!block.is("text") || !block.text.starts_with("$ "), "{place}: write ```console");
            if block.is("console") {
                let ways = [block.has("run"), block.has("long"), block.by().is_some()];
                ensure!(
                    ways.iter().filter(|way| **way).count() == 1,
                    "{place}: ```console run, long or by=TEST"
                );
                ensure!(!block.steps().is_empty(), "{place}: no command begins with `$ `");
            }
            if let Some(program) = block.by() {
                let source = fs::read_to_string(root().join(format!("tests/tests/{program}.rs")));
                let name = page.file_name().unwrap_or_default().to_string_lossy();
                let takes = format!("Commands::of(\"{name}\", \"{program}\")");
                let source = source.with_context(|| format!("{place}: no test {program}"))?;
                ensure!(
                    source.contains(&takes) && source.contains("were_all_run()"),
                    "{place}: {program} does not run it"
                );
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
    for page in typed()? {
        let blocks = blocks(&read(&page)?)?;
        let is_run = |block: &Block| block.has("run") || (full() && block.has("long"));
        if !blocks.iter().any(is_run) {
            continue;
        }
        let folder = scratch()?;
        for block in &blocks {
            if let Some(file) = block.file() {
                fs::write(folder.path().join(file), &block.text)?;
            } else if block.is("console") && is_run(block) {
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
    // Nothing of this machine is changed.
    let own = format!("{}/", folder.display());
    let mut script = format!("set -m\n{}\n", block.before);
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
    // What a page calls by its path in the checkout.
    let checkout = folder.join("xtask");
    if !checkout.exists() {
        std::os::unix::fs::symlink(root().join("xtask"), checkout)?;
    }
    shell.env("PATH", path).env("QT_QPA_PLATFORM", "offscreen").env("RUST_LOG", "error");
    let ended = if block.has("long") {
        let script = script.replace("/usr/local/bin/", &own);
        run(shell.args(["-c", &script]).current_dir(root()), LONG_LIMIT)?
    } else {
        run(shell.args(["-c", &script]).current_dir(folder).env("HOME", folder), LIMIT)?
    };
    let mut printed = ended.stdout.split(MARK);
    let mut output = printed.next().unwrap_or_default().to_owned();
    for step in &steps {
        let after = printed.next().with_context(|| format!("the shell ended: {ended:?}"))?;
        let (code, rest) = after.split_once('\n').unwrap_or((after, ""));
        ensure!(code.trim() == "0", "`{}` exits with {code}:\n{output}\n{}", step.command, ended.stderr);
        // The mark stands on a line of its own.
        let own = output.strip_suffix('\n').unwrap_or(&output);
        let compare = if block.has("like") { is_like } else { matches };
        compare(&step.prints, own)
            .with_context(|| format!("`{}`, which also said: {}", step.command, ended.stderr))?;
        output = rest.to_owned();
    }
    Ok(())
}
