//! What operators see of limits, and the reset of one identity.
//!
//! Looking charges nothing, here or in Redis. Identities are shown by their pseudonyms, as Redis has them, unless the
//! operator wants them in clear text.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::account::DENIED_AT_MOST;
use super::algorithm::{Level, Micros, NEVER_MS, Shape};
use super::bounds::{Bound, STAGES};
use super::identity::LocalName;
use super::local::STATES_MAX;
use super::top::TRACKED;
use super::{Limiter, RouteLimits, given, shared};
use crate::config::{self, Cost, Quota, RedisDown, Stage};
use crate::kv::keys::Keys;
use crate::kv::{self, Budget, Reply};
use crate::syntax::SyntaxError;

/// Longest that Redis may take for an operator's question.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// Integers that `peek.lua` answers for a state, before its loans.
const PEEKED_EACH: usize = 6;

/// And for each loan.
const PEEKED_LOAN: usize = 3;

/// Digits of a pseudonym.
const ID_DIGITS: usize = 32;

/// Whose state of which limit an operator asks for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The limit: `name`, or `route/name` of one inside a route.
    pub limit: String,
    /// The identity.
    pub who: Who,
}

/// An identity, as an operator says it.
#[derive(Debug, Clone)]
pub enum Who {
    /// By its parts, each with its value.
    Parts(Vec<(String, String)>),
    /// By its pseudonym.
    Id(String),
}

/// Why an operator's question has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// There is no such limit, or nothing is known of the identity.
    Unknown(SyntaxError),
    /// The question is wrong.
    Wrong(SyntaxError),
    /// Redis gave no answer; nothing was changed.
    Redis(SyntaxError),
}

/// The limits of a configuration in use, and what is known of them.
pub struct View<'l> {
    limiter: &'l Limiter,
    routes: Vec<(&'l str, &'l RouteLimits)>,
    shows_identities: bool,
    redis: Option<&'l kv::Redis>,
}

/// A limit, and where it is.
struct Limit<'l> {
    config: &'l config::Limit,
    routes: Vec<&'l str>,
    /// One a rate.
    bounds: Vec<Arc<Bound>>,
    decisions: BTreeMap<&'static str, u64>,
}

/// An identity that was found.
struct Found {
    id: String,
    /// Canonical bytes, where they are known.
    identity: Option<Vec<u8>>,
}

impl<'l> View<'l> {
    /// `routes` by their names.
    pub fn new(
        limiter: &'l Limiter,
        routes: impl Iterator<Item = (&'l str, &'l RouteLimits)>,
        redis: Option<&'l kv::Redis>,
        shows_identities: bool,
    ) -> Self {
        Self { limiter, routes: routes.collect(), shows_identities, redis }
    }

    /// All limits, what they decided, and who is denied most.
    pub fn list(&self) -> Value {
        let now = self.limiter.shelf.steady();
        let (states, lent) = (self.limiter.shelf.local.counts(), self.limiter.loans.held(now));
        let limits: Vec<_> = self
            .limits()
            .iter()
            .map(|limit| {
                let mut shown = limit.shown();
                let own = limit.bounds.iter().map(|bound| states.get(&bound.scope).copied().unwrap_or(0));
                shown["states"] = own.sum::<usize>().into();
                shown["loans"] = match self.redis {
                    Some(redis) => limit.lent(&redis.shared().keys, &lent),
                    None => Value::Null,
                };
                shown
            })
            .collect();
        let denied: Vec<_> = self
            .limiter
            .top
            .list()
            .iter()
            .map(|one| {
                let mut shown = json!({
                    "limit": one.limit.scope,
                    "id": self.limiter.pseudonym.of(&one.identity),
                    "at_least": one.at_least,
                    "at_most": one.at_most,
                    "last_ago_s": ((now - one.last) / 1e6).max(0.0).floor() as u64,
                });
                if one.limit.dry_run {
                    shown["dry_run"] = true.into();
                }
                if self.shows_identities {
                    shown["identity"] = given::shown(&one.limit.key, &one.identity).into();
                }
                shown
            })
            .collect();
        json!({
            "limits": limits,
            "states": { "held": states.values().sum::<usize>(), "most": STATES_MAX },
            "denied": denied,
            "denied_most": TRACKED,
        })
    }

