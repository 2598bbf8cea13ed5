//! A fetch for the cache: it asks the upstream, decides what may be kept, and tells everybody who waits.
//!
//! It is a task of its own, so that a leader whose client leaves still finishes what is storable.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{IF_MODIFIED_SINCE, IF_NONE_MATCH};
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode};
use http_body::Body as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::asker::Asker;
use super::body::Patient;
use super::lease::{release, renewed};
use super::search::News;
use super::state::{RouteState, Worker};
use super::upstream::{Failure, Patience};
use super::{failing, headers, part, respond, search, settle};
use crate::cache::entry::{self, Entry, Stored, Uncacheable};
use crate::cache::flight::{Arrival, Begun, End, Origin, Permit};
use crate::cache::freshness::Freshness;
use crate::cache::memory::Slot;
use crate::cache::policy::{self, Plan, Received, Refusal, RequestFacts};
use crate::cache::search::{Rule, Search};
use crate::cache::shared::{LEASE, Lease, Leased, Token};
use crate::cache::{Previous, conditional, key, parts};
use crate::clock::{Stopwatch, WallMs};
use crate::invalidation::Subject;
use crate::kv::Budget;
use crate::limit::{Slots, Tabs};
use crate::message::Body;
use crate::metrics::Fill;

/// How long it is remembered that answers to a key may not be stored, in milliseconds.
const UNCACHEABLE_MS: u64 = 5_000;

