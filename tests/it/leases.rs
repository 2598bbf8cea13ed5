//! G2: the fleet's lease on a fetch lasts as long as the fetch, and no longer than its leader.

use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{
    Connection, Gate, Redis, Setup, Upstream, eventually, flaky, get, is_before_7, join_all, optimised, patiently,
    redis, reply, upstream, weir,
};

const CACHED: &str = r#"
[[route]]
name = "all"
path = "/{*path}"
cache.ttl = "60s"
cache.wait_timeout = "30s"
"#;

/// What a fetch is leased for, unless its leader renews it.
pub const LEASE: Duration = Duration::from_secs(2);

/// Questions by which a lease is renewed.
const RENEWALS: &str = r#"weir_redis_commands_total{command="renew",result="ok"}"#;

/// So many renewals, a third of a lease apart, are a fetch of twice and a half its lease.
const MANY: f64 = 8.0;

fn setup(up: &Upstream, redis: &Redis) -> Setup {
    let deadline = if optimised() { "100ms" } else { "1s" };
    weir(CACHED).to(up.url()).redis(redis).set("redis.deadline", deadline)
}

#[tokio::test]
async fn a_fetch_that_takes_longer_than_its_lease_is_asked_once() {
    let (up, redis) = (upstream(), redis());
    up.route("/slow", reply("slow").takes(LEASE.mul_f64(2.5)));
    let weirs = setup(&up, &redis).fleet(2).await;
    let answers = join_all((0..40).map(|i| weirs[i % 2].get("/slow"))).await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.text() == "slow"));
    assert_eq!(up.count("/slow"), 1, "one fetch, however slow");
}

#[tokio::test]
async fn a_body_that_comes_slowly_keeps_its_lease() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    up.route("/slow", reply("first").then_gate(&gate).then("second"));
    let weirs = setup(&up, &redis).fleet(2).await;
    let ask = |proxy| tokio::spawn(async move { get("/slow").send(proxy).await });
    let leader = ask(weirs[0].proxy);
    gate.reached(1).await;
    let waiting = ask(weirs[1].proxy);
    weirs[0].metric_reaches(RENEWALS, MANY).await;
    gate.open();
    for answer in [leader, waiting] {
        assert_eq!(patiently("the answer", answer).await.unwrap().text(), "firstsecond");
    }
    assert_eq!(up.count("/slow"), 1);
}

