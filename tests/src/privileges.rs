//! The rights that the agent is given where it is installed.

/// Capabilities of the agent on Linux 6.6 or newer, in the order of deploy/, without `CAP_`.
pub const CAPABILITIES: [&str; 4] = ["BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH"];

/// The command that runs another, as root, with these capabilities alone and no way to gain one: what a container
/// runtime and systemd do.
#[must_use]
pub fn only(capabilities: &[&str]) -> Vec<String> {
    let set: String = capabilities.iter().map(|name| format!(",+{}", name.to_ascii_lowercase())).collect();
    ["setpriv".to_owned(), format!("--bounding-set=-all{set}"), "--no-new-privs".to_owned(), "--".to_owned()]
        .into()
}
