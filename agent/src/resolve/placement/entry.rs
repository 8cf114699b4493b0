//! Turns the first instructions of a function into the site of its entry.

use cadscope_common::cookie::{Edge, RETURN_NOT_FINAL};

use super::super::elf::Symbol;
use super::super::exits::Body;
use super::super::instruction::Instruction;
use super::super::{Obstacle, Site, SiteClass, Unplaceable};
use super::{Placing, changes};

/// How far into a function its entry is looked for, in instructions.
const ENTRY_WINDOW: usize = 12;

impl<I: Instruction> Placing<'_, '_, I> {
    pub(super) fn entry_of(&self, function: Symbol) -> Result<Site, Unplaceable> {
        if let Ok(body) = Body::read(self.file, function.vaddr, function.size) {
            return self.entry(&body).map(|(site, _)| site);
        }
        let bytes = self.file.bytes_at(function.vaddr.0).ok_or(Unplaceable::NotCode)?;
        let bytes = bytes.get(..bytes.len().min(32)).unwrap_or(bytes);
        let first = I::first(bytes, function.vaddr.0).ok_or(Unplaceable::Undecodable(function.vaddr.0))?;
        self.site(&first, Edge::Enter, I::AT_SLOT, RETURN_NOT_FINAL)
            .ok_or(Unplaceable::Unprobeable(first.at()))
    }

    /// The entry: the first emulated instruction that is reached in a straight line from the first one while
    /// arguments and objects are as the caller left them; otherwise the first instruction, and why.
    pub(super) fn entry(&self, body: &Body<I>) -> Result<(Site, Option<Obstacle>), Unplaceable> {
        let piece = body.pieces.first().ok_or(Unplaceable::NoFrame)?;
        let first = piece.code.first().ok_or(Unplaceable::NoFrame)?;
        let mut scratch = I::Scratch::default();
        let (mut fallback, mut obstacle) = (None, Obstacle::Far(ENTRY_WINDOW));
        if body.arrivals_at(first.at()).is_empty() {
            for (index, instruction) in piece.code.iter().take(ENTRY_WINDOW).enumerate() {
                if index > 0 && !body.arrivals_at(instruction.at()).is_empty() {
                    obstacle = Obstacle::Meeting(instruction.at());
                    break;
                }
                if let Some(distance) = piece.frame.distance(instruction.at())
                    && let Some(site) = self.site(instruction, Edge::Enter, distance, RETURN_NOT_FINAL)
                {
                    if site.class == SiteClass::Emulated {
                        return Ok((site, None));
                    }
                    // A mark itself only if nothing better follows.
                    if fallback.is_none() || index == 1 && first.is_mark() {
                        fallback = Some(site);
                    }
                }
                if !instruction.keeps_arguments(&mut scratch, &piece.frame) {
                    obstacle = changes(instruction);
                    break;
                }
            }
            let no_site = match piece.frame.distance(first.at()) {
                Some(_) => Unplaceable::Unprobeable(first.at()),
                None => Unplaceable::NoDistance(first.at()),
            };
            return fallback.map(|site| (site, Some(obstacle))).ok_or(no_site);
        }
        Err(Unplaceable::EntryRepeats)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::elf::tests::fixture::{CODE, cfa};
    use super::super::super::{ElfFile, Vaddr};
    use super::super::tests::{fixture, place};
    use super::*;

    #[test]
    fn an_entry_is_the_first_emulated_instruction_before_anything_changes() {
        let entry = |bytes: &[u8], cfi: &[u8]| {
            let site = place(&fixture().function("a", bytes, cfi)).unwrap().entry;
            assert_eq!((site.edge, site.return_register), (Edge::Enter, RETURN_NOT_FINAL));
            (site.vaddr.0 - CODE, site.distance, site.class == SiteClass::Emulated)
        };
        let push = [cfa(1, 16), cfa(1, 8)].concat();
        assert_eq!(entry(&[0x53, 0x5b, 0xc3], &push), (0, 0, true), "push rbx");
        assert_eq!(
            entry(&[0xf3, 0x0f, 0x1e, 0xfa, 0x53, 0x5b, 0xc3], &[cfa(5, 16), cfa(1, 8)].concat()),
            (4, 0, true)
        );
        // sub rsp,24; mov [rsp+8],rax; test edi,edi; je
        let long = [
            0x48, 0x83, 0xec, 24, 0x48, 0x89, 0x44, 0x24, 8, 0x85, 0xff, 0x74, 0, 0x48, 0x83, 0xc4, 24, 0xc3,
        ];
        assert_eq!(entry(&long, &[cfa(4, 32), cfa(13, 8)].concat()), (11, 24, true));
        // mov edi,1; push rbx / mov [rdi],rax; push rbx: too late
        assert_eq!(
            entry(&[0xbf, 1, 0, 0, 0, 0x53, 0x5b, 0xc3], &[cfa(6, 16), cfa(1, 8)].concat()),
            (0, 0, false)
        );
        assert_eq!(
            entry(&[0x48, 0x89, 0x07, 0x53, 0x5b, 0xc3], &[cfa(4, 16), cfa(1, 8)].concat()),
            (0, 0, false)
        );
        // endbr64; mov edi,1; ret: after endbr64 even if single-stepped
        assert_eq!(entry(&[0xf3, 0x0f, 0x1e, 0xfa, 0xbf, 1, 0, 0, 0, 0xc3], &[]), (4, 0, false));
    }

    #[test]
    fn an_entry_is_not_in_a_loop() {
        // endbr64; L: dec edi; jne L; ret
        let sites =
            place(&fixture().function("a", &[0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0xcf, 0x75, 0xfc, 0xc3], &[]))
                .unwrap();
        assert_eq!((sites.entry.vaddr, sites.entry.class), (Vaddr(CODE), SiteClass::SingleStep));
        // L: dec edi; jne L; ret
        let repeats = fixture().function("a", &[0xff, 0xcf, 0x75, 0xfc, 0xc3], &[]);
        assert_eq!(place(&repeats), Err(Unplaceable::EntryRepeats));
    }

    #[test]
    fn entry_alone_needs_no_frame() {
        let bytes = fixture().function("a", &[0xf3, 0x0f, 0x1e, 0xfa, 0x53, 0x06], &[]).build();
        let file = ElfFile::parse(&bytes).unwrap();
        let site = file.entry("a").unwrap();
        assert_eq!((site.vaddr, site.distance, site.class), (Vaddr(CODE + 4), 0, SiteClass::Emulated));
        assert_eq!(file.place("a"), Err(Unplaceable::Undecodable(CODE + 5)));
        assert_eq!(file.entry("b"), Err(Unplaceable::Absent));
        // lock inc dword [rdi]; ret
        let counts = fixture().function("a", &[0xf0, 0xff, 0x07, 0xc3], &[]);
        assert_eq!(place(&counts), Err(Unplaceable::Unprobeable(CODE)));
    }
}
