//! Turns the memory of a Python process into the stack of one of its threads, without stopping it.
//!
//! Asked while the thread is inside a long native call, so its Python frames hold still; whoever asks makes sure
//! afterwards that the call is still open. The call is named by its slot (the address of its return address): frames
//! of evaluation loops below it were entered by the call itself and do not count, so that the first frame is the one
//! that made the call, even where the call runs Python again.
//!
//! Nothing in the memory is trusted: every walk has an end, every text a limit, and what makes no sense is not seen.
//! CPython 3.11 to 3.14; see `layout`. py-spy's crate was refused: it reads whole stacks of all threads, opens files
//! by a path that the process chooses, panics on damage, and brings second versions of five crates.

mod layout;
mod lines;

use std::fmt;

use self::layout::{Current, Layout};

/// Symbols of the interpreter: its state, and its version.
pub const RUNTIME_SYMBOL: &str = "_PyRuntime";
/// See [`RUNTIME_SYMBOL`].
pub const VERSION_SYMBOL: &str = "Py_Version";

/// Frames of a stack.
const FRAMES: usize = 64;
/// Threads of a process, and loops of a thread.
const LINKS: usize = 4096;
/// Characters of a file's or function's name.
const NAME: u64 = 512;
/// Bytes of a location table.
const TABLE: u64 = 1 << 20;
/// Who owns a frame: from this number on it is no frame of Python code.
const OWNED_BY_NATIVE: u8 = 3;

/// Memory of a process.
pub trait Memory {
    /// Fills the buffer from this address; `false` if it cannot be read as a whole.
    fn read(&self, addr: u64, to: &mut [u8]) -> bool;
}

impl<F: Fn(u64, &mut [u8]) -> bool> Memory for F {
    fn read(&self, addr: u64, to: &mut [u8]) -> bool {
        self(addr, to)
    }
}

/// A call of Python code.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// As the code object names it.
    pub file: String,
    /// The line it is at.
    pub line: u32,
    /// Qualified name.
    pub function: String,
}

/// What called an operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The innermost frame of the job's own code.
    pub at: Frame,
    /// All frames, innermost first.
    pub stack: Vec<Frame>,
}

impl Source {
    /// From a stack; `None` if that is empty.
    #[must_use]
    pub fn new(stack: Vec<Frame>) -> Option<Self> {
        Some(Self { at: of_the_job(&stack)?.clone(), stack })
    }
}

/// As Python prints a stack: outermost first.
impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Traceback (most recent call last):")?;
        for Frame { file, line, function } in self.stack.iter().rev() {
            write!(out, "\n  File \"{file}\", line {line}, in {function}")?;
        }
        Ok(())
    }
}

/// Why there is no stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unseen {
    /// It is no CPython 3.11 to 3.14 with a global lock.
    #[error("the interpreter's version is not known")]
    Version,
    /// Memory could not be read, or made no sense.
    #[error("the interpreter's memory could not be read")]
    Memory,
    /// The thread runs no Python.
    #[error("the thread runs no Python")]
    NoPython,
}

/// An interpreter in a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interpreter {
    runtime: u64,
    layout: Layout,
}

impl Interpreter {
    /// The interpreter whose `_PyRuntime` and `Py_Version` lie at these addresses.
    ///
    /// # Errors
    /// It is not known.
    pub fn new(runtime: u64, version: u64, memory: &impl Memory) -> Result<Self, Unseen> {
        let version = word(memory, version)?;
        Ok(Self { runtime, layout: Layout::of(version, runtime, memory)? })
    }

    /// The frames that led a thread to the native call at `slot`, innermost first. `thread` is as the process itself
    /// numbers it.
    ///
    /// # Errors
    /// Why they cannot be seen.
    pub fn stack(&self, thread: u64, slot: u64, memory: &impl Memory) -> Result<Vec<Frame>, Unseen> {
        let state = self.thread(thread, memory)?;
        let mut at = self.caller(state, slot, memory)?;
        let mut stack = Vec::new();
        // Frames that are not told are counted, too: a worker's frames may go round in a ring.
        for _ in 0..LINKS {
            if at == 0 || stack.len() == FRAMES {
                break;
            }
            if !self.is_native(at, memory)? {
                stack.push(self.frame(at, memory)?);
            }
            at = word(memory, at.wrapping_add(self.layout.previous))?;
        }
        if stack.is_empty() { Err(Unseen::NoPython) } else { Ok(stack) }
    }

