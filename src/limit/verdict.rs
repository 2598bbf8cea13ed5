//! What a stage's limits said, and what a request was charged so far.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::after::{Tabs, Till};
use super::algorithm::{Level, Mark, NEVER_MS, Shape};
use super::bounds::{Bound, StageLimits};
use super::held::{Slot, Slots};
use super::identity::LocalName;
use super::line::Told;
use super::loans::Spent;
use super::local::{Ask, Reading};
use super::{Facts, fields};
use crate::config::{self, FieldEdits, Quota};
use crate::kv;
use crate::message;
use crate::metrics::{Decision, Source};
use crate::syntax::rate::Rate;

/// What a client is told to wait when a limit with `redis_down = "deny"` cannot be checked: the breaker's scale.
const UNCHECKED_WAIT_MS: u64 = 1000;

/// What a stage's limits said.
#[derive(Debug)]
pub enum Verdict {
    /// Go on.
    Allow,
    /// Stop; nothing is charged.
    Deny(Box<Denial>),
}

/// Which limit denied, and what the client is told.
pub struct Denial {
    /// The limit, of several the one with the longest wait.
    pub limit: Arc<config::Limit>,
    /// From now until the request would be admitted if nobody else came, where it ever would; for requests in flight,
    /// when it is worth another try.
    pub retry_after: Option<Duration>,
    /// Who decided.
    pub source: Source,
    /// `Content-Type` of a request that is a call by gRPC, whose answers have a status of their own.
    pub grpc: Option<HeaderValue>,
    /// Whose state it is; of a limit that was not asked, nobody's.
    pub(super) name: LocalName,
    cause: Cause,
    pub(super) bound: Arc<Bound>,
    pub(super) cost: f64,
    /// What its state says; `None` if it was not, or could not be, asked.
    pub(super) level: Option<Level>,
    policy: Option<HeaderValue>,
}

/// Why a limit denies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// It has too little left, or cannot be checked.
    Spent,
    /// `deny` lists the client.
    Listed,
    /// The request lacks a part of the identity.
    Unidentified,
}

/// What one request was charged so far, and what it may be told; `default()` before its first stage.
#[derive(Default)]
pub struct Charged {
    pub(super) charges: Vec<Charge>,
    /// What is given back at the request's end, whatever else.
    pub(super) slots: Slots,
    /// Of these, those that a denial leaves held.
    pub(super) kept: usize,
    /// What is still to be settled by the answer.
    pub(super) tabs: Tabs,
    /// Of the limits that are told of in the draft's fields.
    tightest: Option<(Arc<Bound>, Level)>,
    /// Of those that are told of in the fields of old.
    tightest_x: Option<(Arc<Bound>, Level)>,
    pub(super) policy: Option<HeaderValue>,
    /// Whether a limit was not for this request: then `policy` is not what the stage has ready.
    pub(super) is_narrowed: bool,
    /// Limits that only count, and would have denied it.
    would_deny: Vec<Arc<config::Limit>>,
    /// For how long it has waited for limits, if it may.
    pub(super) waited: Option<Duration>,
}

/// A charge that may have to be given back.
pub(super) struct Charge {
    pub(super) bound: Arc<Bound>,
    pub(super) name: LocalName,
    pub(super) cost: f64,
    pub(super) local: Option<(Shape, Mark)>,
    pub(super) redis: Option<(Vec<u8>, Mark)>,
    pub(super) loan: Option<Spent>,
}

/// What one of a stage's limits said; they come in their order.
pub(super) struct Answer {
    pub(super) name: LocalName,
    pub(super) cost: f64,
    pub(super) source: Source,
    /// Whether this limit had no request left, or says `deny` unasked.
    pub(super) short: bool,
    pub(super) level: Option<Level>,
    pub(super) local: Option<(Shape, Mark)>,
    pub(super) redis: Option<(Vec<u8>, Mark)>,
    /// What was paid from a loan of it.
    pub(super) loan: Option<Spent>,
}

impl Answer {
    /// Of a limit that charged nothing, and of which nothing is known.
    pub(super) fn unchecked(name: LocalName, cost: f64, source: Source) -> Self {
        Self { name, cost, source, short: false, level: None, local: None, redis: None, loan: None }
    }

