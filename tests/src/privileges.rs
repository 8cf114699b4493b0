//! The rights that the agent is given where it is installed.

/// Capabilities of the agent on Linux 6.6 or newer, in the order of deploy/, without `CAP_`.
pub const CAPABILITIES: [&str; 4] = ["BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH"];
