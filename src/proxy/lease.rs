//! The fleet's lease from when it is taken to when it is given back, whatever becomes of the fetch.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::state::Worker;
use crate::cache::shared::{Lease, Token};
use crate::kv::Budget;

/// For so long a lease is renewed beyond the wait for the head. A body has no bound but that it goes on; one that still
/// drips by then is asked for anew by the next pod that wants it.
const LEASED_FOR_BODY: Duration = Duration::from_secs(600);

/// A lease that no fetch has yet: released if none gets it.
pub(crate) struct OnItsWay {
    pub(crate) lease: Option<Lease>,
    /// By what it was asked for without being heard, where there is none.
    pub(crate) doubt: Option<Token>,
    pub(crate) worker: Arc<Worker>,
    pub(crate) redis_deadline: Duration,
}

impl OnItsWay {
    /// A fetch has it from now on.
    pub(crate) fn arrive(mut self) -> (Option<Lease>, Option<Token>) {
        (self.lease.take(), self.doubt.take())
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take()
            && tokio::runtime::Handle::try_current().is_ok()
        {
            let (worker, redis_deadline) = (Arc::clone(&self.worker), self.redis_deadline);
            self.worker.behind.spawn(async move { release(&worker, Some(lease), None, redis_deadline).await });
        }
    }
}

/// Renews a lease for as long as this is polled; the head of its fetch may take `response`.
pub(crate) async fn renewed(
    worker: Arc<Worker>,
    lease: Option<Lease>,
    response: Duration,
    deadline: Duration,
) -> Infallible {
    if let (Some(lease), Some(redis), Some(tier)) = (lease, &worker.redis, &worker.shared.tier) {
        tier.renew(redis, &lease, response.saturating_add(LEASED_FOR_BODY), deadline).await;
    }
    std::future::pending().await
}

/// Gives a lease back, if there is one; `failed` is for the fleet to count.
pub(crate) async fn release(worker: &Worker, lease: Option<Lease>, failed: Option<StatusCode>, deadline: Duration) {
    if let (Some(lease), Some(redis), Some(tier)) = (lease, &worker.redis, &worker.shared.tier) {
        tier.release(redis, &lease, failed, &mut Budget::new(deadline)).await;
    }
}
