//! Turns a code object's location table (CPython 3.11 and later) and a place in its code into a line.
//!
//! The table is a sequence of entries, each for some instructions; its form is in CPython's `InternalDocs/code_objects.md`.
//! Damaged tables give the line before the damage, or none.

/// The line of the instruction at `offset` bytes into the code; `None`: it has none.
pub(super) fn line_at(table: &[u8], first_line: i64, offset: u64) -> Option<u32> {
    let (mut table, mut line, mut end) = (table.iter().copied(), first_line, 0_u64);
    loop {
        let head = table.next()?;
        let length = u64::from(head & 7) + 1;
        let kind = head >> 3 & 15;
        let mut has_line = true;
        match kind {
            // Columns in one byte; in two, with a line of 0, 1 or 2 further on.
            0..=9 => {
                table.next()?;
            }
            10..=12 => {
                line = line.checked_add(i64::from(kind) - 10)?;
                table.next()?;
                table.next()?;
            }
            13 => line = line.checked_add(signed(&mut table)?)?,
            14 => {
                line = line.checked_add(signed(&mut table)?)?;
                for _ in 0..3 {
                    number(&mut table)?;
                }
            }
            _ => has_line = false,
        }
        end += 2 * length;
        if offset < end {
            return has_line.then(|| u32::try_from(line).ok()).flatten();
        }
    }
}

/// Six bits a byte, the lowest first; bit 6 says that more follow.
fn number(bytes: &mut impl Iterator<Item = u8>) -> Option<i64> {
    let mut value = 0_i64;
    for shift in (0..60).step_by(6) {
        let byte = bytes.next()?;
        value |= i64::from(byte & 63) << shift;
        if byte & 64 == 0 {
            return Some(value);
        }
    }
    None
}

/// The sign is the lowest bit.
fn signed(bytes: &mut impl Iterator<Item = u8>) -> Option<i64> {
    let value = number(bytes)?;
    Some(if value & 1 == 1 { -(value >> 1) } else { value >> 1 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `compile("a = 1\n\nb = [\n  f(),\n  2]\nc = 3", …).co_linetable` of CPython 3.11.7, with the lines that
    /// `co_lines()` of the same code object gives.
    const TABLE: &[u8] = &[
        0xf0, 0x03, 0x01, 0x01, 0x01, 0xd8, 0x04, 0x05, 0x80, 0x01, 0xf0, 0x06, 0x00, 0x03, 0x04, 0x80, 0x21,
        0x81, 0x23, 0x84, 0x23, 0xd8, 0x02, 0x03, 0xf0, 0x05, 0x02, 0x05, 0x05, 0x80, 0x01, 0xf0, 0x06, 0x00,
        0x05, 0x06, 0x80, 0x01, 0x80, 0x01, 0x80, 0x01,
    ];
    /// End of a range in bytes, and its line.
    const RANGES: &[(u64, u32)] = &[(2, 0), (6, 1), (24, 4), (26, 5), (30, 3), (38, 6)];

    #[test]
    fn a_place_in_the_code_has_its_line() {
        let mut offset = 0;
        for (end, line) in RANGES {
            while offset < *end {
                assert_eq!(line_at(TABLE, 1, offset), Some(*line), "at {offset}");
                offset += 2;
            }
        }
        assert_eq!(line_at(TABLE, 1, offset), None);
    }

    proptest! {
        #[test]
        fn no_table_makes_it_panic(table in proptest::collection::vec(any::<u8>(), 0..200), first in any::<i64>(), at in any::<u64>()) {
            let _ = line_at(&table, first, at);
        }
    }
}
