//! Promise: a slow operation names the line of the job that called it, whatever Python runs inside it.

#![allow(clippy::indexing_slicing, reason = "out of bounds is a failed test")]

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::builds::{self, Build};
use cadscope_tests::node::{require_root, scratch};
use cadscope_tests::trace;
use serde::Deserialize;

/// What the job says of an operation that it is about to call.
#[derive(Debug, Deserialize)]
struct Said {
    what: String,
    kind: String,
    line: u64,
    function: String,
}

/// How the job calls what it calls.
const CALLS: [(&str, &str); 4] = [
    ("boolean cut", ".cut("),
    ("boolean union", ".fuse("),
    ("recompute document", ".recompute("),
    ("add Part::", ".addObject("),
];

#[test]
fn slow_operations_name_the_line_that_called_them() -> Result<()> {
    let _node = require_root()?;
    // Python 3.11, 3.13 and 3.14.
    for build in builds::wanted().iter().filter(|build| build.has_freecad()) {
        lines_of(build).with_context(|| build.name.to_owned())?;
    }
    Ok(())
}

fn lines_of(build: &Build) -> Result<()> {
    let folder = scratch()?;
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs/lines.py"), folder.path().join("lines.py"))?;
    let prepared = build.command("lines.py", folder.path())?;
    let text = |text: &OsStr| text.to_string_lossy().into_owned();
    let command: Vec<String> =
        std::iter::once(prepared.get_program()).chain(prepared.get_args()).map(text).collect();
    let environment: Vec<(String, String)> =
        prepared.get_envs().filter_map(|(name, value)| Some((text(name), text(value?)))).collect();
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let environment: Vec<(&str, &str)> = environment.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let (ended, trace) = trace::trace(None, &command, &environment, Duration::from_secs(300))?;
    ensure!(ended.code == 0 && ended.stdout.contains("job done"), "{ended:?}");
    let record = fs::read_to_string(folder.path().join("record"))?;
    let said: Vec<Said> = record.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(said.len() == 6, "{record}");
    let slow: Vec<_> = trace.operations.iter().filter(|o| o.duration_ns() > 350_000_000).collect();
    for said in &said {
        let found = slow.iter().find(|operation| {
            operation.name.starts_with(&said.kind)
                && line_of(operation) == Some((said.line, plain(&said.function)))
        });
        ensure!(found.is_some(), "{said:?} is called by no operation: {slow:#?}");
        let file = found.and_then(|operation| operation.source.as_ref()?["at"]["file"].as_str());
        ensure!(file.is_some_and(|file| file.ends_with("/lines.py")), "{file:?}");
    }
    // Whatever else a busy machine made slow: a line that is given is one that calls it.
    let job = fs::read_to_string(folder.path().join("lines.py"))?;
    for operation in slow.iter().filter(|operation| operation.depth == 0) {
        let Some((line, _)) = line_of(operation) else { continue };
        let text = job.lines().nth(usize::try_from(line)? - 1).context("a line beyond the end")?;
        let kind = CALLS.iter().find(|(kind, _)| operation.name.starts_with(kind));
        let call = kind.map_or("(", |(_, call)| call);
        ensure!(text.contains(call), "`{text}` does not call {operation:?}");
    }
    // The recompute runs Python inside: its own caller is outside of that.
    let recompute = said.iter().find(|said| said.what == "recompute").context("no recompute")?;
    let object =
        slow.iter().find(|operation| operation.probe == "fc.recompute_feature").context("no object")?;
    ensure!(line_of(object).is_some_and(|(line, _)| line == recompute.line), "{object:?}");
    for operation in trace.operations.iter().filter(|operation| operation.duration_ns() < 250_000_000) {
        ensure!(operation.source.is_none(), "it was not slow: {operation:?}");
    }
    Ok(())
}

fn line_of(operation: &trace::Operation) -> Option<(u64, String)> {
    let at = &operation.source.as_ref()?["at"];
    Some((at["line"].as_u64()?, plain(at["function"].as_str()?)))
}

/// Python before 3.12 gives a comprehension a function of its own.
fn plain(function: &str) -> String {
    function.strip_suffix(".<locals>.<listcomp>").unwrap_or(function).to_owned()
}
