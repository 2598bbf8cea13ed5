//! What requests hold while they run: slots of limits on requests in flight, given back when they are dropped.
//!
//! In Redis a slot is a lease. `Shelf::renew` renews those of this process; what is not given back, because the process
//! died or Redis did not answer, leaves with its lease.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::algorithm::Micros;
use super::concurrency::LEASE_MS;
use super::identity::LocalName;
use super::local::Local;
use super::shared;
use super::split::{self, Layout};
use super::verdict::Charge;
use crate::clock::Clock;
use crate::kv::{self, Budget};

/// How often leases are renewed: a lost renewal, or two, end none.
pub const RENEWAL: Duration = Duration::from_millis(LEASE_MS / 4);

/// Leases that one script renews: it must not hold up the requests of others.
const BATCH: usize = 100;

/// What requests hold.
pub type Slots = Vec<Slot>;

/// States in memory, and the leases of requests that run.
pub(super) struct Shelf {
    pub(super) local: Local,
    clock: Clock,
    /// Keys in Redis by the request and the name of the state.
    leases: Mutex<HashMap<(u64, LocalName), Vec<u8>>>,
}

/// What one request holds of one limit.
pub struct Slot {
    shelf: Arc<Shelf>,
    redis: Option<kv::Redis>,
    /// None once it was given back.
    charge: Option<Charge>,
}

impl Shelf {
    pub(super) fn new(clock: Clock) -> Self {
        Self { local: Local::new(), clock, leases: Mutex::default() }
    }

    /// This process' own time.
    pub(super) fn steady(&self) -> Micros {
        self.clock.steady() as f64 * 1000.0
    }

    /// Gives back what a charge took of this process' memory; how much of it, from 0 to 1, was not gained again by then.
    pub(super) fn refund(&self, charge: &Charge) -> f64 {
        let Some((shape, mark)) = &charge.local else { return 0.0 };
        let ask = charge.bound.ask(charge.name, *shape, charge.cost, 0);
        self.local.refund(&ask, mark, self.steady())
    }

    /// Renews the leases of all requests that run.
    pub(super) async fn renew(&self, redis: &kv::Redis) {
        let held: Vec<_> = self.leases().iter().map(|((id, _), key)| (id.to_le_bytes(), key.clone())).collect();
        let lease_us = (LEASE_MS * 1000).to_string();
        for batch in held.chunks(BATCH) {
            let keys: Vec<&[u8]> = batch.iter().map(|(_, key)| key.as_slice()).collect();
            let mut args: Vec<&[u8]> = vec![b"", lease_us.as_bytes()];
            args.extend(batch.iter().map(|(id, _)| id.as_slice()));
            // Unanswered: the next is in time.
            let mut budget = Budget::new(RENEWAL);
            let _ = split::run(redis, &shared::RENEW, &keys, &args, Layout::RENEW, &mut budget).await;
        }
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<(u64, LocalName), Vec<u8>>> {
        self.leases.lock().expect("no panic while held")
    }
}

impl Slot {
    pub(super) fn new(shelf: &Arc<Shelf>, redis: Option<&kv::Redis>, charge: Charge) -> Self {
        let redis = redis.filter(|_| charge.redis.is_some()).cloned();
        if let Some((key, mark)) = &charge.redis {
            shelf.leases().insert((mark.parameters().1, charge.name), key.clone());
        }
        Self { shelf: Arc::clone(shelf), redis, charge: Some(charge) }
    }

    /// What was charged, for whoever gives it back himself.
    pub(super) fn into_charge(mut self) -> Option<Charge> {
        self.forget()
    }

    /// No renewal comes after this.
    fn forget(&mut self) -> Option<Charge> {
        let charge = self.charge.take()?;
        if let Some((_, mark)) = &charge.redis {
            self.shelf.leases().remove(&(mark.parameters().1, charge.name));
        }
        Some(charge)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(charge) = self.forget() else { return };
        self.shelf.refund(&charge);
        // Without a runtime the process is ending, and the lease with it.
        if let (Some(redis), Ok(runtime)) = (self.redis.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                let mut budget = redis.budget();
                shared::refund(&redis, &[charge], &mut budget).await;
            });
        }
    }
}
