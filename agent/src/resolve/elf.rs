//! Turns the bytes of an ELF file into what the kernel and the dynamic linker see of it: segments, symbols by name,
//! and the names that PLT stubs stand for.
//!
//! Works from program headers alone, so a file stripped of its section headers is read too; section headers serve
//! only `.symtab` (local symbols of an unstripped file) and an `.eh_frame` without its search table. Nothing is read
//! before it is asked for: opening a mapped file of hundreds of megabytes touches a few pages. Every table is
//! untrusted: what lies outside the file is as good as absent.

use std::sync::OnceLock;

use object::elf;

use super::frames::Frames;
use super::{FileOffset, Unreadable, Vaddr};

/// More program headers than any linker writes.
const MOST_PROGRAM_HEADERS: u64 = 256;
/// More entries than any `.dynamic` has.
const MOST_DYNAMIC_ENTRIES: u64 = 4096;
/// Longest symbol name that is looked at, in bytes; Eigen's reach tens of thousands.
const LONGEST_NAME: usize = 1 << 16;

/// Most symbols that are compared one by one, in a file without a hash table (which the dynamic linker refuses).
const MOST_SCANNED: u64 = 1 << 18;
/// Most symbols of one hash chain; linkers keep them to a handful.
const LONGEST_CHAIN: u64 = 1 << 12;
/// Most symbols of one table that are looked through; a web browser's `.symtab` has a million.
const MOST_SYMBOLS: u64 = 1 << 21;
/// Most relocations of one table that are read.
const MOST_RELOCATIONS: u64 = 1 << 21;

/// Size of `Elf64_Sym` in bytes.
const SYMBOL_BYTES: u64 = 24;
/// Size of `Elf64_Rela` in bytes.
const RELA_BYTES: u64 = 24;
/// Size of `Elf64_Shdr` in bytes.
const SECTION_BYTES: u64 = 64;

/// The instruction set of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// x86-64.
    X86_64,
    /// A64.
    Arm64,
}

/// A shared object or executable, read where it lies.
#[derive(Debug)]
pub struct ElfFile<'a> {
    bytes: &'a [u8],
    pub(super) machine: Machine,
    entry: u64,
    segments: Vec<Segment>,
    is_cut_off: bool,
    dynamic: Dynamic,
    static_symbols: Option<Table>,
    pub(super) frames: Option<Frames<'a>>,
    plt_slots: OnceLock<Vec<(u64, u32)>>,
    data_slots: OnceLock<Vec<(u64, u32)>>,
    names: OnceLock<Vec<Name>>,
    /// (hash of a name, number of the symbol), sorted: eight bytes a symbol, of which a file may have a million.
    static_index: OnceLock<Vec<(u32, u32)>>,
}

/// A `PT_LOAD` segment, cut to the bytes that the file has.
#[derive(Clone, Copy, Debug)]
struct Segment {
    vaddr: u64,
    offset: u64,
    size: u64,
    executable: bool,
}

/// A symbol table and its strings, as file offsets.
#[derive(Clone, Copy, Debug)]
struct Table {
    symbols: u64,
    count: u64,
    strings: u64,
    strings_size: u64,
}

/// A name of a function: where the function starts, whether the name is weak, where the name lies in the file.
type Name = (u64, bool, u64);

