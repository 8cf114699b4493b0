//! What the kernel side and the user side agree on, byte for byte.
//!
//! Everything here is `repr(C)`, made of fixed-size integers with explicit padding, valid for every bit
//! pattern, and checked for its size at compile time. No dependency, no `unsafe`, no `std`.
#![no_std]
#![forbid(unsafe_code)]

pub mod aggregate;
pub mod cookie;
pub mod open;
pub mod probe;
pub mod record;
pub mod settings;
pub mod tls;
