//! Says what this node lacks for observation, and the exact fix.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::ReportFormat;
use crate::discover::{self, Mappings};
use crate::kernel::{KERNEL_BTF, Kernel, perf_uprobe};

/// Oldest kernel: attach cookies came with it.
const OLDEST: (u32, u32) = (5, 15);
/// First kernel with uprobe_multi links.
const MULTI: (u32, u32) = (6, 6);

/// What perf events need, below procfs. 3 and more is Debian's and Ubuntu's addition.
const PARANOID: &str = "sys/kernel/perf_event_paranoid";

const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Where the node's own file systems are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// procfs.
    pub proc: PathBuf,
    /// sysfs.
    pub sys: PathBuf,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// Whether it is as it must be.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// Looks at everything that can be looked at without changing anything. `all`: the processes of all users are to be
/// observed, not one's own only.
#[must_use]
pub fn checks(node: &Node, all: bool) -> Vec<Check> {
    let kernel = kernel_version(&node.proc);
    let capabilities = capabilities(&node.proc);
    vec![
        check_machine(),
        check_kernel(kernel),
        check_btf(&node.sys),
        check_uprobes(&node.sys),
        check_capabilities(capabilities, kernel, all),
        check_proc(&node.proc, capabilities),
        check_perf_events(node),
    ]
}

/// Whether probes can be uprobe_multi links, by the kernel's version.
#[must_use]
pub fn has_uprobe_multi(node: &Node) -> bool {
    kernel_version(&node.proc).is_some_and(|version| version >= MULTI)
}

/// Refuses to start where the agent could not work.
///
/// # Errors
/// The first thing that is missing, with its fix.
pub fn require(node: &Node, all: bool) -> anyhow::Result<()> {
    match checks(node, all).into_iter().find(|check| !check.ok) {
        None => Ok(()),
        Some(check) => {
            let fix = check.fix.unwrap_or_default();
            anyhow::bail!("{}: {}; {fix} (`cadscope doctor` checks everything)", check.name, check.found)
        }
    }
}

/// Prints the report, with a trial load of the kernel side at the end; true if the agent would work.
///
/// # Errors
/// The report cannot be made.
pub fn report(node: &Node, format: ReportFormat) -> anyhow::Result<bool> {
    let mut checks = checks(node, true);
    if checks.iter().all(|check| check.ok) {
        checks.push(check_load(&node.sys));
    }
    let ok = checks.iter().all(|check| check.ok);
    match format {
        ReportFormat::Json => {
            println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "ok": ok, "checks": checks }))?);
        }
        ReportFormat::Text => print!("{}", as_text(&checks, ok)),
    }
    Ok(ok)
}

fn as_text(checks: &[Check], ok: bool) -> String {
    let mut out = String::new();
    for check in checks {
        let mark = if check.ok { "ok  " } else { "FAIL" };
        let _ = writeln!(out, "{mark}  {:<13} {}", check.name, check.found);
        if let Some(fix) = check.fix.as_ref().filter(|_| !check.ok) {
            let _ = writeln!(out, "      {:<13} fix: {fix}", "");
        }
    }
    let _ =
        writeln!(out, "{}", if ok { "the agent would work here" } else { "the agent would not work here" });
    out
}

fn check(name: &'static str, ok: bool, found: String, fix: &str) -> Check {
    Check { name, ok, found, fix: (!ok).then(|| fix.to_owned()) }
}

fn check_machine() -> Check {
    let machine = std::env::consts::ARCH;
    let ok = matches!(machine, "x86_64" | "aarch64");
    check("machine", ok, machine.to_owned(), "cadscope reads the registers of x86-64 and arm64 only")
}

fn check_kernel(version: Option<(u32, u32)>) -> Check {
    let Some((major, minor)) = version else {
        return check(
            "kernel",
            false,
            "version not readable".to_owned(),
            "mount procfs and name it with --proc",
        );
    };
    let how = if (major, minor) >= MULTI { "uprobe_multi" } else { "perf events, slower to attach" };
    let ok = (major, minor) >= OLDEST;
    let found = if ok { format!("Linux {major}.{minor} ({how})") } else { format!("Linux {major}.{minor}") };
    check("kernel", ok, found, "Linux 5.15 or newer is needed (attach cookies); 6.6 or newer is recommended")
}

fn check_btf(sys: &Path) -> Check {
    let path = sys.join(KERNEL_BTF);
    let ok = std::fs::metadata(&path).is_ok();
    let found = if ok { path.display().to_string() } else { format!("{} is missing", path.display()) };
    check(
        "BTF",
        ok,
        found,
        "use a kernel built with CONFIG_DEBUG_INFO_BTF=y (every current distribution's is), and mount sysfs",
    )
}

fn check_uprobes(sys: &Path) -> Check {
    let ok = std::fs::metadata(sys.join(perf_uprobe::TYPE)).is_ok();
    let found = if ok { "supported" } else { "the kernel has none" };
    check(
        "uprobes",
        ok,
        found.to_owned(),
        "use a kernel built with CONFIG_UPROBES=y and CONFIG_UPROBE_EVENTS=y",
    )
}

