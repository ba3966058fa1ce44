//! The Internet checksum by difference (RFC 1071, RFC 1624). A ones' complement sum does not care for byte order, so
//! words are added as they lie in memory; nothing here swaps.

use crate::wire::Be16;

/// A ones' complement sum of 16-bit words that has not been folded yet; holds 65,536 words without overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum(u32);

impl Sum {
    /// Nothing added.
    pub const ZERO: Self = Self(0);

    /// Adds one word (`word` <= 0xffff) as it lies in memory.
    #[inline(always)]
    #[must_use]
    pub const fn add(self, word: u32) -> Self {
        Self(self.0.wrapping_add(word))
    }

    /// The sum of some words.
    #[inline(always)]
    pub fn of<const N: usize>(words: &[Be16; N]) -> Self {
        let mut sum = 0u32;
        let mut at = 0;
        while at < N {
            sum = sum.wrapping_add(words[at].raw() as u32);
            at += 1;
        }
        Self(sum)
    }

    /// Both sums; together they still hold at most 65,536 words.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    /// The checksum field of what was summed with that field at zero.
    #[inline(always)]
    pub const fn complement(self) -> Be16 {
        Be16::from_raw(!self.fold())
    }

    /// Folded to 16 bits; carries are added back in.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "two folds leave at most 16 bits")]
    pub const fn fold(self) -> u16 {
        let once = (self.0 & 0xffff) + (self.0 >> 16);
        ((once & 0xffff) + (once >> 16)) as u16
    }
}

/// What a rewrite changed, as the ones' complement sum of ~old + new over the words it wrote (RFC 1624 equation 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta(u32);

impl Delta {
    /// Nothing changed.
    pub const ZERO: Self = Self(0);

    /// One word was `old` and is `new`.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, old: Be16, new: Be16) -> Self {
        Self(self.0.wrapping_add(!old.raw() as u32).wrapping_add(new.raw() as u32))
    }

    /// Words of this sum have come in.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, sum: Sum) -> Self {
        Self(self.0.wrapping_add(sum.fold() as u32))
    }

    /// Words of this sum have gone.
    #[inline(always)]
    #[must_use]
    pub const fn without(self, sum: Sum) -> Self {
        Self(self.0.wrapping_add(!sum.fold() as u32))
    }

    /// The opposite change.
    #[inline(always)]
    #[must_use]
    pub const fn inverse(self) -> Self {
        Self(!self.fold() as u32)
    }

    /// In 16 bits, for keeping.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        Sum(self.0).fold()
    }

    /// From [`Delta::fold`].
    #[inline(always)]
    pub const fn from_folded(folded: u16) -> Self {
        Self(folded as u32)
    }

    /// Both changes.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    /// The unfolded sum as the kernel's `csum_replace_by_diff` takes it (`__wsum`, include/net/checksum.h).
    #[inline(always)]
    pub const fn wsum(self) -> u32 {
        self.0
    }

    /// The checksum field after the change.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, checksum: Be16) -> Be16 {
        Be16::from_raw(!Sum(self.0).add(!checksum.raw() as u32).fold())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071 section 4.1, word by word.
    fn full(words: &[u16]) -> u16 {
        let mut sum: u64 = words.iter().map(|&w| u64::from(w)).sum();
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    fn next(seed: &mut u64) -> u16 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u16::try_from(*seed >> 48).unwrap()
    }

    #[test]
    fn incremental_equals_full() {
        let mut seed = 7;
        for _ in 0..if cfg!(miri) { 50 } else { 20_000 } {
            let mut words: [u16; 10] = core::array::from_fn(|_| next(&mut seed));
            words[0] |= 1; // all-zero data has two representations of its sum
            let before = full(&words);
            let (old, new) = (words[4], next(&mut seed));
            words[4] = new;
            let delta = Delta::ZERO.word(Be16::from_raw(old), Be16::from_raw(new));
            assert_eq!(delta.apply(Be16::from_raw(before)).raw(), full(&words));
        }
    }

    #[test]
    fn deltas_commute_and_undo() {
        let mut seed = 11;
        for _ in 0..if cfg!(miri) { 50 } else { 20_000 } {
            let [a, b, c, d, sum]: [Be16; 5] = core::array::from_fn(|_| Be16::from_raw(next(&mut seed)));
            let there = Delta::ZERO.word(a, b).and(Delta::ZERO.word(c, d));
            let other = Delta::ZERO.word(c, d).word(a, b);
            assert_eq!(there.apply(sum), other.apply(sum));
            let back = Delta::ZERO.word(b, a).word(d, c);
            let sum = if sum.raw() == 0xffff { Be16::from_raw(0) } else { sum };
            let again = back.apply(there.apply(sum));
            assert!(again == sum || (sum.raw() == 0 && again.raw() == 0xffff));
        }
    }
}