/// What `.dynamic` says, addresses as the file states them; 0 = not there.
#[derive(Clone, Copy, Debug, Default)]
struct Dynamic {
    symbols: u64,
    strings: u64,
    strings_size: u64,
    hash: u64,
    gnu_hash: u64,
    versions: u64,
    plt_relocations: u64,
    plt_relocations_size: u64,
    relocations: u64,
    relocations_size: u64,
    relative_count: u64,
    soname: u64,
}

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
    /// Reads the headers.
    ///
    /// # Errors
    /// If it is no x86-64 or arm64 shared object or executable, or its headers point outside the file.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let not = |why: &str| Unreadable::NotElf(why.to_owned());
        let damaged = |why: &str| Unreadable::Damaged(why.to_owned());
        let ident = bytes.get(..16).ok_or_else(|| not("too short"))?;
        if ident.get(..4) != Some(elf::ELFMAG.as_slice()) {
            return Err(not("no ELF magic"));
        }
        if ident.get(4) != Some(&elf::ELFCLASS64.0) || ident.get(5) != Some(&elf::ELFDATA2LSB.0) {
            return Err(not("not 64-bit little-endian"));
        }
        let kind = u16_at(bytes, 16).ok_or_else(|| not("too short"))?;
        if kind != elf::ET_DYN.0 && kind != elf::ET_EXEC.0 {
            return Err(not("neither shared object nor executable"));
        }
        let machine = match u16_at(bytes, 18).map(elf::Machine) {
            Some(elf::EM_X86_64) => Machine::X86_64,
            Some(elf::EM_AARCH64) => Machine::Arm64,
            _ => return Err(not("neither x86-64 nor arm64")),
        };
        let header = |at| u64_at(bytes, at).ok_or_else(|| not("header cut off"));
        let (entry, program_headers, section_headers) = (header(24)?, header(32)?, header(40)?);
        let count = u64::from(u16_at(bytes, 56).ok_or_else(|| not("header cut off"))?);
        if u16_at(bytes, 54) != Some(56) || count == 0 || count > MOST_PROGRAM_HEADERS {
            return Err(damaged("program headers of no known form"));
        }
        let mut segments = Vec::new();
        let (mut dynamic_at, mut table_at, mut is_cut_off) = (None, None, false);
        for index in 0..count {
            let at = program_headers.checked_add(index * 56).ok_or_else(|| damaged("program headers"))?;
            let field = |offset: u64| {
                at.checked_add(offset)
                    .and_then(|at| u64_at(bytes, at))
                    .ok_or_else(|| damaged("program headers lie outside the file"))
            };
            let (head, offset, vaddr, size) = (field(0)?, field(8)?, field(16)?, field(32)?);
            match elf::ProgramType(low32(head)) {
                elf::PT_LOAD => {
                    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                    is_cut_off |= offset.checked_add(size).is_none_or(|end| end > length);
                    let size = size.min(length.saturating_sub(offset)).min(u64::MAX - vaddr);
                    segments.push(Segment {
                        vaddr,
                        offset,
                        size,
                        executable: (head >> 32) & u64::from(elf::PF_X.0) != 0,
                    });
                }
                elf::PT_DYNAMIC => dynamic_at = Some((offset, size)),
                elf::PT_GNU_EH_FRAME => table_at = Some(vaddr),
                _ => {}
            }
        }
        if !segments.iter().any(|segment| segment.executable) {
            return Err(damaged("no executable segment"));
        }
        let mut file = Self {
            bytes,
            machine,
            entry,
            segments,
            is_cut_off,
            dynamic: dynamic_at.map(|(offset, size)| Dynamic::read(bytes, offset, size)).unwrap_or_default(),
            static_symbols: None,
            frames: None,
            plt_slots: OnceLock::new(),
            data_slots: OnceLock::new(),
            names: OnceLock::new(),
            static_index: OnceLock::new(),
        };
        file.static_symbols = file.find_static_symbols(section_headers);
        file.frames = table_at.and_then(|at| Frames::with_table(&file, at)).or_else(|| {
            file.section(section_headers, b".eh_frame").and_then(|(at, _)| Frames::without_table(&file, at))
        });
        Ok(file)
    }

    /// Its instruction set.
    #[must_use]
    pub const fn machine(&self) -> Machine {
        self.machine
    }

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

    /// The symbol whose address the dynamic linker writes into a slot of the GOT.
    pub(super) fn slot_name(&self, slot: u64) -> Option<&'a str> {
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

    /// The file's bytes from an address to the end of its segment.
    pub(super) fn bytes_at(&self, vaddr: u64) -> Option<&'a [u8]> {
        let segment = self.segment(vaddr)?;
        slice(
            self.bytes,
            segment.offset.checked_add(vaddr - segment.vaddr)?,
            segment.size - (vaddr - segment.vaddr),
        )
    }

    /// Code between two addresses; none unless all of it is in one executable segment.
    pub(super) fn code(&self, start: u64, end: u64) -> Option<&'a [u8]> {
        let length = usize::try_from(end.checked_sub(start)?).ok()?;
        if !self.segment(start)?.executable {
            return None;
        }
        self.bytes_at(start)?.get(..length)
    }

    /// Where an address of code lies in the file.
    pub(super) fn file_offset(&self, vaddr: u64) -> Option<FileOffset> {
        let segment = self.segment(vaddr).filter(|segment| segment.executable)?;
        segment.offset.checked_add(vaddr - segment.vaddr).map(FileOffset)
    }

    /// Whether the file ends before its segments do.
    #[must_use]
    pub const fn is_cut_off(&self) -> bool {
        self.is_cut_off
    }

    /// The virtual address of a place in the file, if a code segment holds it; the start of a page of `page` bytes that
    /// a segment shares counts to the segment, as the loader maps it.
    #[must_use]
    pub fn vaddr_of(&self, offset: FileOffset, page: u64) -> Option<Vaddr> {
        self.segments.iter().filter(|segment| segment.executable).find_map(|segment| {
            let first = segment.offset.saturating_sub(segment.offset.checked_rem(page).unwrap_or(0));
            let inside = offset.0 >= first && offset.0 < segment.offset.saturating_add(segment.size);
            inside.then(|| Vaddr(segment.vaddr.wrapping_add(offset.0.wrapping_sub(segment.offset))))
        })
    }

    fn segment(&self, vaddr: u64) -> Option<&Segment> {
        self.segments.iter().find(|segment| vaddr >= segment.vaddr && vaddr - segment.vaddr < segment.size)
    }

    /// The dynamic symbol table with a count that is only an upper bound: enough to read single symbols.
    fn dynamic_table(&self) -> Option<Table> {
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

    fn name(&self, table: &Table, offset: u64) -> Option<&'a [u8]> {
        if offset >= table.strings_size {
            return None;
        }
        string_at(self.bytes, table.strings.checked_add(offset)?)
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

    fn find_static_symbols(&self, section_headers: u64) -> Option<Table> {
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

    /// Address and size of a section, by name.
    fn section(&self, section_headers: u64, name: &[u8]) -> Option<(u64, u64)> {
        let count = self.section_count(section_headers)?;
        let names = self.section_header(section_headers, u64::from(u16_at(self.bytes, 62)?))?;
        let names = u64_at(names, 24)?;
        for index in 0..count {
            let header = self.section_header(section_headers, index)?;
            if string_at(self.bytes, names.checked_add(u64::from(u32_at(header, 0)?))?) == Some(name) {
                return Some((u64_at(header, 16)?, u64_at(header, 32)?));
            }
        }
        None
    }

    fn section_count(&self, section_headers: u64) -> Option<u64> {
        (section_headers != 0 && u16_at(self.bytes, 58) == Some(64))
            .then(|| u16_at(self.bytes, 60).map(u64::from))?
    }

    fn section_header(&self, section_headers: u64, index: u64) -> Option<&'a [u8]> {
        slice(self.bytes, section_headers.checked_add(index * SECTION_BYTES)?, SECTION_BYTES)
    }
}

