use std::collections::BTreeSet;

use prometheus::Registry;
use proptest::prelude::*;

use super::*;
use crate::config::{Config, Overrides, Secret};
use crate::metrics::Metrics;

const NOW: WallMs = 1_700_000_000_000;

const ROUTES: &str = r#"
[upstream]
url = "http://127.0.0.1:1"

[server]
trusted_proxies = ["10.0.0.0/8"]

[[limit]]
name = "shared"
key = ["ip"]
rate = "50/s"
burst = 100

[[route]]
name = "item"
path = "/catalog/{id}"
hosts = ["shop.example"]
cache.ttl = "60s"
cache.jitter = "50%"
cache.stale_while_revalidate = "30s"
cache.status_ttl = { 404 = "5s" }
cache.query = { ignore = ["utm_*"], sort = true }
cache.key_headers = ["accept-language", "authorization"]
cache.tags = ["product:{id}"]
cache.client_directives = "honor"
limits = ["shared", { name = "token", key = ["header:x-api-key", "query:k", "cookie:c", "method"], rate = "5/m", burst = 2, on = "miss" }]

[[route]]
name = "search"
path = "/search"
cache.ttl = "60s"
cache.key_body = ["QUERY"]

[[route]]
name = "edit"
path = "/catalog/{id}"
methods = ["PUT"]
purge = true
invalidates = { tags = ["product:{id}"] }

[[route]]
name = "login"
path = "/login"
limits = [
  { name = "guesses", key = ["ip"], rate = "5/m", burst = 1, charge = { status = [401, "5xx"] } },
  { name = "tokens", key = ["ip"], rate = "100/s", cost = { json = "/usage/total", max = 50, default = 9, reserve = 2 } },
  { name = "units", key = ["ip"], rate = "100/s", cost = { response_header = "x-units", max = 50 } },
]

[[route]]
name = "beta"
path = "/{*path}"
headers = { x-beta = "1" }

[[route]]
name = "tagged"
path = "/tagged/{*tag}"
cache.ttl = "60s"
cache.tags = ["{tag}"]
"#;

fn live(toml: &str) -> Live {
    let loaded = Config::from_toml("test", toml, &Overrides::default()).unwrap_or_else(|report| panic!("{report}"));
    Live::new(Arc::new(loaded.config), &Secret::new("secret"), &Metrics::new(Registry::new()))
}

fn question(method: &str, url: &str, headers: &[&str]) -> Question {
    let headers = headers.iter().map(|line| (*line).to_owned()).collect();
    Question { method: method.into(), url: url.into(), headers, ..Question::default() }
}

fn explain(method: &str, url: &str, headers: &[&str]) -> Report {
    offline(&live(ROUTES), &question(method, url, headers), NOW).unwrap_or_else(|error| panic!("{error}"))
}

/// With a supposed answer.
fn suppose(headers: &[&str], status: &str, response: &[&str]) -> report::Supposed {
    let response = response.iter().map(|line| (*line).to_owned()).collect();
    let asked = question("GET", "http://shop.example/catalog/1", headers);
    let question = Question { status: Some(status.to_owned()), response, ..asked };
    let report = offline(&live(ROUTES), &question, NOW).unwrap_or_else(|error| panic!("{error}"));
    report.storing.and_then(|storing| storing.supposed).expect("a verdict")
}

fn part<'r>(parts: &'r [report::Part], name: &str) -> &'r str {
    parts.iter().find(|part| part.name == name).map_or("-", |part| &part.value)
}

#[test]
fn the_target_is_shown_as_it_is_used() {
    let report = explain("GET", "https://SHOP.example:443/catalog/./1?b=2&utm_x=1&a=1", &["accept-language: EN"]);
    let request = &report.request;
    assert_eq!((request.scheme, &*request.host, &*request.path), ("https", "shop.example", "/catalog/1"));
    assert_eq!(request.query.as_deref(), Some("a=1&b=2"));
    assert_eq!(request.changes.iter().map(|change| change.part).collect::<Vec<_>>(), ["host", "path", "query"]);
    assert_eq!(report.route.name, "item");
    assert_eq!(report.route.captures, [("id".to_owned(), "1".to_owned())]);
    let key = report.key.expect("a key");
    for (name, value) in [
        ("generation", "v1"),
        ("route", "item"),
        ("scheme", "https"),
        ("host", "shop.example"),
        ("path", "/catalog/1"),
        ("query", "a=1&b=2"),
        ("accept-language", "en"),
        ("authorization", "(absent)"),
    ] {
        assert_eq!(part(&key.parts, name), value, "{name}");
    }
    assert!(key.invalidated_by.contains(&"tag product:1".to_owned()), "{key:?}");
}

