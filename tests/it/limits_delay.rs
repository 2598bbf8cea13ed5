//! Requests that wait for a limit in place of a denial.

use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{
    Answer, Connection, Request, Upstream, Weir, for_both, get, join_all, redis, reply, upstream, weir, within_async,
};

fn limited(limit: &str) -> String {
    format!("[[route]]\nname = 'all'\npath = '/{{*path}}'\ncache.ttl = '60s'\nlimits = [{limit}]\n")
}

fn service() -> Upstream {
    let up = upstream();
    up.on("*", |request| reply(request.target().to_owned()).header("cache-control", "no-store"));
    up.route("/hot", reply("hot").max_age(60));
    up
}

fn by(client: &str, target: &str) -> Request {
    get(target).header("x-api-key", client)
}

/// Sends it on its own, and says how long the answer took.
fn spawn(weir: &Weir, request: Request) -> tokio::task::JoinHandle<(Answer, Duration)> {
    let (proxy, began) = (weir.proxy, Instant::now());
    tokio::spawn(async move { (request.send(proxy).await, began.elapsed()) })
}

async fn waiting(weir: &Weir, count: f64) {
    within_async(Duration::from_secs(5), "so many wait", async || weir.metric("weir_limit_waiting").await == count)
        .await;
}

#[tokio::test]
async fn a_request_waits_for_its_turn_and_one_that_would_for_too_long_is_denied() {
    for_both(|store| async move {
        let up = service();
        let config = limited("{ name = 'l', key = ['ip'], rate = '2/s', burst = 1, max_delay = '1200ms' }");
        let weir = store.apply(weir(&config).to(up.url())).start().await;
        let began = Instant::now();
        let answers = join_all((0..4).map(|i| weir.get(if i % 2 == 0 { "/a" } else { "/b" }))).await;
        let took = began.elapsed();
        let (admitted, denied): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 200);
        assert_eq!((admitted.len(), denied.len()), (3, 1), "{denied:?}");
        assert!(took >= Duration::from_millis(990), "two waited for half a second each: {took:?}");
        assert_eq!((denied[0].status, denied[0].number("retry-after")), (429, Some(2)), "{:?}", denied[0]);
        assert_eq!(up.total(), 3);
        let decided = |what: &str| format!(r#"weir_limit_decisions_total{{limit="l",decision="{what}"}}"#);
        for (what, count) in [("allowed", 3.0), ("denied", 1.0), ("delayed", 2.0)] {
            assert_eq!(weir.metric(&decided(what)).await, count, "{what}");
        }
        assert_eq!(weir.metric("weir_limit_delay_seconds_count").await, 2.0);
        let delayed = weir.metric("weir_limit_delay_seconds_sum").await;
        assert!((1.4..2.4).contains(&delayed), "{delayed}");
        let upstream = weir.metric("weir_upstream_seconds_sum").await;
        assert!(upstream < 0.4, "waiting is not the upstream's time: {upstream}");
        assert_eq!(weir.metric("weir_limit_waiting").await, 0.0);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_leaves_its_place() {
    for_both(|store| async move {
        let up = service();
        let config =
            limited("{ name = 'l', key = ['ip'], rate = '6/m', burst = 1, max_delay = '10s', max_delayed = 1 }");
        let weir = store.apply(weir(&config).to(up.url())).start().await;
        assert_eq!(weir.get("/").await.status, 200);
        let mut leaves = Connection::open(weir.proxy).await;
        leaves.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        waiting(&weir, 1.0).await;
        assert_eq!(weir.get("/").await.status, 429, "the only place is taken");
        drop(leaves);
        waiting(&weir, 0.0).await;
        assert_eq!(weir.metric(r#"weir_requests_total{outcome="cancelled"}"#).await, 1.0);
        let stays = spawn(&weir, get("/"));
        waiting(&weir, 1.0).await;
        stays.abort();
        assert_eq!(up.total(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_one_client_leaves_places_to_another() {
    let up = service();
    let config = limited(
        "{ name = 'l', key = ['header:x-api-key'], rate = '30/m', burst = 1, max_delay = '10s', max_delayed = 3 }",
    );
    let weir = weir(&config).to(up.url()).start().await;
    let flood: Vec<_> = (0..4).map(|_| spawn(&weir, by("flooder", "/"))).collect();
    waiting(&weir, 3.0).await;
    assert_eq!(weir.send(by("flooder", "/")).await.status, 429);
    assert_eq!(weir.send(by("other", "/")).await.status, 200, "it has a bucket of its own");
    let (answer, took) = spawn(&weir, by("other", "/")).await.unwrap();
    assert_eq!(answer.status, 200);
    assert!(took >= Duration::from_millis(1500), "{took:?}");
    let flooded = join_all(flood).await;
    let statuses: Vec<u16> = flooded.into_iter().map(|answer| answer.unwrap().0.status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 3, "one gave its place up: {statuses:?}");
}

#[tokio::test]
async fn a_miss_that_waits_holds_up_nobody_who_need_not() {
    for_both(|store| async move {
        let up = service();
        let limit =
            "{ name = 'l', key = ['header:x-api-key'], rate = '30/m', burst = 1, on = 'miss', max_delay = '5s' }";
        let weir = store.apply(weir(&limited(limit)).to(up.url())).start().await;
        assert_eq!(weir.send(by("slow", "/x")).await.status, 200);
        let slow = spawn(&weir, by("slow", "/hot"));
        waiting(&weir, 1.0).await;
        let (answer, _) = spawn(&weir, by("quick", "/hot")).await.unwrap();
        assert_eq!((answer.status, answer.text()), (200, "hot"));
        assert!(!slow.is_finished(), "who waits for its own limit still does");
        let (answer, took) = slow.await.unwrap();
        assert_eq!((answer.status, answer.text()), (200, "hot"));
        assert!(took >= Duration::from_millis(1500), "{took:?}");
        assert_eq!(up.count("/hot"), 1);
    })
    .await;
}

#[tokio::test]
async fn one_waits_for_the_origin_and_all_others_for_its_fetch() {
    let (up, redis) = (service(), redis());
    let limit = "{ name = 'l', key = ['route'], rate = '2/s', burst = 1, on = 'origin', max_delay = '900ms' }";
    let weirs = weir(&limited(limit)).to(up.url()).redis(&redis).set("redis.deadline", "500ms").fleet(2).await;
    assert_eq!(weirs[0].get("/x").await.status, 200);
    let all = join_all((0..20).map(|i| weirs[i % 2].get("/hot"))).await;
    for answer in all {
        assert_eq!((answer.status, answer.text()), (200, "hot"), "{answer:?}");
    }
    assert_eq!(up.count("/hot"), 1);
    let delayed =
        join_all(weirs.iter().map(|weir| weir.metric(r#"weir_limit_decisions_total{decision="delayed"}"#))).await;
    assert_eq!(delayed.iter().sum::<f64>(), 1.0, "{delayed:?}");
}

#[tokio::test]
async fn what_is_stale_is_served_rather_than_waited_for() {
    let up = upstream();
    up.route("/a", reply("old").header("cache-control", "max-age=1, stale-if-error=60"));
    up.route("/x", reply("x").header("cache-control", "no-store"));
    let limit = "{ name = 'l', key = ['route'], rate = '1/s', burst = 1, on = 'origin', max_delay = '1s' }";
    let weir = weir(&limited(limit)).to(up.url()).start().await;
    assert_eq!(weir.get("/a").await.status, 200);
    tokio::time::sleep(Duration::from_millis(1150)).await;
    assert_eq!(weir.get("/x").await.status, 200, "it takes what the origin has");
    let answer = weir.get("/a").await;
    assert!(answer.status == 200 && answer.is_stale(), "{answer:?}");
    assert_eq!(weir.metric(r#"weir_limit_decisions_total{decision="delayed"}"#).await, 0.0);
}

#[tokio::test]
async fn those_who_wait_ask_redis_one_at_a_time() {
    let (up, redis) = (service(), redis());
    let config = limited("{ name = 'l', key = ['ip'], rate = '10/s', burst = 1, loans = false, max_delay = '5s' }");
    let weir = weir(&config).to(up.url()).redis(&redis).set("redis.deadline", "500ms").start().await;
    let began = Instant::now();
    assert_eq!(weir.get("/a").await.status, 200);
    // Whoever comes before there is a line asks.
    let first = spawn(&weir, get("/a"));
    waiting(&weir, 1.0).await;
    let answers = join_all((0..28).map(|_| weir.get("/a"))).await;
    let took = began.elapsed();
    assert!(answers.iter().all(|answer| answer.status == 200) && first.await.unwrap().0.status == 200);
    assert!(took >= Duration::from_millis(2800), "29 at 10 a second: {took:?}");
    let asked = weir.metric(r#"weir_redis_commands_total{command="limit_take"}"#).await;
    eprintln!("{asked} questions for 30 requests in {took:?}");
    assert!(asked <= 45.0, "{asked} questions: each waits for what it was told");
}

#[tokio::test]
async fn two_pods_share_the_rate_and_everybody_has_a_turn() {
    let (up, redis) = (service(), redis());
    let config = limited("{ name = 'l', key = ['ip'], rate = '10/s', burst = 1, max_delay = '5s' }");
    let weirs = weir(&config).to(up.url()).redis(&redis).set("redis.deadline", "500ms").fleet(2).await;
    let began = Instant::now();
    let answers = join_all((0..16).map(|i| weirs[i % 2].get("/a"))).await;
    let took = began.elapsed().as_secs_f64();
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert!(took >= 1.49, "16 at 10 a second, one at once: {took}");
}

#[tokio::test]
async fn redis_may_leave_while_somebody_waits() {
    let (up, redis) = (service(), redis());
    let config = limited("{ name = 'l', key = ['ip'], rate = '1/s', burst = 1, max_delay = '5s' }");
    let weir = weir(&config).to(up.url()).redis(&redis).set("redis.deadline", "500ms").start().await;
    assert_eq!(weir.get("/a").await.status, 200);
    let waits = spawn(&weir, get("/a"));
    waiting(&weir, 1.0).await;
    redis.kill();
    let (answer, took) = waits.await.unwrap();
    assert_eq!(answer.status, 200);
    assert!(took < Duration::from_secs(4), "{took:?}");
}
