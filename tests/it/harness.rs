//! What the tests are written in: a fake upstream, a real Redis, a bad network, Weir itself, and a client that hides nothing.

mod background;
mod client;
mod clock;
mod flaky;
mod foreign;
pub mod frames;
mod gate;
mod h2;
mod load;
mod raw_upstream;
mod recorder;
mod redis;
mod redis_cluster;
mod reply;
mod scratch;
mod sentinels;
mod servers;
mod tls;
mod upstream;
mod weir;

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

pub use background::Background;
pub use client::{Answer, Connection, Request, get, raw, request};
pub use clock::{Clock, clock};
pub use flaky::{Flaky, flaky};
pub use foreign::{Foreign, nginx, python};
pub use gate::Gate;
pub use h2::H2;
pub use load::{Load, Report};
pub use raw_upstream::{black_hole, raw_upstream, refusing};
pub use recorder::{Recorder, Seen, recorder};
pub use redis::{
    Identity, Line, Redis, free_port, is_before_7, poll, redis, redis_by, redis_not_started, redis_with, redis_with_by,
};
pub use redis_cluster::{RedisCluster, redis_cluster, redis_cluster_by_clocks, redis_cluster_over_tls};
pub use reply::{Reply, reply};
pub use scratch::Scratch;
pub use sentinels::{Sentinels, sentinels, sentinels_by_clocks, sentinels_with};
pub use servers::Servers;
pub use tls::{Authority, Caller, Issued};
pub use upstream::{Recorded, Upstream, h2_upstream, tls_upstream, unix_upstream, upstream};
pub use weir::{Ended, Setup, Weir, sum, weir};

/// Longest that anything is waited for before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How often a condition is looked at.
const GLANCE: Duration = Duration::from_millis(5);

/// Waits until `condition` holds.
pub async fn eventually(what: &str, condition: impl FnMut() -> bool) {
    within(PATIENCE, what, condition).await;
}

/// Waits until `condition` holds, at most `longest`; says how long it took.
pub async fn within(longest: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    within_async(longest, what, async || condition()).await
}

/// Waits until what `condition` resolves to holds, at most `longest`; says how long it took.
pub async fn within_async(longest: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < longest, "{what}: not within {longest:?}");
        tokio::time::sleep(GLANCE).await;
    }
    began.elapsed()
}

/// Ends with a failure if `work` takes longer than anything may.
pub async fn patiently<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// A size that the environment can raise: `WEIR_ROUNDS=1000 cargo test`.
pub fn scale(variable: &str, usual: usize) -> usize {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text}")),
        Err(_) => usual,
    }
}

/// Whether optimised code runs, so that times mean something.
pub fn optimised() -> bool {
    !cfg!(debug_assertions)
}

/// Where entries are kept, for what must hold alike in both.
pub enum Store {
    /// In the process.
    Memory,
    /// In Redis only: the memory tier is off.
    Redis(Redis),
}

impl Store {
    /// `setup` with this store; on a busy machine Redis is waited for, lest the pod go on by itself.
    pub fn apply(&self, setup: Setup) -> Setup {
        match self {
            Self::Memory => setup,
            Self::Redis(redis) => setup.redis(redis).set("cache.memory", "0").set("redis.deadline", "1s"),
        }
    }
}

/// Runs `body` over the memory store and then over Redis.
pub async fn for_both<F: Future<Output = ()>>(body: impl Fn(Store) -> F) {
    eprintln!("-- over memory");
    body(Store::Memory).await;
    eprintln!("-- over Redis");
    body(Store::Redis(redis())).await;
}

/// Runs them all at once.
pub async fn join_all<T>(work: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut work: Vec<_> = work.into_iter().map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(|cx| {
        let mut waiting = false;
        for (future, done) in &mut work {
            if done.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(value) => *done = Some(value),
                    std::task::Poll::Pending => waiting = true,
                }
            }
        }
        if waiting { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    work.into_iter().map(|(_, done)| done.expect("all are done")).collect()
}

/// `len` bytes without a pattern that a mistake could repeat unnoticed.
pub fn noise(len: usize) -> bytes::Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out.into()
}
