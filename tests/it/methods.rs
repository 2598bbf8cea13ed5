//! Methods other than GET and HEAD that the cache knows what to do with.

use crate::harness::{Gate, Recorded, for_both, get, reply, request, upstream, weir};

const READS: &str = r#"
[[route]]
name = "search"
path = "/search"
cache.ttl = "60s"
cache.key_body = ["QUERY", "POST"]

[[route]]
name = "rest"
path = "/{*rest}"
cache.enabled = true
"#;

const STORED: &str = r#"weir_cache_fills_total{result="stored"}"#;

#[tokio::test]
async fn what_reads_by_its_body_is_keyed_by_it() {
    for_both(|store| async move {
        let up = upstream();
        up.on("/search", |request| reply(format!("{} {:?}", request.method, request.body)));
        let weir = store.apply(weir(READS).to(up.url())).start().await;
        let ask = |method: &str, kind: &str, body: &'static str| {
            weir.send(request(method, "/search").header("content-type", kind).body(body))
        };
        let mut asked = 0;
        for (method, kind, body) in [
            ("QUERY", "text/plain", "a"),
            ("QUERY", "text/plain", "b"),
            ("POST", "text/plain", "a"),
            ("POST", "application/json", "a"),
            ("QUERY", "text/plain", ""),
        ] {
            let first = ask(method, kind, body).await;
            asked += 1;
            assert_eq!(first.text(), format!("{method} {:?}", bytes::Bytes::from(body)));
            assert_eq!(first.cache_status(), "weir; fwd=uri-miss; stored", "{method} {kind} {body}");
            weir.metric_reaches(STORED, f64::from(asked)).await;
            let second = ask(method, kind, body).await;
            assert!(second.is_hit(), "{method} {kind} {body}: {}", second.cache_status());
            assert_eq!(second.text(), first.text());
            assert_eq!(up.count("/search"), asked as usize);
        }
        // A GET of the same URL is something else, and so is an invalidation of it: that is of all of them.
        assert!(weir.get("/search").await.is_miss());
        weir.invalidate(r#"{"urls": ["/search"]}"#).await;
        assert!(!ask("QUERY", "text/plain", "a").await.is_hit());
    })
    .await;
}

/// Reading invalidates nothing; what is too long to be a key goes past the cache, unharmed.
#[tokio::test]
async fn reading_by_body_changes_nothing() {
    let up = upstream();
    up.on("/search", |request| reply(request.body.clone()).max_age(60));
    up.on("/a", |_| reply("a").max_age(60));
    let weir = weir(READS).to(up.url()).start().await;
    weir.get("/search").await;
    weir.get("/a").await;
    weir.metric_reaches(STORED, 2.0).await;
    let long = "x".repeat((64 << 10) + 1);
    for _ in 0..2 {
        let answer = weir.send(request("POST", "/search").body(long.clone())).await;
        assert_eq!((answer.text() == long, answer.cache_status()), (true, "weir; fwd=method"));
    }
    let trailing = weir.send(request("POST", "/search").chunked(&[b"he", b"llo"], &[("x-sum", "1")])).await;
    assert_eq!((trailing.text(), trailing.cache_status()), ("hello", "weir; fwd=method"));
    let conditional = weir.send(request("POST", "/search").body("x").header("if-none-match", "*")).await;
    assert_eq!((conditional.text(), conditional.cache_status()), ("x", "weir; fwd=bypass"));
    assert!(weir.get("/search").await.is_hit(), "none of these has changed anything");
    weir.send(request("POST", "/search").body("x").header("x-http-method-override", "DELETE")).await;
    assert!(!weir.get("/search").await.is_hit(), "this one may have");
    weir.metric_reaches(STORED, 3.0).await;
    let chunked = weir.send(request("QUERY", "/search").chunked(&[b"he", b"llo"], &[])).await;
    assert_eq!((chunked.text(), chunked.cache_status()), ("hello", "weir; fwd=uri-miss; stored"));
    weir.metric_reaches(STORED, 4.0).await;
    assert!(weir.send(request("QUERY", "/search").body("hello")).await.is_hit());
    for method in ["QUERY", "PROPFIND", "REPORT", "SEARCH"] {
        weir.send(request(method, "/a").body("x")).await;
    }
    assert!(weir.get("/a").await.is_hit());
    weir.send(request("UNHEARD-OF", "/a")).await;
    assert!(!weir.get("/a").await.is_hit(), "a method that nobody knows may change anything");
}