#[test]
fn forwarding_fields_count_through_trusted_proxies_only() {
    let fields = ["x-forwarded-for: 192.0.2.7", "x-forwarded-proto: https"];
    let report = explain("GET", "http://shop.example/catalog/1", &fields);
    assert_eq!((report.request.scheme, &*report.request.client), ("http", "127.0.0.1"));
    let from_proxy =
        Question { client: Some("10.1.2.3".to_owned()), ..question("GET", "http://shop.example/catalog/1", &fields) };
    let report = offline(&live(ROUTES), &from_proxy, NOW).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((report.request.scheme, &*report.request.client), ("https", "192.0.2.7"));
    assert_eq!(part(&report.limits[0].identity, "ip"), "192.0.2.7");
}

#[test]
fn the_way_is_the_proxys() {
    for (method, url, headers, does, reason, status) in [
        ("GET", "http://shop.example/catalog/1", &[][..], Does::Cache, None, None),
        ("HEAD", "http://shop.example/catalog/1", &[], Does::Cache, None, None),
        ("POST", "http://shop.example/catalog/1", &[], Does::Write, Some("method"), Some("weir; fwd=method")),
        ("OPTIONS", "http://shop.example/catalog/1", &[], Does::Pass, Some("method"), Some("weir; fwd=method")),
        (
            "GET",
            "http://shop.example/catalog/1",
            &["content-length: 2"],
            Does::Pass,
            Some("request-body"),
            Some("weir; fwd=bypass"),
        ),
        (
            "GET",
            "http://shop.example/catalog/1",
            &["if-match: \"a\""],
            Does::Pass,
            Some("precondition"),
            Some("weir; fwd=bypass"),
        ),
        (
            "GET",
            "http://shop.example/catalog/1",
            &["cache-control: no-store"],
            Does::Pass,
            Some("request-no-store"),
            Some("weir; fwd=bypass"),
        ),
        (
            "GET",
            "http://shop.example/catalog//1",
            &[],
            Does::Refuse,
            Some("ambiguous-path"),
            Some("weir; detail=refused"),
        ),
        ("GET", "http://other.example/a", &[], Does::Pass, Some("no-route"), Some("weir; fwd=bypass")),
        ("GET", "http://other.example/a", &["x-beta: 1"], Does::Pass, Some("no-cache-rule"), Some("weir; fwd=bypass")),
        ("PUT", "http://other.example/catalog/2", &[], Does::Write, Some("no-cache-rule"), Some("weir; fwd=bypass")),
        ("GET", "http://other.example/tagged/", &[], Does::Pass, Some("tag"), Some("weir; fwd=bypass")),
    ] {
        let way = explain(method, url, headers).way;
        let found = (way.does, way.reason, way.cache_status.as_deref());
        assert_eq!(found, (does, reason, status), "{method} {url} {headers:?}");
    }
    let write = explain("PUT", "http://other.example/catalog/2", &[]);
    assert_eq!(write.way.invalidates, ["tag product:2"]);
    assert!(write.key.is_none() && write.storing.is_none());
}

#[test]
fn a_body_that_is_keyed_stands_as_its_digest() {
    let ask = |method: &str, body: &str| {
        let question = Question { body: Some(body.to_owned()), ..question(method, "http://other.example/search", &[]) };
        offline(&live(ROUTES), &question, NOW).unwrap_or_else(|error| panic!("{error}"))
    };
    let report = ask("QUERY", "abc");
    assert_eq!(report.way.does, Does::Cache);
    let key = report.key.expect("a key");
    assert_eq!(part(&key.parts, "method"), "QUERY");
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(part(&key.parts, "SHA-256 of the body"), digest);
    assert_eq!(ask("QUERY", &"x".repeat(65 << 10)).way.reason, Some("method"), "too long to be keyed");
    assert_eq!(ask("GET", "abc").way.reason, Some("request-body"));
}

#[test]
fn routes_that_were_passed_over_say_why() {
    let report = explain("GET", "http://shop.example/catalog/1", &[]);
    let why: Vec<_> = report.route.passed_over.iter().map(|other| (&*other.name, &*other.because)).collect();
    assert_eq!(why, [("edit", "it is for PUT"), ("beta", "it asks for x-beta, or for another value of it")]);
    let report = explain("PUT", "http://other.example/catalog/1", &["x-beta: 1"]);
    assert_eq!(report.route.name, "edit");
    assert_eq!(report.route.passed_over[0].because, "it is for shop.example");
    assert!(report.route.passed_over[1].because.starts_with("it fits too"));
}

