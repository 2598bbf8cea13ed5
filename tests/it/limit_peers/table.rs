//! What models keep their states in.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// A table with so many places; whoever comes when it is full takes the place of the one that was used longest ago.
pub struct Lru<K, V> {
    places: usize,
    uses: u64,
    kept: HashMap<K, (V, u64)>,
    by_use: BTreeMap<u64, K>,
}

impl<K: Copy + Eq + Hash, V> Lru<K, V> {
    /// Empty.
    pub fn new(places: usize) -> Self {
        Self { places, uses: 0, kept: HashMap::new(), by_use: BTreeMap::new() }
    }

    /// What is kept of `key`, or else what `new` makes.
    pub fn of(&mut self, key: K, new: impl FnOnce() -> V) -> &mut V {
        if let Some((_, used)) = self.kept.get(&key) {
            self.by_use.remove(used);
        } else if self.kept.len() >= self.places
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.kept.remove(&oldest);
        }
        self.uses += 1;
        self.by_use.insert(self.uses, key);
        let (value, used) = self.kept.entry(key).or_insert_with(|| (new(), 0));
        *used = self.uses;
        value
    }
}

#[test]
fn the_one_that_was_used_longest_ago_makes_room() {
    let mut table = Lru::new(2);
    *table.of('a', || 1) += 10;
    table.of('b', || 2);
    assert_eq!(*table.of('a', || 0), 11);
    table.of('c', || 3);
    assert_eq!([*table.of('a', || 0), *table.of('b', || 0)], [11, 0]);
}
