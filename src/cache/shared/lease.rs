//! The right to fetch a key for the fleet: asked for, renewed while the fetch goes on, and given back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::{LEASE_SCRIPT, SharedTier, What, name};
use crate::cache::entry::{Stored, codec};
use crate::invalidation::Position;
use crate::kv::{self, Budget, Redis, Reply, Script, Unavailable};

/// How long a fetch is leased: a leader that crashed holds the key up for so long at most. Since a fetch that goes on is
/// renewed, it need not be as long as fetches are; it is as long as a pod may stand still (starved of its processor,
/// or without Redis) before another asks in its place. A crash leaves most of the usual `wait_timeout` to the next leader.
pub const LEASE: Duration = Duration::from_secs(2);

/// So long after a failure those who wait can still learn of it: they poll more often than that, should no bell ring.
pub(super) const FAILURE: Duration = LEASE;

/// Renewals come so far apart: one may be lost before the lease is. A fetch that is over by then costs none.
const RENEWAL: Duration = Duration::from_millis(LEASE.as_millis() as u64 / 3);

/// Leases that Redis did not take back, at most; of one more the oldest lapses by itself.
const UNRETURNED: usize = 4_096;

/// Pause before Redis is asked again to take one back.
const RETURN_EVERY: Duration = Duration::from_millis(20);

/// How long Redis may take for that; nobody waits for it.
const RETURN_DEADLINE: Duration = Duration::from_millis(100);

static RENEW_SCRIPT: Script = Script { name: "renew", source: include_str!("../renew.lua") };

/// By this Redis knows who holds a lease, and what who does not has waited for. Dropped while it is not known whether Redis
/// has given it one, it is seen to that others need not wait for that.
#[derive(Debug)]
pub struct Token {
    id: Bytes,
    /// Fence of the first fetch that it was told to wait for.
    waited: Option<u64>,
    /// What it asked for last, while there is no answer to that.
    unheard: Option<[u8; 16]>,
    unreturned: Arc<Unreturned>,
}

impl Token {
    /// It asks for a lease of this.
    fn asks(&mut self, hash: [u8; 16]) {
        if self.unheard.is_some_and(|other| other != hash) {
            self.doubt();
        }
        self.unheard = Some(hash);
    }

    fn doubt(&mut self) {
        if let Some(hash) = self.unheard.take() {
            let lease = Lease { token: self.id.clone(), hash, fence: 0, since: Instant::now() };
            self.unreturned.add(Instant::now() + LEASE, lease, None);
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
}

/// Leases that are over, and that Redis may take for held: others would wait until they lapse.
#[derive(Debug, Default)]
pub(super) struct Unreturned {
    over: Mutex<VecDeque<Over>>,
    added: Notify,
}

#[derive(Debug)]
struct Over {
    lease: Lease,
    /// How its fetch failed, for the fleet to count.
    failed: Option<StatusCode>,
    /// By then nobody waits for it any more, as far as is known.
    lapses: Instant,
}

impl Unreturned {
    fn add(&self, lapses: Instant, lease: Lease, failed: Option<StatusCode>) {
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        if over.len() == UNRETURNED {
            over.pop_front();
        }
        over.push_back(Over { lease, failed, lapses });
        drop(over);
        self.added.notify_one();
    }

    /// The next that has not lapsed; waits for one.
    async fn next(&self) -> Over {
        loop {
            let next = self.over.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match next {
                Some(over) if Instant::now() < over.lapses => return over,
                Some(_) => {}
                None => self.added.notified().await,
            }
        }
    }
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
        let (before, is_sent) = (token.unheard, !budget.left().is_zero());
        token.asks(hash);
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
        match redis.run(&LEASE_SCRIPT, &[&keys[0], &keys[1]], &args, budget).await {
            Ok(reply) => {
                token.unheard = None;
                let lease = |fence| Lease { token: id, hash, fence, since };
                self.leased(&reply, token, lease)
            }
            Err(Unavailable::Timeout) if is_sent => Leased::Late,
            Err(error) => {
                token.unheard = before.filter(|other| *other == hash);
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
        Token { id, waited: None, unheard: None, unreturned: Arc::clone(&self.unreturned) }
    }

    /// A lease is over, but Redis did not say that it knows.
    pub(super) fn unreturned(&self, lease: Lease, failed: Option<StatusCode>) {
        self.unreturned.add(Instant::now() + LEASE, lease, failed);
    }

    /// Gives back what Redis did not take, as soon as it does; for as long as the process runs.
    pub async fn give_back(&self, redis: &Redis) {
        loop {
            let Over { lease, failed, lapses } = self.unreturned.next().await;
            let (what, budget) = (What { failed, ..What::default() }, &mut Budget::new(RETURN_DEADLINE));
            if self.write_once(redis, &lease.hash, Some(&lease), what, budget).await.is_err() {
                self.unreturned.add(lapses, lease, failed);
                sleep(RETURN_EVERY).await;
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CacheTiers;
    use crate::kv::tests::{Server, eventually};

    const KEY: &[u8] = b"key";

    /// Redis gives it, but is heard too late: nobody waits until it lapses.
    #[tokio::test]
    async fn a_lease_that_nobody_heard_of_is_given_back() {
        let server = Server::up().await;
        let settings = CacheTiers {
            memory: 0,
            fill_memory: 0,
            max_object: 1,
            compress_over: 0,
            max_staleness: Duration::ZERO,
            generation: String::new(),
            preload: 0,
            preload_wait: Duration::ZERO,
        };
        let kv = server.shared();
        let tier = SharedTier::new(Arc::clone(&kv), &server.config(), &settings);
        let redis = Redis::new(kv);
        let ask = async |key: &[u8], token: &mut Token, longest| {
            let place = (Position::default(), 0);
            tier.lease(&redis, key, token, place, None, &mut Budget::new(longest)).await
        };
        let long = Duration::from_secs(5);
        assert!(matches!(ask(b"another", &mut tier.token(), long).await, Leased::Lead(_)));
        let mut token = tier.token();
        server.freeze(true);
        assert!(matches!(ask(KEY, &mut token, Duration::from_millis(50)).await, Leased::Late));
        server.freeze(false);
        let lease = tier.keys.lease(&name(KEY));
        eventually("it is given", async || server.command_bytes(&[b"EXISTS", &lease]).await.number() == Some(1)).await;
        drop(token);
        let next = async || matches!(ask(KEY, &mut tier.token(), long).await, Leased::Lead(_));
        tokio::select! {
            () = tier.give_back(&redis) => {}
            next = tokio::time::timeout(LEASE / 4, eventually("another leads", next)) => next.expect("soon"),
        }
    }
}
