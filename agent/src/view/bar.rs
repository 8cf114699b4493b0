//! Turns a span of time into a bar of block characters at its place on a scale.

/// What a bar is drawn on, and with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Canvas {
    /// Columns of the whole scale.
    pub(super) columns: usize,
    /// Without block characters.
    pub(super) ascii: bool,
    /// Shaded: the span is not filled by one operation.
    pub(super) folded: bool,
}

/// The bar of a span, begin and end counted from the scale's begin; as wide as the canvas. However short, it is seen.
pub(super) fn draw((start_ns, end_ns): (u64, u64), whole_ns: u64, canvas: &Canvas) -> String {
    let eighths = canvas.columns.saturating_mul(8);
    let at = |ns: u64| -> usize {
        let part = u128::from(ns) * eighths as u128 / u128::from(whole_ns.max(1));
        usize::try_from(part).unwrap_or(eighths).min(eighths)
    };
    let from = at(start_ns).min(eighths.saturating_sub(1));
    let to = at(end_ns).max(from + 1);
    (0..canvas.columns).map(|column| cell((from, to), column * 8, canvas)).collect()
}

/// The character of eight eighths that begin at `left`.
fn cell((from, to): (usize, usize), left: usize, canvas: &Canvas) -> char {
    let right = left + 8;
    let Some(filled @ 1..) = to.min(right).checked_sub(from.max(left)) else { return ' ' };
    match (canvas.ascii, canvas.folded) {
        (true, true) => ':',
        (true, false) if filled > 4 => '=',
        (true, false) => '-',
        (false, true) => '░',
        // Blocks fill from the left; of those that fill from the right there are two.
        (false, false) => match (from > left && to >= right, filled) {
            (true, 7..) | (false, 8..) => '█',
            (true, 3..7) => '▐',
            (true, _) => '▕',
            (false, 7) => '▉',
            (false, 6) => '▊',
            (false, 5) => '▋',
            (false, 4) => '▌',
            (false, 3) => '▍',
            (false, 2) => '▎',
            (false, _) => '▏',
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CANVAS: Canvas = Canvas { columns: 4, ascii: false, folded: false };

    #[test]
    fn bars_stand_at_their_place_to_an_eighth() {
        let bar = |start, end| draw((start, end), 32, &CANVAS);
        assert_eq!(bar(0, 32), "████");
        assert_eq!(bar(0, 3), "▍   ");
        assert_eq!(bar(8, 20), " █▌ ");
        assert_eq!(bar(4, 16), "▐█  ");
        assert_eq!(bar(7, 9), "▕▏  ");
        assert_eq!(bar(32, 32), "   ▕");
        assert_eq!(draw((8, 20), 32, &Canvas { folded: true, ..CANVAS }), " ░░ ");
        assert_eq!(draw((8, 20), 32, &Canvas { ascii: true, ..CANVAS }), " =- ");
    }

    proptest! {
        #[test]
        fn every_bar_is_seen_and_as_wide_as_its_canvas(
            start: u64, end: u64, whole: u64, columns in 1_usize..60, ascii: bool, folded: bool,
        ) {
            let bar = draw((start, end), whole, &Canvas { columns, ascii, folded });
            prop_assert_eq!(bar.chars().count(), columns);
            prop_assert!(!bar.trim().is_empty());
            prop_assert!(!bar.trim().contains(' '));
        }
    }
}
