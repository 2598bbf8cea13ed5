//! A fetch that failed: what those who wait for it in the pod learn, and what the fleet does, where others wait.

use std::sync::Arc;

use http::{Response, StatusCode};

use super::fetch::Fetch;
use super::lease::release;
use super::respond;
use super::upstream::Failure;
use crate::cache::Previous;
use crate::cache::entry::Entry;
use crate::cache::flight::{End, Failed, Origin};
use crate::cache::policy::{self, Refusal};
use crate::message::Body;
use crate::metrics::Fill;

/// How a flight ends whose fetch failed: with what is stale, where that may be served instead.
pub(crate) fn in_vain(previous: Option<&Previous>, failed: Failed) -> End {
    match previous.filter(|previous| previous.excuses_errors) {
        Some(previous) => End::Stored(Arc::clone(&previous.slot), Origin::Excused),
        None => End::Failed(Arc::new(failed)),
    }
}

impl Fetch {
    /// There is no answer.
    pub(super) async fn failed(self, failure: &Failure) {
        let failed = respond::failed(failure);
        let told = match failure {
            _ if failure.is_of_no_request() => Some(failed.status),
            // This pod had no room for it; another may.
            _ if failure.is_untried() => None,
            _ => self.told(&self.primary, failed.status),
        };
        let end = in_vain(self.previous.as_ref(), failed);
        self.over(end, told).await;
    }

    /// The answer is a failure, and what is stale may be served instead.
    pub(super) async fn excused(self, previous: Previous, response: Response<Body>) {
        let vary = policy::shared_failure(Refusal::ServerError, self.facts(), response.headers());
        let told = vary.and_then(|vary| self.told(&self.key(&vary), response.status()));
        self.over(End::Stored(previous.slot, Origin::Excused), told).await;
    }

    /// The answer's body ended early.
    pub(super) async fn cut(self, head: &Entry) {
        self.route.metrics.fill(Fill::Failed);
        let told = self.told(&head.key, StatusCode::BAD_GATEWAY);
        // What one client's credentials may have brought about, or fields that others do not send, they try for themselves.
        let is_theirs = *head.key == *self.primary || *head.key == *self.permit.key();
        let end = match is_theirs && !self.facts().credentials {
            true => in_vain(self.previous.as_ref(), respond::cut()),
            false => End::Vacant,
        };
        self.permit.cut("the upstream's body ended early", end);
        release(&self.worker, self.lease, told, self.redis_deadline).await;
    }

    /// Those who wait here learn it from `end`, and the fleet counts what it is `told`.
    pub(super) async fn over(self, end: End, told: Option<StatusCode>) {
        self.route.metrics.fill(Fill::Failed);
        self.permit.end(end);
        release(&self.worker, self.lease, told, self.redis_deadline).await;
    }

    /// What the fleet is told of a failure that all answers under `key` share: nothing, where those who wait for the lease
    /// may wait for another key's, or one client's credentials may have brought it about.
    pub(super) fn told(&self, key: &[u8], status: StatusCode) -> Option<StatusCode> {
        let is_theirs = *key == *self.primary || self.lease.as_ref().is_some_and(|lease| lease.is_for(key));
        (is_theirs && !self.facts().credentials).then_some(status)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::metrics::Shed;
    use crate::proxy::overload::Refusal;

    #[test]
    fn a_pod_that_has_no_room_says_nothing_of_the_service() {
        let shed = |why| Failure::Shed(Refusal { why, retry_after_s: 1 });
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        for failure in [Failure::Connect(refused()), Failure::ConnectTimeout, shed(Shed::BreakerOpen)] {
            assert!(failure.is_of_no_request(), "{failure:?}");
        }
        for why in [Shed::QueueFull, Shed::KeyQueueFull, Shed::ExpectedWait, Shed::QueueTimeout, Shed::NoSpare] {
            let failure = shed(why);
            assert!(!failure.is_of_no_request() && failure.is_untried(), "{failure:?}");
        }
        // A request may be what brings it about.
        for failure in [Failure::ResponseTimeout, Failure::Closed(refused()), Failure::Malformed("no head")] {
            assert!(!failure.is_of_no_request() && !failure.is_untried(), "{failure:?}");
        }
    }
}
