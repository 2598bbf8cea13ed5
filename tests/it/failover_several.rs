//! Failovers in a cluster and under sentinels: what was invalidated stays so, and the service hardly notices.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::failover::{GOES_ON, TRUSTED, incarnation};
use crate::harness::{
    Load, PATIENCE, Setup, Upstream, Weir, get, optimised, reply, scale, upstream, weir, within_async,
};
use crate::storm::place::{LOG, Place, Topology};

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

/// Keys that live on, of which the first [`NAMED`] are invalidated.
const KEYS: usize = 132;

const NAMED: usize = 12;

/// Keys that live for two seconds each.
const SHORT: usize = 100;

const SOON: Duration = Duration::from_secs(10);

/// Seconds of load, and in which of them it happens.
const SECONDS: u32 = 10;

const HAPPENS: u32 = 4;

/// A handover that takes no longer leaves nobody without a master for long.
const GAP: Duration = Duration::from_millis(1500);

/// What becomes of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Planned,
    Killed,
    OtherPlanned,
    OtherKilled,
}

impl Event {
    /// Ends when every key has a master again.
    fn befall(self, place: &Place) {
        match place {
            Place::Cluster(cluster) => {
                let home = cluster.owner_of(LOG);
                let other = *cluster.masters().iter().find(|node| **node != home).expect("three masters");
                let master = if matches!(self, Self::Planned | Self::Killed) { home } else { other };
                if matches!(self, Self::Planned | Self::OtherPlanned) {
                    cluster.fail_over(cluster.replica_of(master));
                } else {
                    cluster.kill(master);
                }
                cluster.serves();
            }
            Place::Sentinels(sentinels) if self == Self::Planned => drop(sentinels.fail_over()),
            Place::Sentinels(sentinels) => {
                let master = sentinels.master();
                sentinels.kill(master);
                sentinels.taken_over(master);
            }
            Place::Alone { .. } => panic!("nobody takes over"),
        }
    }
}

async fn place(topology: Topology) -> Arc<Place> {
    Arc::new(tokio::task::spawn_blocking(move || Place::new(topology)).await.expect("it starts"))
}

async fn away_from<T: Send + 'static>(place: &Arc<Place>, what: impl FnOnce(&Place) -> T + Send + 'static) -> T {
    let place = Arc::clone(place);
    tokio::task::spawn_blocking(move || what(&place)).await.expect("no panic")
}

/// A service whose answers say which version they are.
struct Service {
    up: Upstream,
    version: Arc<AtomicUsize>,
    /// Fetches of keys that do not live long.
    short: Arc<AtomicUsize>,
}

fn service() -> Service {
    let (up, version, short) = (upstream(), Arc::new(AtomicUsize::new(1)), Arc::<AtomicUsize>::default());
    let (current, count) = (Arc::clone(&version), Arc::clone(&short));
    up.on("*", move |request| {
        let path = request.uri.path();
        count.fetch_add(usize::from(path.starts_with("/short/")), Ordering::SeqCst);
        reply(format!("{path} v{}", current.load(Ordering::SeqCst)))
    });
    Service { up, version, short }
}

fn item(key: usize) -> String {
    format!("/items/{key}")
}

impl Service {
    fn setup(&self, place: &Place, bound: &str) -> Setup {
        // On a busy machine Redis is waited for, lest a pod fetch for itself.
        let setup = weir(ROUTES).to(self.up.url()).set("cache.max_staleness", bound).set("redis.deadline", "500ms");
        place.apply(setup)
    }

    /// Every key is in every pod's memory, and was fetched once.
    async fn warm(&self, weirs: &[Weir]) {
        for key in 0..KEYS {
            crate::caching::stored(&weirs[0], &item(key)).await;
            for weir in weirs {
                within_async(SOON, "warm everywhere", async || weir.get(&item(key)).await.is_hit()).await;
            }
            assert_eq!(self.up.count(&item(key)), 1);
        }
    }

