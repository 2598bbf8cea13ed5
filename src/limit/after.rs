//! What requests pay once their answers are known: where only the answer says what they cost, or whether they are charged.
//!
//! A request takes what its limit holds for it when it is admitted, as from any limit. When its answer is known, what was
//! too much is given back, and what was too little is owed: a state may have less than nothing then, and admits nobody
//! before it has gained that again. A request whose answer does not come pays `default`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, StatusCode};
use tokio_util::task::TaskTracker;

use super::algorithm::Micros;
use super::bounds::said;
use super::events::Events;
use super::held::{Shelf, Slot};
use super::loans::Loans;
use super::local::Ask;
use super::number::Search;
use super::verdict::{Charge, Charged};
use super::{Limiter, Named, shared};
use crate::config::{AnswerCost, Cost, Place};
use crate::kv::{self, Budget};
use crate::metrics::Settled;

/// Longest that telling Redis of an answer may take: nobody waits for it, and what it did not hear of is lost.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// Where charges are settled: this process' states, and what is on its way to Redis.
pub(super) struct Till {
    shelf: Arc<Shelf>,
    loans: Arc<Loans>,
    /// Pods that share the limits while Redis is away.
    replicas: Arc<AtomicU32>,
    /// What is being told to Redis, each for no longer than [`TOLD_WITHIN`] a script.
    settling: TaskTracker,
}

/// What one request has taken and is still to be settled; dropped, at `default`.
#[derive(Default)]
pub struct Tabs {
    /// None while there are no charges.
    till: Option<(Arc<Till>, Option<kv::Redis>)>,
    charges: Vec<Charge>,
    /// Of these, those that a denial leaves to be settled.
    kept: usize,
}

/// An answer's status and fields.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// Status.
    pub status: StatusCode,
    /// Fields.
    pub fields: &'a HeaderMap,
    /// Those that come first, as lines with names in lower case.
    pub prepared: &'a [u8],
}

/// Reads what an answer's body says a request costs, as it passes; dropped before its end, it is settled by what was read.
pub struct Meter {
    till: Arc<Till>,
    redis: Option<kv::Redis>,
    open: Vec<Open>,
}

/// One limit's charges, of which it has several if it has several rates.
struct Open {
    charges: Vec<Charge>,
    scan: Box<Scan>,
}

enum Scan {
    Json { search: Search, left: usize },
    Events(Events),
}

/// What a limit makes of an answer's head.
enum Told {
    Cost(f64, Settled),
    Body(Box<Scan>),
}

impl Till {
    pub(super) fn new(shelf: Arc<Shelf>, loans: Arc<Loans>, replicas: Arc<AtomicU32>) -> Self {
        Self { shelf, loans, replicas, settling: TaskTracker::new() }
    }

    /// Ends when Redis was told of everything, as far as it answers.
    pub(super) async fn settled(&self) {
        self.settling.close();
        self.settling.wait().await;
    }

    /// Settles charges at what they cost in the end: here at once, in Redis behind the answer.
    fn settle(self: &Arc<Self>, redis: Option<&kv::Redis>, charges: Vec<(Charge, f64)>) {
        let now = self.shelf.steady();
        let (mut back, mut debts) = (Vec::new(), Vec::new());
        for (mut charge, cost) in charges {
            let kept = self.settle_here(&charge, cost, now);
            match &mut charge.redis {
                Some((_, mark)) if cost < charge.cost => {
                    *mark = mark.beyond(&charge.bound.shape, cost);
                    back.push(charge);
                }
                Some(_) if cost > charge.cost => {
                    let more = cost - charge.cost;
                    debts.push((charge, more));
                }
                // Redis is told when it is back.
                None if redis.is_some() => self.owe_later(&charge, (cost - charge.cost) * kept, now),
                _ => {}
            }
        }
        let Some(redis) = redis.filter(|_| !back.is_empty() || !debts.is_empty()).cloned() else { return };
        // Without a runtime the process is ending.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let till = Arc::clone(self);
        let told = async move {
            shared::refund(&redis, &back, &mut Budget::new(TOLD_WITHIN)).await;
            let unheard = shared::owe(&redis, &debts, &mut Budget::new(TOLD_WITHIN)).await;
            let now = till.shelf.steady();
            // What was said before of the wait is true no more.
            let all = back.iter().chain(debts.iter().map(|(charge, _)| charge));
            all.for_each(|charge| till.loans.lift(charge.name));
            unheard.iter().map(|nth| &debts[*nth]).for_each(|(charge, more)| till.owe_later(charge, *more, now));
        };
        self.settling.spawn_on(told, &runtime);
    }

