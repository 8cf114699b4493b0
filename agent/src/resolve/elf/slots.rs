//! Turns the relocations of a file into the names that its PLT stubs stand for: the symbol of each slot of the GOT.

use object::elf;

use super::super::bytes::{low32, slice, u32_at, u64_at};
use super::symbols::SYMBOL_BYTES;
use super::{ElfFile, Machine};

/// Most relocations of one table that are read.
const MOST_RELOCATIONS: u64 = 1 << 21;
/// Size of `Elf64_Rela` in bytes.
const RELA_BYTES: u64 = 24;

impl<'a> ElfFile<'a> {
    /// The symbol whose address the dynamic linker writes into a slot of the GOT.
    pub(in super::super) fn slot_name(&self, slot: u64) -> Option<&'a str> {
        let plt = self
            .plt_slots
            .get_or_init(|| self.slots(self.dynamic.plt_relocations, 0, self.dynamic.plt_relocations_size));
        let find = |slots: &[(u64, u32)]| {
            slots
                .binary_search_by_key(&slot, |(at, _)| *at)
                .ok()
                .and_then(|at| slots.get(at))
                .map(|(_, symbol)| *symbol)
        };
        let symbol = find(plt).or_else(|| {
            find(self.data_slots.get_or_init(|| {
                let skip = self.dynamic.relative_count.saturating_mul(RELA_BYTES);
                self.slots(self.dynamic.relocations, skip, self.dynamic.relocations_size)
            }))
        })?;
        let table = self.dynamic_table()?;
        let at = table.symbols.checked_add(u64::from(symbol) * SYMBOL_BYTES)?;
        let name = u32_at(self.bytes, at)?;
        std::str::from_utf8(self.name(&table, u64::from(name))?).ok().filter(|name| !name.is_empty())
    }

    /// (slot, symbol index) of the relocations that fill a slot with a symbol's address, by slot.
    fn slots(&self, relocations: u64, skip: u64, size: u64) -> Vec<(u64, u32)> {
        let table = if relocations == 0 { None } else { self.bytes_at(relocations) };
        let table =
            table.and_then(|table| slice(table, 0, size.min(u64::try_from(table.len()).unwrap_or(0))));
        let Some(table) = table.and_then(|table| table.get(usize::try_from(skip).ok()?..)) else {
            return Vec::new();
        };
        let kinds = match self.machine {
            Machine::X86_64 => [elf::R_X86_64_JUMP_SLOT.0, elf::R_X86_64_GLOB_DAT.0],
            Machine::Arm64 => [elf::R_AARCH64_JUMP_SLOT.0, elf::R_AARCH64_GLOB_DAT.0],
        };
        let mut slots = Vec::new();
        let most = usize::try_from(MOST_RELOCATIONS).unwrap_or(usize::MAX);
        for relocation in table.chunks_exact(usize::try_from(RELA_BYTES).unwrap_or(24)).take(most) {
            let (Some(slot), Some(info)) = (u64_at(relocation, 0), u64_at(relocation, 8)) else { break };
            let kind = low32(info);
            let symbol = u32::try_from(info >> 32).unwrap_or(0);
            if symbol != 0 && kinds.contains(&kind) {
                slots.push((slot, symbol));
            }
        }
        slots.sort_unstable();
        slots
    }
}
