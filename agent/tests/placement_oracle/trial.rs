//! Runs one call and judges the sites by what the processor did.
//!
//! Nothing here decodes an instruction. A call and a return are told by what they do to the stack, so that the oracle
//! shares no table and no rule with the resolver. Calls are not run: they are taken to return, unless the callee's name
//! or its own trial says that it may not.

use std::collections::HashMap;

use cadscope::resolve::{Exit, Site, Sites};
use cadscope_common::cookie::{Base, RETURN_NOT_FINAL};
use libc::user_regs_struct;

use crate::image::{BASE, Image, STUBS, STUBS_BYTES};
use crate::processor::{OBJECTS, OBJECTS_BYTES, Processor, STACK, STACK_BYTES, Step};

/// Instructions of one call that are run.
const MOST_STEPS: usize = 600;
/// The address that calls return to: nothing can be executed there.
const SENTINEL: u64 = STUBS + STUBS_BYTES - 64;
/// The address of the return address.
const SLOT: u64 = STACK + STACK_BYTES / 2 + 0x2008;
/// Callees whose own trial is made for one function's.
const MOST_CALLEES: usize = 400;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By its return.
    Returned,
    /// By a jump to a function of another file.
    Left,
    /// By a call that may not return.
    Unwound,
    /// It was not run to its end.
    Unfinished,
}

/// A site was reached.
struct Hit {
    vaddr: u64,
    registers: user_regs_struct,
    objects: Vec<u8>,
    calls: usize,
}

/// What one call did.
struct Run {
    ended: Ended,
    first: user_regs_struct,
    hits: Vec<Hit>,
    last: user_regs_struct,
    objects_before: Vec<u8>,
    objects_after: Vec<u8>,
    calls: usize,
}

enum Outcome {
    Ran(Box<Run>),
    /// Whether this callee returns has to be known first.
    Ask(u64),
}

/// A verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub entry_confirmed: bool,
    /// Exits that ended a call.
    pub exits_confirmed: usize,
}

/// Runs functions of one file.
pub struct Oracle<'a> {
    image: &'a Image,
    processor: Processor,
    returns: HashMap<u64, bool>,
    pub runs: usize,
}

impl<'a> Oracle<'a> {
    pub fn new(image: &'a Image) -> Self {
        Self { image, processor: Processor::start(image), returns: HashMap::new(), runs: 0 }
    }

    /// Runs a function a few times, and says what of its sites was confirmed, or what contradicts them.
    pub fn judge(&mut self, start: u64, sites: &Sites) -> Result<Verdict, String> {
        let watched: Vec<u64> =
            sites.exits.iter().map(|(site, _)| site.vaddr.0).chain([sites.entry.vaddr.0]).collect();
        let mut verdict = Verdict::default();
        let mut confirmed = Vec::new();
        for seed in 0..4 {
            let mut run = self.run(start, &watched, seed, 0);
            end_where_it_begins_again(&mut run, sites);
            judge_entry(&run, &sites.entry)?;
            verdict.entry_confirmed |= run.hits.iter().any(|hit| hit.vaddr == sites.entry.vaddr.0);
            if let Some(exit) = judge_exit(&run, sites)?
                && !confirmed.contains(&exit)
            {
                confirmed.push(exit);
            }
        }
        verdict.exits_confirmed = confirmed.len();
        Ok(verdict)
    }

    fn run(&mut self, start: u64, watched: &[u64], seed: u64, depth: usize) -> Run {
        for _ in 0..MOST_CALLEES {
            match self.attempt(start, watched, seed) {
                Outcome::Ran(run) => return *run,
                Outcome::Ask(callee) => {
                    self.returns.insert(callee, false);
                    if depth < 3 {
                        let returns = (0..2).any(|seed| {
                            let ended = self.run(callee, &[], seed, depth + 1).ended;
                            matches!(ended, Ended::Returned | Ended::Left)
                        });
                        self.returns.insert(callee, returns);
                    }
                }
            }
        }
        match self.attempt(start, watched, seed) {
            Outcome::Ran(run) => *run,
            Outcome::Ask(_) => panic!("too many callees of {start:#x}"),
        }
    }

