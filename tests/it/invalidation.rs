//! G1: what was invalidated is served no more, whichever door it came in by, whatever it named, on every Weir.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{
    Answer, Connection, Gate, Redis, Upstream, Weir, eventually, for_both, get, optimised, redis, reply, request,
    scale, upstream, weir,
};

const ROUTES: &str = r#"
[[route]]
name = "items"
path = "/items/{id}"
cache.ttl = "10m"
cache.tags = ["item:{id}"]
purge = true

[[route]]
name = "by-tag"
path = "/write/tag/{id}"
invalidates = { tags = ["item:{id}"] }

[[route]]
name = "by-url"
path = "/write/url/{id}"
invalidates = { urls = ["/items/{id}"] }

[[route]]
name = "by-prefix"
path = "/write/prefix/{id}"
invalidates = { prefixes = ["/items"] }

[[route]]
name = "by-route"
path = "/write/route/{id}"
invalidates = { routes = ["items"] }
"#;

/// Within which the other Weir must have heard of it.
const SOON: Duration = Duration::from_secs(3);

/// A service whose items have versions.
struct Versioned {
    up: Upstream,
    version: Arc<AtomicUsize>,
}

impl Versioned {
    fn new() -> Self {
        let (up, version) = (upstream(), Arc::new(AtomicUsize::new(0)));
        let read = Arc::clone(&version);
        up.on("*", move |request| {
            let body = format!("{} v{}", request.uri.path(), read.load(Ordering::SeqCst));
            reply(body).header("surrogate-key", "answer-tag")
        });
        Self { up, version }
    }

