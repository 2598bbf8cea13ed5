//! What the cache answers, alike from memory and from Redis: hits, variants, validators, stale answers.

use std::time::Duration;

use crate::harness::{
    Answer, Reply, Setup, Store, Upstream, Weir, eventually, for_both, get, redis, reply, request, upstream, weir,
};

/// Stores what the upstream's own fields allow.
const RESPECT: &str = r#"
[[route]]
name = "all"
path = "/{*path}"
cache.enabled = true
"#;

/// Fills that were stored in every tier; counted when they are.
const STORED: &str = r#"weir_cache_fills_total{result="stored"}"#;

/// What stands in the Redis key of every entry.
const ENTRIES: &str = ":e:";

/// A lifetime of a second has ended once this has passed.
async fn lifetime_of_1s_passes() {
    tokio::time::sleep(Duration::from_millis(1150)).await;
}

fn in_front_of(up: &Upstream, store: &Store, config: &str) -> Setup {
    store.apply(weir(config).to(up.url()))
}

/// Sends what must be fetched, and waits until it is stored.
pub async fn stored(weir: &Weir, target: &str) -> Answer {
    let before = weir.metric(STORED).await;
    let answer = weir.get(target).await;
    weir.metric_reaches(STORED, before + 1.0).await;
    answer
}