    /// The state of a thread, in whichever interpreter of the process.
    fn thread(&self, number: u64, memory: &impl Memory) -> Result<u64, Unseen> {
        let layout = &self.layout;
        let interpreter = word(memory, self.runtime.wrapping_add(layout.interpreters))?;
        let mut state = word(memory, interpreter.wrapping_add(layout.threads))?;
        for _ in 0..LINKS {
            if state == 0 {
                break;
            }
            if word(memory, state.wrapping_add(layout.native_thread))? == number {
                return Ok(state);
            }
            state = word(memory, state.wrapping_add(layout.next_thread))?;
        }
        Err(Unseen::NoPython)
    }

    /// The innermost frame of the loop that made the call. The native stack grows down: loops that the call entered
    /// lie below its slot.
    fn caller(&self, state: u64, slot: u64, memory: &impl Memory) -> Result<u64, Unseen> {
        match self.layout.current {
            Current::Loops { at, frame } => {
                let mut held = word(memory, state.wrapping_add(at))?;
                for _ in 0..LINKS {
                    if held == 0 || held > slot {
                        break;
                    }
                    held = word(memory, held.wrapping_add(frame).wrapping_add(8))?;
                }
                if held == 0 { Ok(0) } else { word(memory, held.wrapping_add(frame)) }
            }
            Current::Frame(at) => {
                let innermost = word(memory, state.wrapping_add(at))?;
                let (mut frame, mut caller) = (innermost, innermost);
                for _ in 0..LINKS {
                    if frame == 0 {
                        break;
                    }
                    let native = self.is_native(frame, memory)?;
                    let previous = word(memory, frame.wrapping_add(self.layout.previous))?;
                    if native && frame < slot && slot - frame < STACK {
                        caller = previous;
                    }
                    frame = previous;
                }
                Ok(caller)
            }
        }
    }

    fn is_native(&self, frame: u64, memory: &impl Memory) -> Result<bool, Unseen> {
        let mut owner = [0];
        let read = memory.read(frame.wrapping_add(self.layout.owner), &mut owner);
        read.then_some(owner[0] >= OWNED_BY_NATIVE).ok_or(Unseen::Memory)
    }

    fn frame(&self, frame: u64, memory: &impl Memory) -> Result<Frame, Unseen> {
        let layout = &self.layout;
        // The lowest bit is a tag from 3.14 on.
        let code = word(memory, frame.wrapping_add(layout.code))? & !1;
        let instruction = word(memory, frame.wrapping_add(layout.instruction))?;
        let offset = instruction.wrapping_sub(code.wrapping_add(layout.instructions));
        let mut first = [0; 4];
        if !memory.read(code.wrapping_add(layout.first_line), &mut first) {
            return Err(Unseen::Memory);
        }
        let table = bytes(word(memory, code.wrapping_add(layout.lines))?, memory)?;
        let first_line = i64::from(i32::from_le_bytes(first));
        let line = lines::line_at(&table, first_line, offset);
        Ok(Frame {
            file: self.text(word(memory, code.wrapping_add(layout.file))?, memory)?,
            line: line.or_else(|| u32::try_from(first_line).ok()).unwrap_or(0),
            function: self.text(word(memory, code.wrapping_add(layout.function))?, memory)?,
        })
    }

