//! Turns functions given byte by byte into a small ELF file, so that a test can say what every byte of its code is.

/// Address of the first function; each gets [`STRIDE`] bytes.
pub(in crate::resolve) const CODE: u64 = 0x2000;
/// Distance between two functions.
pub(in crate::resolve) const STRIDE: u64 = 0x100;
/// Address of the first PLT stub; each takes 16 bytes.
pub(in crate::resolve) const PLT: u64 = 0x1000;
/// Address of the first GOT slot.
pub(in crate::resolve) const GOT: u64 = 0x1800;
const EH_FRAME_HEADER: u64 = 0x1c00;

/// `DW_CFA_def_cfa_offset n` after the first `advance` bytes.
pub(in crate::resolve) fn cfa(advance: u8, offset: u8) -> Vec<u8> {
    vec![0x40 | advance, 0x0e, offset]
}

/// The low half of a number, as it lies in a file.
pub(in crate::resolve) fn word(number: u64) -> [u8; 4] {
    *number.to_le_bytes().first_chunk().unwrap()
}

/// What to make.
#[derive(Clone, Debug, Default)]
pub(in crate::resolve) struct Fixture {
    functions: Vec<(String, u8, Vec<u8>, Vec<u8>)>,
    imports: Vec<String>,
    exception_tables: Vec<(usize, u64)>,
    extra: Vec<(u64, Vec<u8>)>,
    old_hash: bool,
    no_table: bool,
}

impl Fixture {
    /// Adds a global function, at `CODE + STRIDE * n`; an empty name makes it a nameless one.
    pub(in crate::resolve) fn function(mut self, name: &str, code: &[u8], cfi: &[u8]) -> Self {
        self.functions.push((name.to_owned(), 0x12, code.to_vec(), cfi.to_vec()));
        self
    }

    /// Sets binding and type of the last function.
    pub(in crate::resolve) fn info(mut self, info: u8) -> Self {
        self.functions.last_mut().unwrap().1 = info;
        self
    }

    /// Adds an imported function, with its stub at `PLT + 16 * n`.
    pub(in crate::resolve) fn import(mut self, name: &str) -> Self {
        self.imports.push(name.to_owned());
        self
    }

    /// Puts bytes at an address.
    pub(in crate::resolve) fn data(mut self, at: u64, bytes: &[u8]) -> Self {
        self.extra.push((at, bytes.to_vec()));
        self
    }

    /// Gives a function an exception table at an address.
    pub(in crate::resolve) fn exceptions(mut self, function: usize, at: u64) -> Self {
        self.exception_tables.push((function, at));
        self
    }

    /// Writes `DT_HASH` instead of `DT_GNU_HASH`.
    pub(in crate::resolve) fn old_hash(mut self, old_hash: bool) -> Self {
        self.old_hash = old_hash;
        self
    }

    /// Leaves out the search table of `.eh_frame`, which then only a section header finds.
    pub(in crate::resolve) fn no_table(mut self, no_table: bool) -> Self {
        self.no_table = no_table;
        self
    }

    /// The file; file offsets equal addresses.
    pub(in crate::resolve) fn build(&self) -> Vec<u8> {
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
                    name.bytes().fold(5381, |hash: u32, byte| hash.wrapping_mul(33).wrapping_add(byte.into()))
                })
                .collect();
            let last = hashes.len() - 1;
            let chain = hashes.iter().enumerate().map(|(index, hash)| hash & !1 | u32::from(index == last));
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
            put(file, 64 + index * 56, &words.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<u8>>());
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