    fn attempt(&mut self, start: u64, watched: &[u64], seed: u64) -> Outcome {
        self.runs += 1;
        let mut objects = vec![0; usize::try_from(OBJECTS_BYTES).unwrap()];
        for (index, word) in (0..).zip(objects.chunks_exact_mut(8)) {
            word.copy_from_slice(&value(index, seed).to_le_bytes());
        }
        let mut registers = match self.processor.registers() {
            Some(registers) => registers,
            None => self.restart(),
        };
        arguments(&mut registers, seed);
        registers.rip = BASE + start;
        registers.rsp = SLOT;
        registers.orig_rax = u64::MAX;
        let ready = self.processor.write(OBJECTS, &objects)
            && self.processor.write(SLOT, &SENTINEL.to_le_bytes())
            && self.processor.set_registers(registers).is_some();
        assert!(ready, "the traced process is gone");
        let mut run = Run {
            ended: Ended::Unfinished,
            first: registers,
            hits: Vec::new(),
            last: registers,
            objects_before: objects,
            objects_after: Vec::new(),
            calls: 0,
        };
        for _ in 0..MOST_STEPS {
            let before = run.last;
            if watched.contains(&before.rip.wrapping_sub(BASE)) {
                run.hits.push(Hit {
                    vaddr: before.rip - BASE,
                    registers: before,
                    objects: self.objects(),
                    calls: run.calls,
                });
            }
            match self.processor.step() {
                Step::Done => {}
                Step::Fault => break,
                Step::Gone => {
                    self.restart();
                    return Outcome::Ran(Box::new(run));
                }
            }
            let Some(mut after) = self.processor.registers() else { break };
            if let Some(ended) = self.after(&before, &mut after, &mut run, seed) {
                match ended {
                    Ok(ended) => run.ended = ended,
                    Err(callee) => return Outcome::Ask(callee),
                }
                run.last = after;
                break;
            }
            run.last = after;
        }
        run.objects_after = self.objects();
        Outcome::Ran(Box::new(run))
    }

    /// Looks at where an instruction has led; a call is undone and taken to have returned.
    fn after(
        &mut self,
        before: &user_regs_struct,
        after: &mut user_regs_struct,
        run: &mut Run,
        seed: u64,
    ) -> Option<Result<Ended, u64>> {
        if after.rip == SENTINEL {
            return Some(Ok(if after.rsp == SLOT + 8 { Ended::Returned } else { Ended::Unfinished }));
        }
        let next =
            (before.rsp.wrapping_sub(after.rsp) == 8).then(|| self.processor.word(after.rsp)).flatten();
        let is_call =
            next.is_some_and(|next| (2..=15).contains(&next.wrapping_sub(before.rip)) && next != after.rip);
        if let Some(next) = next.filter(|_| is_call) {
            run.calls += 1;
            if self.image.is_code(after.rip) {
                let callee = after.rip - BASE;
                match self.leads_to_stub(callee) {
                    // Made-up memory leads writes anywhere.
                    Some(stub) if self.image.guards_the_stack(stub) => return Some(Ok(Ended::Unfinished)),
                    Some(stub) if self.image.may_not_return(stub) => return Some(Ok(Ended::Unwound)),
                    Some(_) => {}
                    None => match self.returns.get(&callee) {
                        None => return Some(Err(callee)),
                        Some(false) => return Some(Ok(Ended::Unwound)),
                        Some(true) => {}
                    },
                }
            } else if self.image.guards_the_stack(after.rip) {
                return Some(Ok(Ended::Unfinished));
            } else if (STUBS..SENTINEL).contains(&after.rip) && self.image.may_not_return(after.rip) {
                return Some(Ok(Ended::Unwound));
            }
            after.rip = next;
            after.rsp += 8;
            let count = u64::try_from(run.calls).unwrap();
            clobber(after, count, seed);
            return self.processor.set_registers(*after).is_none().then_some(Ok(Ended::Unfinished));
        }
        if self.image.is_code(after.rip) {
            return None;
        }
        let left = after.rsp == SLOT && !self.image.may_not_return(after.rip);
        Some(Ok(if left { Ended::Left } else { Ended::Unfinished }))
    }

    /// Where a stub of the PLT goes: run, not read.
    fn leads_to_stub(&self, callee: u64) -> Option<u64> {
        let kept = self.processor.registers()?;
        let mut registers = kept;
        registers.rip = BASE + callee;
        self.processor.set_registers(registers)?;
        let mut found = None;
        for _ in 0..2 {
            if self.processor.step() != Step::Done {
                break;
            }
            let now = self.processor.registers()?;
            if (STUBS..SENTINEL).contains(&now.rip) {
                found = Some(now.rip);
                break;
            }
            if now.rsp != kept.rsp {
                break;
            }
        }
        self.processor.set_registers(kept)?;
        found
    }

    fn objects(&self) -> Vec<u8> {
        let mut objects = vec![0; usize::try_from(OBJECTS_BYTES).unwrap()];
        self.processor.read(OBJECTS, &mut objects);
        objects
    }

    fn restart(&mut self) -> user_regs_struct {
        self.processor = Processor::start(self.image);
        self.processor.registers().unwrap()
    }
}

/// What a word of an object is: mostly a pointer to an object, in the first seed always.
fn value(index: u64, seed: u64) -> u64 {
    let mut mixed =
        (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xd1b5_4a32_d192_ed03);
    mixed ^= mixed >> 29;
    mixed = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^= mixed >> 32;
    let pointer = OBJECTS + OBJECTS_BYTES / 4 + (mixed & 0xfff) * 16;
    match mixed >> 56 & 7 {
        _ if seed == 0 => pointer,
        0 => 0,
        1 => mixed & 0xff,
        2 if seed > 1 => 1,
        3 if seed > 2 => 0,
        _ => pointer,
    }
}

