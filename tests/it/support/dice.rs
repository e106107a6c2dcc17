//! Chance that can be had again: numbers from a seed, which a failed test shows.

use ring::rand::{SecureRandom, SystemRandom};

/// The numbers (`SplitMix64`).
pub(crate) struct Dice(u64);

impl Dice {
    /// From this seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From the seed in the variable `SEED`, or a new one; prints it.
    pub(crate) fn rolled() -> Self {
        let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let mut seed = [0; 8];
            SystemRandom::new().fill(&mut seed).unwrap();
            u64::from_ne_bytes(seed)
        });
        eprintln!("SEED={seed}");
        Self(seed)
    }

    /// Where it stands: what a new one would have to begin with.
    pub(crate) fn seed(&self) -> u64 {
        self.0
    }

    /// Any number.
    pub(crate) fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below this one.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.any() % u64::try_from(end).unwrap()).unwrap()
    }

    /// In another order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}
