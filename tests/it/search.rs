//! `No-Vary-Search`: URLs that are the same to the service are the same to the cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::{Gate, Reply, Setup, Store, Upstream, Weir, for_both, get, redis, reply, request, upstream, weir};

mod together;

const ROUTES: &str = r#"
[[route]]
name = "everything"
path = "/{*rest}"
purge = true
cache.enabled = true
cache.no_vary_search = true
cache.key_body = ["QUERY"]
"#;

const STORED: &str = r#"weir_cache_fills_total{result="stored"}"#;

/// An upstream whose answers say what was asked for, and for `/p` this of queries.
fn saying(rule: &'static str) -> Upstream {
    let up = upstream();
    up.on("/p", move |request| said(request.target()).header("no-vary-search", rule));
    up
}

fn said(target: &str) -> Reply {
    reply(target.to_owned()).max_age(60)
}

/// Gets what is not stored, and waits until it is.
async fn fill(weir: &Weir, target: &str) {
    let before = weir.metric(STORED).await;
    let answer = weir.get(target).await;
    assert!(answer.is_stored(), "{target}: {}", answer.cache_status());
    assert_eq!(answer.text(), target);
    weir.metric_reaches(STORED, before + 1.0).await;
}

#[tokio::test]
async fn urls_that_differ_in_what_does_not_count_are_one() {
    for_both(|store| async move {
        let cases = [
            (
                r#"params=("utm" "%C3%A9 x")"#,
                "/p?a=1&utm=x&b=2",
                &["/p?utm=y&a=1&b=2", "/p?a=1&b=2", "/p?a=1&&b=2&utm", "/p?%61=1&b=2&%C3%A9+x=3"][..],
                &["/p?a=2&b=2", "/p?b=2&a=1", "/p", "/p?a=1&b=2&utn=x", "/p?a=1%26b=2"][..],
            ),
            ("key-order", "/p?b=2&a=1", &["/p?a=1&b=2", "/p?a=%31&b=2"], &["/p?a=2&b=1", "/p?a=1", "/p?a=1&b=2&b=2"]),
            (
                r#"params, except=("id")"#,
                "/p?id=7&x",
                &["/p?id=7", "/p?y=1&id=7&z"],
                &["/p?id=8", "/p", "/p?id=7&id=7"],
            ),
            ("params", "/p?a=1", &["/p", "/p?b"], &["/p/"]),
            (r#"key-order, params=("u")"#, "/p?u&b&a", &["/p?a=&b=&u=2"], &["/p?a&b&c"]),
        ];
        for (case, (rule, first, same, others)) in cases.into_iter().enumerate() {
            let up = saying(rule);
            up.on("/p/", |request| said(request.target()));
            let routes = weir(ROUTES).set("cache.generation", case.to_string());
            let weir = patient(&store, routes.to(up.url())).start().await;
            fill(&weir, first).await;
            for url in same.iter().chain([&first]) {
                let answer = weir.get(url).await;
                assert!(answer.is_hit(), "{rule}: {url}: {}", answer.cache_status());
                assert_eq!((answer.text(), answer.header("no-vary-search")), (first, Some(rule)), "{rule}: {url}");
            }
            for url in others {
                fill(&weir, url).await;
                assert_eq!(up.last(url.split('?').next().unwrap()).target(), *url, "it is forwarded as it came");
            }
            for url in same {
                assert_eq!(weir.get(url).await.text(), first, "{rule}: {url} is what it was");
            }
            assert_eq!(up.total(), 1 + others.len(), "{rule}");
        }
    })
    .await;
}

#[tokio::test]
async fn without_the_option_or_a_rule_every_url_is_its_own() {
    let off = ROUTES.replace("cache.no_vary_search = true\n", "");
    for (routes, rule) in [
        (off.as_str(), r#"params=("utm")"#),
        (ROUTES, r#"params=("utm"), except=("a")"#),
        (ROUTES, "params=(utm)"),
        (ROUTES, "params=?0"),
        (ROUTES, r#"params=("utm""#),
    ] {
        let up = saying(rule);
        let weir = weir(routes).to(up.url()).start().await;
        fill(&weir, "/p?utm=x").await;
        fill(&weir, "/p?utm=y").await;
        fill(&weir, "/p?utm%3Dy").await;
        assert!(weir.get("/p?utm=x").await.is_hit(), "{rule}");
    }
}

/// An upstream that says of `/p` the rule of this number; none if it is empty.
fn changing(rules: &'static [&'static str]) -> (Upstream, Arc<AtomicUsize>) {
    let (up, number) = (upstream(), Arc::new(AtomicUsize::new(0)));
    let now = Arc::clone(&number);
    up.on("/p", move |request| {
        // Long enough for those who ask at once to meet.
        let answer = said(request.target()).takes(Duration::from_millis(50));
        match rules[now.load(Ordering::SeqCst)] {
            "" => answer,
            rule => answer.header("no-vary-search", rule),
        }
    });
    (up, number)
}

#[tokio::test]
async fn another_rule_takes_the_place_of_the_first() {
    for_both(|store| async move {
        let (up, number) = changing(&[r#"params=("u")"#, r#"params=("v")"#]);
        let weir = patient(&store, weir(ROUTES).to(up.url())).start().await;
        fill(&weir, "/p?a=1&u=1&v=1").await;
        assert!(weir.get("/p?a=1&u=2&v=1").await.is_hit());
        number.store(1, Ordering::SeqCst);
        fill(&weir, "/p?a=2&u=1&v=1").await;
        assert_eq!(weir.get("/p?a=2&u=1&v=2").await.text(), "/p?a=2&u=1&v=1");
        fill(&weir, "/p?a=2&u=2&v=1").await;
        fill(&weir, "/p?a=1&u=1&v=1").await;
        assert_eq!(weir.get("/p?a=1&u=1&v=9").await.text(), "/p?a=1&u=1&v=1");
        // What was told apart meanwhile is so still.
        number.store(0, Ordering::SeqCst);
        fill(&weir, "/p?a=3&u=1").await;
        assert_eq!(weir.get("/p?a=3&u=2").await.text(), "/p?a=3&u=1");
        fill(&weir, "/p?a=3&v=1").await;
    })
    .await;
}

#[tokio::test]
async fn a_rule_that_is_withdrawn_holds_no_more() {
    for_both(|store| async move {
        let (up, number) = changing(&[r#"params=("u")"#, ""]);
        let weir = patient(&store, weir(ROUTES).to(up.url())).start().await;
        fill(&weir, "/p?a=1&u=1").await;
        number.store(1, Ordering::SeqCst);
        for url in ["/p?a=2&u=1", "/p?a=2&u=2", "/p?a=2", "/p?a=1&u=1"] {
            fill(&weir, url).await;
        }
        for url in ["/p?a=2&u=1", "/p?a=2&u=2", "/p?a=2", "/p?a=1&u=1"] {
            let answer = weir.get(url).await;
            assert_eq!((answer.is_hit(), answer.text()), (true, url));
        }
        assert_eq!(up.count("/p"), 5);
        // And holds again once it is said again.
        number.store(0, Ordering::SeqCst);
        fill(&weir, "/p?a=4&u=1").await;
        assert!(weir.get("/p?a=4&u=2").await.is_hit());
    })
    .await;
}

/// A tag is of one URL's versions: what confirms one may not confirm another, should the rule be wrong or gone.
#[tokio::test]
async fn no_url_is_confirmed_by_anothers_validator() {
    for_both(|store| async move {
        let up = upstream();
        up.on("/p", move |request| {
            let tagged = |reply: Reply| reply.header("cache-control", "max-age=0").header("etag", "\"v1\"");
            match request.header("if-none-match") {
                None => tagged(reply(request.target().to_owned())).header("no-vary-search", r#"params=("u")"#),
                Some(_) => tagged(reply("").status(304)),
            }
        });
        let weir = patient(&store, weir(ROUTES).to(up.url())).start().await;
        for url in ["/p?u=1", "/p?u=2", "/p?u=1"] {
            fill(&weir, url).await;
            assert_eq!(up.last("/p").header("if-none-match"), None);
        }
    })
    .await;
}

/// Error pages rarely say what counts.
#[tokio::test]
async fn only_a_success_takes_a_rule_back() {
    for_both(|store| async move {
        let up = saying(r#"params=("u")"#);
        let weir = patient(&store, weir(ROUTES).to(up.url())).start().await;
        fill(&weir, "/p?a=1&u=1").await;
        up.on("/p", |_| reply("none").status(404).max_age(60));
        assert_eq!(weir.get("/p?a=none").await.status, 404);
        weir.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, 2.0).await;
        assert!(weir.get("/p?a=1&u=2").await.is_hit());
    })
    .await;
}

/// Whoever asks for it to be gone knows neither the fields of those who read nor the rule of each pod.
#[tokio::test]
async fn a_purge_needs_no_rule_to_reach_all() {
    let (up, redis) = (saying(r#"params=("u")"#), redis());
    let routes =
        ROUTES.replace("cache.no_vary_search", "cache.key_headers = [\"accept-language\"]\ncache.no_vary_search");
    let one = weir(&routes).to(up.url()).redis(&redis).start().await;
    let other = weir(&routes).to(up.url()).redis(&redis).start().await;
    other.ready().await;
    let german = |url: &str| get(url).header("accept-language", "de");
    one.send(german("/p?a=1&u=1")).await;
    one.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, 1.0).await;
    assert!(one.send(german("/p?a=1&u=2")).await.is_hit());
    assert_eq!(other.send(request("PURGE", "/p?a=1&u=3")).await.status, 200);
    assert!(!other.send(german("/p?a=1&u=2")).await.is_hit());
}

#[tokio::test]
async fn what_was_fetched_by_another_url_is_invalidated_by_the_clean_one() {
    for_both(|store| async move {
        let up = saying(r#"key-order, params=("u")"#);
        let weir = patient(&store, weir(ROUTES).to(up.url())).start().await;
        for order in [
            r#"{"urls": ["/p?a=1&b=x%20y"]}"#,
            r#"{"urls": ["/p?a=1&b=x+y"]}"#,
            r#"{"urls": ["/p?*"]}"#,
            r#"{"prefixes": ["/p"]}"#,
        ] {
            fill(&weir, "/p?b=x+y&a=1&u=1").await;
            assert!(weir.get("/p?a=1&b=x+y&u=2").await.is_hit());
            weir.invalidate(order).await;
            let answer = weir.get("/p?b=x+y&u=2&a=1").await;
            assert!(!answer.is_hit() && answer.text().contains("u=2"), "{order}: {}", answer.cache_status());
            assert_eq!(weir.get("/p?a=1&b=x+y").await.text(), answer.text());
            weir.invalidate(r#"{"all": true}"#).await;
        }
        // What was named is not served by that name, whoever was served by another since.
        fill(&weir, "/p?a=1&u=1").await;
        weir.invalidate(r#"{"urls": ["/p?a=1&u=7"]}"#).await;
        assert!(weir.get("/p?a=1&u=2").await.is_hit());
        let before = weir.metric(STORED).await;
        assert!(!weir.get("/p?a=1&u=7").await.is_hit());
        weir.metric_reaches(STORED, before + 1.0).await;
        assert!(weir.get("/p?a=1&u=7").await.is_hit());
    })
    .await;
}

/// By which URLs an answer is known comes with it: an invalidation of one of them may have come before.
#[tokio::test]
async fn a_fetch_that_an_invalidation_of_the_clean_url_overtook_is_not_joined() {
    for_both(|store| async move {
        let (up, gate) = (upstream(), Gate::new());
        let (held, number) = (gate.clone(), AtomicUsize::new(0));
        up.on("/p", move |_| {
            let answer = said(&number.fetch_add(1, Ordering::SeqCst).to_string());
            answer.header("no-vary-search", r#"params=("u")"#).gate(&held)
        });
        let weir = patient(&store, weir(ROUTES).to(up.url())).start().await;
        let late = async {
            gate.reached(1).await;
            weir.invalidate(r#"{"urls": ["/p?a=1"]}"#).await;
            let opening = async {
                weir.metric_reaches("weir_requests_in_flight", 2.0).await;
                gate.open();
            };
            tokio::join!(weir.get("/p?a=1&u=1"), opening).0
        };
        let (first, late) = tokio::join!(weir.get("/p?a=1&u=1"), late);
        assert_eq!((first.text(), late.text()), ("0", "1"));
    })
    .await;
}

#[tokio::test]
async fn a_write_or_a_purge_of_one_form_is_of_all() {
    for_both(|store| async move {
        let up = saying(r#"params=("u")"#);
        up.on("/other", |_| reply("").status(201).header("location", "/p?a=1&b=x%20y&u=1"));
        let weir = patient(&store, weir(ROUTES).to(up.url())).start().await;
        for (method, url) in [
            ("PUT", "/p?a=1&b=x+y&u=8"),
            ("DELETE", "/p?a=1&b=x%20y"),
            ("PURGE", "/p?%61=1&u=9&b=x+y"),
            ("POST", "/other"),
        ] {
            fill(&weir, "/p?u=1&a=1&b=x+y").await;
            assert_eq!(weir.get("/p?a=1&b=x%20y&u=2").await.text(), "/p?u=1&a=1&b=x+y", "stored, or about to be");
            weir.send(request(method, url)).await;
            for url in ["/p?a=1&b=x+y&u=3", "/p?a=1&b=x%20y&u=4"] {
                let text = weir.get(url).await.text().to_owned();
                assert_ne!(text, "/p?u=1&a=1&b=x+y", "{method}: {url}");
            }
            weir.invalidate(r#"{"all": true}"#).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_rest_of_caching_goes_on_top() {
    for_both(|store| async move {
        let up = upstream();
        up.on("/p", |request| {
            let answer = said(&format!("{} {:?}", request.header("x-a").unwrap_or("-"), request.body));
            answer.header("vary", "x-a").header("no-vary-search", r#"params=("u")"#)
        });
        up.on("/whole", |request| match request.header("range") {
            Some(_) => {
                let part = reply("01").status(206).max_age(60).header("content-range", "bytes 0-1/10");
                part.header("etag", "\"v1\"").header("no-vary-search", r#"params=("u")"#)
            }
            None => reply("0123456789").max_age(60).header("no-vary-search", "params"),
        });
        up.on("/posted", |request| {
            let answer = said(request.target()).header("no-vary-search", "params");
            answer.header("content-location", request.target())
        });
        let weir = patient(&store, weir(ROUTES).to(up.url())).start().await;
        let mut fills = 0.0;
        // Variants.
        for value in ["1", "2"] {
            weir.send(get("/p?u=1").header("x-a", value)).await;
            fills += 1.0;
            weir.metric_reaches(STORED, fills).await;
            let again = weir.send(get("/p?u=2").header("x-a", value)).await;
            assert_eq!((again.is_hit(), again.text().chars().next()), (true, value.chars().next()));
        }
        // Requests that read by their body.
        for body in ["a", "b"] {
            let asked = |url: &str| weir.send(request("QUERY", url).body(body));
            asked("/p?u=1").await;
            fills += 1.0;
            weir.metric_reaches(STORED, fills).await;
            let again = asked("/p?u=2").await;
            assert_eq!((again.is_hit(), again.text()), (true, format!("- b{body:?}").as_str()));
        }
        // Parts come from a whole; others are not kept, as there would be no telling whose they are.
        let part = |url: &str| weir.send(get(url).header("range", "bytes=0-1"));
        for url in ["/whole?u=1", "/whole?u=1", "/whole?u=2"] {
            let answer = part(url).await;
            assert_eq!((answer.status, answer.cache_status()), (206, "weir; fwd=uri-miss"));
        }
        weir.get("/whole?u=3").await;
        fills += 1.0;
        weir.metric_reaches(STORED, fills).await;
        let answer = part("/whole?u=4").await;
        assert_eq!((answer.status, answer.text()), (206, "01"));
        assert!(answer.cache_status().starts_with("weir; hit"));
        let head = weir.send(request("HEAD", "/whole?u=5")).await;
        assert!(head.is_hit() && head.header("content-length") == Some("10"), "{head:?}");
        // What a POST says a GET would give is a fetch's to find out.
        let posted = weir.send(request("POST", "/posted?u=1").body("x")).await;
        assert_eq!(posted.cache_status(), "weir; fwd=method");
        assert!(weir.get("/posted?u=1").await.is_miss());
    })
    .await;
}

/// With time for Redis where many ask at once.
fn patient(store: &Store, setup: Setup) -> Setup {
    match store {
        Store::Memory => store.apply(setup),
        Store::Redis(_) => store.apply(setup).set("redis.deadline", "1s"),
    }
}

/// What explains a request looks where the request would.
#[tokio::test]
async fn an_explanation_is_of_the_key_that_the_rule_makes() {
    for_both(|store| async move {
        let up = saying(r#"params=("u")"#);
        let routes = ROUTES.replace("purge = true", "cache.status_key = true");
        let weir = patient(&store, weir(&routes).to(up.url())).start().await;
        fill(&weir, "/p?a=1&u=1").await;
        let hit = weir.get("/p?a=1&u=2").await;
        assert!(hit.is_hit(), "{}", hit.cache_status());
        let answer = weir.admin("/explain?format=json&url=http://service.test/p%3Fu=3%26a=1").await;
        let report: serde_json::Value = serde_json::from_str(answer.text()).unwrap();
        let (live, key) = (&report["live"], report["live"]["key"].as_str().unwrap());
        assert!(hit.header("cache-status").unwrap().contains(&format!("key=\"{key}\"")), "{key}: {hit:?}");
        assert!(live["answer"]["cache_status"].as_str().unwrap().starts_with("weir; hit"), "{live}");
    })
    .await;
}
