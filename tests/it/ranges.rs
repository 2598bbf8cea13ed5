//! Parts of stored answers.

use crate::harness::{Recorded, Reply, for_both, get, reply, request, upstream, weir};

const ROUTES: &str = r#"
[[route]]
name = "everything"
path = "/{*rest}"
cache.enabled = true
"#;

const STORED: &str = r#"weir_cache_fills_total{result="stored"}"#;
const BODY: &str = "0123456789";

#[tokio::test]
async fn a_stored_answer_is_served_in_parts() {
    for_both(|store| async move {
        let up = upstream();
        up.on("/a", |_| reply(BODY).max_age(60).header("etag", "\"v1\"").header("content-type", "text/plain"));
        let weir = store.apply(weir(ROUTES).to(up.url())).start().await;
        assert_eq!(weir.get("/a").await.text(), BODY);
        weir.metric_reaches(STORED, 1.0).await;
        for (range, status, body, described) in [
            ("bytes=2-4", 206, "234", Some("bytes 2-4/10")),
            ("bytes=8-", 206, "89", Some("bytes 8-9/10")),
            ("bytes=-3", 206, "789", Some("bytes 7-9/10")),
            ("bytes=0-5, 3-7", 206, "01234567", Some("bytes 0-7/10")),
            ("bytes=5-2", 200, BODY, None),
            ("lines=1-2", 200, BODY, None),
        ] {
            let answer = weir.send(get("/a").header("range", range)).await;
            assert_eq!((answer.status, answer.text()), (status, body), "{range}");
            assert_eq!(answer.header("content-range"), described, "{range}");
            assert_eq!(answer.header("content-type"), Some("text/plain"));
            assert_eq!(answer.header("etag"), Some("\"v1\""));
            assert!(answer.header("cache-status").unwrap().starts_with("weir; hit"), "{range}");
        }
        let behind = weir.send(get("/a").header("range", "bytes=10-")).await;
        assert_eq!((behind.status, behind.header("content-range")), (416, Some("bytes */10")));
        assert_eq!(behind.header("etag"), None, "it is not about the stored answer");

        for (condition, status) in [("\"v1\"", 206), ("\"v2\"", 200), ("W/\"v1\"", 200)] {
            let answer = weir.send(get("/a").header("range", "bytes=0-0").header("if-range", condition)).await;
            assert_eq!(answer.status, status, "{condition}");
        }
        let known = weir.send(get("/a").header("range", "bytes=0-0").header("if-none-match", "\"v1\"")).await;
        assert_eq!(known.status, 304);
        let head = weir.send(request("HEAD", "/a").header("range", "bytes=0-0")).await;
        assert_eq!((head.status, head.header("content-length")), (200, Some("10")));
        assert_eq!(up.count("/a"), 1);
    })
    .await;
}

#[tokio::test]
async fn several_parts_are_one_multipart_body() {
    let up = upstream();
    up.on("/a", |_| reply(BODY).max_age(60).header("content-type", "text/plain"));
    let weir = weir(ROUTES).to(up.url()).start().await;
    weir.get("/a").await;
    weir.metric_reaches(STORED, 1.0).await;
    let answer = weir.send(get("/a").header("range", "bytes=7-8, 0-1")).await;
    assert_eq!((answer.status, answer.header("content-range")), (206, None));
    let kind = answer.header("content-type").unwrap();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let part = |range: &str, text: &str| {
        format!("\r\n--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes {range}/10\r\n\r\n{text}")
    };
    assert_eq!(answer.text(), format!("{}{}\r\n--{boundary}--\r\n", part("7-8", "78"), part("0-1", "01")));
    assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()));
}

