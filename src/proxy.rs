//! The request's way: [`Proxy::handle`] shows the order and holds the branching; the files beside it return outcomes.

pub mod asker;
pub mod body;
pub mod client;
pub mod content;
pub mod copy;
pub mod exchange;
pub mod explain;
mod failing;
pub mod fetch;
pub mod follow;
pub mod forward;
pub mod headers;
pub mod http1;
pub mod http2;
pub mod lead;
pub mod lease;
mod limited;
pub mod overload;
pub mod part;
pub mod respond;
pub mod route;
pub mod search;
mod settle;
pub mod socket;
pub mod state;
pub mod target;
pub mod tls;
pub mod upstream;
pub mod write;

use std::sync::Arc;
use std::time::Duration;

use http::header::RANGE;
use http::request::Parts;
use http::{Method, Request, StatusCode};

use tokio::time::Instant;

use crate::cache::directives::RequestDirectives;
use crate::cache::flight::{Failed, Joined, Origin};
use crate::cache::key;
use crate::cache::shared;
use crate::cache::{Ask, Cache, Found, Look, Missing, Previous};
use crate::clock::Stopwatch;
use crate::config::{AmbiguousPaths, CacheRule, ClientDirectives, Stage};
use crate::invalidation::Subject;
use crate::kv::Budget;
use crate::limit::{Charged, Denial};
use crate::message::interim::Interim;
use crate::message::{Answer, Body, Peer};
use crate::metrics::{Lookup, Outcome, Tier};
use client::Client;
use content::Content;
use exchange::Exchange;
use follow::Followed;
use lead::Led;
use respond::Forward;
use state::{Live, Past, RouteState, Worker};
use target::Target;
use upstream::Failure;

/// Times that a request joins a fetch anew (its leader left, an invalidation overtook it, its fields select another
/// variant) before it goes for itself.
const REJOINS: usize = 4;

/// One worker's proxy; cheap to clone.
#[derive(Clone)]
pub struct Proxy(pub(crate) Arc<Worker>);

/// A request on its way: what every phase needs of it.
pub(crate) struct Journey<'a> {
    pub(crate) worker: &'a Arc<Worker>,
    pub(crate) live: &'a Arc<Live>,
    pub(crate) route: &'a Arc<RouteState>,
    pub(crate) target: &'a Target,
    pub(crate) client: Client,
    pub(crate) exchange: Exchange,
    /// Where interim responses go.
    pub(crate) interim: Interim<'a>,
    /// The body, where the request reads by it.
    pub(crate) content: Option<Content>,
    pub(crate) charged: Charged,
    pub(crate) budget: Budget,
    /// The key's name, where `Cache-Status` is to say it.
    pub(crate) named: Option<[u8; 16]>,
    /// Whether the upstream surely had nothing of it, though it was to.
    pub(crate) unheard: bool,
    /// Whether the limits on misses were taken: a request that joins anew is still one miss.
    pub(crate) missed: bool,
    /// Until when it waits for others' fetches, once it does.
    pub(crate) gives_up: Option<Instant>,
}

impl Proxy {
    /// The proxy of one worker.
    pub fn new(worker: Worker) -> Self {
        Self(Arc::new(worker))
    }

    /// Ends when every fetch and write behind an answer has ended, and Redis was told what they cost.
    pub async fn settle(&self) {
        self.0.behind.close();
        self.0.behind.wait().await;
        self.0.shared.limiter.settled().await;
    }

    /// Accounts for a request that the server could not take, and answers it.
    pub fn refuse(&self, status: StatusCode, why: &'static str) -> Answer {
        let live = self.0.shared.live();
        let mut exchange = Exchange::open(&self.0.books, &live.unmatched().metrics, Stopwatch::start());
        exchange.decide(Outcome::Refused, status);
        respond::refused(status, why)
    }

