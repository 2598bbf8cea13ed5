//! G1 and M1 to M4 from the outside: a fleet of processes, a service that numbers its versions, clients and invalidators that
//! write down what they saw, a fault every few seconds, and a checker that shares nothing with Weir.
//!
//! `make fleet` runs it at full size. Chance comes from `WEIR_SEED`, which a failure names; the machine's own timing is not
//! replayed, so a seed that failed is run several times.

mod check;
pub mod dice;
mod driver;
mod faults;
mod pods;
mod service;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use check::{Findings, History, check};
use dice::Dice;
use driver::Stage;

use crate::harness::{optimised, redis, scale, weir};

/// Microseconds since the beginning.
type Micros = u64;

/// Keys, few enough that each is named often.
const KEYS: usize = 200;

/// Keys under one prefix.
const GROUP: usize = 20;

/// Tags that answers carry, each by the keys of one remainder.
const TAGS: usize = 20;

/// B.
const BOUND: Duration = Duration::from_secs(2);

/// Programs that invalidate.
const INVALIDATORS: usize = 4;

/// Clients of each pod.
const READERS: usize = 3;

const ROUTES: &str = r#"
[cache]
max_staleness = "2s"

[[route]]
name = "keys"
path = "/k/{group}/{key}"
purge = true
cache.ttl = "20s"
cache.tags = ["key:{key}"]
"#;

/// What is to be done.
struct Plan {
    pods: usize,
    reads: usize,
    orders: usize,
    faults: bool,
}

/// Does it, and judges what was seen.
async fn run(plan: Plan) -> (Findings, History, BTreeMap<String, usize>) {
    let seed = scale("WEIR_SEED", 1) as u64;
    let (redis, service) = (Arc::new(redis()), service::service());
    let setup = weir(ROUTES).to(format!("http://{}", service.address));
    let stage = Arc::new(Stage {
        pods: pods::pods(plan.pods, &setup, &redis).await,
        state: Arc::clone(&service.state),
        redis: Mutex::new(redis),
        reads: AtomicUsize::new(plan.reads),
        orders: AtomicUsize::new(plan.orders),
        reads_each: plan.reads / plan.orders,
    });
    let began = stage.state.now();
    let readers: Vec<_> = (0..plan.pods * READERS)
        .map(|i| tokio::spawn(driver::reader(Arc::clone(&stage), i % plan.pods, Dice::new(seed, 1_000 + i as u64))))
        .collect();
    let invalidators: Vec<_> = (0..INVALIDATORS)
        .map(|i| tokio::spawn(driver::invalidator(Arc::clone(&stage), Dice::new(seed, i as u64))))
        .collect();
    let kinds = if plan.faults { &[faults::OF_PODS, faults::OF_REDIS][..] } else { &[] };
    let faults: Vec<_> = (kinds.iter().zip(100..))
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
    let findings = check(&history, BOUND.as_micros() as Micros);
    eprintln!(
        "seed {seed}: {} reads and {} invalidations over {} pods in {took:.1} s, {} fetches, {} failed reads; {findings}; {done:?}",
        history.reads.len(),
        history.orders.len(),
        plan.pods,
        history.fetches.len(),
        history.faults.len(),
    );
    assert!(findings.violations.is_empty(), "seed {seed}:\n{}", findings.violations.join("\n"));
    (findings, history, done)
}

#[tokio::test]
async fn nothing_older_than_the_bound_is_served_whatever_happens() {
    let plan = Plan {
        pods: scale("WEIR_PODS", if optimised() { 8 } else { 4 }),
        reads: scale("WEIR_READS", if optimised() { 100_000 } else { 30_000 }),
        orders: scale("WEIR_ORDERS", if optimised() { 2_000 } else { 600 }),
        faults: true,
    };
    let (least, orders) = (plan.reads / 100, plan.orders);
    let (findings, history, _) = run(plan).await;
    assert!(findings.tempted >= least, "only {} reads were tempted", findings.tempted);
    assert!(history.orders.len() * 2 >= orders && findings.taken[0] * 4 >= orders, "{:?}", findings.taken);
    assert!(findings.overtaken > 0, "no fetch was overtaken");
}

#[tokio::test]
async fn without_faults_other_pods_know_within_milliseconds() {
    let plan = Plan { pods: 3, reads: 20_000, orders: 500, faults: false };
    let (findings, history, _) = run(plan).await;
    assert!(history.faults.is_empty());
    let most = if optimised() { Duration::from_millis(50) } else { Duration::from_millis(200) };
    assert!(findings.lag(0.99) <= most.as_micros() as Micros, "{findings}");
}