/// What a fetch is made of.
pub(crate) struct Fetch {
    pub(crate) worker: Arc<Worker>,
    pub(crate) route: Arc<RouteState>,
    /// The key under which it was asked for.
    pub(crate) primary: Box<[u8]>,
    /// Where it stands by its answer's own rule, where answers have one.
    pub(crate) search: Option<Arc<Search>>,
    /// The key under which the answer belongs, if that is another.
    pub(crate) elsewhere: Option<Box<[u8]>>,
    /// What its answer says of queries, if the fleet is to learn it.
    pub(crate) news: Option<News>,
    /// The client's fields, by which variants are told apart.
    pub(crate) headers: HeaderMap,
    pub(crate) request: Request<Body>,
    /// What is asked instead of `request`, where it may do.
    pub(crate) rest: Option<Rest>,
    pub(crate) patience: Patience,
    pub(crate) redis_deadline: Duration,
    /// What is known when it turns to the upstream.
    pub(crate) begun: Begun,
    pub(crate) permit: Permit,
    pub(crate) lease: Option<Lease>,
    /// By what it asked for a lease without being heard to get one: should it have, it is given back when the fetch ends.
    pub(crate) doubt: Option<Token>,
    pub(crate) previous: Option<Previous>,
    pub(crate) hand_over: oneshot::Sender<(Response<Body>, &'static str)>,
    pub(crate) report: oneshot::Sender<(Option<StatusCode>, Duration)>,
    /// What it holds of limits on requests in flight.
    pub(crate) slots: Slots,
    /// What its answer settles.
    pub(crate) tabs: Tabs,
}

/// A stored part, and the request for what it lacks of the whole.
pub(crate) struct Rest {
    pub(crate) part: Arc<Entry>,
    pub(crate) request: Request<Body>,
}

/// A refresh behind an answer that is served: it happens only if this pod is the one that the fleet elects, and only
/// then is it charged to the upstream's limits.
pub(crate) async fn run_behind(mut fetch: Fetch, asker: Asker) {
    let worker = Arc::clone(&fetch.worker);
    if let (Some(redis), Some(tier)) = (&worker.redis, &worker.shared.tier) {
        let previous = fetch.previous.as_ref().and_then(Previous::entry);
        let key = previous.map_or_else(|| Bytes::copy_from_slice(&fetch.primary), |entry| entry.key.clone());
        let seen = previous.map(|entry| entry.fence);
        let (mut token, mut until) = (tier.token(), None);
        loop {
            let bell = tier.listen(&key);
            let place = worker.shared.invalidation.place(&asker.subject(&fetch.route.name));
            let mut budget = Budget::new(fetch.redis_deadline);
            match tier.lease(redis, &key, &mut token, place, seen, &mut budget).await {
                Leased::Lead(lease) => {
                    fetch.lease = Some(lease);
                    break;
                }
                Leased::Unavailable | Leased::Late => {
                    fetch.doubt = Some(token);
                    break;
                }
                Leased::Found(stored) => {
                    let slot = worker.shared.cache.keep(&fetch.primary, stored, 0).slot;
                    return fetch.permit.end(End::Stored(slot, Origin::Shared));
                }
                Leased::Failed(status) => {
                    let end = failing::in_vain(fetch.previous.as_ref(), respond::failed_elsewhere(status));
                    return fetch.permit.end(end);
                }
                Leased::Held(_) if until.is_some_and(|until| Instant::now() >= until) => return,
                // Another pod refreshes it. The flight stays until that is over, or each hit meanwhile would ask again.
                Leased::Held(_) => {
                    let _ = timeout_at(*until.get_or_insert_with(|| Instant::now() + LEASE), bell).await;
                }
            }
        }
    }
    let deadline = fetch.redis_deadline;
    match asker.admitted(&worker, &fetch.route, &fetch.headers, deadline).await {
        Some(mut charged) => {
            (fetch.slots, fetch.tabs) = (charged.take_slots(), charged.take_tabs());
            let route = Arc::clone(&fetch.route);
            fetch.begin(&asker.subject(&route.name));
            run(fetch).await;
        }
        None => {
            let lease = fetch.lease.take();
            drop(fetch);
            release(&worker, lease, None, deadline).await;
        }
    }
}

/// Fetches, and ends the flight whatever happens. Meanwhile the lease is renewed, which the fetch does not wait for.
pub(crate) async fn run(fetch: Fetch) {
    let renewed =
        renewed(Arc::clone(&fetch.worker), fetch.lease.clone(), fetch.patience.response, fetch.redis_deadline);
    tokio::select! {
        biased;
        () = finish(fetch) => {}
        never = renewed => match never {},
    }
}

async fn finish(mut fetch: Fetch) {
    let watch = Stopwatch::start();
    let said = fetch.ask().await;
    let took = watch.elapsed();
    let status = match &said {
        Ok(Said::Confirmed(_)) => Some(StatusCode::NOT_MODIFIED),
        Ok(Said::Answer(response, _)) => Some(response.status()),
        Err(_) => None,
    };
    let report = std::mem::replace(&mut fetch.report, oneshot::channel().0);
    // What was shed was not asked.
    let was_asked = !matches!(&said, Err(failure) if failure.is_untried());
    if was_asked && report.send((status, took)).is_err() {
        // Nobody accounts for a refresh but the route itself.
        fetch.route.metrics.upstream(status, took);
    }
    match said {
        Err(failure) => {
            settle::by_failure(std::mem::take(&mut fetch.tabs), &failure);
            fetch.failed(&failure).await;
        }
        Ok(Said::Confirmed(entry)) => {
            fetch.note(&entry).await;
            fetch.store(Stored::Entry(Arc::new(*entry)), Fill::Revalidated, Origin::Confirmed).await;
        }
        Ok(Said::Answer(response, sent)) => {
            let response = settle::by_response(std::mem::take(&mut fetch.tabs), response);
            fetch.received(response, sent).await;
        }
    }
}

/// What the upstream said.
enum Said {
    /// What is stored is still right.
    Confirmed(Box<Entry>),
    /// Something else, and when it was asked for it.
    Answer(Response<Body>, WallMs),
}

/// A request without its conditions; nothing if it has none, or its body cannot be sent twice.
fn unconditional(request: &Request<Body>) -> Option<Request<Body>> {
    if !is_conditional(request) {
        return None;
    }
    let body = match request.body() {
        Body::Empty => Body::Empty,
        Body::Full(bytes) => Body::Full(bytes.clone()),
        Body::Hyper(_) | Body::Stream(_) => return None,
    };
    let mut plain = Request::new(body);
    *plain.method_mut() = request.method().clone();
    *plain.uri_mut() = request.uri().clone();
    *plain.headers_mut() = request.headers().clone();
    *plain.extensions_mut() = request.extensions().clone();
    conditional::strip_conditions(plain.headers_mut());
    Some(plain)
}

fn is_conditional(request: &Request<Body>) -> bool {
    [IF_NONE_MATCH, IF_MODIFIED_SINCE].iter().any(|name| request.headers().contains_key(name))
}

fn is_about_ranges(status: StatusCode) -> bool {
    matches!(status, StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE)
}

impl Fetch {
    /// Takes note of what is known before the upstream is asked: what is invalidated from here on overtakes the answer.
    pub(crate) fn begin(&mut self, subject: &Subject<'_>) {
        let cache = &self.worker.shared.cache;
        self.begun = cache.begin(subject);
        self.permit.begin(self.begun);
        // So is what was stored, if that came while this waited: a date may not confirm it any more, nor is it an excuse.
        if let Some(previous) = &mut self.previous
            && let Some(entry) = previous.entry().cloned()
            && cache.is_gone(&entry, subject)
        {
            (previous.is_gone, previous.excuses_errors) = (true, false);
            if is_conditional(&self.request) {
                conditional::ask_to_confirm(self.request.headers_mut(), &entry, previous.confirmed_by());
            }
        }
    }

