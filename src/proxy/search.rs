//! By which key a request is looked up where answers say which parameters count.

use std::time::Duration;

use http::StatusCode;

use super::Journey;
use super::state::Worker;
use crate::cache::entry::Entry;
use crate::cache::search::{Rule, Search};
use crate::kv::Budget;

/// The key under a rule that is known, and the queries by which what stands there is named.
pub(crate) struct Ruled {
    pub(crate) key: Vec<u8>,
    pub(crate) names: Vec<Option<String>>,
}

impl Ruled {
    /// Under this rule.
    pub(crate) fn by(search: &Search, rule: &Rule) -> Self {
        Self { key: search.under(Some(rule)).into_owned(), names: search.names(rule) }
    }
}

/// Where the request's answer stands, if a rule is known; else, under its plain key.
pub(crate) async fn find(journey: &mut Journey<'_>, search: &Search) -> Option<Ruled> {
    let cache = &journey.worker.shared.cache;
    let rule = match cache.rule(search) {
        Some(rule) => rule,
        // An answer without a rule, or a verdict: later than any rule that Redis may have.
        None if cache.holds(search.plain()) => return None,
        None => recorded(journey.worker, search, &mut journey.budget).await?,
    };
    Some(Ruled::by(search, &rule))
}

/// Records the rule that came with an answer to what was `asked` for, or that none did, here and in the fleet. That comes
/// before those who wait learn of the answer: who finds that it is not theirs must not join the same fetch again. Only a 200
/// takes a rule back by not saying it: error pages rarely say anything.
pub(crate) async fn record(worker: &Worker, search: &Search, asked: &[u8], answer: &Entry, redis_deadline: Duration) {
    let cache = &worker.shared.cache;
    let shared = worker.redis.as_ref().zip(worker.shared.tier.as_ref());
    match Rule::of_entry(answer) {
        Some(rule) => {
            let record = cache.record(search, &rule, answer);
            if let (Some(record), Some((redis, tier))) = (record, shared) {
                tier.store_record(redis, &record, cache.times().0, redis_deadline).await;
            }
        }
        None if answer.status != StatusCode::OK => {}
        None => {
            let was_known = cache.forget(search.key()) || *asked != *search.plain();
            if let (true, Some((redis, tier))) = (was_known, shared) {
                tier.forget(redis, search.key(), redis_deadline).await;
            }
        }
    }
}

async fn recorded(worker: &Worker, search: &Search, budget: &mut Budget) -> Option<Rule> {
    let (redis, tier) = worker.redis.as_ref().zip(worker.shared.tier.as_ref())?;
    let record = tier.record(redis, search.key(), budget).await?;
    worker.shared.cache.keep_record(record)
}
