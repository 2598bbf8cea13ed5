//! The records of rules in the memory tier: by which rule the answers of a path are looked up (see [`search`]).

use std::sync::Arc;

use super::Cache;
use super::entry::{Entry, Stored};
use super::memory::Slot;
use super::search::{self, Rule, Search};

impl Cache {
    /// The rule by which answers are looked up, as far as this pod knows.
    pub fn rule(&self, search: &Search) -> Option<Rule> {
        search::recorded(&self.memory.get(search.key())?.stored, self.clock.now())
    }

    /// Whether anything stands in memory under this key.
    pub fn holds(&self, key: &[u8]) -> bool {
        self.memory.get(key).is_some()
    }

    /// Keeps the record of a rule that the shared tier has, if it is of use; the rule.
    pub fn keep_record(&self, record: Stored) -> Option<Rule> {
        let rule = search::recorded(&record, self.clock.now())?;
        self.memory.insert(record.key().clone(), Slot::new(record, 0), self.times().0);
        Some(rule)
    }

    /// Records the rule that came with `answer`, unless the same is recorded for long enough.
    pub fn record(&self, search: &Search, rule: &Rule, answer: &Entry) -> Option<Stored> {
        let now = self.clock.now();
        let standing = self.memory.get(search.key());
        let stands = |slot: &Arc<Slot>| {
            slot.stored.keep_ms(now) >= answer.keep_ms(now)
                && search::recorded(&slot.stored, now).as_ref() == Some(rule)
        };
        if standing.as_ref().is_some_and(stands) {
            return None;
        }
        let record = Stored::Entry(Arc::new(search.record(rule, answer, now)));
        self.memory.insert(record.key().clone(), Slot::new(record.clone(), 0), self.times().0);
        Some(record)
    }

    /// Removes what stands in memory under this key; whether anything did.
    pub fn forget(&self, key: &[u8]) -> bool {
        let stood = self.holds(key);
        self.memory.remove(key);
        stood
    }
}
