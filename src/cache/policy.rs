//! What may be asked of the cache, and what may be stored in it: RFC 9111 section 3, as a shared cache.

use std::time::Duration;

use http::{HeaderMap, HeaderName, Method, StatusCode, header};

use super::directives::{RequestDirectives, ResponseDirectives};
use super::freshness::{Freshness, date_ms, initial_age_ms, seconds_ms};
use super::key::{VaryRefused, vary_names};
use super::tags::answer_tags;
use crate::clock::WallMs;
use crate::config::{CacheRule, Cookies, Credentials, UpstreamTtl};

mod reason;

pub use reason::{Bypass, Refusal};

/// Longest lifetime that `Last-Modified` alone can give.
const HEURISTIC_MOST_MS: u64 = 24 * 60 * 60 * 1000;

/// Share of the time since `Last-Modified` that a heuristic lifetime takes, as a divisor (RFC 9111 section 4.2.2).
const HEURISTIC_DIVISOR: u64 = 10;

/// Whether a request may be answered from the cache, or its answer stored.
///
/// # Errors
/// Why it goes past it. `has_body` is what the framing says; `honoured` are the request's directives where the route
/// honours them.
pub fn request_may_use_cache(
    method: &Method,
    headers: &HeaderMap,
    has_body: bool,
    honoured: Option<&RequestDirectives>,
) -> Result<(), Bypass> {
    if method != Method::GET && method != Method::HEAD {
        return Err(Bypass::Method);
    }
    if has_body {
        return Err(Bypass::Body);
    }
    if honoured.is_some_and(|directives| directives.no_store) {
        return Err(Bypass::NoStore);
    }
    // One pass over the few fields there are costs less than a look-up for each that matters.
    for name in headers.keys() {
        match name.as_str() {
            "x-http-method-override" | "x-http-method" | "x-method-override" => return Err(Bypass::MethodOverride),
            "if-match" | "if-unmodified-since" => return Err(Bypass::Precondition),
            "upgrade" => return Err(Bypass::Upgrade),
            _ => {}
        }
    }
    Ok(())
}

/// What of a request decides whether its answer may be stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestFacts {
    /// GET; the answer to anything else is not stored, and a HEAD's would be taken for an empty one.
    pub get: bool,
    /// It carries `Authorization`, and the route does not account for it.
    pub authorization: bool,
    /// It carries any credentials that the route does not account for.
    pub credentials: bool,
}

impl RequestFacts {
    /// The facts of a request. A route accounts for a credential by having its field in `key_headers`, or by
    /// `credentials = "share"`.
    pub fn of(rule: &CacheRule, method: &Method, headers: &HeaderMap) -> Self {
        let mut facts = Self { get: method == Method::GET, ..Self::default() };
        if rule.credentials == Credentials::Share {
            return facts;
        }
        // One pass, as above.
        for name in headers.keys() {
            let is_authorization = *name == header::AUTHORIZATION;
            let is_credential = is_authorization || *name == header::COOKIE || rule.credential_headers.contains(name);
            if is_credential && !rule.key_headers.contains(name) {
                facts.credentials = true;
                facts.authorization |= is_authorization;
            }
        }
        facts
    }
}

/// An answer's head, and when it was asked for and received.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// Status.
    pub status: StatusCode,
    /// Fields.
    pub headers: &'a HeaderMap,
    /// When the request for it was sent.
    pub asked_at: WallMs,
    /// When its head was here.
    pub received_at: WallMs,
}

/// Where a lifetime comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The upstream's own fields.
    Upstream,
    /// `cache.ttl`.
    Ttl,
    /// `cache.status_ttl`.
    StatusTtl,
    /// `Last-Modified`.
    Heuristic,
}

impl Source {
    /// Text in headers, logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Ttl => "ttl",
            Self::StatusTtl => "status-ttl",
            Self::Heuristic => "heuristic",
        }
    }
}

/// How an answer is to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// When it may be used. A lifetime of zero is used after validation only.
    pub freshness: Freshness,
    /// Where its lifetime comes from.
    pub source: Source,
    /// The request fields that chose it, sorted, each once; not empty if it is stored as a variant.
    pub vary: Vec<HeaderName>,
    /// Its own tags.
    pub tags: Vec<String>,
}

