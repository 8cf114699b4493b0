//! Turns counts into the ranges that labels name them by.
//!
//! The numbers are padded, so that sorting the names sorts the ranges: a dashboard needs no more than `sort`.
//! `solids_range`, `doc_complexity` and `lcs_count_range` use these.

/// The ranges of a count: last count in the range, name.
pub const COUNT_RANGES: [(u64, &str); 7] = [
    (0, "0000"),
    (1, "0001"),
    (5, "0002-0005"),
    (20, "0006-0020"),
    (100, "0021-0100"),
    (500, "0101-0500"),
    (u64::MAX, "0501+"),
];

/// The range that a count falls in.
#[must_use]
pub fn of_count(count: u64) -> &'static str {
    COUNT_RANGES.iter().find(|(last, _)| count <= *last).map_or("0501+", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_their_ranges_do() {
        assert!(COUNT_RANGES.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1));
    }

    #[test]
    fn a_count_falls_in_the_range_that_names_it() {
        let named: Vec<_> = [0, 1, 2, 5, 6, 20, 21, 100, 101, 500, 501, u64::MAX].map(of_count).to_vec();
        assert_eq!(
            named,
            [
                "0000",
                "0001",
                "0002-0005",
                "0002-0005",
                "0006-0020",
                "0006-0020",
                "0021-0100",
                "0021-0100",
                "0101-0500",
                "0101-0500",
                "0501+",
                "0501+"
            ]
        );
    }
}
