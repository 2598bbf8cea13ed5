//! Leases that are over, until every server that may take them for held has heard of it: one that did not answer, one that
//! took another's place and had copied the lease but not its end, and one that gave it and is replaced by now.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::lease::{LEASE, Lease};
use super::{SharedTier, What};
use crate::kv::{Budget, Redis, Server};

/// Leases that some server has yet to be told of, at most; of one more the oldest lapses by itself.
const UNTOLD: usize = 4_096;

/// Leases that are remembered when they have been given back, at most: the last ones are those that a copy may lack.
const GIVEN_BACK: usize = 1_024;

/// Told at once, at most.
const AT_ONCE: usize = 256;

/// Pause before Redis is told again what it did not take.
const AGAIN_EVERY: Duration = Duration::from_millis(20);

/// How long Redis may take for that; nobody waits for it.
const DEADLINE: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ended {
    untold: Mutex<VecDeque<Untold>>,
    /// Oldest first.
    given_back: Mutex<VecDeque<GivenBack>>,
    added: Notify,
}

#[derive(Debug)]
struct Untold {
    lease: Lease,
    /// How its fetch failed, for the fleet to count.
    failed: Option<StatusCode>,
    /// By then nobody waits for it any more, as far as is known.
    lapses: Instant,
    /// Who is to be told, once; without it, whoever has the key, until he has taken it.
    whom: Option<Server>,
}

#[derive(Debug)]
struct GivenBack {
    lease: Lease,
    lapses: Instant,
    to: Server,
}

impl Ended {
    /// Redis did not say that it knows.
    pub(super) fn unheard(&self, lease: Lease, failed: Option<StatusCode>) {
        self.add(Untold { lease, failed, lapses: Instant::now() + LEASE, whom: None });
    }

    /// Whoever has the key now knows; who had it when the lease was given may not.
    pub(super) fn given_back(&self, lease: &Lease, to: Option<Server>) {
        let lapses = Instant::now() + LEASE;
        if let Some(giver) = lease.giver.clone().filter(|giver| Some(giver) != to.as_ref()) {
            self.add(Untold { lease: lease.clone(), failed: None, lapses, whom: Some(giver) });
        }
        let Some(to) = to else { return };
        let mut given_back = self.given_back.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        while given_back.len() == GIVEN_BACK || given_back.front().is_some_and(|oldest| oldest.lapses <= now) {
            given_back.pop_front();
        }
        given_back.push_back(GivenBack { lease: lease.clone(), lapses, to });
    }

    /// Other servers may have keys now: what was given back to those who had them, the others may not know.
    fn moved(&self, owner: impl Fn(&Lease) -> Option<Server>) {
        let now = Instant::now();
        let mut given_back = self.given_back.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, unknown): (VecDeque<_>, _) = given_back
            .drain(..)
            .filter(|one| one.lapses > now)
            .partition(|one| owner(&one.lease).as_ref() == Some(&one.to));
        *given_back = known;
        drop(given_back);
        // The last first: what ended before has been copied most likely.
        for GivenBack { lease, lapses, .. } in unknown.into_iter().rev() {
            self.add(Untold { lease, failed: None, lapses, whom: None });
        }
    }

    fn add(&self, one: Untold) {
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        if untold.len() == UNTOLD {
            untold.pop_front();
        }
        untold.push_back(one);
        drop(untold);
        self.added.notify_one();
    }

    /// The next that have not lapsed; waits for one.
    async fn next(&self) -> Vec<Untold> {
        loop {
            let next: Vec<_> = {
                let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                untold.retain(|one| one.lapses > now);
                let count = untold.len().min(AT_ONCE);
                untold.drain(..count).collect()
            };
            if !next.is_empty() {
                return next;
            }
            self.added.notified().await;
        }
    }
}

impl SharedTier {
    /// Tells Redis of leases that are over what it may not know, as soon as it takes it; for as long as the process runs.
    pub async fn give_back(self: Arc<Self>, redis: &Redis) {
        let mut changes = self.kv.changes();
        changes.mark_changed();
        loop {
            let next = tokio::select! {
                biased;
                Ok(()) = changes.changed() => {
                    self.ended.moved(|lease| redis.server_of(&self.keys.lease(&lease.hash)));
                    continue;
                }
                next = self.ended.next() => next,
            };
            let mut round = JoinSet::new();
            for one in next {
                round.spawn(Arc::clone(&self).tell(redis.clone(), one, changes.clone()));
            }
            let mut is_again = false;
            while let Some(told) = round.join_next().await {
                if let Ok(Some(untold)) = told {
                    self.ended.add(untold);
                    is_again = true;
                }
            }
            if is_again {
                let _ = timeout(AGAIN_EVERY, changes.clone().changed()).await;
            }
        }
    }