/// Whether and how an answer may be stored.
///
/// `spread`, from 0.0 to below 1.0, says where in the jitter this fill falls (see [`super::key::spread`]).
///
/// # Errors
/// Why not.
pub fn storable(rule: &CacheRule, facts: RequestFacts, answer: &Received<'_>, spread: f64) -> Result<Plan, Refusal> {
    let said = ResponseDirectives::of(answer.headers);
    permitted(rule, facts, answer, &said)?;
    let vary = chosen_by(rule, answer.headers)?;
    let tags = answer_tags(answer.headers).map_err(|_| Refusal::TooManyTags)?;

    let initial_age_ms = initial_age_ms(answer.headers, answer.asked_at, answer.received_at);
    let (lifetime_ms, source) = match lifetime(rule, answer, &said)? {
        Lifetime::Upstream(ms) => (ms, Source::Upstream),
        Lifetime::Heuristic(ms) => (ms, Source::Heuristic),
        // Counted from the receipt: what the answer has aged elsewhere is not the route's business.
        Lifetime::Configured(ttl, source) => {
            (jittered_ms(ttl, rule.jitter, spread).saturating_add(initial_age_ms), source)
        }
    };
    if facts.credentials && source != Source::Upstream {
        return Err(Refusal::Credentials);
    }

    let respected = rule.upstream_ttl == UpstreamTtl::Respect;
    let no_cache = respected && said.no_cache;
    let never_stale = said.must_revalidate || said.proxy_revalidate;
    // s-maxage forbids stale use too (section 5.2.2.10). Who says beside it for how long (RFC 5861) means that; nobody
    // else may.
    let must_revalidate = never_stale || (respected && said.s_maxage.is_some());
    let window_ms = |own: Option<u32>, configured: Duration| match own.filter(|_| respected) {
        _ if never_stale || no_cache => 0,
        Some(seconds) => seconds_ms(seconds),
        None if must_revalidate => 0,
        None => millis(configured),
    };
    let freshness = Freshness {
        received_at: answer.received_at,
        initial_age_ms,
        lifetime_ms,
        stale_while_revalidate_ms: window_ms(said.stale_while_revalidate, rule.stale_while_revalidate),
        stale_if_error_ms: window_ms(said.stale_if_error, rule.stale_if_error),
        must_revalidate,
        no_cache,
        by_rule: source != Source::Upstream,
    };
    worth_storing(facts, answer.headers, &freshness)?;
    Ok(Plan { freshness, source, vary, tags })
}

/// The request fields that choose the variant of a failure which goes to all who wait for its fetch, and is kept for
/// nobody; `None` where it is its client's alone: one that credentials brought about, or of which no key can be made.
pub fn shared_failure(refusal: Refusal, facts: RequestFacts, headers: &HeaderMap) -> Option<Vec<HeaderName>> {
    let is_shared = refusal == Refusal::ServerError && !facts.credentials;
    if is_shared { vary_names(headers).ok() } else { None }
}

/// What forbids storing, whatever the lifetime (RFC 9111 sections 3 and 3.5).
fn permitted(
    rule: &CacheRule,
    facts: RequestFacts,
    answer: &Received<'_>,
    said: &ResponseDirectives,
) -> Result<(), Refusal> {
    let understood = understood(answer.status);
    if !facts.get {
        Err(Refusal::Method)
    } else if answer.status == StatusCode::PARTIAL_CONTENT {
        Err(Refusal::Partial)
    } else if lies_in_the_request(answer.status) {
        Err(Refusal::Status)
    } else if said.must_understand && !understood {
        Err(Refusal::NotUnderstood)
    } else if said.no_store && !said.must_understand {
        Err(Refusal::NoStore)
    } else if said.private {
        Err(Refusal::Private)
    } else if rule.cookies == Cookies::Refuse && answer.headers.contains_key(header::SET_COOKIE) {
        Err(Refusal::SetCookie)
    } else if facts.authorization && !(said.public || said.must_revalidate || said.s_maxage.is_some()) {
        Err(Refusal::Authorization)
    } else {
        Ok(())
    }
}

/// The request fields that choose the variant. A coded body is one, even if the upstream does not say so: to a client
/// that cannot decode it, it would be noise.
fn chosen_by(rule: &CacheRule, headers: &HeaderMap) -> Result<Vec<HeaderName>, Refusal> {
    let mut names = vary_names(headers).map_err(|refused| match refused {
        VaryRefused::Star => Refusal::VaryStar,
        VaryRefused::TooMany | VaryRefused::Malformed => Refusal::Vary,
    })?;
    let chooses = |names: &[HeaderName]| names.contains(&header::ACCEPT_ENCODING);
    if headers.contains_key(header::CONTENT_ENCODING) && !chooses(&names) && !chooses(&rule.key_headers) {
        let at = names.partition_point(|name| name.as_str() < header::ACCEPT_ENCODING.as_str());
        names.insert(at, header::ACCEPT_ENCODING);
    }
    Ok(names)
}

/// Storing what can be neither used nor validated only takes room; and what is used after validation only is not kept
/// of a request with credentials, since the next one's would be validated by it.
fn worth_storing(facts: RequestFacts, headers: &HeaderMap, freshness: &Freshness) -> Result<(), Refusal> {
    if freshness.lifetime_ms > freshness.initial_age_ms && !freshness.no_cache {
        return Ok(());
    }
    if facts.credentials {
        return Err(Refusal::Credentials);
    }
    let window_ms = freshness.stale_while_revalidate_ms.max(freshness.stale_if_error_ms);
    let stale_use = window_ms > 0 && freshness.lifetime_ms.saturating_add(window_ms) > freshness.initial_age_ms;
    let validator = headers.contains_key(header::ETAG) || date_ms(headers, header::LAST_MODIFIED).is_some();
    if stale_use || validator { Ok(()) } else { Err(Refusal::NoFreshness) }
}

enum Lifetime {
    Upstream(u64),
    Configured(Duration, Source),
    Heuristic(u64),
}

