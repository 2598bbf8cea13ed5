//! One client's request never decides what is stored for the others: unkeyed fields, other hosts, bodies, overrides,
//! and errors that one request provokes.

use std::collections::BTreeMap;

use crate::caching::stored;
use crate::harness::{H2, Request, Weir, for_both, get, reply, request, upstream, weir};

/// A lifetime for everything that says nothing itself: the most that there is to poison.
const TTL: &str = r#"
[[route]]
name = "all"
path = "/{*path}"
cache.ttl = "100s"
cache.status_ttl = { 400 = "100s", 404 = "100s", 413 = "100s", 431 = "100s", 501 = "100s" }
"#;

/// Fields by which some services take another host, scheme, port, prefix or URL.
const STEERING: [(&str, &str); 18] = [
    ("forwarded", "host=evil.example;proto=evil"),
    ("x-forwarded-host", "evil.example"),
    ("X-Forwarded-Host", "shop.test, evil.example"),
    ("x-forwarded-proto", "evil"),
    ("x-forwarded-port", "666evil"),
    ("x-forwarded-prefix", "/evil"),
    ("x-forwarded-server", "evil.example"),
    ("x-forwarded-scheme", "evil"),
    ("x-forwarded-ssl", "evil"),
    ("x-host", "evil.example"),
    ("x-http-host-override", "evil.example"),
    ("x-original-host", "evil.example"),
    ("x-original-url", "/evil"),
    ("x-original-uri", "/evil"),
    ("x-rewrite-url", "/evil"),
    ("x-scheme", "evil"),
    ("x-url-scheme", "evil"),
    ("front-end-https", "evil"),
];

/// What the service makes of a request: everything that it was told.
fn told(request: &crate::harness::Recorded) -> String {
    let fields = request.fields.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or("?")));
    format!("{} {}\n{}", request.method, request.target(), fields.collect::<Vec<_>>().join("\n"))
}

#[tokio::test]
async fn a_field_that_steers_is_not_forwarded_where_answers_are_stored() {
    for_both(|store| async move {
        let up = upstream();
        up.on("*", |request| reply(told(request)));
        let weir = store.apply(weir(TTL).to(up.url())).start().await;
        for (i, (name, value)) in STEERING.into_iter().enumerate() {
            let path = format!("/{i}");
            let poison = weir.send(get(&path).header(name, value).header(name, value)).await;
            assert!(!poison.text().contains("evil"), "{name} reached the service: {}", poison.text());
            weir.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, i as f64 + 1.0).await;
            let next = weir.get(&path).await;
            assert!(next.is_hit() && !next.text().contains("evil"), "{name}: {next:?}");
            assert_eq!(up.count(&path), 1);
        }
    })
    .await;
}

#[tokio::test]
async fn a_field_that_steers_can_be_keyed() {
    let up = upstream();
    up.on("*", |request| reply(request.header("x-original-url").unwrap_or("own").to_owned()));
    let weir = weir(&format!("{TTL}cache.key_headers = ['x-original-url']")).to(up.url()).start().await;
    let asked = [get("/a"), get("/a").header("x-original-url", "/b"), get("/a").header("x-original-url", "")];
    for expected in ["own", "/b", ""].iter().zip(&asked).cycle().take(6) {
        assert_eq!(weir.send(expected.1.clone()).await.text(), *expected.0);
    }
}

#[tokio::test]
async fn hosts_and_schemes_share_nothing() {
    for_both(|store| async move {
        let up = upstream();
        up.on("*", |request| {
            let said = |name| request.header(name).unwrap_or("-").to_ascii_lowercase();
            reply(format!("{} {}", said("host"), said("x-forwarded-proto")))
        });
        let setup = weir(TTL).to(up.url()).set("server.trusted_proxies", vec!["127.0.0.0/8"]);
        let weir = store.apply(setup).start().await;
        let asked = |host: &str, proto: &str| get("/a").header("host", host).header("x-forwarded-proto", proto);
        let mut expected = BTreeMap::new();
        for host in ["shop.test", "shop.test:8080", "www.shop.test", "shop.test.evil", "xn--shp-1na.test", "127.0.0.1"]
        {
            for proto in ["http", "https"] {
                let answer = weir.send(asked(host, proto)).await;
                assert_eq!(answer.text(), format!("{host} {proto}"));
                weir.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, expected.len() as f64 + 1.0).await;
                expected.insert((host, proto), answer.text().to_owned());
            }
        }
        for ((host, proto), text) in &expected {
            let again = weir.send(asked(host, proto)).await;
            assert!(again.is_hit() && again.text() == text, "{host} {proto}: {again:?}");
            // The authority of an absolute target is the host; letters' case is none of its.
            let absolute = request("GET", &format!("http://{}/a", host.to_uppercase()));
            let same =
                weir.send(absolute.header("host", &host.to_uppercase()).header("x-forwarded-proto", proto)).await;
            assert!(same.is_hit() && same.text() == text, "{host} {proto}: {same:?}");
        }
        assert_eq!(up.count("/a"), expected.len());
        let h2 = H2::open(weir.proxy).await;
        let other = http::Request::get("http://other.test/a").body(http_body_util::Full::default()).unwrap();
        assert_eq!(h2.send(other).await.text(), "other.test http");
    })
    .await;
}

