//! G5: Redis failing in any way costs no request an error, and hardly any time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{
    Load, Redis, Report, Setup, Upstream, Weir, eventually, flaky, get, optimised, redis, redis_not_started,
    redis_with, reply, request, scale, upstream, weir, within_async,
};

const ROUTES: &str = r#"
[[route]]
name = "all"
path = "/{*path}"
cache.ttl = "60s"
limits = [{ name = "wide", key = ["ip"], rate = "100000/s", burst = 100000 }]
"#;

/// Keys that the load is spread over.
const KEYS: usize = 1000;

/// From the load's beginning to the fault.
const FAULT: Duration = Duration::from_millis(1500);

/// From the load's beginning to the repair.
const REPAIR: Duration = Duration::from_millis(3500);

/// The whole load.
const LENGTH: Duration = Duration::from_millis(5500);

/// Longest from repair to use.
const BACK: Duration = Duration::from_secs(2);

fn rate() -> u32 {
    u32::try_from(scale("WEIR_RPS", if optimised() { 1000 } else { 300 })).expect("a rate")
}

fn service() -> Upstream {
    let up = upstream();
    up.on("*", |request| reply(request.target().to_owned()).takes(Duration::from_millis(1)));
    up
}

fn setup(up: &Upstream) -> Setup {
    // Nothing in memory lives for long, so that the load needs Redis all the time.
    weir(ROUTES).to(up.url()).set("redis.startup_wait", "500ms").set("cache.memory", "64KiB")
}

/// The breaker is closed, and what one Weir stores another finds.
async fn back_in_use(weirs: &[Weir], mark: &str) -> Duration {
    let mut turn = 0;
    within_async(BACK + Duration::from_secs(3), "Redis is used again", async || {
        turn += 1;
        let path = format!("/back/{}/{turn}", mark.replace(' ', "-"));
        weirs[0].get(&path).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        weirs[1].get(&path).await.is_hit() && weirs[0].metric("weir_redis_breaker_open").await == 0.0
    })
    .await
}

/// Runs the load while `fault` and then `repair` happen; nobody may notice.
async fn nobody_notices(what: &str, redis: Arc<Redis>, fault: fn(&Redis), repair: fn(&Redis)) {
    let up = service();
    let weirs = setup(&up).redis(&redis).fleet(2).await;
    let targets: Vec<SocketAddr> = weirs.iter().map(|weir| weir.proxy).collect();
    let load = Load::new(rate(), LENGTH, |i| get(&format!("/{}", i * 7919 % KEYS))).to(&targets).start();
    let began = Instant::now();
    tokio::time::sleep_until(began + FAULT).await;
    fault(&redis);
    tokio::time::sleep_until(began + REPAIR).await;
    repair(&redis);
    let back = back_in_use(&weirs, what).await;
    let report = load.finish().await;
    judge(what, &report, back);
}

fn judge(what: &str, report: &Report, back: Duration) {
    let before = report.quantile_between(0.99, Duration::from_millis(500), FAULT);
    let during = report.quantile_between(0.99, FAULT, REPAIR);
    eprintln!("{what}: {report}; p99 before {before:?}, during {during:?}; back after {back:?}");
    let errors = report.errors();
    assert!(errors.is_empty(), "{what}: {} errors, first {:?}", errors.len(), &errors[..errors.len().min(3)]);
    assert_eq!(report.count(200), report.sent(), "{what}: {report}");
    let added = if optimised() { Duration::from_millis(25) } else { Duration::from_millis(400) };
    assert!(during < before + added, "{what}: p99 {during:?} instead of {before:?}");
    assert!(back < BACK + if optimised() { Duration::ZERO } else { BACK }, "{what}: back after {back:?}");
}

#[tokio::test]
async fn killed_under_load() {
    nobody_notices("killed", Arc::new(redis()), Redis::kill, Redis::start).await;
}

#[tokio::test]
async fn frozen_under_load() {
    nobody_notices("frozen", Arc::new(redis()), Redis::freeze, Redis::thaw).await;
}

#[tokio::test]
async fn restarted_empty_under_load() {
    nobody_notices("restarted empty", Arc::new(redis()), Redis::restart_empty, |_| ()).await;
}

