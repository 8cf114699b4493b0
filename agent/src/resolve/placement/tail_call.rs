//! Turns a jump out of a function into the callee that it goes to, and that callee into exits if it does the work.
//!
//! A function that leaves by a tail call has left its frame, and its caller gets the callee's return. Whether the
//! callee is part of the operation is decided by [`FollowPolicy`]; followed callees are observed at their own exits
//! ([`Edge::TailLeave`](cadscope_common::cookie::Edge::TailLeave)), where the slot is the same.

use super::super::exits::How;
use super::super::instruction::Instruction;
use super::super::{Unplaceable, Vaddr};
use super::{FollowPolicy, Placing};

/// How many tail calls in a row are followed.
const MOST_FOLLOWED: usize = 4;
/// A callee up to this size, in bytes, is taken for an epilogue of its caller: a release, a forwarded setter.
const TRIVIAL_BYTES: u64 = 64;

/// Where a tail call goes.
pub(super) struct Callee {
    pub(super) name: Option<String>,
    /// Its definition in this file, with its size in bytes.
    pub(super) here: Option<(Vaddr, u64)>,
    /// It has a name, and no other file has a copy of it.
    is_distinct: bool,
    /// It is in another file.
    is_elsewhere: bool,
}

impl<I: Instruction> Placing<'_, '_, I> {
    pub(super) fn callee(&self, how: &How) -> Callee {
        match how {
            How::TailCall(at) => {
                let name = self.file.name_at(Vaddr(*at));
                let is_weak = name.and_then(|name| self.file.is_weak(name));
                let here = self.file.frames.as_ref().and_then(|frames| frames.at(*at));
                Callee {
                    name: Some(name.map_or_else(|| format!("sub_{at:x}"), str::to_owned)),
                    here: here.map(|frame| (Vaddr(*at), frame.end.saturating_sub(*at))),
                    is_distinct: is_weak == Some(false),
                    is_elsewhere: false,
                }
            }
            How::TailCallByName(name) => {
                let here = self.file.find(name).filter(|symbol| symbol.is_function);
                Callee {
                    name: Some(name.clone()),
                    here: here.map(|symbol| (symbol.vaddr, symbol.size)),
                    is_distinct: here.is_some_and(|symbol| !symbol.weak),
                    is_elsewhere: here.is_none(),
                }
            }
            How::TailCallUnknown | How::Return => {
                Callee { name: None, here: None, is_distinct: false, is_elsewhere: true }
            }
        }
    }

    /// Whether a callee is part of the operation; see [`FollowPolicy`].
    pub(super) fn follows(&self, callee: &Callee, hides_work: bool) -> Result<bool, Unplaceable> {
        let is_ending = callee.name.as_deref().is_some_and(is_ending);
        if self.follow == FollowPolicy::Never || is_ending {
            return Ok(false);
        }
        let always = hides_work || self.follow == FollowPolicy::Always;
        if callee.is_elsewhere && always {
            return Err(Unplaceable::WorkElsewhere(callee.name.clone()));
        }
        Ok(callee.here.is_some_and(|(_, size)| always || callee.is_distinct && size > TRIVIAL_BYTES))
    }

    /// Adds the exits of a callee; none of them if one of them cannot be placed.
    pub(super) fn follow(&mut self, callee: &Callee, depth: usize) -> Result<(), Unplaceable> {
        let (Some((at, size)), Some(name)) = (callee.here, callee.name.as_deref()) else {
            return Err(Unplaceable::NoExit);
        };
        if depth >= MOST_FOLLOWED {
            return Err(Unplaceable::NoExit);
        }
        let before = (self.exits.len(), self.seen.len(), self.obstacles.len());
        let outcome = self.read(at, size).and_then(|body| self.leave(&body, Some(name), depth + 1));
        if outcome.is_err() {
            self.exits.truncate(before.0);
            self.seen.truncate(before.1);
            self.obstacles.truncate(before.2);
        }
        outcome
    }
}

/// Whether a function ends operations whose work is over: frees, destroys, or marks as done.
fn is_ending(name: &str) -> bool {
    matches!(name, "free" | "cfree" | "_ZN8Standard4FreeEPv")
        || name.starts_with("_Zdl")
        || name.starts_with("_Zda")
        || name.ends_with("D0Ev")
        || name.ends_with("D1Ev")
        || name.ends_with("D2Ev")
        || name.ends_with("4DoneEv")
        || name.ends_with("7NotDoneEv")
}

