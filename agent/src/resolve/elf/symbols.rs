//! Turns the symbol tables of a file into symbols by their names, and names by their addresses.

use object::elf;

use super::super::Vaddr;
use super::super::bytes::{LONGEST_NAME, low32, string_at, u16_at, u32_at, u64_at};
use super::hash::{GnuHash, LONGEST_CHAIN, gnu_hash, sysv_candidates};
use super::{ElfFile, MOST_SYMBOLS};

/// Most symbols that are compared one by one, in a file without a hash table (which the dynamic linker refuses).
const MOST_SCANNED: u64 = 1 << 18;
/// Size of `Elf64_Sym` in bytes.
pub(super) const SYMBOL_BYTES: u64 = 24;

/// A symbol table and its strings, as file offsets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub(super) symbols: u64,
    pub(super) count: u64,
    pub(super) strings: u64,
    pub(super) strings_size: u64,
}

/// A name of a function: where the function starts, whether the name is weak, where the name lies in the file.
pub(super) type Name = (u64, bool, u64);

/// A symbol that the file defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Where it lies.
    pub vaddr: Vaddr,
    /// Its size in bytes; hand-written assembly may leave it 0.
    pub size: u64,
    /// Another file's definition may be used in its place, and several files may have their own copy.
    pub weak: bool,
    /// Plain function: neither data nor a function that picks its implementation at load time (IFUNC).
    pub is_function: bool,
    name: u64,
}

