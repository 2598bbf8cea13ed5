//! Requests that change what answers say: what they touch is invalidated before their own answer starts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_RANGE, HeaderName, LOCATION};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode};

use super::copy::Copy;
use super::respond::{self, Forward, Forwarded};
use super::state::{Live, RouteState};
use super::target::Target;
use super::{Journey, forward, headers, honoured};
use crate::cache::entry::{Entry, Origin};
use crate::cache::key;
use crate::cache::policy::{self, Plan, Received, RequestFacts, Source};
use crate::cache::tags::changed_groups;
use crate::clock::{SteadyMs, Stopwatch, WallMs};
use crate::config::CacheRule;
use crate::invalidation::{Intent, Position, Subject};
use crate::kv::{self, Budget};
use crate::message::{Answer, Body};
use crate::metrics::{Door, Outcome};
use crate::syntax::SyntaxError;
use crate::syntax::selector::{Order, UrlSelector, check_tag, parse_prefix};

/// Methods that change nothing, by the registry of RFC 9110 section 18.2; every other, known or not, may.
const SAFE: [&str; 8] = ["GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "SEARCH", "REPORT", "PROPFIND"];

/// Fields of a PUT whose answer is not what a GET would give.
const UNLIKE_GET: [HeaderName; 2] = [CONTENT_RANGE, HeaderName::from_static("prefer")];

/// Whether a request may change what is stored: by the route's `invalidates`, or as an unsafe method on a URL whose GET
/// is cached (RFC 9111 section 4.4).
pub(crate) fn changes_state(live: &Live, route: &RouteState, target: &Target, parts: &Parts) -> bool {
    let reads_by_body = || route.rule.cache.as_ref().is_some_and(|rule| rule.key_body.contains(&parts.method));
    let is_safe = SAFE.contains(&parts.method.as_str()) || reads_by_body();
    let names = route.rule.invalidates.is_some();
    let may_change = !is_safe || headers::overrides_method(&parts.headers);
    may_change && (names || live.cached(target, &parts.headers).is_some())
}

/// Forwards a write. The exchange is finished even if the client leaves: what the upstream did must be known.
pub(crate) async fn forward(journey: &mut Journey<'_>, parts: &mut Parts, body: Body, why: Forward) -> Answer {
    let mut order = order(journey.live, journey.route, journey.target, &parts.headers);
    // One that cannot be read must not take the others with it.
    order.urls.retain(|url| readable(&UrlSelector::parse(url)));
    let successor = successor(journey, parts);
    let (live, target) = (Arc::clone(journey.live), journey.target.clone());
    let request = forward::pass_request(journey, parts, body);
    let patience = forward::patience(journey.route);
    let upstream = journey.worker.upstream.clone();
    let (invalidation, redis) = (Arc::clone(&journey.worker.shared.invalidation), journey.worker.redis.clone());
    let cache = Arc::clone(&journey.worker.shared.cache);
    let mut budget = journey.budget;
    let task = journey.worker.behind.spawn(async move {
        let intent = announce(redis.as_ref(), &order, patience.response, &mut budget).await;
        let (sent, asked) = cache.times();
        let watch = Stopwatch::start();
        let sending = upstream.send(request, patience);
        let reply = match &intent {
            Some(intent) => intent.kept_while(sending).await,
            None => sending.await,
        };
        let took = watch.elapsed();
        // An outcome that nobody knows may be a success.
        let may_have_changed = match &reply {
            Ok(reply) => reply.response.status().is_success() || reply.response.status().is_redirection(),
            Err(failure) => failure.is_unknown(),
        };
        if let Ok(reply) = &reply {
            let answer = reply.response.headers();
            order.urls.extend(named(&live, &target, answer).filter(|url| readable(&UrlSelector::parse(url))));
            order.tags.extend(changed_groups(answer).filter(|group| readable(&check_tag(group))));
        }
        let mut logged = None;
        if may_have_changed && !order.is_empty() {
            // The log is taken for away where requests do without it; the order reaches it all the same, some time.
            let is_away = redis.as_ref().is_some_and(|redis| redis.shared().is_log_away());
            let patience = if is_away { Duration::ZERO } else { budget.left() };
            match invalidation.submit_announced(&order, Door::Write, intent.as_ref(), patience).await {
                Ok(receipt) => logged = Some(receipt.position),
                Err(error) => {
                    tracing::warn!(%error, "a write's selectors cannot be read; nothing was invalidated");
                }
            }
        } else if let Some(intent) = intent {
            // Nobody waits for that.
            tokio::spawn(intent.withdraw());
        }
        let asked = Asked { sent, asked, took };
        (reply, asked, logged)
    });
    match task.await {
        Ok((Ok(mut reply), asked, logged)) => {
            journey.exchange.asked_upstream(Some(reply.response.status()), asked.took);
            let mut forwarded = Forwarded::because(why);
            if let (Some(successor), Some(logged)) = (successor, logged) {
                forwarded.stored = successor.keep(journey, &mut reply.response, asked, logged);
            }
            forward::passed(journey, reply, &forwarded)
        }
        Ok((Err(failure), asked, _)) => {
            if !failure.is_untried() {
                journey.exchange.asked_upstream(None, asked.took);
            }
            forward::failed(journey, &failure, why)
        }
        Err(_) => {
            journey.exchange.decide(Outcome::Failed, StatusCode::INTERNAL_SERVER_ERROR);
            respond::own(StatusCode::INTERNAL_SERVER_ERROR, "the request was given up")
        }
    }
}

/// Notes what a write is about to invalidate, for the case that this pod does not live to see its end.
async fn announce(redis: Option<&kv::Redis>, order: &Order, patience: Duration, budget: &mut Budget) -> Option<Intent> {
    let redis = redis.filter(|_| !order.is_empty())?;
    Intent::note(redis, order, patience, budget).await
}

/// When the upstream was asked, by both clocks, and how long it took.
struct Asked {
    sent: WallMs,
    asked: SteadyMs,
    took: Duration,
}

/// Which writes' answers may be what a GET gets from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Succession {
    /// A POST's that says so (RFC 9110 section 9.3.3).
    Post,
    /// Each PUT's, as its route says.
    Put,
}

