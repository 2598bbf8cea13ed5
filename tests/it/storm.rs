//! Redis' failures under a storm: hits, misses, limited requests and invalidations at a rate that waits for nobody,
//! while Redis fails in every way that it can, alone, as a cluster, and under sentinels.
//!
//! Judged are errors, waiting, what is served (by the checker of `fleet`), what limits admit (by that of `limits_fleet`), and how
//! soon Redis is used again. `make storm` walks through faults at random for an hour; chance comes from `WEIR_SEED`.

mod faults;
mod judge;
mod machine;
mod means;
pub mod place;
mod pods;
mod traffic;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use faults::Fault;
use judge::{Event, Verdict, judge};
use machine::Watch;
use place::{Place, Topology};
use pods::Pods;
use tokio::time::Instant;
use traffic::Traffic;

use crate::fleet::Micros;
use crate::fleet::check::Life;
use crate::fleet::dice::Dice;
use crate::fleet::service::service;
use crate::harness::{PATIENCE, Setup, Weir, is_before_7, optimised, scale, weir, within_async};

/// Pods.
const PODS: usize = 2;

/// B.
const BOUND: Duration = Duration::from_secs(2);

/// What one identity may have, a second.
const RATE: u32 = 5;

/// And at once: enough for loans.
const BURST: u32 = 20;

/// What a request may wait for Redis: the default, or where a busy machine is slower than that, more.
const DEADLINE: Duration = if cfg!(debug_assertions) { Duration::from_millis(100) } else { Duration::from_millis(20) };

/// So long a pod that ends answers who has not heard yet that another is in its place.
const LAME_DUCK: &str = "1s";

/// From the load's beginning to the first fault.
const CALM: Duration = Duration::from_millis(2500);

/// Between two faults, once all is well.
const PAUSE: Duration = Duration::from_millis(500);

/// How long a fault lasts that is one of its own: longer than B.
const LENGTH: Duration = Duration::from_millis(2500);

/// In a walk, which is to know shorter and longer ones.
const LENGTHS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(4000));

/// A part of a long walk, with pods and a Redis of its own.
const ROUND: Duration = Duration::from_secs(60);

/// So long after Sentinels have replaced a master every pod has heard of it: each asks them once a second.
const SPLIT: Duration = Duration::from_secs(2);

/// So often a fault is done of which the machine lets nobody judge the waiting.
const TRIES: usize = 3;

/// Of all faults of a walk, and of as many as a round has, at most so many may have to be done again: more of it may be Weir's
/// doing.
const AGAIN: (usize, f64) = (30, 0.2);

/// A walk as every test run has it: two minutes, of all three.
const SHORT: Duration = Duration::from_secs(40);

/// What code that is not optimised may take longer, sharing its cores with other tests.
pub fn slack() -> Duration {
    if optimised() { Duration::ZERO } else { Duration::from_millis(400) }
}

fn setup(Life { pod, number }: Life, url: &str) -> Setup {
    let routes = format!(
        r#"
        [cache]
        max_staleness = "{}ms"

        [[route]]
        name = "keys"
        path = "/k/{{group}}/{{key}}"
        cache.ttl = "20s"
        cache.tags = ["key:{{key}}"]
        request.set = {{ x-pod = "{pod}.{number}" }}

        [[route]]
        name = "misses"
        path = "/m/{{one}}/{{key}}"
        cache.ttl = "20s"
        request.set = {{ x-pod = "{pod}.{number}" }}

        [[route]]
        name = "strict"
        path = "/strict/{{key}}"
        cache.ttl = "1h"
        request.set = {{ x-pod = "{pod}.{number}" }}
        limits = [{{ name = "own", key = ["header:x-id"], rate = "{RATE}/s", burst = {BURST}, redis_down = "deny" }}]

        [[route]]
        name = "local"
        path = "/local/{{key}}"
        cache.ttl = "1h"
        request.set = {{ x-pod = "{pod}.{number}" }}
        limits = [{{ name = "own", key = ["header:x-id"], rate = "{RATE}/s", burst = {BURST} }}]

        [[route]]
        name = "slow"
        path = "/slow/{{name}}"
        cache.ttl = "20s"
        cache.wait_timeout = "30s"

        [[route]]
        name = "own"
        path = "/own/{{name}}"
        cache.ttl = "20s"
        cache.wait_timeout = "30s"
        "#,
        BOUND.as_millis()
    );
    let setup = weir(&routes).to(url).set("redis.deadline", format!("{}ms", DEADLINE.as_millis()));
    let setup = setup.set("redis.replicas", i64::try_from(PODS).expect("few"));
    setup.set("server.workers", 1).set("server.lame_duck", LAME_DUCK).set("log.access", false)
}