    fn change(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    fn body(&self, path: &str) -> String {
        format!("{path} v{}", self.version.load(Ordering::SeqCst))
    }
}

async fn warm(weirs: &[Weir], path: &str) {
    for weir in weirs {
        crate::harness::within_async(SOON, "warm everywhere", async || weir.get(path).await.is_hit()).await;
    }
}

/// Each Weir serves the present body, and stays with it.
async fn all_serve(weirs: &[Weir], path: &str, body: &str, what: &str) {
    for weir in weirs {
        crate::harness::within_async(SOON, what, async || weir.get(path).await.text() == body).await;
        for _ in 0..3 {
            assert_eq!(weir.get(path).await.text(), body, "{what}: back to an older answer");
        }
    }
}

/// The selectors of a JSON order for one item, with their metric's label.
fn orders(id: &str) -> [(&'static str, String); 5] {
    [
        ("url", format!(r#""urls":["/items/{id}"]"#)),
        ("tag", format!(r#""tags":["item:{id}"]"#)),
        ("prefix", r#""prefixes":["/items"]"#.to_owned()),
        ("route", r#""routes":["items"]"#.to_owned()),
        ("all", r#""all":true"#.to_owned()),
    ]
}

async fn fleet(service: &Versioned, redis: &Redis) -> Vec<Weir> {
    weir(ROUTES).to(service.up.url()).redis(redis).fleet(2).await
}

#[tokio::test]
async fn the_admin_door_takes_every_selector() {
    for_both(|store| async move {
        let service = Versioned::new();
        let weir = store.apply(weir(ROUTES).to(service.up.url())).start().await;
        let weirs = [weir];
        for soft in [false, true] {
            for (kind, order) in orders("7") {
                let what = format!("{kind}, soft {soft}");
                warm(&weirs, "/items/7").await;
                service.change();
                let answer = weirs[0].invalidate(&format!("{{{order},\"soft\":{soft}}}")).await;
                assert!(answer.text().contains("\"seq\""), "{answer:?}");
                let next = weirs[0].get("/items/7").await;
                assert_eq!(next.text(), service.body("/items/7"), "{what}: acknowledged, and yet {next:?}");
                weirs[0]
                    .metric_reaches(&format!("weir_invalidations_total{{selector=\"{kind}\",door=\"admin\"}}"), 1.0)
                    .await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_admin_door_reaches_both_weirs() {
    let (service, redis) = (Versioned::new(), redis());
    let weirs = fleet(&service, &redis).await;
    for soft in [false, true] {
        for (kind, order) in orders("7") {
            warm(&weirs, "/items/7").await;
            service.change();
            weirs[1].invalidate(&format!("{{{order},\"soft\":{soft}}}")).await;
            assert_eq!(
                weirs[1].get("/items/7").await.text(),
                service.body("/items/7"),
                "{kind}: at once where it came in"
            );
            all_serve(&weirs, "/items/7", &service.body("/items/7"), kind).await;
        }
    }
}

#[tokio::test]
async fn the_publish_door_takes_every_selector() {
    let (service, redis) = (Versioned::new(), redis());
    let weirs = fleet(&service, &redis).await;
    for soft in [false, true] {
        for (kind, order) in orders("7") {
            warm(&weirs, "/items/7").await;
            service.change();
            let heard = redis.cli(&["PUBLISH", "it:invalidate", &format!("{{{order},\"soft\":{soft}}}")]);
            assert!(heard.parse::<usize>().unwrap() >= 2, "both Weirs listen: {heard}");
            all_serve(&weirs, "/items/7", &service.body("/items/7"), kind).await;
        }
    }
    // A second, equal message after a refill counts as much as the first.
    for _ in 0..3 {
        warm(&weirs, "/items/8").await;
        service.change();
        // As plainly as it can be said.
        redis.cli(&["PUBLISH", "it:invalidate", "item:8"]);
        all_serve(&weirs, "/items/8", &service.body("/items/8"), "the same message again").await;
    }
}

#[tokio::test]
async fn the_stream_door_takes_every_selector() {
    let (service, redis) = (Versioned::new(), redis());
    // It is drained with the proof of currency, every quarter of this.
    let setup = weir(ROUTES).to(service.up.url()).redis(&redis).set("cache.max_staleness", "2s");
    let weirs = setup.fleet(2).await;
    let fields =
        [["urls", "/items/7"], ["tags", "item:7"], ["prefixes", "/items"], ["routes", "items"], ["all", "true"]];
    for soft in [false, true] {
        for [name, value] in fields {
            warm(&weirs, "/items/7").await;
            service.change();
            let mut command = vec!["XADD", "it:invalidate:in", "*", name, value];
            if soft {
                command.extend(["soft", "true"]);
            }
            redis.cli(&command);
            all_serve(&weirs, "/items/7", &service.body("/items/7"), &format!("{name}, soft {soft}")).await;
        }
    }
}

#[tokio::test]
async fn a_write_invalidates_what_its_route_names() {
    let (service, redis) = (Versioned::new(), redis());
    let weirs = fleet(&service, &redis).await;
    for kind in ["tag", "url", "prefix", "route"] {
        warm(&weirs, "/items/7").await;
        service.change();
        let write = weirs[0].send(request("PUT", &format!("/write/{kind}/7")).body("x")).await;
        assert_eq!(write.status, 200);
        assert_eq!(
            weirs[0].get("/items/7").await.text(),
            service.body("/items/7"),
            "{kind}: before the client's answer"
        );
        all_serve(&weirs, "/items/7", &service.body("/items/7"), kind).await;
    }
    assert!(weirs[0].metric(r#"weir_invalidations_total{door="write"}"#).await >= 4.0);
}

#[tokio::test]
async fn an_unsafe_method_invalidates_its_own_url() {
    for_both(|store| async move {
        let service = Versioned::new();
        let weir = store.apply(weir(ROUTES).to(service.up.url())).start().await;
        let weirs = [weir];
        for method in ["PUT", "POST", "PATCH", "DELETE"] {
            warm(&weirs, "/items/7").await;
            service.change();
            assert_eq!(weirs[0].send(request(method, "/items/7")).await.status, 200);
            assert_eq!(weirs[0].get("/items/7").await.text(), service.body("/items/7"), "{method}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_write_invalidates_what_its_answer_names_of_the_same_origin() {
    for_both(|store| async move {
        let service = Versioned::new();
        let weirs = [store.apply(weir(ROUTES).to(service.up.url())).start().await];
        for (field, reference, is_gone) in [
            ("location", "/items/9", true),
            ("content-location", "../items/./9#part", true),
            ("location", "http://other.example/items/9", false),
            ("location", "/items/a%2Fb", false),
            ("location", "/items//9", false),
            ("location", "../../../items/9", false),
        ] {
            warm(&weirs, "/items/9").await;
            service.up.on("/items/7", move |request| match request.method.as_str() {
                "POST" => reply("made").status(201).header(field, reference),
                _ => reply("seven").max_age(60),
            });
            warm(&weirs, "/items/7").await;
            let before = weirs[0].get("/items/9").await.text().to_owned();
            service.change();
            assert_eq!(weirs[0].send(request("POST", "/items/7")).await.status, 201);
            let expected = if is_gone { service.body("/items/9") } else { before };
            assert_eq!(weirs[0].get("/items/9").await.text(), expected, "{field}: {reference}");
            assert!(!weirs[0].get("/items/7").await.is_hit(), "its own URL, whatever the answer names: {reference}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_write_invalidates_the_groups_that_its_answer_names() {
    for_both(|store| async move {
        let up = upstream();
        let version = Arc::new(AtomicUsize::new(0));
        let read = Arc::clone(&version);
        up.on("/items/8", move |_| {
            reply(read.load(Ordering::SeqCst).to_string()).max_age(60).header("cache-groups", "\"shelf\", \"sale\"")
        });
        up.route("/items/7", reply("sold").header("cache-group-invalidation", "\"other\", \"sale\";x=1"));
        let weirs = [store.apply(weir(ROUTES).to(up.url())).start().await];
        warm(&weirs, "/items/8").await;
        version.store(1, Ordering::SeqCst);
        assert_eq!(weirs[0].get("/items/8").await.text(), "0");
        assert_eq!(weirs[0].send(request("POST", "/items/7")).await.status, 200);
        assert_eq!(weirs[0].get("/items/8").await.text(), "1");
    })
    .await;
}

#[tokio::test]
async fn a_failed_write_leaves_the_cache_and_an_unknown_one_does_not() {
    let service = Versioned::new();
    let weir = weir(ROUTES).to(service.up.url()).set("upstream.response_timeout", "300ms").start().await;
    let (weirs, gate) = ([weir], Gate::new());
    warm(&weirs, "/items/7").await;
    service.up.route("/write/tag/7", reply("no").status(409));
    assert_eq!(weirs[0].send(request("PUT", "/write/tag/7")).await.status, 409);
    assert!(weirs[0].get("/items/7").await.is_hit(), "a refused write changed nothing");
    service.change();
    service.up.route("/write/tag/7", reply("late").gate(&gate));
    assert_eq!(weirs[0].send(request("PUT", "/write/tag/7")).await.status, 504);
    assert_eq!(weirs[0].get("/items/7").await.text(), service.body("/items/7"), "it may have been done");
    gate.open();
}

#[tokio::test]
async fn purge_invalidates_where_a_route_allows_it() {
    let (service, redis) = (Versioned::new(), redis());
    let weirs = fleet(&service, &redis).await;
    warm(&weirs, "/items/7").await;
    service.change();
    let purged = weirs[0].send(request("PURGE", "/items/7")).await;
    assert!((200..300).contains(&purged.status), "{purged:?}");
    assert_eq!(weirs[0].get("/items/7").await.text(), service.body("/items/7"));
    all_serve(&weirs, "/items/7", &service.body("/items/7"), "purge").await;
    assert_eq!(weirs[0].metric(r#"weir_requests_total{outcome="purged"}"#).await, 1.0);
    assert!(service.up.requests("/items/7").iter().all(|seen| seen.method != "PURGE"), "it ends here");
    let elsewhere = weirs[0].send(request("PURGE", "/write/tag/7")).await;
    assert!(
        weirs[0].metric(r#"weir_requests_total{outcome="purged"}"#).await <= 1.0,
        "not allowed there: {elsewhere:?}"
    );
}

#[tokio::test]
async fn purge_may_be_soft_and_is_for_those_who_are_named() {
    let service = Versioned::new();
    let routes = ROUTES.replace(
        "purge = true",
        "purge = true\npurge_from = ['192.0.2.0/24', '::1']\ncache.stale_while_revalidate = '1h'",
    );
    let setup = weir(&routes).to(service.up.url()).set("server.trusted_proxies", vec!["127.0.0.1".to_owned()]);
    let weirs = [setup.start().await];
    let purge = |method, client| request(method, "/items/7").header("x-forwarded-for", client);
    warm(&weirs, "/items/7").await;
    let before = service.body("/items/7");
    service.change();
    for method in ["PURGE", "SOFTPURGE"] {
        let refused = weirs[0].send(purge(method, "198.51.100.7")).await;
        assert_eq!(refused.status, 403, "{refused:?}");
    }
    assert!(weirs[0].get("/items/7").await.is_hit());
    assert_eq!(weirs[0].send(purge("SOFTPURGE", "192.0.2.7")).await.status, 200);
    let stale = weirs[0].get("/items/7").await;
    assert!(stale.is_stale() && stale.text() == before, "{stale:?}");
    all_serve(&weirs, "/items/7", &service.body("/items/7"), "it was refreshed behind that").await;
    service.change();
    assert_eq!(weirs[0].send(purge("PURGE", "192.0.2.7")).await.status, 200);
    assert_eq!(weirs[0].get("/items/7").await.text(), service.body("/items/7"));
}

#[tokio::test]
async fn tags_from_the_answer_count_too() {
    let (service, redis) = (Versioned::new(), redis());
    let weirs = fleet(&service, &redis).await;
    warm(&weirs, "/items/7").await;
    service.change();
    weirs[0].invalidate(r#"{"tags":["answer-tag"]}"#).await;
    all_serve(&weirs, "/items/7", &service.body("/items/7"), "surrogate key").await;
}

#[tokio::test]
async fn only_what_was_named_is_gone() {
    for_both(|store| async move {
        let service = Versioned::new();
        let weir = store.apply(weir(ROUTES).to(service.up.url())).start().await;
        let weirs = [weir];
        warm(&weirs, "/items/1").await;
        warm(&weirs, "/items/2?a=1").await;
        warm(&weirs, "/items/2").await;
        weirs[0]
            .invalidate(r#"{"urls":["/items/2"],"tags":["item:3"],"prefixes":["/item"],"routes":["by-tag"]}"#)
            .await;
        assert!(weirs[0].get("/items/1").await.is_hit(), "another URL");
        assert!(weirs[0].get("/items/2?a=1").await.is_hit(), "another query");
        assert!(!weirs[0].get("/items/2").await.is_hit());
        weirs[0].invalidate(r#"{"urls":["/items/2?*"]}"#).await;
        assert!(!weirs[0].get("/items/2?a=1").await.is_hit(), "any query");
        assert!(weirs[0].get("/items/1").await.is_hit());
    })
    .await;
}

#[tokio::test]
async fn softly_invalidated_is_stale_not_gone() {
    let service = Versioned::new();
    let config =
        ROUTES.replacen("cache.ttl = \"10m\"", "cache.ttl = \"10m\"\ncache.stale_while_revalidate = \"1m\"", 1);
    let weir = weir(&config).to(service.up.url()).start().await;
    let weirs = [weir];
    warm(&weirs, "/items/7").await;
    let old = service.body("/items/7");
    service.change();
    weirs[0].invalidate(r#"{"tags":["item:7"],"soft":true}"#).await;
    let stale = weirs[0].get("/items/7").await;
    assert!(stale.is_stale() && stale.text() == old, "{stale:?}");
    all_serve(&weirs, "/items/7", &service.body("/items/7"), "the refresh behind it").await;
}

#[tokio::test]
async fn a_fill_in_flight_during_an_invalidation_is_never_served_after() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    up.sequence("/items/7", vec![reply("v1").gate(&gate), reply("v2")]);
    let weirs = weir(ROUTES).to(up.url()).redis(&redis).fleet(2).await;
    let proxy = weirs[0].proxy;
    let before = tokio::spawn(async move { get("/items/7").send(proxy).await });
    gate.reached(1).await;
    weirs[0].invalidate(r#"{"tags":["item:7"]}"#).await;
    // Whoever asks from here on must not get what was asked for before, even from the fetch still under way.
    let after = tokio::spawn(async move { get("/items/7").send(proxy).await });
    eventually("a fetch of its own", || up.count("/items/7") >= 2 || after.is_finished()).await;
    gate.open();
    assert_eq!(before.await.unwrap().text(), "v1", "asked before, answered before");
    assert_eq!(after.await.unwrap().text(), "v2", "a joiner keeps its own position");
    for _ in 0..5 {
        for weir in &weirs {
            assert_eq!(weir.get("/items/7").await.text(), "v2");
        }
    }
}

#[tokio::test]
async fn a_restarted_weir_serves_nothing_that_was_invalidated_meanwhile() {
    let (service, redis) = (Versioned::new(), redis());
    let weirs = fleet(&service, &redis).await;
    warm(&weirs, "/items/7").await;
    service.change();
    weirs[0].invalidate(r#"{"tags":["item:7"]}"#).await;
    let new = weir(ROUTES).to(service.up.url()).redis(&redis).launch().await;
    assert_eq!(new.get("/items/7").await.text(), service.body("/items/7"), "even before it is ready");
}

#[tokio::test]
async fn the_other_weir_knows_within_milliseconds() {
    let rounds = scale("WEIR_ROUNDS", 100);
    let (service, redis) = (Versioned::new(), redis());
    let weirs = fleet(&service, &redis).await;
    let mut other = Connection::open(weirs[1].proxy).await;
    let ask = get("/items/7");
    let mut times = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let warm: Answer = other.send(&ask).await;
        assert_eq!(warm.text(), service.body("/items/7"));
        service.change();
        let body = service.body("/items/7");
        weirs[0].invalidate(r#"{"urls":["/items/7"]}"#).await;
        let acknowledged = Instant::now();
        while other.send(&ask).await.text() != body {
            assert!(acknowledged.elapsed() < SOON, "round {round}: still the old answer");
        }
        times.push(acknowledged.elapsed());
    }
    times.sort_unstable();
    let p99 = times[(rounds - 1) * 99 / 100];
    eprintln!("{rounds} rounds: p50 {:?}, p99 {p99:?}, max {:?}", times[rounds / 2], times[rounds - 1]);
    let bound = if optimised() { Duration::from_millis(50) } else { Duration::from_millis(500) };
    assert!(p99 < bound, "p99 {p99:?}");
}

#[tokio::test]
async fn orders_that_cannot_be_read_are_refused_and_survived() {
    let (service, redis) = (Versioned::new(), redis());
    let weirs = fleet(&service, &redis).await;
    warm(&weirs, "/items/7").await;
    for bad in
        ["", "{", "[]", "{}", r#"{"tagz":["a"]}"#, r#"{"tags":"a"}"#, r#"{"tags":[]}"#, r#"{"urls":["no slash"]}"#]
    {
        let answer = weirs[0].post("/invalidate", bad).await;
        assert!((400..500).contains(&answer.status), "{bad}: {answer:?}");
        redis.cli(&["PUBLISH", "it:invalidate", bad]);
    }
    redis.cli(&["XADD", "it:invalidate:in", "*", "nonsense", "1"]);
    redis.cli(&["XADD", "it:invalidate:in", "*", "tags", "item:8"]);
    assert!(weirs[0].get("/items/7").await.is_hit(), "nothing was invalidated by accident");
    service.change();
    redis.cli(&["PUBLISH", "it:invalidate", r#"{"tags":["item:7"]}"#]);
    all_serve(&weirs, "/items/7", &service.body("/items/7"), "the doors are still open").await;
}

#[tokio::test]
async fn the_command_line_invalidates() {
    let service = Versioned::new();
    let weir = weir(ROUTES).to(service.up.url()).start().await;
    let weirs = [weir];
    let admin = format!("http://{}", weirs[0].admin);
    for selector in [["--tag", "item:7"], ["--url", "/items/7"], ["--prefix", "/items"], ["--route", "items"]] {
        warm(&weirs, "/items/7").await;
        service.change();
        let [name, value] = selector.map(str::to_owned);
        let args = ["invalidate".to_owned(), "--admin".to_owned(), admin.clone(), name, value];
        let run = move || crate::harness::Ended::of(&args.each_ref().map(String::as_str));
        let ended = tokio::task::spawn_blocking(run).await.unwrap();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(weirs[0].get("/items/7").await.text(), service.body("/items/7"), "{selector:?}");
    }
    assert_eq!(crate::harness::Ended::of(&["invalidate", "--admin", &admin, "--url", "no slash"]).code, Some(1));
}
