//! Invalidations in very large numbers, and of very much at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::harness::{Connection, Redis, Weir, get, optimised, redis, reply, request, scale, sum, upstream, weir};

const ROUTES: &str = r#"
[[route]]
name = "items"
path = "/items/{id}"
cache.ttl = "1h"
cache.tags = ["item:{id}"]
"#;

/// `redis.deadline`: on a busy machine everything is to be stored all the same.
const PATIENT: &str = "1s";

/// Connections that fill the cache.
const FILLERS: usize = 16;

/// The tag that every entry carries, of the answer's own.
const TAG: &str = "all-of-them";

/// Has `entries` keys fetched, or served.
async fn read_all(targets: &[SocketAddr], entries: usize) -> usize {
    let (next, hits) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut readers = JoinSet::new();
    for reader in 0..FILLERS {
        let (next, hits, to) = (Arc::clone(&next), Arc::clone(&hits), targets[reader % targets.len()]);
        readers.spawn(async move {
            let mut connection = Connection::open(to).await;
            loop {
                let key = next.fetch_add(1, Ordering::Relaxed);
                if key >= entries {
                    return;
                }
                let answer = connection.send(&get(&format!("/items/{key}"))).await;
                assert_eq!(answer.status, 200, "{answer:?}");
                hits.fetch_add(usize::from(answer.is_hit()), Ordering::Relaxed);
            }
        });
    }
    readers.join_all().await;
    hits.load(Ordering::Relaxed)
}

fn number(redis: &Redis, section: &str, name: &str) -> u64 {
    let told = redis.cli(&["INFO", section]);
    let line = told.lines().find_map(|line| line.trim().strip_prefix(name).map(str::to_owned));
    line.unwrap_or_else(|| panic!("no {name} in {told}")).parse().expect("a number")
}

/// How long Redis was busy with one script, on average, in microseconds.
fn busy_us(redis: &Redis) -> f64 {
    let told = redis.cli(&["INFO", "commandstats"]);
    let line = told.lines().find(|line| line.starts_with("cmdstat_evalsha:")).expect("scripts were called");
    let mean = line.split(',').find_map(|part| part.strip_prefix("usec_per_call=")).expect("a mean");
    mean.parse().expect("a number")
}

fn quantile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

