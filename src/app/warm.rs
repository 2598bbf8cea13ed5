//! What the fleet reads most: told by each pod as it serves, and preloaded by a new one before it is ready.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::admin::readiness::{Blocker, Readiness};
use crate::cache::Cache;
use crate::cache::shared::SharedTier;
use crate::kv::{self, Budget, Redis};

/// How often a pod tells what it has counted.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Entries that are asked for at once.
const AT_ONCE: usize = 64;

/// Longest that one question waits for Redis.
const PATIENCE: Duration = Duration::from_millis(500);

/// What both need.
struct Warmth {
    cache: Arc<Cache>,
    tier: Arc<SharedTier>,
    kv: Arc<kv::Shared>,
}

/// Begins, if it is wanted; the pod is not ready before it has preloaded.
pub(super) fn start(
    runtime: &Runtime,
    readiness: &Readiness,
    cache: &Arc<Cache>,
    shared: Option<(&Arc<SharedTier>, &Arc<kv::Shared>)>,
) {
    if let Some((tier, kv)) = shared.filter(|_| cache.settings().preload > 0) {
        let warmth = Warmth { cache: Arc::clone(cache), tier: Arc::clone(tier), kv: Arc::clone(kv) };
        runtime.spawn(warmth.run(readiness.block("preload")));
    }
}

impl Warmth {
    /// Preloads for as long as it may take, then tells what is read, for ever.
    async fn run(self, blocker: Blocker) {
        // Made here, because connections live on the runtime that opens them.
        let redis = Redis::control(Arc::clone(&self.kv));
        let began = Instant::now();
        let until = began + self.cache.settings().preload_wait;
        let loaded = tokio::time::timeout_at(until, self.preload(&redis, until)).await.unwrap_or(None);
        let took_ms = began.elapsed().as_millis() as u64;
        match loaded {
            Some(keys) => tracing::info!(keys, took_ms, "preloaded what the fleet reads most"),
            None => tracing::warn!(took_ms, "not all of what the fleet reads most could be preloaded; serving without"),
        }
        drop(blocker);
        loop {
            sleep(TELL_EVERY).await;
            let hottest = self.cache.hottest();
            if !hottest.is_empty()
                && let Err(error) = self.tier.tell_hot(&redis, &hottest, TELL_EVERY, &mut Budget::new(PATIENCE)).await
            {
                tracing::debug!(%error, "Redis could not be told what is read most");
            }
        }
    }

    /// Keeps the hottest in memory; how many, where the list could be had.
    async fn preload(&self, redis: &Redis, until: Instant) -> Option<usize> {
        // What is stored can only be judged by who knows what was invalidated.
        self.cache.invalidation().ready().await;
        let keys = self.cache.settings().preload;
        let names = self.tier.hottest(redis, keys, &mut Budget::new(PATIENCE)).await.ok()?;
        let (mut loading, mut loaded) = (JoinSet::new(), 0);
        for name in names {
            if Instant::now() >= until {
                break;
            }
            if loading.len() >= AT_ONCE {
                loaded += usize::from(matches!(loading.join_next().await, Some(Ok(true))));
            }
            let (cache, tier, redis) = (Arc::clone(&self.cache), Arc::clone(&self.tier), redis.clone());
            loading.spawn(async move {
                let stored = tier.named(&redis, &name, &mut Budget::new(PATIENCE)).await;
                stored.is_some_and(|stored| cache.preload(stored))
            });
        }
        while let Some(done) = loading.join_next().await {
            loaded += usize::from(matches!(done, Ok(true)));
        }
        Some(loaded)
    }
}
