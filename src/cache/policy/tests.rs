use std::collections::BTreeMap;

use http::HeaderValue;
use proptest::prelude::*;

use super::*;
use crate::cache::entry::tests::entry;
use crate::cache::freshness::{State, http_date};
use crate::cache::key;
use crate::config::{ClientDirectives, CutOff, QueryRule};

const NOW: WallMs = 1_700_000_000_000;

/// `cache.enabled = true` with the other keys at their defaults, and no jitter.
pub(in crate::cache) fn rule() -> CacheRule {
    CacheRule {
        ttl: None,
        upstream_ttl: UpstreamTtl::Respect,
        jitter: 0.0,
        stale_while_revalidate: Duration::ZERO,
        stale_if_error: Duration::ZERO,
        status_ttl: BTreeMap::new(),
        query: QueryRule::default(),
        key_headers: Vec::new(),
        key_body: Vec::new(),
        status_key: false,
        no_vary_search: false,
        write_through: false,
        tags: Vec::new(),
        credentials: Credentials::Protect,
        credential_headers: vec![HeaderName::from_static("x-api-key")],
        cookies: Cookies::Refuse,
        client_directives: ClientDirectives::Ignore,
        max_staleness: Duration::from_secs(10),
        cut_off: CutOff::Bound,
        wait_timeout: Duration::from_secs(5),
    }
}

fn ttl() -> CacheRule {
    CacheRule { ttl: Some(Duration::from_secs(60)), ..rule() }
}

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    headers
}

const ANYONE: RequestFacts = RequestFacts { get: true, authorization: false, credentials: false };
const COOKIE: RequestFacts = RequestFacts { credentials: true, ..ANYONE };
const AUTHORISED: RequestFacts = RequestFacts { authorization: true, ..COOKIE };

