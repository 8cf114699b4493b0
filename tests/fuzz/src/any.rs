//! Turns inputs of libFuzzer into calls of one target, that which `CADSCOPE_FUZZ_TARGET` names.
//!
//! The targets and their bounds are those of the test of changed inputs: `agent/tests/mutations`. Real inputs of the target
//! are written into the folder `CADSCOPE_FUZZ_SEEDS` before the first input comes.

#![no_main]

use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use nix::sys::signal::{SigHandler, Signal, signal};

#[path = "../../../agent/tests/mutations/bounds.rs"]
mod bounds;
#[path = "../../../agent/tests/mutations/targets.rs"]
mod targets;

thread_local! {
    static TARGET: targets::Target = {
        let name = std::env::var("CADSCOPE_FUZZ_TARGET").expect("CADSCOPE_FUZZ_TARGET names a target");
        targets::all().into_iter().find(|target| target.name == name).expect("CADSCOPE_FUZZ_TARGET is no target")
    };
}

fn write_seeds() {
    TARGET.with(|target| {
        let Some(folder) = std::env::var_os("CADSCOPE_FUZZ_SEEDS").map(PathBuf::from) else { return };
        let kept = targets::kept(target.name);
        let inputs = target.seeds.iter().chain(&kept).filter(|seed| seed.len() <= target.most_bytes);
        for (at, seed) in inputs.enumerate() {
            std::fs::write(folder.join(format!("seed-{at}")), seed).expect("seeds can be written");
        }
    });
}

/// As in every program of Rust's, but libFuzzer's main is none: a client that is gone is an error of a write.
fn begin() {
    // SAFETY: no handler is installed, and no other thread runs yet.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    write_seeds();
}

fuzz_target!(
    init: begin(),
    |input: &[u8]| TARGET.with(|target| {
        if let Err(wrong) = bounds::judge(&target.read, input) {
            eprintln!("{}: {wrong}", target.name);
            std::process::abort();
        }
    })
);