#[tokio::test]
async fn a_tag_that_very_many_entries_carry_costs_one_record() {
    let (up, redis) = (upstream(), redis());
    up.on("*", |_| reply("an answer").header("surrogate-key", TAG));
    let entries = scale("WEIR_ENTRIES", if optimised() { 100_000 } else { 2_000 });
    let setup = weir(ROUTES).to(up.url()).redis(&redis).set("log.access", false).set("redis.deadline", PATIENT);
    let weirs = setup.fleet(2).await;
    let targets: Vec<SocketAddr> = weirs.iter().map(|weir| weir.proxy).collect();
    read_all(&targets, entries).await;
    let stored = || redis.cli(&["DBSIZE"]).trim().parse::<usize>().expect("a number");
    crate::harness::eventually("stored", || stored() >= entries).await;
    redis.cli(&["CONFIG", "RESETSTAT"]);
    let before = number(&redis, "memory", "used_memory:");
    let mut took = Vec::new();
    let rounds = 300_u64;
    for _ in 0..rounds {
        let began = Instant::now();
        assert_eq!(weirs[0].post("/invalidate", &format!(r#"{{"tags":["{TAG}"]}}"#)).await.status, 200);
        took.push(began.elapsed());
    }
    took.sort_unstable();
    let grown = number(&redis, "memory", "used_memory:").saturating_sub(before);
    let busy = busy_us(&redis);
    eprintln!(
        "{entries} entries: acknowledged p50 {:?}, p99 {:?}, max {:?}; Redis busy for {busy} us with each, grew by {grown} bytes",
        quantile(&took, 0.5),
        quantile(&took, 0.99),
        took[took.len() - 1]
    );
    assert!(busy < 1000.0, "Redis was busy for {busy} us with each");
    // Records of the log, and nothing for any entry.
    assert!(grown < 2048 * rounds, "{grown} bytes");
    if optimised() {
        assert!(quantile(&took, 0.99) <= Duration::from_millis(5), "{took:?}");
    }
    for (i, weir) in weirs.iter().enumerate() {
        assert!(!weir.get(&format!("/items/{i}")).await.is_hit());
    }
}

/// Sends orders of one tag each to `to`, `rate` a second from `began` on; how many were in the log when they were answered.
async fn invalidate(to: SocketAddr, number: usize, rate: f64, orders: usize, began: Instant) -> usize {
    let mut connection = Connection::open(to).await;
    let mut logged = 0;
    for i in 0..orders {
        tokio::time::sleep_until(began + Duration::from_secs_f64(i as f64 / rate)).await;
        let order = request("POST", "/invalidate").header("host", &to.to_string());
        let order = order.body(format!(r#"{{"tags":["flood:{number}:{i}"]}}"#));
        let answer = connection.send(&order).await;
        assert!(matches!(answer.status, 200 | 202), "{answer:?}");
        logged += usize::from(answer.status == 200);
    }
    logged
}

/// The bound of the histogram's bucket that holds this share of the observations between two readings.
fn lag(before: &[String], after: &[String], share: f64) -> f64 {
    let bounds = ["0.0005", "0.001", "0.0025", "0.005", "0.01", "0.02", "0.05", "0.1", "0.5", "1"];
    let count = |pages: &[String], le: &str| -> f64 {
        let wanted = format!("weir_invalidation_lag_seconds_bucket{{le=\"{le}\"}}");
        pages.iter().map(|page| sum(page, &wanted)).sum()
    };
    let all = count(after, "+Inf") - count(before, "+Inf");
    let holds = |le: &&str| count(after, le) - count(before, le) >= share * all;
    bounds.into_iter().find(holds).map_or(f64::INFINITY, |le| le.parse().expect("a number"))
}

async fn pages(weirs: &[Weir]) -> Vec<String> {
    let mut pages = Vec::new();
    for weir in weirs {
        pages.push(weir.metrics().await);
    }
    pages
}

#[tokio::test]
async fn a_flood_of_invalidations_is_taken_and_leaves_the_rest_alone() {
    let (up, redis) = (upstream(), redis());
    up.on("*", |_| reply("an answer"));
    let pods = scale("WEIR_PODS", 3);
    let rate = scale("WEIR_RATE", if optimised() { 1000 } else { 150 });
    let seconds = scale("WEIR_SECONDS", 5);
    let entries = 1000;
    let setup = weir(ROUTES).to(up.url()).redis(&redis).set("log.access", false).set("redis.deadline", PATIENT);
    let weirs = setup.fleet(pods).await;
    let targets: Vec<SocketAddr> = weirs.iter().map(|weir| weir.proxy).collect();
    read_all(&targets, entries).await;
    let before = pages(&weirs).await;
    let began = Instant::now();
    let mut invalidators = JoinSet::new();
    let each = 8;
    for (number, weir) in weirs.iter().enumerate().flat_map(|(i, weir)| (0..each).map(move |n| (i * each + n, weir))) {
        let rate = rate as f64 / (pods * each) as f64;
        let orders = (rate * seconds as f64).ceil() as usize;
        invalidators.spawn(invalidate(weir.admin, number, rate, orders, began));
    }
    let logged: usize = invalidators.join_all().await.into_iter().sum();
    let took = began.elapsed();
    let after = pages(&weirs).await;
    let p99 = lag(&before, &after, 0.99);
    let fetched = up.total();
    let hits = read_all(&targets, entries).await;
    let memory: Vec<u64> = weirs.iter().map(|weir| weir.resident() >> 20).collect();
    eprintln!(
        "{logged} invalidations in {took:?} by {pods} Weirs: lag p50 {}, p99 {p99} s at most; {hits} of {entries} still \
         hit, {} fetched; resident {memory:?} MiB",
        lag(&before, &after, 0.5),
        up.total() - fetched
    );
    assert!(logged >= rate * seconds, "{logged} logged");
    assert!(took < Duration::from_secs(seconds as u64) + Duration::from_secs(1), "they were held up: {took:?}");
    assert!(hits * 100 >= entries * 95, "{hits} of {entries}");
    if optimised() {
        assert!(p99 <= 0.05, "lag p99 {p99} s");
    }
}
