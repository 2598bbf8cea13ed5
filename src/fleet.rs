//! Who is alive. Elections of one pod for a task, and what each pod has applied, will stand on the same membership.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::invalidation::Invalidation;

/// The pods that share one Redis and namespace, as this one sees them.
pub struct Fleet {
    invalidation: Arc<Invalidation>,
    /// `redis.replicas`.
    replicas: u32,
    /// Pods when they could last be seen; 0 is never.
    seen: AtomicU32,
}

impl Fleet {
    /// The fleet that `invalidation` is part of; `replicas` where it cannot be seen.
    pub fn new(invalidation: Arc<Invalidation>, replicas: u32) -> Self {
        Self { invalidation, replicas: replicas.max(1), seen: AtomicU32::new(0) }
    }

    /// Pods that were heard of within three proofs, at least 1: this one. While Redis is away they cannot be seen, and it
    /// is the larger of those last seen and `redis.replicas`: a rate divided by too many admits too little, by too few too
    /// much.
    pub fn pods(&self) -> u32 {
        let status = self.invalidation.status();
        if status.pods > 0 {
            self.seen.store(status.pods, Ordering::Relaxed);
        }
        let seen = self.seen.load(Ordering::Relaxed);
        if status.connected && seen > 0 { seen } else { seen.max(self.replicas) }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;
    use crate::clock::Clock;
    use crate::metrics::Metrics;

    #[test]
    fn without_redis_a_pod_is_alone() {
        let alone = Invalidation::local(Clock::system(), Metrics::new(Registry::new()));
        assert_eq!(Fleet::new(alone, 4).pods(), 1);
    }
}