impl Dynamic {
    fn read(bytes: &[u8], offset: u64, size: u64) -> Self {
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

/// The `DT_GNU_HASH` table: bloom filter, buckets, chains.
struct GnuHash<'a> {
    bytes: &'a [u8],
    buckets: u64,
    first_symbol: u64,
    bloom_words: u64,
    bloom_shift: u32,
}

impl<'a> GnuHash<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let buckets = u64::from(u32_at(bytes, 0)?);
        let bloom_words = u64::from(u32_at(bytes, 8)?);
        let bloom_shift = u32_at(bytes, 12)?;
        (buckets != 0 && bloom_words.is_power_of_two() && bloom_shift < 32).then_some(())?;
        Some(Self { bytes, buckets, first_symbol: u64::from(u32_at(bytes, 4)?), bloom_words, bloom_shift })
    }

    fn bucket(&self, index: u64) -> Option<u64> {
        u32_at(self.bytes, 16 + self.bloom_words * 8 + index * 4).map(u64::from)
    }

    fn chain(&self, symbol: u64) -> Option<u32> {
        let index = symbol.checked_sub(self.first_symbol)?;
        u32_at(self.bytes, 16 + self.bloom_words * 8 + self.buckets * 4 + index * 4)
    }

    /// Symbols whose hash is the name's.
    fn candidates(self, name: &[u8]) -> impl Iterator<Item = u64> + use<'a> {
        let hash = gnu_hash(name);
        let mask = 1_u64 << (hash & 63) | 1_u64 << ((hash >> self.bloom_shift) & 63);
        let word = u64_at(self.bytes, 16 + (u64::from(hash >> 6) & (self.bloom_words - 1)) * 8);
        let start = word
            .filter(|word| word & mask == mask)
            .and_then(|_| self.bucket(u64::from(hash) % self.buckets))
            .filter(|first| *first >= self.first_symbol);
        let mut next = start;
        let end = start.map_or(0, |start| start.saturating_add(LONGEST_CHAIN));
        std::iter::from_fn(move || {
            while let Some(symbol) = next {
                let chained = self.chain(symbol)?;
                next = (chained & 1 == 0 && symbol < end).then_some(symbol + 1);
                if chained | 1 == hash | 1 {
                    return Some(symbol);
                }
            }
            None
        })
    }

    /// How many symbols the table has: the end of the last chain.
    fn count(&self) -> Option<u64> {
        let mut last = 0;
        for index in 0..self.buckets.min(MOST_SYMBOLS) {
            last = last.max(self.bucket(index)?);
        }
        if last < self.first_symbol {
            return Some(self.first_symbol);
        }
        let end = last.saturating_add(LONGEST_CHAIN);
        while last < end && self.chain(last)? & 1 == 0 {
            last += 1;
        }
        Some(last + 1)
    }
}

