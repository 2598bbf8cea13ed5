//! Buckets in this process' memory: all there is without Redis, and the shadow that takes over while Redis is away.
//!
//! Bounded without handing out fresh bursts: only full buckets leave, because a new one is full as well. A shard that
//! has none to give up charges newcomers to one overflow bucket a limit, which they share; when there is room again, a
//! newcomer's own bucket starts at the overflow's level, never above what its identity may have taken from it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard};

use smallvec::SmallVec;

use super::bucket::{Bucket, Level, Mark, Micros, Shape};
use super::identity::LocalName;

/// Buckets in all shards together: about 6.5 MiB of them.
pub const BUCKETS_MAX: usize = 100_000;

/// Locks that the buckets are spread over.
const SHARDS: usize = 64;

/// Buckets in one shard.
const SHARD_MAX: usize = BUCKETS_MAX / SHARDS;

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
}

/// What one bucket answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// The charge, if one was made.
    pub mark: Option<Mark>,
    /// What the bucket says of itself afterwards.
    pub level: Level,
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
        let mut shards = self.lock(asks);
        let mut buckets: Few<Bucket> = SmallVec::new();
        for ask in asks {
            buckets.push(shards.of(ask.name).peek(ask, now));
        }
        let admitted = asks.iter().zip(&buckets).all(|(ask, bucket)| !ask.enforced || bucket.covers(&ask.shape));
        let mut readings: Few<Reading> = SmallVec::new();
        for (ask, bucket) in asks.iter().zip(&mut buckets) {
            let mut mark = None;
            if admitted && bucket.covers(&ask.shape) {
                mark = Some(bucket.charge(&ask.shape, now));
                shards.of(ask.name).store(ask, *bucket, now);
            }
            readings.push(Reading { mark, level: bucket.level(&ask.shape, now) });
        }
        readings
    }

    /// Charges a bucket for what somebody else let through, as far as it goes.
    pub fn shadow(&self, ask: &Ask<'_>, now: Micros) -> Mark {
        let mut shard = self.shard(ask.name);
        let mut bucket = shard.peek(ask, now);
        let mark = bucket.charge(&ask.shape, now);
        shard.store(ask, bucket, now);
        mark
    }

    /// Gives a charge back.
    pub fn refund(&self, ask: &Ask<'_>, mark: &Mark, now: Micros) {
        let mut shard = self.shard(ask.name);
        let mut bucket = shard.peek(ask, now);
        bucket.refund(&ask.shape, mark);
        shard.store(ask, bucket, now);
    }

    #[cfg(test)]
    pub(crate) fn bucket(&self, name: LocalName) -> Option<Bucket> {
        self.shard(name).buckets.get(&name).map(|kept| kept.bucket)
    }

    /// How many buckets there are, overflow left out.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| locked(shard).buckets.len()).sum()
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

/// A bucket, and when it may be forgotten.
struct Kept {
    bucket: Bucket,
    full_at: Micros,
}

struct Shard {
    max: usize,
    buckets: HashMap<LocalName, Kept, BuildHasherDefault<Spread>>,
    /// By limit; as many as there are limits.
    overflow: HashMap<Box<str>, Kept>,
    /// Nothing is full before this, so that a flood of newcomers does not scan the shard for each of them.
    sweep_at: Micros,
}

impl Shard {
    fn new(max: usize) -> Self {
        Self { max, buckets: HashMap::default(), overflow: HashMap::new(), sweep_at: 0.0 }
    }

    /// The bucket as it is at `now`; a newcomer's is the limit's overflow, or full.
    fn peek(&mut self, ask: &Ask<'_>, now: Micros) -> Bucket {
        let kept = match self.buckets.get_mut(&ask.name) {
            None if !self.overflow.is_empty() => self.overflow.get_mut(ask.scope),
            kept => kept,
        };
        let Some(kept) = kept else { return Bucket::full(&ask.shape, now) };
        let mut bucket = kept.bucket;
        // That the clock was set back is kept, though the request be denied: from a stamp that has not come yet, nothing
        // comes in.
        if bucket.refill(&ask.shape, now) {
            *kept = Kept { bucket, full_at: bucket.full_at(&ask.shape) };
        }
        bucket
    }

    /// Keeps what became of a peeked bucket.
    fn store(&mut self, ask: &Ask<'_>, bucket: Bucket, now: Micros) {
        let kept = Kept { bucket, full_at: bucket.full_at(&ask.shape) };
        if let Some(known) = self.buckets.get_mut(&ask.name) {
            *known = kept;
            return;
        }
        if self.buckets.len() >= self.max {
            self.sweep(now);
        }
        if self.buckets.len() < self.max {
            self.sweep_at = self.sweep_at.min(kept.full_at);
            self.buckets.insert(ask.name, kept);
        } else {
            self.overflow.insert(ask.scope.into(), kept);
        }
    }

    /// Forgets what is full.
    fn sweep(&mut self, now: Micros) {
        if now < self.sweep_at {
            return;
        }
        self.buckets.retain(|_, kept| kept.full_at > now);
        self.overflow.retain(|_, kept| kept.full_at > now);
        self.sweep_at = self.buckets.values().map(|kept| kept.full_at).fold(f64::INFINITY, f64::min);
    }
}

/// A name is a hash already.
#[derive(Default)]
struct Spread(u64);

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
