//! What was named long ago: eight bytes for each selector, in place of forty.
//!
//! Selectors are folded in generations, and each counts as named when the last of its generation was. So an answer is refused
//! for a moment too long, and one that was never named is not: a slot holds enough of the hash to tell selectors apart. Only
//! when a bucket overflows its oldest selector is forgotten by name, and from then on the bucket's floor refuses for it
//! whatever shares the bucket.

use super::{Epoch, Stamp};

/// Buckets of selectors that share a floor.
pub const BUCKETS: usize = 131_072;

/// Selectors that each holds by name: a cache line.
const SLOTS: usize = 8;

/// Generations told apart; what is of an older one counts as of the oldest.
const GENERATIONS: usize = 4096;

/// Bits of a slot for the generation; below those of the hash.
const GENERATION_BITS: u32 = 22;

/// Set in a slot whose selector was named by an invalidation.
const HARD: u64 = 1 << GENERATION_BITS;

/// Set in one whose selector was named by a soft one.
const SOFT: u64 = 2 << GENERATION_BITS;

/// The hash, in a slot.
const NAME: u64 = !((4 << GENERATION_BITS) - 1);

/// Folded selectors, by their hashes. Takes no memory until there is one.
#[derive(Debug, Default)]
pub struct Folded {
    buckets: Vec<[u64; SLOTS]>,
    floors: Vec<Stamp>,
    /// The last of each generation that is told apart, never below the one before.
    generations: Vec<Stamp>,
    /// Generations before these.
    merged: u64,
}

impl Folded {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Folds a generation, of which none was named later than `last`.
    pub fn fold(&mut self, selectors: impl Iterator<Item = (u64, Stamp)>, last: Stamp) {
        if self.is_empty() {
            self.buckets = vec![[0; SLOTS]; BUCKETS];
            self.floors = vec![Stamp::default(); BUCKETS];
        }
        let mut last = last;
        last.raise(self.generations.last().copied().unwrap_or_default());
        self.generations.push(last);
        if self.generations.len() > GENERATIONS {
            self.generations.remove(0);
            self.merged += 1;
        }
        let generation = self.merged + self.generations.len() as u64;
        for (hash, stamp) in selectors {
            self.put(hash, kinds(stamp) | generation & (HARD - 1));
        }
    }

    /// When the selector with this hash was last named; later where that is not known.
    pub fn look(&self, hash: u64) -> Stamp {
        let at = bucket(hash);
        let (Some(slots), Some(floor)) = (self.buckets.get(at), self.floors.get(at)) else { return Stamp::default() };
        let mut stamp = *floor;
        if let Some(slot) = slots.iter().find(|slot| **slot & NAME == name(hash)) {
            stamp.raise(self.stamp(*slot));
        }
        stamp
    }

    fn put(&mut self, hash: u64, what: u64) {
        let at = bucket(hash);
        let slots = &mut self.buckets[at];
        if let Some(slot) = slots.iter_mut().find(|slot| **slot & NAME == name(hash)) {
            let kinds = (*slot | what) & (HARD | SOFT);
            *slot = name(hash) | kinds | what & (HARD - 1);
            return;
        }
        // An empty slot is older than any generation.
        let Some(oldest) = slots.iter_mut().min_by_key(|slot| **slot & (HARD - 1)) else { return };
        let evicted = std::mem::replace(oldest, name(hash) | what);
        if evicted != 0 {
            let stamp = self.stamp(evicted);
            self.floors[at].raise(stamp);
        }
    }

    fn stamp(&self, slot: u64) -> Stamp {
        let generation = (slot & (HARD - 1)).saturating_sub(self.merged + 1);
        let last = self.generations.get(generation as usize).copied().unwrap_or_default();
        let of = |epoch: Epoch| Epoch {
            hard: if slot & HARD == 0 { 0 } else { epoch.hard },
            soft: if slot & SOFT == 0 { 0 } else { epoch.soft },
        };
        Stamp { log: of(last.log), own: of(last.own) }
    }
}

/// By which kinds of invalidation a selector was named.
fn kinds(stamp: Stamp) -> u64 {
    let hard = if stamp.log.hard.max(stamp.own.hard) > 0 { HARD } else { 0 };
    let soft = if stamp.log.soft.max(stamp.own.soft) > 0 { SOFT } else { 0 };
    hard | soft
}

fn bucket(hash: u64) -> usize {
    hash as usize % BUCKETS
}

/// What of a hash a slot keeps: bits that do not choose the bucket, and never none, which is an empty slot.
fn name(hash: u64) -> u64 {
    match hash & NAME {
        0 => NAME,
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hash as good as any (`SplitMix64`).
    fn hash(i: u64) -> u64 {
        let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn named(seq: u64, soft: bool) -> Stamp {
        Stamp::of(seq, seq, soft)
    }

    /// Folds selectors `from..to`, each named under its own number.
    fn fold(folded: &mut Folded, from: u64, to: u64) {
        folded.fold((from..to).map(|i| (hash(i), named(i + 1, false))), named(to, false));
    }

    #[test]
    fn what_was_named_is_refused_for_little_longer_and_what_was_not_is_not() {
        let mut folded = Folded::default();
        assert_eq!(folded.look(hash(7)), Stamp::default());
        let (generation, count) = (30_000, 300_000);
        for from in (0..count).step_by(generation as usize) {
            fold(&mut folded, from, from + generation);
        }
        for i in (0..count).step_by(97) {
            let hard = folded.look(hash(i)).log.hard;
            assert!(hard > i && hard <= (i / generation + 1) * generation, "{i}: {hard}");
            assert_eq!(folded.look(hash(i)).log.soft, 0);
        }
        let foreign = (count..count + 100_000).filter(|i| folded.look(hash(*i)) != Stamp::default()).count();
        assert!(foreign < 200, "{foreign} of 100,000 that nobody named are refused");
    }

    #[test]
    fn nothing_is_forgotten_however_many_there_are() {
        let mut folded = Folded::default();
        let count = 3 * (BUCKETS * SLOTS) as u64;
        for from in (0..count).step_by(65_536) {
            fold(&mut folded, from, from + 65_536);
        }
        for i in (0..count).step_by(997) {
            assert!(folded.look(hash(i)).log.hard > i, "{i}");
        }
    }

    #[test]
    fn a_selector_that_is_folded_again_is_of_the_last_generation_and_of_both_kinds() {
        let mut folded = Folded::default();
        folded.fold([(hash(1), named(5, true))].into_iter(), named(5, true));
        assert_eq!(folded.look(hash(1)), named(5, true));
        folded.fold([(hash(2), named(9, false))].into_iter(), named(9, false));
        assert_eq!(folded.look(hash(2)).log, Epoch { hard: 9, soft: 0 });
        folded.fold([(hash(1), named(12, false))].into_iter(), named(12, false));
        assert_eq!(folded.look(hash(1)).log, Epoch { hard: 12, soft: 5 });
    }

    #[test]
    fn generations_are_bounded_and_older_ones_count_as_the_oldest() {
        let mut folded = Folded::default();
        for i in 0..GENERATIONS as u64 + 50 {
            fold(&mut folded, i, i + 1);
        }
        assert_eq!(folded.generations.len(), GENERATIONS);
        for i in [0, 49, 50, 51, 2_000, GENERATIONS as u64 + 49] {
            let hard = folded.look(hash(i)).log.hard;
            assert!(hard > i && hard <= i.max(50) + 1, "{i}: {hard}");
        }
    }
}
