//! Turns a page of the documentation into what it claims: commands with what they print, files that it shows, links.
//!
//! A block ` ```console run ` is run by the test of the documentation, ` ```console long ` by its long form, in the checkout;
//! ` ```console by=NAME ` by the test program of that name, which has the machine for it ([`Commands`]). What a comment
//! `<!-- before: COMMAND -->` above a block says is run before it. A block with `file=NAME` is that file. In what a command
//! prints, `…` stands for any text and a line `[…]` for any lines; in a block with `like` no number, bar or order is meant, but
//! each of its lines is printed.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

/// A fenced block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// What stands behind the fence.
    pub info: String,
    /// The line of the fence, from 1.
    pub line: usize,
    /// Its lines.
    pub text: String,
    /// What its commands find done already; for the shell.
    pub before: String,
}

/// A command and what the page says that it prints; nothing if that is left open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// For the shell.
    pub command: String,
    /// Lines.
    pub prints: Vec<String>,
}

impl Block {
    /// The file that it is.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        self.info.split_whitespace().find_map(|word| word.strip_prefix("file="))
    }

    /// The test program that runs it.
    #[must_use]
    pub fn by(&self) -> Option<&str> {
        self.info.split_whitespace().find_map(|word| word.strip_prefix("by="))
    }

    /// Whether its first word is this.
    #[must_use]
    pub fn is(&self, language: &str) -> bool {
        self.info.split_whitespace().next() == Some(language)
    }

    /// Whether it has this word.
    #[must_use]
    pub fn has(&self, word: &str) -> bool {
        self.info.split_whitespace().any(|had| had == word)
    }

    /// The commands of a console.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        for line in self.text.lines() {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push(Step { command: command.to_owned(), prints: Vec::new() }),
                (None, Some(step)) if step.prints.is_empty() && step.command.ends_with('\\') => {
                    step.command.push('\n');
                    step.command.push_str(line);
                }
                (None, Some(step)) => step.prints.push(line.trim_end().to_owned()),
                (None, None) => {}
            }
        }
        steps
    }
}

/// The fenced blocks of a page.
///
/// # Errors
/// A block does not end.
pub fn blocks(page: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    let mut before = String::new();
    for (number, line) in (1..).zip(page.lines()) {
        match (line.strip_prefix("```"), open.as_mut()) {
            (Some(info), None) => {
                let before = std::mem::take(&mut before);
                open =
                    Some(Block { info: info.trim().to_owned(), line: number, text: String::new(), before });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {
                let comment = line.strip_prefix("<!-- before: ").and_then(|rest| rest.strip_suffix(" -->"));
                before = comment.unwrap_or_default().to_owned();
            }
        }
    }
    if let Some(block) = open {
        bail!("the block of line {} does not end", block.line);
    }
    Ok(blocks)
}

/// The commands of a page that a test program runs itself.
#[derive(Debug)]
pub struct Commands {
    blocks: Vec<Block>,
    /// Lines of those that were handed out.
    taken: RefCell<BTreeSet<usize>>,
}

impl Commands {
    /// Those of `docs/PAGE` that say `by=PROGRAM`.
    ///
    /// # Errors
    /// There are none.
    pub fn of(page: &str, program: &str) -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut blocks = blocks(&text)?;
        blocks.retain(|block| block.by() == Some(program));
        ensure!(!blocks.is_empty(), "{page} has no commands for {program}");
        Ok(Self { blocks, taken: RefCell::default() })
    }

    /// The commands of the block in which this stands, for the shell.
    ///
    /// # Errors
    /// There is none.
    pub fn script(&self, with: &str) -> Result<String> {
        let block = self.blocks.iter().find(|block| block.text.contains(with));
        let block = block.with_context(|| format!("no `{with}` on the page"))?;
        self.taken.borrow_mut().insert(block.line);
        Ok(block.steps().into_iter().map(|step| step.command + "\n").collect())
    }

    /// Whether each was handed out.
    ///
    /// # Errors
    /// Which were not.
    pub fn were_all_run(&self) -> Result<()> {
        let taken = self.taken.borrow();
        let left: Vec<&Block> = self.blocks.iter().filter(|block| !taken.contains(&block.line)).collect();
        ensure!(left.is_empty(), "never run: {left:#?}");
        Ok(())
    }
}

