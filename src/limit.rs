//! Limits: how much of what a client may have.
//!
//! A route's limits are taken stage by stage ([`Limiter::take`]), all of one stage or none, from token buckets in Redis
//! or, without it, in memory. A denial gives back what earlier stages charged: a denied request charges nothing.
//! Another algorithm is another pair of a pure file beside [`bucket`] and a script beside `take.lua`.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use crate::clock::Clock;
use crate::config::{self, RedisDown, Secret, Stage};
use crate::kv::{self, Budget};
use crate::metrics::{Decision, LimitMetrics, Metrics, Source};

pub mod bucket;
pub mod fields;
pub mod identity;
pub mod local;
pub mod shared;

use bucket::{Level, Mark, Micros, Shape};
pub use identity::Facts;
use identity::{LocalName, LocalNames, Pseudonym};
use local::{Ask, Few, Local, Reading};
use shared::ShapeArgs;

/// What a client is told to wait when a limit with `redis_down = "deny"` cannot be checked: the breaker's scale.
const UNCHECKED_WAIT_MS: u64 = 1000;

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

/// One limit on one route.
struct Bound {
    limit: Arc<config::Limit>,
    metrics: LimitMetrics,
    shape: Shape,
    args: ShapeArgs,
    /// The limit's name in `RateLimit`.
    quoted: Box<str>,
}

/// One stage of a route.
#[derive(Default)]
struct StageLimits {
    bounds: Vec<Arc<Bound>>,
    /// `RateLimit-Policy` of a request that came this far.
    policy: Option<HeaderValue>,
    /// Whether a later stage may deny, so that charges must be remembered.
    refundable: bool,
}

/// A route's limits by stage, with their handles; built with the route.
pub struct RouteLimits {
    stages: [StageLimits; STAGES.len()],
}

/// Stages in their order.
const STAGES: [Stage; 3] = [Stage::Request, Stage::Miss, Stage::Origin];

/// What a stage's limits said.
#[derive(Debug)]
pub enum Verdict {
    /// Go on.
    Allow,
    /// Stop; nothing is charged.
    Deny(Denial),
}

/// Which limit denied, and what the client is told.
#[derive(Debug)]
pub struct Denial {
    /// The limit, of several the one with the longest wait.
    pub limit: Arc<config::Limit>,
    /// From now until the request would be admitted if nobody else came.
    pub retry_after: Duration,
    /// Who decided.
    pub source: Source,
    /// The bucket; `None` if it could not be asked.
    level: Option<Level>,
    policy: Option<HeaderValue>,
}

/// What one request was charged so far, and what it may be told; `default()` before its first stage.
#[derive(Default)]
pub struct Charged {
    charges: Vec<Charge>,
    tightest: Option<(Arc<Bound>, Level)>,
    policy: Option<HeaderValue>,
}

/// A charge that may have to be given back.
struct Charge {
    bound: Arc<Bound>,
    name: LocalName,
    local: Option<(Shape, Mark)>,
    redis: Option<(Vec<u8>, Mark)>,
}

/// What one of a stage's limits said; they come in their order.
struct Answer {
    name: LocalName,
    source: Source,
    /// Whether this limit had no request left, or says `deny` unasked.
    short: bool,
    level: Option<Level>,
    local: Option<(Shape, Mark)>,
    redis: Option<(Vec<u8>, Mark)>,
}

impl RouteLimits {
    /// The limits of the route called `route`. One that is named twice counts once.
    pub fn new(metrics: &Metrics, route: &str, limits: &[Arc<config::Limit>]) -> Self {
        let mut stages: [StageLimits; STAGES.len()] = Default::default();
        for (index, stage) in STAGES.into_iter().enumerate() {
            for limit in limits.iter().filter(|limit| limit.on == stage) {
                let bounds = &mut stages[index].bounds;
                if bounds.iter().all(|bound| bound.limit.scope != limit.scope) {
                    bounds.push(Arc::new(Bound::new(metrics, route, limit)));
                }
            }
            let told = stages[..=index].iter().flat_map(|stage| &stage.bounds);
            let policy = fields::policy(told.map(|bound| &*bound.limit).filter(|limit| !limit.dry_run));
            stages[index].policy = policy;
            stages[index].refundable = limits.iter().any(|limit| limit.on > stage);
        }
        Self { stages }
    }

    /// Whether the route has no limit at this stage.
    pub fn is_empty(&self, stage: Stage) -> bool {
        self.stage(stage).bounds.is_empty()
    }

    /// Every limit, stage by stage, as it is taken.
    pub fn all(&self) -> impl Iterator<Item = &config::Limit> {
        self.stages.iter().flat_map(|stage| &stage.bounds).map(|bound| &*bound.limit)
    }

    fn stage(&self, stage: Stage) -> &StageLimits {
        &self.stages[stage as usize]
    }
}

impl Bound {
    fn new(metrics: &Metrics, route: &str, limit: &Arc<config::Limit>) -> Self {
        let shape = Shape::new(limit.rate, limit.burst);
        Self {
            limit: Arc::clone(limit),
            metrics: metrics.limit(route, &limit.name),
            shape,
            args: ShapeArgs::new(&shape),
            quoted: fields::quoted(&limit.name),
        }
    }

