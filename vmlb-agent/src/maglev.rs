//! Maglev selection tables (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! section 3.4). Everything that goes in is the same on every node, so every node computes the same table.

/// Table sizes: primes, each at least [`SLOTS_PER_BACKEND`] times the number of backends it is meant for.
///
/// Size follows from the number of backends *listed* for the port, ready or not, and from nothing else: no history, so
/// two nodes that saw different events agree. What keeps it from changing to and fro is that readiness does not count
/// and that the steps are coarse (a third to a half more each).
const SIZES: [(u32, u32); 25] = [
    (1, 163),
    (2, 331),
    (3, 487),
    (4, 641),
    (6, 967),
    (8, 1283),
    (12, 1931),
    (16, 2579),
    (24, 3847),
    (32, 5147),
    (48, 7681),
    (64, 10_243),
    (96, 15_361),
    (128, 20_483),
    (192, 30_727),
    (256, 40_961),
    (384, 61_441),
    (512, 81_929),
    (768, 122_887),
    (1024, 163_841),
    (1536, 245_771),
    (2048, 327_689),
    (3072, 491_527),
    (4096, 655_373),
    (6144, 983_063),
];

/// Slots for each backend, so that shares differ by about a per cent.
pub const SLOTS_PER_BACKEND: u32 = 160;

/// The size of a table for so many listed backends; 0 for none. Beyond the last step it stays at the last.
#[must_use]
pub fn size(listed: usize) -> u32 {
    if listed == 0 {
        return 0;
    }
    let step = SIZES.iter().find(|(backends, _)| *backends as usize >= listed);
    step.or(SIZES.last()).map_or(0, |(_, size)| *size)
}

/// A 64-bit digest of octets (FNV-1a, finished so that every bit depends on every octet), the same on every machine.
#[must_use]
pub fn digest(seed: u64, octets: &[u8]) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ mix(seed);
    let folded =
        octets.iter().fold(start, |hash, octet| (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3));
    mix(folded)
}

/// A bijection of 64 bits whose every output bit depends on every input bit (Stafford's variant 13 of a Murmur finisher).
const fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Fixed for all nodes and versions: changing them moves every flow's choice.
const SEEDS: (u64, u64) = (0x766d_6c62_0000_0001, 0x766d_6c62_0000_0002);

/// Where a backend starts in a table and how far apart its wishes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    offset: u64,
    skip: u64,
}

impl Seed {
    /// The seed of a target: stable identity and port, never an id of this node.
    #[must_use]
    pub fn new(identity: &str, port: u16) -> Self {
        let of = |seed: u64| mix(digest(seed, identity.as_bytes()) ^ u64::from(port));
        Self { offset: of(SEEDS.0), skip: of(SEEDS.1) }
    }
}

/// Fills a table of `size` slots (a prime, see [`size`]) with indices into `seeds`, whose order must be the same on every
/// node. Empty if either is.
#[must_use]
pub fn table(seeds: &[Seed], size: u32) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    if seeds.is_empty() || size < 2 {
        return Vec::new();
    }
    let modulus = u64::from(size);
    let mut wishes: Vec<(u32, u32)> = seeds
        .iter()
        .map(|seed| ((seed.offset % modulus) as u32, (seed.skip % (modulus - 1) + 1) as u32))
        .collect();
    let mut slots = vec![FREE; size as usize];
    let mut left = size;
    loop {
        for (index, (wish, skip)) in (0u32..).zip(wishes.iter_mut()) {
            // A prime size makes every skip visit all slots: a free one is found while any is left.
            while slots[*wish as usize] != FREE {
                *wish = step(*wish, *skip, size);
            }
            slots[*wish as usize] = index;
            left -= 1;
            if left == 0 {
                return slots;
            }
        }
    }
}

const fn step(wish: u32, skip: u32, size: u32) -> u32 {
    let next = wish + skip;
    if next >= size { next - size } else { next }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeds(names: &[String]) -> Vec<Seed> {
        names.iter().map(|name| Seed::new(name, 80)).collect()
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("6f1c0000-0000-4000-8000-{number:012}")).collect()
    }

    fn is_prime(number: u32) -> bool {
        (2u64..).take_while(|d| d * d <= u64::from(number)).all(|d| u64::from(number) % d != 0)
    }

    #[test]
    fn every_listed_size_is_a_prime_and_large_enough() {
        for (backends, size) in SIZES {
            assert!(is_prime(size), "{size}");
            assert!(size >= SLOTS_PER_BACKEND * backends, "{size} for {backends}");
        }
        assert!(SIZES.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1));
    }

    #[test]
    fn size_grows_with_the_listed_backends_and_ends_at_the_last_step() {
        assert_eq!((size(0), size(1), size(5), size(6), size(7)), (0, 163, 967, 967, 1283));
        assert_eq!(size(1_000_000), SIZES[SIZES.len() - 1].1);
    }

    #[test]
    fn a_table_is_full_and_its_shares_differ_by_few_per_cent() {
        for count in [1, 2, 3, 5, 16, 100] {
            let table = table(&seeds(&names(count)), size(count));
            assert_eq!(table.len(), size(count) as usize);
            let mut shares = vec![0usize; count];
            for index in &table {
                shares[*index as usize] += 1;
            }
            let (least, most) = (shares.iter().min().copied(), shares.iter().max().copied());
            assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{count}: {shares:?}");
        }
    }

    #[test]
    fn a_backend_that_goes_moves_little_more_than_its_own_share() {
        let all = names(10);
        let before = table(&seeds(&all), size(10));
        for gone in 0..10 {
            let mut rest = all.clone();
            rest.remove(gone);
            let after = table(&seeds(&rest), size(10));
            let moved = before
                .iter()
                .zip(&after)
                .filter(|(old, new)| **old as usize != gone && all[**old as usize] != rest[**new as usize])
                .count();
            assert!(moved * 100 <= before.len() * 10, "{moved} of {} moved besides its own", before.len());
        }
    }

    #[test]
    fn the_table_is_the_same_for_ever() {
        // A promise between nodes of different versions: a change here moves every flow without a flow entry.
        let table = table(&seeds(&names(3)), size(3));
        let octets: Vec<u8> = table.iter().flat_map(|index| index.to_be_bytes()).collect();
        assert_eq!(format!("{:016x}", digest(0, &octets)), "0962ff5157cd2a7e");
    }

    #[test]
    fn ports_of_one_backend_are_different_targets() {
        assert_ne!(Seed::new("a", 80), Seed::new("a", 81));
    }
}
