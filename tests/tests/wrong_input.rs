//! Promise: whatever is wrong with the node or the input, one clear message says so, with the fix.

#![allow(
    clippy::indexing_slicing,
    reason = "bytes at known places of a file that is there: out of bounds is a failed test"
)]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cadscope_tests::node::{cadscope, require_root, scratch, tool};
use cadscope_tests::run::{Ended, run};

const LIMIT: Duration = Duration::from_secs(20);

/// It ended by itself, not well, and said why in few lines with one of the words of each group.
fn clear(what: &str, ended: &Ended, groups: &[&[&str]]) -> Result<()> {
    ensure!((1..126).contains(&ended.code), "{what}: exit {}: {ended:?}", ended.code);
    let said = format!("{}{}", ended.stderr, ended.stdout);
    ensure!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "{what}: {said}");
    let lines = ended.stderr.lines().filter(|l| !l.trim().is_empty()).count();
    ensure!((1..=12).contains(&lines), "{what}: {lines} lines:\n{}", ended.stderr);
    let lower = said.to_lowercase();
    for words in groups {
        ensure!(
            words.iter().any(|w| lower.contains(&w.to_lowercase())),
            "{what}: none of {words:?} in:\n{said}"
        );
    }
    Ok(())
}

/// A copy of the program that anyone may run.
fn public_copy() -> Result<(tempfile::TempDir, PathBuf)> {
    let folder = scratch()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let copy = folder.path().join("cadscope");
    fs::copy(cadscope()?, &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    Ok((folder, copy))
}

#[test]
fn without_root_it_says_which_rights_it_needs() -> Result<()> {
    let _node = require_root()?;
    let (folder, copy) = public_copy()?;
    let commands: [&[&str]; 2] = [&["agent", "--listen", "127.0.0.1:0"], &["trace", "--", "true"]];
    for arguments in commands {
        let mut command = Command::new(tool("setpriv", "util-linux")?);
        command
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
            .arg(&copy)
            .args(arguments);
        let ended = run(command.current_dir(folder.path()), LIMIT)?;
        clear(&format!("{arguments:?} as nobody"), &ended, &[&["root", "sudo", "CAP_"]])?;
    }
    Ok(())
}

#[test]
fn without_a_capability_it_names_the_capability() -> Result<()> {
    let _node = require_root()?;
    // CAP_SYS_ADMIN contains CAP_BPF and CAP_PERFMON.
    for (dropped, name) in [("-bpf,-sys_admin", "CAP_BPF"), ("-perfmon,-sys_admin", "CAP_PERFMON")] {
        for arguments in [&["agent", "--listen", "127.0.0.1:0"][..], &["trace", "--", "true"]] {
            let mut command = Command::new(tool("setpriv", "util-linux")?);
            command.args([&format!("--bounding-set={dropped}"), "--"]).arg(cadscope()?).args(arguments);
            let ended = run(&mut command, LIMIT)?;
            clear(&format!("{arguments:?} without {dropped}"), &ended, &[&[name]])?;
        }
    }
    Ok(())
}

#[test]
fn doctor_fails_where_the_agent_would() -> Result<()> {
    let _node = require_root()?;
    let well = run(Command::new(cadscope()?).arg("doctor"), LIMIT)?;
    ensure!(well.code == 0, "doctor finds fault with a node that tests run on: {well:?}");
    let mut command = Command::new(tool("setpriv", "util-linux")?);
    command.args(["--bounding-set=-bpf,-sys_admin", "--"]).arg(cadscope()?).arg("doctor");
    let ill = run(&mut command, LIMIT)?;
    ensure!(ill.code != 0 && format!("{}{}", ill.stdout, ill.stderr).contains("CAP_BPF"), "{ill:?}");
    Ok(())
}

#[test]
fn an_unknown_configuration_key_is_named() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let file = folder.path().join("cadscope.toml");
    for (text, words) in [
        ("lisen = \"127.0.0.1:9777\"\n", &["lisen"][..]),
        ("[[probe]]\nid = \"a.b\"\nsimbols = [\"x\"]\n", &["simbols"]),
        ("listen = [\n", &["line", "TOML", "parse", "expected"]),
        ("listen = \"not an address\"\n", &["not an address"]),
    ] {
        fs::write(&file, text)?;
        let ended = run(Command::new(cadscope()?).args(["agent", "--config"]).arg(&file), LIMIT)?;
        clear(text, &ended, &[words, &["cadscope.toml"]])?;
    }
    fs::remove_file(&file)?;
    let ended = run(Command::new(cadscope()?).args(["agent", "--config"]).arg(&file), LIMIT)?;
    clear(
        "no configuration file",
        &ended,
        &[&["cadscope.toml"], &["no such file", "not found", "cannot read"]],
    )
}