/// The request that an answer to a write may answer from now on: a GET of the same URL.
struct Successor {
    succession: Succession,
    route: Arc<RouteState>,
    target: Target,
    headers: HeaderMap,
    /// What was known of invalidations before it was forwarded.
    known: Position,
}

/// Whether the answer to a write may be stored, and what for.
fn successor(journey: &Journey<'_>, parts: &Parts) -> Option<Successor> {
    let (route, target, succession) = read_of(journey.live, journey.target, parts)?;
    let tags = route.tags(&target)?;
    let known = journey.worker.shared.invalidation.position(&route.subject(&target, &tags));
    Some(Successor { succession, route: Arc::clone(route), target, headers: parts.headers.clone(), known })
}

/// The cached GET of the same URL that the answer to a write may answer from then on.
pub(crate) fn read_of<'l>(
    live: &'l Live,
    target: &Target,
    parts: &Parts,
) -> Option<(&'l Arc<RouteState>, Target, Succession)> {
    let (route, rule) = live.cached(target, &parts.headers)?;
    let succession = match parts.method {
        Method::POST => Succession::Post,
        // A part of what is to be is answered with who knows what, and a preference (RFC 7240) may ask for no content.
        Method::PUT if rule.write_through && !UNLIKE_GET.iter().any(|name| parts.headers.contains_key(name)) => {
            Succession::Put
        }
        _ => return None,
    };
    // What steers a write beside its URL is in no key of the GET's; and where answers say which parameters count, only
    // fetches store them.
    let is_plain = policy::request_may_use_cache(&Method::GET, &parts.headers, false, honoured(rule, parts).as_ref());
    if is_plain.is_err() || headers::steers(&parts.headers, &rule.key_headers) || rule.no_vary_search {
        return None;
    }
    let mut target = target.clone();
    target.keep_query(&rule.query);
    Some((route, target, succession))
}

