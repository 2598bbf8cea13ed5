//! Parts of stored answers.

use crate::harness::{for_both, get, reply, request, upstream, weir};

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
        assert_eq!(answer.header("cache-status"), Some("weir; fwd=uri-miss"));
        assert_eq!(weir.get("/a").await.text(), BODY, "a part is no whole");
        weir.metric_reaches(STORED, 1.0).await;
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
