//! Reads the memory of the worker that hit a probe.
//!
//! Memory that is not resident fails without sleeping; it is then paged in as the worker's own access would do, and
//! read again. Where programs cannot sleep (before uprobe_multi), the agent makes `bpf_copy_from_user` a failure in the
//! code that it loads.

use aya_ebpf::helpers::generated::{bpf_copy_from_user, bpf_probe_read_user, bpf_probe_read_user_str};

/// Reads `size` bytes at `address` into `to`; false if they cannot be read.
#[inline(always)]
pub unsafe fn read(to: *mut u8, size: u32, address: u64) -> bool {
    // SAFETY: the caller gives `size` writable bytes; the source may be any number.
    if unsafe { bpf_probe_read_user(to.cast(), size, address as *const _) } == 0 {
        return true;
    }
    // SAFETY: as above.
    unsafe { bpf_copy_from_user(to.cast(), size, address as *const _) == 0 }
}

/// Reads a `u64` at `address`.
#[inline(always)]
pub fn read_u64(address: u64) -> Option<u64> {
    let mut value = 0_u64;
    // SAFETY: eight writable bytes.
    unsafe { read((&raw mut value).cast(), 8, address) }.then_some(value)
}

/// Reads a NUL-terminated string of at most `size` bytes, NUL included, into `to`; false if it cannot be read.
#[inline(always)]
pub unsafe fn read_text(to: *mut u8, size: u32, address: u64) -> bool {
    // SAFETY: the caller gives `size` writable bytes; the source may be any number.
    if unsafe { bpf_probe_read_user_str(to.cast(), size, address as *const _) } >= 0 {
        return true;
    }
    // A byte at each end brings in the pages that the string can lie on.
    let mut byte = 0_u8;
    // SAFETY: one writable byte.
    if unsafe { bpf_copy_from_user((&raw mut byte).cast(), 1, address as *const _) } != 0 {
        return false;
    }
    // SAFETY: one writable byte; failure is fine, the string may end before.
    unsafe { bpf_copy_from_user((&raw mut byte).cast(), 1, (address + u64::from(size) - 1) as *const _) };
    // SAFETY: as above.
    unsafe { bpf_probe_read_user_str(to.cast(), size, address as *const _) >= 0 }
}
