//! Turns a body into sites: at which instruction a probe tells that a call begins or ends, at the least cost.
//!
//! The kernel emulates a few instructions (`push`, `nop`, near jumps and calls) and single-steps the others, which
//! costs a factor of 3 on bare metal and of 20 in a VM. So a probe sits on an emulated instruction where one tells
//! the same: for the entry, one that is executed exactly once in every call, before anything that an observer reads
//! has changed; for an exit, one that always leads straight to it. Otherwise it sits on the first instruction or on
//! the `ret` itself.

use std::marker::PhantomData;

use super::a64::Word;
use super::elf::{ElfFile, Machine, Symbol};
use super::exits::{Body, How};
use super::frames::Distance;
use super::instruction::{Flow, Instruction};
use super::{Exit, Obstacle, Site, SiteClass, Sites, Unplaceable, Vaddr};
use cadscope_common::cookie::{Edge, RETURN_NOT_FINAL};
use iced_x86::Instruction as X86;

mod entry;
mod exit;
mod tail_call;

/// How many functions are read to place one.
const MOST_BODIES: usize = 32;
/// Most exits of one function, with those of followed callees.
const MOST_EXITS: usize = 256;

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
    /// Exits that are jumps, and where to.
    jumps: Vec<(Vaddr, Vaddr)>,
    /// How many functions may still be read.
    bodies_left: usize,
    instructions: PhantomData<I>,
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
            jumps: Vec::new(),
            bodies_left: MOST_BODIES,
            instructions: PhantomData,
        }
    }

    fn place(mut self, function: Symbol) -> Result<Sites, Unplaceable> {
        let body = self.read(function.vaddr, function.size)?;
        let (entry, obstacle) = self.entry(&body)?;
        self.obstacles.extend(obstacle.map(|obstacle| (entry.vaddr, obstacle)));
        self.leave(&body, None, 0)?;
        // What one way did not follow another may have: the operation then lasts until that returns, whichever way it came.
        let goes_on =
            |at: Vaddr| self.jumps.iter().any(|(from, to)| *from == at && self.seen.contains(&to.0));
        self.exits.retain(|(site, _)| !goes_on(site.vaddr));
        let (mut exits, mut obstacles) = (self.exits, self.obstacles);
        exits.sort_by_key(|(site, _)| site.vaddr);
        exits.dedup_by_key(|(site, _)| site.vaddr);
        let follows = exits.iter().any(|(_, exit)| matches!(exit, Exit::Followed(_)));
        obstacles.sort_by_key(|(at, _)| *at);
        obstacles.dedup_by_key(|(at, _)| *at);
        Ok(Sites { entry, exits, tail_calls: follows || self.goes_on, obstacles })
    }

    fn read(&mut self, start: Vaddr, size: u64) -> Result<Body<I>, Unplaceable> {
        self.bodies_left = self.bodies_left.checked_sub(1).ok_or(Unplaceable::TooLarge(size))?;
        self.seen.push(start.0);
        Body::read(self.file, start, size)
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
            self.jumps.extend(callee.here.map(|(to, _)| (site.vaddr, to)));
            self.exits.push((site, name(Exit::TailCall(callee.name))));
        }
        Ok(())
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

#[cfg(test)]
mod tests;
