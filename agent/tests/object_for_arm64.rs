//! The kernel side is compiled for arm64, too, wherever the agent is: what cannot be tried there is compiled at least.
//! `cargo xtask vm arm64` tries it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what it did not find")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use toolchain::{TARGET, Toolchain};

#[allow(dead_code, reason = "the build script and xtask use the rest of it")]
#[path = "../build/toolchain.rs"]
mod toolchain;

/// Names of an object's programs.
fn programs(object: &Path) -> BTreeSet<String> {
    let bytes = fs::read(object).unwrap_or_else(|error| panic!("{}: {error}", object.display()));
    aya_obj::Object::parse(&bytes).unwrap().programs.into_keys().collect()
}

#[test]
fn the_kernel_side_has_the_same_programs_on_x86_64_and_arm64() {
    let toolchain = Toolchain::find().unwrap_or_else(|missing| panic!("{missing}"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ebpf");
    let other = if cfg!(target_arch = "aarch64") { "x86_64" } else { "aarch64" };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bpf-{other}"));
    let answer = toolchain.compile(&source, other, &folder).output().unwrap();
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    let compiled = programs(&folder.join(TARGET).join("release/cadscope-ebpf"));
    assert!(compiled.contains("call_enter"), "{compiled:?}");
    assert_eq!(compiled, programs(Path::new(env!("CADSCOPE_BPF_OBJECT"))));
}