    /// Answers one request of `peer`'s; interim responses of the upstream's go to `interim` first.
    pub async fn handle(&self, request: Request<Body>, peer: Peer, interim: Interim<'_>) -> Answer {
        let started = Stopwatch::start();
        let worker = &self.0;
        let live = worker.shared.live();
        let (mut parts, body) = request.into_parts();
        headers::strip_nominated(&mut parts.headers);

        // Who it is comes first: the scheme belongs to the key, the address to limits and logs.
        let client = Client::identify(&peer, &parts.headers, &live.config);

        // One form of the target before anything looks at it: what is routed is keyed, limited and forwarded.
        let mut target = Target::of(&parts, client.proto);
        let route = Arc::clone(live.route(&target, &parts));
        if let Some(rule) = &route.rule.cache {
            target.keep_query(&rule.query);
        }
        let mut exchange = Exchange::open(&worker.books, &route.metrics, started);
        exchange.describe(&route.name, client.ip, &parts.method, target.host_value(), &parts.uri);
        let idle = route.body_idle;
        let ambiguity = target.ambiguity().filter(|_| live.config.server.ambiguous_paths == AmbiguousPaths::Reject);
        if let Some(ambiguity) = ambiguity {
            exchange.decide(Outcome::Refused, StatusCode::BAD_REQUEST);
            let detail = format!("the path contains {}, which two servers could read two ways", ambiguity.as_str());
            return body::settle(respond::refused(StatusCode::BAD_REQUEST, detail), exchange, idle);
        }
        if route.is_not_found {
            exchange.decide(Outcome::Refused, StatusCode::NOT_FOUND);
            let answer = respond::refused(StatusCode::NOT_FOUND, "no route takes this request");
            return body::settle(answer, exchange, idle);
        }

        let budget = Budget::new(live.redis_deadline);
        let charged = Charged::default();
        let mut journey = Journey {
            worker,
            live: &live,
            route: &route,
            target: &target,
            client,
            exchange,
            interim,
            content: None,
            charged,
            budget,
            named: None,
            unheard: false,
            missed: false,
            gives_up: None,
        };

        // Before the cache: these limits count everything, hits included.
        let mut answer = match journey.limited(Stage::Request, &parts).await {
            Err(denial) => journey.denied(&denial),
            Ok(()) if route.rule.purge.is_some() && write::purges(&parts.method).is_some() => {
                write::purge(&mut journey, &parts.method).await
            }
            // The body before the cache, where it is part of the key.
            Ok(()) => match content::read(route.rule.cache.as_ref(), &parts.method, body, journey.request_idle()).await
            {
                Err(error) => {
                    let failure = Failure::RequestBody { error, was_begun: false };
                    forward::failed(&mut journey, &failure, Forward::Bypass)
                }
                Ok((content, body)) => {
                    journey.content = content;
                    match journey.caching(&parts, &body) {
                        Ok(()) => journey.through_cache(parts, body).await,
                        Err(reason) => journey.pass(&mut parts, body, reason).await,
                    }
                }
            },
        };
        if let Some(name) = journey.named {
            respond::name_key(&mut answer, name);
        }
        journey.charged.tell(&mut answer);
        forward::edit(&mut answer, &journey.charged.x_fields());
        // Before the route's own changes: what an answer says of its cost need not reach the client.
        let tabs = journey.charged.take_tabs();
        if !tabs.is_empty() {
            settle::by_answer(tabs, &mut answer, journey.exchange.outcome(), journey.unheard);
        }
        // Until the last byte of the answer it is in flight.
        journey.exchange.slots = journey.charged.take_slots();
        forward::edit(&mut answer, &route.rule.response);
        body::settle(answer, journey.exchange, idle)
    }
}

