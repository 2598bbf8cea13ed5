//! The leader's steps before the upstream is asked: the shared tier, the limits, the fleet's lease.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use http::StatusCode;
use http::request::Parts;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::asker::Asker;
use super::fetch::{self, Fetch, Rest};
use super::lease::OnItsWay;
use super::{Journey, failing, forward, respond, search};
use crate::cache::entry::Stored;
use crate::cache::flight::{Begun, End, Follower, Origin, Permit};
use crate::cache::memory::Slot;
use crate::cache::shared::{Lease, Leased, Read};
use crate::cache::{Ask, Found, Look, Missing, Previous};
use crate::config::Stage;
use crate::kv::Budget;
use crate::limit::{Denial, Halt, Slots, Tabs};
use crate::message::Body;
use crate::metrics::{Lookup, Outcome, Tier};

/// First pause before the shared tier is asked again while another pod fetches; the bell usually rings before.
const FIRST_POLL: Duration = Duration::from_millis(20);

/// Longest such pause.
const LONGEST_POLL: Duration = Duration::from_millis(250);

/// So much later than Redis said is a lease sure to have ended: Redis counts whole milliseconds, and so do timers here.
const LAPSE: Duration = Duration::from_millis(2);

/// What leading came to.
pub(crate) enum Led {
    /// The shared tier had it, or what is stale may be served.
    Found(Found, Outcome),
    /// Another pod's fetch has stored it.
    Awaited(Arc<Slot>),
    /// A limit denied this candidacy; somebody else may try.
    Denied(Box<Denial>),
    /// By a rule that another pod's fetch has brought, it stands under another key.
    Anew,
    /// Nothing will be shared, or another pod took too long: this request goes for itself.
    Alone,
    /// The upstream is being asked; or others have asked it in vain, which is over already.
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
    let (look, key) = look_under(journey, ask).await;
    match look {
        Look::Fresh(found) => {
            permit.end(End::Stored(Arc::clone(&found.slot), Origin::Shared));
            return Led::Found(found, Outcome::Hit);
        }
        Look::Stale(found) => {
            // Those who wait are served as well; the refresh is a flight of its own.
            permit.end(End::Stored(Arc::clone(&found.slot), Origin::Shared));
            refresh(journey, ask, parts, &found);
            return Led::Found(found, Outcome::Stale);
        }
        Look::Uncacheable => {
            permit.end(End::Uncacheable);
            return Led::Alone;
        }
        Look::Nothing(missing) => previous = missing.previous.or(previous),
    }

    // Those who wait are told that it is a miss: each counts as one from here on.
    permit.asking();
    match journey.limited_at_once(Stage::Miss, parts).await {
        Ok(()) => {}
        Err(Halt::Denied(denial)) => return Led::Denied(denial),
        Err(Halt::Wait(denial)) => {
            // Whoever need not wait leads meanwhile.
            permit.end(End::Yielded);
            let admitted = Box::pin(journey.delayed(Stage::Miss, parts, denial)).await;
            return admitted.map_or_else(Led::Denied, |()| Led::Anew);
        }
    }

    // The lease comes before the limits of the upstream: a pod that waits for another's fetch costs it nothing.
    // The client may leave at any wait from here on.
    let lease = match lease(journey, ask, key, previous.as_ref()).await {
        Waited::Leads(lease) => lease,
        Waited::Found(found) => {
            permit.end(End::Stored(Arc::clone(&found.slot), Origin::Awaited));
            return Led::Awaited(found.slot);
        }
        Waited::Uncacheable => {
            permit.end(End::Uncacheable);
            return Led::Alone;
        }
        Waited::Anew => {
            permit.end(End::Yielded);
            return Led::Anew;
        }
        Waited::LongEnough => return Led::Alone,
        Waited::Failed(status) => {
            let follower = permit.follower().leading();
            permit.end(failing::in_vain(previous.as_ref(), respond::failed_elsewhere(status)));
            return Led::Asked(Lead { follower, direct: oneshot::channel().1, timing: oneshot::channel().1 });
        }
    };
    // Where a stale answer may be served in place of a denial, what was charged so far stays charged.
    let excuse = previous.as_ref().filter(|previous| previous.excuses_errors).cloned();
    if excuse.is_some() {
        journey.charged.keep();
    }
    let (own, own_tabs) = (journey.charged.holds(), journey.charged.owes());
    let admitted = match &excuse {
        None => journey.limited(Stage::Origin, parts).await,
        // What is stale is there at once.
        Some(_) => journey.limited_at_once(Stage::Origin, parts).await.map_err(Halt::denied),
    };
    if let Err(denial) = admitted {
        return match excuse {
            Some(previous) => Led::Found(worker.shared.cache.found(&previous.slot, ask), Outcome::Stale),
            None => Led::Denied(denial),
        };
    }
    let follower = permit.follower().leading();
    let (lease, doubt) = lease.arrive();
    let (mut fetch, direct, timing) = start(journey, ask, parts, permit, lease, previous);
    fetch.doubt = doubt;
    // What of the upstream it takes up, it takes up until it ends, whoever still waits for it.
    fetch.slots = journey.charged.take_slots_beyond(own);
    fetch.tabs = journey.charged.take_tabs_beyond(own_tabs);
    fetch.begin(&ask.subject);
    worker.behind.spawn(fetch::run(fetch));
    Led::Asked(Lead { follower, direct, timing })
}

