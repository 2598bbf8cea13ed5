//! What one request may wait for Redis.

use std::time::Duration;

/// An answer that was read so much later than it was waited for cannot have been looked for in time: this process was busy. A
/// timer alone is late by a millisecond or two.
const BUSY: Duration = Duration::from_millis(4);

/// A copy has this share of what is left: the master may have to answer instead.
const OF_A_COPY: u32 = 2;

/// What one request may still wait for Redis: all its commands have one deadline, but for what it asks again after it has waited for
/// something else.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    left: Duration,
    /// Whether its end came while this process was too busy to look for the answer.
    missed: bool,
    waited: bool,
    /// Whether a server was charged with its end.
    charged: bool,
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
        Self { left, missed: false, waited: false, charged: false, spent_on: Spent::Nobody }
    }

    /// What is left of it.
    pub fn left(&self) -> Duration {
        self.left
    }

    /// Takes `spent` off.
    pub fn spend(&mut self, spent: Duration) {
        self.left = self.left.saturating_sub(spent);
    }

    /// Whether nothing is left of it because this process was too busy to look for the last answer, which came.
    pub fn was_missed(&self) -> bool {
        self.missed
    }

    /// Whether this is the first time that a server is charged with its end: what is not sent after it is nobody's lateness.
    pub(super) fn charge(&mut self) -> bool {
        !std::mem::replace(&mut self.charged, true)
    }

    /// Takes off what was spent on a server, which has `answered` or not.
    pub(super) fn spend_on(&mut self, node: u64, spent: Duration, answered: bool) {
        // Once it is at its end, what ended it stands.
        if !self.left.is_zero() {
            self.missed = answered && spent >= self.left + BUSY;
        }
        self.spend(spent);
        self.spent_on = if self.is_only(node) { Spent::One(node) } else { Spent::Several };
    }

    /// Takes off what was waited for on no server's account: what is left is none's measure by itself.
    pub(crate) fn wait(&mut self, waited: Duration) {
        self.pause(waited);
        self.waited = true;
    }

    /// The same for a pause that a server asked for, which is no reason not to wait again.
    pub(super) fn pause(&mut self, waited: Duration) {
        self.spend(waited);
        self.spent_on = Spent::Several;
    }

    /// Whether something of it was [waited](Self::wait) away.
    pub(super) fn has_waited(&self) -> bool {
        self.waited
    }

    /// Whether nothing of it went to other servers than this.
    pub(super) fn is_only(&self, node: u64) -> bool {
        [Spent::Nobody, Spent::One(node)].contains(&self.spent_on)
    }

    /// The share of it that a copy may have: no more than leaves the master time enough to answer instead.
    pub(super) fn share(&self) -> Self {
        Self { left: self.left / OF_A_COPY, ..*self }
    }

    /// Takes off what was `spent` of a [`share`](Self::share), by what it was spent on.
    pub(super) fn settle(&mut self, share: &Self, spent: Duration) {
        let missed = share.missed && spent >= self.left + BUSY;
        *self = Self { left: self.left.saturating_sub(spent), missed, ..*share };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_answer_that_is_read_long_after_its_time_was_missed() {
        for (spent, answered, missed) in [(22, true, false), (30, false, false), (24, true, true)] {
            let mut budget = Budget::new(ms(20));
            budget.spend_on(1, ms(spent), answered);
            assert!(budget.left().is_zero());
            assert_eq!(budget.was_missed(), missed, "{spent} ms");
            budget.spend_on(1, Duration::ZERO, false);
            assert_eq!(budget.was_missed(), missed, "what comes after has not ended it");
        }
    }

    #[test]
    fn what_was_waited_for_nobodys_answer_is_held_against_none() {
        let mut budget = Budget::new(ms(20));
        budget.spend_on(1, ms(2), true);
        assert!(!budget.has_waited());
        budget.wait(ms(9));
        assert_eq!(budget.left(), ms(9));
        assert!(budget.has_waited() && !budget.is_only(1) && !budget.is_only(2));
    }

    #[test]
    fn a_pause_is_held_against_nobody_and_the_end_against_one() {
        let mut budget = Budget::new(ms(20));
        budget.spend_on(1, ms(2), true);
        budget.pause(ms(9));
        assert!(!budget.has_waited() && !budget.is_only(1));
        assert!(budget.charge());
        assert!(!budget.charge());
    }

    #[test]
    fn what_a_copy_takes_beyond_its_share_is_the_requests() {
        let mut budget = Budget::new(ms(20));
        let mut share = budget.share();
        share.spend_on(1, ms(16), true);
        budget.settle(&share, ms(16));
        assert_eq!(budget.left(), ms(4));
        assert!(!budget.was_missed(), "there is time to ask");
        assert!(budget.is_only(1) && !budget.is_only(2));
        budget.spend_on(1, ms(6), false);
        assert!(budget.left().is_zero() && !budget.was_missed(), "the master was late");
    }
}
