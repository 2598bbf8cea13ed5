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
use crate::kv::{Budget, Redis, Server, Unavailable};

/// Leases whose end some server has yet to hear of, at most; of one more the oldest lapses by itself.
const UNHEARD: usize = 4_096;

/// Leases that are remembered once their end was heard, at most: of a server's last commands a copy may lack some.
const HEARD: usize = 1_024;

/// Ends that are told at once, at most.
const AT_ONCE: usize = 64;

/// Pause before Redis is told again what it did not take, and the longest while it takes nothing.
const AGAIN_AFTER: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(80));

/// Longest that a server may stand still and, when it goes on, gives a lease to who has long given up asking: after longer, that
/// lapses by itself.
const STANDSTILL: Duration = Duration::from_secs(60);

/// How long a server may take to hear of them; nobody waits for it.
const DEADLINE: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// For whoever has the key, until he hears of it.
    unheard: Queue<End>,
    /// For who gave it and is replaced since, once: other pods may not know that yet.
    replaced: Queue<(End, Server)>,
    /// Who has heard of it; oldest first.
    heard: Mutex<VecDeque<(End, Server)>>,
}

/// The end of a lease.
#[derive(Debug, Clone)]
struct End {
    lease: Lease,
    /// How its fetch failed, for the fleet to count.
    failed: Option<StatusCode>,
    /// By then nobody waits for it any more, as far as is known.
    lapses: Instant,
    /// Since when it is to be told.
    since: Instant,
}

impl End {
    fn new(lease: Lease, failed: Option<StatusCode>) -> Self {
        let now = Instant::now();
        Self { lease, failed, lapses: now + LEASE, since: now }
    }

    /// Who was asked for it stands still, and may yet give it.
    fn may_begin_yet(&mut self) {
        self.lapses = Instant::now().min(self.since + STANDSTILL) + LEASE;
    }
}

impl Ended {
    /// Redis did not say that it has heard of it.
    pub(super) fn is_unheard(&self, lease: Lease, failed: Option<StatusCode>) {
        self.unheard.add(End::new(lease, failed));
    }

    /// This server has heard of it, and who `owner` says has the key now is to.
    pub(super) fn is_heard(
        &self,
        lease: Lease,
        failed: Option<StatusCode>,
        by: &Server,
        owner: impl Fn(&Lease) -> Option<Server>,
    ) {
        self.note(End::new(lease, failed), by, owner);
    }

    fn note(&self, mut end: End, by: &Server, owner: impl Fn(&Lease) -> Option<Server>) {
        if let Some(giver) = end.lease.giver.take().filter(|giver| giver != by) {
            self.replaced.add((end.clone(), giver));
        }
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        while heard.len() >= HEARD || heard.front().is_some_and(|(oldest, _)| oldest.lapses <= now) {
            heard.pop_front();
        }
        heard.push_back((end.clone(), by.clone()));
        drop(heard);
        // A change of owners from now on finds it there.
        if owner(&end.lease).is_some_and(|owner| owner != *by) {
            self.unheard.add(end);
        }
    }

    /// Keys may have other owners now, who copied leases but perhaps not their ends.
    fn moved(&self, owner: impl Fn(&Lease) -> Option<Server>) {
        let heard = || self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, mut still) = (std::mem::take(&mut *heard()), VecDeque::new());
        for (end, by) in all {
            match owner(&end.lease) {
                Some(owner) if owner != by => self.unheard.add(end),
                _ => still.push_back((end, by)),
            }
        }
        let mut heard = heard();
        still.append(&mut heard);
        *heard = still;
    }
}

/// What waits to be told.
#[derive(Debug)]
struct Queue<T> {
    waiting: Mutex<VecDeque<T>>,
    added: Notify,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: Mutex::default(), added: Notify::new() }
    }
}

impl<T> Queue<T> {
    fn add(&self, one: T) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() == UNHEARD {
            waiting.pop_front();
        }
        waiting.push_back(one);
        drop(waiting);
        self.added.notify_one();
    }

    /// The next, so many at most; waits for one.
    async fn next(&self, most: usize) -> Vec<T> {
        loop {
            let next: Vec<_> = {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let count = waiting.len().min(most);
                waiting.drain(..count).collect()
            };
            if !next.is_empty() {
                return next;
            }
            self.added.notified().await;
        }
    }
}

