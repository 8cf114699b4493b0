//! Turns a body into sites: at which instruction a probe tells that a call begins or ends, at the least cost.
//!
//! The kernel emulates a few instructions (`push`, `nop`, near jumps and calls) and single-steps the others, which
//! costs a factor of 3 on bare metal and of 20 in a VM. So a probe sits on an emulated instruction where one tells
//! the same: for the entry, one that is executed exactly once in every call, before anything that an observer reads
//! has changed; for an exit, one that always leads straight to it. Otherwise it sits on the first instruction or on
//! the `ret` itself.
//!
//! # Which callee a tail call ends in
//! A function that leaves by a tail call has left its frame, and its caller gets the callee's return. Whether the
//! callee is part of the operation is decided by [`FollowPolicy`]; followed callees are observed at their own exits
//! ([`Edge::TailLeave`]), where the slot is the same.

use std::marker::PhantomData;

use super::a64::Word;
use super::elf::{ElfFile, Machine, Symbol};
use super::exits::{Body, How, Leave, Piece, gives_up};
use super::frames::Distance;
use super::instruction::{Flow, Instruction};
use super::{Exit, Obstacle, Site, SiteClass, Sites, Unplaceable, Vaddr};
use cadscope_common::cookie::{Edge, RETURN_NOT_FINAL};
use iced_x86::Instruction as X86;

/// How far into a function its entry is looked for, in instructions.
const ENTRY_WINDOW: usize = 12;
/// How far before a `ret` a site for it is looked for, in instructions.
const EXIT_WINDOW: usize = 32;
/// How many tail calls in a row are followed.
const MOST_FOLLOWED: usize = 4;
/// How many functions are read to place one.
const MOST_BODIES: usize = 32;
/// Most exits of one function, with those of followed callees.
const MOST_EXITS: usize = 256;
/// A callee up to this size, in bytes, is taken for an epilogue of its caller: a release, a forwarded setter.
const TRIVIAL_BYTES: u64 = 64;
/// How far from a failed check the call that does not return is looked for, in instructions.
const GIVE_UP_WINDOW: usize = 4;

/// What counts as part of an operation that leaves by a tail call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FollowPolicy {
    /// The callee if it does the work:
    ///
    /// * never a destructor, `operator delete`, `free`, or OCCT's `Command::Done` and `NotDone`: these end an
    ///   operation whose work is over;
    /// * in this file: if the caller calls nothing itself and never returns by itself, for then the work is there;
    ///   otherwise if it has a name that is not weak and is larger than 64 bytes, for weak and unnamed functions are
    ///   containers and other inline code of headers, which many callers share;
    /// * in another file: it cannot be followed. If the caller calls nothing itself and never returns by itself, the
    ///   work is elsewhere and the function is refused; otherwise the operation ends at the jump;
    /// * through a register or memory (a virtual function): the same as in another file;
    /// * a function that is probed itself, always: its end is seen anyway.
    #[default]
    Work,
    /// No callee: the operation ends at the jump.
    Never,
    /// Every callee that is not one of the endings named above; the function is refused if one is in another file.
    Always,
}

/// What an exit site has to be good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// Cost as little as possible.
    #[default]
    Cheapest,
    /// The return value must be readable at it, even if that costs.
    ReturnFinal,
}