impl<'a> ElfFile<'a> {
    /// The name under which the dynamic linker knows it (`libTKBO.so.7`).
    #[must_use]
    pub fn soname(&self) -> Option<&'a str> {
        if self.dynamic.soname == 0 {
            return None;
        }
        let strings = self.dynamic_table()?;
        std::str::from_utf8(self.name(&strings, self.dynamic.soname)?).ok()
    }

    /// Name of the function at which the process starts (`_start`), if it has one.
    #[must_use]
    pub fn entry_point_name(&self) -> Option<&'a str> {
        if self.entry == 0 { None } else { self.name_at(Vaddr(self.entry)) }
    }

    /// Whether it defines a symbol, function or not, exported or local.
    #[must_use]
    pub fn defines(&self, symbol: &str) -> bool {
        self.find(symbol).is_some()
    }

    /// Whether its definition of a symbol is weak; none if it does not define it. Several files may have a weak
    /// copy each, of which a process uses one.
    #[must_use]
    pub fn is_weak(&self, symbol: &str) -> Option<bool> {
        self.find(symbol).map(|symbol| symbol.weak)
    }

    /// The definition of a symbol: the exported one, otherwise a local one if the file still has its `.symtab`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Symbol> {
        let name = name.as_bytes();
        if name.is_empty() || name.len() > LONGEST_NAME {
            return None;
        }
        self.find_exported(name).or_else(|| self.find_static(name))
    }

    /// A name of the function that starts at an address.
    #[must_use]
    pub fn name_at(&self, vaddr: Vaddr) -> Option<&'a str> {
        let names =
            self.names.get_or_init(|| {
                let mut names: Vec<Name> = Vec::new();
                let tables = [self.counted_dynamic_table(), self.static_symbols];
                for table in tables.into_iter().flatten() {
                    let symbols = (0..table.count).map_while(|index| self.symbol(&table, index));
                    names.extend(symbols.flatten().filter(|symbol| symbol.is_function).map(|symbol| {
                        (symbol.vaddr.0, symbol.weak, table.strings.saturating_add(symbol.name))
                    }));
                }
                // Of several names the one that stands first: stable.
                names.sort_by_key(|(vaddr, weak, _)| (*vaddr, *weak));
                names
            });
        let (at, _, name) = names.get(names.partition_point(|(at, ..)| *at < vaddr.0)..)?.first()?;
        if *at != vaddr.0 {
            return None;
        }
        std::str::from_utf8(string_at(self.bytes, *name)?).ok()
    }

    /// The names of the functions that the file exports, weak ones left out.
    pub fn exported_names(&self) -> impl Iterator<Item = &'a str> {
        self.counted_dynamic_table().into_iter().flat_map(move |table| {
            (0..table.count)
                .filter_map(move |index| self.symbol(&table, index)?)
                .filter(|symbol| symbol.is_function && !symbol.weak)
                .filter_map(move |symbol| std::str::from_utf8(self.name(&table, symbol.name)?).ok())
        })
    }

    /// The dynamic symbol table with a count that is only an upper bound: enough to read single symbols.
    pub(super) fn dynamic_table(&self) -> Option<Table> {
        let symbols = self.segment(self.dynamic.symbols)?;
        let strings = self.segment(self.dynamic.strings)?;
        let (into, string_into) =
            (self.dynamic.symbols - symbols.vaddr, self.dynamic.strings - strings.vaddr);
        Some(Table {
            symbols: symbols.offset.checked_add(into)?,
            count: (symbols.size - into) / SYMBOL_BYTES,
            strings: strings.offset.checked_add(string_into)?,
            strings_size: self.dynamic.strings_size.min(strings.size - string_into),
        })
    }

    /// The dynamic symbol table with its true count, which only the hash tables tell.
    fn counted_dynamic_table(&self) -> Option<Table> {
        let table = self.dynamic_table()?;
        let count = if self.dynamic.hash != 0 {
            u64::from(u32_at(self.bytes_at(self.dynamic.hash)?, 4)?)
        } else if self.dynamic.gnu_hash != 0 {
            GnuHash::read(self.bytes_at(self.dynamic.gnu_hash)?)?.count()?
        } else if self.dynamic.strings > self.dynamic.symbols {
            // The usual order of the two tables; a wrong guess reads nonsense symbols, which are ignored.
            (self.dynamic.strings - self.dynamic.symbols) / SYMBOL_BYTES
        } else {
            0
        };
        Some(Table { count: count.min(table.count).min(MOST_SYMBOLS), ..table })
    }

    fn find_exported(&self, name: &[u8]) -> Option<Symbol> {
        let table = self.dynamic_table()?;
        let named = |index: u64| {
            let at = table.symbols.checked_add(index.checked_mul(SYMBOL_BYTES)?)?;
            (self.name(&table, u64::from(u32_at(self.bytes, at)?))? == name).then_some(())?;
            self.symbol(&table, index)?
        };
        let best = |candidates: &mut dyn Iterator<Item = u64>| {
            // Of several versions of one name the default one is not hidden.
            let mut hidden = None;
            for index in candidates {
                match named(index) {
                    Some(symbol) if !self.is_hidden_version(index) => return Some(symbol),
                    Some(symbol) => hidden = hidden.or(Some(symbol)),
                    None => {}
                }
            }
            hidden
        };
        if let Some(hash) = self.bytes_at(self.dynamic.gnu_hash).filter(|_| self.dynamic.gnu_hash != 0) {
            return best(&mut GnuHash::read(hash)?.candidates(name));
        }
        if let Some(hash) = self.bytes_at(self.dynamic.hash).filter(|_| self.dynamic.hash != 0) {
            return best(&mut sysv_candidates(hash, name));
        }
        best(&mut (0..self.counted_dynamic_table()?.count.min(MOST_SCANNED)))
    }

    fn is_hidden_version(&self, index: u64) -> bool {
        self.dynamic.versions != 0
            && self
                .bytes_at(self.dynamic.versions)
                .and_then(|versions| u16_at(versions, index.checked_mul(2)?))
                .is_some_and(|version| version & elf::VERSYM_HIDDEN.0 != 0)
    }

    fn find_static(&self, name: &[u8]) -> Option<Symbol> {
        let table = self.static_symbols?;
        let index = self.static_index.get_or_init(|| {
            let mut index = Vec::new();
            for (number, symbol) in (0..).zip((0..table.count).map_while(|at| self.symbol(&table, at))) {
                if let Some(symbol) = symbol
                    && symbol.is_function
                    && let Some(name) = self.name(&table, symbol.name)
                {
                    index.push((gnu_hash(name), number));
                }
            }
            index.sort_unstable();
            index
        });
        let hash = gnu_hash(name);
        let same = index.get(index.partition_point(|(other, _)| *other < hash)..)?.iter();
        // Names are made to share a hash easily.
        let most = usize::try_from(LONGEST_CHAIN).unwrap_or(usize::MAX);
        same.take_while(|(other, _)| *other == hash).take(most).find_map(|(_, number)| {
            let symbol = self.symbol(&table, u64::from(*number))??;
            (self.name(&table, symbol.name)? == name).then_some(symbol)
        })
    }

    /// A symbol of a table: none beyond the file, `Some(None)` if it is not defined here.
    #[allow(clippy::option_option, reason = "end of table and undefined symbol are different answers")]
    fn symbol(&self, table: &Table, index: u64) -> Option<Option<Symbol>> {
        let at = table.symbols.checked_add(index.checked_mul(SYMBOL_BYTES)?)?;
        let head = u64_at(self.bytes, at)?;
        let (value, size) =
            (u64_at(self.bytes, at.checked_add(8)?)?, u64_at(self.bytes, at.checked_add(16)?)?);
        let [_, _, _, _, info, _, section @ ..] = head.to_le_bytes();
        if u16::from_le_bytes(section) == elf::SHN_UNDEF.0 || value == 0 {
            return Some(None);
        }
        let kind = info & 15;
        if kind == elf::STT_SECTION.0 || kind == elf::STT_FILE.0 || kind == elf::STT_TLS.0 {
            return Some(None);
        }
        Some(Some(Symbol {
            vaddr: Vaddr(value),
            size,
            weak: info >> 4 == elf::STB_WEAK.0,
            is_function: kind == elf::STT_FUNC.0,
            name: u64::from(low32(head)),
        }))
    }

    pub(super) fn name(&self, table: &Table, offset: u64) -> Option<&'a [u8]> {
        if offset >= table.strings_size {
            return None;
        }
        string_at(self.bytes, table.strings.checked_add(offset)?)
    }

    pub(super) fn find_static_symbols(&self, section_headers: u64) -> Option<Table> {
        let count = self.section_count(section_headers)?;
        for index in 0..count {
            let header = self.section_header(section_headers, index)?;
            if u32_at(header, 4)? != elf::SHT_SYMTAB.0 {
                continue;
            }
            let strings = self.section_header(section_headers, u64::from(u32_at(header, 40)?))?;
            return Some(Table {
                symbols: u64_at(header, 24)?,
                count: (u64_at(header, 32)? / SYMBOL_BYTES).min(MOST_SYMBOLS),
                strings: u64_at(strings, 24)?,
                strings_size: u64_at(strings, 32)?,
            });
        }
        None
    }
}
