//! What one client sends never decides what another gets.

use std::time::Duration;

use crate::harness::{Connection, Gate, Recorded, eventually, for_both, get, redis, reply, request, upstream, weir};

const ROUTES: &str = r#"
[[route]]
name = "item"
path = "/item/{id}"
methods = ["GET", "HEAD"]
cache.enabled = true
cache.key_headers = ["x-tenant"]
cache.status_ttl = { 404 = "1s" }
cache.tags = ["item:{id}"]

[[route]]
name = "edit"
path = "/item/{id}"
methods = ["PUT"]
invalidates = { tags = ["item:{id}", "all-items"] }

[[route]]
name = "bare"
path = "/bare/{*rest}"
cache.enabled = true
response.remove = ["cache-status"]
response.set = { age = "7" }
"#;

#[tokio::test]
async fn a_head_refreshes_the_whole() {
    for_both(|store| async move {
        let up = upstream();
        up.on("/item/1", |request| {
            let body = if request.method == "HEAD" { "" } else { "whole" };
            reply(body).header("cache-control", "max-age=1, stale-while-revalidate=60")
        });
        let weir = store.apply(weir(ROUTES).to(up.url())).start().await;
        weir.get("/item/1").await;
        weir.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, 1.0).await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(weir.send(request("HEAD", "/item/1")).await.status, 200);
        weir.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, 2.0).await;
        assert!(up.requests("/item/1").iter().all(|request| request.method == "GET"));
        assert_eq!(weir.get("/item/1").await.text(), "whole");
    })
    .await;
}

#[tokio::test]
async fn a_field_that_is_named_away_chooses_nothing() {
    for_both(|store| async move {
        let up = upstream();
        up.on("*", |request| {
            let field = |name| request.header(name).unwrap_or("none").to_owned();
            reply(format!("{} {}", field("x-tenant"), field("x-tone"))).max_age(60).header("vary", "x-tone")
        });
        let weir = store.apply(weir(ROUTES).to(up.url())).start().await;
        let asked = || get("/item/1").header("x-tenant", "a").header("x-tone", "loud");
        let poisoned = weir.send(asked().header("connection", "x-tenant, X-Tone")).await;
        assert_eq!(poisoned.text(), "none none");
        assert_eq!(weir.send(asked()).await.text(), "a loud");
        assert_eq!(weir.get("/item/1").await.text(), "none none");
    })
    .await;
}

#[tokio::test]
async fn a_failure_brought_about_by_a_cookie_is_its_owners() {
    let (up, gate) = (upstream(), Gate::new());
    let held = gate.clone();
    up.on("/item/1", move |request| match request.header("cookie") {
        Some(cookie) => reply(format!("no such session: {cookie}")).status(500).gate(&held),
        None => reply("fine").max_age(60),
    });
    let weir = weir(ROUTES).to(up.url()).start().await;
    let (owner, other) = tokio::join!(weir.send(get("/item/1").header("cookie", "session=1")), async {
        eventually("the first fetch is on its way", || up.count("/item/1") == 1).await;
        let mut other = Connection::open(weir.proxy).await;
        let asked = get("/item/1");
        let (answer, ()) = tokio::join!(other.send(&asked), async {
            weir.metric_reaches("weir_requests_in_flight", 2.0).await;
            gate.open();
        });
        answer
    });
    assert_eq!((owner.status, owner.text()), (500, "no such session: session=1"));
    assert_eq!((other.status, other.text()), (200, "fine"));
}

