//! G1 and M1 to M4 from the outside: a fleet of processes, a service that numbers its versions, clients and invalidators that
//! write down what they saw, a fault every few seconds, and a checker that shares nothing with Weir.
//!
//! `make fleet` runs it at full size. Chance comes from `WEIR_SEED`, which a failure names; the machine's own timing is not
//! replayed, so a seed that failed is run several times.

pub mod check;
pub mod dice;
mod driver;
pub mod faults;
mod fetches;
pub mod pods;
pub mod service;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use check::{Findings, History, Life, check};
use dice::Dice;
use driver::Stage;
use fetches::{Spent, Why};

use crate::harness::{clock, optimised, redis_by, scale, weir};

/// Microseconds since the beginning.
pub type Micros = u64;

/// Keys, few enough that each is named often.
pub const KEYS: usize = 200;

/// Keys under one prefix.
const GROUP: usize = 20;

/// Tags that answers carry, each by the keys of one remainder.
pub const TAGS: usize = 20;

/// B.
const BOUND: Duration = Duration::from_secs(2);

/// Programs that invalidate.
const INVALIDATORS: usize = 4;

/// Clients of each pod.
const READERS: usize = 3;

/// How a process is configured that says who it is.
fn routes(Life { pod, number }: Life) -> String {
    format!(
        r#"
        [redis]
        deadline = "500ms"

        [cache]
        max_staleness = "2s"

        [[route]]
        name = "keys"
        path = "/k/{{group}}/{{key}}"
        purge = true
        cache.ttl = "20s"
        cache.tags = ["key:{{key}}"]
        request.set = {{ x-pod = "{pod}.{number}" }}
        "#
    )
}

/// Of so many fetches one may be needless: a pod that applies an invalidation before those that were logged in front of it, or
/// whose message has no number yet for longer than usual, keeps what it fetches meanwhile to itself.
const NEEDLESS: usize = 125;

/// Where anything goes wrong, at least so often (`WEIR_FAULTS`).
const FAULTS: usize = 5;

/// What is to be done.
struct Plan {
    pods: usize,
    reads: usize,
    orders: usize,
    faults: &'static [&'static [faults::Fault]],
    /// `redis.bus` of every pod: "publish"; or "tracking" of every second one, if it is "both".
    bus: &'static str,
}

/// What came of it.
struct Outcome {
    findings: Findings,
    spent: Spent,
    history: History,
    /// Faults, and how often each was done.
    done: BTreeMap<String, usize>,
}

/// Does it, and judges what was seen.
async fn run(plan: Plan) -> Outcome {
    let seed = scale("WEIR_SEED", 1) as u64;
    let clock = clock();
    let (redis, service) = (Arc::new(redis_by(&clock)), service::service());
    let url = format!("http://{}", service.address);
    let bus = plan.bus;
    let setup: pods::Make = Arc::new(move |life| {
        let tracks = bus == "both" && life.pod % 2 == 0;
        weir(&routes(life)).to(&url).set("redis.bus", if tracks { "tracking" } else { "publish" })
    });
    let stage = Arc::new(Stage {
        pods: pods::pods(plan.pods, &setup, &redis).await,
        state: Arc::clone(&service.state),
        redis: Mutex::new(redis),
        clock,
        reads: plan.reads,
        read: AtomicUsize::new(0),
        faults: if plan.faults.is_empty() { 0 } else { scale("WEIR_FAULTS", FAULTS) },
        inflicted: AtomicUsize::new(0),
        reads_each: plan.reads / plan.orders,
        ordered: AtomicUsize::new(0),
        troubles: Mutex::default(),
    });
    let began = stage.state.now();
    let readers: Vec<_> = (0..plan.pods * READERS)
        .map(|i| tokio::spawn(driver::reader(Arc::clone(&stage), i % plan.pods, Dice::new(seed, 1_000 + i as u64))))
        .collect();
    let invalidators: Vec<_> = (0..INVALIDATORS)
        .map(|i| tokio::spawn(driver::invalidator(Arc::clone(&stage), Dice::new(seed, i as u64))))
        .collect();
    let faults: Vec<_> = (plan.faults.iter().zip(100..))
        .map(|(kind, stream)| tokio::spawn(faults::driver(Arc::clone(&stage), Dice::new(seed, stream), kind)))
        .collect();
    let mut history = History::default();
    for reader in readers {
        let (reads, faults) = reader.await.expect("no panic");
        history.reads.extend(reads);
        history.faults.extend(faults);
    }
    for invalidator in invalidators {
        history.orders.extend(invalidator.await.expect("no panic"));
    }
    let mut done = BTreeMap::new();
    for driver in faults {
        done.extend(driver.await.expect("no panic"));
    }
    let took = (stage.state.now() - began) as f64 / 1e6;
    history.away = stage.pods.iter().flat_map(pods::Pod::away).collect();
    history.fetches = service.state.fetches();
    history.troubles = std::mem::take(&mut *stage.troubles.lock().expect("no panic while held"));
    let findings = check(&history, BOUND.as_micros() as Micros);
    let spent = fetches::judge(&history);
    eprintln!(
        "seed {seed}: {} reads and {} invalidations over {} pods in {took:.1} s, {} fetches, {} failed reads; {findings}; {done:?}",
        history.reads.len(),
        history.orders.len(),
        plan.pods,
        history.fetches.len(),
        history.faults.len(),
    );
    eprintln!("seed {seed}: {spent}");
    if let Some(read) = &findings.worst {
        eprintln!("{}", check::story(&history, read));
    }
    let replay = format!("WEIR_SEED={seed}, and the same sizes");
    assert!(findings.violations.is_empty(), "{replay}:\n{}", findings.violations.join("\n"));
    let (needless, most) = (spent.of(Why::Needless), history.fetches.len().div_ceil(NEEDLESS));
    assert!(needless <= most, "{replay}: {needless} of {most}:\n{}", spent.violations.join("\n"));
    Outcome { findings, spent, history, done }
}