    /// Asks the upstream: for what a stored part lacks, or to confirm what is stored, where that may do; and for the whole
    /// where it does not.
    async fn ask(&mut self) -> Result<Said, Failure> {
        if let Some(Rest { part, request }) = self.rest.take() {
            let (answer, sent) = self.send(request).await;
            let response = answer?;
            if parts::completes(&response, &part) {
                return Ok(Said::Answer(part::completed(response, &part), sent));
            }
            if !is_about_ranges(response.status()) {
                return Ok(Said::Answer(response, sent));
            }
            self.asked_in_vain(response.status(), sent);
        }
        let request = std::mem::take(&mut self.request);
        let plain = self.previous.is_some().then(|| unconditional(&request)).flatten();
        let (answer, sent) = self.send(request).await;
        let response = answer?;
        let Some(plain) = plain.filter(|_| response.status() == StatusCode::NOT_MODIFIED) else {
            return Ok(Said::Answer(response, sent));
        };
        if let Some(entry) = self.confirmed_entry(&response, sent) {
            settle::by_response(std::mem::take(&mut self.tabs), response);
            return Ok(Said::Confirmed(Box::new(entry)));
        }
        // It is about something else, or confirms what may not be kept for this request: only the whole will do.
        self.asked_in_vain(response.status(), sent);
        let (answer, sent) = self.send(plain).await;
        Ok(Said::Answer(answer?, sent))
    }

    /// Sends a request and takes off the answer what is for one hop; when it was sent comes along.
    async fn send(&mut self, request: Request<Body>) -> (Result<Response<Body>, Failure>, WallMs) {
        let sent = self.worker.shared.cache.times().0;
        let answer = self.worker.upstream.send(request, self.patience).await.map(|reply| {
            let mut response = reply.response;
            let version = response.version();
            headers::strip_hop_by_hop(response.headers_mut());
            headers::append_via(response.headers_mut(), version);
            response
        });
        (answer, sent)
    }

    /// Accounts for an answer after which another is needed.
    fn asked_in_vain(&self, status: StatusCode, sent: WallMs) {
        let took = self.worker.shared.cache.times().0.saturating_sub(sent);
        self.route.metrics.upstream(Some(status), Duration::from_millis(took));
    }

    async fn received(mut self, response: Response<Body>, sent: WallMs) {
        let (now, _) = self.worker.shared.cache.times();
        if response.status().is_server_error()
            && let Some(previous) = self.previous.clone().filter(|previous| previous.excuses_errors)
        {
            return self.excused(previous, response).await;
        }
        let received =
            Received { status: response.status(), headers: response.headers(), asked_at: sent, received_at: now };
        match self.plan(&received) {
            // A failure is shared by all who waited, and kept for nobody: they would all meet it at once.
            // But one that a client's credentials brought about is that client's own.
            Err(refusal) if let Some(vary) = policy::shared_failure(refusal, self.facts(), received.headers) => {
                let freshness = Freshness { received_at: now, ..Freshness::default() };
                let plan = Plan { freshness, source: policy::Source::Upstream, vary, tags: Vec::new() };
                let entry = self.entry(plan, &received, Bytes::new());
                self.fill(entry, response, false).await;
            }
            Err(refusal) => self.refused(response, refusal).await,
            Ok(plan) => {
                self.place(received.headers);
                let entry = self.entry(plan, &received, Bytes::new());
                self.note(&entry).await;
                self.fill(entry, response, true).await;
            }
        }
    }

