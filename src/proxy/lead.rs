//! The leader's steps before the upstream is asked: the shared tier, the limits, the fleet's lease.

use std::sync::Arc;
use std::time::Duration;

use http::Response;
use http::StatusCode;
use http::request::Parts;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::fetch::{self, Fetch};
use super::{Journey, forward};
use crate::cache::flight::{End, Follower, Origin, Permit};
use crate::cache::shared::{Lease, Leased, SharedTier};
use crate::cache::{Ask, Cache, Found, Look, Missing, Previous};
use crate::config::Stage;
use crate::kv::{Budget, Redis};
use crate::limit::Denial;
use crate::message::Body;
use crate::metrics::{Lookup, Outcome, Tier};

/// First pause before the shared tier is asked again while another pod fetches; the bell usually rings before.
const FIRST_POLL: Duration = Duration::from_millis(20);

/// Longest such pause.
const LONGEST_POLL: Duration = Duration::from_millis(250);

/// What leading came to.
pub(crate) enum Led {
    /// The shared tier had it, or what is stale may be served.
    Found(Found, Outcome),
    /// A limit denied this candidacy; somebody else may try.
    Denied(Denial),
    /// Nothing will be shared, or another pod took too long: this request goes for itself.
    Alone,
    /// The upstream is being asked.
    Asked(Lead),
}

