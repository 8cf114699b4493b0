//! What is kept of calls that get no record of their own.

/// Names a count: calls of one probe in one process, of about the same duration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct AggregateKey {
    /// The process.
    pub pid: u32,
    /// Index of the probe program.
    pub probe: u32,
    /// See [`bucket_of`].
    pub bucket: u16,
    /// 1 = inside a call of the same group.
    pub nested: u8,
    /// Zero.
    pub padding: [u8; 5],
}

/// A count. The mean of its calls is exact, so that what is made of it keeps the sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Aggregate {
    /// Calls that returned.
    pub count: u64,
    /// Nanoseconds they took together.
    pub sum_ns: u64,
}

/// Calls whose durations differ by less than a quarter share a bucket: two bits behind the first one.
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "at most 255")]
pub const fn bucket_of(duration_ns: u64) -> u16 {
    if duration_ns < 4 {
        return duration_ns as u16;
    }
    let exponent = 63 - duration_ns.leading_zeros();
    ((exponent << 2) | (duration_ns >> (exponent - 2)) as u32 & 3) as u16
}

const _: () = assert!(size_of::<AggregateKey>() == 16);
const _: () = assert!(size_of::<Aggregate>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_at_most_a_quarter_wide_and_buckets_keep_the_order() {
        let mut begin = 4_u64;
        let mut last = bucket_of(begin);
        for duration in 4..100_000 {
            let bucket = bucket_of(duration);
            assert!(bucket >= last);
            if bucket != last {
                (begin, last) = (duration, bucket);
            }
            assert!(duration * 4 < begin * 5, "{begin} and {duration}");
        }
        assert_eq!(bucket_of(u64::MAX), 255);
    }
}
