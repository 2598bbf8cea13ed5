//! By which key a request is looked up where answers say which parameters count.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::Journey;
use super::state::Worker;
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

/// A rule that is recorded here, and that the fleet is to learn of when its answer is stored. Dropped before that, it is
/// forgotten here as well: nobody would tell of it while it stands.
pub(crate) struct News {
    worker: Arc<Worker>,
    record: Option<Stored>,
}

impl Drop for News {
    fn drop(&mut self) {
        if let Some(record) = &self.record {
            self.worker.shared.cache.forget(record.key());
        }
    }
}

/// Records here the rule that came with an answer to what was `asked` for, or everywhere that none did. That comes before
/// those who wait learn of the answer: who finds that it is not theirs must not join the same fetch again. Only a 200 takes a
/// rule back by not saying it: error pages rarely say anything.
pub(crate) async fn record(
    worker: &Arc<Worker>,
    search: &Search,
    asked: &[u8],
    answer: &Entry,
    redis_deadline: Duration,
) -> Option<News> {
    let cache = &worker.shared.cache;
    let shared = worker.redis.as_ref().zip(worker.shared.tier.as_ref());
    match Rule::of_entry(answer) {
        Some(rule) => {
            let news = News { worker: Arc::clone(worker), record: Some(cache.record(search, &rule, answer)?) };
            if cache.rule(search).is_some() {
                return Some(news);
            }
            // There is no memory to know it by.
            news.tell(redis_deadline).await;
        }
        None if answer.status != StatusCode::OK => {}
        None => {
            let was_known = cache.forget(search.key()) || *asked != *search.plain();
            if let (true, Some((redis, tier))) = (was_known, shared) {
                tier.forget(redis, search.key(), redis_deadline).await;
            }
        }
    }
    None
}

impl News {
    /// Tells the fleet. That comes when the answer is stored and, where it stands under another key than was asked for, before
    /// its lease is given back: who knows the rule finds the answer, and who does not is told to wait.
    pub(crate) async fn tell(mut self, redis_deadline: Duration) {
        let Some(record) = self.record.take() else { return };
        if let (Some(redis), Some(tier)) = (&self.worker.redis, &self.worker.shared.tier) {
            tier.store_record(redis, &record, self.worker.shared.cache.times().0, redis_deadline).await;
        }
    }
}

async fn recorded(worker: &Worker, search: &Search, budget: &mut Budget) -> Option<Rule> {
    let (redis, tier) = worker.redis.as_ref().zip(worker.shared.tier.as_ref())?;
    let record = tier.record(redis, search.key(), budget).await?;
    worker.shared.cache.keep_record(record)
}
