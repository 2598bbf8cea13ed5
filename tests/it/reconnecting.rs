//! F20: a fleet that loses Redis all at once, and finds it again: neither in masses nor in step, and nobody waits for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::harness::{Flaky, Load, PATIENCE, Weir, get, join_all, optimised, reply, upstream, weir, within_async};
use crate::storm::place::{Place, Topology};
use crate::storm::slack;

/// Pods. Two cores do not carry fifty that are not optimised, when other tests want them as well.
fn pods() -> usize {
    if optimised() { 50 } else { 25 }
}

/// One fleet at a time, for the same reason.
static TURN: Mutex<()> = Mutex::const_new(());

/// Requests a second, to all of them.
const RATE: u32 = 200;

/// How long Redis is there first.
const CALM: Duration = Duration::from_secs(1);

/// How long Redis is away.
const AWAY: Duration = Duration::from_secs(4);

/// From then on all that had a connection have found out.
const SETTLED: Duration = Duration::from_secs(1);

/// How often a pod tries each server that is away, a second: at most eight that want a connection, every 250 ms.
const TRIES: usize = 32;

/// A moment.
const STEP: Duration = Duration::from_millis(50);

/// Hardly a moment has so many times as many tries as the others.
const CROWDED: usize = 2;

/// Tries in a moment that say nothing of the others.
const FEW: usize = 10;

/// All use Redis again, so soon after it is back.
const BACK: Duration = Duration::from_secs(2);

/// What requests take without Redis.
const LITTLE: Duration = Duration::from_millis(5);

/// Connections of a pod with one worker: two for each master, and at most ten that the process has for itself.
fn connections(topology: Topology) -> usize {
    let masters = if topology == Topology::Cluster { 3 } else { 1 };
    2 * masters + 10
}

async fn blocking<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(what).await.expect("no panic")
}

/// Whether no pod goes without Redis.
async fn all_use_it(weirs: &[Weir]) -> bool {
    join_all(weirs.iter().map(|weir| weir.metric("weir_redis_breaker_open"))).await.iter().all(|open| *open == 0.0)
}

/// When somebody connected to each of the servers, counted from `from` until now.
fn tries(place: &Place, from: Instant) -> Vec<Vec<Duration>> {
    let accepted = place.ways().into_iter().map(Flaky::accepted);
    accepted.map(|all| all.into_iter().filter_map(|at| at.checked_duration_since(from)).collect()).collect()
}

async fn come_back(topology: Topology) {
    let _turn = TURN.lock().await;
    let up = upstream();
    up.route("/a", reply("a").max_age(3600));
    let place = Arc::new(blocking(move || Place::new(topology).without_failovers()).await);
    let routes = r#"
        [[route]]
        name = "all"
        path = "/{*path}"
        limits = [{ name = "own", key = ["header:x-id"], rate = "1000/s" }]
    "#;
    let deadline = if optimised() { Duration::from_millis(20) } else { Duration::from_millis(100) };
    let setup = weir(routes).to(up.url()).set("redis.deadline", format!("{}ms", deadline.as_millis()));
    let setup = place.apply(setup.set("server.workers", 1).set("log.access", false));
    let weirs = join_all((0..pods()).map(|_| setup.start())).await;
    let proxies: Vec<_> = weirs.iter().map(|weir| weir.proxy).collect();
    let began = Instant::now();
    let load = Load::new(RATE, PATIENCE * 3, |_| get("/a").header("x-id", "a")).to(&proxies).start();
    within_async(PATIENCE, "all use Redis", async || all_use_it(&weirs).await).await;

    // Each has had what it takes to answer at once.
    join_all(weirs.iter().map(|weir| weir.get("/a"))).await;
    let warm = Instant::now();
    tokio::time::sleep_until(warm + CALM).await;
    let (gone, all) = (Instant::now(), Arc::clone(&place));
    blocking(move || all.kill()).await;
    tokio::time::sleep_until(gone + AWAY).await;
    let (away, returns, all) = (tries(&place, gone + SETTLED), Instant::now(), Arc::clone(&place));
    blocking(move || all.start()).await;
    let is_back = Instant::now();
    let back = within_async(PATIENCE, "all use Redis again", async || all_use_it(&weirs).await).await;
    let came = tries(&place, returns);
    let since: usize = tries(&place, is_back).iter().map(Vec::len).sum();
    let report = load.stop().await;

    let most = TRIES * pods() * (AWAY - SETTLED).as_secs() as usize;
    for (tried, came) in away.iter().zip(&came) {
        let steps = (AWAY - SETTLED).div_duration_f64(STEP) as usize;
        let (by_step, usual) = (by_step(tried, steps), tried.len() / steps);
        // Of all moments, hardly one in ten has more. In step, one in five would have them all.
        let crowd = by_step[by_step.len() * 9 / 10];
        eprintln!("{topology:?}: {} tries, at times {crowd} in {STEP:?}; {} as it returns", tried.len(), came.len());
        assert!(tried.len() <= most, "{} tries of a server, not {most}", tried.len());
        // A server that hardly anybody wants has too few for that.
        assert!(usual < FEW || crowd <= CROWDED * usual, "in step: {crowd} in {STEP:?}, {usual} otherwise");
        let most = self::by_step(came, steps).pop().unwrap_or(0);
        assert!(usual < FEW || most <= 2 * CROWDED * usual, "as it returns {most} in {STEP:?}, {usual} before");
    }
    eprintln!("{topology:?}: {since} connections in {back:?} since it is back; {report}");
    assert!(back <= BACK + slack() * 2, "used again {back:?} after it came back");
    let most = pods() * connections(topology);
    assert!(since <= most, "{since} connections, not {most}");
    assert_eq!(report.errors(), Vec::<String>::new());
    let p99 = |from: Instant, to: Instant| report.quantile_between(0.99, from - began, to - began);
    let (calm, first, later) = (p99(warm, gone), p99(gone, gone + AWAY), p99(gone + SETTLED, gone + AWAY));
    eprintln!("{topology:?}: p99 {calm:?} before, {first:?} while it was away, {later:?} when all had found out");
    assert!(first <= deadline + LITTLE + slack(), "the p99 was {first:?} while it was away");
    assert!(later <= deadline / 2 + slack(), "the p99 was {later:?} when all had found out");
}

/// How many came in each of the first `steps`, the fewest first.
fn by_step(tries: &[Duration], steps: usize) -> Vec<usize> {
    let mut by_step = vec![0; steps];
    for at in tries {
        if let Some(count) = by_step.get_mut(at.div_duration_f64(STEP) as usize) {
            *count += 1;
        }
    }
    by_step.sort_unstable();
    by_step
}

#[tokio::test]
async fn a_fleet_comes_back_to_a_redis() {
    come_back(Topology::Alone).await;
}

#[tokio::test]
async fn a_fleet_comes_back_to_a_cluster() {
    come_back(Topology::Cluster).await;
}

#[tokio::test]
async fn a_fleet_comes_back_to_what_sentinels_watch_over() {
    come_back(Topology::Sentinels).await;
}