/// A leader's own view of its fetch.
pub(crate) struct Lead {
    /// Its place among those who wait.
    pub(crate) follower: Follower,
    /// An answer that may not be shared, and why.
    pub(crate) direct: oneshot::Receiver<(Response<Body>, &'static str)>,
    /// When the head came, if it did.
    pub(crate) timing: oneshot::Receiver<(Option<StatusCode>, Duration)>,
}

/// Asks the shared tier and, if it has nothing, starts the fetch.
pub(crate) async fn lead(
    journey: &mut Journey<'_>,
    ask: &Ask<'_>,
    parts: &Parts,
    permit: Permit,
    missing: Missing,
) -> Led {
    let worker = Arc::clone(journey.worker);
    let mut previous = missing.previous;

    // One plain round trip first: most of what this pod does not have, another has stored.
    if let (Some(redis), Some(tier)) = (&worker.redis, &worker.shared.tier) {
        match look(journey, tier, redis, ask).await {
            Look::Fresh(found) => {
                permit.end(End::Stored(Arc::clone(&found.slot), Origin::Shared));
                return Led::Found(found, Outcome::Hit);
            }
            Look::Stale(found) => {
                spawn_refresh(journey, ask, parts, permit, &found).await;
                return Led::Found(found, Outcome::Stale);
            }
            Look::Uncacheable => {
                permit.end(End::Uncacheable);
                return Led::Alone;
            }
            Look::Nothing(missing) => previous = missing.previous.or(previous),
        }
    }

    // Those who wait are told that it is a miss: each counts as one from here on.
    permit.asking();
    if let Err(denial) = journey.limited(Stage::Miss, parts).await {
        return Led::Denied(denial);
    }

    // The lease comes before the limits of the upstream: a pod that waits for another's fetch costs it nothing.
    let lease = match lease(&worker.shared.cache, journey, ask, &permit, previous.as_ref()).await {
        Waited::Leads(lease) => lease,
        Waited::Found(found) => {
            permit.end(End::Stored(Arc::clone(&found.slot), Origin::Shared));
            return Led::Found(found, Outcome::Hit);
        }
        Waited::Uncacheable => {
            permit.end(End::Uncacheable);
            return Led::Alone;
        }
        Waited::LongEnough => return Led::Alone,
    };
    // Where a stale answer may be served in place of a denial, what was charged so far stays charged.
    if previous.as_ref().is_some_and(|previous| previous.excuses_errors) {
        journey.charged.keep();
    }
    if let Err(denial) = journey.limited(Stage::Origin, parts).await {
        if let (Some(lease), Some(redis), Some(tier)) = (lease, &worker.redis, &worker.shared.tier) {
            tier.release(redis, &lease, &mut Budget::new(journey.live.redis_deadline)).await;
        }
        // A stale answer that may be served is better than none.
        if let Some(previous) = previous.filter(|previous| previous.excuses_errors) {
            let found = worker.shared.cache.found(&previous.slot, ask);
            return Led::Found(found, Outcome::Stale);
        }
        return Led::Denied(denial);
    }
    let follower = permit.follower().leading();
    let (fetch, direct, timing) = start(journey, ask, parts, permit, lease, previous);
    worker.behind.spawn(fetch::run(fetch));
    Led::Asked(Lead { follower, direct, timing })
}

/// Refreshes an answer behind the one that is served, unless somebody does already.
pub(crate) async fn refresh(journey: &mut Journey<'_>, ask: &Ask<'_>, parts: &Parts, found: &Found) {
    if let Some(permit) = journey.worker.shared.cache.refresh(ask) {
        spawn_refresh(journey, ask, parts, permit, found).await;
    }
}

async fn spawn_refresh(journey: &mut Journey<'_>, ask: &Ask<'_>, parts: &Parts, permit: Permit, found: &Found) {
    // A refresh reaches the upstream like any other request; the one that is answered stays charged either way.
    journey.charged.keep();
    if journey.limited(Stage::Origin, parts).await.is_err() {
        return;
    }
    let previous = Previous { slot: Arc::clone(&found.slot), is_gone: false, excuses_errors: true };
    let (fetch, _, _) = start(journey, ask, parts, permit, None, Some(previous));
    journey.worker.behind.spawn(fetch::run_behind(fetch));
}

/// Looks into the shared tier, and keeps in memory what is found there.
async fn look(journey: &mut Journey<'_>, tier: &SharedTier, redis: &Redis, ask: &Ask<'_>) -> Look {
    let cache = &journey.worker.shared.cache;
    let read = tier.get(redis, cache, ask, &mut journey.budget).await;
    let (look, result) = match read {
        Ok(Some(slot)) => cache.judge(slot, ask),
        Ok(None) => (Look::Nothing(Missing::default()), Lookup::Miss),
        Err(result) => (Look::Nothing(Missing::default()), result),
    };
    journey.route.metrics.lookup(Tier::Redis, result);
    look
}

enum Waited {
    /// This pod fetches; without a lease where Redis gave no answer.
    Leads(Option<Lease>),
    Found(Found),
    Uncacheable,
    LongEnough,
}

/// Leases the fetch in the fleet, or waits for the pod that has it.
async fn lease(
    cache: &Cache,
    journey: &Journey<'_>,
    ask: &Ask<'_>,
    permit: &Permit,
    previous: Option<&Previous>,
) -> Waited {
    let worker = journey.worker;
    let (Some(redis), Some(tier)) = (&worker.redis, &worker.shared.tier) else { return Waited::Leads(None) };
    let give_up = Instant::now() + ask.rule.wait_timeout;
    let mut pause = FIRST_POLL;
    let mut budget = journey.budget;
    loop {
        // Listening starts before the question: a bell that rings in between is heard.
        let bell = tier.listen(permit.key());
        match tier.lease(redis, permit.key(), permit.position(), previous, &mut budget).await {
            Leased::Lead(lease) => return Waited::Leads(Some(lease)),
            Leased::Unavailable => return Waited::Leads(None),
            Leased::Found(stored) => match cache.judge(tier.promote(cache, ask, stored), ask).0 {
                Look::Fresh(found) | Look::Stale(found) => return Waited::Found(found),
                Look::Uncacheable => return Waited::Uncacheable,
                // Stored by a fetch that an invalidation has overtaken: this request does better itself.
                Look::Nothing(_) => return Waited::Leads(None),
            },
            Leased::Held => {}
        }
        let until = give_up.min(Instant::now() + pause);
        tokio::select! {
            () = bell => {}
            () = sleep_until(until) => {}
        }
        if Instant::now() >= give_up {
            return Waited::LongEnough;
        }
        pause = (pause * 2).min(LONGEST_POLL);
        // Waiting for another's fetch is not Redis work: each question has an allowance of its own.
        budget = Budget::new(journey.live.redis_deadline);
    }
}

type Direct = oneshot::Receiver<(Response<Body>, &'static str)>;
type Timing = oneshot::Receiver<(Option<StatusCode>, Duration)>;

fn start(
    journey: &Journey<'_>,
    ask: &Ask<'_>,
    parts: &Parts,
    permit: Permit,
    lease: Option<Lease>,
    previous: Option<Previous>,
) -> (Fetch, Direct, Timing) {
    let (hand_over, direct) = oneshot::channel();
    let (report, timing) = oneshot::channel();
    let fetch = Fetch {
        worker: Arc::clone(journey.worker),
        route: Arc::clone(journey.route),
        primary: ask.key.into(),
        headers: parts.headers.clone(),
        request: forward::fill_request(journey, parts, previous.as_ref()),
        patience: forward::patience(journey.route),
        redis_deadline: journey.live.redis_deadline,
        asked: ask.steady,
        permit,
        lease,
        previous,
        hand_over,
        report,
    };
    (fetch, direct, timing)
}