/// The hash of a name by which `DT_GNU_HASH` finds it.
fn gnu_hash(name: &[u8]) -> u32 {
    name.iter().fold(5381_u32, |hash, byte| hash.wrapping_mul(33).wrapping_add(u32::from(*byte)))
}

/// Symbols of the `DT_HASH` bucket that the name belongs to.
fn sysv_candidates<'a>(hash: &'a [u8], name: &[u8]) -> impl Iterator<Item = u64> + use<'a> {
    let key = name.iter().fold(0_u32, |key, byte| {
        let key = (key << 4).wrapping_add(u32::from(*byte));
        let high = key & 0xf000_0000;
        (key ^ high >> 24) & !high
    });
    let buckets = u32_at(hash, 0).map_or(0, u64::from);
    let most = u32_at(hash, 4).map_or(0, u64::from).min(LONGEST_CHAIN);
    let mut next = u64::from(key).checked_rem(buckets).and_then(|bucket| u32_at(hash, 8 + bucket * 4));
    // A chain that loops ends after as many steps as there are symbols.
    let mut left = most;
    std::iter::from_fn(move || {
        let symbol = u64::from(next.filter(|symbol| *symbol != 0 && left != 0)?);
        left -= 1;
        next = u32_at(hash, 8 + buckets * 4 + symbol * 4);
        Some(symbol)
    })
}

/// The bytes of a range; none unless all of it is there.
pub(super) fn slice(bytes: &[u8], at: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(at).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(length).ok()?)?)
}

fn array<const N: usize>(bytes: &[u8], at: u64) -> Option<[u8; N]> {
    bytes.get(usize::try_from(at).ok()?..)?.first_chunk().copied()
}

pub(super) fn u16_at(bytes: &[u8], at: u64) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: u64) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: u64) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

#[allow(clippy::cast_possible_truncation, reason = "the lower half is meant")]
fn low32(word: u64) -> u32 {
    word as u32
}

/// The string at a place of the file, without its zero; none if it does not end or is absurdly long.
fn string_at(bytes: &[u8], at: u64) -> Option<&[u8]> {
    let rest = bytes.get(usize::try_from(at).ok()?..)?;
    let rest = rest.get(..rest.len().min(LONGEST_NAME + 1)).unwrap_or(rest);
    rest.get(..rest.iter().position(|byte| *byte == 0)?)
}

/// A small ELF file made by hand, so that a test can say what every byte of its code is.
#[cfg(test)]
pub(super) mod fixture {
    /// Address of the first function; each gets [`STRIDE`] bytes.
    pub(in super::super) const CODE: u64 = 0x2000;
    /// Distance between two functions.
    pub(in super::super) const STRIDE: u64 = 0x100;
    /// Address of the first PLT stub; each takes 16 bytes.
    pub(in super::super) const PLT: u64 = 0x1000;
    /// Address of the first GOT slot.
    pub(in super::super) const GOT: u64 = 0x1800;
    const EH_FRAME_HEADER: u64 = 0x1c00;

    /// `DW_CFA_def_cfa_offset n` after the first `advance` bytes.
    pub(in super::super) fn cfa(advance: u8, offset: u8) -> Vec<u8> {
        vec![0x40 | advance, 0x0e, offset]
    }

