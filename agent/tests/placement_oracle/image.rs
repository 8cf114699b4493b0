//! Turns an ELF file into what a process needs to run its functions one by one: segments, relocated words, and for each
//! function of another file a place that stands for it. Read with the `object` crate, which the agent's resolver does
//! not use.

use std::collections::HashMap;
use std::path::Path;

use object::elf::{R_X86_64_64, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT, R_X86_64_RELATIVE};
use object::{
    Object as _, ObjectSegment as _, ObjectSymbol as _, RelocationFlags, RelocationTarget, SymbolKind,
};

/// Where the file is mapped.
pub const BASE: u64 = 0x2000_0000_0000;
/// Where functions of other files would be: data there can be read, nothing can be executed.
pub const STUBS: u64 = 0x1100_0000_0000;
pub const STUBS_BYTES: u64 = 4 << 20;

/// A function with a name.
#[derive(Clone, Debug)]
pub struct Function {
    pub name: String,
    pub vaddr: u64,
}

/// A stretch of memory.
pub struct Segment {
    pub vaddr: u64,
    pub bytes_in_memory: u64,
    pub offset: u64,
    pub bytes_in_file: u64,
    pub is_code: bool,
}

/// A file, ready to be mapped.
pub struct Image {
    pub bytes: Vec<u8>,
    pub functions: Vec<Function>,
    pub segments: Vec<Segment>,
    /// Words to write after mapping, by address in the file.
    pub words: Vec<(u64, u64)>,
    /// Names of the functions that stubs stand for.
    stubs: HashMap<u64, String>,
}

impl Image {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let mut functions: Vec<Function> = file
            .dynamic_symbols()
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition() && symbol.size() > 0)
            .map(|symbol| Function { name: symbol.name().unwrap().to_owned(), vaddr: symbol.address() })
            .collect();
        // Constructors come in twos that are one.
        functions.sort_by(|a, b| (a.vaddr, &a.name).cmp(&(b.vaddr, &b.name)));
        functions.dedup_by_key(|function| function.vaddr);
        let segments = file
            .segments()
            .map(|segment| {
                let (offset, bytes_in_file) = segment.file_range();
                let object::SegmentFlags::Elf { p_flags, .. } = segment.flags() else {
                    panic!("no ELF file")
                };
                Segment {
                    vaddr: segment.address(),
                    bytes_in_memory: segment.size(),
                    offset,
                    bytes_in_file,
                    is_code: p_flags.0 & object::elf::PF_X.0 != 0,
                }
            })
            .collect();
        let (mut words, mut stubs) = (Vec::new(), HashMap::new());
        for (at, relocation) in file.dynamic_relocations().into_iter().flatten() {
            let RelocationFlags::Elf { r_type } = relocation.flags() else { continue };
            let addend = u64::from_ne_bytes(relocation.addend().to_ne_bytes());
            if r_type == R_X86_64_RELATIVE {
                words.push((at, BASE.wrapping_add(addend)));
            } else if [R_X86_64_64, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT].contains(&r_type)
                && let RelocationTarget::Symbol(index) = relocation.target()
            {
                let symbol = file.dynamic_symbol_table().unwrap();
                let symbol = object::ObjectSymbolTable::symbol_by_index(&symbol, index).unwrap();
                if symbol.is_definition() {
                    words.push((at, BASE.wrapping_add(symbol.address()).wrapping_add(addend)));
                } else {
                    let stub = STUBS + index.0 as u64 % (STUBS_BYTES / 64) * 64;
                    stubs.insert(stub, symbol.name().unwrap().to_owned());
                    words.push((at, stub.wrapping_add(addend)));
                }
            }
        }
        drop(file);
        Self { bytes, functions, segments, words, stubs }
    }

    /// Whether the function that a stub stands for may not return.
    pub fn may_not_return(&self, stub: u64) -> bool {
        const WORDS: [&str; 13] = [
            "throw",
            "Throw",
            "Raise",
            "abort",
            "Abort",
            "exit",
            "fail",
            "terminate",
            "Unwind_Resume",
            "bad_",
            "longjmp",
            "assert",
            "unreachable",
        ];
        self.stubs.get(&stub).is_none_or(|name| WORDS.iter().any(|word| name.contains(word)))
    }

    /// Whether the function that a stub stands for ends a program that has overwritten its stack.
    pub fn guards_the_stack(&self, stub: u64) -> bool {
        self.stubs.get(&stub).is_some_and(|name| name.contains("__stack_chk_fail"))
    }

    /// Whether an address in memory is code of the file.
    pub fn is_code(&self, address: u64) -> bool {
        let vaddr = address.wrapping_sub(BASE);
        self.segments
            .iter()
            .any(|segment| segment.is_code && vaddr.wrapping_sub(segment.vaddr) < segment.bytes_in_memory)
    }
}
