//! Turns the hash tables of a file (`DT_GNU_HASH`, `DT_HASH`) into the few symbols that a name may stand for.

use super::super::bytes::{u32_at, u64_at};
use super::MOST_SYMBOLS;

/// Most symbols of one hash chain; linkers keep them to a handful.
pub(super) const LONGEST_CHAIN: u64 = 1 << 12;

/// The `DT_GNU_HASH` table: bloom filter, buckets, chains.
pub(super) struct GnuHash<'a> {
    bytes: &'a [u8],
    buckets: u64,
    first_symbol: u64,
    bloom_words: u64,
    bloom_shift: u32,
}

impl<'a> GnuHash<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let buckets = u64::from(u32_at(bytes, 0)?);
        let bloom_words = u64::from(u32_at(bytes, 8)?);
        let bloom_shift = u32_at(bytes, 12)?;
        (buckets != 0 && bloom_words.is_power_of_two() && bloom_shift < 32).then_some(())?;
        Some(Self { bytes, buckets, first_symbol: u64::from(u32_at(bytes, 4)?), bloom_words, bloom_shift })
    }

    fn bucket(&self, index: u64) -> Option<u64> {
        u32_at(self.bytes, 16 + self.bloom_words * 8 + index * 4).map(u64::from)
    }

    fn chain(&self, symbol: u64) -> Option<u32> {
        let index = symbol.checked_sub(self.first_symbol)?;
        u32_at(self.bytes, 16 + self.bloom_words * 8 + self.buckets * 4 + index * 4)
    }

    /// Symbols whose hash is the name's.
    pub(super) fn candidates(self, name: &[u8]) -> impl Iterator<Item = u64> + use<'a> {
        let hash = gnu_hash(name);
        let mask = 1_u64 << (hash & 63) | 1_u64 << ((hash >> self.bloom_shift) & 63);
        let word = u64_at(self.bytes, 16 + (u64::from(hash >> 6) & (self.bloom_words - 1)) * 8);
        let start = word
            .filter(|word| word & mask == mask)
            .and_then(|_| self.bucket(u64::from(hash) % self.buckets))
            .filter(|first| *first >= self.first_symbol);
        let mut next = start;
        let end = start.map_or(0, |start| start.saturating_add(LONGEST_CHAIN));
        std::iter::from_fn(move || {
            while let Some(symbol) = next {
                let chained = self.chain(symbol)?;
                next = (chained & 1 == 0 && symbol < end).then_some(symbol + 1);
                if chained | 1 == hash | 1 {
                    return Some(symbol);
                }
            }
            None
        })
    }

    /// How many symbols the table has: the end of the last chain.
    pub(super) fn count(&self) -> Option<u64> {
        let mut last = 0;
        for index in 0..self.buckets.min(MOST_SYMBOLS) {
            last = last.max(self.bucket(index)?);
        }
        if last < self.first_symbol {
            return Some(self.first_symbol);
        }
        let end = last.saturating_add(LONGEST_CHAIN);
        while last < end && self.chain(last)? & 1 == 0 {
            last += 1;
        }
        Some(last + 1)
    }
}

/// The hash of a name by which `DT_GNU_HASH` finds it.
pub(super) fn gnu_hash(name: &[u8]) -> u32 {
    name.iter().fold(5381_u32, |hash, byte| hash.wrapping_mul(33).wrapping_add(u32::from(*byte)))
}

/// Symbols of the `DT_HASH` bucket that the name belongs to.
pub(super) fn sysv_candidates<'a>(hash: &'a [u8], name: &[u8]) -> impl Iterator<Item = u64> + use<'a> {
    let key = name.iter().fold(0_u32, |key, byte| {
        let key = (key << 4).wrapping_add(u32::from(*byte));
        let high = key & 0xf000_0000;
        (key ^ high >> 24) & !high
    });
    let buckets = u32_at(hash, 0).map_or(0, u64::from);
    let most = u32_at(hash, 4).map_or(0, u64::from).min(LONGEST_CHAIN);
    let mut next = u64::from(key).checked_rem(buckets).and_then(|bucket| u32_at(hash, 8 + bucket * 4));
    // A chain that loops ends after as many steps as there are symbols.
    let mut left = most;
    std::iter::from_fn(move || {
        let symbol = u64::from(next.filter(|symbol| *symbol != 0 && left != 0)?);
        left -= 1;
        next = u32_at(hash, 8 + buckets * 4 + symbol * 4);
        Some(symbol)
    })
}