fn plan(rule: &CacheRule, facts: RequestFacts, status: u16, fields: &[(&'static str, &str)]) -> Result<Plan, Refusal> {
    let headers = headers(fields);
    let status = StatusCode::from_u16(status).unwrap();
    storable(rule, facts, &Received { status, headers: &headers, asked_at: NOW, received_at: NOW }, 0.5)
}

/// Lifetime in seconds and its source.
fn life(
    rule: &CacheRule,
    facts: RequestFacts,
    status: u16,
    fields: &[(&'static str, &str)],
) -> Result<(u64, Source), Refusal> {
    plan(rule, facts, status, fields).map(|plan| (plan.freshness.lifetime_ms / 1000, plan.source))
}

#[test]
fn requests_that_go_past_the_cache() {
    let of = |method: Method, fields: &[(&'static str, &str)], body| {
        request_may_use_cache(&method, &headers(fields), body, None)
    };
    assert_eq!(of(Method::GET, &[("cookie", "a=1"), ("authorization", "x"), ("if-none-match", "*")], false), Ok(()));
    assert_eq!(of(Method::HEAD, &[], false), Ok(()));
    assert_eq!(of(Method::POST, &[], false), Err(Bypass::Method));
    assert_eq!(of(Method::GET, &[], true), Err(Bypass::Body));
    assert_eq!(of(Method::GET, &[("x-http-method-override", "DELETE")], false), Err(Bypass::MethodOverride));
    assert_eq!(of(Method::GET, &[("range", "bytes=0-1")], false), Ok(()));
    assert_eq!(of(Method::GET, &[("if-match", "\"a\"")], false), Err(Bypass::Precondition));
    assert_eq!(of(Method::GET, &[("upgrade", "websocket")], false), Err(Bypass::Upgrade));
    let no_store = RequestDirectives { no_store: true, ..Default::default() };
    let get = |honoured| request_may_use_cache(&Method::GET, &HeaderMap::new(), false, honoured);
    assert_eq!(get(Some(&no_store)), Err(Bypass::NoStore));
    assert_eq!(get(Some(&RequestDirectives { no_cache: true, ..Default::default() })), Ok(()));
}

#[test]
fn facts_of_a_request() {
    let of = |rule: &CacheRule, fields: &[(&'static str, &str)]| RequestFacts::of(rule, &Method::GET, &headers(fields));
    assert_eq!(of(&rule(), &[("accept", "x")]), ANYONE);
    assert_eq!(of(&rule(), &[("cookie", "a=1")]), COOKIE);
    assert_eq!(of(&rule(), &[("x-api-key", "k")]), COOKIE);
    assert_eq!(of(&rule(), &[("authorization", "k")]), AUTHORISED);
    let shared = CacheRule { credentials: Credentials::Share, ..rule() };
    assert_eq!(of(&shared, &[("authorization", "k"), ("cookie", "a=1")]), ANYONE);
    let keyed = CacheRule { key_headers: vec![header::AUTHORIZATION], ..rule() };
    assert_eq!(of(&keyed, &[("authorization", "k")]), ANYONE);
    assert_eq!(of(&keyed, &[("authorization", "k"), ("cookie", "a=1")]), COOKIE);
    assert!(!RequestFacts::of(&rule(), &Method::HEAD, &HeaderMap::new()).get);
}

#[test]
fn the_upstream_lifetime_wins() {
    let rule = CacheRule { status_ttl: [(StatusCode::OK, Duration::from_secs(7))].into(), ..ttl() };
    let upstream = |seconds| Ok((seconds, Source::Upstream));
    let date = http_date(NOW).to_str().unwrap().to_owned();
    let later = http_date(NOW + 30_000).to_str().unwrap().to_owned();
    let earlier = http_date(NOW - 30_000).to_str().unwrap().to_owned();
    let etag = ("etag", "\"a\"");
    for (fields, expected) in [
        (&[("cache-control", "max-age=5")][..], upstream(5)),
        (&[("cache-control", "max-age=5, s-maxage=9")], upstream(9)),
        (&[("cache-control", "s-maxage=5"), ("cache-control", "max-age=9")], upstream(5)),
        (&[("cache-control", "max-age=5"), ("expires", &later)], upstream(5)),
        (&[("expires", &later), ("date", &date)], upstream(30)),
        (&[("expires", &later)], upstream(30)),
        (&[("expires", &later), ("date", &earlier), etag], upstream(60)),
        (&[("expires", &earlier), etag], upstream(0)),
        (&[("expires", "0"), etag], upstream(0)),
        (&[("expires", "0")], Err(Refusal::NoFreshness)),
        (&[("expires", &later), ("expires", &later)], Err(Refusal::NoFreshness)),
        (&[("cache-control", "no-cache")], Err(Refusal::NoFreshness)),
        (&[("cache-control", "no-cache"), etag], upstream(0)),
        (&[("cache-control", "max-age=0"), etag], upstream(0)),
        (&[("cache-control", "max-age=x")], Err(Refusal::NoFreshness)),
        (&[("cache-control", "max-age=5"), ("age", "5")], Err(Refusal::NoFreshness)),
        (&[("cache-control", "max-age=5"), ("age", "5"), etag], upstream(5)),
        (&[("cache-control", "max-age=5, stale-if-error=9"), ("age", "13")], upstream(5)),
        (&[("cache-control", "max-age=5, stale-if-error=9"), ("age", "14")], Err(Refusal::NoFreshness)),
        (&[("cache-control", "public")], Ok((7, Source::StatusTtl))),
    ] {
        assert_eq!(life(&rule, ANYONE, 200, fields), expected, "{fields:?}");
    }
}

#[test]
fn ttl_fills_silence_and_covers_its_statuses() {
    let modified = http_date(NOW - 1_000_000_000).to_str().unwrap().to_owned();
    for status in [200, 203, 204, 300, 301, 308] {
        let with_modified = life(&ttl(), ANYONE, status, &[("last-modified", &modified)]);
        assert_eq!(with_modified, Ok((60, Source::Ttl)), "{status} wins over a guess");
    }
    for status in [201, 202, 302, 303, 307, 404, 410, 418, 451] {
        assert_eq!(life(&ttl(), ANYONE, status, &[]), Err(Refusal::NoFreshness), "{status}");
    }
    for status in [403, 429] {
        assert_eq!(life(&ttl(), ANYONE, status, &[]), Err(Refusal::Status), "{status} says nothing of the next one");
    }
    for status in [500, 502, 503, 504, 599] {
        assert_eq!(life(&ttl(), ANYONE, status, &[]), Err(Refusal::ServerError), "{status}");
        assert_eq!(life(&ttl(), ANYONE, status, &[("cache-control", "max-age=1")]), Ok((1, Source::Upstream)));
    }
}

#[test]
fn status_ttl_and_what_it_cannot_do() {
    let all: BTreeMap<_, _> =
        (200..600).map(|code| (StatusCode::from_u16(code).unwrap(), Duration::from_secs(5))).collect();
    let rule = CacheRule { status_ttl: all, ..ttl() };
    for status in [200, 302, 404, 410, 500, 503] {
        assert_eq!(life(&rule, ANYONE, status, &[]), Ok((5, Source::StatusTtl)), "{status}");
    }
    for status in [304, 400, 401, 408, 412, 413, 414, 416, 417, 421, 431] {
        assert_eq!(life(&rule, ANYONE, status, &[("cache-control", "max-age=9")]), Err(Refusal::Status), "{status}");
    }
    assert_eq!(life(&rule, ANYONE, 429, &[]), Err(Refusal::Status));
    assert_eq!(life(&rule, ANYONE, 429, &[("cache-control", "max-age=9")]), Ok((9, Source::Upstream)));
    assert_eq!(life(&rule, ANYONE, 206, &[("cache-control", "max-age=9")]), Err(Refusal::Partial));
    assert_eq!(life(&rule, RequestFacts { get: false, ..ANYONE }, 200, &[]), Err(Refusal::Method));
}

#[test]
fn an_ignored_upstream_still_says_private_and_no_store() {
    let rule = CacheRule { upstream_ttl: UpstreamTtl::Ignore, stale_if_error: Duration::from_secs(9), ..ttl() };
    for said in ["max-age=5", "max-age=0", "no-cache", "s-maxage=0, stale-if-error=1"] {
        let plan = plan(&rule, ANYONE, 200, &[("cache-control", said), ("expires", "0")]).unwrap();
        assert_eq!((plan.freshness.lifetime_ms, plan.source), (60_000, Source::Ttl), "{said}");
        assert_eq!((plan.freshness.no_cache, plan.freshness.stale_if_error_ms), (false, 9_000), "{said}");
    }
    assert_eq!(life(&rule, ANYONE, 200, &[("cache-control", "private")]), Err(Refusal::Private));
    assert_eq!(life(&rule, ANYONE, 200, &[("cache-control", "max-age=5, no-store")]), Err(Refusal::NoStore));
    let modified = ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");
    assert_eq!(life(&rule, ANYONE, 404, &[("cache-control", "max-age=5"), modified]), Err(Refusal::NoFreshness));
}

#[test]
fn credentials_are_protected_from_everything_but_the_upstream_itself() {
    let modified = ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");
    let statuses = CacheRule { status_ttl: [(StatusCode::OK, Duration::from_secs(5))].into(), ..rule() };
    for rule in [ttl(), statuses, rule(), CacheRule { upstream_ttl: UpstreamTtl::Ignore, ..ttl() }] {
        assert_eq!(life(&rule, COOKIE, 200, &[modified]), Err(Refusal::Credentials));
    }
    assert_eq!(life(&ttl(), COOKIE, 200, &[("cache-control", "max-age=9")]), Ok((9, Source::Upstream)));
    for said in ["no-cache", "max-age=0", "no-cache, max-age=9"] {
        assert_eq!(life(&ttl(), COOKIE, 200, &[("cache-control", said), modified]), Err(Refusal::Credentials));
    }
}

#[test]
fn authorised_answers_are_stored_only_where_they_say_so() {
    for (said, expected) in [
        ("max-age=9", Err(Refusal::Authorization)),
        ("max-age=9, public", Ok((9, Source::Upstream))),
        ("max-age=9, must-revalidate", Ok((9, Source::Upstream))),
        ("max-age=9, proxy-revalidate", Err(Refusal::Authorization)),
        ("s-maxage=9", Ok((9, Source::Upstream))),
        ("public", Err(Refusal::Credentials)),
    ] {
        assert_eq!(life(&ttl(), AUTHORISED, 200, &[("cache-control", said)]), expected, "{said}");
    }
}

#[test]
fn what_is_never_stored() {
    let fresh = ("cache-control", "max-age=9");
    assert_eq!(life(&ttl(), ANYONE, 200, &[fresh, ("set-cookie", "a=1")]), Err(Refusal::SetCookie));
    let cookies = CacheRule { cookies: Cookies::Store, ..ttl() };
    assert_eq!(life(&cookies, ANYONE, 200, &[fresh, ("set-cookie", "a=1")]), Ok((9, Source::Upstream)));
    assert_eq!(life(&ttl(), ANYONE, 200, &[fresh, ("vary", "*")]), Err(Refusal::VaryStar));
    assert_eq!(life(&ttl(), ANYONE, 200, &[fresh, ("vary", "a b")]), Err(Refusal::Vary));
    let many = (0..129).map(|n| format!("t{n}")).collect::<Vec<_>>().join(" ");
    assert_eq!(life(&ttl(), ANYONE, 200, &[fresh, ("surrogate-key", &many)]), Err(Refusal::TooManyTags));
    let understand = ("cache-control", "max-age=9, must-understand, no-store");
    assert_eq!(life(&ttl(), ANYONE, 200, &[understand]), Ok((9, Source::Upstream)));
    assert_eq!(life(&ttl(), ANYONE, 299, &[understand]), Err(Refusal::NotUnderstood));
    assert_eq!(life(&ttl(), ANYONE, 299, &[fresh]), Ok((9, Source::Upstream)));
}

#[test]
fn guesses() {
    let modified = |ago_s: u64| http_date(NOW - ago_s * 1000).to_str().unwrap().to_owned();
    let of = |status, ago_s| life(&rule(), ANYONE, status, &[("last-modified", &modified(ago_s))]);
    assert_eq!(of(200, 1000), Ok((100, Source::Heuristic)));
    assert_eq!(of(404, 1000), Ok((100, Source::Heuristic)));
    assert_eq!(of(200, 1_000_000_000), Ok((86_400, Source::Heuristic)));
    assert_eq!(of(302, 1000), Err(Refusal::NoFreshness));
    assert_eq!(of(501, 1000), Ok((100, Source::Heuristic)));
    assert_eq!(of(503, 1000), Err(Refusal::ServerError));
    assert_eq!(of(200, 0), Err(Refusal::NoFreshness));
    assert_eq!(life(&rule(), ANYONE, 200, &[("etag", "\"a\"")]), Err(Refusal::NoFreshness));
    let public = [("last-modified", &modified(1000)[..]), ("cache-control", "public")];
    assert_eq!(life(&rule(), ANYONE, 302, &public), Ok((100, Source::Heuristic)));
    assert_eq!(life(&rule(), ANYONE, 400, &public), Err(Refusal::Status));
}

#[test]
fn no_cache_makes_nothing_storable() {
    let etag = ("etag", "\"a\"");
    let of = |status, said| life(&rule(), ANYONE, status, &[("cache-control", said), etag]);
    for status in [200, 301, 404, 501] {
        assert_eq!(of(status, "no-cache"), Ok((0, Source::Upstream)), "{status}");
    }
    for (status, refusal) in [(302, Refusal::NoFreshness), (403, Refusal::Status), (503, Refusal::ServerError)] {
        assert_eq!(of(status, "no-cache"), Err(refusal), "{status}");
        assert_eq!(of(status, "no-cache, public"), Ok((0, Source::Upstream)), "{status}");
        assert_eq!(of(status, "no-cache, max-age=5"), Ok((5, Source::Upstream)), "{status}");
    }
}

#[test]
fn what_is_meant_for_this_cache_counts() {
    let long_ago = ("expires", "Sun, 06 Nov 1994 08:49:37 GMT");
    for (fields, expected) in [
        (&[("cdn-cache-control", "max-age=9"), ("cache-control", "no-store"), long_ago][..], Ok(9)),
        (&[("cdn-cache-control", "max-age=9"), ("weir-cache-control", "max-age=5")], Ok(5)),
        (&[("cdn-cache-control", "max-age=9"), ("surrogate-control", "max-age=5")], Ok(9)),
        (&[("cdn-cache-control", "max-age=9, max-age=5")], Ok(5)),
        (&[("cdn-cache-control", "max-age=9, private=?0")], Ok(9)),
        (&[("cdn-cache-control", "max-age=9, private=\"x\"")], Err(Refusal::Private)),
        (&[("cdn-cache-control", "no-store"), ("cache-control", "max-age=9")], Err(Refusal::NoStore)),
        (&[("cdn-cache-control", "max-age=\"9\""), ("cache-control", "max-age=9")], Err(Refusal::NoFreshness)),
        (&[("cdn-cache-control", "max-age=9, &&"), ("cache-control", "max-age=5")], Ok(5)),
        (&[("cdn-cache-control", ""), ("cache-control", "max-age=5")], Ok(5)),
        (&[("weir-cache-control", ""), ("cdn-cache-control", "max-age=9"), ("cache-control", "max-age=5")], Ok(9)),
        (&[("surrogate-control", "max-age=9"), ("cache-control", "max-age=5"), long_ago], Ok(9)),
        (&[("surrogate-control", "Max-Age=9+60;weir, content=\"ESI/1.0\"")], Ok(9)),
        (&[("surrogate-control", "max-age=9;other"), ("cache-control", "max-age=5")], Ok(5)),
        (&[("surrogate-control", "content=\"ESI/1.0\""), ("cache-control", "max-age=5")], Ok(5)),
        (&[("surrogate-control", "no-store"), ("cache-control", "max-age=5")], Err(Refusal::NoStore)),
    ] {
        assert_eq!(life(&rule(), ANYONE, 200, fields).map(|(seconds, _)| seconds), expected, "{fields:?}");
    }
}

#[test]
fn stale_windows() {
    let rule = CacheRule {
        stale_while_revalidate: Duration::from_secs(30),
        stale_if_error: Duration::from_secs(600),
        ..ttl()
    };
    let etag = ("etag", "\"a\"");
    for (said, expected) in [
        ("max-age=5", (30, 600)),
        ("s-maxage=5", (0, 0)),
        ("s-maxage=x", (0, 0)),
        ("s-maxage=5, stale-if-error=9", (0, 9)),
        ("s-maxage=5, stale-while-revalidate=1, stale-if-error=9", (1, 9)),
        ("s-maxage=5, stale-if-error=9, proxy-revalidate", (0, 0)),
        ("max-age=5, stale-while-revalidate=1, stale-if-error=0", (1, 0)),
        ("max-age=5, must-revalidate, stale-if-error=9", (0, 0)),
        ("max-age=5, proxy-revalidate", (0, 0)),
    ] {
        let freshness = plan(&rule, ANYONE, 200, &[("cache-control", said), etag]).unwrap().freshness;
        let windows = (freshness.stale_while_revalidate_ms / 1000, freshness.stale_if_error_ms / 1000);
        assert_eq!(windows, expected, "{said}");
    }
    let ignoring = CacheRule { upstream_ttl: UpstreamTtl::Ignore, ..rule };
    let freshness =
        plan(&ignoring, ANYONE, 200, &[("cache-control", "s-maxage=5, stale-if-error=9")]).unwrap().freshness;
    assert_eq!(
        (freshness.stale_if_error_ms, freshness.must_revalidate),
        (600_000, false),
        "a lifetime is ignored whole"
    );
    let revalidated_behind =
        plan(&super::tests::rule(), ANYONE, 200, &[("cache-control", "max-age=0, stale-while-revalidate=60")]);
    assert_eq!(revalidated_behind.unwrap().freshness.stale_while_revalidate_ms, 60_000);
}

#[test]
fn who_cannot_tell_an_age_tells_of_a_stale_answer() {
    let etag = ("etag", "\"a\"");
    let said = ("cache-control", "max-age=2147483648, stale-while-revalidate=9, stale-if-error=9");
    for age in [&["x"][..], &["-1"], &["1.0"], &["0, 0"], &["0", "0"], &[""]] {
        let ages = || age.iter().map(|age| ("age", *age));
        let service: Vec<_> = ages().chain([("cache-control", "max-age=60, stale-if-error=9")]).collect();
        assert_eq!(life(&rule(), ANYONE, 200, &service), Err(Refusal::NoFreshness), "{age:?}");
        for further in [said, ("cache-control", "max-age=60")] {
            let stored = plan(&rule(), ANYONE, 200, &ages().chain([further, etag]).collect::<Vec<_>>()).unwrap();
            let state = stored.freshness.evaluate(NOW, None, false);
            assert!(!matches!(state, State::Fresh { .. }), "{age:?}: {state:?}");
        }
        let heuristic = [("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")];
        let guessed = plan(&rule(), ANYONE, 200, &ages().chain(heuristic).collect::<Vec<_>>()).unwrap();
        assert_eq!(guessed.freshness.evaluate(NOW, None, false), State::MustRevalidate, "{age:?}");
        let configured = plan(&ttl(), ANYONE, 200, &ages().collect::<Vec<_>>()).unwrap().freshness;
        assert!(matches!(configured.evaluate(NOW, None, false), State::Fresh { ttl_left_ms: 60_000, .. }), "{age:?}");
    }
}

#[test]
fn a_304_tells_the_age_anew() {
    let stored = entry(200, &[("cache-control", "max-age=60"), ("age", "0, 0"), ("etag", "\"a\"")], "body");
    for (update, expected_s) in [(&[][..], 0), (&[("age", "7")], 7), (&[("age", "7"), ("age", "7")], 1 << 31)] {
        let merged = stored.merged(&headers(update));
        let received = Received { status: StatusCode::OK, headers: &merged, asked_at: NOW, received_at: NOW };
        let plan = storable(&rule(), ANYONE, &received, 0.5).unwrap();
        assert_eq!(plan.freshness.initial_age_ms, expected_s * 1000, "{update:?}");
    }
}

#[test]
fn configured_lifetimes_count_from_the_receipt_and_are_spread() {
    let rule = CacheRule { jitter: 0.1, ..ttl() };
    let plan = plan(&rule, ANYONE, 200, &[("age", "500")]).unwrap();
    assert_eq!(plan.freshness.lifetime_ms, 500_000 + 57_000);
    assert_eq!(plan.freshness.initial_age_ms, 500_000);
    assert_eq!(life(&rule, ANYONE, 200, &[("cache-control", "max-age=60")]), Ok((60, Source::Upstream)));
}

/// Ten thousand entries that were filled within one second and are read all the time: when each is asked for anew, for
/// three lifetimes, as a refresh in the last part of a lifetime. Even is what the jitter's window gives, 12 s here.
#[test]
fn what_was_filled_at_once_is_refilled_evenly() {
    const ENTRIES: u64 = 10_000;
    const EVEN: f64 = ENTRIES as f64 / 12.0;
    let (rule, none) = (CacheRule { jitter: 0.2, ..ttl() }, headers(&[]));
    let mut filled: Vec<WallMs> = (0..ENTRIES).map(|i| NOW + i / 10).collect();
    for lifetime in 1..=3 {
        let mut seconds = BTreeMap::<u64, u32>::new();
        for (i, at) in filled.iter_mut().enumerate() {
            let received = Received { status: StatusCode::OK, headers: &none, asked_at: *at, received_at: *at };
            let key = format!("https://service.test/{i}");
            let spread = key::spread(key::hash(key.as_bytes()), *at);
            let freshness = storable(&rule, ANYONE, &received, spread).unwrap().freshness;
            *at += freshness.lifetime_ms - freshness.early_window_ms(0).unwrap();
            *seconds.entry((*at - NOW) / 1000).or_default() += 1;
        }
        let fullest = f64::from(*seconds.values().max().unwrap()) / EVEN;
        assert!(fullest <= 1.3, "lifetime {lifetime}: {fullest:.2} of an even spread in one second: {seconds:?}");
    }
}

#[test]
fn vary_and_tags_are_in_the_plan() {
    let plan = plan(&ttl(), ANYONE, 200, &[("vary", "X-B, accept"), ("cache-tag", "a,b")]).unwrap();
    assert_eq!(plan.vary, ["accept", "x-b"]);
    assert_eq!(plan.tags, ["a", "b"]);
}

#[test]
fn a_coded_body_is_a_variant() {
    let vary = |rule: &CacheRule, fields: &[(&'static str, &str)]| plan(rule, ANYONE, 200, fields).unwrap().vary;
    let gzip = ("content-encoding", "gzip");
    assert_eq!(vary(&ttl(), &[gzip]), ["accept-encoding"]);
    assert_eq!(vary(&ttl(), &[gzip, ("vary", "origin, accept")]), ["accept", "accept-encoding", "origin"]);
    assert_eq!(vary(&ttl(), &[gzip, ("vary", "Accept-Encoding")]), ["accept-encoding"]);
    let keyed = CacheRule { key_headers: vec![header::ACCEPT_ENCODING], ..ttl() };
    assert!(vary(&keyed, &[gzip]).is_empty());
}

#[test]
fn reasons_have_one_text_each() {
    let refusals: std::collections::HashSet<_> = Refusal::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(refusals.len(), Refusal::ALL.len());
    let bypasses: std::collections::HashSet<_> = Bypass::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(bypasses.len(), Bypass::ALL.len());
    assert!(Refusal::NoStore.lies_in_the_resource() && !Refusal::Credentials.lies_in_the_resource());
}

proptest! {
    #[test]
    fn nothing_private_is_ever_planned(
        said in "(max-age=[0-9]|public|no-cache|s-maxage=9|must-understand|x)(, (max-age=9|public|s-maxage=0|x=\"y\")){0,3}",
        secret in "(private|PRIVATE|private=\"a, b\"|no-store)", before: bool, status in 200_u16..600, ignore: bool,
        cookies: bool,
    ) {
        let rule = CacheRule {
            upstream_ttl: if ignore { UpstreamTtl::Ignore } else { UpstreamTtl::Respect },
            cookies: if cookies { Cookies::Store } else { Cookies::Refuse },
            ..ttl()
        };
        let said = if before { format!("{secret}, {said}") } else { format!("{said}, {secret}") };
        let planned = plan(&rule, ANYONE, status, &[("cache-control", &said), ("etag", "\"a\"")]);
        let excused = said.contains("must-understand") && secret == "no-store";
        prop_assert!(planned.is_err() || excused);
    }

    #[test]
    fn credentials_never_meet_a_configured_lifetime(
        said in prop::option::of("(max-age=[0-9]|public|no-cache|s-maxage=9)(, (max-age=9|public|s-maxage=0)){0,2}"),
        status in 200_u16..600, authorised: bool,
    ) {
        let rule = CacheRule { status_ttl: [(StatusCode::NOT_FOUND, Duration::from_secs(5))].into(), ..ttl() };
        let facts = if authorised { AUTHORISED } else { COOKIE };
        let headers = said.iter().map(|said| ("cache-control", said.as_str())).collect::<Vec<_>>();
        if let Ok(plan) = plan(&rule, facts, status, &headers) {
            prop_assert_eq!(plan.source, Source::Upstream);
            prop_assert!(plan.freshness.lifetime_ms > 0 && !plan.freshness.no_cache);
        }
    }

    #[test]
    fn jitter_only_shortens(ttl_ms in 1_u64..1_000_000, jitter in 0.0_f64..=1.0, spread in 0.0_f64..1.0) {
        let ms = jittered_ms(Duration::from_millis(ttl_ms), jitter, spread);
        prop_assert!(ms <= ttl_ms);
        prop_assert!(ms as f64 >= ttl_ms as f64 * (1.0 - jitter) - 1.0);
    }
}
