//! What a stage's limits said, and what a request was charged so far.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use super::algorithm::{Level, Mark, Shape};
use super::bounds::{Bound, StageLimits};
use super::fields;
use super::identity::LocalName;
use super::local::{Ask, Few, Reading};
use crate::config;
use crate::metrics::{Decision, Source};

/// What a client is told to wait when a limit with `redis_down = "deny"` cannot be checked: the breaker's scale.
const UNCHECKED_WAIT_MS: u64 = 1000;

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
    pub(super) charges: Vec<Charge>,
    tightest: Option<(Arc<Bound>, Level)>,
    policy: Option<HeaderValue>,
}

/// A charge that may have to be given back.
pub(super) struct Charge {
    pub(super) bound: Arc<Bound>,
    pub(super) name: LocalName,
    pub(super) local: Option<(Shape, Mark)>,
    pub(super) redis: Option<(Vec<u8>, Mark)>,
}

/// What one of a stage's limits said; they come in their order.
pub(super) struct Answer {
    pub(super) name: LocalName,
    pub(super) source: Source,
    /// Whether this limit had no request left, or says `deny` unasked.
    pub(super) short: bool,
    pub(super) level: Option<Level>,
    pub(super) local: Option<(Shape, Mark)>,
    pub(super) redis: Option<(Vec<u8>, Mark)>,
}

impl Answer {
    pub(super) fn here(ask: &Ask<'_>, reading: &Reading, source: Source) -> Self {
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

    pub(super) fn note(&mut self, stage: &StageLimits, answers: Few<Answer>) {
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
pub(super) fn count(bounds: &[Arc<Bound>], answers: &Few<Answer>, admitted: bool) {
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
pub(super) fn denial(stage: &StageLimits, answers: &Few<Answer>) -> Option<Denial> {
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