    /// What is to be tried again, if it failed.
    async fn tell(self: Arc<Self>, redis: Redis, one: Untold, mut changes: watch::Receiver<()>) -> Option<Untold> {
        let (what, budget) = (What { failed: one.failed, ..What::default() }, &mut Budget::new(DEADLINE));
        let (hash, lease) = (&one.lease.hash, Some(&one.lease));
        if let Some(whom) = &one.whom {
            let _ = self.write_to(&redis, Some(whom), hash, lease, what, budget).await;
            return None;
        }
        let server = redis.server_of(&self.keys.lease(hash));
        let is_told = tokio::select! {
            written = self.write_to(&redis, None, hash, lease, what, budget) => written.is_ok(),
            // Whoever is asked need not answer any more.
            Ok(()) = changes.changed() => false,
        };
        if !is_told {
            return Some(one);
        }
        self.ended.given_back(&one.lease, server);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::name;
    use super::*;
    use crate::cache::shared::{Leased, Token};
    use crate::config::CacheTiers;
    use crate::invalidation::Position;
    use crate::kv::tests::{Server as RedisServer, eventually, turn_to};

    const KEY: &[u8] = b"key";
    const LONG: Duration = Duration::from_secs(5);

    struct Pod {
        tier: Arc<SharedTier>,
        redis: Redis,
    }

    impl Pod {
        fn of(server: &RedisServer) -> Self {
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
            Self {
                tier: Arc::new(SharedTier::new(Arc::clone(&kv), &server.config(), &settings)),
                redis: Redis::control(kv),
            }
        }

        async fn ask(&self, key: &[u8], token: &mut Token, longest: Duration) -> Leased {
            let place = (Position::default(), 0);
            self.tier.lease(&self.redis, key, token, place, None, &mut Budget::new(longest)).await
        }

        async fn leads(&self, key: &[u8]) -> Option<Lease> {
            match self.ask(key, &mut self.tier.token(), LONG).await {
                Leased::Lead(lease) => Some(lease),
                _ => None,
            }
        }

        async fn release(&self, lease: &Lease) {
            self.tier.release(&self.redis, lease, None, &mut Budget::new(LONG)).await;
        }

        fn turns_to(&self, server: &RedisServer) {
            turn_to(self.redis.shared(), server);
        }

        /// While `self` gives back what it has to, `other` leads all of these well before their leases lapse.
        async fn soon_leads(&self, other: &Self, keys: &[Vec<u8>]) {
            let all = async {
                for key in keys {
                    eventually("another leads", async || other.leads(key).await.is_some()).await;
                }
            };
            tokio::select! {
                () = Arc::clone(&self.tier).give_back(&self.redis) => {}
                all = timeout(LEASE / 4, all) => all.expect("soon"),
            }
        }
    }

    /// As a copy has it whom its master's last command did not reach.
    async fn copy(from: &RedisServer, to: &RedisServer, pod: &Pod, key: &[u8]) {
        let lease = pod.tier.keys.lease(&name(key));
        let dump = from.command_bytes(&[b"DUMP", &lease]).await.bytes().cloned().expect("it is there");
        to.command_bytes(&[b"RESTORE", &lease, LEASE.as_millis().to_string().as_bytes(), &dump]).await;
    }

    /// Redis gives it, but is heard too late: nobody waits until it lapses.
    #[tokio::test]
    async fn a_lease_that_nobody_heard_of_is_given_back() {
        let server = RedisServer::up().await;
        let pod = Pod::of(&server);
        assert!(pod.leads(b"another").await.is_some());
        let mut token = pod.tier.token();
        server.freeze(true);
        assert!(matches!(pod.ask(KEY, &mut token, Duration::from_millis(50)).await, Leased::Late));
        server.freeze(false);
        let lease = pod.tier.keys.lease(&name(KEY));
        eventually("it is given", async || server.command_bytes(&[b"EXISTS", &lease]).await.number() == Some(1)).await;
        drop(token);
        pod.soon_leads(&pod, &[KEY.to_vec()]).await;
    }

    #[tokio::test]
    async fn who_takes_over_with_a_lease_whose_end_was_not_copied_hears_of_it() {
        let (before, after) = (RedisServer::up().await, RedisServer::up().await);
        let (pod, other) = (Pod::of(&before), Pod::of(&after));
        let lease = pod.leads(KEY).await.expect("nobody has it");
        copy(&before, &after, &pod, KEY).await;
        pod.release(&lease).await;
        assert!(other.leads(KEY).await.is_none(), "it is held there");
        pod.turns_to(&after);
        pod.soon_leads(&other, &[KEY.to_vec()]).await;
    }

    /// Others may take that server for the master for a while longer.
    #[tokio::test]
    async fn who_gave_a_lease_and_was_replaced_since_hears_of_its_end() {
        let (before, after) = (RedisServer::up().await, RedisServer::up().await);
        let (pod, other) = (Pod::of(&before), Pod::of(&before));
        let lease = pod.leads(KEY).await.expect("nobody has it");
        pod.turns_to(&after);
        pod.release(&lease).await;
        assert!(other.leads(KEY).await.is_none(), "it is held there");
        pod.soon_leads(&other, &[KEY.to_vec()]).await;
    }

    #[tokio::test]
    async fn what_a_frozen_server_did_not_take_back_another_does() {
        let (before, after) = (RedisServer::up().await, RedisServer::up().await);
        let (pod, other) = (Pod::of(&before), Pod::of(&after));
        let keys: Vec<_> = (0..400_u32).map(|key| key.to_be_bytes().to_vec()).collect();
        let mut leases = Vec::new();
        for key in &keys {
            leases.push(pod.leads(key).await.expect("nobody has it"));
            copy(&before, &after, &pod, key).await;
        }
        before.freeze(true);
        for lease in &leases {
            let budget = &mut Budget::new(Duration::ZERO);
            pod.tier.release(&pod.redis, lease, None, budget).await;
        }
        let turn = async {
            // It is being told.
            tokio::time::sleep(DEADLINE / 2).await;
            pod.turns_to(&after);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = turn => {}
            () = pod.soon_leads(&other, &keys) => {}
        }
        before.freeze(false);
    }
}