#[tokio::test]
async fn down_at_start() {
    let (up, redis) = (service(), redis_not_started());
    let mut weirs = Vec::new();
    for _ in 0..2 {
        let weir = setup(&up).redis(&redis).launch().await;
        let answer = weir.get("/a").await;
        assert_eq!((answer.status, answer.text()), (200, "/a"), "served at once");
        let took = weir.ready().await;
        assert!(took < Duration::from_secs(3), "ready after startup_wait, Redis or not: {took:?}");
        let says = "it is not known in time what was invalidated before the start";
        eventually(says, || weir.output().iter().any(|line| line.contains(says))).await;
        weirs.push(weir);
    }
    redis.start();
    let back = back_in_use(&weirs, "start").await;
    eprintln!("attached after {back:?}");
}

#[tokio::test]
async fn slow_cut_and_swallowed() {
    let (up, redis) = (service(), redis());
    let relay = flaky(redis.address());
    let weirs = setup(&up).redis_at(relay.address()).fleet(2).await;
    let targets: Vec<SocketAddr> = weirs.iter().map(|weir| weir.proxy).collect();
    for (what, fault) in [("slow", 0), ("cut", 1), ("swallowed", 2)] {
        let load =
            Load::new(100, Duration::from_secs(3), |i| get(&format!("/{}", i * 7919 % KEYS))).to(&targets).start();
        let began = Instant::now();
        tokio::time::sleep_until(began + Duration::from_millis(500)).await;
        match fault {
            0 => relay.delay(Duration::from_millis(300)),
            1 => relay.cut(),
            _ => relay.swallow(),
        }
        tokio::time::sleep_until(began + Duration::from_millis(2500)).await;
        // What was held back leaves old connections with a past of their own: they are broken off.
        relay.cut();
        relay.heal();
        let report = load.finish().await;
        eprintln!("{what}: {report}");
        assert!(report.errors().is_empty(), "{what}: {:?}", report.errors().first());
        back_in_use(&weirs, what).await;
    }
}

#[tokio::test]
async fn the_breaker_opens_and_requests_no_longer_wait() {
    let (up, redis) = (service(), redis());
    let weir = setup(&up).redis(&redis).set("redis.deadline", "50ms").start().await;
    assert_eq!(weir.get("/before").await.status, 200);
    redis.freeze();
    within_async(Duration::from_secs(5), "the breaker opens", async || {
        weir.get("/during").await;
        weir.metric("weir_redis_breaker_open").await == 1.0
    })
    .await;
    let mut waited = Vec::new();
    for i in 0..20 {
        let answer = weir.get(&format!("/open/{i}")).await;
        assert_eq!(answer.status, 200);
        waited.push(answer.took);
    }
    waited.sort_unstable();
    eprintln!("with the breaker open: median {:?}", waited[10]);
    assert!(waited[10] < Duration::from_millis(45), "half of them still wait for Redis: {waited:?}");
    redis.thaw();
    within_async(Duration::from_secs(5), "it closes", async || weir.metric("weir_redis_breaker_open").await == 0.0)
        .await;
}