fn check_capabilities(held: u64, kernel: Option<(u32, u32)>, all: bool) -> Check {
    let has = |capability: u32| held >> capability & 1 == 1;
    let mut needed = vec![("CAP_BPF", CAP_BPF), ("CAP_PERFMON", CAP_PERFMON)];
    if kernel.is_some_and(|version| version < MULTI) {
        needed.push(("CAP_SYS_ADMIN", CAP_SYS_ADMIN));
    }
    if all {
        needed.push(("CAP_SYS_PTRACE", CAP_SYS_PTRACE));
        needed.push(("CAP_DAC_READ_SEARCH", CAP_DAC_READ_SEARCH));
    }
    let missing: Vec<&str> =
        needed.into_iter().filter(|(_, number)| !has(*number)).map(|(name, _)| name).collect();
    let found =
        if missing.is_empty() { "enough".to_owned() } else { format!("{} missing", missing.join(", ")) };
    check(
        "capabilities",
        missing.is_empty(),
        found,
        "run as root (sudo), or grant these capabilities to the process",
    )
}

fn check_proc(proc: &Path, held: u64) -> Check {
    let own = std::process::id();
    let others: Vec<u32> =
        discover::processes(proc).into_iter().filter(|pid| *pid != own).take(200).collect();
    let ok = others.iter().any(|pid| !discover::mappings_of(proc, *pid).is_empty());
    let found = if ok {
        format!("{} shows the memory maps of other processes", proc.display())
    } else {
        format!("{} does not show the memory maps of other processes", proc.display())
    };
    let fix = if held >> CAP_SYS_PTRACE & 1 == 1 {
        "mount the node's procfs and name it with --proc (in Kubernetes: hostPID: true)"
    } else {
        "grant CAP_SYS_PTRACE, or run as root"
    };
    check("procfs", ok, found, fix)
}

fn check_perf_events(node: &Node) -> Check {
    let refusal = Mappings::try_to_open(&node.sys).err().map(|error| error.to_string());
    let paranoid = std::fs::read_to_string(node.proc.join(PARANOID)).ok().and_then(|n| n.trim().parse().ok());
    perf_events(refusal, paranoid)
}

fn perf_events(refusal: Option<String>, paranoid: Option<i32>) -> Check {
    let fix = match paranoid {
        Some(level) if level > 2 => format!(
            "kernel.perf_event_paranoid is {level}, with which this kernel gives perf events to CAP_SYS_ADMIN only: \
             `sysctl kernel.perf_event_paranoid=2` on the node, or grant CAP_SYS_ADMIN (given up after the start)"
        ),
        _ => "run as root, or grant CAP_PERFMON; a container's seccomp profile must allow perf_event_open"
            .to_owned(),
    };
    let ok = refusal.is_none();
    check("perf events", ok, refusal.unwrap_or_else(|| "executable mappings are told".to_owned()), &fix)
}

fn check_load(sys: &Path) -> Check {
    let load = |tls| Kernel::load(sys, true, true, tls, std::time::Duration::ZERO);
    let all = load(true);
    let note = all.as_ref().err().map(|error| format!("; but --ai-latency would not work: {error}"));
    match all.or_else(|_| load(false)) {
        Ok(kernel) => {
            let how = format!("load; probes by {}{}", kernel.mode().as_str(), note.unwrap_or_default());
            check("programs", true, how, "")
        }
        Err(error) => check("programs", false, error.to_string(), "report this with the kernel's version"),
    }
}

fn kernel_version(proc: &Path) -> Option<(u32, u32)> {
    parse_kernel(&std::fs::read_to_string(proc.join("sys/kernel/osrelease")).ok()?)
}

fn parse_kernel(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn capabilities(proc: &Path) -> u64 {
    let status = std::fs::read_to_string(proc.join("self/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(parse_kernel("6.18.44-fc-v595\n"), Some((6, 18)));
        assert_eq!(parse_kernel("5.10.0-28-amd64"), Some((5, 10)));
        assert_eq!(parse_kernel("x"), None);
    }

    #[test]
    fn a_kernel_without_cookies_is_refused_with_the_fix() {
        let check = check_kernel(Some((5, 10)));
        assert!(!check.ok);
        assert!(check.fix.unwrap().contains("5.15"));
    }

    #[test]
    fn a_distribution_that_keeps_perf_events_to_itself_is_named_with_both_ways_out() {
        let refused = perf_events(Some("Permission denied".to_owned()), Some(3));
        let fix = refused.fix.unwrap();
        assert!(
            !refused.ok && fix.contains("perf_event_paranoid=2") && fix.contains("CAP_SYS_ADMIN"),
            "{fix}"
        );
        let refused = perf_events(Some("Permission denied".to_owned()), Some(2));
        assert!(refused.fix.unwrap().contains("CAP_PERFMON"));
        assert!(perf_events(None, Some(4)).ok);
    }

    #[test]
    fn an_older_kernel_needs_one_capability_more() {
        let held = 1 << CAP_BPF | 1 << CAP_PERFMON;
        assert!(check_capabilities(held, Some((6, 6)), false).ok);
        assert_eq!(check_capabilities(held, Some((6, 1)), false).found, "CAP_SYS_ADMIN missing");
    }

    #[test]
    fn processes_of_others_need_two_capabilities_more() {
        let held = 1 << CAP_BPF | 1 << CAP_PERFMON | 1 << CAP_SYS_PTRACE;
        assert_eq!(check_capabilities(held, Some((6, 6)), true).found, "CAP_DAC_READ_SEARCH missing");
        assert!(check_capabilities(held | 1 << CAP_DAC_READ_SEARCH, Some((6, 6)), true).ok);
    }
}
