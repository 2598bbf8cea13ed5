//! A Redis that another takes over from: what was invalidated stays so, and what was not is not fetched again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{
    Flaky, Load, Redis, Upstream, Weir, flaky, get, optimised, redis, reply, scale, upstream, weir, within_async,
};

const ROUTES: &str = r#"
[[route]]
name = "items"
path = "/items/{id}"
cache.ttl = "10m"
cache.tags = ["item:{id}"]

[[route]]
name = "short"
path = "/short/{id}"
cache.ttl = "2s"
"#;

/// Keys, of which the first [`NAMED`] are invalidated.
const KEYS: usize = 60;

const NAMED: usize = 10;

/// Servers that take over, one from the other.
const HANDOVERS: usize = 4;

/// What a pod says when it follows another log, which goes on from the one before.
pub const GOES_ON: &str = "Redis goes on from a copy of the invalidation log";

/// What a pod says when it trusts again what was fetched before.
pub const TRUSTED: &str = "answers from before are used again";

const SOON: Duration = Duration::from_secs(10);

async fn says(weir: &Weir, what: &str) {
    within_async(SOON, what, async || weir.output().iter().any(|line| line.contains(what))).await;
}

/// A service whose answers say which version they are.
fn versioned(version: &Arc<AtomicUsize>) -> Upstream {
    let (up, version) = (upstream(), Arc::clone(version));
    up.on("*", move |request| reply(format!("{} v{}", request.uri.path(), version.load(Ordering::SeqCst))));
    up
}

/// Redis, what it is reached over, and what reaches it.
struct Stage {
    up: Upstream,
    version: Arc<AtomicUsize>,
    redis: Arc<Redis>,
    relay: Flaky,
    weirs: Vec<Weir>,
}

impl Stage {
    async fn of(pods: usize, bound: &str) -> Self {
        let version = Arc::new(AtomicUsize::new(1));
        let (up, redis) = (versioned(&version), Arc::new(redis()));
        let relay = flaky(redis.address());
        let setup = weir(ROUTES).to(up.url()).redis_at(relay.address()).set("cache.max_staleness", bound);
        // On a busy machine Redis is waited for, lest a pod fetch for itself.
        let setup = setup.set("redis.deadline", "1s");
        let weirs = setup.fleet(pods).await;
        Self { up, version, redis, relay, weirs }
    }

    /// Every key is in every pod's memory, and was fetched once.
    async fn warm(&self) {
        for key in 0..KEYS {
            let path = item(key);
            crate::caching::stored(&self.weirs[0], &path).await;
            for weir in &self.weirs {
                within_async(SOON, "warm everywhere", async || weir.get(&path).await.is_hit()).await;
            }
            assert_eq!(self.up.count(&path), 1);
        }
    }

    /// Nobody gets what was invalidated, nor has anything else fetched.
    async fn check(&self, weirs: &[Weir], what: &str) {
        self.check_but(NAMED, weirs, what).await;
    }

    /// The same, where only the first `named` were invalidated.
    async fn check_but(&self, named: usize, weirs: &[Weir], what: &str) {
        for key in 0..KEYS {
            for weir in weirs {
                let (path, answer) = (item(key), weir.get(&item(key)).await);
                let version = if key < named { 2 } else { 1 };
                assert_eq!(answer.text(), format!("{path} v{version}"), "{what}: {answer:?}");
                assert!(key < named || self.up.count(&path) == 1, "{what}: {path} was fetched again");
            }
        }
    }
}

fn item(key: usize) -> String {
    format!("/items/{key}")
}

async fn follows_another(weirs: &[Weir], before: &str) {
    for weir in weirs {
        within_async(SOON, "the new log", async || incarnation(weir).await != before).await;
    }
}

