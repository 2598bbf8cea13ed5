//! Models of limitador.
//!
//! Sources: github.com/Kuadrant/limitador, `limitador/src/storage/redis/scripts.rs` at 13cf1f6d61f7 and `redis_async.rs` (all
//! counters are read, then all are counted up; a window begins with its first request and ends with the key's TTL), `redis_cached.rs` and
//! `counters_cache.rs` at 443ef8c0d031 (what is counted here, and when Redis hears of it), `limitador-server/src/envoy_rls/server.rs`
//! at a5ac755b20d2 (an error of the storage is left to `failure_mode_deny`, which is false by default).
//!
//! Not modelled: the storage in memory, which is one process' (its table keeps those that come often), and the distributed one.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::histories::{Micros, PODS, Quota};
use super::{Clocks, Peer};

/// Limit and identity.
type Key = (usize, u32);

/// From a question to Redis to its answer; a command that follows an answer is done so much later.
const TRIP: Micros = 1_000;

fn keys(quotas: &[Quota], who: u32) -> Vec<Key> {
    (0..quotas.len()).map(|nth| (nth, who)).collect()
}

/// Redis' counters, by its own clock.
#[derive(Default)]
struct Counters(HashMap<Key, (u64, Micros)>);

impl Counters {
    fn at(&self, key: Key, now: Micros) -> u64 {
        self.0.get(&key).filter(|(_, ends)| *ends > now).map_or(0, |(count, _)| *count)
    }

    /// Count and end, with so many more.
    fn add(&mut self, key: Key, by: u64, period_s: u64, now: Micros) -> (u64, Micros) {
        let fresh = (0, now + period_s * 1_000_000);
        let counter = self.0.entry(key).or_insert(fresh);
        if counter.1 <= now {
            *counter = fresh;
        }
        counter.0 += by;
        *counter
    }
}

/// The storage `redis`.
pub struct Redis {
    quotas: &'static [Quota],
    counters: Counters,
    /// What is on its way to be counted, and when it will be.
    writes: VecDeque<(Micros, Key)>,
    is_up: bool,
    charged: f64,
}

impl Redis {
    pub fn new(quotas: &'static [Quota]) -> Self {
        Self { quotas, counters: Counters::default(), writes: VecDeque::new(), is_up: true, charged: 0.0 }
    }
}

impl Peer for Redis {
    fn ask(&mut self, at: Micros, _pod: usize, who: u32) -> bool {
        while let Some((due, key)) = self.writes.front().copied().filter(|(due, _)| *due <= at) {
            self.writes.pop_front();
            self.counters.add(key, 1, self.quotas[key.0].period_s, due);
        }
        if !self.is_up {
            return true;
        }
        let keys = keys(self.quotas, who);
        let admitted = keys.iter().all(|key| self.counters.at(*key, at) < u64::from(self.quotas[key.0].amount));
        if admitted {
            self.writes.extend(keys.iter().map(|key| (at + TRIP, *key)));
            self.charged += 1.0;
        }
        admitted
    }

    fn redis(&mut self, is_up: bool) {
        self.is_up = is_up;
    }

    fn charged(&mut self) -> f64 {
        self.charged
    }
}

/// The storage `redis_cached`: each process counts by itself, and tells Redis every second; a counter that it has not heard of
/// yet, and one that ends within that time, at once.
pub struct Cached {
    quotas: &'static [Quota],
    counters: Counters,
    clocks: Clocks,
    nodes: Vec<Node>,
    is_up: bool,
    charged: f64,
}

/// `flush_period`, unless it is set.
const FLUSH: Micros = 1_000_000;

#[derive(Default)]
struct Node {
    counters: HashMap<Key, Counter>,
    /// Those that Redis is to be told of.
    changed: BTreeSet<Key>,
    flush_at: Option<Micros>,
}

/// A counter as one process knows it.
struct Counter {
    value: u64,
    /// Of it what Redis knows.
    told: u64,
    /// By the process' wall clock.
    ends: u64,
    is_known: bool,
}

impl Cached {
    pub fn new(quotas: &'static [Quota]) -> Self {
        let nodes = (0..PODS).map(|_| Node::default()).collect();
        Self { quotas, counters: Counters::default(), clocks: Clocks::default(), nodes, is_up: true, charged: 0.0 }
    }

    /// What is due by now: a process tells Redis what it counted, and learns what the others did.
    fn flush(&mut self, at: Micros) {
        for (pod, node) in self.nodes.iter_mut().enumerate() {
            let Some(due) = node.flush_at.filter(|due| *due <= at) else { continue };
            node.flush_at = None;
            if !self.is_up {
                // What could not be told is to be told later.
                node.flush_at = Some(due + FLUSH);
                continue;
            }
            let wall = self.clocks.micros(due, pod);
            for key in std::mem::take(&mut node.changed) {
                let Some(counter) = node.counters.get_mut(&key) else { continue };
                let value = if counter.ends <= wall { 0 } else { counter.value };
                let fresh = value.checked_sub(counter.told).unwrap_or(value);
                counter.told = value;
                if fresh == 0 {
                    continue;
                }
                let (count, ends) = self.counters.add(key, fresh, self.quotas[key.0].period_s, due);
                let others = count.saturating_sub(value);
                // By a clock that is ahead of Redis', the counter is over already: nothing is learnt.
                let ends = self.clocks.wall(ends);
                if ends > wall {
                    *counter = Counter { value: value + others, told: value + others, ends, is_known: true };
                }
            }
        }
    }
}

impl Peer for Cached {
    fn ask(&mut self, at: Micros, pod: usize, who: u32) -> bool {
        self.flush(at);
        let wall = self.clocks.micros(at, pod);
        let node = &mut self.nodes[pod];
        let keys = keys(self.quotas, who);
        let count =
            |key: &Key| node.counters.get(key).filter(|counter| counter.ends > wall).map_or(0, |known| known.value);
        if !keys.iter().all(|key| count(key) < u64::from(self.quotas[key.0].amount)) {
            return false;
        }
        self.charged += 1.0;
        for key in keys {
            let ends = wall + self.quotas[key.0].period_s * 1_000_000;
            let fresh = || Counter { value: 0, told: 0, ends, is_known: false };
            let counter = node.counters.entry(key).or_insert_with(fresh);
            if counter.ends <= wall {
                (counter.value, counter.told, counter.ends) = (0, 0, ends);
            }
            counter.value += 1;
            node.changed.insert(key);
            let at_once = !counter.is_known || counter.ends - wall <= FLUSH;
            let due = at + if at_once { TRIP } else { FLUSH };
            node.flush_at = Some(node.flush_at.map_or(due, |earlier| earlier.min(due)));
        }
        true
    }

    fn restart(&mut self, pod: usize) {
        self.nodes[pod] = Node::default();
    }

    fn redis(&mut self, is_up: bool) {
        self.is_up = is_up;
    }

    fn clock(&mut self, pod: usize, ahead: i64) {
        self.clocks.set(pod, ahead);
    }

    fn charged(&mut self) -> f64 {
        self.charged
    }
}
