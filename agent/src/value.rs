//! What calls leave behind: how they went, and the values read from them.

use std::sync::Arc;

/// How an operation went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// It returned and reported success, or nothing.
    Ok,
    /// It failed natively: return value, `IsDone()` false, a jump out of it.
    Error,
    /// A C++ exception left it.
    Exception,
    /// Its thread or process ended inside it.
    Killed,
}

impl Outcome {
    /// As labels and JSON have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Exception => "exception",
            Self::Killed => "killed",
        }
    }
}

/// A value read from a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// An integer, already extended by its kind.
    Int(i64),
    /// A text, valid UTF-8 (invalid bytes replaced), class names demangled.
    Text(Arc<str>),
}
