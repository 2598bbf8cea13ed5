//! The right to fetch a key for the fleet: asked for, renewed while the fetch goes on, and given back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::time::{Instant, sleep_until};

use super::ended::Ended;
use super::{LEASE_SCRIPT, SharedTier, What, name};
use crate::cache::entry::{Stored, codec};
use crate::invalidation::Position;
use crate::kv::{self, Budget, Redis, Reply, Script, Server, Unavailable};

/// How long a fetch is leased: a leader that crashed holds the key up for so long at most. Since a fetch that goes on is
/// renewed, it need not be as long as fetches are; it is as long as a pod may stand still (starved of its processor,
/// or without Redis) before another asks in its place. A crash leaves most of the usual `wait_timeout` to the next leader.
pub const LEASE: Duration = Duration::from_secs(2);

/// So long after a failure those who wait can still learn of it: they poll more often than that, should no bell ring.
pub(super) const FAILURE: Duration = LEASE;

/// Renewals come so far apart: one may be lost before the lease is. A fetch that is over by then costs none.
const RENEWAL: Duration = Duration::from_millis(LEASE.as_millis() as u64 / 3);

static RENEW_SCRIPT: Script = Script { name: "renew", source: include_str!("../renew.lua") };

/// By this Redis knows who holds a lease, and what who does not has waited for. Dropped while it is not known whether Redis
/// has given it one, it is seen to that others need not wait for that.
#[derive(Debug)]
pub struct Token {
    id: Bytes,
    /// Fence of the first fetch that it was told to wait for.
    waited: Option<u64>,
    /// What it asked for last, while there is no answer to that.
    unheard: Option<Question>,
    ended: Arc<Ended>,
}

/// What a lease is asked of, and who is asked.
#[derive(Debug, Clone)]
struct Question {
    hash: [u8; 16],
    giver: Option<Server>,
}

impl Token {
    /// It asks for a lease of this.
    fn asks(&mut self, question: Question) {
        if self.unheard.as_ref().is_some_and(|other| other.hash != question.hash) {
            self.doubt();
        }
        self.unheard = Some(question);
    }

    fn doubt(&mut self) {
        if let Some(Question { hash, giver }) = self.unheard.take() {
            let lease = Lease { token: self.id.clone(), hash, fence: 0, since: Instant::now(), giver };
            self.ended.is_unheard(lease, None);
        }
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.doubt();
    }
}

/// The right to fetch a key for the fleet.
#[derive(Debug, Clone)]
pub struct Lease {
    pub(super) token: Bytes,
    pub(super) hash: [u8; 16],
    /// Orders what fetches of one key store.
    pub fence: u64,
    /// When it was asked for.
    pub(super) since: Instant,
    /// Who had the key then.
    pub(super) giver: Option<Server>,
}

/// What asking for a lease gave.
pub enum Leased {
    /// This pod fetches.
    Lead(Lease),
    /// Another pod has stored something meanwhile.
    Found(Stored),
    /// Another pod fetches; if it does not renew its lease, that ends so soon.
    Held(Duration),
    /// While the caller waited, a second pod has seen the service fail; with this status it is answered.
    Failed(StatusCode),
    /// Redis gave no answer in time; what was asked for may have been given.
    Late,
    /// Redis gave no answer: this pod fetches for itself.
    Unavailable,
}

impl Lease {
    /// Whether it was taken for this key.
    pub fn is_for(&self, key: &[u8]) -> bool {
        self.hash == name(key)
    }
}

/// With what status a failure that others have seen is answered: their own, where a gateway may say that (RFC 9110
/// section 15.6), else 502.
pub(super) fn gateway_status(status: StatusCode) -> StatusCode {
    match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => status,
        _ => StatusCode::BAD_GATEWAY,
    }
}