/// The targets of its links and pictures, outside of code.
#[must_use]
pub fn links(page: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut fenced = false;
    for line in page.lines() {
        fenced ^= line.starts_with("```");
        if fenced {
            continue;
        }
        // Every other part stands between backticks.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        links.extend(targets.map(str::to_owned));
    }
    links
}

/// The names by which headings are linked, as GitHub and mdBook make them.
#[must_use]
pub fn anchors(page: &str) -> Vec<String> {
    let mut fenced = false;
    let headings = page.lines().filter(|line| {
        fenced ^= line.starts_with("```");
        !fenced && line.starts_with('#')
    });
    headings
        .map(|line| {
            let text = line.trim_start_matches('#').trim().to_lowercase();
            let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// Whether a command printed what the page says.
///
/// # Errors
/// The first line that it did not print.
pub fn matches(said: &[String], printed: &str) -> Result<()> {
    let printed: Vec<&str> = printed.lines().map(str::trim_end).collect();
    let mut place = 0;
    let mut any = said.is_empty();
    for line in said {
        if line == "[…]" {
            any = true;
            continue;
        }
        let rest = printed.get(place..).unwrap_or_default();
        let found = rest.iter().position(|printed| fits(line, printed)).filter(|found| any || *found == 0);
        let Some(found) = found else {
            bail!(
                "`{line}` is not printed{}; instead:\n{}",
                if any { "" } else { " there" },
                rest.join("\n")
            );
        };
        place += found + 1;
        any = false;
    }
    ensure!(
        any || place == printed.len(),
        "more is printed:\n{}",
        printed.get(place..).unwrap_or_default().join("\n")
    );
    Ok(())
}

/// Whether a command printed each line of the page, whatever their order and numbers. Short neighbours stand in a row
/// of their own or in one row of all of them, with what is inside them, by how long the whole took: either is the other,
/// and what is inside stands in the table of totals.
///
/// # Errors
/// All lines that it did not print.
pub fn is_like(said: &[String], printed: &str) -> Result<()> {
    let outlines: Vec<String> = printed.lines().map(outline).collect();
    let is_folded = outlines.iter().any(|line| line.starts_with("… × "));
    let table = outlines.iter().position(|line| line == "operation count failed total self p50 max");
    let totals = table.filter(|_| is_folded).and_then(|place| outlines.get(place + 1..)).unwrap_or_default();
    let is_told = |line: &String| {
        let wanted = outline(line);
        let is_it =
            |printed: &String| fits(&wanted, printed) || folds(&wanted, printed) || folds(printed, &wanted);
        outlines.iter().any(is_it) || totals.iter().any(|total| begins(&wanted, total))
    };
    let missing: Vec<&str> = said
        .iter()
        .filter(|line| *line != "[…]" && !line.is_empty() && !is_told(line))
        .map(String::as_str)
        .collect();
    ensure!(missing.is_empty(), "nothing like\n{}\nin:\n{printed}", missing.join("\n"));
    Ok(())
}

/// Whether these are a line's first words.
fn begins(line: &str, words: &str) -> bool {
    let rest = line.strip_prefix(words).filter(|_| !words.is_empty());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

/// Whether an outline is that of a folded row, and the other that of a row which it may hold.
fn folds(folded: &str, row: &str) -> bool {
    let name = folded.strip_prefix("… × ").and_then(|rest| rest.strip_suffix(" (total"));
    name.is_some_and(|name| begins(row, name))
}

/// The words of a line that are the same in each run: no numbers with their units, no bars, no place in a script.
fn outline(line: &str) -> String {
    let drawn = |c: char| ('\u{2500}'..='\u{259f}').contains(&c);
    let is_same = |word: &&str| {
        let bare = word.trim_matches(|c: char| ",()+".contains(c));
        !bare.starts_with(|c: char| c.is_ascii_digit())
            && !["s", "ms", "µs", "MiB", "·"].contains(&bare)
            && !bare.contains(".py:")
    };
    let text = line.replace(drawn, " ");
    text.split_whitespace().filter(is_same).collect::<Vec<_>>().join(" ")
}

fn fits(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        let Some(found) = rest.find(part) else { return false };
        rest = rest.get(found + part.len()..).unwrap_or_default();
        last = Some(part);
    }
    match last {
        None => rest.is_empty(),
        // The last part stands at the end, wherever else it may stand.
        Some(part) => line.ends_with(part),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_what_they_print() {
        let page = "text\n```console run\n$ a \\\n  b\nc…\n[…]\n$ d\n```\n```toml file=x.toml\ny = 1\n```\n";
        let blocks = blocks(page).unwrap();
        assert_eq!((blocks.len(), blocks[0].line, blocks[1].file()), (2, 2, Some("x.toml")));
        let step = |command: &str, prints: &[&str]| Step {
            command: command.to_owned(),
            prints: prints.iter().map(|line| (*line).to_owned()).collect(),
        };
        assert_eq!(blocks[0].steps(), [step("a \\\n  b", &["c…", "[…]"]), step("d", &[])]);
        assert!(blocks[0].is("console") && blocks[0].has("run") && !blocks[1].has("run"));
        assert!(super::blocks("```\nx").is_err());
        let page = "<!-- before: x=1 -->\n```console by=install\n$ a\n```\n```console run\n$ b\n```\n";
        let blocks = super::blocks(page).unwrap();
        assert_eq!((blocks[0].by(), blocks[0].before.as_str()), (Some("install"), "x=1"));
        assert_eq!((blocks[1].by(), blocks[1].before.as_str()), (None, ""));
    }

    #[test]
    fn what_is_printed_is_compared() {
        let ok = |said: &[&str], printed: &str| {
            matches(&said.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>(), printed).is_ok()
        };
        assert!(ok(&[], "anything\n"));
        assert!(ok(&["a"], "a\n") && !ok(&["a"], "a\nb\n") && !ok(&["a"], "b\na\n"));
        assert!(ok(&["[…]", "b"], "x\na\nb\n") && !ok(&["[…]", "b"], "a\n") && !ok(&["[…]", "b"], "b\nc\n"));
        assert!(ok(&["a", "[…]"], "a\nb\nc\n") && ok(&["[…]", "a", "[…]"], "a\n"));
        assert!(ok(&["a … c"], "a b c\n") && !ok(&["a … c"], "a b c d\n") && ok(&["…c…"], "abcd\n"));
        assert!(ok(&["1 … 1"], "1 x 1 1\n"));
    }

    #[test]
    fn lines_are_alike_whatever_their_numbers() {
        let like = |said: &str, printed: &str| is_like(&[said.to_owned()], printed).is_ok();
        let printed =
            "  1.21 s     307 ms        ▐▉      └ boolean common +25 MiB  job.py:29\nfillet  7  ·  23.7 ms\n";
        assert!(like("1.3 s   90 µs ▉   boolean common", printed) && like("fillet 1 1 2 s", printed));
        assert!(like("[…]", "") && like("… × boolean (total 3 ms)", "  … 83 × boolean (total 993 ms)"));
        assert!(
            !like("boolean", printed) && !like("boolean union 3 ms", printed) && !like("chamfer", printed)
        );
        let folded = "1.58 s    45.8 ms          ░ └ … 17 × recompute (total 45.8 ms)\n";
        assert!(like("1.63 s  6.80 ms  ▏  ├ recompute Part::Fillet Fillet", folded));
        assert!(like(folded.trim_end(), "1.63 s  6.80 ms  ▏  ├ recompute Part::Fillet Fillet\n"));
        assert!(
            !like("recomputed 1 s", folded) && !like("fillet", folded) && !like(folded.trim_end(), printed)
        );
        assert!(!like("a{b=\"1\"} 1", "a{b=\"2\"} 1") && like("a{b=\"1\"} 1", "a{b=\"1\"} 2"));
    }

    #[test]
    fn links_are_found_outside_of_code() {
        let page = "# A b: c's\n[x](a.md) ![p](b.png) `[no](c.md)`\n```\n[no](d.md)\n# no\n```\n[y](#e)\n";
        assert_eq!(links(page), ["a.md", "b.png", "#e"]);
        assert_eq!(anchors(page), ["a-b-cs"]);
    }
}