    fn ask(&self, name: LocalName, shape: Shape) -> Ask<'_> {
        Ask { name, scope: &self.limit.scope, shape, enforced: !self.limit.dry_run }
    }
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
        let args = shared::take_args(bounds.iter().map(|bound| (&bound.args, !bound.limit.dry_run)));
        let reply = redis.run(&shared::TAKE, &keys, &args, budget).await;
        let taken = reply.ok().and_then(|reply| shared::taken(&reply, bounds.len(), |i| bounds[i].shape.price));
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
        let args = shared::refund_args(shared().map(|(charge, _, mark)| (&charge.bound.args, mark)));
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        // Unanswered, it may have been done: a second try could mint tokens.
        let _ = Box::pin(redis.run(&shared::REFUND, &keys, &args, budget)).await;
    }

    fn steady(&self) -> Micros {
        self.clock.steady() as f64 * 1000.0
    }
}

impl Answer {
    fn here(ask: &Ask<'_>, reading: &Reading, source: Source) -> Self {
        Self {
            name: ask.name,
            source,
            short: reading.is_short(),
            level: Some(reading.level),
            local: reading.mark.map(|mark| (ask.shape, mark)),
            redis: None,
        }
    }

    fn wait_ms(&self) -> u64 {
        self.level.map_or(UNCHECKED_WAIT_MS, |level| level.wait_ms)
    }
}

impl Charged {
    /// Makes what is charged so far final: for a request that will be answered whatever later stages say, as with a
    /// stale answer in place of a denial.
    pub fn keep(&mut self) {
        self.charges.clear();
    }

    /// Adds `RateLimit-Policy` and `RateLimit` for the stages that were taken.
    pub fn append_fields(&self, fields: &mut HeaderMap) {
        let tightest = self.tightest.as_ref().map(|(bound, level)| (&*bound.quoted, level));
        fields::append(self.policy.as_ref(), tightest, fields);
    }

    fn note(&mut self, stage: &StageLimits, answers: Few<Answer>) {
        self.policy.clone_from(&stage.policy);
        for (bound, answer) in stage.bounds.iter().zip(answers) {
            let tightness = |level: &Level| (level.remaining, std::cmp::Reverse(level.full_ms));
            if let Some(level) = answer.level.filter(|_| !bound.limit.dry_run)
                && self.tightest.as_ref().is_none_or(|(_, tightest)| tightness(&level) < tightness(tightest))
            {
                self.tightest = Some((Arc::clone(bound), level));
            }
            if stage.refundable && (answer.local.is_some() || answer.redis.is_some()) {
                let Answer { name, local, redis, .. } = answer;
                self.charges.push(Charge { bound: Arc::clone(bound), name, local, redis });
            }
        }
    }
}

impl Denial {
    /// One plain sentence for the body of the 429.
    pub fn explain(&self) -> String {
        let config::Limit { name, rate, burst, .. } = &*self.limit;
        let seconds = fields::seconds(self.retry_after);
        if self.level.is_none() {
            return format!("The limit \"{name}\" cannot be checked at the moment; try again in {seconds} s.");
        }
        let period = match rate.period_ms {
            1000 => "a second".to_owned(),
            60_000 => "a minute".to_owned(),
            3_600_000 => "an hour".to_owned(),
            86_400_000 => "a day".to_owned(),
            other => format!("in {other} ms"),
        };
        format!(
            "The limit \"{name}\" is used up: {} {period}, at most {burst} at once; try again in {seconds} s.",
            if rate.amount == 1 { "1 request".to_owned() } else { format!("{} requests", rate.amount) }
        )
    }

    /// Adds `RateLimit-Policy`, `RateLimit` and `Retry-After`.
    pub fn append_fields(&self, fields: &mut HeaderMap) {
        let quoted = fields::quoted(&self.limit.name);
        fields::append(self.policy.as_ref(), self.level.as_ref().map(|level| (&*quoted, level)), fields);
        fields::retry_after(self.retry_after, fields);
    }
}

/// Counts each limit's own decision. One that would have let a denied request through decided nothing.
fn count(bounds: &[Arc<Bound>], answers: &Few<Answer>, admitted: bool) {
    for (bound, answer) in bounds.iter().zip(answers) {
        match (answer.short, bound.limit.dry_run) {
            (true, true) => bound.metrics.decided(Decision::DryRun, answer.source),
            (true, false) => bound.metrics.decided(Decision::Denied, answer.source),
            (false, _) if admitted => bound.metrics.decided(Decision::Allowed, answer.source),
            (false, _) => {}
        }
    }
}

/// The denial, if a limit that may deny is short: of several, the one with the longest wait.
fn denial(stage: &StageLimits, answers: &Few<Answer>) -> Option<Denial> {
    let short = stage.bounds.iter().zip(answers).filter(|(bound, answer)| answer.short && !bound.limit.dry_run);
    let (bound, answer) = short.max_by_key(|(_, answer)| answer.wait_ms())?;
    Some(Denial {
        limit: Arc::clone(&bound.limit),
        retry_after: Duration::from_millis(answer.wait_ms()),
        source: answer.source,
        level: answer.level,
        policy: stage.policy.clone(),
    })
}

#[cfg(test)]
#[path = "limit/tests.rs"]
mod tests;
