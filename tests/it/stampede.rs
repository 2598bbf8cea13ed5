//! G2: one fetch for everybody who asks at once, in a process and across the fleet.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::caching::stored;
use crate::harness::{
    Answer, Connection, Gate, Redis, Upstream, Weir, eventually, for_both, get, join_all, optimised, patiently, redis,
    reply, scale, upstream, weir,
};
use crate::leases::LEASE;

const CACHED: &str = r#"
[[route]]
name = "all"
path = "/{*path}"
cache.enabled = true
"#;

/// What the upstream takes.
const SLOW: Duration = Duration::from_millis(300);

/// Clients at once.
fn clients() -> usize {
    scale("WEIR_CLIENTS", 500)
}

/// How much longer than the upstream takes anybody may wait; code that is not optimised shares its cores with other tests.
fn grace() -> Duration {
    if optimised() { Duration::from_millis(100) } else { Duration::from_millis(1500) }
}

async fn two_weirs(up: &Upstream, redis: &Redis) -> Vec<Weir> {
    // Code that is not optimised needs longer than a request may wait for Redis when five hundred come at once.
    let deadline = if optimised() { "20ms" } else { "1s" };
    weir(CACHED)
        .to(up.url())
        .redis(redis)
        .set("upstream.connections", 2000)
        .set("redis.deadline", deadline)
        .fleet(2)
        .await
}

/// All at once, spread over the Weirs, over connections that are open already.
async fn rush(count: usize, path: &str, weirs: &[Weir]) -> Vec<Answer> {
    let targets: Vec<SocketAddr> = weirs.iter().map(|weir| weir.proxy).collect();
    let open = (0..count).map(|i| Connection::open(targets[i % targets.len()]));
    let connections = join_all(open).await;
    let request = get(path);
    join_all(connections.into_iter().map(|mut connection| {
        let request = request.clone();
        async move { connection.send(&request).await }
    }))
    .await
}

fn slowest(answers: &[Answer]) -> Duration {
    answers.iter().map(|answer| answer.took).max().unwrap_or_default()
}

#[tokio::test]
async fn five_hundred_clients_over_two_weirs_are_one_fetch() {
    let (up, redis) = (upstream(), redis());
    up.route("/hot", reply("hot").max_age(60).takes(SLOW));
    let weirs = two_weirs(&up, &redis).await;
    let answers = rush(clients(), "/hot", &weirs).await;
    let slowest = slowest(&answers);
    eprintln!("{} clients, {} fetches, slowest {slowest:?}", answers.len(), up.count("/hot"));
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.text() == "hot"));
    assert_eq!(up.count("/hot"), 1, "one fetch for the whole fleet");
    assert!(slowest < SLOW + grace(), "the slowest waited {slowest:?}");
    let collapsed = answers.iter().filter(|answer| answer.is_collapsed()).count();
    assert!(collapsed * 2 > answers.len(), "{collapsed} say that they were collapsed");
}

#[tokio::test]
async fn nobody_queues_behind_an_uncacheable_answer() {
    let (up, redis) = (upstream(), redis());
    up.route("/own", reply("own").header("cache-control", "no-store").takes(SLOW));
    let weirs = two_weirs(&up, &redis).await;
    let answers = rush(clients(), "/own", &weirs).await;
    let slowest = slowest(&answers);
    eprintln!("{} clients, {} fetches, slowest {slowest:?}", answers.len(), up.count("/own"));
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.text() == "own"));
    assert_eq!(up.count("/own"), answers.len(), "everybody gets an answer of their own");
    assert!(slowest < SLOW * 2 + grace() * 2, "waited for more than one other: {slowest:?}");
    // The verdict is remembered: the next wave waits for nobody.
    let again = rush(20, "/own", &weirs).await;
    let slowest = self::slowest(&again);
    assert!(slowest < SLOW + grace(), "the verdict was forgotten: {slowest:?}");
}

/// What one Weir learnt of a URL spares the others the wait.
#[tokio::test]
async fn what_may_not_be_stored_is_known_to_the_fleet() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    let own = reply("own").header("cache-control", "no-store");
    up.sequence("/own", vec![own.clone(), own.gate(&gate)]);
    let weirs = two_weirs(&up, &redis).await;
    weirs[0].get("/own").await;
    weirs[0].metric_reaches(r#"weir_redis_commands_total{command="store",result="ok"}"#, 1.0).await;
    let (proxy, count) = (weirs[1].proxy, 5);
    let asking =
        tokio::spawn(async move { join_all((0..count).map(|_| async move { get("/own").send(proxy).await })).await });
    gate.reached(count).await;
    gate.open();
    assert!(asking.await.expect("no panic").iter().all(|answer| answer.text() == "own"));
}