/// Of the log that a pod follows.
pub async fn incarnation(weir: &Weir) -> String {
    let answer = weir.post("/invalidate", r#"{"tags":["nobody"]}"#).await;
    let value: serde_json::Value = serde_json::from_slice(answer.body.as_ref()).expect("JSON");
    value["incarnation"].as_str().expect("an incarnation").to_owned()
}

/// A copy of `master`.
async fn replica(master: &Arc<Redis>) -> Arc<Redis> {
    let master = Arc::clone(master);
    let copy = tokio::task::spawn_blocking(move || {
        let copy = redis();
        copy.follow(&master);
        copy
    });
    Arc::new(copy.await.expect("no panic"))
}

/// `heir` takes over from `master`, which is dead by then if nobody planned it.
async fn take_over(master: &Arc<Redis>, heir: &Arc<Redis>, planned: bool) {
    let (master, heir) = (Arc::clone(master), Arc::clone(heir));
    let taken = tokio::task::spawn_blocking(move || {
        if !planned {
            master.kill();
        }
        heir.take_over(&master, planned);
    });
    taken.await.expect("no panic");
}

/// One pod is with the heir already while another goes on at the old master, and acknowledges there what the heir will lack:
/// what the heir has of it is not used by the pod that knows better, though the heir be too full to log it.
#[tokio::test]
async fn what_a_pod_acknowledged_at_the_old_master_holds_at_the_heir() {
    let version = Arc::new(AtomicUsize::new(1));
    let (up, master) = (versioned(&version), Arc::new(redis()));
    let ways = [flaky(master.address()), flaky(master.address())];
    let setup = weir(ROUTES).to(up.url()).set("redis.deadline", "1s").set("cache.max_staleness", "10s");
    let early = setup.clone().redis_at(ways[0].address()).start().await;
    let late = setup.redis_at(ways[1].address()).start().await;
    let before = incarnation(&late).await;
    let heir = replica(&master).await;
    heir.take_over(&master, false);
    ways[0].lead_to(heir.address());
    follows_another(std::slice::from_ref(&early), &before).await;
    for key in 0..=KEYS {
        crate::caching::stored(&early, &item(key)).await;
    }
    version.store(2, Ordering::SeqCst);
    let said = late.invalidate(r#"{"urls":["/items/60"]}"#).await;
    assert!(said.text().contains(&before), "{said:?}");
    heir.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    ways[1].lead_to(heir.address());
    says(&late, "goes on from a copy").await;
    let mut others = 0..KEYS;
    within_async(SOON, "what the heir has is used", async || {
        let other = item(others.next().expect("so many are not needed"));
        late.get(&other).await.text().ends_with("v1")
    })
    .await;
    assert_eq!(late.get(&item(KEYS)).await.text(), "/items/60 v2");
    heir.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    within_async(SOON, "it is known to all", async || early.get(&item(KEYS)).await.text() == "/items/60 v2").await;
}

#[tokio::test]
async fn what_a_failover_lost_is_logged_again_and_the_rest_is_kept() {
    let stage = Stage::of(3, "10s").await;
    stage.warm().await;
    let replica = replica(&stage.redis).await;
    // Promoted without anybody's knowing: what the old one takes from now on is lost with it.
    replica.take_over(&stage.redis, false);
    stage.version.store(2, Ordering::SeqCst);
    let before = incarnation(&stage.weirs[0]).await;
    for key in 0..NAMED {
        let order = format!(r#"{{"tags":["item:{key}"]}}"#);
        assert_eq!(stage.weirs[key % 3].invalidate(&order).await.status, 200);
    }
    for key in 0..NAMED {
        for weir in &stage.weirs {
            within_async(SOON, "applied", async || weir.get(&item(key)).await.text().ends_with("v2")).await;
        }
    }
    stage.relay.lead_to(replica.address());
    stage.check(&stage.weirs, "at once").await;
    follows_another(&stage.weirs, &before).await;
    stage.check(&stage.weirs, "under the new log").await;
    for weir in &stage.weirs {
        says(weir, TRUSTED).await;
    }
    stage.check(&stage.weirs, "when all have logged what was lost").await;
    // One that was not there then knows it from the log.
    let setup = weir(ROUTES).to(stage.up.url()).redis_at(stage.relay.address());
    let late = [setup.set("cache.max_staleness", "1s").start().await];
    says(&late[0], TRUSTED).await;
    stage.check(&late, "in a new pod").await;
}

/// Who upgrades servers one after the other has the log handed over more than once: what lives for longer than that is kept, and
/// what was invalidated under any of them stays so.
#[tokio::test]
async fn what_is_stored_outlives_one_failover_after_the_other() {
    let mut stage = Stage::of(2, "10s").await;
    stage.warm().await;
    stage.version.store(2, Ordering::SeqCst);
    for round in 1..=HANDOVERS {
        let heir = replica(&stage.redis).await;
        take_over(&stage.redis, &heir, true).await;
        stage.relay.lead_to(heir.address());
        stage.redis = heir;
        stage.check_but(round - 1, &stage.weirs, "at once").await;
        for weir in &stage.weirs {
            let trusts = || weir.output().iter().filter(|line| line.contains(TRUSTED)).count() == round;
            within_async(SOON, "trusts what was before", async || trusts()).await;
        }
        stage.check_but(round - 1, &stage.weirs, "under the new log").await;
        assert_eq!(
            stage.weirs[round % 2].invalidate(&format!(r#"{{"tags":["item:{}"]}}"#, round - 1)).await.status,
            200
        );
        for weir in &stage.weirs {
            within_async(SOON, "applied", async || weir.get(&item(round - 1)).await.text().ends_with("v2")).await;
        }
    }
    let setup = weir(ROUTES).to(stage.up.url()).redis_at(stage.relay.address());
    let late = [setup.set("cache.max_staleness", "1s").start().await];
    says(&late[0], TRUSTED).await;
    stage.check_but(HANDOVERS, &late, "in a new pod").await;
}

#[tokio::test]
async fn a_failover_at_most_doubles_the_services_load() {
    let secs = Duration::from_secs;
    for planned in [true, false] {
        let stage = Stage::of(3, "4s").await;
        let heir = replica(&stage.redis).await;
        let targets: Vec<SocketAddr> = stage.weirs.iter().map(|weir| weir.proxy).collect();
        let rate = u32::try_from(scale("WEIR_RPS", if optimised() { 2000 } else { 600 })).expect("a rate");
        // Each key is read often while it lives, so that the service sees one fetch for each key and life.
        let load = Load::new(rate, secs(12), |i| get(&format!("/short/{}", i * 7919 % 100))).to(&targets).start();
        let began = Instant::now();
        let mut counts = Vec::new();
        for second in 1..=11 {
            tokio::time::sleep_until(began + secs(second)).await;
            counts.push(stage.up.total());
            if second == 6 {
                take_over(&stage.redis, &heir, planned).await;
                stage.relay.lead_to(heir.address());
            }
        }
        let report = load.finish().await;
        assert!(report.errors().is_empty(), "{report}");
        // Over two seconds, a life.
        let fetches: Vec<usize> = counts.windows(3).map(|three| three[2] - three[0]).collect();
        let (before, after) = (&fetches[1..4], &fetches[4..]);
        let usual = before.iter().sum::<usize>() / before.len();
        eprintln!("planned {planned}: fetches in 2 s {before:?}, then {after:?}; {report}");
        assert!(after.iter().all(|count| *count <= 2 * usual), "planned {planned}: {before:?}, then {after:?}");
    }
}

#[tokio::test]
async fn a_redis_that_comes_back_with_an_old_copy_brings_nothing_back() {
    let stage = Stage::of(2, "10s").await;
    stage.warm().await;
    let heir = replica(&stage.redis).await;
    take_over(&stage.redis, &heir, true).await;
    stage.relay.lead_to(heir.address());
    for weir in &stage.weirs {
        says(weir, TRUSTED).await;
    }
    stage.version.store(2, Ordering::SeqCst);
    let before = incarnation(&stage.weirs[0]).await;
    for key in 0..NAMED {
        assert_eq!(stage.weirs[key % 2].invalidate(&format!(r#"{{"tags":["item:{key}"]}}"#)).await.status, 200);
        for weir in &stage.weirs {
            within_async(SOON, "applied", async || weir.get(&item(key)).await.text().ends_with("v2")).await;
        }
    }
    // What a replica copied from its master stays on its disk, and is all that it has when it starts again.
    let again = Arc::clone(&heir);
    tokio::task::spawn_blocking(move || again.restart_empty()).await.expect("no panic");
    assert_ne!(heir.cli(&["DBSIZE"]), "0", "it has the copy");
    follows_another(&stage.weirs, &before).await;
    for weir in &stage.weirs {
        let trusts = || weir.output().iter().filter(|line| line.contains(TRUSTED)).count() == 2;
        within_async(SOON, "trusts the copy", async || trusts()).await;
        for key in 0..NAMED {
            assert_eq!(weir.get(&item(key)).await.text(), format!("{} v2", item(key)));
        }
    }
}
