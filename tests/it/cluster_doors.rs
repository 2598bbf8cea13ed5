//! What programs, operators and pods do by Redis, where Redis is a cluster, or the master that sentinels name.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::harness::{
    Connection, Gate, RedisCluster, Setup, Upstream, Weir, get, redis_cluster, reply, request, sum, upstream, weir,
    within_async,
};
use crate::storm::place::{LOG, Place, Topology};

const ROUTES: &str = r#"
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
name = "items"
path = "/items/{id}"
cache.ttl = "10m"
cache.tags = ["item:{id}"]

[[route]]
name = "limited"
path = "/limited"
limits = ["api"]
"#;

/// Where programs put invalidations.
const DOOR: &str = "it:invalidate:in";

const SOON: Duration = Duration::from_secs(10);

/// What a pod hears it knows by then. The next proof, of a bus that does not work, comes after a quarter of B.
const AT_ONCE: Duration = Duration::from_secs(1);

/// How soon a bell that is not heard is made up for, in the end.
const LONGEST_POLL: Duration = Duration::from_millis(250);

/// A service whose answers say which version they are, and two pods.
struct Stage {
    up: Upstream,
    version: Arc<AtomicUsize>,
    weirs: Vec<Weir>,
}

fn service() -> (Upstream, Arc<AtomicUsize>) {
    let (up, version) = (upstream(), Arc::new(AtomicUsize::new(1)));
    let current = Arc::clone(&version);
    up.on("*", move |_| reply(format!("v{}", current.load(Ordering::SeqCst))));
    (up, version)
}

fn setup(up: &Upstream, bus: &str) -> Setup {
    weir(ROUTES).to(up.url()).set("redis.bus", bus).set("redis.deadline", "500ms")
}

impl Stage {
    async fn of(place: &Place, bus: &str) -> Self {
        let (up, version) = service();
        let weirs = place.apply(setup(&up, bus)).fleet(2).await;
        Self { up, version, weirs }
    }

    /// Until every pod follows the log where it is now, and listens there: what is written it learns at once, again and again,
    /// and not because a proof happens to be due.
    async fn listens(&self, place: &Place) {
        within_async(SOON, "everybody listens", async || {
            for weir in &self.weirs {
                if weir.post("/invalidate", r#"{"tags":["nobody"]}"#).await.status != 200 {
                    return false;
                }
            }
            for _ in 0..3 {
                if self.renewed_by("XADD behind a change", async || add(place)).await > AT_ONCE / 4 {
                    return false;
                }
            }
            sum(&self.weirs[0].metrics().await, "weir_redis_degraded") == 0.0
                && sum(&self.weirs[1].metrics().await, "weir_redis_degraded") == 0.0
        })
        .await;
    }

    /// Every pod has it in memory; `order` makes all of them fetch it anew, within moments of each other.
    async fn renewed_by(&self, what: &str, order: impl AsyncFnOnce()) -> Duration {
        for weir in &self.weirs {
            within_async(SOON, "warm everywhere", async || weir.get("/items/7").await.is_hit()).await;
        }
        let version = format!("v{}", self.version.fetch_add(1, Ordering::SeqCst) + 1);
        order().await;
        let began = Instant::now();
        for weir in &self.weirs {
            within_async(SOON, what, async || weir.get("/items/7").await.text() == version).await;
        }
        began.elapsed()
    }
}

fn add(place: &Place) {
    place.with_master(|redis| redis.cli(&["XADD", DOOR, "*", "tags", "item:7"]));
}

async fn blocking<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(what).await.expect("no panic")
}

fn cluster(place: &Place) -> &RedisCluster {
    match place {
        Place::Cluster(cluster) => cluster,
        _ => panic!("no cluster"),
    }
}

