//! What may be stored, for whom, under which key and for how long.

use std::collections::BTreeSet;

use crate::caching::stored;
use crate::harness::{Store, Weir, for_both, get, join_all, redis, reply, request, upstream, weir};

/// A lifetime for all that says nothing itself.
const TTL: &str = r#"
[[route]]
name = "all"
path = "/{*path}"
cache.ttl = "100s"
"#;

/// The rest of a lifetime, as `Cache-Status` says.
fn ttl(status: &str) -> i64 {
    let ttl = status.split(';').find_map(|part| part.trim().strip_prefix("ttl="));
    ttl.and_then(|ttl| ttl.parse().ok()).unwrap_or_else(|| panic!("no ttl in {status}"))
}

async fn never_stored(weir: &Weir, what: &str, target: &str) {
    for _ in 0..2 {
        let answer = weir.get(target).await;
        assert!(!answer.is_hit() && !answer.is_stored(), "{what}: {answer:?}");
    }
}

#[tokio::test]
async fn what_must_not_be_shared_is_never_stored() {
    let up = upstream();
    let weir = weir(TTL).to(up.url()).start().await;
    let rows = [
        ("no-store", reply("").header("cache-control", "no-store")),
        ("NO-STORE", reply("").header("cache-control", "Max-Age=60, NO-STORE")),
        ("private", reply("").header("cache-control", "private, max-age=60")),
        ("max-age=0", reply("").header("cache-control", "max-age=0")),
        ("s-maxage=0", reply("").header("cache-control", "max-age=60, s-maxage=0")),
        ("expired", reply("").header("expires", "0")),
        ("a cookie", reply("").max_age(60).header("set-cookie", "a=1")),
        ("vary: *", reply("").max_age(60).header("vary", "*")),
        ("500", reply("").status(500)),
        ("no-store elsewhere", reply("").header("cache-control", "max-age=60").header("cache-control", "no-store")),
    ];
    for (i, (what, reply)) in rows.into_iter().enumerate() {
        let path = format!("/{i}");
        up.route(&path, reply);
        never_stored(&weir, what, &path).await;
        assert_eq!(up.count(&path), 2, "{what}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        up.route("/m", reply(""));
        for _ in 0..2 {
            assert!(!weir.send(request(method, "/m")).await.is_stored());
        }
    }
    up.route("/m", reply("fresh"));
    assert_eq!(weir.get("/m").await.text(), "fresh", "no other method's answer is a GET's");
}

#[tokio::test]
async fn a_route_without_cache_stores_nothing() {
    let up = upstream();
    up.route("/a", reply("").max_age(60));
    let weir = weir("[[route]]\nname = 'all'\npath = '/{*path}'").to(up.url()).start().await;
    never_stored(&weir, "no cache key", "/a").await;
    assert_eq!(weir.metric(r#"weir_requests_total{outcome="pass"}"#).await, 2.0);
}

#[tokio::test]
async fn a_configured_lifetime_fills_silence_only() {
    let up = upstream();
    let weir = weir(TTL).to(up.url()).set("cache.memory", "8MiB").start().await;
    up.route("/silent", reply("")).route("/said", reply("").max_age(30));
    up.route("/shared", reply("").header("cache-control", "max-age=5, s-maxage=40"));
    up.route("/created", reply("").status(201))
        .route("/gone", reply("").status(410))
        .route("/301", reply("").status(301));
    for (path, range) in [("/silent", 85..=100), ("/said", 25..=30), ("/shared", 35..=40), ("/301", 85..=100)] {
        stored(&weir, path).await;
        let hit = weir.get(path).await;
        assert!(hit.is_hit() && range.contains(&ttl(hit.cache_status())), "{path}: {hit:?}");
    }
    never_stored(&weir, "201", "/created").await;
}

#[tokio::test]
async fn configured_lifetimes_are_spread_and_the_upstreams_are_not() {
    let up = upstream();
    up.route("*", reply(""));
    let jittered = weir(&format!("{TTL}cache.jitter = '20%'")).to(up.url()).start().await;
    let mut seen = BTreeSet::new();
    for i in 0..40 {
        let path = format!("/{i}");
        stored(&jittered, &path).await;
        seen.insert(ttl(jittered.get(&path).await.cache_status()));
    }
    assert!(seen.iter().all(|ttl| (75..=100).contains(ttl)), "{seen:?}");
    assert!(seen.len() > 5, "not spread: {seen:?}");
    up.route("*", reply("").max_age(100));
    for i in 100..120 {
        let path = format!("/{i}");
        stored(&jittered, &path).await;
        let left = ttl(jittered.get(&path).await.cache_status());
        assert!((95..=100).contains(&left), "the upstream's own lifetime is kept: {left}");
    }
}

#[tokio::test]
async fn a_status_may_have_its_own_lifetime() {
    let up = upstream();
    up.route("/missing", reply("none").status(404)).route("/bad", reply("").status(400));
    let weir = weir(&format!("{TTL}cache.status_ttl = {{ 404 = '5s' }}")).to(up.url()).start().await;
    stored(&weir, "/missing").await;
    let hit = weir.get("/missing").await;
    assert!(hit.status == 404 && hit.is_hit() && ttl(hit.cache_status()) <= 5, "{hit:?}");
    never_stored(&weir, "400", "/bad").await;
}

#[tokio::test]
async fn the_upstreams_lifetimes_can_be_ignored_but_not_its_secrets() {
    let up = upstream();
    up.route("/short", reply("").header("cache-control", "max-age=0"));
    up.route("/private", reply("").header("cache-control", "private"));
    let weir = weir(&format!("{TTL}cache.upstream_ttl = 'ignore'")).to(up.url()).start().await;
    stored(&weir, "/short").await;
    assert!(weir.get("/short").await.is_hit());
    never_stored(&weir, "private", "/private").await;
}

#[tokio::test]
async fn ignored_parameters_neither_count_nor_go_out() {
    let up = upstream();
    up.on("/q", |request| reply(request.target().to_owned()));
    let ignoring =
        weir(&format!("{TTL}cache.query = {{ ignore = ['utm_*', 'ref'], sort = true }}")).to(up.url()).start().await;
    assert_eq!(stored(&ignoring, "/q?utm_source=x&b=2&a=1&ref=y").await.text(), "/q?a=1&b=2");
    for same in ["/q?a=1&b=2", "/q?b=2&a=1&utm_medium=z", "/q?%75tm_x=1&a=1&b=2"] {
        assert!(ignoring.get(same).await.is_hit(), "{same}");
    }
    assert!(!ignoring.get("/q?a=1&b=3").await.is_hit());
    let only = weir(&format!("{TTL}cache.query = {{ only = ['id'] }}")).to(up.url()).start().await;
    assert_eq!(stored(&only, "/q?x=1&id=7").await.text(), "/q?id=7");
    assert!(only.get("/q?id=7&y=2").await.is_hit());
}

#[tokio::test]
async fn keys_never_meet() {
    for_both(|store| async move {
        let up = upstream();
        up.on("*", |request| {
            let part = |name| request.header(name).unwrap_or("-").to_owned();
            reply(format!("{} {} {} {}", part("host"), request.target(), part("x-a"), part("x-b")))
        });
        let weir = store.apply(weir(&format!("{TTL}cache.key_headers = ['x-a', 'x-b']")).to(up.url())).start().await;
        let requests = [
            get("/a").header("host", "one.test"),
            get("/a").header("host", "two.test"),
            get("/a").header("host", "one.test:8080"),
            get("/A").header("host", "one.test"),
            get("/a?").header("host", "one.test"),
            get("/a?x").header("host", "one.test"),
            get("/a").header("host", "one.test").header("x-a", "1"),
            get("/a").header("host", "one.test").header("x-b", "1"),
            get("/a").header("host", "one.test").header("x-a", "1, x-b: 1"),
            get("/a").header("host", "one.test").header("x-a", ""),
        ];
        let mut answers = Vec::new();
        for request in &requests {
            let first = weir.send(request.clone()).await;
            answers.push(first.text().to_owned());
        }
        for (request, expected) in requests.iter().zip(&answers) {
            assert_eq!(weir.send(request.clone()).await.text(), expected);
        }
        let different: BTreeSet<_> = answers.iter().collect();
        assert!(different.len() >= 8, "{answers:?}");
    })
    .await;
}

#[tokio::test]
async fn a_clients_reload_is_no_way_past_the_cache() {
    let up = upstream();
    up.route("/a", reply("body"));
    let ignoring = weir(TTL).to(up.url()).start().await;
    stored(&ignoring, "/a").await;
    for directive in ["no-cache", "no-store", "max-age=0"] {
        let reload = get("/a").header("cache-control", directive).header("pragma", "no-cache");
        assert!(ignoring.send(reload).await.is_hit(), "{directive}");
    }
    assert_eq!(up.count("/a"), 1);
    let honouring = weir(&format!("{TTL}cache.client_directives = 'honor'")).to(up.url()).start().await;
    stored(&honouring, "/a").await;
    assert!(!honouring.send(get("/a").header("cache-control", "no-cache")).await.is_hit());
    let only = honouring.send(get("/none").header("cache-control", "only-if-cached")).await;
    assert_eq!(only.status, 504, "{only:?}");
}

#[tokio::test]
async fn fields_that_are_not_keyed_cannot_poison() {
    let up = upstream();
    up.on("/p", |request| {
        let heard = ["x-forwarded-host", "x-original-url", "x-rewrite-url", "forwarded", "x-http-method-override"];
        let heard: Vec<_> = heard.iter().filter_map(|name| request.header(name)).collect();
        reply(heard.join(" "))
    });
    let weir = weir(TTL).to(up.url()).start().await;
    let poison = get("/p")
        .header("x-forwarded-host", "evil.example")
        .header("x-original-url", "/evil")
        .header("x-rewrite-url", "/evil")
        .header("forwarded", "host=evil.example");
    weir.send(poison).await;
    for _ in 0..2 {
        let answer = weir.get("/p").await;
        assert!(!answer.text().contains("evil"), "{answer:?}");
    }
    let overriding = get("/p").header("x-http-method-override", "DELETE");
    assert!(!weir.send(overriding).await.is_stored(), "an overriding field is past the cache");
    let with_body = get("/body").body("x");
    assert!(!weir.send(with_body).await.is_stored(), "a GET with a body is past the cache");
}

#[tokio::test]
async fn fifty_users_on_one_url_are_never_mixed() {
    for_both(|store| async move {
        let up = upstream();
        up.on("/me", |request| {
            let who = ["cookie", "authorization", "x-api-key"].into_iter().find_map(|name| request.header(name));
            reply(who.unwrap_or("nobody").to_owned())
        });
        let weir = store.apply(weir(TTL).to(up.url())).start().await;
        assert_eq!(stored(&weir, "/me").await.text(), "nobody");
        let field = |i: usize| ["cookie", "authorization", "x-api-key"][i % 3];
        for _ in 0..4 {
            let users = (0..50).map(|i| weir.send(get("/me").header(field(i), &format!("user={i}"))));
            for (i, answer) in join_all(users).await.into_iter().enumerate() {
                assert_eq!(answer.text(), format!("user={i}"), "{}: {answer:?}", field(i));
            }
            assert_eq!(weir.get("/me").await.text(), "nobody");
        }
    })
    .await;
}

#[tokio::test]
async fn credentials_may_be_keyed_or_declared_harmless() {
    let up = upstream();
    up.on("/me", |request| reply(request.header("x-api-key").unwrap_or("nobody").to_owned()));
    let keyed = weir(&format!("{TTL}cache.key_headers = ['x-api-key']")).to(up.url()).start().await;
    for (user, hit) in [("a", false), ("b", false), ("a", true), ("b", true)] {
        let answer = keyed.send(get("/me").header("x-api-key", user)).await;
        assert_eq!((answer.text(), answer.is_hit()), (user, hit), "{answer:?}");
        keyed.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, if user == "a" { 1.0 } else { 2.0 }).await;
    }
    let shared = weir(&format!("{TTL}cache.credentials = 'share'")).to(up.url()).start().await;
    up.route("/all", reply("the same"));
    shared.send(get("/all").header("cookie", "theme=dark")).await;
    shared.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, 1.0).await;
    assert!(shared.send(get("/all").header("cookie", "theme=light")).await.is_hit());
}

#[tokio::test]
async fn an_answer_to_authorization_is_stored_only_as_the_rfc_allows() {
    let up = upstream();
    up.route("/plain", reply("").max_age(60));
    up.route("/public", reply("").header("cache-control", "public, max-age=60"));
    up.route("/s-maxage", reply("").header("cache-control", "s-maxage=60"));
    let config = "[[route]]\nname = 'all'\npath = '/{*path}'\ncache.enabled = true";
    let weir = weir(config).to(up.url()).start().await;
    for (path, expected) in [("/plain", false), ("/public", true), ("/s-maxage", true)] {
        let asked = || get(path).header("authorization", "Bearer x");
        let first = weir.send(asked()).await;
        assert_eq!(first.is_stored(), expected, "{path}: {first:?}");
    }
}

#[tokio::test]
async fn a_new_generation_leaves_every_older_entry_behind() {
    let (up, redis) = (upstream(), crate::harness::redis());
    up.sequence("/a", vec![reply("old"), reply("new")]);
    let one = weir(TTL).to(up.url()).redis(&redis).set("cache.generation", "v1").start().await;
    assert_eq!(stored(&one, "/a").await.text(), "old");
    let two = weir(TTL).to(up.url()).redis(&redis).set("cache.generation", "v2").start().await;
    assert_eq!(two.get("/a").await.text(), "new");
    assert_eq!(one.get("/a").await.text(), "old");
}

/// A field with endless values takes the room of 64 variants, in memory and in Redis, and pushes out none that is asked for.
#[tokio::test]
async fn endless_variants_leave_room_for_those_that_are_used() {
    for_both(|store| async move {
        let up = upstream();
        up.on("/v", |request| {
            reply(request.header("x-kind").unwrap_or_default().to_owned()).max_age(600).header("vary", "x-kind")
        });
        let weir = store.apply(weir(TTL).to(up.url())).start().await;
        let kind = |kind: &str| weir.send(get("/v").header("x-kind", kind));
        assert_eq!(kind("used").await.text(), "used");
        let mut fetched = 1;
        for number in 0..150 {
            let answer = kind(&number.to_string()).await;
            assert_eq!((answer.text(), answer.is_hit()), (&*number.to_string(), false));
            fetched += 1;
            weir.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, f64::from(fetched)).await;
            if number % 10 == 0 && number > 0 && matches!(store, Store::Memory) {
                assert!(kind("used").await.is_hit(), "{number}");
            }
        }
        assert!(weir.metric("weir_cache_entries").await <= 65.0);
        if let Store::Redis(redis) = &store {
            let stored = redis.cli(&["KEYS", "it:e:*"]).lines().count();
            assert!(stored <= 65, "{stored}");
        }
        assert_eq!(kind("149").await.text(), "149");
    })
    .await;
}

/// RFC 9211 section 2.7, by option: the name under which Redis has it.
#[tokio::test]
async fn the_key_is_named_where_that_is_wanted() {
    let (up, redis) = (upstream(), redis());
    up.on("/a", |_| reply("a").header("cache-status", "other; fwd=miss"));
    let weir = weir(&format!("{TTL}cache.status_key = true\n")).to(up.url()).redis(&redis).start().await;
    let first = weir.get("/a").await;
    let statuses = first.headers("cache-status");
    let name = statuses[1].strip_prefix("weir; fwd=uri-miss; stored; key=\"").and_then(|rest| rest.strip_suffix('"'));
    assert_eq!((statuses[0], name.map(str::len)), ("other; fwd=miss", Some(32)));
    weir.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, 1.0).await;
    let key = format!("it:e:{{{}}}", name.unwrap_or_default());
    assert_eq!(redis.cli(&["EXISTS", &key]), "1");
    let hit = weir.get("/a").await;
    let said = hit.headers("cache-status")[1];
    assert!(said.starts_with("weir; hit; ttl=") && said.ends_with(statuses[1].rsplit_once("; ").unwrap_or_default().1));
}
