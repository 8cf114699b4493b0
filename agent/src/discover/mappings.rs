//! Turns the kernel's own account of executable mappings into a stream of [`Mapping`]s.
//!
//! perf reports every executable mapping of every process (PERF_RECORD_MMAP2) with the identity of the file, needs
//! CAP_PERFMON only, and costs a process that maps nothing exactly nothing. Where `kernel.perf_event_paranoid` is 3 or more,
//! as Debian's and Ubuntu's kernels have it, opening it needs CAP_SYS_ADMIN: it is opened before rights are given up.

use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use perf_event::data::Record;
use perf_event::events::Software;
use perf_event::{Builder, Clock, SampleFlag, Sampler};

use crate::clock::now_ns;

/// Bytes of each CPU's buffer.
const BUFFER_BYTES: usize = 256 << 10;

/// `PERF_RECORD_MISC_COMM_EXEC`: the name changed because a program was executed.
const COMM_EXEC: u16 = 1 << 13;

/// Identity of a file on this node, as a mapping states it or as [`super::identity`] finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Device, major number.
    pub major: u32,
    /// Device, minor number.
    pub minor: u32,
    /// Inode number.
    pub inode: u64,
    /// Change of the inode (ctime), nanoseconds; 0 unless it takes the device's place.
    pub changed_ns: i64,
}

impl std::fmt::Display for FileId {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.changed_ns {
            0 => write!(to, "{}:{}:{}", self.major, self.minor, self.inode),
            _ => write!(to, "overlay:{}", self.inode),
        }
    }
}

/// A process mapped a file executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The process.
    pub pid: u32,
    /// The file.
    pub file: FileId,
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// Path as the process sees it; not to be trusted.
    pub path: String,
}

/// One step of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It executed a program; the mapping of the program's file follows.
    Executed {
        /// The process.
        pid: u32,
    },
    /// It mapped a file executable, at this time of CLOCK_MONOTONIC.
    Mapped(Mapping, u64),
}

/// Why mappings cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum MappingsError {
    /// The kernel's refusal.
    #[error("cannot follow executable mappings on CPU {cpu}: {source}; this needs CAP_PERFMON")]
    Open {
        /// Which CPU.
        cpu: usize,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel does not begin to report.
    #[error("cannot begin to follow executable mappings: {0}")]
    Enable(std::io::Error),
}

/// How often the buffers are looked at for what must come before what has been taken, before that is told all the same.
const LOOKS: u32 = 4;

/// The stream, one buffer a CPU.
pub struct Mappings {
    samplers: Vec<Sampler>,
    /// Taken from the buffers and not yet told, with their times.
    taken: Vec<(u64, Step)>,
    lost: u64,
}