    /// Gives back what charges took in Redis, while nobody waits for it.
    pub(super) fn give_back(self: &Arc<Self>, redis: &kv::Redis, charges: Vec<Charge>) {
        // Without a runtime the process is ending.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if charges.is_empty() {
            return;
        }
        let (till, redis) = (Arc::clone(self), redis.clone());
        let given = async move {
            shared::refund(&redis, &charges, &mut Budget::new(TOLD_WITHIN)).await;
            charges.iter().for_each(|charge| till.loans.lift(charge.name));
        };
        self.settling.spawn_on(given, &runtime);
    }

    /// Settles what was taken of this process' memory; how much, from 0 to 1, of what comes back was not gained again by then.
    fn settle_here(&self, charge: &Charge, cost: f64, now: Micros) -> f64 {
        let Some((shape, mark)) = &charge.local else { return 1.0 };
        let ask = charge.bound.ask(charge.name, *shape, charge.cost, 0);
        let more = Ask { cost: cost - ask.cost, ..ask };
        if cost < ask.cost {
            return self.shelf.local.refund(&ask, &mark.beyond(shape, cost), now);
        } else if cost > ask.cost && charge.redis.is_some() {
            // It only stands by: what one pod sees of a fleet's identity is more than its part, and would be owed for ever.
            self.shelf.local.shadow(&more, now);
        } else if cost > ask.cost {
            self.shelf.local.owe(&more, now);
        }
        1.0
    }

    /// Sees to it that the next question to Redis says that so much is owed; or, less than nothing, not owed any more.
    fn owe_later(&self, charge: &Charge, more: f64, now: Micros) {
        let named = Named { name: charge.name, cost: charge.cost };
        let due = charge.bound.due(&named, self.replicas.load(Ordering::Relaxed));
        self.loans.spent_away(&due, more, None, now);
    }
}

impl Limiter {
    /// Gives back what earlier stages charged, but what is kept.
    pub(super) async fn refund(&self, redis: Option<&kv::Redis>, charged: &mut Charged, budget: &mut Budget) {
        let mut charges = std::mem::take(&mut charged.charges);
        charges.extend(charged.slots.drain(charged.kept..).filter_map(Slot::into_charge));
        charges.extend(charged.tabs.void());
        let now = self.shelf.steady();
        for charge in &charges {
            let kept = self.shelf.refund(charge);
            if let Some(spent) = &charge.loan {
                self.loans.refund(charge.name, spent, now);
            } else if redis.is_some() && charge.redis.is_none() && charge.local.is_some() {
                // It was taken while Redis was away.
                self.till.owe_later(charge, -charge.cost * kept, now);
            }
        }
        if let Some(redis) = redis {
            shared::refund(redis, &charges, budget).await;
            charges.iter().for_each(|charge| self.loans.lift(charge.name));
        }
    }

    /// Ends when Redis was told what answers cost, as far as it answers.
    pub async fn settled(&self) {
        self.till.settled().await;
    }
}

impl Tabs {
    /// Whether there is nothing to settle.
    pub fn is_empty(&self) -> bool {
        self.charges.is_empty()
    }

    /// How many charges there are.
    pub fn len(&self) -> usize {
        self.charges.len()
    }

