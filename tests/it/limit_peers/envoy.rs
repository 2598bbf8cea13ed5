//! Models of the limits that Envoy has: the rate limit service and the filter that counts by itself.
//!
//! Sources: github.com/envoyproxy/ratelimit, `src/redis/fixed_cache_impl.go` at 6c6a8bfe65d5 (what is incremented, and when),
//! `src/limiter/base_limiter.go` (what is over the limit), `src/settings/settings.go` (defaults), issues 185 and 1060;
//! github.com/envoyproxy/envoy, `source/extensions/filters/common/local_ratelimit/local_ratelimit_impl.cc` at 5a6c7aa8adbf and
//! `dynamic_descriptor.cc` at e53c4a4b27ab (buckets of a process, by identity, the last used ones of them), and the rate limit
//! filter's `failure_mode_deny`, false by default.

use std::collections::{HashMap, HashSet};

use super::histories::{Micros, PODS, Quota};
use super::table::Lru;
use super::{Clocks, Peer};

/// The rate limit service beside each pod, on one Redis: a counter for each limit, identity and window of the service's clock.
pub struct RateLimit {
    quotas: &'static [Quota],
    clocks: Clocks,
    counts: HashMap<Key, u64>,
    is_up: bool,
    /// `STOP_CACHE_KEY_INCREMENT_WHEN_OVERLIMIT`, which is off by default, and with it a cache of what is over its limit.
    stops: bool,
    over: Vec<HashSet<Key>>,
    charged: f64,
}

/// Limit, identity, beginning of the window in seconds.
type Key = (usize, u32, u64);

impl RateLimit {
    pub fn new(quotas: &'static [Quota], stops: bool) -> Self {
        let over = vec![HashSet::new(); PODS];
        Self { quotas, clocks: Clocks::default(), counts: HashMap::new(), is_up: true, stops, over, charged: 0.0 }
    }
}

impl Peer for RateLimit {
    fn ask(&mut self, at: Micros, pod: usize, who: u32) -> bool {
        if !self.is_up {
            // The service answers with an error, and the filter lets through.
            return true;
        }
        let now_s = self.clocks.seconds(at, pod);
        let key = |(nth, quota): (usize, &Quota)| (nth, who, now_s / quota.period_s * quota.period_s);
        let keys: Vec<Key> = self.quotas.iter().enumerate().map(key).collect();
        let known: Vec<bool> = keys.iter().map(|key| self.stops && self.over[pod].contains(key)).collect();
        let any_known = known.contains(&true);
        let would_be_over = |key: &Key| self.counts.get(key).unwrap_or(&0) + 1 > u64::from(self.quotas[key.0].amount);
        let near: Vec<bool> = keys.iter().map(|key| self.stops && !any_known && would_be_over(key)).collect();
        let any_near = near.contains(&true);
        let mut admitted = true;
        for (key, (known, near)) in keys.iter().zip(known.into_iter().zip(near)) {
            if known {
                admitted = false;
                continue;
            }
            // Without the option every key is counted up; with it, of a request that is denied only what denies it.
            let adds = !self.stops || (!any_known && (!any_near || near));
            let count = self.counts.entry(*key).or_default();
            *count += u64::from(adds);
            if adds && key.0 + 1 == self.quotas.len() {
                self.charged += 1.0;
            }
            if *count > u64::from(self.quotas[key.0].amount) {
                admitted = false;
                if self.stops {
                    self.over[pod].insert(*key);
                }
            }
        }
        admitted
    }

    fn restart(&mut self, pod: usize) {
        self.over[pod].clear();
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

/// The filter `local_ratelimit`: token buckets of each process, by its steady clock.
pub struct Local {
    quotas: &'static [Quota],
    pods: Vec<Lru<(usize, u32), Bucket>>,
    /// Tokens that a request costs: the pods, where `local_cluster_rate_limit` divides the limit among them.
    price: f64,
    charged: f64,
}

/// `max_dynamic_descriptors`, unless it is set.
const DESCRIPTORS: usize = 20;

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Micros,
}

impl Local {
    pub fn new(quotas: &'static [Quota], is_shared: bool) -> Self {
        let price = if is_shared { PODS as f64 } else { 1.0 };
        Self { quotas, pods: (0..PODS).map(|_| Lru::new(DESCRIPTORS)).collect(), price, charged: 0.0 }
    }
}

impl Peer for Local {
    fn ask(&mut self, at: Micros, pod: usize, who: u32) -> bool {
        // The slowest bucket first; what was taken before another denies is not given back.
        let mut order: Vec<usize> = (0..self.quotas.len()).collect();
        order.sort_by(|&one, &other| self.quotas[one].rate().total_cmp(&self.quotas[other].rate()));
        for nth in order {
            let quota = self.quotas[nth];
            let full = f64::from(quota.amount);
            let bucket = self.pods[pod].of((nth, who), || Bucket { tokens: full, at });
            bucket.tokens = (bucket.tokens + quota.rate() * (at - bucket.at) as f64 / 1e6).min(full);
            bucket.at = at;
            if bucket.tokens < self.price {
                return false;
            }
            bucket.tokens -= self.price;
            if nth + 1 == self.quotas.len() {
                self.charged += 1.0;
            }
        }
        true
    }

    fn restart(&mut self, pod: usize) {
        self.pods[pod] = Lru::new(DESCRIPTORS);
    }

    fn charged(&mut self) -> f64 {
        self.charged
    }
}
