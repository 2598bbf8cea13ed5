//! Who is denied most: a bounded list, kept by the threads that deny, each for itself.
//!
//! Space-Saving (Metwally, Agrawal and El Abbadi, "Efficient computation of frequent and top-k elements in data streams",
//! 2005): a full list gives the place of whoever was denied least to a newcomer, who takes over the count and remembers
//! it as what it may be too high by. So a count is never too low, and whoever has more than a [`TRACKED`]th of a thread's
//! denials is in its list.
//!
//! What a limit that only counts would have denied is counted apart from what it did deny before or after.
//!
//! Costs an admission nothing, but where a limit that only counts would have denied it. A denial looks through [`TRACKED`] names under a lock that its thread has to itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::algorithm::Micros;
use super::identity::LocalName;
use super::{Facts, Limiter, identity};
use crate::config;

/// Identities that one thread keeps count of, and that are shown.
pub const TRACKED: usize = 64;

/// Lists; more threads share them.
const LISTS: usize = 16;

thread_local! {
    /// Which list is this thread's.
    static OWN: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % LISTS
    };
}

/// Who is denied most.
pub(super) struct Top {
    lists: Box<[Mutex<List>]>,
}

/// One thread's; what is looked through stands together.
#[derive(Default)]
struct List {
    names: Vec<LocalName>,
    counts: Vec<u64>,
    rest: Vec<Rest>,
}

/// What is known of an identity beside its count.
struct Rest {
    limit: Arc<config::Limit>,
    /// Canonical bytes.
    identity: Vec<u8>,
    /// What the count may be too high by.
    error: u64,
    last: Micros,
}

/// One who was denied.
#[derive(Debug, Clone)]
pub(super) struct Denied {
    /// By which limit.
    pub(super) limit: Arc<config::Limit>,
    /// Canonical bytes.
    pub(super) identity: Vec<u8>,
    /// So often for certain,
    pub(super) at_least: u64,
    /// and no more often than that.
    pub(super) at_most: u64,
    /// The last time.
    pub(super) last: Micros,
}

impl Limiter {
    /// Counts a denial by `limit`, or what would be one if it did more than count.
    pub(super) fn tally(&self, name: LocalName, limit: &Arc<config::Limit>, facts: &Facts<'_>) {
        self.top.count(name, limit, self.shelf.steady(), |out| {
            identity::canonical(&limit.key, facts, out);
        });
    }
}

impl Top {
    pub(super) fn new() -> Self {
        Self { lists: (0..LISTS).map(|_| Mutex::default()).collect() }
    }

    /// Counts a denial by `limit` to the state called `name`; `write` writes the identity, where it is not known yet.
    pub(super) fn count(
        &self,
        name: LocalName,
        limit: &Arc<config::Limit>,
        now: Micros,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        // A limit may deny after a reload where it only counted, of the same state.
        let name = if limit.dry_run { !name } else { name };
        let mut list = self.lists[OWN.with(|own| *own)].lock().expect("no panic while held");
        let List { names, counts, rest } = &mut *list;
        let at = match names.iter().position(|known| *known == name) {
            Some(at) => at,
            None if names.len() < TRACKED => {
                names.push(name);
                counts.push(0);
                let mut identity = Vec::new();
                write(&mut identity);
                rest.push(Rest { limit: Arc::clone(limit), identity, error: 0, last: now });
                names.len() - 1
            }
            None => {
                let at = least(counts);
                names[at] = name;
                let one = &mut rest[at];
                one.error = counts[at];
                one.limit.clone_from(limit);
                one.identity.clear();
                write(&mut one.identity);
                at
            }
        };
        counts[at] += 1;
        rest[at].last = now;
    }

    /// All lists as one; who is certain to have been denied most comes first.
    pub(super) fn list(&self) -> Vec<Denied> {
        let mut all: HashMap<(String, bool, Vec<u8>), Denied> = HashMap::new();
        // What those may have had in a list who are not in it.
        let mut unseen_in_all = 0;
        for list in &self.lists {
            let list = list.lock().expect("no panic while held");
            let unseen = if list.names.len() < TRACKED { 0 } else { list.counts[least(&list.counts)] };
            unseen_in_all += unseen;
            for (Rest { limit, identity, error, last }, count) in list.rest.iter().zip(&list.counts) {
                let new = || Denied {
                    limit: Arc::clone(limit),
                    identity: identity.clone(),
                    at_least: 0,
                    at_most: 0,
                    last: 0.0,
                };
                let one = all.entry((limit.scope.clone(), limit.dry_run, identity.clone())).or_insert_with(new);
                one.at_least += count - error;
                // Two rates of a limit are two in the list: then this is too high by what was unseen, never too low.
                one.at_most += count.saturating_sub(unseen);
                one.last = one.last.max(*last);
            }
        }
        let mut all: Vec<_> = all.into_values().collect();
        all.iter_mut().for_each(|one| one.at_most += unseen_in_all);
        all.sort_by(|a, b| (b.at_least, b.at_most).cmp(&(a.at_least, a.at_most)).then(a.identity.cmp(&b.identity)));
        all.truncate(TRACKED);
        all
    }
}

/// Where the least count is; of a list that has any.
fn least(counts: &[u64]) -> usize {
    counts.iter().enumerate().min_by_key(|(_, count)| **count).map_or(0, |(at, _)| at)
}

#[cfg(test)]
#[path = "top_tests.rs"]
mod tests;
