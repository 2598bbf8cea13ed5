//! Limits: how much of what a client may have.
//!
//! A route's limits are taken stage by stage ([`Limiter::take`]), all of one stage or none, from token buckets in Redis
//! or, without it, in memory. A denial gives back what earlier stages charged: a denied request charges nothing.
//! Another algorithm is another pair of a pure file and a Lua file, and a variant in [`algorithm`].

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::clock::Clock;
use crate::config::{RedisDown, Secret, Stage};
use crate::kv::{self, Budget};
use crate::metrics::Source;

pub mod algorithm;
pub mod bounds;
pub mod bucket;
pub mod fields;
pub mod identity;
pub mod local;
pub mod shared;
pub mod verdict;

use algorithm::Micros;
use bounds::Bound;
pub use bounds::RouteLimits;
pub use identity::Facts;
use identity::{LocalName, LocalNames, Pseudonym};
use local::{Ask, Few, Local, Reading};
use verdict::{Answer, Charge, count, denial};
pub use verdict::{Charged, Denial, Verdict};

/// Scratch space above this is given back after use, in bytes: a long field must not stay.
const SCRATCH_MAX: usize = 4096;

thread_local! {
    /// Where identities are written before they are hashed.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What the process needs to know beside the limits themselves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Key of the HMAC under which identities reach Redis.
    pub secret: Secret,
    /// Pods that share the limits while Redis is away.
    pub replicas: u32,
}

/// The process's limits: one for all workers, kept over reloads.
pub struct Limiter {
    clock: Clock,
    local: Local,
    names: LocalNames,
    pseudonym: Pseudonym,
    replicas: AtomicU32,
}

impl Limiter {
    /// No bucket yet.
    pub fn new(clock: Clock, settings: Settings) -> Self {
        let Settings { secret, replicas } = settings;
        Self {
            clock,
            local: Local::new(),
            names: LocalNames::default(),
            pseudonym: Pseudonym::new(&secret),
            replicas: replicas.into(),
        }
    }

    /// So many pods share the limits from now on, should Redis go away.
    pub fn set_replicas(&self, replicas: u32) {
        self.replicas.store(replicas, Ordering::Relaxed);
    }

    /// Takes one request from every limit of `stage`, or from none.
    ///
    /// What was charged is noted in `charged`. A denial gives back what earlier stages noted there, except what
    /// [`Charged::keep`] made final. Without `redis` this never yields.
    pub async fn take(
        &self,
        redis: Option<&kv::Redis>,
        limits: &RouteLimits,
        stage: Stage,
        facts: &Facts<'_>,
        charged: &mut Charged,
        budget: &mut Budget,
    ) -> Verdict {
        let stage = limits.stage(stage);
        if stage.bounds.is_empty() {
            return Verdict::Allow;
        }
        let answers = match redis {
            None => self.take_local(&stage.bounds, facts),
            // Boxed: the way without Redis keeps its small future.
            Some(redis) => Box::pin(self.take_shared(redis, &stage.bounds, facts, budget)).await,
        };
        let denial = denial(stage, &answers);
        count(&stage.bounds, &answers, denial.is_none());
        let Some(denial) = denial else {
            charged.note(stage, answers);
            return Verdict::Allow;
        };
        // Before the denial is answered, so that a client which retries at once finds its tokens.
        self.refund(redis, std::mem::take(&mut charged.charges), budget).await;
        Verdict::Deny(denial)
    }