#[test]
fn limits_name_who_is_counted_and_no_values() {
    let report = explain("GET", "http://shop.example/catalog/1?k=s3cret", &["x-api-key: s3cret"]);
    let limits: Vec<_> = report.limits.iter().map(|limit| (&*limit.name, limit.stage, &*limit.quotas[0])).collect();
    assert_eq!(limits, [("shared", "request", "50/s, bursts of 100"), ("token", "miss", "5/m, bursts of 2")]);
    let identity = &report.limits[1].identity;
    assert_eq!(part(identity, "header:x-api-key"), "(sent)");
    assert_eq!(part(identity, "query:k"), "(sent)");
    assert!(part(identity, "cookie:c").starts_with("(none"));
    assert_eq!(part(identity, "method"), "GET");
}

#[test]
fn limits_say_what_answers_settle() {
    let report = explain("POST", "http://shop.example/login", &[]);
    let costs: Vec<_> = report.limits.iter().map(|limit| (&*limit.cost, limit.charged.as_deref())).collect();
    let expected = [
        ("1", Some("only where the answer is 401, 5xx")),
        ("what the answer says at \"/usage/total\", 9 without it, at most 50; 2 until then", None),
        ("what x-units of the answer says, 1 without it, at most 50; 1 until then", None),
    ];
    assert_eq!(costs, expected);
    let text = report.to_string();
    for said in ["only where the answer is 401, 5xx", "at most 50; 2 until then"] {
        assert!(text.contains(said), "{said}: {text}");
    }
}

