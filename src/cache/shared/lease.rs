//! The right to fetch a key for the fleet, and its renewal while the fetch goes on.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::SharedTier;
use crate::kv::{self, Budget, Redis, Script};

/// How long a fetch is leased: a leader that crashed holds the key up for so long at most. Since a fetch that goes on is
/// renewed, it need not be as long as fetches are; it is as long as a pod may stand still (starved of its processor,
/// or without Redis) before another asks in its place. A crash leaves most of the usual `wait_timeout` to the next leader.
pub const LEASE: Duration = Duration::from_secs(2);

/// Renewals come so far apart: one may be lost before the lease is. A fetch that is over by then costs none.
const RENEWAL: Duration = Duration::from_millis(LEASE.as_millis() as u64 / 3);

static RENEW_SCRIPT: Script = Script { name: "renew", source: include_str!("../renew.lua") };

/// By this Redis knows who holds a lease.
#[derive(Debug, Clone)]
pub struct Token(pub(super) Bytes);

impl Token {
    /// Another than anybody's.
    pub fn fresh() -> Self {
        Self(Bytes::from(format!("{:016x}{:016x}", kv::random(), kv::random())))
    }
}

/// The right to fetch a key for the fleet.
#[derive(Debug, Clone)]
pub struct Lease {
    pub(super) token: Token,
    pub(super) hash: [u8; 16],
    /// Orders what fetches of one key store.
    pub fence: u64,
    /// When it was asked for.
    pub(super) since: Instant,
}

impl SharedTier {
    /// Renews a lease until it is another's, or `longest` has passed since it was taken; to be dropped when the fetch ends.
    /// Each question waits for Redis for `deadline`; one without an answer is put again.
    pub async fn renew(&self, redis: &Redis, lease: &Lease, longest: Duration, deadline: Duration) {
        let key = self.keys.lease(&lease.hash);
        let lease_ms = LEASE.as_millis().to_string();
        let last = lease.since + longest;
        let mut due = lease.since + RENEWAL;
        while due <= last {
            sleep_until(due).await;
            due = Instant::now() + RENEWAL;
            let args = [&lease.token.0[..], lease_ms.as_bytes()];
            let reply = redis.run(&RENEW_SCRIPT, &[&key], &args, &mut Budget::new(deadline)).await;
            if reply.is_ok_and(|reply| reply.number() == Some(0)) {
                return;
            }
        }
    }
}
