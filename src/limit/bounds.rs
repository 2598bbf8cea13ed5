//! A route's limits by stage, with their handles; built with the route.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderValue;
use smallvec::SmallVec;

use super::algorithm::Shape;
use super::fields;
use super::identity::LocalName;
use super::loans::Due;
use super::local::Ask;
use super::shared::{Mode, ShapeArgs, TAKE_ANY, TAKE_TOKENS};
use super::{Facts, Named, screen};
use crate::config::{self, AfterLoss, AnswerCost, Cost, Delay, Quota, Stage};
use crate::kv::Script;
use crate::metrics::{LimitMetrics, Metrics};

/// One limit on one route; of one with several rates, one of them.
pub(super) struct Bound {
    pub(super) limit: Arc<config::Limit>,
    pub(super) quota: Quota,
    /// Whether the limit's own bound before is one with it.
    pub(super) follows: bool,
    /// The name of its states.
    pub(super) scope: Box<str>,
    pub(super) metrics: LimitMetrics,
    pub(super) shape: Shape,
    /// Whether what a request pays is known only with its answer.
    pub(super) settles: bool,
    pub(super) args: ShapeArgs,
    /// Its name in `RateLimit`.
    pub(super) quoted: Box<str>,
    /// The tier that it is for, if for one only.
    pub(super) tier: Option<Box<str>>,
    /// What it is for the identities of a tier, by the tier's name.
    pub(super) tiers: BTreeMap<Box<str>, Arc<Bound>>,
}

/// A cost in decimal digits.
pub(super) type CostText = SmallVec<[u8; 10]>;

/// One stage of a route.
pub(super) struct StageLimits {
    pub(super) bounds: Vec<Arc<Bound>>,
    /// `RateLimit-Policy` of a request that came this far.
    pub(super) policy: Option<HeaderValue>,
    /// The script that takes them.
    pub(super) script: &'static Script,
    /// Whether a later stage may deny, so that charges must be remembered.
    pub(super) refundable: bool,
    /// Whether some of its limits are not for every request.
    pub(super) is_screened: bool,
    /// Whether some of its buckets are empty after Redis lost its data.
    pub(super) minds_loss: bool,
    /// Whether a request may have to wait for one of them.
    pub(super) delays: bool,
}

/// A route's limits by stage, with their handles; built with the route.
pub struct RouteLimits {
    stages: [StageLimits; STAGES.len()],
}

/// Stages in their order.
pub(super) const STAGES: [Stage; 3] = [Stage::Request, Stage::Miss, Stage::Origin];

impl RouteLimits {
    /// The limits of the route called `route`. One that is named twice counts once.
    pub fn new(metrics: &Metrics, route: &str, limits: &[Arc<config::Limit>]) -> Self {
        let mut stages: [StageLimits; STAGES.len()] = std::array::from_fn(|_| StageLimits::none(false));
        for (index, stage) in STAGES.into_iter().enumerate() {
            for limit in limits.iter().filter(|limit| limit.on == stage) {
                let bounds = &mut stages[index].bounds;
                if bounds.iter().all(|bound| bound.limit.scope != limit.scope) {
                    let own = (0..limit.quotas.len()).map(|nth| Arc::new(Bound::new(metrics, route, limit, nth)));
                    bounds.extend(own);
                }
            }
            let told = stages[..=index].iter().flat_map(|stage| &stage.bounds);
            stages[index].policy = fields::policy_beyond(None, told.map(|bound| &**bound));
            stages[index].is_screened = stages[index].bounds.iter().any(|bound| screen::is_needed(&bound.limit));
            stages[index].minds_loss = stages[index].bounds.iter().any(|bound| bound.minds_loss());
            stages[index].delays = stages[index].bounds.iter().any(|bound| bound.delay().is_some());
            if stages[index].bounds.iter().any(|bound| !matches!(bound.shape, Shape::TokenBucket(_))) {
                stages[index].script = &TAKE_ANY;
            }
            stages[index].refundable = limits.iter().any(|limit| limit.on > stage);
        }
        Self { stages }
    }

    /// Whether the route has no limit at this stage.
    pub fn is_empty(&self, stage: Stage) -> bool {
        self.stage(stage).bounds.is_empty()
    }

    /// Whether a request may have to wait at this stage.
    pub fn delays(&self, stage: Stage) -> bool {
        self.stage(stage).delays
    }

    /// Every limit, stage by stage, as it is taken.
    pub fn all(&self) -> impl Iterator<Item = &config::Limit> {
        self.bounds().filter(|bound| !bound.follows).map(|bound| &*bound.limit)
    }

    /// The same, each rate for itself.
    pub(super) fn bounds(&self) -> impl Iterator<Item = &Arc<Bound>> {
        self.stages.iter().flat_map(|stage| &stage.bounds)
    }

    pub(super) fn stage(&self, stage: Stage) -> &StageLimits {
        &self.stages[stage as usize]
    }
}

impl StageLimits {
    /// No limit.
    pub(super) fn none(refundable: bool) -> Self {
        Self {
            bounds: Vec::new(),
            policy: None,
            script: &TAKE_TOKENS,
            refundable,
            is_screened: false,
            minds_loss: false,
            delays: false,
        }
    }
}