    /// What memory and Redis say of one identity.
    ///
    /// # Errors
    /// There is no such limit, or its identity is given wrongly.
    pub async fn state(&self, asked: &Asked) -> Result<Value, Problem> {
        let limits = self.limits();
        let limit = find(&limits, &asked.limit)?;
        let found = self.found(limit, &asked.who)?;
        let bounds = self.bounds_of(limit, &found);
        let redis = match self.redis {
            Some(redis) => Some(self.peek(redis, &bounds, &found.id).await),
            None => None,
        };
        let now = self.limiter.shelf.steady();
        let mut rates = Vec::new();
        for (nth, bound) in bounds.iter().enumerate() {
            let mut rate = quota(&bound.quota);
            let said = redis.as_ref().map(|said| match said {
                Ok(all) => all.get(nth).cloned().unwrap_or_default(),
                Err(problem) => json!({ "error": problem }),
            });
            rate.insert("redis".to_owned(), said.into());
            let name = found.identity.as_ref().map(|identity| self.limiter.names.of(&bound.scope, identity));
            rate.insert("here".to_owned(), name.map_or(Value::Null, |name| self.here(bound, name, now)));
            rates.push(Value::from(rate));
        }
        // Requests do without a Redis that answers, but not as fast as they need it.
        let is_asked = self.redis.is_some_and(|redis| !redis.shared().is_away());
        let decides = if is_asked && matches!(redis, Some(Ok(_))) { "redis" } else { "here" };
        let mut shown = json!({ "limit": limit.config.scope, "id": found.id, "rates": rates, "decides": decides });
        if self.redis.is_some() {
            shown["redis_down"] = match limit.config.redis_down {
                RedisDown::Local => "local",
                RedisDown::Allow => "allow",
                RedisDown::Deny => "deny",
            }
            .into();
        }
        if limit.config.tiers.is_some() && found.identity.is_some() {
            shown["tier"] = bounds.first().and_then(|bound| bound.tier.as_deref()).into();
        }
        if let Some(identity) = found.identity.filter(|_| self.shows(&asked.who)) {
            shown["identity"] = given::shown(&limit.config.key, &identity).into();
        }
        Ok(shown)
    }

    /// Makes one identity as good as new: in Redis, and so for all pods as soon as they ask, and in this one at once.
    ///
    /// # Errors
    /// There is no such limit, its identity is given wrongly or known nowhere, or Redis does not answer.
    pub async fn reset(&self, asked: &Asked) -> Result<Value, Problem> {
        let limits = self.limits();
        let limit = find(&limits, &asked.limit)?;
        let found = self.found(limit, &asked.who)?;
        if self.redis.is_none() && found.identity.is_none() {
            let remedy = "ask the pod that shows it, or give the identity's parts";
            return Err(Problem::Unknown(SyntaxError::new("nobody of this id is known here", remedy)));
        }
        let bounds = self.bounds_of(limit, &found);
        if let Some(redis) = self.redis {
            let keys = keys(redis, &bounds, &found.id);
            let keys: Vec<_> = keys.iter().map(Vec::as_slice).collect();
            let lost = lost(redis);
            let mut args: Vec<&[u8]> = vec![b""];
            for bound in &bounds {
                args.extend(bound.args.iter());
                args.push(if bound.minds_loss() { &lost } else { b"" });
            }
            let asked = redis.run(&shared::RESET, &keys, &args, &mut Budget::new(ANSWERED_WITHIN)).await;
            let unanswered = |problem: kv::Unavailable| {
                Problem::Redis(SyntaxError::new(format!("{problem}; nothing was reset"), "ask again when it answers"))
            };
            asked.map_err(unanswered)?;
        }
        let now = self.limiter.shelf.steady();
        for bound in &bounds {
            if let Some(identity) = &found.identity {
                let name = self.limiter.names.of(&bound.scope, identity);
                self.limiter.shelf.local.reset(&bound.ask(name, self.shape(bound), 1.0, 0), now);
                self.limiter.loans.pardon(name);
            }
        }
        Ok(json!({
            "limit": limit.config.scope,
            "id": found.id,
            "redis": self.redis.is_some(),
            "here": found.identity.is_some(),
            "elsewhere_within_s": self.redis.map(|_| (DENIED_AT_MOST / 1e6) as u64),
        }))
    }

