//! Requests that change what answers say: what they touch is invalidated before their own answer starts.

use std::sync::Arc;

use http::header::{CONTENT_LOCATION, LOCATION};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};

use super::respond::{self, Forward};
use super::state::Live;
use super::target::Target;
use super::{Journey, forward};
use crate::cache::tags::changed_groups;
use crate::clock::Stopwatch;
use crate::message::{Answer, Body};
use crate::metrics::{Door, Outcome};
use crate::syntax::SyntaxError;
use crate::syntax::selector::{Order, UrlSelector, check_tag, parse_prefix};

/// Whether a request may change what is stored: by the route's `invalidates`, or as an unsafe method on a URL whose GET
/// is cached (RFC 9111 section 4.4).
pub(crate) fn changes_state(journey: &Journey<'_>, parts: &Parts) -> bool {
    let is_safe = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
    let names = journey.route.rule.invalidates.is_some();
    !is_safe && (names || journey.live.cached(journey.target, &parts.headers).is_some())
}

/// Forwards a write. The exchange is finished even if the client leaves: what the upstream did must be known.
pub(crate) async fn forward(journey: &mut Journey<'_>, parts: &mut Parts, body: Body, why: Forward) -> Answer {
    let mut order = order(journey, parts);
    let (live, target) = (Arc::clone(journey.live), journey.target.clone());
    let request = forward::pass_request(journey, parts, body);
    let patience = forward::patience(journey.route);
    let upstream = journey.worker.upstream.clone();
    let invalidation = Arc::clone(&journey.worker.shared.invalidation);
    let task = journey.worker.behind.spawn(async move {
        let watch = Stopwatch::start();
        let reply = upstream.send(request, patience).await;
        let took = watch.elapsed();
        // An outcome that nobody knows may be a success.
        let may_have_changed = match &reply {
            Ok(reply) => reply.response.status().is_success() || reply.response.status().is_redirection(),
            Err(failure) => failure.is_unknown(),
        };
        if let Ok(reply) = &reply {
            let answer = reply.response.headers();
            order.urls.extend(named(&live, &target, answer));
            order.tags.extend(changed_groups(answer).filter(|group| readable(&check_tag(group))));
        }
        // One that cannot be read must not take the others with it.
        order.urls.retain(|url| readable(&UrlSelector::parse(url)));
        if may_have_changed
            && !order.is_empty()
            && let Err(error) = invalidation.submit(&order, Door::Write).await
        {
            tracing::warn!(%error, "a write's selectors cannot be read; nothing was invalidated");
        }
        (reply, took)
    });
    match task.await {
        Ok((Ok(reply), took)) => {
            journey.exchange.asked_upstream(Some(reply.response.status()), took);
            forward::passed(journey, reply, why)
        }
        Ok((Err(failure), took)) => {
            journey.exchange.asked_upstream(None, took);
            forward::failed(journey, &failure, why)
        }
        Err(_) => {
            journey.exchange.decide(Outcome::Failed, StatusCode::INTERNAL_SERVER_ERROR);
            respond::own(StatusCode::INTERNAL_SERVER_ERROR, "the request was given up")
        }
    }
}

/// `PURGE`: invalidates the URL with all its variants.
pub(crate) async fn purge(journey: &mut Journey<'_>) -> Answer {
    let order = Order { urls: vec![url(journey.target)], ..Order::default() };
    let (status, detail) = match journey.worker.shared.invalidation.submit(&order, Door::Purge).await {
        Ok(receipt) if receipt.logged => (StatusCode::OK, "invalidated"),
        Ok(_) => (StatusCode::ACCEPTED, "invalidated here; the fleet learns of it as soon as Redis can take it"),
        Err(_) => (StatusCode::BAD_REQUEST, "the URL cannot be read as a selector"),
    };
    journey.exchange.decide(Outcome::Purged, status);
    respond::own(status, detail)
}

fn order(journey: &Journey<'_>, parts: &Parts) -> Order {
    let mut order = Order::default();
    if let Some(invalidates) = &journey.route.rule.invalidates {
        let captures = journey.route.captures(journey.target);
        order.tags = invalidates.tags.iter().map(|template| template.render(&captures)).collect();
        order.urls = invalidates.urls.iter().map(|template| template.render(&captures)).collect();
        order.prefixes = invalidates.prefixes.iter().map(|template| template.render(&captures)).collect();
        order.routes.clone_from(&invalidates.routes);
        // Nothing is stored under a tag that can be none.
        order.tags.retain(|tag| readable(&check_tag(tag)));
        order.prefixes.retain(|prefix| readable(&parse_prefix(prefix)));
    }
    order.urls.extend(cached_url(journey.live, journey.target.clone(), &parts.headers));
    order
}

/// What a write's answer says it has changed or made, of the same origin (RFC 9111 section 4.4).
fn named(live: &Live, target: &Target, answer: &HeaderMap) -> impl Iterator<Item = String> {
    [LOCATION, CONTENT_LOCATION].into_iter().filter_map(|name| {
        let named = target.refer(answer.get(name)?.to_str().ok()?)?;
        cached_url(live, named, &HeaderMap::new())
    })
}

/// The URL under which a GET of `target` is cached, if it is.
fn cached_url(live: &Live, mut target: Target, headers: &HeaderMap) -> Option<String> {
    let rule = live.cached(&target, headers)?;
    target.keep_query(&rule.query);
    Some(url(&target))
}

fn readable<T>(read: &Result<T, SyntaxError>) -> bool {
    if let Err(error) = read {
        tracing::warn!(%error, "one of a write's selectors cannot be read; the others are used");
    }
    read.is_ok()
}

/// A target as an absolute selector; on any host where the target's is none that a selector can name.
fn url(target: &Target) -> String {
    let query = target.query().map(|query| format!("?{query}")).unwrap_or_default();
    let path = format!("{}{query}", target.path());
    let absolute = format!("http://{}{path}", target.host());
    if UrlSelector::parse(&absolute).is_ok() { absolute } else { path }
}
