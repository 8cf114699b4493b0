//! Turns kernel time (CLOCK_MONOTONIC, nanoseconds) into wall time: the only place where that is done.
//!
//! The distance between the two clocks changes: NTP slews the wall clock, an administrator sets it, a suspended machine
//! adds to it. So the distance is noted again and again, and a time gets the distance that was in force at that time.
//! An interval is converted at its begin and keeps its length, whatever the wall clock did meanwhile.

use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// Notes that are kept. When there are more, the one goes whose distance differs least from that before it: slewing
/// is smoothed, steps stay.
const NOTES: usize = 64;
/// A change of the distance that is worth a note.
const CHANGE_NS: i64 = 50_000;
/// Two readings of CLOCK_MONOTONIC around one of the wall clock lie closer together than this, or it is tried again.
const GAP_NS: u64 = 20_000;

/// Nanoseconds of CLOCK_MONOTONIC, the clock of all records.
#[must_use]
pub fn now_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_MONOTONIC)
}

fn nanoseconds(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |now| {
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec()).unwrap_or(0))
    })
}

/// From a time on, the wall clock was so far ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note {
    from_ns: u64,
    ahead_ns: i64,
}

/// How far the wall clock was ahead of CLOCK_MONOTONIC, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WallClock {
    /// Sorted by time; never empty.
    notes: Vec<Note>,
}

impl WallClock {
    /// A clock that knows nothing but one pair of readings, nanoseconds.
    #[must_use]
    pub fn new(monotonic_ns: u64, wall_ns: u64) -> Self {
        Self { notes: vec![Note { from_ns: monotonic_ns, ahead_ns: ahead(monotonic_ns, wall_ns) }] }
    }

    /// The machine's clocks as they are now.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let (monotonic_ns, wall_ns) = readings();
        Self::new(monotonic_ns, wall_ns)
    }

    /// Reads both clocks again.
    pub fn look(&mut self) {
        let (monotonic_ns, wall_ns) = readings();
        self.note(monotonic_ns, wall_ns);
    }

    /// Takes a later pair of readings.
    pub fn note(&mut self, monotonic_ns: u64, wall_ns: u64) {
        let ahead_ns = ahead(monotonic_ns, wall_ns);
        let last = self.notes.last().map_or(0, |note| note.ahead_ns);
        if ahead_ns.abs_diff(last) < CHANGE_NS.unsigned_abs() {
            return;
        }
        self.notes.push(Note { from_ns: monotonic_ns, ahead_ns });
        if self.notes.len() > NOTES {
            // Never the first and never the last.
            let inner = self.notes.windows(3).map(|notes| match notes {
                [before, note, _] => note.ahead_ns.abs_diff(before.ahead_ns),
                _ => u64::MAX,
            });
            if let Some((least, _)) = inner.enumerate().min_by_key(|(_, step)| *step) {
                self.notes.remove(least + 1);
            }
        }
    }

    /// The wall time of a kernel time, as a clock on the wall showed it then.
    #[must_use]
    pub fn at(&self, monotonic_ns: u64) -> SystemTime {
        let later = self.notes.partition_point(|note| note.from_ns <= monotonic_ns);
        let note = self.notes.get(later.saturating_sub(1));
        let ahead_ns = note.map_or(0, |note| note.ahead_ns);
        let wall_ns = monotonic_ns.checked_add_signed(ahead_ns).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_nanos(wall_ns)
    }

    /// Begin and end of an interval: its length is that of the kernel's clock.
    #[must_use]
    pub fn interval(&self, start_ns: u64, end_ns: u64) -> (SystemTime, SystemTime) {
        let start = self.at(start_ns);
        (start, start + Duration::from_nanos(end_ns.saturating_sub(start_ns)))
    }
}

fn ahead(monotonic_ns: u64, wall_ns: u64) -> i64 {
    i64::try_from(i128::from(wall_ns) - i128::from(monotonic_ns)).unwrap_or(0)
}

