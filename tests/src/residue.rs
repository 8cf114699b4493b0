//! What an agent could leave behind: BPF programs and links of its process, breakpoints in the text of workers.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::run::run;

/// Ids of the BPF objects of one kind (`prog`, `link`) that no living process holds: those of other programs come and
/// go while a test runs, and what a dead agent left has no holder.
///
/// # Errors
/// bpftool is missing or fails.
pub fn bpf_ids(kind: &str) -> Result<BTreeSet<u64>> {
    let tool = crate::node::tool("bpftool", "bpftool")?;
    let ended = run(Command::new(tool).args(["--json", kind, "list"]), Duration::from_secs(20))?;
    ensure!(ended.code == 0, "bpftool {kind} list: {}", ended.stderr);
    let list: Vec<serde_json::Value> = serde_json::from_str(&ended.stdout)?;
    let held = |entry: &&serde_json::Value| {
        let holders = entry.get("pids").and_then(serde_json::Value::as_array);
        holders.is_some_and(|h| !h.is_empty())
    };
    Ok(list.iter().filter(|e| !held(e)).filter_map(|entry| entry.get("id")?.as_u64()).collect())
}

/// How many breakpoints the kernel says that it left behind: it cannot take one away for a process that is being killed
/// while it places them (`uprobe_unregister` of kernel/events/uprobes.c).
///
/// # Errors
/// The kernel's log cannot be read.
pub fn left_by_the_kernel() -> Result<usize> {
    let ended = run(&mut Command::new("dmesg"), Duration::from_secs(20))?;
    ensure!(ended.code == 0, "dmesg: {}", ended.stderr);
    Ok(ended.stdout.matches("failed to unregister, leaking uprobe").count())
}

/// The executable mappings of a process: address range, offset in the file, file.
///
/// # Errors
/// The process is gone.
pub fn text_mappings(pid: u32) -> Result<Vec<(u64, u64, u64, PathBuf)>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut found = Vec::new();
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [range, rights, offset, _, inode, path] = *fields.as_slice()
            && rights.contains('x')
            && inode != "0"
        {
            let (start, end) = range.split_once('-').context("no range")?;
            found.push((
                u64::from_str_radix(start, 16)?,
                u64::from_str_radix(end, 16)?,
                u64::from_str_radix(offset, 16)?,
                PathBuf::from(path),
            ));
        }
    }
    Ok(found)
}

/// Compared as a whole first: nearly all of them are equal.
const PAGE: usize = 4096;

/// Places where the text that a process runs differs from its file: `file+offset: now`. A probe is an `int3` there.
///
/// # Errors
/// The process is gone or its memory cannot be read.
pub fn altered_text(pid: u32) -> Result<Vec<String>> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut altered = Vec::new();
    for (start, end, offset, path) in text_mappings(pid)? {
        // Through /proc: the file may have been replaced, or lie in another mount namespace.
        let link = PathBuf::from(format!("/proc/{pid}/map_files/{start:x}-{end:x}"));
        let Ok(file) = File::open(&link) else { continue };
        let length = usize::try_from(end - start)?;
        let (mut now, mut then) = (vec![0; length], vec![0; length]);
        memory.read_exact_at(&mut now, start)?;
        read_at_most(&file, &mut then, offset)?;
        for (page, (now, then)) in now.chunks(PAGE).zip(then.chunks(PAGE)).enumerate() {
            if now == then {
                continue;
            }
            for (at, (now, _)) in now.iter().zip(then).enumerate().filter(|(_, (now, then))| now != then) {
                let place = offset + u64::try_from(page * PAGE + at)?;
                altered.push(format!("{}+{place:#x}: {now:#04x}", path.display()));
            }
        }
    }
    Ok(altered)
}

fn read_at_most(file: &File, buffer: &mut [u8], offset: u64) -> Result<()> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..)
        && !rest.is_empty()
    {
        match file.read_at(rest, offset + u64::try_from(done)?)? {
            0 => break, // the last page of a mapping goes beyond the file: zeros, as in memory
            n => done += n,
        }
    }
    Ok(())
}

/// Lines of the kernel's lists of trace events made by name (perf-event uprobes of older ways).
#[must_use]
pub fn named_uprobes() -> Vec<String> {
    let paths = ["/sys/kernel/tracing/uprobe_events", "/sys/kernel/debug/tracing/uprobe_events"];
    paths
        .iter()
        .filter_map(|p| std::fs::read_to_string(Path::new(p)).ok())
        .flat_map(|t| t.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// Other observers on this node, whose probes cannot be told from ours: process id and name.
#[must_use]
pub fn other_observers() -> Vec<(u32, String)> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let named = processes.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        let name = name.trim();
        matches!(name, "cadscope" | "bpftrace").then(|| (pid, name.to_owned()))
    });
    named.collect()
}
