//! Identities for whom a limit is another, as operators say while Weirs run.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::harness::{Answer, Redis, Setup, Upstream, Weir, get, redis, reply, upstream, weir, within_async};

/// How long a change takes to hold everywhere, and what a busy machine adds.
const HOLDS_WITHIN: Duration = Duration::from_millis(3000 + 1000);

const HASH: &str = "it:tiers:api";

const CONFIG: &str = r#"
    [[limit]]
    name = "api"
    key = ["header:x-api-key"]
    rate = "2/h"
    burst = 2
    tiers = "api"

    [limit.tier.gold]
    rate = "6/h"
    burst = 6

    [[route]]
    name = "all"
    path = "/{*path}"
    limits = ["api"]
"#;

fn service() -> Upstream {
    let up = upstream();
    up.on("*", |request| reply(request.target().to_owned()).header("cache-control", "no-store"));
    up
}

fn tiered(up: &Upstream, redis: &Redis) -> Setup {
    weir(CONFIG).to(up.url()).redis(redis).set("redis.deadline", "500ms")
}

async fn by(weir: &Weir, client: &str) -> Answer {
    weir.send(get("/").header("x-api-key", client)).await
}

/// Comes until the limit is that of `quota`; how long that took.
async fn told(weir: &Weir, client: &str, quota: &str) -> Duration {
    let is_told = async || by(weir, client).await.header("ratelimit-policy").is_some_and(|field| field.contains(quota));
    within_async(HOLDS_WITHIN, quota, is_told).await
}

async fn admitted(weir: &Weir, client: &str, times: usize) -> usize {
    let mut admitted = 0;
    for _ in 0..times {
        admitted += usize::from(by(weir, client).await.status == 200);
    }
    admitted
}

#[tokio::test]
async fn a_tier_holds_in_every_pod_within_seconds_and_ends_so() {
    let (up, redis) = (service(), redis());
    redis.cli(&["HSET", HASH, "alice", "gold"]);
    let weirs = tiered(&up, &redis).fleet(2).await;
    for weir in &weirs {
        weir.metric_reaches(r#"weir_limit_tiers_reads_total{tiers="api",result="ok"}"#, 1.0).await;
    }
    assert_eq!(admitted(&weirs[0], "alice", 4).await, 4, "as it stood there when they started");
    assert_eq!(admitted(&weirs[1], "alice", 4).await, 2, "and one bucket for both");
    assert_eq!(admitted(&weirs[0], "bob", 4).await, 2);

    let began = Instant::now();
    redis.cli(&["HSET", HASH, "bob", "gold", "carol", "gold"]);
    redis.cli(&["HDEL", HASH, "alice"]);
    for weir in &weirs {
        told(weir, "bob", "q=6").await;
        told(weir, "alice", "q=2").await;
    }
    let took = began.elapsed();
    eprintln!("it holds in both after {took:?}");
    assert!(took < HOLDS_WITHIN, "{took:?}");
    assert_eq!(admitted(&weirs[1], "bob", 3).await, 0, "a new tier is no new burst");
    assert_eq!(admitted(&weirs[1], "carol", 8).await, 6);
}

#[tokio::test]
async fn operators_are_told_of_the_tier_that_somebody_has() {
    let (up, redis) = (service(), redis());
    redis.cli(&["HSET", HASH, "carol", "gold"]);
    let weir = tiered(&up, &redis).start().await;
    told(&weir, "carol", "q=6").await;
    let json = async |path: &str| -> Value { serde_json::from_str(weir.admin(path).await.text()).expect("JSON") };
    let explained = async |client: &str| {
        let query = format!("url=http://h/&header=x-api-key:{client}");
        let text = weir.admin(&format!("/explain?{query}")).await.text().to_owned();
        (json(&format!("/explain?format=json&{query}")).await["limits"][0].clone(), text)
    };
    let (gold, text) = explained("carol").await;
    assert_eq!((&gold["quotas"][0], &gold["tiers"]["tier"]), (&"6/h, bursts of 6".into(), &"gold".into()), "{gold}");
    assert!(text.contains("6/h, bursts of 6") && text.contains(" gold (by what this pod read"), "{text}");
    let (none, text) = explained("bob").await;
    assert_eq!((&none["quotas"][0], &none["tiers"]["tier"]), (&"2/h, bursts of 2".into(), &Value::Null), "{none}");
    assert!(text.contains("none: the limit's own rate holds") && text.contains("gold: 6/h"), "{text}");

    let state = json("/limits/api?header:x-api-key=carol").await;
    assert_eq!((&state["tier"], &state["rates"][0]["rate"]), (&"gold".into(), &"6/h".into()), "{state}");
    let state = json("/limits/api?header:x-api-key=bob").await;
    assert_eq!((&state["tier"], &state["rates"][0]["rate"]), (&Value::Null, &"2/h".into()), "{state}");
    assert_eq!(json("/limits").await["limits"][0]["tiers"]["rates"]["gold"]["rate"], "6/h");
}

#[tokio::test]
async fn a_tier_that_no_limit_has_is_told_of_and_the_limit_itself_holds() {
    let (up, redis) = (service(), redis());
    redis.cli(&["HSET", HASH, "alice", "platinum"]);
    let weir = tiered(&up, &redis).start().await;
    weir.metric_reaches(r#"weir_limit_tiers_unknown{tiers="api"}"#, 1.0).await;
    assert_eq!(admitted(&weir, "alice", 4).await, 2);
    let line = weir.output().into_iter().find(|line| line.contains("platinum")).expect("a warning");
    assert!(line.contains("WARN") && line.contains(HASH), "{line}");
    assert!(!line.contains("alice"), "who it is, is nobody's business there: {line}");
    redis.cli(&["HSET", HASH, "alice", "gold"]);
    told(&weir, "alice", "q=6").await;
}

#[tokio::test]
async fn while_redis_is_away_tiers_stay_as_they_were() {
    let (up, redis) = (service(), redis());
    redis.cli(&["HSET", HASH, "alice", "gold"]);
    let weir = tiered(&up, &redis).start().await;
    weir.metric_reaches(r#"weir_limit_tiers_identities{tiers="api"}"#, 1.0).await;
    redis.kill();
    let unread = r#"weir_limit_tiers_reads_total{tiers="api",result="unavailable"}"#;
    weir.metric_reaches(unread, 1.0).await;
    assert_eq!(admitted(&weir, "alice", 9).await, 6);
    assert_eq!(admitted(&weir, "bob", 9).await, 2);
    // Without its data, the operator's hash is gone as well.
    redis.start();
    told(&weir, "alice", "q=2").await;
}
