//! Turns bytes into kernel records and back. Its `unsafe` is the reinterpretation of plain bytes, nothing else.

use cadscope_common::aggregate::{Aggregate, AggregateKey};
use cadscope_common::open::{Capture, Thread};
use cadscope_common::probe::{ProbeProgram, TallyKey};
use cadscope_common::record::{Exception, Life, Operation, OutOfMemory, ProcessKey, Resident};
use cadscope_common::settings::Settings;
use cadscope_common::tls::Exchange;

/// A type that is valid for every bit pattern and has no implicit padding.
///
/// # Safety
/// The type is `repr(C)`, made of integers and arrays of them, with explicit padding.
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($type:ty),+) => {
        $(
            // SAFETY: `repr(C)`, integers only, padding explicit; cadscope-common asserts the sizes.
            unsafe impl Plain for $type {}
        )+
    };
}
plain!(
    Aggregate,
    AggregateKey,
    Capture,
    Thread,
    ProbeProgram,
    ProcessKey,
    Operation,
    Exception,
    Life,
    Resident,
    OutOfMemory,
    Settings,
    TallyKey,
    Exchange
);

/// A plain value as aya's maps take it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Raw<T>(pub T);

// SAFETY: `Plain` promises what aya's `Pod` asks for.
unsafe impl<T: Plain> aya::Pod for Raw<T> {}

/// The value at the start of `bytes`; `None` if there are too few.
#[must_use]
pub fn read<T: Plain>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: enough bytes, every bit pattern is valid, the read is unaligned.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// The bytes of a value.
#[must_use]
pub fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: no padding, so every byte is initialised; the lifetime is that of the value.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
}
