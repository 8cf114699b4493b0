//! Turns numbers and untrusted names into text of a known width.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// A duration with three digits and its unit: `812 ns`, `12.3 µs`, `4.56 ms`, `1.23 s`, `2 m 05 s`, `1 h 02 m`.
pub(crate) fn duration(ns: u64, ascii: bool) -> String {
    let micro = if ascii { "us" } else { "µs" };
    let value = ns as f64;
    for (scale, unit, limit) in [(1e3, micro, 1e3), (1e6, "ms", 1e3), (1e9, "s", 60.0)] {
        let scaled = value / scale;
        // What would be rounded up to the next unit belongs there.
        if ns < 1000 {
            return if ns == 0 { "0 s".to_owned() } else { format!("{ns} ns") };
        } else if scaled < limit * 0.9995 {
            let decimals = if scaled < 9.995 { 2 } else { usize::from(scaled < 99.95) };
            return format!("{scaled:.decimals$} {unit}");
        }
    }
    let seconds = ns.saturating_add(500_000_000) / 1_000_000_000;
    if seconds < 3600 {
        format!("{} m {:02} s", seconds / 60, seconds % 60)
    } else {
        format!("{} h {:02} m", seconds / 3600, seconds % 3600 / 60)
    }
}

/// Such a duration so that units stand below each other in a right-aligned column.
pub(crate) fn duration_cell(ns: u64, ascii: bool) -> String {
    let mut cell = duration(ns, ascii);
    if cell.ends_with(" s") && !cell.contains(" m ") {
        cell.push(' ');
    }
    cell
}

/// Columns that it takes.
pub(crate) fn width(text: &str) -> usize {
    text.width()
}

/// The name without what could steer a terminal or turn the writing direction.
pub(crate) fn clean(name: &str, ascii: bool) -> String {
    let steers = |character: char| {
        character.is_control()
            || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let replacement = if ascii { '?' } else { '\u{fffd}' };
    name.chars()
        .map(
            |character| {
                if steers(character) || (ascii && !character.is_ascii()) { replacement } else { character }
            },
        )
        .collect()
}

/// The text in at most `columns`, its end cut.
pub(crate) fn fit(text: &str, columns: usize, ascii: bool) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let ellipsis = if ascii { "~" } else { "…" };
    let mut out = String::new();
    let mut left = columns.saturating_sub(1);
    for character in text.chars() {
        let Some(rest) = left.checked_sub(character.width().unwrap_or(0)) else { break };
        left = rest;
        out.push(character);
    }
    if columns > 0 {
        out.push_str(ellipsis);
    }
    out
}

/// The text filled up to `columns` at its end, cut if it is longer.
pub(crate) fn left(text: &str, columns: usize, ascii: bool) -> String {
    let mut out = fit(text, columns, ascii);
    out.extend(std::iter::repeat_n(' ', columns.saturating_sub(width(&out))));
    out
}

/// The text filled up to `columns` at its front.
pub(crate) fn right(text: &str, columns: usize) -> String {
    let mut out = " ".repeat(columns.saturating_sub(width(text)));
    out.push_str(text);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_have_three_digits_and_a_unit() {
        let cases = [
            (0, "0 s"),
            (7, "7 ns"),
            (999, "999 ns"),
            (1_000, "1.00 µs"),
            (12_340, "12.3 µs"),
            (999_400, "999 µs"),
            (999_600, "1.00 ms"),
            (123_456_789, "123 ms"),
            (1_234_567_890, "1.23 s"),
            (59_940_000_000, "59.9 s"),
            (59_990_000_000, "1 m 00 s"),
            (125_000_000_000, "2 m 05 s"),
            (3_720_000_000_000, "1 h 02 m"),
        ];
        for (ns, text) in cases {
            assert_eq!(duration(ns, false), text, "{ns}");
        }
        assert_eq!(duration(1_000, true), "1.00 us");
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[2J\nb\u{202e}c\u{9b}", false), "a\u{fffd}[2J\u{fffd}b\u{fffd}c\u{fffd}");
        assert_eq!(clean("Körper", true), "K?rper");
    }

    #[test]
    fn wide_characters_are_cut_at_columns() {
        assert_eq!(fit("箱箱箱", 5, false), "箱箱…");
        assert_eq!(fit("箱箱箱", 6, false), "箱箱箱");
        assert_eq!(fit("abcdef", 4, true), "abc~");
    }

    proptest! {
        #[test]
        fn fitted_text_fits(text in "\\PC*", columns in 0_usize..40) {
            prop_assert!(width(&fit(&text, columns, false)) <= columns);
        }

        #[test]
        fn durations_fit_their_column(ns in 0..86_400_000_000_000_u64) {
            prop_assert!(width(&duration_cell(ns, false)) <= 9);
        }
    }
}