/// What lies in one client's request says nothing of the others'.
#[tokio::test]
async fn what_may_not_be_stored_for_one_client_is_fetched_once_for_the_others() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    up.sequence("/a", vec![reply("own"), reply("all").gate(&gate)]);
    let routes = r#"
        [[route]]
        name = "all"
        path = "/{*path}"
        cache.ttl = "60s"
        cache.wait_timeout = "30s"
    "#;
    let weirs = weir(routes).to(up.url()).redis(&redis).set("redis.deadline", "1s").fleet(2).await;
    let own = weirs[0].send(get("/a").header("authorization", "Bearer a")).await;
    assert_eq!(own.text(), "own");
    weirs[0].metric_reaches(r#"weir_redis_commands_total{command="store",result="ok"}"#, 1.0).await;
    let (proxies, count) = ([weirs[0].proxy, weirs[1].proxy], 10);
    let ask = move |i: usize| async move { get("/a").send(proxies[i % 2]).await };
    let asking = tokio::spawn(async move { join_all((0..count).map(ask)).await });
    gate.reached(1).await;
    for weir in &weirs {
        weir.metric_reaches("weir_requests_in_flight", (count / 2) as f64).await;
    }
    gate.open();
    assert!(asking.await.expect("no panic").iter().all(|answer| answer.text() == "all"));
    assert_eq!(up.count("/a"), 2);
}

#[tokio::test]
async fn a_fill_goes_on_when_its_client_leaves() {
    for_both(|store| async move {
        let (up, gate) = (upstream(), Gate::new());
        up.route("/a", reply("kept").max_age(60).gate(&gate));
        let weir = store.apply(weir(CACHED).to(up.url())).start().await;
        let mut leader = Connection::open(weir.proxy).await;
        leader.write(b"GET /a HTTP/1.1\r\nhost: service.test\r\n\r\n").await;
        gate.reached(1).await;
        drop(leader);
        weir.metric_reaches(r#"weir_requests_total{outcome="cancelled"}"#, 1.0).await;
        gate.open();
        weir.metric_reaches(r#"weir_cache_fills_total{result="stored"}"#, 1.0).await;
        let next = weir.get("/a").await;
        assert!(next.is_hit() && next.text() == "kept", "{next:?}");
        assert_eq!(up.count("/a"), 1);
    })
    .await;
}

#[tokio::test]
async fn a_follower_reads_while_the_leader_does() {
    let (up, gate) = (upstream(), Gate::new());
    let body = reply("first").then_gate(&gate).then("second").header("content-length", "11").max_age(60);
    up.route("/a", body);
    let weir = weir(CACHED).to(up.url()).start().await;
    let ask = b"GET /a HTTP/1.1\r\nhost: service.test\r\n\r\n";
    let mut leader = Connection::open(weir.proxy).await;
    leader.write(ask).await;
    leader.read_until(b"first").await;
    let mut follower = Connection::open(weir.proxy).await;
    follower.write(ask).await;
    follower.read_until(b"first").await;
    gate.open();
    for reader in [&mut leader, &mut follower] {
        assert_eq!(reader.read(false).await.unwrap().text(), "firstsecond");
    }
    assert_eq!(up.count("/a"), 1);
}

#[tokio::test]
async fn a_failed_fetch_is_shared_and_the_next_one_tries_anew() {
    let (up, gate) = (upstream(), Gate::new());
    up.sequence("/a", vec![reply("bad").status(500).gate(&gate), reply("good").max_age(60)]);
    let weir = weir(CACHED).to(up.url()).set("upstream.retries", 0).start().await;
    let (proxy, count) = (weir.proxy, 30);
    let waiting =
        tokio::spawn(async move { join_all((0..count).map(|_| async move { get("/a").send(proxy).await })).await });
    gate.reached(1).await;
    weir.metric_reaches("weir_requests_in_flight", f64::from(count)).await;
    gate.open();
    for answer in waiting.await.unwrap() {
        assert!([200, 500].contains(&answer.status), "{answer:?}");
    }
    let fetches = up.count("/a");
    assert!(fetches <= 2 + usize::try_from(count).unwrap(), "{fetches} fetches");
    assert_eq!(weir.get("/a").await.text(), "good");
}

/// A lease on a variant that the answer turns out not to be is given back: who waits for that variant asks then.
#[tokio::test]
async fn an_answer_that_varies_by_more_than_the_ones_before_holds_nobody_up() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    up.on("/v", |_| reply("english").max_age(60).header("vary", "accept-language"));
    let weirs = two_weirs(&up, &redis).await;
    let english = get("/v").header("accept-language", "en");
    for weir in &weirs {
        assert_eq!(weir.send(english.clone()).await.status, 200);
    }
    let held = gate.clone();
    up.on("/v", move |_| reply("german").max_age(60).header("vary", "accept-language, origin").gate(&held));
    let ask = |proxy| {
        let german = get("/v").header("accept-language", "de");
        tokio::spawn(async move { german.send(proxy).await })
    };
    let leader = ask(weirs[0].proxy);
    gate.reached(1).await;
    let leases = r#"weir_redis_commands_total{command="lease",result="ok"}"#;
    let before = weirs[1].metric(leases).await;
    let waiting = ask(weirs[1].proxy);
    weirs[1].metric_reaches(leases, before + 1.0).await;
    let began = Instant::now();
    gate.open();
    for answer in [leader, waiting] {
        assert_eq!(patiently("the answer", answer).await.unwrap().text(), "german");
    }
    // The lease was renewed last two thirds of a second ago at most, and would hold for the rest of its time.
    assert!(began.elapsed() < LEASE / 2, "{:?}", began.elapsed());
}

/// Who waits does not know yet that the answers vary.
#[tokio::test]
async fn an_answer_that_turns_out_to_vary_is_fetched_once_for_the_fleet() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    let held = gate.clone();
    up.on("/v", move |_| reply("varies").max_age(60).header("vary", "accept-language").gate(&held));
    let weirs = two_weirs(&up, &redis).await;
    let (first, second) = tokio::join!(weirs[0].get("/v"), async {
        eventually("the first Weir fetches", || up.count("/v") == 1).await;
        let second = tokio::spawn({
            let proxy = weirs[1].proxy;
            async move { Connection::open(proxy).await.send(&get("/v")).await }
        });
        weirs[1].metric_reaches(r#"weir_redis_commands_total{command="lease",result="ok"}"#, 1.0).await;
        gate.open();
        second.await.expect("no panic")
    });
    assert_eq!((first.text(), second.text()), ("varies", "varies"));
    assert_eq!(up.count("/v"), 1);
}

/// What comes while somebody waits is not from the future.
#[tokio::test]
async fn an_answer_that_takes_seconds_serves_all_who_waited() {
    let (up, redis) = (upstream(), redis());
    up.route("/slow", reply("slow").max_age(60).takes(Duration::from_millis(2_500)));
    let weirs = two_weirs(&up, &redis).await;
    let answers = rush(20, "/slow", &weirs).await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.text() == "slow"));
    assert_eq!(up.count("/slow"), 1);
}

