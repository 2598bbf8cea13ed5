//! Identities for whom a limit is another: `tiers` and `tier`.

use std::collections::BTreeMap;

use super::Check;
use super::quota::{MOST_BURST, MOST_IN_FLIGHT, MOST_LOGGED, default_burst, is_one_by_default};
use crate::config::raw::{self, Algorithm, At};
use crate::config::text::{Grammar, Name};
use crate::config::{Quota, Tiers};

/// Most tiers of one limit: each is a limit of its own in memory.
const MOST_TIERS: usize = 100;

impl Check<'_, '_> {
    /// `tiers` with each `tier`.
    pub(super) fn limit_tiers(&mut self, raw: &raw::Limit) -> Option<Tiers> {
        let hash = self.read(&raw.tiers).map(|name| name.0);
        let (at, named) = match (&raw.tiers, &raw.tier) {
            (None, None) => return None,
            (None, Some(named)) => {
                let (name, _) = named.first_key_value()?;
                let remedy = "write tiers = \"api\" for the identities in the hash <namespace>:tiers:api, or remove it";
                self.error(&name.span(), "nobody has this tier: the limit has no `tiers`", remedy);
                return None;
            }
            (Some(at), named) => (at, named.iter().flatten()),
        };
        if !self.has_redis {
            let remedy = "add [redis], or remove `tiers`";
            self.error(&at.span(), "who has which tier is read from Redis, and there is none", remedy);
        }
        if raw.rates.is_some() {
            self.error(&at.span(), "a limit of several `rates` has no tiers", "write one `rate`, or two limits");
            return None;
        }
        let algorithm = raw.algorithm.as_ref().map_or(Algorithm::TokenBucket, |at| at.value);
        let mut quotas = BTreeMap::new();
        for (name, tier) in named {
            if let Err(wrong) = Name::read(&name.value) {
                self.error(&name.span(), wrong.problem, wrong.remedy);
            }
            if quotas.len() == MOST_TIERS {
                let text = format!("a limit has at most {MOST_TIERS} tiers");
                self.error(&name.span(), text, "remove some");
                break;
            }
            quotas.extend(self.tier(name, &tier.value, algorithm).map(|quota| (name.value.clone(), quota)));
        }
        if raw.tier.as_ref().is_none_or(BTreeMap::is_empty) {
            let remedy = "write a table [limit.tier.gold] with a rate = \"1000/s\" behind it";
            self.error(&at.span(), "this limit has `tiers`, and no `tier`", remedy);
        }
        Some(Tiers { hash: hash?, quotas })
    }

    /// One of them, by the limit's own algorithm.
    fn tier(&mut self, name: &At<String>, raw: &raw::Tier, algorithm: Algorithm) -> Option<Quota> {
        if algorithm == Algorithm::Concurrency {
            for span in raw.rate.iter().map(At::span).chain(raw.burst.iter().map(At::span)) {
                self.error(&span, "requests in flight have no rate", "write `max` alone");
            }
            if raw.max.is_none() {
                let text = format!("the tier \"{}\" has no `max`", name.value.escape_debug());
                self.error(&name.span(), text, "write max = 20 for at most 20 requests in flight");
            }
            return self.count(&raw.max, 1..=MOST_IN_FLIGHT).map(|max| Quota::Concurrency { max });
        }
        if let Some(at) = &raw.max {
            self.error(&at.span(), "`max` is for requests in flight", "write `rate`");
        }
        if raw.rate.is_none() {
            let text = format!("the tier \"{}\" has no `rate`", name.value.escape_debug());
            self.error(&name.span(), text, "write rate = \"1000/s\"");
        }
        if let Some(at) = raw.burst.as_ref().filter(|_| algorithm != Algorithm::TokenBucket) {
            let text = "`burst` does not go with a window: its rate is what it admits";
            self.error(&at.span(), text, "remove `burst`");
        }
        let burst = self.count(&raw.burst, 1..=MOST_BURST);
        let rate = self.read(&raw.rate)?;
        if let Some(at) = raw.rate.as_ref().filter(|_| algorithm == Algorithm::SlidingLog && rate.amount > MOST_LOGGED)
        {
            let text = format!("a log of {} requests is too long", rate.amount);
            self.error(&at.span(), text, format!("write at most {MOST_LOGGED}"));
        }
        if let (Some(text), None, Algorithm::TokenBucket) = (&raw.rate, &raw.burst, algorithm)
            && is_one_by_default(rate)
        {
            self.slow_default(text, rate);
        }
        Some(match algorithm {
            Algorithm::SlidingWindow => Quota::SlidingWindow(rate),
            Algorithm::SlidingLog => Quota::SlidingLog(rate),
            Algorithm::FixedWindow => Quota::FixedWindow(rate),
            Algorithm::TokenBucket | Algorithm::Concurrency => {
                Quota::TokenBucket { rate, burst: burst.unwrap_or_else(|| default_burst(rate)) }
            }
        })
    }
}