impl SharedTier {
    /// Leases the fetch of `key`, unless something is stored whose fence is not the one `seen`, or somebody holds the lease.
    /// Who asks again does so with the same token. `least` is the lowest number in the log whose fetch is of use to who asks.
    pub async fn lease(
        &self,
        redis: &Redis,
        key: &[u8],
        token: &mut Token,
        (position, least): (Position, u64),
        seen: Option<u64>,
        budget: &mut Budget,
    ) -> Leased {
        let (hash, since, id) = (name(key), Instant::now(), token.id.clone());
        let (before, is_sent) = (token.unheard.clone(), !budget.left().is_zero());
        let lease_ms = LEASE.as_millis().to_string();
        let incarnation = position.incarnation.to_string();
        let (seq, least) = (position.seq.to_string(), least.to_string());
        let fence = |fence: Option<u64>| fence.map_or_else(|| "-1".to_owned(), |fence| fence.to_string());
        let (seen, waited) = (fence(seen), fence(token.waited));
        let keys = [self.keys.entry(&hash), self.keys.lease(&hash)];
        let args = [
            &id[..],
            lease_ms.as_bytes(),
            incarnation.as_bytes(),
            seq.as_bytes(),
            seen.as_bytes(),
            least.as_bytes(),
            waited.as_bytes(),
        ];
        let giver = redis.server_of(&keys[1]);
        token.asks(Question { hash, giver: giver.clone() });
        match redis.run(&LEASE_SCRIPT, &[&keys[0], &keys[1]], &args, budget).await {
            Ok(reply) => {
                token.unheard = None;
                let lease = |fence| Lease { token: id, hash, fence, since, giver };
                self.leased(&reply, token, lease)
            }
            Err(Unavailable::Timeout) if is_sent => Leased::Late,
            Err(error) => {
                token.unheard = before.filter(|other| other.hash == hash);
                if error == Unavailable::Timeout { Leased::Late } else { Leased::Unavailable }
            }
        }
    }

    fn leased(&self, reply: &Reply, token: &mut Token, lease: impl FnOnce(u64) -> Lease) -> Leased {
        let [kind, value, more @ ..] = reply.items() else { return Leased::Unavailable };
        match kind.bytes().map(|kind| &kind[..]) {
            Some(b"lead") => value.number().map_or(Leased::Unavailable, |fence| Leased::Lead(lease(fence))),
            Some(b"held") => {
                token.waited = token.waited.or_else(|| more.first()?.number());
                Leased::Held(Duration::from_millis(value.number().unwrap_or_default()))
            }
            Some(b"failed") => {
                let status = value.number().and_then(|status| u16::try_from(status).ok());
                let status = status.and_then(|status| StatusCode::from_u16(status).ok());
                Leased::Failed(gateway_status(status.unwrap_or_default()))
            }
            Some(b"found") => {
                let decoded = value.bytes().map(|bytes| codec::decode(bytes, self.max_object));
                // What does not decode is as good as nothing: fetch it anew.
                decoded.and_then(Result::ok).map_or(Leased::Unavailable, Leased::Found)
            }
            _ => Leased::Unavailable,
        }
    }

    /// A token that is nobody's yet.
    pub fn token(&self) -> Token {
        let id = Bytes::from(format!("{:016x}{:016x}", kv::random(), kv::random()));
        Token { id, waited: None, unheard: None, ended: Arc::clone(&self.ended) }
    }

    /// Ends a lease without storing anything. If the service has `failed` for whoever asked, the fleet counts it.
    pub async fn release(&self, redis: &Redis, lease: &Lease, failed: Option<StatusCode>, budget: &mut Budget) {
        let _ = self.write(redis, &lease.hash, Some(lease), What { failed, ..What::default() }, budget).await;
    }

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
            let args = [&lease.token[..], lease_ms.as_bytes()];
            let reply = redis.run(&RENEW_SCRIPT, &[&key], &args, &mut Budget::new(deadline)).await;
            if reply.is_ok_and(|reply| reply.number() == Some(0)) {
                return;
            }
        }
    }
}
