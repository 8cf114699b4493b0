//! Turns ill intent into ELF files that are small on disk and endless to read.

#![allow(clippy::indexing_slicing, reason = "bytes at known places: out of bounds is a failed test")]

/// Where everything begins: code, then tables. Addresses are file offsets.
const TABLES: u64 = 0x1000;

/// What the tables of a file say.
#[derive(Default)]
struct File {
    bytes: Vec<u8>,
    dynamic: Vec<(i64, u64)>,
    /// (file offset, size in bytes) of a `.symtab`.
    symtab: Option<(u64, u64)>,
    /// What the one segment claims to hold.
    size: u64,
}

const DT_HASH: i64 = 4;
const DT_STRTAB: i64 = 5;
const DT_SYMTAB: i64 = 6;
const DT_STRSZ: i64 = 10;
const DT_SONAME: i64 = 14;
const DT_GNU_HASH: i64 = 0x6fff_fef5;

impl File {
    fn new() -> Self {
        Self { bytes: vec![0; usize::try_from(TABLES).unwrap_or(0)], ..Self::default() }
    }

    /// Adds bytes, and says where they are.
    fn add(&mut self, bytes: &[u8]) -> u64 {
        while !self.bytes.len().is_multiple_of(16) {
            self.bytes.push(0);
        }
        let at = self.bytes.len() as u64;
        self.bytes.extend(bytes);
        at
    }

    fn build(mut self) -> Vec<u8> {
        let mut dynamic = Vec::new();
        for (tag, value) in self.dynamic.clone().into_iter().chain([(0, 0)]) {
            dynamic.extend(tag.to_le_bytes());
            dynamic.extend(value.to_le_bytes());
        }
        let dynamic_at = self.add(&dynamic);
        let mut sections = Vec::new();
        if let Some((at, size)) = self.symtab {
            for (kind, at, size, link) in [(0_u32, 0, 0, 0_u32), (2, at, size, 2), (3, at, size, 0)] {
                sections.extend([0_u32.to_le_bytes(), kind.to_le_bytes()].concat());
                for word in [0, 0, at, size] {
                    sections.extend(word.to_le_bytes());
                }
                sections.extend([link.to_le_bytes(), 0_u32.to_le_bytes()].concat());
                sections.extend([0_u64.to_le_bytes(), 24_u64.to_le_bytes()].concat());
            }
        }
        let sections_at = self.add(&sections);
        let size = self.size.max(self.bytes.len() as u64);
        let mut head = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\x01\0\0\0".to_vec();
        for word in [0, 64, if sections.is_empty() { 0 } else { sections_at }] {
            head.extend(word.to_le_bytes());
        }
        let count = u16::try_from(sections.len() / 64).unwrap_or(0);
        for half in [0_u16, 0, 64, 56, 2, 64, count, 0] {
            head.extend(half.to_le_bytes());
        }
        for (kind, flags, at, size) in [(1_u32, 5_u32, 0, size), (2, 4, dynamic_at, dynamic.len() as u64)] {
            head.extend([kind.to_le_bytes(), flags.to_le_bytes()].concat());
            for word in [at, at, at, size, size, 4096] {
                head.extend(word.to_le_bytes());
            }
        }
        self.bytes.splice(..head.len(), head);
        self.bytes
    }
}

fn symbol(name: usize, value: u64) -> [u8; 24] {
    let mut symbol = [0; 24];
    let (head, rest) = symbol.split_at_mut(8);
    head.copy_from_slice(&[&u32::try_from(name).unwrap_or(0).to_le_bytes()[..], &[0x12, 0, 1, 0]].concat());
    rest[..8].copy_from_slice(&value.to_le_bytes());
    rest[8..].copy_from_slice(&16_u64.to_le_bytes());
    symbol
}

/// A terabyte whose hash table has one chain that goes on to the end of the file.
pub(crate) fn endless_hash() -> Vec<u8> {
    let mut file = File::new();
    let strings = file.add(b"\0libTKEndless.so\0");
    let symbols = file.add(&symbol(0, 0));
    let words = [1_u32, 1, 1, 0, u32::MAX, u32::MAX, 1];
    let hash = file.add(&words.map(u32::to_le_bytes).concat());
    file.size = 1 << 40;
    file.dynamic = vec![
        (DT_STRTAB, strings),
        (DT_STRSZ, 1 << 39),
        (DT_SYMTAB, symbols),
        (DT_GNU_HASH, hash),
        (DT_SONAME, 1),
    ];
    file.build()
}

/// A terabyte of local symbols.
pub(crate) fn endless_symbols() -> Vec<u8> {
    let mut file = File::new();
    let strings = file.add(b"\0libTKEndless.so\0");
    let symbols = file.add(&symbol(1, TABLES));
    file.symtab = Some((symbols, 1 << 39));
    file.size = 1 << 40;
    file.dynamic = vec![(DT_STRTAB, strings), (DT_STRSZ, 64), (DT_SYMTAB, symbols), (DT_SONAME, 1)];
    file.build()
}

/// A file that exports these names, and has them as local ones, too.
fn exporting(names: impl Iterator<Item = String>) -> Vec<u8> {
    let mut strings = b"\0libTKAlike.so\0".to_vec();
    let mut symbols = symbol(0, 0).to_vec();
    let mut count = 1_u32;
    for name in names {
        symbols.extend(symbol(strings.len(), TABLES));
        strings.extend(name.as_bytes());
        strings.push(0);
        count += 1;
    }
    let mut file = File::new();
    let symbols_at = file.add(&symbols);
    let strings_at = file.add(&strings);
    let hash = file.add(&[1_u32, count, 1].map(u32::to_le_bytes).concat());
    file.symtab = Some((symbols_at, symbols.len() as u64));
    file.dynamic = vec![
        (DT_STRTAB, strings_at),
        (DT_STRSZ, strings.len() as u64),
        (DT_SYMTAB, symbols_at),
        (DT_HASH, hash),
        (DT_SONAME, 1),
    ];
    file.build()
}

/// Overloads of a function of FreeCAD, as many as are wanted.
pub(crate) fn alike(count: u32) -> Vec<u8> {
    exporting((0..count).map(|number| {
        let parameters = number
            .to_string()
            .bytes()
            .map(|digit| char::from(b"ijlmstdfcb"[usize::from(digit - b'0')]))
            .collect::<String>();
        format!("_ZN3App8Document9recomputeERKSt6vectorIPNS_14DocumentObjectESaIS3_EEbPb{parameters}")
    }))
}

/// Overloads whose mangled names, of some hundred bytes, stand for gigabytes.
pub(crate) fn doubling() -> Vec<u8> {
    let base = "_ZN3App8Document9recomputeE";
    exporting((8..17_u32).map(|steps| {
        let mut parameter = "St4pairIiiE".to_owned();
        // Each step names the one before twice, by its number among the substitutions.
        for step in 0..steps {
            let number =
                char::from_digit(2 + 2 * step, 36).map(|digit| digit.to_ascii_uppercase()).unwrap_or('0');
            parameter = format!("{parameter}St4pairIS{number}_S{number}_E");
        }
        format!("{base}{parameter}")
    }))
}