impl SharedTier {
    /// Tells servers of ended leases what they may not know; for as long as the process runs.
    pub async fn tell_ended(self: Arc<Self>, redis: &Redis) {
        tokio::join!(self.tell_owners(redis), self.tell_replaced(redis));
    }

    async fn tell_owners(self: &Arc<Self>, redis: &Redis) {
        let (mut changes, mut pause) = (self.kv.changes(), AGAIN_AFTER.0);
        changes.mark_changed();
        loop {
            let next = tokio::select! {
                biased;
                Ok(()) = changes.changed() => {
                    self.ended.moved(|lease| self.owner(redis, lease));
                    continue;
                }
                next = self.ended.unheard.next(AT_ONCE) => next,
            };
            let mut round = JoinSet::new();
            for end in next.into_iter().filter(|end| end.lapses > Instant::now()) {
                round.spawn(Arc::clone(self).tell(redis.clone(), end, changes.clone()));
            }
            let (mut heard, mut left) = (0, 0);
            while let Some(told) = round.join_next().await {
                match told {
                    Ok(Some(unheard)) => {
                        self.ended.unheard.add(unheard);
                        left += 1;
                    }
                    _ => heard += 1,
                }
            }
            pause = if heard > 0 { AGAIN_AFTER.0 } else { (pause * 2).min(AGAIN_AFTER.1) };
            if left > 0 {
                let _ = timeout(pause, changes.clone().changed()).await;
            }
        }
    }

    /// What is to be told again.
    async fn tell(self: Arc<Self>, redis: Redis, mut end: End, mut changes: watch::Receiver<()>) -> Option<End> {
        let owner = self.owner(&redis, &end.lease);
        let what = What { failed: end.failed, ..What::default() };
        let budget = &mut Budget::new(DEADLINE);
        let another = async { while changes.changed().await.is_ok() && self.owner(&redis, &end.lease) == owner {} };
        let written = tokio::select! {
            written = self.write_to(&redis, None, &end.lease.hash, Some(&end.lease), what, budget) => Some(written),
            // Of who was replaced no answer is waited for.
            () = another => None,
        };
        if matches!(written, Some(Err(Unavailable::Timeout))) {
            end.may_begin_yet();
        }
        let is_heard = matches!(written, Some(Ok(_)));
        match owner.filter(|_| is_heard) {
            Some(owner) => {
                self.ended.note(end, &owner, |lease| self.owner(&redis, lease));
                None
            }
            None => Some(end),
        }
    }

    async fn tell_replaced(&self, redis: &Redis) {
        loop {
            for (end, server) in self.ended.replaced.next(1).await {
                // Who is not there gives nobody an answer, either.
                if end.lapses > Instant::now() && !server.is_away() {
                    let (what, budget) = (What::default(), &mut Budget::new(DEADLINE));
                    let lease = Some(&end.lease);
                    let _ = self.write_to(redis, Some(&server), &end.lease.hash, lease, what, budget).await;
                }
            }
        }
    }

    pub(super) fn owner(&self, redis: &Redis, lease: &Lease) -> Option<Server> {
        redis.server_of(&self.keys.lease(&lease.hash))
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

        /// While `self` tells what it has to, `other` leads well before the lease lapses.
        async fn soon_leads(&self, other: &Self, key: &[u8]) {
            self.soon_leads_after(async {}, other, key).await;
        }

        /// [`Self::soon_leads`] once that is over, while which it tells too.
        async fn soon_leads_after(&self, before: impl Future<Output = ()>, other: &Self, key: &[u8]) {
            let leads = async {
                before.await;
                timeout(LEASE / 4, eventually("another leads", async || other.leads(key).await.is_some())).await
            };
            tokio::select! {
                () = Arc::clone(&self.tier).tell_ended(&self.redis) => {}
                led = leads => led.expect("soon"),
            }
        }

        /// Asks for a lease of a server that stands still from now on.
        async fn asks_in_vain(&self, server: &RedisServer) {
            assert!(self.leads(b"another").await.is_some());
            let mut token = self.tier.token();
            server.freeze(true);
            assert!(matches!(self.ask(KEY, &mut token, Duration::from_millis(50)).await, Leased::Late));
        }
    }

