//! The sliding log, pure: `now` is an argument, and `sliding_log.lua` is its twin.
//!
//! The time of each request that was admitted is kept for a period. In every window of a period's length at most
//! `amount` requests: exact, for as many times as that. (A window without its end: who was admitted a period ago is
//! admitted again.)

use std::collections::VecDeque;

use super::algorithm::{CLOCK_BACK_MAX_US, Level, Micros, NEVER_MS};
use super::window::Window;

/// One identity's log, oldest first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SlidingLog {
    entries: VecDeque<Entry>,
    /// Entries that the table has set aside for it.
    pub reserved: usize,
}

/// What one request cost is so many entries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// When it was admitted.
    pub at: Micros,
    /// Whose it is: a request that is given back takes its entries along.
    pub id: u64,
}

impl SlidingLog {
    /// Takes the log along with a clock that was set back; whether it was.
    pub fn rewind(&mut self, now: Micros) -> bool {
        let Some(ahead) = self.entries.back().map(|newest| newest.at - now) else { return false };
        if ahead <= CLOCK_BACK_MAX_US {
            return false;
        }
        self.entries.iter_mut().for_each(|entry| entry.at -= ahead);
        true
    }

    /// Whether there is room for so much. Only true where the clock was not set back, like all below.
    pub fn covers(&self, shape: &Window, cost: f64, now: Micros) -> bool {
        self.live(shape, now) as f64 + cost <= shape.amount
    }

    /// Notes so much, or what there is room for; how much.
    pub fn charge(&mut self, shape: &Window, cost: f64, now: Micros, id: u64) -> f64 {
        let (at, live) = (self.time(now), self.live(shape, now));
        self.entries.drain(..self.entries.len() - live);
        let paid = cost.min((shape.amount - live as f64).max(0.0));
        self.entries.extend(std::iter::repeat_n(Entry { at, id }, paid as usize));
        paid
    }

    /// Takes out what is noted as `id`; whether there was any.
    pub fn refund(&mut self, id: u64) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.id != id);
        self.entries.len() < before
    }

    /// What it says of itself at `now`, to a request that costs so much.
    pub fn level(&self, shape: &Window, cost: f64, now: Micros) -> Level {
        let live = self.live(shape, now);
        let leaves_ms =
            |entry: Option<&Entry>| entry.map_or(0, |entry| ((entry.at + shape.period - now) / 1000.0).ceil() as u64);
        let wait_ms = if cost > shape.amount {
            NEVER_MS
        } else if live as f64 + cost <= shape.amount {
            0
        } else {
            // When the last of those that stand in the way leaves.
            let in_the_way = (live as f64 + cost - shape.amount) as usize;
            leaves_ms(self.entries.get(self.entries.len() - live + in_the_way - 1))
        };
        Level {
            remaining: (shape.amount - live as f64).max(0.0) as u64,
            wait_ms,
            full_ms: if live > 0 { leaves_ms(self.entries.back()) } else { 0 },
        }
    }

    /// When nothing counts any more.
    pub fn idle_at(&self, shape: &Window) -> Micros {
        self.entries.back().map_or(0.0, |newest| newest.at + shape.period)
    }

    /// What is kept, oldest first.
    #[cfg(test)]
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Never before the newest: a clock that goes back a little is waited for.
    fn time(&self, now: Micros) -> Micros {
        self.entries.back().map_or(now, |newest| newest.at.max(now))
    }

    /// How many count at `now`: the last so many.
    fn live(&self, shape: &Window, now: Micros) -> usize {
        let past = self.time(now) - shape.period;
        self.entries.len() - self.entries.partition_point(|entry| entry.at <= past)
    }
}
