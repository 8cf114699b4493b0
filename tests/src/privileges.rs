//! The rights that the agent is given where it is installed.

/// Capabilities of the agent on Linux 6.6 or newer, in the order of deploy/, without `CAP_`.
pub const CAPABILITIES: [&str; 4] = ["BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH"];

/// The command that runs another, as root, with these capabilities alone and no way to gain one: what a container
/// runtime does.
#[must_use]
pub fn only(capabilities: &[&str]) -> Vec<String> {
    let bounding = format!("--bounding-set=-all{}", listed(capabilities));
    ["setpriv".to_owned(), bounding, "--no-new-privs".to_owned(), "--".to_owned()].into()
}

/// The same as a user that is not root: what systemd does.
#[must_use]
pub fn only_as(user: u32, capabilities: &[&str]) -> Vec<String> {
    let set = listed(capabilities);
    let words = [
        "setpriv".to_owned(),
        format!("--reuid={user}"),
        format!("--regid={user}"),
        "--clear-groups".to_owned(),
        format!("--bounding-set=-all{set}"),
        format!("--inh-caps=-all{set}"),
        format!("--ambient-caps=-all{set}"),
        "--no-new-privs".to_owned(),
        "--".to_owned(),
    ];
    words.into()
}

/// As setpriv wants them.
fn listed(capabilities: &[&str]) -> String {
    capabilities.iter().map(|name| format!(",+{}", name.to_ascii_lowercase())).collect()
}
