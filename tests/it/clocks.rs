//! Clocks that are set wrong: Redis', by which ages, leases and limits go, and a pod's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{
    Clock, Gate, Redis, Setup, Upstream, Weir, clock, get, patiently, redis_by, reply, upstream, weir, within_async,
};

const HOUR: i64 = 3600;

const CACHED: &str = r#"
[cache]
max_staleness = "2s"

[[route]]
name = "all"
path = "/{*path}"
cache.ttl = "60s"
cache.wait_timeout = "10s"
"#;

/// The fleet's lease.
const LEASE: Duration = Duration::from_secs(2);

fn setup(up: &Upstream, redis: &Redis) -> Setup {
    weir(CACHED).to(up.url()).redis(redis).set("redis.deadline", "1s")
}

/// A service whose answers say which version they are.
fn versioned(version: &Arc<AtomicUsize>) -> Upstream {
    let (up, version) = (upstream(), Arc::clone(version));
    up.on("*", move |_| reply(format!("v{}", version.load(Ordering::SeqCst))));
    up
}

/// Seconds of the day as a server has them.
fn seconds(redis: &Redis) -> i64 {
    redis.cli(&["TIME"]).lines().next().and_then(|line| line.parse().ok()).expect("a time")
}

/// In so much time each pod has asked Redis for its time more than once.
const QUIET: Duration = Duration::from_millis(1_500);

/// Reads until every pod has answered from what is stored for a while; how often the service was asked for it.
async fn settles(up: &Upstream, weirs: &[Weir], path: &str) -> usize {
    let mut before = up.count(path);
    let (began, mut since) = (before, Instant::now());
    within_async(Duration::from_secs(10), "fetched no more", async || {
        for weir in weirs {
            assert_eq!(weir.get(path).await.status, 200);
        }
        let now = up.count(path);
        if now != before {
            (before, since) = (now, Instant::now());
        }
        since.elapsed() > QUIET
    })
    .await;
    before - began
}

