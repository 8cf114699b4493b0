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

/// Student's t, of which 97.5 % are below, by degrees of freedom from one on; with more it is little less than the last.
const STUDENT: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// The ratio of two samples' geometric means, second to first, with Student's interval for two samples of one variance.
/// `None` if there are less than two values in one, or a value is no positive number.
pub(crate) fn ratio_of_means(first: &[f64], second: &[f64]) -> Option<Estimate> {
    let logarithms = |values: &[f64]| -> Option<(f64, f64)> {
        let logarithms: Vec<f64> = values.iter().map(|value| value.ln()).collect();
        let mean = logarithms.iter().sum::<f64>() / logarithms.len() as f64;
        let squares = logarithms.iter().map(|value| (value - mean).powi(2)).sum();
        (values.len() >= 2 && mean.is_finite()).then_some((mean, squares))
    };
    let ((first_mean, first_squares), (second_mean, second_squares)) =
        (logarithms(first)?, logarithms(second)?);
    let freedom = first.len() + second.len() - 2;
    let variance = (first_squares + second_squares) / freedom as f64;
    let error = (variance * (1.0 / first.len() as f64 + 1.0 / second.len() as f64)).sqrt();
    let within = STUDENT.get(freedom - 1).or(STUDENT.last())? * error;
    let ratio = second_mean - first_mean;
    Some(Estimate { median: ratio.exp(), low: (ratio - within).exp(), high: (ratio + within).exp() })
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
    fn the_ratio_of_means_has_students_interval() {
        // Means of logarithms 0 and 0.1, of each sample the variance 0.02; 2.776 * sqrt(0.02 * (1 / 3 + 1 / 3)) is 0.3206.
        let sample = |mean: f64| [mean - 0.141_421, mean, mean + 0.141_421].map(f64::exp);
        let Estimate { median, low, high } = ratio_of_means(&sample(0.0), &sample(0.1)).unwrap();
        for (found, expected) in [(median, 0.1), (low, 0.1 - 0.320_55), (high, 0.1 + 0.320_55)] {
            assert!((found.ln() - expected).abs() < 1e-4, "{found} {expected}");
        }
        assert_eq!(ratio_of_means(&[1.0], &[1.0, 2.0]), None);
        assert_eq!(ratio_of_means(&[0.0, 1.0], &[1.0, 2.0]), None);
    }

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