#[test]
fn a_bad_probe_of_the_users_is_named() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let file = folder.path().join("probes.toml");
    let probe = |value: &str| {
        format!(
            "[[probe]]\nid = \"my.probe\"\nfunction = \"f()\"\nsymbols = [\"_Z1fv\"]\ntitle = \"f\"\n\
             [[probe.layout]]\nenter = {{ n = \"{value}\" }}\n"
        )
    };
    for value in ["i32(arg9)", "i32[", "f99(arg0)", "i32(ret)"] {
        fs::write(&file, probe(value))?;
        let ended = run(
            Command::new(cadscope()?).args(["agent", "--listen", "127.0.0.1:0", "--catalog"]).arg(&file),
            LIMIT,
        )?;
        clear(value, &ended, &[&["my.probe"]])?;
    }
    Ok(())
}

#[test]
fn a_busy_port_is_named() -> Result<()> {
    let _node = require_root()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let ended = run(Command::new(cadscope()?).args(["agent", "--listen", &address]), LIMIT)?;
    clear("busy port", &ended, &[&[&address], &["in use", "busy", "taken"]])
}

#[test]
fn a_file_that_is_no_whole_program_is_named() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let whole = fs::read("/usr/lib/x86_64-linux-gnu/libTKBO.so.7.6.3").context("OCCT is not installed")?;
    let mut absurd = whole.clone();
    absurd[0x28..0x30].copy_from_slice(&u64::MAX.to_le_bytes()); // section headers at the end of the world
    absurd[0x20..0x28].copy_from_slice(&(u64::MAX - 7).to_le_bytes()); // program headers too
    let mut swapped = whole.clone();
    swapped[5] = 2; // big-endian
    let mut small = whole.clone();
    small[4] = 1; // 32-bit
    let files: [(&str, Vec<u8>); 8] = [
        ("empty.so", Vec::new()),
        (
            "garbage.so",
            (0..100_000u32).map(|i| u8::try_from(i.wrapping_mul(2_654_435_761) >> 24).unwrap_or(0)).collect(),
        ),
        ("text.so", b"#!/bin/sh\necho no library\n".to_vec()),
        ("header.so", whole[..64].to_vec()),
        ("half.so", whole[..whole.len() / 2].to_vec()),
        ("absurd.so", absurd),
        ("big-endian.so", swapped),
        ("32-bit.so", small),
    ];
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::write(&path, bytes)?;
        let ended = run(Command::new(cadscope()?).arg("probes").arg(&path), LIMIT)?;
        clear(name, &ended, &[&[name]])?;
    }
    for path in ["/nonexistent.so", "/dev/zero", "/tmp"] {
        let ended = run(Command::new(cadscope()?).arg("probes").arg(path), LIMIT)?;
        clear(path, &ended, &[&[path]])?;
    }
    Ok(())
}

#[test]
fn bytes_changed_at_random_never_crash_the_reader() -> Result<()> {
    let _node = require_root()?;
    let folder = scratch()?;
    let whole = fs::read("/usr/lib/x86_64-linux-gnu/libTKBO.so.7.6.3").context("OCCT is not installed")?;
    let mut state = 88_172_645_463_325_252_u64; // xorshift: the same bytes in every run
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state).unwrap_or(0) % below
    };
    for round in 0..20 {
        let mut bytes = whole.clone();
        for _ in 0..200 {
            let at = if round % 2 == 0 { next(4096) } else { next(bytes.len()) };
            bytes[at] = u8::try_from(next(256))?;
        }
        bytes[..4].copy_from_slice(b"\x7fELF");
        let path = folder.path().join("changed.so");
        fs::write(&path, bytes)?;
        let ended = run(Command::new(cadscope()?).arg("probes").arg(&path), LIMIT)?;
        ensure!(ended.code < 126 && !ended.stderr.contains("panicked"), "round {round}: {ended:?}");
    }
    Ok(())
}

#[test]
fn an_unknown_command_or_flag_shows_what_there_is() -> Result<()> {
    let _node = require_root()?;
    for arguments in
        [&["trase"][..], &["agent", "--lisen", "x"], &["trace"], &["trace", "--format", "xml", "--", "true"]]
    {
        let ended = run(Command::new(cadscope()?).args(arguments), LIMIT)?;
        clear(&format!("{arguments:?}"), &ended, &[&["usage", "--help"]])?;
    }
    Ok(())
}
