//! Whether an answer would be stored, by which clause, and for how long.

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::report::{Configured, Does, Freshness, Part, Storing, Supposed, Usual, Way};
use super::{Case, listed, seconds};
use crate::cache::directives::ResponseDirectives;
use crate::cache::freshness::{self, InitialAge, State, http_date};
use crate::cache::key::{self, shown};
use crate::cache::parts;
use crate::cache::policy::{self, Plan, Received, Refusal, RequestFacts, Source};
use crate::clock::WallMs;
use crate::config::CacheRule;
use crate::proxy::respond::{CACHE_STATUS, Forward, Forwarded};
use crate::proxy::{headers, honoured, part, write};

type Said = &'static [(&'static str, &'static str)];

/// Answers that services usually give: what would be made of them says what the route's rule is about.
const USUAL: [(&str, u16, Said); 7] = [
    ("200 that says nothing", 200, &[]),
    ("200 with Cache-Control: max-age=60", 200, &[("cache-control", "max-age=60")]),
    ("200 with Cache-Control: public, max-age=60", 200, &[("cache-control", "public, max-age=60")]),
    ("200 with ETag, and no lifetime", 200, &[("etag", "\"v1\"")]),
    ("200 with Set-Cookie and max-age=60", 200, &[("cache-control", "max-age=60"), ("set-cookie", "a=b")]),
    ("404 that says nothing", 404, &[]),
    ("500 that says nothing", 500, &[]),
];

/// Where it is laid down that a HEAD is not stored.
const HEAD: &str = "docs/caching.md: which requests (a HEAD cannot fill the cache)";

/// Where it is laid down which parts are kept.
const PARTS: &str = "docs/caching.md: parts (a 206 that says which bytes of how many it holds, and does not vary)";

/// Where it is laid down which answers to POST a GET may get.
const POST: &str = "docs/caching.md: POST (RFC 9110, 9.3.3)";

