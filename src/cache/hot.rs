//! Which keys are read most, by samples: what a new pod preloads.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use ahash::RandomState;

use super::entry::Stored;
use super::memory::Slot;
use super::{Cache, Found, key, shared};

/// One hit in so many is counted. Which one is left to chance: readers have rhythms of their own.
const SAMPLED: u64 = 64;

/// Counted keys for each that is preloaded: what is rare comes and goes.
const COUNTED_PER_KEY: usize = 4;

thread_local! {
    static CHANCE: Cell<u64> = const { Cell::new(1) };
}

/// Samples of hits since they were last taken.
#[derive(Debug)]
pub struct Hot {
    keys: usize,
    counts: Mutex<HashMap<[u8; 16], u32, RandomState>>,
}

impl Hot {
    /// For the hottest `keys`.
    pub fn new(keys: usize) -> Self {
        Self { keys, counts: Mutex::default() }
    }

    /// A hit.
    pub fn hit(&self, slot: &Slot) {
        // Knuth's linear congruential generator, by its high bits.
        let chance = CHANCE.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        CHANCE.set(chance);
        if (chance >> 32).is_multiple_of(SAMPLED) {
            self.count(shared::name(slot.stored.key()));
            if let Some(primary) = key::primary_of(slot.stored.key()) {
                // What varies is found by its record.
                self.count(shared::name(primary));
            }
        }
    }

    fn count(&self, name: [u8; 16]) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(name).or_default() += 1;
        if counts.len() > self.keys * COUNTED_PER_KEY {
            counts.retain(|_, count| {
                *count /= 2;
                *count > 0
            });
        }
    }

    /// The hottest since the last call, hottest first.
    pub fn take(&self) -> Vec<([u8; 16], u32)> {
        let counts = std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner));
        let mut hottest: Vec<_> = counts.into_iter().collect();
        hottest.sort_unstable_by_key(|(_, count)| std::cmp::Reverse(*count));
        hottest.truncate(self.keys);
        hottest
    }
}

impl Cache {
    /// Counts an answer that was served.
    pub fn served(&self, found: &Found) {
        if let Some(hot) = &self.hot {
            hot.hit(&found.slot);
        }
    }

    /// What was served most since the last call.
    pub fn hottest(&self) -> Vec<([u8; 16], u32)> {
        self.hot.as_ref().map(Hot::take).unwrap_or_default()
    }

    /// Keeps in memory what another pod has stored; whether nothing newer was there. It is judged when it is read.
    pub fn preload(&self, stored: Stored) -> bool {
        let slot = Slot::new(stored, 0);
        self.memory.insert(slot.stored.key().clone(), slot, self.times().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hottest_come_first_and_the_rest_is_bounded() {
        let hot = Hot::new(10);
        for round in 0..1000_u32 {
            for key in 0..10_u8 {
                (0..key).for_each(|_| hot.count([key; 16]));
            }
            let mut rare = [255; 16];
            rare[..4].copy_from_slice(&round.to_be_bytes());
            hot.count(rare);
            assert!(hot.counts.lock().unwrap().len() <= 10 * COUNTED_PER_KEY);
        }
        let hottest: Vec<u8> = hot.take().iter().map(|(name, _)| name[0]).collect();
        assert_eq!(hottest[..8], [9, 8, 7, 6, 5, 4, 3, 2]);
        assert!(hot.take().is_empty());
    }
}
