//! Tiers: identities for whom a limit is another, by hashes in Redis that operators change while pods run.
//!
//! Each pod reads the hashes whole, every [`REFRESH`], and decides by what it read: no request asks for its tier. What
//! cannot be read leaves what was read before as it is. An identity's state is the same one whatever its tier, so that a new
//! tier is no new burst.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ahash::RandomState;
use arc_swap::ArcSwap;

use super::bounds::Bound;
use super::{Facts, Limiter, RouteLimits, identity, text, with_scratch};
use crate::config;
use crate::kv::{self, Budget, Reply, Script, Unavailable};
use crate::metrics::TiersRead;

/// How often they are read.
pub const REFRESH: Duration = Duration::from_secs(2);

/// Longest that reading one of them may take; with [`REFRESH`], what operators change holds within three seconds.
const READ_WITHIN: Duration = Duration::from_secs(1);

/// Identities of one hash: about 1.5 MiB of them in each pod.
pub const IDENTITIES_MAX: usize = 10_000;

/// Fields that are read at once: a script must not hold up the requests of others.
const PAGE: usize = 500;

/// Longest identity, in bytes: each of eight parts has up to 256, of which each may be escaped.
const IDENTITY_MAX: usize = 8 * (3 * 256 + 1);

/// Unknown tiers that the log names.
const NAMED: usize = 3;

/// Reads a page; see `tiers.lua`.
static TIERS: Script = Script { name: "limit_tiers", source: include_str!("tiers.lua") };

/// What was read.
#[derive(Default)]
pub(super) struct Tiers {
    /// The tiers that limits have, by the hash that says whose they are.
    known: ArcSwap<BTreeMap<String, BTreeSet<Arc<str>>>>,
    /// Who has which.
    rosters: ArcSwap<HashMap<String, Arc<Roster>>>,
    /// What the log was told last of a hash.
    said: Mutex<HashMap<String, String>>,
}

/// Tiers by the texts of identities.
#[derive(Default)]
struct Roster {
    tiers: HashMap<Box<[u8]>, Arc<str>, RandomState>,
    /// Tiers that no limit has, and how many identities have them.
    unknown: BTreeMap<String, usize>,
}

/// Why a hash was not read.
#[derive(Debug)]
enum Unread {
    Unavailable(Unavailable),
    TooLarge(u64),
}

impl Roster {
    fn bound_of(&self, bound: &Bound, identity: &[u8]) -> Option<Arc<Bound>> {
        let mut written = Vec::new();
        text::append(identity, &mut written);
        bound.tiers.get(&**self.tiers.get(&*written)?).map(Arc::clone)
    }
}

impl Tiers {
    /// What `bound` is for the one who asks, if that is anything else.
    pub(super) fn bound_of(&self, bound: &Bound, facts: &Facts<'_>) -> Option<Arc<Bound>> {
        let tiers = bound.limit.tiers.as_ref()?;
        let rosters = self.rosters.load();
        let roster = rosters.get(&tiers.hash).filter(|roster| !roster.tiers.is_empty())?;
        with_scratch(|scratch| {
            identity::canonical(&bound.limit.key, facts, scratch);
            roster.bound_of(bound, scratch)
        })
    }

    /// The same for an identity of these canonical bytes.
    pub(super) fn bound_for(&self, bound: &Bound, identity: &[u8]) -> Option<Arc<Bound>> {
        self.rosters.load().get(&bound.limit.tiers.as_ref()?.hash)?.bound_of(bound, identity)
    }

    fn say(&self, hash: &str, problem: String, say: impl FnOnce(&str)) {
        let mut said = self.said.lock().expect("no panic while held");
        let last = said.entry(hash.to_owned()).or_default();
        if *last != problem {
            if !problem.is_empty() {
                say(&problem);
            }
            *last = problem;
        }
    }
}

impl Limiter {
    /// The tier by which requests like this one are limited, if any: of `limits`, by the one whose states are called
    /// `scope`.
    pub fn tier_of(&self, limits: &RouteLimits, scope: &str, facts: &Facts<'_>) -> Option<Box<str>> {
        let bound = limits.bounds().find(|bound| bound.limit.scope == scope)?;
        self.tiers.bound_of(bound, facts)?.tier.clone()
    }