/// What a storm showed.
struct Outcome {
    /// What went wrong with Redis or pods, and for how long.
    faults: Vec<(Fault, Duration)>,
    /// What Weir did wrong.
    wrong: Vec<String>,
    /// Which of the faults are to be done again, and why: the processors were others', and nobody can say for what requests
    /// waited.
    unknown: BTreeMap<usize, Vec<String>>,
    /// All of it.
    told: String,
}

/// What a storm, and what was done again of it, showed.
struct Judged {
    /// Faults.
    faults: usize,
    /// Those of them that were done again.
    again: usize,
    /// What was wrong, if anything.
    wrong: Option<String>,
}

/// Runs the storm, and judges all of it. Faults of which the machine lets nobody judge the waiting are done again, with all that
/// came before them; if that happens each time, then that is wrong.
async fn judged(topology: Topology, seed: u64, next: impl FnMut() -> Option<(Fault, Duration)>) -> Judged {
    let Outcome { faults, mut wrong, mut unknown, mut told } = storm(topology, seed, next).await;
    let again = unknown.len();
    for _ in 1..TRIES {
        let Some((last, _)) = unknown.last_key_value() else { break };
        let mut these = faults[..=*last].iter().copied();
        eprintln!("{topology:?}: WEIR_SEED={seed}, again for {:?}", unknown.keys().collect::<Vec<_>>());
        let more = storm(topology, seed, || these.next()).await;
        wrong.extend(more.wrong);
        let _ = write!(told, "  again:\n{}", more.told);
        let still = more.unknown.into_iter().filter(|(fault, _)| unknown.contains_key(fault));
        unknown = still.collect();
    }
    wrong.extend(unknown.into_values().flatten().map(|why| format!("{TRIES} times, at last {why}")));
    let is_wrong = !wrong.is_empty();
    let wrong = is_wrong.then(|| format!("{topology:?}, WEIR_SEED={seed}:\n{told}{}\n", wrong.join("\n")));
    Judged { faults: faults.len(), again, wrong }
}

