//! States in this process' memory: all there is without Redis, and the shadow that takes over while Redis is away.
//!
//! Bounded without handing out fresh bursts. What is as good as new is forgotten. Where nothing is, a token bucket makes
//! room for another, and what its identity owes is estimated from then on, never too low (`sketch.rs`). Of
//! other algorithms no state leaves before it is as good as new; newcomers share one overflow a limit, and when there is
//! room again, a newcomer's own state starts at the overflow's level, never above what it may have taken from it.

use std::collections::HashMap;
use std::hash::Hasher;
use std::sync::{Mutex, MutexGuard};

use smallvec::SmallVec;

#[cfg(test)]
use super::algorithm::State;
use super::algorithm::{Level, Mark, Micros, Shape};
use super::identity::LocalName;
use super::shard::Shard;

/// States in all shards together.
pub const STATES_MAX: usize = 100_000;

/// Entries that logs may have in all shards together: 16 bytes each, and as much again while a log grows.
pub const ENTRIES_MAX: usize = 2_000_000;

/// Locks that the states are spread over.
pub(super) const SHARDS: usize = 64;

/// States in one shard.
const SHARD_MAX: usize = STATES_MAX / SHARDS;

/// Limits of one stage that are taken without an allocation.
pub const LIMITS_INLINE: usize = 4;

/// A few of something, one a limit.
pub type Few<T> = SmallVec<[T; LIMITS_INLINE]>;

/// One bucket to take from.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The bucket.
    pub name: LocalName,
    /// The limit's own name, for its overflow bucket.
    pub scope: &'a str,
    /// The limit's shape.
    pub shape: Shape,
    /// Whether it denies, or only counts.
    pub enforced: bool,
    /// Whether it is one with the ask before, if both only count: charged together or not at all.
    pub joined: bool,
    /// What the request costs.
    pub cost: f64,
    /// Which request it is.
    pub id: u64,
}

impl Ask<'_> {
    /// When the bucket would have been full if this had not been charged, of which it says `level` now; `None` of another
    /// algorithm's state.
    pub fn was_full_at(&self, level: &Level, now: Micros) -> Option<Micros> {
        let Shape::TokenBucket(shape) = self.shape else { return None };
        Some(now + (level.full_ms as f64 * 1000.0 - self.cost * shape.price / shape.accrual).max(0.0))
    }
}

/// What one bucket answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// The charge, if one was made.
    pub mark: Option<Mark>,
    /// What the bucket says of itself afterwards.
    pub level: Level,
    /// Units that a borrower may hold now; memory lends nothing.
    pub lent: f64,
}

impl Reading {
    /// Whether the bucket had no request left.
    pub fn is_short(&self) -> bool {
        self.mark.is_none() && self.level.wait_ms > 0
    }
}

/// All buckets.
pub struct Local {
    shards: Box<[Mutex<Shard>]>,
}

impl Local {
    /// No buckets.
    pub fn new() -> Self {
        Self::with_shard_max(SHARD_MAX)
    }