#[tokio::test]
async fn nothing_older_than_the_bound_is_served_whatever_happens() {
    let plan = Plan {
        pods: scale("WEIR_PODS", if optimised() { 8 } else { 4 }),
        reads: scale("WEIR_READS", if optimised() { 100_000 } else { 30_000 }),
        orders: scale("WEIR_ORDERS", if optimised() { 2_000 } else { 600 }),
        faults: &[faults::OF_PODS, faults::OF_REDIS],
        bus: "both",
    };
    let (least, orders) = (plan.reads / 100, plan.orders);
    let Outcome { findings, spent, history, .. } = run(plan).await;
    assert!(findings.tempted >= least, "only {} reads were tempted", findings.tempted);
    // How many are logged is chance: a Redis that is full or away answers more of them in the same time.
    let logged = findings.taken[0];
    assert!(history.orders.len() * 2 >= orders && logged * 25 >= history.orders.len(), "{:?}", findings.taken);
    assert!(findings.overtaken > 0, "no fetch was overtaken");
    // Where Redis is away one pod and B is what is promised, so that most of them are of no account to the fleet.
    assert!(
        spent.of(Why::CutOff) > 0 && spent.of(Why::Lost) > 0 && spent.of(Why::Invalidated) * 20 >= orders,
        "{spent}"
    );
}

#[tokio::test]
async fn without_faults_other_pods_know_within_milliseconds() {
    let plan = Plan { pods: 3, reads: 20_000, orders: 500, faults: &[], bus: "publish" };
    let Outcome { findings, spent, history, .. } = run(plan).await;
    assert!(history.faults.is_empty());
    let most = if optimised() { Duration::from_millis(50) } else { Duration::from_millis(200) };
    assert!(findings.lag(0.99) <= most.as_micros() as Micros, "{findings}");
    // M2, and G2 at its strictest: nothing is wrong, so that each invalidation is one fetch of the whole fleet.
    assert!(findings.raced.0 >= 10 && findings.raced.1 >= 10, "{findings}");
    assert!(spent.crowded >= 20 && spent.of(Why::Invalidated) >= 500, "{spent}");
    assert_eq!(spent.of(Why::CutOff) + spent.of(Why::Lost) + spent.of(Why::Unshared), 0, "{spent}");
}

#[tokio::test]
async fn what_is_wrong_with_one_pod_costs_the_service_little() {
    let plan = Plan { pods: 4, reads: 15_000, orders: 400, faults: &[faults::OF_ONE_POD], bus: "publish" };
    let Outcome { spent, done, .. } = run(plan).await;
    assert!(done.len() >= 3, "{done:?}");
    assert!(spent.crowded >= 10 && spent.of(Why::Invalidated) >= 300 && spent.of(Why::CutOff) > 0, "{spent}");
}