/// A part of what is not stored is the upstream's to give: nobody waits while the whole of it is fetched.
#[tokio::test]
async fn a_part_of_what_is_not_stored_is_passed_on() {
    for_both(|store| async move {
        let up = upstream();
        up.on("/a", |request| match request.header("range") {
            Some(_) => reply("23").status(206).max_age(60).header("content-range", "bytes 2-3/10"),
            None => reply(BODY).max_age(60),
        });
        let weir = store.apply(weir(ROUTES).to(up.url())).start().await;
        let part = || get("/a").header("range", "bytes=2-3");
        let answer = weir.send(part()).await;
        assert_eq!((answer.status, answer.text()), (206, "23"));
        assert_eq!(answer.header("cache-status"), Some("weir; fwd=uri-miss; stored"));
        weir.metric_reaches(STORED, 1.0).await;
        assert_eq!(weir.get("/a").await.text(), BODY, "a part is no whole");
        weir.metric_reaches(STORED, 2.0).await;
        assert_eq!(
            weir.send(part()).await.header("cache-status").map(|status| status.starts_with("weir; hit")),
            Some(true)
        );
        assert_eq!(up.count("/a"), 2);
    })
    .await;
}

/// What is stale is confirmed, or excuses a failure, for a part as for the whole.
#[tokio::test]
async fn a_part_of_what_is_stale_asks_for_confirmation() {
    for_both(|store| async move {
        let up = upstream();
        up.on("/a", |request| match request.header("if-none-match") {
            Some(_) => reply("").status(304).header("cache-control", "max-age=60").header("etag", "\"v1\""),
            None => reply(BODY).header("cache-control", "max-age=0").header("etag", "\"v1\""),
        });
        up.sequence(
            "/b",
            vec![reply(BODY).header("cache-control", "max-age=0, stale-if-error=60"), reply("broken").status(500)],
        );
        let weir = store.apply(weir(ROUTES).to(up.url())).start().await;
        for (path, outcome) in [("/a", "fwd=stale; fwd-status=304"), ("/b", "stale-if-error")] {
            assert_eq!(weir.get(path).await.text(), BODY);
            weir.metric_reaches(STORED, if path == "/a" { 1.0 } else { 2.0 }).await;
            let part = weir.send(get(path).header("range", "bytes=2-3")).await;
            assert_eq!((part.status, part.text()), (206, "23"), "{path}: {part:?}");
            assert!(part.header("cache-status").unwrap().contains(outcome), "{part:?}");
        }
        assert!(up.requests("/a").iter().all(|request| request.header("range").is_none()));
    })
    .await;
}

#[tokio::test]
async fn a_part_says_nothing_that_is_true_of_the_whole_only() {
    let up = upstream();
    up.on("/a", |_| {
        let whole =
            reply(BODY).max_age(60).header("content-type", "text/plain").header("repr-digest", "sha-256=:AA==:");
        whole.header("content-digest", "sha-256=:AA==:").header("content-md5", "AA==")
    });
    let routes = format!("{ROUTES}response.set = {{ content-type = \"video/mp4\" }}\n");
    let weir = weir(&routes).to(up.url()).start().await;
    weir.get("/a").await;
    weir.metric_reaches(STORED, 1.0).await;
    for (range, kind) in [("bytes=1-2", "video/mp4"), ("bytes=1-2, 5-6", "multipart/byteranges; boundary=")] {
        let part = weir.send(get("/a").header("range", range)).await;
        assert!(part.header("content-type").unwrap().starts_with(kind), "{part:?}");
        assert_eq!((part.header("content-digest"), part.header("content-md5")), (None, None));
        assert_eq!(part.header("repr-digest"), Some("sha-256=:AA==:"));
    }
}

/// An upstream that knows ranges as real ones do.
fn ranged(tag: &'static str) -> impl Fn(&Recorded) -> Reply {
    move |request| {
        let tagged = |reply: Reply| reply.max_age(60).header("etag", tag);
        let whole = || tagged(reply(BODY));
        let holds = request.header("if-range").is_none_or(|condition| condition == tag);
        let length = BODY.len();
        let range = request.header("range").filter(|_| holds).and_then(|range| range.strip_prefix("bytes="));
        let Some((first, last)) = range.and_then(|range| range.split_once('-')) else { return whole() };
        let (first, last) = match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) => (first, last.min(length - 1)),
            (Ok(first), Err(_)) => (first, length - 1),
            (Err(_), Ok(suffix)) => (length - suffix, length - 1),
            (Err(_), Err(_)) => return whole(),
        };
        let described = format!("bytes {first}-{last}/{length}");
        tagged(reply(&BODY[first..=last])).status(206).header("content-range", &described)
    }
}

