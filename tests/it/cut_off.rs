//! G1 and G2 in one pod that is cut off from Redis, while the rest of the fleet invalidates.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{Connection, Flaky, Redis, Upstream, eventually, flaky, get, redis, reply, upstream, weir};

/// B.
const BOUND: Duration = Duration::from_secs(2);

/// Keys that are read all the time.
const KEYS: usize = 8;

/// Readers of each key.
const READERS: usize = 2;

/// Between two reads of one reader.
const PAUSE: Duration = Duration::from_millis(10);

/// Invalidations while the pod is cut off, half a B apart.
const ORDERS: usize = 8;

/// Weir and this test round to milliseconds, each on its own.
const ROUNDING: Duration = Duration::from_millis(5);

fn routes(pod: &str) -> String {
    format!(
        r#"
        [cache]
        max_staleness = "2s"

        [[route]]
        name = "keys"
        path = "/k/{{key}}"
        cache.ttl = "60s"
        request.set = {{ x-pod = "{pod}" }}
        "#
    )
}

/// An answer, and when its request began.
struct Read {
    began: Instant,
    key: usize,
    version: usize,
}

/// A service whose answers say which version they are, and when the cut-off pod asked for which key.
struct Service {
    up: Upstream,
    version: Arc<AtomicUsize>,
    asked: Arc<Mutex<Vec<(String, Instant)>>>,
}

fn service() -> Service {
    let (up, version, asked) = (upstream(), Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<_>>>::default());
    let (current, seen) = (Arc::clone(&version), Arc::clone(&asked));
    up.on("*", move |request| {
        if request.header("x-pod") == Some("cut-off") {
            seen.lock().expect("no panic while held").push((request.target().to_owned(), Instant::now()));
        }
        reply(current.load(Ordering::SeqCst).to_string())
    });
    Service { up, version, asked }
}

async fn read(proxy: SocketAddr, key: usize, stop: Arc<AtomicBool>) -> Vec<Read> {
    let (mut connection, request) = (Connection::open(proxy).await, get(&format!("/k/{key}")));
    let mut reads = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let answer = connection.send(&request).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        reads.push(Read { began, key, version: answer.text().parse().expect("a version") });
        tokio::time::sleep(PAUSE).await;
    }
    reads
}

/// Cuts one of two Weirs off by `cut` and judges what it serves and asks for.
async fn cut_off(what: &str, cut: impl FnOnce(Flaky, &Redis) -> Option<Flaky>) {
    let (service, redis) = (service(), redis());
    let relay = flaky(redis.address());
    let setup = |pod| weir(&routes(pod)).to(service.up.url());
    let alone = setup("cut-off").redis_at(relay.address()).start().await;
    let other = setup("other").redis(&redis).start().await;
    let stop = Arc::<AtomicBool>::default();
    let readers: Vec<_> =
        (0..KEYS * READERS).map(|i| tokio::spawn(read(alone.proxy, i % KEYS, Arc::clone(&stop)))).collect();
    // Both reach Redis: what one invalidates the other fetches anew.
    eventually("every key is read", || service.asked.lock().expect("no panic while held").len() >= KEYS).await;
    service.version.store(1, Ordering::SeqCst);
    other.invalidate(r#"{"all": true}"#).await;
    eventually("every key is read anew", || service.asked.lock().expect("no panic while held").len() >= 2 * KEYS).await;

    let cut_at = Instant::now();
    let _relay = cut(relay, &redis);
    // When each version was no longer the current one, for whoever relies on the answer.
    let mut acknowledged = Vec::new();
    for order in 0..ORDERS {
        tokio::time::sleep_until(cut_at + BOUND.mul_f64(order as f64 / 2.0)).await;
        service.version.fetch_add(1, Ordering::SeqCst);
        other.invalidate(r#"{"all": true}"#).await;
        acknowledged.push(Instant::now());
    }
    tokio::time::sleep_until(cut_at + BOUND.mul_f64(ORDERS as f64 / 2.0 + 1.0)).await;
    stop.store(true, Ordering::Relaxed);
    let mut reads = Vec::new();
    for reader in readers {
        reads.extend(reader.await.expect("no client sees an error"));
    }

    let mut oldest = Duration::ZERO;
    for (gone, acknowledged) in acknowledged.iter().enumerate().map(|(order, at)| (order + 1, *at)) {
        let late = reads.iter().filter(|read| read.version <= gone).map(|read| (read.began, read.key)).max();
        let (last, key) = late.expect("it was read before");
        let old = last.saturating_duration_since(acknowledged);
        assert!(old <= BOUND + ROUNDING, "{what}: version {gone} of key {key} was served {old:?} after");
        oldest = oldest.max(old);
    }
    let most = judge_fetches(what, &service.asked.lock().expect("no panic while held"), cut_at);
    eprintln!("{what}: {} reads, the oldest answer {oldest:?} after its acknowledgement, {most}", reads.len());
    assert!(reads.iter().any(|read| read.version == ORDERS + 1), "{what}: the last version never came");
}

/// A pod that is cut off asks anew for what it asked for itself after B.
const SOONEST: Duration = BOUND;

/// Counts, for each key, the requests that reached the service between the cut and the last of them: one, and one more for
/// each time of that length.
fn judge_fetches(what: &str, asked: &[(String, Instant)], cut_at: Instant) -> String {
    let (mut most, mut window) = (0, Duration::ZERO);
    for key in 0..KEYS {
        let path = format!("/k/{key}");
        let since = asked.iter().filter(|(of, _)| *of == path).filter_map(|(_, at)| at.checked_duration_since(cut_at));
        let times: Vec<Duration> = since.collect();
        let last = *times.last().unwrap_or_else(|| panic!("{what}: {path} was not asked for"));
        let room = 1 + (last.as_secs_f64() / SOONEST.as_secs_f64()) as usize;
        assert!(times.len() <= room, "{what}: {path}: {} requests until {last:?} after the cut", times.len());
        (most, window) = (most.max(times.len()), window.max(last));
    }
    format!("at most {most} requests for one key until {window:?} after the cut")
}

#[tokio::test]
async fn a_pod_whose_packets_are_swallowed_keeps_the_bound() {
    cut_off("swallowed", |relay, _| {
        relay.swallow();
        Some(relay)
    })
    .await;
}

#[tokio::test]
async fn a_pod_whose_redis_is_frozen_keeps_the_bound() {
    cut_off("frozen", |relay, redis| {
        redis.freeze();
        Some(relay)
    })
    .await;
}

#[tokio::test]
async fn a_pod_whose_redis_refuses_keeps_the_bound() {
    // Without its relay nothing listens there any more.
    cut_off("refused", |_, _| None).await;
}
