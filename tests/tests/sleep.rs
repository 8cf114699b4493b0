//! Promise: a program of ours that sleeps, because what it reads has to be brought in, mixes up nothing: neither its own
//! call, nor those that others make on its CPU meanwhile.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::node::{require_root, scratch};
use cadscope_tests::run::run;
use cadscope_tests::trace::{Operation, trace};
use cadscope_tests::worker::build_program;

const CATALOG: &str = r#"
[[probe]]
id = "sleep.look"
function = "look(unsigned int const*, unsigned int const*, int)"
symbols = ["look"]
title = "look {n}"
[[probe.layout]]
enter = { value = "u32[arg0]", n = "i32(arg2)" }
leave = { result = "u32[ret]" }
"#;

#[test]
fn a_call_whose_memory_comes_late_and_those_made_meanwhile_are_told_apart() -> Result<()> {
    let _node = require_root()?;
    let program = build_program("sleep/sleep.cpp")?;
    let folder = scratch()?;
    let catalog = folder.path().join("sleep.toml");
    fs::write(&catalog, CATALOG)?;
    let command = [program.to_str().context("path is not UTF-8")?];
    let alone = run(&mut Command::new(&program), Duration::from_secs(60))?;
    ensure!(alone.code == 0, "{alone:?}");
    let (ended, trace) = trace(Some(&catalog), &command, &[], Duration::from_secs(60))?;
    ensure!(ended.code == 0 && ended.stdout == alone.stdout, "{ended:?}, alone {alone:?}");
    ensure!(trace.losses.is_empty(), "{:?}", trace.losses);

    let mut seen: Vec<[i64; 3]> = Vec::new();
    for operation in trace.of("sleep.look") {
        let int = |name| operation.int(name).with_context(|| format!("no {name}: {operation:?}"));
        seen.push([int("n")?, int("value")?, int("result")?]);
        ensure!(operation.outcome == "ok" && operation.depth == 0, "{operation:?}");
    }
    let meanwhile = |round: i64| (0..300).map(move |i| [1000 * round + i, i, i + 1]);
    let expected: Vec<[i64; 3]> =
        std::iter::once([7, 4201, 4202]).chain(meanwhile(1)).chain(meanwhile(2)).collect();
    seen.sort_unstable();
    ensure!(seen == expected, "{} calls, {} expected: {seen:?}", seen.len(), expected.len());
    let threads = |operations: &[&Operation]| {
        let mut threads: Vec<i32> = operations.iter().map(|operation| operation.tid).collect();
        threads.sort_unstable();
        threads.dedup();
        threads
    };
    let operations = trace.of("sleep.look");
    let (slow, quick): (Vec<&Operation>, Vec<&Operation>) =
        operations.iter().partition(|operation| operation.int("n") == Some(7));
    ensure!(threads(&quick).len() == 1 && threads(&slow) != threads(&quick), "threads are mixed up");
    Ok(())
}
