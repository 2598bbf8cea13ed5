//! What there is to begin with where there is no answer to be served.

use std::sync::Arc;

use super::conditional::By;
use super::entry::Entry;
use super::memory::Slot;

/// Why there is no answer, and what a fetch can start from.
#[derive(Default)]
pub struct Missing {
    /// Whether something is stored for the URL, for other request fields.
    pub other_variant: bool,
    /// An answer that may not be served as it is.
    pub previous: Option<Previous>,
}

/// A stored answer that needs the upstream's word.
#[derive(Clone)]
pub struct Previous {
    /// Where it stands.
    pub slot: Arc<Slot>,
    /// Hard-invalidated: only a strong ETag revalidates it, and it never excuses an error.
    pub is_gone: bool,
    /// Whether it may be served should the upstream fail.
    pub excuses_errors: bool,
}

impl Previous {
    /// What the upstream's confirmation must go by: for an answer that an invalidation has overtaken, a strong tag (a
    /// date has whole seconds).
    pub fn confirmed_by(&self) -> By {
        if self.is_gone { By::StrongTag } else { By::AnyValidator }
    }

    /// Whether a fetch can start from it: the upstream may confirm it, or its failure be excused by it.
    pub fn is_of_use(&self) -> bool {
        self.excuses_errors || self.entry().is_some_and(|entry| entry.has_validator())
    }

    /// The entry.
    pub fn entry(&self) -> Option<&Arc<Entry>> {
        self.slot.stored.entry()
    }
}
