//! Requests in flight, pure: `now` is an argument, and `concurrency.lua` is its twin.
//!
//! At most `max` at once. Each holds a slot, which it gives back at its end; in Redis a slot is a lease, which its pod
//! renews for as long as the request runs, so that the slots of a pod that died leave by themselves.

use super::algorithm::{CLOCK_BACK_MAX_US, FAR_US, Level, Micros};

/// How long a slot in Redis outlives the last word of its pod.
pub const LEASE_MS: u64 = 10_000;

/// What a client is told to wait: nobody knows when a request ends, and this is when it is worth another try.
const WAIT_MS: u64 = 1000;

/// So many at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slots {
    /// Requests in flight; whole, at least one.
    pub max: f64,
    /// How long a slot is held without a renewal.
    pub lease: Micros,
}

/// One identity's requests in flight.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Held(Vec<Slot>);

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slot {
    /// Which.
    pub id: u64,
    /// Until when it counts.
    pub until: Micros,
}

impl Slots {
    /// So many at once, in Redis.
    pub fn new(max: u32) -> Self {
        Self { max: f64::from(max.max(1)), lease: LEASE_MS as f64 * 1000.0 }
    }

    /// One pod's part of it, at least one: in this process' memory, where a slot is given back or ends with the process.
    pub fn divided(self, pods: u32) -> Self {
        Self { max: (self.max / f64::from(pods.max(1))).floor().max(1.0), lease: FAR_US }
    }
}

impl Held {
    /// Takes the slots along with a clock that was set back; whether it was.
    pub fn rewind(&mut self, shape: &Slots, now: Micros) -> bool {
        let ahead = self.last() - shape.lease - now;
        if ahead <= CLOCK_BACK_MAX_US {
            return false;
        }
        self.0.iter_mut().for_each(|slot| slot.until -= ahead);
        true
    }

    /// Whether another may begin.
    pub fn covers(&self, shape: &Slots, cost: f64, now: Micros) -> bool {
        self.live(now) + cost <= shape.max
    }

    /// Begins another, whether there is room or not: it runs.
    pub fn charge(&mut self, shape: &Slots, now: Micros, id: u64) {
        self.0.retain(|slot| slot.until > now);
        self.0.push(Slot { id, until: now + shape.lease });
    }

    /// Ends one; whether it was held.
    pub fn refund(&mut self, id: u64) -> bool {
        let at = self.0.iter().position(|slot| slot.id == id);
        at.is_some_and(|at| self.0.swap_remove(at).id == id)
    }

    /// What it says of itself at `now`.
    pub fn level(&self, shape: &Slots, cost: f64, now: Micros) -> Level {
        let wait_ms = if self.covers(shape, cost, now) { 0 } else { WAIT_MS };
        Level { remaining: (shape.max - self.live(now)).max(0.0) as u64, wait_ms, full_ms: 0 }
    }

    /// When none counts any more.
    pub fn idle_at(&self) -> Micros {
        self.last()
    }

    /// Those that are kept.
    #[cfg(test)]
    pub(crate) fn slots(&self) -> &[Slot] {
        &self.0
    }

    /// Until when the last of them counts; 0 if there is none.
    fn last(&self) -> Micros {
        self.0.iter().map(|slot| slot.until).fold(0.0, f64::max)
    }

    fn live(&self, now: Micros) -> f64 {
        self.0.iter().filter(|slot| slot.until > now).count() as f64
    }
}
