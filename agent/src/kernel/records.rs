//! Turns the ring buffer into a stream of records, as bytes.

use std::os::fd::{AsRawFd, RawFd};

use aya::maps::{MapData, RingBuf};
use cadscope_common::settings::RING_BYTES;

/// More records than the buffer has room for: the smallest has 24 bytes, and 8 before it.
pub const MOST_RECORDS: u32 = RING_BYTES / 32;

/// The record stream.
pub struct Records(RingBuf<MapData>);

impl Records {
    pub(super) const fn new(ring: RingBuf<MapData>) -> Self {
        Self(ring)
    }

    /// Hands the next record to `read`; `None` if there is none yet. Its place in the buffer is free afterwards.
    pub fn next<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.0.next().map(|record| read(&record))
    }

    /// The descriptor that becomes readable when a record comes that cannot wait.
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