/// Runs the storm once, while what `next` says goes wrong, one after the other.
async fn storm(topology: Topology, seed: u64, mut next: impl FnMut() -> Option<(Fault, Duration)>) -> Outcome {
    let place = tokio::task::spawn_blocking(move || Place::new(topology));
    let mut pods = Pods::start(Arc::new(place.await.expect("it starts")), service()).await;
    let (place, state) = (Arc::clone(&pods.place), Arc::clone(&pods.service.state));
    used_again(&pods.weirs, "first").await;
    let traffic = Traffic::new(seed, pods.at(), &pods.service);
    let rate = u32::try_from(scale("WEIR_RPS", if optimised() { 2000 } else { 300 })).expect("a rate");
    let watch = Watch::start(Arc::clone(&traffic));
    let (load, began, start) = (traffic.load(rate).start(), Instant::now(), state.now());
    tokio::time::sleep_until(began + CALM).await;
    let (mut events, mut faults, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    while let Some((fault, length)) = next() {
        let (from, mark) = (state.now(), format!("{fault:?}-{}", events.len()).replace(['(', ')'], "-"));
        let started_anew = place.started_anew();
        let undone = if fault.is_of_pods() {
            wrong.extend(pods.befall(fault, &traffic, &mark).await);
            state.now()
        } else {
            let (all, state) = (Arc::clone(&place), Arc::clone(&state));
            let inflict = tokio::task::spawn_blocking(move || {
                fault.inflict(&all, length);
                let undone = state.now();
                if fault.unsettles() {
                    all.settle();
                }
                undone
            });
            inflict.await.unwrap_or_else(|_| panic!("{topology:?}, WEIR_SEED={seed}: {}", undoable(fault, &events)))
        };
        let healed = state.now();
        let back = used_again(&pods.weirs, &mark).await;
        let mut settled = healed + back.as_micros() as Micros;
        let started_anew_so_far = place.started_anew();
        let all = Arc::clone(&place);
        let tidied = tokio::task::spawn_blocking(move || fault.tidy_up(&all)).await;
        tidied.unwrap_or_else(|_| panic!("{topology:?}, WEIR_SEED={seed}: {}", undoable(fault, &events)));
        if place.started_anew() > started_anew_so_far {
            used_again(&pods.weirs, &format!("{mark}-anew")).await;
            settled = state.now();
        }
        let forgets = fault.forgets(topology, place.clocks_differ()) || place.started_anew() > started_anew;
        let split =
            if fault.splits(topology) { SPLIT.min(Duration::from_micros(settled - from)) } else { Duration::ZERO };
        faults.push((fault, length));
        events.push(Event { fault, forgets, split, opens: fault.opens(topology), from, undone, healed, back, settled });
        tokio::time::sleep(PAUSE).await;
    }
    // Whoever may still serve what is old does so within the bound.
    tokio::time::sleep(BOUND).await;
    let report = load.stop().await;
    let notes = traffic.notes(&report, watch);
    let Verdict { wrong: found, unknown, mut told } = judge(&notes, &events, start);
    wrong.extend(found);
    for why in unknown.values().flatten() {
        let _ = writeln!(told, "  to be done again: {why}");
    }
    eprintln!("{topology:?}, seed {seed}, {rate} a second to {PODS} pods:\n{told}{}", wrong.join("\n"));
    Outcome { faults, wrong, unknown, told }
}

/// Why a walk ends early.
fn undoable(fault: Fault, events: &[Event]) -> String {
    let before: Vec<_> = events.iter().map(|event| event.fault).collect();
    format!("{fault:?} could not be done, or undone, after {before:?}")
}

/// Every breaker is closed, what one pod stores another finds, wherever in Redis it is, and the log takes invalidations.
async fn used_again(weirs: &[Weir], mark: &str) -> Duration {
    /// Keys, of which each node of a cluster has some.
    const SPREAD: usize = 8;
    let mut turn = 0;
    within_async(PATIENCE, "Redis is used", async || {
        turn += 1;
        for weir in weirs {
            let order = weir.post("/invalidate", r#"{"tags":["nobody"]}"#).await;
            if order.status != 200 || weir.metric("weir_redis_breaker_open").await != 0.0 {
                return false;
            }
        }
        let paths: Vec<_> = (0..SPREAD).map(|i| format!("/m/{mark}-{turn}-{i}/0")).collect();
        for path in &paths {
            weirs[0].get(path).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        for path in &paths {
            if !weirs[1].get(path).await.is_hit() {
                return false;
            }
        }
        true
    })
    .await
}

/// These faults under the storm, one after the other.
async fn befall(topology: Topology, faults: &'static [Fault]) {
    // Sentinels of Redis 6.2 take servers that cannot save for dead, all of them: no PING is answered with PONG.
    let is_beyond = |fault: &Fault| is_before_7() && topology == Topology::Sentinels && *fault == Fault::Unsaved;
    let mut faults = faults.iter().filter(|fault| !is_beyond(fault));
    let next = || faults.next().map(|fault| (*fault, LENGTH));
    let Judged { wrong, .. } = judged(topology, scale("WEIR_SEED", 1) as u64, next).await;
    assert!(wrong.is_none(), "{}", wrong.unwrap_or_default());
}

/// Faults by chance, each as often as any other; a round in which something is wrong ends none of the others.
async fn walk(topology: Topology) {
    let (mut seed, minutes) = (scale("WEIR_SEED", 1) as u64, scale("WEIR_MINUTES", 0) as u32);
    let (began, all) = (Instant::now(), if minutes == 0 { SHORT } else { Duration::from_secs(60) * minutes / 3 });
    let (mut rounds, mut faults, mut again, mut wrong) = (0, 0, 0, Vec::new());
    while began.elapsed() < all {
        let (begins, mut dice, known) = (Instant::now(), Dice::new(seed, 0), faults::of(topology));
        eprintln!("{topology:?}: WEIR_SEED={seed}");
        let next = || {
            let goes_on = begins.elapsed() < ROUND.min(all);
            goes_on.then(|| (dice.one_of(&known), dice.between(LENGTHS.0, LENGTHS.1)))
        };
        let judged = judged(topology, seed, next).await;
        (faults, again) = (faults + judged.faults, again + judged.again);
        wrong.extend(judged.wrong);
        (seed, rounds) = (seed + 1, rounds + 1);
    }
    eprintln!("{topology:?}: {rounds} rounds, {faults} faults, {again} of them done again");
    let most = AGAIN.0 + (faults as f64 * AGAIN.1) as usize;
    assert!(again <= most, "{again} of {faults} faults had to be done again: the machine is too slow, or Weir");
    assert!(wrong.is_empty(), "{} of {rounds} rounds:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn a_walk_alone() {
    walk(Topology::Alone).await;
}

#[tokio::test]
async fn a_walk_through_a_cluster() {
    walk(Topology::Cluster).await;
}

#[tokio::test]
async fn a_walk_under_sentinels() {
    walk(Topology::Sentinels).await;
}

/// A test of each of these.
macro_rules! each {
    ($($topology:ident { $($name:ident: [$($fault:expr),*],)* })*) => {
        /// Those that a test is about.
        const TESTED: &[(Topology, &[Fault])] = &[$($((Topology::$topology, &[$($fault),*]),)*)*];

        $($(
            #[tokio::test]
            async fn $name() {
                befall(Topology::$topology, &[$($fault),*]).await;
            }
        )*)*
    };
}

each! {
    Alone {
        alone_gone: [Fault::Killed, Fault::RestartedEmpty, Fault::Loading],
        alone_silent: [Fault::Cut, Fault::Swallowed, Fault::Frozen],
        alone_slow: [Fault::Slow(10), Fault::Slow(100), Fault::Slow(1000)],
        alone_replaced: [Fault::ReadOnly, Fault::MasterDown, Fault::TakenOver],
        alone_turning_away: [Fault::Busy, Fault::Crowded, Fault::Locked],
        alone_taking_no_writes: [Fault::Full, Fault::Unsaved, Fault::WithoutReplicas, Fault::Forbidding],
        alone_forgetful: [Fault::ScriptsGone, Fault::BusKicked, Fault::LogTrimmed, Fault::Flushed, Fault::Evicting],
        alone_by_clocks_and_pods: [
            Fault::ClockForward, Fault::ClockBack, Fault::ClockBack, Fault::EmptyClockBack,
            Fault::DownAtStart, Fault::LeaderKilled, Fault::LeaderStalled, Fault::Uncacheable
        ],
    }
    Cluster {
        cluster_masters_killed: [Fault::MasterKilled, Fault::OtherMasterKilled],
        cluster_master_frozen: [Fault::MasterFrozen, Fault::MasterOutOfReach],
        cluster_silent: [Fault::Cut, Fault::Swallowed, Fault::Frozen],
        cluster_slow: [Fault::Slow(10), Fault::Slow(100), Fault::Slow(1000)],
        cluster_planned: [Fault::ReplicaKilled, Fault::Planned],
        cluster_slots_move: [Fault::Resharded, Fault::HalfMoved],
        cluster_rolled: [Fault::Rolled],
        cluster_turning_away: [Fault::Busy, Fault::Crowded, Fault::Locked],
        cluster_taking_no_writes: [Fault::Full, Fault::Unsaved, Fault::WithoutReplicas, Fault::Forbidding],
        cluster_forgetful: [Fault::ScriptsGone, Fault::BusKicked, Fault::LogTrimmed, Fault::Flushed, Fault::Evicting],
        cluster_by_clocks_and_pods: [
            Fault::ClockForward, Fault::ClockBack, Fault::ClockBack, Fault::EmptyClockBack,
            Fault::DownAtStart, Fault::LeaderKilled, Fault::LeaderStalled, Fault::Uncacheable
        ],
    }
    Sentinels {
        sentinels_master_gone: [Fault::MasterKilled, Fault::MasterFrozen],
        sentinels_planned: [Fault::ReplicaKilled, Fault::Planned],
        sentinels_gone_and_behind: [Fault::SentinelsKilled, Fault::SentinelBehind],
        sentinels_silent: [Fault::Cut, Fault::Swallowed, Fault::Frozen],
        sentinels_slow: [Fault::Slow(10), Fault::Slow(100), Fault::Slow(1000)],
        sentinels_taking_no_writes: [Fault::Full, Fault::Unsaved, Fault::WithoutReplicas, Fault::Forbidding],
        sentinels_forgetful: [Fault::ScriptsGone, Fault::BusKicked, Fault::LogTrimmed, Fault::Flushed, Fault::Evicting],
        sentinels_turning_away: [Fault::Busy, Fault::Crowded, Fault::Locked],
        sentinels_by_clocks_and_pods: [
            Fault::ClockForward, Fault::ClockBack, Fault::ClockBack, Fault::EmptyClockBack,
            Fault::DownAtStart, Fault::LeaderKilled, Fault::LeaderStalled, Fault::Uncacheable
        ],
    }
}

#[test]
fn every_fault_is_tested() {
    for topology in [Topology::Alone, Topology::Cluster, Topology::Sentinels] {
        let is_tested = |fault: &Fault| TESTED.iter().any(|(at, faults)| *at == topology && faults.contains(fault));
        let left: Vec<_> = faults::of(topology).into_iter().filter(|fault| !is_tested(fault)).collect();
        assert!(left.is_empty(), "{topology:?}: {left:?}");
    }
}
