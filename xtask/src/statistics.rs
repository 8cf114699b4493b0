//! Turns paired measurements into a median and how sure it is.

/// Resamples of the bootstrap.
const RESAMPLES: usize = 10_000;

/// A median with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    /// Of the sample.
    pub(crate) median: f64,
    /// 2.5 % of the bootstrapped medians are below.
    pub(crate) low: f64,
    /// 2.5 % are above.
    pub(crate) high: f64,
}

/// The median of `values`, with its interval by the percentile bootstrap. The same values give the same answer.
/// `None` for an empty sample.
pub(crate) fn estimate(values: &[f64]) -> Option<Estimate> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut medians = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        let resample: Vec<f64> =
            (0..values.len()).filter_map(|_| values.get(random.below(values.len())).copied()).collect();
        medians.push(median(&resample)?);
    }
    medians.sort_by(f64::total_cmp);
    let low = *medians.get(RESAMPLES / 40)?;
    let high = *medians.get(RESAMPLES - 1 - RESAMPLES / 40)?;
    Some(Estimate { median: median(values)?, low, high })
}

/// The middle value, or the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get(sorted.len().checked_sub(1)? / 2)?;
    Some(f64::midpoint(lower, upper))
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap_or(0);
        high % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn the_interval_holds_the_median_and_shrinks_to_it_without_noise() {
        assert_eq!(estimate(&[1.5; 9]), Some(Estimate { median: 1.5, low: 1.5, high: 1.5 }));
        let noisy: Vec<f64> = (0..21).map(|index| 1.0 + f64::from(index) / 100.0).collect();
        let found = estimate(&noisy).unwrap();
        assert!(found.low < found.median && found.median < found.high, "{found:?}");
        assert!(found.low > 1.02 && found.high < 1.18, "{found:?}");
        assert_eq!(estimate(&[]), None);
    }

    #[test]
    fn resampling_reaches_every_value() {
        let mut random = Random(1);
        let mut seen = [false; 7];
        for _ in 0..1_000 {
            seen[random.below(7)] = true;
        }
        assert_eq!(seen, [true; 7]);
    }
}
