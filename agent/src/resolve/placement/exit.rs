//! Turns a `ret` into the site that marks it at the least cost.

use cadscope_common::cookie::{Edge, RETURN_NOT_FINAL};

use super::super::exits::{Body, Leave, Piece, gives_up};
use super::super::instruction::{Flow, Instruction};
use super::super::{Obstacle, Site, SiteClass, Unplaceable};
use super::{Placement, Placing, changes};

/// How far before a `ret` a site for it is looked for, in instructions.
const EXIT_WINDOW: usize = 32;
/// How far from a failed check the call that does not return is looked for, in instructions.
const GIVE_UP_WINDOW: usize = 4;

impl<I: Instruction> Placing<'_, '_, I> {
    /// The site that marks a `ret`: the nearest emulated instruction before it that always leads to it, or itself.
    pub(super) fn exit(
        &mut self,
        body: &Body<I>,
        piece: &Piece<I>,
        leave: &Leave,
        edge: Edge,
    ) -> Result<Site, Unplaceable> {
        let ret = piece.code.get(leave.index).ok_or(Unplaceable::NoExit)?;
        if piece.frame.distance(ret.at()) != Some(I::AT_SLOT) {
            return Err(Unplaceable::NoDistance(ret.at()));
        }
        let site = self.site(ret, edge, I::AT_SLOT, 0);
        if let Some(site) = site
            && site.class == SiteClass::Emulated
        {
            return Ok(site);
        }
        self.early_exit(body, piece, ret, leave, edge).or_else(|obstacle| {
            let site = site.ok_or(Unplaceable::Unprobeable(ret.at()))?;
            self.obstacles.push((site.vaddr, obstacle));
            Ok(site)
        })
    }

    fn early_exit(
        &self,
        body: &Body<I>,
        piece: &Piece<I>,
        ret: &I,
        leave: &Leave,
        edge: Edge,
    ) -> Result<Site, Obstacle> {
        let mut scratch = I::Scratch::default();
        // The register that holds, before the instruction last looked at, what will be returned.
        let mut value = Some(0);
        let (mut at, mut piece, mut index) = (ret, piece, leave.index);
        // An emulated instruction at which only the return value is missing.
        let mut not_final = None;
        let or = |not_final: Option<Obstacle>, obstacle| not_final.unwrap_or(obstacle);
        for _ in 0..EXIT_WINDOW {
            // Step back to the only instruction from which this one is reached.
            let previous = index.checked_sub(1).and_then(|index| piece.code.get(index));
            let previous =
                previous.filter(|previous| previous.falls_through() && !gives_up(self.file, *previous));
            let arrivals = body.arrivals_at(at.at());
            let (instruction, jumped) = match (arrivals, previous) {
                ([], Some(previous)) => {
                    index -= 1;
                    (previous, false)
                }
                ([arrival], None) => {
                    let from = arrival.from.and_then(|from| body.find(from));
                    let jump = from.and_then(|(from_piece, from_index)| {
                        piece = body.pieces.get(from_piece)?;
                        index = from_index;
                        piece.code.get(index)
                    });
                    (jump.ok_or_else(|| or(not_final, Obstacle::Meeting(at.at())))?, true)
                }
                ([], None) => return Err(or(not_final, Obstacle::Start(at.at()))),
                _ => return Err(or(not_final, Obstacle::Meeting(at.at()))),
            };
            match instruction.flow() {
                Flow::Next => {
                    let before = instruction.before(&mut scratch, &piece.frame, value);
                    value = before.ok_or_else(|| or(not_final, Obstacle::Change(instruction.at())))?;
                }
                Flow::Jump(_) => {}
                Flow::Branch(_) if self.otherwise_gives_up(body, piece, index, jumped) => {}
                _ => return Err(or(not_final, changes(instruction))),
            }
            let register = value.unwrap_or(RETURN_NOT_FINAL);
            let is_final = self.placement == Placement::Cheapest || register != RETURN_NOT_FINAL;
            if let Some(distance) = piece.frame.distance(instruction.at())
                && let Some(site) = self.site(instruction, edge, distance, register)
                && site.class == SiteClass::Emulated
            {
                if is_final {
                    return Ok(site);
                }
                not_final = not_final.or(Some(Obstacle::ReturnNotFinal(site.vaddr.0)));
            }
            at = instruction;
        }
        Err(or(not_final, Obstacle::Far(EXIT_WINDOW)))
    }

