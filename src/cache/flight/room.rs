//! Room for bodies on their way: bytes that several may hold together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What several together may hold.
pub(super) struct Room {
    taken: AtomicUsize,
    most: usize,
}

impl Room {
    /// Room for `most` bytes.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { taken: AtomicUsize::new(0), most })
    }

    /// A place in it, without a byte yet.
    pub(super) fn enter(self: &Arc<Self>) -> Held {
        Held { room: Arc::clone(self), bytes: 0 }
    }
}

/// Bytes held of what all fetches may hold together, given back on drop.
pub struct Held {
    room: Arc<Room>,
    bytes: usize,
}

impl Held {
    /// Takes `more` bytes, if they are there.
    pub fn grow(&mut self, more: usize) -> bool {
        let before = self.room.taken.fetch_add(more, Ordering::Relaxed);
        if before.saturating_add(more) > self.room.most {
            self.room.taken.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.bytes += more;
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
