//! One part of the table of states in memory: who is in it, who has to make room, and what is known of those who are not.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::algorithm::{Level, Mark, Micros, Shape, State};
use super::bucket::Bucket;
use super::identity::LocalName;
use super::local::{Ask, ENTRIES_MAX, SHARDS, Spread};
use super::sketch::Sketch;

/// Entries in one shard.
pub(super) const SHARD_ENTRIES_MAX: usize = ENTRIES_MAX / SHARDS;

/// Buckets of which the one that is full first makes room; as many as Redis looks at for what it evicts.
const SAMPLE: usize = 5;

/// Pause between two searches of a full shard for what may be forgotten.
const SWEEP_EVERY: Micros = 1_000_000.0;

/// A state, and when it may be forgotten.
pub(super) struct Kept {
    pub(super) state: State,
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
pub(super) struct Limit {
    pub(super) scope: Box<str>,
    /// As it was asked for last.
    shape: Shape,
    /// The most that a bucket of it had been given back which is gone, in requests. A new one counts as having been given
    /// back as much: what was charged before is given back by that much less.
    returned: f64,
    /// How many states there are.
    pub(super) states: usize,
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

pub(super) struct Shard {
    max: usize,
    pub(super) states: HashMap<LocalName, Kept, BuildHasherDefault<Spread>>,
    /// One a state, in no order.
    seats: Vec<Seat>,
    /// As many as there are limits; a few that were may be among them.
    pub(super) limits: Vec<Limit>,
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
    pub(super) fn new(max: usize) -> Self {
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

    pub(super) fn covers(&mut self, ask: &Ask<'_>, now: Micros) -> bool {
        let Some(kept) = self.kept(ask) else { return self.owing(ask, now).covers(&ask.shape, ask.cost, now) };
        if kept.state.rewind(&ask.shape, now) {
            kept.idle_at = kept.state.idle_at(&ask.shape);
        }
        kept.state.covers(&ask.shape, ask.cost, now)
    }

    pub(super) fn level(&mut self, ask: &Ask<'_>, now: Micros) -> Level {
        match self.kept(ask) {
            Some(kept) => kept.state.level(&ask.shape, ask.cost, now),
            None => self.owing(ask, now).level(&ask.shape, ask.cost, now),
        }
    }

    pub(super) fn owed(&mut self, ask: &Ask<'_>, now: Micros) -> u64 {
        match self.kept(ask) {
            Some(kept) => kept.state.owed(&ask.shape, now),
            None => self.owing(ask, now).owed(&ask.shape, now),
        }
    }

    pub(super) fn charge(&mut self, ask: &Ask<'_>, now: Micros) -> Mark {
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

    /// Takes so much whether it is there or not; what is lacking is owed.
    pub(super) fn owe(&mut self, ask: &Ask<'_>, now: Micros) {
        // With nothing, so that it has a state to owe with, its own or the overflow.
        self.charge(&Ask { cost: 0.0, ..*ask }, now);
        if let Some(kept) = self.kept(ask) {
            kept.state.owe(&ask.shape, ask.cost, now);
            kept.idle_at = kept.state.idle_at(&ask.shape);
            return;
        }
        // Of all, its bucket was the one to make room.
        let mut state = self.owing(ask, now);
        state.owe(&ask.shape, ask.cost, now);
        if let State::TokenBucket(bucket) = &state {
            let place = self.place(ask);
            self.limits[place].owes(ask.name, bucket, now);
        }
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
    pub(super) fn refund(&mut self, ask: &Ask<'_>, mark: &Mark, now: Micros) -> f64 {
        // Its own or, if it was made before the identity had one, what it shared.
        let overflow = self.limits.iter_mut().find(|limit| *limit.scope == *ask.scope);
        let overflow = overflow.and_then(|limit| limit.overflow.as_mut());
        let states = self.states.get_mut(&ask.name).into_iter().chain(overflow);
        let refunded = |kept: &mut Kept| kept.state.refund(&ask.shape, mark, now);
        let first = states.into_iter().find_map(|kept| refunded(kept).map(|granted| (granted, kept)));
        // What is not there any more has gained it.
        let Some((granted, kept)) = first else { return 0.0 };
        kept.idle_at = kept.state.idle_at(&ask.shape);
        self.sweep_at = self.sweep_at.min(kept.idle_at);
        granted
    }

    /// Begins anew. Where it had to make room, it has a bucket again, as long as there is room for one that is full.
    pub(super) fn reset(&mut self, ask: &Ask<'_>, now: Micros) {
        let state = match &ask.shape {
            // What was charged before is not given back to it any more.
            Shape::TokenBucket(shape) => {
                let returned = match self.states.get(&ask.name).map(|kept| &kept.state) {
                    Some(State::TokenBucket(bucket)) => bucket.returned(),
                    _ => self.limit(ask.scope).map_or(0.0, |limit| limit.returned),
                };
                let returned = (returned * shape.price).ceil() + shape.capacity;
                State::TokenBucket(Bucket::owing(shape, now, now, returned))
            }
            _ => State::new(&ask.shape, now),
        };
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