    pub(super) fn with_shard_max(max: usize) -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::new(Shard::new(max))).collect() }
    }

    /// Takes one request from every bucket, or from none if an enforced one is short.
    ///
    /// One that is not enforced is charged if it can be, and denies nobody. No bucket may be asked twice.
    pub fn take(&self, asks: &[Ask<'_>], now: Micros) -> Few<Reading> {
        if let [ask] = asks {
            return Few::from_iter([self.take_one(ask, now)]);
        }
        let mut shards = self.lock(asks);
        let mut covered: Few<bool> = asks.iter().map(|ask| shards.of(ask.name).covers(ask, now)).collect();
        let admitted = asks.iter().zip(&covered).all(|(ask, covered)| !ask.enforced || *covered);
        join(asks, &mut covered);
        let mut readings: Few<Reading> = SmallVec::new();
        for (ask, covered) in asks.iter().zip(covered) {
            let shard = shards.of(ask.name);
            let mark = (admitted && covered).then(|| shard.charge(ask, now));
            readings.push(Reading { mark, level: shard.level(ask, now), lent: 0.0 });
        }
        readings
    }

    /// [`Local::take`] from one bucket.
    pub fn take_one(&self, ask: &Ask<'_>, now: Micros) -> Reading {
        let mut shard = self.shard(ask.name);
        let covered = shard.covers(ask, now);
        let mark = covered.then(|| shard.charge(ask, now));
        Reading { mark, level: shard.level(ask, now), lent: 0.0 }
    }

    /// Charges a bucket for what somebody else let through, as far as it goes.
    pub fn shadow(&self, ask: &Ask<'_>, now: Micros) -> Mark {
        self.shard(ask.name).charge(ask, now)
    }

    /// Takes what an answer costs beyond what its request took, whether it is there or not.
    pub fn owe(&self, ask: &Ask<'_>, now: Micros) {
        self.shard(ask.name).owe(ask, now);
    }

    /// Gives a charge back; one whose bucket is gone was as good as given back. How much of it, from 0 to 1, was not gained
    /// again by then.
    pub fn refund(&self, ask: &Ask<'_>, mark: &Mark, now: Micros) -> f64 {
        self.shard(ask.name).refund(ask, mark, now)
    }

    /// What a bucket says of itself, what it owes, and whether it is there; nothing is charged.
    pub fn peek(&self, ask: &Ask<'_>, now: Micros) -> (Level, u64, bool) {
        let mut shard = self.shard(ask.name);
        (shard.level(ask, now), shard.owed(ask, now), shard.states.contains_key(&ask.name))
    }

    /// Makes a bucket as good as new.
    pub fn reset(&self, ask: &Ask<'_>, now: Micros) {
        self.shard(ask.name).reset(ask, now);
    }

    /// How many states each limit has, by the name of its states.
    pub fn counts(&self) -> HashMap<Box<str>, usize> {
        let mut all = HashMap::new();
        for shard in &self.shards {
            for limit in &locked(shard).limits {
                *all.entry(limit.scope.clone()).or_default() += limit.states;
            }
        }
        all
    }

    #[cfg(test)]
    pub(crate) fn state(&self, name: LocalName) -> Option<State> {
        self.shard(name).states.get(&name).map(|kept| kept.state.clone())
    }

    /// How many buckets there are, overflow left out.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| locked(shard).states.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, name: LocalName) -> MutexGuard<'_, Shard> {
        locked(&self.shards[index(name)])
    }

    /// Every shard that `asks` touch, locked in the order of their numbers: two takes never wait for each other.
    fn lock(&self, asks: &[Ask<'_>]) -> Locked<'_> {
        let mut numbers: Few<usize> = asks.iter().map(|ask| index(ask.name)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        Locked(numbers.iter().map(|&number| (number, locked(&self.shards[number]))).collect())
    }
}

impl Default for Local {
    fn default() -> Self {
        Self::new()
    }
}

/// Of asks that are one, none is covered unless all are.
fn join(asks: &[Ask<'_>], covered: &mut [bool]) {
    for last in 1..asks.len() {
        if asks[last].joined {
            let first = asks[..last].iter().rposition(|ask| !ask.joined).unwrap_or(0);
            let all = covered[first] && covered[last];
            covered[first..=last].fill(all);
        }
    }
}

fn index(name: LocalName) -> usize {
    (name >> 96) as usize % SHARDS
}

fn locked(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().expect("no panic while held")
}

struct Locked<'l>(Few<(usize, MutexGuard<'l, Shard>)>);

impl Locked<'_> {
    fn of(&mut self, name: LocalName) -> &mut Shard {
        let number = index(name);
        let held = self.0.iter_mut().find(|(held, _)| *held == number);
        &mut held.expect("every ask's shard is locked").1
    }
}

/// A name is a hash already.
#[derive(Default)]
pub(super) struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u128(&mut self, name: u128) {
        self.0 = name as u64;
    }
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