#[tokio::test]
async fn a_log_that_is_lost_while_the_clock_is_set_back_is_noticed_within_five_seconds() {
    let (clock, version) = (clock(), Arc::new(AtomicUsize::new(1)));
    let (up, redis) = (versioned(&version), redis_by(&clock));
    // The usual bound, since it says how often a pod looks.
    let weirs = setup(&up, &redis).set("cache.max_staleness", "10s").fleet(2).await;
    for weir in weirs.iter().cycle().take(4) {
        assert_eq!(weir.get("/a").await.text(), "v1");
    }
    let before = seconds(&redis);
    redis.kill();
    version.store(2, Ordering::SeqCst);
    clock.set(-HOUR);
    redis.start();
    assert!(seconds(&redis) < before, "the clock is set back");
    let back = Instant::now();
    for weir in &weirs {
        within_async(Duration::from_secs(5), "what was fetched before the loss is not used", async || {
            weir.get("/a").await.text() == "v2"
        })
        .await;
    }
    eprintln!("noticed by both after {:?}", back.elapsed());
    version.store(3, Ordering::SeqCst);
    weirs[0].invalidate(r#"{"urls":["/a"]}"#).await;
    for weir in &weirs {
        within_async(Duration::from_secs(5), "what is invalidated after it is gone", async || {
            weir.get("/a").await.text() == "v3"
        })
        .await;
    }
}

/// What was written before is in the future then: when the log began, and when pods were heard of, of which one is gone.
#[tokio::test]
async fn a_clock_that_is_set_back_keeps_no_pod_from_knowing_what_others_do() {
    let (clock, up) = (clock(), upstream());
    let redis = redis_by(&clock);
    let mut weirs = setup(&up, &redis).fleet(3).await;
    drop(weirs.pop());
    clock.set(-HOUR);
    // Not by the bound alone, after which nobody has to say anything.
    let order = r#"{"urls":["/a"],"wait":"all","timeout":"1s"}"#;
    within_async(Duration::from_secs(10), "everybody that is there says so", async || {
        let said = weirs[0].post("/invalidate", order).await;
        let said: serde_json::Value = serde_json::from_slice(&said.body).expect("JSON");
        said["complete"] == true && said["pods"] == 2
    })
    .await;
}

/// Sets a clock by an hour: what is stored is fetched a few times at most, once for each pod and once more, and then kept.
async fn what_is_stored_is_fetched_anew_once(by: i64, set: impl Fn(&Clock, &Clock, i64)) {
    let (of_redis, own, up) = (clock(), clock(), upstream());
    up.route("*", reply("here"));
    let redis = redis_by(&of_redis);
    let weirs = [setup(&up, &redis).by(&own).start().await, setup(&up, &redis).start().await];
    assert_eq!(settles(&up, &weirs, "/a").await, 1);
    set(&of_redis, &own, by);
    let asked = settles(&up, &weirs, "/a").await;
    // Until they have looked at Redis' clock again, they do not agree on what is old.
    eprintln!("by {by} s: asked {asked} times");
    assert!(asked <= 2 * weirs.len(), "{asked} times");
    // Nothing was lost by which invalidations are known.
    weirs[1].invalidate(r#"{"urls":["/a"]}"#).await;
    assert!(settles(&up, &weirs, "/a").await <= 2);
}

#[tokio::test]
async fn when_redis_clock_steps_what_is_stored_is_fetched_anew_once() {
    for by in [HOUR, -HOUR] {
        what_is_stored_is_fetched_anew_once(by, |redis, _, by| redis.set(by)).await;
    }
}

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn when_a_pods_own_clock_steps_what_is_stored_is_fetched_anew_once() {
    for by in [HOUR, -HOUR] {
        what_is_stored_is_fetched_anew_once(by, |_, own, by| own.set(by)).await;
    }
}

#[tokio::test]
async fn who_waits_for_a_crashed_leader_waits_no_longer_though_redis_clock_is_set_back() {
    let (clock, up, gate) = (clock(), upstream(), Gate::new());
    let redis = redis_by(&clock);
    let answers = [reply("never").gate(&gate), reply("here")];
    up.sequence("/a", answers.into());
    let mut weirs = setup(&up, &redis).fleet(2).await;
    let (leader, waiter) = (weirs[0].proxy, weirs[1].proxy);
    let lost = tokio::spawn(async move { get("/a").try_send(leader).await });
    gate.reached(1).await;
    weirs[0].kill();
    clock.set(-HOUR);
    let began = Instant::now();
    let answer = patiently("the answer", get("/a").send(waiter)).await;
    eprintln!("after {:?}", began.elapsed());
    assert_eq!((answer.text(), up.count("/a")), ("here", 2));
    // It would have gone for itself after ten seconds.
    assert!(began.elapsed() < 3 * LEASE, "{:?}", began.elapsed());
    gate.open();
    let _ = lost.await;
}

#[tokio::test]
async fn who_waits_for_a_slow_leader_keeps_its_own_deadline() {
    for by in [HOUR, -HOUR] {
        let (clock, up, gate) = (clock(), upstream(), Gate::new());
        let redis = redis_by(&clock);
        up.route("/a", reply("here").gate(&gate));
        let weirs = setup(&up, &redis).set("redis.deadline", "5s").fleet(2).await;
        let ask = |proxy| tokio::spawn(async move { get("/a").send(proxy).await });
        let leader = ask(weirs[0].proxy);
        gate.reached(1).await;
        let began = Instant::now();
        let waiter = ask(weirs[1].proxy);
        weirs[1].metric_reaches(r#"weir_redis_commands_total{command="lease",result="ok"}"#, 1.0).await;
        clock.set(by);
        // Its own ten seconds are over; or, before that, the lease.
        gate.reached(2).await;
        eprintln!("by {by} s: it asked for itself after {:?}", began.elapsed());
        assert!(by > 0 || began.elapsed() >= Duration::from_secs(9), "{:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        gate.open();
        for asked in [leader, waiter] {
            assert_eq!(patiently("the answer", asked).await.unwrap().text(), "here");
        }
        assert_eq!(up.count("/a"), 2);
    }
}

/// Redis is asked for every request: a pod that remembers a denial would not see the step.
const LIMITED: &str = r#"
[[route]]
name = "all"
path = "/{*path}"
limits = [{ name = "all", key = ["route"], rate = "1/s", burst = 5, loans = false }]
"#;

/// Asks until it is denied; how often it was admitted.
async fn admitted(weir: &Weir) -> usize {
    let mut count = 0;
    while weir.get("/").await.status == 200 {
        count += 1;
        assert!(count < 100, "nobody is denied");
    }
    count
}

#[tokio::test]
async fn a_step_of_redis_clock_is_one_burst_at_most_and_denies_nobody_for_long() {
    let (clock, up) = (clock(), upstream());
    up.route("*", reply("here"));
    let redis = redis_by(&clock);
    let weir = weir(LIMITED).to(up.url()).redis(&redis).set("redis.deadline", "1s").start().await;
    let began = Instant::now();
    let mut all = admitted(&weir).await;
    assert!(all >= 5);
    clock.set(HOUR);
    all += admitted(&weir).await;
    // Two bursts, and what came in meanwhile by the clock on the wall.
    let most = 2 * 5 + began.elapsed().as_secs() as usize + 1;
    eprintln!("admitted {all} of {most}");
    assert!((10..=most).contains(&all), "{all} of {most}");
    clock.set(0);
    let back = Instant::now();
    within_async(Duration::from_secs(10), "admitted again", async || weir.get("/").await.status == 200).await;
    all = 1 + admitted(&weir).await;
    let most = 1 + back.elapsed().as_secs() as usize + 1;
    eprintln!("set back: admitted {all} of {most}");
    assert!(all <= most, "{all} of {most}");
}
