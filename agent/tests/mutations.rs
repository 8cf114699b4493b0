//! Promise: no input makes a parser panic, hang, or take memory out of proportion to it.
//!
//! Real inputs, and those that the fuzzer found worth keeping (`tests/fuzz/corpus`), are given to what reads them in the agent as
//! they are, then changed in seeded, so repeatable, ways. A few seconds a target unless `CADSCOPE_FUZZ_SECONDS` says more; a
//! failure names the target and the seed. `cargo xtask fuzz` gives the same targets inputs that coverage guides.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test: out of bounds is a failure, and each target is one call"
)]

use std::time::{Duration, Instant};

#[path = "mutations/bounds.rs"]
mod bounds;
#[path = "mutations/targets.rs"]
mod targets;

use targets::Target;

/// Seconds a target.
const SECONDS: u64 = 2;

/// xorshift64*: the same numbers from the same seed on any machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.next() % (most.max(1) as u64)).unwrap_or(0)
    }
}

/// Changes an input in one to sixteen places, near its begin as often as anywhere.
fn mutate(input: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(16) {
        let reach = if random.below(2) == 0 { bytes.len().min(4096) } else { bytes.len() };
        let at = random.below(reach);
        match random.below(7) {
            0 => bytes.truncate(at),
            1 => {
                let extra: Vec<u8> = (0..random.below(64)).map(|_| random.next().to_le_bytes()[0]).collect();
                bytes.splice(at..at, extra);
            }
            2 => {
                let from = random.below(bytes.len());
                let part = bytes[from..(from + random.below(256)).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            3 | 4 => {
                let word = [0, 1, u64::MAX, 1 << 31, 1 << 32, 1 << 63, random.next()][random.below(7)];
                let size = [1, 2, 4, 8][random.below(4)];
                for (to, from) in bytes.iter_mut().skip(at).zip(word.to_le_bytes().into_iter().take(size)) {
                    *to = from;
                }
            }
            _ => {
                let bit = 1 << random.below(8);
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= bit);
            }
        }
    }
    bytes
}

/// Gives a target its inputs as they are, then changed for a while.
fn torment(target: &Target, seconds: u64) {
    let (name, mut inputs) = (target.name, target.seeds.clone());
    inputs.extend(targets::kept(name));
    assert!(inputs.iter().any(|input| input.len() <= target.most_bytes), "{name}: the fuzzer has no seed");
    for (at, input) in inputs.iter().enumerate() {
        bounds::judge(&target.read, input).unwrap_or_else(|wrong| panic!("{name}, input {at}: {wrong}"));
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut seed = 1_u64;
    while Instant::now() < end {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let input = mutate(&inputs[random.below(inputs.len())], &mut random);
        bounds::judge(&target.read, &input).unwrap_or_else(|wrong| panic!("{name}, seed {seed}: {wrong}"));
        seed += 1;
    }
    eprintln!("{name}: {} inputs kept, {} changed", inputs.len(), seed - 1);
}

#[test]
fn no_input_makes_a_parser_panic_hang_or_grow() {
    let seconds = std::env::var("CADSCOPE_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let only = std::env::var("CADSCOPE_FUZZ_ONLY").unwrap_or_default();
    let targets = targets::all();
    let known = only.is_empty() || targets.iter().any(|target| only == target.name);
    assert!(known, "CADSCOPE_FUZZ_ONLY={only} is no target");
    bounds::count_panics();
    for target in targets.iter().filter(|target| only.is_empty() || only == target.name) {
        torment(target, seconds.unwrap_or(SECONDS));
    }
}
