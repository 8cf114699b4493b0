//! Turns `.dynamic` into what it says of a file's tables.

use object::elf;

use super::super::bytes::u64_at;

/// More entries than any `.dynamic` has.
const MOST_DYNAMIC_ENTRIES: u64 = 4096;

/// What `.dynamic` says, addresses as the file states them; 0 = not there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Dynamic {
    pub(super) symbols: u64,
    pub(super) strings: u64,
    pub(super) strings_size: u64,
    pub(super) hash: u64,
    pub(super) gnu_hash: u64,
    pub(super) versions: u64,
    pub(super) plt_relocations: u64,
    pub(super) plt_relocations_size: u64,
    pub(super) relocations: u64,
    pub(super) relocations_size: u64,
    pub(super) relative_count: u64,
    pub(super) soname: u64,
}

impl Dynamic {
    pub(super) fn read(bytes: &[u8], offset: u64, size: u64) -> Self {
        let mut found = Self::default();
        for index in 0..(size / 16).min(MOST_DYNAMIC_ENTRIES) {
            let Some(at) = offset.checked_add(index * 16) else { break };
            let (Some(tag), Some(value)) =
                (u64_at(bytes, at), at.checked_add(8).and_then(|at| u64_at(bytes, at)))
            else {
                break;
            };
            let Ok(tag) = i64::try_from(tag) else { continue };
            match elf::DynamicTag(tag) {
                elf::DT_NULL => break,
                elf::DT_SYMTAB => found.symbols = value,
                elf::DT_STRTAB => found.strings = value,
                elf::DT_STRSZ => found.strings_size = value,
                elf::DT_HASH => found.hash = value,
                elf::DT_GNU_HASH => found.gnu_hash = value,
                elf::DT_VERSYM => found.versions = value,
                elf::DT_JMPREL => found.plt_relocations = value,
                elf::DT_PLTRELSZ => found.plt_relocations_size = value,
                elf::DT_RELA => found.relocations = value,
                elf::DT_RELASZ => found.relocations_size = value,
                elf::DT_RELACOUNT => found.relative_count = value,
                elf::DT_SONAME => found.soname = value,
                _ => {}
            }
        }
        found
    }
}