/// The upstream's word, then the route's, then a guess.
fn lifetime(rule: &CacheRule, answer: &Received<'_>, said: &ResponseDirectives) -> Result<Lifetime, Refusal> {
    let status = answer.status;
    let respected = rule.upstream_ttl == UpstreamTtl::Respect;
    if respected && let Some((ms, _)) = upstream_lifetime(answer, said) {
        return Ok(Lifetime::Upstream(ms));
    }
    // Whoever is told to slow down is told for himself, unless the upstream says otherwise.
    let by_status = rule.status_ttl.get(&status).filter(|_| status != StatusCode::TOO_MANY_REQUESTS);
    if let Some(ttl) = by_status {
        return Ok(Lifetime::Configured(*ttl, Source::StatusTtl));
    }
    if let Some(ttl) = rule.ttl.filter(|_| covered_by_ttl(status)) {
        return Ok(Lifetime::Configured(ttl, Source::Ttl));
    }
    if respected && let Some(ms) = heuristic_ms(answer, said) {
        return Ok(Lifetime::Heuristic(ms));
    }
    Err(match status {
        _ if status.is_server_error() => Refusal::ServerError,
        // Whoever is refused or told to slow down: the next one may well be answered.
        StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => Refusal::Status,
        _ => Refusal::NoFreshness,
    })
}

/// What of an answer gives its lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// `s-maxage`.
    SMaxage,
    /// `max-age`.
    MaxAge,
    /// `Expires`, less `Date`.
    Expires,
    /// `no-cache`: none.
    NoCache,
}

impl Given {
    /// The name of the directive or field.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SMaxage => "s-maxage",
            Self::MaxAge => "max-age",
            Self::Expires => "Expires",
            Self::NoCache => "no-cache",
        }
    }
}

/// The lifetime in milliseconds that the upstream gave, and by what (RFC 9111 section 4.2.1); `None` is silence.
/// `no-cache` is no silence: it says that there is no lifetime. But by itself it makes nothing storable (section 3).
pub fn upstream_lifetime(answer: &Received<'_>, said: &ResponseDirectives) -> Option<(u64, Given)> {
    if let Some(seconds) = said.shared_max_age() {
        return Some((seconds_ms(seconds), if said.s_maxage.is_some() { Given::SMaxage } else { Given::MaxAge }));
    }
    if !said.targeted && answer.headers.contains_key(header::EXPIRES) {
        // An Expires that cannot be read, or comes twice, has passed (section 5.3).
        let expires = date_ms(answer.headers, header::EXPIRES).unwrap_or(0);
        let date = date_ms(answer.headers, header::DATE).unwrap_or(answer.received_at);
        return Some((expires.saturating_sub(date), Given::Expires));
    }
    (said.no_cache && storable_unasked(answer.status, said)).then_some((0, Given::NoCache))
}

/// What may be stored, and its lifetime guessed, although the answer says nothing of one (RFC 9111 sections 3 and 4.2.2).
fn storable_unasked(status: StatusCode, said: &ResponseDirectives) -> bool {
    heuristically_cacheable(status) || said.public
}

/// RFC 9111 section 4.2.2.
fn heuristic_ms(answer: &Received<'_>, said: &ResponseDirectives) -> Option<u64> {
    if !storable_unasked(answer.status, said) {
        return None;
    }
    let modified = date_ms(answer.headers, header::LAST_MODIFIED)?;
    let date = date_ms(answer.headers, header::DATE).unwrap_or(answer.received_at);
    let lifetime_ms = date.saturating_sub(modified) / HEURISTIC_DIVISOR;
    (lifetime_ms > 0).then_some(lifetime_ms.min(HEURISTIC_MOST_MS))
}

fn jittered_ms(ttl: Duration, jitter: f64, spread: f64) -> u64 {
    (millis(ttl) as f64 * (1.0 - jitter.clamp(0.0, 1.0) * spread.clamp(0.0, 1.0))) as u64
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Answers to what one client sent: to its malformed or oversized request, its preconditions and ranges, its credentials,
/// its connection. Stored, they would be everybody's (cache-poisoned denial of service). 1xx and 304 are no answers.
fn lies_in_the_request(status: StatusCode) -> bool {
    status.is_informational()
        || matches!(status.as_u16(), 304 | 400 | 401 | 407 | 408 | 412 | 413 | 414 | 416 | 417 | 421 | 425 | 426 | 431)
}

/// What `cache.ttl` covers: the statuses that are cacheable by default and no error.
fn covered_by_ttl(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308)
}

/// RFC 9110 section 15.1, without what is never stored here.
fn heuristically_cacheable(status: StatusCode) -> bool {
    covered_by_ttl(status) || matches!(status.as_u16(), 404 | 405 | 410 | 501)
}

/// Statuses whose meaning for a cache is known here (RFC 9111 section 5.2.2.3).
fn understood(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200..=205 | 300..=303 | 307 | 308 | 400..=417 | 421 | 422 | 426 | 428 | 429 | 431 | 451 | 500..=505)
}

#[cfg(test)]
pub(super) mod tests;
