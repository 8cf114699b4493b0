//! Turns "which probe, which edge, where is the frame" into the 64 bits that a site carries.
//!
//! The kernel hands the cookie of the site that was hit to the program, so nothing has to be looked up to know
//! which probe fired and how to find the frame: the *slot* (the address at which the return address lies, equal to
//! the stack pointer at the function's first instruction and at its `ret`) is `register + distance`.
//!
//! | bits | meaning |
//! |---|---|
//! | 0–15 | index of the probe program in the `PROBES` map |
//! | 16–19 | [`Edge`] |
//! | 20 | base register of the slot: 0 = stack pointer, 1 = frame pointer |
//! | 21–25 | register that holds the return value at this site, 31 = not final here |
//! | 32–63 | distance in bytes from the base register to the slot, signed |

/// What a site marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Edge {
    /// The function was entered.
    Enter = 0,
    /// The function of this probe is returning.
    Leave = 1,
    /// A function that other callers use too is returning; it ends only operations that reached it by a tail call,
    /// that is, whose slot is this one.
    TailLeave = 2,
}

impl Edge {
    /// The edge for its number, as the cookie carries it.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Enter),
            1 => Some(Self::Leave),
            2 => Some(Self::TailLeave),
            _ => None,
        }
    }
}

/// The register that the slot is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Base {
    /// The stack pointer.
    StackPointer = 0,
    /// The frame pointer (functions with `alloca` or over-aligned locals).
    FramePointer = 1,
}

/// Number that says "the return value is not final at this site".
pub const RETURN_NOT_FINAL: u8 = 31;

/// The 64 bits a site carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Cookie(pub u64);

impl Cookie {
    /// Packs a cookie. `distance` is in bytes; `return_register` is the x86 encoding (0 = rax … 15 = r15) or
    /// [`RETURN_NOT_FINAL`].
    #[must_use]
    #[allow(clippy::cast_sign_loss, reason = "the distance is stored as its two's complement bits")]
    pub const fn new(probe: u16, edge: Edge, base: Base, return_register: u8, distance: i32) -> Self {
        Self(
            probe as u64
                | (edge as u64) << 16
                | (base as u64) << 20
                | ((return_register & 31) as u64) << 21
                | (distance as u32 as u64) << 32,
        )
    }

    /// Index of the probe program in the `PROBES` map.
    #[must_use]
    pub const fn probe(self) -> u32 {
        (self.0 & 0xffff) as u32
    }

    /// The edge as its number; see [`Edge::from_bits`].
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "four bits are kept")]
    pub const fn edge_bits(self) -> u8 {
        (self.0 >> 16 & 0xf) as u8
    }

    /// The register that the slot is counted from.
    #[must_use]
    pub const fn base(self) -> Base {
        if self.0 >> 20 & 1 == 0 { Base::StackPointer } else { Base::FramePointer }
    }

    /// The register that holds the return value here, x86 encoding, or [`RETURN_NOT_FINAL`].
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "five bits are kept")]
    pub const fn return_register(self) -> u8 {
        (self.0 >> 21 & 31) as u8
    }

    /// Bytes from the base register to the slot.
    #[must_use]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        reason = "the upper half is an i32"
    )]
    pub const fn distance(self) -> i64 {
        (self.0 >> 32) as u32 as i32 as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_comes_back_as_it_was_packed() {
        for probe in [0, 1, 77, u16::MAX] {
            for edge in [Edge::Enter, Edge::Leave, Edge::TailLeave] {
                for base in [Base::StackPointer, Base::FramePointer] {
                    for register in [0, 15, RETURN_NOT_FINAL] {
                        for distance in [0, 8, -8, 0x1234_5678, i32::MIN, i32::MAX] {
                            let cookie = Cookie::new(probe, edge, base, register, distance);
                            assert_eq!(cookie.probe(), u32::from(probe));
                            assert_eq!(Edge::from_bits(cookie.edge_bits()), Some(edge));
                            assert_eq!(cookie.base(), base);
                            assert_eq!(cookie.return_register(), register);
                            assert_eq!(cookie.distance(), i64::from(distance));
                        }
                    }
                }
            }
        }
    }
}