    /// A `str`, cut, without control characters.
    fn text(&self, object: u64, memory: &impl Memory) -> Result<String, Unseen> {
        let length = word(memory, object.wrapping_add(16))?.min(NAME);
        let mut state = [0; 4];
        if !memory.read(object.wrapping_add(32), &mut state) {
            return Err(Unseen::Memory);
        }
        let state = u32::from_le_bytes(state);
        let (width, ascii) = (state >> 2 & 7, state >> 6 & 1 == 1);
        if !matches!(width, 1 | 2 | 4) {
            return Err(Unseen::Memory);
        }
        let at = object.wrapping_add(if ascii { self.layout.ascii } else { self.layout.unicode });
        let size = usize::try_from(length * u64::from(width)).map_err(|_| Unseen::Memory)?;
        let mut units = vec![0; size];
        if !memory.read(at, &mut units) {
            return Err(Unseen::Memory);
        }
        let units = units.chunks_exact(usize::try_from(width).unwrap_or(1));
        let number =
            |unit: &[u8]| unit.iter().rev().fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
        let character = |unit| char::from_u32(number(unit)).filter(|c| !c.is_control()).unwrap_or('\u{fffd}');
        Ok(units.map(character).collect())
    }
}

/// Native stacks are no larger: a frame further away lies elsewhere.
const STACK: u64 = 1 << 30;

/// Parts of a path that make a file none of the job's: Python's own, installed packages, FreeCAD's modules.
const LIBRARIES: [&str; 7] =
    ["/site-packages/", "/dist-packages/", "/lib/python3", "/lib/freecad", "/Mod/", "/Ext/", "<frozen "];

/// The frame of the job's own code that led to the call: the innermost one that is of no library.
#[must_use]
pub fn of_the_job(stack: &[Frame]) -> Option<&Frame> {
    stack.iter().find(|frame| !LIBRARIES.iter().any(|library| frame.file.contains(library))).or(stack.first())
}

fn word(memory: &impl Memory, addr: u64) -> Result<u64, Unseen> {
    let mut bytes = [0; 8];
    memory.read(addr, &mut bytes).then_some(u64::from_le_bytes(bytes)).ok_or(Unseen::Memory)
}

/// The contents of a `bytes` object.
fn bytes(object: u64, memory: &impl Memory) -> Result<Vec<u8>, Unseen> {
    let size = word(memory, object.wrapping_add(16))?;
    if size > TABLE {
        return Err(Unseen::Memory);
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| Unseen::Memory)?];
    memory.read(object.wrapping_add(32), &mut bytes).then_some(bytes).ok_or(Unseen::Memory)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(file: &str) -> Frame {
        Frame { file: file.to_owned(), line: 1, function: "f".to_owned() }
    }

    #[test]
    fn the_line_is_of_the_job_not_of_a_library() {
        let stack =
            ["/usr/lib/python3/dist-packages/cadquery/cq.py", "/jobs/gear.py", "<frozen runpy>"].map(frame);
        assert_eq!(of_the_job(&stack), Some(&stack[1]));
        assert_eq!(of_the_job(&stack[..1]), Some(&stack[0]));
        assert_eq!(of_the_job(&[]), None);
    }

    proptest! {
        /// Memory that answers every address with some of these bytes: circles, wild pointers, absurd lengths.
        #[test]
        fn no_memory_makes_it_panic_or_run_for_ever(
            bytes in proptest::collection::vec(any::<u8>(), 8..256),
            version in prop_oneof![Just(0x030b_0000_u64), Just(0x030c_0000), Just(0x030d_0000), Just(0x030e_0000)],
            thread in any::<u64>(),
        ) {
            let memory = |addr: u64, to: &mut [u8]| {
                for (n, byte) in to.iter_mut().enumerate() {
                    let at = usize::try_from(addr % 1021).unwrap_or(0) + n;
                    *byte = bytes[at % bytes.len()];
                }
                true
            };
            let with_cookie = |addr: u64, to: &mut [u8]| {
                memory(addr, to);
                if addr == 64 && to.len() > 24 {
                    to[..8].copy_from_slice(b"xdebugpy");
                    to[16..24].fill(0);
                }
                true
            };
            if let Ok(layout) = Layout::of(version, 64, &with_cookie) {
                let interpreter = Interpreter { runtime: 64, layout };
                let _ = interpreter.stack(thread, 1 << 40, &memory);
                let _ = interpreter.frame(thread, &memory);
                let _ = interpreter.caller(thread, 1 << 40, &memory);
            }
        }
    }
}
