//! What is done for limits and leases from time to time, whatever requests do.

use std::sync::Arc;

use tokio::time::{MissedTickBehavior, interval};

use crate::cache::shared::SharedTier;
use crate::kv;
use crate::limit::{self, Limiter};

/// Renews what running requests hold of limits, for as long as the process runs.
pub(super) async fn renew(limiter: Arc<Limiter>, kv: Arc<kv::Shared>) {
    let redis = kv::Redis::control(kv);
    let mut tick = interval(limit::RENEWAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        limiter.renew(&redis).await;
    }
}

/// Gives back what this pod was lent of limits and does not use, for as long as the process runs.
pub(super) async fn repay(limiter: Arc<Limiter>, kv: Arc<kv::Shared>) {
    let redis = kv::Redis::control(kv);
    let mut tick = interval(limit::REPAYMENT);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        limiter.repay(&redis, false).await;
    }
}

/// Tells servers of leases that have ended what they may not know, for as long as the process runs.
pub(super) async fn tell_ended(tier: Arc<SharedTier>, kv: Arc<kv::Shared>) {
    tier.tell_ended(&kv::Redis::control(kv)).await;
}

/// Reads for whom limits are others, for as long as the process runs.
pub(super) async fn read_tiers(limiter: Arc<Limiter>, kv: Arc<kv::Shared>) {
    let redis = kv::Redis::control(kv);
    let mut tick = interval(limit::tiers::REFRESH);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        limiter.read_tiers(&redis).await;
    }
}