/// RFC 9110 section 9.3.3.
#[tokio::test]
async fn an_answer_to_post_that_is_what_a_get_would_give_is_stored() {
    for_both(|store| async move {
        let up = upstream();
        let fresh = |body: &str| reply(body.to_owned()).max_age(60);
        up.on("/own", move |_| fresh("new").header("content-location", "/own?x=1"));
        up.on("/elsewhere", move |_| fresh("new").header("content-location", "/other"));
        up.on("/silent", move |_| fresh("new"));
        up.on("/lifeless", |_| reply("new").header("content-location", "/lifeless?x=1").header("etag", "\"a\""));
        up.on("/created", move |_| fresh("new").status(201).header("content-location", "/created?x=1"));
        up.on("/varies", move |_| fresh("new").header("content-location", "/varies?x=1").header("vary", "x-a"));
        let weir = store.apply(weir(READS).to(up.url())).start().await;
        for path in ["/elsewhere", "/silent", "/lifeless", "/created", "/varies"] {
            let target = format!("{path}?x=1");
            let answer = weir.send(request("POST", &target).body("x")).await;
            assert_eq!(answer.cache_status(), "weir; fwd=method", "{path}");
            assert!(!weir.get(&target).await.is_hit(), "{path}");
        }
        let before = weir.metric(STORED).await;
        let answer = weir.send(request("POST", "/own?x=1").body("x")).await;
        assert_eq!(answer.cache_status(), "weir; fwd=method; stored");
        weir.metric_reaches(STORED, before + 1.0).await;
        let got = weir.get("/own?x=1").await;
        assert!(got.is_hit(), "{}", got.cache_status());
        assert_eq!((got.text(), up.count("/own")), ("new", 1));
        // The next write overtakes it.
        up.on("/own", |_| reply("done"));
        weir.send(request("PUT", "/own?x=1")).await;
        assert!(!weir.send(get("/own?x=1")).await.is_hit());
    })
    .await;
}

/// The upstream may have taken the two writes in the other order.
#[tokio::test]
async fn an_answer_to_post_that_another_write_overtook_is_not_stored() {
    for_both(|store| async move {
        let (up, gate) = (upstream(), Gate::new());
        let own = reply("posted").max_age(60).header("content-location", "/own");
        let gated = own.clone().gate(&gate);
        up.on("/own", move |request| match request.method.as_str() {
            "POST" => gated.clone(),
            "PUT" => reply("put"),
            _ => own.clone(),
        });
        let weir = store.apply(weir(READS).to(up.url())).start().await;
        let late = async {
            gate.reached(1).await;
            weir.send(request("PUT", "/own")).await;
            gate.open();
        };
        let (answer, ()) = tokio::join!(weir.send(request("POST", "/own").body("x")), late);
        assert_eq!((answer.text(), answer.cache_status()), ("posted", "weir; fwd=method"));
        assert!(!weir.get("/own").await.is_hit());
    })
    .await;
}