/// Sends `poison`, then plain requests: they must get what a plain request brings about.
async fn harmless(weir: &Weir, what: &str, poison: Request, path: &str) {
    let poisoned = weir.send(poison).await;
    assert!(!poisoned.is_hit() && !poisoned.is_stored() && !poisoned.is_collapsed(), "{what}: {poisoned:?}");
    for _ in 0..2 {
        let answer = weir.get(path).await;
        assert!(answer.text().starts_with("GET ") && !answer.text().contains("evil"), "{what}: {answer:?}");
    }
}

#[tokio::test]
async fn bodies_and_overridden_methods_are_past_the_cache_both_ways() {
    for_both(|store| async move {
        let up = upstream();
        up.on("*", |request| {
            let names = ["x-http-method-override", "x-http-method", "x-method-override"];
            let method = names.iter().find_map(|name| request.header(name)).unwrap_or(request.method.as_str());
            reply(format!("{method} {}", String::from_utf8_lossy(&request.body)))
        });
        let weir = store.apply(weir(TTL).to(up.url())).start().await;
        type Make = fn(Request) -> Request;
        let kinds: [(&str, Make); 8] = [
            ("body", |get| get.body("evil")),
            ("one byte", |get| get.body("e")),
            ("chunks", |get| get.chunked(&[b"ev", b"il"], &[])),
            ("no chunk", |get| get.chunked(&[], &[])),
            ("override", |get| get.header("X-HTTP-Method-Override", "evil")),
            ("method", |get| get.header("x-http-method", "evil")),
            ("method override", |get| get.header("X-Method-Override", "evil")),
            ("named away", |get| get.header("x-method-override", "evil").header("x-method-override", "GET")),
        ];
        for (i, (what, make)) in kinds.into_iter().enumerate() {
            // Before anything is stored, and while something is.
            let (fresh, known) = (format!("/fresh/{i}"), format!("/known/{i}"));
            harmless(&weir, what, make(get(&fresh)), &fresh).await;
            stored(&weir, &known).await;
            harmless(&weir, what, make(get(&known)), &known).await;
            assert!(weir.get(&known).await.is_hit());
        }
        // A HEAD that overrides is no HEAD; and a length of nothing is no body.
        stored(&weir, "/head").await;
        assert!(!weir.send(request("HEAD", "/head").header("x-http-method", "DELETE")).await.is_hit());
        assert!(!weir.get("/head").await.is_hit(), "it may have deleted it");
        stored(&weir, "/empty").await;
        assert!(weir.send(get("/empty").body("")).await.is_hit());
    })
    .await;
}

#[tokio::test]
async fn an_error_that_one_client_provokes_is_that_clients() {
    let statuses = [400, 401, 407, 408, 412, 413, 414, 416, 417, 421, 425, 426, 431];
    for_both(|store| async move {
        let up = upstream();
        up.on("*", |request| match request.header("x-bad").map(|bad| (bad.parse(), bad)) {
            // As durable as an answer can call itself.
            Some((Ok(status), _)) => reply("broken").status(status).header("cache-control", "public, s-maxage=100"),
            Some((Err(_), _)) => reply("broken").status(431),
            None => reply("fine"),
        });
        let weir = store.apply(weir(TTL).to(up.url())).start().await;
        for status in statuses {
            let path = format!("/{status}");
            let poisoned = weir.send(get(&path).header("x-bad", &status.to_string())).await;
            assert!(poisoned.status == status && !poisoned.is_stored(), "{poisoned:?}");
            let next = stored(&weir, &path).await;
            assert_eq!((next.status, next.text()), (200, "fine"), "after {status}");
            // While the good one is stored, the bad request cannot replace it.
            weir.send(get(&path).header("x-bad", &status.to_string()).header("cache-control", "no-cache")).await;
            assert_eq!(weir.get(&path).await.text(), "fine", "after {status}");
        }
        // What is too large for Weir itself never reaches anybody.
        let oversized = get("/large").header("x-bad", &"x".repeat(100_000)).try_send(weir.proxy).await;
        assert!(oversized.is_err() || oversized.is_ok_and(|answer| answer.status == 431));
        assert_eq!(stored(&weir, "/large").await.text(), "fine");
        assert_eq!(up.count("/large"), 1);
    })
    .await;
}