    /// From now on these are the limits.
    pub fn follow<'c>(&self, limits: impl Iterator<Item = &'c config::Limit>) {
        let mut known: BTreeMap<String, BTreeSet<Arc<str>>> = BTreeMap::new();
        for tiers in limits.filter_map(|limit| limit.tiers.as_ref()) {
            known.entry(tiers.hash.clone()).or_default().extend(tiers.quotas.keys().map(|name| name.as_str().into()));
        }
        self.tiers.known.store(Arc::new(known));
    }

    /// Reads who has which tier; to be called every [`REFRESH`].
    pub async fn read_tiers(&self, redis: &kv::Redis) {
        let known = self.tiers.known.load_full();
        let metrics = &redis.shared().metrics.tiers;
        let mut rosters = HashMap::new();
        for (hash, names) in &*known {
            let last = || self.tiers.rosters.load().get(hash).cloned();
            let (roster, result, problem) = match Roster::read(redis, hash, names).await {
                Ok(roster) => {
                    let problem = roster.problem();
                    (Some(Arc::new(roster)), TiersRead::Ok, problem)
                }
                Err(Unread::TooLarge(count)) => {
                    let problem = format!("{count} identities are more than {IDENTITIES_MAX}");
                    (last(), TiersRead::TooLarge, problem)
                }
                Err(Unread::Unavailable(why)) => (last(), TiersRead::Unavailable, why.to_string()),
            };
            metrics.read(hash, result);
            let key = redis.shared().keys.tiers(hash);
            let key = String::from_utf8_lossy(&key);
            self.tiers.say(hash, problem, |problem| match result {
                TiersRead::Ok => tracing::warn!(hash = %key, problem, "some tiers are unknown: the limit's own holds"),
                _ => tracing::warn!(hash = %key, problem, "tiers cannot be read: those read before hold"),
            });
            if let Some(roster) = roster {
                metrics.hold(hash, roster.tiers.len(), roster.unknown.values().sum());
                rosters.insert(hash.clone(), roster);
            }
        }
        self.tiers.rosters.store(Arc::new(rosters));
    }
}

impl Roster {
    /// All of a hash.
    async fn read(redis: &kv::Redis, hash: &str, names: &BTreeSet<Arc<str>>) -> Result<Self, Unread> {
        let key = redis.shared().keys.tiers(hash);
        let (page, most) = (PAGE.to_string(), IDENTITIES_MAX.to_string());
        let (mut roster, mut cursor) = (Self::default(), bytes::Bytes::from_static(b"0"));
        let mut budget = Budget::new(READ_WITHIN);
        // Each page has some: a hash that grows meanwhile is given up as one that is too large.
        for _ in 0..=IDENTITIES_MAX {
            let args: [&[u8]; 3] = [&cursor, page.as_bytes(), most.as_bytes()];
            let reply = redis.run(&TIERS, &[&key], &args, &mut budget).await.map_err(Unread::Unavailable)?;
            let [count, next, fields] = reply.items() else { return Err(Unread::Unavailable(Unavailable::NotSent)) };
            let count = count.number().unwrap_or_default();
            if count > IDENTITIES_MAX as u64 {
                return Err(Unread::TooLarge(count));
            }
            for pair in fields.items().chunks_exact(2) {
                if let [Reply::Bytes(identity), Reply::Bytes(tier)] = pair {
                    roster.take(identity, tier, names);
                }
            }
            cursor = next.bytes().cloned().unwrap_or_default();
            if cursor.is_empty() || &*cursor == b"0" {
                return Ok(roster);
            }
        }
        Err(Unread::TooLarge(IDENTITIES_MAX as u64 + 1))
    }

    fn take(&mut self, identity: &[u8], tier: &[u8], names: &BTreeSet<Arc<str>>) {
        let tier = String::from_utf8_lossy(tier.trim_ascii());
        match names.get(&*tier).filter(|_| identity.len() <= IDENTITY_MAX) {
            Some(name) => {
                self.tiers.insert(identity.into(), Arc::clone(name));
            }
            None => *self.unknown.entry(tier.chars().take(100).collect()).or_default() += 1,
        }
    }

    /// What an operator should know of it; nothing, if all is well.
    fn problem(&self) -> String {
        let named = self.unknown.iter().take(NAMED).map(|(tier, count)| format!("{tier:?} ({count} identities)"));
        let named: Vec<String> = named.collect();
        let more = if self.unknown.len() > NAMED { ", and more" } else { "" };
        if named.is_empty() { String::new() } else { format!("no limit has the tier {}{more}", named.join(", ")) }
    }
}
