//! `redis.read_from = "replica"`: copies answer what is stored, late ones bring nothing old back, dead ones are done without.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{Redis, RedisCluster, Sentinels, Upstream, Weir, reply, sum, upstream, weir, within_async};
use crate::storm::place::{Place, Topology};

const ROUTES: &str = r#"
[[route]]
name = "items"
path = "/items/{id}"
cache.ttl = "10m"
cache.tags = ["item:{id}"]
"#;

const KEYS: usize = 30;

const SOON: Duration = Duration::from_secs(10);

/// A Redis with copies, in front of which nothing is kept in memory.
struct Stage {
    up: Upstream,
    version: Arc<AtomicUsize>,
    place: Place,
    weirs: Vec<Weir>,
}

impl Stage {
    async fn of(topology: Topology) -> Self {
        let place = tokio::task::spawn_blocking(move || Place::new(topology).without_failovers());
        let place = place.await.expect("it starts");
        let (up, version) = (upstream(), Arc::new(AtomicUsize::new(1)));
        let current = Arc::clone(&version);
        up.on("*", move |request| reply(format!("{} v{}", request.uri.path(), current.load(Ordering::SeqCst))));
        let setup = weir(ROUTES).to(up.url()).set("cache.memory", "0").set("redis.deadline", "500ms");
        let setup = place.apply(setup.set("redis.read_from", "replica"));
        let stage = Self { up, version, weirs: setup.fleet(2).await, place };
        for key in 0..KEYS {
            crate::caching::stored(&stage.weirs[key % 2], &item(key)).await;
        }
        // Copies are known, and have what is stored: what they lack is read on masters.
        within_async(SOON, "copies answer", async || {
            let count = || [true, false].map(|on_masters| stage.calls(on_masters, "get"));
            let before = count();
            stage.read(1).await;
            let [on_masters, on_copies] = [0, 1].map(|i| count()[i] - before[i]);
            on_copies >= 2 * KEYS as u64 && on_masters <= KEYS as u64 / 4
        })
        .await;
        stage
    }

    /// Every key at every pod: of this version, and from what is stored.
    async fn read(&self, version: usize) {
        for key in 0..KEYS {
            for weir in &self.weirs {
                let answer = weir.get(&item(key)).await;
                assert_eq!((answer.status, answer.text()), (200, &*format!("{} v{version}", item(key))), "{answer:?}");
                // What a late copy does not have is found as it is leased.
                assert!(answer.is_hit() || answer.is_collapsed(), "{answer:?}");
            }
        }
    }

    fn each(&self, masters: bool, mut what: impl FnMut(&Redis)) {
        self.place.each(|redis| {
            if redis.try_cli(&["ROLE"]).is_ok_and(|role| role.starts_with("master") == masters) {
                what(redis);
            }
        });
    }

    /// How often a command was called on the masters, or on the copies.
    fn calls(&self, on_masters: bool, command: &str) -> u64 {
        let mut calls = 0;
        self.each(on_masters, |redis| {
            let told = redis.cli(&["INFO", "commandstats"]);
            let of =
                |line: &str| line.strip_prefix(&format!("cmdstat_{command}:calls="))?.split(',').next()?.parse().ok();
            calls += told.lines().find_map(of).unwrap_or(0);
        });
        calls
    }

    /// What one copy is known by.
    fn copy(&self) -> usize {
        match &self.place {
            Place::Cluster(cluster) => cluster.replica_of(cluster.masters()[0]),
            Place::Sentinels(sentinels) => sentinels.replicas()[0],
            Place::Alone { .. } => panic!("no copies"),
        }
    }

    fn befall(&self, copy: usize, of_cluster: fn(&RedisCluster, usize), under_sentinels: fn(&Sentinels, usize)) {
        match &self.place {
            Place::Cluster(cluster) => of_cluster(cluster, copy),
            Place::Sentinels(sentinels) => under_sentinels(sentinels, copy),
            Place::Alone { .. } => panic!("no copies"),
        }
    }
}

fn item(key: usize) -> String {
    format!("/items/{key}")
}

