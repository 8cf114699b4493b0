//! Waits for descriptors. Here, because those of perf's buffers are raw, and only this folder may be `unsafe`.

use std::os::fd::RawFd;
use std::time::Duration;

/// Waits until one of the descriptors is readable or `timeout` is over. An interrupted wait is as good as one that is
/// over.
pub fn readable(descriptors: impl Iterator<Item = RawFd>, timeout: Duration) {
    let mut polled: Vec<libc::pollfd> =
        descriptors.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    let count = libc::nfds_t::try_from(polled.len()).unwrap_or(0);
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `count` entries; the kernel checks each descriptor and reports a bad one in `revents`.
    unsafe { libc::poll(polled.as_mut_ptr(), count, timeout) };
}
