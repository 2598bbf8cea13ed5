//! States in this process' memory: all there is without Redis, and the shadow that takes over while Redis is away.
//!
//! Bounded without handing out fresh bursts: only full buckets leave, because a new one is full as well. A shard that
//! has none to give up charges newcomers to one overflow bucket a limit, which they share; when there is room again, a
//! newcomer's own bucket starts at the overflow's level, never above what its identity may have taken from it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard};

use smallvec::SmallVec;

use super::algorithm::{Level, Mark, Micros, Shape, State};
use super::identity::LocalName;

/// States in all shards together: about 6.5 MiB of them.
pub const STATES_MAX: usize = 100_000;

/// Entries that logs may have in all shards together: 16 bytes each, and as much again while a log grows.
pub const ENTRIES_MAX: usize = 2_000_000;

/// Locks that the states are spread over.
const SHARDS: usize = 64;

/// States in one shard.
const SHARD_MAX: usize = STATES_MAX / SHARDS;

/// Entries in one shard.
const SHARD_ENTRIES_MAX: usize = ENTRIES_MAX / SHARDS;

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

    fn with_shard_max(max: usize) -> Self {
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

    /// Gives a charge back; one whose bucket is gone was as good as given back.
    pub fn refund(&self, ask: &Ask<'_>, mark: &Mark, now: Micros) {
        self.shard(ask.name).refund(ask, mark, now);
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

/// A state, and when it may be forgotten.
struct Kept {
    state: State,
    idle_at: Micros,
}

impl Kept {
    fn charge(&mut self, ask: &Ask<'_>, now: Micros) -> Mark {
        let mark = self.state.charge(&ask.shape, ask.cost, now, ask.id);
        self.idle_at = self.state.idle_at(&ask.shape);
        mark
    }
}

struct Shard {
    max: usize,
    states: HashMap<LocalName, Kept, BuildHasherDefault<Spread>>,
    /// By limit; as many as there are limits.
    overflow: HashMap<Box<str>, Kept>,
    /// What logs have set aside.
    entries: usize,
    /// Nothing is idle before this, so that a flood of newcomers does not scan the shard for each of them.
    sweep_at: Micros,
}

impl Shard {
    fn new(max: usize) -> Self {
        Self { max, states: HashMap::default(), overflow: HashMap::new(), entries: 0, sweep_at: 0.0 }
    }

    /// The identity's own state or, for a newcomer, the limit's overflow.
    fn kept(&mut self, ask: &Ask<'_>) -> Option<&mut Kept> {
        match self.states.get_mut(&ask.name) {
            None if !self.overflow.is_empty() => self.overflow.get_mut(ask.scope),
            kept => kept,
        }
    }

    fn covers(&mut self, ask: &Ask<'_>, now: Micros) -> bool {
        let Some(kept) = self.kept(ask) else { return ask.cost <= ask.shape.capacity() };
        if kept.state.rewind(&ask.shape, now) {
            kept.idle_at = kept.state.idle_at(&ask.shape);
        }
        kept.state.covers(&ask.shape, ask.cost, now)
    }

    fn level(&mut self, ask: &Ask<'_>, now: Micros) -> Level {
        match self.kept(ask) {
            Some(kept) => kept.state.level(&ask.shape, ask.cost, now),
            None => State::new(&ask.shape, now).level(&ask.shape, ask.cost, now),
        }
    }

    fn charge(&mut self, ask: &Ask<'_>, now: Micros) -> Mark {
        if let Some(kept) = self.states.get_mut(&ask.name) {
            self.entries += kept.state.reserve(&ask.shape);
            return kept.charge(ask, now);
        }
        // Whoever shares a set of slots gives his own back to it: nobody takes them along.
        let shared = if ask.shape.is_held() { None } else { self.overflow.get(ask.scope) };
        let mut kept = match shared {
            Some(shared) => Kept { state: shared.state.clone(), idle_at: shared.idle_at },
            None => Kept { state: State::new(&ask.shape, now), idle_at: now },
        };
        if !self.has_room(ask) {
            self.sweep(now);
        }
        if self.has_room(ask) {
            let mark = kept.charge(ask, now);
            self.entries += kept.state.reserve(&ask.shape);
            self.sweep_at = self.sweep_at.min(kept.idle_at);
            self.states.insert(ask.name, kept);
            mark
        } else {
            self.overflow.entry(ask.scope.into()).or_insert(kept).charge(ask, now)
        }
    }

    fn owe(&mut self, ask: &Ask<'_>, now: Micros) {
        // With nothing, so that it has a state to owe with, its own or the overflow.
        self.charge(&Ask { cost: 0.0, ..*ask }, now);
        let Some(kept) = self.kept(ask) else { return };
        kept.state.owe(&ask.shape, ask.cost, now);
        kept.idle_at = kept.state.idle_at(&ask.shape);
    }

    fn has_room(&self, ask: &Ask<'_>) -> bool {
        self.states.len() < self.max && self.entries + ask.shape.entries() <= SHARD_ENTRIES_MAX
    }

    fn refund(&mut self, ask: &Ask<'_>, mark: &Mark, now: Micros) {
        // Its own or, if it was made before the identity had one, what it shared.
        let states = self.states.get_mut(&ask.name).into_iter().chain(self.overflow.get_mut(ask.scope));
        let refunded = |kept: &mut &mut Kept| kept.state.refund(&ask.shape, mark, now);
        let Some(kept) = states.into_iter().find_map(|mut kept| refunded(&mut kept).then_some(kept)) else { return };
        kept.idle_at = kept.state.idle_at(&ask.shape);
        self.sweep_at = self.sweep_at.min(kept.idle_at);
    }

    /// Forgets what is idle.
    fn sweep(&mut self, now: Micros) {
        if now < self.sweep_at {
            return;
        }
        self.states.retain(|_, kept| kept.idle_at > now);
        self.overflow.retain(|_, kept| kept.idle_at > now);
        self.entries = self.states.values().map(|kept| kept.state.reserved()).sum();
        self.sweep_at = self.states.values().map(|kept| kept.idle_at).fold(f64::INFINITY, f64::min);
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