#[cfg(test)]
mod tests {
    use super::super::super::elf::tests::fixture::{CODE, Fixture, PLT, STRIDE, cfa, word};
    use super::super::super::{ElfFile, Exit, SiteClass};
    use super::super::Placement;
    use super::super::tests::Part::{Bytes, To};
    use super::super::tests::{CALL, DONE, ELSEWHERE, JUMP, big, code, fixture, place, place_with};
    use super::*;
    use cadscope_common::cookie::{Edge, RETURN_NOT_FINAL};

    #[test]
    fn work_that_a_register_leads_to_has_no_end_to_place() {
        let by_register = fixture().function("a", &[0xff, 0xe6], &[]);
        assert_eq!(place(&by_register), Err(Unplaceable::WorkElsewhere(None)));
        let or_returns = fixture().function("a", &[0x85, 0xff, 0x74, 0x02, 0xff, 0xe6, 0xc3], &[]);
        assert_eq!(place(&or_returns).unwrap().exits.len(), 2);
    }

    #[test]
    fn an_operation_goes_on_in_a_function_that_is_probed_itself() {
        let (b, c) = (CODE + STRIDE, CODE + 2 * STRIDE);
        // test edi,edi; jz +5; jmp; ret
        let hop = |from: u64, to: u64| {
            [&[0x85, 0xff, 0x74, 0x05, 0xe9][..], &word(to.wrapping_sub(from + 9)), &[0xc3]].concat()
        };
        let file = fixture().function("a", &hop(CODE, b), &[]).function("b", &hop(b, CODE), &[]).build();
        let file = ElfFile::parse(&file).unwrap();
        let place =
            |probed: &[Vaddr]| file.place_with("a", FollowPolicy::Work, Placement::Cheapest, probed).unwrap();
        let (alone, together) = (place(&[Vaddr(c)]), place(&[Vaddr(CODE), Vaddr(b)]));
        assert_eq!((alone.exits.len(), alone.tail_calls), (2, false));
        assert_eq!((together.exits.len(), together.tail_calls), (1, true));
    }

    #[test]
    fn what_is_followed_by_one_way_goes_on_by_every_way() {
        let (b, c) = (CODE + STRIDE, CODE + 2 * STRIDE);
        // test edi,edi; jz +5; jmp
        let branch = |from: u64, to: u64| {
            [&[0x85, 0xff, 0x74, 0x05, 0xe9][..], &word(to.wrapping_sub(from + 9))].concat()
        };
        let only_jumps = [&branch(CODE, b)[..], &[0xe9], &word(c.wrapping_sub(CODE + 14))].concat();
        let or_returns = [&branch(b, c)[..], &[0xc3]].concat();
        let three = fixture().function("a", &only_jumps, &[]).function("b", &or_returns, &[]);
        let sites = place(&three.function("c", &[0xc3], &[])).unwrap();
        let at: Vec<Vaddr> = sites.exits.iter().map(|(site, _)| site.vaddr).collect();
        assert_eq!(at, [Vaddr(b + 9), Vaddr(c)], "{sites:?}");
        // Alone it ends where it jumps: what it jumps to is trivial.
        let or_returns = [&branch(CODE, b)[..], &[0xc3]].concat();
        let two = fixture().function("a", &or_returns, &[]).function("b", &[0xc3], &[]);
        assert_eq!(place(&two).unwrap().exits.len(), 2);
    }

    #[test]
    fn a_function_that_only_jumps_has_its_work_done_by_the_callee() {
        let b = CODE + STRIDE;
        let sites =
            place(&fixture().function("a", &code(&[To(JUMP, b)]), &[]).function("b", &[0xc3], &[])).unwrap();
        let [(site, Exit::Followed(name))] = &sites.exits[..] else { panic!("{sites:?}") };
        assert_eq!(
            (name.as_str(), site.vaddr, site.edge, sites.tail_calls),
            ("b", Vaddr(b), Edge::TailLeave, true)
        );
        let elsewhere = fixture().function("a", &code(&[To(JUMP, ELSEWHERE)]), &[]);
        assert_eq!(place(&elsewhere), Err(Unplaceable::WorkElsewhere(Some("elsewhere".to_owned()))));
        // By name, through the PLT, to its own file.
        let by_name = Fixture::default().import("b").function("a", &code(&[To(JUMP, PLT)]), &[]).function(
            "b",
            &[0xc3],
            &[],
        );
        assert!(matches!(&place(&by_name).unwrap().exits[..], [(_, Exit::Followed(name))] if name == "b"));
    }

