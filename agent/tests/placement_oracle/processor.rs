//! A process whose only purpose is to run functions of a file, one instruction at a time, on the real processor. The
//! file's code is mapped and nothing of it has been started; memory around it is what each call makes of it.

use std::io::{IoSlice, IoSliceMut};

use libc::user_regs_struct;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::image::{BASE, Image, STUBS, STUBS_BYTES};

/// The objects that arguments and fields point to.
pub const OBJECTS: u64 = 0x1000_0000_0000;
pub const OBJECTS_BYTES: u64 = 128 << 10;
/// The stack; calls begin in its upper half.
pub const STACK: u64 = 0x3000_0000_0000;
pub const STACK_BYTES: u64 = 1 << 20;

const PAGE: u64 = 4096;

/// What became of one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Done,
    Fault,
    Gone,
}

/// The process; it ends with the value.
pub struct Processor {
    pid: Pid,
}

impl Processor {
    pub fn start(image: &Image) -> Self {
        // SAFETY: the child calls the kernel only, and allocates nothing.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => become_traced(image),
            ForkResult::Parent { child } => {
                assert!(matches!(waitpid(child, None), Ok(WaitStatus::Stopped(_, Signal::SIGSTOP))));
                ptrace::setoptions(child, ptrace::Options::PTRACE_O_EXITKILL).unwrap();
                Self { pid: child }
            }
        }
    }

    pub fn registers(&self) -> Option<user_regs_struct> {
        ptrace::getregs(self.pid).ok()
    }

    pub fn set_registers(&self, registers: user_regs_struct) -> Option<()> {
        ptrace::setregs(self.pid, registers).ok()
    }

    pub fn step(&self) -> Step {
        if ptrace::step(self.pid, None).is_err() {
            return Step::Gone;
        }
        match waitpid(self.pid, None) {
            Ok(WaitStatus::Stopped(_, Signal::SIGTRAP)) => Step::Done,
            Ok(WaitStatus::Stopped(..)) => Step::Fault,
            _ => Step::Gone,
        }
    }

    pub fn read(&self, address: u64, to: &mut [u8]) -> bool {
        let (base, len) = (usize::try_from(address).unwrap(), to.len());
        let read = process_vm_readv(self.pid, &mut [IoSliceMut::new(to)], &[RemoteIoVec { base, len }]);
        read == Ok(len)
    }

    pub fn word(&self, address: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.read(address, &mut word).then(|| u64::from_le_bytes(word))
    }

    pub fn write(&self, address: u64, from: &[u8]) -> bool {
        let base = usize::try_from(address).unwrap();
        let to = [RemoteIoVec { base, len: from.len() }];
        process_vm_writev(self.pid, &[IoSlice::new(from)], &to) == Ok(from.len())
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// Maps everything, then stops for its tracer.
fn become_traced(image: &Image) -> ! {
    // SAFETY: a number.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    for segment in &image.segments {
        let start = (BASE + segment.vaddr) & !(PAGE - 1);
        let end = (BASE + segment.vaddr + segment.bytes_in_memory).next_multiple_of(PAGE);
        map(start, end - start);
        let from = image.bytes.as_ptr().wrapping_add(segment.offset as usize);
        // SAFETY: the segment lies in the file, and its memory has just been mapped.
        unsafe {
            std::ptr::copy_nonoverlapping(
                from,
                (BASE + segment.vaddr) as *mut u8,
                segment.bytes_in_file as usize,
            );
        };
    }
    for (at, word) in &image.words {
        // SAFETY: relocations lie in segments.
        unsafe { ((BASE + at) as *mut u64).write_unaligned(*word) };
    }
    for segment in image.segments.iter().filter(|segment| segment.is_code) {
        let start = (BASE + segment.vaddr) & !(PAGE - 1);
        let end = (BASE + segment.vaddr + segment.bytes_in_memory).next_multiple_of(PAGE);
        // SAFETY: memory that has just been mapped.
        unsafe { libc::mprotect(start as *mut _, (end - start) as usize, libc::PROT_READ | libc::PROT_EXEC) };
    }
    for (start, bytes) in [(OBJECTS, OBJECTS_BYTES), (STUBS, STUBS_BYTES), (STACK, STACK_BYTES)] {
        map(start, bytes);
    }
    // What other files' data would be points to objects.
    for word in 0..STUBS_BYTES / 8 {
        // SAFETY: memory that has just been mapped.
        unsafe { ((STUBS + word * 8) as *mut u64).write(OBJECTS + OBJECTS_BYTES / 2) };
    }
    // SAFETY: no memory is involved.
    unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
    // SAFETY: as above.
    unsafe { libc::raise(libc::SIGSTOP) };
    // SAFETY: as above. The tracer has taken the process elsewhere by now.
    unsafe { libc::_exit(1) }
}

fn map(start: u64, bytes: u64) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: addresses that nothing else uses.
    unsafe { libc::mmap(start as *mut _, bytes as usize, access, flags, -1, 0) };
}