impl Case<'_> {
    pub(super) fn storing(&self, way: &Way, now: WallMs) -> Option<Storing> {
        if matches!(way.does, Does::Refuse | Does::Purge) {
            return None;
        }
        let rule = self.rule().filter(|_| way.does == Does::Cache);
        let Some((status, fields)) = &self.asked.answer else {
            let usual = rule.map(|rule| USUAL.map(|(what, status, said)| self.usual(rule, what, status, said, now)));
            return usual.map(|usual| Storing { supposed: None, usual: usual.into() });
        };
        // As it is when the fetch has it: what belongs to the connection is gone.
        let mut fields = fields.clone();
        headers::strip_hop_by_hop(&mut fields);
        let received = Received { status: *status, headers: &fields, asked_at: now, received_at: now };
        let supposed = match rule {
            Some(rule) if self.is_part() => self.part(rule, &received),
            Some(rule) => self.supposed(rule, &received),
            None => self.succeeding(way, &received).unwrap_or_else(|| Supposed {
                text: "no: the request goes past the cache".to_owned(),
                reason: way.reason,
                clause: way.clause,
                cache_status: way.cache_status.clone().unwrap_or_default(),
                ..unstored(&received)
            }),
        };
        Some(Storing { supposed: Some(supposed), usual: Vec::new() })
    }

    fn facts(&self, rule: &CacheRule) -> RequestFacts {
        RequestFacts::of(rule, self.reads_as(), self.headers())
    }

    /// The place of this fetch in the jitter.
    fn spread(&self, asked_at: WallMs) -> f64 {
        key::spread(key::hash(&self.key), asked_at)
    }

    fn supposed(&self, rule: &CacheRule, received: &Received<'_>) -> Supposed {
        let none = unstored(received);
        let facts = self.facts(rule);
        if *self.reads_as() == Method::HEAD {
            let refusal = policy::storable(rule, facts, received, 0.0).err();
            return Supposed {
                text: "no: it is answered from what is stored, or goes to the service by itself".to_owned(),
                reason: refusal.map(Refusal::as_str),
                clause: Some(HEAD),
                cache_status: status_of(&Forwarded::because(Forward::UriMiss)),
                ..none
            };
        }
        let plan = policy::storable(rule, facts, received, self.spread(received.asked_at));
        let shared =
            plan.as_ref().err().is_some_and(|why| policy::shared_failure(*why, facts, received.headers).is_some());
        let refused = |detail| Forwarded { detail: Some(detail), ..Forwarded::because(Forward::UriMiss) };
        if (plan.is_ok() || shared) && self.is_too_large(received.headers) {
            return Supposed {
                text: "no: the body is larger than cache.max_object".to_owned(),
                reason: Some("too-large"),
                clause: Some("docs/caching.md: what is stored (cache.max_object)"),
                cache_status: status_of(&refused("too-large")),
                ..none
            };
        }
        let plan = match plan {
            Ok(plan) => plan,
            Err(refusal) => {
                let (text, forwarded) = if shared {
                    let text = "no: it goes to all who wait for this fetch, and is kept for nobody";
                    (text, Forwarded::because(Forward::UriMiss))
                } else if refusal.lies_in_the_resource() {
                    (
                        "no; that is remembered for 5 s, and nobody waits for anybody meanwhile",
                        refused(refusal.as_str()),
                    )
                } else {
                    ("no; the next one's answer may well be", refused(refusal.as_str()))
                };
                return Supposed {
                    text: text.to_owned(),
                    reason: Some(refusal.as_str()),
                    clause: Some(refusal.clause()),
                    cache_status: status_of(&forwarded),
                    ..none
                };
            }
        };
        let next = plan.freshness.evaluate(received.received_at, honoured(rule, self.parts()).as_ref(), false);
        Supposed {
            stored: true,
            text: format!("yes: {}", lasting(&plan)),
            cache_status: status_of(&Forwarded { stored: true, ..Forwarded::because(Forward::UriMiss) }),
            next: Some(match next {
                State::Fresh { ttl_left_ms, .. } => format!("weir; hit; ttl={}", ttl_left_ms / 1000),
                State::StaleWhileRevalidate { stale_ms, .. } => {
                    format!("weir; hit; ttl={}", -((stale_ms / 1000) as i64) - 1)
                }
                State::StaleIfError { .. } | State::MustRevalidate => Forward::Stale.member().to_owned(),
            }),
            freshness: Some(self.arithmetic(rule, received, &plan)),
            vary: self.variant(&plan),
            tags: plan.tags,
            ..none
        }
    }

    /// What is kept of an answer to a request for a part.
    fn part(&self, rule: &CacheRule, received: &Received<'_>) -> Supposed {
        let size = parts::described(received.headers).map(|(range, _)| range.end - range.start);
        let plan = part::plan(self.headers(), rule, &parts::key(&self.key), received);
        let has_room = size.is_some_and(|size| size <= self.live.config.cache.max_object as u64);
        let Some(plan) = plan.filter(|_| has_room) else {
            return Supposed {
                text: "no: it passes to its client alone".to_owned(),
                clause: Some(PARTS),
                cache_status: status_of(&Forwarded::because(Forward::UriMiss)),
                ..unstored(received)
            };
        };
        let honoured = honoured(rule, self.parts());
        let next = match plan.freshness.evaluate(received.received_at, honoured.as_ref(), false) {
            State::Fresh { ttl_left_ms, .. } => format!("weir; hit; ttl={}", ttl_left_ms / 1000),
            _ => Forward::UriMiss.member().to_owned(),
        };
        Supposed {
            stored: true,
            text: format!("yes, as a part: {}", lasting(&plan)),
            clause: Some(PARTS),
            cache_status: status_of(&Forwarded { stored: true, ..Forwarded::because(Forward::UriMiss) }),
            next: Some(next),
            freshness: Some(self.arithmetic(rule, received, &plan)),
            tags: plan.tags,
            ..unstored(received)
        }
    }

    /// What a GET of the URL gets from then on, if that is the answer to this write.
    fn succeeding(&self, way: &Way, received: &Received<'_>) -> Option<Supposed> {
        let (route, target, succession) =
            write::read_of(self.live, &self.target, self.parts()).filter(|_| way.does == Does::Write)?;
        let rule = route.rule.cache.as_ref()?;
        let key = route.key(&target, self.headers(), None);
        let plan = succession.plan(&self.target, rule, &key, self.headers(), received)?;
        route.tags(&target)?;
        (!self.is_too_large(received.headers)).then_some(())?;
        Some(Supposed {
            stored: true,
            text: format!(
                "yes, for a GET of the same URL, unless something else invalidates it meanwhile: {}",
                lasting(&plan)
            ),
            clause: Some(POST),
            cache_status: format!("{}; stored", way.cache_status.as_deref()?),
            freshness: Some(self.arithmetic(rule, received, &plan)),
            tags: plan.tags,
            ..unstored(received)
        })
    }

    fn is_too_large(&self, fields: &HeaderMap) -> bool {
        let length = fields.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.trim().parse::<u64>().ok());
        length.is_some_and(|length| length > self.live.config.cache.max_object as u64)
    }

    fn variant(&self, plan: &Plan) -> Vec<Part> {
        let Some(keys) = self.route.keys.as_ref().filter(|_| !plan.vary.is_empty()) else { return Vec::new() };
        let mut key = Vec::new();
        keys.variant(&mut key, &self.key, &plan.vary, self.headers());
        self.variant_parts(&key)
    }

    /// The request fields in a variant's key.
    pub(super) fn variant_parts(&self, key: &[u8]) -> Vec<Part> {
        let (Some(keys), Some(fields)) = (&self.route.keys, shown::variant(key)) else { return Vec::new() };
        fields.iter().map(|field| keys.shown(field)).map(|(name, value)| Part { name, value }).collect()
    }

    fn arithmetic(&self, rule: &CacheRule, received: &Received<'_>, plan: &Plan) -> Freshness {
        let initial = InitialAge::of(received.headers, received.asked_at, received.received_at);
        let said = ResponseDirectives::of(received.headers);
        let configured = match plan.source {
            Source::Ttl => rule.ttl,
            Source::StatusTtl => rule.status_ttl.get(&received.status).copied(),
            Source::Upstream | Source::Heuristic => None,
        };
        let lifetime_from = match plan.source {
            Source::Upstream => {
                let given = policy::upstream_lifetime(received, &said).map_or("", |(_, given)| given.as_str());
                format!("the service: {given}")
            }
            Source::Ttl => "the route: cache.ttl, since the service says nothing".to_owned(),
            Source::StatusTtl => "the route: cache.status_ttl, since the service says nothing".to_owned(),
            Source::Heuristic => "a guess: a tenth of the time since Last-Modified".to_owned(),
        };
        Freshness {
            configured: configured.map(|ttl| Configured {
                ttl_ms: ttl.as_millis() as u64,
                jitter: rule.jitter,
                shortened_by: rule.jitter * self.spread(received.asked_at),
                jittered_ms: plan.freshness.lifetime_ms.saturating_sub(plan.freshness.initial_age_ms),
            }),
            lifetime_from,
            ..terms(&plan.freshness, &initial, received.received_at, false)
        }
    }

    fn usual(&self, rule: &CacheRule, answer: &'static str, status: u16, said: Said, now: WallMs) -> Usual {
        let said =
            said.iter().map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)));
        let fields: HeaderMap = said.collect();
        let status = StatusCode::from_u16(status).unwrap_or_default();
        let received = Received { status, headers: &fields, asked_at: now, received_at: now };
        let supposed = if self.is_part() { self.part(rule, &received) } else { self.supposed(rule, &received) };
        let because = match supposed.reason {
            Some(reason) => reason.to_owned(),
            None => supposed.text.trim_start_matches("yes: ").to_owned(),
        };
        Usual { answer, stored: supposed.stored, because, clause: supposed.clause }
    }
}

