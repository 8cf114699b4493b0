//! cadscope's user side: from processes that map CAD libraries to operations, metrics and waterfalls.
//!
//! The modules stand in the order in which the data flows; a module imports only from those before it.
//!
//! ```text
//! discover ─Worker→ identify ─Build→ resolve ─Sites→ attach ─links→ [kernel: pair] ─bytes→ receive ─Operation→ export, view
//! ```

pub mod clock;
pub mod value;
pub mod demangled;
pub mod memory;
pub mod ending;
pub mod container;
pub mod flow_type;
pub mod catalog;
pub mod job;
pub mod broker;
pub mod trust;
pub mod ai;
pub mod budget;
pub mod digest;
pub mod inputs;
pub mod config;
pub mod identify;
pub mod resolve;
pub mod plan;
pub mod counted;
pub mod python;
pub mod operation;
pub mod discover;
pub mod installed;
pub mod kernel;
pub mod attach;
pub mod sources;
pub mod receive;
pub mod written;
pub mod group;
pub mod rollup;
pub mod workers;
pub mod in_flight;
pub mod observe;
pub mod flow;
pub mod live;
pub mod validation;
pub mod export;
pub mod usage;
pub mod view;
pub mod privileges;
pub mod preflight;
pub mod coverage;
pub mod agent;
pub mod trace;
pub mod top;
pub mod manual;

#[cfg(test)]
mod samples;
