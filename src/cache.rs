//! The cache: what is stored for a request, whether it may be used, and who fetches what is not there.
//!
//! It never calls the upstream itself. A request looks ([`Cache::look`]); where nothing usable is stored it joins the
//! fetch in flight or leads it ([`Cache::join`]); a leader looks into the shared tier and leases the fetch there
//! ([`shared`]), asks the upstream by its own means, and hands in what came ([`Cache::keep`]).

pub mod conditional;
pub mod directives;
pub mod entry;
pub mod fields;
pub mod flight;
pub mod freshness;
pub mod hot;
pub mod inspect;
pub mod key;
pub mod memory;
mod missing;
#[cfg(test)]
mod model;
pub mod negotiation;
pub mod parts;
pub mod policy;
pub mod ranges;
mod records;
pub mod search;
pub mod shared;
pub mod structured;
pub mod tags;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::HeaderMap;

use crate::clock::{Clock, SteadyMs, WallMs};
use crate::config::{CacheRule, CacheTiers, CutOff};
use crate::invalidation::{Invalidation, Subject, Verdict};
use crate::metrics::{Lookup, Metrics};
use entry::{Entry, Stored, Uncacheable, Variant, Vary};
use flight::{Begun, Flights, Joined};
use freshness::State;
use key::KeyBuilder;
use memory::{Memory, Slot};
pub use missing::{Missing, Previous};
use search::{Rule, Search};

/// Where verdicts on requests with credentials stand: no key ends like this, since every part of one has its length in
/// front.
fn apart(primary: &[u8]) -> Vec<u8> {
    [primary, b"credentials"].concat()
}

fn stale(slot: Arc<Slot>, excuses_errors: bool) -> Look {
    let previous = Previous { slot, is_gone: false, excuses_errors };
    Look::Nothing(Missing { other_variant: false, previous: Some(previous) })
}

/// The cache of this process; all workers share it.
pub struct Cache {
    memory: Memory,
    /// Held while a record of variants is changed.
    markers: Mutex<()>,
    flights: Arc<Flights>,
    invalidation: Arc<Invalidation>,
    clock: Clock,
    settings: CacheTiers,
    /// What is read most, where new pods preload it.
    hot: Option<hot::Hot>,
}

/// Everything about one request that decides whether a stored answer may be used for it.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// What makes the route's keys.
    pub keys: &'a KeyBuilder,
    /// Primary key.
    pub key: &'a [u8],
    /// What else it may be looked up by, where answers say which parameters count.
    pub search: Option<&'a Arc<Search>>,
    /// Request fields.
    pub headers: &'a HeaderMap,
    /// The route's rule.
    pub rule: &'a CacheRule,
    /// What invalidations can name.
    pub subject: Subject<'a>,
    /// Whether the request carries credentials that are no part of the key.
    pub credentials: bool,
    /// The client's own directives, where they count.
    pub directives: Option<directives::RequestDirectives>,
    /// Fleet time; after a wait it is another, or what came meanwhile would seem to be from the future.
    pub now: WallMs,
    /// Steady time at which the request was put.
    pub steady: SteadyMs,
}

/// What a look into the memory tier gave.
pub enum Look {
    /// An answer.
    Fresh(Found),
    /// An answer that is past its lifetime, and may be served while it is refreshed.
    Stale(Found),
    /// Answers to this are not stored; nobody needs to wait for anybody.
    Uncacheable,
    /// No answer.
    Nothing(Missing),
}

/// A stored answer that may be served.
pub struct Found {
    /// Where it stands.
    pub slot: Arc<Slot>,
    /// Seconds since it was made or confirmed.
    pub age_s: u64,
    /// Seconds that it is still fresh; negative once it is stale.
    pub ttl_s: i64,
    /// Whether it is time for the fleet to refresh it.
    pub is_early: bool,
}

/// What was kept.
pub struct Kept {
    /// Where it stands.
    pub slot: Arc<Slot>,
    /// The record that it stands behind, if it varies.
    pub marker: Option<Arc<Vary>>,
    /// The variant that had to leave for it.
    pub dropped: Option<Variant>,
    /// Whether nothing newer stood there.
    pub is_newest: bool,
}