impl Successor {
    /// Sees to it that the answer is stored with its last byte, if it says for how long it is fresh and that it is what a
    /// GET would give (RFC 9110 section 9.3.3); whether it does. It stands at the position at which its own invalidation
    /// was `logged`, if nothing else named it meanwhile: that might be a write which the upstream took later.
    fn keep(
        self,
        journey: &Journey<'_>,
        response: &mut Response<Body>,
        Asked { sent, asked, took }: Asked,
        logged: Position,
    ) -> bool {
        let Self { succession, route, target, headers, known } = self;
        let Some(rule) = &route.rule.cache else { return false };
        let mut fields = response.headers().clone();
        headers::strip_hop_by_hop(&mut fields);
        headers::append_via(&mut fields, response.version());
        // What was made is where it was put.
        fields.remove(LOCATION);
        let cache = &journey.worker.shared.cache;
        let now = cache.times().0;
        let received = Received { status: response.status(), headers: &fields, asked_at: sent, received_at: now };
        let key = route.key(&target, &headers, None);
        let Some(plan) = succession.plan(journey.target, rule, &key, &headers, &received) else { return false };
        let Some(tags) = route.tags(&target) else { return false };
        let subject = Subject { answer_tags: &plan.tags, ..route.subject(&target, &tags) };
        if !cache.invalidation().untouched(&subject, known, logged) {
            return false;
        }
        let fill_cost_ms = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
        let origin = Origin { key: key.clone().into(), position: logged, fence: 0, fill_cost_ms };
        let copy = Copy {
            worker: Arc::clone(journey.worker),
            route,
            primary: key.into(),
            entry: Entry::new(origin, StatusCode::OK, &fields, plan, Bytes::new()),
            earlier: None,
            length: None,
            // Of an answer that names no page, no content may mean no more than that it was made.
            may_be_empty: fields.contains_key(CONTENT_LOCATION),
            asked,
            redis_deadline: journey.live.redis_deadline,
        };
        let body = std::mem::take(response.body_mut());
        let (body, is_copied) = copy.of(body).map_or_else(|body| (body, false), |body| (body, true));
        *response.body_mut() = body;
        is_copied
    }
}

fn is_empty(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_LENGTH).is_some_and(|length| length == "0")
}

impl Succession {
    /// How the answer to a write of `asked` may be stored for a GET of the same URL, if it is what that would give, and it
    /// is known for how long. `key` and `ask` are the GET's.
    pub(crate) fn plan(
        self,
        asked: &Target,
        rule: &CacheRule,
        key: &[u8],
        ask: &HeaderMap,
        answer: &Received<'_>,
    ) -> Option<Plan> {
        let mut names = answer.headers.get_all(CONTENT_LOCATION).iter();
        match (self, answer.status, names.next(), names.next()) {
            // An empty answer may mean no more than that it was made.
            (Self::Put, StatusCode::OK | StatusCode::CREATED, None, None) if !is_empty(answer.headers) => {}
            (Self::Post, StatusCode::OK, Some(only), None)
            | (Self::Put, StatusCode::OK | StatusCode::CREATED, Some(only), None) => {
                let named = asked.refer(only.to_str().ok()?)?;
                (named.origin_form() == asked.origin_form()).then_some(())?;
            }
            _ => return None,
        }
        let (facts, answer) =
            (RequestFacts::of(rule, &Method::GET, ask), Received { status: StatusCode::OK, ..*answer });
        let plan = policy::storable(rule, facts, &answer, key::spread(key::hash(key), answer.asked_at)).ok()?;
        let is_fresh = plan.freshness.lifetime_ms > plan.freshness.initial_age_ms && !plan.freshness.no_cache;
        let is_said = match self {
            Self::Post => plan.source == Source::Upstream,
            Self::Put => plan.source != Source::Heuristic,
        };
        // What varies does so by the fields of a GET.
        (is_fresh && is_said && plan.vary.is_empty()).then_some(plan)
    }
}