fn arguments(registers: &mut user_regs_struct, seed: u64) {
    let pointer = |number: u64| OBJECTS + OBJECTS_BYTES / 4 + number * 0x800;
    registers.rdi = pointer(1);
    registers.rsi = if seed == 3 { 1 } else { pointer(2) };
    registers.rdx = if seed >= 2 { seed - 2 } else { pointer(3) };
    registers.rcx = if seed >= 2 { 0 } else { pointer(4) };
    registers.r8 = pointer(5);
    registers.r9 = if seed == 1 { 0 } else { pointer(6) };
    registers.rax = 0;
    for (number, register) in (7..).zip([
        &mut registers.rbx,
        &mut registers.r12,
        &mut registers.r13,
        &mut registers.r14,
        &mut registers.r15,
    ]) {
        *register = pointer(number);
    }
    registers.rbp = pointer(12);
}

/// What a callee leaves in registers.
fn clobber(registers: &mut user_regs_struct, count: u64, seed: u64) {
    let at = |place: u64| value(1 << 32 | count << 8 | place, seed);
    registers.rax = at(0);
    for (place, register) in (1..).zip([
        &mut registers.rdi,
        &mut registers.rsi,
        &mut registers.rdx,
        &mut registers.rcx,
        &mut registers.r8,
        &mut registers.r9,
        &mut registers.r10,
        &mut registers.r11,
    ]) {
        *register = at(place);
    }
}

fn slot_of(site: &Site, registers: &user_regs_struct) -> u64 {
    let register = match site.base {
        Base::StackPointer => registers.rsp,
        Base::FramePointer => registers.rbp,
    };
    register.wrapping_add_signed(site.distance.into())
}

fn register(registers: &user_regs_struct, number: u8) -> u64 {
    let r = registers;
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15,
    ][usize::from(number)]
}

/// A function that goes on in another by a tail call, which comes back to it by one, is called anew: what follows is not
/// of this call.
fn end_where_it_begins_again(run: &mut Run, sites: &Sites) {
    let goes_on = |hit: &Hit| {
        let is_there = |(site, exit): &(Site, Exit)| site.vaddr.0 == hit.vaddr && *exit != Exit::Return;
        sites.exits.iter().any(is_there)
    };
    let again = (1..run.hits.len())
        .find(|index| run.hits[*index].vaddr == sites.entry.vaddr.0 && goes_on(&run.hits[index - 1]));
    run.hits.truncate(again.unwrap_or(run.hits.len()));
}

/// Reached once a call, with arguments and objects as the caller left them.
fn judge_entry(run: &Run, entry: &Site) -> Result<(), String> {
    let hits: Vec<&Hit> = run.hits.iter().filter(|hit| hit.vaddr == entry.vaddr.0).collect();
    if hits.len() > 1 {
        return Err(format!("the entry is reached {} times", hits.len()));
    }
    let Some(hit) = hits.first() else {
        return if run.ended == Ended::Unfinished {
            Ok(())
        } else {
            Err(format!("{:?} without an entry", run.ended))
        };
    };
    let arguments = |r: &user_regs_struct| [r.rdi, r.rsi, r.rdx, r.rcx, r.r8, r.r9];
    if slot_of(entry, &hit.registers) != SLOT {
        return Err("the entry's slot is wrong".to_owned());
    }
    if arguments(&hit.registers) != arguments(&run.first) || hit.calls > 0 {
        return Err("arguments have changed at the entry".to_owned());
    }
    if hit.objects != run.objects_before {
        return Err("objects have changed at the entry".to_owned());
    }
    Ok(())
}

/// Reached once in each call that ends, and with nothing after it but the end.
fn judge_exit(run: &Run, sites: &Sites) -> Result<Option<u64>, String> {
    let exits: Vec<(&Hit, &Site, &Exit)> = run
        .hits
        .iter()
        .filter_map(|hit| {
            let (site, exit) = sites.exits.iter().find(|(site, _)| site.vaddr.0 == hit.vaddr)?;
            Some((hit, site, exit))
        })
        .collect();
    match run.ended {
        Ended::Unwound if exits.iter().any(|(_, _, exit)| **exit == Exit::Return) => {
            return Err("an exit is reached by a call that does not return".to_owned());
        }
        Ended::Unwound | Ended::Unfinished => return Ok(None),
        Ended::Returned | Ended::Left => {}
    }
    let [(hit, site, exit)] = exits[..] else {
        return Err(format!("{:?} by {} exits", run.ended, exits.len()));
    };
    if slot_of(site, &hit.registers) != SLOT {
        return Err(format!("the slot is wrong at the exit {:#x}", hit.vaddr));
    }
    if site.return_register != RETURN_NOT_FINAL
        && register(&hit.registers, site.return_register) as u32 != run.last.rax as u32
        && run.ended == Ended::Returned
    {
        return Err(format!("the returned value is not final at the exit {:#x}", hit.vaddr));
    }
    if *exit == Exit::Return {
        if hit.calls != run.calls {
            return Err(format!("a call follows the exit {:#x}", hit.vaddr));
        }
        if hit.objects != run.objects_after {
            return Err(format!("objects change after the exit {:#x}", hit.vaddr));
        }
    }
    Ok(Some(hit.vaddr))
}
