//! What is stored is whole, and is what the service sent: no part, no cut body, no value that somebody else wrote.

use crate::caching::stored;
use crate::harness::{
    Answer, Connection, Gate, Redis, Reply, Setup, Store, Upstream, Weir, for_both, get, noise, redis, reply, request,
    upstream, weir,
};

const ROUTES: &str = r#"
[[route]]
name = "all"
path = "/{*path}"
cache.enabled = true
cache.stale_if_error = "100s"
"#;

const STORED: &str = r#"weir_cache_fills_total{result="stored"}"#;
const FAILED: &str = r#"weir_cache_fills_total{result="failed"}"#;
const CORRUPT: &str = r#"weir_cache_lookups_total{result="corrupt"}"#;

/// The page that every answer is about.
const WHOLE: &str = "0123456789";

fn page() -> Reply {
    reply(WHOLE).max_age(60).header("etag", "\"1\"")
}

#[tokio::test]
async fn no_answer_to_a_part_or_a_head_becomes_a_page() {
    let part = |body: &'static str, range: &str| page_of(body).status(206).header("content-range", range);
    fn page_of(body: &'static str) -> Reply {
        reply(body).max_age(60).header("etag", "\"1\"")
    }
    let boundary = "multipart/byteranges; boundary=b";
    let kinds: Vec<(&str, Reply)> = vec![
        ("part", part("0123", "bytes 0-3/10")),
        ("all of it, as a part", part(WHOLE, "bytes 0-9/10")),
        ("length unknown", part("0123", "bytes 0-3/*")),
        ("no range", page_of("0123").status(206)),
        ("another's range", part("6789", "bytes 6-9/10")),
        ("multipart", page_of("--b\r\n\r\n01\r\n--b--").status(206).header("content-type", boundary)),
        ("none of it", reply("").status(416).max_age(60).header("content-range", "bytes */10")),
        ("a page that calls itself a part", page_of(WHOLE).header("content-range", "bytes 0-9/10")),
    ];
    for_both(|store| {
        let kinds = kinds.clone();
        async move {
            let up = upstream();
            let weir = store.apply(weir(ROUTES).to(up.url())).start().await;
            for (i, (what, answer)) in kinds.into_iter().enumerate() {
                let path = format!("/{i}");
                up.on(&path, move |request| match (request.method.as_str(), request.header("range")) {
                    ("HEAD", _) => reply("").max_age(60).header("content-length", "10"),
                    (_, Some(_)) => answer.clone(),
                    (_, None) => page(),
                });
                for range in ["bytes=0-3", "bytes=0-", "bytes=0-0, 2-2"] {
                    let part = weir.send(get(&path).header("range", range)).await;
                    assert!([200, 206, 416].contains(&part.status), "{what}: {part:?}");
                    let head = weir.send(request("HEAD", &path).header("range", range)).await;
                    assert!(!head.is_stored() && head.body.is_empty(), "{what}: {head:?}");
                }
                // Fetched, or put together from parts that were said to be the same page's.
                for _ in 0..3 {
                    let answer = weir.get(&path).await;
                    assert_eq!((answer.status, answer.text()), (200, WHOLE), "{what}: {answer:?}");
                }
            }
        }
    })
    .await;
}

/// A service that answers plain requests with parts: whatever it means, it is not the page.
#[tokio::test]
async fn a_part_that_nobody_asked_for_is_not_stored() {
    for_both(|store| async move {
        let up = upstream();
        let part = || reply("0123").status(206).max_age(60).header("content-range", "bytes 0-3/10");
        up.sequence("/a", vec![part(), part(), page()]);
        let weir = store.apply(weir(ROUTES).to(up.url())).start().await;
        for _ in 0..2 {
            let answer = weir.get("/a").await;
            assert!(answer.status == 206 && !answer.is_stored() && !answer.is_hit(), "{answer:?}");
        }
        assert_eq!(stored(&weir, "/a").await.text(), WHOLE);
    })
    .await;
}

