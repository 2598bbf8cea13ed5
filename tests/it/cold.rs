//! G2 at the size of a fleet: everybody asks for one key that nobody has, and leaders crash while they fetch it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::fleet::dice::Dice;
use crate::harness::{
    Answer, Connection, Gate, H2, Redis, Setup, Upstream, Weir, get, join_all, optimised, redis, reply, scale,
    upstream, weir,
};
use crate::leases::LEASE;

/// Processes.
pub const PODS: usize = 16;

/// What the upstream takes where leaders crash.
const FETCH: Duration = Duration::from_millis(600);

/// From a crash, a new leader asks within this and the lease.
pub const TAKEOVER: Duration = Duration::from_millis(100);

/// From a crash, everybody is answered within this, the lease, the takeover and one fetch.
const ANSWERED: Duration = Duration::from_secs(1);

/// What code that is not optimised may take longer, sharing its cores with other tests.
pub fn margin() -> Duration {
    if optimised() { Duration::ZERO } else { Duration::from_millis(2500) }
}

/// Clients at once.
pub fn clients() -> usize {
    scale("WEIR_CLIENTS", if optimised() { 2_000 } else { 480 })
}

/// Pod `number`, whose fetches say which pod they are from.
pub fn pod(number: usize, up: &Upstream, redis: &Redis) -> Setup {
    let routes = format!(
        r#"
        [[route]]
        name = "all"
        path = "/{{*path}}"
        cache.ttl = "60s"
        cache.wait_timeout = "30s"
        request.set = {{ x-pod = "{number}" }}
        "#
    );
    // Sixteen processes share the cores of one machine with their clients and Redis: an answer of Redis' may take longer
    // than it would with a processor for each pod.
    let deadline = if optimised() { "200ms" } else { "1s" };
    weir(&routes).to(up.url()).redis(redis).set("redis.deadline", deadline)
}

/// What a client of pod `at` got, and when.
pub struct Served {
    pub at: usize,
    pub answer: std::io::Result<Answer>,
    pub when: Instant,
}

/// Clients that ask for `path` all at once over connections that are open already, spread over the pods.
pub async fn crowd(path: &str, proxies: &[std::net::SocketAddr]) -> JoinSet<Served> {
    let mut crowd = JoinSet::new();
    let gate = Gate::new();
    for i in 0..clients() {
        let (at, gate, request) = (i % proxies.len(), gate.clone(), get(path));
        let proxy = proxies[at];
        crowd.spawn(async move {
            let mut connection = Connection::open(proxy).await;
            gate.pass().await;
            let answer = connection.try_send(&request).await;
            Served { at, answer, when: Instant::now() }
        });
    }
    gate.reached(clients()).await;
    gate.open();
    crowd
}

/// Every client of a crowd has asked, and nobody has been answered.
pub async fn everybody_waits(weirs: &[Weir]) {
    for (at, weir) in weirs.iter().enumerate() {
        let own = (0..clients()).filter(|i| i % weirs.len() == at).count();
        weir.metric_reaches("weir_requests_in_flight", own as f64).await;
    }
}

#[tokio::test]
async fn thousands_on_one_cold_key_of_sixteen_weirs_are_one_fetch() {
    let (up, redis, gate) = (upstream(), redis(), Gate::new());
    up.route("/cold", reply("warm").gate(&gate));
    let setups: Vec<_> = (0..PODS).map(|number| pod(number, &up, &redis)).collect();
    let weirs = join_all(setups.iter().map(Setup::start)).await;
    let proxies: Vec<_> = weirs.iter().map(|weir| weir.proxy).collect();
    let crowd = crowd("/cold", &proxies).await;
    // Nobody is answered before everybody waits.
    everybody_waits(&weirs).await;
    let opened = Instant::now();
    gate.open();
    let served = crowd.join_all().await;
    let last = served.iter().map(|one| one.when - opened).max().unwrap_or_default();
    eprintln!(
        "{} clients of {PODS} Weirs, {} fetches, the last answered after {last:?}",
        served.len(),
        up.count("/cold")
    );
    let good = |one: &Served| one.answer.as_ref().is_ok_and(|answer| answer.status == 200 && answer.text() == "warm");
    let bad = served.iter().find(|one| !good(one));
    assert!(bad.is_none(), "{:?}", bad.map(|one| &one.answer));
    assert_eq!((served.len(), up.count("/cold")), (clients(), 1));
}

/// A fetch as the service saw it.
#[derive(Clone, Copy)]
struct Asked {
    pod: usize,
    when: Instant,
}