impl Mappings {
    /// Opens the stream for all processes; nothing is reported yet.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn open(sys: &Path) -> Result<Self, MappingsError> {
        let mut samplers = Vec::new();
        for cpu in online_cpus(sys) {
            let opened = event(cpu).build().and_then(|counter| counter.sampled(BUFFER_BYTES));
            samplers.push(opened.map_err(|source| MappingsError::Open { cpu, source })?);
        }
        Ok(Self { samplers, taken: Vec::new(), lost: 0 })
    }

    /// Whether the stream could be opened, by a trial on one CPU.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn try_to_open(sys: &Path) -> Result<(), MappingsError> {
        let cpu = online_cpus(sys).first().copied().unwrap_or(0);
        event(cpu).build().map(drop).map_err(|source| MappingsError::Open { cpu, source })
    }

    /// From now on mappings are reported.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn enable(&mut self) -> Result<(), MappingsError> {
        self.samplers.iter_mut().try_for_each(|sampler| sampler.enable()).map_err(MappingsError::Enable)
    }

    /// Descriptors that become readable when there is something to take.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.samplers.iter().map(AsRawFd::as_raw_fd)
    }

    /// Mappings that the kernel could not report, so far.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Tells what is there, in the order of its times: a process that goes from one CPU to another has steps in the buffers
    /// of both.
    pub fn drain(&mut self, mut take: impl FnMut(Step)) {
        for look in 1..=LOOKS {
            let begin_ns = if look < LOOKS { now_ns() } else { u64::MAX };
            self.read();
            // What has come since may have forerunners in a buffer that was looked at before.
            due(&mut self.taken, begin_ns).for_each(&mut take);
            if self.taken.is_empty() {
                return;
            }
        }
    }

    /// Takes what is in the buffers.
    fn read(&mut self) {
        for sampler in &mut self.samplers {
            while let Some(record) = sampler.next_record() {
                let executed = record.misc() & COMM_EXEC != 0;
                let at_ns =
                    record.to_contiguous().last_chunk().map_or(u64::MAX, |time| u64::from_ne_bytes(*time));
                match record.parse_record() {
                    Ok(Record::Comm(named)) if executed => {
                        self.taken.push((at_ns, Step::Executed { pid: named.pid }));
                    }
                    Ok(Record::Mmap2(mapped)) => {
                        let (Some(major), Some(minor), Some(inode)) =
                            (mapped.maj(), mapped.min(), mapped.ino())
                        else {
                            continue;
                        };
                        // Anonymous memory, the vdso and the like have no file.
                        if inode == 0 || mapped.filename.first() != Some(&b'/') {
                            continue;
                        }
                        let mapping = Mapping {
                            pid: mapped.pid,
                            file: FileId { major, minor, inode, changed_ns: 0 },
                            start: mapped.addr,
                            end: mapped.addr.saturating_add(mapped.len),
                            offset: mapped.pgoff,
                            path: String::from_utf8_lossy(&mapped.filename).trim_end_matches('\0').to_owned(),
                        };
                        self.taken.push((at_ns, Step::Mapped(mapping, at_ns)));
                    }
                    Ok(Record::Lost(lost)) => self.lost = self.lost.saturating_add(lost.lost),
                    Ok(_) => {}
                    Err(_) => self.lost = self.lost.saturating_add(1),
                }
            }
        }
    }
}

/// Takes those that are not later than this, from the earliest.
fn due(taken: &mut Vec<(u64, Step)>, until_ns: u64) -> impl Iterator<Item = Step> {
    taken.sort_by_key(|(at_ns, _)| *at_ns);
    let count = taken.partition_point(|(at_ns, _)| *at_ns <= until_ns);
    taken.drain(..count).map(|(_, step)| step)
}

/// The mapping events of all processes on one CPU, not enabled.
fn event(cpu: usize) -> Builder<'static> {
    // A watermark of one byte: `wakeup_events` counts samples only, and there are none.
    let mut builder = Builder::new(Software::DUMMY);
    builder.any_pid().one_cpu(cpu).include_kernel().include_hv();
    builder.mmap(true).mmap2(true).comm(true).comm_exec(true).wakeup_watermark(1).enabled(false);
    // Each record ends with its time, and with nothing else that would be of a sample.
    builder.sample(SampleFlag::TIME).sample_id_all(true).clockid(Clock::MONOTONIC);
    builder
}

/// The CPUs that are on, from sysfs; CPU 0 if it does not say.
fn online_cpus(sys: &Path) -> Vec<usize> {
    let text = std::fs::read_to_string(sys.join("devices/system/cpu/online")).unwrap_or_default();
    let cpus = parse_cpu_list(&text);
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// `0-3,5` → 0 1 2 3 5; nonsense is left out.
fn parse_cpu_list(text: &str) -> Vec<usize> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            cpus.extend(first..=last.min(first.saturating_add(8192)));
        }
    }
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_cpu_list("0-3,5\n"), [0, 1, 2, 3, 5]);
        assert_eq!(parse_cpu_list("0\n"), [0]);
        assert!(parse_cpu_list("").is_empty());
        assert!(parse_cpu_list("x-y").is_empty());
    }

    #[test]
    fn steps_of_several_cpus_are_told_in_the_order_of_their_times() {
        let step = |pid| Step::Executed { pid };
        // Of one CPU, then of another.
        let mut taken = vec![(20, step(2)), (40, step(4)), (10, step(1)), (20, step(3)), (50, step(5))];
        assert_eq!(due(&mut taken, 30).collect::<Vec<_>>(), [step(1), step(2), step(3)]);
        taken.push((30, step(6)));
        assert_eq!(due(&mut taken, u64::MAX).collect::<Vec<_>>(), [step(6), step(4), step(5)]);
        assert!(taken.is_empty());
    }
}
