//! A route's limits by stage, with their handles; built with the route.

use std::sync::Arc;

use http::HeaderValue;

use super::algorithm::Shape;
use super::bucket;
use super::fields;
use super::identity::LocalName;
use super::local::Ask;
use super::shared::{Mode, ShapeArgs};
use crate::config::{self, Stage};
use crate::metrics::{LimitMetrics, Metrics};

/// One limit on one route.
pub(super) struct Bound {
    pub(super) limit: Arc<config::Limit>,
    pub(super) metrics: LimitMetrics,
    pub(super) shape: Shape,
    pub(super) args: ShapeArgs,
    /// The limit's name in `RateLimit`.
    pub(super) quoted: Box<str>,
}

/// One stage of a route.
#[derive(Default)]
pub(super) struct StageLimits {
    pub(super) bounds: Vec<Arc<Bound>>,
    /// `RateLimit-Policy` of a request that came this far.
    pub(super) policy: Option<HeaderValue>,
    /// Whether a later stage may deny, so that charges must be remembered.
    pub(super) refundable: bool,
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

    pub(super) fn stage(&self, stage: Stage) -> &StageLimits {
        &self.stages[stage as usize]
    }
}

impl Bound {
    fn new(metrics: &Metrics, route: &str, limit: &Arc<config::Limit>) -> Self {
        let shape = Shape::TokenBucket(bucket::Shape::new(limit.rate, limit.burst));
        Self {
            limit: Arc::clone(limit),
            metrics: metrics.limit(route, &limit.name),
            shape,
            args: ShapeArgs::new(&shape),
            quoted: fields::quoted(&limit.name),
        }
    }

    pub(super) fn ask(&self, name: LocalName, shape: Shape) -> Ask<'_> {
        let enforced = !self.limit.dry_run;
        Ask { name, scope: &self.limit.scope, shape, enforced, joined: false, cost: 1.0 }
    }

    pub(super) fn mode(&self) -> Mode {
        if self.limit.dry_run { Mode::Counting } else { Mode::Enforced }
    }
}
