//! The object of the kernel side: compiled for arm64, too, wherever the agent is, and the same to the byte in whatever
//! folder it is compiled. `cargo xtask vm arm64` tries the other machine's.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what it did not find")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use toolchain::{Toolchain, object_in};

#[allow(dead_code, reason = "the build script and xtask use the rest of it")]
#[path = "../build/toolchain.rs"]
mod toolchain;

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Names of an object's programs.
fn programs(object: &[u8]) -> BTreeSet<String> {
    aya_obj::Object::parse(object).unwrap().programs.into_keys().collect()
}

/// What the agent carries.
fn carried() -> Vec<u8> {
    fs::read(env!("CADSCOPE_BPF_OBJECT")).unwrap()
}

/// The kernel side of `workspace` for `arch`, compiled in a folder of that `name` under the tests' own.
fn compile(workspace: &Path, arch: &str, name: &str) -> Vec<u8> {
    let toolchain = Toolchain::find().unwrap_or_else(|missing| panic!("{missing}"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let answer = toolchain.compile(workspace, arch, &folder).output().unwrap();
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    fs::read(object_in(&folder)).unwrap()
}

/// Copies what cargo reads of a workspace: manifests and sources.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        let is_source = path.extension().is_some_and(|ending| ending == "rs" || ending == "toml");
        if path.is_dir() && name != "target" && name != "fuzz" {
            copy(&path, &to.join(name));
        } else if is_source || name == "Cargo.lock" {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

#[test]
fn the_kernel_side_has_the_same_programs_on_x86_64_and_arm64() {
    let other = if cfg!(target_arch = "aarch64") { "x86_64" } else { "aarch64" };
    let compiled = programs(&compile(Path::new(WORKSPACE), other, &format!("bpf-{other}")));
    assert!(compiled.contains("call_enter"), "{compiled:?}");
    assert_eq!(compiled, programs(&carried()));
}

#[test]
fn sources_in_another_folder_give_the_same_object() {
    let elsewhere = tempfile::tempdir().unwrap();
    let workspace = elsewhere.path().join("some where/else");
    fs::create_dir_all(&workspace).unwrap();
    for part in ["agent", "common", "ebpf", "tests", "xtask"] {
        copy(&Path::new(WORKSPACE).join(part), &workspace.join(part));
    }
    for file in ["Cargo.toml", "Cargo.lock"] {
        fs::copy(Path::new(WORKSPACE).join(file), workspace.join(file)).unwrap();
    }
    let compiled = compile(&workspace, std::env::consts::ARCH, "bpf-elsewhere");
    let same = compiled == carried();
    assert!(same, "{} bytes here, {} elsewhere, and they differ", carried().len(), compiled.len());
}

#[test]
fn the_object_names_no_folder_of_the_machine_that_compiled_it() {
    let object = carried();
    let text = String::from_utf8_lossy(&object);
    let workspace = PathBuf::from(WORKSPACE).canonicalize().unwrap();
    for folder in [Some(workspace), std::env::home_dir()].into_iter().flatten() {
        let folder = folder.display().to_string();
        assert!(!text.contains(&folder), "it names {folder}");
    }
    assert!(text.contains("/cadscope/ebpf/src"), "it names no source at all");
}
