//! Turns the bytes of an ELF file into what the kernel and the dynamic linker see of it: segments, symbols by name,
//! and the names that PLT stubs stand for.
//!
//! Works from program headers alone, so a file stripped of its section headers is read too; section headers serve
//! only `.symtab` (local symbols of an unstripped file) and an `.eh_frame` without its search table. Nothing is read
//! before it is asked for: opening a mapped file of hundreds of megabytes touches a few pages. Every table is
//! untrusted: what lies outside the file is as good as absent.

use std::collections::HashMap;
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

/// Size of `Elf64_Sym` in bytes.
const SYMBOL_BYTES: u64 = 24;
/// Size of `Elf64_Rela` in bytes.
const RELA_BYTES: u64 = 24;
/// Size of `Elf64_Shdr` in bytes.
const SECTION_BYTES: u64 = 64;

/// An x86-64 shared object or executable, read where it lies.
#[derive(Debug)]
pub struct ElfFile<'a> {
    bytes: &'a [u8],
    entry: u64,
    segments: Vec<Segment>,
    dynamic: Dynamic,
    static_symbols: Option<Table>,
    pub(super) frames: Option<Frames<'a>>,
    plt_slots: OnceLock<Vec<(u64, u32)>>,
    data_slots: OnceLock<Vec<(u64, u32)>>,
    names: OnceLock<Vec<(u64, Symbol)>>,
    static_index: OnceLock<HashMap<&'a [u8], Symbol>>,
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
    /// If it is no x86-64 shared object or executable, or its headers point outside the file.
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
        if u16_at(bytes, 18) != Some(elf::EM_X86_64.0) {
            return Err(not("not x86-64"));
        }
        let header = |at| u64_at(bytes, at).ok_or_else(|| not("header cut off"));
        let (entry, program_headers, section_headers) = (header(24)?, header(32)?, header(40)?);
        let count = u64::from(u16_at(bytes, 56).ok_or_else(|| not("header cut off"))?);
        if u16_at(bytes, 54) != Some(56) || count == 0 || count > MOST_PROGRAM_HEADERS {
            return Err(damaged("program headers of no known form"));
        }
        let mut segments = Vec::new();
        let (mut dynamic_at, mut table_at) = (None, None);
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
            entry,
            segments,
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
        let names = self.names.get_or_init(|| {
            let mut names: Vec<(u64, Symbol)> = Vec::new();
            let tables = [self.counted_dynamic_table(), self.static_symbols];
            for table in tables.into_iter().flatten() {
                // A name of the second table starts with its own string table; keep that apart by the table's place.
                let symbols = (0..table.count).map_while(|index| self.symbol(&table, index));
                names.extend(symbols.flatten().filter(|symbol| symbol.is_function).map(|symbol| {
                    (symbol.vaddr.0, Symbol { name: table.strings.saturating_add(symbol.name), ..symbol })
                }));
            }
            names.sort_by_key(|(vaddr, symbol)| (*vaddr, symbol.weak));
            names
        });
        let first = names.get(names.partition_point(|(at, _)| *at < vaddr.0)..)?.first()?;
        if first.0 != vaddr.0 {
            return None;
        }
        std::str::from_utf8(string_at(self.bytes, first.1.name)?).ok()
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

    /// The virtual address of a place in the file, if a code segment holds it; the start of a page that a segment shares
    /// counts to the segment, as the loader maps it.
    #[must_use]
    pub fn vaddr_of(&self, offset: FileOffset) -> Option<Vaddr> {
        const PAGE: u64 = 4096;
        self.segments.iter().filter(|segment| segment.executable).find_map(|segment| {
            let first = segment.offset / PAGE * PAGE;
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
        Some(Table { count: count.min(table.count), ..table })
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
        best(&mut (0..self.counted_dynamic_table()?.count))
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
            let mut index = HashMap::new();
            for symbol in (0..table.count).map_while(|at| self.symbol(&table, at)).flatten() {
                if symbol.is_function
                    && let Some(name) = self.name(&table, symbol.name)
                {
                    index.entry(name).or_insert(symbol);
                }
            }
            index
        });
        index.get(name).copied()
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
        let mut slots = Vec::new();
        for relocation in table.chunks_exact(usize::try_from(RELA_BYTES).unwrap_or(24)) {
            let (Some(slot), Some(info)) = (u64_at(relocation, 0), u64_at(relocation, 8)) else { break };
            let kind = low32(info);
            let symbol = u32::try_from(info >> 32).unwrap_or(0);
            if symbol != 0 && (kind == elf::R_X86_64_JUMP_SLOT.0 || kind == elf::R_X86_64_GLOB_DAT.0) {
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
                count: u64_at(header, 32)? / SYMBOL_BYTES,
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
        let hash =
            name.iter().fold(5381_u32, |hash, byte| hash.wrapping_mul(33).wrapping_add(u32::from(*byte)));
        let mask = 1_u64 << (hash & 63) | 1_u64 << ((hash >> self.bloom_shift) & 63);
        let word = u64_at(self.bytes, 16 + (u64::from(hash >> 6) & (self.bloom_words - 1)) * 8);
        let start = word
            .filter(|word| word & mask == mask)
            .and_then(|_| self.bucket(u64::from(hash) % self.buckets))
            .filter(|first| *first >= self.first_symbol);
        let mut next = start;
        std::iter::from_fn(move || {
            while let Some(symbol) = next {
                let chained = self.chain(symbol)?;
                next = (chained & 1 == 0).then_some(symbol + 1);
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
        for index in 0..self.buckets {
            last = last.max(self.bucket(index)?);
        }
        if last < self.first_symbol {
            return Some(self.first_symbol);
        }
        while self.chain(last)? & 1 == 0 {
            last += 1;
        }
        Some(last + 1)
    }
}

/// Symbols of the `DT_HASH` bucket that the name belongs to.
fn sysv_candidates<'a>(hash: &'a [u8], name: &[u8]) -> impl Iterator<Item = u64> + use<'a> {
    let key = name.iter().fold(0_u32, |key, byte| {
        let key = (key << 4).wrapping_add(u32::from(*byte));
        let high = key & 0xf000_0000;
        (key ^ high >> 24) & !high
    });
    let buckets = u32_at(hash, 0).map_or(0, u64::from);
    let most = u32_at(hash, 4).map_or(0, u64::from);
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

fn u16_at(bytes: &[u8], at: u64) -> Option<u16> {
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