    pub(super) fn here(ask: &Ask<'_>, reading: &Reading, source: Source) -> Self {
        Self {
            short: reading.is_short(),
            level: Some(reading.level),
            local: reading.mark.map(|mark| (ask.shape, mark)),
            ..Self::unchecked(ask.name, ask.cost, source)
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
        self.kept = self.slots.len();
        self.tabs.keep();
    }

    /// What is to be settled by the answer; whoever has it is to drop it at the request's end.
    pub fn take_tabs(&mut self) -> Tabs {
        std::mem::take(&mut self.tabs)
    }

    /// The same, but for the first so many.
    pub fn take_tabs_beyond(&mut self, first: usize) -> Tabs {
        self.tabs.split_off(first)
    }

    /// How many charges are to be settled by the answer.
    pub fn owes(&self) -> usize {
        self.tabs.len()
    }

    /// What the request holds until its end; whoever has it is to drop it then.
    pub fn take_slots(&mut self) -> Slots {
        self.take_slots_beyond(0)
    }

    /// How many slots it holds.
    pub fn holds(&self) -> usize {
        self.slots.len()
    }

    /// All but the first so many, for something that may outlive the request.
    pub fn take_slots_beyond(&mut self, first: usize) -> Slots {
        self.kept = self.kept.min(first);
        self.slots.split_off(first.min(self.slots.len()))
    }

    /// Adds `RateLimit-Policy` and `RateLimit` for the stages that were taken, to an answer from memory in place.
    pub fn tell(&self, answer: &mut message::Answer) {
        let tightest = self.tightest();
        if (self.policy.is_none() && tightest.is_none())
            || (answer.fields.is_empty() && fields::push(self.policy.as_ref(), tightest, &mut answer.lines))
        {
            return;
        }
        self.append_fields(&mut answer.fields);
    }

    /// The same among other fields.
    pub fn append_fields(&self, fields: &mut HeaderMap) {
        fields::append(self.policy.as_ref(), self.tightest(), fields);
    }

    fn tightest(&self) -> Option<(&str, &Shape, &Level)> {
        self.tightest.as_ref().map(|(bound, level)| (&*bound.quoted, &bound.shape, level))
    }

    /// The `X-RateLimit` fields, where a limit asks for them. Allocates for such a limit only.
    pub fn x_fields(&self) -> FieldEdits {
        self.tightest_x.as_ref().map_or_else(FieldEdits::default, |(bound, level)| fields::x(&bound.shape, level))
    }

    /// Whether a denial by a limit that was asked is a reason to wait: what it would take is within what the limit allows.
    pub(super) fn puts_off(&self, denial: &Denial) -> bool {
        let Some((waited, delay)) = self.waited.zip(denial.bound.delay()) else { return false };
        let wait = denial.retry_after.filter(|_| denial.level.is_some());
        wait.is_some_and(|wait| waited + wait <= delay.longest)
    }

    /// How long another request like this one would have to wait, as far as that is known.
    pub(super) fn next_wait(&self) -> Duration {
        let known = self.tightest.as_ref().or(self.tightest_x.as_ref());
        Duration::from_millis(known.map_or(0, |(_, level)| level.wait_ms))
    }

    /// Nothing was taken yet: what was has been given back.
    pub(super) fn begin_anew(&mut self) {
        self.hush();
        self.is_narrowed = false;
        self.would_deny.clear();
    }

    /// The limits that only count, and would have denied the request.
    pub fn would_be_denied_by(&self) -> &[Arc<config::Limit>] {
        &self.would_deny
    }

    /// Notes one of them.
    pub(super) fn would_deny(&mut self, limit: &Arc<config::Limit>) {
        self.would_deny.push(Arc::clone(limit));
    }

    /// Tells of nothing any more: the answer is a denial, which tells of itself.
    pub fn hush(&mut self) {
        (self.tightest, self.tightest_x, self.policy) = (None, None, None);
    }

    pub(super) fn note(
        &mut self,
        stage: &StageLimits,
        answers: &mut [Answer],
        (till, kv): (&Arc<Till>, Option<&kv::Redis>),
        hold: impl Fn(Charge) -> Slot,
    ) {
        self.policy.clone_from(&stage.policy);
        for (bound, answer) in stage.bounds.iter().zip(answers) {
            if let Some(level) = answer.level.filter(|_| !bound.limit.dry_run) {
                let told = bound.limit.headers;
                if told.is_draft() && is_tighter(&level, &self.tightest) {
                    self.tightest = Some((Arc::clone(bound), level));
                }
                if told.is_x() && is_tighter(&level, &self.tightest_x) {
                    self.tightest_x = Some((Arc::clone(bound), level));
                }
            }
            let is_held = bound.shape.is_held();
            if (stage.refundable || is_held || bound.settles)
                && (answer.local.is_some() || answer.redis.is_some() || answer.loan.is_some())
            {
                let Answer { name, cost, local, loan, .. } = *answer;
                let redis = answer.redis.take();
                let charge = Charge { bound: Arc::clone(bound), name, cost, local, redis, loan };
                if is_held {
                    self.slots.push(hold(charge));
                } else if bound.settles {
                    self.tabs.open(till, kv, charge);
                } else {
                    self.charges.push(charge);
                }
            }
        }
    }
}

/// Fewer requests left; of as many, those that take longer to come back.
fn is_tighter(level: &Level, than: &Option<(Arc<Bound>, Level)>) -> bool {
    let tightness = |level: &Level| (level.remaining, std::cmp::Reverse(level.full_ms));
    than.as_ref().is_none_or(|(_, other)| tightness(level) < tightness(other))
}

impl fmt::Debug for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Denial").field("limit", &self.limit.name).field("retry_after", &self.retry_after).finish()
    }
}