/// Fields by which some services take another host or path are in no key of the GET's.
#[tokio::test]
async fn an_answer_to_a_steered_post_is_not_stored() {
    let up = upstream();
    let own = |path: &'static str| move |_: &Recorded| reply("new").max_age(60).header("content-location", path);
    up.on("/p/a", own("/p/a"));
    let routes = format!("{READS}\n[[route]]\nname = \"post\"\npath = \"/p/{{*rest}}\"\nmethods = [\"POST\"]\n");
    let weir = weir(&routes).to(up.url()).start().await;
    for field in ["x-host", "x-original-url", "x-rewrite-url", "x-http-method-override", "if-match"] {
        let answer = weir.send(request("POST", "/p/a").body("x").header(field, "evil")).await;
        assert_eq!(answer.cache_status(), "weir; fwd=bypass", "{field}");
        assert!(!weir.get("/p/a").await.is_hit(), "{field}");
        weir.invalidate(r#"{"urls": ["/p/a"]}"#).await;
    }
    let answer = weir.send(request("POST", "/p/a").body("x").header("x-forwarded-host", "evil")).await;
    assert_eq!(answer.cache_status(), "weir; fwd=bypass; stored", "that one is written anew");
}

const THROUGH: &str = r#"
[[route]]
name = "items"
path = "/items/{*id}"
cache.ttl = "10m"
cache.write_through = true

[[route]]
name = "rest"
path = "/{*rest}"
cache.ttl = "10m"
"#;

#[tokio::test]
async fn what_a_put_is_answered_with_is_stored_where_a_route_says_so() {
    for_both(|store| async move {
        let up = upstream();
        up.on("*", |request| match request.method.as_str() {
            "PUT" => reply(format!("put {:?}", request.body)),
            _ => reply("got"),
        });
        up.on("/items/made", |_| reply("made").status(201).header("location", "/items/elsewhere"));
        up.on("/items/empty", |_| reply("").status(204));
        up.on("/items/bare", |_| reply("").status(201));
        up.on("/items/nothing", |_| reply("").status(201).then(""));
        up.on("/items/other", |_| reply("other").header("content-location", "/items/another"));
        up.on("/items/private", |_| reply("private").header("cache-control", "private"));
        up.on("/items/failed", |_| reply("failed").status(409));
        let weir = store.apply(weir(THROUGH).to(up.url())).start().await;
        for (path, body) in [("/items/7", "put b\"new\""), ("/items/made", "made")] {
            weir.get(path).await;
            let before = weir.metric(STORED).await;
            let answer = weir.send(request("PUT", path).body("new")).await;
            assert!(answer.is_stored(), "{path}: {}", answer.cache_status());
            weir.metric_reaches(STORED, before + 1.0).await;
            let got = weir.get(path).await;
            assert_eq!(
                (got.status, got.is_hit(), got.text(), got.header("location")),
                (200, true, body, None),
                "{path}"
            );
        }
        for path in ["/items/empty", "/items/bare", "/items/other", "/items/private", "/items/failed", "/elsewhere"] {
            let answer = weir.send(request("PUT", path).body("new")).await;
            assert!(!answer.is_stored(), "{path}: {}", answer.cache_status());
            assert!(!weir.get(path).await.is_hit(), "{path}");
        }
        // That there is nothing in it is known with its end.
        weir.send(request("PUT", "/items/nothing").body("new")).await;
        assert!(!weir.get("/items/nothing").await.is_hit());
        for (field, value) in [
            ("authorization", "Bearer a"),
            ("content-range", "bytes 0-2/9"),
            ("cookie", "a=b"),
            ("prefer", "return=minimal"),
        ] {
            let answer = weir.send(request("PUT", "/items/7").header(field, value).body("new")).await;
            assert!(!answer.is_stored(), "{field}: {}", answer.cache_status());
            assert!(!weir.get("/items/7").await.is_hit(), "{field}");
        }
        assert!(!weir.send(request("POST", "/items/7").body("new")).await.is_stored());
    })
    .await;
}

/// An older fill does not replace it, and it does not replace what a later write made.
#[tokio::test]
async fn a_write_through_keeps_its_place_in_the_sequence() {
    for_both(|store| async move {
        let (up, old, late) = (upstream(), Gate::new(), Gate::new());
        let (slow_get, slow_put) = (reply("old").gate(&old), reply("late").gate(&late));
        up.on("/items/7", move |request| match (request.method.as_str(), &request.body[..]) {
            ("PUT", b"late") => slow_put.clone(),
            ("PUT", _) => reply("new"),
            _ => slow_get.clone(),
        });
        let weir = store.apply(weir(THROUGH).to(up.url())).start().await;
        let reading = async { weir.get("/items/7").await };
        let writing = async {
            old.reached(1).await;
            let stored = weir.metric(STORED).await;
            assert!(weir.send(request("PUT", "/items/7").body("x")).await.is_stored());
            weir.metric_reaches(STORED, stored + 1.0).await;
            old.open();
        };
        assert_eq!(tokio::join!(reading, writing).0.text(), "old", "it was asked for before");
        for _ in 0..3 {
            let got = weir.get("/items/7").await;
            assert_eq!((got.is_hit(), got.text()), (true, "new"));
        }
        let first = async { weir.send(request("PUT", "/items/7").body("late")).await };
        let second = async {
            late.reached(1).await;
            assert!(weir.send(request("PUT", "/items/7").body("x")).await.is_stored());
            late.open();
        };
        assert!(!tokio::join!(first, second).0.is_stored(), "the service may have taken the other one later");
        assert_ne!(weir.get("/items/7").await.text(), "late");
    })
    .await;
}
