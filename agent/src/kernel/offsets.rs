//! Turns the running kernel's BTF into the offsets that the BPF programs read at.

use std::path::Path;

use btf_rs::{Btf, BtfType, Struct, Type};
use cadscope_common::settings::{ABSENT, KernelOffsets};

/// Why an offset is not known.
#[derive(Debug, thiserror::Error)]
pub enum OffsetError {
    /// No BTF.
    #[error("cannot read {path}: {reason}; the kernel must be built with CONFIG_DEBUG_INFO_BTF=y")]
    NoBtf {
        /// Where it was looked for.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// The structure or member is not there.
    #[error("this kernel's BTF has no {0}")]
    Missing(String),
}

/// What the running kernel's BTF says.
#[derive(Clone, Copy, Debug)]
pub struct KernelFacts {
    /// Where the programs read.
    pub offsets: KernelOffsets,
    /// Whether it has uprobe_multi links (Linux 6.6): its BTF names their type.
    pub has_uprobe_multi: bool,
    /// Whether `mmap_lock_start_locking` costs nothing but its program: before Linux 6.14 it formats the path of the
    /// cgroup at each page fault.
    pub has_cheap_mmap_lock: bool,
}

/// Reads the BTF in `path`.
///
/// # Errors
/// No BTF, or a member that this agent needs is missing.
pub fn read(path: &Path) -> Result<KernelFacts, OffsetError> {
    let no_btf = |reason: String| OffsetError::NoBtf { path: path.display().to_string(), reason };
    // Read whole first: read piecemeal it takes 250,000 seeks.
    let bytes = std::fs::read(path).map_err(|error| no_btf(error.to_string()))?;
    let btf = Btf::from_bytes(&bytes).map_err(|error| no_btf(error.to_string()))?;
    let multi = btf.resolve_ids_by_name("bpf_uprobe_multi_link");
    Ok(KernelFacts {
        offsets: offsets(&btf)?,
        has_uprobe_multi: multi.is_ok_and(|ids| !ids.is_empty()),
        // The context pointer, the mm and whether it is a writer.
        has_cheap_mmap_lock: arguments(&btf, "btf_trace_mmap_lock_start_locking") == Some(3),
    })
}

fn offsets(btf: &Btf) -> Result<KernelOffsets, OffsetError> {
    let of = |structure: &str, path: &[&str]| offset_of(btf, structure, path);
    Ok(KernelOffsets {
        task_group_leader: of("task_struct", &["group_leader"])?,
        task_start_boottime: of("task_struct", &["start_boottime"])?,
        task_exit_code: of("task_struct", &["exit_code"])?,
        task_signal: of("task_struct", &["signal"])?,
        task_pid: of("task_struct", &["pid"])?,
        task_tgid: of("task_struct", &["tgid"])?,
        // Where glibc keeps what it mangles jumps with; on arm64 that lies in the loader.
        task_fsbase: if cfg!(target_arch = "x86_64") {
            of("task_struct", &["thread", "fsbase"])?
        } else {
            ABSENT
        },
        task_sas_ss_sp: of("task_struct", &["sas_ss_sp"])?,
        task_sas_ss_size: of("task_struct", &["sas_ss_size"])?,
        signal_live: of("signal_struct", &["live"])?,
        signal_group_exit_code: of("signal_struct", &["group_exit_code"])?,
        signal_flags: of("signal_struct", &["flags"])?,
        signal_maxrss: of("signal_struct", &["maxrss"])?,
        signal_sum_sched_runtime: of("signal_struct", &["sum_sched_runtime"])?,
        task_sum_exec_runtime: of("task_struct", &["se", "sum_exec_runtime"])?,
        task_mm: of("task_struct", &["mm"])?,
        task_rss_stat: of("task_struct", &["rss_stat", "count"]).unwrap_or(ABSENT),
        mm_rss_stat: of("mm_struct", &["rss_stat"])?,
        mm_hiwater_rss: of("mm_struct", &["hiwater_rss"])?,
        array_pptrs: of("bpf_array", &["pptrs"])?,
        task_cgroups: of("task_struct", &["cgroups"]).unwrap_or(ABSENT),
        counter_usage: of("page_counter", &["usage"]).unwrap_or(ABSENT),
        counter_max: of("page_counter", &["max"]).unwrap_or(ABSENT),
        counter_parent: of("page_counter", &["parent"]).unwrap_or(ABSENT),
        ..counters(btf)?
    })
}

/// What differs between kernels: how resident pages are counted, and where the memory cgroup stands.
fn counters(btf: &Btf) -> Result<KernelOffsets, OffsetError> {
    let of = |structure: &str, path: &[&str]| offset_of(btf, structure, path);
    let mm = structure(btf, "mm_struct").ok_or_else(|| OffsetError::Missing("mm_struct".to_owned()))?;
    let per_cpu = member(btf, &mm, "rss_stat", 0).is_some_and(|(_, inner)| inner.is_none());
    let memory = memory_cgroup_id(btf)
        .and_then(|id| Some(of("css_set", &["subsys"]).ok()?.saturating_add(id.saturating_mul(8))));
    let counter = structure(btf, "percpu_counter");
    Ok(KernelOffsets {
        percpu_count: if per_cpu { of("percpu_counter", &["count"])? } else { ABSENT },
        percpu_counters: if per_cpu { of("percpu_counter", &["counters"])? } else { 0 },
        percpu_size: counter.and_then(|counter| u32::try_from(counter.size()).ok()).unwrap_or(0),
        cgroups_memory: memory.unwrap_or(ABSENT),
        memcg_memory: of("mem_cgroup", &["memory"]).unwrap_or(ABSENT),
        ..KernelOffsets::ZERO
    })
}

fn memory_cgroup_id(btf: &Btf) -> Option<u32> {
    btf.resolve_types_by_name("cgroup_subsys_id").ok()?.into_iter().find_map(|found| {
        let Type::Enum(found) = found else { return None };
        let memory = found
            .members
            .iter()
            .find(|member| btf.resolve_name(*member).is_ok_and(|name| name == "memory_cgrp_id"))?;
        Some(memory.val())
    })
}

/// How many arguments the function behind a type name has.
fn arguments(btf: &Btf, name: &str) -> Option<usize> {
    let mut found = btf.resolve_types_by_name(name).ok()?.into_iter().next()?;
    for _ in 0..4 {
        found = match found {
            Type::Typedef(link) => btf.resolve_chained_type(&link).ok()?,
            Type::Ptr(link) => btf.resolve_chained_type(&link).ok()?,
            Type::FuncProto(function) => return Some(function.parameters.len()),
            _ => return None,
        };
    }
    None
}

fn structure(btf: &Btf, name: &str) -> Option<Struct> {
    btf.resolve_types_by_name(name).ok()?.into_iter().find_map(|found| match found {
        Type::Struct(found) if !found.members.is_empty() => Some(found),
        _ => None,
    })
}

fn offset_of(btf: &Btf, structure: &str, path: &[&str]) -> Result<u32, OffsetError> {
    let missing = || OffsetError::Missing(format!("{structure}::{}", path.join(".")));
    let mut current = self::structure(btf, structure).ok_or_else(missing)?;
    let mut bits = 0;
    for (index, name) in path.iter().enumerate() {
        let (offset, inner) = member(btf, &current, name, 0).ok_or_else(missing)?;
        bits += offset;
        if index + 1 < path.len() {
            current = inner.ok_or_else(missing)?;
        }
    }
    Ok(bits / 8)
}

/// The bit offset of a member, looked for in anonymous structs and unions too, and its own structure if it is one.
fn member(btf: &Btf, within: &Struct, name: &str, depth: u8) -> Option<(u32, Option<Struct>)> {
    if depth > 6 {
        return None;
    }
    for candidate in &within.members {
        let own_name = btf.resolve_name(candidate).unwrap_or_default();
        if own_name == name {
            return Some((candidate.bit_offset(), structure_of(btf, candidate)));
        }
        if own_name.is_empty()
            && let Some(inner) = structure_of(btf, candidate)
            && let Some((offset, found)) = member(btf, &inner, name, depth + 1)
        {
            return Some((candidate.bit_offset() + offset, found));
        }
    }
    None
}

fn structure_of<T: BtfType>(btf: &Btf, of: &T) -> Option<Struct> {
    let mut found = btf.resolve_chained_type(of).ok()?;
    for _ in 0..8 {
        found = match found {
            Type::Struct(inner) | Type::Union(inner) => return Some(inner),
            Type::Typedef(link) => btf.resolve_chained_type(&link).ok()?,
            Type::Const(link) => btf.resolve_chained_type(&link).ok()?,
            Type::Volatile(link) => btf.resolve_chained_type(&link).ok()?,
            Type::TypeTag(link) => btf.resolve_chained_type(&link).ok()?,
            _ => return None,
        };
    }
    None
}
