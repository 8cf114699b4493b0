//! Turns a place among bytes into the number, text or bytes that lie there; what is not there is none.

/// Longest symbol name that is looked at, in bytes; Eigen's reach tens of thousands.
pub(super) const LONGEST_NAME: usize = 1 << 16;

/// The bytes of a range; none unless all of it is there.
pub(super) fn slice(bytes: &[u8], at: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(at).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(length).ok()?)?)
}

fn array<const N: usize>(bytes: &[u8], at: u64) -> Option<[u8; N]> {
    bytes.get(usize::try_from(at).ok()?..)?.first_chunk().copied()
}

pub(super) fn u16_at(bytes: &[u8], at: u64) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: u64) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: u64) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

#[allow(clippy::cast_possible_truncation, reason = "the lower half is meant")]
pub(super) fn low32(word: u64) -> u32 {
    word as u32
}

/// The string at a place of the file, without its zero; none if it does not end or is absurdly long.
pub(super) fn string_at(bytes: &[u8], at: u64) -> Option<&[u8]> {
    let rest = bytes.get(usize::try_from(at).ok()?..)?;
    let rest = rest.get(..rest.len().min(LONGEST_NAME + 1)).unwrap_or(rest);
    rest.get(..rest.iter().position(|byte| *byte == 0)?)
}
