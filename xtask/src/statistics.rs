//! Turns paired measurements into a median and how sure it is.

/// Resamples of the bootstrap.
const RESAMPLES: usize = 10_000;

/// A median, or what else is found in a sample, with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    /// Of the sample itself.
    pub(crate) median: f64,
    /// 2.5 % of the bootstrapped ones are below.
    pub(crate) low: f64,
    /// 2.5 % are above.
    pub(crate) high: f64,
}

/// The median of `values`, with its interval by the percentile bootstrap. The same values give the same answer.
/// `None` for an empty sample.
pub(crate) fn estimate(values: &[f64]) -> Option<Estimate> {
    let of = |chosen: &[usize]| {
        median(&chosen.iter().filter_map(|index| values.get(*index).copied()).collect::<Vec<_>>())
    };
    resampled(values.len(), RESAMPLES, of)
}

/// What `of` finds in all of `count` (it gets their indices), and between what it is in so many samples of them.
/// `None` if `of` says so.
pub(crate) fn resampled(
    count: usize,
    resamples: usize,
    of: impl Fn(&[usize]) -> Option<f64>,
) -> Option<Estimate> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut found = Vec::with_capacity(resamples);
    for _ in 0..resamples {
        let chosen: Vec<usize> = (0..count).map(|_| random.below(count)).collect();
        found.push(of(&chosen)?);
    }
    found.sort_by(f64::total_cmp);
    let low = *found.get(resamples / 40)?;
    let high = *found.get(resamples.checked_sub(1 + resamples / 40)?)?;
    Some(Estimate { median: of(&(0..count).collect::<Vec<_>>())?, low, high })
}

/// The value that a quarter of them are below.
pub(crate) fn lower_quartile(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 4).copied()
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
        assert_eq!(lower_quartile(&[5.0, 1.0, 4.0, 2.0, 3.0]), Some(2.0));
        assert_eq!(lower_quartile(&[]), None);
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