    #[test]
    fn a_function_that_did_its_work_ends_at_the_jump() {
        // sub rsp,8; call elsewhere; add rsp,8; jmp
        let a = |target| {
            let code = code(&[
                Bytes(&[0x48, 0x83, 0xec, 8]),
                To(CALL, ELSEWHERE),
                Bytes(&[0x48, 0x83, 0xc4, 8]),
                To(JUMP, target),
            ]);
            fixture().function("a", &code, &[cfa(4, 16), cfa(9, 8)].concat())
        };
        for (target, name) in [(DONE, "_ZN22BRepBuilderAPI_Command4DoneEv"), (ELSEWHERE, "elsewhere")] {
            let sites = place(&a(target)).unwrap();
            let [(site, Exit::TailCall(Some(callee)))] = &sites.exits[..] else { panic!("{sites:?}") };
            assert_eq!((callee.as_str(), site.vaddr, site.distance), (name, Vaddr(CODE + 13), 0));
            assert_eq!(
                (site.class, site.edge, site.return_register),
                (SiteClass::Emulated, Edge::Leave, RETURN_NOT_FINAL)
            );
            assert!(!sites.tail_calls);
        }
        let b = CODE + STRIDE;
        let followed =
            |fixture: &Fixture, policy| place_with(fixture, policy, Placement::Cheapest).unwrap().tail_calls;
        assert!(followed(&a(b).function("b", &big(), &[]), FollowPolicy::Work), "a function of some size");
        assert!(!followed(&a(b).function("b", &big(), &[]), FollowPolicy::Never));
        assert!(!followed(&a(b).function("b", &[0xc3], &[]), FollowPolicy::Work), "a trivial one");
        assert!(followed(&a(b).function("b", &[0xc3], &[]), FollowPolicy::Always));
        assert!(!followed(&a(b).function("b", &big(), &[]).info(0x22), FollowPolicy::Work), "inline code");
        assert!(!followed(&a(b).function("_ZN1AD1Ev", &big(), &[]), FollowPolicy::Work), "a destructor");
        let always = place_with(&a(ELSEWHERE), FollowPolicy::Always, Placement::Cheapest);
        assert_eq!(always, Err(Unplaceable::WorkElsewhere(Some("elsewhere".to_owned()))));
        // A callee that cannot be placed is no reason to refuse the caller: its own work is seen.
        assert!(!followed(
            &a(b).function("b", &[vec![0x90; 70], vec![0x06]].concat(), &[]),
            FollowPolicy::Work
        ));
    }

    #[test]
    fn tail_calls_in_a_circle_end() {
        let (b, c) = (CODE + STRIDE, CODE + 2 * STRIDE);
        // test edi,edi; je +5; jmp to; ret
        let or_return = |from: u64, to: u64| {
            [&[0x85, 0xff, 0x74, 0x05, 0xe9][..], &word(to.wrapping_sub(from + 9)), &[0xc3]].concat()
        };
        let a = fixture().function("a", &code(&[To(JUMP, b)]), &[]);
        let jump = |from: u64, to: u64| [&[0xe9][..], &word(to.wrapping_sub(from + 5))].concat();
        let circle = a.clone().function("b", &jump(b, c), &[]).function("c", &or_return(c, b), &[]);
        let sites = place(&circle).unwrap();
        assert!(matches!(&sites.exits[..], [(_, Exit::Followed(name))] if name == "c"), "{sites:?}");
        let endless = a.clone().function("b", &jump(b, c), &[]).function("c", &jump(c, b), &[]);
        assert!(place(&endless).unwrap().exits.is_empty());
        assert_eq!(place(&a.function("b", &or_return(b, CODE), &[])), Err(Unplaceable::EntryRepeats));
    }
}