#[tokio::test]
async fn a_part_is_kept_and_answers_what_lies_within_it() {
    for_both(|store| async move {
        let up = upstream();
        up.on("/a", ranged("\"v1\""));
        let weir = store.apply(weir(ROUTES).to(up.url())).start().await;
        let part = |range: &'static str| weir.send(get("/a").header("range", range));
        let first = part("bytes=2-6").await;
        assert_eq!((first.status, first.text()), (206, "23456"));
        assert_eq!(first.header("cache-status"), Some("weir; fwd=uri-miss; stored"));
        weir.metric_reaches(STORED, 1.0).await;
        for (range, body, described) in [("bytes=2-6", "23456", "bytes 2-6/10"), ("bytes=3-4", "34", "bytes 3-4/10")] {
            let answer = part(range).await;
            assert_eq!((answer.status, answer.text()), (206, body), "{range}");
            assert_eq!(answer.header("content-range"), Some(described));
            assert!(answer.header("cache-status").unwrap().starts_with("weir; hit"), "{range}");
        }
        assert_eq!(up.count("/a"), 1);
        // What goes beyond it is asked for, and joined with it.
        assert_eq!(part("bytes=5-").await.text(), "56789");
        weir.metric_reaches(STORED, 2.0).await;
        let both = part("bytes=2-9").await;
        assert_eq!((both.text(), up.count("/a")), ("23456789", 2));
        assert!(both.header("cache-status").unwrap().starts_with("weir; hit"));
        // Joined to a whole, it answers everything.
        assert_eq!(part("bytes=0-1").await.text(), "01");
        weir.metric_reaches(STORED, 3.0).await;
        let whole = weir.get("/a").await;
        assert_eq!((whole.status, whole.text(), whole.header("content-range")), (200, BODY, None));
        assert!(whole.header("cache-status").unwrap().starts_with("weir; hit"));
        assert_eq!(up.count("/a"), 3);
    })
    .await;
}

#[tokio::test]
async fn a_whole_is_completed_from_a_part() {
    for range in ["bytes=0-6", "bytes=-4"] {
        let up = upstream();
        up.on("/a", ranged("\"v1\""));
        let weir = weir(ROUTES).to(up.url()).start().await;
        weir.send(get("/a").header("range", range)).await;
        weir.metric_reaches(STORED, 1.0).await;
        let whole = weir.get("/a").await;
        assert_eq!((whole.status, whole.text(), whole.header("content-range")), (200, BODY, None), "{range}");
        assert_eq!(whole.header("content-length"), Some("10"));
        let asked = &up.requests("/a")[1];
        assert_eq!(asked.header("if-range"), Some("\"v1\""));
        assert_eq!(asked.header("range"), Some(if range == "bytes=0-6" { "bytes=7-" } else { "bytes=0-5" }));
        weir.metric_reaches(STORED, 2.0).await;
        let hit = weir.get("/a").await;
        assert_eq!(hit.text(), BODY);
        assert!(hit.header("cache-status").unwrap().starts_with("weir; hit"));
    }
}

/// A part is never made whole with the bytes of another version, or by an upstream that contradicts itself.
#[tokio::test]
async fn parts_of_other_bytes_are_never_joined() {
    type Second = fn(&Recorded) -> Reply;
    let cases: [(&str, Second); 4] = [
        ("it has changed", |_| reply("abcdefghij").max_age(60).header("etag", "\"v2\"")),
        ("it ignores If-Range", |request| match request.header("range") {
            Some(_) => {
                reply("789").status(206).max_age(60).header("etag", "\"v2\"").header("content-range", "bytes 7-9/10")
            }
            None => reply("abcdefghij").max_age(60).header("etag", "\"v2\""),
        }),
        ("it sends another part", |request| match request.header("range") {
            Some(_) => {
                reply("89").status(206).max_age(60).header("etag", "\"v1\"").header("content-range", "bytes 8-9/10")
            }
            None => reply("abcdefghij").max_age(60).header("etag", "\"v2\""),
        }),
        ("it is shorter now", |request| match request.header("range") {
            Some(_) => reply("").status(416).header("content-range", "bytes */5"),
            None => reply("abcdefghij").max_age(60).header("etag", "\"v2\""),
        }),
    ];
    for (what, second) in cases {
        let up = upstream();
        up.on("/a", ranged("\"v1\""));
        let weir = weir(ROUTES).to(up.url()).start().await;
        weir.send(get("/a").header("range", "bytes=0-6")).await;
        weir.metric_reaches(STORED, 1.0).await;
        up.on("/a", second);
        let whole = weir.get("/a").await;
        assert_eq!((whole.status, whole.text()), (200, "abcdefghij"), "{what}");
        assert_eq!(whole.header("etag"), Some("\"v2\""), "{what}");
        weir.metric_reaches(STORED, 2.0).await;
        let part = weir.send(get("/a").header("range", "bytes=0-1")).await;
        assert_eq!(part.text(), "ab", "{what}: the old part is gone");
    }
}