#[tokio::test]
async fn a_stored_answer_is_a_hit_with_its_age() {
    for_both(|store| async move {
        let up = upstream();
        up.route("/a", reply("body").max_age(60).header("age", "7").header("x-own", "1").header("x-own", "2"));
        let weir = in_front_of(&up, &store, RESPECT).start().await;
        let miss = stored(&weir, "/a").await;
        assert!(miss.is_miss() && miss.is_stored(), "{miss:?}");
        let hit = weir.get("/a").await;
        assert!(hit.is_hit(), "{hit:?}");
        assert_eq!((hit.status, hit.text(), hit.headers("x-own")), (200, "body", vec!["1", "2"]));
        assert!(hit.number("age").is_some_and(|age| (7..=17).contains(&age)), "{hit:?}");
        assert_eq!(hit.header("cache-control"), Some("max-age=60"));
        assert_eq!(up.count("/a"), 1);
        assert_eq!(weir.metric(r#"weir_requests_total{outcome="hit"}"#).await, 1.0);
        assert_eq!(weir.metric(r#"weir_requests_total{outcome="miss"}"#).await, 1.0);
    })
    .await;
}

#[tokio::test]
async fn what_one_weir_stored_another_serves() {
    let (up, redis) = (upstream(), redis());
    up.route("/a", reply(crate::harness::noise(60_000)).max_age(60));
    let weirs = weir(RESPECT).to(up.url()).redis(&redis).fleet(2).await;
    let first = stored(&weirs[0], "/a").await;
    let second = weirs[1].get("/a").await;
    assert!(second.is_hit() && second.body == first.body, "{second:?}");
    assert_eq!(up.count("/a"), 1);
    assert!(weirs[1].metric(r#"weir_cache_lookups_total{tier="redis",result="hit"}"#).await >= 1.0);
}

#[tokio::test]
async fn a_head_is_answered_from_a_stored_get() {
    for_both(|store| async move {
        let up = upstream();
        up.route("/a", reply("0123456789").max_age(60));
        let weir = in_front_of(&up, &store, RESPECT).start().await;
        stored(&weir, "/a").await;
        let head = weir.send(request("HEAD", "/a")).await;
        assert!(head.is_hit(), "{head:?}");
        assert_eq!((head.status, head.number("content-length"), head.body.len()), (200, Some(10), 0));
        assert_eq!(up.count("/a"), 1);
    })
    .await;
}

#[tokio::test]
async fn each_variant_is_stored_by_vary() {
    for_both(|store| async move {
        let up = upstream();
        up.on("/v", |request| {
            let language = request.header("accept-language").unwrap_or("none").to_owned();
            reply(language).max_age(60).header("vary", "Accept-Language")
        });
        let weir = in_front_of(&up, &store, RESPECT).start().await;
        for round in 0..3 {
            for language in ["en", "de", "fr"] {
                let asked = get("/v").header("accept-language", language);
                let before = weir.metric(STORED).await;
                let answer = weir.send(asked).await;
                assert_eq!(answer.text(), language);
                if round == 0 {
                    weir.metric_reaches(STORED, before + 1.0).await;
                } else {
                    assert!(answer.is_hit(), "{language}: {answer:?}");
                }
            }
        }
        assert_eq!(up.count("/v"), 3);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_has_it_gets_304() {
    for_both(|store| async move {
        let up = upstream();
        let date = "Tue, 15 Nov 1994 12:45:26 GMT";
        up.route("/a", reply("body").max_age(60).header("etag", "\"v1\"").header("last-modified", date));
        let weir = in_front_of(&up, &store, RESPECT).start().await;
        stored(&weir, "/a").await;
        let table = [
            (get("/a").header("if-none-match", "\"v1\""), 304),
            (get("/a").header("if-none-match", "\"v0\", W/\"v1\""), 304),
            (get("/a").header("if-none-match", "*"), 304),
            (get("/a").header("if-none-match", "\"v2\""), 200),
            (get("/a").header("if-modified-since", date), 304),
            (get("/a").header("if-modified-since", "Tue, 15 Nov 1994 12:45:25 GMT"), 200),
            (get("/a").header("if-none-match", "\"v2\"").header("if-modified-since", date), 200),
        ];
        for (i, (request, status)) in table.into_iter().enumerate() {
            let answer = weir.send(request).await;
            assert_eq!(answer.status, status, "row {i}: {answer:?}");
            assert_eq!(answer.body.is_empty(), status == 304, "row {i}");
            assert_eq!(answer.header("etag"), Some("\"v1\""), "row {i}");
        }
        assert_eq!(up.count("/a"), 1);
    })
    .await;
}

#[tokio::test]
async fn an_expired_answer_is_revalidated_not_fetched() {
    for_both(|store| async move {
        let up = upstream();
        up.on("/a", |request| match request.header("if-none-match") {
            Some("\"v1\"") => reply("").status(304).max_age(60).header("etag", "\"v1\""),
            _ => reply("body").max_age(1).header("etag", "\"v1\"").header("x-kept", "1"),
        });
        let weir = in_front_of(&up, &store, RESPECT).start().await;
        stored(&weir, "/a").await;
        lifetime_of_1s_passes().await;
        let answer = weir.get("/a").await;
        assert_eq!((answer.status, answer.text(), answer.header("x-kept")), (200, "body", Some("1")), "{answer:?}");
        assert_eq!(up.last("/a").header("if-none-match"), Some("\"v1\""));
        weir.metric_reaches(r#"weir_cache_fills_total{result="revalidated"}"#, 1.0).await;
        let hit = weir.get("/a").await;
        assert!(hit.is_hit() && hit.text() == "body" && hit.header("cache-control") == Some("max-age=60"), "{hit:?}");
        assert_eq!(up.count("/a"), 2);
    })
    .await;
}

#[tokio::test]
async fn stale_is_served_while_it_is_refreshed() {
    for_both(|store| async move {
        let up = upstream();
        let first = reply("old").header("cache-control", "max-age=1, stale-while-revalidate=60");
        up.sequence("/a", vec![first, reply("new").max_age(60)]);
        let weir = in_front_of(&up, &store, RESPECT).start().await;
        stored(&weir, "/a").await;
        lifetime_of_1s_passes().await;
        let stale = weir.get("/a").await;
        assert!(stale.is_stale() && stale.text() == "old", "{stale:?}");
        eventually("the refresh behind it", || up.count("/a") == 2).await;
        weir.metric_reaches(STORED, 2.0).await;
        let fresh = weir.get("/a").await;
        assert!(fresh.is_hit() && fresh.text() == "new", "{fresh:?}");
        assert_eq!(up.count("/a"), 2);
        assert_eq!(weir.metric(r#"weir_requests_total{outcome="stale"}"#).await, 1.0);
    })
    .await;
}

#[tokio::test]
async fn stale_is_better_than_an_error() {
    for_both(|store| async move {
        let up = upstream();
        let good = || reply("good").header("cache-control", "max-age=1, stale-if-error=60");
        up.sequence("/500", vec![good(), reply("bad").status(500)]);
        up.sequence("/503", vec![good(), reply("bad").status(503)]);
        up.sequence("/cut", vec![good(), reply("b").cut(10)]);
        up.sequence("/404", vec![good(), reply("gone").status(404)]);
        let weir = in_front_of(&up, &store, RESPECT).set("upstream.retries", 0).start().await;
        let paths = ["/500", "/503", "/404"];
        for path in paths {
            stored(&weir, path).await;
        }
        lifetime_of_1s_passes().await;
        for path in paths {
            let answer = weir.get(path).await;
            if path == "/404" {
                assert_eq!((answer.status, answer.text()), (404, "gone"), "a 404 is an answer, not an error");
            } else {
                assert!(answer.status == 200 && answer.is_stale() && answer.text() == "good", "{path}: {answer:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn configured_stale_times_apply_where_the_upstream_is_silent() {
    let up = upstream();
    let config = r#"
        [[route]]
        name = "all"
        path = "/{*path}"
        cache.ttl = "1s"
        cache.jitter = "0%"
        cache.stale_if_error = "1m"
    "#;
    up.sequence("/a", vec![reply("good"), reply("bad").status(502)]);
    up.sequence(
        "/b",
        vec![reply("good").header("cache-control", "max-age=1, must-revalidate"), reply("bad").status(502)],
    );
    let weir = weir(config).to(up.url()).set("upstream.retries", 0).start().await;
    stored(&weir, "/a").await;
    stored(&weir, "/b").await;
    lifetime_of_1s_passes().await;
    assert!(weir.get("/a").await.is_stale());
    assert!(weir.get("/b").await.status >= 500, "must-revalidate forbids stale answers");
}

#[tokio::test]
async fn what_does_not_decode_is_a_miss_and_a_counter() {
    let (up, redis) = (upstream(), redis());
    let store = Store::Redis(redis);
    up.route("/a", reply("body").max_age(60));
    let weir = in_front_of(&up, &store, RESPECT).start().await;
    let Store::Redis(redis) = &store else { unreachable!() };
    stored(&weir, "/a").await;
    let junk = ["", "x", "\u{1}\u{2}junk that is longer than any header of an entry could be, really"];
    for (i, junk) in junk.into_iter().enumerate() {
        let keys = redis.cli(&["KEYS", "*"]);
        let entries: Vec<&str> = keys.lines().filter(|key| key.contains(ENTRIES)).collect();
        assert!(!entries.is_empty(), "no entry to spoil among {keys}");
        for key in entries {
            redis.cli(&["SET", key, junk, "EX", "60"]);
        }
        let before = weir.metric(STORED).await;
        let answer = weir.get("/a").await;
        assert_eq!((answer.status, answer.text()), (200, "body"), "{junk:?}: {answer:?}");
        weir.metric_reaches(r#"weir_cache_lookups_total{result="corrupt"}"#, i as f64 + 1.0).await;
        weir.metric_reaches(STORED, before + 1.0).await;
    }
}

#[tokio::test]
async fn a_cut_body_is_never_stored() {
    for_both(|store| async move {
        let up = upstream();
        up.sequence("/a", vec![reply("half").max_age(60).cut(100), reply("whole").max_age(60)]);
        let weir = in_front_of(&up, &store, RESPECT).set("upstream.retries", 0).start().await;
        let cut = get("/a").try_send(weir.proxy).await;
        assert!(cut.is_err() || cut.is_ok_and(|answer| answer.status >= 500), "a cut body must not look whole");
        weir.metric_reaches(r#"weir_cache_fills_total{result="failed"}"#, 1.0).await;
        let next = weir.get("/a").await;
        assert!(next.text() == "whole" && !next.is_hit(), "{next:?}");
    })
    .await;
}

#[tokio::test]
async fn a_part_or_a_head_never_becomes_a_whole() {
    for_both(|store| async move {
        let up = upstream();
        up.on("/a", |request| -> Reply {
            match (request.method.as_str(), request.header("range")) {
                ("GET", Some("bytes=0-3")) => {
                    reply("0123").status(206).max_age(60).header("content-range", "bytes 0-3/10")
                }
                _ => reply("0123456789").max_age(60),
            }
        });
        let weir = in_front_of(&up, &store, RESPECT).start().await;
        assert_eq!(weir.send(request("HEAD", "/a")).await.body.len(), 0);
        assert_eq!(weir.send(get("/a").header("range", "bytes=0-3")).await.text(), "0123");
        assert_eq!(weir.get("/a").await.text(), "0123456789");
    })
    .await;
}

#[tokio::test]
async fn the_memory_tier_stays_within_its_bytes() {
    let up = upstream();
    up.on("*", |_| reply(crate::harness::noise(16 << 10)).max_age(600));
    let weir = weir(RESPECT).to(up.url()).set("cache.memory", "1MiB").start().await;
    for i in 0..300 {
        assert_eq!(weir.get(&format!("/{i}")).await.status, 200);
    }
    weir.metric_reaches("weir_cache_evictions_total", 100.0).await;
    let held = weir.metric("weir_cache_memory_bytes").await;
    assert!(held > 0.0 && held <= 1.05 * f64::from(1 << 20), "{held} bytes");
    assert!(weir.get("/299").await.status == 200 && up.count("/299") <= 2);
}

#[tokio::test]
async fn large_answers_stay_out_of_redis_and_oversized_ones_out_of_the_cache() {
    let (up, redis) = (upstream(), redis());
    up.on("/large", |_| reply(crate::harness::noise(300 << 10)).max_age(60));
    up.on("/huge", |_| reply(crate::harness::noise(2 << 20)).max_age(60));
    let setup =
        weir(RESPECT).to(up.url()).redis(&redis).set("cache.max_object", "1MiB").set("redis.max_value", "64KiB");
    let weirs = setup.fleet(2).await;
    stored(&weirs[0], "/large").await;
    assert!(weirs[0].get("/large").await.is_hit());
    assert!(!weirs[1].get("/large").await.is_hit(), "too large for Redis");
    for _ in 0..2 {
        let answer = weirs[0].get("/huge").await;
        assert!(answer.body.len() == 2 << 20 && !answer.is_hit(), "{answer:?}");
    }
    weirs[0].metric_reaches(r#"weir_cache_fills_total{result="too_large"}"#, 1.0).await;
}