    /// What may be kept of an answer.
    fn plan(&self, received: &Received<'_>) -> Result<Plan, Refusal> {
        let Some(rule) = &self.route.rule.cache else { return Err(Refusal::NoStore) };
        policy::storable(rule, self.facts(), received, key::spread(key::hash(self.permit.key()), received.asked_at))
    }

    pub(super) fn facts(&self) -> RequestFacts {
        let of = |rule| RequestFacts::of(rule, &Method::GET, &self.headers);
        self.route.rule.cache.as_ref().map_or_else(RequestFacts::default, of)
    }

    /// Finds out under which key an answer with these fields belongs: what it says of queries itself decides.
    fn place(&mut self, headers: &HeaderMap) {
        let Some(search) = &self.search else { return };
        let own = search.under(Rule::of(headers).as_ref());
        self.elsewhere = (*own != *self.primary).then(|| own.into());
    }

    /// From now on it is known here what an answer says of queries; those whose answer it is by that join this fetch.
    async fn note(&mut self, answer: &Entry) {
        let Some(search) = &self.search else { return };
        if let Some(key) = &self.elsewhere {
            self.permit.also_by(key);
        }
        self.news = search::record(&self.worker, search, &self.primary, answer, self.redis_deadline).await;
    }

    /// The key of an answer that varies so.
    pub(super) fn key(&self, vary: &[HeaderName]) -> Bytes {
        let primary = self.elsewhere.as_ref().unwrap_or(&self.primary);
        match &self.route.keys {
            Some(keys) if !vary.is_empty() => {
                let mut key = Vec::with_capacity(primary.len() + 64);
                keys.variant(&mut key, primary, vary, &self.headers);
                Bytes::from(key.into_boxed_slice())
            }
            _ => Bytes::copy_from_slice(primary),
        }
    }

    fn entry(&self, plan: Plan, received: &Received<'_>, body: Bytes) -> Entry {
        let origin = entry::Origin {
            key: self.key(&plan.vary),
            position: self.begun.position,
            fence: self.fence(),
            fill_cost_ms: u32::try_from(received.received_at.saturating_sub(received.asked_at)).unwrap_or(u32::MAX),
        };
        Entry::new(origin, received.status, received.headers, plan, body)
    }

    /// The stored answer as the upstream confirmed it (RFC 9111 section 4.3.4), if it is the one that was meant and may
    /// still be kept.
    fn confirmed_entry(&mut self, response: &Response<Body>, sent: WallMs) -> Option<Entry> {
        let previous = self.previous.clone()?;
        let entry = previous.entry()?;
        let now = self.worker.shared.cache.times().0;
        if !conditional::confirms(response.headers(), entry, previous.confirmed_by()) {
            return None;
        }
        let merged = entry.merged(response.headers());
        let received = Received { status: entry.status, headers: &merged, asked_at: sent, received_at: now };
        let plan = self.plan(&received).ok()?;
        self.place(&merged);
        Some(self.entry(plan, &received, entry.body.clone()))
    }

    fn fence(&self) -> u64 {
        self.lease.as_ref().map_or(0, |lease| lease.fence)
    }