#[tokio::test]
async fn what_was_cut_is_stored_nowhere_and_replaces_nothing() {
    let cuts: Vec<(&str, Reply)> = vec![
        ("before the first byte", reply("").max_age(60).cut(10)),
        ("in the middle", reply("01234").max_age(60).cut(10)),
        ("before the last byte", reply("012345678").max_age(60).cut(10)),
        ("in chunks", reply("01234").then("567").max_age(60).header("transfer-encoding", "chunked").cut(10)),
        ("a large one", reply(noise(300 << 10)).max_age(60).cut(1 << 20)),
    ];
    for_both(|store| {
        let cuts = cuts.clone();
        async move {
            let up = upstream();
            let weir = store.apply(weir(ROUTES).to(up.url())).set("upstream.retries", 0).start().await;
            for (i, (what, cut)) in cuts.into_iter().enumerate() {
                let path = format!("/{i}");
                up.sequence(&path, vec![cut, page()]);
                let before = weir.metric(FAILED).await;
                let broken = get(&path).try_send(weir.proxy).await;
                assert!(broken.is_err() || broken.is_ok_and(|answer| answer.status >= 500), "{what} looks whole");
                weir.metric_reaches(FAILED, before + 1.0).await;
                let next = stored(&weir, &path).await;
                assert!(next.text() == WHOLE && !next.is_hit(), "{what}: {next:?}");
                assert!(weir.get(&path).await.is_hit());
            }
        }
    })
    .await;
}

/// The client leaves in the middle of a body, and then the body ends early, or does not.
#[tokio::test]
async fn a_client_that_leaves_in_the_middle_leaves_nothing_partial() {
    for_both(|store| async move {
        for is_cut in [false, true] {
            let (up, gate) = (upstream(), Gate::new());
            let path = if is_cut { "/cut" } else { "/whole" };
            let body = reply("01234").then_gate(&gate);
            let body = if is_cut { body.cut(10) } else { body.then("56789").header("content-length", "10") };
            up.sequence(path, vec![body.max_age(60), page()]);
            let weir = store.apply(weir(ROUTES).to(up.url())).set("upstream.retries", 0).start().await;
            let mut leaver = Connection::open(weir.proxy).await;
            leaver.write(format!("GET {path} HTTP/1.1\r\nhost: service.test\r\n\r\n").as_bytes()).await;
            leaver.read_until(b"01234").await;
            drop(leaver);
            gate.open();
            weir.metric_reaches(if is_cut { FAILED } else { STORED }, 1.0).await;
            let next = weir.get(path).await;
            assert_eq!((next.text(), next.is_hit()), (WHOLE, !is_cut), "{next:?}");
        }
    })
    .await;
}

/// Rewrites every entry in Redis by a Lua expression of its bytes `v`.
fn spoil(redis: &Redis, expression: &str) {
    let script = format!(
        "local n = 0 for _, k in ipairs(redis.call('KEYS', '*:e:*')) do local v = redis.call('GET', k) \
         redis.call('SET', k, {expression}, 'EX', 60) n = n + 1 end return tostring(n)"
    );
    assert_ne!(redis.cli(&["EVAL", &script, "0"]).trim(), "0", "there is no entry to spoil");
}

fn redis_only(up: &Upstream, redis: &Redis) -> Setup {
    weir(ROUTES).to(up.url()).redis(redis).set("cache.memory", "0").set("redis.deadline", "2s")
}

#[tokio::test]
async fn values_that_weir_did_not_write_are_misses_and_counted() {
    let (up, redis) = (upstream(), redis());
    up.on("*", |_| page());
    let weir = redis_only(&up, &redis).start().await;
    let before = weir.resident();
    let spoilt = [
        ("empty", "''"),
        ("one byte", "v:sub(1, 1)"),
        ("the front alone", "v:sub(1, 40)"),
        ("half", "v:sub(1, math.floor(#v / 2))"),
        ("all but a byte", "v:sub(1, #v - 1)"),
        ("a byte more", "v .. 'x'"),
        ("twice", "v .. v"),
        ("another magic", "'weir' .. v:sub(5)"),
        ("a version to come", "v:sub(1, 4) .. string.char(255) .. v:sub(6)"),
        ("a version that never was", "v:sub(1, 4) .. string.char(0) .. v:sub(6)"),
        ("another kind", "v:sub(1, 5) .. string.char(2) .. v:sub(7)"),
        ("an unknown kind", "v:sub(1, 5) .. string.char(77) .. v:sub(7)"),
        ("packed, or so it says", "v:sub(1, 7) .. string.char(1) .. v:sub(9)"),
        ("another checksum", "v:sub(1, 32) .. string.rep('x', 8) .. v:sub(41)"),
        ("a bit of the body", "v:sub(1, #v - 1) .. string.char((v:byte(#v) + 1) % 256)"),
        ("a bit in the middle", "v:sub(1, 60) .. string.char((v:byte(61) + 1) % 256) .. v:sub(62)"),
        ("endless lengths", "v:sub(1, 86) .. string.rep(string.char(255), 40)"),
        ("32 MiB of something", "string.rep('WEIR' .. string.char(1, 1), 5592405)"),
    ];
    for (i, (what, expression)) in spoilt.into_iter().enumerate() {
        let path = "/a";
        if i == 0 {
            stored(&weir, path).await;
        }
        spoil(&redis, expression);
        let fills = weir.metric(STORED).await;
        let answer = weir.get(path).await;
        assert_eq!((answer.status, answer.text(), answer.is_hit()), (200, WHOLE, false), "{what}: {answer:?}");
        weir.metric_reaches(CORRUPT, i as f64 + 1.0).await;
        // And it does not stand in the way of the next.
        weir.metric_reaches(STORED, fills + 1.0).await;
        assert!(weir.get(path).await.is_hit(), "{what}");
    }
    let grown = weir.resident().saturating_sub(before) >> 20;
    assert!(grown < 128, "{grown} MiB for what a value only claimed");
}