/// Every door, and all that listens behind it, on one bus.
async fn doors_work(stage: &Stage, place: &Place) {
    let mut took = Vec::new();
    let added = stage.renewed_by("XADD", async || add(place));
    took.push(added.await);
    let message = r#"{"tags":["item:7"]}"#;
    let nodes = if let Place::Cluster(cluster) = place { cluster.len() } else { 1 };
    for node in 0..nodes {
        let published = stage.renewed_by("PUBLISH", async || match place {
            Place::Cluster(cluster) => drop(cluster.cli(node, &["PUBLISH", "it:invalidate", message])),
            _ => place.with_master(|redis| drop(redis.cli(&["PUBLISH", "it:invalidate", message]))),
        });
        took.push(published.await);
    }
    for weir in &stage.weirs {
        let posted = stage.renewed_by("POST", async || {
            let said = weir.invalidate(r#"{"tags":["item:7"]}"#).await;
            assert_eq!(said.status, 200, "it is logged: {said:?}");
        });
        took.push(posted.await);
    }
    eprintln!("by XADD, PUBLISH at {nodes}, and POST: {took:?}");
    assert!(took.iter().all(|took| *took < AT_ONCE), "{took:?}");
}

/// Who asks whether everybody has applied it hears so; soon after a log begins, by the bound.
async fn all_say_so(stage: &Stage) {
    let said = stage.weirs[1].post("/invalidate", r#"{"tags":["item:7"],"wait":"all"}"#).await;
    let said: Value = serde_json::from_slice(&said.body).expect("JSON");
    assert_eq!((&said["complete"], &said["pods"], &said["logged"]), (&true.into(), &2.into(), &true.into()));
}

/// Pods that wait for what another fetches hear when it is there.
async fn bells_ring(stage: &Stage, when: &str) {
    let mut waits = Vec::new();
    for round in 0..10 {
        let (path, gate) = (format!("/items/bell-{when}-{round}"), Gate::new());
        stage.up.route(&path, reply("waited for").gate(&gate));
        let [fetches, waits_for_it] = [round % 2, 1 - round % 2].map(|pod| stage.weirs[pod].proxy);
        let request = get(&path);
        let first = tokio::spawn({
            let request = request.clone();
            async move { request.send(fetches).await }
        });
        gate.reached(1).await;
        let second = tokio::spawn(async move {
            let answer = request.send(waits_for_it).await;
            (answer, Instant::now())
        });
        let waiting = || stage.weirs[1 - round % 2].metric(r#"weir_redis_commands_total{command="lease",result="ok"}"#);
        let before = waiting().await;
        // It polls seldom by now.
        within_async(SOON, "it waits", async || waiting().await >= before + 5.0).await;
        let opened = Instant::now();
        gate.open();
        let answer = first.await.expect("no panic");
        let (other, at) = second.await.expect("no panic");
        assert_eq!((answer.text(), other.text()), ("waited for", "waited for"));
        assert_eq!(stage.up.count(&path), 1);
        waits.push(at - opened);
    }
    waits.sort();
    eprintln!("from the service's answer to that of the other pod: {waits:?}");
    assert!(waits[waits.len() / 2] < LONGEST_POLL / 4, "{waits:?}");
}

async fn on_a_cluster(bus: &str) {
    let place = Arc::new(blocking(|| Place::new(Topology::Cluster).without_failovers()).await);
    let stage = Stage::of(&place, bus).await;
    doors_work(&stage, &place).await;
    bells_ring(&stage, "first").await;
    let moved = Arc::clone(&place);
    blocking(move || {
        let cluster = cluster(&moved);
        cluster.fail_over(cluster.replica_of(cluster.owner_of(LOG)));
        cluster.is_well();
    })
    .await;
    stage.listens(&place).await;
    doors_work(&stage, &place).await;
    let moved = Arc::clone(&place);
    blocking(move || {
        let cluster = cluster(&moved);
        let home = cluster.owner_of(LOG);
        cluster.move_slot(cluster.slot_of(LOG), *cluster.masters().iter().find(|node| **node != home).expect("three"));
    })
    .await;
    stage.listens(&place).await;
    doors_work(&stage, &place).await;
    bells_ring(&stage, "last").await;
    all_say_so(&stage).await;
}

#[tokio::test]
async fn doors_and_bells_work_on_a_cluster_before_and_after_a_failover() {
    on_a_cluster("publish").await;
}

#[tokio::test]
async fn tracking_works_on_a_cluster_before_and_after_a_failover() {
    on_a_cluster("tracking").await;
}

async fn under_sentinels(bus: &str) {
    let place = Arc::new(blocking(|| Place::new(Topology::Sentinels).without_failovers()).await);
    let stage = Stage::of(&place, bus).await;
    doors_work(&stage, &place).await;
    let other = Arc::clone(&place);
    blocking(move || other.sentinels().fail_over()).await;
    stage.listens(&place).await;
    doors_work(&stage, &place).await;
    bells_ring(&stage, "last").await;
    all_say_so(&stage).await;
}

#[tokio::test]
async fn doors_and_bells_work_under_sentinels_before_and_after_a_failover() {
    under_sentinels("publish").await;
}

#[tokio::test]
async fn tracking_works_under_sentinels_before_and_after_a_failover() {
    under_sentinels("tracking").await;
}

async fn by(weir: &Weir, client: &str) -> u16 {
    weir.send(get("/limited").header("x-api-key", client)).await.status
}

async fn admitted(weir: &Weir, client: &str, times: usize) -> usize {
    let mut admitted = 0;
    for _ in 0..times {
        admitted += usize::from(by(weir, client).await == 200);
    }
    admitted
}

async fn json(weir: &Weir, method: &str, path: &str) -> Value {
    let answer = request(method, path).header("host", &weir.admin.to_string()).send(weir.admin).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    serde_json::from_slice(&answer.body).expect("JSON")
}

#[tokio::test]
async fn tiers_and_limits_are_the_fleets_on_a_cluster() {
    let (cluster, (up, _)) = (blocking(|| redis_cluster().without_failovers()).await, service());
    let weirs = setup(&up, "publish").redis_cluster(&cluster).fleet(2).await;
    cluster.cli(cluster.owner_of("it:tiers:api"), &["HSET", "it:tiers:api", "alice", "gold"]);
    for weir in &weirs {
        within_async(SOON, "the tier is known", async || {
            let answer = weir.send(get("/limited").header("x-api-key", "alice")).await;
            answer.header("ratelimit-policy").is_some_and(|policy| policy.contains("q=6"))
        })
        .await;
    }
    // Identities of which each node of the cluster has some.
    for client in 0..12 {
        let client = format!("client-{client}");
        assert_eq!(admitted(&weirs[0], &client, 1).await + admitted(&weirs[1], &client, 3).await, 2, "{client}");
        let path = format!("/limits/api?header:x-api-key={client}");
        let state = json(&weirs[0], "GET", &path).await;
        assert_eq!(state["rates"][0]["redis"]["remaining"], 0, "{state}");
        let done = json(&weirs[1], "DELETE", &path).await;
        assert_eq!(done["redis"], true, "{done}");
        assert_eq!(admitted(&weirs[1], &client, 3).await, 2, "{client}");
    }
}

#[tokio::test]
async fn what_is_explained_lies_wherever_it_lies_in_a_cluster() {
    let (cluster, (up, _)) = (blocking(|| redis_cluster().without_failovers()).await, service());
    let weirs = setup(&up, "publish").redis_cluster(&cluster).fleet(2).await;
    for key in 0..8 {
        let path = format!("/items/{key}");
        crate::caching::stored(&weirs[0], &path).await;
        let said = json(&weirs[1], "GET", &format!("/explain?format=json&url=http://service.test{path}")).await;
        let live = &said["live"];
        assert_eq!(
            (&live["memory"]["holds"], &live["redis"]["holds"]),
            (&"nothing".into(), &"entry".into()),
            "{said:#}"
        );
        assert!(live["answer"]["cache_status"].as_str().is_some_and(|status| status.contains("hit")), "{said:#}");
    }
}

#[tokio::test]
async fn a_new_pod_begins_with_what_is_read_most_on_a_cluster() {
    const HOT: usize = 8;
    let (cluster, (up, _)) = (blocking(|| redis_cluster().without_failovers()).await, service());
    let setup = setup(&up, "publish").set("cache.preload", 64).set("cache.preload_wait", "5s").redis_cluster(&cluster);
    let weir = setup.start().await;
    let mut connection = Connection::open(weir.proxy).await;
    let owner = cluster.owner_of("{it:hot}");
    within_async(Duration::from_secs(30), "the hottest are known", async || {
        for i in 0..1000 {
            assert_eq!(connection.send(&get(&format!("/items/{}", i % HOT))).await.status, 200);
        }
        cluster.cli(owner, &["ZCARD", "it:hot:{it:hot}"]).parse::<usize>().is_ok_and(|known| known >= HOT)
    })
    .await;
    let new = setup.start().await;
    for key in 0..HOT {
        assert!(new.get(&format!("/items/{key}")).await.is_hit());
    }
    let from_memory = new.metric(r#"weir_cache_lookups_total{tier="memory",result="hit"}"#).await;
    assert_eq!((from_memory, up.total()), (HOT as f64, HOT));
}

#[tokio::test]
async fn who_was_sent_on_knows_the_way_from_then_on() {
    const KEYS: usize = 12;
    let (cluster, (up, _)) = (blocking(|| redis_cluster().without_failovers()).await, service());
    let setup = setup(&up, "publish").set("cache.memory", "0").redis_cluster(&cluster);
    let weirs = setup.fleet(2).await;
    for key in 0..KEYS {
        crate::caching::stored(&weirs[0], &format!("/items/{key}")).await;
    }
    let cluster = blocking(move || {
        let from = cluster.masters()[0];
        let to = cluster.masters()[1];
        let keys = cluster.cli(from, &["KEYS", "it:e:*"]);
        assert!(!keys.is_empty(), "it has some of them");
        keys.lines().for_each(|key| cluster.move_slot(cluster.slot_of(key), to));
        cluster
    })
    .await;
    let sent_on = async || {
        let redirected = r#"weir_redis_commands_total{result="redirected"}"#;
        weirs[0].metric(redirected).await + weirs[1].metric(redirected).await
    };
    let read = async || {
        for key in 0..KEYS {
            for weir in &weirs {
                assert!(weir.get(&format!("/items/{key}")).await.is_hit());
            }
        }
    };
    read().await;
    within_async(SOON, "nobody is sent on any more", async || {
        let before = sent_on().await;
        read().await;
        sent_on().await == before
    })
    .await;
    let before = sent_on().await;
    for _ in 0..5 {
        read().await;
    }
    eprintln!("sent on {before} times in all");
    assert_eq!((sent_on().await, up.total()), (before, KEYS));
    drop(cluster);
}