    /// The low half of a number, as it lies in a file.
    pub(in super::super) fn word(number: u64) -> [u8; 4] {
        *number.to_le_bytes().first_chunk().unwrap()
    }

    /// What to make.
    #[derive(Clone, Debug, Default)]
    pub(in super::super) struct Fixture {
        functions: Vec<(String, u8, Vec<u8>, Vec<u8>)>,
        imports: Vec<String>,
        exception_tables: Vec<(usize, u64)>,
        extra: Vec<(u64, Vec<u8>)>,
        old_hash: bool,
        no_table: bool,
    }

    impl Fixture {
        /// Adds a global function, at `CODE + STRIDE * n`; an empty name makes it a nameless one.
        pub(in super::super) fn function(mut self, name: &str, code: &[u8], cfi: &[u8]) -> Self {
            self.functions.push((name.to_owned(), 0x12, code.to_vec(), cfi.to_vec()));
            self
        }

        /// Sets binding and type of the last function.
        pub(in super::super) fn info(mut self, info: u8) -> Self {
            self.functions.last_mut().unwrap().1 = info;
            self
        }

        /// Adds an imported function, with its stub at `PLT + 16 * n`.
        pub(in super::super) fn import(mut self, name: &str) -> Self {
            self.imports.push(name.to_owned());
            self
        }

        /// Puts bytes at an address.
        pub(in super::super) fn data(mut self, at: u64, bytes: &[u8]) -> Self {
            self.extra.push((at, bytes.to_vec()));
            self
        }

        /// Gives a function an exception table at an address.
        pub(in super::super) fn exceptions(mut self, function: usize, at: u64) -> Self {
            self.exception_tables.push((function, at));
            self
        }

        /// Writes `DT_HASH` instead of `DT_GNU_HASH`.
        pub(in super::super) fn old_hash(mut self, old_hash: bool) -> Self {
            self.old_hash = old_hash;
            self
        }

        /// Leaves out the search table of `.eh_frame`, which then only a section header finds.
        pub(in super::super) fn no_table(mut self, no_table: bool) -> Self {
            self.no_table = no_table;
            self
        }

        /// The file; file offsets equal addresses.
        pub(in super::super) fn build(&self) -> Vec<u8> {
            let mut file = vec![0; 0x1000];
            let end = CODE + STRIDE * self.functions.len() as u64 + 0x1000;
            for (index, (_, _, code, _)) in self.functions.iter().enumerate() {
                assert!(code.len() as u64 <= STRIDE);
                put(&mut file, CODE + STRIDE * index as u64, code);
            }
            for index in 0..self.imports.len() as u64 {
                let distance = (GOT + 8 * index) - (PLT + 16 * index + 6);
                put(&mut file, PLT + 16 * index, &[0xff, 0x25]);
                put(&mut file, PLT + 16 * index + 2, &word(distance));
            }
            let tables = self.tables(&mut file, end);
            let frames = self.frames(&mut file, tables);
            for (at, bytes) in &self.extra {
                put(&mut file, *at, bytes);
            }
            self.headers(&mut file, frames);
            file
        }

