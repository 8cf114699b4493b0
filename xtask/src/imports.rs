//! Turns the source of the agent into the list of imports that point against the flow of the data.
//!
//! `agent/src/lib.rs` lists its modules in the order of the flow, and a module may name only those before it. Paths
//! in comments are prose; unit tests, at the end of a file or in a `tests.rs`, may name what they like.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Checks every file below `source`, a crate's `src`.
pub(crate) fn check(source: &Path) -> Result<()> {
    let library = source.join("lib.rs");
    let order = modules(&fs::read_to_string(&library).with_context(|| library.display().to_string())?);
    let mut files = Vec::new();
    collect(source, &mut files)?;
    files.sort();
    let mut wrong = Vec::new();
    for file in &files {
        let inner = file.strip_prefix(source)?;
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        wrong.extend(
            against(&order, &module_of(inner), &text)
                .into_iter()
                .map(|name| format!("  {}: {name}", inner.display())),
        );
    }
    if !wrong.is_empty() {
        bail!(
            "modules import only from those before them in {}; these do not:\n{}",
            library.display(),
            wrong.join("\n")
        );
    }
    println!("imports: {} files follow the order of {} modules", files.len(), order.len());
    Ok(())
}

/// The modules that a crate root declares, in order.
fn modules(library: &str) -> Vec<String> {
    library
        .lines()
        .filter_map(|line| {
            let name = line.trim().strip_suffix(';')?;
            let name = name.strip_prefix("pub ").or_else(|| name.strip_prefix("pub(crate) ")).unwrap_or(name);
            name.strip_prefix("mod ").map(str::to_owned)
        })
        .collect()
}

/// `export` for `export.rs` and `export/http.rs`.
fn module_of(inner: &Path) -> String {
    let first = inner.components().next().map(|first| PathBuf::from(first.as_os_str())).unwrap_or_default();
    first.with_extension("").to_string_lossy().into_owned()
}

/// The modules that this file of `module` names although they do not stand before it.
fn against(order: &[String], module: &str, text: &str) -> Vec<String> {
    // The crate root and main.rs wire everything together.
    let Some(own) = order.iter().position(|name| name == module) else {
        return Vec::new();
    };
    let mut found: Vec<String> = named(&code(text))
        .into_iter()
        .filter(|name| order.iter().position(|known| known == name).is_some_and(|place| place > own))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Without comments and without the unit tests at the end.
fn code(text: &str) -> String {
    let mut lines = Vec::new();
    let mut rest = text.lines().peekable();
    while let Some(line) = rest.next() {
        let trimmed = line.trim();
        if trimmed == "#[cfg(test)]" && rest.peek().is_some_and(|next| next.trim().starts_with("mod ")) {
            break;
        }
        lines.push(trimmed.split("//").next().unwrap_or_default());
    }
    lines.join("\n")
}

/// The first segments behind every `crate::`, also of a group `crate::{a, b::{c, d}}`.
fn named(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (place, prefix) in code.match_indices("crate::") {
        let before = code.get(..place).and_then(|head| head.chars().next_back());
        if before.is_some_and(|before| before == '$' || before == '_' || before.is_alphanumeric()) {
            continue;
        }
        let behind = code.get(place + prefix.len()..).unwrap_or_default().trim_start();
        match behind.strip_prefix('{') {
            None => names.extend(identifier(behind)),
            Some(group) => {
                let mut depth = 0_u32;
                let mut part = String::new();
                for letter in group.chars() {
                    match letter {
                        '}' if depth == 0 => break,
                        ',' if depth == 0 => names.extend(identifier(&std::mem::take(&mut part))),
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        _ if depth == 0 => part.push(letter),
                        _ => {}
                    }
                }
                names.extend(identifier(&part));
            }
        }
    }
    names
}

fn identifier(text: &str) -> Option<String> {
    let name: String =
        text.trim_start().chars().take_while(|letter| *letter == '_' || letter.is_alphanumeric()).collect();
    (!name.is_empty()).then_some(name)
}

fn collect(directory: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, into)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            into.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(module: &str, text: &str) -> Vec<String> {
        let order = modules("//! mod prose;\npub mod first;\nmod second;\npub(crate) mod third;\n");
        against(&order, module, text)
    }

    #[test]
    fn a_later_module_may_not_be_imported() {
        assert_eq!(wrong("second", "use crate::third::X;"), ["third"]);
        assert_eq!(wrong("first", "use crate::{second::{A, B}, third, first};"), ["second", "third"]);
        assert_eq!(wrong("first", "use crate::{\n    second::A,\n};"), ["second"]);
        assert_eq!(wrong("first", "let x = crate::third::f();"), ["third"]);
    }

    #[test]
    fn earlier_modules_own_parts_and_the_root_may_be_imported() {
        assert!(wrong("second", "use crate::first::X;\nuse crate::second::Y;\nuse crate::Z;").is_empty());
        assert!(wrong("lib", "use crate::third::X;").is_empty());
    }

    #[test]
    fn comments_tests_and_other_crates_do_not_count() {
        assert!(wrong("first", "/// like [`crate::third::X`]\nfn f() {} // crate::second").is_empty());
        assert!(
            wrong("first", "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::third::X;\n}").is_empty()
        );
        assert!(wrong("first", "use other_crate::third::X; $crate::third!()").is_empty());
    }

    #[test]
    fn files_in_a_folder_belong_to_its_module() {
        assert_eq!(module_of(Path::new("export.rs")), "export");
        assert_eq!(module_of(Path::new("export/http/page.rs")), "export");
    }

    #[test]
    fn a_wrong_import_fails_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("first")).unwrap();
        fs::write(folder.path().join("lib.rs"), "pub mod first;\npub mod second;\n").unwrap();
        fs::write(folder.path().join("first/inner.rs"), "use crate::second::X;\n").unwrap();
        fs::write(folder.path().join("first/tests.rs"), "use crate::second::Y;\n").unwrap();
        fs::write(folder.path().join("second.rs"), "use crate::first::X;\n").unwrap();
        let error = check(folder.path()).unwrap_err().to_string();
        assert!(error.contains("first/inner.rs: second"), "{error}");
    }
}