impl Denial {
    /// Of a limit whose state was not asked.
    pub(super) fn unasked(bound: &Arc<Bound>, cause: Cause, facts: &Facts<'_>, policy: Option<HeaderValue>) -> Self {
        Self {
            limit: Arc::clone(&bound.limit),
            retry_after: None,
            source: Source::Rule,
            grpc: grpc(facts),
            name: 0,
            cause,
            bound: Arc::clone(bound),
            cost: 0.0,
            level: None,
            policy,
        }
    }

    /// Of a request that stands behind others: `bound`'s state said so much, and is there for it in `wait`.
    pub(super) fn behind(
        told: Told,
        cost: f64,
        wait: Duration,
        facts: &Facts<'_>,
        policy: Option<HeaderValue>,
    ) -> Self {
        let Told { bound, level, source, .. } = told;
        let mut denial = Self {
            limit: Arc::clone(&bound.limit),
            retry_after: None,
            source,
            grpc: grpc(facts),
            name: 0,
            cause: Cause::Spent,
            bound,
            cost,
            level: Some(level),
            policy,
        };
        denial.take_effect(wait);
        denial
    }

    /// It is lifted in so long.
    pub(super) fn take_effect(&mut self, wait: Duration) {
        let wait_ms = u64::try_from(wait.as_micros().div_ceil(1000)).map_or(NEVER_MS, |wait_ms| wait_ms.max(1));
        self.retry_after = Some(Duration::from_millis(wait_ms));
        if let Some(level) = &mut self.level {
            (level.wait_ms, level.full_ms) = (wait_ms, level.full_ms.max(wait_ms));
        }
    }

    /// Its status over HTTP.
    pub fn status(&self) -> StatusCode {
        match self.cause {
            Cause::Listed => StatusCode::FORBIDDEN,
            Cause::Spent | Cause::Unidentified => self.limit.status,
        }
    }

    /// Its status over gRPC: PERMISSION_DENIED or RESOURCE_EXHAUSTED.
    pub fn grpc_status(&self) -> u8 {
        match self.cause {
            Cause::Listed => 7,
            Cause::Spent | Cause::Unidentified => 8,
        }
    }

    /// The body that the limit has for its denials, filled in, and what it is.
    pub fn notice(&self) -> Option<(HeaderValue, String)> {
        let notice = self.limit.notice.as_ref()?;
        let (status, detail) = (self.status(), self.explain());
        let (detail, wait) = match (notice.is_json(), self.retry_after.map(fields::seconds)) {
            // Between the template's own quotes.
            (true, wait) => {
                let quoted = serde_json::Value::from(detail).to_string();
                (quoted[1..quoted.len() - 1].to_owned(), wait.map_or("null".to_owned(), |wait| wait.to_string()))
            }
            (false, wait) => (detail, wait.map_or("-".to_owned(), |wait| wait.to_string())),
        };
        let text = notice.text.filled(&[&self.limit.name, status.as_str(), &wait, &detail]);
        Some((notice.content_type.clone(), text))
    }

