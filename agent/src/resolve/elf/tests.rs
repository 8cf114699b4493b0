//! What is found in files made by hand, and in damaged ones.

use proptest::prelude::*;

use self::fixture::{CODE, Fixture, GOT, STRIDE};
use super::*;

pub(in crate::resolve) mod fixture;

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
        assert!(file.defines("ifunc") && !file.defines("free") && !file.defines("") && !file.defines("fir"));
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