    /// The key has this version from now on, wherever it is asked for.
    async fn renew(&self, weirs: &[Weir], key: usize) {
        let order = format!(r#"{{"tags":["item:{key}"]}}"#);
        within_async(PATIENCE, "logged", async || {
            weirs[key % weirs.len()].post("/invalidate", &order).await.status == 200
        })
        .await;
        for weir in weirs {
            within_async(SOON, "applied", async || is_new(weir, key).await).await;
        }
    }
}

async fn is_new(weir: &Weir, key: usize) -> bool {
    weir.get(&item(key)).await.text() == format!("{} v2", item(key))
}

/// Under load to three pods: how often the service is asked, and what is served.
async fn fail_over(topology: Topology, event: Event) {
    let (place, service) = (place(topology).await, service());
    let weirs = service.setup(&place, "4s").fleet(3).await;
    service.warm(&weirs).await;
    service.version.store(2, Ordering::SeqCst);
    let targets: Vec<SocketAddr> = weirs.iter().map(|weir| weir.proxy).collect();
    let rate = u32::try_from(scale("WEIR_RPS", if optimised() { 2000 } else { 600 })).expect("a rate");
    let make = |i: usize| get(&format!("/short/{}", i * 7919 % SHORT));
    let secs = |seconds: u32| Duration::from_secs(seconds.into());
    let load = Load::new(rate, secs(SECONDS) + secs(1), make).to(&targets).start();
    let (began, mut counts, mut befalls) = (Instant::now(), Vec::new(), None);
    for second in 1..=SECONDS {
        tokio::time::sleep_until(began + secs(second)).await;
        counts.push(service.short.load(Ordering::SeqCst));
        if second == HAPPENS - 1 {
            for key in 0..NAMED {
                service.renew(&weirs, key).await;
            }
        }
        if second == HAPPENS {
            befalls = Some(tokio::spawn({
                let (place, began) = (Arc::clone(&place), Instant::now());
                async move {
                    away_from(&place, move |place| event.befall(place)).await;
                    began.elapsed()
                }
            }));
        }
        for key in if second > HAPPENS { 0..NAMED } else { 0..0 } {
            let weir = &weirs[(key + second as usize) % weirs.len()];
            assert!(is_new(weir, key).await, "{event:?}: {} is old in second {second}", item(key));
        }
    }
    let took = befalls.expect("it happened").await.expect("no panic");
    let report = load.finish().await;
    assert!(report.errors().is_empty(), "{report}: {:?}", report.errors());
    // Over two seconds, a life.
    let fetches: Vec<usize> = counts.windows(3).map(|three| three[2] - three[0]).collect();
    let (before, after) = fetches.split_at(HAPPENS as usize - 2);
    let usual = before.iter().sum::<usize>() / before.len();
    eprintln!("{topology:?}, {event:?}, for {took:?}: fetches in 2 s {before:?}, then {after:?}; {report}");
    for (second, count) in (HAPPENS - 1..).zip(after) {
        // While nobody is the master each pod fetches for itself.
        let is_without = took > GAP && secs(second) < secs(HAPPENS) + took;
        let most = if is_without { weirs.len() } else { 2 };
        assert!(*count <= most * usual, "from second {second}: {before:?}, then {after:?}");
    }
    let kept = (NAMED..KEYS).filter(|key| service.up.count(&item(*key)) == 1).count();
    assert_eq!(kept, KEYS - NAMED, "what was in memory is used again");
}

/// A test of each of these.
macro_rules! each {
    ($($name:ident: $topology:ident, $event:ident;)*) => {$(
        #[tokio::test]
        async fn $name() {
            fail_over(Topology::$topology, Event::$event).await;
        }
    )*};
}

each! {
    a_planned_failover_of_the_logs_master_is_no_stampede: Cluster, Planned;
    a_killed_master_of_the_log_is_no_stampede: Cluster, Killed;
    a_planned_failover_of_another_master_is_no_stampede: Cluster, OtherPlanned;
    another_master_that_is_killed_is_no_stampede: Cluster, OtherKilled;
    a_failover_that_a_sentinel_is_told_to_make_is_no_stampede: Sentinels, Planned;
    a_failover_by_sentinels_is_no_stampede: Sentinels, Killed;
}

/// Pods to which requests go.
#[derive(Clone, Default)]
struct Aims(Arc<Mutex<Vec<SocketAddr>>>);

impl Aims {
    fn set(&self, weirs: &[&Weir]) {
        *self.0.lock().expect("no panic while held") = weirs.iter().map(|weir| weir.proxy).collect();
    }
}

#[tokio::test]
async fn all_servers_of_a_cluster_and_all_sidecars_are_upgraded_one_after_the_other() {
    // By plan, and as docs/redis.md advises: else masters stop for as long as they know of none for another's slots.
    let new = tokio::task::spawn_blocking(|| Place::new(Topology::Cluster).without_failovers());
    let (place, service, aims) = (Arc::new(new.await.expect("it starts")), service(), Aims::default());
    let setup = service.setup(&place, "10s");
    let mut weirs = setup.fleet(2).await;
    service.warm(&weirs).await;
    let first = incarnation(&weirs[0]).await;
    service.version.store(2, Ordering::SeqCst);
    aims.set(&weirs.iter().collect::<Vec<_>>());
    let (at, rate) =
        (aims.clone(), u32::try_from(scale("WEIR_RPS", if optimised() { 1000 } else { 200 })).expect("a rate"));
    let make = |i: usize| get(&item(NAMED + i * 7919 % (KEYS - NAMED)));
    let choose = move |i: usize| {
        let aims = at.0.lock().expect("no panic while held");
        aims[i % aims.len()]
    };
    let load = Load::new(rate, Duration::from_secs(60), make).choosing(choose).start();
    // Masters first: who takes over from one is itself to be upgraded, and hands over again.
    let nodes = away_from(&place, |place| {
        let cluster = cluster(place);
        let mut nodes: Vec<_> = (0..cluster.len()).collect();
        nodes.sort_by_key(|node| !cluster.masters().contains(node));
        nodes
    });
    let (nodes, mut renewed) = (nodes.await, 0);
    for (turn, node) in nodes.iter().copied().enumerate() {
        let known: Vec<_> = weirs.iter().map(handovers).collect();
        if away_from(&place, move |place| roll(place, node)).await {
            for (weir, known) in weirs.iter().zip(known) {
                within_async(PATIENCE, "the log was handed over", async || handovers(weir) > known).await;
            }
        }
        trust(&weirs, &first).await;
        let turn = turn % weirs.len();
        aims.set(&[&weirs[1 - turn]]);
        weirs[turn].sigterm();
        assert_eq!(weirs[turn].ended(PATIENCE).await, Some(0));
        weirs[turn] = setup.start().await;
        trust(&weirs, &first).await;
        aims.set(&weirs.iter().collect::<Vec<_>>());
        for _ in 0..NAMED / nodes.len() {
            service.renew(&weirs, renewed).await;
            renewed += 1;
        }
        for key in 0..renewed {
            for weir in &weirs {
                assert!(is_new(weir, key).await, "{} is old after node {node}", item(key));
            }
        }
    }
    let report = load.stop().await;
    assert!(report.errors().is_empty(), "{report}: {:?}", report.errors());
    let again = (NAMED..KEYS).filter(|key| service.up.count(&item(*key)) > 1).count();
    eprintln!(
        "{} nodes and as many pods replaced: {again} of {} were fetched again; {report}",
        nodes.len(),
        KEYS - NAMED
    );
    assert!(again * 20 <= KEYS - NAMED, "{again} were fetched again");
    let late = setup.start().await;
    for key in NAMED..KEYS {
        assert!(late.get(&item(key)).await.is_hit(), "{}", item(key));
    }
}

fn cluster(place: &Place) -> &crate::harness::RedisCluster {
    match place {
        Place::Cluster(cluster) => cluster,
        _ => panic!("no cluster"),
    }
}

/// Waits until all know what was stored under the logs before, if another than the first has gone on from it.
async fn trust(weirs: &[Weir], first: &str) {
    for weir in weirs {
        let trusts = || {
            let said = weir.output();
            let last = |what: &str| said.iter().rposition(|line| line.contains(what));
            last(TRUSTED).is_some_and(|at| last(GOES_ON).is_none_or(|before| before < at))
        };
        // Who is told that there is another log asks for it at once. A new pod does not know how many there were, and waits for B.
        within_async(PATIENCE, "what was stored is trusted", async || incarnation(weir).await == first || trusts())
            .await;
    }
}

/// How often it was told of another log that goes on from the one before.
fn handovers(weir: &Weir) -> usize {
    weir.output().iter().filter(|line| line.contains(GOES_ON)).count()
}

/// Restarts a node without its data, once a replica has taken over from it if it is a master; says whether it had the log.
fn roll(place: &Place, node: usize) -> bool {
    let cluster = cluster(place);
    let had_the_log = cluster.owner_of(LOG) == node;
    if cluster.masters().contains(&node) {
        cluster.fail_over(cluster.replica_of(node));
        cluster.is_well();
    }
    cluster.kill(node);
    cluster.restart(node);
    cluster.is_well();
    had_the_log
}