impl ElfFile<'_> {
    /// All sites of a function, at the least cost, following tail calls to where the work is done.
    ///
    /// # Errors
    /// If the function is not here or not every call's begin and end would be seen.
    pub fn place(&self, symbol: &str) -> Result<Sites, Unplaceable> {
        self.place_with(symbol, FollowPolicy::default(), Placement::default(), &[])
    }

    /// All sites of a function, given mangled. `probed` are the sorted addresses of functions of this file that are
    /// placed, too: at a tail call to one of them the operation goes on, without a site of its own.
    ///
    /// A function without any exit can only be left by an exception or a jump, and ends with it.
    ///
    /// # Errors
    /// If the function is not here or not every call's begin and end would be seen.
    pub fn place_with(
        &self,
        symbol: &str,
        follow: FollowPolicy,
        placement: Placement,
        probed: &[Vaddr],
    ) -> Result<Sites, Unplaceable> {
        let function = self.function(symbol)?;
        match self.machine {
            Machine::X86_64 => Placing::<X86>::new(self, follow, placement, probed).place(function),
            Machine::Arm64 => Placing::<Word>::new(self, follow, placement, probed).place(function),
        }
    }

    /// The entry alone, for a function whose end is of no interest (`__cxa_begin_catch`, `longjmp`). Unlike
    /// [`place`](Self::place) it needs no frame description.
    ///
    /// # Errors
    /// If the function is not here, or its first instruction cannot be probed.
    pub fn entry(&self, symbol: &str) -> Result<Site, Unplaceable> {
        let function = self.function(symbol)?;
        let (follow, placement) = (FollowPolicy::Never, Placement::Cheapest);
        match self.machine {
            Machine::X86_64 => Placing::<X86>::new(self, follow, placement, &[]).entry_of(function),
            Machine::Arm64 => Placing::<Word>::new(self, follow, placement, &[]).entry_of(function),
        }
    }

    fn function(&self, symbol: &str) -> Result<Symbol, Unplaceable> {
        let function = self.find(symbol).ok_or(Unplaceable::Absent)?;
        if !function.is_function || self.file_offset(function.vaddr.0).is_none() {
            return Err(Unplaceable::NotCode);
        }
        Ok(function)
    }
}

/// A function while it is placed.
struct Placing<'f, 'a, I> {
    file: &'f ElfFile<'a>,
    follow: FollowPolicy,
    placement: Placement,
    /// Functions whose exits are placed for themselves, sorted.
    probed: &'f [Vaddr],
    exits: Vec<(Site, Exit)>,
    /// Why sites are single-stepped.
    obstacles: Vec<(Vaddr, Obstacle)>,
    /// Some tail call goes to one of them.
    goes_on: bool,
    /// Functions whose exits are already taken.
    seen: Vec<u64>,
    /// How many functions may still be read.
    bodies_left: usize,
    instructions: PhantomData<I>,
}

/// Where a tail call goes.
struct Callee {
    name: Option<String>,
    /// Its definition in this file, with its size in bytes.
    here: Option<(Vaddr, u64)>,
    /// It has a name, and no other file has a copy of it.
    is_distinct: bool,
    /// It is in another file.
    is_elsewhere: bool,
}

impl<'f, 'a, I: Instruction> Placing<'f, 'a, I> {
    const fn new(
        file: &'f ElfFile<'a>,
        follow: FollowPolicy,
        placement: Placement,
        probed: &'f [Vaddr],
    ) -> Self {
        Self {
            file,
            follow,
            placement,
            probed,
            exits: Vec::new(),
            obstacles: Vec::new(),
            goes_on: false,
            seen: Vec::new(),
            bodies_left: MOST_BODIES,
            instructions: PhantomData,
        }
    }

    fn place(mut self, function: Symbol) -> Result<Sites, Unplaceable> {
        let body = self.read(function.vaddr, function.size)?;
        let (entry, obstacle) = self.entry(&body)?;
        self.obstacles.extend(obstacle.map(|obstacle| (entry.vaddr, obstacle)));
        self.leave(&body, None, 0)?;
        let (mut exits, mut obstacles) = (self.exits, self.obstacles);
        exits.sort_by_key(|(site, _)| site.vaddr);
        exits.dedup_by_key(|(site, _)| site.vaddr);
        let follows = exits.iter().any(|(_, exit)| matches!(exit, Exit::Followed(_)));
        obstacles.sort_by_key(|(at, _)| *at);
        obstacles.dedup_by_key(|(at, _)| *at);
        Ok(Sites { entry, exits, tail_calls: follows || self.goes_on, obstacles })
    }

