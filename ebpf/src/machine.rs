//! What differs between the machines whose workers are observed: where arguments, results and stack pointers are.
//!
//! Each module has the same names. Which one is compiled in, the agent's build script says by its own target.
//!
//! A register is read volatile: the verifier allows no computed place in the context, and the compiler would like to
//! choose between two registers by choosing their offset.

#[cfg(bpf_target_arch = "aarch64")]
mod a64;
#[cfg(bpf_target_arch = "aarch64")]
pub use a64::*;

#[cfg(bpf_target_arch = "x86_64")]
mod x86;
#[cfg(bpf_target_arch = "x86_64")]
pub use x86::*;

/// Puts a register where the fetches look for it.
#[inline(always)]
fn put(registers: *mut u64, number: usize, value: u64) {
    // SAFETY: the mask keeps the index inside the array.
    unsafe { *registers.add(number & 15) = value };
}