impl Journey<'_> {
    /// Whether the request may be answered from the cache at all.
    fn caching(&self, parts: &Parts, body: &Body) -> Result<(), Forward> {
        let has_body = self.content.is_none() && !matches!(body, Body::Empty);
        self.route.may_use_cache(self.target, self.reads_as(parts), parts, has_body).map_err(Past::forward)
    }

    /// Longest silence in the request's body that is the route's own: the server ends one that is silent for too long
    /// itself, unless the route is less patient.
    pub(crate) fn request_idle(&self) -> Duration {
        let general = self.live.config.server.limits.body_idle;
        if self.route.body_idle < general { self.route.body_idle } else { Duration::MAX }
    }

    /// What the request is to the cache.
    fn reads_as<'p>(&self, parts: &'p Parts) -> &'p Method {
        if self.content.is_some() { &Method::GET } else { &parts.method }
    }

    /// Until when it waits for others' fetches, `longest` from when it first does.
    pub(crate) fn gives_up(&mut self, longest: Duration) -> Instant {
        *self.gives_up.get_or_insert_with(|| Instant::now() + longest)
    }

    /// The answer where the upstream gave none.
    pub(crate) fn failed(&mut self, failed: &Failed, why: Forward) -> Answer {
        self.exchange.decide(respond::outcome(failed), failed.status);
        self.unheard = failed.unheard;
        respond::failure(failed, why)
    }

    fn denied(&mut self, denial: &Denial) -> Answer {
        let answer = respond::denied(denial);
        self.exchange.decide(Outcome::Denied, answer.status);
        self.exchange.denied_by(&denial.limit);
        self.charged.hush();
        answer
    }

    /// Past the cache: forwarded as it is, nothing stored.
    async fn pass(&mut self, parts: &mut Parts, body: Body, why: Forward) -> Answer {
        // What reaches the upstream is counted by these, and only now is it sure to.
        if let Err(denial) = self.limited(Stage::Miss, parts).await {
            return self.denied(&denial);
        }
        if let Err(denial) = self.limited(Stage::Origin, parts).await {
            return self.denied(&denial);
        }
        if write::changes_state(self.live, self.route, self.target, parts) {
            return write::forward(self, parts, body, why).await;
        }
        forward::pass(self, parts, body, why).await
    }

    /// Memory, then the fetch in flight, then a fetch of its own.
    async fn through_cache(&mut self, mut parts: Parts, body: Body) -> Answer {
        let cache = Arc::clone(&self.worker.shared.cache);
        let plain = match self.glance(&cache, &parts) {
            Ok(answer) => return answer,
            Err(key) => key,
        };
        let search = {
            let content = self.content.as_ref().map(Content::keyed);
            self.route.search(self.target, &parts.headers, content.as_ref(), &plain).map(Arc::new)
        };
        // A tag that no invalidation could name: the answer would be out of reach.
        let Some(tags) = self.route.tags(self.target) else {
            return self.pass(&mut parts, body, Forward::Bypass).await;
        };
        let mut why = Forward::UriMiss;
        let mut joins = 0;
        while joins < REJOINS {
            joins += 1;
            // By which key comes first, and anew each time: what a fetch brings may say it.
            let ruled = match &search {
                Some(search) => search::find(self, search).await,
                None => None,
            };
            let (key, also) = ruled.as_ref().map_or((&plain, &[][..]), |ruled| (&ruled.key, &ruled.names));
            if search.is_some() {
                self.named = self.named.map(|_| shared::name(key));
            }
            let (route, target, method) = (self.route, self.target, self.reads_as(&parts));
            let Some(ask) = route.ask(&cache, target, key, &tags, &parts, method) else { break };
            let ask = Ask { search: search.as_ref(), subject: Subject { also, ..ask.subject }, ..ask };
            let (look, result) = cache.look(&ask);
            self.route.metrics.lookup(Tier::Memory, result);
            let mut missing = match look {
                Look::Fresh(found) => {
                    if found.is_early {
                        lead::refresh(self, &ask, &parts, &found);
                    }
                    self.exchange.from_tier(Tier::Memory);
                    return self.hit(&found, &parts, Outcome::Hit);
                }
                Look::Stale(found) => {
                    lead::refresh(self, &ask, &parts, &found);
                    self.exchange.from_tier(Tier::Memory);
                    return self.hit(&found, &parts, Outcome::Stale);
                }
                Look::Uncacheable => {
                    why = Forward::Bypass;
                    break;
                }
                Look::Nothing(missing) => missing,
            };
            if ask.credentials && cache.is_apart(&ask) {
                break;
            }
            why = forward_reason(&missing);

            // Neither a HEAD nor a part can fill the cache, nor may who wants nothing else; and nobody should wait for one.
            let is_part = parts.method == Method::GET && parts.headers.contains_key(RANGE);
            if parts.method == Method::HEAD || is_part || wants_stored_only(&ask) {
                match lead::look(self, &ask).await {
                    Look::Fresh(found) => {
                        self.exchange.from_tier(Tier::Redis);
                        return self.hit(&found, &parts, Outcome::Hit);
                    }
                    Look::Stale(found) => {
                        lead::refresh(self, &ask, &parts, &found);
                        self.exchange.from_tier(Tier::Redis);
                        return self.hit(&found, &parts, Outcome::Stale);
                    }
                    Look::Uncacheable => break,
                    Look::Nothing(found) => missing.previous = found.previous.or(missing.previous),
                }
                if parts.method == Method::HEAD || wants_stored_only(&ask) {
                    break;
                }
                why = forward_reason(&missing);
                // A part of what only needs the upstream's word comes with that.
                if !missing.previous.as_ref().is_some_and(Previous::is_of_use) {
                    return self.part(&ask, &parts, why).await;
                }
            }

            // One fetch for everybody who asks now.
            let follower = match cache.join(&ask) {
                Joined::Follow(follower) => follower,
                Joined::Full => {
                    let failure = self.worker.upstream.key_queue_full();
                    let excuse = missing.previous.filter(|previous| previous.excuses_errors);
                    let stale = |p: Previous| self.stored(&p.slot, Origin::Excused, &ask, &parts, why, None);
                    return excuse.and_then(stale).unwrap_or_else(|| forward::failed(self, &failure, why));
                }
                Joined::Lead(permit) => match lead::lead(self, &ask, &parts, permit, missing).await {
                    Led::Found(found, outcome) => {
                        self.exchange.from_tier(Tier::Redis);
                        return self.hit(&found, &parts, outcome);
                    }
                    Led::Awaited(slot) => match self.stored(&slot, Origin::Awaited, &ask, &parts, why, None) {
                        Some(answer) => return answer,
                        None => continue,
                    },
                    Led::Denied(denial) => return self.denied(&denial),
                    Led::Alone => break,
                    // Its wait is bounded by other means, and is no fault of this one's.
                    Led::Anew => {
                        joins -= 1;
                        continue;
                    }
                    Led::Asked(lead) => match self.led(lead, &ask, &parts, why).await {
                        Some(answer) => return answer,
                        None => continue,
                    },
                },
            };
            match self.follow(follower, &ask, &parts, why).await {
                Followed::Answer(answer) => return answer,
                Followed::Alone => break,
                Followed::Again => {}
                Followed::Anew => joins -= 1,
            }
        }
        // However it came to this: RFC 9111 section 5.2.1.7.
        let honoured = self.route.rule.cache.as_ref().and_then(|rule| honoured(rule, &parts));
        if honoured.is_some_and(|wanted| wanted.only_if_cached) {
            self.exchange.decide(Outcome::Refused, StatusCode::GATEWAY_TIMEOUT);
            return respond::refused(StatusCode::GATEWAY_TIMEOUT, "nothing usable is stored (only-if-cached)");
        }
        self.pass(&mut parts, body, why).await
    }

    /// The hit that most hits are: fresh, and found valid since the last invalidation, so that it needs no tags. Nothing
    /// is allocated for it; else the key is, for what comes next waits.
    fn glance(&mut self, cache: &Cache, parts: &Parts) -> Result<Answer, Vec<u8>> {
        let (route, target) = (self.route, self.target);
        let rule = route.rule.cache.as_ref();
        let names_it = rule.is_some_and(|rule| rule.status_key);
        // There the key is not known yet.
        let is_searched = rule.is_some_and(|rule| rule.no_vary_search);
        let (found, named) = key::with_buffer(|key| {
            let content = self.content.as_ref().map(Content::keyed);
            route.append_key(key, target, &parts.headers, content.as_ref());
            let ask = route.ask(cache, target, key, &[], parts, self.reads_as(parts));
            let found = ask.filter(|_| !is_searched).and_then(|ask| cache.glance(&ask));
            (found.ok_or_else(|| key.clone()), names_it.then(|| shared::name(key)))
        });
        self.named = named;
        let found = found?;
        self.route.metrics.lookup(Tier::Memory, Lookup::Hit);
        self.exchange.from_tier(Tier::Memory);
        Ok(self.hit(&found, parts, Outcome::Hit))
    }

    /// A part of what is not stored whole: another part may hold it.
    async fn part(&mut self, ask: &Ask<'_>, parts: &Parts, why: Forward) -> Answer {
        let earlier = match part::look(self, ask).await {
            part::Stored::Found(found) => return self.hit(&found, parts, Outcome::Hit),
            part::Stored::Other(part) => part,
        };
        if let Err(denial) = self.limited(Stage::Miss, parts).await {
            return self.denied(&denial);
        }
        if let Err(denial) = self.limited(Stage::Origin, parts).await {
            return self.denied(&denial);
        }
        part::pass(self, ask, parts, earlier, why).await
    }

    fn hit(&mut self, found: &Found, parts: &Parts, outcome: Outcome) -> Answer {
        self.worker.shared.cache.served(found);
        let answer = respond::stored(found, parts, None);
        self.exchange.decide(outcome, answer.status);
        answer
    }
}

/// The client's own directives, where the route lets them count.
fn honoured(rule: &CacheRule, parts: &Parts) -> Option<RequestDirectives> {
    (rule.client_directives == ClientDirectives::Honor).then(|| RequestDirectives::of(&parts.headers))
}

fn forward_reason(missing: &Missing) -> Forward {
    match &missing.previous {
        Some(_) => Forward::Stale,
        None if missing.other_variant => Forward::VaryMiss,
        None => Forward::UriMiss,
    }
}

/// Whether the request is to be answered from the cache or not at all.
fn wants_stored_only(ask: &Ask<'_>) -> bool {
    ask.directives.is_some_and(|wanted| wanted.only_if_cached)
}
