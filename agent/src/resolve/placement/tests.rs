//! Sites of functions given byte by byte, and the functions that other tests give.

use proptest::prelude::*;

use super::super::elf::tests::fixture::{CODE, Fixture, PLT, STRIDE, cfa, word};
use super::*;

pub(super) const CHECK_FAILED: u64 = PLT;
pub(super) const THROW: u64 = PLT + 16;
pub(super) const DONE: u64 = PLT + 32;
pub(super) const ELSEWHERE: u64 = PLT + 48;

pub(super) fn fixture() -> Fixture {
    Fixture::default()
        .import("__stack_chk_fail")
        .import("_ZSt17__throw_bad_allocv")
        .import("_ZN22BRepBuilderAPI_Command4DoneEv")
        .import("elsewhere")
}

/// A function `a` from parts that may jump or call: bytes are copied, `(opcode, target)` gets its distance.
pub(super) fn code(parts: &[Part<'_>]) -> Vec<u8> {
    let mut code = Vec::new();
    for part in parts {
        match part {
            Bytes(bytes) => code.extend(*bytes),
            To(opcode, target) => {
                code.push(*opcode);
                let next = CODE + code.len() as u64 + 4;
                code.extend(word(target.wrapping_sub(next)));
            }
        }
    }
    code
}

pub(super) enum Part<'a> {
    Bytes(&'a [u8]),
    To(u8, u64),
}
use Part::{Bytes, To};

pub(super) const JUMP: u8 = 0xe9;
pub(super) const CALL: u8 = 0xe8;

pub(super) fn place(fixture: &Fixture) -> Result<Sites, Unplaceable> {
    place_with(fixture, FollowPolicy::Work, Placement::Cheapest)
}

pub(super) fn place_with(
    fixture: &Fixture,
    follow: FollowPolicy,
    placement: Placement,
) -> Result<Sites, Unplaceable> {
    let bytes = fixture.build();
    ElfFile::parse(&bytes).unwrap().place_with("a", follow, placement, &[])
}

/// `push rbx; sub rsp,16; <body>; jne fail; <tail>; add rsp,16; pop rbx; ret; fail: call <fail>`
pub(super) fn checked(body: &[u8], tail: &[u8], fail: u64) -> Fixture {
    let over = u8::try_from(tail.len() + 6).unwrap();
    let code = code(&[
        Bytes(&[0x53, 0x48, 0x83, 0xec, 0x10]),
        Bytes(body),
        Bytes(&[0x75, over]),
        Bytes(tail),
        Bytes(&[0x48, 0x83, 0xc4, 0x10, 0x5b, 0xc3]),
        To(CALL, fail),
    ]);
    let to_pop = u8::try_from(body.len() + 2 + tail.len() + 4).unwrap();
    let cfi = [cfa(1, 16), cfa(4, 32), cfa(to_pop, 16), cfa(1, 8), vec![0x41, 0x0e, 32]].concat();
    fixture().function("a", &code, &cfi)
}

#[test]
fn a_single_stepped_site_says_what_is_in_the_way() {
    let obstacles = |fixture: &Fixture, placement| {
        let sites = place_with(fixture, FollowPolicy::Work, placement).unwrap();
        let all = [&sites.entry].into_iter().chain(sites.exits.iter().map(|(site, _)| site));
        all.filter(|site| site.class == SiteClass::SingleStep)
            .map(|site| sites.obstacle(site).expect("a reason"))
            .collect::<Vec<_>>()
    };
    let of = |code: &[u8], cfi: &[u8]| obstacles(&fixture().function("a", code, cfi), Placement::Cheapest);
    let pushed = |at: u8| [cfa(1, 16), cfa(at - 1, 8)].concat();
    // push rbx; call elsewhere; pop rbx; ret
    let calls = code(&[Bytes(&[0x53]), To(CALL, ELSEWHERE), Bytes(&[0x5b, 0xc3])]);
    assert_eq!(of(&calls, &pushed(7)), [Obstacle::Call(CODE + 1)]);
    // push rbx; je L; nop; L: pop rbx; ret
    assert_eq!(of(&[0x53, 0x74, 0x01, 0x90, 0x5b, 0xc3], &pushed(5)), [Obstacle::Meeting(CODE + 4)]);
    // mov edi,1; mov [rsi],eax; ret: of the entry and of the exit
    let changes = [0xbf, 1, 0, 0, 0, 0x89, 0x06, 0xc3];
    assert_eq!(of(&changes, &[]), [Obstacle::Change(CODE), Obstacle::Change(CODE + 5)]);
    // mov eax,1; ret
    assert_eq!(of(&[0xb8, 1, 0, 0, 0, 0xc3], &[]), [Obstacle::Branch(CODE + 5), Obstacle::Start(CODE)]);
    // The return value comes into being behind the jump.
    let late = checked(&[], &[0x31, 0xc0], CHECK_FAILED);
    assert_eq!(obstacles(&late, Placement::Cheapest), []);
    assert_eq!(obstacles(&late, Placement::ReturnFinal), [Obstacle::ReturnNotFinal(CODE + 5)]);
}

#[test]
fn what_is_no_function_of_this_file_is_not_placed() {
    assert_eq!(place(&fixture().function("b", &[0xc3], &[])), Err(Unplaceable::Absent));
    assert_eq!(place(&fixture().function("a", &[0xc3], &[]).info(0x1a)), Err(Unplaceable::NotCode), "IFUNC");
    assert_eq!(place(&fixture().function("a", &[0xc3], &[]).info(0x11)), Err(Unplaceable::NotCode), "data");
    assert!(place(&fixture().function("a", &[0xc3], &[]).info(0x22)).is_ok(), "weak");
}

#[test]
fn a_function_that_never_returns_has_an_entry_only() {
    // sub rsp,8; call throw
    let throws = code(&[Bytes(&[0x48, 0x83, 0xec, 8]), To(CALL, THROW), Bytes(&[0x0f, 0x0b])]);
    let sites = place(&fixture().function("a", &throws, &cfa(4, 16))).unwrap();
    assert!(sites.exits.is_empty() && !sites.tail_calls, "{sites:?}");
}

/// A function of more than 64 bytes that returns.
pub(super) fn big() -> Vec<u8> {
    [vec![0x90; 70], vec![0xc3]].concat()
}

fn rich() -> Fixture {
    let b = CODE + STRIDE;
    // cmp edi,1; ja end; lea rax,[rip+table]; movsxd rdx,[rax+rdi*4]; add rax,rdx; jmp rax; ret; end: jmp b
    let lea = word(0x1f00_u64.wrapping_sub(CODE + 12));
    let table = [word((CODE + 21).wrapping_sub(0x1f00)), word((CODE + 22).wrapping_sub(0x1f00))].concat();
    let code = code(&[
        Bytes(&[0x83, 0xff, 0x01, 0x77, 0x11, 0x48, 0x8d, 0x05]),
        Bytes(&lea),
        Bytes(&[0x48, 0x63, 0x14, 0xb8, 0x48, 0x01, 0xd0, 0xff, 0xe0, 0xc3]),
        To(JUMP, b),
    ]);
    let pads = [0xff, 0xff, 0x01, 4, 0, 4, 2, 0];
    fixture()
        .function("a", &code, &[])
        .data(0x1f00, &table)
        .function("b", &big(), &[cfa(1, 8), cfa(4, 8)].concat())
        .exceptions(1, 0x1f40)
        .data(0x1f40, &pads)
}

#[test]
fn returns_and_followed_callees_go_together() {
    let sites = place(&rich()).unwrap();
    let kinds: Vec<_> =
        sites.exits.iter().map(|(site, exit)| (site.vaddr.0, exit.clone(), site.edge)).collect();
    // The nops of b lead straight to its return, and the last one marks it.
    assert_eq!(
        kinds,
        [
            (CODE + 21, Exit::Return, Edge::Leave),
            (CODE + STRIDE + 69, Exit::Followed("b".to_owned()), Edge::TailLeave)
        ]
    );
}

proptest! {
    #[test]
    fn any_code_gets_an_answer(
        bytes in proptest::collection::vec(any::<u8>(), 1..256),
        cfi in proptest::collection::vec(any::<u8>(), 0..64),
        second in proptest::collection::vec(any::<u8>(), 1..256),
    ) {
        let bytes = fixture().function("a", &bytes, &cfi).function("b", &second, &[]).build();
        let file = ElfFile::parse(&bytes).unwrap();
        for follow in [FollowPolicy::Work, FollowPolicy::Always, FollowPolicy::Never] {
            if let Ok(sites) = file.place_with("a", follow, Placement::Cheapest, &[]) {
                prop_assert!(sites.exits.iter().all(|(site, _)| site.vaddr.0 < CODE + 2 * STRIDE));
            }
        }
        let _ = file.entry("b");
    }

    #[test]
    fn damaged_code_gets_an_answer(damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..20)) {
        let mut bytes = rich().build();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(file) = ElfFile::parse(&bytes) {
            let _ = (file.place("a"), file.place("b"), file.entry("a"));
        }
    }
}
