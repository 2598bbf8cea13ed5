//! The memory tier: entries of this process, bounded by bytes.
//!
//! It knows no lifetimes: freshness is checked when an entry is read (stale ones are still good for serving stale and
//! for revalidation), and what is not read leaves for want of room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use prometheus::IntCounter;
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};

use super::entry::Stored;
use crate::clock::{SteadyMs, WallMs};
use crate::metrics::Metrics;

/// Size of an entry for which the tables are laid out at first; they grow when entries are smaller.
const USUAL_ENTRY_BYTES: usize = 4096;

/// A shard holds at least this many of the largest objects, or there are fewer shards.
const LARGEST_PER_SHARD: usize = 8;

/// Most shards: beyond twice the threads nothing is gained.
const SHARDS: usize = 16;

/// What a slot is taken to cost beyond the entry's own bytes: its place in table and queue, `Arc`s. An estimate, and on the
/// low side: with what the allocator rounds up, a tier full of 1 KiB objects is resident in some 1.17 of its size.
const SLOT_BYTES: u64 = 160;

/// A stored thing in this process, and what this process knows of it.
#[derive(Debug)]
pub struct Slot {
    /// The entry, the fields it varies by, or a verdict.
    pub stored: Stored,
    /// When this pod asked the upstream for it; 0 if it came from the shared tier.
    pub asked: SteadyMs,
    /// The version of the invalidations under which it was last found valid.
    checked: AtomicU64,
}

impl Slot {
    /// A slot nobody has read yet.
    pub fn new(stored: Stored, asked: SteadyMs) -> Arc<Self> {
        Arc::new(Self { stored, asked, checked: AtomicU64::new(u64::MAX) })
    }

    /// Whether it was found valid under this version already.
    pub fn is_checked(&self, version: u64) -> bool {
        self.checked.load(Ordering::Relaxed) == version
    }

    /// Remembers that it is valid under this version.
    pub fn set_checked(&self, version: u64) {
        self.checked.store(version, Ordering::Relaxed);
    }
}

#[derive(Clone)]
struct Weigh;

impl Weighter<Bytes, Arc<Slot>> for Weigh {
    fn weight(&self, _key: &Bytes, slot: &Arc<Slot>) -> u64 {
        // Nearly always the entry's own key, shared.
        slot.stored.weight() + SLOT_BYTES
    }
}

/// Counts what leaves for want of room.
#[derive(Clone)]
struct Evictions(IntCounter);

impl Lifecycle<Bytes, Arc<Slot>> for Evictions {
    type RequestState = ();

    fn on_evict(&self, _state: &mut Self::RequestState, _key: Bytes, _slot: Arc<Slot>) {
        self.0.inc();
    }
}

type Slots = Cache<Bytes, Arc<Slot>, Weigh, DefaultHashBuilder, Evictions>;

/// The tier; nothing is kept where it has no room at all.
pub struct Memory {
    slots: Option<Slots>,
}

impl Memory {
    /// Room for `bytes`, with objects of up to `max_object`.
    pub fn new(bytes: usize, max_object: usize, metrics: &Metrics) -> Self {
        if bytes == 0 {
            return Self { slots: None };
        }
        let shards = (bytes / max_object.saturating_mul(LARGEST_PER_SHARD).max(1)).clamp(1, SHARDS);
        let options = OptionsBuilder::new()
            .estimated_items_capacity((bytes / USUAL_ENTRY_BYTES).max(16))
            .weight_capacity(bytes as u64)
            .shards(shards)
            .build();
        let evictions = Evictions(metrics.cache_evictions.clone());
        let slots = options.ok().map(|o| Cache::with_options(o, Weigh, DefaultHashBuilder::default(), evictions));
        Self { slots }
    }

    /// What is stored under `key`.
    pub fn get(&self, key: &[u8]) -> Option<Arc<Slot>> {
        self.slots.as_ref()?.get(key)
    }

    /// What is stored under `key`, by a look that does not count as use.
    pub fn peek(&self, key: &[u8]) -> Option<Arc<Slot>> {
        self.slots.as_ref()?.peek(key)
    }

    /// Stores, unless what stands there is newer at `now`; whether nothing newer does.
    pub fn insert(&self, key: Bytes, slot: Arc<Slot>, now: WallMs) -> bool {
        let Some(slots) = &self.slots else { return true };
        if slots.peek(&key).is_some_and(|present| present.stored.is_newer_than(&slot.stored, now)) {
            return false;
        }
        slots.insert(key, slot);
        true
    }

    /// Removes what is stored under `key`.
    pub fn remove(&self, key: &[u8]) {
        if let Some(slots) = &self.slots {
            slots.remove(key);
        }
    }

    /// Sets the gauges.
    pub fn report(&self, metrics: &Metrics) {
        if let Some(slots) = &self.slots {
            metrics.cache_memory_bytes.set(slots.weight() as i64);
            metrics.cache_entries.set(slots.len() as i64);
        }
    }
}
