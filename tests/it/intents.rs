//! A write that a pod forwards and does not live to see the end of.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{Gate, Redis, Upstream, Weir, redis, reply, request, upstream, weir, within_async};

const ROUTES: &str = r#"
[[route]]
name = "items"
path = "/items/{id}"
cache.ttl = "10m"
cache.tags = ["item:{id}"]

[[route]]
name = "write"
path = "/write/{id}"
invalidates = { tags = ["item:{id}"] }
"#;

/// `upstream.response_timeout`.
const ANSWERED: Duration = Duration::from_millis(1500);

/// `cache.max_staleness`.
const BOUND: Duration = Duration::from_secs(2);

/// A service that takes a write at once, and answers it when `gate` opens.
fn service(gate: &Gate, status: u16) -> Upstream {
    let (up, version) = (upstream(), Arc::new(AtomicUsize::new(1)));
    let written = Arc::clone(&version);
    up.on("/items/7", move |_| reply(format!("v{}", version.load(Ordering::SeqCst))));
    let gate = gate.clone();
    up.on("/write/7", move |_| {
        written.fetch_add(usize::from(status < 400), Ordering::SeqCst);
        reply("done").status(status).gate(&gate)
    });
    up
}

async fn fleet(up: &Upstream, redis: &Redis) -> Vec<Weir> {
    let setup = weir(ROUTES).to(up.url()).redis(redis).set("cache.max_staleness", "2s");
    let weirs = setup.set("upstream.response_timeout", "1500ms").fleet(2).await;
    for weir in &weirs {
        within_async(BOUND, "warm", async || weir.get("/items/7").await.is_hit()).await;
        assert_eq!(weir.get("/items/7").await.text(), "v1");
    }
    weirs
}

fn noted(redis: &Redis) -> String {
    redis.cli(&["ZCARD", "it:intents:{it:invalidate:in}"]).trim().to_owned()
}

#[tokio::test]
async fn a_write_whose_weir_is_killed_before_its_answer_is_invalidated() {
    let (gate, redis) = (Gate::new(), redis());
    let up = service(&gate, 200);
    let mut weirs = fleet(&up, &redis).await;
    let proxy = weirs[0].proxy;
    let writing = tokio::spawn(async move { request("PUT", "/write/7").body("new").try_send(proxy).await });
    gate.reached(1).await;
    assert_eq!(noted(&redis), "1");
    weirs[0].kill();
    let killed = Instant::now();
    assert!(writing.await.expect("no panic").is_err());
    within_async(ANSWERED + BOUND, "invalidated", async || weirs[1].get("/items/7").await.text() == "v2").await;
    eprintln!("invalidated {:?} after the end of the one that forwarded it", killed.elapsed());
    assert_eq!(noted(&redis), "0");
    assert_eq!(redis.cli(&["HLEN", "it:intended:{it:invalidate:in}"]).trim(), "0");
    gate.open();
}

#[tokio::test]
async fn a_write_that_ends_leaves_no_intent_and_one_that_is_refused_invalidates_nothing() {
    for (status, version) in [(200, "v2"), (409, "v1")] {
        let (gate, redis) = (Gate::new(), redis());
        let up = service(&gate, status);
        let weirs = fleet(&up, &redis).await;
        let fetches = up.count("/items/7");
        let proxy = weirs[0].proxy;
        let writing = tokio::spawn(async move { request("PUT", "/write/7").body("new").send(proxy).await });
        gate.reached(1).await;
        assert_eq!(noted(&redis), "1");
        gate.open();
        assert_eq!(writing.await.expect("no panic").status, status);
        within_async(BOUND, "no intent is left", async || noted(&redis) == "0").await;
        // Nor does anything come of it later.
        let later = redis.cli(&["XLEN", "it:log:{it:invalidate:in}"]).trim().to_owned();
        assert_eq!(later, if status == 200 { "1" } else { "0" });
        for weir in &weirs {
            within_async(BOUND, "what it made", async || weir.get("/items/7").await.text() == version).await;
        }
        assert!(up.count("/items/7") <= fetches + usize::from(status == 200));
    }
}

#[tokio::test]
async fn an_intent_lasts_for_as_long_as_its_write() {
    let (gate, redis) = (Gate::new(), redis());
    let up = service(&gate, 200);
    let weirs = fleet(&up, &redis).await;
    let mut writing = crate::harness::Connection::open(weirs[0].proxy).await;
    writing.write(b"PUT /write/7 HTTP/1.1\r\nHost: service.test\r\nContent-Length: 200000\r\n\r\n").await;
    let began = Instant::now();
    while began.elapsed() < 2 * ANSWERED {
        writing.write(&[b'x'; 1000]).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(noted(&redis), "1");
    assert_eq!(weirs[1].get("/items/7").await.text(), "v1", "nothing was written yet");
    assert!(weirs[1].get("/items/7").await.is_hit());
}

#[tokio::test]
async fn without_redis_a_write_is_forwarded_all_the_same() {
    let (gate, redis) = (Gate::new(), redis());
    let up = service(&gate, 200);
    let weirs = fleet(&up, &redis).await;
    redis.freeze();
    gate.open();
    for _ in 0..3 {
        assert_eq!(weirs[0].send(request("PUT", "/write/7").body("new")).await.status, 200);
    }
    redis.thaw();
    let last = "v4";
    for weir in &weirs {
        within_async(ANSWERED + BOUND, "invalidated", async || weir.get("/items/7").await.text() == last).await;
    }
}