    /// Reads the body for everybody, as far as there is room for it.
    async fn fill(self, entry: Entry, response: Response<Body>, keep: bool) {
        let max_object = self.worker.shared.cache.settings().max_object as u64;
        let length = response.body().size_hint().exact();
        let is_too_large = length.is_some_and(|length| length > max_object);
        if is_too_large && keep {
            return self.uncacheable(response, Fill::TooLarge, "too-large", End::TooLarge).await;
        }
        // No room now, or a failure: that says nothing of the next answer.
        if is_too_large || !length.is_none_or(|length| self.permit.reserve(length as usize)) {
            self.route.metrics.fill(Fill::TooLarge);
            return self.hand_over(response, "too-large", End::TooLarge).await;
        }
        let body = response.into_body();
        self.permit.arriving(Arrival { head: Arc::new(entry.clone()), length, is_kept: keep });
        let mut body = Patient::new(body, self.patience.body_idle);
        let mut read = 0;
        loop {
            match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                None => break,
                Some(Err(_)) => {
                    return self.cut(&entry).await;
                }
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    read += data.len() as u64;
                    let room = length.is_some() || (read <= max_object && self.permit.reserve(data.len()));
                    // The room is the promise made to followers; a piece that breaks it still goes to the leader.
                    self.permit.grow(data);
                    if !room {
                        self.route.metrics.fill(Fill::TooLarge);
                        self.permit.overflow(body.into_inner());
                        return release(&self.worker, self.lease, None, self.redis_deadline).await;
                    }
                }
            }
        }
        let stored = Stored::Entry(Arc::new(entry.with_body(self.permit.assemble())));
        if keep {
            return self.store(stored, Fill::Stored, Origin::Fetched).await;
        }
        let told = stored.entry().and_then(|entry| self.told(&entry.key, entry.status));
        let end = End::Stored(Slot::new(stored, self.begun.at), Origin::Passed);
        self.over(end, told).await;
    }

    /// Memory first, then those who wait, then the fleet; counted once all of them have it.
    async fn store(self, stored: Stored, result: Fill, origin: Origin) {
        let cache = &self.worker.shared.cache;
        let kept = cache.keep(self.elsewhere.as_ref().unwrap_or(&self.primary), stored, self.begun.at);
        let (now, _) = cache.times();
        self.permit.end(End::Stored(Arc::clone(&kept.slot), origin));
        let deadline = self.redis_deadline;
        let (lease, left) = if self.elsewhere.is_none() { (self.lease, None) } else { (None, self.lease) };
        let is_stored = match (&self.worker.redis, &self.worker.shared.tier) {
            (Some(redis), Some(tier)) => tier.store(redis, &kept, lease, now, deadline).await,
            _ => true,
        };
        if let Some(news) = self.news {
            news.tell(deadline).await;
        }
        // Those who wait for the lease find the answer in its place.
        release(&self.worker, left, None, deadline).await;
        self.route.metrics.fill(if is_stored { result } else { Fill::Superseded });
    }

    async fn refused(self, response: Response<Body>, refusal: Refusal) {
        if refusal.lies_in_the_resource() {
            return self.uncacheable(response, Fill::Uncacheable, refusal.as_str(), End::Uncacheable).await;
        }
        // Another client's request may well be stored: the verdict is for those that carry credentials too.
        self.route.metrics.fill(Fill::Uncacheable);
        if matches!(refusal, Refusal::Credentials | Refusal::Authorization) {
            self.worker.shared.cache.keep_apart(&self.primary, self.verdict(), self.begun.at);
        }
        self.hand_over(response, refusal.as_str(), End::Uncacheable).await;
    }

    /// Gives the answer to the one who asked for it; the others ask for themselves.
    async fn hand_over(self, response: Response<Body>, why: &'static str, end: End) {
        let (worker, lease, deadline) = (self.worker, self.lease, self.redis_deadline);
        let _ = self.hand_over.send((response, why));
        self.permit.end(end);
        release(&worker, lease, None, deadline).await;
    }

    fn verdict(&self) -> Uncacheable {
        let (now, _) = self.worker.shared.cache.times();
        Uncacheable {
            key: Bytes::copy_from_slice(&self.primary),
            position: self.begun.position,
            fence: self.fence(),
            until: now.saturating_add(UNCACHEABLE_MS),
        }
    }

    /// Nobody needs to wait for an answer that may not be shared, here or on another pod, for a while.
    async fn uncacheable(self, response: Response<Body>, result: Fill, why: &'static str, end: End) {
        self.route.metrics.fill(result);
        let verdict = Stored::Uncacheable(Arc::new(self.verdict()));
        let kept = self.worker.shared.cache.keep(&self.primary, verdict, self.begun.at);
        let (now, _) = self.worker.shared.cache.times();
        let _ = self.hand_over.send((response, why));
        self.permit.end(end);
        if let (Some(redis), Some(tier)) = (&self.worker.redis, &self.worker.shared.tier) {
            tier.store(redis, &kept, self.lease, now, self.redis_deadline).await;
        }
    }
}