    /// One plain sentence for the body of the 429.
    pub fn explain(&self) -> String {
        let name = &self.limit.name;
        match self.cause {
            Cause::Spent => {}
            Cause::Listed => return format!("The limit \"{name}\" denies everything to this client."),
            Cause::Unidentified => {
                return format!("The limit \"{name}\" has to know who asks, and this request does not say.");
            }
        }
        let Some(retry_after) = self.retry_after else {
            return format!(
                "The limit \"{name}\" never admits a request that costs more than {}; this one costs {}.",
                self.bound.shape.capacity(),
                self.cost
            );
        };
        let seconds = fields::seconds(retry_after);
        if self.level.is_none() {
            return format!("The limit \"{name}\" cannot be checked at the moment; try again in {seconds} s.");
        }
        let unit = if self.limit.counts_requests() { "request" } else { "unit" };
        let counted = |number: u32| format!("{number} {unit}{}", if number == 1 { "" } else { "s" });
        let rated = |rate: Rate| {
            let period = match rate.period_ms {
                1000 => "a second".to_owned(),
                60_000 => "a minute".to_owned(),
                3_600_000 => "an hour".to_owned(),
                86_400_000 => "a day".to_owned(),
                other => format!("in {other} ms"),
            };
            format!("{} {period}", counted(rate.amount))
        };
        let quota = match self.bound.quota {
            Quota::TokenBucket { rate, burst } => format!("{}, bursts of {burst}", rated(rate)),
            Quota::FixedWindow(rate) | Quota::SlidingWindow(rate) | Quota::SlidingLog(rate) => rated(rate),
            Quota::Concurrency { max } => format!("{} in flight", counted(max)),
        };
        format!("The limit \"{name}\" is used up: {quota}; try again in {seconds} s.")
    }

    /// Adds `RateLimit-Policy`, `RateLimit`, those of old, and, where waiting helps, `Retry-After`.
    pub fn append_fields(&self, fields: &mut HeaderMap) {
        let (bound, told) = (&self.bound, self.limit.headers);
        let tightest = self.level.as_ref().map(|level| (&*bound.quoted, &bound.shape, level));
        fields::append(self.policy.as_ref(), tightest.filter(|_| told.is_draft()), fields);
        if let Some((_, shape, level)) = tightest.filter(|_| told.is_x()) {
            fields.extend(fields::x(shape, level).set);
        }
        if let Some(retry_after) = self.retry_after {
            fields::retry_after(retry_after, fields);
        }
    }
}

/// Counts each limit's own decision, once whatever rates it has. One that would have let a denied request through decided
/// nothing. `would_deny` hears of those that only count, with the name of their state.
pub(super) fn count(
    bounds: &[Arc<Bound>],
    answers: &[Answer],
    admitted: bool,
    mut would_deny: impl FnMut(&Arc<config::Limit>, LocalName),
) {
    let mut at = 0;
    while let Some(bound) = bounds.get(at) {
        let rates = bound.limit.quotas.len();
        let own = &answers[at..at + rates];
        at += rates;
        let source = own[0].source;
        match own.iter().find(|answer| answer.short) {
            Some(short) if bound.limit.dry_run => {
                bound.metrics.decided(Decision::DryRun, source);
                would_deny(&bound.limit, short.name);
            }
            Some(_) => bound.metrics.decided(Decision::Denied, source),
            None if admitted => bound.metrics.decided(Decision::Allowed, source),
            None => {}
        }
    }
}

/// The denial, if a limit that may deny is short: of several, the one with the longest wait.
pub(super) fn denial(stage: &StageLimits, answers: &[Answer], facts: &Facts<'_>) -> Option<Box<Denial>> {
    let short = stage.bounds.iter().zip(answers).filter(|(bound, answer)| answer.short && !bound.limit.dry_run);
    let (bound, answer) = short.max_by_key(|(_, answer)| answer.wait_ms())?;
    let wait_ms = Some(answer.wait_ms()).filter(|&wait_ms| wait_ms != NEVER_MS);
    Some(Box::new(Denial {
        limit: Arc::clone(&bound.limit),
        retry_after: wait_ms.map(Duration::from_millis),
        source: answer.source,
        grpc: grpc(facts),
        name: answer.name,
        cause: Cause::Spent,
        bound: Arc::clone(bound),
        cost: answer.cost,
        level: answer.level,
        policy: stage.policy.clone(),
    }))
}

/// The content type of a call by gRPC, or by gRPC-Web.
fn grpc(facts: &Facts<'_>) -> Option<HeaderValue> {
    let kind = facts.headers.get(CONTENT_TYPE)?;
    let rest = kind.as_bytes().strip_prefix(b"application/grpc")?;
    matches!(rest.first(), None | Some(b'+' | b';' | b'-')).then(|| kind.clone())
}
