//! What is held for a request at this moment, here and in Redis, and what would answer it.

use std::sync::Arc;

use http::HeaderMap;

use super::Case;
use super::report::{Entry, Epoch, Foreseen, Held, Live, Mark, Pod};
use super::storing::terms;
use crate::cache::entry::{self, Stored, Vary};
use crate::cache::freshness::{InitialAge, http_date};
use crate::cache::memory::Slot;
use crate::cache::search::{Search, recorded};
use crate::cache::shared::{SharedTier, Unseen, name};
use crate::cache::{Ask, Cache, Found, Look, Previous, parts};
use crate::clock::WallMs;
use crate::invalidation::{Position, Verdict};
use crate::kv::{Budget, Redis};
use crate::proxy::forward_reason;
use crate::proxy::respond::Forward;
use crate::proxy::search::Ruled;
use crate::proxy::state::Shared;

/// Looks into both tiers. Redis is asked within the deadline of one request.
pub(super) async fn seen(shared: &Shared, redis: Option<&Redis>, case: &Case<'_>, ask: &Ask<'_>) -> Live {
    let show = Show { cache: &shared.cache, case, ask };
    let mut in_redis = InRedis::default();
    let held = match (redis, &shared.tier) {
        (Some(redis), Some(tier)) => {
            let mut budget = Budget::new(case.live.redis_deadline);
            show.redis(redis, tier, &mut budget, &mut in_redis).await.unwrap_or_else(|unseen| unknown(&unseen))
        }
        _ => Held::Unknown { because: "there is no [redis] in the configuration".to_owned() },
    };
    let status = shared.invalidation.status();
    Live {
        now: date(ask.now),
        key: format!("{:032x}", u128::from_be_bytes(name(ask.key))),
        answer: show.foreseen(&in_redis),
        pod: Pod {
            incarnation: hexadecimal(status.position),
            seq: status.position.seq,
            proven_ms: status.proven.map(|age| age.as_millis() as u64),
            max_staleness_ms: ask.rule.max_staleness.as_millis() as u64,
        },
        memory: show.memory(),
        redis: held,
        memory_part: shared.cache.peek(&parts::key(ask.key)).map(|slot| show.held(&slot)),
        redis_part: in_redis.part.as_ref().map(|slot| show.held(slot)),
        apart_ms: shared.cache.apart_until(ask).map(|until| until.saturating_sub(ask.now)),
    }
}

/// Under which key the request would be looked up by a rule that is known (see [`find`](crate::proxy::search::find)).
pub(super) async fn ruled(
    shared: &Shared,
    redis: Option<&Redis>,
    case: &Case<'_>,
    search: &Search,
    now: WallMs,
) -> Option<Ruled> {
    let here = shared.cache.peek(search.key()).and_then(|slot| recorded(&slot.stored, now));
    let rule = match here {
        Some(rule) => rule,
        None if shared.cache.peek(search.plain()).is_some() => return None,
        None => {
            let (redis, tier) = redis.zip(shared.tier.as_ref())?;
            let record = tier.peek(redis, search.key(), &mut Budget::new(case.live.redis_deadline)).await;
            recorded(&record.ok().flatten()?, now)?
        }
    };
    Some(Ruled::by(search, &rule))
}

/// What is needed to say what a slot holds.
struct Show<'a> {
    cache: &'a Cache,
    case: &'a Case<'a>,
    ask: &'a Ask<'a>,
}

/// What Redis holds that a request would be answered by.
#[derive(Default)]
struct InRedis {
    whole: Option<Arc<Slot>>,
    part: Option<Arc<Slot>>,
}

