//! What limits a request, and as whom it is counted.

use super::Case;
use super::report::{Delay, Does, Limit, Part, Tiers};
use crate::config::{self, AfterLoss, AnswerCost, Cost, IdentityPart, Missing, Place, Quota, RedisDown, Stage};
use crate::limit::identity::canonical;
use crate::limit::{Facts, Reach};

impl Case<'_> {
    pub(super) fn limits(&self, does: Does) -> Vec<Limit> {
        self.route.limits.all().map(|limit| self.limit(limit, does)).collect()
    }

    fn limit(&self, limit: &config::Limit, does: Does) -> Limit {
        let tiers = limit.tiers.as_ref().map(|tiers| self.tiers(&limit.scope, tiers));
        let own = tiers.as_ref().and_then(|own| limit.tiers.as_ref()?.quotas.get(own.tier.as_ref()?));
        Limit {
            name: limit.name.clone(),
            stage: match limit.on {
                Stage::Request => "request",
                Stage::Miss => "miss",
                Stage::Origin => "origin",
            },
            applies: self.applies(limit, does),
            algorithm: limit.quotas.first().map_or("", Quota::algorithm),
            quotas: own.map_or(&*limit.quotas, std::slice::from_ref).iter().map(Quota::to_string).collect(),
            tiers,
            // Of one that only counts, nobody waits.
            delay: limit
                .delay
                .filter(|_| !limit.dry_run)
                .map(|delay| Delay { max_delay_ms: delay.longest.as_millis() as u64, max_delayed: delay.places }),
            cost: cost(&limit.cost),
            charged: limit.charge.as_ref().map(|statuses| format!("only where the answer is {statuses}")),
            identity: limit.key.iter().map(|part| self.identified(part, limit.missing)).collect(),
            dry_run: limit.dry_run,
            redis_down: match limit.redis_down {
                RedisDown::Local => "local",
                RedisDown::Allow => "allow",
                RedisDown::Deny => "deny",
            },
            after_loss: match limit.after_loss {
                AfterLoss::Full => None,
                AfterLoss::Empty => Some("empty"),
            },
            loans: limit.loans,
        }
    }

    /// By which tier requests like this one are limited.
    fn tiers(&self, scope: &str, tiers: &config::Tiers) -> Tiers {
        let facts = self.limit_facts();
        let tier = self.limiter.and_then(|limiter| limiter.tier_of(&self.route.limits, scope, &facts));
        Tiers {
            hash: tiers.hash.clone(),
            text: match (self.limiter, &tier) {
                (None, _) => "not known: Redis says who has one, and is not asked; shown is the limit's own rate",
                (Some(_), None) => "none: the limit's own rate holds",
                (Some(_), Some(_)) => "by what this pod read of Redis within the last seconds",
            },
            tier: tier.map(String::from),
            quotas: tiers
                .quotas
                .iter()
                .map(|(name, quota)| Part { name: name.clone(), value: quota.to_string() })
                .collect(),
        }
    }

    /// Whether this request comes to the limit, and whether that counts it.
    fn applies(&self, limit: &config::Limit, does: Does) -> &'static str {
        let reaches = match (does, limit.on) {
            (Does::Refuse, _) => return "no: it is refused before",
            (_, Stage::Request) => "yes",
            (Does::Purge, _) => return "no: nothing is forwarded",
            (Does::Pass | Does::Write, _) => "yes: it goes past the cache",
            (Does::Cache, Stage::Miss) => "where the cache does not answer it",
            (Does::Cache, Stage::Origin) => "where it asks the service",
        };
        match Reach::of(limit, &self.limit_facts()) {
            Reach::Counts => reaches,
            Reach::Allowed => "no: `allow` lists the client",
            Reach::Skipped => "no: it lacks a part of the identity",
            Reach::Listed => "it is denied: `deny` lists the client",
            Reach::Unidentified => "it is denied: it lacks a part of the identity",
        }
    }

    fn limit_facts(&self) -> Facts<'_> {
        Facts {
            ip: self.client.ip,
            headers: self.headers(),
            query: self.target.query(),
            route: &self.route.name,
            host: self.target.host(),
            method: &self.parts().method,
        }
    }

    /// A part of an identity. What a client sends in a field, a cookie, a parameter or a token may be a secret.
    fn identified(&self, part: &IdentityPart, missing: Missing) -> Part {
        let value = match part {
            IdentityPart::Ip => self.client.ip.to_string(),
            IdentityPart::Route => self.route.name.to_string(),
            IdentityPart::Host => self.target.host().to_owned(),
            IdentityPart::Method => self.parts().method.to_string(),
            IdentityPart::Header(_) | IdentityPart::Cookie(_) | IdentityPart::Query(_) | IdentityPart::Claim { .. } => {
                let is_sent = canonical(std::slice::from_ref(part), &self.limit_facts(), &mut Vec::new());
                let text = match missing {
                    _ if is_sent => "(sent)",
                    Missing::Share => "(none: all without it are one)",
                    Missing::Skip | Missing::Deny => "(none)",
                };
                text.to_owned()
            }
        };
        Part { name: part.to_string(), value }
    }
}

fn cost(cost: &Cost) -> String {
    match cost {
        Cost::Fixed(cost) => cost.to_string(),
        Cost::Header { name, max, default } => format!("what {name} says, {default} without it, at most {max}"),
        Cost::Answer(AnswerCost { place, max, default, reserve }) => {
            let says = match place {
                Place::Header(name) => format!("what {name} of the answer says"),
                Place::Json { pointer, .. } => format!("what the answer says at \"{pointer}\""),
            };
            format!("{says}, {default} without it, at most {max}; {reserve} until then")
        }
    }
}
