//! States in this process' memory: all there is without Redis, and the shadow that takes over while Redis is away.
//!
//! Bounded without handing out fresh bursts. What is as good as new is forgotten. Where nothing is, a token bucket makes
//! room for another, and what its identity owes is estimated from then on, never too low ([`sketch`](super::sketch)). Of
//! other algorithms no state leaves before it is as good as new; newcomers share one overflow a limit, and when there is
//! room again, a newcomer's own state starts at the overflow's level, never above what it may have taken from it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard};

use smallvec::SmallVec;

use super::algorithm::{Level, Mark, Micros, Shape, State};
use super::bucket::Bucket;
use super::identity::LocalName;
use super::sketch::Sketch;

/// States in all shards together.
pub const STATES_MAX: usize = 100_000;

/// Entries that logs may have in all shards together: 16 bytes each, and as much again while a log grows.
pub const ENTRIES_MAX: usize = 2_000_000;

/// Locks that the states are spread over.
const SHARDS: usize = 64;

/// States in one shard.
const SHARD_MAX: usize = STATES_MAX / SHARDS;

/// Entries in one shard.
const SHARD_ENTRIES_MAX: usize = ENTRIES_MAX / SHARDS;

/// Buckets of which the one that is full first makes room; as many as Redis looks at for what it evicts.
const SAMPLE: usize = 5;

