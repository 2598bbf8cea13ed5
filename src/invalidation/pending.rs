//! What was applied here and is not in the log yet. Pure.
//!
//! Such an invalidation has no number that another pod's could be compared with: another pod may be ahead in the log by any
//! number of records, and know nothing of it. So until it is settled, whatever it names is refused if it carries a position
//! of the log, however high.

use std::collections::BTreeSet;

use super::epochs::{Epoch, Epochs, Stamp};
use super::{Subject, Verdict};
use crate::syntax::selector::Selector;

/// By what one is settled.
pub type Ticket = u64;

/// All of them.
#[derive(Debug, Default)]
pub struct Pending {
    /// What each selector was last named by. Forgotten only when nothing is pending any more.
    named: Epochs,
    unsettled: BTreeSet<Ticket>,
    last: Ticket,
}

impl Pending {
    /// One more.
    pub fn add(&mut self, selectors: &[Selector], soft: bool) -> Ticket {
        self.last += 1;
        for selector in selectors {
            self.named.raise(selector, Stamp::of(self.last, self.last, soft));
        }
        self.unsettled.insert(self.last);
        self.last
    }

    /// It has a number in the log, or was given up.
    pub fn settle(&mut self, ticket: Ticket) {
        self.unsettled.remove(&ticket);
        if self.unsettled.is_empty() {
            self.named = Epochs::default();
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.unsettled.is_empty()
    }

    /// What they say of an answer from the log. One that is settled may be taken for one that is not, if an older one of
    /// another selector is not: that refuses too much, never too little.
    pub fn verdict(&self, subject: &Subject<'_>) -> Verdict {
        let Some(oldest) = self.unsettled.first() else { return Verdict::Valid };
        let Epoch { hard, soft } = self.named.of(subject).log;
        match (hard >= *oldest, soft >= *oldest) {
            (true, _) => Verdict::Gone,
            (false, true) => Verdict::Stale,
            (false, false) => Verdict::Valid,
        }
    }
}