    /// Every limit once, with the routes that name it.
    fn limits(&self) -> Vec<Limit<'l>> {
        let mut all: Vec<Limit<'l>> = Vec::new();
        for (route, limits) in &self.routes {
            for bound in STAGES.iter().flat_map(|stage| &limits.stage(*stage).bounds) {
                let at = all.iter().position(|limit| limit.config.scope == bound.limit.scope);
                let at = at.unwrap_or_else(|| {
                    all.push(Limit {
                        config: &bound.limit,
                        routes: Vec::new(),
                        bounds: Vec::new(),
                        decisions: BTreeMap::new(),
                    });
                    all.len() - 1
                });
                let limit = &mut all[at];
                if limit.bounds.iter().all(|known| known.scope != bound.scope) {
                    limit.bounds.push(Arc::clone(bound));
                }
                if !bound.follows {
                    limit.routes.push(route);
                    for (decision, count) in bound.metrics.so_far() {
                        *limit.decisions.entry(decision.as_str()).or_default() += count;
                    }
                }
            }
        }
        all
    }

    /// Whether an identity is shown to who knows this of it.
    fn shows(&self, who: &Who) -> bool {
        self.shows_identities || matches!(who, Who::Parts(_))
    }

    fn found(&self, limit: &Limit<'_>, who: &Who) -> Result<Found, Problem> {
        match who {
            Who::Parts(parts) => {
                let identity = given::canonical(limit.config, &limit.routes, parts).map_err(Problem::Wrong)?;
                Ok(Found { id: self.limiter.pseudonym.of(&identity), identity: Some(identity) })
            }
            Who::Id(id) => {
                if id.len() != ID_DIGITS || !id.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
                    let problem = "`id` is not 32 hexadecimal digits in lower case";
                    return Err(Problem::Wrong(SyntaxError::new(problem, "copy it from `GET /limits`")));
                }
                let denied = self.limiter.top.list().into_iter();
                let own = denied.filter(|one| one.limit.scope == limit.config.scope).map(|one| one.identity);
                let identity = own.into_iter().find(|identity| self.limiter.pseudonym.of(identity) == *id);
                Ok(Found { id: id.clone(), identity })
            }
        }
    }

    /// What the limit is for one identity: where that is not known, what it is for those who have no tier.
    fn bounds_of(&self, limit: &Limit<'_>, found: &Found) -> Vec<Arc<Bound>> {
        let tier = |bound: &Arc<Bound>| self.limiter.tiers.bound_for(bound, found.identity.as_ref()?);
        limit.bounds.iter().map(|bound| tier(bound).unwrap_or_else(|| Arc::clone(bound))).collect()
    }

    /// The limit's shape in this pod's memory.
    fn shape(&self, bound: &Bound) -> Shape {
        if self.redis.is_some() { self.limiter.part(bound) } else { bound.shape.divided(1) }
    }

    /// What this pod knows: its own state, what it was lent, what it remembers.
    fn here(&self, bound: &Bound, name: LocalName, now: Micros) -> Value {
        let mut shown = Map::new();
        if self.redis.is_none() || bound.limit.redis_down == RedisDown::Local {
            let asked = bound.ask(name, self.shape(bound), cost(bound), 0);
            let (own, owed, is_known) = self.limiter.shelf.local.peek(&asked, now);
            shown = level(&own, owed);
            shown.insert("known".to_owned(), is_known.into());
        }
        if self.redis.is_some() {
            let known = self.limiter.loans.shown(name, now);
            let left = |until: Micros| ((until - now) / 1000.0).ceil().max(0.0) as u64;
            let lent = known.filter(|known| known.held > 0.0);
            let lent = lent.map(|known| json!({ "requests": bound.requests(known.held), "for_ms": left(known.until) }));
            shown.insert("lent".to_owned(), lent.into());
            let denied = known.and_then(|known| known.denied_until).map(left);
            shown.insert("denied_for_ms".to_owned(), denied.into());
        }
        shown.into()
    }

    /// What Redis says of each of the limit's states.
    async fn peek(&self, redis: &kv::Redis, bounds: &[Arc<Bound>], id: &str) -> Result<Vec<Value>, String> {
        let keys = keys(redis, bounds, id);
        let keys: Vec<_> = keys.iter().map(Vec::as_slice).collect();
        let (lost, costs) = (lost(redis), bounds.iter().map(|bound| cost(bound).to_string().into_bytes()));
        let costs: Vec<Vec<u8>> = costs.collect();
        let mut args: Vec<&[u8]> = vec![b""];
        for (bound, cost) in bounds.iter().zip(&costs) {
            args.extend(bound.args.iter());
            args.extend([cost.as_slice(), if bound.minds_loss() { &lost } else { b"" }]);
        }
        let reply = redis.run(&shared::PEEK, &keys, &args, &mut Budget::new(ANSWERED_WITHIN)).await;
        let reply = reply.map_err(|problem| problem.to_string())?;
        self.peeked(&reply, bounds).ok_or_else(|| "Redis answered something else".to_owned())
    }

    /// Reads what `peek.lua` answers.
    fn peeked(&self, reply: &Reply, bounds: &[Arc<Bound>]) -> Option<Vec<Value>> {
        let Reply::Array(items) = reply else { return None };
        let number = |at: usize| match items.get(at) {
            Some(Reply::Int(number)) => u64::try_from(*number).ok(),
            _ => None,
        };
        let mut at = 1;
        let mut all = Vec::new();
        for bound in bounds {
            let said = Level { remaining: number(at + 1)?, wait_ms: number(at + 2)?, full_ms: number(at + 3)? };
            let mut shown = level(&said, number(at + 4)?);
            shown.insert("known".to_owned(), (number(at)? == 1).into());
            let loans = number(at + 5)? as usize;
            at += PEEKED_EACH;
            let mut lent = Vec::new();
            for _ in 0..loans {
                let (who, units, left_ms) = (number(at)?, number(at + 1)?, number(at + 2)?);
                lent.push(json!({
                    "pod": format!("{who:014x}"),
                    "this": who as f64 == self.limiter.loans.who(),
                    "requests": bound.requests(units as f64),
                    "for_ms": left_ms,
                }));
                at += PEEKED_LOAN;
            }
            if bound.due_bucket().is_some() {
                shown.insert("lent".to_owned(), lent.into());
            }
            all.push(shown.into());
        }
        Some(all)
    }
}

