//! Random numbers that a printed seed repeats.

/// A generator (SplitMix64, public domain, S. Vigna). Not secret.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From `VMLB_SEED`, else from the clock; prints the seed, so that a failure can be repeated.
    pub fn announced(test: &str) -> Self {
        let given = std::env::var("VMLB_SEED").ok().and_then(|text| text.parse().ok());
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = given
            .unwrap_or_else(|| clock.map_or(1, |now| now.as_secs() << 20 | u64::from(now.subsec_micros())));
        println!("{test}: VMLB_SEED={seed} repeats this");
        Self(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Any 32-bit number.
    pub fn word(&mut self) -> u32 {
        (self.number() >> 32) as u32
    }

    /// Any 16-bit number.
    pub fn short(&mut self) -> u16 {
        (self.number() >> 48) as u16
    }

    /// Any octet.
    pub fn octet(&mut self) -> u8 {
        (self.number() >> 56) as u8
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.number() % bound as u64).expect("below a usize")
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    ///
    /// # Panics
    /// If there are none.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