/// Lengths that contradict each other, and parts that may not be stored, are passed on and forgotten.
#[tokio::test]
async fn what_is_no_sound_part_is_not_kept() {
    let described = |body: &'static str, range: &'static str| {
        move |_: &Recorded| reply(body).status(206).max_age(60).header("content-range", range)
    };
    let up = upstream();
    up.on("/long", described("01234", "bytes 4-9/10"));
    up.on("/unknown", described("01234", "bytes 0-4/*"));
    up.on("/varies", |_| {
        reply("01234").status(206).max_age(60).header("content-range", "bytes 0-4/10").header("vary", "x-a")
    });
    up.on("/private", |_| {
        let part = reply("01234").status(206).header("content-range", "bytes 0-4/10");
        part.header("cache-control", "private, max-age=60")
    });
    let weir = weir(ROUTES).to(up.url()).start().await;
    for path in ["/long", "/unknown", "/varies", "/private"] {
        for _ in 0..2 {
            let answer = weir.send(get(path).header("range", "bytes=0-4")).await;
            assert_eq!((answer.status, answer.text()), (206, "01234"), "{path}");
            assert_eq!(answer.header("cache-status"), Some("weir; fwd=uri-miss"), "{path}");
        }
        assert_eq!(up.count(path), 2, "{path}");
    }
}

#[tokio::test]
async fn an_invalidated_part_is_gone() {
    for_both(|store| async move {
        let up = upstream();
        up.on("/a", ranged("\"v1\""));
        let weir = store.apply(weir(ROUTES).to(up.url())).start().await;
        let part = || weir.send(get("/a").header("range", "bytes=2-6"));
        part().await;
        weir.metric_reaches(STORED, 1.0).await;
        weir.send(request("POST", "/a")).await;
        let again = part().await;
        assert!(again.header("cache-status").unwrap().starts_with("weir; fwd="), "{:?}", again.header("cache-status"));
    })
    .await;
}

/// RFC 9110 section 15.3.7: a 206 to `If-Range` says no more than it must. What it leaves out stays; sums are of one message.
#[tokio::test]
async fn a_lean_rest_loses_no_field() {
    let up = upstream();
    up.on("/a", |request| {
        let lean = |body: &'static str, range: &str| {
            let part = reply(body).status(206).max_age(60).header("etag", "\"v1\"");
            part.header("content-range", range).header("content-digest", "sha-256=:AA==:")
        };
        match request.header("if-range") {
            None => lean("0123456", "bytes 0-6/10").header("content-type", "text/plain").header("surrogate-key", "t"),
            Some(_) => lean("789", "bytes 7-9/10"),
        }
    });
    let weir = weir(ROUTES).to(up.url()).start().await;
    weir.send(get("/a").header("range", "bytes=0-6")).await;
    weir.metric_reaches(STORED, 1.0).await;
    for what in ["completed", "stored"] {
        let whole = weir.get("/a").await;
        assert_eq!((whole.status, whole.text()), (200, BODY), "{what}");
        assert_eq!(whole.header("content-type"), Some("text/plain"), "{what}");
        assert_eq!(whole.header("content-digest"), None, "{what}");
        weir.metric_reaches(STORED, 2.0).await;
    }
    weir.invalidate(r#"{"tags": ["t"]}"#).await;
    assert!(!weir.get("/a").await.is_hit(), "a tag of the first part is one of the whole");
    // One that names a version and is not joined may be lean as well, and is not kept.
    let held = weir.send(get("/b").header("range", "bytes=0-1").header("if-range", "\"v1\"")).await;
    assert_eq!(held.cache_status(), "weir; fwd=uri-miss");
}

