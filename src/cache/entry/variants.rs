//! The variants of a primary key: which there are, and which of them are used.

use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use http::HeaderName;

use crate::cache::key;
use crate::clock::WallMs;
use crate::invalidation::Position;

/// Most variants that one primary key may have.
pub const MAX_VARIANTS: usize = 64;

/// Uses are halved when so many variants have left: what was used long ago counts for less than what is used now.
const LEFT_PER_AGE: u32 = 64;

/// The answers of a primary key are stored as variants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vary {
    /// Full primary key.
    pub key: Bytes,
    /// Request fields that choose the variant, sorted, each once.
    pub names: Vec<HeaderName>,
    /// The variants, oldest first.
    pub variants: Vec<Variant>,
    /// Those that have left for others, here.
    pub left: u32,
    /// What the last variant's fill knew of invalidations when it began.
    pub position: Position,
    /// The number of the last variant's lease.
    pub fence: u64,
    /// After this the variants are counted anew.
    pub until: WallMs,
}

/// One of the variants.
#[derive(Debug, Default)]
pub struct Variant {
    /// Hash of its key.
    pub hash: u64,
    /// Its name in Redis.
    pub name: [u8; 16],
    /// Its key, if this process has had it: a copy, which keeps nothing else in memory.
    key: Box<[u8]>,
    /// Times that it was used here, and wherever the record has been, up to 255.
    uses: AtomicU8,
}

impl Variant {
    /// The variant under `key`, whose name in Redis is `name`.
    pub fn new(key: &[u8], name: [u8; 16]) -> Self {
        Self { hash: key::hash(key), name, key: key.into(), uses: AtomicU8::new(0) }
    }

    /// One that somebody else has stored.
    pub fn elsewhere(hash: u64, name: [u8; 16], uses: u8) -> Self {
        Self { hash, name, uses: AtomicU8::new(uses), ..Self::default() }
    }

    /// Its key; empty if this process never had it.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Times that it was used, up to 255.
    pub fn uses(&self) -> u8 {
        self.uses.load(Ordering::Relaxed)
    }
}

impl Variant {
    /// Takes over what `other` knows of the same variant.
    fn learn(&mut self, other: Self) {
        self.name = other.name;
        if !other.key.is_empty() {
            self.key = other.key;
        }
        self.uses = AtomicU8::new(self.uses().max(other.uses.into_inner()));
    }
}

impl Clone for Variant {
    fn clone(&self) -> Self {
        Self { hash: self.hash, name: self.name, key: self.key.clone(), uses: AtomicU8::new(self.uses()) }
    }
}

/// What this process knows of a variant beside its name makes it no other.
impl PartialEq for Variant {
    fn eq(&self, other: &Self) -> bool {
        (self.hash, self.name) == (other.hash, other.name)
    }
}

impl Eq for Variant {}

impl Vary {
    /// Counts a use of the variant with this key's hash.
    pub fn used(&self, hash: u64) {
        if let Some(variant) = self.variants.iter().find(|variant| variant.hash == hash) {
            // Two at once may count as one; and what is used very often is written no more.
            let uses = variant.uses();
            if uses < u8::MAX {
                variant.uses.store(uses + 1, Ordering::Relaxed);
            }
        }
    }

    /// Bytes that the variants take.
    pub fn variants_bytes(&self) -> usize {
        self.variants.iter().map(|variant| size_of::<Variant>() + variant.key.len()).sum()
    }

    /// Takes a variant in. Where there are [`MAX_VARIANTS`] already, the least used of them leaves, of equals the oldest:
    /// a field with endless values pushes out its own kind, not what is asked for again.
    pub fn admit(&mut self, variant: Variant) -> Option<Variant> {
        if let Some(known) = self.variants.iter_mut().find(|known| known.hash == variant.hash) {
            known.learn(variant);
            return None;
        }
        let mut dropped = None;
        if self.variants.len() >= MAX_VARIANTS {
            let least = (0..self.variants.len()).min_by_key(|at| self.variants[*at].uses());
            dropped = least.map(|at| self.variants.remove(at));
            self.left += 1;
            if self.left.is_multiple_of(LEFT_PER_AGE) {
                for variant in &mut self.variants {
                    *variant.uses.get_mut() /= 2;
                }
            }
        }
        self.variants.push(variant);
        dropped
    }

    /// Takes a variant out that has left elsewhere.
    pub fn forget(&mut self, gone: &Variant) -> Option<Variant> {
        let at = self.variants.iter().position(|variant| variant == gone);
        // It may be known no more, and still be stored.
        Some(at.map_or_else(|| gone.clone(), |at| self.variants.remove(at)))
    }

    /// Takes in what this process knows of the same variants, and has of others, as far as there is room.
    pub fn merge(&mut self, known: &Self) {
        self.left = known.left;
        for variant in &known.variants {
            let has_room = self.variants.len() < MAX_VARIANTS;
            match self.variants.iter_mut().find(|own| own.hash == variant.hash) {
                Some(own) => own.learn(variant.clone()),
                None if has_room => self.variants.push(variant.clone()),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vary() -> Vary {
        Vary {
            key: Bytes::new(),
            names: vec![http::header::ACCEPT],
            variants: Vec::new(),
            left: 0,
            position: Position::default(),
            fence: 0,
            until: 0,
        }
    }

    fn variant(number: u64) -> Variant {
        Variant { hash: number, ..Variant::default() }
    }

    #[test]
    fn the_least_used_leaves_first() {
        let mut vary = vary();
        assert!((0..MAX_VARIANTS as u64).all(|number| vary.admit(variant(number)).is_none()));
        assert_eq!(vary.admit(variant(5)), None, "it is there");
        for number in (0..MAX_VARIANTS as u64).filter(|number| *number != 7 && *number != 9) {
            vary.used(number);
        }
        assert_eq!(vary.admit(variant(100)), Some(variant(7)));
        assert_eq!(vary.admit(variant(101)), Some(variant(9)));
        assert_eq!(vary.admit(variant(102)), Some(variant(100)), "the newest pushes out its own kind");
        assert_eq!(vary.variants.len(), MAX_VARIANTS);
    }

    #[test]
    fn what_is_used_stays_among_endless_others() {
        let mut vary = vary();
        vary.admit(variant(0));
        for number in 1..10_000 {
            vary.admit(variant(number));
            if number % 20 == 0 {
                vary.used(0);
            }
        }
        assert!(vary.variants.contains(&variant(0)));
        // And what is used no more leaves in the end.
        for number in 10_000..20_000 {
            vary.admit(variant(number));
        }
        assert!(!vary.variants.contains(&variant(0)));
    }

    #[test]
    fn what_others_stored_is_joined_with_what_is_known_here() {
        let (mut here, mut there) = (vary(), vary());
        here.admit(variant(1));
        here.admit(Variant::new(b"key", [1; 16]));
        there.admit(variant(2));
        there.admit(Variant::elsewhere(key::hash(b"key"), [1; 16], 9));
        there.merge(&here);
        assert_eq!(there.variants.iter().filter(|variant| variant.key() == b"key").count(), 1);
        assert_eq!(there.variants.len(), 3);
        assert_eq!(there.variants.iter().map(Variant::uses).max(), Some(9), "what was used elsewhere counts");
        assert_eq!(there.variants_bytes(), 3 * size_of::<Variant>() + 3, "the key is counted");
    }
}