/// CLOCK_MONOTONIC and CLOCK_REALTIME at (nearly) the same moment.
fn readings() -> (u64, u64) {
    let mut best = (u64::MAX, (0, 0));
    for _ in 0..8 {
        let before = now_ns();
        let wall = nanoseconds(ClockId::CLOCK_REALTIME);
        let gap = now_ns().saturating_sub(before);
        if gap < best.0 {
            best = (gap, (before + gap / 2, wall));
        }
        if gap < GAP_NS {
            break;
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000_000_000;

    fn since_epoch(time: SystemTime) -> u64 {
        u64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos()).unwrap()
    }

    #[test]
    fn a_time_gets_the_distance_that_was_in_force() {
        let mut clock = WallClock::new(1_000, 50 * HOUR);
        clock.note(HOUR, 51 * HOUR - 1_000);
        clock.note(HOUR + 10, 52 * HOUR);
        assert_eq!(since_epoch(clock.at(500)), 50 * HOUR - 500);
        assert_eq!(since_epoch(clock.at(HOUR)), 51 * HOUR - 1_000);
        assert_eq!(since_epoch(clock.at(HOUR + 20)), 52 * HOUR + 10);
        let (start, end) = clock.interval(HOUR, HOUR + 20);
        assert_eq!(end.duration_since(start).unwrap(), Duration::from_nanos(20));
    }

    #[test]
    fn a_clock_that_is_set_back_stays_a_clock() {
        let mut clock = WallClock::new(2 * HOUR, HOUR);
        clock.note(2 * HOUR + 5, 5);
        assert_eq!(since_epoch(clock.at(2 * HOUR + 6)), 6);
        assert_eq!(since_epoch(clock.at(3)), 0);
    }

    #[test]
    fn slewing_never_pushes_a_step_out() {
        let mut clock = WallClock::new(0, HOUR);
        clock.note(1_000, 2 * HOUR);
        for turn in 1..10_000 {
            clock.note(turn * 1_000_000, 2 * HOUR + turn * 1_060_000);
        }
        assert!(clock.notes.len() <= NOTES);
        assert_eq!(since_epoch(clock.at(999)), HOUR + 999);
        assert!(since_epoch(clock.at(1_000)) >= 2 * HOUR);
        let last = 9_999 * 1_000_000;
        assert!(since_epoch(clock.at(last)).abs_diff(2 * HOUR + 9_999 * 1_060_000) <= 60_000);
    }

    proptest::proptest! {
        /// A wall clock that is set again and again, by hours or by some microseconds, ahead and back.
        #[test]
        fn every_reading_is_found_again_whatever_the_wall_clock_did(
            readings in proptest::collection::vec((1_u64..HOUR, -10_000_000_000_000_i64..10_000_000_000_000), 1..60),
            length in 0_u64..HOUR,
        ) {
            let mut clock = WallClock::new(0, 500_000 * HOUR);
            let (mut monotonic, mut wall, mut seen) = (0, 500_000 * HOUR, Vec::new());
            for (passed, step) in readings {
                monotonic += passed;
                wall = (wall + passed).saturating_add_signed(step);
                clock.note(monotonic, wall);
                seen.push((monotonic, wall));
            }
            for (monotonic, wall) in seen {
                proptest::prop_assert!(since_epoch(clock.at(monotonic)).abs_diff(wall) < CHANGE_NS.unsigned_abs());
                let (start, end) = clock.interval(monotonic, monotonic + length);
                proptest::prop_assert_eq!(end.duration_since(start).unwrap(), Duration::from_nanos(length));
            }
        }
    }

    #[test]
    fn now_is_now() {
        let clock = WallClock::of_this_machine();
        let apart = |now: SystemTime| match now.duration_since(clock.at(now_ns())) {
            Ok(later) => later,
            Err(earlier) => earlier.duration(),
        };
        let least = (0..100).map(|_| apart(SystemTime::now())).min().unwrap();
        assert!(least < Duration::from_micros(100), "{least:?}");
    }
}
