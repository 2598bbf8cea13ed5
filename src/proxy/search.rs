//! By which key a request is looked up where answers say which parameters count.

use std::time::Duration;

use http::StatusCode;

use super::Journey;
use super::state::Worker;
use crate::cache::Cache;
use crate::cache::entry::{Entry, Stored};
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

/// What the fleet is to learn of a path's rule.
pub(crate) enum News {
    /// The record of a rule that is not recorded, or not for long enough.
    Recorded(Stored),
    /// There is none any more.
    Withdrawn,
}

/// Records here the rule that came with an answer to what was `asked` for, or that none did. That comes before those who
/// wait learn of the answer: who finds that it is not theirs must not join the same fetch again. Only a 200 takes a rule back
/// by not saying it: error pages rarely say anything.
pub(crate) fn record(cache: &Cache, search: &Search, asked: &[u8], answer: &Entry) -> Option<News> {
    match Rule::of_entry(answer) {
        Some(rule) => cache.record(search, &rule, answer).map(News::Recorded),
        None if answer.status != StatusCode::OK => None,
        None => (cache.forget(search.key()) || *asked != *search.plain()).then_some(News::Withdrawn),
    }
}

/// Tells the fleet. That comes when the answer is stored and before its lease is given back: who knows the rule finds the
/// answer, and who does not is told to wait.
pub(crate) async fn tell(worker: &Worker, search: &Search, news: News, redis_deadline: Duration) {
    let (Some(redis), Some(tier)) = (&worker.redis, &worker.shared.tier) else { return };
    match news {
        News::Recorded(record) => {
            tier.store_record(redis, &record, worker.shared.cache.times().0, redis_deadline).await;
        }
        News::Withdrawn => tier.forget(redis, search.key(), redis_deadline).await,
    }
}

async fn recorded(worker: &Worker, search: &Search, budget: &mut Budget) -> Option<Rule> {
    let (redis, tier) = worker.redis.as_ref().zip(worker.shared.tier.as_ref())?;
    let record = tier.record(redis, search.key(), budget).await?;
    worker.shared.cache.keep_record(record)
}
