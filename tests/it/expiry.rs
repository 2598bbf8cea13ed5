//! G2 where lifetimes end: what was filled at once is not fetched at once, and what is read is fetched before anybody waits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::harness::{Answer, Connection, Load, get, optimised, redis, reply, scale, upstream, weir};

/// The share by which the fullest second may exceed an even spread.
const UNEVEN: f64 = 1.3;

/// Connections over which a cache is filled.
const FILLERS: usize = 32;

/// What a fresh hit says is left of its lifetime, in seconds.
fn left_s(answer: &Answer) -> u64 {
    let left = answer.cache_status().split("ttl=").nth(1).and_then(|rest| rest.split(';').next());
    left.and_then(|left| left.trim().parse().ok()).unwrap_or_else(|| panic!("no hit: {answer:?}"))
}

/// By what Weir says of each entry. That refreshes follow from it is `src/cache/policy/tests.rs`: `what_was_filled_at_once_is_refilled_evenly`.
#[tokio::test]
async fn entries_that_were_filled_at_once_end_at_different_times() {
    let entries = scale("WEIR_ENTRIES", if optimised() { 10_000 } else { 4_000 });
    let up = upstream();
    up.route("*", reply("filled"));
    let routes = r#"
        [[route]]
        name = "all"
        path = "/{*path}"
        cache.ttl = "60s"
        cache.jitter = "20%"
    "#;
    let weir = weir(routes).to(up.url()).start().await;
    let mut fillers = JoinSet::new();
    for first in 0..FILLERS {
        let proxy = weir.proxy;
        fillers.spawn(async move {
            let mut connection = Connection::open(proxy).await;
            let mut ends = Vec::new();
            for i in (first..entries).step_by(FILLERS) {
                let request = get(&format!("/{i}"));
                connection.send(&request).await;
                ends.push(left_s(&connection.send(&request).await));
            }
            ends
        });
    }
    let mut bins = BTreeMap::<u64, usize>::new();
    for end in fillers.join_all().await.into_iter().flatten() {
        *bins.entry(end).or_default() += 1;
    }
    // 20% of 60 s.
    let even = entries as f64 / 12.0;
    let fullest = bins.values().copied().max().unwrap_or_default() as f64;
    eprintln!("{entries} entries, {:.2} of an even spread in the fullest second: {bins:?}", fullest / even);
    assert!(fullest <= UNEVEN * even, "{fullest} of {entries} entries end in one second: {bins:?}");
}

/// Lifetime of what is read all the time.
const TTL: Duration = Duration::from_secs(6);

/// Between two reads of a key, one from each Weir in turn. Optimised, it is what is promised; otherwise a machine that is busy
/// with other tests may be late with one.
fn pause() -> Duration {
    if optimised() { Duration::from_secs(1) } else { Duration::from_millis(500) }
}

/// Until then the cache is filled.
const FILLED: Duration = Duration::from_secs(3);

/// Expiries of each key.
const EXPIRIES: usize = 4;

#[tokio::test]
async fn whoever_reads_a_key_each_second_never_waits_for_it() {
    let keys = scale("WEIR_KEYS", if optimised() { 300 } else { 100 });
    let (up, redis) = (upstream(), redis());
    let asked: Arc<Mutex<BTreeMap<String, Vec<Instant>>>> = Arc::default();
    let seen = Arc::clone(&asked);
    up.on("*", move |request| {
        let mut seen = seen.lock().expect("no panic while held");
        seen.entry(request.target().to_owned()).or_default().push(Instant::now());
        reply("read").takes(Duration::from_millis(30))
    });
    let routes = r#"
        [[route]]
        name = "all"
        path = "/{*path}"
        cache.ttl = "6s"
    "#;
    let deadline = if optimised() { "100ms" } else { "1s" };
    let weirs = weir(routes).to(up.url()).redis(&redis).set("redis.deadline", deadline).fleet(2).await;
    let targets: Vec<_> = weirs.iter().map(|weir| weir.proxy).collect();
    let rate = (keys as f64 / pause().as_secs_f64()) as u32;
    let length = TTL * (EXPIRIES as u32) + FILLED;
    let load = Load::new(rate, length, move |i| get(&format!("/{}", i % keys)))
        .choosing(move |i| targets[(i % keys + i / keys) % targets.len()]);
    let report = load.run().await;
    assert!(report.errors().is_empty(), "{:?}", report.errors().first());
    let waited = |answer: &Answer| !answer.is_hit() && !answer.is_stale();
    let late = report.samples.iter().filter(|sample| sample.at >= FILLED);
    let waits = late.filter(|sample| sample.result.as_ref().is_ok_and(waited)).count();
    let asked = asked.lock().expect("no panic while held");
    let expiries = asked.values().map(|times| times.len() - 1).sum::<usize>();
    // Two requests for one key within half of its lifetime are one expiry.
    let doubled = |times: &Vec<Instant>| times.windows(2).filter(|two| two[1] - two[0] < TTL / 2).count();
    let doubles = asked.values().map(doubled).sum::<usize>();
    eprintln!(
        "{report}; {expiries} expiries of {keys} keys, {waits} readers waited, {doubles} fetches were one too many"
    );
    assert!(expiries >= keys * EXPIRIES, "only {expiries} expiries");
    assert!(waits * 100 <= expiries, "{waits} readers waited at {expiries} expiries");
    assert!(doubles * 100 <= expiries, "{doubles} of {expiries} fetches were one too many");
}