/// Redis refuses to store what a fetch brought, and so does not learn that the fetch is over: it does as soon as it can.
#[tokio::test]
async fn a_lease_that_redis_did_not_take_back_holds_nobody_up() {
    if is_before_7() {
        // It lets scripts write though its replicas be gone.
        return;
    }
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    up.route("/a", reply("once").gate(&gate));
    let weirs = setup(&up, &redis).fleet(2).await;
    let proxy = weirs[0].proxy;
    let leader = tokio::spawn(async move { get("/a").send(proxy).await });
    gate.reached(1).await;
    redis.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    gate.open();
    assert_eq!(leader.await.expect("no panic").text(), "once");
    weirs[0].metric_reaches(r#"weir_redis_commands_total{command="store",result="error"}"#, 1.0).await;
    redis.cli(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    let began = Instant::now();
    assert_eq!(weirs[1].get("/a").await.text(), "once");
    assert!(began.elapsed() < LEASE / 4, "{:?}", began.elapsed());
}

#[tokio::test]
async fn one_late_answer_of_redis_makes_no_second_fetch() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    up.route("/a", reply("once").gate(&gate));
    let relay = flaky(redis.address());
    let leads = setup(&up, &redis).start().await;
    let waits = setup(&up, &redis).redis_at(relay.address()).set("redis.deadline", "600ms").start().await;
    let ask = |proxy| tokio::spawn(async move { get("/a").send(proxy).await });
    let leader = ask(leads.proxy);
    gate.reached(1).await;
    let waiting = ask(waits.proxy);
    waits.metric_reaches(r#"weir_redis_commands_total{command="lease",result="ok"}"#, 1.0).await;
    relay.delay(Duration::from_millis(700));
    waits.metric_reaches(r#"weir_redis_commands_total{command="lease",result="timeout"}"#, 1.0).await;
    relay.heal();
    waits.metric_reaches(r#"weir_redis_commands_total{command="lease",result="ok"}"#, 3.0).await;
    gate.open();
    for answer in [leader, waiting] {
        assert_eq!(patiently("the answer", answer).await.expect("no panic").text(), "once");
    }
    assert_eq!(up.count("/a"), 1);
}

#[tokio::test]
async fn look_up_and_lease_share_one_deadline() {
    let (deadline, trip) = (Duration::from_millis(600), Duration::from_millis(400));
    let (up, redis) = (upstream(), redis());
    up.route("*", reply("once"));
    let relay = flaky(redis.address());
    let weir = setup(&up, &redis).redis_at(relay.address()).set("redis.deadline", "600ms").start().await;
    // The connections are there, and Redis knows the scripts.
    weir.get("/first").await;
    let leases = r#"weir_redis_commands_total{command="lease",result="ok"}"#;
    let before = weir.metric(leases).await;
    relay.delay(trip / 2);
    let began = Instant::now();
    assert_eq!(weir.get("/a").await.text(), "once");
    assert!(!optimised() || began.elapsed() < deadline + trip / 4, "{:?}", began.elapsed());
    relay.heal();
    assert_eq!(weir.metric(leases).await, before);
}

#[tokio::test]
async fn a_short_fetch_renews_nothing() {
    let (up, redis) = (upstream(), redis());
    up.route("*", reply("short"));
    let weir = setup(&up, &redis).start().await;
    for i in 0..20 {
        weir.get(&format!("/{i}")).await;
    }
    weir.metric_reaches(r#"weir_redis_commands_total{command="store"}"#, 20.0).await;
    assert_eq!(weir.metric(r#"weir_redis_commands_total{command="renew"}"#).await, 0.0);
}

#[tokio::test]
async fn a_frozen_leader_is_superseded_and_overwrites_nothing() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    up.sequence("/a", vec![reply("old").gate(&gate), reply("new")]);
    let weirs = setup(&up, &redis).fleet(2).await;
    let mut first = Connection::open(weirs[0].proxy).await;
    first.write(b"GET /a HTTP/1.1\r\nhost: service.test\r\n\r\n").await;
    gate.reached(1).await;
    // It has renewed before: what ends is a lease that was kept.
    weirs[0].metric_reaches(RENEWALS, 1.0).await;
    weirs[0].freeze();
    let second = weirs[1].get("/a").await;
    assert_eq!((second.status, second.text()), (200, "new"));
    gate.open();
    weirs[0].thaw();
    assert_eq!(first.read(false).await.unwrap().text(), "old", "it goes on, for its own client");
    weirs[0].metric_reaches(r#"weir_cache_fills_total{result="superseded"}"#, 1.0).await;
    let third = setup(&up, &redis).start().await.get("/a").await;
    assert!(third.is_hit() && third.text() == "new", "{third:?}");
    assert_eq!(up.count("/a"), 2);
}

#[tokio::test]
async fn an_invalidation_of_something_else_makes_no_second_fetch() {
    for (named, fetches) in [("/other", 1), ("/slow", 2)] {
        let (up, redis, gate) = (upstream(), redis(), Gate::new());
        up.route("/slow", reply("slow").gate(&gate));
        let weirs = setup(&up, &redis).fleet(2).await;
        let ask = |proxy| tokio::spawn(async move { get("/slow").send(proxy).await });
        let leader = ask(weirs[0].proxy);
        gate.reached(1).await;
        // Whoever has logged it knows of it, and asks for the lease from there.
        weirs[1].invalidate(&format!(r#"{{"urls":["{named}"]}}"#)).await;
        let waiting = ask(weirs[1].proxy);
        weirs[1].metric_reaches(r#"weir_redis_commands_total{command="lease",result="ok"}"#, 1.0).await;
        gate.open();
        for answer in [leader, waiting] {
            assert_eq!(patiently("the answer", answer).await.unwrap().text(), "slow");
        }
        assert_eq!(up.count("/slow"), fetches, "{named} was invalidated");
    }
}

/// Who waits for another pod's fetch while a tag is invalidated that only the answer carries: it learns what the answer
/// was called when it comes, and what it then fetches itself is from after.
#[tokio::test]
async fn a_fetch_begins_when_the_wait_for_another_ends() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    let tagged = |text| reply(text).header("cache-tag", "t");
    up.sequence("/a", vec![tagged("old").gate(&gate), tagged("new")]);
    let weirs = setup(&up, &redis).fleet(2).await;
    let ask = |proxy| tokio::spawn(async move { get("/a").send(proxy).await });
    let leader = ask(weirs[0].proxy);
    gate.reached(1).await;
    let waiting = ask(weirs[1].proxy);
    weirs[1].metric_reaches(r#"weir_redis_commands_total{command="lease",result="ok"}"#, 1.0).await;
    weirs[1].invalidate(r#"{"tags":["t"],"wait":"all"}"#).await;
    gate.open();
    assert_eq!(patiently("the answer", leader).await.unwrap().text(), "old", "it asked before");
    assert_eq!(patiently("the answer", waiting).await.unwrap().text(), "new");
    for weir in &weirs {
        assert_eq!(weir.get("/a").await.text(), "new");
    }
    assert_eq!(up.count("/a"), 2, "what was fetched after the invalidation is of use to everybody");
}

/// What is stored may be invalidated while its confirmation waits for another pod's fetch: a date, which has whole seconds,
/// confirms it no more.
#[tokio::test]
async fn what_is_invalidated_while_a_fetch_waits_is_confirmed_by_no_date() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    let dated = |text| reply(text).header("last-modified", "Tue, 15 Nov 1994 12:45:26 GMT");
    up.sequence("/a", vec![dated("old"), dated("late").gate(&gate), dated("new")]);
    let config = format!("{CACHED}cache.client_directives = \"honor\"\n");
    let deadline = if optimised() { "100ms" } else { "1s" };
    let weirs = weir(&config).to(up.url()).redis(&redis).set("redis.deadline", deadline).fleet(2).await;
    for weir in &weirs {
        assert_eq!(weir.get("/a").await.text(), "old");
    }
    let confirm = |proxy| tokio::spawn(async move { get("/a").header("cache-control", "no-cache").send(proxy).await });
    let leader = confirm(weirs[0].proxy);
    gate.reached(1).await;
    assert!(up.last("/a").header("if-modified-since").is_some());
    let waiting = confirm(weirs[1].proxy);
    weirs[1].metric_reaches(r#"weir_redis_commands_total{command="lease",result="ok"}"#, 1.0).await;
    weirs[1].invalidate(r#"{"urls":["/a"]}"#).await;
    assert_eq!(patiently("the answer", waiting).await.unwrap().text(), "new");
    assert_eq!(up.last("/a").header("if-modified-since"), None, "it asks for the whole");
    gate.open();
    assert_eq!(patiently("the answer", leader).await.unwrap().text(), "late", "it asked before");
}

/// Who waits for another pod's fetch while the key is invalidated again and again waits on, for a fetch that is not overtaken.
#[tokio::test]
async fn a_key_that_is_invalidated_again_and_again_is_fetched_once_for_each() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    up.route("/hot", reply("hot").gate(&gate));
    let weirs = setup(&up, &redis).fleet(7).await;
    let crowd: Vec<_> = (0..140)
        .map(|i| {
            let proxy = weirs[i % weirs.len()].proxy;
            tokio::spawn(async move { get("/hot").send(proxy).await })
        })
        .collect();
    gate.reached(1).await;
    // The last pod waits through all of them.
    let rounds = 5;
    for round in 1..=rounds {
        assert_eq!(weirs[0].invalidate(r#"{"urls":["/hot"]}"#).await.status, 200);
        // A pod that waited leads now.
        eventually("fetched anew", || up.count("/hot") > round).await;
    }
    gate.open();
    for answer in crowd {
        assert_eq!(patiently("an answer", answer).await.unwrap().text(), "hot");
    }
    // One for each invalidation, by a pod that waited; who had joined an overtaken one may ask once more.
    let (fetches, most) = (up.count("/hot"), 2 * rounds + weirs.len());
    assert!(fetches <= most, "{fetches} fetches of {most}");
}
