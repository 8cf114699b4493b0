//! Maps a worker's file to read it. The file is the worker's: it may shrink at any moment, and what lies behind its new
//! end then reads as zeros, where the kernel would end the agent by SIGBUS.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Files that are mapped at once; more are refused.
const MOST: usize = 16;

/// Address ranges that hold a worker's file.
static RANGES: [Range; MOST] = [const { Range::unused() }; MOST];
static HANDLER: Once = Once::new();
/// What was done about SIGBUS before.
static BEFORE: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);
/// Bytes of a page, asked for before the handler needs it.
static PAGE: AtomicUsize = AtomicUsize::new(4096);

struct Range {
    /// 0 = not in use.
    start: AtomicUsize,
    bytes: AtomicUsize,
    /// The file ended before the mapping did.
    cut: AtomicBool,
}

impl Range {
    const fn unused() -> Self {
        Self { start: AtomicUsize::new(0), bytes: AtomicUsize::new(0), cut: AtomicBool::new(false) }
    }

    fn holds(&self, address: usize) -> bool {
        let start = self.start.load(Ordering::Acquire);
        start != 0 && address.wrapping_sub(start) < self.bytes.load(Ordering::Acquire)
    }
}

/// A file's bytes.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
    range: usize,
}

impl MappedFile {
    /// Maps a file as large as it is now.
    ///
    /// # Errors
    /// The kernel's refusal, or too many files are mapped.
    pub fn open(file: &File) -> io::Result<Self> {
        HANDLER.call_once(catch_bus_errors);
        // SAFETY: the bytes are only read, each time as plain data, and access behind the file's end is caught.
        let map = unsafe { memmap2::Mmap::map(file) }?;
        let (start, bytes) = (map.as_ptr().addr(), map.len());
        for (index, range) in RANGES.iter().enumerate() {
            let free = range.start.compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed);
            if free.is_ok() {
                range.cut.store(false, Ordering::Release);
                range.bytes.store(bytes, Ordering::Release);
                return Ok(Self { map, range: index });
            }
        }
        Err(io::Error::other(format!("{MOST} files are mapped already")))
    }

    /// Whether the file was found shorter than it was when it was opened.
    #[must_use]
    pub fn was_cut(&self) -> bool {
        RANGES.get(self.range).is_some_and(|range| range.cut.load(Ordering::Acquire))
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        if let Some(range) = RANGES.get(self.range) {
            range.bytes.store(0, Ordering::Release);
            range.start.store(0, Ordering::Release);
        }
    }
}

/// Maps the first page of a file as a program's is mapped, so that the kernel says by which identity.
///
/// # Errors
/// The kernel's refusal: an empty file, a file system without execution.
pub fn map_as_program(file: &File) -> io::Result<memmap2::Mmap> {
    // SAFETY: nobody reads or runs it.
    unsafe { memmap2::MmapOptions::new().len(1).map_exec(file) }
}

fn catch_bus_errors() {
    PAGE.store(usize::try_from(procfs::page_size()).unwrap_or(4096), Ordering::Release);
    let handler: extern "C" fn(libc::c_int, *const libc::siginfo_t, *const libc::c_void) = on_bus_error;
    // SAFETY: all zeros is an empty sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: as above.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: two live values; the handler calls only what a handler may.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before) } == 0 {
        BEFORE.store(before.sa_sigaction, Ordering::Release);
    }
}

/// Puts a page of zeros where the file has none any more; whatever else raised the signal gets its former fate.
extern "C" fn on_bus_error(signal: libc::c_int, info: *const libc::siginfo_t, _: *const libc::c_void) {
    // SAFETY: the kernel gives a live siginfo.
    let info = unsafe { &*info };
    // SAFETY: SIGBUS has an address.
    let address = unsafe { info.si_addr() }.addr();
    if let Some(range) = RANGES.iter().find(|range| range.holds(address)) {
        range.cut.store(true, Ordering::Release);
        let bytes = PAGE.load(Ordering::Acquire);
        let page = ptr::without_provenance_mut(address & !(bytes - 1));
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: a page inside a mapping of ours, which only changes its contents.
        if unsafe { libc::mmap(page, bytes, libc::PROT_READ, flags, -1, 0) } != libc::MAP_FAILED {
            return;
        }
    }
    // SAFETY: all zeros is an empty sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = BEFORE.load(Ordering::Acquire);
    action.sa_flags =
        if action.sa_sigaction > libc::SIG_IGN { libc::SA_SIGINFO | libc::SA_ONSTACK } else { 0 };
    // SAFETY: a live value; the access is tried again and meets it.
    unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_that_shrinks_while_it_is_read_reads_as_zeros() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 3 * 4096]).unwrap();
        let mapped = MappedFile::open(&file).unwrap();
        assert_eq!((mapped[4096], mapped.was_cut()), (7, false));
        file.set_len(4096).unwrap();
        assert_eq!((mapped[0], mapped[2 * 4096], mapped.was_cut()), (7, 0, true));
        drop(mapped);
        let again = MappedFile::open(&file).unwrap();
        assert_eq!((again.len(), again.was_cut()), (4096, false));
    }
}