#[tokio::test]
async fn a_refusal_of_one_is_no_verdict_on_the_next() {
    for_both(|store| async move {
        for status in [403, 429] {
            let up = upstream();
            up.on("*", move |request| match request.header("user-agent") {
                Some("bot") => reply("no").status(status),
                _ => reply("yes").max_age(60),
            });
            let weir = store.apply(weir(ROUTES).to(up.url())).start().await;
            let path = format!("/item/{status}");
            assert_eq!(weir.send(get(&path).header("user-agent", "bot")).await.status, status);
            let next = weir.get(&path).await;
            assert!(next.status == 200 && next.is_stored(), "{next:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_begins_to_vary_is_stored_in_place_of_one_that_did_not() {
    for_both(|store| async move {
        let up = upstream();
        up.route("/item/1", reply("absent").status(404));
        let weir = store.apply(weir(ROUTES).to(up.url())).start().await;
        assert_eq!(weir.get("/item/1").await.status, 404);
        weir.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, 1.0).await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        up.route("/item/1", reply("here").max_age(60).header("vary", "accept-encoding"));
        assert_eq!(weir.get("/item/1").await.text(), "here");
        weir.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, 2.0).await;
        let hit = weir.get("/item/1").await;
        assert!(hit.is_hit() && hit.text() == "here", "{hit:?}");
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_varies_by_address_is_not_stored() {
    let up = upstream();
    up.on("*", |_| reply("yours").max_age(60).header("vary", "X-Forwarded-For"));
    let weir = weir(ROUTES).to(up.url()).start().await;
    for asked in 1..=2 {
        assert_eq!(weir.get("/item/1").await.text(), "yours");
        assert_eq!(up.count("/item/1"), asked);
    }
}

#[tokio::test]
async fn a_write_whose_tag_can_be_none_invalidates_the_rest() {
    for_both(|store| async move {
        let up = upstream();
        up.on("*", |request| match request.method.as_str() {
            "PUT" => reply("written"),
            _ => reply("read").max_age(60).header("cache-tag", "all-items"),
        });
        let weir = store.apply(weir(ROUTES).to(up.url())).start().await;
        let long = format!("/item/{}", "x".repeat(300));
        for asked in 1..=2 {
            assert_eq!(weir.get(&long).await.text(), "read");
            assert_eq!(up.count(&long), asked, "what no tag can name is not stored");
        }
        weir.get("/item/1").await;
        weir.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, 1.0).await;
        assert!(weir.get("/item/1").await.is_hit());
        assert_eq!(weir.send(request("PUT", &long).body("x")).await.text(), "written");
        assert!(!weir.get("/item/1").await.is_hit(), "the tag that could be read was invalidated");
    })
    .await;
}

#[tokio::test]
async fn a_write_without_a_host_invalidates_its_url() {
    let up = upstream();
    up.on("*", |_| reply("x").max_age(60));
    let weir = weir(ROUTES).to(up.url()).start().await;
    weir.get("/bare/1").await;
    weir.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, 1.0).await;
    let mut old = Connection::open(weir.proxy).await;
    old.write(b"PUT /bare/1 HTTP/1.0\r\ncontent-length: 1\r\n\r\nx").await;
    eventually("the write arrives", || up.requests("/bare/1").iter().any(|request| request.method == "PUT")).await;
    weir.metric_reaches(r#"weir_invalidations_total{door="write"}"#, 1.0).await;
    weir.get("/bare/1").await;
    assert_eq!(up.count("/bare/1"), 3, "the old answer was used");
}

#[tokio::test]
async fn an_answers_fields_are_edited_on_hits_too() {
    let up = upstream();
    up.on("*", |_| reply("x").max_age(60));
    let weir = weir(ROUTES).to(up.url()).start().await;
    for _ in 0..2 {
        let answer = weir.get("/bare/1").await;
        assert_eq!((answer.header("cache-status"), answer.headers("age")), (None, vec!["7"]), "{answer:?}");
        weir.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, 1.0).await;
    }
    assert_eq!(up.count("/bare/1"), 1);
}

/// What the fetch says is Weir's to say: an answer made for one client's capabilities would be everybody's.
#[tokio::test]
async fn a_clients_capabilities_shape_no_fetch() {
    let up = upstream();
    up.on("*", |_| reply("plain").max_age(60));
    let weir = weir(ROUTES).to(up.url()).start().await;
    weir.send(get("/item/1").header("surrogate-capability", "x=\"ESI/1.0\"")).await;
    assert_eq!(up.last("/item/1").header("surrogate-capability"), Some("weir=\"Surrogate/1.0\""));
}

#[tokio::test]
async fn connection_cannot_name_away_what_forbids_storing() {
    for field in ["weir-cache-control", "cdn-cache-control", "surrogate-control"] {
        let up = upstream();
        up.on("*", move |_| reply("own").max_age(60).header("connection", field).header(field, "no-store"));
        let weir = weir(ROUTES).to(up.url()).start().await;
        weir.get("/item/1").await;
        weir.get("/item/1").await;
        assert_eq!(up.count("/item/1"), 2, "{field}");
    }
}

const STORED: &str = r#"weir_cache_fills_total{result="stored"}"#;

const HONOURS: &str = r#"
[[route]]
name = "everything"
path = "/{*rest}"
cache.enabled = true
cache.client_directives = "honor"
"#;

/// Who follows finds what the leader found, but may have asked for something else.
#[tokio::test]
async fn a_follower_gets_what_its_own_directives_allow() {
    let (up, redis) = (upstream(), redis());
    up.sequence("/a", vec![reply("old").max_age(60), reply("new").max_age(60)]);
    let first = weir(HONOURS).to(up.url()).redis(&redis).start().await;
    first.get("/a").await;
    first.metric_reaches(STORED, 1.0).await;
    // On the other pod all of them look into Redis at once.
    for _ in 0..10 {
        let second = weir(HONOURS).to(up.url()).redis(&redis).start().await;
        second.ready().await;
        let strict = || second.send(get("/a").header("cache-control", "no-cache"));
        let (lead, follower, other) = tokio::join!(second.get("/a"), strict(), strict());
        assert!(["old", "new"].contains(&lead.text()));
        for answer in [follower, other] {
            assert!(!answer.is_hit(), "{}", answer.cache_status());
        }
    }
}

/// What excuses a failure for one who accepts it is no answer for the others.
#[tokio::test]
async fn a_follower_is_excused_only_by_its_own_leave() {
    let (up, gate) = (upstream(), Gate::new());
    up.route("/a", reply("old").header("cache-control", "max-age=0, stale-while-revalidate=60"));
    let weir = weir(HONOURS).to(up.url()).start().await;
    weir.get("/a").await;
    weir.metric_reaches(STORED, 1.0).await;
    up.route("/a", reply("down").status(503).gate(&gate));
    let strict = || weir.send(get("/a").header("cache-control", "no-cache"));
    assert_eq!(weir.get("/a").await.text(), "old", "and a refresh has begun behind it");
    let opened = async {
        gate.reached(1).await;
        gate.open();
    };
    let (one, other, ()) = tokio::join!(strict(), strict(), opened);
    for answer in [one, other] {
        assert_eq!((answer.status, answer.text()), (503, "down"), "{}", answer.cache_status());
    }
}

/// A 304 that confirms nothing that may be used asks for the whole, once.
#[tokio::test]
async fn a_304_that_confirms_nothing_is_followed_by_one_whole_fetch() {
    let up = upstream();
    let conditional = |request: &Recorded| request.header("if-none-match").is_some();
    up.on("/credentials", move |request| match conditional(request) {
        true => reply("").status(304).header("etag", "\"e\""),
        false => reply("v").header("cache-control", "max-age=0").header("etag", "\"e\""),
    });
    up.on("/other", move |request| match conditional(request) {
        true => reply("").status(304).header("etag", "\"other\""),
        false => reply("v").header("cache-control", "max-age=0").header("etag", "W/\"e\""),
    });
    let weir = weir(HONOURS).to(up.url()).start().await;
    for (path, second) in [("/credentials", get("/credentials").header("cookie", "a=1")), ("/other", get("/other"))] {
        weir.get(path).await;
        weir.metric_reaches(STORED, if path == "/other" { 2.0 } else { 1.0 }).await;
        let answer = weir.send(second).await;
        assert_eq!((answer.status, answer.text()), (200, "v"), "{path}");
        assert_eq!(up.count(path), 3, "{path}: the first, the question, and the whole");
    }
}

/// RFC 9111 section 5.2.1.7, whatever kept the answer out of reach.
#[tokio::test]
async fn only_if_cached_never_reaches_the_service() {
    let (up, redis) = (upstream(), redis());
    up.on("/private", |_| reply("v").header("cache-control", "private"));
    up.on("/silent", |_| reply("v"));
    up.on("/stored", |_| reply("v").max_age(60));
    let weir = weir(HONOURS).to(up.url()).redis(&redis).start().await;
    let only = |path: &str| get(path).header("cache-control", "only-if-cached");
    weir.get("/private").await;
    weir.send(get("/silent").header("cookie", "a=1")).await;
    for request in [only("/private"), only("/silent"), only("/silent").header("cookie", "a=1"), only("/none")] {
        let answer = weir.send(request).await;
        assert_eq!((answer.status, answer.cache_status()), (504, "weir; detail=refused"));
    }
    assert_eq!((up.count("/private"), up.count("/silent"), up.count("/none")), (1, 1, 0));
    weir.get("/stored").await;
    weir.metric_reaches(STORED, 1.0).await;
    let other = crate::harness::weir(HONOURS).to(up.url()).redis(&redis).start().await;
    other.ready().await;
    assert!(other.send(only("/stored")).await.is_hit(), "what another pod stored is cached");
}

/// RFC 9111 section 4: what is reused says how old it is, be that nothing.
#[tokio::test]
async fn what_excuses_a_failure_says_its_age() {
    let up = upstream();
    let stored = reply("old").header("cache-control", "max-age=60, stale-if-error=60");
    up.sequence("/a", vec![stored, reply("down").status(503)]);
    let weir = weir(HONOURS).to(up.url()).start().await;
    weir.get("/a").await;
    weir.metric_reaches(STORED, 1.0).await;
    let answer = weir.send(get("/a").header("cache-control", "min-fresh=61")).await;
    assert_eq!((answer.text(), answer.cache_status()), ("old", "weir; fwd=stale; detail=stale-if-error"));
    assert_eq!(answer.header("age"), Some("0"));
}
