//! What a cluster's masters bear: each its part of entries and buckets, and one of them the log.

use std::net::SocketAddr;
use std::time::Duration;

use crate::harness::{Load, RedisCluster, Weir, get, redis_cluster, reply, scale, upstream, weir, within_async};

const ROUTES: &str = r#"
[[route]]
name = "items"
path = "/items/{id}"
cache.ttl = "10m"
limits = [{ name = "api", key = ["header:x-id"], rate = "1/h", burst = 10 }]
"#;

/// Keys, and identities.
const ALL: usize = 3000;

/// How long pods at rest are watched.
const WATCHED: Duration = Duration::from_secs(5);

/// What one pod at rest may ask the log's master in a second: some proofs, the wait at the door, a tier or two.
const AT_REST: f64 = 5.0;

async fn two_pods() -> (RedisCluster, crate::harness::Upstream, Vec<Weir>) {
    let cluster = tokio::task::spawn_blocking(|| redis_cluster().without_failovers()).await.expect("it starts");
    let up = upstream();
    up.on("*", |request| reply(request.target().to_owned()));
    let setup = weir(ROUTES).to(up.url()).redis_cluster(&cluster).set("redis.deadline", "500ms");
    let weirs = setup.fleet(2).await;
    (cluster, up, weirs)
}

/// How many keys of a kind each master has.
fn count(cluster: &RedisCluster, kind: &str) -> Vec<usize> {
    let count = |node| cluster.cli(node, &["KEYS", kind]).lines().filter(|line| !line.is_empty()).count();
    cluster.masters().into_iter().map(count).collect()
}

#[tokio::test]
async fn entries_and_buckets_spread_over_all_masters() {
    let (cluster, _up, weirs) = two_pods().await;
    let targets: Vec<SocketAddr> = weirs.iter().map(|weir| weir.proxy).collect();
    let rate = u32::try_from(scale("WEIR_RPS", 500)).expect("a rate");
    let length = Duration::from_secs(1).mul_f64(ALL as f64 / f64::from(rate));
    let make = |i: usize| get(&format!("/items/{i}")).header("x-id", &format!("client-{i}"));
    let report = Load::new(rate, length, make).to(&targets).run().await;
    assert!(report.errors().is_empty() && report.count(200) == report.sent(), "{report}");
    let sent = report.sent();
    let stored = || count(&cluster, "it:e:*").iter().sum::<usize>();
    let mut before = 0;
    // What a busy machine made late was not stored.
    within_async(Duration::from_secs(10), "no more is stored", async || {
        std::mem::replace(&mut before, stored()) == before
    })
    .await;
    for kind in ["it:e:*", "it:l:*"] {
        let of = count(&cluster, kind);
        let fair = of.iter().sum::<usize>() as f64 / of.len() as f64;
        eprintln!("{kind}: {of:?} of {sent}");
        assert!(fair * of.len() as f64 >= sent as f64 * 0.9, "{kind}: {of:?} of {sent}");
        assert!(of.iter().all(|count| (*count as f64 / fair - 1.0).abs() <= 0.15), "{kind}: {of:?}");
    }
}

/// Commands that pods sent a node, by name; not what scripts call, nor PING, which masters send to their copies too.
fn sent(cluster: &RedisCluster, node: usize) -> Vec<(String, u64)> {
    const SENT: &[&str] = &["evalsha", "eval", "get", "xread", "subscribe", "cluster|nodes"];
    let told = cluster.cli(node, &["INFO", "commandstats"]);
    let read = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
    };
    told.lines().filter_map(read).filter(|(name, _)| SENT.contains(&name.as_str())).collect()
}

#[tokio::test]
async fn the_logs_master_has_little_to_do_while_pods_are_at_rest() {
    let (cluster, _up, weirs) = two_pods().await;
    let home = cluster.owner_of("it:invalidate:in");
    for weir in &weirs {
        let looks = || weir.output().iter().filter(|line| line.contains("Redis was looked at")).count();
        within_async(Duration::from_secs(10), "each master was looked at", async || looks() >= 3).await;
    }
    (0..cluster.len()).for_each(|node| drop(cluster.cli(node, &["CONFIG", "RESETSTAT"])));
    // It is what it does in a length of time that is looked at.
    tokio::time::sleep(WATCHED).await;
    let per_pod = |calls: u64| calls as f64 / WATCHED.as_secs_f64() / weirs.len() as f64;
    for node in 0..cluster.len() {
        let calls = sent(&cluster, node);
        let all = per_pod(calls.iter().filter(|(name, _)| name != "get").map(|(_, calls)| calls).sum());
        let what = if node == home { "the log's master" } else { "another node" };
        let told: Vec<_> = calls.iter().map(|(name, calls)| format!("{name} {:.2}", per_pod(*calls))).collect();
        eprintln!("{what}: {all:.2} commands a second and pod: {}", told.join(", "));
        assert!(all <= AT_REST, "{what}: {calls:?}");
        assert!(node == home || calls.iter().all(|(name, _)| name == "cluster|nodes" || name == "get"), "{calls:?}");
    }
}
