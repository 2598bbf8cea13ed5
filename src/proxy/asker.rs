//! On whose behalf the upstream is asked behind an answer: who that is to its limits.

use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderMap, Method};

use super::state::{RouteState, Worker};
use crate::config::Stage;
use crate::invalidation::Subject;
use crate::kv::Budget;
use crate::limit::{Charged, Facts, Verdict};

/// On whose behalf a refresh is made, and of what: by this the upstream's limits count it, and invalidations name it.
pub(crate) struct Asker {
    pub(crate) ip: IpAddr,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) also: Vec<Option<String>>,
    pub(crate) tags: Vec<String>,
}

impl Asker {
    /// What invalidations can name of it.
    pub(crate) fn subject<'a>(&'a self, route: &'a str) -> Subject<'a> {
        let Self { host, path, query, also, tags, .. } = self;
        Subject { host, path, query: query.as_deref(), also, route, tags, answer_tags: &[] }
    }

    /// Takes the limits of what reaches the upstream; what they charge stays charged. `None` if one denies, else what is
    /// held until the fetch ends, and what its answer settles.
    pub(crate) async fn admitted(
        &self,
        worker: &Worker,
        route: &RouteState,
        headers: &HeaderMap,
        deadline: Duration,
    ) -> Option<Charged> {
        if route.limits.is_empty(Stage::Origin) {
            return Some(Charged::default());
        }
        let facts = Facts {
            ip: self.ip,
            headers,
            query: self.query.as_deref(),
            route: &route.name,
            host: &self.host,
            method: &Method::GET,
        };
        let (mut charged, mut budget) = (Charged::default(), Budget::new(deadline));
        let (limiter, redis) = (&worker.shared.limiter, worker.redis.as_ref());
        // Clients who wait for the same come first: nobody waits for this.
        if limiter.is_awaited(&route.limits, Stage::Origin, &facts) {
            return None;
        }
        let verdict = limiter.take(redis, &route.limits, Stage::Origin, &facts, &mut charged, &mut budget).await;
        matches!(verdict, Verdict::Allow).then_some(charged)
    }
}
