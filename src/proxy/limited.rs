//! Where a request meets its route's limits.

use std::net::IpAddr;

use http::request::Parts;

use super::Journey;
use super::state::RouteState;
use super::target::Target;
use crate::config::Stage;
use crate::limit::{Denial, Facts, Halt, Taking, Verdict};

impl Journey<'_> {
    /// Takes the limits of one stage, and waits for them where they let it.
    pub(crate) async fn limited(&mut self, stage: Stage, parts: &Parts) -> Result<(), Box<Denial>> {
        match self.limited_at_once(stage, parts).await {
            Ok(()) => Ok(()),
            Err(Halt::Denied(denial)) => Err(denial),
            // Boxed: few wait, and all others keep their small future.
            Err(Halt::Wait(denial)) => Box::pin(self.delayed(stage, parts, denial)).await,
        }
    }

    /// Takes the limits of one stage, or says why not.
    pub(crate) async fn limited_at_once(&mut self, stage: Stage, parts: &Parts) -> Result<(), Halt> {
        let limits = &self.route.limits;
        if limits.is_empty(stage) || (stage == Stage::Miss && std::mem::replace(&mut self.missed, true)) {
            return Ok(());
        }
        let facts = facts(self.client.ip, self.target, self.route, parts);
        let limiter = &self.worker.shared.limiter;
        let redis = self.worker.redis.as_ref();
        let taken = if limits.delays(stage) {
            let taking = Taking { redis, limits, stage, facts: &facts };
            Box::pin(limiter.admit(&taking, &mut self.charged, &mut self.budget)).await
        } else {
            match limiter.take(redis, limits, stage, &facts, &mut self.charged, &mut self.budget).await {
                Verdict::Allow => Ok(()),
                Verdict::Deny(denial) => Err(Halt::Denied(denial)),
            }
        };
        self.exchange.would_be_denied_by(self.charged.would_be_denied_by());
        taken
    }

    /// Waits in place of `denial`.
    pub(crate) async fn delayed(
        &mut self,
        stage: Stage,
        parts: &Parts,
        denial: Box<Denial>,
    ) -> Result<(), Box<Denial>> {
        let facts = facts(self.client.ip, self.target, self.route, parts);
        let limiter = &self.worker.shared.limiter;
        let (redis, limits) = (self.worker.redis.as_ref(), &self.route.limits);
        let taking = Taking { redis, limits, stage, facts: &facts };
        let taken = limiter.delay(&taking, &mut self.charged, &mut self.budget, denial).await;
        self.exchange.would_be_denied_by(self.charged.would_be_denied_by());
        taken
    }
}

/// What of a request its limits look at.
fn facts<'a>(ip: IpAddr, target: &'a Target, route: &'a RouteState, parts: &'a Parts) -> Facts<'a> {
    Facts {
        ip,
        headers: &parts.headers,
        query: target.query(),
        route: &route.name,
        host: target.host(),
        method: &parts.method,
    }
}