/// An upstream that promises more than it sends is asked for the whole, then and from then on.
#[tokio::test]
async fn a_rest_of_another_length_is_no_rest() {
    let up = upstream();
    up.on("/a", |request| match request.header("range") {
        None => reply(BODY).max_age(60).header("etag", "\"v1\""),
        Some("bytes=0-6") => ranged("\"v1\"")(request),
        Some(_) => reply("78").status(206).max_age(60).header("etag", "\"v1\"").header("content-range", "bytes 7-9/10"),
    });
    let weir = weir(ROUTES).to(up.url()).start().await;
    weir.send(get("/a").header("range", "bytes=0-6")).await;
    weir.metric_reaches(STORED, 1.0).await;
    for _ in 0..2 {
        let whole = weir.get("/a").await;
        assert_eq!((whole.status, whole.text()), (200, BODY));
        weir.metric_reaches(STORED, 2.0).await;
    }
    assert_eq!(up.count("/a"), 3);
}

/// A part is the whole's: what may not be given to one who carries credentials is not given in parts either.
#[tokio::test]
async fn a_part_is_nobodys_who_carries_credentials() {
    for_both(|store| async move {
        let up = upstream();
        let part = |request: &Recorded| {
            let who = request.header("authorization").or(request.header("cookie")).unwrap_or("none");
            let body = format!("{who:5.5}");
            reply(body).status(206).header("etag", "\"v1\"").header("content-range", "bytes 0-4/10")
        };
        up.on("/own", move |request| part(request).max_age(60));
        up.on("/configured", part);
        let weir = store.apply(weir(&ROUTES.replace("enabled = true", "ttl = \"60s\"")).to(up.url())).start().await;
        let ask = |path: &str, field: &str, value: &str| {
            weir.send(get(path).header("range", "bytes=0-4").header(field, value))
        };
        assert_eq!(ask("/own", "authorization", "alice").await.text(), "alice");
        assert_eq!(ask("/own", "authorization", "bobby").await.text(), "bobby");
        assert_eq!(ask("/own", "x-a", "y").await.text(), "none ");
        weir.metric_reaches(STORED, 1.0).await;
        assert_eq!(ask("/configured", "x-a", "y").await.text(), "none ");
        weir.metric_reaches(STORED, 2.0).await;
        for _ in 0..2 {
            assert_eq!(ask("/configured", "cookie", "carol").await.text(), "carol");
            assert_eq!(ask("/configured", "x-a", "y").await.text(), "none ");
        }
    })
    .await;
}

#[tokio::test]
async fn a_softly_invalidated_part_is_not_used() {
    for_both(|store| async move {
        let up = upstream();
        up.on("/a", ranged("\"v1\""));
        let weir = store.apply(weir(ROUTES).to(up.url())).start().await;
        let part = || weir.send(get("/a").header("range", "bytes=2-6"));
        part().await;
        weir.metric_reaches(STORED, 1.0).await;
        assert!(part().await.is_hit());
        weir.invalidate(r#"{"urls": ["/a"], "soft": true}"#).await;
        assert!(!part().await.is_hit());
    })
    .await;
}

/// A newer whole takes the older part's place everywhere, though it ends first.
#[tokio::test]
async fn an_older_part_does_not_outlive_a_newer_whole() {
    for_both(|store| async move {
        let up = upstream();
        up.on("/a", ranged("\"v1\""));
        let weir = store.apply(weir(ROUTES).to(up.url())).start().await;
        let part = || weir.send(get("/a").header("range", "bytes=2-6"));
        part().await;
        weir.metric_reaches(STORED, 1.0).await;
        up.on("/a", |request| match request.header("range") {
            None => reply("abcdefghij").header("cache-control", "max-age=0").header("etag", "\"v2\""),
            Some(_) => reply("cdefg").status(206).max_age(60).header("content-range", "bytes 2-6/10"),
        });
        assert_eq!(weir.get("/a").await.text(), "abcdefghij");
        weir.metric_reaches(STORED, 2.0).await;
        assert_ne!(part().await.text(), "23456");
    })
    .await;
}