/// Whether a method invalidates where a route allows it; true if softly.
pub(crate) fn purges(method: &Method) -> Option<bool> {
    match method.as_str() {
        "PURGE" => Some(false),
        "SOFTPURGE" => Some(true),
        _ => None,
    }
}

/// `PURGE` and `SOFTPURGE`: invalidate the URL with all its variants.
pub(crate) async fn purge(journey: &mut Journey<'_>, method: &Method) -> Answer {
    if !journey.route.rule.purge.as_ref().is_some_and(|purge| purge.is_open_to(journey.client.ip)) {
        journey.exchange.decide(Outcome::Refused, StatusCode::FORBIDDEN);
        return respond::refused(StatusCode::FORBIDDEN, "this client may not invalidate here");
    }
    let urls = vec![selector(journey.route.rule.cache.as_ref(), journey.target)];
    let order = Order { urls, soft: purges(method) == Some(true), ..Order::default() };
    let (status, detail) = match journey.worker.shared.invalidation.submit(&order, Door::Purge).await {
        Ok(receipt) if receipt.logged => (StatusCode::OK, "invalidated"),
        Ok(_) => (StatusCode::ACCEPTED, "invalidated here; the fleet learns of it as soon as Redis can take it"),
        Err(_) => (StatusCode::BAD_REQUEST, "the URL cannot be read as a selector"),
    };
    journey.exchange.decide(Outcome::Purged, status);
    respond::own(status, detail)
}

/// What a write invalidates by its route and its URL, whatever its answer adds.
pub(crate) fn order(live: &Live, route: &RouteState, target: &Target, headers: &HeaderMap) -> Order {
    let mut order = Order::default();
    if let Some(invalidates) = &route.rule.invalidates {
        let captures = route.captures(target);
        order.tags = invalidates.tags.iter().map(|template| template.render(&captures)).collect();
        order.urls = invalidates.urls.iter().map(|template| template.render(&captures)).collect();
        order.prefixes = invalidates.prefixes.iter().map(|template| template.render(&captures)).collect();
        order.routes.clone_from(&invalidates.routes);
        // Nothing is stored under a tag that can be none.
        order.tags.retain(|tag| readable(&check_tag(tag)));
        order.prefixes.retain(|prefix| readable(&parse_prefix(prefix)));
    }
    order.urls.extend(cached_url(live, target.clone(), headers));
    order
}

/// What a write's answer says it has changed or made, of the same origin (RFC 9111 section 4.4).
fn named(live: &Live, target: &Target, answer: &HeaderMap) -> impl Iterator<Item = String> {
    [LOCATION, CONTENT_LOCATION].into_iter().filter_map(|name| {
        let named = target.refer(answer.get(name)?.to_str().ok()?)?;
        cached_url(live, named, &HeaderMap::new())
    })
}

/// The selector of what a GET of `target` is stored under, if it is cached.
fn cached_url(live: &Live, mut target: Target, headers: &HeaderMap) -> Option<String> {
    let (_, rule) = live.cached(&target, headers)?;
    target.keep_query(&rule.query);
    Some(selector(Some(rule), &target))
}

/// The selector of a URL with all its variants. Where answers say which parameters count, that is any query: by which rule
/// something is stored depends on fields, time and pod, and none of it may be missed.
pub(crate) fn selector(rule: Option<&CacheRule>, target: &Target) -> String {
    let is_by_rule = rule.is_some_and(|rule| rule.no_vary_search);
    url_by(target, if is_by_rule { Some("*") } else { target.query() })
}

fn readable<T>(read: &Result<T, SyntaxError>) -> bool {
    if let Err(error) = read {
        tracing::warn!(%error, "one of a write's selectors cannot be read; the others are used");
    }
    read.is_ok()
}

/// A target with this query as an absolute selector; on any host where the target's is none that a selector can name.
fn url_by(target: &Target, query: Option<&str>) -> String {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let path = format!("{}{query}", target.path());
    let absolute = format!("http://{}{path}", target.host());
    if UrlSelector::parse(&absolute).is_ok() { absolute } else { path }
}