impl Cache {
    /// An empty cache.
    pub fn new(settings: &CacheTiers, invalidation: Arc<Invalidation>, clock: Clock, metrics: &Metrics) -> Arc<Self> {
        let cache = Arc::new(Self {
            memory: Memory::new(settings.memory, settings.max_object, metrics),
            markers: Mutex::default(),
            flights: Flights::new(settings.fill_memory),
            invalidation,
            clock,
            settings: settings.clone(),
            hot: (settings.preload > 0).then(|| hot::Hot::new(settings.preload)),
        });
        let observed = Arc::downgrade(&cache);
        metrics.before_each_scrape(move |metrics| {
            if let Some(cache) = observed.upgrade() {
                cache.memory.report(metrics);
            }
        });
        cache
    }

    /// The bounds that all routes share.
    pub fn settings(&self) -> &CacheTiers {
        &self.settings
    }

    /// A fresh answer of the memory tier that nothing was invalidated since somebody found it valid: it can be had without
    /// the request's tags, and without allocating. Nothing is no verdict; [`Cache::look`] has that.
    pub fn glance(&self, ask: &Ask<'_>) -> Option<Found> {
        let version = self.invalidation.version();
        let used = |vary: &Vary, variant: &[u8]| vary.used(key::hash(variant));
        let slot = self.find(ask, |key| self.memory.get(key), used).ok().filter(|slot| slot.is_checked(version))?;
        match self.weigh(slot, ask, |_, _| Verdict::Valid) {
            (Look::Fresh(found), _) if !found.is_early => Some(found),
            _ => None,
        }
    }

    /// Looks into the memory tier.
    pub fn look(&self, ask: &Ask<'_>) -> (Look, Lookup) {
        self.look_by(ask, |key| self.memory.get(key), |vary, variant| vary.used(key::hash(variant)))
    }

    /// [`Cache::look`], by this way of reading the memory tier; `used` is told of a variant that is there.
    fn look_by(
        &self,
        ask: &Ask<'_>,
        get: impl Fn(&[u8]) -> Option<Arc<Slot>>,
        used: impl FnOnce(&Vary, &[u8]),
    ) -> (Look, Lookup) {
        match self.find(ask, get, used) {
            Ok(slot) => self.judge(slot, ask),
            Err(missing) => (Look::Nothing(missing), Lookup::Miss),
        }
    }

    /// What the memory tier has for a request.
    fn find(
        &self,
        ask: &Ask<'_>,
        get: impl Fn(&[u8]) -> Option<Arc<Slot>>,
        used: impl FnOnce(&Vary, &[u8]),
    ) -> Result<Arc<Slot>, Missing> {
        let slot = get(ask.key).ok_or_else(Missing::default)?;
        let Stored::Vary(vary) = &slot.stored else { return Ok(slot) };
        let found = key::with_buffer(|key| {
            ask.keys.variant(key, ask.key, &vary.names, ask.headers);
            get(key).inspect(|_| used(vary, key))
        });
        found.ok_or(Missing { other_variant: true, previous: None })
    }

    /// The part of what is not stored whole that this pod has.
    pub fn part(&self, ask: &Ask<'_>) -> Option<Arc<Slot>> {
        self.memory.get(&parts::key(ask.key))
    }

    /// Whether a part holds what is asked for, and may be used. A stale one is not refreshed behind the answer: nobody
    /// knows whether the same part will be asked for again.
    pub fn judge_part(&self, slot: &Arc<Slot>, ask: &Ask<'_>) -> Option<Found> {
        parts::select(ask.headers, slot.stored.entry()?)?;
        match self.judge(Arc::clone(slot), ask).0 {
            Look::Fresh(found) => Some(found),
            Look::Stale(_) | Look::Uncacheable | Look::Nothing(_) => None,
        }
    }

    /// The part that one more would complete. Its age is of no matter: a strong entity tag says whether it still holds.
    /// It is taken out: should its rest not come, the whole is asked for from then on.
    pub fn take_completable(&self, ask: &Ask<'_>) -> Option<Arc<Entry>> {
        let key = parts::key(ask.key);
        let slot = self.memory.get(&key)?;
        let is_for_others = |entry: &Entry| ask.credentials && entry.freshness.by_rule;
        let entry = slot.stored.entry().filter(|entry| parts::rest(entry).is_some() && !is_for_others(entry))?;
        self.memory.remove(&key);
        Some(Arc::clone(entry))
    }

