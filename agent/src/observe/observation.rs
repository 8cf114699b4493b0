//! What observing comes to, and why it cannot start.

use std::sync::Arc;
use std::time::Duration;

use crate::ai::Call;
use crate::attach::FileError;
use crate::budget::Measure;
use crate::catalog::Probe;
use crate::discover::{self, MappingsError};
use crate::ending::End;
use crate::kernel::KernelError;
use crate::operation::{Operation, Worker};
use crate::workers::Late;

/// Why observation cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The kernel side.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The mapping stream.
    #[error(transparent)]
    Mappings(#[from] MappingsError),
}

/// What happened.
#[expect(
    clippy::large_enum_variant,
    reason = "operations are nearly all there is, and a box of each would be their only memory"
)]
#[derive(Debug)]
pub enum Observation {
    /// A process was recognised as a worker.
    Started(Arc<Worker>),
    /// A worker's versions became known, or it forked: this replaces what was said of this process.
    Renewed(Arc<Worker>),
    /// A worker ended.
    Ended {
        /// Which.
        worker: Arc<Worker>,
        /// When it was recognised, CLOCK_MONOTONIC.
        started_ns: u64,
        /// When it ended.
        ended_ns: u64,
        /// As `wait` reports it; `None` if it executed another program, or the end was not seen.
        status: Option<u32>,
        /// How it ended.
        end: Box<End>,
    },
    /// An operation ended.
    Operation(Operation),
    /// Calls of this kind returned so many times, each after about the same time, and are no operations of their own.
    Repeated {
        /// One of them, of mean duration, without values.
        operation: Box<Operation>,
        /// How many.
        count: u64,
        /// They lie inside one of their group.
        nested: bool,
    },
    /// A probe is called too often.
    Limited {
        /// Which.
        probe: Arc<Probe>,
        /// What was done.
        measure: Measure,
        /// Calls a second.
        rate: f64,
    },
    /// The probes in a worker's first file were ready so long after it executed its program.
    Ready(Duration),
    /// A worker mapped a file before its probes were in place: operations in that time are not seen.
    Late {
        /// Which worker.
        pid: u32,
        /// Which file, and how late.
        late: Late,
    },
    /// A file of a process could not be looked at or probed.
    Missed {
        /// Path as the process sees it.
        path: String,
        /// Which kind of failure.
        reason: &'static str,
        /// The failure itself.
        error: String,
    },
    /// A process has called an AI provider.
    Called(Box<Call>),
    /// A record was not understood.
    Dropped(&'static str),
}

impl Observation {
    /// A file that could not be looked at or probed.
    pub(super) fn missed(path: &str, error: &FileError) -> Observation {
        let reason = match error {
            FileError::Open(discover::OpenError::Gone) => "process_gone",
            FileError::Open(_) => "file_not_opened",
            FileError::Read(_) => "file_not_read",
            FileError::Changed => "file_changed",
            FileError::Closing => "former_probes",
            FileError::Translated => "translated",
            FileError::Elf(_) => "not_elf",
            FileError::Attach(_) => "attach_refused",
            FileError::Kernel(_) => "kernel_map",
        };
        Observation::Missed { path: path.to_owned(), reason, error: error.to_string() }
    }
}
