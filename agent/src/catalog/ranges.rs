//! Turns counts and sizes into the ranges that labels name them by.
//!
//! The numbers are padded, so that sorting the names sorts the ranges: a dashboard needs no more than `sort`.
//! `solids_range`, `doc_complexity` and `lcs_count_range` use the ranges of a count, `file_size_range` those of a size.

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

/// The ranges of a size: last byte count in the range, name.
pub const SIZE_RANGES: [(u64, &str); 6] = [
    ((1 << 10) - 1, "00-below-1KiB"),
    ((100 << 10) - 1, "01-1KiB-100KiB"),
    ((1 << 20) - 1, "02-100KiB-1MiB"),
    ((10 << 20) - 1, "03-1MiB-10MiB"),
    ((100 << 20) - 1, "04-10MiB-100MiB"),
    (u64::MAX, "05-100MiB+"),
];

/// The range that a size falls in.
#[must_use]
pub fn of_bytes(bytes: u64) -> &'static str {
    SIZE_RANGES.iter().find(|(last, _)| bytes <= *last).map_or("05-100MiB+", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_their_ranges_do() {
        assert!(COUNT_RANGES.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1));
        assert!(SIZE_RANGES.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1));
    }

    #[test]
    fn a_size_falls_in_the_range_that_names_it() {
        let named = [0, 1023, 1024, 102_400, 1 << 20, (100 << 20) - 1, 100 << 20].map(of_bytes).to_vec();
        assert_eq!(
            named,
            [
                "00-below-1KiB",
                "00-below-1KiB",
                "01-1KiB-100KiB",
                "02-100KiB-1MiB",
                "03-1MiB-10MiB",
                "04-10MiB-100MiB",
                "05-100MiB+"
            ]
        );
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