    /// Keeps a part in the memory tier, joined with an `earlier` one if they are of the same bytes; what has become whole by
    /// that is kept as such.
    pub fn keep_part(&self, primary: &[u8], part: Entry, earlier: Option<&Entry>, asked: SteadyMs) -> Kept {
        let joined = earlier.and_then(|earlier| parts::joined(earlier, &part, self.settings.max_object));
        let part = joined.unwrap_or(part);
        if let Some(whole) = parts::whole(&part, primary) {
            return self.keep(primary, Stored::Entry(Arc::new(whole)), asked);
        }
        let slot = Slot::new(Stored::Entry(Arc::new(part)), asked);
        let is_newest = self.memory.insert(slot.stored.key().clone(), Arc::clone(&slot), self.times().0);
        Kept { slot, marker: None, dropped: None, is_newest }
    }

    /// Room for a copy of what passes.
    pub fn room(&self) -> flight::Held {
        self.flights.room()
    }

    /// Whether what a slot holds may be used.
    pub fn judge(&self, slot: Arc<Slot>, ask: &Ask<'_>) -> (Look, Lookup) {
        self.weigh(slot, ask, |slot, tags| self.verdict(slot, tags, ask))
    }

    fn weigh(
        &self,
        slot: Arc<Slot>,
        ask: &Ask<'_>,
        verdict_on: impl Fn(&Slot, &[String]) -> Verdict,
    ) -> (Look, Lookup) {
        let entry = match &slot.stored {
            Stored::Entry(entry) => entry,
            Stored::Uncacheable(verdict) => {
                let holds = verdict.until > ask.now && verdict_on(&slot, &[]) == Verdict::Valid;
                return if holds {
                    (Look::Uncacheable, Lookup::Miss)
                } else {
                    (Look::Nothing(Missing::default()), Lookup::Miss)
                };
            }
            Stored::Vary(_) => return (Look::Nothing(Missing::default()), Lookup::Miss),
        };
        // A lifetime of the route's own making was never meant for requests with credentials.
        if ask.credentials && entry.freshness.by_rule {
            return (Look::Uncacheable, Lookup::Miss);
        }
        let verdict = verdict_on(&slot, &entry.tags);
        if verdict == Verdict::Gone || !self.is_trusted(&slot, ask) {
            let previous = Previous { slot, is_gone: true, excuses_errors: false };
            return (Look::Nothing(Missing { other_variant: false, previous: Some(previous) }), Lookup::Invalidated);
        }
        let is_soft = verdict == Verdict::Stale;
        match entry.freshness.evaluate(ask.now, ask.directives.as_ref(), is_soft) {
            State::Fresh { age_s, ttl_left_ms } => {
                let is_early = entry.freshness.refreshes_early(ttl_left_ms, u64::from(entry.fill_cost_ms));
                let found = Found { slot, age_s, ttl_s: (ttl_left_ms / 1000) as i64, is_early };
                (Look::Fresh(found), Lookup::Hit)
            }
            State::StaleWhileRevalidate { age_s, stale_ms } => {
                let found = Found { slot, age_s, ttl_s: -((stale_ms / 1000) as i64) - 1, is_early: true };
                (Look::Stale(found), Lookup::Stale)
            }
            State::StaleIfError { .. } => (stale(slot, true), Lookup::Stale),
            State::MustRevalidate => (stale(slot, false), Lookup::Stale),
        }
    }

    /// A stored answer as it may be served whatever its state: just fetched, just confirmed, or excusing an error.
    pub fn found(&self, slot: &Arc<Slot>, ask: &Ask<'_>) -> Found {
        let (now, _) = self.times();
        let freshness = slot.stored.entry().map(|entry| entry.freshness).unwrap_or_default();
        let age_ms = freshness.age_ms(now.max(ask.now));
        let left_ms = (freshness.lifetime_ms.min(i64::MAX as u64) as i64).saturating_sub(age_ms as i64);
        let ttl_s = left_ms.div_euclid(1000);
        Found { slot: Arc::clone(slot), age_s: age_ms / 1000, ttl_s, is_early: false }
    }

