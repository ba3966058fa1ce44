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

/// Slots for each backend, so that a share is right to within a per cent.
pub const SLOTS_PER_BACKEND: u32 = 160;

/// How many times the slots of equal weights a table may take for weights that differ: the lightest backend has its
/// [`SLOTS_PER_BACKEND`] as long as it has a sixteenth of the mean weight.
const MOST_FOR_WEIGHTS: u64 = 16;

/// The size of a table for so many listed backends; 0 for none. Beyond the last step it stays at the last.
#[must_use]
pub fn size(listed: usize) -> u32 {
    if listed == 0 {
        return 0;
    }
    let step = SIZES.iter().find(|(backends, _)| *backends as usize >= listed);
    step.or(SIZES.last()).map_or(0, |(_, size)| *size)
}

/// The size of a table for the listed backends of these weights: as for so many backends of the least weight. One of
/// weight 0 counts as the heaviest, as which it most likely comes back: maintenance does not lay the whole table anew.
#[must_use]
pub fn weighted_size(weights: &[u32]) -> u32 {
    let Some(least) = weights.iter().copied().filter(|weight| *weight > 0).min() else {
        return size(weights.len());
    };
    let most = weights.iter().copied().max().unwrap_or(least);
    let sum: u64 = weights.iter().map(|weight| u64::from(if *weight == 0 { most } else { *weight })).sum();
    let units = sum.div_ceil(u64::from(least)).min(weights.len() as u64 * MOST_FOR_WEIGHTS);
    size(usize::try_from(units).unwrap_or(usize::MAX))
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

/// One who takes part in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contender {
    /// Where it wants its slots.
    pub seed: Seed,
    /// How much it gets beside the others; 0: nothing.
    pub weight: u32,
}

/// A contender on its way through its slots.
struct Turn {
    index: u32,
    weight: u32,
    credit: u32,
    wish: u32,
    skip: u32,
}

/// Fills a table of `size` slots (a prime, see [`size`]) with indices into `contenders`, whose order must be the same on
/// every node. Empty if the size is, or if nobody has a weight.
///
/// In each round a contender earns its weight and takes a slot when it has as much as the heaviest earns in a round; with
/// equal weights that is a slot a round for everybody, as the paper has it.
#[must_use]
pub fn table(contenders: &[Contender], size: u32) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    let price = contenders.iter().map(|contender| contender.weight).max().unwrap_or(0);
    if price == 0 || size < 2 {
        return Vec::new();
    }
    let mut turns = turns(contenders, size);
    let mut slots = vec![FREE; size as usize];
    let mut left = size;
    loop {
        for turn in &mut turns {
            turn.credit += turn.weight;
            if turn.credit < price {
                continue;
            }
            turn.credit -= price;
            // A prime size makes every skip visit all slots: a free one is found while any is left.
            while slots[turn.wish as usize] != FREE {
                turn.wish = step(turn.wish, turn.skip, size);
            }
            slots[turn.wish as usize] = turn.index;
            left -= 1;
            if left == 0 {
                return slots;
            }
        }
    }
}

fn turns(contenders: &[Contender], size: u32) -> Vec<Turn> {
    let modulus = u64::from(size);
    let weighted = (0u32..).zip(contenders).filter(|(_, contender)| contender.weight > 0);
    let turns = weighted.map(|(index, Contender { seed, weight })| Turn {
        index,
        weight: *weight,
        credit: 0,
        wish: (seed.offset % modulus) as u32,
        skip: (seed.skip % (modulus - 1) + 1) as u32,
    });
    turns.collect()
}

const fn step(wish: u32, skip: u32, size: u32) -> u32 {
    let next = wish + skip;
    if next >= size { next - size } else { next }
}

#[cfg(test)]
mod tests;