/// A sound value under another's name: told by the key that is in it.
#[tokio::test]
async fn one_keys_value_is_not_anothers() {
    let (up, redis) = (upstream(), redis());
    up.on("*", |request| reply(request.target().to_owned()).max_age(60));
    let weir = redis_only(&up, &redis).start().await;
    for path in ["/a", "/b"] {
        stored(&weir, path).await;
    }
    let swap = "local k = redis.call('KEYS', '*:e:*') local a, b = redis.call('GET', k[1]), redis.call('GET', k[2]) \
                redis.call('SET', k[1], b, 'EX', 60) redis.call('SET', k[2], a, 'EX', 60) return tostring(#k)";
    assert_eq!(redis.cli(&["EVAL", swap, "0"]).trim(), "2");
    for path in ["/a", "/b", "/a", "/b"] {
        assert_eq!(weir.get(path).await.text(), path);
    }
}

/// Sizes about every bound: a chunk, a buffer, `compress_over`, `max_value`, `max_object`.
const SIZES: [usize; 9] = [0, 1, 1023, 16 << 10, (64 << 10) + 1, (1 << 20) - 1, 4 << 20, (4 << 20) + 1, 9 << 20];

fn whole(answer: &Answer, size: usize) -> bool {
    answer.status == 200
        && answer.body == noise(size)
        && answer.number("content-length").is_none_or(|n| n == size as u64)
}

async fn sized(weir: &Weir, method: &str, size: usize, is_chunked: bool) -> Answer {
    let path = format!("/{size}/{is_chunked}");
    weir.send(request(method, &path)).await
}

#[tokio::test]
async fn every_size_is_the_same_fetched_stored_and_in_every_method() {
    let up = upstream();
    up.on("*", |request| {
        let mut parts = request.target().split('/').skip(1);
        let size: usize = parts.next().and_then(|size| size.parse().ok()).unwrap_or(0);
        let body = noise(size);
        let reply = match parts.next() {
            Some("true") => reply(body.slice(..size / 2)).then(body.slice(size / 2..)),
            _ => reply(body),
        };
        reply.max_age(60)
    });
    let redis = redis();
    // As much as each tier takes at the least.
    for (store, kept) in [(Store::Memory, 4 << 20), (Store::Redis(redis), (64 << 10) + 1)] {
        let weir = store.apply(weir(ROUTES).to(up.url())).set("cache.compress_over", "1KiB").start().await;
        for size in SIZES {
            for is_chunked in [false, true] {
                let before = weir.metric("weir_cache_fills_total").await;
                let miss = sized(&weir, "GET", size, is_chunked).await;
                assert!(whole(&miss, size), "{size} {is_chunked}: {miss:?}");
                weir.metric_reaches("weir_cache_fills_total", before + 1.0).await;
                let again = sized(&weir, "GET", size, is_chunked).await;
                assert!(whole(&again, size), "{size} {is_chunked}: {again:?}");
                assert!(again.is_hit() || size > kept, "{size} {is_chunked}: {again:?}");
                let head = sized(&weir, "HEAD", size, is_chunked).await;
                let length = head.number("content-length").is_none_or(|length| length == size as u64);
                assert!(head.body.is_empty() && length, "{head:?}");
            }
            for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "REPORT"] {
                let answer = sized(&weir, method, size, size % 2 == 0).await;
                assert!(whole(&answer, size) && !answer.is_hit(), "{method} {size}: {answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_hundred_mebibytes_pass_a_route_that_stores() {
    let up = upstream();
    let size = 100 << 20;
    let body = noise(size);
    let sent = body.clone();
    up.on("/large", move |_| reply(sent.clone()).max_age(60));
    let weir = weir(ROUTES).to(up.url()).start().await;
    let before = weir.resident();
    for method in ["GET", "GET", "POST", "QUERY"] {
        let answer = weir.send(request(method, "/large")).await;
        assert!(answer.status == 200 && answer.body == body && !answer.is_hit(), "{method}: {answer:?}");
    }
    let grown = weir.resident().saturating_sub(before) >> 20;
    assert!(grown < 64, "{grown} MiB more than before");
}