    /// All but the first so many, for something that may outlive the request.
    #[must_use]
    pub fn split_off(&mut self, first: usize) -> Self {
        self.kept = self.kept.min(first);
        let charges = self.charges.split_off(first.min(self.charges.len()));
        Self { till: self.till.clone().filter(|_| !charges.is_empty()), charges, kept: 0 }
    }

    pub(super) fn open(&mut self, till: &Arc<Till>, redis: Option<&kv::Redis>, charge: Charge) {
        self.till.get_or_insert_with(|| (Arc::clone(till), redis.cloned()));
        self.charges.push(charge);
    }

    /// A denial leaves them to be settled.
    pub(super) fn keep(&mut self) {
        self.kept = self.charges.len();
    }

    /// What a denial gives back.
    pub(super) fn void(&mut self) -> impl Iterator<Item = Charge> {
        self.charges.drain(self.kept..)
    }

    /// Gives back what was taken: the service was not asked.
    pub fn forgive(mut self) {
        let charges = std::mem::take(&mut self.charges);
        self.settle(charges, |_| (0.0, Settled::Returned));
    }

    /// Settles what the answer's head says; the meter reads the body for the rest.
    pub fn answered(mut self, head: &Head<'_>) -> Option<Meter> {
        let mut known: Vec<(Charge, f64)> = Vec::new();
        let mut open: Vec<Open> = Vec::new();
        let (till, redis) = self.till.take()?;
        for charge in std::mem::take(&mut self.charges) {
            // Several rates are one limit.
            let is_of = |other: &Charge| charge.bound.follows && Arc::ptr_eq(&other.bound.limit, &charge.bound.limit);
            if let Some(of) = open.last_mut().filter(|open| open.charges.last().is_some_and(is_of)) {
                of.charges.push(charge);
                continue;
            }
            if let Some(cost) = known.last().filter(|(other, _)| is_of(other)).map(|(_, cost)| *cost) {
                known.push((charge, cost));
                continue;
            }
            match told(&charge, head) {
                Told::Cost(cost, how) => {
                    charge.bound.metrics.settled(how);
                    known.push((charge, cost));
                }
                Told::Body(scan) => open.push(Open { charges: vec![charge], scan }),
            }
        }
        till.settle(redis.as_ref(), known);
        (!open.is_empty()).then_some(Meter { till, redis, open })
    }

    #[cfg(test)]
    pub(super) fn due_of_first(&self) -> super::loans::Due {
        let charge = &self.charges[0];
        charge.bound.due(&Named { name: charge.name, cost: charge.cost }, 1)
    }

    fn settle(&self, charges: Vec<Charge>, cost: impl Fn(&Charge) -> (f64, Settled)) {
        let Some((till, redis)) = &self.till else { return };
        let each = charges.into_iter().map(|charge| {
            let (cost, how) = cost(&charge);
            if !charge.bound.follows {
                charge.bound.metrics.settled(how);
            }
            (charge, cost)
        });
        till.settle(redis.as_ref(), each.collect());
    }
}

impl Drop for Tabs {
    fn drop(&mut self) {
        if self.charges.is_empty() {
            return;
        }
        let charges = std::mem::take(&mut self.charges);
        self.settle(charges, |charge| {
            let default = match &charge.bound.limit.cost {
                Cost::Answer(cost) => f64::from(cost.default),
                Cost::Fixed(_) | Cost::Header { .. } => charge.cost,
            };
            (default, Settled::Unfinished)
        });
    }
}

impl Meter {
    /// A piece of the body.
    pub fn feed(&mut self, piece: &[u8]) {
        for Open { scan, .. } in &mut self.open {
            match &mut **scan {
                Scan::Json { search, left } => {
                    let length = piece.len().min(*left);
                    search.feed(&piece[..length]);
                    *left -= length;
                }
                Scan::Events(events) => events.feed(piece),
            }
        }
    }

    /// The body is over, and whole.
    pub fn end(mut self) {
        self.settle(true);
    }