/// Refreshes an answer behind the one that is served, unless somebody does already. Nobody waits for it, and who wants
/// nothing but what is stored brings it about for nobody.
pub(crate) fn refresh(journey: &Journey<'_>, ask: &Ask<'_>, parts: &Parts, found: &Found) {
    if ask.directives.is_some_and(|wanted| wanted.only_if_cached) {
        return;
    }
    let Some(permit) = journey.worker.shared.cache.refresh(ask) else { return };
    // It may wait long for its turn. Who comes meanwhile and knows more need not.
    permit.begin(journey.worker.shared.cache.begin(&ask.subject));
    // Before the fleet elects one: who has no room to spare should not be it.
    if !journey.worker.upstream.has_spare() {
        return drop(permit);
    }
    let previous = Previous { slot: Arc::clone(&found.slot), is_gone: false, excuses_errors: true };
    let (mut fetch, _, _) = start(journey, ask, parts, permit, None, Some(previous));
    // The client is answered already.
    fetch.request.extensions_mut().clear();
    fetch.patience.may_queue = false;
    let asker = Asker {
        ip: journey.client.ip,
        host: journey.target.host().to_owned(),
        path: journey.target.path().to_owned(),
        query: journey.target.query().map(str::to_owned),
        also: ask.subject.also.to_vec(),
        tags: ask.subject.tags.to_vec(),
    };
    journey.worker.behind.spawn(fetch::run_behind(fetch, asker));
}

/// Looks into the shared tier, and keeps in memory what is found there.
pub(crate) async fn look(journey: &mut Journey<'_>, ask: &Ask<'_>) -> Look {
    look_under(journey, ask).await.0
}

/// [`look`], and the key that was looked under in the end.
async fn look_under<'k>(journey: &mut Journey<'_>, ask: &Ask<'k>) -> (Look, Cow<'k, [u8]>) {
    let worker = Arc::clone(journey.worker);
    let nothing = || Look::Nothing(Missing::default());
    let (Some(redis), Some(tier)) = (&worker.redis, &worker.shared.tier) else {
        return (nothing(), ask.key.into());
    };
    let cache = &worker.shared.cache;
    let (look, key, result) = match tier.get(redis, cache, ask, &mut journey.budget).await {
        Ok(Read { key, slot: Some(slot) }) => {
            let (look, result) = cache.judge(slot, ask);
            (look, key, result)
        }
        Ok(Read { key, slot: None }) => (nothing(), key, Lookup::Miss),
        Err(result) => (nothing(), ask.key.into(), result),
    };
    journey.route.metrics.lookup(Tier::Redis, result);
    (look, key)
}

enum Waited {
    /// This pod fetches; without a lease where Redis gave no answer.
    Leads(OnItsWay),
    Found(Found),
    Uncacheable,
    Anew,
    LongEnough,
    /// Meanwhile two pods have asked the upstream in vain; so this request is answered.
    Failed(StatusCode),
}

