//! Limits: how much of what a client may have.
//!
//! A route's limits are taken stage by stage ([`Limiter::take`]), all of one stage or none: by what Redis lent or told this
//! pod before ([`loans`]), else in Redis or, without it, in memory. A denial gives back what earlier stages charged: a
//! denied request charges nothing.
//! Another algorithm is another pair of a pure file and a Lua file, and a variant in [`algorithm`].

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;
use crate::config::{RedisDown, Secret, Stage};
use crate::kv::{self, Budget};
use crate::metrics::Source;

mod account;
mod after;
pub mod algorithm;
mod asking;
pub mod bounds;
pub mod bucket;
mod claim;
pub mod concurrency;
pub mod delay;
#[cfg(test)]
mod dice;
pub mod events;
pub mod fields;
pub mod fixed_window;
mod given;
pub mod held;
pub mod identity;
mod line;
pub mod loans;
pub mod local;
pub mod number;
mod screen;
mod shard;
pub mod shared;
mod sketch;
pub mod sliding_log;
pub mod sliding_window;
mod split;
mod text;
pub mod tiers;
mod top;
pub mod verdict;
pub mod view;
pub mod window;

use after::Till;
pub use after::{Head, Meter, Tabs};
use algorithm::{Level, Mark, Micros, Shape};
pub use bounds::RouteLimits;
use bounds::{Bound, StageLimits};
pub use delay::{Halt, Taking};
pub use held::{RENEWAL, Slots};
use held::{Shelf, Slot};
pub use identity::Facts;
use identity::{LocalName, LocalNames, Pseudonym};
use line::Lines;
use loans::{Due, Known, Loans, REPAID_AT_ONCE, Spent};
use local::{Ask, Few};
pub use screen::Reach;
use tiers::Tiers;
use top::Top;
use verdict::{Answer, count, denial};
pub use verdict::{Charged, Denial, Verdict};

/// How often loans are looked through for what others may miss.
pub const REPAYMENT: Duration = Duration::from_millis(250);

/// Loans that one script takes back: it must not hold up the requests of others.
const REPAID_TOGETHER: usize = 32;

/// Longest that giving back may take: later it is of no use.
const REPAID_WITHIN: Duration = Duration::from_secs(1);

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
    shelf: Arc<Shelf>,
    loans: Arc<Loans>,
    till: Arc<Till>,
    top: Top,
    names: LocalNames,
    lines: Lines,
    tiers: Tiers,
    pseudonym: Pseudonym,
    replicas: Arc<AtomicU32>,
    /// The next request's, from a random one on: no two requests of the fleet share one.
    ids: AtomicU64,
}

/// A limit's state that is to be asked for one request.
#[derive(Clone, Copy)]
struct Named {
    name: LocalName,
    cost: f64,
}

/// A request at a stage whose limits are in Redis, which has to be asked.
struct Going<'a> {
    stage: &'a StageLimits,
    facts: &'a Facts<'a>,
    names: Few<Named>,
    dues: Few<Due>,
    id: u64,
}

impl Limiter {
    /// No state yet.
    pub fn new(clock: Clock, settings: Settings) -> Self {
        let Settings { secret, replicas } = settings;
        let (shelf, replicas) = (Arc::new(Shelf::new(clock)), Arc::new(replicas.into()));
        let loans = Arc::new(Loans::new(loans::borrower(kv::random())));
        Self {
            till: Arc::new(Till::new(Arc::clone(&shelf), Arc::clone(&loans), Arc::clone(&replicas))),
            shelf,
            loans,
            replicas,
            top: Top::new(),
            names: LocalNames::default(),
            lines: Lines::default(),
            tiers: Tiers::default(),
            pseudonym: Pseudonym::new(&secret),
            ids: kv::random().into(),
        }
    }

    /// Renews what requests that run hold in Redis; to be called every [`RENEWAL`].
    pub async fn renew(&self, redis: &kv::Redis) {
        self.shelf.renew(redis).await;
    }

    /// Gives back loans that are of no use here, or at the `end` of the process all; to be called every [`REPAYMENT`].
    pub async fn repay(&self, redis: &kv::Redis, end: bool) {
        // What is not given back by then is forgotten.
        let mut budget = Budget::new(REPAID_WITHIN);
        loop {
            let repayments = self.loans.repayments(end, self.shelf.steady());
            for batch in repayments.chunks(REPAID_TOGETHER) {
                if shared::repay(redis, self.loans.who(), batch, &mut budget).await.is_err() {
                    return;
                }
            }
            if !end || repayments.len() < REPAID_AT_ONCE {
                return;
            }
        }
    }

