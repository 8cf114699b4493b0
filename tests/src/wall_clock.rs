//! Turns the machine's wall clock forward for a moment.

use anyhow::Result;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

/// The wall clock, so many seconds ahead; right again when it is dropped.
#[derive(Debug)]
pub struct Ahead(i64);

impl Ahead {
    /// Sets it.
    ///
    /// # Errors
    /// The kernel does not allow it.
    pub fn by(seconds: i64) -> Result<Self> {
        step(seconds)?;
        Ok(Self(seconds))
    }
}

fn step(seconds: i64) -> Result<()> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
    Ok(clock_settime(ClockId::CLOCK_REALTIME, now + TimeSpec::new(seconds, 0))?)
}

impl Drop for Ahead {
    fn drop(&mut self) {
        step(-self.0).ok();
    }
}
