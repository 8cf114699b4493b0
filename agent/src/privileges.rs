//! Turns a process that may do anything into one that can only observe: it keeps the capabilities that observation needs,
//! can never gain one, and the kernel refuses it every system call but those of `calls`.
//!
//! Done once, before the first thread starts, by `cadscope agent`, and by `cadscope top` where it observes by itself;
//! `cadscope trace` runs the user's program, which would inherit it. Landlock is not used: a process in a Landlock domain may not look at processes outside of it.

mod calls;

use std::collections::BTreeMap;

use caps::{CapSet, Capability, CapsHashSet};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Why rights could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// The kernel refused to take capabilities.
    #[error("cannot give up capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    /// The kernel refused the promise never to gain any.
    #[error("cannot set no_new_privs: {0}")]
    NoNewPrivileges(nix::Error),
    /// The filter of system calls could not be made.
    #[error("cannot make the filter of system calls: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// The kernel refused it.
    #[error("cannot install the filter of system calls (the kernel needs CONFIG_SECCOMP_FILTER=y): {0}")]
    Install(#[from] seccompiler::Error),
}

/// What observation needs, and why:
///
/// - CAP_BPF: BPF maps, programs and their types;
/// - CAP_PERFMON: links to functions and tracepoints, reads of kernel and worker memory, perf's mapping events;
/// - CAP_SYS_PTRACE: /proc/PID/{maps,root,cwd,ns,mem} of other users' processes;
/// - CAP_DAC_READ_SEARCH: /proc/PID/environ, and files whose mode lets only their owner in;
/// - CAP_CHECKPOINT_RESTORE, if it is there: /proc/PID/map_files, which leads to files that have been deleted since.
const KEPT: [Capability; 5] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_CHECKPOINT_RESTORE,
];

/// Gives up everything else. With `perf_events`, probes are perf events, which Linux gives to CAP_SYS_ADMIN only.
///
/// # Errors
/// The kernel's refusal; rights are not as they should be then.
pub fn give_up(perf_events: bool) -> Result<(), PrivilegeError> {
    give_up_capabilities(perf_events)?;
    nix::sys::prctl::set_no_new_privs().map_err(PrivilegeError::NoNewPrivileges)?;
    Ok(seccompiler::apply_filter_all_threads(&filter()?)?)
}

fn give_up_capabilities(perf_events: bool) -> Result<(), PrivilegeError> {
    let held = caps::read(None, CapSet::Permitted)?;
    let admin = perf_events.then_some(Capability::CAP_SYS_ADMIN);
    let kept: CapsHashSet = KEPT.into_iter().chain(admin).filter(|kept| held.contains(kept)).collect();
    // What a program executed later could have. Without CAP_SETPCAP it cannot be made less; no_new_privs and the filter
    // keep it out of reach.
    if held.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding)? {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    Ok(caps::set(None, CapSet::Permitted, &kept)?)
}

/// Answers what is not listed with ENOSYS: libraries then fall back to an older call, as on an older kernel.
fn filter() -> Result<seccompiler::BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        calls::ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // A thread, not a process. clone3 hides its flags in memory: it is refused, and clone is taken instead.
    let thread = u64::from(libc::CLONE_THREAD.cast_unsigned());
    rules.insert(libc::SYS_clone, vec![when(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    let family = |family: i32| when(0, SeccompCmpOp::Eq, u64::from(family.cast_unsigned()));
    rules.insert(libc::SYS_socket, families.into_iter().map(family).collect::<Result<_, _>>()?);
    SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?
    .try_into()
}

/// A call whose argument compares so.
fn when(argument: u8, how: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, how, value)?])
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::ErrorKind;
    use std::net::TcpListener;
    use std::process::Command;

    use super::*;

    /// In a thread of its own, which alone is filtered.
    fn filtered<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(|| {
            nix::sys::prctl::set_no_new_privs().unwrap();
            seccompiler::apply_filter(&filter().unwrap()).unwrap();
            what()
        });
        thread.join().unwrap()
    }

    #[test]
    fn a_filtered_process_starts_no_program_and_changes_no_file() {
        filtered(|| {
            assert_eq!(Command::new("/bin/true").status().unwrap_err().kind(), ErrorKind::Unsupported);
            assert!(std::fs::remove_file("/nowhere").unwrap_err().kind() == ErrorKind::Unsupported);
            assert_eq!(nix::sys::ptrace::traceme(), Err(nix::Error::ENOSYS));
            assert_eq!(nix::unistd::chroot("/"), Err(nix::Error::ENOSYS));
            assert_eq!(nix::sys::signal::kill(nix::unistd::Pid::this(), None), Err(nix::Error::ENOSYS));
            assert_eq!(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS), Err(nix::Error::ENOSYS));
        });
    }

    #[test]
    fn a_filtered_process_reads_listens_and_starts_threads() {
        filtered(|| {
            assert!(File::open("/proc/self/status").is_ok());
            assert!(TcpListener::bind("127.0.0.1:0").is_ok());
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
        });
    }

    #[test]
    fn no_call_is_listed_twice_or_both_with_and_without_a_condition() {
        let all: std::collections::BTreeSet<i64> = calls::ALLOWED.iter().copied().collect();
        assert_eq!(all.len(), calls::ALLOWED.len());
        assert!(!all.contains(&libc::SYS_clone) && !all.contains(&libc::SYS_socket));
    }
}
