//! Chance that a seed replays.

use std::time::Duration;

/// A stream of numbers (`SplitMix64`, Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Of this seed; `stream` makes several of one seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        // Mixed, or a seed would give the draws of the one before from its second on.
        Self(mixed(mixed(seed) ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// One of the numbers below `count`.
    pub fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    /// One of these.
    pub fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A time from `least` to `most`.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        least + (most - least).mul_f64(self.below(1001) as f64 / 1000.0)
    }
}

fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[test]
fn seeds_and_streams_beside_each_other_share_no_draws() {
    const DRAWS: usize = 1000;
    let mut seen = std::collections::HashSet::new();
    for (seed, stream) in (0..20).flat_map(|seed| [0, 1, 2, 1000, 1001].map(|stream| (seed, stream))) {
        let mut dice = Dice::new(seed, stream);
        assert!((0..DRAWS).all(|_| seen.insert(dice.next())), "seed {seed}, stream {stream}");
    }
}