#[tokio::test]
async fn entries_from_before_a_loss_are_not_used_after_it() {
    let (up, redis) = (upstream(), redis());
    up.sequence("/a", vec![reply("old"), reply("new")]);
    let weirs = weir(ROUTES).to(up.url()).redis(&redis).set("cache.max_staleness", "1s").fleet(2).await;
    crate::caching::stored(&weirs[0], "/a").await;
    redis.restart_empty();
    // The fleet learns of the loss with its next proof; from B on nobody may trust what was filled before.
    for weir in &weirs {
        within_async(Duration::from_secs(10), "the new incarnation", async || weir.get("/a").await.text() == "new")
            .await;
    }
    weirs[1].invalidate(r#"{"all":true}"#).await;
    for weir in &weirs {
        assert_eq!(weir.get("/a").await.text(), "new");
    }
}

#[tokio::test]
async fn a_redis_that_is_full_or_read_only_is_survived() {
    let (up, redis) = (service(), redis());
    let weirs = setup(&up).redis(&redis).fleet(2).await;
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    for i in 0..30 {
        assert_eq!(weirs[i % 2].get(&format!("/full/{i}")).await.status, 200);
    }
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    back_in_use(&weirs, "full").await;
    redis.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    for i in 0..30 {
        assert_eq!(weirs[i % 2].get(&format!("/noreplicas/{i}")).await.status, 200);
    }
    redis.cli(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    back_in_use(&weirs, "noreplicas").await;
    redis.cli(&["SCRIPT", "FLUSH"]);
    for i in 0..10 {
        assert_eq!(weirs[i % 2].get(&format!("/noscript/{i}")).await.status, 200);
    }
    back_in_use(&weirs, "noscript").await;
}

#[tokio::test]
async fn writes_do_not_stand_in_line_for_a_frozen_redis() {
    let (up, redis) = (service(), redis());
    let weir = setup(&up).redis(&redis).start().await;
    redis.freeze();
    assert_eq!(weir.send(request("PUT", "/first").body("x")).await.status, 200, "the one that finds out");
    let mut slowest = Duration::ZERO;
    for i in 0..40 {
        let answer = weir.send(request("PUT", &format!("/{i}")).body("x")).await;
        assert_eq!(answer.status, 200);
        slowest = slowest.max(answer.took);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    redis.thaw();
    assert!(slowest < Duration::from_millis(200), "a write waited {slowest:?}");
}

#[tokio::test]
async fn what_is_degraded_is_said_with_what_holds_meanwhile() {
    let (up, redis) = (upstream(), redis());
    let weir = weir(ROUTES).to(up.url()).redis_at(redis.address()).start().await;
    let condition = async || weir.admin("/readyz?verbose").await.text().to_owned();
    let says = async |what: &str| {
        within_async(Duration::from_secs(10), what, async || condition().await.contains(what)).await;
    };
    for part in ["commands", "scripts", "bus", "stream", "topology"] {
        says(&format!("[+] redis {part}\n")).await;
    }
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let mut nth = 0;
    within_async(Duration::from_secs(10), "it is full", async || {
        nth += 1;
        weir.get(&format!("/items/{nth}")).await;
        condition().await.contains("[!] redis scripts: Redis refused: OOM for ")
    })
    .await;
    let all = condition().await;
    assert!(all.starts_with("ok\n") && all.contains("[+] redis commands\n"), "{all}");
    assert!(all.contains("invalidations hold in this pod until Redis takes them"), "{all}");
    assert!(weir.metric(r#"weir_redis_faults_total{kind="oom"}"#).await >= 1.0);
    assert_eq!(weir.metric(r#"weir_redis_degraded{part="scripts"}"#).await, 1.0);
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    within_async(Duration::from_secs(10), "it is well again", async || {
        nth += 1;
        weir.get(&format!("/items/{nth}")).await;
        condition().await.contains("[+] redis scripts\n")
    })
    .await;
    redis.kill();
    within_async(Duration::from_secs(10), "it is away", async || {
        let all = condition().await;
        all.contains(": connection refused: requests do without it") && all.contains("[!] redis bus: ")
    })
    .await;
    let told = weir.output().iter().filter(|line| line.contains("Redis is degraded") && line.contains("OOM")).count();
    assert_eq!(told, 1, "one line for one change");
}

#[tokio::test]
async fn a_server_without_room_for_connections_is_named_as_that() {
    let (up, redis) = (service(), redis_with(&["--maxclients", "1"]));
    let _one = redis.line();
    let weir = weir(ROUTES).to(up.url()).redis(&redis).launch().await;
    for _ in 0..3 {
        assert_eq!(weir.get("/a").await.status, 200);
    }
    weir.metric_reaches(r#"weir_redis_faults_total{kind="maxclients"}"#, 1.0).await;
    within_async(Duration::from_secs(10), "the cause is named", async || {
        let told = weir.admin("/readyz?verbose").await.text().to_owned();
        told.contains("[!] redis commands: ") && told.contains(": MAXCLIENTS: ")
    })
    .await;
    assert_eq!(weir.metric(r#"weir_redis_faults_total{kind="dropped"}"#).await, 0.0);
}