    fn verdict(&self, slot: &Slot, answer_tags: &[String], ask: &Ask<'_>) -> Verdict {
        let version = self.invalidation.version();
        // What several URLs share may be invalid for one of them.
        let is_shared = !ask.subject.also.is_empty();
        if !is_shared && slot.is_checked(version) {
            return Verdict::Valid;
        }
        let subject = Subject { answer_tags, ..ask.subject };
        let verdict = self.invalidation.verdict(slot.stored.position(), &subject);
        if !is_shared && verdict == Verdict::Valid {
            slot.set_checked(version);
        }
        verdict
    }

    fn is_trusted(&self, slot: &Slot, ask: &Ask<'_>) -> bool {
        let spread = key::spread(key::hash(ask.key), slot.asked);
        ask.rule.cut_off == CutOff::Stale
            || self.invalidation.trusted(
                slot.stored.position(),
                (ask.steady, slot.asked),
                ask.rule.max_staleness,
                spread,
            )
    }

    /// Joins the fetch for the request's key, or leads one.
    pub fn join(&self, ask: &Ask<'_>) -> Joined {
        let version = self.invalidation.version();
        let bound = ask.rule.max_staleness;
        // A pod that is cut off may not know what has overtaken a fetch that takes long.
        let is_trusted = |&Begun { position, at, .. }: &Begun| {
            ask.rule.cut_off == CutOff::Stale || self.invalidation.trusted(position, (ask.steady, at), bound, 0.0)
        };
        let usable = |begun: &Begun| {
            self.invalidation.verdict(begun.position, &ask.subject) != Verdict::Gone && is_trusted(begun)
        };
        // Where the fields that answers vary by are known, requests that differ in them fly apart.
        if let Some(slot) = self.memory.get(ask.key)
            && let Stored::Vary(vary) = &slot.stored
        {
            return key::with_buffer(|key| {
                ask.keys.variant(key, ask.key, &vary.names, ask.headers);
                self.flights.join(key, version, usable)
            });
        }
        self.flights.join(ask.key, version, usable)
    }

    /// What a fetch for `subject` knows that begins now.
    pub fn begin(&self, subject: &Subject<'_>) -> Begun {
        // In this order: who comes in between seems to know more, and looks.
        let version = self.invalidation.version();
        Begun { position: self.invalidation.position(subject), version, at: self.times().1 }
    }

    /// Whether an invalidation has overtaken what is stored for `subject`.
    pub fn is_gone(&self, entry: &Entry, subject: &Subject<'_>) -> bool {
        let subject = Subject { answer_tags: &entry.tags, ..*subject };
        self.invalidation.verdict(entry.position, &subject) == Verdict::Gone
    }

    /// Leads a fetch behind an answer that is served meanwhile, unless somebody fetches already.
    pub fn refresh(&self, ask: &Ask<'_>) -> Option<flight::Permit> {
        match self.join(ask) {
            Joined::Lead(permit) => Some(permit),
            Joined::Follow(_) | Joined::Full => None,
        }
    }

    /// Whether an answer that somebody else fetched is the one for this request: the same by what it varies by and, for
    /// one that `knows_more` than the fetch, not overtaken by an invalidation.
    pub fn suits(&self, entry: &Entry, ask: &Ask<'_>, knows_more: bool) -> bool {
        let is_under = |primary: &[u8]| {
            if entry.vary.is_empty() {
                return *entry.key == *primary;
            }
            key::with_buffer(|key| {
                ask.keys.variant(key, primary, &entry.vary, ask.headers);
                *entry.key == **key
            })
        };
        // By its own rule it may be the one, whatever rule was looked by; then by that it is known to invalidations.
        let rule = ask.search.and_then(|_| Rule::of_entry(entry));
        let same = is_under(ask.key) || ask.search.is_some_and(|search| is_under(&search.under(rule.as_ref())));
        let names = ask.search.zip(rule.as_ref()).map(|(search, rule)| search.names(rule));
        let also = names.as_deref().unwrap_or(ask.subject.also);
        let subject = Subject { answer_tags: &entry.tags, also, ..ask.subject };
        let is_for_others = ask.credentials && entry.freshness.by_rule;
        same && !is_for_others && (!knows_more || self.invalidation.verdict(entry.position, &subject) != Verdict::Gone)
    }