        /// Symbols, strings, hash table and relocations, named by `.dynamic`; returns where they end.
        fn tables(&self, file: &mut Vec<u8>, start: u64) -> u64 {
            let mut strings = vec![0];
            let mut symbols = vec![0; 24];
            let mut names = vec![String::new()];
            let mut add = |name: &str, info: u8, section: u16, value: u64, size: u64| {
                symbols.extend(u32::try_from(strings.len()).unwrap().to_le_bytes());
                symbols.extend([info, 0]);
                symbols.extend(section.to_le_bytes());
                symbols.extend(value.to_le_bytes());
                symbols.extend(size.to_le_bytes());
                strings.extend(name.as_bytes());
                strings.push(0);
                names.push(name.to_owned());
            };
            for import in &self.imports {
                add(import, 0x12, 0, 0, 0);
            }
            for (index, (name, info, code, _)) in self.functions.iter().enumerate() {
                if !name.is_empty() {
                    add(name, *info, 1, CODE + STRIDE * index as u64, code.len() as u64);
                }
            }
            let count = u32::try_from(names.len()).unwrap();
            let words = |words: Vec<u32>| words.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
            let hash = if self.old_hash {
                // One bucket, whose chain runs through every symbol.
                let next = (2..count).chain([0]);
                words([1, count, 1, 0].into_iter().chain(next).collect())
            } else {
                let hashes: Vec<u32> = names
                    .iter()
                    .skip(1)
                    .map(|name| {
                        name.bytes()
                            .fold(5381, |hash: u32, byte| hash.wrapping_mul(33).wrapping_add(byte.into()))
                    })
                    .collect();
                let last = hashes.len() - 1;
                let chain =
                    hashes.iter().enumerate().map(|(index, hash)| hash & !1 | u32::from(index == last));
                words([1, 1, 1, 0, u32::MAX, u32::MAX, 1].into_iter().chain(chain).collect())
            };
            let mut relocations = Vec::new();
            for index in 0..self.imports.len() as u64 {
                relocations.extend((GOT + 8 * index).to_le_bytes());
                relocations.extend(((index + 1) << 32 | 7).to_le_bytes());
                relocations.extend([0; 8]);
            }
            let strings_at = start + symbols.len() as u64;
            let hash_at = (strings_at + strings.len() as u64).next_multiple_of(8);
            let relocations_at = (hash_at + hash.len() as u64).next_multiple_of(8);
            put(file, start, &symbols);
            put(file, strings_at, &strings);
            put(file, hash_at, &hash);
            put(file, relocations_at, &relocations);
            let dynamic: [u64; 16] = [
                6,
                start,
                5,
                strings_at,
                10,
                strings.len() as u64,
                if self.old_hash { 4 } else { 0x6fff_fef5 },
                hash_at,
                23,
                relocations_at,
                2,
                relocations.len() as u64,
                14,
                1,
                0,
                0,
            ];
            put(file, 0x200, &dynamic.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<u8>>());
            (relocations_at + relocations.len() as u64).next_multiple_of(16)
        }

        /// `.eh_frame` at an address, and its search table; returns where the section starts.
        fn frames(&self, file: &mut Vec<u8>, start: u64) -> u64 {
            let mut section: Vec<u8> = Vec::new();
            // CIE: version 1, "zPLR"-less augmentation "zLR", LSDA and FDE pointers pcrel sdata4.
            section.extend(24_u32.to_le_bytes());
            section.extend([0, 0, 0, 0, 1, b'z', b'L', b'R', 0, 1, 0x78, 16, 2, 0x1b, 0x1b]);
            section.extend([0x0c, 7, 8, 0x90, 1]);
            section.resize(28, 0);
            let mut table = Vec::new();
            for (index, (_, _, code, cfi)) in self.functions.iter().enumerate() {
                let at = section.len() as u64;
                let address = CODE + STRIDE * index as u64;
                let exceptions = self.exception_tables.iter().find(|(function, _)| *function == index);
                let mut entry = Vec::new();
                entry.extend(word(at + 4));
                entry.extend(word(address.wrapping_sub(start + at + 8)));
                entry.extend(word(code.len() as u64));
                entry.push(4);
                let pointer_at = start + at + 4 + entry.len() as u64;
                entry.extend(word(exceptions.map_or(0, |(_, table)| table.wrapping_sub(pointer_at))));
                entry.extend(cfi);
                entry.resize(entry.len().next_multiple_of(4), 0);
                section.extend(word(entry.len() as u64));
                section.extend(entry);
                table.extend(word(address.wrapping_sub(EH_FRAME_HEADER)));
                table.extend(word((start + at).wrapping_sub(EH_FRAME_HEADER)));
            }
            section.extend([0; 4]);
            put(file, start, &section);
            put(file, EH_FRAME_HEADER, &[1, 0x1b, 3, 0x3b]);
            put(file, EH_FRAME_HEADER + 4, &word(start.wrapping_sub(EH_FRAME_HEADER + 4)));
            put(file, EH_FRAME_HEADER + 8, &word(self.functions.len() as u64));
            put(file, EH_FRAME_HEADER + 12, &table);
            start
        }