impl Limit<'_> {
    /// The limit as it is configured, and what it decided.
    fn shown(&self) -> Value {
        let limit = self.config;
        let key: Vec<_> = limit.key.iter().map(ToString::to_string).collect();
        let rates: Vec<_> = self.bounds.iter().map(|bound| Value::from(quota(&bound.quota))).collect();
        let tiers = limit.tiers.as_ref().map(|tiers| {
            let own = tiers.quotas.iter().map(|(name, own)| (name.clone(), quota(own).into()));
            json!({ "hash": tiers.hash, "rates": own.collect::<Map<_, _>>() })
        });
        json!({
            "limit": limit.scope,
            "routes": self.routes,
            "key": key,
            "rates": rates,
            "on": match limit.on {
                Stage::Request => "request",
                Stage::Miss => "miss",
                Stage::Origin => "origin",
            },
            "dry_run": limit.dry_run,
            "tiers": tiers,
            "max_delay_ms": limit.delay.map(|delay| delay.longest.as_millis() as u64),
            "decisions": self.decisions,
        })
    }

    /// What this pod holds of loans: how many, and of how many requests.
    fn lent(&self, keys: &Keys, all: &[(Box<[u8]>, f64)]) -> Value {
        let (mut count, mut requests) = (0_usize, 0.0);
        for bound in &self.bounds {
            let nobodys = keys.bucket(&bound.scope, "");
            let before = &nobodys[..nobodys.len() - 1];
            let own = all.iter().filter(|(key, _)| key.len() == nobodys.len() + ID_DIGITS && key.starts_with(before));
            for (_, units) in own {
                count += 1;
                requests += bound.requests(*units);
            }
        }
        json!({ "held": count, "requests": requests })
    }
}

