//! What limits a request, and as whom it is counted.

use super::Case;
use super::report::{Does, Limit, Part};
use crate::config::{Cost, IdentityPart, Quota, RedisDown, Stage};
use crate::limit::Facts;
use crate::limit::identity::canonical;

/// Bytes in front of a part's value in an identity: kind and length.
const PART_HEAD: usize = 5;

impl Case<'_> {
    pub(super) fn limits(&self, does: Does) -> Vec<Limit> {
        let shown = |limit: &crate::config::Limit| Limit {
            name: limit.name.clone(),
            stage: match limit.on {
                Stage::Request => "request",
                Stage::Miss => "miss",
                Stage::Origin => "origin",
            },
            applies: match (does, limit.on) {
                (Does::Refuse, _) => "no: it is refused before",
                (_, Stage::Request) => "yes",
                (Does::Purge, _) => "no: nothing is forwarded",
                (Does::Pass | Does::Write, _) => "yes: it goes past the cache",
                (Does::Cache, Stage::Miss) => "where the cache does not answer it",
                (Does::Cache, Stage::Origin) => "where it asks the service",
            },
            algorithm: limit.quotas.first().map_or("", Quota::algorithm),
            quotas: limit.quotas.iter().map(quota).collect(),
            cost: cost(&limit.cost),
            identity: limit.key.iter().map(|part| self.identified(part)).collect(),
            dry_run: limit.dry_run,
            redis_down: match limit.redis_down {
                RedisDown::Local => "local",
                RedisDown::Allow => "allow",
                RedisDown::Deny => "deny",
            },
        };
        self.route.limits.all().map(shown).collect()
    }

    /// A part of an identity. What a client sends in a field, a cookie or a parameter may be a secret.
    fn identified(&self, part: &IdentityPart) -> Part {
        let facts = Facts {
            ip: self.client.ip,
            headers: self.headers(),
            query: self.target.query(),
            route: &self.route.name,
            host: self.target.host(),
            method: &self.parts().method,
        };
        let sent = || {
            let mut identity = Vec::new();
            canonical(std::slice::from_ref(part), &facts, &mut identity);
            let text = if identity.len() > PART_HEAD { "(sent)" } else { "(none: all without it are one)" };
            text.to_owned()
        };
        let (name, value) = match part {
            IdentityPart::Ip => ("ip".to_owned(), self.client.ip.to_string()),
            IdentityPart::Header(name) => (format!("header:{name}"), sent()),
            IdentityPart::Cookie(name) => (format!("cookie:{name}"), sent()),
            IdentityPart::Query(name) => (format!("query:{name}"), sent()),
            IdentityPart::Route => ("route".to_owned(), self.route.name.to_string()),
            IdentityPart::Host => ("host".to_owned(), self.target.host().to_owned()),
            IdentityPart::Method => ("method".to_owned(), self.parts().method.to_string()),
        };
        Part { name, value }
    }
}

fn quota(quota: &Quota) -> String {
    match quota {
        Quota::TokenBucket { rate, burst } => format!("{rate}, {burst} at once"),
        Quota::FixedWindow(rate) | Quota::SlidingWindow(rate) | Quota::SlidingLog(rate) => rate.to_string(),
        Quota::Concurrency { max } => format!("{max} in flight"),
    }
}

fn cost(cost: &Cost) -> String {
    match cost {
        Cost::Fixed(cost) => cost.to_string(),
        Cost::Header { name, max, default } => format!("what {name} says, {default} without it, at most {max}"),
    }
}
