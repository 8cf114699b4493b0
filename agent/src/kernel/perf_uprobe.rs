//! Places probes by perf events, one event a site: kernels before 6.6 have no uprobe_multi.
//!
//! The kernel takes about 0.1 s to give up one such event (Linux 6.18) and does it under one lock, so that threads do not
//! help: it is done beside the caller.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::bpf;

/// Where the kernel tells the type of such events, below sysfs.
pub const TYPE: &str = "bus/event_source/devices/uprobe/type";
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;

/// The head of `perf_event_attr`, up to the offset of a uprobe (Linux 4.17+).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    event_type: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    uprobe_path: u64,
    probe_offset: u64,
}

const _: () = assert!(size_of::<Attributes>() == 72); // PERF_ATTR_SIZE_VER1

/// Probes in place; they go when it is dropped.
#[derive(Debug)]
pub struct PerfProbes(Vec<PerfProbe>);

/// Fields are dropped in order: first what runs the program.
#[derive(Debug)]
struct PerfProbe {
    _link: OwnedFd,
    _event: OwnedFd,
}

impl PerfProbes {
    /// Places a program at offsets of a file, each with its cookie; `sys` is the node's sysfs.
    ///
    /// # Errors
    /// The kernel's refusal; nothing stays behind then.
    pub fn place(
        sys: &Path,
        program: BorrowedFd<'_>,
        path: &CStr,
        sites: impl Iterator<Item = (u64, u64)>,
    ) -> io::Result<Self> {
        let event_type = std::fs::read_to_string(sys.join(TYPE))?.trim().parse().map_err(io::Error::other)?;
        let mut placed = Self(Vec::new());
        for (offset, cookie) in sites {
            let event = open(event_type, path, offset)?;
            let link = bpf::link_perf_event(program, event.as_fd(), cookie)?;
            placed.0.push(PerfProbe { _link: link, _event: event });
        }
        Ok(placed)
    }
}

impl PerfProbes {
    /// Keeps the probes that are marked so, in the order in which they were placed, and gives up the others.
    pub fn keep(&mut self, stays: &[bool]) {
        let all = std::mem::take(&mut self.0).into_iter();
        let (kept, over): (Vec<_>, Vec<_>) =
            all.zip(stays.iter().copied().chain(std::iter::repeat(true))).partition(|(_, stays)| *stays);
        self.0 = kept.into_iter().map(|(probe, _)| probe).collect();
        drop(Self(over.into_iter().map(|(probe, _)| probe).collect()));
    }
}

/// An event of all processes, enabled.
fn open(event_type: u32, path: &CStr, offset: u64) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        event_type,
        size: u32::try_from(size_of::<Attributes>()).unwrap_or(0),
        uprobe_path: path.as_ptr().addr() as u64,
        probe_offset: offset,
        ..Attributes::default()
    };
    let (pid, cpu, group) = (-1, 0, -1);
    // SAFETY: the kernel reads `size` bytes of the attributes and the path, which live.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attributes, pid, cpu, group, PERF_FLAG_FD_CLOEXEC)
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Drop for PerfProbes {
    fn drop(&mut self) {
        let probes = std::mem::take(&mut self.0);
        // Without a thread they are given up here.
        let beside = std::thread::Builder::new().name("give up probes".to_owned());
        let _ = beside.spawn(move || drop(probes));
    }
}