#[test]
fn limits_say_what_else_they_do_to_a_request() {
    let tiered = r#"
        [upstream]
        url = "http://127.0.0.1:1"
        [redis]
        url = "redis://127.0.0.1:1"
        namespace = "test"
        [[route]]
        name = "all"
        path = "/"
        [[route.limits]]
        name = "api"
        key = ["header:x-api-key"]
        rate = "10/m"
        burst = 2
        max_delay = "500ms"
        after_loss = "empty"
        loans = false
        tiers = "api"
        tier.gold = { rate = "1000/s", burst = 2000 }
    "#;
    let asked = question("GET", "http://shop.example/", &["x-api-key: carol"]);
    let report = offline(&live(tiered), &asked, NOW).unwrap_or_else(|error| panic!("{error}"));
    let limit = &report.limits[0];
    let tiers = limit.tiers.as_ref().expect("it has some");
    assert_eq!((&*tiers.hash, &tiers.tier, part(&tiers.quotas, "gold")), ("api", &None, "1000/s, bursts of 2000"));
    assert_eq!((limit.delay.as_ref().map(|delay| delay.max_delay_ms), limit.loans), (Some(500), false));
    let text = report.to_string();
    for said in [
        "10/m, bursts of 2",
        "not known: Redis says who has one",
        "gold: 1000/s, bursts of 2000",
        "for up to 0.5 s in place of a denial",
        "a bucket that it does not know is empty",
        "none: every request asks Redis",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let plain = explain("GET", "http://shop.example/catalog/1", &[]).to_string();
    for unsaid in ["  tier", "  waits", "  after Redis", "  loans"] {
        assert!(!plain.contains(unsaid), "{unsaid}: {plain}");
    }
}

#[test]
fn the_arithmetic_has_every_term() {
    let date = String::from_utf8_lossy(crate::cache::freshness::http_date(NOW - 4_000).as_bytes()).into_owned();
    let said = [
        "age: 7",
        "cache-control: max-age=100, stale-if-error=20",
        &format!("date: {date}"),
        "vary: x-b",
        "cache-tag: t",
    ];
    let supposed = suppose(&["x-b: 5"], "200", &said);
    let terms = supposed.freshness.expect("a lifetime");
    assert_eq!((terms.age_field_ms, terms.apparent_age_ms, terms.response_delay_ms), (Some(7_000), 4_000, 0));
    assert_eq!((terms.initial_age_ms, terms.lifetime_ms, terms.age_ms, terms.ttl_ms), (7_000, 100_000, 7_000, 93_000));
    assert_eq!((terms.stale_while_revalidate_ms, terms.stale_if_error_ms), (30_000, 20_000));
    assert_eq!((terms.early_refresh_ms, terms.by_rule, terms.state), (Some(9_300), false, "fresh"));
    assert_eq!(terms.lifetime_from, "the service: max-age");
    assert_eq!(supposed.directives, ["max-age=100", "stale-if-error=20"]);
    assert_eq!((&*supposed.directives_from, supposed.next.as_deref()), ("cache-control", Some("weir; hit; ttl=93")));
    assert_eq!((part(&supposed.vary, "x-b"), &*supposed.tags), ("5", &["t".to_owned()][..]));

    let supposed = suppose(&[], "200", &["age: 7"]);
    let terms = supposed.freshness.expect("a lifetime");
    let own = terms.configured.expect("the route's");
    assert_eq!((own.ttl_ms, own.jitter), (60_000, 0.5));
    let by_hand = (60_000.0 * (1.0 - own.shortened_by)) as u64;
    assert!(own.jittered_ms.abs_diff(by_hand) <= 1 && own.shortened_by < 0.5, "{own:?}");
    assert_eq!(terms.lifetime_ms, own.jittered_ms + 7_000);
    assert_eq!(terms.ttl_ms as u64, own.jittered_ms, "what it aged elsewhere is not the route's business");
}

#[test]
fn the_field_that_spoke_is_named() {
    for (response, field, stored) in [
        (&["weir-cache-control: max-age=5", "cache-control: no-store"][..], "weir-cache-control", true),
        (&["cdn-cache-control: no-store", "surrogate-control: max-age=5"], "cdn-cache-control", false),
        (&["surrogate-control: max-age=5", "cache-control: private"], "surrogate-control", true),
        (&["weir-cache-control: (", "cache-control: private"], "cache-control", false),
        (&[], "cache-control", true),
    ] {
        let supposed = suppose(&[], "200", response);
        assert_eq!((&*supposed.directives_from, supposed.stored), (field, stored), "{response:?}");
    }
}

#[test]
fn usual_answers_say_what_would_be_stored() {
    let usual = |headers: &[&str]| {
        let report = explain("GET", "http://shop.example/catalog/1", headers);
        report.storing.expect("a cached route").usual.iter().map(|row| row.stored).collect::<Vec<_>>()
    };
    assert_eq!(usual(&[]), [true, true, true, true, false, true, false]);
    assert_eq!(usual(&["cookie: a=b"]), [false, true, true, false, false, false, false]);
    assert_eq!(usual(&["authorization: a"]), usual(&[]), "it is part of the key");
    let head = explain("HEAD", "http://shop.example/catalog/1", &[]).storing.expect("a cached route");
    assert!(head.usual.iter().all(|row| !row.stored));
}

#[test]
fn every_reason_has_its_own_clause() {
    let refusals = crate::cache::policy::Refusal::ALL.iter().map(|reason| (reason.as_str(), reason.clause()));
    let bypasses = crate::cache::policy::Bypass::ALL.iter().map(|reason| (reason.as_str(), reason.clause()));
    for (reason, clause) in refusals.chain(bypasses) {
        assert!(clause.starts_with("RFC 9") || clause.starts_with("docs/"), "{reason}: {clause}");
    }
    let clauses: BTreeSet<_> = crate::cache::policy::Refusal::ALL.iter().map(|reason| reason.clause()).collect();
    assert_eq!(clauses.len(), crate::cache::policy::Refusal::ALL.len());
}

proptest! {
    #[test]
    fn no_secret_is_ever_shown(
        which in prop::collection::vec(0..5_usize, 1..5), method in "(GET|HEAD|PUT|PURGE)", path in "/(catalog/1|tagged/a|x)?",
        status in prop::option::of("(200|404|500)"),
    ) {
        let names = ["authorization", "cookie", "x-api-key", "proxy-authorization", "Authorization"];
        let headers = which.iter().map(|at| format!("{}: s3cret=s3cret", names[*at])).collect();
        let response = vec!["set-cookie: s3cret=s3cret".to_owned(), "vary: authorization, x-api-key, cookie".to_owned()];
        let body = (method == "PUT").then(|| "s3cret".to_owned());
        let question = Question { method, url: format!("http://shop.example{path}"), headers, body, status, response, client: None };
        let report = offline(&live(ROUTES), &question, NOW).unwrap();
        let json = serde_json::to_string(&report).unwrap();
        prop_assert!(!report.to_string().contains("s3cret") && !json.contains("s3cret"), "{}", report);
    }

    #[test]
    fn any_question_is_survived(method in "[!-~]{1,8}", url in "[ -~]{0,30}", header in "[ -~]{0,20}", status in "[0-9]{0,4}") {
        let live = live("upstream.url = 'http://127.0.0.1:1'\n[[route]]\nname = 'a'\npath = '/{*p}'\ncache.enabled = true");
        for url in [url.clone(), format!("http://h/{url}"), format!("/{url}")] {
            let question = Question {
                method: method.clone(), url, headers: vec![header.clone(), "Host: h".to_owned()], status: Some(status.clone()),
                response: vec![header.clone()], ..Question::default()
            };
            if let Ok(report) = offline(&live, &question, NOW) {
                let _ = report.to_string();
            }
        }
    }
}
