//! Turns the running kernel's BTF into the offsets that the BPF programs read at.

use btf_rs::{Btf, BtfType, Struct, Type};
use cadscope_common::settings::KernelOffsets;

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
}

/// Reads the BTF in `path` (`/sys/kernel/btf/vmlinux`).
///
/// # Errors
/// No BTF, or a member that this agent needs is missing.
pub fn read(path: &str) -> Result<KernelFacts, OffsetError> {
    let no_btf = |reason: String| OffsetError::NoBtf { path: path.to_owned(), reason };
    // Read whole first: read piecemeal it takes 250,000 seeks.
    let bytes = std::fs::read(path).map_err(|error| no_btf(error.to_string()))?;
    let btf = Btf::from_bytes(&bytes).map_err(|error| no_btf(error.to_string()))?;
    let multi = btf.resolve_ids_by_name("bpf_uprobe_multi_link");
    Ok(KernelFacts { offsets: offsets(&btf)?, has_uprobe_multi: multi.is_ok_and(|ids| !ids.is_empty()) })
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
        task_fsbase: of("task_struct", &["thread", "fsbase"])?,
        task_sas_ss_sp: of("task_struct", &["sas_ss_sp"])?,
        task_sas_ss_size: of("task_struct", &["sas_ss_size"])?,
        signal_live: of("signal_struct", &["live"])?,
        signal_group_exit_code: of("signal_struct", &["group_exit_code"])?,
        signal_flags: of("signal_struct", &["flags"])?,
    })
}

fn offset_of(btf: &Btf, structure: &str, path: &[&str]) -> Result<u32, OffsetError> {
    let missing = || OffsetError::Missing(format!("{structure}::{}", path.join(".")));
    let types = btf.resolve_types_by_name(structure).map_err(|_| missing())?;
    let mut current = types
        .into_iter()
        .find_map(|found| match found {
            Type::Struct(found) if !found.members.is_empty() => Some(found),
            _ => None,
        })
        .ok_or_else(missing)?;
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