    /// Names of the request's buckets in memory, and what `each` makes of the canonical identities.
    fn names<T>(
        &self,
        bounds: &[Arc<Bound>],
        facts: &Facts<'_>,
        each: impl Fn(&Bound, &[u8]) -> T,
    ) -> Few<(LocalName, T)> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut named = |bound: &Arc<Bound>| {
                scratch.clear();
                identity::canonical(&bound.limit.key, facts, scratch);
                let names = (self.names.of(&bound.limit.scope, scratch), each(bound, scratch));
                scratch.shrink_to(SCRATCH_MAX);
                names
            };
            bounds.iter().map(&mut named).collect()
        })
    }

    fn take_local(&self, bounds: &[Arc<Bound>], facts: &Facts<'_>) -> Few<Answer> {
        let names = self.names(bounds, facts, |_, _| ());
        let asks: Few<Ask<'_>> =
            bounds.iter().zip(&names).map(|(bound, (name, ()))| bound.ask(*name, bound.shape)).collect();
        let readings = self.local.take(&asks, self.steady());
        asks.iter().zip(readings).map(|(ask, reading)| Answer::here(ask, &reading, Source::Local)).collect()
    }

    async fn take_shared(
        &self,
        redis: &kv::Redis,
        bounds: &[Arc<Bound>],
        facts: &Facts<'_>,
        budget: &mut Budget,
    ) -> Few<Answer> {
        let names = self.names(bounds, facts, |bound, identity| {
            redis.shared().keys.bucket(&bound.limit.scope, &self.pseudonym.of(identity))
        });
        let keys: Vec<&[u8]> = names.iter().map(|(_, key)| key.as_slice()).collect();
        let args = shared::take_args(b"", bounds.iter().map(|bound| (&bound.args, &b"1"[..], bound.mode())));
        let reply = redis.run(&shared::TAKE, &keys, &args, budget).await;
        let taken = reply.ok().and_then(|reply| shared::taken(&reply, bounds.len(), |i| (bounds[i].shape, 1.0)));
        match taken {
            Some(readings) => self.shadowed(bounds, names, readings),
            None => self.fall_back(bounds, &names),
        }
    }

    /// What Redis said, with the local buckets charged alike: should Redis go, they take over where it was.
    fn shadowed(&self, bounds: &[Arc<Bound>], names: Few<(LocalName, Vec<u8>)>, readings: Few<Reading>) -> Few<Answer> {
        let now = self.steady();
        let mut answers = Few::new();
        for ((bound, (name, key)), reading) in bounds.iter().zip(names).zip(readings) {
            let shape = bound.shape.divided(self.replicas.load(Ordering::Relaxed));
            let shadows = reading.mark.is_some() && bound.limit.redis_down == RedisDown::Local;
            answers.push(Answer {
                name,
                source: Source::Redis,
                short: reading.is_short(),
                level: Some(reading.level),
                local: shadows.then(|| (shape, self.local.shadow(&bound.ask(name, shape), now))),
                redis: reading.mark.map(|mark| (key, mark)),
            });
        }
        answers
    }

    /// What `redis_down` says, all or nothing as ever.
    fn fall_back(&self, bounds: &[Arc<Bound>], names: &Few<(LocalName, Vec<u8>)>) -> Few<Answer> {
        let unchecked = |name: LocalName, short: bool| Answer {
            name,
            source: Source::Fallback,
            short,
            level: None,
            local: None,
            redis: None,
        };
        let refused = bounds.iter().any(|bound| bound.limit.redis_down == RedisDown::Deny && !bound.limit.dry_run);
        let asked = |bound: &Bound| bound.limit.redis_down == RedisDown::Local && !refused;
        let asks: Few<Ask<'_>> = bounds
            .iter()
            .zip(names)
            .filter(|(bound, _)| asked(bound))
            .map(|(bound, (name, _))| bound.ask(*name, bound.shape.divided(self.replicas.load(Ordering::Relaxed))))
            .collect();
        let readings = self.local.take(&asks, self.steady());
        let mut taken = asks.iter().zip(&readings);
        let answer = |(bound, (name, _)): (&Arc<Bound>, &(LocalName, Vec<u8>))| match if asked(bound) {
            taken.next()
        } else {
            None
        } {
            Some((ask, reading)) => Answer::here(ask, reading, Source::Fallback),
            None => unchecked(*name, bound.limit.redis_down == RedisDown::Deny),
        };
        bounds.iter().zip(names).map(answer).collect()
    }

    /// Gives charges back, those in Redis by one script within the budget; what fails stays charged.
    async fn refund(&self, redis: Option<&kv::Redis>, charges: Vec<Charge>, budget: &mut Budget) {
        let now = self.steady();
        for charge in &charges {
            if let Some((shape, mark)) = &charge.local {
                self.local.refund(&charge.bound.ask(charge.name, *shape), mark, now);
            }
        }
        let shared =
            || charges.iter().filter_map(|charge| charge.redis.as_ref().map(|(key, mark)| (charge, key, mark)));
        let keys: Vec<&[u8]> = shared().map(|(_, key, _)| key.as_slice()).collect();
        let Some(redis) = redis.filter(|_| !keys.is_empty()) else { return };
        let args = shared::refund_args(b"", shared().map(|(charge, _, mark)| (&charge.bound.args, mark)));
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        // Unanswered, it may have been done: a second try could mint tokens.
        let _ = Box::pin(redis.run(&shared::REFUND, &keys, &args, budget)).await;
    }

    fn steady(&self) -> Micros {
        self.clock.steady() as f64 * 1000.0
    }
}

#[cfg(test)]
#[path = "limit/tests.rs"]
mod tests;