async fn copies_answer(topology: Topology) {
    let stage = Stage::of(topology).await;
    let count = |command: &str| [true, false].map(|on_masters| stage.calls(on_masters, command));
    let (gets, began) = (count("get"), Instant::now());
    for _ in 0..5 {
        stage.read(1).await;
    }
    let gets = [0, 1].map(|i| count("get")[i] - gets[i]);
    let (scripts, mut looks) = (count("evalsha"), 0);
    // Each pod has looked at each of them, which asks for everything once.
    stage.each(false, |_| looks += stage.weirs.len() as u64);
    eprintln!("{topology:?}: GET on masters and copies {gets:?} in {:?}, EVALSHA {scripts:?}", began.elapsed());
    assert!(gets[1] >= 10 * KEYS as u64, "{gets:?}");
    // The look at Redis reads, and so do scripts.
    assert!(gets[0] < KEYS as u64, "{gets:?}");
    assert!(scripts[0] > 0 && scripts[1] <= looks, "{scripts:?}");
    assert!(stage.up.total() == KEYS);
}

#[tokio::test]
async fn copies_answer_in_a_cluster() {
    copies_answer(Topology::Cluster).await;
}

#[tokio::test]
async fn copies_answer_under_sentinels() {
    copies_answer(Topology::Sentinels).await;
}

/// Copies hear nothing of their masters any more, and go on answering.
async fn late_copies(topology: Topology) {
    let stage = Stage::of(topology).await;
    stage.each(false, |copy| {
        // No master takes this password, as none asks for one.
        copy.cli(&["CONFIG", "SET", "masterauth", "wrong"]);
        copy.cli(&["CLIENT", "KILL", "TYPE", "master"]);
        assert!(copy.cli(&["INFO", "replication"]).contains("master_link_status:down"));
    });
    stage.version.store(2, Ordering::SeqCst);
    for key in 0..KEYS {
        stage.weirs[key % 2].invalidate(&format!(r#"{{"tags":["item:{key}"]}}"#)).await;
        for weir in &stage.weirs {
            within_async(SOON, "applied", async || weir.get(&item(key)).await.text().ends_with(" v2")).await;
        }
    }
    for _ in 0..3 {
        stage.read(2).await;
    }
    // What copies do not have the masters do: nobody fetches for himself.
    let again: Vec<_> = (0..KEYS).filter(|key| stage.up.count(&item(*key)) != 2).collect();
    assert!(again.is_empty(), "fetched again: {again:?}");
    stage.each(false, |copy| {
        copy.cli(&["CONFIG", "SET", "masterauth", ""]);
    });
    let before = stage.calls(false, "get");
    within_async(SOON, "copies answer again", async || {
        stage.read(2).await;
        stage.calls(false, "get") > before + 2 * KEYS as u64
    })
    .await;
}

#[tokio::test]
async fn late_copies_bring_nothing_old_back_in_a_cluster() {
    late_copies(Topology::Cluster).await;
}

#[tokio::test]
async fn late_copies_bring_nothing_old_back_under_sentinels() {
    late_copies(Topology::Sentinels).await;
}

/// A copy dies, or stops answering: masters are asked, and their breakers stay closed.
async fn dead_copies(topology: Topology) {
    let stage = Stage::of(topology).await;
    let is_away = async |weir: &Weir| weir.metric("weir_redis_breaker_open").await > 0.0;
    let copy = stage.copy();
    stage.befall(copy, RedisCluster::freeze, Sentinels::freeze);
    for _ in 0..3 {
        stage.read(1).await;
    }
    for weir in &stage.weirs {
        assert!(!is_away(weir).await);
        let late = sum(&weir.metrics().await, r#"weir_redis_commands_total{command="get",result="timeout"}"#);
        assert!(late <= 8.0, "{late} waited for the frozen copy");
    }
    stage.befall(copy, RedisCluster::thaw, Sentinels::thaw);
    stage.befall(copy, RedisCluster::kill, Sentinels::kill);
    for _ in 0..3 {
        stage.read(1).await;
    }
    for weir in &stage.weirs {
        assert!(!is_away(weir).await);
    }
    assert_eq!(stage.up.total(), KEYS, "nothing was fetched again");
}

#[tokio::test]
async fn dead_copies_are_done_without_in_a_cluster() {
    dead_copies(Topology::Cluster).await;
}

#[tokio::test]
async fn dead_copies_are_done_without_under_sentinels() {
    dead_copies(Topology::Sentinels).await;
}