        fn headers(&self, file: &mut Vec<u8>, frames: u64) {
            let size = file.len() as u64;
            put(file, 0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
            put(file, 16, &[3, 0, 62, 0, 1]);
            put(file, 24, &CODE.to_le_bytes());
            put(file, 32, &64_u64.to_le_bytes());
            put(file, 52, &[64, 0, 56, 0, 3, 0, 64, 0, 2, 0, 1, 0]);
            let mut program = |index: u64, kind: u32, flags: u32, at: u64, size: u64| {
                let words = [u64::from(kind) | u64::from(flags) << 32, at, at, at, size, size, 8];
                put(
                    file,
                    64 + index * 56,
                    &words.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<u8>>(),
                );
            };
            program(0, 1, 5, 0, size + 0x200);
            program(1, 2, 6, 0x200, 128);
            program(2, if self.no_table { 0 } else { 0x6474_e550 }, 4, EH_FRAME_HEADER, 0x200);
            if self.no_table {
                put(file, 40, &0x400_u64.to_le_bytes());
                put(file, 0x500, b"\0.eh_frame\0");
                let mut section = |index: u64, name: u64, at: u64| {
                    let words = [name | 1 << 32, 0, at, at, 0x100, 0, 0, 0];
                    put(
                        file,
                        0x400 + index * 64,
                        &words.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<u8>>(),
                    );
                };
                section(0, 1, frames);
                section(1, 0, 0x500);
            }
        }
    }

    fn put(file: &mut Vec<u8>, at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).unwrap();
        if file.len() < at + bytes.len() {
            file.resize(at + bytes.len(), 0);
        }
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::fixture::{CODE, Fixture, GOT, STRIDE};
    use super::*;

    fn three_functions() -> Fixture {
        Fixture::default()
            .import("free")
            .function("first", &[0xc3], &[])
            .function("weak", &[0xc3], &[])
            .info(0x22)
            .function("ifunc", &[0xc3], &[])
            .info(0x1a)
    }

    #[test]
    fn symbols_are_found_by_either_hash_table() {
        for old_hash in [false, true] {
            let bytes = three_functions().old_hash(old_hash).build();
            let file = ElfFile::parse(&bytes).unwrap();
            assert_eq!(file.find("first").unwrap().vaddr, Vaddr(CODE));
            assert_eq!(file.find("weak").unwrap().vaddr, Vaddr(CODE + STRIDE));
            assert_eq!(
                (file.is_weak("first"), file.is_weak("weak"), file.is_weak("free")),
                (Some(false), Some(true), None)
            );
            assert!(!file.find("ifunc").unwrap().is_function);
            assert!(
                file.defines("ifunc") && !file.defines("free") && !file.defines("") && !file.defines("fir")
            );
            assert_eq!(file.name_at(Vaddr(CODE)), Some("first"));
            assert_eq!(file.name_at(Vaddr(CODE + 1)), None);
            assert_eq!(file.entry_point_name(), Some("first"));
            assert_eq!(file.soname(), Some("free"), "DT_SONAME of the fixture is the first string");
            assert_eq!(file.slot_name(GOT), Some("free"));
        }
    }

    #[test]
    fn what_is_no_elf_file_of_a_known_machine_is_refused() {
        let bytes = three_functions().build();
        for (at, byte) in [(0, 0), (4, 1), (5, 2), (16, 1), (18, 243)] {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            assert!(matches!(ElfFile::parse(&bytes), Err(Unreadable::NotElf(_))), "{at}");
        }
        assert!(matches!(ElfFile::parse(&[]), Err(Unreadable::NotElf(_))));
        assert!(matches!(ElfFile::parse(&bytes[..100]), Err(Unreadable::Damaged(_))));
        let mut bytes = bytes;
        bytes[68] = 4;
        assert!(matches!(ElfFile::parse(&bytes), Err(Unreadable::Damaged(_))), "no executable segment");
    }

    fn try_all(bytes: &[u8]) {
        let Ok(file) = ElfFile::parse(bytes) else { return };
        for name in ["first", "weak", "ifunc", "free", "none", ""] {
            let _ = (file.find(name), file.place(name), file.entry(name));
        }
        let _ = (file.soname(), file.entry_point_name(), file.name_at(Vaddr(CODE)));
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            try_all(&bytes);
            let mut file = three_functions().build();
            let at = bytes.len().min(0x200);
            file.splice(0x200.., bytes.iter().copied());
            try_all(&file);
            file.truncate(at * 4);
            try_all(&file);
        }

        #[test]
        fn damaged_files_get_an_answer(
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..40),
            length in any::<proptest::sample::Index>(),
            old_hash: bool,
            no_table: bool,
        ) {
            let mut bytes = three_functions().old_hash(old_hash).no_table(no_table).build();
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            try_all(&bytes);
            bytes.truncate(length.index(bytes.len()));
            try_all(&bytes);
        }
    }
}