impl Bound {
    fn new(metrics: &Metrics, route: &str, limit: &Arc<config::Limit>, nth: usize) -> Self {
        let tiers = limit.tiers.iter().flat_map(|tiers| &tiers.quotas);
        let tier = |name: &str, quota| {
            let own = Self::by(metrics, route, limit, nth, quota);
            (name.into(), Arc::new(Self { tier: Some(name.into()), ..own }))
        };
        let tiers = tiers.map(|(name, quota)| tier(name, *quota)).collect();
        Self { tiers, ..Self::by(metrics, route, limit, nth, limit.quotas[nth]) }
    }

    fn by(metrics: &Metrics, route: &str, limit: &Arc<config::Limit>, nth: usize, quota: Quota) -> Self {
        let several = limit.quotas.len() > 1;
        let shape = Shape::new(&quota);
        let name = match quota.rate().filter(|_| several) {
            Some(rate) => fields::quoted(&format!("{} {rate}", limit.name)),
            None => fields::quoted(&limit.name),
        };
        Self {
            limit: Arc::clone(limit),
            quota,
            follows: nth > 0,
            scope: scope(&limit.scope, &quota, several),
            metrics: metrics.limit(route, &limit.name),
            shape,
            settles: limit.settles(),
            args: ShapeArgs::new(&shape),
            quoted: name,
            tier: None,
            tiers: BTreeMap::new(),
        }
    }

    /// What the request costs.
    pub(super) fn cost(&self, facts: &Facts<'_>) -> f64 {
        match &self.limit.cost {
            Cost::Fixed(cost) | Cost::Answer(AnswerCost { reserve: cost, .. }) => f64::from(*cost),
            Cost::Header { name, max, default } => {
                let cost = facts.headers.get(name).and_then(|value| said(value.as_bytes())).unwrap_or(*default);
                f64::from(cost.clamp(1, *max))
            }
        }
    }

    /// Asks a state in memory. A pod's part may be less than one request costs: then that takes all of it.
    pub(super) fn ask(&self, name: LocalName, shape: Shape, cost: f64, id: u64) -> Ask<'_> {
        let cost = if cost <= self.shape.capacity() { cost.min(shape.capacity()) } else { cost };
        let joined = self.follows && self.limit.dry_run;
        Ask { name, scope: &self.scope, shape, enforced: !self.limit.dry_run, joined, cost, id }
    }

    /// What is to be known of it for one request. A limit that only counts knows nothing beforehand.
    pub(super) fn due(&self, named: &Named, pods: u32) -> Due {
        let decides = self.limit.loans && !self.limit.dry_run;
        let remembers = decides && !self.shape.is_held() && named.cost <= self.shape.capacity();
        let debited = match self.shape {
            Shape::TokenBucket(shape) if !self.limit.dry_run => Some(shape),
            _ => None,
        };
        let bucket = debited.filter(|_| remembers);
        // What a loan paid for could not be settled: by the time, the bucket may have been told that it is gone.
        let (borrows, may_lift) = (!self.settles, self.limit.charge.is_some());
        let (shape, counts, pods) = (self.shape, self.limit.dry_run, f64::from(pods.max(1)));
        Due { name: named.name, shape, bucket, debited, borrows, cost: named.cost, pods, remembers, may_lift, counts }
    }

    /// How requests wait for it; for one that only counts, none does.
    pub(super) fn delay(&self) -> Option<Delay> {
        self.limit.delay.filter(|_| !self.limit.dry_run)
    }

    pub(super) fn minds_loss(&self) -> bool {
        self.limit.after_loss == AfterLoss::Empty
    }

    pub(super) fn mode(&self) -> Mode {
        match (self.limit.dry_run, self.follows) {
            (false, _) => Mode::Enforced,
            (true, false) => Mode::Counting,
            (true, true) => Mode::Joined,
        }
    }
}

/// A cost, which is a whole number of requests, as a script reads it.
pub(super) fn cost_text(cost: f64) -> CostText {
    CostText::from_slice(itoa::Buffer::new().format(cost as u64).as_bytes())
}

/// The whole number that a field says, however large.
pub(super) fn said(value: &[u8]) -> Option<u32> {
    let digits = value.trim_ascii();
    let is_whole = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    is_whole.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).map(|cost| cost.unwrap_or(u32::MAX))
}

/// The name of a limit's states. That of a token bucket with one rate is the limit's own; the others say what they are,
/// so that a limit that changes its algorithm or its period never reads what another wrote.
fn scope(limit: &str, quota: &Quota, several: bool) -> Box<str> {
    let period = quota.rate().map(|rate| rate.unit()).unwrap_or_default();
    match quota {
        Quota::TokenBucket { .. } if several => format!("{limit}:{period}").into(),
        Quota::TokenBucket { .. } => limit.into(),
        Quota::Concurrency { .. } => format!("{limit}:{}", quota.algorithm()).into(),
        _ => format!("{limit}:{}:{period}", quota.algorithm()).into(),
    }
}
