//! What this process still waits for before it takes traffic.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Named things that must be done before this process is ready; clones share it.
///
/// With nothing blocked it is ready. [`Readiness::drain`] ends that for good.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// In the order in which they were first blocked; names are literals, so there are few.
    items: Mutex<Vec<Item>>,
    draining: AtomicBool,
}

/// One thing that readiness waits for, or waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// What it is, for people: `redis`, `listener`.
    pub name: &'static str,
    /// Guards that are held for it; ready at 0.
    pub blockers: usize,
}

/// Keeps the process unready until it is dropped.
#[derive(Debug)]
#[must_use = "readiness is blocked only while this is held"]
pub struct Blocker {
    readiness: Readiness,
    name: &'static str,
}

impl Readiness {
    /// Nothing to wait for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the process unready until the guard is dropped. Guards of one name add up.
    pub fn block(&self, name: &'static str) -> Blocker {
        let mut items = self.items();
        match items.iter_mut().find(|item| item.name == name) {
            Some(item) => item.blockers += 1,
            None => items.push(Item { name, blockers: 1 }),
        }
        Blocker { readiness: self.clone(), name }
    }

    /// Makes the process unready for good: it still serves, but wants no new traffic.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    /// Whether [`Readiness::drain`] was called.
    pub fn draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }

    /// Whether traffic is wanted.
    pub fn ready(&self) -> bool {
        !self.draining() && self.items().iter().all(|item| item.blockers == 0)
    }

    /// Everything that was ever waited for.
    pub fn report(&self) -> Vec<Item> {
        self.items().clone()
    }

    fn items(&self) -> MutexGuard<'_, Vec<Item>> {
        self.0.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Blocker {
    fn drop(&mut self) {
        if let Some(item) = self.readiness.items().iter_mut().find(|item| item.name == self.name) {
            item.blockers -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_of_one_name_add_up() {
        let readiness = Readiness::new();
        assert!(readiness.ready());
        let first = readiness.block("redis");
        let second = readiness.clone().block("redis");
        drop(first);
        assert!(!readiness.ready());
        assert_eq!(readiness.report(), [Item { name: "redis", blockers: 1 }]);
        drop(second);
        assert!(readiness.ready());
    }

    #[test]
    fn draining_is_for_good() {
        let readiness = Readiness::new();
        let blocker = readiness.block("listener");
        readiness.drain();
        drop(blocker);
        assert!(!readiness.ready() && readiness.draining());
    }
}