    /// Whether the way that a conditional jump does not take towards the exit ends the process.
    fn otherwise_gives_up(&self, body: &Body<I>, piece: &Piece<I>, index: usize, jumped: bool) -> bool {
        let other = match piece.code.get(index).map(|jump| (jump.end(), jump.flow())) {
            Some((next, _)) if jumped => body.find(next),
            Some((_, Flow::Branch(to))) => body.find(to),
            _ => None,
        };
        let Some((other_piece, other_index)) = other else { return false };
        let code =
            body.pieces.get(other_piece).and_then(|piece| piece.code.get(other_index..)).unwrap_or_default();
        for instruction in code.iter().take(GIVE_UP_WINDOW) {
            match instruction.flow() {
                Flow::Next => {}
                Flow::Call(_) | Flow::IndirectCall => return gives_up(self.file, instruction),
                _ => return false,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::elf::tests::fixture::{CODE, Fixture, cfa};
    use super::super::super::{Exit, Vaddr};
    use super::super::FollowPolicy;
    use super::super::tests::{CHECK_FAILED, THROW, checked, fixture, place, place_with};
    use super::*;

    fn only_exit(fixture: &Fixture, placement: Placement) -> Site {
        let sites = place_with(fixture, FollowPolicy::Work, placement).unwrap();
        let [(site, Exit::Return)] = sites.exits[..] else { panic!("{sites:?}") };
        site
    }

    #[test]
    fn the_stack_check_before_a_return_marks_it() {
        let site = only_exit(&checked(&[0x89, 0xd8], &[], CHECK_FAILED), Placement::ReturnFinal);
        assert_eq!((site.vaddr, site.distance, site.return_register), (Vaddr(CODE + 7), 24, 0));
        assert_eq!(
            (site.class, site.edge, site.base),
            (SiteClass::Emulated, Edge::Leave, cadscope_common::cookie::Base::StackPointer)
        );
        assert_eq!(site.offset.0, site.vaddr.0);
    }

    #[test]
    fn a_return_value_that_moves_after_the_check_is_read_where_it_is() {
        // mov eax,ebx / mov rax,r12 after the check
        for (tail, register) in [(&[0x89, 0xd8][..], 3), (&[0x4c, 0x89, 0xe0], 12), (&[0x44, 0x89, 0xe0], 12)]
        {
            let site = only_exit(&checked(&[], tail, CHECK_FAILED), Placement::ReturnFinal);
            assert_eq!((site.vaddr, site.return_register), (Vaddr(CODE + 5), register), "{tail:x?}");
        }
        // xor eax,eax / mov eax,[rsp+8] / mov al,bl / mov rax,r12 then or eax,1
        for tail in
            [&[0x31, 0xc0][..], &[0x8b, 0x44, 0x24, 8], &[0x88, 0xd8], &[0x4c, 0x89, 0xe0, 0x83, 0xc8, 1]]
        {
            let fixture = checked(&[], tail, CHECK_FAILED);
            let site = only_exit(&fixture, Placement::Cheapest);
            assert_eq!((site.vaddr, site.return_register), (Vaddr(CODE + 5), RETURN_NOT_FINAL), "{tail:x?}");
            let site = only_exit(&fixture, Placement::ReturnFinal);
            assert_eq!(
                (site.class, site.distance, site.return_register),
                (SiteClass::SingleStep, 0, 0),
                "{tail:x?}"
            );
        }
    }

    #[test]
    fn what_may_not_lead_to_the_return_does_not_mark_it() {
        let is_ret =
            |fixture: &Fixture| only_exit(fixture, Placement::Cheapest).class == SiteClass::SingleStep;
        assert!(is_ret(&checked(&[], &[], THROW)), "the other way throws");
        // mov [rdi],eax; mov [rbp+8],eax: rbp is not the frame pointer
        assert!(is_ret(&checked(&[], &[0x89, 0x07], CHECK_FAILED)), "an object changes after the check");
        assert!(is_ret(&checked(&[], &[0x89, 0x45, 8], CHECK_FAILED)), "an object changes after the check");
        assert!(
            !is_ret(&checked(&[], &[0x89, 0x44, 0x24, 8], CHECK_FAILED)),
            "a local changes after the check"
        );
        // je over the check, to what follows it
        assert!(
            is_ret(&checked(&[0x74, 0x02], &[], CHECK_FAILED)),
            "the return is reached without the check"
        );
        assert!(is_ret(&checked(&[], &[0xff, 0xd0], CHECK_FAILED)), "something is called after the check");
    }

    #[test]
    fn a_jump_to_a_return_of_its_own_marks_it() {
        // push rbx; jmp L; nop; L: pop rbx; ret
        let cfi = [cfa(1, 16), cfa(4, 8)].concat();
        let bytes = [0x53, 0xeb, 0x01, 0x90, 0x5b, 0xc3];
        let sites = place(&fixture().function("a", &bytes, &cfi)).unwrap();
        assert_eq!(
            sites.exits[0].0.vaddr,
            Vaddr(CODE + 5),
            "neither the jump nor the nop is the only way to it"
        );
        let bytes = [0x53, 0xeb, 0x02, 0x0f, 0x0b, 0x5b, 0xc3];
        let sites = place(&fixture().function("a", &bytes, &[cfa(1, 16), cfa(5, 8)].concat())).unwrap();
        assert_eq!((sites.exits[0].0.vaddr, sites.exits[0].0.distance), (Vaddr(CODE + 1), 8));
    }
}