    /// So many pods share the limits from now on, should Redis go away.
    pub fn set_replicas(&self, replicas: u32) {
        self.replicas.store(replicas, Ordering::Relaxed);
    }

    /// Takes one request from every limit of `stage`, or from none.
    ///
    /// What was charged is noted in `charged`. A denial gives back what earlier stages noted there, except what
    /// [`Charged::keep`] made final. What only the answer settles is open until what [`Charged::take_tabs`] gives is
    /// settled. What the request holds of limits on requests in flight it holds until `charged` is dropped, or what
    /// [`Charged::take_slots`] gave. Without `redis` this never yields.
    pub async fn take(
        &self,
        redis: Option<&kv::Redis>,
        limits: &RouteLimits,
        stage: Stage,
        facts: &Facts<'_>,
        charged: &mut Charged,
        budget: &mut Budget,
    ) -> Verdict {
        let mut stage = limits.stage(stage);
        if stage.bounds.is_empty() {
            return Verdict::Allow;
        }
        let narrowed;
        if stage.is_screened || charged.is_narrowed {
            match screen::narrowed(stage, &self.tiers, facts, charged) {
                Ok(None) => {}
                Ok(Some(some)) if some.bounds.is_empty() => return Verdict::Allow,
                Ok(Some(some)) => {
                    narrowed = some;
                    stage = &narrowed;
                }
                Err(denial) => {
                    self.refund(redis, charged, budget).await;
                    return Verdict::Deny(denial);
                }
            }
        }
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        // Most decisions are made without waiting; so they are made without a future, whose state would hold all this.
        let denial = match redis {
            None => self.take_local(stage, facts, id, charged),
            Some(redis) => match self.take_known(stage, facts, id, charged) {
                Ok(denial) => denial,
                Err(asking) => Box::pin(self.take_asking(redis, asking, charged, budget)).await,
            },
        };
        let Some(denial) = denial else { return Verdict::Allow };
        if !charged.puts_off(&denial) {
            self.tally(denial.name, &denial.limit, facts);
        }
        // Before the denial is answered, so that a client which retries at once finds its tokens.
        self.refund(redis, charged, budget).await;
        Verdict::Deny(denial)
    }

    /// The denial, if a limit denies; else the charges are noted.
    fn conclude(
        &self,
        redis: Option<&kv::Redis>,
        stage: &StageLimits,
        facts: &Facts<'_>,
        answers: &mut [Answer],
        charged: &mut Charged,
    ) -> Option<Box<Denial>> {
        let denial = denial(stage, answers, facts);
        if !denial.as_ref().is_some_and(|denial| charged.puts_off(denial)) {
            count(&stage.bounds, answers, denial.is_none(), |limit, name| {
                charged.would_deny(limit);
                self.tally(name, limit, facts);
            });
        }
        if denial.is_none() {
            charged.note(stage, answers, (&self.till, redis), |charge| Slot::new(&self.shelf, redis, charge));
        }
        denial
    }

    /// The name in memory of the request's state of one limit, and what it costs there.
    fn named(&self, bound: &Bound, facts: &Facts<'_>) -> Named {
        let name = with_scratch(|scratch| {
            identity::canonical(&bound.limit.key, facts, scratch);
            self.names.of(&bound.scope, scratch)
        });
        Named { name, cost: bound.cost(facts) }
    }

    /// The name of the same state in Redis.
    fn key(&self, redis: &kv::Redis, bound: &Bound, facts: &Facts<'_>) -> Vec<u8> {
        let identity = with_scratch(|scratch| {
            identity::canonical(&bound.limit.key, facts, scratch);
            self.pseudonym.of(scratch)
        });
        redis.shared().keys.bucket(&bound.scope, &identity)
    }

    /// From memory alone.
    fn take_local(
        &self,
        stage: &StageLimits,
        facts: &Facts<'_>,
        id: u64,
        charged: &mut Charged,
    ) -> Option<Box<Denial>> {
        let ask = |bound| {
            let Named { name, cost } = self.named(bound, facts);
            bound.ask(name, bound.shape.divided(1), cost, id)
        };
        let now = self.shelf.steady();
        // One limit is the usual, and needs no lists.
        if let [bound] = &stage.bounds[..] {
            let ask = ask(bound);
            let reading = self.shelf.local.take_one(&ask, now);
            return self.conclude(None, stage, facts, &mut [Answer::here(&ask, &reading, Source::Local)], charged);
        }
        let asks: Few<Ask<'_>> = stage.bounds.iter().map(|bound| ask(bound)).collect();
        let readings = self.shelf.local.take(&asks, now);
        let answers = asks.iter().zip(&readings).map(|(ask, reading)| Answer::here(ask, reading, Source::Local));
        self.conclude(None, stage, facts, &mut answers.collect::<Few<_>>(), charged)
    }

