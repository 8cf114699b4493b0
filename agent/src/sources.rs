//! Turns operations that are open for long into the lines of the job that called them.
//!
//! Every now and then the open calls are looked at; of each that is, or is about to be, open for longer than a
//! threshold the Python stack is read once, from outside: the worker is neither stopped nor slowed. A stack counts only
//! if the call is still open when it has been read. Readings are limited in number a second, and what is remembered is
//! bounded.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::attach;
use crate::config::SourceOptions;
use crate::discover::{self, Mapping};
use crate::kernel::Kernel;
use crate::python::{Interpreter, Memory, RUNTIME_SYMBOL, Source, Unseen, VERSION_SYMBOL};
use crate::resolve::{ElfFile, FileOffset};

/// Open calls are looked at no more often.
const LOOK_NS: u64 = 100_000_000;
/// After this, a process without a known interpreter is looked at again: it may load one late.
const AGAIN_NS: u64 = 10_000_000_000;
/// Stacks that wait for the end of their operations.
const WAITING: usize = 16_384;
/// Processes whose interpreters are remembered.
const PROCESSES: usize = 16_384;
const SECOND_NS: u64 = 1_000_000_000;

/// Names a call: thread and begin.
type Call = (u32, u64);

/// Reads stacks.
#[derive(Debug)]
pub struct Sources {
    options: SourceOptions,
    interpreters: HashMap<u32, (u64, Result<Interpreter, Unseen>)>,
    waiting: HashMap<Call, Option<Arc<Source>>>,
    /// Nothing has to be looked at before this time.
    next_look_ns: u64,
    second_ns: u64,
    read_this_second: u32,
}

impl Sources {
    /// Has read nothing.
    #[must_use]
    pub fn new(options: SourceOptions) -> Self {
        Self {
            options,
            interpreters: HashMap::new(),
            waiting: HashMap::new(),
            next_look_ns: 0,
            second_ns: 0,
            read_this_second: 0,
        }
    }

    /// Looks at the open calls, if one of them can be old by now: a look walks the whole map of threads.
    pub fn look(&mut self, proc: &Path, kernel: &Kernel, now_ns: u64) {
        if self.options.per_second == 0 || now_ns < self.next_look_ns {
            return;
        }
        // Whoever is not looked at now could be over before the next time.
        let threshold = u64::try_from(self.options.threshold.as_nanos()).unwrap_or(u64::MAX);
        let old_ns = threshold.saturating_sub(LOOK_NS);
        // A call that begins after this look.
        let mut soonest_ns = now_ns.saturating_add(old_ns);
        for (tid, thread) in kernel.threads() {
            let depth = usize::try_from(thread.depth).unwrap_or(0);
            for call in thread.frames.iter().take(depth) {
                if self.waiting.contains_key(&(tid, call.start_ns)) {
                    continue;
                }
                let is_old = now_ns.saturating_sub(call.start_ns) >= old_ns;
                if !is_old || !self.may_read(now_ns) {
                    soonest_ns = soonest_ns.min(call.start_ns.saturating_add(old_ns));
                    continue;
                }
                let read = self.read(proc, thread.process.pid, tid, call.slot, now_ns);
                let still_open = kernel.thread(tid).is_some_and(|thread| {
                    let depth = usize::try_from(thread.depth).unwrap_or(0);
                    thread.frames.iter().take(depth).any(|open| open.start_ns == call.start_ns)
                });
                let source = read.ok().filter(|_| still_open).map(Arc::new);
                if self.waiting.len() >= WAITING {
                    self.waiting.clear();
                }
                self.waiting.insert((tid, call.start_ns), source);
            }
        }
        self.next_look_ns = soonest_ns.max(now_ns.saturating_add(LOOK_NS));
    }

    /// The source of an operation that has ended, if it was slow and its stack could be read.
    pub fn take(&mut self, tid: u32, start_ns: u64, end_ns: u64) -> Option<Arc<Source>> {
        let source = self.waiting.remove(&(tid, start_ns))?;
        let duration = Duration::from_nanos(end_ns.saturating_sub(start_ns));
        source.filter(|_| duration >= self.options.threshold)
    }

    /// The source of an operation that is still open, if its stack has been read.
    #[must_use]
    pub fn of_open(&self, tid: u32, start_ns: u64) -> Option<Arc<Source>> {
        self.waiting.get(&(tid, start_ns))?.clone()
    }

    /// Forgets a process.
    pub fn end(&mut self, pid: u32) {
        self.interpreters.remove(&pid);
    }

    fn may_read(&mut self, now_ns: u64) -> bool {
        if now_ns.saturating_sub(self.second_ns) >= SECOND_NS {
            (self.second_ns, self.read_this_second) = (now_ns, 0);
        }
        let may = self.read_this_second < self.options.per_second;
        self.read_this_second += u32::from(may);
        may
    }

    fn read(&mut self, proc: &Path, pid: u32, tid: u32, slot: u64, now_ns: u64) -> Result<Source, Unseen> {
        let file = File::open(proc.join(pid.to_string()).join("mem")).map_err(|_| Unseen::Memory)?;
        let memory = |addr: u64, to: &mut [u8]| file.read_exact_at(to, addr).is_ok();
        let known = self.interpreters.get(&pid);
        let known = known.filter(|(at, found)| found.is_ok() || now_ns.saturating_sub(*at) < AGAIN_NS);
        let interpreter = match known {
            Some((_, found)) => found.clone(),
            None => {
                let found = interpreter_of(proc, pid, &memory);
                if self.interpreters.len() >= PROCESSES {
                    self.interpreters.clear();
                }
                self.interpreters.insert(pid, (now_ns, found.clone()));
                found
            }
        }?;
        let own = discover::thread_in_its_namespace(proc, pid, tid).ok_or(Unseen::Memory)?;
        Source::new(interpreter.stack(u64::from(own), slot, &memory)?).ok_or(Unseen::NoPython)
    }
}

/// The interpreter of a process, by the files that it maps.
fn interpreter_of(proc: &Path, pid: u32, memory: &impl Memory) -> Result<Interpreter, Unseen> {
    let mappings = discover::mappings_of(proc, pid);
    let python = mappings.iter().filter(|mapping| {
        let name = mapping.path.rsplit('/').next().unwrap_or_default();
        name.starts_with("libpython3") || name.starts_with("python3")
    });
    let found = python.filter_map(|mapping| symbols(proc, mapping));
    found
        .map(|(runtime, version)| Interpreter::new(runtime, version, memory))
        .next()
        .unwrap_or(Err(Unseen::NoPython))
}

/// Where the interpreter's symbols lie in a process.
fn symbols(proc: &Path, mapping: &Mapping) -> Option<(u64, u64)> {
    let bytes = attach::map(&discover::open_mapped(proc, mapping).ok()?).ok()?;
    let elf = ElfFile::parse(&bytes).ok()?;
    let bias = mapping.start.wrapping_sub(elf.vaddr_of(FileOffset(mapping.offset), procfs::page_size())?.0);
    let address = |name| elf.find(name).map(|symbol| symbol.vaddr.0.wrapping_add(bias));
    Some((address(RUNTIME_SYMBOL)?, address(VERSION_SYMBOL)?))
}