impl Show<'_> {
    fn memory(&self) -> Held {
        let Some(slot) = self.cache.peek(self.ask.key) else { return Held::Nothing };
        let Stored::Vary(vary) = &slot.stored else { return self.held(&slot) };
        let key = self.variant(vary);
        let variant = self.cache.peek(&key).map_or(Held::Nothing, |slot| self.held(&slot));
        self.varying(vary, &key, variant)
    }

    /// What Redis holds; what of it would be judged goes to `found`.
    async fn redis(
        &self,
        redis: &Redis,
        tier: &SharedTier,
        budget: &mut Budget,
        found: &mut InRedis,
    ) -> Result<Held, Unseen> {
        let stored = tier.peek(redis, self.ask.key, budget).await?;
        if self.case.is_part() {
            let part = tier.peek_part(redis, self.ask.key, budget).await.ok().flatten();
            found.part = part.map(|part| Slot::new(part, 0));
        }
        let Some(stored) = stored else { return Ok(Held::Nothing) };
        let Stored::Vary(vary) = &stored else {
            let slot = found.whole.insert(Slot::new(stored, 0));
            return Ok(self.held(slot));
        };
        let key = self.variant(vary);
        let variant = match tier.peek(redis, &key, budget).await {
            Ok(Some(stored)) => self.held(found.whole.insert(Slot::new(stored, 0))),
            Ok(None) => Held::Nothing,
            Err(unseen) => unknown(&unseen),
        };
        Ok(self.varying(vary, &key, variant))
    }

    fn variant(&self, vary: &Vary) -> Vec<u8> {
        let mut key = Vec::new();
        self.ask.keys.variant(&mut key, self.ask.key, &vary.names, self.ask.headers);
        key
    }

    fn varying(&self, vary: &Vary, key: &[u8], variant: Held) -> Held {
        Held::Vary {
            names: self.case.variant_parts(key),
            variants: vary.variants.len(),
            left_ms: vary.until.saturating_sub(self.ask.now),
            variant: Box::new(variant),
        }
    }

    fn held(&self, slot: &Arc<Slot>) -> Held {
        let mark = self.mark(slot);
        match &slot.stored {
            Stored::Entry(entry) => Held::Entry(Box::new(self.entry(slot, entry, mark))),
            Stored::Uncacheable(verdict) => {
                Held::Uncacheable { left_ms: verdict.until.saturating_sub(self.ask.now), mark }
            }
            // A variant is never one; what is newer than this Weir might be.
            Stored::Vary(_) => Held::Unknown { because: "a record of variants where a variant should be".to_owned() },
        }
    }

    fn mark(&self, slot: &Slot) -> Mark {
        let standing = self.cache.standing(slot, self.ask);
        let position = slot.stored.position();
        let epoch = |(selector, epoch): (String, crate::invalidation::epochs::Epoch)| Epoch {
            selector,
            hard: epoch.hard,
            soft: epoch.soft,
        };
        Mark {
            incarnation: hexadecimal(position),
            seq: position.seq,
            fence: slot.stored.fence(),
            verdict: match standing.verdict {
                Verdict::Valid => "valid",
                Verdict::Stale => "stale",
                Verdict::Gone => "gone",
            },
            trusted: standing.is_trusted,
            epochs: standing.epochs.into_iter().map(epoch).collect(),
        }
    }

    fn entry(&self, slot: &Arc<Slot>, entry: &entry::Entry, mark: Mark) -> Entry {
        let found = self.cache.found(slot, self.ask);
        // Age is not kept; Date and what the fetch took are.
        let received_at = entry.freshness.received_at;
        let dated = HeaderMap::from_iter([(http::header::DATE, http_date(entry.date_at()))]);
        let asked_at = received_at.saturating_sub(u64::from(entry.fill_cost_ms));
        let initial = InitialAge::of(&dated, asked_at, received_at);
        let lifetime_from = match entry.freshness.by_rule {
            true => "the route's rule, or a guess from Last-Modified",
            false => "the service",
        };
        let validators = [("ETag", entry.etag().is_some()), ("Last-Modified", entry.last_modified().is_some())];
        Entry {
            status: entry.status.as_u16(),
            body_bytes: entry.body.len(),
            part: entry.part.map(|part| {
                let last = part.first + (entry.body.len() as u64).saturating_sub(1);
                format!("bytes {}-{last} of {}", part.first, part.complete)
            }),
            age_s: found.age_s,
            ttl_s: found.ttl_s,
            state: match self.cache.judge(Arc::clone(slot), self.ask).0 {
                Look::Fresh(found) if found.is_early => "fresh, and refreshed behind by this read",
                Look::Fresh(_) => "fresh",
                Look::Stale(_) => "stale, served while it is refreshed",
                Look::Uncacheable => "not for this request: it carries credentials",
                Look::Nothing(missing) => match missing.previous {
                    Some(previous) if previous.is_gone => "not used: invalidated, or not trusted",
                    Some(previous) if previous.excuses_errors => "stale, served only if the service fails",
                    _ => "used only once the service has confirmed it",
                },
            },
            freshness: super::report::Freshness {
                age_field_ms: None,
                lifetime_from: lifetime_from.to_owned(),
                ..terms(&entry.freshness, &initial, self.ask.now, mark.verdict == "stale")
            },
            validators: validators.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect(),
            tags: entry.tags.clone(),
            mark,
        }
    }

    /// What would answer, in the order in which the proxy looks.
    fn foreseen(&self, in_redis: &InRedis) -> Foreseen {
        let (cache, ask) = (self.cache, self.ask);
        let hit = |from, found: &Found| Foreseen { from, cache_status: format!("weir; hit; ttl={}", found.ttl_s) };
        let stored_only = ask.directives.is_some_and(|wanted| wanted.only_if_cached);
        let upstream = |why: Forward| match stored_only {
            true => Foreseen { from: "weir", cache_status: "weir; detail=refused".to_owned() },
            false => Foreseen { from: "upstream", cache_status: why.member().to_owned() },
        };
        let mut missing = match cache.foresee(ask) {
            Look::Fresh(found) | Look::Stale(found) => return hit("memory", &found),
            Look::Uncacheable => return upstream(Forward::Bypass),
            Look::Nothing(missing) => missing,
        };
        if ask.credentials && cache.apart_until(ask).is_some() {
            return upstream(Forward::UriMiss);
        }
        let why = forward_reason(&missing);
        match in_redis.whole.as_ref().map(|slot| cache.judge(Arc::clone(slot), ask).0) {
            Some(Look::Fresh(found) | Look::Stale(found)) => return hit("redis", &found),
            Some(Look::Uncacheable) => return upstream(why),
            Some(Look::Nothing(found)) => missing.previous = found.previous.or(missing.previous),
            None => {}
        }
        if !self.case.is_part() || stored_only {
            return upstream(why);
        }
        // A part of what only needs the service's word comes with that.
        if !missing.previous.as_ref().is_some_and(Previous::is_of_use) {
            let here = cache.peek(&parts::key(ask.key));
            let part = |slot: Option<&Arc<Slot>>| slot.and_then(|slot| cache.judge_part(slot, ask));
            if let Some(found) = part(here.as_ref()) {
                return hit("memory", &found);
            }
            if let Some(found) = part(in_redis.part.as_ref()) {
                return hit("redis", &found);
            }
        }
        upstream(forward_reason(&missing))
    }
}

fn unknown(unseen: &Unseen) -> Held {
    let because = match unseen {
        Unseen::Unavailable(why) => format!("unavailable: {why}"),
        Unseen::Corrupt => "what stands there does not decode; whoever reads it removes it".to_owned(),
    };
    Held::Unknown { because }
}

fn hexadecimal(position: Position) -> String {
    format!("{:016x}", position.incarnation)
}

fn date(at: u64) -> String {
    String::from_utf8_lossy(http_date(at).as_bytes()).into_owned()
}