#[tokio::test]
async fn a_crowd_outlives_the_crashes_of_its_leaders() {
    let seed = scale("WEIR_SEED", 1) as u64;
    let rounds = scale("WEIR_CRASHES", if optimised() { 12 } else { 3 });
    let mut dice = Dice::new(seed, 2_000);
    let (up, redis) = (upstream(), redis());
    let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
    let seen = Arc::clone(&asked);
    up.on("*", move |request| {
        let pod = request.header("x-pod").expect("a fetch says whose it is").parse().expect("a number");
        seen.lock().expect("no panic while held").push(Asked { pod, when: Instant::now() });
        reply("warm").takes(FETCH)
    });
    let setups: Vec<_> = (0..PODS).map(|number| pod(number, &up, &redis)).collect();
    let mut weirs = join_all(setups.iter().map(Setup::start)).await;
    for round in 0..rounds {
        asked.lock().expect("no panic while held").clear();
        let proxies: Vec<_> = weirs.iter().map(|weir| weir.proxy).collect();
        let mut crowd = crowd(&format!("/cold/{round}"), &proxies).await;
        let mut served = Vec::new();
        let mut crashes: Vec<(usize, Instant)> = Vec::new();
        let planned = 1 + dice.below(2);
        for turn in 0..planned {
            // The next leader, unless everybody has been answered without one.
            let leader = loop {
                let next = asked.lock().expect("no panic while held").get(turn).copied();
                if next.is_some() || crowd.is_empty() {
                    break next;
                }
                tokio::select! {
                    Some(one) = crowd.join_next() => served.push(one.expect("no panic")),
                    () = tokio::time::sleep(Duration::from_millis(1)) => {}
                }
            };
            let Some(leader) = leader else { break };
            // Mostly while it fetches, sometimes just after.
            let moment = leader.when + dice.between(Duration::ZERO, FETCH + TAKEOVER);
            tokio::time::sleep_until(moment).await;
            crashes.push((leader.pod, Instant::now()));
            weirs[leader.pod].kill();
        }
        while let Some(one) = crowd.join_next().await {
            served.push(one.expect("no panic"));
        }
        let asked = asked.lock().expect("no panic while held").clone();
        judge(&format!("seed {seed}, round {round}"), &crashes, &asked, &served);
        for (pod, _) in crashes {
            weirs[pod] = setups[pod].start().await;
        }
    }
}

fn judge(what: &str, crashes: &[(usize, Instant)], asked: &[Asked], served: &[Served]) {
    assert_eq!(served.len(), clients(), "{what}");
    assert!(asked.len() <= 1 + crashes.len(), "{what}: {} fetches for {} crashes", asked.len(), crashes.len());
    let mut gaps = Vec::new();
    for (turn, (_, crashed)) in crashes.iter().enumerate() {
        if let Some(next) = asked.get(turn + 1) {
            gaps.push(next.when.saturating_duration_since(*crashed));
        }
    }
    let first = asked.first().expect("a fetch").when;
    let last_crash = crashes.iter().map(|(_, when)| *when).max().unwrap_or(first);
    let living = served.iter().filter(|one| crashes.iter().all(|(pod, _)| *pod != one.at));
    let mut slowest = Duration::ZERO;
    for one in living {
        let good = one.answer.as_ref().is_ok_and(|answer| answer.status == 200 && answer.text() == "warm");
        assert!(good, "{what}: a client of a Weir that lives got {:?}", one.answer);
        slowest = slowest.max(one.when.saturating_duration_since(last_crash));
    }
    eprintln!(
        "{what}: {} crashes, {} fetches, taken over after {gaps:?}, the last answered {slowest:?} after the last crash",
        crashes.len(),
        asked.len()
    );
    for gap in gaps {
        assert!(gap <= LEASE + TAKEOVER + margin(), "{what}: taken over after {gap:?}");
    }
    assert!(slowest <= LEASE + TAKEOVER + FETCH + ANSWERED + margin(), "{what}: answered after {slowest:?}");
}

/// Most who wait for one fetch in one process.
const FOLLOWERS: usize = 8_192;

/// More than may wait come for `path`; the first of them is fetching it. Gives the answers of those who do not wait.
async fn too_many(path: &'static str, weir: &Weir, gate: &Gate) -> Vec<Answer> {
    const BEYOND: usize = 40;
    let mut crowd = JoinSet::new();
    let connections = join_all((0..8).map(|_| H2::open(weir.proxy))).await;
    let mut ask = |i: usize| {
        let connection = connections[i % connections.len()].clone();
        crowd.spawn(async move { connection.get(path).await });
    };
    ask(0);
    gate.reached(1).await;
    (1..FOLLOWERS + BEYOND).for_each(&mut ask);
    let mut turned_away = Vec::new();
    for _ in 0..BEYOND {
        turned_away.push(crowd.join_next().await.expect("somebody is answered").expect("no panic"));
    }
    gate.open();
    let served = crowd.join_all().await;
    assert!(served.len() == FOLLOWERS && served.iter().all(|answer| answer.status == 200 && answer.text() == "new"));
    turned_away
}

#[tokio::test]
async fn whoever_finds_the_queue_of_a_key_full_need_not_wait() {
    let (up, cold, expired) = (upstream(), Gate::new(), Gate::new());
    let old = reply("old").header("cache-control", "max-age=0, stale-if-error=60").header("etag", "\"1\"");
    up.route("/cold", reply("new").max_age(60).gate(&cold));
    up.sequence("/expired", vec![old, reply("new").max_age(60).gate(&expired)]);
    let routes = r#"
        [[route]]
        name = "all"
        path = "/{*path}"
        cache.enabled = true
        cache.wait_timeout = "30s"
    "#;
    let weir = weir(routes).to(up.url()).set("server.http2.streams", 2_000).start().await;
    for answer in too_many("/cold", &weir, &cold).await {
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.number("retry-after") >= Some(1), "{answer:?}");
        assert_eq!(answer.cache_status(), "weir; detail=key_queue_full");
    }
    weir.get("/expired").await;
    for answer in too_many("/expired", &weir, &expired).await {
        assert!(answer.is_stale() && answer.text() == "old", "{answer:?}");
    }
    assert_eq!((up.count("/cold"), up.count("/expired")), (1, 2));
    assert_eq!(weir.metric(r#"weir_upstream_sheds_total{reason="key_queue_full"}"#).await, 80.0);
}