#[tokio::test]
async fn a_fetch_whose_weir_crashed_is_taken_over() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    up.sequence("/a", vec![reply("lost").gate(&gate), reply("kept").max_age(60)]);
    let mut weirs = two_weirs(&up, &redis).await;
    let mut leader = Connection::open(weirs[0].proxy).await;
    leader.write(b"GET /a HTTP/1.1\r\nhost: service.test\r\n\r\n").await;
    gate.reached(1).await;
    let other = weirs[1].proxy;
    let follower = tokio::spawn(async move { get("/a").send(other).await });
    weirs[1].metric_reaches("weir_requests_in_flight", 1.0).await;
    weirs[0].kill();
    let answer = crate::harness::patiently("the takeover", follower).await.unwrap();
    assert_eq!((answer.status, answer.text()), (200, "kept"), "{answer:?}");
}

#[tokio::test]
async fn stale_is_refreshed_once_whoever_asks() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    let old = reply("old").header("cache-control", "max-age=1, stale-while-revalidate=60");
    up.sequence("/a", vec![old, reply("new").max_age(60).gate(&gate)]);
    let weirs = two_weirs(&up, &redis).await;
    stored(&weirs[0], "/a").await;
    tokio::time::sleep(Duration::from_millis(1150)).await;
    let answers = rush(60, "/a", &weirs).await;
    assert!(answers.iter().all(|answer| answer.text() == "old"), "stale serves meanwhile");
    eventually("the refresh", || up.count("/a") == 2).await;
    gate.open();
    eventually("it ended", || up.requests("/a").iter().all(|seen| seen.complete)).await;
    for weir in &weirs {
        let fresh = crate::harness::within_async(Duration::from_secs(5), "the fresh answer", async || {
            weir.get("/a").await.text() == "new"
        });
        fresh.await;
    }
    assert_eq!(up.count("/a"), 2, "one refresh in the whole fleet");
}
