//! Turns what was seen of a worker's end into how it ended.
//!
//! An exit status alone does not tell: FreeCAD exits with 0 after a script that raised an exception, and its handler
//! turns a SIGSEGV into exit code 1.

use cadscope_common::record::{Fate, NAME_BYTES};

/// Signals that a broken program raises: ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS.
const FAULTS: [u8; 7] = [4, 5, 6, 7, 8, 11, 31];
const SIGKILL: u8 = 9;

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum How {
    /// By itself, and nothing went wrong.
    Success,
    /// By itself, with an exit code other than 0 or after its script raised an exception.
    Failure,
    /// By a fault of its own: a signal, or from within its handler.
    Crash,
    /// By somebody's signal.
    Killed,
    /// By the kernel, because memory ran out.
    OutOfMemory,
    /// It executed another program.
    Replaced,
    /// It is gone and nobody saw how.
    Unseen,
}

impl How {
    /// Label `status` of the flow; `None` where it is not known.
    #[must_use]
    pub const fn status(self) -> Option<&'static str> {
        match self {
            Self::Success | Self::Replaced => Some("success"),
            Self::Failure => Some("failure"),
            Self::Crash => Some("crash"),
            Self::Killed => Some("killed"),
            Self::OutOfMemory => Some("oom"),
            Self::Unseen => None,
        }
    }

    /// Label `reason` of the exit; `None` where there was no exit or it was not seen.
    #[must_use]
    pub const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Success => Some("success"),
            Self::Failure => Some("failure"),
            Self::Crash | Self::Killed => Some("signal"),
            Self::OutOfMemory => Some("oom"),
            Self::Replaced | Self::Unseen => None,
        }
    }
}

/// Which limit was reached when the kernel chose a process to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// That of a cgroup: the process's own (0), its parent (1), …
    Cgroup {
        /// Steps up from the process's own.
        level: u32,
        /// In bytes.
        bytes: u64,
    },
    /// The machine's memory.
    Node,
}

/// The kernel killed a worker because memory ran out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// When it was chosen.
    pub at_ns: u64,
    /// What it had resident; 0 if not known.
    pub resident_bytes: u64,
    /// What was full.
    pub limit: Limit,
    /// The innermost operation that was open, on the thread whose operations had grown most; `""` if none was.
    pub operation: String,
}

/// A worker's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// How.
    pub how: How,
    /// Exit code, if it exited.
    pub code: Option<u8>,
    /// The signal that ended it, also one that its handler turned into an exit.
    pub signal: Option<u8>,
    /// It left a core dump.
    pub core_dump: bool,
    /// Who sent the signal: pid and name.
    pub sender: Option<(u32, String)>,
    /// CPU time of all its threads, if known.
    pub cpu_ns: Option<u64>,
    /// The most it ever had resident, if known.
    pub peak_bytes: Option<u64>,
    /// Set if memory ran out.
    pub oom: Option<OutOfMemory>,
}

impl End {
    /// An end without an exit.
    #[must_use]
    pub const fn without_exit(how: How) -> Self {
        Self {
            how,
            code: None,
            signal: None,
            core_dump: false,
            sender: None,
            cpu_ns: None,
            peak_bytes: None,
            oom: None,
        }
    }

    /// The end of a process that exited with this status of `wait`.
    #[must_use]
    pub fn of_exit(status: u32, fate: &Fate, script_failed: bool, oom: Option<OutOfMemory>) -> Self {
        let byte = |value: u32| u8::try_from(value & 0xff).unwrap_or(0);
        let killed_by = Some(byte(status & 0x7f)).filter(|signal| *signal != 0);
        let handled = Some(byte(fate.fault)).filter(|_| fate.handled == 1 && killed_by.is_none());
        let signal = killed_by.or(handled);
        let code = killed_by.is_none().then(|| byte(status >> 8));
        let oom = oom.filter(|_| killed_by == Some(SIGKILL));
        let how = match signal {
            _ if oom.is_some() => How::OutOfMemory,
            Some(signal) if FAULTS.contains(&signal) => How::Crash,
            Some(_) => How::Killed,
            None if code == Some(0) && !script_failed => How::Success,
            None => How::Failure,
        };
        let sender = (killed_by.is_some() && signal == Some(byte(fate.sent)))
            .then(|| (fate.sender, name_of(&fate.sender_name)));
        let core_dump = killed_by.is_some() && status & 0x80 != 0;
        Self { code, signal, core_dump, sender, oom, ..Self::without_exit(how) }
    }
}

fn name_of(name: &[u8; NAME_BYTES]) -> String {
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

/// `SIGSEGV` for 11; empty for none; `SIG64` for a number without a name.
#[must_use]
pub fn signal_name(signal: Option<u8>) -> String {
    signal.map_or_else(String::new, |number| {
        nix::sys::signal::Signal::try_from(i32::from(number))
            .map_or_else(|_| format!("SIG{number}"), |signal| signal.as_str().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(status: u32, fate: Fate, script_failed: bool) -> (How, Option<u8>, Option<u8>) {
        let end = End::of_exit(status, &fate, script_failed, None);
        (end.how, end.code, end.signal)
    }

    #[test]
    fn an_end_is_what_happened_not_what_the_status_says() {
        let none = Fate::default();
        let fault = Fate { fault: 11, ..none };
        let handled = Fate { handled: 1, ..fault };
        assert_eq!(end(0, none, false), (How::Success, Some(0), None));
        assert_eq!(end(0, none, true), (How::Failure, Some(0), None));
        assert_eq!(end(3 << 8, none, false), (How::Failure, Some(3), None));
        assert_eq!(end(1 << 8, handled, false), (How::Crash, Some(1), Some(11)));
        assert_eq!(end(0, fault, false), (How::Success, Some(0), None), "recovered");
        assert_eq!(end(0x80 | 6, none, false), (How::Crash, None, Some(6)));
        assert_eq!(end(15, none, false), (How::Killed, None, Some(15)));
        assert_eq!(end(9, none, true), (How::Killed, None, Some(9)));
    }

    #[test]
    fn only_a_kill_is_an_out_of_memory_kill() {
        let oom =
            OutOfMemory { at_ns: 1, resident_bytes: 2, limit: Limit::Node, operation: "cut".to_owned() };
        let of = |status| End::of_exit(status, &Fate::default(), false, Some(oom.clone()));
        assert_eq!((of(9).how, of(9).oom.is_some()), (How::OutOfMemory, true));
        assert_eq!((of(0).how, of(0).oom), (How::Success, None));
    }

    #[test]
    fn the_sender_is_named_if_it_sent_the_signal_that_ended_it() {
        let mut fate = Fate { sent: 15, sender: 7, ..Fate::default() };
        fate.sender_name[..4].copy_from_slice(b"bash");
        assert_eq!(End::of_exit(15, &fate, false, None).sender, Some((7, "bash".to_owned())));
        assert_eq!(End::of_exit(9, &fate, false, None).sender, None);
        assert!(End::of_exit(0x80 | 11, &fate, false, None).core_dump);
        assert_eq!(
            (signal_name(Some(11)), signal_name(None), signal_name(Some(64))),
            ("SIGSEGV".into(), "".into(), "SIG64".into())
        );
    }
}
