//! Fields of requests and answers: what may be stored, by which key, for how long, and that it comes back whole.
//!
//! Input: request fields, an empty line, answer fields; a line each.
#![no_main]

use std::sync::OnceLock;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use weir::cache::conditional;
use weir::cache::directives::{MAX_SECONDS, RequestDirectives, ResponseDirectives};
use weir::cache::entry::{Entry, Origin, Stored, codec};
use weir::cache::key::{self, KeyBuilder, Target};
use weir::cache::policy::{self, Received, RequestFacts};
use weir::cache::ranges::{self, Selection};
use weir::config::Config;
use weir::invalidation::Position;
use weir_fuzz::{NOW, config, fields, fuzz_target};

const ROUTE: &str = r#"
[upstream]
url = "http://127.0.0.1:1"
[[route]]
name = "all"
path = "/{*path}"
cache.ttl = "60s"
cache.jitter = "10%"
cache.stale_while_revalidate = "30s"
cache.key_headers = ["accept-language", "x-version"]
cache.client_directives = "honor"
"#;

fuzz_target!(|data: &[u8]| {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    let rule = CONFIG.get_or_init(|| config(ROUTE)).routes[0].cache.as_ref().expect("the route caches");
    let split = data.windows(2).position(|pair| pair == b"\n\n").unwrap_or(data.len());
    let (request, answer) = (fields(&data[..split]), fields(&data[split..]));

    directives(&request, &answer);
    let keys = KeyBuilder::new("v1", "all", rule, b"secret");
    let (mut primary, mut again) = (Vec::new(), Vec::new());
    let target = Target { scheme: "http", host: "a.example", path: "/", query: None };
    keys.primary(&mut primary, &target, &request);
    keys.primary(&mut again, &target, &request);
    assert_eq!(primary, again);

    let facts = RequestFacts::of(rule, &Method::GET, &request);
    let received = Received { status: StatusCode::OK, headers: &answer, asked_at: NOW - 10, received_at: NOW };
    let spread = key::spread(key::hash(&primary), NOW);
    let Ok(plan) = policy::storable(rule, facts, &received, spread) else { return };
    assert!(!answer.contains_key(header::SET_COOKIE), "stored with a cookie");
    let mut variant = primary.clone();
    if !plan.vary.is_empty() {
        variant.clear();
        keys.variant(&mut variant, &primary, &plan.vary, &request);
    }
    let origin = Origin { key: variant.into(), position: Position::default(), fence: 1, fill_cost_ms: 5 };
    let entry = Entry::new(origin, StatusCode::OK, &answer, plan, Bytes::from_static(b"body"));
    let directives = RequestDirectives::of(&request);
    for now in [NOW, NOW + 60_000, u64::MAX] {
        let _ = entry.freshness.evaluate(now, Some(&directives), false);
    }
    let _ = conditional::evaluate(&request, &entry);
    match ranges::select(&request, &entry) {
        Selection::One(part) => drop(entry.body.slice(part)),
        Selection::Several(parts) => parts.into_iter().for_each(|part| drop(entry.body.slice(part))),
        Selection::Whole | Selection::Nothing => {}
    }
    let _ = conditional::confirms(&answer, &entry, conditional::By::StrongTag);
    let stored = Stored::Entry(entry.into());
    let bytes = codec::encode(&stored, Some(0));
    assert_eq!(codec::decode(&bytes.into(), 4), Ok(stored));
});

fn directives(request: &HeaderMap, answer: &HeaderMap) {
    let of_request = RequestDirectives::of(request);
    let of_answer = ResponseDirectives::of(answer);
    // `max-stale` may be without bound.
    let seconds = [of_request.max_age, of_request.min_fresh, of_answer.max_age, of_answer.s_maxage];
    assert!(seconds.iter().flatten().all(|seconds| *seconds <= MAX_SECONDS), "{seconds:?}");
    // Several lines are one list (RFC 9110 section 5.3), but for a quote that one of them leaves open.
    let lines: Vec<&[u8]> = answer.get_all(header::CACHE_CONTROL).iter().map(|line| line.as_bytes()).collect();
    if !lines.iter().any(|line| line.contains(&b'"')) {
        let joined = lines.join(&b',');
        assert_eq!(ResponseDirectives::parse(lines), ResponseDirectives::parse([&*joined]));
    }
}
