//! What is held for a request, looked at without a trace: it counts as no use, keeps nothing and asks for nothing.

use std::sync::Arc;

use super::entry::Stored;
use super::memory::Slot;
use super::{Ask, Cache, Look, apart};
use crate::clock::WallMs;
use crate::invalidation::epochs::Epoch;
use crate::invalidation::{Subject, Verdict};

/// What this pod's knowledge says of something stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What invalidations say.
    pub verdict: Verdict,
    /// Whether it is trusted: the pod can prove that it knows every invalidation, or asked for it within the bound.
    pub is_trusted: bool,
    /// The selectors that have ever named it, with the numbers of their last invalidations.
    pub epochs: Vec<(String, Epoch)>,
}

impl Cache {
    /// What the memory tier holds under a key.
    pub fn peek(&self, key: &[u8]) -> Option<Arc<Slot>> {
        self.memory.peek(key)
    }

    /// What [`Cache::look`] would give.
    pub fn foresee(&self, ask: &Ask<'_>) -> Look {
        self.look_by(ask, |key| self.memory.peek(key), |_, _| {}).0
    }

    /// Until when requests with credentials go for themselves (see [`Cache::is_apart`]).
    pub fn apart_until(&self, ask: &Ask<'_>) -> Option<WallMs> {
        match &self.memory.peek(&apart(ask.key))?.stored {
            Stored::Uncacheable(verdict) if verdict.until > ask.now => Some(verdict.until),
            _ => None,
        }
    }

    /// What is known of what a slot holds.
    pub fn standing(&self, slot: &Slot, ask: &Ask<'_>) -> Standing {
        let answer_tags = slot.stored.entry().map_or(&[][..], |entry| &entry.tags);
        let subject = Subject { answer_tags, ..ask.subject };
        let position = slot.stored.position();
        Standing {
            verdict: self.invalidation.verdict(position, &subject),
            is_trusted: self.is_trusted(slot, ask),
            epochs: self.invalidation.epochs(position, &subject),
        }
    }
}