    /// From what Redis lent or told this pod before.
    ///
    /// # Errors
    /// It has to be asked.
    fn take_known<'a>(
        &'a self,
        stage: &'a StageLimits,
        facts: &'a Facts<'_>,
        id: u64,
        charged: &mut Charged,
    ) -> Result<Option<Box<Denial>>, Box<(Going<'a>, Known<'a>)>> {
        let pods = self.replicas.load(Ordering::Relaxed);
        if let [bound] = &stage.bounds[..] {
            let named = self.named(bound, facts);
            return self.consult(stage, facts, id, &[named], &[bound.due(&named, pods)], charged);
        }
        let names: Few<Named> = stage.bounds.iter().map(|bound| self.named(bound, facts)).collect();
        let dues: Few<Due> = stage.bounds.iter().zip(&names).map(|(bound, named)| bound.due(named, pods)).collect();
        self.consult(stage, facts, id, &names, &dues, charged)
    }

    fn consult<'a>(
        &'a self,
        stage: &'a StageLimits,
        facts: &'a Facts<'_>,
        id: u64,
        names: &[Named],
        dues: &[Due],
        charged: &mut Charged,
    ) -> Result<Option<Box<Denial>>, Box<(Going<'a>, Known<'a>)>> {
        let now = self.shelf.steady();
        let known = self.loans.consult(dues, false, now);
        if let (Known::Spent(spent), [bound], [named]) = (&known, &stage.bounds[..], names) {
            let mut answer = [self.paid(bound, named, &spent[0], id, now)];
            return Ok(self.conclude(None, stage, facts, &mut answer, charged));
        }
        let mut answers = match known {
            Known::Spent(spent) => self.spent(&stage.bounds, names, id, &spent, now),
            Known::Denied(nth, level) => denied_before(names, nth, level),
            known => {
                let going = Going { stage, facts, names: names.into(), dues: dues.into(), id };
                return Err(Box::new((going, known)));
            }
        };
        // What holds something until its end asks Redis, so that there is nothing to give back there.
        Ok(self.conclude(None, stage, facts, &mut answers, charged))
    }

    /// What was paid from loans.
    fn spent(&self, bounds: &[Arc<Bound>], names: &[Named], id: u64, spent: &[Spent], now: Micros) -> Few<Answer> {
        let each = bounds.iter().zip(names).zip(spent);
        each.map(|((bound, named), spent)| self.paid(bound, named, spent, id, now)).collect()
    }

    /// What was paid from a loan, with the local state charged alike.
    fn paid(&self, bound: &Bound, named: &Named, spent: &Spent, id: u64, now: Micros) -> Answer {
        Answer {
            level: Some(spent.level),
            local: self.shadow(bound, named, id, now),
            loan: Some(*spent),
            ..Answer::unchecked(named.name, named.cost, Source::Loan)
        }
    }

    /// Charges the state that takes over should Redis go, as the limit's other states were charged.
    fn shadow(&self, bound: &Bound, named: &Named, id: u64, now: Micros) -> Option<(Shape, Mark)> {
        let shape = self.part(bound);
        let ask = bound.ask(named.name, shape, named.cost, id);
        (bound.limit.redis_down == RedisDown::Local).then(|| (shape, self.shelf.local.shadow(&ask, now)))
    }

    /// This pod's part of a limit while Redis is away.
    fn part(&self, bound: &Bound) -> Shape {
        bound.shape.divided(self.replicas.load(Ordering::Relaxed))
    }
}

/// Space for one identity, empty.
fn with_scratch<T>(write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        let written = write(scratch);
        scratch.shrink_to(SCRATCH_MAX);
        written
    })
}

/// What is known to be denied by one limit, and asks none.
fn denied_before(names: &[Named], nth: usize, level: Level) -> Few<Answer> {
    let mut answers: Few<Answer> =
        names.iter().map(|named| Answer::unchecked(named.name, named.cost, Source::Loan)).collect();
    (answers[nth].short, answers[nth].level) = (true, Some(level));
    answers
}

#[cfg(test)]
#[path = "limit/tests.rs"]
mod tests;