    /// As copies have it whom their master's last commands did not reach.
    async fn copy(from: &RedisServer, to: &RedisServer, pod: &Pod, keys: &[Vec<u8>]) {
        let (mut from, mut to) = (from.connection().await, to.connection().await);
        for key in keys {
            let lease = pod.tier.keys.lease(&name(key));
            let dump = from.command(&[b"DUMP", &lease], LONG).await.unwrap().bytes().cloned().expect("it is there");
            to.command(&[b"RESTORE", &lease, LEASE.as_millis().to_string().as_bytes(), &dump], LONG).await.unwrap();
        }
    }

    async fn holds(server: &RedisServer, pod: &Pod, key: &[u8]) -> bool {
        let lease = pod.tier.keys.lease(&name(key));
        server.command_bytes(&[b"EXISTS", &lease]).await.number() == Some(1)
    }

    /// Redis gives it, but is heard too late: nobody waits until it lapses.
    #[tokio::test]
    async fn a_lease_that_nobody_heard_of_is_given_back() {
        let server = RedisServer::up().await;
        let pod = Pod::of(&server);
        pod.asks_in_vain(&server).await;
        server.freeze(false);
        eventually("it is given", async || holds(&server, &pod, KEY).await).await;
        pod.soon_leads(&pod, KEY).await;
    }

    /// Redis stands still for longer than a lease lives, and gives it when it goes on.
    #[tokio::test]
    async fn a_lease_that_redis_gives_after_a_long_standstill_is_given_back() {
        let server = RedisServer::up().await;
        let pod = Pod::of(&server);
        pod.asks_in_vain(&server).await;
        let standstill = async {
            tokio::time::sleep(LEASE + LEASE / 4).await;
            server.freeze(false);
        };
        pod.soon_leads_after(standstill, &pod, KEY).await;
    }

    #[tokio::test]
    async fn who_takes_over_with_a_lease_whose_end_was_not_copied_hears_of_it() {
        let (before, after) = (RedisServer::up().await, RedisServer::up().await);
        let (pod, other) = (Pod::of(&before), Pod::of(&after));
        let lease = pod.leads(KEY).await.expect("nobody has it");
        copy(&before, &after, &pod, &[KEY.to_vec()]).await;
        pod.release(&lease).await;
        assert!(other.leads(KEY).await.is_none(), "it is held there");
        pod.turns_to(&after);
        pod.soon_leads(&other, KEY).await;
    }

    #[tokio::test]
    async fn who_takes_over_just_as_the_other_answers_is_told() {
        let (before, after) = (RedisServer::up().await, RedisServer::up().await);
        let pod = Pod::of(&before);
        let lease = pod.leads(KEY).await.expect("nobody has it");
        let owner = |lease: &Lease| pod.tier.owner(&pod.redis, lease);
        let by = owner(&lease).expect("it is known");
        pod.turns_to(&after);
        pod.tier.ended.moved(owner);
        pod.tier.ended.is_heard(lease, None, &by, owner);
        assert_eq!(pod.tier.ended.unheard.waiting.lock().unwrap().len(), 1);
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
        pod.soon_leads(&other, KEY).await;
        assert!(pod.tier.ended.replaced.waiting.lock().unwrap().is_empty(), "nobody is told twice");
    }

    /// More than are told at once, and the answers to the first of them are never heard.
    #[tokio::test]
    async fn all_that_a_frozen_server_did_not_hear_of_another_does() {
        let (before, after) = (RedisServer::up().await, RedisServer::up().await);
        let pod = Pod::of(&before);
        let keys: Vec<_> = (0..2 * AT_ONCE).map(|key| key.to_be_bytes().to_vec()).collect();
        let mut leases = Vec::new();
        for key in &keys {
            leases.push(pod.leads(key).await.expect("nobody has it"));
        }
        copy(&before, &after, &pod, &keys).await;
        before.freeze(true);
        for lease in &leases {
            pod.tier.release(&pod.redis, lease, None, &mut Budget::new(Duration::ZERO)).await;
        }
        let none_is_left = async {
            // They are on their way to the one that is frozen.
            eventually("told", async || pod.tier.ended.unheard.waiting.lock().unwrap().len() == AT_ONCE).await;
            pod.turns_to(&after);
            let mut after = after.connection().await;
            let mut left = async || after.command(&[b"DBSIZE"], LONG).await.unwrap().number();
            eventually("all end", async || left().await == Some(0)).await;
        };
        tokio::select! {
            () = Arc::clone(&pod.tier).tell_ended(&pod.redis) => {}
            told = timeout(LEASE / 4, none_is_left) => told.expect("soon"),
        }
        before.freeze(false);
    }
}
