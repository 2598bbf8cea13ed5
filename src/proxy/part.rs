//! Parts of what is not stored whole: from a stored part, or passed on and kept.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, IF_RANGE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::copy::Copy;
use super::forward;
use super::respond::{Forward, Forwarded};
use super::{Journey, headers};
use crate::cache::entry::{Entry, Origin};
use crate::cache::memory::Slot;
use crate::cache::policy::{self, Plan, Received, RequestFacts};
use crate::cache::{Ask, Found, key, parts};
use crate::clock::{Stopwatch, WallMs};
use crate::config::CacheRule;
use crate::message::{Answer, Body, BodyError};
use crate::metrics::{Lookup, Outcome, Tier};

/// What is stored of what is asked for.
pub(crate) enum Stored {
    /// All of it.
    Found(Found),
    /// Another part of the same, or nothing.
    Other(Option<Arc<Slot>>),
}

/// Looks for a part with what is asked for: this pod's, then Redis'.
pub(crate) async fn look(journey: &mut Journey<'_>, ask: &Ask<'_>) -> Stored {
    // None is kept there, see below.
    if ask.search.is_some() {
        return Stored::Other(None);
    }
    let worker = Arc::clone(journey.worker);
    let cache = &worker.shared.cache;
    let here = cache.part(ask);
    if let Some(found) = here.as_ref().and_then(|slot| cache.judge_part(slot, ask)) {
        journey.exchange.from_tier(Tier::Memory);
        return Stored::Found(found);
    }
    let (Some(redis), Some(tier)) = (&worker.redis, &worker.shared.tier) else { return Stored::Other(here) };
    let read = tier.part(redis, ask, &mut journey.budget).await;
    let shared = read.as_ref().ok().and_then(Option::as_ref);
    let found = shared.and_then(|slot| cache.judge_part(slot, ask));
    let result = match (&read, &found) {
        (Err(result), _) => *result,
        (Ok(_), Some(_)) => Lookup::Hit,
        (Ok(_), None) => Lookup::Miss,
    };
    journey.route.metrics.lookup(Tier::Redis, result);
    match found {
        Some(found) => {
            if let Some(entry) = found.slot.stored.entry() {
                let earlier = here.as_ref().and_then(|slot| slot.stored.entry());
                cache.keep_part(ask.key, Entry::clone(entry), earlier.map(Arc::as_ref), 0);
            }
            journey.exchange.from_tier(Tier::Redis);
            Stored::Found(found)
        }
        None => Stored::Other(here.or_else(|| shared.cloned())),
    }
}

/// Forwards a request for a part, and keeps the part that comes back, joined with an `earlier` one.
pub(crate) async fn pass(
    journey: &mut Journey<'_>,
    ask: &Ask<'_>,
    parts: &Parts,
    earlier: Option<Arc<Slot>>,
    why: Forward,
) -> Answer {
    let request = forward::part_request(journey, parts);
    let position = journey.worker.shared.invalidation.position(&ask.subject);
    let sent = journey.worker.shared.cache.times().0;
    let watch = Stopwatch::start();
    let reply = journey.worker.upstream.send(request, forward::patience(journey.route)).await;
    let took = watch.elapsed();
    forward::account(journey, &reply, took);
    let mut response = match reply {
        Ok(reply) => reply.response,
        Err(failure) => return forward::failed(journey, &failure, why),
    };
    let version = response.version();
    headers::strip_hop_by_hop(response.headers_mut());
    headers::append_via(response.headers_mut(), version);
    let origin = Origin {
        key: Bytes::from(parts::key(ask.key)),
        position,
        fence: 0,
        fill_cost_ms: u32::try_from(took.as_millis()).unwrap_or(u32::MAX),
    };
    let mut forwarded = Forwarded::because(why);
    let mut outcome = Outcome::Pass;
    let now = journey.worker.shared.cache.times().0;
    let before = earlier.as_ref().and_then(|slot| slot.stored.entry()).map(Arc::as_ref);
    if let Some(entry) = storable(ask, &response, before, origin, sent, now) {
        let copy = Copy {
            worker: Arc::clone(journey.worker),
            route: Arc::clone(journey.route),
            primary: ask.key.into(),
            length: parts::described(response.headers()).map(|(range, _)| range.end - range.start),
            may_be_empty: true,
            entry,
            earlier,
            asked: ask.steady,
            redis_deadline: journey.live.redis_deadline,
        };
        let (head, body) = response.into_parts();
        let (body, is_copied) = copy.of(body).map_or_else(|body| (body, false), |body| (body, true));
        response = Response::from_parts(head, body);
        if is_copied {
            forwarded.stored = true;
            outcome = Outcome::Miss;
        }
    }
    journey.exchange.decide(outcome, response.status());
    forward::answer(response, &forwarded)
}

