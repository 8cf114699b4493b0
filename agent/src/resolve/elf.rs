//! Turns the bytes of an ELF file into what the kernel and the dynamic linker see of it: segments, symbols by name,
//! and the names that PLT stubs stand for.
//!
//! Works from program headers alone, so a file stripped of its section headers is read too; section headers serve
//! only `.symtab` (local symbols of an unstripped file) and an `.eh_frame` without its search table. Nothing is read
//! before it is asked for: opening a mapped file of hundreds of megabytes touches a few pages. Every table is
//! untrusted: what lies outside the file is as good as absent.

use std::sync::OnceLock;

use object::elf;

use self::dynamic::Dynamic;
pub use self::symbols::Symbol;
use self::symbols::{Name, Table};
use super::bytes::{low32, slice, string_at, u16_at, u32_at, u64_at};
use super::frames::Frames;
use super::{FileOffset, Unreadable, Vaddr};

mod dynamic;
mod hash;
mod slots;
mod symbols;

/// More program headers than any linker writes.
const MOST_PROGRAM_HEADERS: u64 = 256;
/// Most symbols of one table that are looked through; a web browser's `.symtab` has a million.
const MOST_SYMBOLS: u64 = 1 << 21;
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

#[cfg(test)]
pub(super) mod tests;