    fn settle(&mut self, is_whole: bool) {
        let mut all = Vec::new();
        for Open { charges, mut scan } in std::mem::take(&mut self.open) {
            let Some(Cost::Answer(rule)) = charges.first().map(|charge| &charge.bound.limit.cost) else { continue };
            let (cost, how) = scan.cost(rule, is_whole);
            charges[0].bound.metrics.settled(how);
            all.extend(charges.into_iter().map(|charge| (charge, cost)));
        }
        if !all.is_empty() {
            self.till.settle(self.redis.as_ref(), all);
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.settle(false);
    }
}

impl Scan {
    /// What was found in the end.
    fn cost(&mut self, rule: &AnswerCost, is_whole: bool) -> (f64, Settled) {
        let (found, was_cut) = match self {
            Self::Json { search, left } => {
                let was_cut = *left == 0 && !search.is_over();
                // A number that was cut off is none.
                if is_whole && !was_cut {
                    search.end();
                }
                (search.found(), was_cut)
            }
            Self::Events(events) => {
                if is_whole {
                    events.end();
                }
                (events.last(), events.was_cut())
            }
        };
        let default = f64::from(rule.default);
        match found {
            Some(cost) if cost >= 0.0 => capped(cost.ceil(), rule),
            None if was_cut => (default, Settled::TooLarge),
            None if !is_whole => (default, Settled::Unfinished),
            _ => (default, Settled::Missing),
        }
    }
}

fn capped(cost: f64, rule: &AnswerCost) -> (f64, Settled) {
    let max = f64::from(rule.max);
    if cost > max { (max, Settled::Capped) } else { (cost, Settled::Said) }
}

/// What a limit makes of an answer's head.
fn told(charge: &Charge, head: &Head<'_>) -> Told {
    let limit = &charge.bound.limit;
    if limit.charge.as_ref().is_some_and(|charged| !charged.contains(head.status)) {
        return Told::Cost(0.0, Settled::Returned);
    }
    let rule = match &limit.cost {
        Cost::Fixed(_) | Cost::Header { .. } => return Told::Cost(charge.cost, Settled::Said),
        Cost::Answer(rule) => rule,
    };
    let default = f64::from(rule.default);
    let (pointer, max_scan) = match &rule.place {
        Place::Header(name) => {
            let (cost, how) = head
                .field(name)
                .and_then(said)
                .map_or((default, Settled::Missing), |cost| capped(f64::from(cost), rule));
            return Told::Cost(cost, how);
        }
        Place::Json { pointer, max_scan } => (pointer, *max_scan),
    };
    if head.field(&CONTENT_ENCODING).is_some_and(|encoding| !encoding.eq_ignore_ascii_case(b"identity")) {
        return Told::Cost(default, Settled::Encoded);
    }
    let kind = head.field(&CONTENT_TYPE).map_or(Kind::Other, Kind::of);
    let search = Search::new(Arc::clone(pointer));
    Told::Body(Box::new(match kind {
        Kind::Json => Scan::Json { search, left: max_scan },
        Kind::Events => Scan::Events(Events::new(search, max_scan)),
        Kind::Other => return Told::Cost(default, Settled::Missing),
    }))
}

/// What a body is, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `application/json`, or what says that it is made of it (RFC 6839 section 3.1).
    Json,
    Events,
    Other,
}

impl Kind {
    fn of(content_type: &[u8]) -> Self {
        let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let essence = essence.to_ascii_lowercase();
        match &*essence {
            b"text/event-stream" => Self::Events,
            json if json.ends_with(b"/json") || json.ends_with(b"+json") => Self::Json,
            _ => Self::Other,
        }
    }
}

impl<'a> Head<'a> {
    /// The first line of a field.
    fn field(&self, name: &HeaderName) -> Option<&'a [u8]> {
        let line = |line: &'a [u8]| line.strip_prefix(name.as_str().as_bytes())?.strip_prefix(b":");
        let prepared = self.prepared.split(|byte| *byte == b'\n').find_map(line);
        let value = prepared.or_else(|| self.fields.get(name).map(http::HeaderValue::as_bytes))?;
        Some(value.trim_ascii())
    }
}