    /// Keeps something in the memory tier. An answer that varies stands behind a record of the fields it varies by, which
    /// has room for so many variants: the least used leaves for one more.
    pub fn keep(&self, primary: &[u8], mut stored: Stored, asked: SteadyMs) -> Kept {
        if let Stored::Vary(vary) = &mut stored {
            return self.keep_variants(primary, vary, asked);
        }
        let slot = Slot::new(stored, asked);
        let varying = slot.stored.entry().filter(|entry| !entry.vary.is_empty());
        let Some(entry) = varying else {
            let key = match slot.stored.key() {
                own if *own == *primary => own.clone(),
                _ => Bytes::copy_from_slice(primary),
            };
            if slot.stored.entry().is_some() {
                // What is here whole is not in parts any more, least of all in older ones.
                self.memory.remove(&parts::key(primary));
            }
            let is_newest = self.memory.insert(key, Arc::clone(&slot), self.times().0);
            return Kept { slot, marker: None, dropped: None, is_newest };
        };
        self.memory.remove(&parts::key(primary));
        let variant = Variant::new(&entry.key, shared::name(&entry.key));
        let (marker, dropped) = {
            let _turn = self.markers.lock().unwrap_or_else(PoisonError::into_inner);
            let mut marker = self.marker(primary, entry);
            let dropped = marker.admit(variant);
            let marker = Arc::new(marker);
            self.memory.insert(marker.key.clone(), Slot::new(Stored::Vary(Arc::clone(&marker)), asked), self.times().0);
            (marker, dropped)
        };
        if let Some(dropped) = &dropped {
            self.memory.remove(dropped.key());
        }
        let is_newest = self.memory.insert(entry.key.clone(), Arc::clone(&slot), self.times().0);
        Kept { slot, marker: Some(marker), dropped, is_newest }
    }

    /// Keeps a record of variants that Redis has, together with what this process knows of them.
    fn keep_variants(&self, primary: &[u8], vary: &mut Arc<Vary>, asked: SteadyMs) -> Kept {
        let _turn = self.markers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(standing) = self.memory.get(primary)
            && let Stored::Vary(known) = &standing.stored
        {
            Arc::make_mut(vary).merge(known);
        }
        let slot = Slot::new(Stored::Vary(Arc::clone(vary)), asked);
        let is_newest = self.memory.insert(Bytes::copy_from_slice(primary), Arc::clone(&slot), self.times().0);
        Kept { slot, marker: None, dropped: None, is_newest }
    }

    /// Remembers that answers to requests with credentials are not stored under this key, whatever others get.
    pub fn keep_apart(&self, primary: &[u8], verdict: Uncacheable, asked: SteadyMs) {
        let slot = Slot::new(Stored::Uncacheable(Arc::new(verdict)), asked);
        self.memory.insert(apart(primary).into(), slot, self.times().0);
    }

    /// Whether a request with credentials should go for itself: what is stored was meant for others by the route's own
    /// rule, or an answer to credentials was found not to be storable a moment ago.
    pub fn is_apart(&self, ask: &Ask<'_>) -> bool {
        let Some(slot) = self.memory.get(&apart(ask.key)) else { return false };
        matches!(&slot.stored, Stored::Uncacheable(verdict) if verdict.until > ask.now)
    }

    /// The record of the fields that a URL's answers vary by. Where they are others than before, the variants by those
    /// count on until they leave.
    fn marker(&self, primary: &[u8], entry: &Entry) -> Vary {
        let standing = self.memory.get(primary);
        let (variants, left) = match standing.as_ref().map(|slot| &slot.stored) {
            Some(Stored::Vary(vary)) => (vary.variants.clone(), vary.left),
            _ => (Vec::new(), 0),
        };
        Vary {
            key: Bytes::copy_from_slice(primary),
            names: entry.vary.clone(),
            variants,
            left,
            position: entry.position,
            fence: entry.fence,
            until: self.clock.now().saturating_add(entry.keep_ms(self.clock.now())),
        }
    }

    /// Fleet time and steady time.
    pub fn times(&self) -> (WallMs, SteadyMs) {
        (self.clock.now(), self.clock.steady())
    }

    /// The invalidations that this cache minds.
    pub fn invalidation(&self) -> &Invalidation {
        &self.invalidation
    }
}