    fn entry_of(&self, function: Symbol) -> Result<Site, Unplaceable> {
        if let Ok(body) = Body::read(self.file, function.vaddr, function.size) {
            return self.entry(&body).map(|(site, _)| site);
        }
        let bytes = self.file.bytes_at(function.vaddr.0).ok_or(Unplaceable::NotCode)?;
        let bytes = bytes.get(..bytes.len().min(32)).unwrap_or(bytes);
        let first = I::first(bytes, function.vaddr.0).ok_or(Unplaceable::Undecodable(function.vaddr.0))?;
        self.site(&first, Edge::Enter, I::AT_SLOT, RETURN_NOT_FINAL)
            .ok_or(Unplaceable::Unprobeable(first.at()))
    }

    fn read(&mut self, start: Vaddr, size: u64) -> Result<Body<I>, Unplaceable> {
        self.bodies_left = self.bodies_left.checked_sub(1).ok_or(Unplaceable::TooLarge(size))?;
        self.seen.push(start.0);
        Body::read(self.file, start, size)
    }

    /// The entry: the first emulated instruction that is reached in a straight line from the first one while
    /// arguments and objects are as the caller left them; otherwise the first instruction, and why.
    fn entry(&self, body: &Body<I>) -> Result<(Site, Option<Obstacle>), Unplaceable> {
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

    /// Takes the exits of a body; those of a followed callee under its name.
    fn leave(&mut self, body: &Body<I>, followed: Option<&str>, depth: usize) -> Result<(), Unplaceable> {
        let hides_work = !body.leaves.iter().any(|leave| leave.how == How::Return) && !body.calls(self.file);
        for leave in &body.leaves {
            let Some(piece) = body.pieces.get(leave.piece) else { continue };
            if self.exits.len() >= MOST_EXITS {
                return Err(Unplaceable::TooLarge(piece.frame.end - piece.frame.start));
            }
            let edge = if followed.is_none() && piece.is_own { Edge::Leave } else { Edge::TailLeave };
            let name = |exit| followed.map_or(exit, |name| Exit::Followed(name.to_owned()));
            if leave.how == How::Return {
                let site = self.exit(body, piece, leave, edge)?;
                self.exits.push((site, name(Exit::Return)));
                continue;
            }
            let callee = self.callee(&leave.how);
            if callee.here.is_some_and(|(at, _)| self.probed.binary_search(&at).is_ok()) {
                self.goes_on = true;
                continue;
            }
            if self.follow != FollowPolicy::Never
                && let Some((at, _)) = callee.here
                && self.seen.contains(&at.0)
            {
                // Back into a function whose exits are taken: a loop, which must not run over the entry.
                if self.seen.first() == Some(&at.0) {
                    return Err(Unplaceable::EntryRepeats);
                }
                continue;
            }
            if self.follows(&callee, hides_work)? {
                match self.follow(&callee, depth) {
                    Ok(()) => continue,
                    Err(error) if hides_work || self.follow == FollowPolicy::Always => return Err(error),
                    // The function's own work is seen whole; only the callee's is not.
                    Err(_) => {}
                }
            }
            let jump = piece.code.get(leave.index).ok_or(Unplaceable::NoExit)?;
            let site = self
                .site(jump, edge, I::AT_SLOT, RETURN_NOT_FINAL)
                .ok_or(Unplaceable::Unprobeable(jump.at()))?;
            if site.class == SiteClass::SingleStep {
                self.obstacles.push((site.vaddr, Obstacle::IndirectJump(jump.at())));
            }
            self.exits.push((site, name(Exit::TailCall(callee.name))));
        }
        Ok(())
    }

    fn callee(&self, how: &How) -> Callee {
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
    fn follows(&self, callee: &Callee, hides_work: bool) -> Result<bool, Unplaceable> {
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
    fn follow(&mut self, callee: &Callee, depth: usize) -> Result<(), Unplaceable> {
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

    /// The site that marks a `ret`: the nearest emulated instruction before it that always leads to it, or itself.
    fn exit(
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

    fn site(&self, instruction: &I, edge: Edge, distance: Distance, return_register: u8) -> Option<Site> {
        let vaddr = instruction.at();
        Some(Site {
            offset: self.file.file_offset(vaddr)?,
            vaddr: Vaddr(vaddr),
            edge,
            base: distance.base,
            distance: distance.bytes,
            return_register,
            class: instruction.class(self.file)?,
        })
    }
}

/// What an instruction does that a site must not be moved over.
fn changes<I: Instruction>(instruction: &I) -> Obstacle {
    let at = instruction.at();
    match instruction.flow() {
        Flow::Call(_) | Flow::IndirectCall | Flow::Interrupt => Obstacle::Call(at),
        Flow::Next => Obstacle::Change(at),
        _ => Obstacle::Branch(at),
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
    use proptest::prelude::*;

    use super::super::elf::fixture::{CODE, Fixture, PLT, STRIDE, cfa, word};
    use super::*;

    const CHECK_FAILED: u64 = PLT;
    const THROW: u64 = PLT + 16;
    const DONE: u64 = PLT + 32;
    const ELSEWHERE: u64 = PLT + 48;

    fn fixture() -> Fixture {
        Fixture::default()
            .import("__stack_chk_fail")
            .import("_ZSt17__throw_bad_allocv")
            .import("_ZN22BRepBuilderAPI_Command4DoneEv")
            .import("elsewhere")
    }

    /// A function `a` from parts that may jump or call: bytes are copied, `(opcode, target)` gets its distance.
    fn code(parts: &[Part<'_>]) -> Vec<u8> {
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

    enum Part<'a> {
        Bytes(&'a [u8]),
        To(u8, u64),
    }
    use Part::{Bytes, To};

    const JUMP: u8 = 0xe9;
    const CALL: u8 = 0xe8;

    fn place(fixture: &Fixture) -> Result<Sites, Unplaceable> {
        place_with(fixture, FollowPolicy::Work, Placement::Cheapest)
    }

    fn place_with(
        fixture: &Fixture,
        follow: FollowPolicy,
        placement: Placement,
    ) -> Result<Sites, Unplaceable> {
        let bytes = fixture.build();
        ElfFile::parse(&bytes).unwrap().place_with("a", follow, placement, &[])
    }

    /// `push rbx; sub rsp,16; <body>; jne fail; <tail>; add rsp,16; pop rbx; ret; fail: call <fail>`
    fn checked(body: &[u8], tail: &[u8], fail: u64) -> Fixture {
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
    fn a_single_stepped_site_says_what_is_in_the_way() {
        let obstacles = |fixture: &Fixture, placement| {
            let sites = place_with(fixture, FollowPolicy::Work, placement).unwrap();
            let all = [&sites.entry].into_iter().chain(sites.exits.iter().map(|(site, _)| site));
            all.filter(|site| site.class == SiteClass::SingleStep)
                .map(|site| sites.obstacle(site).expect("a reason"))
                .collect::<Vec<_>>()
        };
        let of =
            |code: &[u8], cfi: &[u8]| obstacles(&fixture().function("a", code, cfi), Placement::Cheapest);
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

    #[test]
    fn what_is_no_function_of_this_file_is_not_placed() {
        assert_eq!(place(&fixture().function("b", &[0xc3], &[])), Err(Unplaceable::Absent));
        assert_eq!(
            place(&fixture().function("a", &[0xc3], &[]).info(0x1a)),
            Err(Unplaceable::NotCode),
            "IFUNC"
        );
        assert_eq!(
            place(&fixture().function("a", &[0xc3], &[]).info(0x11)),
            Err(Unplaceable::NotCode),
            "data"
        );
        assert!(place(&fixture().function("a", &[0xc3], &[]).info(0x22)).is_ok(), "weak");
    }

    #[test]
    fn a_function_that_never_returns_has_an_entry_only() {
        // sub rsp,8; call throw
        let throws = code(&[Bytes(&[0x48, 0x83, 0xec, 8]), To(CALL, THROW), Bytes(&[0x0f, 0x0b])]);
        let sites = place(&fixture().function("a", &throws, &cfa(4, 16))).unwrap();
        assert!(sites.exits.is_empty() && !sites.tail_calls, "{sites:?}");
    }

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

    /// A function of more than 64 bytes that returns.
    fn big() -> Vec<u8> {
        [vec![0x90; 70], vec![0xc3]].concat()
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
}