impl Bound {
    /// Units of its buckets as requests.
    fn requests(&self, units: f64) -> f64 {
        match self.shape {
            Shape::TokenBucket(shape) => units / shape.price,
            _ => units,
        }
    }

    fn due_bucket(&self) -> Option<super::bucket::Shape> {
        match self.shape {
            Shape::TokenBucket(shape) => Some(shape),
            _ => None,
        }
    }
}

/// The limit that is called so, by the name of its states or, where only one has it, by its own.
fn find<'a, 'l>(limits: &'a [Limit<'l>], name: &str) -> Result<&'a Limit<'l>, Problem> {
    if let Some(limit) = limits.iter().find(|limit| limit.config.scope == name) {
        return Ok(limit);
    }
    let mut named = limits.iter().filter(|limit| limit.config.name == name);
    match (named.next(), named.next()) {
        (Some(limit), None) => Ok(limit),
        (first, _) => {
            let problem =
                if first.is_some() { "several routes have a limit of this name" } else { "there is no such limit" };
            let names: Vec<_> = limits.iter().map(|limit| &*limit.config.scope).collect();
            Err(Problem::Unknown(SyntaxError::new(problem, format!("ask for one of: {}", names.join(", ")))))
        }
    }
}

fn keys(redis: &kv::Redis, bounds: &[Arc<Bound>], id: &str) -> Vec<Vec<u8>> {
    bounds.iter().map(|bound| redis.shared().keys.bucket(&bound.scope, id)).collect()
}

fn lost(redis: &kv::Redis) -> Vec<u8> {
    shared::lost_arg(redis.shared().lost_ms()).unwrap_or_default()
}

/// What a request costs whose wait is told.
fn cost(bound: &Bound) -> f64 {
    match &bound.limit.cost {
        Cost::Fixed(cost) | Cost::Header { default: cost, .. } => f64::from(*cost),
        Cost::Answer(answer) => f64::from(answer.reserve),
    }
}

fn level(level: &Level, owed: u64) -> Map<String, Value> {
    let wait_ms = Some(level.wait_ms).filter(|&wait_ms| wait_ms != NEVER_MS);
    let all = json!({ "remaining": level.remaining, "owed": owed, "wait_ms": wait_ms, "full_in_ms": level.full_ms });
    all.as_object().cloned().unwrap_or_default()
}

fn quota(quota: &Quota) -> Map<String, Value> {
    let mut shown = Map::new();
    shown.insert("algorithm".to_owned(), quota.algorithm().into());
    if let Some(rate) = quota.rate() {
        shown.insert("rate".to_owned(), rate.to_string().into());
    }
    match quota {
        Quota::TokenBucket { burst, .. } => shown.insert("burst".to_owned(), (*burst).into()),
        Quota::Concurrency { max } => shown.insert("max".to_owned(), (*max).into()),
        Quota::FixedWindow(_) | Quota::SlidingWindow(_) | Quota::SlidingLog(_) => None,
    };
    shown
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