/// What of an answer says something whether it is stored or not.
fn unstored(received: &Received<'_>) -> Supposed {
    let (said, field) = ResponseDirectives::heard(received.headers);
    Supposed {
        status: received.status.as_u16(),
        stored: false,
        reason: None,
        text: String::new(),
        clause: None,
        cache_status: String::new(),
        next: None,
        directives_from: field.to_string(),
        directives: directives(&said),
        freshness: None,
        vary: Vec::new(),
        tags: Vec::new(),
    }
}

/// For how long, and by what.
fn lasting(plan: &Plan) -> String {
    let left_ms = plan.freshness.lifetime_ms.saturating_sub(plan.freshness.initial_age_ms);
    let by = match plan.source {
        Source::Upstream => "the service",
        Source::Ttl => "cache.ttl",
        Source::StatusTtl => "cache.status_ttl",
        Source::Heuristic => "Last-Modified",
    };
    if left_ms == 0 || plan.freshness.no_cache {
        return format!("used after validation or stale only, by {by}");
    }
    format!("fresh for {} by {by}", seconds(left_ms))
}

/// The terms of what is stored, at `now`. Where the lifetime comes from is the caller's to say.
pub(super) fn terms(freshness: &freshness::Freshness, initial: &InitialAge, now: WallMs, is_soft: bool) -> Freshness {
    let date = |at| String::from_utf8_lossy(http_date(at).as_bytes()).into_owned();
    let age_ms = freshness.age_ms(now);
    let ttl_ms = freshness.lifetime_ms.min(i64::MAX as u64) as i64 - age_ms.min(i64::MAX as u64) as i64;
    Freshness {
        age_field_ms: Some(initial.age_field_ms),
        date: initial.date.map(date),
        apparent_age_ms: initial.apparent_ms,
        response_delay_ms: initial.delay_ms,
        initial_age_ms: freshness.initial_age_ms,
        received_at: date(freshness.received_at),
        resident_ms: now.saturating_sub(freshness.received_at),
        age_ms,
        lifetime_ms: freshness.lifetime_ms,
        lifetime_from: String::new(),
        configured: None,
        ttl_ms,
        early_refresh_ms: freshness.early_window_ms(initial.delay_ms),
        stale_while_revalidate_ms: freshness.stale_while_revalidate_ms,
        stale_if_error_ms: freshness.stale_if_error_ms,
        must_revalidate: freshness.must_revalidate,
        no_cache: freshness.no_cache,
        by_rule: freshness.by_rule,
        state: match freshness.evaluate(now, None, is_soft) {
            State::Fresh { .. } => "fresh",
            State::StaleWhileRevalidate { .. } => "stale-while-revalidate",
            State::StaleIfError { .. } => "stale-if-error",
            State::MustRevalidate => "must-revalidate",
        },
    }
}

fn directives(said: &ResponseDirectives) -> Vec<String> {
    let timed_ones = [
        ("s-maxage", said.s_maxage),
        ("max-age", said.max_age),
        ("stale-while-revalidate", said.stale_while_revalidate),
        ("stale-if-error", said.stale_if_error),
    ];
    let flags = [
        ("public", said.public),
        ("private", said.private),
        ("no-store", said.no_store),
        ("no-cache", said.no_cache),
        ("must-revalidate", said.must_revalidate),
        ("proxy-revalidate", said.proxy_revalidate),
        ("must-understand", said.must_understand),
    ];
    let flags = flags.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name.to_owned());
    flags.chain(timed_ones.into_iter().filter_map(|(name, value)| timed(name, value))).collect()
}

/// A directive with its seconds.
pub(super) fn timed(name: &str, value: Option<u32>) -> Option<String> {
    Some(match value? {
        u32::MAX => name.to_owned(),
        value => format!("{name}={value}"),
    })
}

/// The member that an answer gets.
fn status_of(forwarded: &Forwarded) -> String {
    let mut fields = HeaderMap::new();
    forwarded.append(&mut fields);
    listed(fields.get(CACHE_STATUS).and_then(|value| value.to_str().ok()))
}
