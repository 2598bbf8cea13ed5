//! A new Weir begins with what the fleet reads most.

use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{Connection, Redis, Setup, Upstream, flaky, get, redis, reply, upstream, weir, within_async};

const ROUTES: &str = r#"
[[route]]
name = "items"
path = "/items/{id}"
cache.ttl = "10m"
"#;

const HOT: usize = 8;

fn service() -> Upstream {
    let up = upstream();
    up.on("*", |request| reply(request.target().to_owned()).header("vary", "x-kind"));
    up
}

fn setup(up: &Upstream) -> Setup {
    weir(ROUTES).to(up.url()).set("cache.preload", 64).set("cache.preload_wait", "5s")
}

/// Reads the first keys much, and others once; the fleet knows them when this ends.
async fn heat(up: &Upstream, redis: &Redis) {
    let weir = setup(up).redis(redis).start().await;
    for cold in 100..140 {
        assert_eq!(weir.get(&format!("/items/{cold}")).await.status, 200);
    }
    let mut connection = Connection::open(weir.proxy).await;
    let known = || redis.cli(&["ZCARD", "it:hot:{it:hot}"]).trim().parse::<usize>().expect("a number");
    // Each hot key with its record.
    within_async(Duration::from_secs(30), "the hottest are known", async || {
        for i in 0..2000 {
            let path = format!("/items/{}", i % HOT);
            assert_eq!(connection.send(&get(&path).header("x-kind", "a")).await.status, 200);
        }
        known() >= 2 * HOT
    })
    .await;
}

#[tokio::test]
async fn what_the_fleet_reads_most_is_in_memory_before_a_new_weir_is_ready() {
    let (up, redis) = (service(), redis());
    heat(&up, &redis).await;
    let fetched = up.total();
    let new = setup(&up).redis(&redis).start().await;
    new.ready().await;
    assert!(new.metric("weir_cache_entries").await >= 2.0 * HOT as f64);
    for key in 0..HOT {
        let answer = get(&format!("/items/{key}")).header("x-kind", "a").send(new.proxy).await;
        assert!(answer.is_hit(), "{answer:?}");
    }
    let from_memory = r#"weir_cache_lookups_total{tier="memory",result="hit"}"#;
    assert_eq!((new.metric(from_memory).await, up.total()), (HOT as f64, fetched));
    // What was invalidated meanwhile is not served for having been preloaded.
    redis.cli(&["XADD", "it:invalidate:in", "*", "all", "1"]);
    within_async(Duration::from_secs(5), "invalidated", async || {
        !get("/items/0").header("x-kind", "a").send(new.proxy).await.is_hit()
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_does_not_answer_delays_a_new_weir_no_longer_than_it_may() {
    let (up, redis) = (service(), redis());
    let relay = flaky(redis.address());
    relay.swallow();
    let began = Instant::now();
    let new = setup(&up).redis_at(relay.address()).set("cache.preload_wait", "1s").launch().await;
    new.ready().await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(new.get("/items/1").await.status, 200);
}
