//! Turns a version of CPython into where its structures keep what a stack is made of.
//!
//! 3.11 and 3.12: from their headers (`pycore_frame.h`, `pycore_interp.h`, `code.h`). From 3.13 on an interpreter says it
//! itself, in the `_Py_DebugOffsets` at the beginning of `_PyRuntime`; the order of its fields is that of the headers of
//! 3.13 and 3.14. Refused: older ones, newer ones, builds without a global lock.

use super::{Memory, Unseen};

/// Offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// `_PyRuntimeState::interpreters.head`.
    pub(super) interpreters: u64,
    /// `PyInterpreterState::threads.head`.
    pub(super) threads: u64,
    /// `PyThreadState::next`.
    pub(super) next_thread: u64,
    /// `PyThreadState::native_thread_id`.
    pub(super) native_thread: u64,
    /// Where a thread keeps its innermost frame.
    pub(super) current: Current,
    /// `_PyInterpreterFrame::f_code`, later `f_executable`.
    pub(super) code: u64,
    /// `_PyInterpreterFrame::previous`.
    pub(super) previous: u64,
    /// `_PyInterpreterFrame::prev_instr`, later `instr_ptr`.
    pub(super) instruction: u64,
    /// `_PyInterpreterFrame::owner`.
    pub(super) owner: u64,
    /// `PyCodeObject::co_filename`.
    pub(super) file: u64,
    /// `PyCodeObject::co_qualname`.
    pub(super) function: u64,
    /// `PyCodeObject::co_linetable`.
    pub(super) lines: u64,
    /// `PyCodeObject::co_firstlineno`.
    pub(super) first_line: u64,
    /// `PyCodeObject::co_code_adaptive`.
    pub(super) instructions: u64,
    /// Size of a `PyASCIIObject`: where the characters of an ASCII text begin.
    pub(super) ascii: u64,
    /// Size of a `PyCompactUnicodeObject`: where those of any other text begin.
    pub(super) unicode: u64,
}

/// How the frames of a thread are tied to the native calls of the evaluation loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Current {
    /// `PyThreadState::cframe`, a chain of `_PyCFrame`s on the native stack, one a loop, each with its innermost frame.
    Loops {
        /// `PyThreadState::cframe`.
        at: u64,
        /// `_PyCFrame::current_frame`; `previous` follows it.
        frame: u64,
    },
    /// `PyThreadState::current_frame`; where a loop begins, the frame itself lies on the native stack.
    Frame(u64),
}

/// `Py_Version >> 16`.
const V3_11: u64 = 0x030b;
const V3_12: u64 = 0x030c;
const V3_13: u64 = 0x030d;
const V3_14: u64 = 0x030e;

/// Offsets that have been the same from 3.11 to 3.14.
const COMMON: Layout = Layout {
    interpreters: 40,
    threads: 16,
    next_thread: 8,
    native_thread: 160,
    current: Current::Loops { at: 56, frame: 8 },
    code: 32,
    previous: 48,
    instruction: 56,
    owner: 69,
    file: 112,
    function: 128,
    lines: 136,
    first_line: 72,
    instructions: 184,
    ascii: 48,
    unicode: 72,
};

impl Layout {
    /// The layout for a version (`Py_Version`) and, from 3.13 on, for what its runtime says.
    pub(super) fn of(version: u64, runtime: u64, memory: &impl Memory) -> Result<Self, Unseen> {
        match version >> 16 {
            V3_11 => Ok(COMMON),
            V3_12 => Ok(Self {
                threads: 72,
                native_thread: 144,
                current: Current::Loops { at: 56, frame: 0 },
                code: 0,
                previous: 8,
                owner: 70,
                first_line: 68,
                instructions: 192,
                ascii: 40,
                unicode: 56,
                ..COMMON
            }),
            V3_13 => Self::described(runtime, memory, 0, 0),
            V3_14 => Self::described(runtime, memory, 3, 2),
            _ => Err(Unseen::Version),
        }
    }

    /// Reads `_Py_DebugOffsets`, 64-bit words. 3.14 has three more in the part of interpreters (before that of threads)
    /// and two more in that of frames (before that of code).
    fn described(
        runtime: u64,
        memory: &impl Memory,
        in_interpreter: usize,
        in_frame: usize,
    ) -> Result<Self, Unseen> {
        const COOKIE: &[u8; 8] = b"xdebugpy";
        const WORDS: usize = 52;
        let mut bytes = [0; 8 * WORDS];
        memory.read(runtime, &mut bytes).then_some(()).ok_or(Unseen::Memory)?;
        let word = |index: usize| {
            let bytes = bytes.get(8 * index..8 * index + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u64::from_le_bytes).ok_or(Unseen::Memory)
        };
        // Nothing in a structure lies further in.
        let offset =
            |index| word(index).and_then(|at| if at < 1 << 20 { Ok(at) } else { Err(Unseen::Memory) });
        if bytes.get(..8) != Some(COOKIE) || word(2)? != 0 {
            return Err(Unseen::Version);
        }
        let (thread, frame) = (19 + in_interpreter, 28 + in_interpreter);
        let code = 34 + in_interpreter + in_frame;
        Ok(Self {
            interpreters: offset(5)?,
            threads: offset(9)?,
            next_thread: offset(thread + 2)?,
            current: Current::Frame(offset(thread + 4)?),
            native_thread: offset(thread + 6)?,
            previous: offset(frame + 1)?,
            code: offset(frame + 2)?,
            instruction: offset(frame + 3)?,
            owner: offset(frame + 5)?,
            file: offset(code + 1)?,
            function: offset(code + 3)?,
            lines: offset(code + 4)?,
            first_line: offset(code + 5)?,
            instructions: offset(code + 9)?,
            ascii: 40,
            unicode: 56,
        })
    }
}
