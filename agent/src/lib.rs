//! cadscope's user side: from processes that map CAD libraries to operations, metrics and waterfalls.
//!
//! The modules stand in the order in which the data flows; a module imports only from those before it.
//!
//! ```text
//! discover ─Worker→ identify ─Build→ resolve ─Sites→ attach ─links→ [kernel: pair] ─bytes→ receive ─Operation→ export, view
//! ```

pub mod clock;
pub mod value;
pub mod catalog;
pub mod job;
pub mod config;
pub mod identify;
pub mod resolve;
pub mod plan;
pub mod operation;
pub mod discover;
pub mod kernel;
pub mod attach;
pub mod receive;
pub mod written;
pub mod group;
pub mod workers;
pub mod observe;
pub mod export;
pub mod view;
pub mod preflight;
pub mod coverage;
pub mod agent;
pub mod trace;

#[cfg(test)]
mod samples;