/// Pause between two searches of a full shard for what may be forgotten.
const SWEEP_EVERY: Micros = 1_000_000.0;

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

    /// Gives a charge back; one whose bucket is gone was as good as given back.
    pub fn refund(&self, ask: &Ask<'_>, mark: &Mark, now: Micros) {
        self.shard(ask.name).refund(ask, mark, now);
    }

    /// What a bucket says of itself, and whether it is there; nothing is charged.
    pub fn peek(&self, ask: &Ask<'_>, now: Micros) -> (Level, bool) {
        let mut shard = self.shard(ask.name);
        (shard.level(ask, now), shard.states.contains_key(&ask.name))
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

/// Where a state is, to be chosen from by chance.
struct Seat {
    /// The two halves of its name.
    name: [u64; 2],
    /// Its limit's place.
    limit: u32,
}

/// What a shard knows of a limit beside its states.
struct Limit {
    scope: Box<str>,
    /// As it was asked for last.
    shape: Shape,
    /// The most that a bucket of it had been given back which is gone, in requests. A new one counts as having been given
    /// back as much: what was charged before is given back by that much less.
    returned: f64,
    /// How many states there are.
    states: usize,
    /// What those share who have none; of algorithms but the token bucket.
    overflow: Option<Kept>,
    /// What those owe who have none; of the token bucket.
    sketch: Option<Sketch>,
}

impl Limit {
    /// Whether it can be forgotten.
    fn is_idle(&self) -> bool {
        self.states == 0 && self.overflow.is_none() && self.sketch.is_none()
    }
}

struct Shard {
    max: usize,
    states: HashMap<LocalName, Kept, BuildHasherDefault<Spread>>,
    /// One a state, in no order.
    seats: Vec<Seat>,
    /// As many as there are limits; a few that were may be among them.
    limits: Vec<Limit>,
    /// What logs have set aside.
    entries: usize,
    /// Nothing is idle before this, so that a flood of newcomers does not scan the shard for each of them.
    sweep_at: Micros,
    /// When it was looked through last.
    swept_at: Micros,
    /// The last number drawn.
    drawn: u64,
}

impl Shard {
    fn new(max: usize) -> Self {
        let (states, seats, limits) = (HashMap::default(), Vec::new(), Vec::new());
        Self { max, states, seats, limits, entries: 0, sweep_at: 0.0, swept_at: f64::NEG_INFINITY, drawn: 1 }
    }

    fn limit(&self, scope: &str) -> Option<&Limit> {
        self.limits.iter().find(|limit| *limit.scope == *scope)
    }

    /// The place of the asked limit, where it is made if there is none.
    fn place(&mut self, ask: &Ask<'_>) -> usize {
        let known = self.limits.iter().position(|limit| *limit.scope == *ask.scope);
        let place = known.or_else(|| self.limits.iter().position(Limit::is_idle)).unwrap_or(self.limits.len());
        if known.is_none() {
            let limit = Limit {
                scope: ask.scope.into(),
                shape: ask.shape,
                returned: 0.0,
                states: 0,
                overflow: None,
                sketch: None,
            };
            match self.limits.get_mut(place) {
                Some(free) => *free = limit,
                None => self.limits.push(limit),
            }
        }
        self.limits[place].shape = ask.shape;
        place
    }

    /// The identity's own state or, for a newcomer, the limit's overflow.
    fn kept(&mut self, ask: &Ask<'_>) -> Option<&mut Kept> {
        match self.states.get_mut(&ask.name) {
            None => self.limits.iter_mut().find(|limit| *limit.scope == *ask.scope)?.overflow.as_mut(),
            kept => kept,
        }
    }

    /// The state of an identity that has none.
    fn owing(&self, ask: &Ask<'_>, now: Micros) -> State {
        match (&ask.shape, self.limit(ask.scope)) {
            (Shape::TokenBucket(shape), Some(limit)) => {
                let full_at = limit.sketch.as_ref().map_or(now, |sketch| sketch.full_at(ask.name, shape, now));
                let returned = (limit.returned * shape.price).ceil();
                State::TokenBucket(Bucket::owing(shape, now, full_at, returned))
            }
            _ => State::new(&ask.shape, now),
        }
    }

    fn covers(&mut self, ask: &Ask<'_>, now: Micros) -> bool {
        let Some(kept) = self.kept(ask) else { return self.owing(ask, now).covers(&ask.shape, ask.cost, now) };
        if kept.state.rewind(&ask.shape, now) {
            kept.idle_at = kept.state.idle_at(&ask.shape);
        }
        kept.state.covers(&ask.shape, ask.cost, now)
    }

    fn level(&mut self, ask: &Ask<'_>, now: Micros) -> Level {
        match self.kept(ask) {
            Some(kept) => kept.state.level(&ask.shape, ask.cost, now),
            None => self.owing(ask, now).level(&ask.shape, ask.cost, now),
        }
    }

    fn charge(&mut self, ask: &Ask<'_>, now: Micros) -> Mark {
        if let Some(kept) = self.states.get_mut(&ask.name) {
            self.entries += kept.state.reserve(&ask.shape);
            return kept.charge(ask, now);
        }
        let place = self.place(ask);
        // Whoever shares a set of slots gives his own back to it: nobody takes them along.
        let shared = if ask.shape.is_held() { None } else { self.limits[place].overflow.as_ref() };
        let mut kept = match shared {
            Some(shared) => Kept { state: shared.state.clone(), idle_at: shared.idle_at },
            None => Kept { state: self.owing(ask, now), idle_at: now },
        };
        if !self.has_room(ask) {
            self.sweep(now);
        }
        if self.has_room(ask) {
            let mark = kept.charge(ask, now);
            self.seat(ask, place, kept);
            return mark;
        }
        if matches!(ask.shape, Shape::TokenBucket(_)) {
            let mark = kept.charge(ask, now);
            self.squeeze(ask, place, kept, now);
            return mark;
        }
        self.limits[place].overflow.get_or_insert(kept).charge(ask, now)
    }

    fn has_room(&self, ask: &Ask<'_>) -> bool {
        self.states.len() < self.max && self.entries + ask.shape.entries() <= SHARD_ENTRIES_MAX
    }

    /// Keeps a newcomer's state, for which there is room.
    fn seat(&mut self, ask: &Ask<'_>, place: usize, mut kept: Kept) {
        self.entries += kept.state.reserve(&ask.shape);
        self.sweep_at = self.sweep_at.min(kept.idle_at);
        self.limits[place].states += 1;
        self.seats.push(Seat { name: [(ask.name >> 64) as u64, ask.name as u64], limit: place as u32 });
        self.states.insert(ask.name, kept);
    }

    /// Keeps a newcomer's bucket where there is no room: of a few buckets and its own, the one that is full first goes,
    /// and what it lacks is only estimated from then on.
    fn squeeze(&mut self, ask: &Ask<'_>, place: usize, kept: Kept, now: Micros) {
        let (mut least, mut gone) = (kept.idle_at, None);
        for _ in 0..self.seats.len().min(SAMPLE) {
            let seat = self.draw() as usize % self.seats.len();
            let name = self.seats[seat].name();
            let Some(Kept { state: State::TokenBucket(bucket), idle_at }) = self.states.get(&name) else { continue };
            if *idle_at < least {
                (least, gone) = (*idle_at, Some((seat, *bucket)));
            }
        }
        match (gone, &kept.state) {
            (Some((seat, bucket)), _) => {
                let Seat { name, limit } = self.seats.swap_remove(seat);
                let name = joined(name);
                let limit = &mut self.limits[limit as usize];
                if let Some(kept) = self.states.remove(&name) {
                    limit.lets_go(&kept.state);
                }
                limit.owes(name, &bucket, now);
                self.seat(ask, place, kept);
            }
            (None, State::TokenBucket(bucket)) => self.limits[place].owes(ask.name, bucket, now),
            (None, _) => {}
        }
    }

    /// A number that nobody has to foresee.
    fn draw(&mut self) -> u64 {
        // Marsaglia, "Xorshift RNGs", 2003.
        self.drawn ^= self.drawn << 13;
        self.drawn ^= self.drawn >> 7;
        self.drawn ^= self.drawn << 17;
        self.drawn
    }

    /// What was charged to a bucket that had to make room is not given back: it is gained again.
    fn refund(&mut self, ask: &Ask<'_>, mark: &Mark, now: Micros) {
        // Its own or, if it was made before the identity had one, what it shared.
        let overflow = self.limits.iter_mut().find(|limit| *limit.scope == *ask.scope);
        let overflow = overflow.and_then(|limit| limit.overflow.as_mut());
        let states = self.states.get_mut(&ask.name).into_iter().chain(overflow);
        let refunded = |kept: &mut &mut Kept| kept.state.refund(&ask.shape, mark, now);
        let Some(kept) = states.into_iter().find_map(|mut kept| refunded(&mut kept).then_some(kept)) else { return };
        kept.idle_at = kept.state.idle_at(&ask.shape);
        self.sweep_at = self.sweep_at.min(kept.idle_at);
    }

    /// Begins anew. Where it had to make room, it has a bucket again, at least until what it was taken to owe is paid off.
    fn reset(&mut self, ask: &Ask<'_>, now: Micros) {
        let state = State::new(&ask.shape, now);
        if let Some(kept) = self.states.get_mut(&ask.name) {
            self.entries -= kept.state.reserved();
            *kept = Kept { state, idle_at: now };
            self.sweep_at = self.sweep_at.min(now);
            return;
        }
        let place = self.place(ask);
        let idle_at = self.owing(ask, now).idle_at(&ask.shape).max(now);
        self.sweep(now);
        if self.has_room(ask) {
            self.seat(ask, place, Kept { state, idle_at });
        } else {
            self.squeeze(ask, place, Kept { state, idle_at: Micros::INFINITY }, now);
            if let Some(kept) = self.states.get_mut(&ask.name) {
                kept.idle_at = idle_at;
            }
        }
    }

    /// Forgets what is idle.
    fn sweep(&mut self, now: Micros) {
        if now < self.sweep_at || now < self.swept_at + SWEEP_EVERY {
            return;
        }
        self.swept_at = now;
        self.seats.retain(|seat| {
            let (name, limit) = (seat.name(), &mut self.limits[seat.limit as usize]);
            let idle = self.states.get(&name).is_none_or(|kept| kept.idle_at <= now);
            if idle && let Some(kept) = self.states.remove(&name) {
                limit.lets_go(&kept.state);
            }
            !idle
        });
        for limit in &mut self.limits {
            limit.overflow.take_if(|kept| kept.idle_at <= now);
            limit.sketch.take_if(|sketch| sketch.is_idle(now));
        }
        self.entries = self.states.values().map(|kept| kept.state.reserved()).sum();
        self.sweep_at = self.states.values().map(|kept| kept.idle_at).fold(f64::INFINITY, f64::min);
    }
}

impl Seat {
    fn name(&self) -> LocalName {
        joined(self.name)
    }
}

fn joined([high, low]: [u64; 2]) -> LocalName {
    u128::from(high) << 64 | u128::from(low)
}

impl Limit {
    /// One of its states leaves.
    fn lets_go(&mut self, state: &State) {
        self.states -= 1;
        if let State::TokenBucket(bucket) = state {
            self.returned = self.returned.max(bucket.returned());
        }
    }

    /// Remembers what a bucket lacks that has to make room.
    fn owes(&mut self, name: LocalName, bucket: &Bucket, now: Micros) {
        let Shape::TokenBucket(shape) = &self.shape else { return };
        let full_at = bucket.at(shape, now).full_at(shape);
        if full_at > now {
            self.sketch.get_or_insert_with(|| Sketch::new(shape)).put(name, full_at, shape, now);
        }
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
