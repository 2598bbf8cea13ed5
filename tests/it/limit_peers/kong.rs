//! Models of Kong's plugin `rate-limiting`.
//!
//! Sources: github.com/Kong/kong, `kong/plugins/rate-limiting/policies/init.lua` at 003ca36200a0 (the policies `local` and
//! `redis`), `kong/plugins/rate-limiting/handler.lua` at 0045b6729003 (all periods are asked, then all are counted up; by
//! `ngx.time`), `schema.lua` (`fault_tolerant`, true by default), pull requests 9538, 10559 and 11859 (`sync_rate`). The policy
//! `cluster` reads and then counts, like `local`, in a database. A pod is one worker: the tables of `sync_rate` are each worker's own.

use std::collections::HashMap;

use super::histories::{Micros, PODS, Quota};
use super::table::Lru;
use super::{Clocks, Peer};

/// Limit, identity, beginning of the window in seconds.
type Key = (usize, u32, u64);

fn keys(quotas: &[Quota], who: u32, now_s: u64) -> Vec<Key> {
    quotas.iter().enumerate().map(|(nth, quota)| (nth, who, now_s / quota.period_s * quota.period_s)).collect()
}

/// `policy = local`: counters in the node's shared memory.
pub struct Local {
    quotas: &'static [Quota],
    clocks: Clocks,
    nodes: Vec<Lru<Key, u64>>,
    charged: f64,
}

/// The dictionary `kong_rate_limiting_counters` is of 12 MiB; an entry with such a key takes 256 bytes of it.
const PLACES: usize = (12 << 20) / 256;

impl Local {
    pub fn new(quotas: &'static [Quota]) -> Self {
        let nodes = (0..PODS).map(|_| Lru::new(PLACES)).collect();
        Self { quotas, clocks: Clocks::default(), nodes, charged: 0.0 }
    }
}

impl Peer for Local {
    fn ask(&mut self, at: Micros, pod: usize, who: u32) -> bool {
        let keys = keys(self.quotas, who, self.clocks.seconds(at, pod));
        let node = &mut self.nodes[pod];
        let admitted = keys.iter().all(|key| *node.of(*key, || 0) < u64::from(self.quotas[key.0].amount));
        if admitted {
            keys.iter().for_each(|key| *node.of(*key, || 0) += 1);
            self.charged += 1.0;
        }
        admitted
    }

    fn restart(&mut self, pod: usize) {
        self.nodes[pod] = Lru::new(PLACES);
    }

    fn clock(&mut self, pod: usize, ahead: i64) {
        self.clocks.set(pod, ahead);
    }

    fn charged(&mut self) -> f64 {
        self.charged
    }
}

/// `policy = redis`.
pub struct Redis {
    quotas: &'static [Quota],
    clocks: Clocks,
    counts: HashMap<Key, i64>,
    is_up: bool,
    /// `sync_rate`; `None` is -1, which counts in Redis at once.
    sync: Option<Micros>,
    nodes: Vec<Node>,
    charged: f64,
}

/// What a worker knows between two times that it tells Redis.
#[derive(Default)]
struct Node {
    /// What Redis said last.
    usage: HashMap<Key, i64>,
    /// What was counted since.
    delta: HashMap<Key, i64>,
    sync_at: Option<Micros>,
}

impl Redis {
    pub fn new(quotas: &'static [Quota], sync: Option<Micros>) -> Self {
        let nodes = (0..PODS).map(|_| Node::default()).collect();
        let clocks = Clocks::default();
        Self { quotas, clocks, counts: HashMap::new(), is_up: true, sync, nodes, charged: 0.0 }
    }

    /// Workers whose time has come tell Redis what they counted; all that they knew is forgotten, whether or not it hears them.
    fn tell(&mut self, at: Micros) {
        for node in &mut self.nodes {
            if node.sync_at.is_some_and(|due| due <= at) {
                if self.is_up {
                    node.delta.iter().for_each(|(key, delta)| *self.counts.entry(*key).or_default() += delta);
                }
                *node = Node::default();
            }
        }
    }

    /// What was used of one limit before this request; `None` if that cannot be known. Where Redis is asked, this counts.
    fn usage(&mut self, pod: usize, key: Key) -> Option<i64> {
        let node = &mut self.nodes[pod];
        if self.sync.is_some()
            && let Some(usage) = node.usage.get(&key)
        {
            return Some(usage + node.delta.get(&key).unwrap_or(&0));
        }
        if !self.is_up {
            return None;
        }
        let count = self.counts.entry(key).or_default();
        *count += 1;
        if self.sync.is_some() {
            node.usage.insert(key, *count - 1);
            node.delta.insert(key, -1);
        } else if key.0 + 1 == self.quotas.len() {
            self.charged += 1.0;
        }
        Some(*count - 1)
    }
}

impl Peer for Redis {
    fn ask(&mut self, at: Micros, pod: usize, who: u32) -> bool {
        self.tell(at);
        let keys = keys(self.quotas, who, self.clocks.seconds(at, pod));
        let mut stops = false;
        let mut is_known = true;
        for key in &keys {
            match self.usage(pod, *key) {
                Some(used) => stops |= i64::from(self.quotas[key.0].amount) - used <= 0,
                None => {
                    is_known = false;
                    break;
                }
            }
        }
        if is_known && stops {
            return false;
        }
        if let Some(sync) = self.sync {
            let node = &mut self.nodes[pod];
            keys.iter().for_each(|key| *node.delta.entry(*key).or_default() += 1);
            node.sync_at.get_or_insert(at + sync);
            self.charged += 1.0;
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
