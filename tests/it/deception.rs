//! Nothing is stored for what a path looks like, and nothing under another path than the service saw; what is one
//! person's stays so; and variants without end cost no memory.

use std::collections::BTreeMap;

use crate::caching::stored;
use crate::harness::{Connection, Gate, eventually, for_both, get, reply, scale, upstream, weir};

/// Stores what the service's own fields allow, and a static part for as long as it likes.
const ROUTES: &str = r#"
[[route]]
name = "all"
path = "/{*path}"
cache.enabled = true

[[route]]
name = "static"
path = "/static/{*path}"
cache.ttl = "100s"
"#;

/// A cached file, or so the path says: the service answers all of these with `/me`.
const LOOK_STATIC: [&str; 16] = [
    "/me/x.css",
    "/me;x.css",
    "/me;.js",
    "/me/.css",
    "/me.css",
    "/me%3fx.css",
    "/me%23x.css",
    "/me%2ecss",
    "/me?x.css",
    "/me?/static/x.css",
    "/me/..;/static/x.css",
    "/me%0a.css",
    "/me%00.css",
    "/me%2fx.css",
    "/static%2f..%2fme",
    "/static/..%2fme",
];

/// The service looks at the path's beginning only, as frameworks with path parameters and suffixes do.
#[tokio::test]
async fn no_path_makes_a_page_of_somebodys_storable() {
    for_both(|store| async move {
        for ambiguous in ["reject", "pass"] {
            let up = upstream();
            up.on("*", |request| reply(request.header("cookie").unwrap_or("nobody").to_owned()));
            let setup = weir(ROUTES).to(up.url()).set("server.ambiguous_paths", ambiguous);
            let weir = store.apply(setup).start().await;
            for path in LOOK_STATIC {
                for user in ["sid=alice", "sid=bob"] {
                    let answer = weir.send(get(path).header("cookie", user)).await;
                    assert!(answer.status == 400 || answer.text() == user, "{path}: {answer:?}");
                    assert!(!answer.is_hit() && !answer.is_stored() && !answer.is_collapsed(), "{path}: {answer:?}");
                }
                let answer = weir.get(path).await;
                assert!(!answer.text().contains("sid="), "{path}: {answer:?}");
                assert!(answer.status == 400 || answer.text() == "nobody", "{path}: {answer:?}");
            }
            // Out of the static part by any door: routed as what it is.
            let escaped = weir.send(get("/static/../me").header("cookie", "sid=alice")).await;
            assert!(escaped.text() == "sid=alice" && !escaped.is_stored(), "{escaped:?}");
            assert_eq!(up.last("/me").target(), "/me");
            assert!(!weir.get("/me").await.text().contains("sid="));
        }
    })
    .await;
}

