//! Turns the kernel's own account of a process's BPF programs into how often they ran, and for how long.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The kernel counts while this is 1.
const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// `BPF_PROG_TYPE_KPROBE`: those of uprobes, too.
const PROBE: &str = "2";

/// Runs of programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs {
    /// How many.
    pub(super) count: u64,
    /// Nanoseconds in them.
    pub(super) ns: u64,
}

impl Runs {
    fn add(&mut self, more: Self) {
        *self = Self { count: self.count + more.count, ns: self.ns + more.ns };
    }

    /// Those since.
    fn since(self, before: Self) -> Self {
        Self { count: self.count.saturating_sub(before.count), ns: self.ns.saturating_sub(before.ns) }
    }

    /// Seconds in them.
    pub(super) fn seconds(self) -> f64 {
        self.ns as f64 / 1e9
    }
}

/// What the programs of a process have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// At the sites of probes.
    pub(super) probes: Runs,
    /// At tracepoints.
    pub(super) others: Runs,
}

impl Account {
    /// As of now.
    fn of(pid: u32) -> Result<Self> {
        let mut account = Self::default();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            // One that is closed meanwhile is no program.
            let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
            if let Some((kind, runs)) = program(&text) {
                if kind == PROBE { account.probes.add(runs) } else { account.others.add(runs) }
            }
        }
        Ok(account)
    }

    /// While `work` is done.
    pub(super) fn during<T>(pid: u32, work: impl FnOnce() -> Result<T>) -> Result<(Self, T)> {
        let _counting = Counting::start()?;
        let before = Self::of(pid)?;
        let done = work()?;
        let after = Self::of(pid)?;
        let since =
            Self { probes: after.probes.since(before.probes), others: after.others.since(before.others) };
        Ok((since, done))
    }
}

/// Type and runs, if a descriptor is that of a program.
fn program(fdinfo: &str) -> Option<(&str, Runs)> {
    let field = |name: &str| fdinfo.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let number = |name: &str| field(name)?.parse().ok();
    Some((field("prog_type:")?, Runs { count: number("run_cnt:")?, ns: number("run_time_ns:")? }))
}

/// The kernel counts; dropped, it does as before.
struct Counting {
    before: String,
}

impl Counting {
    fn start() -> Result<Self> {
        let switch = Path::new(SWITCH);
        let before = fs::read_to_string(switch).with_context(|| SWITCH.to_owned())?;
        fs::write(switch, "1").with_context(|| SWITCH.to_owned())?;
        Ok(Self { before })
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // It costs some nanoseconds a run if it stays.
        let _ = fs::write(SWITCH, self.before.trim());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_of_a_program_says_how_often_it_ran() {
        let text =
            "pos:\t0\nflags:\t02000002\nprog_type:\t2\nprog_jited:\t1\nrun_time_ns:\t900\nrun_cnt:\t3\n";
        assert_eq!(program(text), Some(("2", Runs { count: 3, ns: 900 })));
        assert_eq!(program("pos:\t0\nmap_type:\t1\n"), None);
        let (before, after) = (Runs { count: 1, ns: 400 }, Runs { count: 3, ns: 900 });
        assert_eq!(after.since(before), Runs { count: 2, ns: 500 });
    }
}