/// How an answer with one part may be kept, if it may, by the fields that it is kept with. It is judged as the whole would be (RFC 9110 section 15.3.7); what
/// varies is not kept in parts. `key` is the part's.
pub(crate) fn plan(ask: &HeaderMap, rule: &CacheRule, key: &[u8], answer: &Received<'_>) -> Option<Plan> {
    // Where answers say which parameters count, a part would have to be found by its own rule.
    if answer.status != StatusCode::PARTIAL_CONTENT || rule.no_vary_search {
        return None;
    }
    let whole = Received { status: StatusCode::OK, ..*answer };
    let facts = RequestFacts::of(rule, &Method::GET, ask);
    let plan = policy::storable(rule, facts, &whole, key::spread(key::hash(key), answer.asked_at)).ok()?;
    plan.vary.is_empty().then_some(plan)
}

/// The entry that an answer with one part makes, beside an earlier one.
fn storable(
    ask: &Ask<'_>,
    response: &Response<Body>,
    earlier: Option<&Entry>,
    origin: Origin,
    sent: WallMs,
    now: WallMs,
) -> Option<Entry> {
    let (range, complete) = parts::described(response.headers())?;
    let same = earlier.filter(|earlier| parts::is_of_the_same(response.headers(), earlier));
    let is_worth_it = same.is_none_or(|same| parts::is_worth_joining(range.end - range.start, same));
    // To who names a version, the upstream need not say again what it has said of it.
    let may_be_lean = ask.headers.contains_key(IF_RANGE) && same.is_none();
    if !is_worth_it || may_be_lean {
        return None;
    }
    let kept = parts::fields(response.headers(), same);
    let received = Received { status: response.status(), headers: &kept, asked_at: sent, received_at: now };
    let plan = plan(ask.headers, ask.rule, &origin.key, &received)?;
    let entry = Entry::new(origin, StatusCode::PARTIAL_CONTENT, &kept, plan, Bytes::new());
    Some(Entry { part: Some(parts::place(&range, complete)), ..entry })
}

/// The whole that an upstream's answer with the rest makes of a stored part.
pub(crate) fn completed(rest: Response<Body>, part: &Entry) -> Response<Body> {
    let (mut head, inner) = rest.into_parts();
    head.status = StatusCode::OK;
    head.headers = parts::fields(&head.headers, Some(part));
    let first = part.part.map_or(0, |part| part.first);
    let missing = part.complete() - part.body.len() as u64;
    let (before, after) =
        if first == 0 { (part.body.clone(), Bytes::new()) } else { (Bytes::new(), part.body.clone()) };
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(part.complete()));
    Response::from_parts(head, Body::stream(Around { before, inner, missing, after }))
}

/// A body between what was stored of it.
struct Around {
    before: Bytes,
    inner: Body,
    /// Bytes that the inner one has still to bring.
    missing: u64,
    after: Bytes,
}

impl HttpBody for Around {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if !this.before.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.before)))));
        }
        loop {
            return match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    // Trailers are about the rest alone.
                    let Ok(data) = frame.into_data() else { continue };
                    match this.missing.checked_sub(data.len() as u64) {
                        Some(missing) => this.missing = missing,
                        None => return Poll::Ready(Some(Err("the rest is longer than it said".into()))),
                    }
                    Poll::Ready(Some(Ok(Frame::data(data))))
                }
                Some(Err(error)) => Poll::Ready(Some(Err(error))),
                None if this.missing > 0 => Poll::Ready(Some(Err("the rest is shorter than it said".into()))),
                None if this.after.is_empty() => Poll::Ready(None),
                None => Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.after))))),
            };
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.before.len() as u64 + self.missing + self.after.len() as u64)
    }
}
