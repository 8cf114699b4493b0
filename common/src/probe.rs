//! The probe program: what the kernel reads from registers and memory of the worker at the edges of one function.
//!
//! Written by the agent from the catalogue into the `PROBES` map, read by the BPF programs. A probe program has no
//! loop and no branch: it is a short list of [`Fetch`]es, each a register followed by a bounded chain of reads.

/// Fetches in one probe program.
pub const MAX_FETCHES: usize = 10;
/// Reads in one fetch, the last one included.
pub const MAX_STEPS: usize = 6;
/// Integer results of one operation.
pub const WORDS: usize = 8;
/// Bytes of text of one operation, over all its text fetches.
pub const TEXT_BYTES: usize = 256;
/// Granularity of the place of a text, in bytes: a text fetch owns whole blocks.
pub const TEXT_BLOCK: usize = 64;
/// Probe programs that can be loaded at once.
pub const MAX_PROBES: u32 = 4096;

/// Where a fetch starts.
pub mod base {
    /// First integer argument (`this` of a method): rdi, x0.
    pub const ARG0: u8 = 0;
    /// Second to sixth integer argument: rsi, rdx, rcx, r8, r9 follow as 1–5; x1 to x5.
    pub const ARG5: u8 = 5;
    /// The return value; only at the leave edge and only where the site knows its register.
    pub const RETURN: u8 = 6;
    /// Where a result is to be put that is returned by value: x8 of arm64. On x86-64 it is the first argument.
    pub const RESULT_PLACE: u8 = 7;
    /// A word fetched earlier in the same operation: `WORD0 + n`.
    pub const WORD0: u8 = 16;
}

/// What the last read of a fetch reads.
pub mod kind {
    /// Eight bytes.
    pub const U64: u8 = 0;
    /// Four bytes, sign-extended.
    pub const I32: u8 = 1;
    /// Four bytes, zero-extended.
    pub const U32: u8 = 2;
    /// Two bytes, zero-extended.
    pub const U16: u8 = 3;
    /// One byte, zero-extended.
    pub const U8: u8 = 4;
    /// A NUL-terminated string.
    pub const TEXT: u8 = 5;
}

/// The edge at which a fetch runs.
pub mod edge {
    /// At entry.
    pub const ENTER: u8 = 0;
    /// At the end.
    pub const LEAVE: u8 = 1;
}

/// One value to read.
///
/// With `steps == 0` the value is the base itself (or the string it points to). Otherwise
/// `p = base; for o in offsets[..steps - 1] { p = *(p + o) }` and the value is read at `p + offsets[steps - 1]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Fetch {
    /// See [`mod@edge`].
    pub edge: u8,
    /// See [`base`].
    pub base: u8,
    /// See [`kind`].
    pub kind: u8,
    /// Entries of `offsets` in use.
    pub steps: u8,
    /// Index of the word, or for a text the index of its first block.
    pub place: u8,
    /// For a text the number of its blocks.
    pub blocks: u8,
    /// Zero.
    pub padding: [u8; 2],
    /// Byte offsets of the reads.
    pub offsets: [i32; MAX_STEPS],
}

/// Bits of [`ProbeProgram::flags`].
pub mod flags {
    /// Some exits of the function are tail calls that go on with the same slot: a function entered with the slot of
    /// the open operation is a part of it, not its replacement.
    pub const TAIL_CALLS: u32 = 1;
    /// The slot is in use by this agent.
    pub const LIVE: u32 = 2;
    /// Its calls are counted, and get no records.
    pub const AGGREGATE: u32 = 4;
    /// Its exits and entries are placed anew: for a moment each is hit twice.
    pub const RELINKING: u32 = 8;
    /// Bits of the number of its group: 0 = none.
    pub const GROUP_MASK: u32 = 0xff_0000;
    /// Place of the lowest of those bits.
    pub const GROUP_SHIFT: u32 = 16;
    /// Bits of the tally that a function counts in, or whose count its calls get: 0 = none.
    pub const TALLY_MASK: u32 = 0xff00;
    /// Place of the lowest of those bits.
    pub const TALLY_SHIFT: u32 = 8;
}

/// Names the count of what was tallied inside one open call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct TallyKey {
    /// The thread.
    pub tid: u32,
    /// Zero.
    pub padding: u32,
    /// When the call was entered.
    pub start_ns: u64,
}

/// Everything the kernel knows about one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ProbeProgram {
    /// See [`flags`].
    pub flags: u32,
    /// Fetches in use.
    pub fetch_count: u32,
    /// Bytes of text that a record of this probe has; see [`ProbeProgram::seal`].
    pub text_len: u32,
    /// Bit n: fetch n runs at the leave edge; see [`ProbeProgram::seal`].
    pub leave_fetches: u32,
    /// The fetches; those of the enter edge first.
    pub fetches: [Fetch; MAX_FETCHES],
}

impl Default for ProbeProgram {
    fn default() -> Self {
        Self {
            flags: 0,
            fetch_count: 0,
            text_len: 0,
            leave_fetches: 0,
            fetches: [Fetch::default(); MAX_FETCHES],
        }
    }
}

impl ProbeProgram {
    /// Fills in what follows from the fetches.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "a constant of 64")]
    pub fn seal(mut self) -> Self {
        self.text_len = 0;
        self.leave_fetches = 0;
        let mut bit = 1;
        for fetch in self.fetches.iter().take(self.fetch_count as usize) {
            if fetch.kind == kind::TEXT {
                let end = (fetch.place as u32 + fetch.blocks as u32) * TEXT_BLOCK as u32;
                self.text_len = self.text_len.max(end);
            }
            if fetch.edge == edge::LEAVE {
                self.leave_fetches |= bit;
            }
            bit <<= 1;
        }
        self
    }
}

const _: () = assert!(size_of::<TallyKey>() == 16);
const _: () = assert!(size_of::<Fetch>() == 8 + 4 * MAX_STEPS);
const _: () = assert!(size_of::<ProbeProgram>() == 16 + MAX_FETCHES * size_of::<Fetch>());
const _: () = assert!(TEXT_BYTES.is_multiple_of(TEXT_BLOCK));
