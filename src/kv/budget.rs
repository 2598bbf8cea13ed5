//! What one request may wait for Redis.

use std::time::Duration;

use super::TRIPS;

/// A timer is late by a millisecond or two where nothing is in its way.
const BUSY: Duration = Duration::from_millis(4);

/// What one request may still wait for Redis, all in all.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    left: Duration,
    /// What was spent that was not there: this process was not there either when its time was up.
    overdrawn: Duration,
    spent_on: Spent,
}

/// Which servers a budget was spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spent {
    Nobody,
    One(u64),
    Several,
}

impl Budget {
    /// A request's whole allowance.
    pub fn new(left: Duration) -> Self {
        Self { left, overdrawn: Duration::ZERO, spent_on: Spent::Nobody }
    }

    /// What is left of it.
    pub fn left(&self) -> Duration {
        self.left
    }

    /// Takes `spent` off.
    pub fn spend(&mut self, spent: Duration) {
        self.overdrawn += spent.saturating_sub(self.left);
        self.left = self.left.saturating_sub(spent);
    }

    /// Whether this process was so busy that an answer may have been there in time, and was not looked at.
    pub fn is_overdrawn(&self) -> bool {
        self.overdrawn >= BUSY
    }

    pub(super) fn spend_on(&mut self, node: u64, spent: Duration) {
        self.spend(spent);
        self.spent_on = if self.is_only(node) { Spent::One(node) } else { Spent::Several };
    }

    /// Whether nothing of it went to other servers than this.
    pub(super) fn is_only(&self, node: u64) -> bool {
        [Spent::Nobody, Spent::One(node)].contains(&self.spent_on)
    }

    /// The share of it that a copy may have: no more than leaves the master time enough to answer instead.
    pub(super) fn share(&self) -> Self {
        Self { left: self.left / TRIPS, ..*self }
    }

    /// Takes off what was spent of its [`share`](Self::share), of which this is left.
    pub(super) fn settle(&mut self, left_of_share: &Self) {
        let spent = self.share().left.saturating_sub(left_of_share.left);
        *self = Self { left: self.left.saturating_sub(spent), ..*left_of_share };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_beyond_it_is_this_process_own() {
        let ms = Duration::from_millis;
        let mut budget = Budget::new(ms(20));
        budget.spend(ms(15));
        budget.spend(ms(7));
        assert!(budget.left().is_zero() && !budget.is_overdrawn(), "a timer's own");
        budget.spend(ms(2));
        assert!(budget.is_overdrawn());
    }
}