/// Leases the fetch of `key` in the fleet, or waits for the pod that has it.
async fn lease<'k>(
    journey: &mut Journey<'_>,
    ask: &Ask<'k>,
    mut key: Cow<'k, [u8]>,
    previous: Option<&Previous>,
) -> Waited {
    let worker = Arc::clone(journey.worker);
    let cache = &worker.shared.cache;
    let redis_deadline = journey.live.redis_deadline;
    let leads = |lease, doubt| OnItsWay { lease, doubt, worker: Arc::clone(&worker), redis_deadline };
    let (Some(redis), Some(tier)) = (&worker.redis, &worker.shared.tier) else {
        return Waited::Leads(leads(None, None));
    };
    let give_up = journey.gives_up(ask.rule.wait_timeout);
    let mut token = tier.token();
    // One pod in a hurry is one more fetch: so it asks once more if a connection ended, or if it was itself too busy.
    let mut may_ask_again = true;
    let mut pause = FIRST_POLL;
    // Until then another pod is known to fetch, or yet another takes over from it.
    let mut held_until = None;
    let mut seen = previous.and_then(Previous::entry).map(|entry| entry.fence);
    loop {
        if may_ask_again && journey.budget.was_missed() {
            (may_ask_again, journey.budget) = (false, Budget::new(redis_deadline));
        }
        // Listening starts before the question: a bell that rings in between is heard.
        let bell = tier.listen(&key);
        // What has been invalidated while this waited is no reason to begin anew: the fetch has not begun.
        let place = worker.shared.invalidation.place(&ask.subject);
        match tier.lease(redis, &key, &mut token, place, seen, &mut journey.budget).await {
            // Whose fetch has ended since the look-up recorded its rule before it gave the lease back.
            Leased::Lead(lease) => {
                let lease = leads(Some(lease), None);
                return if is_elsewhere(journey, ask).await { Waited::Anew } else { Waited::Leads(lease) };
            }
            // One late answer is no reason to ask the upstream what another pod is asking it; that Redis is away is.
            Leased::Late if held_until.is_some_and(|until| Instant::now() < until) => {}
            Leased::Late if may_ask_again && journey.budget.was_missed() => continue,
            Leased::Late if may_ask_again && !journey.budget.left().is_zero() => {
                may_ask_again = false;
                continue;
            }
            Leased::Unavailable | Leased::Late => return Waited::Leads(leads(None, Some(token))),
            Leased::Failed(status) => return Waited::Failed(status),
            Leased::Found(stored) => {
                let ask = &Ask { now: cache.times().0, ..*ask };
                let fence = stored.fence();
                // Its answers turned out to vary: the one for this request stands elsewhere, and is fetched there.
                let is_marker = matches!(stored, Stored::Vary(_));
                let slot = cache.keep(ask.key, stored, 0).slot;
                let look = if is_marker {
                    let (look, variant) = look_under(journey, ask).await;
                    key = variant;
                    look
                } else {
                    cache.judge(slot, ask).0
                };
                match look {
                    Look::Fresh(found) | Look::Stale(found) => return Waited::Found(found),
                    Look::Uncacheable => return Waited::Uncacheable,
                    // It is no use to this request, which therefore asks for the lease knowing of it.
                    Look::Nothing(_) if Instant::now() < give_up => {
                        seen = (!is_marker).then_some(fence);
                        continue;
                    }
                    Look::Nothing(_) => return Waited::LongEnough,
                }
            }
            // Should its leader have crashed, this is when the lease is free; a moment before, it is held.
            Leased::Held(left) => {
                pause = pause.min(left + LAPSE);
                held_until = Some(Instant::now() + left + LONGEST_POLL);
            }
        }
        let until = give_up.min(Instant::now() + pause);
        tokio::select! {
            () = bell => {}
            () = sleep_until(until) => {}
        }
        if Instant::now() >= give_up {
            return Waited::LongEnough;
        }
        pause = (pause * 2).clamp(FIRST_POLL, LONGEST_POLL);
        // Waiting for another's fetch is not Redis work: each question has an allowance of its own.
        journey.budget = Budget::new(redis_deadline);
        // Whose fetch was waited for may have stored it where its rule says, and nothing here.
        if is_elsewhere(journey, ask).await {
            return Waited::Anew;
        }
    }
}

/// Whether by a rule that has become known the answer stands under another key than the one that it is asked for by.
async fn is_elsewhere(journey: &mut Journey<'_>, ask: &Ask<'_>) -> bool {
    match ask.search {
        Some(search) => search::find(journey, search).await.is_some_and(|ruled| ruled.key != ask.key),
        None => false,
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
    // What is stored whole is confirmed; only where nothing is, a part is completed.
    let part = match &previous {
        None => journey.worker.shared.cache.take_completable(ask),
        Some(_) => None,
    };
    let rest = part.and_then(|part| Some(Rest { request: forward::rest_request(journey, parts, &part)?, part }));
    // What one URL's validator says means nothing of another's, though they be one by the rule that came last.
    let by_rule = ask.search.is_some_and(|search| *ask.key != *search.plain());
    let fetch = Fetch {
        worker: Arc::clone(journey.worker),
        route: Arc::clone(journey.route),
        primary: ask.key.into(),
        search: ask.search.cloned(),
        elsewhere: None,
        news: None,
        headers: parts.headers.clone(),
        request: forward::fill_request(journey, parts, previous.as_ref().filter(|_| !by_rule)),
        rest,
        patience: forward::patience(journey.route),
        redis_deadline: journey.live.redis_deadline,
        begun: Begun::default(),
        permit,
        lease,
        doubt: None,
        previous,
        hand_over,
        report,
        slots: Slots::new(),
        tabs: Tabs::default(),
    };
    (fetch, direct, timing)
}