/// What is keyed is what is forwarded: whatever a hit was stored for, the service saw the same bytes.
#[tokio::test]
async fn a_hit_is_for_the_bytes_that_the_service_saw() {
    let spelt = [
        "/a/b",
        "/a/./b",
        "/a/c/../b",
        "/%61/b",
        "/a/%62",
        "/a/b/",
        "/a/b?",
        "/a/b?x",
        "/a/b?X",
        "/a/b?%78",
        "/a/b?x=1&y=2",
        "/a/b?y=2&x=1",
        "/A/b",
        "/a%2db",
        "/a-b",
        "/a%2Db",
        "/caf%c3%a9",
        "/caf%C3%A9",
        "/a;b",
        "/a%3bb",
        "/a%3Bb",
        "/a+b",
        "/a%20b",
        "/a%2bb",
        "/a/b;v=1",
        "/a/b?a;b",
        "/a,b",
        "/a%2cb",
        "/~a",
        "/%7ea",
        "/a:b",
        "/a@b",
        "/a%40b",
        "/a/..b",
        "/a/b.",
    ];
    for_both(|store| async move {
        let up = upstream();
        up.on("*", |request| reply(request.target().to_owned()).max_age(100));
        let weir = store.apply(weir(ROUTES).to(up.url())).start().await;
        let mut forwarded = BTreeMap::new();
        // In both orders, so that each spelling is once the one that is fetched.
        let there = spelt.iter().map(|path| (*path).to_owned());
        let back = spelt.iter().rev().map(|path| format!("/z{path}"));
        for path in there.chain(back) {
            let fresh = weir.get(&path).await;
            // The body is the target as the service saw it; the first of its spellings was fetched.
            let misses = forwarded.entry(fresh.text().to_owned()).or_insert(0);
            *misses += usize::from(!fresh.is_hit());
            assert_eq!(*misses, 1, "{path}: {fresh:?}");
            weir.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, forwarded.len() as f64).await;
            let again = weir.get(&path).await;
            assert!(again.is_hit() && again.body == fresh.body, "{path}: {again:?}");
        }
        assert_eq!(up.total(), forwarded.len());
        for (one, other) in
            [("/a/b", "/a/b/"), ("/a/b", "/a/b?x"), ("/a;b", "/a%3Bb"), ("/a+b", "/a%2Bb"), ("/a/b", "/A/b")]
        {
            assert!(forwarded.contains_key(one) && forwarded.contains_key(other), "{one} and {other}: {forwarded:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_cookie_is_given_to_nobody_else() {
    for_both(|store| async move {
        let up = upstream();
        let cookie = |request: &crate::harness::Recorded| {
            let id = request.header("x-id").unwrap_or("none").to_owned();
            reply("page").header("set-cookie", &format!("sid={id}")).header("set-cookie", "theme=dark")
        };
        up.on("/public", move |request| cookie(request).header("cache-control", "public, s-maxage=100, immutable"));
        up.on("/targeted", move |request| cookie(request).header("cdn-cache-control", "max-age=100"));
        up.on("/static/ttl", cookie);
        // Confirmed with a cookie: what is stored may not take it on.
        up.on("/confirmed", |request| match request.header("if-none-match") {
            Some(_) => reply("").status(304).header("etag", "\"1\"").header("set-cookie", "sid=late").max_age(100),
            None => reply("page").header("etag", "\"1\"").header("cache-control", "no-cache"),
        });
        let weir = store.apply(weir(ROUTES).to(up.url())).start().await;
        for path in ["/public", "/targeted", "/static/ttl"] {
            for id in ["a", "b", "c"] {
                let answer = weir.send(get(path).header("x-id", id)).await;
                assert_eq!(answer.headers("set-cookie")[0], format!("sid={id}"), "{path}: {answer:?}");
                assert!(!answer.is_hit() && !answer.is_stored());
            }
            assert_eq!(up.count(path), 3);
        }
        stored(&weir, "/confirmed").await;
        for _ in 0..3 {
            let answer = weir.get("/confirmed").await;
            assert!(answer.text() == "page" && !answer.is_hit(), "{answer:?}");
        }
    })
    .await;
}

/// Those who wait for a fetch get what may be shared, and nothing else of it.
#[tokio::test]
async fn who_waits_gets_no_cookie_of_the_leaders() {
    let (up, gate) = (upstream(), Gate::new());
    let held = gate.clone();
    up.on("/login", move |request| {
        let who = request.header("x-id").unwrap_or("?").to_owned();
        reply(who.clone()).max_age(100).header("set-cookie", &format!("sid={who}")).gate(&held)
    });
    let weir = weir(ROUTES).to(up.url()).start().await;
    let mut connections = Vec::new();
    for id in ["a", "b", "c"] {
        let mut connection = Connection::open(weir.proxy).await;
        connection.write(format!("GET /login HTTP/1.1\r\nhost: service.test\r\nx-id: {id}\r\n\r\n").as_bytes()).await;
        eventually("the leader asks", || up.count("/login") >= 1).await;
        connections.push((id, connection));
    }
    weir.metric_reaches("weir_requests_in_flight", 3.0).await;
    gate.open();
    for (id, mut connection) in connections {
        let answer = connection.read(false).await.unwrap();
        assert_eq!((answer.text(), answer.headers("set-cookie")), (id, vec![format!("sid={id}").as_str()]));
    }
    assert_eq!(up.count("/login"), 3);
}

#[tokio::test]
async fn ten_thousand_variants_are_as_many_as_are_kept() {
    let variants = scale("WEIR_ROUNDS", 200) * 10;
    for_both(|store| async move {
        let up = upstream();
        up.on("/v", |request| {
            let body = request.header("x-any").unwrap_or("none").repeat(100);
            reply(body).max_age(600).header("vary", "X-Any")
        });
        up.on("/star", |_| reply("s").max_age(600).header("vary", "accept").header("vary", "*"));
        let weir = store.apply(weir(ROUTES).to(up.url())).start().await;
        for _ in 0..3 {
            assert!(!weir.get("/star").await.is_stored());
        }
        let mut connection = Connection::open(weir.proxy).await;
        let mut resident = 0;
        for n in 0..variants {
            let value = format!("value-{n}");
            let answer = connection.send(&get("/v").header("x-any", &value)).await;
            assert_eq!(answer.text(), value.repeat(100));
            if n == variants / 10 {
                resident = weir.resident();
            }
        }
        let grown = weir.resident().saturating_sub(resident) >> 10;
        assert!(grown < 8 << 10, "{variants} variants took {grown} KiB more than a tenth of them");
        assert!(weir.metric("weir_cache_entries").await <= 68.0, "64 variants, their record, and what is not stored");
        // Who came last is there, and others are still answered.
        let last = format!("value-{}", variants - 1);
        assert!(connection.send(&get("/v").header("x-any", &last)).await.is_hit());
        assert_eq!(connection.send(&get("/v").header("x-any", "new")).await.text(), "new".repeat(100));
    })
    .await;
}
